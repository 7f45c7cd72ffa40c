"""Several processes that compress one model together come to what one comes to."""

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from helpers import together
from helpers.cli import EXAMPLE
from vitcompress.data.images import ImageSet
from vitcompress.export.folder import save_folder
from vitcompress.model.architecture import VitModel

_COPIES = 3  # of each image: several batches
_STEPS, _RATE = 3, 1e-4

Start = Callable[..., list[int]]
Together = Callable[..., list[dict[str, Tensor]]]


@pytest.fixture
def start() -> Start:
    """A function that starts processes of one group, each with what is given for it, and returns
    their exit codes. They fork from one that has imported what they need."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["helpers.together"])

    def start(target: Callable[..., None], each: list[tuple[Any, ...]]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        started = [
            processes.Process(target=target, args=(*given, rank, len(each), port))
            for rank, given in enumerate(each)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        return [int(process.exitcode or 0) for process in started]

    return start


@pytest.fixture
def home(vit: VitModel, images: ImageSet, tmp_path: Path) -> Path:
    """A folder with a model and images, one of which cannot be read."""
    (tmp_path / "model").mkdir()
    save_folder(vit, tmp_path / "model")
    (tmp_path / "images").mkdir()
    for copy in range(_COPIES):
        for index, name in enumerate(images.names):
            content = images.fetch(index)
            (tmp_path / "images" / f"{copy}{name}").write_bytes(content)
    (tmp_path / "images" / "007.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def run(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> Together:
    """A function that runs stages in so many processes; the tensors that each is left with."""

    def run(stages: list[dict[str, Any]], world: int) -> list[dict[str, Tensor]]:
        monkeypatch.setenv("VITCOMPRESS_CACHE", str(home / f"cache-{world}"))
        assert start(together.compress, [(home, stages)] * world) == [0] * world
        return [load_file(home / f"{world}-{rank}.safetensors") for rank in range(world)]

    return run


def test_a_chain_leaves_the_model_that_one_process_leaves(run: Together, home: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"name": "prune", "type": "prune", "budget": {"macs": 0.8}},
        {"name": "sparse", "type": "sparsify", "pattern": "2:4"},
        {"name": "quant", "type": "quantize", "bits": 8},
        {"name": "recover", "type": "recover", "steps": _STEPS, "batch": 5, "rate": _RATE},
    ]
    (alone,) = run(stages, 1)
    first, second = run(stages, 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        print(name, value.dtype, (first[name].double() - value.double()).abs().max())
    for file in ("1-0", "2-0", "2-1"):
        with safe_open(home / f"{file}.safetensors", "pt") as told:
            print(told.metadata())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["search", "example:glyphs"] * 2,
            "search: runs in one process; start it without torchrun",
        ),
        (["run", "recipe.yaml", "gone.pth"] * 2, "gone.pth"),
    ],
)
def test_bad_input_is_told_once_and_ends_all_with_the_same_code(
    given: list[str], told: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{EXAMPLE}stages: []\n")
    half = len(given) // 2
    said = [tmp_path / f"{rank}.txt" for rank in range(2)]
    arguments = [[str(tmp_path / a) if "." in a else a for a in given[:half]] for _ in said]
    assert start(together.command, list(zip(arguments, said, strict=True))) == [2, 2]
    lines = [line for file in said for line in file.read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]


def test_an_error_of_one_ends_all(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{EXAMPLE}stages: []\n")
    given = [["run", str(recipe), "--out", str(tmp_path / "out")], ["run", str(tmp_path / "gone")]]
    said = [tmp_path / f"{rank}.txt" for rank in range(2)]
    assert start(together.command, list(zip(given, said, strict=True))) == [2, 2]
    assert "error" not in said[0].read_text()
    assert said[1].read_text().count("error: ") == 1
    assert not (tmp_path / "out").exists()
