"""The lowest version that is claimed of onnxruntime runs what is exported for it, as the newest."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from environments import Environment, ask, environment
from kinds import ALL_LAYERS, merged, quantized
from packaging.requirements import Requirement
from torch import Tensor

from vitcompress import targets
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import compare
from vitcompress.model.architecture import VitModel
from vitcompress.targets.onnxruntime import fused_kernels

MakeVit = Callable[..., VitModel]
KINDS: dict[str, Callable[[VitModel], VitModel]] = {
    "float": lambda model: model,
    # Without VNNI those versions saturate weights of 8 bits, and `run` refuses them.
    "7 bits": lambda model: quantized(model, 7, layers=ALL_LAYERS),
    "merged": merged,
}

has_wheels = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="onnxruntime 1.17 has no wheels for this Python"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where environments are made; skips the tests where nothing can be installed there."""
    home = tmp_path_factory.mktemp("environments")
    try:
        environment("packaging", {}, home)  # small, and without needs
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip reaches no index: {error.stderr.strip().splitlines()[-1]}")
    return home


def lowest(target: str, home: Path) -> Environment:
    needed = Requirement(targets.load_target(target).requirement)
    (version,) = (each.version for each in needed.specifier)
    return environment(f"{needed.name}=={version}.*", {}, home)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("portable", marks=has_wheels)])
def test_the_lowest_version_loads_what_is_written(
    target: str, home: Path, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    models = {kind: make(make_vit()) for kind, make in KINDS.items()}
    files = {kind: tmp_path / f"{kind}.onnx" for kind in models}
    for kind, file in files.items():
        export_onnx(models[kind], file, {}, target)
    answer = ask(lowest(target, home), check=(files, pixels.numpy()))
    claimed = Requirement(targets.load_target(target).requirement).specifier
    assert str(answer["version"]) in claimed
    for kind, facts in answer["check"].items():
        assert "error" not in facts, (kind, facts["error"])
        outputs = np.array(facts["outputs"], np.float32)
        compare(files[kind], models[kind], pixels, outputs, f"{target} {answer['version']}")
        scales = [f"{name}.scale" for name in models[kind].anatomy.quantized()]
        assert fused_kernels(Path(facts["optimized"]), scales) == dict.fromkeys(scales, 1)
