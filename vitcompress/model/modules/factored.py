"""Linear layers whose weight is two small products."""

from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.methods.factors import Factors, composed


class LowRankLinear(nn.Module):
    """Two Linears, one after the other, of a few values between them."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.first = nn.Linear(in_features, rank, bias=False)
        self.second = nn.Linear(rank, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.first(x)))

    @property
    def factors(self) -> Factors:
        return Factors(self.first.weight[None], self.second.weight[None])

    def fill(self, factors: Factors, bias: Tensor | None) -> None:
        """Take what `methods.factors` gives (in place)."""
        self.first.weight.copy_(factors.first[0])
        self.second.weight.copy_(factors.second[0])
        if bias is not None:
            self.second.bias.copy_(bias)


class MonarchLinear(nn.Module):
    """Two block-diagonal products, between which the parts of all blocks change places."""

    first: nn.Parameter
    second: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, blocks: int, rank: int, bias: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.blocks = in_features, out_features, blocks
        first = torch.zeros(blocks, in_features // blocks, blocks * rank)
        second = torch.zeros(blocks, blocks * rank, out_features // blocks)
        self.first = nn.Parameter(first, requires_grad=False)  # as a product reads it, [in, out]
        self.second = nn.Parameter(second, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., N, in] → [..., N, out]."""
        parts = x.unflatten(-1, (self.blocks, -1)).transpose(-3, -2)  # [..., blocks, N, in / b]
        between = (parts @ self.first).unflatten(-1, (self.blocks, -1))
        between = between.transpose(-4, -2).flatten(-2)  # [..., blocks, N, blocks · rank]
        y: Tensor = (between @ self.second).transpose(-3, -2).flatten(-2)
        return y if self.bias is None else y + self.bias

    @property
    def factors(self) -> Factors:
        return Factors(self.first.transpose(1, 2), self.second.transpose(1, 2))

    def fill(self, factors: Factors, bias: Tensor | None) -> None:
        """Take what `methods.factors` gives (in place)."""
        self.first.copy_(factors.first.transpose(1, 2))
        self.second.copy_(factors.second.transpose(1, 2))
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)


FactoredLinear = LowRankLinear | MonarchLinear


class FactoredLayer(BaseModel):
    """How one Linear became two products: blocks × blocks parts of its weight, each of `rank`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=1)]

    def empty(self, linear: nn.Linear) -> FactoredLinear:
        """What takes the place of `linear`, not yet filled in.

        Raises `InputError` where the blocks do not divide it.
        """
        sizes, bias = (linear.in_features, linear.out_features), cast(object, linear.bias)
        if any(size % self.blocks for size in sizes):
            raise InputError(f"config.json: {self.blocks} blocks do not divide a layer of {sizes}")
        if self.blocks == 1:
            return LowRankLinear(*sizes, self.rank, bias is not None).requires_grad_(False)
        return MonarchLinear(*sizes, self.blocks, self.rank, bias is not None)


def whole(layer: FactoredLinear) -> nn.Linear:
    """The Linear that computes the same in one product."""
    bias = layer.second.bias if isinstance(layer, LowRankLinear) else layer.bias
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None)
    linear.requires_grad_(False).weight.copy_(composed(layer.factors))
    if bias is not None:
        linear.bias.copy_(bias)
    return linear
