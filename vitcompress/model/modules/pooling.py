"""How tokens become outputs: pooling, and outputs of length one."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["token", "average", "joined", "tokens"]
"""The class token, the average of all patches, both of these joined, or each patch by itself."""


class Pool(nn.Module):
    """Tokens [B, p + N, C] → [B, C]; of two that are joined [B, 2 C], of all patches [B, N, C]."""

    def __init__(self, kind: Pooling, prefix: int) -> None:
        super().__init__()
        self.kind: Pooling = kind
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "token":
            return x[:, 0]
        patches = x[:, self.prefix :]
        if self.kind == "tokens":
            return patches
        average = patches.mean(1)
        return average if self.kind == "average" else torch.cat([x[:, 0], average], -1)

    def extra_repr(self) -> str:
        return self.kind


class Normalise(nn.Module):
    """Outputs [..., C] brought to length one; zeros stay zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
