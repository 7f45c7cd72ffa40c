"""Low-rank adapters (LoRA, arXiv 2106.09685) as the PEFT library leaves them, merged."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcompress.errors import InputError

_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.(\w+))?(?:\.weight)?")
_SAVED = re.compile(r"(.+)\.modules_to_save\.\w+\.(.+)")
_ORIGINAL = re.compile(r".+\.original_module\..+")
_OTHER = re.compile(r"(^|\.)(lora_|hada_|lokr_|ia3_|oft_|boft_|vera_)")
_REMEDY = "merge it where it was trained, model = model.merge_and_unload(), and save that"


def merged(state: Mapping[str, Tensor], config: Mapping[str, Any], place: str) -> dict[str, Tensor]:
    """`state` with each `W` become W + scaling · B A, and the names without adapters.

    `config`: the adapter_config.json of PEFT, else what the checkpoint holds beside the tensors; it
    has `lora_alpha`. The scaling is α / r, or α / √r with `use_rslora`.
    Raises `InputError` where a factor, the weight or the scaling is not there.
    """
    factors = {key: match for key in state if (match := _FACTOR.fullmatch(key))}
    adapted = any(_OTHER.search(key) for key in state)
    if not adapted:
        return dict(state)
    plain = {key: tensor for key, tensor in state.items() if key not in factors}
    if other := next((key for key in plain if _OTHER.search(key)), None):
        raise InputError(f"{place}: {other} belongs to an adapter that is not known; {_REMEDY}")
    saved = {f"{m[1]}.{m[2]}": t for k, t in plain.items() if (m := _SAVED.fullmatch(k))}
    found = {
        key.replace(".base_layer.", "."): tensor
        for key, tensor in plain.items()
        if not _SAVED.fullmatch(key) and not _ORIGINAL.fullmatch(key)
    } | saved
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, match in factors.items():
        pair = pairs.setdefault(match[1], {})
        if match[2] in pair:
            raise InputError(f"{place}: {match[1]} has several adapters; {_REMEDY}")
        pair[match[2]] = state[key]
    for layer, pair in pairs.items():
        _merge(found, layer, pair, config, place)
    return found


def _merge(
    found: dict[str, Tensor],
    layer: str,
    pair: Mapping[str, Tensor],
    config: Mapping[str, Any],
    place: str,
) -> None:
    weight = found.get(f"{layer}.weight")
    if weight is None:
        raise InputError(f"{place}: holds adapters (LoRA) without the model itself; {_REMEDY}")
    if pair.keys() != {"A", "B"}:
        raise InputError(f"{place}: {layer} has one factor of its adapter (LoRA) only; {_REMEDY}")
    down, up = pair["A"].float().flatten(1), pair["B"].float().flatten(1)
    rank = down.shape[0]
    scaling = _scaling(config, rank)
    if scaling is None:
        raise InputError(
            f"{place}: the scaling of its adapter (LoRA) is not known; put adapter_config.json"
            f" beside it, or {_REMEDY}"
        )
    if up.shape[1] != rank or up.shape[0] * down.shape[1] != weight.numel():
        raise InputError(f"{place}: the adapter (LoRA) of {layer} does not fit it; {_REMEDY}")
    found[f"{layer}.weight"] = weight.float() + scaling * (up @ down).view(weight.shape)


def _scaling(config: Mapping[str, Any], rank: int) -> float | None:
    """None where it is not told, or not the same for all layers."""
    alpha = config.get("lora_alpha")
    varied = any(config.get(key) for key in ("alpha_pattern", "rank_pattern", "use_dora"))
    if varied or config.get("fan_in_fan_out") or not isinstance(alpha, (int, float)):
        return None
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
