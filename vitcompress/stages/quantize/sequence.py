"""Rounding in sequence: each layer answers for the errors of those that were rounded before it.

What a layer gets in the quantized model is not what it got in the float model. Its weights are
first refitted to those inputs, quantized as they are, by a ridge regression towards the outputs
of the float model (the activation quantization error reduction of ERQ, 2407.06794, section 4.1),
then rounded with the moments of those inputs (as in GPTAQ, 2504.02692). The last layer of a branch
is fitted towards what brings the stream of tokens back to that of the float model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.console import track
from vitcompress.memory import copied
from vitcompress.methods import quantizer
from vitcompress.methods.compensation import Moments, covariance, varying, with_constant
from vitcompress.methods.sparsity import reconstructed
from vitcompress.model.anatomy import Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import Style
from vitcompress.stages.quantize.layer import InputRange, coded, damped, with_range
from vitcompress.stages.quantize.prepare import QuantizeSetup
from vitcompress.stages.sequence import Given, side_by_side

_DAMPING = 0.1  # of the ridge; more, the fewer tokens there are for each input


Seen = Callable[[Tensor], Tensor]
"""The input of a layer → as the layer multiplies it."""


def sequence(model: VitModel) -> list[str]:
    """The names of the float Linears at sites, as they follow one another; none where tokens
    merge."""
    if model.architecture.merging is not None:
        return []
    anatomy = model.anatomy
    floats = anatomy.linears()
    every = [name for site in anatomy.sites for name in (site.first_name, site.last_name)]
    return [name for name in every if name in floats]


def round_in_sequence(
    known: QuantizeSetup,
    bits: Mapping[str, int],
    others: Mapping[str, QuantizedLinear],
    context: Context,
) -> dict[str, QuantizedLinear]:
    """The layers `bits`, of those in `sequence`, rounded to so many bits one after the other.

    `others`: layers that are in their final form already.
    """
    dense, done = placed(known.anatomy.module, context.device), dict[str, QuantizedLinear]()
    changed = copied(dense)
    for name, layer in others.items():
        changed.set_submodule(name, placed(layer, context.device))
    seen = {name: _seen(known.ranges[name], known.style) for name in bits}
    for name, found in in_sequence(dense, changed, seen, context):
        linear, input_range = known.floats[name], known.ranges[name]
        done[name] = refitted_layer(linear, input_range, found, known.style, bits[name])
        changed.set_submodule(name, placed(done[name], context.device))
    return done


def in_sequence(
    dense: nn.Module, changed: nn.Module, seen: Mapping[str, Seen], context: Context
) -> Iterator[tuple[str, Moments]]:
    """The layers that are `seen`, by name and of those in `sequence`, one after the other, each
    with the moments of what it gets in `changed`, as it sees that, and of what it should give.

    Whoever iterates puts each layer into `changed` before the next comes.
    """
    pixels = context.calibration_batches("reading images")
    batches = ((batch.to(context.device), False) for batch in pixels)
    sites = anatomy_of(dense)
    places = side_by_side(sites, anatomy_of(changed), batches)
    for place in track(places, "rounding in sequence", len(sites.sites)):
        site = place.site
        for name in (site.first_name, site.last_name):
            if name in seen:
                last = name == site.last_name
                given = place.fitting("last", _adds(site)) if last else place.fitting("first")
                yield name, _moments(given, seen[name])


def _adds(site: Site) -> bool:
    """Whether what the last layer of `site` gives is added to the stream as it is."""
    return isinstance(site.scale, nn.Identity) and not site.block.norm_after


def refitted_layer(
    linear: nn.Linear, input_range: InputRange, found: Moments, style: Style, bits: int
) -> QuantizedLinear:
    """`linear` refitted and rounded, its mean error in the bias.

    `found`: moments of its inputs, with a constant, and of the outputs that it should have.
    """
    tokens = float(found.gram[-1, -1])
    inputs, outputs = found.gram[-1, :-1] / tokens, found.cross[-1] / tokens
    spread = varying(covariance(found.gram), found.gram[:-1, :-1] / tokens)
    cross = found.cross[:-1].T / tokens - torch.outer(outputs, inputs)
    weight = linear.weight.cpu()
    level = (_DAMPING + weight.shape[1] / tokens) * spread.diagonal().mean().clamp_min(1e-30)
    hessian = spread + level * torch.eye(len(spread), dtype=spread.dtype)
    # Ridge towards the weights as they are, and zeros of a sparse layer stay.
    wanted = reconstructed(weight, hessian, cross + level * weight, weight != 0).to(weight.dtype)
    layer = coded(wanted, damped(spread, tokens), style, bits)
    layer.bias = (outputs - layer.dequantized().weight.double() @ inputs).float()
    return with_range(layer, input_range)


def _seen(input_range: InputRange, style: Style) -> Seen:
    """As the integer kernel sees it where its range is fixed; else as it is."""
    fixed = input_range.static_range(style.activations)
    if fixed is None:
        return lambda x: x
    return lambda x: quantizer.rounded_input(x, (fixed[0].to(x), fixed[1].to(x)))


def _moments(batches: Iterable[Given], seen: Seen) -> Moments:
    """Moments of what a layer gets, as it is `seen`, and of what it should give there."""
    total = dict[None, Moments]()
    for inputs, targets, _ in batches:
        x, y = with_constant(seen(inputs)).flatten(0, -2), targets.flatten(0, -2)
        found = Moments(*(t.double().cpu() for t in (x.T @ x, x.T @ y, y.square().sum())))
        total[None] = total[None].plus(found) if total else found
    return parallel.summed_each(total, Moments)[None]
