"""How many bits each layer gets: what every width would cost, and the cheapest choice."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from vitcompress.console import track
from vitcompress.details import Row
from vitcompress.errors import InputError
from vitcompress.methods import knapsack, quantizer
from vitcompress.model.architecture import QuantizedLayer, VitModel, stored_tensors
from vitcompress.model.compact import packed
from vitcompress.model.layers import QuantizedLinear
from vitcompress.model.structure import quantized_linears
from vitcompress.stages.calibrate import LayerStatistics, Weights, statistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import (
    BY_GRADIENT,
    BitBudget,
    QuantizeConfig,
    Score,
    Style,
)
from vitcompress.stages.quantize.importance import importance
from vitcompress.stages.quantize.layer import (
    Choice,
    Cost,
    choose,
    probe,
    rounded,
    weight_error,
)
from vitcompress.stages.quantize.selection import choices

_STEPS = 7  # halvings of the interval of average widths that a limit of KL is sought in

Costs = dict[str, dict[int, float]]
"""What each width of each layer costs."""


@dataclass(frozen=True)
class Prepared:
    """A folded copy of a model, what is known of the layers to quantize, and what they may be.

    `floats`: these layers, as they lie in `module`. `allowed`: their widths, ascending. `cost`:
    the measured KL of replacing some.
    """

    module: nn.Module
    floats: dict[str, nn.Linear]
    found: dict[str, LayerStatistics]
    choices: dict[str, Choice]
    allowed: dict[str, tuple[int, ...]]
    cost: Cost

    def rounded(self, name: str, style: Style, bits: int) -> QuantizedLinear:
        """One layer with weights of `bits` bits."""
        return rounded(self.floats[name], self.choices[name], self.found[name], style, bits)

    def float_twin(self, name: str, quantized: QuantizedLinear) -> nn.Linear:
        """The weights of `quantized` for float inputs, the mean error in the bias."""
        layer, found, fold = self.floats[name], self.found[name], self.choices[name].fold
        twin = quantized.dequantized()
        mean = fold.apply((found.total / found.weight).float())
        twin.bias.copy_((layer.weight - twin.weight) @ mean)
        if layer.bias is not None:
            twin.bias.add_(layer.bias)
        return twin


def prepare(model: VitModel, config: QuantizeConfig, context: Context) -> Prepared:
    """Calibrate, fold, and choose the ranges of the inputs.

    Raises `InputError` for a pattern that matches no layer.
    """
    allowed = choices(model, config)[0]
    weights = _weights(model.module, allowed)
    found = statistics(model.module, model.fingerprint(), list(allowed), context, weights)
    module = copy.deepcopy(model.module)
    # Foldings first: that of one layer may change the weights of another.
    chosen = {
        name: choose(module, name, found[name], config.style, _typical(config, each), config.fold)
        for name, each in track(allowed.items(), "choosing ranges", len(allowed))
    }
    floats = {name: cast(nn.Linear, module.get_submodule(name)) for name in allowed}
    return Prepared(module, floats, found, chosen, allowed, probe(module, context))


def _weights(module: nn.Module, allowed: Mapping[str, tuple[int, ...]]) -> Weights:
    """Inputs count by their importance too where weights of few bits leave larger errors, and where
    the model has gradients: in late blocks the class token bears most of the output."""
    few = any(bits < 8 for each in allowed.values() for bits in each)
    quantized = quantized_linears(module)
    return "both" if few and not quantized else "even"


def _typical(config: QuantizeConfig, allowed: tuple[int, ...]) -> int:
    """The width that a layer's fold is judged at, before its own is known."""
    average = config.bits.average if isinstance(config.bits, BitBudget) else config.bits
    return min(allowed, key=lambda b: abs(b - (average or 6)))


def weight_errors(known: Prepared, config: QuantizeConfig) -> Costs:
    """The share of its variance that a layer's output would have as error, by width."""
    return {
        name: {
            b: weight_error(
                known.floats[name], known.choices[name], known.found[name], config.style, b
            )
            for b in each
        }
        for name, each in track(known.allowed.items(), "measuring widths", len(known.floats))
    }


def scores(
    known: Prepared, config: QuantizeConfig, score: Score, errors: Costs, context: Context
) -> dict[str, float]:
    """The share of each layer in the `score` of all.

    `kl` is measured: the KL of the model with this one layer rounded to about 4 bits, for each
    share of error in the layer's output.
    """
    if score == "kl":
        found = {}
        for name in track(known.floats, "measuring layers", len(known.floats)):
            width = min(errors[name], key=lambda b: abs(b - 4))
            twin = known.float_twin(name, known.rounded(name, config.style, width))
            found[name] = known.cost({name: twin}) / max(errors[name][width], 1e-12)
    else:
        found = importance(known.module, list(known.floats), score, context)
    total = sum(found.values())
    if total == 0:
        raise InputError(
            f"stages.{config.name}.score: by {score} no layer counts for this model, as where it "
            "has one output; take lrp or uniform"
        )
    return {name: value / total for name, value in found.items()}


def counts(found: Mapping[str, float], score: Score) -> dict[str, float]:
    """What layers of these `scores` count, to a sum of 1: the factors of their errors.

    For `lrp` and `fisher` it is the square root: as estimates of what errors of a layer cost they
    are right in direction and exaggerate, so half way to counting alike, on a scale of logarithms,
    comes nearest to the measured KL of layers rounded one at a time.
    """
    power = 0.5 if score in BY_GRADIENT else 1.0
    total = sum(value**power for value in found.values())
    return {name: value**power / total for name, value in found.items()}


def weighted(errors: Costs, factors: Mapping[str, float]) -> Costs:
    return {n: {b: factors[n] * error for b, error in each.items()} for n, each in errors.items()}


def chosen_bits(
    model: VitModel, config: QuantizeConfig, context: Context, known: Prepared
) -> tuple[dict[str, int], list[Row]]:
    """The width of each layer, and the rows of a table that tells why."""
    errors = weight_errors(known, config)
    found = scores(known, config, config.score, errors, context)
    factors = counts(found, config.score)
    bits = allocated(model, config, known.floats, weighted(errors, factors), _kl(known, config))
    shown = {"lrp": "relevance"}.get(config.score, config.score)
    widths = sorted({b for each in errors.values() for b in each}, reverse=True)
    rows: list[Row] = [
        {
            "layer": name,
            "weights": linear.weight.numel(),
            **({shown: found[name]} if config.score in BY_GRADIENT else {}),
            "importance": factors[name],
            **{f"error_{b}": errors[name].get(b) for b in widths},
            "bits": bits[name],
        }
        for name, linear in known.floats.items()
    ]
    return bits, rows


def allocated(
    model: VitModel,
    config: QuantizeConfig,
    floats: Mapping[str, nn.Linear],
    costs: Costs,
    kl: Callable[[dict[str, int]], float],
) -> dict[str, int]:
    """The width of each layer under the budget of `config`, of least total cost: exact.

    `kl`: the measured divergence of an allocation, for budgets of `max_kl`. Raises `InputError`
    where nothing fits.
    """
    budget, key = config.bits, f"stages.{config.name}.bits"
    assert isinstance(budget, BitBudget)
    if budget.bytes is not None:
        sparse = model.architecture.sparse
        sizes = {
            n: {b: code_bytes(floats[n], b, config, sparse.get(n)) for b in each}
            for n, each in costs.items()
        }
        widest = {name: max(each) for name, each in costs.items()}
        rest = _stored_bytes(model, config, widest) - sum(sizes[n][b] for n, b in widest.items())
        return _cheapest(costs, sizes, budget.bytes, rest, f"{key}.bytes")
    weights = {name: floats[name].weight.numel() for name in costs}
    total = sum(weights.values())
    sizes = {n: {b: weights[n] * b for b in each} for n, each in costs.items()}

    def allot(average: float) -> dict[str, int]:
        return _cheapest(costs, sizes, int(average * total + 1e-6), 0, f"{key}.average")

    if budget.average is not None:
        return allot(budget.average)
    assert budget.max_kl is not None
    low, high = (sum(end(each.values()) for each in sizes.values()) / total for end in (min, max))
    return _least_average(allot, kl, budget.max_kl, low, high, f"{key}.max_kl")


def _cheapest(
    costs: Costs, sizes: Mapping[str, Mapping[int, int]], budget: int, rest: int, key: str
) -> dict[str, int]:
    """The exact choice whose `sizes` and what else there is, `rest`, fit `budget`."""
    items = [[knapsack.Option(sizes[n][b], cost) for b, cost in costs[n].items()] for n in costs]
    chosen = knapsack.choose(items, budget - rest)
    if chosen is None:
        needed = rest + sum(min(each.values()) for each in sizes.values())
        unit = "bytes" if key.endswith("bytes") else "bits of weights"
        raise InputError(
            f"{key}: at the narrowest widths the model has {needed} {unit}, the budget is "
            f"{budget}; raise it, add narrower widths, or relax `floor` and `pin`"
        )
    return {n: list(costs[n])[i] for n, i in zip(costs, chosen, strict=True)}


def _least_average(
    allot: Callable[[float], dict[str, int]],
    kl: Callable[[dict[str, int]], float],
    limit: float,
    low: float,
    high: float,
    key: str,
) -> dict[str, int]:
    """The allocation of the least average between `low` and `high` whose KL is within `limit`."""
    if kl(best := allot(low)) <= limit:
        return best
    reached = kl(best := allot(high))
    if reached > limit:
        raise InputError(f"{key}: the widest weights are {reached:.3g} nats away; raise the limit")
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = allot(middle)
        if kl(tried) <= limit:
            best, high = tried, middle
        else:
            low = middle
    return best


def _kl(known: Prepared, config: QuantizeConfig) -> Callable[[dict[str, int]], float]:
    """A function of an allocation: the measured KL of the model with weights rounded so."""
    twins: dict[tuple[str, int], nn.Linear] = {}

    def kl(bits: dict[str, int]) -> float:
        for name, b in bits.items():
            if (name, b) not in twins:
                twins[name, b] = known.float_twin(name, known.rounded(name, config.style, b))
        return known.cost({name: twins[name, b] for name, b in bits.items()})

    return kl


def code_bytes(
    linear: nn.Linear,
    bits: int,
    config: QuantizeConfig,
    pattern: str | None = None,
) -> int:
    """Bytes of the packed codes of a layer, of its packed multipliers and of its scales.

    `pattern`: of a sparse layer, whose codes are stored without their zeros.
    """
    layer = empty(linear, bits, config)
    stored = packed(nn.ModuleDict({"layer": layer}), {"layer": pattern} if pattern else {})
    kinds = ("codes", "mask", "multipliers")
    scales = linear.out_features * (2 if bits < 8 else 4)
    return scales + sum(t.nbytes for name, t in stored.items() if name.endswith(kinds))


def empty(linear: nn.Linear, bits: int, config: QuantizeConfig) -> QuantizedLinear:
    """A quantized layer in the place of `linear`; of its tensors only the zeros are right."""
    group = config.style.grouped(bits)
    layer = QuantizedLinear(
        linear.in_features, linear.out_features, bits, config.activations, group=group
    )
    layer.codes = quantizer.pack_weight((linear.weight != 0).float(), bits)
    return layer


def _stored_bytes(model: VitModel, config: QuantizeConfig, bits: Mapping[str, int]) -> int:
    """Bytes of all tensors of the model with layers of these widths."""
    found = linears_of(model.module, bits)
    layers = {name: empty(found[name], b, config) for name, b in bits.items()}
    described = describe(model, copy.deepcopy(model.module), layers, config)
    return sum(tensor.nbytes for tensor in stored_tensors(described).values())


def linears_of(module: nn.Module, names: Mapping[str, Any]) -> dict[str, nn.Linear]:
    return {name: cast(nn.Linear, module.get_submodule(name)) for name in names}


def describe(
    model: VitModel,
    module: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    config: QuantizeConfig,
) -> VitModel:
    """`module` with `layers` in their places (in place), and the description that belongs to it.

    Of the matrices that `rest` is for, those that float16 or codes do not hold stay float32. Raises
    `InputError` for a layer that is pinned to float16 and does not fit.
    """
    for name, layer in layers.items():
        module.set_submodule(name, layer)
    described = {
        name: QuantizedLayer(
            bits=q.bits,
            activations=q.activations,
            terms=q.terms,
            fine_tokens=q.fine_tokens,
            group=q.group,
        )
        for name, q in layers.items()
    }
    floats = choices(model, config)[1]
    left = {name for name, _ in module.named_parameters()}
    # What another quantize stage decided stays.
    half = [name for name in model.architecture.half if name in left]
    coded = [name for name in model.architecture.coded if name in left]
    decided = {*half, *coded}
    pinned = {f"{name}.weight": kind for name, kind in floats.items()}
    for name in (n for n, kind in pinned.items() if kind == "float16" and n not in decided):
        if not quantizer.keeps_in_half(module.get_parameter(name)):
            raise InputError(
                f"stages.{config.name}.pin: {name} is beyond what float16 holds (65504, or nearly "
                "0); pin its layer to float32"
            )
        half.append(name)
    decided |= set(pinned)
    if config.rest != "float32":
        sparse = {f"{name}.weight" for name in model.architecture.sparse}
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and name not in decided:
                weight = name.endswith(".weight") and name not in sparse
                (coded if weight and config.rest == "int8" else half).append(name)
    half = [name for name in half if quantizer.keeps_in_half(module.get_parameter(name))]
    coded = [name for name in coded if quantizer.keeps_in_bytes(module.get_parameter(name))]
    for name in half:
        module.get_parameter(name).copy_(module.get_parameter(name).half())
    quantized = {**model.architecture.quantized, **described}
    for name, q in quantized.items():
        if q.bits < 8 and quantizer.fits_half(module.get_buffer(f"{name}.scale")):
            half.append(f"{name}.scale")
    for name in coded:
        codes, scale = quantizer.byte_codes(module.get_parameter(name))
        module.get_parameter(name).copy_(codes * scale)
    update = {"quantized": quantized, "half": tuple(half), "coded": tuple(coded)}
    return replace(model, module=module, architecture=model.architecture.model_copy(update=update))
