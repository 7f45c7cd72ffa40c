"""The page of an output folder: JavaScript that says what the model says."""

import base64
import html
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcompress import output
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.export import predict
from vitcompress.export.onnx import facts_of
from vitcompress.model.architecture import VitModel

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js")
SCRIPT = Path(predict.__file__).with_suffix(".mjs")
READ = """
import {prepared, told} from SCRIPT;
import {readFileSync, writeFileSync} from "node:fs";
const [file, into] = process.argv.slice(2);
const cases = JSON.parse(readFileSync(file));
const parts = cases.map(({width, height, data, spec}) =>
  Buffer.from(prepared({width, height, data: Buffer.from(data, "base64")}, spec).buffer));
writeFileSync(into, Buffer.concat(parts));
"""


def in_node(code: str, folder: Path, *arguments: object) -> str:
    (file := folder / "run.mjs").write_text(code.replace("SCRIPT", json.dumps(str(SCRIPT))))
    given = [str(NODE), str(file), *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_node
def test_pixels_are_those_of_a_run(tmp_path: Path) -> None:
    choices = product(
        ["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"],
        ["center", "squash", "border"],
        [False, True],
        [False, True],
        [(24, 24), (16, 29)],
        [1.0, 0.9],
    )
    sizes = [(41, 67), (67, 40), (9, 13), (24, 24)]
    cases, wanted, specs = list[dict[str, Any]](), list[np.ndarray](), list[Preprocess]()
    for number, (interpolation, mode, floor, floats, target, crop_pct) in enumerate(choices):
        channels = 1 if number % 5 == 0 else 3
        spec = Preprocess(
            input_size=target,
            channels=channels,
            mean=(0.485, 0.456, 0.406)[:channels],
            std=(0.229, 0.224, 0.225)[:channels],
            crop_pct=crop_pct,
            interpolation=interpolation,
            crop_mode=mode,
            floor_crop=floor,
            float_resize=floats,
        )
        height, width = sizes[number % len(sizes)]
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 4), dtype=np.uint8)
        data = base64.b64encode(noise.tobytes()).decode()
        told = json.loads(spec.model_dump_json())
        cases.append({"width": width, "height": height, "data": data, "spec": told})
        wanted.append(model_input(Image.fromarray(noise), spec).numpy())
        specs.append(spec)
    (file := tmp_path / "cases.json").write_text(json.dumps(cases))
    in_node(READ, tmp_path, file, into := tmp_path / "pixels")
    found = np.frombuffer(into.read_bytes(), np.float32)
    for spec, expected in zip(specs, wanted, strict=True):
        own, found = found[: expected.size].reshape(expected.shape), found[expected.size :]
        assert np.abs(own - expected).max() <= (1e-5 if spec.float_resize else 0), spec
    assert not found.size


@needs_node
@pytest.mark.parametrize(
    ("task", "output", "lines"),
    [
        ("classification", [0.0, 2.0, 1.0], ["66.52 %  b", "24.47 %  c", "9.00 %  a"]),
        ("multi_label", [1.0, -1.0, 2.0], ["88.08 %  c", "73.11 %  a"]),
        ("multi_label", [-1.0, -1.0, -2.0], ["none of its classes"]),
        ("one_logit", [1.0], ["yes (73.11 %)"]),
        ("regression", [1.5, -2.0], ["1.5000 -2.0000"]),
    ],
)
def test_outputs_mean_what_their_task_says(
    task: str, output: list[float], lines: list[str], tmp_path: Path
) -> None:
    code = f"""
import {{told}} from SCRIPT;
console.log(JSON.stringify(told({output}, {json.dumps(task)}, ["a", "b", "c"])));
"""
    assert json.loads(in_node(code, tmp_path)) == lines


CHROMIUM = shutil.which("chromium")
WEB = os.environ.get("VITCOMPRESS_ONNXRUNTIME_WEB")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=60000", "--dump-dom"),
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address."""
    (folder := tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def shown(address: str, profile: Path) -> str:
    given = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", address]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=120)
    return html.unescape(done.stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_page_without_its_runtime_says_what_to_install(
    served: tuple[Path, str], vit: VitModel, tmp_path: Path
) -> None:
    folder, address = served
    named = replace(vit, class_names=("</script><b>", *map(str, range(1, 10))))
    output.write_predict(folder, "vit </h1>", facts_of(named, {}))
    page = shown(f"{address}/predict.html", tmp_path / "profile")
    assert "npm install onnxruntime-web in this folder" in page.partition('role="status"')[2]
    assert "<b>" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or WEB is None, reason="needs chromium and onnxruntime-web")
def test_the_page_says_what_the_script_says(
    served: tuple[Path, str],
    vit: VitModel,
    tmp_path: Path,
    export_once: Callable[..., object],
) -> None:
    folder, address = served
    names = tuple(f"class {number}" for number in range(10))
    named = replace(vit, class_names=names)
    export_once(named, folder / output.ONNX, facts_of(named, {}))
    output.write_predict(folder, "vit", facts_of(named, {}))
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "onnxruntime-web").symlink_to(str(WEB))
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "x.png")
    (found,) = predict.predictions(predict.load(folder / output.ONNX), [str(folder / "x.png")])
    page = shown(f"{address}/predict.html?image=x.png", tmp_path / "profile")
    for each in found.facts["classes"]:
        assert f"{100 * each['probability']:.2f} %  {each['class']}" in page
