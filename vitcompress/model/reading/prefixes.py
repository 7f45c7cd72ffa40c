"""Prefixes that wrapped modules leave on the names of tensors."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from vitcompress.console import note
from vitcompress.model.reading.heads import State, as_head, is_linear, split

_WRAPPER = "module"  # of data-parallel and averaged models: the name of no layer
_MOST = 100
# What a Lightning module or an averaged model keeps beside the model itself.
_TRAINING_ONLY = re.compile(
    r"(criterion|\w*loss\w*|ema(_\w+)?|\w+_ema|teacher\w*|\w*metrics?|\w*acc(uracy)?)\.|n_averaged$"
)

Known = Callable[[Mapping[str, Tensor]], bool]
"""Whether a layout other than timm's has these names as they are."""


def unprefixed(state: State, known: Known, place: str) -> State:
    """`state` without the prefixes that all tensors of the model share and that no layout knows,
    and without what only training needs, where that has none of them.

    A classifier beside a prefixed backbone becomes the head. Raises `InputError` as `as_head`.
    """
    state = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    for _ in range(_MOST):
        model = {key: state[key] for key in state if not _TRAINING_ONLY.match(key)}
        prefix = _shared(model)
        if prefix is None:
            return _headed(model, known, place) or state
        if prefix != _WRAPPER and known(model):
            return state
        aside = {key.partition(".")[0]: None for key in state.keys() - model.keys() if "." in key}
        if aside:
            note(f"{place}: of {prefix} only; left out: {', '.join(sorted(aside))}")
        run = re.compile(rf"^({re.escape(prefix)}\.)+")
        cut = min(len(key) - len(run.sub("", key)) for key in model)
        state = {key[cut:]: tensor for key, tensor in model.items()}
    return state


def _headed(model: State, known: Known, place: str) -> State | None:
    """The backbone and its classifier without prefixes, where that is what `model` is."""
    pair = split(model)
    if pair is None:
        return None
    prefix, backbone, head = pair
    # Layouts have such names themselves; those of DINO have `backbone.`, but no linear classifier.
    if known(model) and not (prefix == "backbone" and is_linear(head)):
        return None
    return backbone | as_head(head, backbone, place)


def _shared(state: State) -> str | None:
    """The part before the first dot that all keys have, if what is left begins with no number."""
    first = {key.partition(".")[0] for key in state}
    rest = [key.partition(".")[2] for key in state]
    if len(first) != 1 or any(not name or name[0].isdigit() for name in rest):
        return None
    return first.pop()
