"""Layouts: whose names the tensors of a checkpoint have. One file a layout.

A file has `matches(source)`, which looks at keys and at the description beside them, and
`convert(source)`, which gives the tensors the names and shapes that timm has for them. `timm`
itself is asked last: what no other file knows is taken for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor

from vitcompress import registry
from vitcompress.model.head import Head

PACKAGE = __name__


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was read.

    `place`: the file or folder, for what is said of it. `config`, `processor`: the config.json (of
    open_clip: open_clip_config.json) and preprocessor_config.json of a folder, empty where there
    are none. `dtypes`: how many tensors of each type were stored.
    """

    place: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """A checkpoint in timm's layout.

    `timm`: the name of the model, None where file name and shapes have to tell. `options`: of its
    constructor. `norm_eps`: that of all its normalisations where it is not timm's. `preprocess`:
    fields of `Preprocess` that are not those of `timm`. `head`: how tokens become the output, where
    that is not as timm has it. `task`: what its outputs mean, where their number does not tell.
    `classes`: their names. `antialias`: whether positions are smoothed where they are resampled to
    fewer, as timm does it. `notes`: what was left out, or is to be known.
    """

    timm: str | None
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    head: Head | None = None
    task: str | None = None
    classes: tuple[str, ...] | None = None
    antialias: bool = True
    notes: tuple[str, ...] = ()


class Layout(Protocol):
    """What a file of this folder offers."""

    def matches(self, source: Source) -> bool: ...

    def convert(self, source: Source) -> Converted:
        """Raises `InputError` for keys that it does not know, naming the first, and for ones that
        are missing."""
        ...


def layout_of(source: Source) -> str:
    """The name of the layout that `source` has."""
    others = (name for name in registry.names(PACKAGE) if name != "timm")
    return next((name for name in others if _layout(name).matches(source)), "timm")


def convert(source: Source, layout: str | None = None) -> Converted:
    """`source`, of the `layout` that it is known to have, in timm's. Raises `InputError` where it
    cannot be had."""
    return _layout(layout or layout_of(source)).convert(source)


def _layout(name: str) -> Layout:
    return cast(Layout, registry.load_module(PACKAGE, name))
