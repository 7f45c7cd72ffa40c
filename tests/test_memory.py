"""What lies in files computes what it computes in memory, and leaves none behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vitcompress import chain, memory
from vitcompress.errors import RunError
from vitcompress.model.architecture import VitModel
from vitcompress.recipe import Recipe
from vitcompress.stages.context import Context


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200)).eval().requires_grad_(False)


def test_a_module_in_files_is_the_same_module(layer: nn.Module) -> None:
    x = torch.randn(4, 300)
    before, tensors = layer(x), dict(layer.state_dict())
    memory.move_to(layer, memory.on_disk)
    assert memory.lies_on_disk(layer[0].weight)  # type: ignore[index]
    assert not memory.lies_on_disk(layer[1].running_mean)  # type: ignore[index, arg-type]
    assert torch.equal(layer(x), before)
    assert all(torch.equal(t, tensors[name]) for name, t in layer.state_dict().items())
    memory.move_to(layer, memory.in_memory)
    assert memory.lies_on_disk(layer[0].weight)  # type: ignore[index]


def test_a_copy_lies_where_its_source_does_and_is_its_own(layer: nn.Module) -> None:
    in_memory = memory.copied(layer)
    assert not memory.lies_on_disk(in_memory[0].weight)  # type: ignore[index]
    memory.move_to(layer, memory.on_disk)
    twin = memory.copied(layer)
    weight, other = layer[0].weight, twin[0].weight  # type: ignore[index]
    assert memory.lies_on_disk(other)
    assert isinstance(other, nn.Parameter)
    assert not other.requires_grad
    other.zero_()
    assert weight.abs().sum() > 0


def test_what_is_in_a_file_stays_there() -> None:
    first = memory.on_disk(torch.arange(100_000.0))
    assert memory.on_disk(first) is first
    assert torch.equal(first.sqrt(), torch.arange(100_000.0).sqrt())


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = memory.on_disk(torch.ones(100_000))
    assert found.untyped_storage().filename is not None
    assert list(tmp_path.iterdir()) == []  # it has no name from the start


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left on device; let TMPDIR name"):
        memory.on_disk(torch.ones(100_000))


@torch.no_grad()
def test_stages_leave_the_same_model_in_files(
    make_vit: Callable[..., VitModel],
    make_context: Callable[..., Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_LEAST", 1)
    stages = [
        {"type": "prune", "budget": {"macs": 0.8}},
        {"type": "sparsify", "pattern": "2:4"},
        {"type": "quantize", "bits": 4},
        {"type": "recover", "method": "affine"},
    ]
    recipe = Recipe.model_validate(
        {"stages": [{"name": str(i), **stage} for i, stage in enumerate(stages)]}
    )
    left = []
    for room in (memory.in_memory, memory.on_disk):
        model = make_vit()
        context = make_context(tmp_path / room.__name__, room=room)
        memory.move_to(model.module, room)
        for config in recipe.stages:
            model = chain.carry_out(config, model, context).model
        weight = model.module.state_dict()["head.weight"]
        assert memory.lies_on_disk(weight) == (room is memory.on_disk)
        left.append(model.fingerprint())
    assert left[0] == left[1]
