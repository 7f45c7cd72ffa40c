"""The output folder: written beside its place, and put there when it is complete."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitcompress import processor
from vitcompress import recipe as recipes
from vitcompress.errors import InputError, RunError
from vitcompress.model.architecture import VitModel
from vitcompress.report import html, junit, markdown
from vitcompress.report.model import Artifact, Report

ONNX, MANIFEST = "model.onnx", "manifest.json"
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # that file managers leave
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy")


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to; it becomes `out` when all went well, else it goes.

    An earlier output in `out` is replaced; anything else there, and what was put beside an earlier
    output, is refused with `InputError`, as is a place that cannot be written to. A disk that fills
    up on the way is a `RunError`.
    """
    out = out.absolute()
    if out.exists() and not _is_empty(out):
        written = _written(out)
        if not written:
            raise InputError(
                f"--out {out}: exists and is no output of vitcompress; give another place"
            )
        if others := sorted({file.name for file in out.iterdir()} - written - _LITTER):
            raise InputError(
                f"--out {out}: holds {others[0]}, which is no part of the output there; move it "
                "away, or give another place"
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        partial.chmod(0o755)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}") from error
    try:
        yield partial
        if out.exists():
            old = partial.with_name(partial.name + ".old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except OSError as error:
        where = error.filename or out
        raise RunError(f"{where}: {error.strerror or error}; nothing was left in {out}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _written(out: Path) -> set[str]:
    """The names of the files of an earlier output in `out`; none where there is no such."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        ours = "vitcompress" in manifest["versions"]
        return {MANIFEST, *manifest["outputs"]} if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def cache_folder() -> Path:
    """Where results that can be computed again are kept: VITCOMPRESS_CACHE or the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VITCOMPRESS_CACHE") or Path(base) / "vitcompress")


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


def identity(recipe: recipes.Recipe, dense: VitModel) -> dict[str, str]:
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


def environment(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "cpu": processor.name(),
        "instructions": processor.instructions(),
        "cores": os.cpu_count(),
        "onnxruntime_threads": threads,
        "batch": 1,
        **versions(),
    }
