"""What models have in common whose blocks are one sequence over one stream of tokens."""

import contextlib
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from vitcompress.model import embedding
from vitcompress.model.anatomy import Anatomy, Change, State, Step, all_steps
from vitcompress.model.layers import Block, GatedMlp
from vitcompress.model.merging import MergingBlocks
from vitcompress.model.sizes import blocks


def adopt_mlps(module: nn.Module) -> None:
    """Put our gated MLPs in the place of timm's (in place)."""
    from timm.layers import GluMlp, SwiGLU

    for name, child in list(module.named_modules()):
        if type(child) in (GluMlp, SwiGLU):
            module.set_submodule(name, GatedMlp(child))


def sequence_anatomy(module: nn.Module, family: str) -> Anatomy:
    """The anatomy of a model with `blocks`, a `norm` and a `forward_head`, as timm calls them."""
    vit = cast(Any, module)
    row: nn.Sequential = vit.blocks
    steps = tuple(Step(f"blocks.{number}", block) for number, block in enumerate(row))
    advance, last = all_steps(steps), lambda state: state.x
    if isinstance(row, MergingBlocks):
        advance, last = row.advance, row.restored
    grid = vit.patch_embed.grid_size if hasattr(vit.patch_embed, "num_patches") else None
    prefix = int(vit.num_prefix_tokens)
    return Anatomy(
        family=family,
        module=module,
        steps=steps,
        start=lambda pixels: State(layer_input(row, lambda: module(pixels))),
        advance=advance,
        finish=lambda state: cast(Tensor, vit.forward_head(vit.norm(last(state)))),
        prefix_tokens=prefix,
        class_token=getattr(vit, "cls_token", None) is not None,
        grid=grid,
        reads_prefix=prefix > 0 and vit.global_pool == "token" and vit.attn_pool is None,
        head=tuple(name for name in ("head", "head_dist") if _makes(vit, name)),
        refusals=_refusals(module, list(row), grid),
    )


def _makes(module: nn.Module, name: str) -> bool:
    """Whether the part `name` is there and does something."""
    return not isinstance(getattr(module, name, nn.Identity()), nn.Identity)


def _refusals(
    module: nn.Module, row: list[nn.Module], grid: tuple[int, int] | None
) -> dict[Change, str]:
    found: dict[Change, str] = {}
    ours = all(isinstance(block, Block) for block in row)
    if not ours:
        found["tail"] = "its blocks are not plain ones"
    if not blocks(module):
        found["prune"] = "its blocks are not plain float ones that can be narrowed"
    if (reason := embedding.obstacle(module)) is not None:
        found["embedding"] = reason
    if not ours or grid is None:
        found["merge"] = "tokens in other numbers for each image, or blocks that are not plain"
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
