"""A backbone beside a classifier, as modules have it that training scripts write themselves."""

import re

from torch import Tensor

from vitcompress.errors import InputError

State = dict[str, Tensor]
HEADS = ("head", "classifier", "fc", "linear", "cls_head", "mlp_head", "linear_head", "heads")
LAYER = re.compile(rf"((?:{'|'.join(HEADS)})(?:\.\w+)*?)\.([a-z_]*?)(\d+)\.(\w+)")
"""A tensor of a head of several layers: the name of the head, that of layers, a number, a kind."""
# What stands for a whole backbone, not for a part that a model itself has.
_BACKBONE = re.compile(
    r"\w*(backbone|encoder|model|net|network|base|body|trunk|extractor|vit|deit|beit|swin|dino)\w*"
)
_POOLED = ("layers.", "stages.")  # models of timm whose head pools first, and is `head.fc`


def split(state: State) -> tuple[str, State, State] | None:
    """The prefix of the backbone, the backbone without it, and the classifier; None where `state`
    is no such pair."""
    parts = list(dict.fromkeys(key.partition(".")[0] for key in state))
    heads = [part for part in parts if part in HEADS]
    if len(parts) != 2 or len(heads) != 1:
        return None
    prefix = next(part for part in parts if part not in heads)
    backbone = {key.partition(".")[2]: state[key] for key in state if _in(key, prefix)}
    # A norm there is left of a head that pools; a matrix is a classifier of its own.
    own_head = any(key.partition(".")[0] in HEADS and t.ndim > 1 for key, t in backbone.items())
    if not _BACKBONE.fullmatch(prefix) or own_head:
        return None
    return prefix, backbone, {key: state[key] for key in state if _in(key, heads[0])}


def is_linear(head: State) -> bool:
    """Whether `head` is one linear layer, whatever stands before its name."""
    kinds = {key.rpartition(".")[2]: tensor.ndim for key, tensor in head.items()}
    layers = {key.rpartition(".")[0] for key in head}
    return len(layers) == 1 and kinds in ({"weight": 2, "bias": 1}, {"weight": 2})


def as_head(head: State, backbone: State, place: str) -> State:
    """The one linear layer in `head`, with the name that timm has for it on such a backbone.

    Layers that are numbered stay as they are. Raises `InputError` for anything else.
    """
    if not is_linear(head):
        if all(LAYER.fullmatch(key) for key in head):
            return head
        layers = sorted({key.rpartition(".")[0] for key in head})
        raise InputError(
            f"{place}: its classifier ({', '.join(layers[:4])}) is neither one linear layer nor a"
            " row of numbered ones; give a checkpoint whose classifier is, or without it to have"
            " the model embed"
        )
    layer = "head.fc" if any(key.startswith(_POOLED) for key in backbone) else "head"
    return {f"{layer}.{key.rpartition('.')[2]}": tensor for key, tensor in head.items()}


def _in(key: str, part: str) -> bool:
    return key.startswith(f"{part}.")
