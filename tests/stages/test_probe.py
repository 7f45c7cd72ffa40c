"""What a change costs, from the first step it concerns on, against the changed model as a whole."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitcompress.model.architecture import VitModel, merging_blocks, set_merging, set_tail
from vitcompress.model.families import anatomy_of
from vitcompress.model.merging import Merging
from vitcompress.stages.probe import Probe, first_changed
from vitcompress.tasks.classification import distance

MakeVit = Callable[..., VitModel]

FAMILIES: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"global_pool": "avg", "class_token": False},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "layer scale": {"init_values": 0.5},
    "rotary": {"name": "vit_small_patch16_dinov3", "global_pool": "token"},
    "merging": {},
    "tail": {},
}


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    pixels = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return list(pixels.split(4))


def family(name: str, make_vit: MakeVit) -> nn.Module:
    module = make_vit(**FAMILIES[name]).module
    if name == "tail":
        set_tail(module, 1)
    if name == "merging":
        set_merging(module, Merging(method="tome", kept=(12, 9), proportional=True))
    return module


def moved(module: nn.Module) -> nn.Module:
    """A copy with other parameters."""
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.mul_(1.1)
    return copied


def whole(module: nn.Module, changed: dict[str, nn.Module], batches: list[Tensor]) -> Tensor:
    """The KL of each image, by running a changed copy of `module` on all."""
    copied = copy.deepcopy(module)
    for name, new in changed.items():
        copied.set_submodule(name, new)
    return torch.cat([distance(copied(batch), module(batch)) for batch in batches])


@pytest.mark.parametrize("name", FAMILIES)
def test_to_the_last_bit_what_the_whole_model_gives(
    name: str, make_vit: MakeVit, batches: list[Tensor]
) -> None:
    module = family(name, make_vit)
    probe = Probe(anatomy_of(module), batches, distance)
    groups: list[list[str]] = [
        ["blocks.1.attn.qkv"],
        ["blocks.0.mlp.fc2", "blocks.1.mlp.fc1"],
        ["blocks.1"],
        ["blocks.0", "head"],
        ["head"],
        ["patch_embed.proj", "head"],
        ["norm"],
    ]
    if name == "attention pooling":
        groups.append(["attn_pool.proj"])
    for names in groups:
        changed = {n: moved(module.get_submodule(n)) for n in names}
        if any(isinstance(new, nn.Identity) for new in changed.values()):
            continue  # pooling stands in the place of this norm
        expected = whole(module, changed, batches)
        with probe.replaced(changed) as change:
            assert torch.equal(cast(Tensor, probe.distances(change)), expected), names
        assert probe.cost(changed) == float(expected.double().mean()) > 0
    assert probe.cost({}) == probe.cost_of(module) == 0


def test_another_model(vit: VitModel, make_vit: MakeVit, batches: list[Tensor]) -> None:
    other = moved(make_vit(depth=3).module)
    found = Probe(anatomy_of(vit.module), batches, distance).cost_of(other)
    each = torch.cat([distance(other(batch), vit.module(batch)) for batch in batches])
    assert found == float(each.double().mean()) > 0


def test_a_model_of_no_known_kind(batches: list[Tensor]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.GELU(), nn.Linear(16, 5))
    module.requires_grad_(False)
    probe = Probe(replace(anatomy_of(module), head=("3",)), batches, distance)
    for name in ("1", "3"):
        changed = {name: moved(module.get_submodule(name))}
        expected = float(whole(module, changed, batches).double().mean())
        assert probe.cost(changed) == expected > 0


def test_only_what_lies_behind_is_computed(make_vit: MakeVit, batches: list[Tensor]) -> None:
    module = make_vit(depth=12).module
    probe = Probe(anatomy_of(module), batches[:1], distance)

    def work(compute: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            compute()
        return int(counter.get_total_flops())

    every = work(lambda: module(batches[0]))
    layers = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    each = {n: work(lambda n=n: probe.cost({n: module.get_submodule(n)})) for n in layers}
    assert sum(each.values()) / len(each) < 0.55 * every
    assert each["head"] < 0.002 * every
    assert each["blocks.11.mlp.fc2"] < 0.1 * every


def test_the_model_is_left_as_it_was(vit: VitModel, batches: list[Tensor]) -> None:
    module = vit.module
    before = dict(module.named_modules())
    probe = Probe(anatomy_of(module), batches, distance)
    inner = nn.Linear(64, 5)  # no attention can split this
    with pytest.raises(RuntimeError):
        probe.cost({"head": nn.Identity(), "blocks.1": moved(before["blocks.1"]), "norm": inner})
    with pytest.raises(AttributeError):
        probe.cost({"head": nn.Identity(), "blocks.7.attn": inner})
    assert dict(module.named_modules()) == before
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in module.modules())


def test_schedules_of_merging(make_vit: MakeVit, batches: list[Tensor]) -> None:
    vit = make_vit(depth=3)
    module: Any = vit.module
    probe = Probe(anatomy_of(module), batches, distance)
    incumbent = (17, 17, 17)
    for kept in ((17, 12, 9), (17, 12, 5), (14, 12, 12), (17, 17, 16)):
        same = next((i for i in range(3) if incumbent[i] != kept[i]), 3)
        row = merging_blocks(module, Merging(method="tome", kept=kept))
        with probe.replaced({"blocks": row}) as change:
            change = change._replace(first=same)
            found = cast(Tensor, probe.distances(change))
            assert torch.equal(probe.accept(change), found)
        twin = copy.deepcopy(module)
        set_merging(twin, Merging(method="tome", kept=kept))
        assert torch.equal(found, torch.cat([distance(twin(b), module(b)) for b in batches]))
        incumbent = kept


def test_what_is_clearly_worse_is_not_tried_on_all(vit: VitModel, batches: list[Tensor]) -> None:
    probe = Probe(anatomy_of(vit.module), batches, distance)
    changed = {"blocks.1.mlp.fc2": moved(vit.module.blocks[1].mlp.fc2)}
    with probe.replaced(changed) as change:
        whole = cast(Tensor, probe.distances(change))
        assert probe.distances(change, rival=torch.zeros(9)) is None
        assert torch.equal(cast(Tensor, probe.distances(change, rival=whole)), whole)
        assert torch.equal(cast(Tensor, probe.distances(change, rival=2 * whole)), whole)


def test_the_first_step_that_changes(vit: VitModel) -> None:
    anatomy = anatomy_of(vit.module)
    assert first_changed(anatomy, ["blocks.1.attn", "blocks.0"]) == 0
    assert first_changed(anatomy, ["head", "blocks.1"]) == 1
    assert first_changed(anatomy, ["head"]) == first_changed(anatomy, []) == 2
    assert first_changed(anatomy, ["patch_embed.proj", "blocks.1"]) is None
