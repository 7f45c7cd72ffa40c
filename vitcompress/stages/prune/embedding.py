"""The width of the stream of tokens: what narrowing it costs, and the narrower model.

The stream is turned to its principal directions, of which the last go. LayerNorms stay LayerNorms
(`methods.subspace.stream_map`): what writes to the stream is multiplied by that map, and what reads
it is refitted to give what it gave.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.memory import copied
from vitcompress.methods.compensation import Fit, joined, projected, with_constant
from vitcompress.methods.readers import normalised
from vitcompress.methods.subspace import stream_basis, stream_map
from vitcompress.model.embedding import resize_embedding, stream_readers, writers
from vitcompress.model.sizes import fill
from vitcompress.stages.importance import Importance
from vitcompress.stages.observe import Watch, observe, unlabelled

_DAMPING = 1e-3  # of the layers that read the stream


@dataclass(frozen=True)
class Embedding:
    """The principal directions of the stream [C, C − 1], and Gram matrices [C + 1, C + 1] of what
    each LayerNorm makes of it (scale and shift left out), with a constant 1, by name."""

    basis: Tensor
    grams: dict[str, Tensor]


def embedding(
    module: nn.Module, batches: Iterable[Tensor], importance: Mapping[str, Importance]
) -> Embedding:
    """Find the basis of the stream of `module`: `importance` is of the outputs of its readers.

    Every reader counts as its output does in the Fisher information: it is what it makes of the
    stream that matters, and the stream grows from block to block.
    """
    grams, none = dict[str, Tensor](), torch.zeros((), dtype=torch.float64)

    def see(name: str, x: Tensor, _: Tensor, __: Tensor | None) -> None:
        x = with_constant(normalised(x if x.ndim == 3 else x[:, None]))
        weights = importance[name].token_weights(x.shape[1]).to(x.device)
        gram = (x * weights[:, None]).flatten(0, 1).T @ x.flatten(0, 1)
        grams[name] = grams.get(name, none) + gram.double().cpu()

    norms = {reader.name: reader.norm for reader in stream_readers(module)}
    observe(module, [Watch(name, partial(see, name)) for name in norms], unlabelled(batches))
    grams = parallel.summed(grams)
    total = none
    for name in norms:
        gram = grams[name]
        gamma = 1.0 if norms[name].weight is None else norms[name].weight.double().cpu()
        worth = (importance[name].metric.diagonal() * gamma**2).sum()
        total = total + worth * gram[:-1, :-1] / gram[-1, -1]
    return Embedding(stream_basis(total), grams)


def narrowed(module: nn.Module, found: Embedding, width: int, compensate: bool) -> nn.Module:
    """A copy of `module` with a stream of `width` channels; of all, it is the same turned.

    With `compensate`, the layers that read it are refitted to give what they gave.
    """
    made, channels = copied(module), len(found.basis)
    resize_embedding(made, width)
    into = stream_map(found.basis, width)
    for old, new in zip(writers(module), writers(made), strict=True):
        value = old.value.double().cpu().movedim(old.axis, -1) @ into.T
        new.value.copy_(value.movedim(-1, new.axis))
    turn = torch.block_diag(found.basis, torch.ones(1, 1))
    kept = torch.arange(width - 1)
    for before, after in zip(stream_readers(module), stream_readers(made), strict=True):
        gram = turn.T @ found.grams[before.name] @ turn
        # Tokens of the narrower norm have the length √C' whatever went: on average that of what
        # stayed of them before, times √C' over that length.
        length = (gram.diagonal()[kept].sum() / gram[-1, -1]).sqrt()
        back = into @ found.basis[:, kept] * (length * channels**0.5 / width)
        for source, target in zip(before.layers, after.layers, strict=True):
            whole = turn.T @ _with_affine(before.norm, source)
            if compensate:
                layer = projected(Fit(gram, _DAMPING), whole, kept)
            else:
                layer = torch.cat([whole[kept], whole[-1:]])
            fill(target, layer[:-1].T @ back.T, layer[-1])
    return made


def _with_affine(norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """`layer` after the scale and shift of `norm` as one layer, [in + 1, out]."""
    weight, bias = layer.weight.double().cpu(), layer.bias.double().cpu()
    if norm.bias is not None:
        bias = bias + weight @ norm.bias.double().cpu()
    if norm.weight is not None:
        weight = weight * norm.weight.double().cpu()
    return joined(weight, bias)
