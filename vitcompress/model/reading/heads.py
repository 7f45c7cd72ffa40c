"""A backbone beside a classifier, as modules have it that training scripts write themselves."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitcompress.errors import InputError

HEADS = ("head", "classifier", "fc", "linear", "cls_head", "mlp_head", "linear_head", "heads")
# What stands for a whole backbone, not for a part that a model itself has.
_BACKBONE = re.compile(
    r"\w*(backbone|encoder|model|net|network|base|body|trunk|extractor|vit|deit|beit|swin|dino)\w*"
)
_POOLED = ("layers.", "stages.")  # models of timm whose head pools first, and is `head.fc`


def with_head(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor] | None:
    """The backbone without its prefix and the classifier as timm's head; None where `state` is no
    such pair.

    Raises `InputError` for a classifier of more than one linear layer.
    """
    parts = list(dict.fromkeys(key.partition(".")[0] for key in state))
    heads = [part for part in parts if part in HEADS]
    if len(parts) != 2 or len(heads) != 1:
        return None
    head = heads[0]
    prefix = next(part for part in parts if part != head)
    found = {key.removeprefix(f"{prefix}."): state[key] for key in state if _in(key, prefix)}
    own_head = any(key.partition(".")[0] in HEADS for key in found)
    if not _BACKBONE.fullmatch(prefix) or own_head:
        return None
    layer = "head.fc" if any(key.startswith(_POOLED) for key in found) else "head"
    return found | _linear({k: state[k] for k in state if _in(k, head)}, layer, place)


def _in(key: str, part: str) -> bool:
    return key.startswith(f"{part}.")


def _linear(tensors: Mapping[str, Tensor], layer: str, place: str) -> dict[str, Tensor]:
    """The one linear layer in `tensors`, named `layer`."""
    names = sorted({key.rpartition(".")[0] for key in tensors})
    found = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items()}
    weight = found.get("weight")
    if len(names) > 1 or weight is None or weight.ndim != 2 or found.keys() - {"weight", "bias"}:
        raise InputError(
            f"{place}: its classifier ({', '.join(names[:4])}) is more than one linear layer;"
            " give a checkpoint whose classifier is one, or without it to have the model embed"
        )
    return {f"{layer}.{kind}": tensor for kind, tensor in found.items()}
