"""Sizes of blocks, read and changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.sizes import AttentionSizes, BlockSizes, blocks, resize, sizes_of

DENSE = BlockSizes(attention=AttentionSizes(heads=2, query_key=32, value=32), hidden=256)
NARROW = BlockSizes(attention=AttentionSizes(heads=1, query_key=8, value=24), hidden=40)
NO_ATTENTION = BlockSizes(attention=None, hidden=256)
NO_MLP = BlockSizes(attention=DENSE.attention, hidden=None)


def test_a_dense_model_has_timms_sizes(vit: VitModel) -> None:
    assert [sizes_of(block) for block in blocks(vit.module)] == [DENSE, DENSE]


def test_layers_that_keep_their_shape_stay(vit: VitModel) -> None:
    block = blocks(vit.module)[0]
    proj, fc1 = block.attn.proj, block.mlp.fc1
    resize(block, DENSE.model_copy(update={"attention": NARROW.attention, "hidden": 256}))
    assert block.mlp.fc1 is fc1
    assert block.attn.proj is not proj
    block = blocks(vit.module)[1]
    proj = block.attn.proj
    attention = AttentionSizes(heads=2, query_key=16, value=32)
    resize(block, BlockSizes(attention=attention, hidden=256))
    assert block.attn.proj is proj
    assert block.attn.qkv.out_features == 2 * (16 + 16 + 32)


@pytest.mark.parametrize("sizes", [NARROW, NO_ATTENTION, NO_MLP])
def test_a_description_with_sizes_makes_the_model_again(
    sizes: BlockSizes, vit: VitModel, pixels: Tensor
) -> None:
    architecture = vit.architecture.model_copy(update={"blocks": (DENSE, sizes), "tail_tokens": 1})
    module = build(architecture)
    for parameter in module.parameters():
        parameter.normal_(0, 0.2)
    again = build(Architecture.model_validate_json(architecture.model_dump_json()))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(pixels), module(pixels))
    assert [sizes_of(block) for block in blocks(again)] == [DENSE, sizes]


def test_the_scale_stays_that_of_the_dense_model(vit: VitModel) -> None:
    module = build(vit.architecture.model_copy(update={"blocks": (NARROW, NARROW)}))
    assert [block.attn.scale for block in blocks(module)] == [32**-0.5] * 2


def test_a_description_of_another_depth_is_refused(vit: VitModel) -> None:
    with pytest.raises(InputError, match="no 1 plain blocks"):
        build(vit.architecture.model_copy(update={"blocks": (NARROW,)}))


def test_a_block_without_branches_passes_its_tokens_on(
    make_vit: Callable[..., VitModel],
) -> None:
    block = blocks(make_vit().module)[0]
    resize(block, BlockSizes(attention=None, hidden=None))
    x = torch.randn(2, 17, 64)
    assert torch.equal(block(x), x)
    block.tokens = 1
    assert torch.equal(block(x), x[:, :1])
