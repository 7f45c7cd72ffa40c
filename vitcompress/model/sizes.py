"""The sizes of blocks: heads, dimensions inside heads and hidden units, read and changed."""

from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vitcompress.model.anatomy import Site, SiteKind
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.mlp import GatedMlp, Mlp
from vitcompress.model.modules.windows import UnitNorm

_Size = Annotated[int, Field(ge=1)]


class AttentionSizes(BaseModel):
    """Heads of one attention, and the query-key and value dimension of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: _Size
    query_key: _Size
    value: _Size

    @property
    def widths(self) -> tuple[int, int, int]:
        """Output features of the query, key and value parts of `qkv`."""
        return self.heads * self.query_key, self.heads * self.query_key, self.heads * self.value


class BlockSizes(BaseModel):
    """Sizes of one block; None stands for an attention or an MLP that is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: AttentionSizes | None
    hidden: _Size | None


SiteSizes = AttentionSizes | int
"""The sizes of one site: of an attention, or the hidden units of an MLP."""


def blocks(module: nn.Module) -> list[Block]:
    """The blocks of `module`, if the sizes of all of them can be told and changed; else none."""
    found = [part for part in module.modules() if isinstance(part, Block)]
    return found if all(map(narrowable, found)) else []


def narrowable(block: Block) -> bool:
    """Whether the sizes of `block` can be told and changed."""
    mlp: Any = block.mlp
    float_layers = mlp is None or (
        isinstance(mlp, (Mlp, GatedMlp))
        and isinstance(mlp.fc1, nn.Linear)
        and isinstance(mlp.fc2, nn.Linear)
    )
    return float_layers and not block.norm_after


def sizes_of(block: Block) -> BlockSizes:
    attention = block.attn
    found = None
    if attention is not None:
        heads, (_, query_key, value) = attention.num_heads, attention.widths
        found = AttentionSizes(heads=heads, query_key=query_key // heads, value=value // heads)
    mlp = cast(Any, block.mlp)
    return BlockSizes(attention=found, hidden=None if mlp is None else int(mlp.fc2.in_features))


def size_of(site: Site) -> SiteSizes:
    sizes = sizes_of(site.block)
    return cast(SiteSizes, sizes.attention if site.kind == "attention" else sizes.hidden)


def gates(block: Block) -> int:
    """How many gates a hidden unit of the MLP has, each one more output of fc1: 1 or none."""
    return 0 if block.mlp is None else int(cast(Any, block.mlp).gates)


def resize(block: Block, sizes: BlockSizes) -> None:
    """Give `block` new, empty layers of `sizes` where it has others (in place)."""
    now = sizes_of(block)
    if sizes.attention != now.attention:
        if sizes.attention is None:
            block.norm1 = block.attn = block.ls1 = None
        else:
            _resize_attention(cast(Attention, block.attn), sizes.attention)
    if sizes.hidden != now.hidden:
        if sizes.hidden is None:
            block.norm2 = block.mlp = block.ls2 = None
        else:
            mlp = cast(Any, block.mlp)
            mlp.fc1 = _like(mlp.fc1, mlp.fc1.in_features, (1 + gates(block)) * sizes.hidden)
            mlp.fc2 = _like(mlp.fc2, sizes.hidden, mlp.fc2.out_features)


def resize_site(block: Block, kind: SiteKind, size: SiteSizes | None) -> None:
    """As `resize`, of the site of `block` that is of this `kind`; None leaves it out."""
    field = "attention" if kind == "attention" else "hidden"
    resize(block, sizes_of(block).model_copy(update={field: size}))


def _resize_attention(attention: Attention, sizes: AttentionSizes) -> None:
    before = attention.widths[1] // attention.num_heads
    for norm in (attention.q_norm, attention.k_norm):
        if isinstance(norm, nn.Identity):
            continue
        if isinstance(norm, UnitNorm):
            if norm.factor is not None:
                norm.factor = _empty(norm.factor, (sizes.heads, 1))
        elif sizes.query_key != before:  # norms of another kind may stay as they are
            resize_norm(norm, sizes.query_key)
    if (table := attention.relative_position_bias_table) is not None:
        attention.relative_position_bias_table = _empty(table, (len(table), sizes.heads))
    if attention.rotation is not None:
        shape = 3, sizes.heads, sizes.query_key // 2
        attention.rotation.frequencies = attention.rotation.frequencies.new_zeros(shape)
    attention.num_heads, attention.widths = sizes.heads, sizes.widths
    width = attention.qkv.in_features
    attention.qkv = _like(attention.qkv, width, sum(attention.widths))
    attention.proj = _like(attention.proj, attention.widths[2], attention.proj.out_features)


def resize_norm(norm: Any, size: int) -> None:
    """Give `norm` the weights and biases, if it has any, of one over `size` values that leaves
    them as they are (in place)."""
    if norm.normalized_shape == (size,):
        return
    norm.normalized_shape = (size,)
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        old = getattr(norm, name, None)
        if old is not None:
            setattr(norm, name, nn.Parameter(old.new_full((size,), value), requires_grad=False))


def fill(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Put `weight` [out, in] and `bias` [out], of any dtype, into `linear` (in place)."""
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)


def _empty(old: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    """`old` where it has this `shape`, else zeros."""
    value = old if old.shape == shape else old.new_zeros(shape)
    return nn.Parameter(value, requires_grad=False)


def _like(linear: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    if (inputs, outputs) == (linear.in_features, linear.out_features):
        return linear
    made = nn.Linear(inputs, outputs, linear.bias is not None, linear.weight.device)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made.requires_grad_(False)


def attention_weights(attention: Attention) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases (zero where there are none) of queries, keys and values, by part."""
    qkv = attention.qkv
    bias = qkv.bias if qkv.bias is not None else torch.zeros_like(qkv.weight[:, 0])
    return list(qkv.weight.split(attention.widths)), list(bias.split(attention.widths))
