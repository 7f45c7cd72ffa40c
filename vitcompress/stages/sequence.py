"""A dense and a changed model side by side, site after site: what each layer gets and should give.

Two streams of tokens go through the two models, in a file. At each site, whoever iterates may
change the layers of the changed model, one after the other; then its stream goes on, through the
site as it is by then.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, cast

from torch import Tensor

from vitcompress.methods.tokens import means
from vitcompress.model.anatomy import Anatomy, Site, SiteKind, State, unmoved
from vitcompress.model.modules.block import Block
from vitcompress.model.sequence import layer_input
from vitcompress.stages.states import StateFile

_KINDS: tuple[SiteKind, ...] = ("attention", "mlp")

_Half = Callable[[State], Tensor]


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
    """States of models, by name, in batches; `held`: whether each batch is held back."""

    def __init__(self) -> None:
        self._states, self.held = StateFile(), list[bool]()

    def add(self, held: bool, **states: State) -> None:
        for name, state in states.items():
            self._states.put((name, len(self.held)), state)
        self.held.append(held)

    def read(self, name: str, batch: int) -> State:
        return self._states.get((name, batch))

    def advance(self, name: str, into: str, step: Callable[[State], State]) -> None:
        """Pass the stream `name` through `step`, into the stream of another name or the same."""
        for batch in range(len(self.held)):
            self._states.put((into, batch), step(self.read(name, batch)))


@dataclass(frozen=True)
class SitePair:
    """A site of the dense model, and the same of the changed one (None: pruned away).

    `halves`: what each of the two computes of the state before the site, the tokens after it, in
    which none has merged yet. `streams` hold the `dense` stream before the site, that `after` it,
    and the `changed` one before it; `into`: see `side_by_side`.
    """

    site: Site
    twin: Site | None
    halves: tuple[_Half, _Half]
    streams: _Streams
    dense: str
    after: str
    into: Tensor | None

    def fitting(self, part: Literal["first", "last"], back: bool = False) -> Iterator[Given]:
        """What the `first` or the `last` layer of the changed site gets, batch by batch.

        It should give what it gives in the dense model; with `back`, which is for the last layer
        of a branch that nothing scales, what brings the stream back to the dense one, errors of
        all that came before included. Tokens must not merge.
        """
        assert self.twin is not None
        layer, source = getattr(self.twin, part), getattr(self.site, part)
        of_dense, of_changed = self.halves
        for batch, held in enumerate(self.streams.held):
            state = self.streams.read("changed", batch)
            inputs = layer_input(layer, partial(of_changed, state))
            if back:
                after = turned(self.streams.read(self.after, batch).x, self.into)
                targets = after - state.x[:, : after.shape[1]]
            else:
                dense = self.streams.read(self.dense, batch)
                targets = source(layer_input(source, partial(of_dense, dense)))
            yield Given(inputs, targets, held)

    def adding(self) -> Iterator[Added]:
        """What the changed site adds to the stream, and should add, batch by batch.

        A token that others have joined should be the mean of what these are in the dense model.
        """
        for batch, held in enumerate(self.streams.held):
            state = self.streams.read("changed", batch)
            after = self.halves[1](state)
            wanted = turned(self.streams.read(self.after, batch).x, self.into)
            if state.places is not None:
                wanted = means(wanted, state.places)
            before, wanted = (x[:, : after.shape[1]] for x in (state.x, wanted))
            yield Added(after - before, wanted - before, held)


def side_by_side(
    dense: Anatomy,
    changed: Anatomy,
    batches: Iterable[tuple[Tensor, bool]],
    into: Tensor | None = None,
) -> Iterator[SitePair]:
    """All sites of `dense`, in the order of computation; `changed` may be narrower, or lack some,
    and its tokens may merge.

    `batches`: pixels, and whether they are held back. `into` [C', C] is how the dense stream
    becomes that of `changed`, where they differ in width. Steps that are no blocks are passed, each
    model's stream by its own.
    """
    streams = _Streams()
    for pixels, held in batches:
        start = changed.start(pixels)
        streams.add(
            held, dense=dense.start(pixels), changed=start._replace(places=unmoved(start.x))
        )
    before, after = "dense", "dense after"
    sites = {(site.block, site.kind): site for site in dense.sites}
    for number, steps in enumerate(zip(dense.steps, changed.steps, strict=True)):
        block, narrow = (step.module for step in steps)
        if not isinstance(block, Block) or not isinstance(narrow, Block):
            streams.advance(before, before, partial(dense.advance, number))
            streams.advance("changed", "changed", partial(changed.advance, number))
            continue
        for kind in _KINDS:
            streams.advance(before, after, _passed(dense, number, kind))
            site = sites.get((block, kind))
            if site is not None:
                twin = replace(site, block=narrow)
                there = None if twin.operator is None else twin
                halves = _half(dense, number, kind), _half(changed, number, kind)
                yield SitePair(site, there, halves, streams, before, after, into)
            streams.advance("changed", "changed", _passed(changed, number, kind))
            before, after = after, before


def turned(x: Tensor, into: Tensor | None) -> Tensor:
    """The stream `x` [..., C] as one of C' channels."""
    return x if into is None else x @ into.to(x).T


def _half(anatomy: Anatomy, number: int, kind: SiteKind) -> _Half:
    """From the state before a site of block `number` to the tokens after it."""
    if kind == "attention":
        return lambda state: anatomy.attended(number, state)[0]
    block = cast(Block, anatomy.steps[number].module)
    return lambda state: block.fed(state.x)


def _passed(anatomy: Anatomy, number: int, kind: SiteKind) -> Callable[[State], State]:
    """From the state before a site of block `number` to that after it."""
    if kind == "attention":
        return lambda state: anatomy.attended(number, state)[1]
    half = _half(anatomy, number, kind)
    return lambda state: state._replace(x=half(state))
