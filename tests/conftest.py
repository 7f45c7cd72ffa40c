"""A tiny ViT with weights that leave nothing at zero or one, and a few images in memory."""

import gc
import io
import multiprocessing
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from helpers import fresh, operators
from helpers.cli import SHALLOW, Call, Called
from helpers.exporting import exported_once
from vitcompress.cli import app
from vitcompress.console import console
from vitcompress.data.images import ImageSet
from vitcompress.data.preprocess import Preprocess
from vitcompress.example import glyphs
from vitcompress.export.folder import save_folder
from vitcompress.measure.runtime import time_in_turns
from vitcompress.model.architecture import Architecture, VitModel
from vitcompress.model.families import adopt
from vitcompress.stages.cache import Cache
from vitcompress.stages.context import Context

# The tensors here are tiny: on a busy machine, threads that wait for each other cost minutes.
torch.set_num_threads(1)

NAME = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}
IMAGES = 20  # more than one batch of a context
PREPROCESS = Preprocess(
    input_size=(32, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_pct=1.0,
    interpolation="bilinear",
)


def _fill(module: torch.nn.Module) -> None:
    """Draw all parameters: matrices that keep variances, vectors away from 0 and from 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fan_in = parameter[0].numel() if parameter.shape[0] > 1 else 4
            value = noise / fan_in**0.5
        elif "norm" in name and name.endswith("weight"):
            value = (noise / 2).exp()  # channels of unequal width
        else:
            value = noise / 2
        parameter.data.copy_(value)


@pytest.fixture(autouse=True, scope="session")
def done_once() -> Iterator[None]:
    """Work that is the same each time, much of a second or more: at every export, operators are
    looked for, and the collector walks all that was imported; at every run of the embedded example
    its images are drawn."""
    operators.find_once()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "draw", cache(glyphs.draw))
        gc.collect()
        gc.freeze()
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run keeps for later stays out of the user's cache."""
    monkeypatch.setenv("VITCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command was told (`--quiet`, `--verbose`) ends with its test."""
    monkeypatch.setattr(console, "quiet", console.quiet)
    monkeypatch.setattr(console, "verbose", console.verbose)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tests run is told to no command."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fresh_logits(tmp_path: Path) -> Callable[[Path, torch.Tensor], torch.Tensor]:
    """A function that returns the logits of a new process that loads the model in a folder.

    It forks from a process that has imported the package and done nothing since.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["vitcompress.api", "timm", "onnxruntime"])

    def run(home: Path, pixels: torch.Tensor) -> torch.Tensor:
        read, written = tmp_path / "pixels.npy", tmp_path / "logits.npy"
        np.save(read, pixels.numpy())
        process = processes.Process(target=fresh.write_logits, args=(home, read, written))
        process.start()
        process.join()
        assert process.exitcode == 0
        return torch.from_numpy(np.load(written))

    return run


@pytest.fixture
def in_fresh_process(
    fresh_logits: Callable[[Path, torch.Tensor], torch.Tensor], tmp_path: Path
) -> Callable[[VitModel, torch.Tensor], torch.Tensor]:
    """A function that saves a model and returns the logits of a new process that loads it."""

    def run(model: VitModel, pixels: torch.Tensor) -> torch.Tensor:
        home = tmp_path / "saved"
        home.mkdir()
        save_folder(model, home)
        return fresh_logits(home, pixels)

    return run


@pytest.fixture(scope="session")
def make_module() -> Callable[..., torch.nn.Module]:
    """A function that returns a tiny timm model as timm made it, in eval mode."""

    def make(name: str = NAME, **options: Any) -> torch.nn.Module:
        module: torch.nn.Module = timm.create_model(name, **{**OPTIONS, **options})
        _fill(module)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def make_vit(make_module: Callable[..., torch.nn.Module]) -> Callable[..., VitModel]:
    """A function that returns a tiny model, always with the same weights."""

    def make(name: str = NAME, **options: Any) -> VitModel:
        return VitModel(
            module=adopt(make_module(name, **options)),
            architecture=Architecture(timm=name, options={**OPTIONS, **options}),
            preprocess=PREPROCESS,
        )

    return make


@pytest.fixture
def vit(make_vit: Callable[..., VitModel]) -> VitModel:
    return make_vit()


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Three images, prepared."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """Images that differ in brightness and texture."""
    random = np.random.default_rng(2)
    files = []
    for i in range(IMAGES):
        coarse = random.integers(0, 256, (2 + i % 7, 3, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, "PNG")
        files.append(file.getvalue())
    names = [f"{i:02}.png" for i in range(IMAGES)]
    return ImageSet("memory", names, None, None, files.__getitem__)


@pytest.fixture
def make_context(
    images: ImageSet, make_vit: Callable[..., VitModel], tmp_path: Path
) -> Callable[..., Context]:
    """A function that returns a context with a cache of its own; `cache` is its folder, and other
    keywords replace the fields of the context."""

    def make(cache: Path = tmp_path / "cache", resume: bool = True, **changes: Any) -> Context:
        fields: dict[str, Any] = {
            "dense": make_vit(),
            "calibration": images,
            "preprocess": PREPROCESS,
            "seed": 0,
            "device": torch.device("cpu"),
            "cache": Cache(cache, resume),
        }
        return Context(**{**fields, **changes})

    return make


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context()


@pytest.fixture(scope="session")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, int]]:
    """`export_onnx`, but equal models are exported once."""
    return partial(exported_once, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def shallow_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the embedded example without its blocks from `SHALLOW` on.

    Its logits are four times as large, so that they vary from image to image as with all blocks.
    """
    held = load_file(glyphs.CHECKPOINT)
    left = {
        name: tensor
        for name, tensor in held.items()
        if not name.startswith("blocks.") or int(name.split(".")[1]) < SHALLOW
    }
    left |= {name: 4 * left[name] for name in ("head.weight", "head.bias")}
    save_file(left, path := tmp_path_factory.mktemp("example") / glyphs.CHECKPOINT.name)
    return path


@pytest.fixture
def quick_runs(
    monkeypatch: pytest.MonkeyPatch,
    export_once: Callable[..., dict[str, int]],
    shallow_example: Path,
) -> None:
    """Whole runs of the embedded example have its first blocks only, take few timings, and do not
    export again what an earlier one has exported."""
    monkeypatch.setattr(glyphs, "CHECKPOINT", shallow_example)
    monkeypatch.setitem(glyphs.TIMM_OPTIONS, "depth", SHALLOW)
    monkeypatch.setattr("vitcompress.pipeline.time_in_turns", partial(time_in_turns, seconds=0))
    monkeypatch.setattr("vitcompress.pipeline.export_onnx", export_once)


@pytest.fixture(scope="session")
def call() -> Call:
    """A function that runs a command, which has to end with the exit code `code`."""

    def call(*arguments: object, code: int = 0) -> Called:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.stderr
        return Called(result.stdout, result.stderr)

    return call


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path, quick_runs: None) -> Path:
    """A file with the RECIPE of the test's module."""
    path = tmp_path / "recipe.yaml"
    path.write_text(request.module.RECIPE)
    return path
