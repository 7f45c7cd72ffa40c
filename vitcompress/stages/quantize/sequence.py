"""Rounding in sequence: each layer answers for the errors of those that were rounded before it.

What a layer gets in the quantized model is not what it got in the float model. Its weights are
first refitted to those inputs, quantized as they are, by a ridge regression towards the outputs
of the float model (the activation quantization error reduction of ERQ, 2407.06794, section 4.1),
then rounded with the moments of those inputs (as in GPTAQ, 2504.02692). The last layer of a branch
is fitted towards what brings the stream of tokens back to that of the float model.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from tempfile import TemporaryFile
from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.methods import quantizer
from vitcompress.methods.compensation import Moments, covariance, with_constant
from vitcompress.methods.sparsity import reconstructed
from vitcompress.model.layers import Block, QuantizedLinear
from vitcompress.model.merging import MergingBlocks
from vitcompress.model.sizes import blocks
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.bits import Prepared
from vitcompress.stages.quantize.config import Style
from vitcompress.stages.quantize.layer import Choice, coded, with_range
from vitcompress.stages.streams import Stream, first_input, layer_input

_DAMPING = 0.1  # of the ridge; more, the fewer tokens there are for each input

_Half = Callable[[Block, Tensor], Tensor]
"""One half of a block, from the stream of tokens before it to that after it."""


# With the Linears that follow one another in it. The last adds to the stream.
_HALVES: tuple[tuple[_Half, tuple[str, str]], ...] = (
    (Block.mixed, ("attn.qkv", "attn.proj")),
    (Block.fed, ("mlp.fc1", "mlp.fc2")),
)


def sequence(module: nn.Module) -> list[str]:
    """The names of the Linears of plain blocks, as they follow one another; none where blocks
    cannot be run one by one on tokens that stay the same."""
    found = [] if isinstance(getattr(module, "blocks", None), MergingBlocks) else blocks(module)
    names = {name for name, _ in module.named_modules()}
    kinds = [kind for _, each in _HALVES for kind in each]
    every = [f"blocks.{number}.{kind}" for number in range(len(found)) for kind in kinds]
    return [name for name in every if name in names]


def round_in_sequence(
    known: Prepared,
    bits: Mapping[str, int],
    others: Mapping[str, QuantizedLinear],
    style: Style,
    context: Context,
) -> dict[str, QuantizedLinear]:
    """The layers `bits`, of those in `sequence`, rounded to so many bits one after the other.

    `others`: layers that are in their final form already.
    """
    module, done = placed(known.module, context.device), dict[str, QuantizedLinear]()
    twin = copy.deepcopy(module)
    pairs = list(zip(blocks(module), blocks(twin), strict=True))
    for name, layer in others.items():
        twin.set_submodule(name, placed(layer, context.device))
    with TemporaryFile() as one, TemporaryFile() as other:
        streams = Stream(one), Stream(other)
        for pixels in context.calibration_batches("reading images"):
            x = first_input(module, pixels.to(context.device))
            for stream in streams:
                stream.add(x)
        for number, pair in enumerate(track(pairs, "rounding in sequence", len(pairs))):
            for half, kinds in _HALVES:
                for kind in kinds:
                    name = f"blocks.{number}.{kind}"
                    if name in bits:
                        choice, linear = known.choices[name], known.floats[name]
                        found = _moments(half, pair, kind, streams, choice, style, context.device)
                        done[name] = fitted(linear, choice, found, style, bits[name])
                        pair[1].set_submodule(kind, placed(done[name], context.device))
                for stream, block in zip(streams, pair, strict=True):
                    for index in range(len(stream)):
                        stream.replace(index, half(block, stream.read(index, context.device)))
    return done


def fitted(
    linear: nn.Linear, choice: Choice, found: Moments, style: Style, bits: int
) -> QuantizedLinear:
    """`linear` refitted and rounded, its mean error in the bias.

    `found`: moments of its inputs, with a constant, and of the outputs that it should have.
    """
    tokens = float(found.gram[-1, -1])
    inputs, outputs = found.gram[-1, :-1] / tokens, found.cross[-1] / tokens
    spread = covariance(found.gram)
    cross = found.cross[:-1].T / tokens - torch.outer(outputs, inputs)
    weight = linear.weight.cpu()
    level = (_DAMPING + weight.shape[1] / tokens) * spread.diagonal().mean().clamp_min(1e-30)
    hessian = spread + level * torch.eye(len(spread), dtype=spread.dtype)
    # Ridge towards the weights as they are, and zeros of a sparse layer stay.
    wanted = reconstructed(weight, hessian, cross + level * weight, weight != 0).to(weight.dtype)
    layer = coded(wanted, spread, tokens, style, bits)
    layer.bias = (outputs - layer.dequantized().weight.double() @ inputs).float()
    return with_range(layer, choice)


def _moments(
    half: _Half,
    pair: tuple[Block, Block],
    kind: str,
    streams: tuple[Stream, Stream],
    choice: Choice,
    style: Style,
    device: torch.device,
) -> Moments:
    """Moments of what a layer gets in the quantized model, and of what it should give there."""
    places = [block.get_submodule(kind) for block in pair]
    adds = kind.endswith(("proj", "fc2")) and isinstance(_scale(pair[0], kind), nn.Identity)
    total: Moments | None = None
    for index in range(len(streams[0])):
        before = [stream.read(index, device) for stream in streams]
        dense, now = (
            layer_input(layer, partial(half, block, x))
            for layer, block, x in zip(places, pair, before, strict=True)
        )
        target = places[0](dense)
        if adds:
            target = target + (before[0] - before[1])[:, : target.shape[1]]
        x = with_constant(_as_codes(now, choice, style)).flatten(0, 1)
        y = target.flatten(0, 1)
        found = Moments(*(t.double().cpu() for t in (x.T @ x, x.T @ y, y.square().sum())))
        total = found if total is None else total.plus(found)
    assert total is not None
    return total


def _scale(block: Block, kind: str) -> nn.Module | None:
    """What scales the branch that the layer `kind` is in."""
    return cast(nn.Module | None, block.ls1 if kind.startswith("attn") else block.ls2)


def _as_codes(x: Tensor, choice: Choice, style: Style) -> Tensor:
    """`x` as the integer kernel sees it, where its range is fixed."""
    if style.activations == "dynamic":
        return x
    scale, zero_point = quantizer.activation_parameters(choice.low.to(x), choice.high.to(x))
    return quantizer.quantize_activation(x, scale, zero_point) * scale
