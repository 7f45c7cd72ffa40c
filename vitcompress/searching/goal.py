"""When a candidate is good enough: the gates of a recipe, as losses against the dense model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vitcompress import gates
from vitcompress.errors import InputError, RunError
from vitcompress.recipe_gates import Gates
from vitcompress.tasks import Measure, Task

_LOST: dict[str, Callable[[float], float]] = {
    "agreement": lambda percent: 100 - percent,
    "neighbours": lambda percent: 100 - percent,
    "cosine": lambda cosine: 1 - cosine,
    "cosine_p5": lambda cosine: 1 - cosine,
}
"""Of figures that are at their best at 100 or 1: what is lost."""


@dataclass(frozen=True)
class Limit:
    """`name`: of the gate. `loss`: of outputs and those of the dense model, 0 where they are the
    same, and roughly the sum of what several changes cost alone. `most`: the largest allowed."""

    name: str
    loss: Measure
    most: float


def limits_of(wanted: Gates, task: Task) -> list[Limit]:
    """Those of the gates that say how far a model may be from the dense one.

    A drop of a figure that needs labels is judged by its expectation (`Task.expected_drops`).
    Raises `InputError` where there is none, and for gates that no unlabelled image can decide on.
    """
    found = list[Limit]()
    for kind, limits in gates.applying(wanted, task):
        for figure, limit in limits:
            if limit is None or kind == "max_ratio" or figure in ("speedup", "bytes"):
                continue
            name = f"{kind}.{figure}"
            measures: Mapping[str, Measure] = task.against_dense
            if kind == "max_drop":
                measures = task.expected_drops
            if figure not in measures:
                raise InputError(
                    f"gates.{name}: cannot be told of images without labels; limit one of "
                    f"{', '.join(task.against_dense)}"
                )
            lost = _LOST.get(figure) if kind == "min" else None
            loss = measures[figure] if lost is None else _after(measures[figure], lost)
            found.append(Limit(name, loss, limit if lost is None else lost(limit)))
    if not found:
        raise InputError(
            "gates: nothing limits what may be lost; give --max-drop, --min-agreement, --max-kl or "
            "--min-cosine, or a gate on such a figure"
        )
    return found


def _after(measure: Measure, lost: Callable[[float], float]) -> Measure:
    def loss(outputs: Tensor, dense: Tensor) -> float | None:
        found = measure(outputs, dense)
        return None if found is None else lost(found)

    return loss


def losses_of(limits: list[Limit], outputs: Tensor, dense: Tensor) -> dict[str, float]:
    """By limit, what `outputs` lose against those of the dense model, both [n, ...].

    Raises `RunError` for outputs or a loss that mean nothing, which would pass for none lost.
    """
    if not outputs.isfinite().all():
        raise RunError("its outputs are NaN or infinite")
    found = dict[str, float]()
    for limit in limits:
        loss = limit.loss(outputs, dense)
        if loss is None or not math.isfinite(loss):
            raise RunError(
                f"gates.{limit.name}: means nothing for the images that candidates are judged on; "
                "give more or others, or limit another figure"
            )
        found[limit.name] = loss
    return found


def excess(losses: Mapping[str, float], limits: list[Limit]) -> float:
    """The largest of the losses, each as a share of its limit: at most 1 where all limits hold."""
    return max(_share(losses[limit.name], limit.most) for limit in limits)


def _share(loss: float, most: float) -> float:
    if most > 0:
        return loss / most
    return 0.0 if loss <= 0 else float("inf")
