"""The width of the stream of tokens: which tensors write to it, which layers read it."""

from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.pooling import Normalise, Pool
from vitcompress.model.sizes import blocks, resize_norm

_LINEAR = ("token", "avg", "", "average", "tokens")  # ways of pooling


class Writer(NamedTuple):
    """A parameter of `owner` whose `axis` are the channels of the stream."""

    owner: nn.Module
    name: str
    axis: int

    @property
    def value(self) -> Tensor:
        return cast(Tensor, getattr(self.owner, self.name))


class Reader(NamedTuple):
    """A LayerNorm of the stream, and all Linear layers that read its output, by its `name`."""

    name: str
    norm: nn.LayerNorm
    layers: list[nn.Linear]


def embedding_width(module: nn.Module) -> int:
    return int(cast(int, module.embed_dim))


def pooling(module: nn.Module) -> str:
    """The word for how `module` pools its tokens, of timm or of a described head."""
    vit = cast(Any, module)
    if isinstance(vit.attn_pool, Pool):
        return vit.attn_pool.kind
    return "map" if vit.attn_pool is not None else str(vit.global_pool)


def embedding_obstacle(module: nn.Module) -> str | None:
    """Why the stream of `module` cannot be narrowed; None where it can.

    All that reads it must be a LayerNorm, followed by linear layers with a bias that can take over
    its own: nothing may mix channels before, or treat them one by one, as a pooled maximum does.
    """
    vit = cast(Any, module)
    found = blocks(module)
    if not found:
        return "its blocks are not plain ones"
    if not hasattr(vit, "norm_pre"):
        return "its stream has no single width"
    if all(isinstance(head, (nn.Identity, Normalise)) for head in _heads(vit)):
        return "its output is the stream itself"
    if not isinstance(vit.patch_embed.norm, nn.Identity) or not isinstance(
        vit.norm_pre, nn.Identity
    ):
        return "a norm follows its patch embedding"
    if (pooled := pooling(vit)) == "joined":
        return "its head reads the class token and an average joined"
    if pooled not in _LINEAR:
        return f"its pooling ({pooled}) is not linear"
    readers = _readers(module)
    if len(readers) != 1 + sum((b.attn is not None) + (b.mlp is not None) for b in found):
        return "it has not one norm before its head"
    for name, norm, layers in readers:
        if not isinstance(norm, nn.LayerNorm):
            return f"{name} is no LayerNorm"
        if not all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers):
            return f"what reads {name} is no linear layer with a bias"
    if any(b.attn is not None and cast(Attention, b.attn).gate is not None for b in found):
        return "its attention is gated"
    return None


def writers(module: nn.Module) -> list[Writer]:
    """All tensors that are added to the stream, LayerScale aside."""
    vit = cast(Any, module)
    found = [Writer(vit.patch_embed.proj, "weight", 0), Writer(vit.patch_embed.proj, "bias", 0)]
    tokens = ("cls_token", "reg_token", "dist_token", "pos_embed")
    found += [Writer(module, name, 2) for name in tokens]
    for block in blocks(module):
        last = [block.attn and block.attn.proj, block.mlp and block.mlp.fc2]
        found += [Writer(layer, name, 0) for layer in last if layer for name in ("weight", "bias")]
    return [writer for writer in found if getattr(writer.owner, writer.name, None) is not None]


def stream_readers(module: nn.Module) -> list[Reader]:
    """All LayerNorms of the stream, in the order of computation."""
    return [Reader(*each) for each in _readers(module)]


def _readers(module: nn.Module) -> list[tuple[str, Any, list[Any]]]:
    vit = cast(Any, module)
    found: list[tuple[str, Any, list[Any]]] = []
    for number, block in enumerate(blocks(module)):
        if block.attn is not None:
            found.append((f"blocks.{number}.norm1", block.norm1, [block.attn.qkv]))
        if block.mlp is not None:
            found.append((f"blocks.{number}.norm2", block.norm2, [block.mlp.fc1]))
    finals = [(name, getattr(vit, name), _heads(vit)) for name in ("norm", "fc_norm")]
    return found + [final for final in finals if not isinstance(final[1], nn.Identity)]


def _heads(vit: Any) -> list[Any]:
    """What reads the pooled stream."""
    first = vit.head[0] if isinstance(vit.head, nn.Sequential) else vit.head
    return [first, *([vit.head_dist] if hasattr(vit, "head_dist") else [])]


def resize_embedding(module: nn.Module, width: int) -> None:
    """Give `module`, without an `embedding_obstacle`, an empty stream of `width` channels
    (in place).

    LayerNorms and LayerScales become those that change nothing.
    """
    vit = cast(Any, module)
    for owner, name, axis in writers(module):
        old = getattr(owner, name)
        shape = list(old.shape)
        shape[axis] = width
        setattr(owner, name, _parameter(old.new_zeros(shape)))
        for attribute in ("out_features", "out_channels"):
            if axis == 0 and hasattr(owner, attribute):
                setattr(owner, attribute, width)
    for _, norm, layers in stream_readers(module):
        resize_norm(norm, width)
        if norm.weight is not None:
            norm.weight.fill_(1)
        if norm.bias is not None:
            norm.bias.fill_(0)
        for layer in layers:
            layer.in_features = width
            layer.weight = _parameter(layer.weight.new_zeros(layer.out_features, width))
    for block in blocks(module):
        for scale in (block.ls1, block.ls2):
            if hasattr(scale, "gamma"):
                scale.gamma = _parameter(scale.gamma.new_ones(width))
    vit.num_features = vit.head_hidden_size = vit.embed_dim = width


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
