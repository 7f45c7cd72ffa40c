"""MLPs, plain and gated."""

from typing import Any

import torch
from torch import Tensor, nn

from vitcompress.model.modules.sources import linear


class Mlp(nn.Module):
    """timm's MLP. `gates`: how many a hidden unit has, each one more output of fc1."""

    gates = 0

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.fc1, self.act, self.norm, self.fc2 = source.fc1, source.act, source.norm, source.fc2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.norm(self.act(self.fc1(x))))
        return y


class GatedMlp(nn.Module):
    """timm's MLPs whose hidden units are gated, fc1 giving the gates, then the values."""

    gates = 1

    def __init__(self, source: Any) -> None:
        super().__init__()
        if hasattr(source, "fc1_g"):
            gate, value = source.fc1_g, source.fc1_x
            self.fc1 = linear(torch.cat([gate.weight, value.weight]), [gate.bias, value.bias])
        elif source.gate_last:
            weight, bias = source.fc1.weight, source.fc1.bias
            self.fc1 = linear(
                weight.roll(len(weight) // 2, 0),
                [None] if bias is None else [bias.roll(len(bias) // 2)],
            )
        else:
            self.fc1 = source.fc1
        self.act, self.norm, self.fc2 = source.act, source.norm, source.fc2

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, -1)
        y: Tensor = self.fc2(self.norm(self.act(gate) * value))
        return y
