"""Quantize: Linear layers in integers of few bits, chosen so that the model's output changes least.

Foldings of the input channels into the tensors before and after, and ranges of the activations,
are judged by the error of each layer's output. How many bits each layer gets is allocated under a
budget. Weights are rounded with error feedback, and the mean error that is left goes into the bias.
"""

from dataclasses import dataclass

from torch import nn

from vitcompress.console import track
from vitcompress.details import Fact, Row, Table
from vitcompress.memory import copied
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.calibrate import LayerStatistics
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work, solving
from vitcompress.stages.probe import PROBED
from vitcompress.stages.quantize.bits import allocated_bits, chosen_bits
from vitcompress.stages.quantize.config import BitBudget, QuantizeConfig
from vitcompress.stages.quantize.describe import code_bytes, empty, linears_of, with_layers
from vitcompress.stages.quantize.layer import InputRange, layer_error
from vitcompress.stages.quantize.prepare import QuantizeSetup, prepare_quantize
from vitcompress.stages.quantize.residual import InputCosts, SecondTerm, facts, second_terms
from vitcompress.stages.quantize.rounding import rounding_of
from vitcompress.stages.quantize.scores import Score, score_of
from vitcompress.stages.quantize.selection import allowed_widths
from vitcompress.stages.quantize.sequence import round_in_sequence, sequence
from vitcompress.stages.quantize.simulate import check_simulate, simulated
from vitcompress.stages.stage import Stage, StageResult
from vitcompress.terms import Activations

_CHARTED = {
    "bits": "Bits of each layer's weights",
    "output_error": "Squared error of each layer's output, as a share of its variance",
    "input_span": "Span of each layer's calibration inputs, as a multiple of their 8-bit range: "
    "outliers beyond 1 are clipped",
    "importance": "What an error of each layer's output counts",
    **{
        f"error_{bits}": f"Squared error of each layer's output that weights of {bits} bits make, "
        "as a share of its variance"
        for bits in (8, 6, 5, 4, 3, 2)
    },
}  # columns of tables by layer


@dataclass(frozen=True)
class Rounded:
    """The quantized layers, in the order of the model; what the rounding of their inputs `costs`
    where that was measured; their second terms; how many were rounded in sequence."""

    layers: dict[str, QuantizedLinear]
    costs: dict[str, float]
    second_terms: dict[str, SecondTerm]
    in_sequence: int


def quantize(model: VitModel, config: QuantizeConfig, context: Context) -> StageResult:
    """The model with quantized layers, and what was chosen for each.

    Raises `InputError` for a pattern that matches no layer, a budget that cannot be met, and a
    model whose attention cannot be simulated where `simulate` asks for it.
    """
    check_simulate(model, config)
    known = prepare_quantize(model, config, context)
    if isinstance(config.bits, int):
        bits = {name: each[0] for name, each in known.allowed.items()}
        rows: list[Row] = [{"layer": name, "bits": b} for name, b in bits.items()]
    else:
        bits, rows = chosen_bits(model, config, context, known)
    rounded = _rounded(model, config, context, known, bits)
    reached, warnings = _against_limit(known, rounded.layers, config)
    quantized = with_layers(model, known.anatomy.module, rounded.layers, config)
    score = _deciding(config)
    pictures = score.pictures if score is not None else None
    table = Table.of("layers", _told(model, config, known, rounded, rows), _charted(config))
    return StageResult(
        quantized,
        {**reached, **_facts(config, known, rounded, bits)},
        (table,),
        () if pictures is None else (pictures(model, quantized, context),),
        warnings,
        simulated(model, config, bits, known.found, context),
    )


def _rounded(
    model: VitModel,
    config: QuantizeConfig,
    context: Context,
    known: QuantizeSetup,
    bits: dict[str, int],
) -> Rounded:
    """All layers in their `bits`, second terms where they pay."""
    later: dict[str, int] = {}  # rounded when all before them are
    if config.sequential and rounding_of(config.rounding).feedback:
        later = {name: bits[name] for name in sequence(model) if bits.get(name, 8) < 8}
    at_once = [name for name in known.floats if name not in later]
    layers: dict[str, QuantizedLinear] = {}
    costs = InputCosts(dict.fromkeys(at_once, 0.0), {})
    for name in track(at_once, "rounding weights", len(at_once)):
        layers[name], cost = known.cheapest(name, bits[name])
        if bits[name] < 8:
            costs.weights[name] = known.cost({name: known.float_twin(name, layers[name])})
        if config.activations != "float":
            costs.inputs[name] = max(cost - costs.weights[name], 0.0)
    finer, extras = second_terms(model, config, context, known, layers, costs)
    layers |= finer
    if later:
        layers |= round_in_sequence(known, later, layers, context)
    in_order = {name: layers[name] for name in known.floats}
    return Rounded(in_order, costs.inputs, extras, len(later))


def _deciding(config: QuantizeConfig) -> Score | None:
    """The score that decides on widths, where any does."""
    return score_of(config.score) if isinstance(config.bits, BitBudget) else None


def _charted(config: QuantizeConfig) -> dict[str, str]:
    """The columns worth a chart, and their captions."""
    column = score_of(config.score).column
    return {**_CHARTED, column: f"{column.capitalize()} of each layer"} if column else _CHARTED


def _facts(
    config: QuantizeConfig, known: QuantizeSetup, rounded: Rounded, bits: dict[str, int]
) -> dict[str, Fact]:
    layers = rounded.layers.values()
    return {
        "average_bits": _average(bits, known.floats),
        **({"score": config.score} if isinstance(config.bits, BitBudget) else {}),
        "activations": config.activations,
        "rounding": config.rounding,
        "rounded_in_sequence": rounded.in_sequence,
        "quantized_layers": len(layers),
        "reparametrised_layers": sum(
            input_range.change.strength > 0 for input_range in known.ranges.values()
        ),
        "two_term_layers": sum(layer.terms == 2 for layer in layers),
        "of_first_tokens_only": sum(layer.residual_tokens is not None for layer in layers),
        **facts(config, rounded.second_terms, known.task.word),
    }


def _told(
    model: VitModel,
    config: QuantizeConfig,
    known: QuantizeSetup,
    rounded: Rounded,
    rows: list[Row],
) -> list[Row]:
    """`rows`, of the layers in their order, with what became of each."""
    sparse = model.architecture.sparse
    told: list[Row] = []
    for (name, layer), row in zip(rounded.layers.items(), rows, strict=True):
        linear, input_range = known.floats[name], known.ranges[name]
        second = rounded.second_terms.get(name)
        told.append(
            {
                "layer": name,
                "bits": layer.bits,
                **row,
                "weight_bytes": code_bytes(linear, layer.bits, config, sparse.get(name)),
                "reparametrisation": input_range.change.strength,
                "clipped_share": 1 - input_range.share,
                "input_span": _span(input_range, known.found[name], config.activations),
                "terms": layer.terms,
                "residual_tokens": layer.residual_tokens,
                f"input_{known.task.word}": rounded.costs.get(name),
                "second_term_price": None if second is None else second.price,
                f"second_term_{known.task.word}": None if second is None else second.gain,
                "output_error": layer_error(layer, linear, input_range, known.found[name]),
            }
        )
    return told


def _span(chosen: InputRange, found: LayerStatistics, activations: Activations) -> float | None:
    """From the lowest to the highest input met in calibration, as a multiple of the range that was
    chosen: far above 1 where a few outliers are clipped. None where none is fixed, or it is empty.
    """
    width = chosen.high - chosen.low
    if activations != "static" or width == 0:
        return None
    low, high = chosen.change.apply(found.low).min(), chosen.change.apply(found.high).max()
    return float((high - low) / width)


def _against_limit(
    known: QuantizeSetup, layers: dict[str, QuantizedLinear], config: QuantizeConfig
) -> tuple[dict[str, Fact], tuple[str, ...]]:
    """What a limit of KL, or of the task's own distance, comes to with inputs rounded too, which
    widths are chosen without, and a warning where that is more."""
    limit = config.bits.max_kl if isinstance(config.bits, BitBudget) else None
    if limit is None:
        return {}, ()
    reached = known.cost(layers)
    key = f"stages.{config.name}.bits.max_kl"
    told = f"{key}: {reached:.3g} with inputs rounded too; {limit:g} held for weights alone"
    return {f"{known.task.word}_reached": reached}, (told,) if reached > limit else ()


def sensitivity(model: VitModel, config: QuantizeConfig, context: Context) -> Table:
    """What each layer counts, the error each width leaves, and the bits that it would get."""
    given = allowed_widths(model, config)[0] if isinstance(config.bits, int) else {}
    if given:  # measured at other widths too, as if it could have any
        widths = {*BitBudget(average=8).widths, *(b for each in given.values() for b in each)}
        budget = BitBudget.model_validate({"average": 8, "widths": sorted(widths)})
        score = "uniform" if model.anatomy.quantized() else config.score  # none decides
        config = config.model_copy(update={"bits": budget, "score": score})
    rows = chosen_bits(model, config, context, prepare_quantize(model, config, context))[1]
    told: list[Row] = [
        {**row, "bits": given.get(str(row["layer"]), (row["bits"],))[0]} for row in rows
    ]
    return Table.of("sensitivities", told, _charted(config))


def plan(model: VitModel, config: QuantizeConfig) -> StageResult:
    """A model with empty quantized layers, one term each, and their widths.

    A budget of average bits or bytes is met as it would be if all layers counted alike; what a
    limit of KL allows is not known without images, and the widest choices stand for it.
    """
    check_simulate(model, config)
    allowed = allowed_widths(model, config)[0]
    floats = linears_of(model.module, allowed)
    costs = {
        name: {b: 4.0**-b * floats[name].weight.numel() for b in each}
        for name, each in allowed.items()
    }
    bits = {name: each[-1] for name, each in allowed.items()}
    measured = isinstance(config.bits, BitBudget) and config.bits.max_kl is not None
    if isinstance(config.bits, BitBudget) and not measured:
        bits = allocated_bits(model, config, floats, costs, lambda _: 0.0)
    layers = {name: empty(floats[name], bits[name], config) for name in floats}
    facts = {
        "average_bits": _average(bits, floats),
        "activations": config.activations,
        "quantized_layers": len(layers),
        **({"widths": "the widest; a run chooses them by the KL it measures"} if measured else {}),
    }
    planned = with_layers(model, copied(model.module), layers, config)
    rows: list[Row] = [{"layer": name, "bits": bits[name]} for name in layers]
    return StageResult(planned, facts, (Table.of("layers", rows),))


def _average(bits: dict[str, int], floats: dict[str, nn.Linear]) -> float:
    """Bits of a weight, on average."""
    weights = {name: floats[name].weight.numel() for name in bits}
    return sum(weights[name] * b for name, b in bits.items()) / sum(weights.values())


def work(model: VitModel, config: QuantizeConfig, images: int) -> Work:
    """Measured on deit_tiny and the embedded model: calibration, with importances below 8 bits and
    scores for a budget; each layer tried with about four ranges, on half of the model on average;
    the closed forms once, and for a budget once more for all its widths."""
    allowed = allowed_widths(model, config)[0]
    budget, few = isinstance(config.bits, BitBudget), any(min(b) < 8 for b in allowed.values())
    an_image = 10 if budget else 6 if few else 2
    passes = an_image * images + 2 * len(allowed) * min(images, PROBED)
    return Work(passes, solving(linears_of(model.module, allowed).values(), 2 if budget else 1))


STAGE = Stage(quantize, plan, sensitivity, work)
