"""Swin and Swin V2: attention in shifted windows of a grid that is halved from stage to stage."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcompress.model.anatomy import Alteration, Anatomy, State, Step, all_steps
from vitcompress.model.head import HeadPlace
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.pooling import Pool
from vitcompress.model.modules.windows import PatchMerging, RelativePositions, UnitNorm, windows
from vitcompress.model.sequence import adopt_mlps, adopt_patches

_REFUSALS: dict[Alteration, str] = {
    "tail": "its head reads all tokens",
    "embedding": "its stream has no single width",
    "merge": "tokens that sit in windows cannot be merged",
}


def matches(module: nn.Module) -> bool:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return isinstance(module, (SwinTransformer, SwinTransformerV2))


def adopt(module: nn.Module) -> nn.Module:
    """Tokens become one row in all of the model; grids are constants of what needs them."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    swin, second = cast(Any, module), isinstance(module, SwinTransformerV2)
    adopt_patches(swin)
    for stage in swin.layers:
        if not isinstance(stage.downsample, nn.Identity):
            stage.downsample = PatchMerging(stage.downsample, stage.input_resolution, second)
        for number, block in enumerate(stage.blocks):
            block.attn = _attention(block, second)
            stage.blocks[number] = Block(block, norm_after=second)
    adopt_mlps(swin)
    if not isinstance(swin.head.global_pool, Pool):  # which takes tokens in one row
        grid = swin.layers[-1].output_resolution
        swin.head.global_pool = nn.Sequential(nn.Unflatten(1, grid), swin.head.global_pool)
    return module


def _attention(block: Any, second: bool) -> Attention:
    source = block.attn
    return Attention(
        _cosine(source) if second else source,
        table=_table(source) if second else source.relative_position_bias_table,
        positions=RelativePositions(block.window_size, class_token=False),
        windows=windows(block.input_resolution, block.window_size, block.shift_size),
    )


def _cosine(source: Any) -> Any:
    """The attention of Swin V2, its factors of logits as norms of queries and keys."""
    factor = source.logit_scale.detach().clamp(max=math.log(100.0)).exp()
    source.q_norm, source.k_norm, source.scale = UnitNorm(factor[:, 0]), UnitNorm(), 1.0
    return source


def _table(source: Any) -> Tensor:
    """What the MLP of Swin V2 makes of all relative positions, [entries, heads]."""
    with torch.no_grad():
        logits = source.cpb_mlp(source.relative_coords_table).flatten(0, -2)
    return 16 * cast(Tensor, logits).sigmoid()


def anatomy(module: nn.Module) -> Anatomy:
    swin, steps = cast(Any, module), []
    for number, stage in enumerate(swin.layers):
        counts = [math.prod(grid) for grid in (stage.input_resolution, stage.output_resolution)]
        if not isinstance(stage.downsample, nn.Identity):
            name = f"layers.{number}.downsample"
            steps.append(Step(name, stage.downsample, (counts[0], counts[1])))
        for place, block in enumerate(stage.blocks):
            steps.append(Step(f"layers.{number}.blocks.{place}", block, (counts[1],) * 2))
    refusals = dict(_REFUSALS)
    if any(isinstance(step.module, Block) and step.module.norm_after for step in steps):
        refusals["prune"] = "its norms come after attention and MLP, not before"
    return Anatomy(
        family="windowed",
        module=module,
        steps=tuple(steps),
        start=lambda pixels: State(swin.patch_embed(pixels)),
        advance=all_steps(steps),
        finish=lambda state: cast(Tensor, swin.head(swin.norm(state.x))),
        stem=("patch_embed",),
        head=() if isinstance(swin.head.fc, nn.Identity) else ("head",),
        obstacles=lambda: refusals,
    )


def head_place(module: nn.Module) -> HeadPlace:
    return HeadPlace(layers="head.fc", pool="head.global_pool")
