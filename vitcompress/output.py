"""What an output folder says of itself: reports, versions, hashes; and where results are kept."""

import atexit
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import escape

if sys.platform != "win32":
    import resource

from vitcompress import processor
from vitcompress import recipe as recipes
from vitcompress.claims import scratch
from vitcompress.console import keep, note
from vitcompress.data.preprocess import Preprocess
from vitcompress.export import predict
from vitcompress.model.architecture import VitModel
from vitcompress.pace import PEAK
from vitcompress.place import MANIFEST
from vitcompress.report import html, junit, markdown
from vitcompress.report.model import Artifact, Report
from vitcompress.targets import Target

ONNX, LOG = predict.MODEL, "run.log"
PREDICT, PAGE = "predict.py", "predict.html"
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy")


def cache_folder() -> Path:
    """Where results that can be computed again are kept: VITCOMPRESS_CACHE or the user's cache.

    For a user without a home it is a folder that goes when the process ends.
    """
    if own := os.environ.get("VITCOMPRESS_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "vitcompress"
    try:
        return Path.home() / ".cache" / "vitcompress"
    except RuntimeError:
        return _passing_folder()


@cache
def _passing_folder() -> Path:
    lasting = ExitStack()
    folder = lasting.enter_context(scratch())
    atexit.register(lasting.close)
    note("no home folder: nothing is kept for --resume; VITCOMPRESS_CACHE names a place")
    return folder


def write_predict(folder: Path, name: str, facts: Mapping[str, str]) -> list[Path]:
    """What runs the ONNX file on images without vitcompress: a script, with what this model needs
    and no more, and a page for browsers; `name` and `facts`: what the file is called, and says of
    itself."""
    home = Path(predict.__file__)
    (folder / PREDICT).write_text(_script(home, name, facts), encoding="utf-8")
    names = json.loads(facts.get("class_names", "null"))
    told = {"task": facts["task"], "class_names": names}
    told["preprocessing"] = json.loads(facts["preprocessing"])
    page = _template(home.with_name(f"{PAGE}.j2")).render(
        name=escape(name),
        facts=json.dumps(told).replace("<", "\\u003c"),
        script=home.with_suffix(".mjs").read_text(encoding="utf-8"),
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return [folder / PREDICT, folder / PAGE]


@cache
def _template(file: Path) -> Template:
    text = file.read_text(encoding="utf-8")
    template: Template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template


def _script(home: Path, name: str, facts: Mapping[str, str]) -> str:
    spec = Preprocess.model_validate_json(facts["preprocessing"])
    height, width = spec.input_size
    tall, wide = (math.floor(side / spec.crop_pct) for side in spec.input_size)
    return _template(home.with_name(f"{PREDICT}.j2")).render(
        name=name.replace("\\", "/").replace('"', "'"),
        task=facts["task"],
        named="class_names" in facts and facts["task"] in ("classification", "multi_label"),
        quantized=facts["quantization"] != "{}",
        channels=spec.channels,
        mean=list(spec.mean),
        std=list(spec.std),
        mode=spec.crop_mode,
        height=height,
        width=width,
        tall=tall,
        wide=wide,
        interpolation=spec.interpolation.upper(),
        floor=spec.floor_crop and spec.crop_mode != "border",
        floats=spec.float_resize,
    )


def write_reports(folder: Path, report: Report) -> None:
    """report.json and its renderings."""
    texts = {
        "report.json": report.to_json(),
        "report.md": markdown.render(report),
        "report.html": html.render(report),
        "junit.xml": junit.render(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@contextmanager
def leaving_log(folder: Path, out: Path) -> Iterator[None]:
    """Where the work fails, the log in `folder` is left beside the output `out` that it was for,
    with what was raised, which gets a note that says where; else what an earlier run left there
    goes."""
    place = Path(os.path.realpath(out))
    place = place.with_name(f"{place.name}.failed.log")
    try:
        yield
    except Exception as error:
        keep("".join(traceback.format_exception(error)).rstrip())
        try:
            shutil.copyfile(folder / LOG, place)
            error.add_note(f"the log is {place}")
        except OSError as second:
            error.add_note(f"no log is left: {place}: {second.strerror}")
        raise
    with suppress(OSError):  # there is none
        place.unlink()


def write_manifest(
    folder: Path, recipe: recipes.Recipe, options: Any, inputs: Mapping[str, str]
) -> None:
    """recipe.yaml as it was resolved, and manifest.json: versions, seed and hashes."""
    (folder / "recipe.yaml").write_text(recipes.to_yaml(recipe), encoding="utf-8")
    source = Path(recipe.model.checkpoint or "")
    checkpoint = {"checkpoint": sha256(source)} if source.is_file() else {}
    manifest = {
        "versions": versions(),
        "seed": options.seed,
        "device": options.device,
        "threads": options.threads,
        "inputs": {**checkpoint, **inputs},
        "outputs": {f.name: sha256(f) for f in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def artifact(path: Path, parity: Mapping[str, Any]) -> Artifact:
    return Artifact(
        path=path.name, bytes=path.stat().st_size, sha256=sha256(path), parity=dict(parity)
    )


def onnx_bytes(path: Path) -> int:
    """The size of an ONNX file, with the weights beside it where it has such."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(recipe: recipes.Recipe, dense: VitModel) -> dict[str, str]:
    """What an exported file says of where it comes from."""
    text = recipe.model_copy(update={"model": type(recipe.model)(), "data": type(recipe.data)()})
    return {
        "version": version("vitcompress"),
        "recipe_sha256": hashlib.sha256(recipes.to_yaml(text).encode()).hexdigest(),
        "dense_sha256": dense.fingerprint(),
    }


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("vitcompress", *_PACKAGES)}
    return {"python": platform.python_version(), **packages}


def command() -> str:
    """What this process was called by, as it would be typed."""
    return shlex.join(["vitcompress", *sys.argv[1:]])


def now() -> str:
    """The time of day, to the minute, in UTC: `2026-11-27T23:41Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")


def environment(threads: int, runtime: Target) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "cpu": processor.name(),
        "instructions": processor.instructions(),
        "cores": os.cpu_count(),
        "target": f"{runtime.name} {runtime.version}",
        "onnxruntime_threads": threads,
        "batch": 1,
        PEAK: peak_bytes(),
        **versions(),
    }


def peak_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
