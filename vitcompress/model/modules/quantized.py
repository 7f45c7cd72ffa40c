"""The Linear in integers, as one PyTorch custom operator: one node when a model is exported."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.terms import Activations


@torch.library.custom_op("vitcompress::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    activation_scale: Tensor | None,
    activation_zero_point: Tensor | None,
    multipliers: Tensor | None,
    bits: int,
    group: int,
    terms: int,
    residual_tokens: int | None,
    levels: Tensor | None = None,
) -> Tensor:
    """A Linear in integer arithmetic, exactly as the integer kernels compute it.

    Args:
        x: float32 [..., in].
        codes: uint8, packed weight codes of `bits` bits (methods.quantizer.pack_weight).
        scale: float32 [out], of the weights.
        bias: float32 [out].
        activation_scale: float32 scalar, or None to take the range of `x` at each call.
        activation_zero_point: uint8 scalar, or None likewise.
        multipliers: uint8, packed multipliers of groups of inputs, or None.
        bits: width of the weight codes.
        group: how many inputs share a multiplier.
        terms: how many 8-bit terms the input is the sum of, 1 or 2.
        residual_tokens: how many leading tokens have the second term; None: all.
        levels: int8, what the codes stand for, where that is no even scale (quantizer.Levels).
    """
    static_range = None
    if activation_scale is not None and activation_zero_point is not None:
        static_range = (activation_scale, activation_zero_point.float())
    known = bits if levels is None else levels
    weight = quantizer.whole_weight(codes, multipliers, known, group, x.shape[-1])
    return quantizer.integer_linear(x, weight, scale, bias, static_range, terms, residual_tokens)


@torch.library.custom_op("vitcompress::unpacked_weight", mutates_args=())
def unpacked_weight(
    codes: Tensor,
    scale: Tensor,
    multipliers: Tensor | None,
    bits: int,
    group: int,
    rows: int,
    levels: Tensor | None = None,
) -> Tensor:
    """The weight float32 [in, out] that the packed codes of `quantized_linear` stand for.

    `rows`: how many inputs there are.
    """
    known = bits if levels is None else levels
    weight = quantizer.whole_weight(codes, multipliers, known, group, rows)
    return (weight * scale[:, None]).T.contiguous()


@unpacked_weight.register_fake
def _(
    codes: Tensor,
    scale: Tensor,
    multipliers: Tensor | None,
    bits: int,
    group: int,
    rows: int,
    levels: Tensor | None = None,
) -> Tensor:
    return scale.new_empty(rows, scale.shape[0])


@quantized_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    activation_scale: Tensor | None,
    activation_zero_point: Tensor | None,
    multipliers: Tensor | None,
    bits: int,
    group: int,
    terms: int,
    residual_tokens: int | None,
    levels: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], scale.shape[0])


class QuantizedLinear(nn.Module):
    """A Linear whose weights are packed codes.

    Its input is one or two unsigned 8-bit terms, or floats.

    Made empty, to be filled by `load_state_dict` or by the quantize stage.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor
    activation_scale: Tensor | None
    activation_zero_point: Tensor | None
    multipliers: Tensor | None
    table: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        activations: Activations,
        terms: Literal[1, 2] = 1,
        residual_tokens: int | None = None,
        group: int | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits = bits
        self.activations: Activations = activations
        self.terms: Literal[1, 2] = terms
        self.residual_tokens = residual_tokens
        self.group = group
        zeros = torch.zeros(out_features, in_features)
        table = None if levels is None else torch.zeros(levels, dtype=torch.int8)
        self.register_buffer("table", table)
        self.register_buffer("codes", quantizer.pack_weight(zeros, self.levels))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features))
        static = activations == "static"
        self.register_buffer("activation_scale", torch.tensor(1.0) if static else None)
        zero_point = torch.tensor(0, dtype=torch.uint8) if static else None
        self.register_buffer("activation_zero_point", zero_point)
        groups = None if group is None else torch.ones(-(-in_features // group), out_features)
        packed = None if groups is None else quantizer.pack_multipliers(groups.to(torch.int8))
        self.register_buffer("multipliers", packed)

    @property
    def levels(self) -> quantizer.Levels:
        """What the codes stand for."""
        return self.bits if self.table is None else self.table

    @levels.setter
    def levels(self, levels: quantizer.Levels) -> None:
        self.table = None if isinstance(levels, int) else levels

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "float":
            held = self.codes, self.scale, self.multipliers
            sizes = self.bits, self.group or 0, self.in_features
            weight = unpacked_weight(*held, *sizes, self.table)
            return cast(Tensor, x @ weight + self.bias)
        output = quantized_linear(
            x,
            self.codes,
            self.scale,
            self.bias,
            self.activation_scale,
            self.activation_zero_point,
            self.multipliers,
            self.bits,
            self.group or 0,
            self.terms,
            self.residual_tokens,
            self.table,
        )
        return cast(Tensor, output)

    def whole_weight(self) -> Tensor:
        """The 8-bit whole weights [out, in], as floats."""
        held = self.codes, self.multipliers, self.levels
        return quantizer.whole_weight(*held, self.group or 0, self.in_features)

    def dequantized(self) -> nn.Linear:
        """The float layer that the codes and the bias stand for."""
        linear = nn.Linear(self.in_features, self.out_features, device=self.codes.device)
        linear.requires_grad_(False)
        linear.weight.copy_(self.whole_weight() * self.scale[:, None])
        linear.bias.copy_(self.bias)
        return linear
