"""What is written under the pictures of a few images."""

from collections.abc import Callable

from torch import Tensor

from vitcompress.data.images import Batch
from vitcompress.tasks import Task


def captions(
    batch: Batch, task: Task, before: Tensor, after: Tensor, names: Callable[[int], str]
) -> list[str]:
    """The name of each image with what two models answer, by their outputs `before` and `after`
    [n, ...]: `a.jpg: tench → eel`, or `a.jpg: tench` of both; of a task without answers the name
    alone. `names`: what classes are called."""
    if task.answers is None:
        return list(batch.names)
    answered = (task.answers(outputs).cpu().tolist() for outputs in (before, after))
    answers = zip(*answered, strict=True)
    told = (" → ".join(map(names, dict.fromkeys(pair))) for pair in answers)
    return [f"{image}: {answer}" for image, answer in zip(batch.names, told, strict=True)]
