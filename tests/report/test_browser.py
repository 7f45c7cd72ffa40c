"""The pages as Chromium lays them out: on a phone and on a desk, by day and by night."""

import html as markup
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vitcompress.details import Table
from vitcompress.report import compare, html, search
from vitcompress.report.compare import Run
from vitcompress.report.model import ChangedAnswer, ChangedImage, Changes, ClassLoss, Report

WIDTHS = (390, 1280)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--window-size=1400,1000"),
)
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)

SEARCHED = search.SearchReport(
    "a model",
    "latency",
    "kl",
    tuple(
        search.Tried({"quant": "8 bits"}, {"latency": 0.9 - n / 10}, 0.01 * n, {}, n < 4)
        for n in range(6)
    ),
    3,
    Table.of("stages", [{"stage": "quant", "latency_ratio": 0.75}]),
)

# What each frame holds, measured with everything unfolded.
SCRIPT = """
function light(colour) {
  const part = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
}
function ground(node) {
  for (let each = node; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return light(colour);
  }
  return 1;
}
function contrast(node) {
  const style = getComputedStyle(node);
  const ink = light(node.namespaceURI.endsWith('svg') ? style.fill : style.color);
  const [low, high] = [ink, ground(node)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function examined(page) {
  page.querySelectorAll('details').forEach(each => { each.open = true; });
  const root = page.documentElement, outside = [], faint = [], untold = [];
  for (const chart of page.querySelectorAll('svg')) {
    const box = chart.closest('.panel').getBoundingClientRect();
    for (const part of chart.querySelectorAll('*')) {
      const own = part.getBoundingClientRect();
      const inside = own.left >= box.left && own.right <= box.right
        && own.top >= box.top && own.bottom <= box.bottom;
      if (own.width + own.height > 0 && !inside) outside.push(part.outerHTML);
    }
    if (chart.getAttribute('role') !== 'img' || !chart.getAttribute('aria-label'))
      untold.push(chart.outerHTML.slice(0, 99));
  }
  for (const image of page.querySelectorAll('img')) if (!image.alt) untold.push(image.outerHTML);
  for (const node of page.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(each => each.nodeType === 3 && each.data.trim());
    if (own && !['title', 'style'].includes(node.localName) && contrast(node) < 4.5)
      faint.push(node.outerHTML.slice(0, 99) + ' ' + contrast(node).toFixed(2));
  }
  return {
    scrolls: root.scrollWidth - root.clientWidth, charts: page.querySelectorAll('svg').length,
    outside, untold, faint, ground: ground(page.body), height: root.scrollHeight,
  };
}
window.onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe'))
    found[frame.name] = examined(frame.contentDocument);
  document.getElementById('found').textContent = JSON.stringify(found);
};
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("there is no chromium to lay the pages out")
    return found


def full(report: Report) -> Report:
    """`report` with long names, many layers, and images that changed."""
    layers = [
        {"layer": f"blocks.{block}.{kind}", "bits": 4 + (block + place) % 3, "output_error": 0.1}
        for block in range(24)
        for place, kind in enumerate(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    ]
    quantized = report.stages[1]
    table = Table.of("layers", layers, {"bits": "Bits of each layer's weights"})
    details = quantized.details.model_copy(update={"tables": (table,)})
    answer = ChangedAnswer(before="a_name_of_a_class" * 3, after="other", label="third")
    images = tuple(
        ChangedImage(image=f"{n}.jpg", picture=PIXEL, value=0.5, answer=answer) for n in range(5)
    )
    losses = (ClassLoss(name="a_name_of_a_class" * 3, images=9, before=8, after=6),)
    return report.model_copy(
        update={
            "model": {"name": "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "keys": "k" * 200},
            "stages": [
                *(
                    quantized.model_copy(update={"name": f"stage_{n}", "details": details})
                    for n in range(4)
                ),
                report.stages[0],
            ],
            "changes": Changes(
                images=1000,
                changed=14,
                lost=6,
                gained=4,
                measure="kl",
                shown=images,
                classes=losses,
            ),
            "made": report.made.model_copy(update={"command": "vitcompress run " + "x/" * 200}),
        }
    )


def laid_out(chromium: str, pages: dict[str, str], dark: bool, folder: Path) -> dict[str, Any]:
    """What Chromium makes of each page at each width, by `PAGE WIDTH`."""
    frames = "".join(
        f'<iframe name="{name} {width}" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{markup.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    file = folder / "frames.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8">{frames}<pre id="found"></pre>'
        f"<script>{SCRIPT}</script>",
        encoding="utf-8",
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [chromium, *FLAGS, scheme, profile, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    told: dict[str, Any] = json.loads(markup.unescape(found))
    assert len(told) == len(WIDTHS) * len(pages)
    return told


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_and_can_be_read(
    dark: bool, chromium: str, report: Report, failed: Report, embedded: Report, tmp_path: Path
) -> None:
    table = full(report).stages[0].details.tables[0]
    pages = {
        "report": html.render(full(report)),
        "failed": html.render(failed),
        "embedded": html.render(embedded),
        "sensitivity": html.sensitivity_page("model", {"stage": table}),
        "search": search.render(SEARCHED),
        "compare": compare.render(
            {
                "out/a-folder-with-a-long-name/first": Run(report, {"a": "1"}),
                "out/a-folder-with-a-long-name/second": Run(full(report), {"a": "x" * 90}),
            }
        ),
    }
    found = laid_out(chromium, pages, dark, tmp_path)
    for name, page in found.items():
        assert page["scrolls"] == 0, name
        assert page["outside"] == [], name
        assert page["untold"] == [], name
        assert page["faint"] == [], name
        assert (page["ground"] < 0.2) == dark, name
    assert found["compare 390"]["charts"] == 2
    assert found["search 390"]["charts"] == 1
    assert found["report 390"]["charts"] == found["report 1280"]["charts"] == 5


def test_what_is_wrong_is_found(chromium: str, tmp_path: Path) -> None:
    wide = (
        '<main style="background:#fff"><div class="panel" style="width:300px"><svg width="700" '
        'height="20" style="overflow:visible"><rect x="600" width="90" height="9"/></svg></div>'
        '<p style="color:#ccc">faint</p><img src=""></main>'
    )
    found = laid_out(chromium, {"bad": wide}, False, tmp_path)
    for page in found.values():
        assert (len(page["outside"]), len(page["untold"]), len(page["faint"])) == (1, 2, 1)
    assert found["bad 390"]["scrolls"] > 0
