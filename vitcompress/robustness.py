"""What an average hides: figures of each class, and of images that are corrupted."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vitcompress.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from vitcompress.data.preprocess import Preprocess
from vitcompress.details import Fact, Row, Table
from vitcompress.errors import InputError
from vitcompress.evaluation import Judged, Runner
from vitcompress.tasks import Task

_SHOWN = 10  # classes

Judge = Callable[[Runner, str], Judged]
"""What a runner gives for all images; the text tells what is being done."""


@dataclass(frozen=True)
class Rivals:
    """A model, and the dense one that it comes from, where that is known."""

    model: Runner
    dense: Runner | None = None


def check_corruptible(spec: Preprocess) -> None:
    """Raise `InputError` for images that no camera makes."""
    if spec.channels not in (1, 3):
        raise InputError(
            f"--robustness: the model takes {spec.channels} channels, and corruptions are known for"
            " 1 and 3; leave it out"
        )


def under_corruptions(rivals: Rivals, task: Task, spec: Preprocess, judge: Judge) -> Table:
    """The figures of `task` on images that are corrupted, with those of the dense model beside
    them."""
    rows = list[Row]()
    for name, corruption in CORRUPTIONS.items():
        for severity in SEVERITIES:
            title = f"{name} {severity}"
            change = partial(_under, spec=spec, corruption=corruption, severity=severity)
            dense = None if rivals.dense is None else judge(change(rivals.dense), f"{title}, dense")
            found = judge(change(rivals.model), title).figures(task, dense)
            row: Row = {"corruption": name, "severity": severity}
            row |= found.model_dump(include=set(task.figures), exclude_none=True)
            if dense is not None:
                own = dense.figures(task, None).model_dump(include=set(task.against_labels))
                row |= {f"dense_{key}": value for key, value in own.items() if value is not None}
            rows.append(row)
    return Table.of("robustness", rows)


def _under(run: Runner, spec: Preprocess, corruption: Corruption, severity: int) -> Runner:
    """`run` on corrupted images, the same ones whatever runs."""
    generator = torch.Generator().manual_seed(severity)

    def changed(pixels: np.ndarray) -> np.ndarray:
        def change(clean: torch.Tensor) -> torch.Tensor:
            return corruption(clean, severity, generator)

        return run(corrupted(torch.from_numpy(pixels), spec.mean, spec.std, change).numpy())

    return changed


def by_class(found: Judged, dense: Judged | None, names: Sequence[str] | None) -> Table:
    """Of a classification, the classes that lost most against the dense model; without one, those
    that are told worst: top-1, in percent."""
    assert found.labels is not None
    places = defaultdict[int, list[int]](list)
    for place, label in enumerate(found.labels):
        assert isinstance(label, int)
        places[label].append(place)
    rows = list[dict[str, Fact]]()
    for label, own in places.items():
        name = str(label) if names is None else names[label]
        row: dict[str, Fact] = {"class": name, "images": len(own), "top1": _top1(found, own)}
        if dense is not None:
            row["dense_top1"] = _top1(dense, own)
        rows.append(row)
    rows.sort(key=_loss)
    return Table.of("classes", rows[:_SHOWN])


def _top1(judged: Judged, places: list[int]) -> float:
    assert judged.labels is not None
    right = [judged.outputs[i].argmax() == judged.labels[i] for i in places]
    return 100 * sum(map(bool, right)) / len(right)


def _loss(row: Row) -> tuple[float, float]:
    after, before = row["top1"], row.get("dense_top1")
    assert isinstance(after, float)
    return (after - before if isinstance(before, float) else 0.0), after
