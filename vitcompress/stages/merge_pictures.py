"""Pictures of the tokens of a few images, for the report."""

from typing import Any

import torch

from vitcompress.data.pictures import photograph, token_map
from vitcompress.model.architecture import VitModel
from vitcompress.model.merging import Merging, token_maps
from vitcompress.stages.context import Context

_SHOWN, _SIZE = 4, 168  # images, and their height in pixels


@torch.no_grad()
def pictures(model: VitModel, merging: Merging, context: Context) -> list[dict[str, str]]:
    """Of a few calibration images, which patches are one token after a third of the blocks, after
    two thirds, and in the end."""
    module: Any = model.module
    batch = next(context.labelled_batches("drawing tokens", _SHOWN))
    shown = batch.pixels.to(context.device)
    maps, grid, look = token_maps(module, shown), module.patch_embed.grid_size, context.preprocess
    depths = {round(len(maps) * share) - 1: None for share in (1 / 3, 2 / 3, 1)}
    rows = []
    for place, pixels in enumerate(shown):
        row = {
            "image": batch.names[place],
            "input": photograph(pixels, look.mean, look.std, _SIZE),
        }
        for depth in depths:
            tokens = maps[depth][place].unflatten(0, grid)
            name = f"after block {depth}: {merging.kept[depth] - module.num_prefix_tokens} tokens"
            row[name] = token_map(pixels, tokens, look.mean, look.std, _SIZE)
        rows.append(row)
    return rows
