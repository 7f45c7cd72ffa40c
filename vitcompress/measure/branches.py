"""Branches of any sizes, as blocks have them, to be timed: norm, layers, residual addition."""

from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.model.anatomy import SiteTokens
from vitcompress.model.modules.attention import attend
from vitcompress.model.sizes import AttentionSizes

_SCALE = 0.125  # of logits: any takes as long


class Mlp(nn.Module):
    """A branch [B, tokens, width] → the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.fc2(self.act(self.fc1(self.norm(x)))))


class Attention(nn.Module):
    """A branch [B, first, width] → [B, last, width]."""

    def __init__(self, width: int, tokens: SiteTokens, sizes: AttentionSizes) -> None:
        super().__init__()
        self.tokens, self.sizes = tokens, sizes
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, sum(sizes.widths))
        self.proj = nn.Linear(sizes.widths[2], width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).split(self.sizes.widths, -1)
        if self.tokens.last < self.tokens.first:
            q, x = q[:, : self.tokens.last], x[:, : self.tokens.last]
        return x + cast(Tensor, self.proj(attend(q, k, v, self.sizes.heads, _SCALE)))


class WindowedAttention(Attention):
    """The same in windows, which are heads as in `model.modules.windows`: [B, last, width]."""

    bias: Tensor
    order: Tensor
    inverse: Tensor

    def __init__(self, width: int, tokens: SiteTokens, sizes: AttentionSizes) -> None:
        super().__init__(width, tokens, sizes)
        heads = tokens.first // tokens.keys * sizes.heads
        self.register_buffer("bias", torch.zeros(1, heads, tokens.keys, tokens.keys))
        self.register_buffer("order", torch.arange(tokens.first) % tokens.last)
        self.register_buffer("inverse", torch.arange(tokens.last))

    def forward(self, x: Tensor) -> Tensor:
        count = self.tokens.first // self.tokens.keys
        parted = self.qkv(self.norm(x)[:, self.order]).split(self.sizes.widths, -1)
        q, k, v = (part.reshape(-1, self.tokens.keys, count * part.shape[-1]) for part in parted)
        mixed = attend(q, k, v, count * self.sizes.heads, _SCALE, self.bias)
        whole = mixed.reshape(-1, self.tokens.first, self.sizes.widths[2])
        return x + cast(Tensor, self.proj(whole[:, self.inverse]))
