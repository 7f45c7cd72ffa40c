"""A dense and a changed model side by side, site after site: what each layer gets and should give.

Two streams of tokens go through the two models, in a file. At each site, whoever iterates may
change the layers of the changed model, one after the other; then its stream goes on, through the
site as it is by then.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from vitcompress.model.anatomy import Anatomy, Site, SiteKind, State
from vitcompress.model.modules.block import Block
from vitcompress.model.sequence import layer_input
from vitcompress.stages.states import StateFile

_HALVES: dict[SiteKind, Callable[[Block, Tensor], Tensor]] = {
    "attention": lambda block, x: block.mixed(x),
    "mlp": lambda block, x: block.fed(x),
}


class Given(NamedTuple):
    """Of one batch: what a layer gets in the changed model [n, tokens, in], what it should give
    there [n, tokens, out], and whether the batch is held back."""

    inputs: Tensor
    targets: Tensor
    held: bool


class Added(NamedTuple):
    """Of one batch: what a branch of the changed model adds to its stream, what would bring that
    stream to the dense one, both [n, tokens, channels], and whether the batch is held back."""

    given: Tensor
    wanted: Tensor
    held: bool


class _Streams:
    """Streams of tokens, by name, in batches; `held`: whether each batch is held back."""

    def __init__(self) -> None:
        self.states, self.held = StateFile(), list[bool]()

    def add(self, held: bool, **streams: Tensor) -> None:
        for name, x in streams.items():
            self.states.put((name, len(self.held)), State(x))
        self.held.append(held)

    def read(self, name: str, batch: int) -> Tensor:
        return self.states.get((name, batch)).x

    def advance(self, name: str, into: str, step: Callable[[Tensor], Tensor]) -> None:
        """Pass the stream `name` through `step`, into the stream of another name or the same."""
        for batch in range(len(self.held)):
            self.states.put((into, batch), State(step(self.read(name, batch))))


@dataclass(frozen=True)
class SitePair:
    """A site of the dense model, and the same of the changed one (None: pruned away).

    `streams` hold the `dense` stream before the site, that `after` it, and the `changed` one before
    it; `into`: see `side_by_side`.
    """

    site: Site
    twin: Site | None
    streams: _Streams
    dense: str
    after: str
    into: Tensor | None

    def fitting(self, part: Literal["first", "last"], back: bool = False) -> Iterator[Given]:
        """What the `first` or the `last` layer of the changed site gets, batch by batch.

        It should give what it gives in the dense model; with `back`, which is for the last layer
        of a branch that nothing scales, what brings the stream back to the dense one, errors of
        all that came before included.
        """
        assert self.twin is not None
        layer, source = getattr(self.twin, part), getattr(self.site, part)
        for batch, held in enumerate(self.streams.held):
            x = self.streams.read("changed", batch)
            inputs = layer_input(layer, partial(self.twin.half, x))
            if back:
                after = turned(self.streams.read(self.after, batch), self.into)
                targets = after - x[:, : after.shape[1]]
            else:
                dense = self.streams.read(self.dense, batch)
                targets = source(layer_input(source, partial(self.site.half, dense)))
            yield Given(inputs, targets, held)

    def adding(self) -> Iterator[Added]:
        """What the changed site adds to the stream, and should add, batch by batch."""
        assert self.twin is not None
        for batch, held in enumerate(self.streams.held):
            x = self.streams.read("changed", batch)
            after = self.twin.half(x)
            x = x[:, : after.shape[1]]
            wanted = turned(self.streams.read(self.after, batch), self.into)
            yield Added(after - x, wanted[:, : after.shape[1]] - x, held)


def side_by_side(
    dense: Anatomy,
    changed: Anatomy,
    batches: Iterable[tuple[Tensor, bool]],
    into: Tensor | None = None,
) -> Iterator[SitePair]:
    """All sites of `dense`, in the order of computation; `changed` may be narrower, or lack some.

    `batches`: pixels, and whether they are held back. `into` [C', C] is how the dense stream
    becomes that of `changed`, where they differ in width. Steps that are no blocks are passed, each
    model's stream by its own. Tokens must not merge.
    """
    streams = _Streams()
    for pixels, held in batches:
        x = dense.start(pixels).x
        streams.add(held, dense=x, changed=turned(x, into))
    before, after = "dense", "dense after"
    sites = {(site.block, site.kind): site for site in dense.sites}
    for number, steps in enumerate(zip(dense.steps, changed.steps, strict=True)):
        block, narrow = (step.module for step in steps)
        if not isinstance(block, Block) or not isinstance(narrow, Block):
            streams.advance(before, before, partial(_whole, dense, number))
            streams.advance("changed", "changed", partial(_whole, changed, number))
            continue
        for kind, half in _HALVES.items():
            streams.advance(before, after, partial(half, block))
            site = sites.get((block, kind))
            if site is not None:
                twin = replace(site, block=narrow)
                there = None if twin.operator is None else twin
                yield SitePair(site, there, streams, before, after, into)
            streams.advance("changed", "changed", partial(half, narrow))
            before, after = after, before


def turned(x: Tensor, into: Tensor | None) -> Tensor:
    """The stream `x` [..., C] as one of C' channels."""
    return x if into is None else x @ into.to(x).T


def _whole(anatomy: Anatomy, number: int, x: Tensor) -> Tensor:
    return anatomy.advance(number, State(x)).x
