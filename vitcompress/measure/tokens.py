"""What a ViT costs by how many tokens its blocks pass on, in closed form."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from vitcompress.measure.cost import macs
from vitcompress.methods.tokens import choice_macs, combine_macs
from vitcompress.model.architecture import VitModel
from vitcompress.model.layers import Block, QuantizedLinear
from vitcompress.model.merging import Method


def block_macs(block: Block, tokens: int, kept: int, prefix: int, method: Method, rank: int) -> int:
    """Multiply-accumulates of `block` on one image: `tokens` come in, `kept` go through its MLP."""
    attention: Any = block.attn
    queries = min(tokens, block.tokens or tokens)
    values = int(attention.proj.in_features)
    keys = (int(attention.qkv.out_features) - values) // 2
    total = tokens * _weights(attention.qkv)
    total += queries * (_weights(attention) - _weights(attention.qkv))
    total += queries * tokens * (keys + values)
    if block.tokens is not None:
        return total + queries * _weights(block.mlp)
    if kept < tokens:
        heads, channels = attention.num_heads, attention.qkv.in_features
        if method == "fisher":
            width = rank
            total += tokens * channels * (1 + rank)
        else:
            width = keys // heads if method in ("tome", "ppt") else channels
            total += tokens * keys * heads
        total += choice_macs(method, tokens - prefix, kept - prefix, width)
        total += combine_macs(method, tokens, kept, channels)
    return total + kept * _weights(block.mlp)


def schedule_macs(model: VitModel, method: Method, rank: int) -> Callable[[Sequence[int]], int]:
    """A function of the tokens kept after each block: multiply-accumulates of the whole `model`.

    `model` merges nothing yet; its last block may compute prefix tokens only.
    """
    vit: Any = model.module
    blocks = [cast(Block, block) for block in vit.blocks]
    tokens, prefix = sequence_length(model), int(vit.num_prefix_tokens)

    def of_blocks(kept: Sequence[int]) -> int:
        coming = [tokens, *kept]
        return sum(
            block_macs(block, coming[i], coming[i + 1], prefix, method, rank)
            for i, block in enumerate(blocks)
        )

    rest = macs(model) - of_blocks([tokens] * len(blocks))
    return lambda kept: rest + of_blocks(kept)


def sequence_length(model: VitModel) -> int:
    """How many tokens, prefix included, come into the first block."""
    vit: Any = model.module
    return int(vit.patch_embed.num_patches) + int(vit.num_prefix_tokens)


def _weights(module: nn.Module) -> int:
    return sum(
        m.in_features * m.out_features
        for m in module.modules()
        if isinstance(m, (nn.Linear, QuantizedLinear))
    )
