"""Quantized layers while they are trained: rounded forwards, as if they were not backwards."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.model.modules.quantized import QuantizedLinear


class StraightThrough(nn.Module):
    """A quantized layer whose weights, scales and bias can be trained.

    It computes in float what the integers compute. Gradients pass roundings as if there were none
    (Bengio et al., 1308.3432), but for inputs beyond the range, which is fixed. `weight` [out, in]
    is what the codes are rounded from; `factor` [out] is relative to the scale it started with, so
    that one learning rate suits all scales.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.start = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        multipliers = None
        if layer.multipliers is not None and layer.group is not None:
            groups = -(-layer.in_features // layer.group)
            multipliers = quantizer.unpack_multipliers(layer.multipliers, groups)
        step = quantizer.weight_step(layer.scale, multipliers, layer.group, layer.in_features)
        codes = quantizer.unpack_weight(layer.codes, layer.levels, layer.in_features)
        self.register_buffer("steps", step, persistent=False)
        self.weight = nn.Parameter(codes * step)
        self.factor = nn.Parameter(torch.ones_like(layer.scale))
        self.bias = nn.Parameter(layer.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # whose numbers are coarser than codes
            weight = self._codes() * self._step() + (self.weight - self.weight.detach())
            return F.linear(self._rounded(x.float()), weight, self.bias)

    @torch.no_grad()
    def finished(self) -> QuantizedLinear:
        """The quantized layer of the nearest codes on the lattice as it is now."""
        layer = self.start
        layer.codes = quantizer.pack_weight(self._codes(), layer.levels)
        layer.scale = layer.scale * self.factor
        layer.bias = self.bias.detach().clone()
        return layer

    def _step(self) -> Tensor:
        return cast(Tensor, self.steps) * self.factor[:, None]

    @torch.no_grad()
    def _codes(self) -> Tensor:
        return quantizer.round_weight(self.weight, self._step(), self.start.levels)

    def _rounded(self, x: Tensor) -> Tensor:
        """`x` [..., tokens, in] as the integer kernel sees it."""
        layer, few = self.start, self.start.residual_tokens
        if layer.activations == "float":
            return x
        with torch.no_grad():
            if layer.activation_scale is None or layer.activation_zero_point is None:
                fixed = quantizer.activation_parameters(x.amin(), x.amax())
            else:
                fixed = layer.activation_scale, layer.activation_zero_point.float()
            seen = quantizer.rounded_input(x, fixed, layer.terms if few is None else 1)
            if few is not None:
                seen[..., :few, :] = quantizer.rounded_input(x[..., :few, :], fixed, layer.terms)
            scale, zero_point = fixed
            levels = quantizer.ACTIVATION_LEVELS
            inside = (x >= -zero_point * scale) & (x <= (levels - zero_point) * scale)
        return torch.where(inside, x, x.detach()) + (seen - x).detach()
