"""A schedule by how few tokens carry most of the attention (ZipVL, He et al., 2410.08584)."""

import torch
from torch import Tensor

from vitcompress.details import Row, Table
from vitcompress.methods import schedule as schedules
from vitcompress.methods.tokens import ATTENTION, View
from vitcompress.stages.context import Context
from vitcompress.stages.merge.judging import read
from vitcompress.stages.merge.scheduling import Found, Schedule, Scheduling

_IMAGES = 64  # enough: a share of tokens differs little between them
_TOLD = (0.9, 0.99)  # of the attention, in the report


@torch.no_grad()
def by_mass(scheduling: Scheduling, context: Context, images: int) -> Found:
    """Each block passes on as many patches as carry a share of its attention, on average: the
    largest share, one for all blocks, that meets the budget. Raises `InputError` where none does.
    """
    masses = attention_masses(scheduling, context, min(images, _IMAGES))

    def at(left_out: float) -> Schedule:
        wanted = [scheduling.prefix + carrying(mass, 1 - left_out) for mass in masses]
        return scheduling.rounded(wanted)

    kept = schedules.at_cost(at, scheduling.cost, scheduling.limit, 1.0)
    patches, names = scheduling.tokens - scheduling.prefix, scheduling.model.anatomy.block_names
    rows: list[Row] = [
        {
            "block": names[block],
            **{f"carry_{told:.0%}_share": carrying(mass, told) / patches for told in _TOLD},
        }
        for block, mass in enumerate(masses)
    ]
    caption = f"Share of patches that carries {_TOLD[0]:.0%} of the attention"
    table = Table.of("attention_mass", rows, {f"carry_{_TOLD[0]:.0%}_share": caption})
    return Found(
        kept=scheduling.affordable(kept, "mass"), facts={"schedule": "mass"}, tables=(table,)
    )


def carrying(mass: Tensor, share: float) -> float:
    """Of `mass` [images, patches], summed up from the most attended on: how many patches it takes
    to reach `share`, the mean over images."""
    short = (mass < share).sum(1) + 1
    return float(short.clamp_max(mass.shape[1]).double().mean())


def attention_masses(scheduling: Scheduling, context: Context, images: int) -> list[Tensor]:
    """Of each block that may merge, in the dense model: the attention that all tokens pay to each
    patch, as a share of that to all patches, the largest first, summed up: [images, patches]."""
    anatomy = scheduling.model.anatomy
    found: list[list[Tensor]] = [[] for _ in range(scheduling.blocks)]
    for pixels in read(context, images):
        x = anatomy.start(pixels).x
        sizes = x.new_ones(len(x), scheduling.tokens - scheduling.prefix)
        for block, masses in zip(anatomy.blocks, found, strict=False):
            left, queries, keys = block.attended(x)
            view = View(
                x=left,
                sizes=sizes,
                queries=queries,
                keys=keys,
                bias=None,
                prefix=anatomy.prefix_tokens,
                class_token=anatomy.class_token,
                heads=block.attn.num_heads,
                scale=block.attn.scale,
                reader=None,
                grid=anatomy.grid,
            )
            paid = ATTENTION.tokens(view).importance.sort(1, descending=True).values
            masses.append((paid / paid.sum(1, keepdim=True)).cumsum(1).cpu())
            x = block.fed(left)
    return [torch.cat(masses) for masses in found]
