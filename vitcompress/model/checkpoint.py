"""Checkpoints that were read, made into timm models."""

import functools
import inspect
import re
import sys
import warnings
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat
from torch import Tensor, nn

from vitcompress.console import note
from vitcompress.errors import InputError
from vitcompress.lines import one_line
from vitcompress.model.families import head_place
from vitcompress.model.head import Choice, Head, set_ends, set_layers
from vitcompress.model.image_size import POSITIONS, ImageSizes, image_sizes, told
from vitcompress.model.layouts import Converted
from vitcompress.model.naming import (
    build_timm,
    check_name,
    check_parameters,
    differences,
    fewest_options,
    found_options,
    infer_name,
    skeleton,
)
from vitcompress.model.options import ModelOptions

_STEM = "patch_embed.proj.weight"
# Tensors that timm computes anew, or does not use: masks, tables and the token of masked training.
_DERIVED = re.compile(r"(.*\.)?(mask_token|attn_mask|relative_position_index)$")
_LAYER = re.compile(r"^head\.(\d+)\.")  # of a described head
_AS_IT_IS = Choice()


class ModelSpec(BaseModel):
    """What rebuilds a module: `timm.create_model(spec.timm, pretrained=False, **spec.options)`,
    all its normalisations with `norm_eps` where that is given, and its head as `head` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timm: str
    options: ModelOptions = {}
    norm_eps: PositiveFloat | None = None
    head: Head | None = None

    def build(self, source: str) -> nn.Module:
        """The untrained module. Raises `InputError` as `build_timm`, and for a head that the model
        cannot have."""
        module = build_timm(self.timm, self.options, source)
        if self.norm_eps is not None:
            for part in _norms(module):
                part.eps = self.norm_eps
        if self.head is not None:
            if self.head.layers is not None:
                set_layers(module, head_place(module), self.head, source)
            set_ends(module, head_place(module), self.head, source)
        return module

    def simplest(self, source: str) -> "ModelSpec":
        """The same without a `norm_eps` that timm has anyway. Raises as `build_timm`."""
        norms = _norms(skeleton(self.timm, self.options, source))
        usual = all(part.eps == self.norm_eps for part in norms)
        return self.model_copy(update={"norm_eps": None}) if usual else self


def _norms(module: nn.Module) -> list[nn.LayerNorm]:
    return [part for part in module.modules() if isinstance(part, nn.LayerNorm)]


def load_model(
    converted: Converted,
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    choice: Choice = _AS_IT_IS,
    *,
    source: str,
    sizes: ImageSizes | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Return the timm model with the tensors of a checkpoint, and how to rebuild it.

    The model is in eval mode. Class count, input channels and image size follow the checkpoint;
    `options` are further arguments of timm's constructor, and win over those of the layout. Where
    `sizes` (None: by `options`) are not equal, positions are resampled, and where `options` have
    another `patch_size` than the checkpoint, the stem is, as timm does it, which is said. `choice`:
    of the output. `source` is the file or folder that the tensors came from: errors speak of it,
    and where the layout does not name the model, it is inferred from there.

    Raises `InputError` when the name cannot be inferred or is unknown to timm, when `num_classes`
    contradicts the checkpoint, when a tensor is missing, unexpected or of another shape, when one
    holds NaN or infinity, and for options that timm may not be given.
    """
    head = converted.head or Head()
    state = dict(converted.tensors)
    layers = {key: state.pop(key) for key in list(state) if head.layers and _LAYER.match(key)}
    name = converted.timm or infer_name(state, source, headless=head.layers is not None)
    sizes = sizes or image_sizes(replace(converted, timm=name), options or {}, None, source)
    found = _options(converted, state, name, sizes, num_classes, source)
    spec = ModelSpec(timm=name, options=found, norm_eps=converted.norm_eps).simplest(source)
    check_parameters(name, found, _count(state, set()), source)
    model = spec.build(source)
    resampled = _resampled(state, model, sizes, options or {})
    tensors = _fit(state, model, resampled, converted.antialias)
    if head.layers is not None:
        place = head_place(model)
        set_layers(model, place, head, source)
        tensors |= {_LAYER.sub(rf"{place.layers}.\1.", key): layers[key] for key in layers}
    _fill(model, tensors, name, sizes, source)
    for key in filter(resampled.__contains__, state):
        if key in tensors and not torch.equal(tensors[key], state[key]):
            shapes = f"{list(state[key].shape)} to {list(tensors[key].shape)}"
            size = f", for images of {told(sizes.used)} pixels" if sizes.used else ""
            note(f"{key} resampled from {shapes}{size}")
    return _with_head(model, spec, choice.of(converted.head), source)


def _options(
    converted: Converted,
    state: Mapping[str, Tensor],
    name: str,
    sizes: ImageSizes,
    num_classes: int | None,
    source: str,
) -> dict[str, Any]:
    """The options of timm's constructor for `state`, the tensors of `converted` without those of a
    described head. Raises `InputError` where `num_classes` contradicts them."""
    head = converted.head or Head()
    given = {**converted.options, **sizes.options}
    wanted = given.pop("num_classes", None)
    wanted = wanted if num_classes is None else num_classes
    if head.layers is not None:
        given["num_classes"] = 0  # of timm, which makes no head then
    found = found_options(state, name, given, source)
    classes = head.outputs if head.layers else found.setdefault("num_classes", wanted)
    if wanted is not None and classes != wanted:
        raise InputError(
            f"{source}: the checkpoint has {classes} classes, the recipe says {wanted}:"
            " correct or leave out model.num_classes, or give a checkpoint trained for them"
        )
    if classes is None:
        del found["num_classes"]
    asked = {} if num_classes is None else {"num_classes": num_classes}
    return fewest_options(state, name, found, {**sizes.options, **asked}, source)


def _fill(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str, sizes: ImageSizes, source: str
) -> None:
    """Load `tensors` into the `model` that timm calls `name`. Raises `InputError` where they are
    not its own, or not finite."""
    if problems := differences(tensors, model):
        size = f" for images of {told(sizes.used)}" if sizes.used and sizes.changed else ""
        raise InputError(
            f"{source}: does not fit timm {name}{size}: {'; '.join(problems)}: give the model it"
            " was trained as (model.name, and model.options for other constructor arguments)"
            + (", or leave out data.input_size" if size else "")
        )
    model.load_state_dict(tensors)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{source}: {key} holds NaN or infinity; give an intact checkpoint")


def _with_head(
    model: nn.Module, spec: ModelSpec, head: Head | None, source: str
) -> tuple[nn.Module, ModelSpec]:
    """The loaded `model` with all of `head` but the layers it has, and how to rebuild it."""
    if head is not None:
        place = head_place(model)
        if head.layers == ():
            set_layers(model, place, head, source)
        set_ends(model, place, head, source)
    return model.eval(), spec.model_copy(update={"head": head})


def _fit(
    state: Mapping[str, Tensor], model: nn.Module, resampled: Set[str], antialias: bool
) -> dict[str, Tensor]:
    """Return `state` in the layout of `model` where timm can convert it, else nearly as it is.

    `resampled`: what may be, as for another image size or patch; `antialias`: whether positions are
    smoothed then.
    """
    own = model.state_dict()
    plain = {key: state[key] for key in state if key in own or not _DERIVED.match(key)}
    if not resampled and not differences(plain, model):
        return plain
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return plain
    told = {"adapt_layer_scale": True, "antialias": antialias}  # the first: for DeiT III
    takes = inspect.signature(convert).parameters
    convert = functools.partial(convert, **{key: told[key] for key in told if key in takes})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm, about how it interpolates
            converted: dict[str, Tensor] = convert(dict(plain), model)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return plain
    # Renaming and reshaping is welcome; resampling that nobody asked for, and leaving tensors out,
    # would go unnoticed.
    same = _count(converted, resampled) == _count(plain, resampled)
    return converted if same else plain


def _count(state: Mapping[str, Tensor], aside: Set[str]) -> int:
    return sum(tensor.numel() for key, tensor in state.items() if key not in aside)


def _resampled(
    state: Mapping[str, Tensor], model: nn.Module, sizes: ImageSizes, options: Mapping[str, Any]
) -> set[str]:
    """The names of the tensors to resample for `model`, in which the grid of the checkpoint is
    noted, as timm wants it."""
    found = set[str]()
    stem, own = state.get(_STEM), model.state_dict().get(_STEM)
    if "patch_size" in options and stem is not None and own is not None and stem.ndim == 4:
        found |= {_STEM} if stem.shape[2:] != own.shape[2:] else set()
    if sizes.changed or found:
        found |= set(filter(POSITIONS.match, state))
        cast(Any, model).pretrained_model_args = {"img_size": sizes.trained}
    return found


def published(name: str) -> Converted:
    """What is known beforehand of the published weights of the timm model `name`.

    Raises `InputError` for a name that timm does not know.
    """
    size = pretrained_cfg(ModelSpec(timm=name))["input_size"][1:]
    return Converted(timm=name, tensors={}, preprocess={"input_size": size})


def pretrained_model(
    name: str, choice: Choice = _AS_IT_IS, sized: Mapping[str, Any] | None = None
) -> tuple[nn.Module, ModelSpec]:
    """Return the timm model `name` with its published weights, its output as in `choice`, and how
    to rebuild it.

    `sized`: an `img_size` to which timm resamples its positions, where it is not that of training.

    Raises `InputError` when timm does not know the name, has no weights for it, or cannot fetch
    them.
    """
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    source = f"timm:{name}"
    check_name(name, source)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **(sized or {}))
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{source}: cannot get the pretrained weights: {one_line(error)};"
            " without a network, give a local checkpoint instead"
        ) from error
    cfg: Any = model.pretrained_cfg
    options = {"num_classes": model.num_classes, "in_chans": cfg["input_size"][0], **(sized or {})}
    return _with_head(model, ModelSpec(timm=name, options=options), choice.of(None), source)


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
