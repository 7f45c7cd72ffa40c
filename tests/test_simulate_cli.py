"""Simulated activations at the command line: the words that go with their figures."""

from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, Call

RECIPE = f"""{EXAMPLE}
stages:
  - name: quant
    type: quantize
    layers: ["blocks.0.*"]
    rounding: nearest
    reparametrise: false
    residual: 0
"""


def test_a_simulation_is_called_one_wherever_its_figures_are(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ("--set", "stages.quant.simulate.bits=3", "--set", "export.safetensors=false")
    done = call("run", recipe, "--out", out, "--limit", 33, "--json", *settings)
    report = done.json
    (simulated,) = report["stages"][0]["details"]["studies"]
    figures = {name: value for name, value in simulated["figures"].items() if value is not None}
    assert set(figures) == {"images", "top1", "top5", "agreement", "kl", "intervals"}
    assert figures["images"] == 33
    assert figures["kl"] > report["final"]["kl"]  # 3 bits instead of the 8 that are exported
    words = (
        "3-bit inputs of layers and of attention are simulation only, not exported; "
        "in the exported file layers have 8-bit inputs, and attention is float"
    )
    assert simulated["note"] == words
    warning = next(text for text in report["warnings"] if text.startswith(f"quant: {words}; "))
    assert f"Agreement {figures['agreement']:.1f} %" in warning
    assert words in done.told
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert text.count(words) == 2, name  # once at the top, once beside the figures
    assert all("simulated" not in metrics for metrics in (report["final"], report["baseline"]))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("stages.quant.simulate.bits=9", ("stages.quant.simulate.bits", "8")),
        ("stages.quant.simulate={softmax: log2}", ("stages.quant.simulate", "bits")),
        ("stages.quant.simulate={bits: 4, softmax: log10}", ("simulate.softmax", "log2")),
        ("stages.quant.simulate={bits: 4, sofmax: log2}", ("simulate.sofmax", "softmax")),
    ],
)
def test_a_wrong_study_ends_with_2(
    setting: str, expected: tuple[str, ...], call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = call("run", recipe, "--out", out, "--set", setting, code=2).error
    assert line.startswith("error: ")
    assert all(word in line for word in expected), line
    assert not out.exists()
