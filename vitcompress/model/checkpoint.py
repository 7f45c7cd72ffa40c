"""Trained checkpoints: read without running what they contain, and made into timm models."""

import argparse
import functools
import inspect
import os
import pickle
import pickletools
import re
import struct
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitcompress.console import say
from vitcompress.errors import InputError
from vitcompress.model.naming import (
    build_timm,
    check_name,
    differences,
    found_options,
    hub_config,
    infer_name,
    one_line,
)
from vitcompress.model.options import ModelOptions, check_options

_PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")

# Where training scripts put the state dict; the moving average first, since it is what they report.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
)
_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.")
# What a Lightning module or an averaged model keeps beside the model itself.
_TRAINING_ONLY = re.compile(
    r"(criterion|\w*loss\w*|ema(_\w+)?|\w+_ema|teacher\w*|\w*metrics?|\w*acc(uracy)?)\.|n_averaged$"
)
# Tensors with a value for each position, which another image size has other positions of.
_POSITIONS = re.compile(r"(.*\.)?(pos_embed|relative_position_bias_table)$")
# Tensors that timm computes anew, or does not use: masks, tables and the token of masked training.
_DERIVED = re.compile(r"(.*\.)?(mask_token|attn_mask|relative_position_index)$")

_RESAVE = (
    "re-save only the state dict: torch.save(model.state_dict(), 'model.pth'), or as safetensors"
)
# What torch.load raises on bytes that are not, or not all of, a checkpoint.
_BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ModelSpec(BaseModel):
    """What rebuilds a module: `timm.create_model(spec.timm, pretrained=False, **spec.options)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timm: str
    options: ModelOptions = {}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the model's tensors in a checkpoint file, or in a Hugging Face or timm folder.

    Wrappers of training scripts (`state_dict`, `model`, …) are opened, a moving average preferred,
    and the prefixes that wrapped modules leave (`module.`, `_orig_mod.`, `model.`, …) taken off.
    Floating-point tensors become float32. Nothing in the file is executed.

    Raises `InputError` when the file is missing, of no known kind, damaged, needs more than plain
    data to be unpickled, or holds no state dict.
    """
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDER if (path / name).is_file()), path)
    if path.is_dir():
        raise InputError(
            f"{path}: holds neither {' nor '.join(_IN_FOLDER)}; give a checkpoint file"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path of the checkpoint")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; check its permissions")
    if path.suffix.lower() == ".safetensors":
        content: Any = _read_safetensors(path)
    elif path.suffix.lower() in _PICKLED:
        content = _read_pickle(path)
    else:
        kinds = " ".join((*_PICKLED, ".safetensors"))
        raise InputError(f"{path}: not a known kind of checkpoint; give one of {kinds}")
    state = _strip(_tensors(_unwrap(content)))
    if not state:
        keys = ", ".join(map(str, content))[:120] if isinstance(content, Mapping) else ""
        held = f"keys: {keys}" if keys else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds no state dict ({held}); {_RESAVE}")
    if any(re.search(r"(^|\.)encoder\.layer\.\d+\.", key) for key in state):
        raise InputError(
            f"{path}: in the tensor layout of the transformers library, which is not read;"
            " give timm's version of this model (timm:NAME, or a checkpoint trained with timm)"
        )
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: truncated or not safetensors ({one_line(error)}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        # Namespace is plain data: timm's training script stores its arguments in one.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise InputError(f"{path}: a TorchScript archive; {_RESAVE}") from error
        named = re.search(r"GLOBAL (\S+)", str(error))
        if refused := named[1] if named else _first_type(path):
            raise InputError(
                f"{path}: holds a pickled {refused}, which could run code and is not loaded;"
                f" {_RESAVE}"
            ) from error
        raise InputError(
            f"{path}: truncated or not a torch checkpoint; copy or download it again, or {_RESAVE}"
        ) from error


def _first_type(path: Path) -> str | None:
    """The first type or function that a bare pickle names, found without executing it."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, EOFError, UnicodeDecodeError):
        pass  # no pickle, or a damaged one
    return None


def _unwrap(content: Any, depth: int = 4) -> Any:
    """Return the innermost mapping that a training script wrapped up, at most `depth` deep."""
    if isinstance(content, Mapping) and depth:
        for key in _WRAPPERS:
            if _tensors(inner := _unwrap(content.get(key), depth - 1)):
                return inner
    return content


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {key: v for key, v in items if isinstance(key, str) and isinstance(v, Tensor)}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all tensors of the model share, and what only training needs."""
    state = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    model = [key for key in state if not _TRAINING_ONLY.match(key)]
    for prefix in _PREFIXES:
        if model and all(key.startswith(prefix) for key in model):
            return _strip({key.removeprefix(prefix): state[key] for key in model})
    return state


def load_model(
    state: Mapping[str, Tensor],
    name: str | None,
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    *,
    source: str,
) -> tuple[nn.Module, ModelSpec]:
    """Return the timm model `name` with the tensors of `state`, and how to rebuild it.

    The model is in eval mode. Class count, input channels and image size follow the checkpoint;
    `options` are further arguments of timm's constructor, beside those that timm wrote into the
    config.json of a folder. An `img_size` among them that is not that of the checkpoint has the
    embedding of positions resampled, as timm does it, which is said. `source` is the file or
    folder that `state` came from: errors speak of it, and without `name`, it is inferred from
    there.

    Raises `InputError` when the name cannot be inferred or is unknown to timm, when `num_classes`
    contradicts the checkpoint, when a tensor is missing, unexpected or of another shape, when one
    holds NaN or infinity, and for options that timm may not be given.
    """
    name = name or infer_name(state, source)
    stored = hub_config(Path(source)).get("model_args") or {}
    if not isinstance(stored, dict):
        raise InputError(f"{source}: model_args of its config.json are no JSON object; mend them")
    check_options(stored, f"{source}: model_args of its config.json")
    given = {**stored, **(options or {})}
    wanted = given.pop("num_classes", None)
    wanted = wanted if num_classes is None else num_classes
    found = found_options(state, name, given, source)
    classes = found.setdefault("num_classes", wanted)
    if wanted is not None and classes != wanted:
        raise InputError(
            f"{source}: the checkpoint has {classes} classes, the recipe says {wanted}:"
            " correct or leave out model.num_classes, or give a checkpoint trained for them"
        )
    if classes is None:
        del found["num_classes"]
    model = build_timm(name, found, source)
    tensors = _fit(state, model, resampled="img_size" in (options or {}))
    if problems := differences(tensors, model):
        raise InputError(
            f"{source}: does not fit timm {name}: {'; '.join(problems)}: give the model it was"
            " trained as (model.name, and model.options for other constructor arguments)"
        )
    model.load_state_dict(tensors)
    for key in filter(_POSITIONS.match, state):
        if key in tensors and tensors[key].numel() != state[key].numel():
            shapes = f"{list(state[key].shape)} to {list(tensors[key].shape)}"
            say(f"{key} resampled from {shapes}, for images of {found['img_size']} pixels")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{source}: {key} holds NaN or infinity; give an intact checkpoint")
    return model.eval(), ModelSpec(timm=name, options=found)


def _fit(state: Mapping[str, Tensor], model: nn.Module, resampled: bool) -> dict[str, Tensor]:
    """Return `state` in the layout of `model` where timm can convert it, else nearly as it is.

    `resampled`: whether values of positions may be resampled, as for another image size.
    """
    own = model.state_dict()
    plain = {key: state[key] for key in state if key in own or not _DERIVED.match(key)}
    if not differences(plain, model):
        return plain
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return plain
    if "adapt_layer_scale" in inspect.signature(convert).parameters:
        convert = functools.partial(convert, adapt_layer_scale=True)  # as timm does for DeiT III
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm, about how it interpolates
            converted: dict[str, Tensor] = convert(dict(plain), model)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return plain
    # Renaming and reshaping is welcome; resampling that nobody asked for, and leaving tensors out,
    # would go unnoticed.
    same = _size(converted, resampled) == _size(plain, resampled)
    return converted if same else plain


def _size(state: Mapping[str, Tensor], positions_aside: bool) -> int:
    return sum(
        tensor.numel()
        for key, tensor in state.items()
        if not (positions_aside and _POSITIONS.match(key))
    )


def pretrained_model(name: str) -> tuple[nn.Module, ModelSpec]:
    """Return the timm model `name` with its published weights, and how to rebuild it.

    Raises `InputError` when timm does not know the name, has no weights for it, or cannot fetch
    them.
    """
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    source = f"timm:{name}"
    check_name(name, source)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{source}: cannot get the pretrained weights: {one_line(error)};"
            " without a network, give a local checkpoint instead"
        ) from error
    cfg: Any = model.pretrained_cfg
    options = {"num_classes": model.num_classes, "in_chans": cfg["input_size"][0]}
    return model.eval(), ModelSpec(timm=name, options=options)


def pretrained_cfg(spec: ModelSpec) -> dict[str, Any]:
    """Return how timm prepares images for this model, as plain JSON.

    Keys: `input_size` (channels, height, width, as `spec.options` have it), `interpolation`,
    `crop_pct`, `crop_mode`, `mean`, `std`. Mean and standard deviation are None when the model
    takes another number of channels than they are known for.

    Raises `InputError` for a name that timm does not know.
    """
    import timm

    check_name(spec.timm, spec.timm)
    cfg = timm.models.get_pretrained_cfg(spec.timm)
    channels, *size = cfg.input_size
    channels = spec.options.get("in_chans", channels)
    if (given := spec.options.get("img_size")) is not None:
        size = [given, given] if isinstance(given, int) else list(given)
    known = channels == len(cfg.mean)
    return {
        "input_size": [channels, *size],
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
        "mean": list(cfg.mean) if known else None,
        "std": list(cfg.std) if known else None,
    }
