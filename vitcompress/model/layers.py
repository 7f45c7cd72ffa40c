"""The modules that replace timm's where ours export better or compute with integers.

Attention and the quantized Linear are PyTorch custom operators: each is one node when a model is
exported, which the ONNX exporter turns into the operators that onnxruntime runs best.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.terms import Activations


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention of q [B, M, h·d], k [B, N, h·d], v [B, N, h·e] → [B, M, h·e].

    `bias` [B, N] is added to the logits of each key.
    """
    if torch.compiler.is_exporting():
        return cast(Tensor, attention(q, k, v, heads, scale, bias))
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias[:, None, None].expand(-1, 1, q.shape[2], -1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).flatten(2)


@torch.library.custom_op("vitcompress::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """`attend` as one node of an exported graph."""
    return attend(q, k, v, heads, scale, bias)


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


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
    fine_tokens: int | None,
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
        fine_tokens: how many leading tokens have the second term; None: all.
    """
    static_range = None
    if activation_scale is not None and activation_zero_point is not None:
        static_range = (activation_scale, activation_zero_point.float())
    weight = quantizer.whole_weight(codes, multipliers, bits, group, x.shape[-1])
    return quantizer.integer_linear(x, weight, scale, bias, static_range, terms, fine_tokens)


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
    fine_tokens: int | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], scale.shape[0])


class QuantizedLinear(nn.Module):
    """A Linear whose weights are packed codes and whose input is one or two unsigned 8-bit terms.

    Made empty, to be filled by `load_state_dict` or by the quantize stage.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor
    activation_scale: Tensor | None
    activation_zero_point: Tensor | None
    multipliers: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        activations: Activations,
        terms: Literal[1, 2] = 1,
        fine_tokens: int | None = None,
        group: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits = bits
        self.activations: Activations = activations
        self.terms: Literal[1, 2] = terms
        self.fine_tokens = fine_tokens
        self.group = group
        zeros = torch.zeros(out_features, in_features)
        self.register_buffer("codes", quantizer.pack_weight(zeros, bits))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features))
        static = activations == "static"
        self.register_buffer("activation_scale", torch.tensor(1.0) if static else None)
        zero_point = torch.tensor(0, dtype=torch.uint8) if static else None
        self.register_buffer("activation_zero_point", zero_point)
        groups = None if group is None else torch.ones(-(-in_features // group), out_features)
        packed = None if groups is None else quantizer.pack_multipliers(groups.to(torch.int8))
        self.register_buffer("multipliers", packed)

    def forward(self, x: Tensor) -> Tensor:
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
            self.fine_tokens,
        )
        return cast(Tensor, output)

    def dequantized(self) -> nn.Linear:
        """The float layer that the codes and the bias stand for."""
        whole = quantizer.whole_weight(
            self.codes, self.multipliers, self.bits, self.group or 0, self.in_features
        )
        linear = nn.Linear(self.in_features, self.out_features, device=self.codes.device)
        linear.requires_grad_(False)
        linear.weight.copy_(whole * self.scale[:, None])
        linear.bias.copy_(self.bias)
        return linear


def rotated(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    """Turn the pairs of neighbouring features of x [B, M, 2·c] by angles [positions, c].

    `places` [B, M, 1] (int64): the position of each token; None: the first M, in order.
    """
    if torch.compiler.is_exporting():
        return cast(Tensor, rotation(x, cos, sin, places))
    at = slice(x.shape[1]) if places is None else places[..., 0]
    cos, sin = cos[at], sin[at]
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2)


@torch.library.custom_op("vitcompress::rotation", mutates_args=())
def rotation(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    """`rotated` as one node of an exported graph."""
    return rotated(x, cos, sin, places)


@rotation.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


class Rotation(nn.Module):
    """A rotary position embedding: pairs of neighbouring features of queries and keys are turned.

    The angle of pair c of head h is linear in where a patch lies on the grid, `frequencies`
    [3, heads, pairs] being its constant, its change from row to row, and from column to column.
    Whatever narrows heads takes columns of it, so that a narrow model is described by this tensor.
    The first `prefix` tokens are not turned.
    """

    frequencies: Tensor
    grid: Tensor

    def __init__(self, frequencies: Tensor, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        rows, columns = (torch.arange(float(size)) for size in grid)
        patches = torch.cartesian_prod(torch.ones(1), rows, columns)
        whole = torch.cat([torch.zeros(prefix, 3), patches]).to(frequencies.device)
        self.register_buffer("grid", whole, persistent=False)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Turn x [B, M, h·d] of the first M tokens, or of those at `places` [B, M, 1]."""
        angles = (self.grid[..., None] * self.frequencies.flatten(1)).sum(1)
        return rotated(x, angles.cos(), angles.sin(), places)


class Attention(nn.Module):
    """timm's self-attention, computing the same with one attention operator.

    `queries` limits the rows that are computed to the first tokens; keys and values are all used.
    `widths` are the features of queries, keys and values in `qkv`; the scale is that of the dense
    model whatever they are. `rotation` turns queries and keys by where their patches lie, in place
    of the `rope` that timm's blocks may hand over.
    """

    def __init__(self, source: Any, rotation: Rotation | None = None) -> None:
        super().__init__()
        self.num_heads: int = source.num_heads
        self.scale: float = source.scale
        self.qkv = _one_projection(source)
        self.widths: tuple[int, int, int] = (self.qkv.out_features // 3,) * 3
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.rotation = rotation
        self.norm = source.norm
        self.gate = getattr(source, "gate", None)
        self.proj = source.proj

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        queries: int | None = None,
        rope: Tensor | None = None,
    ) -> Tensor:
        return self.attended(x, queries)[0]

    def attended(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the queries and keys [B, tokens, h·d]; `bias` [B, N] as in `attend`,
        `places` [B, N, 1] as in `Rotation`."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q, k = self.prepared(q[:, :queries], k, places)
        y = self.norm(self.mixed(q, k, v, bias))
        if self.gate is not None:
            y = y * self.gate(x[:, :queries]).sigmoid()
        return self.proj(y), q, k

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """The values [B, N, h·e] as the heads mix them, [B, M, h·e]."""
        return attend(q, k, v, self.num_heads, self.scale, bias)

    def prepared(self, q: Tensor, k: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries [B, M, h·d] of the first tokens and keys [B, N, h·d], normed and turned."""
        if not isinstance(self.q_norm, nn.Identity):
            q = self.q_norm(q.unflatten(-1, (self.num_heads, -1))).flatten(2)
            k = self.k_norm(k.unflatten(-1, (self.num_heads, -1))).flatten(2)
        if self.rotation is not None:
            few = None if places is None else places[:, : q.shape[1]]
            q, k = self.rotation(q, few), self.rotation(k, places)
        return q, k


def _one_projection(source: Any) -> Any:
    """One Linear for queries, keys and values, which some of timm's attentions keep apart."""
    if source.qkv is not None and getattr(source, "q_bias", None) is None:
        return source.qkv
    if source.qkv is not None:
        weight, biases = source.qkv.weight, [source.q_bias, source.k_bias, source.v_bias]
    else:
        parts = (source.q_proj, source.k_proj, source.v_proj)
        weight, biases = torch.cat([p.weight for p in parts]), [p.bias for p in parts]
    return _linear(weight, biases)


def _linear(weight: Tensor, biases: list[Tensor | None]) -> nn.Linear:
    """A Linear of `weight` [out, in] and its bias in equal parts, zero where there is none."""
    made = nn.Linear(weight.shape[1], weight.shape[0], any(b is not None for b in biases))
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if made.bias is not None:
        zero = weight.new_zeros(len(weight) // len(biases))
        bias = torch.cat([zero if b is None else b.detach() for b in biases])
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


class GatedMlp(nn.Module):
    """timm's MLPs whose hidden units are gated, fc1 giving the gates, then the values."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        if hasattr(source, "fc1_g"):
            gate, value = source.fc1_g, source.fc1_x
            self.fc1 = _linear(torch.cat([gate.weight, value.weight]), [gate.bias, value.bias])
        elif source.gate_last:
            weight, bias = source.fc1.weight, source.fc1.bias
            self.fc1 = _linear(
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


class Block(nn.Module):
    """timm's pre-norm block; `tokens` limits what it computes to the first tokens (None: all).

    A block that was pruned may lack its attention or its MLP, with the layers around it.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.tokens: int | None = None
        self.norm1, self.attn, self.ls1 = source.norm1, source.attn, _scale(source, 1)
        self.norm2, self.mlp, self.ls2 = source.norm2, source.mlp, _scale(source, 2)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.fed(self.mixed(x))

    def mixed(self, x: Tensor) -> Tensor:
        """The first half: tokens after attention."""
        return x[:, : self.tokens] if self.attn is None else self.attended(x)[0]

    def attended(
        self, x: Tensor, bias: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of a block with attention, and its queries and keys."""
        y, q, k = self.attn.attended(self.norm1(x), self.tokens, bias, places)
        return x[:, : self.tokens] + self.ls1(y), q, k

    def fed(self, x: Tensor) -> Tensor:
        """The second half: tokens after the MLP."""
        return x if self.mlp is None else x + self.ls2(self.mlp(self.norm2(x)))


class LayerScale(nn.Module):
    """A factor for each channel of what a branch adds to the stream."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _scale(source: Any, number: int) -> Any:
    """What scales a branch of a block of timm, which is a module or a bare parameter."""
    if hasattr(source, f"ls{number}"):
        return getattr(source, f"ls{number}")
    gamma = getattr(source, f"gamma_{number}")
    return nn.Identity() if gamma is None else LayerScale(gamma)
