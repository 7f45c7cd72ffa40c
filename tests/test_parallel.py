"""Several processes that compress one model together come to what one comes to."""

import json
import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import together
from helpers.cli import EXAMPLE
from vitcompress.data.images import ImageSet
from vitcompress.export.folder import save_folder
from vitcompress.model.architecture import VitModel

_COPIES = 3  # of each image: several batches

Left = tuple[dict[str, Tensor], dict[str, Any]]
Start = Callable[..., list[int]]
Together = Callable[..., list[Left]]


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
def run(start: Start, home: Path) -> Together:
    """A function that runs stages in so many processes: the tensors that each is left with, and the
    facts that it would tell."""

    def run(stages: list[dict[str, Any]], world: int) -> list[Left]:
        assert start(together.compress, [(home, stages)] * world) == [0] * world
        return [torch.load(home / f"{world}-{rank}.pt") for rank in range(world)]

    return run


def test_a_chain_leaves_the_model_that_one_process_leaves(run: Together) -> None:
    stages: list[dict[str, Any]] = [
        {"name": "prune", "type": "prune", "budget": {"macs": 0.8}},
        {"name": "sparse", "type": "sparsify", "pattern": "2:4", "reconstruct": False},
        {"name": "quant", "type": "quantize", "bits": 8},
        {"name": "recover", "type": "recover", "steps": 3, "batch": 5, "rate": 1e-3},
    ]
    ((alone, facts),) = run(stages, 1)
    (first, told), (second, _) = run(stages, 2)
    assert facts["skipped"] == told["skipped"] == ["007.png"]
    assert "left_as_it_was" not in facts["recover"]
    for stage in ("prune", "quant", "recover"):
        for fact, value in facts[stage].items():
            near = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            assert told[stage][fact] == near
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        if value.dtype.is_floating_point:
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
        else:
            assert (first[name] != value).double().mean() < 0.01  # a code that was on an edge


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["search", "example:glyphs"], "search: runs in one process; start it without torchrun"),
        (["run", "vit-int8", "gone.pth"], "gone.pth"),
    ],
)
def test_bad_input_is_told_once_and_ends_all_with_the_same_code(
    given: list[str], told: str, start: Start, tmp_path: Path
) -> None:
    said = [tmp_path / f"{rank}.txt" for rank in range(2)]
    assert start(together.command, [(given, file) for file in said]) == [2, 2]
    lines = [line for file in said for line in file.read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]


def test_an_error_of_one_ends_all(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{EXAMPLE}stages: []\n")
    good, bad = ["run", str(recipe), "--out", str(tmp_path / "out")], ["run", "gone.yaml"]
    said = [tmp_path / f"{rank}.txt" for rank in range(2)]
    assert start(together.command, [(good, said[0]), (bad, said[1])]) == [2, 2]
    assert "error" not in said[0].read_text()
    assert said[1].read_text().count("error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_few_batches_and_other_stages_come_to_is_the_same(run: Together) -> None:
    """With three processes, one of which gets no images now and then."""
    stages: list[dict[str, Any]] = [
        {"name": "prune", "type": "prune", "budget": {"macs": 0.9}, "saliency": "taylor"},
        {"name": "merge", "type": "merge", "budget": {"macs": 0.9}},
        {"name": "quant", "type": "quantize", "bits": {"average": 5}, "score": "fisher"},
        {"name": "recover", "type": "recover", "method": "affine"},
    ]
    ((alone, facts),) = run(stages, 1)
    (first, told), *_ = run(stages, 3)
    assert told["merge"]["kept"] == facts["merge"]["kept"]
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torchrun_writes_one_output(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{EXAMPLE}stages: [{{type: sparsify, pattern: 2:4}}, {{type: quantize}}]\n")
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m"]
    models = list[dict[str, Tensor]]()
    for number, start in enumerate(([], torchrun)):
        out = tmp_path / f"out{number}"
        given = ["vitcompress", "run", str(recipe), "--out", str(out), "--limit", "48", "--json"]
        command = [sys.executable, "-m", *start, *given]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["final"]["images"] == 48
        assert done.stderr.count("written to") == 1
        models.append(load_file(out / "model.safetensors"))
    alone, two = models
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
