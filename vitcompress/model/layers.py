"""The modules that replace timm's where ours export better or compute with integers.

Attention and the quantized Linear are PyTorch custom operators: each is one node when a model is
exported, which the ONNX exporter turns into the operators that onnxruntime runs best.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.model.rotation import Rotation
from vitcompress.model.sources import linear, one_projection, part, scale
from vitcompress.model.windows import RelativePositions, Windows
from vitcompress.terms import Activations


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention of q [B, M, h·d], k [B, N, h·d], v [B, N, h·e] → [B, M, h·e].

    `bias` is added to the logits [B, h, M, N]; it may have 1 in the place of any of B, h and M.
    """
    if torch.compiler.is_exporting():
        return cast(Tensor, attention(q, k, v, heads, scale, bias))
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias.expand(-1, -1, q.shape[2], -1)
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


class Attention(nn.Module):
    """timm's self-attention, computing the same with one attention operator.

    `queries` limits the rows that are computed to the first tokens; keys and values are all used.
    `widths` are the features of queries, keys and values in `qkv`; the scale is that of the dense
    model whatever they are. `rotation` turns queries and keys by where their patches lie, in place
    of the `rope` that timm's blocks may hand over. `relative_position_bias_table` [entries, heads]
    is added to the logits as `positions` say. Tokens that sit in `windows` attend to no others.
    """

    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self,
        source: Any,
        rotation: Rotation | None = None,
        table: Tensor | None = None,
        positions: RelativePositions | None = None,
        windows: Windows | None = None,
    ) -> None:
        super().__init__()
        self.num_heads: int = source.num_heads
        self.scale: float = source.scale
        self.qkv = one_projection(source)
        self.widths: tuple[int, int, int] = (self.qkv.out_features // 3,) * 3
        self.q_norm, self.k_norm = part(source, "q_norm"), part(source, "k_norm")
        self.rotation = rotation
        self.register_parameter(
            "relative_position_bias_table",
            None if table is None else nn.Parameter(table.detach().clone(), requires_grad=False),
        )
        self.positions, self.windows = positions, windows
        self.norm = part(source, "norm")
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
        _no_mask(attn_mask, is_causal)
        return self.attended(x, queries)[0]

    def attended(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the queries and keys [B, tokens, h·d]; `bias` as in `attend`, `places`
        [B, N, 1] as in `Rotation`. Windows have queries and keys in their own order."""
        seen = x if self.windows is None else self.windows.parted(x)
        q, k, v = self.qkv(seen).split(self.widths, dim=-1)
        q, k = self.prepared(q[:, :queries], k, places)
        own = self.position_bias(queries)
        y = self.norm(self.mixed(q, k, v, own if bias is None else _sum(bias, own)))
        if self.windows is not None:
            y = self.windows.joined(y)
        if self.gate is not None:
            y = y * self.gate(x[:, :queries]).sigmoid()
        return self.proj(y), q, k

    def position_bias(self, queries: int | None = None) -> Tensor | None:
        """What the places of tokens add to the logits, as `attend` takes it; None: nothing."""
        if self.relative_position_bias_table is None or self.positions is None:
            return None
        entries = F.embedding(self.positions(), self.relative_position_bias_table)
        bias = entries.permute(2, 0, 1)[None, :, :queries]
        return bias if self.windows is None else self.windows.bias(bias)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """The values [B, N, h·e] as the heads mix them, [B, M, h·e]."""
        if self.windows is None:
            return attend(q, k, v, self.num_heads, self.scale, bias)
        q, k, v = (self.windows.as_heads(each) for each in (q, k, v))
        heads = self.windows.count * self.num_heads
        return self.windows.as_tokens(attend(q, k, v, heads, self.scale, bias))

    def by_head(self, x: Tensor) -> Tensor:
        """Queries, keys or values [B, N, h·d] as `attended` has them → [B, h, N, d]; those that sit
        in windows → [B · windows, h, size, d]."""
        if self.windows is not None:
            x = self.windows.apart(x)
        return cast(Tensor, x.unflatten(-1, (self.num_heads, -1))).transpose(1, 2)

    def bias_by_head(self, images: int) -> Tensor | None:
        """`position_bias` of so many images, for logits of what `by_head` gives."""
        bias = self.position_bias()
        if bias is None or self.windows is None:
            return bias
        apart = cast(Tensor, bias.unflatten(1, (self.windows.count, -1)))
        return apart[0].repeat(images, 1, 1, 1)

    def prepared(self, q: Tensor, k: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries [B, M, h·d] of the first tokens and keys [B, N, h·d], normed and turned."""
        if not isinstance(self.q_norm, nn.Identity):
            q = self.q_norm(q.unflatten(-1, (self.num_heads, -1))).flatten(2)
            k = self.k_norm(k.unflatten(-1, (self.num_heads, -1))).flatten(2)
        if self.rotation is not None:
            few = None if places is None else places[:, : q.shape[1]]
            q, k = self.rotation(q, few), self.rotation(k, places)
        return q, k


def _sum(bias: Tensor, other: Tensor | None) -> Tensor:
    return bias if other is None else bias + other


def _no_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("attention masks are not supported: all tokens attend to all others")


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


class Block(nn.Module):
    """timm's block; `tokens` limits what it computes to the first tokens (None: all).

    Norms come before their operators or, `norm_after`, between these and the stream. A block that
    was pruned may lack its attention or its MLP, with the layers around it.
    """

    def __init__(self, source: Any, norm_after: bool = False) -> None:
        super().__init__()
        self.tokens: int | None = None
        self.norm_after = norm_after
        self.norm1, self.attn, self.ls1 = source.norm1, source.attn, scale(source, 1)
        self.norm2, self.mlp, self.ls2 = source.norm2, source.mlp, scale(source, 2)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        _no_mask(attn_mask, is_causal)
        return self.fed(self.mixed(x))

    def mixed(self, x: Tensor) -> Tensor:
        """The first half: tokens after attention."""
        return x[:, : self.tokens] if self.attn is None else self.attended(x)[0]

    def attended(
        self, x: Tensor, bias: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of a block with attention, and its queries and keys."""
        before, after = self._norms(self.norm1)
        y, q, k = self.attn.attended(before(x), self.tokens, bias, places)
        return x[:, : self.tokens] + self.ls1(after(y)), q, k

    def fed(self, x: Tensor) -> Tensor:
        """The second half: tokens after the MLP."""
        if self.mlp is None:
            return x
        before, after = self._norms(self.norm2)
        return x + cast(Tensor, self.ls2(after(self.mlp(before(x)))))

    def _norms(self, norm: Any) -> tuple[Any, Any]:
        """What comes before an operator, and what after it."""
        return (_same, norm) if self.norm_after else (norm, _same)


def _same(x: Tensor) -> Tensor:
    return x
