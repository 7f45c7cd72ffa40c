"""Two sides of a head with equal scales make the same model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.model.architecture import VitModel, set_merging
from vitcompress.model.balance import balance, level_keys
from vitcompress.model.merging import Merging

MakeVit = Callable[..., VitModel]


@torch.no_grad()
def skewed(model: VitModel) -> VitModel:
    """`model` with values a thousandth as large, and keys a hundred times as large."""
    for block in model.anatomy.blocks:
        attention: Any = block.attn
        queries, keys, _ = attention.widths
        for tensor in filter(lambda t: t is not None, (attention.qkv.weight, attention.qkv.bias)):
            tensor[:queries].mul_(0.01)
            tensor[queries : queries + keys].mul_(100)
            tensor[queries + keys :].mul_(0.001)
        attention.proj.weight.mul_(1000)
    return model


def norms(attention: Any) -> list[Tensor]:
    parts = attention.qkv.weight.norm(dim=1).split(attention.widths)
    return [*parts, attention.proj.weight.norm(dim=0)]


def test_both_sides_are_equal_and_the_model_is_the_same(make_vit: MakeVit, pixels: Tensor) -> None:
    model = skewed(make_vit())
    before = model.module(pixels)
    balance(model.module)
    assert torch.allclose(model.module(pixels), before, rtol=1e-4, atol=1e-5)
    for block in model.anatomy.blocks:
        queries, keys, values, readers = norms(block.attn)
        assert torch.allclose(queries, keys)
        assert torch.allclose(values, readers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("eva02_tiny_patch14_224", {"patch_size": 8}),
        ("beit_base_patch16_224", {}),
    ],
)
def test_what_minds_a_scale_keeps_its_own(
    name: str, options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    model = make_vit(name, **options)
    before = model.module(pixels)
    balance(model.module)
    assert torch.allclose(model.module(pixels), before, rtol=1e-4, atol=1e-5)


def test_keys_that_tokens_merge_by_stay(make_vit: MakeVit, pixels: Tensor) -> None:
    model = make_vit()
    tokens = model.anatomy.tokens
    kept = (tokens - 3,) + (tokens - 3,) * (len(model.anatomy.blocks) - 1)
    set_merging(model.module, Merging(method="tome", kept=kept))
    before, keys = model.module(pixels), norms(model.anatomy.blocks[0].attn)[1]
    balance(model.module)
    assert torch.equal(norms(model.anatomy.blocks[0].attn)[1], keys)
    assert torch.allclose(model.module(pixels), before, rtol=1e-4, atol=1e-5)


def test_level_keys_make_the_same_model(make_vit: MakeVit, pixels: Tensor) -> None:
    model = skewed(make_vit())
    before = model.module(pixels)
    for block in model.anatomy.blocks:
        attention: Any = block.attn
        inputs = torch.randn(50, attention.qkv.in_features)
        level_keys(attention, inputs)
        lows, highs = attention.qkv(inputs).aminmax(dim=0)
        queries, keys, _ = (highs - lows).split(attention.widths)
        assert torch.allclose(queries, keys, rtol=1e-3)
        middle = (highs + lows).split(attention.widths)[1]
        assert (middle.abs() < 1e-3 * keys).all()
    assert torch.allclose(model.module(pixels), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_tiny_patch16_224", {"qk_norm": True}), ("eva02_tiny_patch14_224", {"patch_size": 8})],
)
def test_keys_that_are_normed_or_turned_are_not_levelled(
    name: str, options: dict[str, Any], make_vit: MakeVit
) -> None:
    model = make_vit(name, **options)
    before = model.fingerprint()
    for block in model.anatomy.blocks:
        attention: Any = block.attn
        level_keys(attention, torch.randn(50, attention.qkv.in_features))
    assert model.fingerprint() == before
