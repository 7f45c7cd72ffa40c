"""BEiT and BEiT v2: attention with a bias for relative positions, of each block or of all."""

from typing import Any, cast

from torch import nn

from vitcompress.model.anatomy import Anatomy
from vitcompress.model.head import HeadPlace
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.windows import RelativePositions
from vitcompress.model.sequence import (
    SequenceVit,
    adopt_mlps,
    adopt_patches,
    sequence_anatomy,
    sequence_head,
)


class BeitVit(SequenceVit):
    """timm's Beit, computing the same; each attention holds its own table of biases."""


def matches(module: nn.Module) -> bool:
    from timm.models.beit import Beit

    return isinstance(module, (Beit, BeitVit))


def adopt(module: nn.Module) -> nn.Module:
    vit = cast(Any, module)
    adopt_patches(vit)
    if vit.global_pool not in ("", "avg"):
        vit.global_pool = "token"  # what timm makes of all other words
    shared = vit.rel_pos_bias
    blocks = []
    for block in vit.blocks:
        owners = [owner for owner in (block.attn, shared) if owner is not None]
        tables = [getattr(owner, "relative_position_bias_table", None) for owner in owners]
        held = [table for table in tables if table is not None]
        positions = RelativePositions(vit.patch_embed.grid_size, class_token=True)
        block.attn = Attention(
            block.attn,
            table=sum(held[1:], held[0]) if held else None,
            positions=positions if held else None,
        )
        blocks.append(Block(block))
    made = BeitVit(vit, nn.Sequential(*blocks))
    adopt_mlps(made)
    return made


def anatomy(module: nn.Module) -> Anatomy:
    return sequence_anatomy(module, "beit")


def head_place(module: nn.Module) -> HeadPlace:
    return sequence_head(module)
