"""Pictures of the tokens of a few images, for the report."""

import torch

from vitcompress.data.pictures import photograph, token_map
from vitcompress.details import Gallery, Pictures
from vitcompress.model.architecture import VitModel
from vitcompress.model.merging import token_maps
from vitcompress.model.structure import placed
from vitcompress.stages.captions import captions
from vitcompress.stages.context import Context

_SHOWN, _SIZE = 4, 168  # images, and their height in pixels
_KEY = "Each token has one colour, the mean of the patches that are merged in it, and dark edges."


@torch.no_grad()
def pictures(model: VitModel, context: Context) -> Gallery:
    """Of a few images, which patches are one token after the first, a middle and the last block in
    which tokens merge, and what the dense model and `model` answer."""
    anatomy, merging = model.anatomy, model.architecture.merging
    assert merging is not None
    assert anatomy.grid is not None
    batch = context.shown(_SHOWN)
    shown = batch.pixels.to(context.device)
    maps, look = token_maps(model.module, shown), context.preprocess
    counts = (anatomy.tokens, *merging.kept)
    steps = [i for i in range(len(maps)) if counts[i + 1] < counts[i]] or [len(maps) - 1]
    depths = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    dense = placed(context.dense.module, context.device)(shown)
    told = captions(batch, model.task, dense, model.module(shown), context.names)
    rows = []
    for place, pixels in enumerate(shown):
        fields = (maps[depth][place].unflatten(0, anatomy.grid) for depth in depths)
        drawn = (token_map(pixels, tokens, look.mean, look.std, _SIZE) for tokens in fields)
        sources = (photograph(pixels, look.mean, look.std, _SIZE), *drawn)
        rows.append(Pictures(told[place], sources))
    after = (
        f"after block {depth}: {merging.kept[depth] - anatomy.prefix_tokens} tokens"
        for depth in depths
    )
    return Gallery("token_maps", ("input", *after), tuple(rows), _KEY)
