"""Self-attention as one PyTorch custom operator.

That is one node when a model is exported, which the ONNX exporter turns into the operators that
onnxruntime runs best.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.model.modules.rotation import Rotation
from vitcompress.model.modules.sources import one_projection, part
from vitcompress.model.modules.windows import RelativePositions, Windows


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
        no_mask(attn_mask, is_causal)
        return self.attended(x, queries)[0]

    def attended(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the queries and keys [B, tokens, h·d]; `bias` as in `attend`, `places`
        [B, N] as in `Rotation`. Windows have queries and keys in their own order."""
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


def no_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("attention masks are not supported: all tokens attend to all others")
