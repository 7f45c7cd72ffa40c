"""Two models side by side, against running either as a whole."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompress.model.anatomy import Anatomy, State, Step, all_steps
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.families import anatomy_of
from vitcompress.stages.sequence import Given, side_by_side

MakeVit = Callable[..., VitModel]


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, bool]]:
    pixels = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return list(zip(pixels.split(3), (False, True, False), strict=True))


def seen(anatomy: Anatomy, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What a module gets and gives when the whole model runs."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = anatomy.module.get_submodule(name).register_forward_hook(
        lambda _, inputs, output: found.append((inputs[0], output))
    )
    anatomy.run(pixels)
    handle.remove()
    return found[0]


def after(anatomy: Anatomy, name: str, pixels: Tensor) -> Tensor:
    """The stream after the site `name`: before the norm of the next, or after the last step."""
    names = [site.name for site in anatomy.sites]
    if name != names[-1]:
        following = anatomy.sites[names.index(name) + 1]
        return seen(anatomy, following.norm_name, pixels)[0]
    return seen(anatomy, anatomy.steps[-1].name, pixels)[1]


def alike(found: Iterator[Given], inputs: list[Tensor], targets: list[Tensor]) -> bool:
    pairs = zip(found, inputs, targets, strict=True)
    return all(
        torch.allclose(given.inputs, x, atol=1e-5) and torch.allclose(given.targets, y, atol=1e-4)
        for given, x, y in pairs
    )


@pytest.mark.parametrize("options", [{}, {"name": "vit_small_patch16_dinov3"}])
def test_last_layers_towards_the_dense_stream(
    options: dict[str, Any], make_vit: MakeVit, batches: list[tuple[Tensor, bool]]
) -> None:
    dense = anatomy_of(make_vit(**options).module)
    changed = anatomy_of(make_vit(**options).module)
    changed.module.blocks[0].mlp.fc1.weight.mul_(0.7)  # something is lost
    changed.module.blocks[1].attn = None
    places = []
    for place in side_by_side(dense, changed, batches):
        places.append((place.site.name, place.twin is not None))
        if place.twin is None:
            continue
        name = place.twin.last_name
        inputs = [seen(changed, name, pixels)[0] for pixels, _ in batches]
        before = [seen(changed, place.twin.norm_name, pixels)[0] for pixels, _ in batches]
        wanted = [after(dense, place.site.name, pixels) for pixels, _ in batches]
        targets = [y - x for x, y in zip(before, wanted, strict=True)]
        assert alike(place.fitting("last", back=True), inputs, targets)
        assert [given.held for given in place.fitting("last", back=True)] == [False, True, False]
        place.twin.last.weight.mul_(1.1)  # what comes behind gets what this gives
    sites = [site.name for site in dense.sites]
    assert places == [(name, name != "blocks.1.attn") for name in sites]


def test_all_layers_one_after_the_other(
    make_vit: MakeVit, batches: list[tuple[Tensor, bool]]
) -> None:
    vit = make_vit(init_values=0.5)
    set_tail(vit.module, 1)
    dense, changed = anatomy_of(vit.module), anatomy_of(copy.deepcopy(vit.module))
    names = []
    for place in side_by_side(dense, changed, batches):
        assert place.twin is not None
        for part, name in (("first", place.twin.first_name), ("last", place.twin.last_name)):
            inputs = [seen(changed, name, pixels)[0] for pixels, _ in batches]
            targets = [seen(dense, name, pixels)[1] for pixels, _ in batches]
            assert alike(place.fitting(part), inputs, targets)
            new = copy.deepcopy(changed.module.get_submodule(name))
            new.weight.mul_(1.1)
            changed.module.set_submodule(name, new)
            names.append(name)
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == [f"blocks.{number}.{kind}" for number in range(2) for kind in kinds]


def test_a_narrower_stream(make_vit: MakeVit, batches: list[tuple[Tensor, bool]]) -> None:
    dense, narrow = anatomy_of(make_vit().module), anatomy_of(make_vit(embed_dim=32).module)
    into = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    place = next(side_by_side(dense, narrow, batches, into))
    for given, (pixels, _) in zip(place.fitting("last", back=True), batches, strict=True):
        x = narrow.start(pixels).x
        wanted = after(dense, "blocks.0.attn", pixels) @ into.T - x
        assert torch.allclose(given.targets, wanted, atol=1e-4)


class Staged(nn.Module):
    """Blocks between which tokens become fewer."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 5)
        self.one, self.down, self.other = vit.blocks[0], Fewer(), vit.blocks[1]
        self.requires_grad_(False)


class Fewer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduction(x[:, ::2])
        return y


def staged(module: Any) -> Anatomy:
    steps = tuple(Step(name, getattr(module, name)) for name in ("one", "down", "other"))
    return Anatomy(
        family="staged",
        module=module,
        steps=steps,
        start=lambda pixels: State(module.embed(pixels).flatten(2).mT),
        advance=all_steps(steps),
        finish=lambda state: module.head(state.x.mean(1)),
    )


def test_steps_that_are_no_blocks_are_passed(
    make_vit: MakeVit, batches: list[tuple[Tensor, bool]]
) -> None:
    torch.manual_seed(0)
    module = Staged(make_vit().module)
    dense, changed = staged(module), staged(copy.deepcopy(module))
    changed.module.down.reduction.weight.mul_(0.5)
    found = []
    for place in side_by_side(dense, changed, batches):
        assert place.twin is not None
        name = place.twin.first_name
        inputs = [seen(changed, name, pixels)[0] for pixels, _ in batches]
        targets = [seen(dense, name, pixels)[1] for pixels, _ in batches]
        assert alike(place.fitting("first"), inputs, targets)
        found.append(name)
    assert found == ["one.attn.qkv", "one.mlp.fc1", "other.attn.qkv", "other.mlp.fc1"]
