"""What models have in common whose blocks are one sequence over one stream of tokens."""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcompress.model import embedding
from vitcompress.model.anatomy import Alteration, Anatomy, State, Step, all_steps
from vitcompress.model.head import HeadPlace
from vitcompress.model.merging import MergingBlocks
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.mlp import GatedMlp, Mlp
from vitcompress.model.modules.patches import PatchEmbed
from vitcompress.model.modules.sources import part
from vitcompress.model.sizes import blocks

_NUMBERS = ("num_classes", "num_features", "embed_dim", "num_prefix_tokens", "global_pool")
_TOKENS = ("cls_token", "reg_token", "pos_embed", "attn_pool")
_MODULES = ("patch_embed", "norm_pre", "norm", "fc_norm", "head")


class SequenceVit(nn.Module):
    """A model of timm for images of one size whose blocks need nothing but the tokens.

    Attributes have the names of timm's plain ViTs.
    """

    def __init__(self, source: Any, row: nn.Sequential) -> None:
        super().__init__()
        for name in _NUMBERS:
            setattr(self, name, getattr(source, name))
        for name in _TOKENS:
            setattr(self, name, getattr(source, name, None))
        for name in _MODULES:
            setattr(self, name, part(source, name))
        self.no_embed_class = getattr(source, "no_embed_class", False)
        self.blocks = row

    def forward(self, pixels: Tensor) -> Tensor:
        vit = cast(Any, self)
        x = vit.patch_embed(pixels)
        first = [
            t.expand(x.shape[0], -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None
        ]
        if vit.pos_embed is not None and vit.no_embed_class:
            x = x + vit.pos_embed
        if first:
            x = torch.cat([*first, x], 1)
        if vit.pos_embed is not None and not vit.no_embed_class:
            x = x + vit.pos_embed
        return self.forward_head(vit.norm(self.blocks(vit.norm_pre(x))))

    def forward_head(self, x: Tensor) -> Tensor:
        """Normed tokens [B, p + N, C] → logits [B, classes]."""
        from timm.layers import global_pool_nlc

        vit = cast(Any, self)
        if vit.attn_pool is None:
            x = global_pool_nlc(x, vit.global_pool, vit.num_prefix_tokens)
        else:
            x = vit.attn_pool(x)
        return cast(Tensor, vit.head(vit.fc_norm(x)))


def adopt_mlps(module: nn.Module) -> None:
    """Put our MLPs in the place of timm's (in place)."""
    from timm.layers import GluMlp, SwiGLU
    from timm.layers import Mlp as TimmMlp

    for name, child in list(module.named_modules()):
        if type(child) in (GluMlp, SwiGLU):
            module.set_submodule(name, GatedMlp(child))
        elif type(child) is TimmMlp and isinstance(child.fc1, nn.Linear):
            module.set_submodule(name, Mlp(child))


def adopt_patches(module: nn.Module) -> None:
    """Put our patch embedding in the place of timm's, for images of one size (in place)."""
    from timm.layers import PatchEmbed as TimmPatchEmbed

    vit = cast(Any, module)
    if type(vit.patch_embed) is TimmPatchEmbed:
        vit.patch_embed = PatchEmbed(vit.patch_embed)


def sequence_anatomy(module: nn.Module, family: str) -> Anatomy:
    """The anatomy of a model with `blocks`, a `norm` and a `forward_head`, as timm calls them."""
    vit = cast(Any, module)
    row: nn.Sequential = vit.blocks
    grid = vit.patch_embed.grid_size if hasattr(vit.patch_embed, "num_patches") else None
    prefix = int(vit.num_prefix_tokens)
    steps = _steps(row, None if grid is None else prefix + grid[0] * grid[1])
    merging = row if isinstance(row, MergingBlocks) else None
    advance = all_steps(steps) if merging is None else merging.advance

    def finish(state: State) -> Tensor:
        x = state.x if merging is None else merging.restored(state)
        return cast(Tensor, vit.forward_head(vit.norm(x)))

    return Anatomy(
        family=family,
        module=module,
        steps=steps,
        start=lambda pixels: State(layer_input(row, lambda: module(pixels))),
        advance=advance,
        finish=finish,
        prefix_tokens=prefix,
        class_token=getattr(vit, "cls_token", None) is not None,
        grid=grid,
        reads_prefix=prefix > 0 and embedding.pooling(vit) == "token",
        stem=("patch_embed",),
        head=tuple(name for name in ("head", "head_dist") if _makes(vit, name)),
        called=getattr(module, "called_linears", None),
        obstacles=lambda: _refusals(module, list(row), grid),
        merged=None if merging is None else merging.attended,
    )


def sequence_head(module: nn.Module) -> HeadPlace:
    """Where the head of such a model, or of the one of timm that it is made from, is."""
    vit = cast(Any, module)
    return HeadPlace(
        layers=None if hasattr(vit, "head_dist") else "head",
        pool=None if hasattr(vit, "head_dist") else "attn_pool",
        prefix=int(vit.num_prefix_tokens),
        class_token=getattr(vit, "cls_token", None) is not None,
    )


def _steps(row: nn.Sequential, tokens: int | None) -> tuple[Step, ...]:
    """The blocks of `row`, where `tokens` come into the first."""
    steps = []
    for number, block in enumerate(row):
        counts = None
        if tokens is not None:
            kept = row.merging.kept[number] if isinstance(row, MergingBlocks) else tokens
            going = min(kept, getattr(block, "tokens", None) or tokens)
            counts, tokens = (tokens, going), going
        steps.append(Step(f"blocks.{number}", block, counts))
    return tuple(steps)


def _makes(module: nn.Module, name: str) -> bool:
    """Whether the part `name` is there and does something."""
    return not isinstance(part(module, name), nn.Identity)


def _refusals(
    module: nn.Module, row: list[nn.Module], grid: tuple[int, int] | None
) -> dict[Alteration, str]:
    found: dict[Alteration, str] = {}
    ours = [block for block in row if isinstance(block, Block)]
    if len(ours) != len(row):
        found["tail"] = "its blocks are not plain ones"
    if not blocks(module):
        found["prune"] = "its blocks are not plain float ones that can be narrowed"
    if (reason := embedding.embedding_obstacle(module)) is not None:
        found["embedding"] = reason
    if len(ours) != len(row) or grid is None:
        found["merge"] = "tokens in other numbers for each image, or blocks that are not plain"
    if any(block.attn is not None and block.attn.positions is not None for block in ours):
        found["merge"] = "the bias of its attention is looked up by position, which merging loses"
    if any(block.norm_after for block in ours):
        found["prune"] = found["merge"] = "its norms come after attention and MLP, not before"
    return found


class _Seen(Exception):
    """The input is there: what follows need not be computed."""


def layer_input(layer: nn.Module, compute: Callable[[], object]) -> Tensor:
    """What `layer` gets when `compute` is called, which goes no further."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Seen

    handle = layer.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(_Seen):
            compute()
    finally:
        handle.remove()
    return seen[0]
