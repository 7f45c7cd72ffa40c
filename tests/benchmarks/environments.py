"""Environments with one version of one runtime, and what files do there."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitcompress import processor

HERE = Path(__file__).parent
OF_NPM = ("onnxruntime-node", "onnxruntime-web")
# onnxruntime before 1.19 needs it, which has no wheels for a newer Python.
_NUMPY = "numpy<2" if sys.version_info < (3, 13) else "numpy"
_WARM_UP = 3


@dataclass(frozen=True)
class Environment:
    """A folder with `package`: a virtual environment of Python, or one with node_modules."""

    package: str
    folder: Path

    @property
    def command(self) -> list[str]:
        if self.package in OF_NPM:
            return ["node", str(HERE / "in_node.mjs")]
        return [str(self.folder / "bin" / "python"), str(HERE / "in_python.py")]


def environment(requirement: str, given: Mapping[str, Path], home: Path) -> Environment:
    """The environment for a requirement: the one that is given, else one in the folder `home`,
    made there where there is none. Raises `CalledProcessError` where nothing can be installed."""
    package = re.split(r"[^\w-]", requirement)[0]
    folder = given.get(requirement, home / re.sub(r"[^\w.]+", "-", requirement).strip("-."))
    ready = folder / "ready"
    if requirement not in given and not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if package in OF_NPM:
            # Its script fetches kernels for other devices; those for processors are there.
            _call(["npm", "install", "--prefix", folder, "--ignore-scripts", requirement])
        else:
            _call([sys.executable, "-m", "venv", folder])
            _call([folder / "bin" / "python", "-m", "pip", "install", _NUMPY, requirement])
        ready.touch()
    return Environment(package, folder)


def ask(
    where: Environment,
    check: tuple[Mapping[str, Path], np.ndarray] | None = None,
    time: tuple[Mapping[str, Path], np.ndarray] | None = None,
    seconds: float = 0,
) -> dict[str, Any]:
    """Run files on one thread: `check` and `time` are files by name, and pixels [n, C, H, W].

    Returns the `version` of the runtime; by name, under "check", "outputs" and "optimized" (the
    graph of onnxruntime) or "integer_nodes" (of OpenVINO), or an "error"; under "time",
    milliseconds of runs in turns, of `seconds` a file. The optimised graphs lie beside the files.
    """
    request: dict[str, Any] = {
        "package": where.package,
        "precise": "vnni" not in processor.instructions(),
    }
    with TemporaryDirectory() as place:
        for name, part in (("check", check), ("time", time)):
            if part is not None:
                pixels = Path(place) / f"{name}.float32"
                part[1].astype(np.float32).tofile(pixels)
                files = {kind: str(file.absolute()) for kind, file in part[0].items()}
                request[name] = {"pixels": str(pixels), "shape": part[1].shape, "files": files}
        if time is not None:
            request["time"] |= {"seconds": seconds, "warm_up": _WARM_UP}
        told = Path(place) / "request.json"
        told.write_text(json.dumps(request), encoding="utf-8")
        found: dict[str, Any] = json.loads(_call([*where.command, told], where.folder))
    return found


def _call(command: list[Any], folder: Path | None = None) -> str:
    """What a command prints. Its errors stand in the exception."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, done.args, done.stdout, done.stderr[-2000:]
        )
    return done.stdout
