"""A head of several layers that somebody put on a backbone: told from its tensors, and described.

The activation between its layers has no tensors, and a recipe says which it is.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vitcompress.console import note
from vitcompress.errors import InputError
from vitcompress.model.head import ActivationLayer, Head, Layer, LinearLayer, NormLayer
from vitcompress.model.layouts import Converted
from vitcompress.model.reading.heads import LAYER, State

_LINEAR = {"weight": 2, "bias": 1}
_NORM = {"weight": 1, "bias": 1}
_MOVING = {"running_mean": 1, "running_var": 1}
_BATCH_NORM_EPS = 1e-5  # of torch; that of LayerNorm is `NormLayer`'s
_KEY = "model.head.activation"


def described(converted: Converted, activation: str | None, place: str) -> Converted:
    """`converted` with the head of several layers that its tensors have, if any.

    `activation`: timm's name of what follows each Linear but the last; "none" where nothing does.
    Layers that are numbered as in `nn.Sequential` leave a number out for it. A BatchNorm1d becomes
    part of the Linear beside it, as it computes in eval mode.

    Raises `InputError` where the activation is not given, or there is nothing it is of, and for
    a norm that no Linear can take in.
    """
    found = {key: match for key in converted.tensors if (match := LAYER.fullmatch(key))}
    layers: dict[int, State] = {}
    for key, match in found.items():
        layers.setdefault(int(match[3]), {})[match[4]] = converted.tensors[key]
    layers = dict(sorted(layers.items()))
    one_row = len({(match[1], match[2]) for match in found.values()}) == 1
    # Some heads of timm have numbered layers too, and others beside them.
    tops = {key.partition(".")[0] for key in found}
    one_row &= all(key in found for key in converted.tensors if key.partition(".")[0] in tops)
    if converted.head is not None or not one_row or not _is_mlp(layers, found):
        if activation not in (None, "none"):
            raise InputError(f"{place}: {_KEY}: it has no head of several layers; leave it out")
        return converted
    first = next(iter(found.values()))
    row, tensors = _row(layers, bool(first[2]), activation, f"{place}: its head {first[1]}")
    told = ", ".join(_told(layer) for layer in row)
    note(f"{place}: its head is taken for {told} ({_KEY} says what stands between)")
    rest = {key: tensor for key, tensor in converted.tensors.items() if key not in found}
    return replace(converted, tensors=rest | tensors, head=Head(layers=tuple(row)))


def _is_mlp(layers: Mapping[int, State], found: Mapping[str, re.Match[str]]) -> bool:
    """Whether these layers are linear ones and norms, several, and each takes what comes to it."""
    kinds = list(map(_kind, layers.values()))
    if len(kinds) < 2 or None in kinds or "linear" not in kinds:
        return False
    width = None
    for tensors in layers.values():
        weight = tensors.get("weight", tensors.get("running_var"))
        if weight is None or width not in (None, weight.shape[-1]):
            return False  # heads beside each other, as CrossViT has them
        width = len(weight)
    # Where only what has tensors is counted, nobody knows on which side of a norm what has none is.
    return set(kinds) == {"linear"} or not any(match[2] for match in found.values())


def _kind(tensors: State) -> str | None:
    shapes = {name: tensor.ndim for name, tensor in tensors.items()}
    shapes.pop("num_batches_tracked", None)
    if shapes in (_LINEAR, {"weight": 2}):
        return "linear"
    if shapes == _NORM:
        return "norm"
    return "batch norm" if shapes in (_MOVING, _MOVING | _NORM) else None


def _row(
    layers: Mapping[int, State], named: bool, activation: str | None, place: str
) -> tuple[list[Layer], State]:
    """The layers as they follow each other, and their tensors as `Head` names them.

    `named`: numbers count the layers with tensors only, as in fc1 and fc2.
    """
    steps: list[tuple[str, State]] = []
    last, waiting = None, False  # for the activation of a Linear
    for number, tensors in layers.items():
        gap = last is not None and (named or number > last + 1)
        if gap and waiting:
            if activation is None:
                raise InputError(
                    f"{place} has a step without tensors before layer {number}: say which by {_KEY}"
                    f", as --set {_KEY}=gelu (relu, …; none for a Dropout)"
                )
            steps += [] if activation == "none" else [("activation", {})]
            waiting = False
        steps.append((kind := str(_kind(tensors)), tensors))
        last, waiting = number, waiting or kind == "linear"
    if activation not in (None, "none") and "activation" not in dict(steps):
        raise InputError(f"{place}: {_KEY}: its layers leave no room for one; leave it out")
    row, stored = list[Layer](), State()
    for kind, tensors in _without_batch_norms(steps, place):
        stored |= {f"head.{len(row)}.{name}": tensor for name, tensor in tensors.items()}
        if kind == "linear":
            outputs, inputs = tensors["weight"].shape
            row.append(LinearLayer(inputs=inputs, outputs=outputs, bias="bias" in tensors))
        elif kind == "norm":
            row.append(NormLayer(width=len(tensors["weight"])))
        else:
            row.append(ActivationLayer.model_validate({"name": activation}))
    return row, stored


def _without_batch_norms(steps: list[tuple[str, State]], place: str) -> list[tuple[str, State]]:
    """`steps` with each BatchNorm1d in the Linear before it, or in that after it."""
    steps = list(steps)
    while (at := next((i for i, (kind, _) in enumerate(steps) if kind == "batch norm"), -1)) >= 0:
        scale, shift = _affine(steps[at][1])
        before = at > 0 and steps[at - 1][0] == "linear"
        if not before and (at + 1 == len(steps) or steps[at + 1][0] != "linear"):
            raise InputError(f"{place} has a BatchNorm1d with no Linear beside it; give another")
        other = at - 1 if before else at + 1
        weight = steps[other][1]["weight"].double()
        bias = steps[other][1].get("bias", weight.new_zeros(len(weight))).double()
        if before:
            weight, bias = weight * scale[:, None], bias * scale + shift
        else:
            weight, bias = weight * scale, bias + weight @ shift
        steps[other] = ("linear", {"weight": weight.float(), "bias": bias.float()})
        del steps[at]
    return steps


def _affine(norm: State) -> tuple[Tensor, Tensor]:
    """What a BatchNorm1d multiplies by and adds in eval mode, in double precision."""
    scale = (norm["running_var"].double() + _BATCH_NORM_EPS).rsqrt()
    scale = scale * norm["weight"].double() if "weight" in norm else scale
    shift = -norm["running_mean"].double() * scale
    return scale, shift + norm["bias"].double() if "bias" in norm else shift


def _told(layer: Layer) -> str:
    if isinstance(layer, LinearLayer):
        return f"Linear {layer.inputs}→{layer.outputs}"
    return "LayerNorm" if isinstance(layer, NormLayer) else layer.name
