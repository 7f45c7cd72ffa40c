"""One pass over images that collects anything at any places: of layers' inputs, outputs, gradients.

Memory does not grow with the number of images, but for what the collectors keep.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.stages.context import BATCH
from vitcompress.tasks import Task

Collect = Callable[[Tensor, Tensor, Tensor | None], None]
"""Takes what a layer got, what it gave, and the gradient asked for, of one batch."""

Sample = tuple[Tensor, Tensor | None]
"""A batch of pixels [n, C, H, W], and its labels [n] where these are asked for."""

Loss = Callable[[Tensor, Tensor | None], Tensor]
"""Of an output of the model and the labels: the scalar whose gradients are collected."""


@dataclass(frozen=True)
class Watch:
    """The layer `name`, and what is done with what it sees.

    `collect` is called once for each time that the layer is called. `gradient`: with respect to
    what; None where none is asked for, and `collect` gets None as well where no gradient comes,
    as at the latent query of attention pooling, which no image reaches.
    """

    name: str
    collect: Collect
    gradient: Literal["output", "input"] | None = None


def observe(
    module: nn.Module,
    watches: Iterable[Watch],
    batches: Iterable[Sample],
    loss: Loss | None = None,
    after_batch: Callable[[], None] | None = None,
) -> int:
    """Run `module` over `batches` and let the `watches` collect; returns the number of images.

    With `loss`, gradients are taken: one backward pass a batch. Those that are asked for are
    collected during it, from the end of the model to its start, all else as it is computed.
    `after_batch` is called when all of a batch is collected. The model is left as it was.
    """
    images = 0
    with ExitStack() as hooks:
        pass_ = _Pass()
        for watch in watches:
            assert watch.gradient is None or loss is not None
            hooks.enter_context(pass_.hooked(module.get_submodule(watch.name), watch))
        for pixels, labels in batches:
            with torch.set_grad_enabled(loss is not None):
                output = module(pixels.detach().requires_grad_(loss is not None))
                if loss is not None:
                    loss(output, labels).backward()
            del output  # and with it the graph, before the next batch makes its own
            pass_.finish()
            if after_batch is not None:
                after_batch()
            images += len(pixels)
    return images


class _Pass:
    """What was seen in a batch and still waits for its gradient.

    Nothing that is held here, or by a hook, is part of the graph: what a hook of a tensor holds
    must not hold that tensor, which would keep the whole pass in memory.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[Collect, Tensor, Tensor]] = {}
        self.calls = 0

    @contextmanager
    def hooked(self, layer: nn.Module, watch: Watch) -> Iterator[None]:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._see(watch, inputs[0], output)

        handle = layer.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, watch: Watch, x: Tensor, y: Tensor) -> None:
        source = {"input": x, "output": y, None: None}[watch.gradient]
        if source is None or not source.requires_grad:
            with torch.no_grad():
                watch.collect(x.detach(), y.detach(), None)
            return
        self.calls += 1
        call = self.calls
        self.waiting[call] = (watch.collect, x.detach(), y.detach())

        def arrived(gradient: Tensor) -> None:
            collect, x, y = self.waiting.pop(call)
            collect(x, y, gradient)

        source.register_hook(arrived)

    def finish(self) -> None:
        """Collect what no gradient came for."""
        for collect, x, y in self.waiting.values():
            collect(x, y, None)
        self.waiting.clear()


def unlabelled(batches: Iterable[Tensor]) -> Iterator[Sample]:
    """Batches of pixels as samples without labels."""
    return ((pixels, None) for pixels in batches)


def readout_loss(task: Task, generator: torch.Generator) -> Loss:
    """A loss whose squared gradients are, on average, the second derivative of the distance of
    `task`: for classes, the Fisher information of the model's own softmax.

    With labels, which are classes: the empirical one, of the cross-entropy, summed over images. For
    one pass over batches, which may be dealt: what is drawn for others is drawn as well.
    """
    batches = count()

    def loss(output: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            for _ in range(parallel.passed_over(next(batches))):
                task.readout(output.new_zeros(BATCH, *output.shape[1:]), generator)
            return (output * task.readout(output, generator)).sum()
        return F.cross_entropy(output, labels.to(output.device), reduction="sum")

    return loss
