"""Models with rotary position embeddings (timm's Eva: EVA-02, RoPE ViT, PE, DINOv3), but for those
whose queries share keys.

Their blocks become one sequence that needs nothing but the tokens, as those of plain ViTs are.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.head import HeadPlace
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.rotation import Rotation
from vitcompress.model.sequence import (
    SequenceVit,
    adopt_mlps,
    adopt_patches,
    sequence_anatomy,
    sequence_head,
)

_TOLERANCE = 1e-4  # of sine and cosine


class RotaryVit(SequenceVit):
    """timm's Eva for images of one size, computing the same; each attention holds its rotation."""


def matches(module: nn.Module) -> bool:
    from timm.models.eva import Eva

    if isinstance(module, Eva):
        blocks = cast(Any, module).blocks
        return all(getattr(block.attn, "num_kv_groups", 1) == 1 for block in blocks)
    return isinstance(module, RotaryVit)


def adopt(module: nn.Module) -> nn.Module:
    module = _adopted(module)
    adopt_mlps(module)
    return module


def anatomy(module: nn.Module) -> Anatomy:
    return sequence_anatomy(module, "rotary")


def head_place(module: nn.Module) -> HeadPlace:
    return sequence_head(module)


def _adopted(source: Any) -> nn.Module:
    """`source`, an Eva of timm in eval mode, with our modules.

    Raises `InputError` for a rotary embedding whose angles are not linear in row and column.
    """
    from timm.models.eva import EvaBlock, EvaBlockPostNorm

    # What timm may take at any size is compressed for one.
    adopt_patches(source)
    grid, depth = source.patch_embed.grid_size, len(source.blocks)
    tables: Any = [None] * depth
    if source.rope is not None:
        table = source.rope.get_embed(shape=list(grid))  # [N, 2·d], or [depth, heads, N, 2·d]
        tables = table if source.rope_mixed else [table] * depth
    blocks = []
    for block, table in zip(source.blocks, tables, strict=True):
        rotation = None
        if table is not None:
            found = frequencies(table, grid, block.attn.rotate_half)
            if found.ndim == 2:  # all heads turn alike
                found = found[:, None].expand(-1, block.attn.num_heads, -1)
            rotation = Rotation(found.contiguous(), grid, source.num_prefix_tokens)
        attention = Attention(block.attn, rotation)
        if rotation is not None and block.attn.rotate_half:
            _pair_neighbours(attention)
        block.attn = attention
        after = type(block) is EvaBlockPostNorm
        blocks.append(Block(block, after) if after or type(block) is EvaBlock else block)
    return RotaryVit(source, nn.Sequential(*blocks))


def frequencies(table: Tensor, grid: tuple[int, int], halves: bool) -> Tensor:
    """The constants and steps of the angles whose sines and cosines are in a table of timm.

    Steps are only known, and only matter, up to whole turns: rows and columns are whole numbers.

    Args:
        table: [..., rows · columns, 2·d], all sines and then all cosines; both values of a pair
            have the same.
        grid: rows and columns.
        halves: whether a pair lies d/2 apart, else side by side.

    Returns:
        float32 [3, ..., d/2]: at the origin, from row to row, and from column to column.

    Raises `InputError` where angles are not linear in row and column.
    """
    size = table.shape[-1] // 2
    one_of_each = slice(size // 2) if halves else slice(None, None, 2)
    sin, cos = (part[..., one_of_each].double() for part in table.detach().split(size, -1))
    turn = torch.complex(cos, sin).unflatten(-2, grid)  # [..., rows, columns, d/2]
    down = turn[..., 1:, :, :] * turn[..., :-1, :, :].conj()
    right = turn[..., 1:, :] * turn[..., :-1, :].conj()
    steps = [step.sum((-3, -2)).angle() for step in (down, right)]
    rows, columns = (torch.arange(count, dtype=torch.float64)[:, None] for count in grid)
    along = rows[:, None] * steps[0][..., None, None, :] + columns * steps[1][..., None, None, :]
    start = (turn * torch.polar(torch.ones_like(along), -along)).sum((-3, -2)).angle()
    angles = start[..., None, None, :] + along
    if (torch.polar(torch.ones_like(angles), angles) - turn).abs().max() > _TOLERANCE:
        raise InputError(
            "the model's rotary embedding turns by angles that are not linear in row and column,"
            " which is not supported: give another model"
        )
    return torch.stack([start, *steps]).float()


def _pair_neighbours(attention: Attention) -> None:
    """Reorder the features of queries and keys so that halves of pairs come to lie side by side."""
    heads, size = attention.num_heads, attention.widths[0] // attention.num_heads
    within = torch.arange(size).view(2, -1).T.flatten()
    order = (within + size * torch.arange(2 * heads)[:, None]).flatten()
    order = torch.cat([order, torch.arange(len(order), sum(attention.widths))])
    for owner, index in (
        (attention.qkv, order),
        (attention.q_norm, within),
        (attention.k_norm, within),
    ):
        for name in ("weight", "bias"):
            value = getattr(owner, name, None)
            if value is not None:
                setattr(owner, name, nn.Parameter(value.detach()[index], requires_grad=False))
