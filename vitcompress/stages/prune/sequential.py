"""Block after block: last layers refitted on what they really get, towards the dense model."""

from collections.abc import Iterator, Mapping
from tempfile import TemporaryFile
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.methods.compensation import Moments, joined, refit, with_constant
from vitcompress.model.layers import Block
from vitcompress.model.sizes import blocks, fill
from vitcompress.stages.prune.statistics import Branch, Importance, last_layer
from vitcompress.stages.streams import Stream, first_input, layer_input

_DAMPINGS = (0.03, 0.1, 0.3, 1.0, 3.0)


def refit_in_sequence(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterator[tuple[Tensor, bool]],
    importance: Mapping[Branch, Importance],
    prefix_tokens: int,
    into: Tensor | None = None,
) -> None:
    """Refit the last layer of every branch of `pruned`, one after the other (in place).

    Each sees the inputs that the pruned model gives it. Its target is what brings the stream of
    tokens back to that of the dense model, errors of earlier layers included; it is drawn towards
    the layer it was, as strongly as serves the images held back best, and left alone where no
    strength does. `batches` yield pixels, and whether they are held back. `into` [C', C] is how the
    dense stream becomes that of `pruned`, where they differ in width.
    """
    with TemporaryFile() as one, TemporaryFile() as other:
        streams = {"dense": Stream(one), "pruned": Stream(other)}
        held: list[bool] = []
        device = torch.device("cpu")
        for pixels, is_held in batches:
            device = pixels.device
            x = first_input(dense, pixels)
            streams["dense"].add(x)
            streams["pruned"].add(_turned(x, into))
            held.append(is_held)
        pairs = list(zip(blocks(dense), blocks(pruned), strict=True))
        for number, (block, narrow) in enumerate(track(pairs, "refitting", len(pairs))):
            for part in ("attn", "mlp"):
                if getattr(block, part) is not None:
                    given = importance[number, part]
                    _refit_branch(
                        block, narrow, part, streams, held, device, given, prefix_tokens, into
                    )


def _refit_branch(
    block: Block,
    narrow: Block,
    part: str,
    streams: Mapping[str, Stream],
    held: list[bool],
    device: torch.device,
    importance: Importance,
    prefix_tokens: int,
    into: Tensor | None,
) -> None:
    fitted = getattr(narrow, part) is not None
    sums: dict[bool, Moments] = {}
    for index, is_held in enumerate(held):
        x = streams["dense"].read(index, device)
        target = x + _branch(block, part, x)
        streams["dense"].replace(index, target)
        if fitted:
            x = streams["pruned"].read(index, device)
            weights = importance.token_weights(x.shape[1], prefix_tokens).to(device)
            found = _moments(_inputs(narrow, part, x), _turned(target, into) - x, weights)
            sums[is_held] = found.plus(sums[is_held]) if is_held in sums else found
    if not fitted:
        return
    layer = last_layer(narrow, part)
    prior = joined(layer.weight.cpu(), layer.bias.cpu())
    candidates = [prior, *(refit(sums[False], prior, damping) for damping in _DAMPINGS)]
    best = min(candidates, key=sums[True].error)
    fill(layer, best[:-1].T, best[-1])
    for index in range(len(held)):
        x = streams["pruned"].read(index, device)
        streams["pruned"].replace(index, x + _branch(narrow, part, x))


def _turned(x: Tensor, into: Tensor | None) -> Tensor:
    return x if into is None else x @ into.to(x).T


def _branch(block: Block, part: str, x: Tensor) -> Tensor:
    made: Any = block
    if part == "attn":
        return cast(Tensor, made.ls1(made.attn(made.norm1(x))))
    return cast(Tensor, made.ls2(made.mlp(made.norm2(x))))


def _inputs(block: Block, part: str, x: Tensor) -> Tensor:
    """What the last layer of a branch gets."""
    return layer_input(last_layer(block, part), lambda: _branch(block, part, x))


def _moments(inputs: Tensor, target: Tensor, weights: Tensor) -> Moments:
    x = with_constant(inputs)
    weighted = (x * weights[:, None]).flatten(0, 1)
    y = target.flatten(0, 1)
    energy = (target.square().sum((0, 2)) * weights).sum()
    return Moments(
        (weighted.T @ x.flatten(0, 1)).double().cpu(),
        (weighted.T @ y).double().cpu(),
        energy.double().cpu(),
    )
