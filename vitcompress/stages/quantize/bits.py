"""How many bits each layer gets: what every width would cost, and the cheapest choice."""

from collections.abc import Callable, Mapping

from torch import nn

from vitcompress.console import track
from vitcompress.details import Row
from vitcompress.errors import InputError
from vitcompress.methods import knapsack
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import BitBudget, QuantizeConfig
from vitcompress.stages.quantize.describe import code_bytes, planned_bytes
from vitcompress.stages.quantize.layer import weight_error
from vitcompress.stages.quantize.prepare import QuantizeSetup
from vitcompress.stages.quantize.scores import Scored, score_of

_STEPS = 7  # halvings of the interval of average widths that a limit of KL is sought in

BitCosts = dict[str, dict[int, float]]
"""What each width of each layer costs."""


def weight_errors(known: QuantizeSetup) -> BitCosts:
    """The share of its variance that a layer's output would have as error, by width."""
    return {
        name: {
            b: weight_error(
                known.floats[name], known.ranges[name], known.found[name], known.style, b
            )
            for b in each
        }
        for name, each in track(known.allowed.items(), "measuring widths", len(known.floats))
    }


def scores(
    known: QuantizeSetup, config: QuantizeConfig, errors: BitCosts, context: Context
) -> dict[str, float]:
    """The share of each layer in the score of all.

    Raises `InputError` where no layer counts.
    """

    def probed(name: str) -> float:  # rounded to about 4 bits
        width = min(errors[name], key=lambda b: abs(b - 4))
        twin = known.float_twin(name, known.rounded(name, width))
        return known.cost({name: twin}) / max(errors[name][width], 1e-12)

    names = list(known.floats)
    scored = Scored(known.anatomy, names, known.task, context, probed)
    found = score_of(config.score).measure(scored)
    total = sum(found)
    if total == 0:
        raise InputError(
            f"stages.{config.name}.score: by {config.score} no layer counts for this model, as "
            "where its output never changes; take lrp or uniform"
        )
    return {name: value / total for name, value in zip(names, found, strict=True)}


def error_factors(found: Mapping[str, float], score: str) -> dict[str, float]:
    """What layers of these `scores` count, to a sum of 1: the factors of their errors."""
    power = score_of(score).power
    total = sum(value**power for value in found.values())
    return {name: value**power / total for name, value in found.items()}


def weighted(errors: BitCosts, factors: Mapping[str, float]) -> BitCosts:
    return {n: {b: factors[n] * error for b, error in each.items()} for n, each in errors.items()}


def chosen_bits(
    model: VitModel, config: QuantizeConfig, context: Context, known: QuantizeSetup
) -> tuple[dict[str, int], list[Row]]:
    """The width of each layer, and the rows of a table that tells why."""
    errors, column = weight_errors(known), score_of(config.score).column
    found = scores(known, config, errors, context)
    factors = error_factors(found, config.score)
    bits = allocated_bits(model, config, known.floats, weighted(errors, factors), _kl(known))
    widths = sorted({b for each in errors.values() for b in each}, reverse=True)
    rows: list[Row] = [
        {
            "layer": name,
            "weights": linear.weight.numel(),
            **({column: found[name]} if column else {}),
            "importance": factors[name],
            **{f"error_{b}": errors[name].get(b) for b in widths},
            "bits": bits[name],
        }
        for name, linear in known.floats.items()
    ]
    return bits, rows


def allocated_bits(
    model: VitModel,
    config: QuantizeConfig,
    floats: Mapping[str, nn.Linear],
    costs: BitCosts,
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
        rest = planned_bytes(model, config, widest) - sum(sizes[n][b] for n, b in widest.items())
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
    costs: BitCosts, sizes: Mapping[str, Mapping[int, int]], budget: int, rest: int, key: str
) -> dict[str, int]:
    """The exact choice whose `sizes` and what else there is, `rest`, fit `budget`."""
    items = [[knapsack.Option(sizes[n][b], cost) for b, cost in costs[n].items()] for n in costs]
    chosen = knapsack.solve_knapsack(items, budget - rest)
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


def _kl(known: QuantizeSetup) -> Callable[[dict[str, int]], float]:
    """A function of an allocation: the measured KL of the model with weights rounded so."""
    twins: dict[tuple[str, int], nn.Linear] = {}

    def kl(bits: dict[str, int]) -> float:
        for name, b in bits.items():
            if (name, b) not in twins:
                twins[name, b] = known.float_twin(name, known.rounded(name, b))
        return known.cost({name: twins[name, b] for name, b in bits.items()})

    return kl
