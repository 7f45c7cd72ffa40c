"""Collectors in one pass, against what each module gets and gives when all is held at once."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import relevance, saliency
from vitcompress.model.architecture import VitModel
from vitcompress.stages.observe import Watch, observe, readout_loss, unlabelled
from vitcompress.tasks.classification import TASK as CLASSES

MakeVit = Callable[..., VitModel]
Found = list[tuple[Tensor, Tensor, Tensor | None]]


@pytest.fixture(scope="module")
def many() -> Tensor:
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def summed(output: Tensor, _: Tensor | None) -> Tensor:
    return output.square().sum()


def keep(found: Found, x: Tensor, y: Tensor, gradient: Tensor | None) -> None:
    assert not x.requires_grad
    assert not y.requires_grad
    found.append((x, y, gradient))


def traced(module: nn.Module, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer, part of a graph whose end has been differentiated."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (inputs[0], output):
            tensor.retain_grad()
            seen.append(tensor)

    handle = module.get_submodule(name).register_forward_hook(hook)
    with torch.enable_grad():
        summed(module(pixels.clone().requires_grad_()), None).backward()
    handle.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("name", ["patch_embed.proj", "blocks.0.norm2", "blocks.1.mlp.fc2", "head"])
def test_inputs_outputs_and_gradients(name: str, vit: VitModel, many: Tensor) -> None:
    plain, of_output, of_input = Found(), Found(), Found()
    watches = [
        Watch(name, partial(keep, plain)),
        Watch(name, partial(keep, of_output), "output"),
        Watch(name, partial(keep, of_input), "input"),
    ]
    batches = list(many.split(3))
    assert observe(vit.module, watches, unlabelled(batches), summed) == 7
    for index, pixels in enumerate(batches):
        x, y = traced(vit.module, name, pixels)
        for found, gradient in ((plain, None), (of_output, y.grad), (of_input, x.grad)):
            assert torch.equal(found[index][0], x)
            assert torch.equal(found[index][1], y)
            seen = found[index][2]
            assert seen is gradient if seen is None or gradient is None else seen.equal(gradient)
    assert not many.requires_grad


def test_without_a_loss_there_is_no_graph(vit: VitModel, many: Tensor) -> None:
    found = Found()
    graphs = []

    def collect(x: Tensor, y: Tensor, gradient: Tensor | None) -> None:
        graphs.append(torch.is_grad_enabled())
        keep(found, x, y, gradient)

    assert observe(vit.module, [Watch("head", collect)], unlabelled(many.split(4))) == 7
    assert graphs == [False, False]
    assert torch.equal(torch.cat([y for _, y, _ in found]), vit.module(many))


def test_where_no_gradient_comes_there_is_none(make_vit: MakeVit, many: Tensor) -> None:
    pooled = make_vit(global_pool="map", class_token=False).module
    query, gone = Found(), Found()
    # No image reaches the latent query; and of these outputs nothing is read.
    pooled.add_module("unread", nn.Linear(10, 2))
    unread = pooled.unread

    def loss(output: Tensor, _: Tensor | None) -> Tensor:
        unread(output)
        return output.sum()

    watches = [
        Watch("attn_pool.q", partial(keep, query), "output"),
        Watch("unread", partial(keep, gone), "output"),
    ]
    observe(pooled, watches, unlabelled(many.split(4)), loss)
    assert [gradient for *_, gradient in query] == [None, None]
    assert [gradient for *_, gradient in gone] == [None, None]
    pairs = zip(gone, many.split(4), strict=True)
    assert all(torch.equal(x, pooled(pixels)) for (x, *_), pixels in pairs)


def test_sums_over_watches_of_each_batch(vit: VitModel, many: Tensor) -> None:
    held: list[Tensor] = []
    totals: list[Tensor] = []

    def collect(x: Tensor, y: Tensor, gradient: Tensor | None) -> None:
        assert gradient is not None
        of_input = x.shape == gradient.shape
        held.append(saliency.tied(x if of_input else y, gradient))

    def end() -> None:
        totals.append(torch.stack(held).sum(0))
        assert len(held) == 2
        held.clear()

    watches = [
        Watch("blocks.0.mlp.fc1", collect, "output"),
        Watch("blocks.0.mlp.fc2", collect, "input"),
    ]
    observe(
        vit.module,
        watches,
        unlabelled(many.split(3)),
        readout_loss(CLASSES, torch.Generator().manual_seed(0)),
        end,
    )
    assert [len(t) for t in totals] == [3, 3, 1]


def test_labels_and_the_own_softmax_give_losses(vit: VitModel, many: Tensor) -> None:
    labels = torch.arange(7)
    found = Found()
    samples = list(zip(many.split(3), labels.split(3), strict=True))
    observe(
        vit.module,
        [Watch("head", partial(keep, found), "output")],
        samples,
        readout_loss(CLASSES, torch.Generator().manual_seed(0)),
    )
    probabilities = vit.module(many).softmax(-1)
    expected = probabilities - F.one_hot(labels, 10)
    assert torch.allclose(torch.cat([g for *_, g in found if g is not None]), expected, atol=1e-6)
    own = Found()
    watch = Watch("head", partial(keep, own), "output")
    observe(
        vit.module,
        [watch],
        unlabelled(many.split(3)),
        readout_loss(CLASSES, torch.Generator().manual_seed(2)),
    )
    generator = torch.Generator().manual_seed(2)
    readouts = [saliency.fisher_readout(vit.module(part), generator) for part in many.split(3)]
    assert all(torch.equal(g, r) for (*_, g), r in zip(own, readouts, strict=True) if g is not None)


def test_rules_of_relevance_are_the_callers(vit: VitModel, many: Tensor) -> None:
    found = Found()

    def top(output: Tensor, _: Tensor | None) -> Tensor:
        return output.amax(-1).sum()

    watch = Watch("blocks.1.mlp.fc1", partial(keep, found), "output")
    with relevance.Propagation():
        observe(vit.module, [watch], unlabelled([many]), top)
    ruled = found[0][2]
    observe(vit.module, [watch], unlabelled([many]), top)
    assert ruled is not None
    assert found[1][2] is not None
    assert not torch.allclose(ruled, found[1][2], rtol=0.1)


def test_hooks_go_and_so_does_the_graph(vit: VitModel, many: Tensor) -> None:
    graphs: list[Any] = []

    def loss(output: Tensor, _: Tensor | None) -> Tensor:
        assert all(graph() is None for graph in graphs)
        graphs.append(weakref.ref(output))
        return output.sum()

    def fail(*_: object) -> None:
        raise ArithmeticError

    names = ("blocks.0.attn.qkv", "blocks.1.mlp.fc2", "norm", "head")
    watches = [Watch(name, partial(keep, []), "output") for name in names]
    gc.disable()
    try:
        observe(vit.module, watches, unlabelled(many.split(2)), loss)
        assert len(graphs) == 4
        assert all(graph() is None for graph in graphs)
    finally:
        gc.enable()
    asked: tuple[Literal["output", "input"] | None, ...] = ("output", "input", None)
    for gradient in asked:
        watch = Watch("head", fail, gradient)
        with pytest.raises(ArithmeticError):
            observe(vit.module, [watch], unlabelled([many]), summed)
    assert all(not module._forward_hooks for module in vit.module.modules())
