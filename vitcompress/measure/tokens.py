"""What a ViT costs by how many tokens its blocks pass on: multiply-accumulates or milliseconds."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import nn

from vitcompress.measure.branches import LatencyTable
from vitcompress.measure.cost import macs
from vitcompress.methods.tokens import choice_macs, combine_macs
from vitcompress.model.architecture import VitModel, set_merging, unfilled
from vitcompress.model.embedding import embedding_width
from vitcompress.model.layers import Block, QuantizedLinear
from vitcompress.model.merging import Merging
from vitcompress.model.sizes import AttentionSizes, gates, sizes_of

_TIMED = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the tokens at which branches are timed


@dataclass(frozen=True)
class Cost:
    """`block` (number, tokens in, tokens through its MLP) → what it costs; `rest`: all else.

    `tokens` come into the first block. Called with the tokens kept after each block: the cost of
    the whole model.
    """

    block: Callable[[int, int, int], float]
    rest: float
    tokens: int

    def __call__(self, kept: Sequence[int]) -> float:
        coming = (self.tokens, *kept)
        return self.rest + sum(self.block(i, coming[i], n) for i, n in enumerate(kept))


def schedule_macs(model: VitModel, merging: Merging) -> Cost:
    """Multiply-accumulates of `model` if it merged as `merging` says, whatever that keeps.

    `model` merges nothing yet; its last block may compute prefix tokens only.
    """
    vit: Any = model.module
    blocks, prefix = [cast(Block, block) for block in vit.blocks], int(vit.num_prefix_tokens)

    def of_block(number: int, tokens: int, kept: int) -> int:
        total = _dense_macs(blocks[number], tokens, kept)
        if kept < tokens and blocks[number].tokens is None:
            counts = tokens - prefix, kept - prefix
            total += _merging_macs(blocks[number], merging, number, prefix, *counts)
        return total

    tokens = sequence_length(model)
    dense = Cost(of_block, 0, tokens)([tokens] * len(blocks))
    return Cost(of_block, macs(model) - dense, tokens)


def schedule_latency(model: VitModel, merging: Merging, table: LatencyTable) -> Cost:
    """Milliseconds of one image on one thread, of `model` if it merged as `merging` says.

    Branches are timed at a few counts of tokens, and what merging itself takes in a block by the
    difference between two whole models, the one that merges as `merging` and one that does not.
    """
    vit: Any = model.module
    blocks = [cast(Block, block) for block in vit.blocks]
    width, tokens = embedding_width(vit), sequence_length(model)
    dense = embedding_width(unfilled(model).module)
    counts = sorted({max(1, round(share * tokens)) for share in _TIMED})

    def branch(entering: int, leaving: int, part: AttentionSizes | int | None) -> float:
        return table.branch(width, entering, leaving, part, dense)

    def timed(part: AttentionSizes | int | None, leaving: int | None, count: int) -> float:
        grid = [branch(n, min(leaving or n, n), part) for n in counts]
        return float(np.interp(count, counts, grid))

    def branches(number: int, entering: int, kept: int) -> float:
        block, sizes = blocks[number], sizes_of(blocks[number])
        hidden = sizes.hidden and (2 + gates(block)) * sizes.hidden // 2  # of equal work
        through = timed(hidden, None, kept)
        if block.tokens is not None:
            through = branch(block.tokens, block.tokens, hidden)
        return timed(sizes.attention, block.tokens, entering) + through

    plain = Cost(branches, 0, tokens)
    rest = table.rest(model, plain([tokens] * len(blocks)))
    module: Any = copy.deepcopy(vit)
    set_merging(module, merging)
    architecture = model.architecture.model_copy(update={"merging": merging})
    merged = replace(model, module=module, architecture=architecture)
    steps = sum(merging.merges(number, tokens) for number in range(len(blocks)))
    step = max(0.0, table.rest(merged, plain(merging.kept)) - rest) / max(1, steps)
    return Cost(lambda i, n, k: branches(i, n, k) + step * (k < n), rest, tokens)


def sequence_length(model: VitModel) -> int:
    """How many tokens, prefix included, come into the first block."""
    vit: Any = model.module
    return int(vit.patch_embed.num_patches) + int(vit.num_prefix_tokens)


def _dense_macs(block: Block, tokens: int, kept: int) -> int:
    """Of a block: `tokens` come in and `kept` go through its MLP, or as many as it computes."""
    attention: Any = block.attn
    _, keys, values = attention.widths
    queries = min(tokens, block.tokens or tokens)
    total = tokens * _weights(attention.qkv)
    total += queries * (_weights(attention) - _weights(attention.qkv))
    total += queries * tokens * (keys + values) + min(kept, queries) * _weights(block.mlp)
    return int(total)


def _merging_macs(
    block: Block, merging: Merging, number: int, prefix: int, count: int, kept: int
) -> int:
    """Of merging `count` patch tokens into `kept` in block `number`."""
    attention: Any = block.attn
    method, heads, channels = merging.method, attention.num_heads, attention.qkv.in_features
    keys = attention.widths[1]
    if method == "fisher":
        width = merging.rank
        reading = count * channels * (1 + width)
    else:
        width = keys // heads if method in ("tome", "ppt") else channels
        reading = (count + prefix) * keys * heads
    total = reading + choice_macs(method, count, kept, width)
    return int(total + combine_macs(method, count, kept, channels, number >= merging.unmixed))


def _weights(module: nn.Module) -> int:
    return sum(
        m.in_features * m.out_features
        for m in module.modules()
        if isinstance(m, (nn.Linear, QuantizedLinear))
    )
