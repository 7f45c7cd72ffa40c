"""What modules of timm are made of, each in its own way, as ours have it."""

from typing import Any

import torch
from torch import Tensor, nn


def part(source: Any, name: str) -> Any:
    """The part `name` of a module of timm; an identity where it has none."""
    found = getattr(source, name, None)
    return nn.Identity() if found is None else found


def one_projection(source: Any) -> Any:
    """One Linear for queries, keys and values, which some of timm's attentions keep apart."""
    if source.qkv is not None and getattr(source, "q_bias", None) is None:
        return source.qkv
    if source.qkv is not None:
        weight, biases = source.qkv.weight, [source.q_bias, source.k_bias, source.v_bias]
    else:
        parts = (source.q_proj, source.k_proj, source.v_proj)
        weight, biases = torch.cat([p.weight for p in parts]), [p.bias for p in parts]
    return linear(weight, biases)


def linear(weight: Tensor, biases: list[Tensor | None]) -> nn.Linear:
    """A Linear of `weight` [out, in] and its bias in equal parts, zero where there is none."""
    made = nn.Linear(weight.shape[1], weight.shape[0], any(b is not None for b in biases))
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if made.bias is not None:
        zero = weight.new_zeros(len(weight) // len(biases))
        bias = torch.cat([zero if b is None else b.detach() for b in biases])
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


class LayerScale(nn.Module):
    """A factor for each channel of what a branch adds to the stream."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def scale(source: Any, number: int) -> Any:
    """What scales a branch of a block of timm, which is a module, a bare parameter or nothing."""
    gamma = getattr(source, f"gamma_{number}", None)
    return part(source, f"ls{number}") if gamma is None else LayerScale(gamma)
