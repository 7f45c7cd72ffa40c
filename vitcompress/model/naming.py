"""Which timm model a state dict belongs to, told from its tensor shapes or its file name."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitcompress.errors import InputError
from vitcompress.foreign import reading
from vitcompress.model.options import check_options

_SPARE_PARAMETERS = 20_000_000
_REMEDY = "pass --model NAME or set model.name in the recipe"
_MODULES = ("vision_transformer", "deit")  # of timm.models: the plain ViT and DeiT families
_FILLING = frozenset(
    {
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        Tensor.mul_,
        Tensor.add_,
        Tensor.clamp_,
        Tensor.fill_,
        Tensor.zero_,
    }
)
_HEAD = re.compile(r"head(_dist)?\.")
_PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


def check_name(name: str, source: str) -> None:
    """Raise `InputError` for a name, or a pretrained tag after its dot, that timm does not know."""
    import timm

    if not is_known(name):
        names = [*timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{source}: timm has no model {name!r}{hint}; {_REMEDY}")


def check_parameters(name: str, options: Mapping[str, Any], held: int, source: str) -> None:
    """Raise `InputError` where the timm model `name` has far more parameters than the `held` values
    that are to fill it: it would take long to build, and more memory than there is."""
    needed = sum(each.numel() for each in skeleton(name, options, source).parameters())
    if needed > _SPARE_PARAMETERS + 4 * held:
        raise InputError(
            f"{source}: does not fit timm {name} with {dict(options)}, which has"
            f" {needed / 1e6:,.0f} million parameters and not {held / 1e6:,.0f}; correct model.name"
            " or model.options"
        )


def build_timm(name: str, options: Mapping[str, Any], source: str) -> nn.Module:
    """Return the untrained timm model `name`.

    Raises `InputError` for options that its constructor refuses, and as `check_name`.
    """
    import timm

    check_name(name, source)
    check_options(options, f"{source}: model.options")
    problem = f"timm cannot build {name} with {dict(options)}"
    with reading(source, problem, "correct model.options in the recipe"):
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


class _Unfilled(TorchFunctionMode):
    """Tensors without memory are not filled: nothing would come of it, and it takes long."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def skeleton(name: str, options: Mapping[str, Any], source: str) -> nn.Module:
    """Return `build_timm`'s model without memory for its tensors: shapes only."""
    with torch.device("meta"), _Unfilled():
        return build_timm(name, options, source)


def found_options(
    state: Mapping[str, Tensor], name: str, options: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Return `options` completed by what the checkpoint says.

    These are its class count, its input channels and, where it differs from the default of
    `name`, its image size. Options that are given stay as they are.

    Raises `InputError` when the position embedding is not that of a square image, and as
    `build_timm`.
    """
    model = skeleton(name, options, source)
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    found: dict[str, Any] = {}
    if (classes := _class_count(state, cfg.get("classifier"))) is not None:
        found["num_classes"] = classes
    stem = state.get(f"{cfg.get('first_conv')}.weight")
    if stem is not None and stem.ndim == 4:
        found["in_chans"] = stem.shape[1]
    if "img_size" not in options and (size := _image_size(state, model, name, source)):
        found["img_size"] = size
    return {**found, **options}


def fewest_options(
    state: Mapping[str, Tensor],
    name: str,
    options: dict[str, Any],
    given: Mapping[str, Any],
    source: str,
) -> dict[str, Any]:
    """Return those of `options` that are needed beside `given` to make the same model of `name`.

    So a checkpoint is described alike, whatever layout it came in.
    """
    try:
        fewer = found_options(state, name, given, source)
    except InputError:
        return options  # without them, its positions cannot be understood
    if fewer == options:
        return options
    full, plain = skeleton(name, options, source), skeleton(name, fewer, source)
    same = _behaviour(full) == _behaviour(plain) and not differences(full.state_dict(), plain)
    return fewer if same else options


def _class_count(
    state: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None
) -> int | None:
    """Return how many classes the head `classifier` (timm's name of it) tells apart, if any."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    tensors = (state.get(f"{name}.{kind}") for name in names for kind in ("weight", "bias"))
    return next((tensor.shape[0] for tensor in tensors if tensor is not None and tensor.ndim), None)


def _image_size(
    state: Mapping[str, Tensor], model: nn.Module, name: str, source: str
) -> int | None:
    """Return the image size behind the position embedding; None if it is the default or unseen."""
    stored, default = state.get("pos_embed"), getattr(model, "pos_embed", None)
    patches: Any = getattr(model, "patch_embed", None)
    if stored is None or stored.ndim != 3 or default is None or patches is None:
        return None
    if stored.shape[1] == default.shape[1]:
        return None
    tokens = stored.shape[1] - (
        default.shape[1] - patches.num_patches
    )  # less class tokens and such
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side**2 != tokens:
        raise InputError(
            f"{source}: its position embedding {list(stored.shape)} is no square grid of patches"
            f" for timm {name}; {_REMEDY}, and model.options.img_size if the images are not square"
        )
    return side * int(patches.patch_size[0])


def differences(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Say how `state` differs from the tensors of `model`; an empty list when they fit exactly."""
    wanted = model.state_dict()
    missing = [f"{key} {_shape(wanted[key])}" for key in wanted if key not in state]
    unexpected = [f"{key} {_shape(state[key])}" for key in state if key not in wanted]
    shaped = [
        f"{key} {_shape(state[key])} instead of {_shape(wanted[key])}"
        for key in wanted
        if key in state and _shape(state[key]) != _shape(wanted[key])
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    return [
        f"{len(found)} {kind} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for kind, found in groups.items()
        if found
    ]


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} ".removeprefix("torch.")
    return f"{kind}{list(tensor.shape)}"


def matching_models(state: Mapping[str, Tensor], headless: bool = False) -> dict[str, nn.Module]:
    """Return the plain ViT and DeiT models of timm that fit `state`, by name, sorted by it.

    Every tensor must be there with its shape; class count, input channels and image size are free,
    but where timm has a model for several image sizes, those of the checkpoint's size go before.
    With `headless` they are made without a head. The networks hold shapes only.
    """
    import timm

    outline, fitting, resized = _outline(state), {}, set()
    without: dict[str, Any] = {"num_classes": 0} if headless else {}
    for name in sorted({name for module in _MODULES for name in timm.list_models(module=module)}):
        one_block = skeleton(name, {"depth": 1}, name)  # before building the whole
        if outline != _outline(one_block.state_dict()):
            continue
        try:
            options = found_options(state, name, {"depth": 1, **without}, name)
        except InputError:
            continue  # no square image has this position embedding
        del options["depth"]
        model = skeleton(name, options, name)
        if not differences(state, model):
            fitting[name] = model
            if "img_size" in options:
                resized.add(name)
    native = {_sizeless(name) for name in fitting.keys() - resized}
    return {
        name: model
        for name, model in fitting.items()
        if name not in resized or _sizeless(name) not in native
    }


def _sizeless(name: str) -> str:
    """Return a timm name without the image size at its end."""
    return re.sub(r"_\d{3}$", "", name)


def _outline(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the shapes of all but the later blocks, the head, and what depends on the image."""
    outline = {
        key: _shape(tensor)
        for key, tensor in state.items()
        if not _HEAD.match(key) and (key.startswith("blocks.0.") or not key.startswith("blocks."))
    }
    if "pos_embed" in outline:
        outline["pos_embed"] = "any size"
    if (stem := state.get("patch_embed.proj.weight")) is not None:
        outline["patch_embed.proj.weight"] = str([stem.shape[0], *stem.shape[2:]])
    return outline


def infer_name(state: Mapping[str, Tensor], source: str, headless: bool = False) -> str:
    """Return the timm name of the model in `state`, read from the file or folder `source`.

    `headless`: whether its head is none of timm's.

    The file's name tells it (a known pretrained tag such as `.augreg_in21k` included), else the
    shapes do: when all models that fit compute the same from the same preprocessing.

    Raises `InputError` when that leaves none or several.
    """
    named = _names_in(Path(source).name)
    if len(named) == 1:
        return named[0]
    fitting = matching_models(state, headless)
    if len(agreed := [name for name in named if name.partition(".")[0] in fitting]) == 1:
        return agreed[0]
    if not fitting:
        raise InputError(f"{source}: its tensors fit no plain ViT or DeiT of timm; {_REMEDY}")
    names = list(fitting)
    if len({_behaviour(model) for model in fitting.values()}) == 1:
        return names[0]
    several = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raise InputError(
        f"{source}: cannot tell which model it is: its tensors fit {several},"
        f" which differ in what they compute or how images are prepared; {_REMEDY}"
    )


def _names_in(filename: str) -> list[str]:
    """Return the timm names that stand in `filename` as whole words, less those inside others."""
    import timm

    text = filename.lower()
    names = [name for name in timm.list_models() if _stands_in(name, text)]
    longest = [name for name in names if not any(name in other != name for other in names)]
    tagged = [name for name in timm.list_pretrained() if _stands_in(name, text)]
    return [
        max((tag for tag in tagged if tag.partition(".")[0] == name), key=len, default=name)
        for name in longest
    ]


def _stands_in(name: str, text: str) -> bool:
    return name in text and bool(re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text))


def is_known(name: str) -> bool:
    """Whether timm knows the model `name`, and its pretrained tag if there is one."""
    import timm

    bare, _, tag = name.partition(".")
    tags = {known.partition(".")[2] for known in timm.list_pretrained(bare)} if tag else {tag}
    return timm.is_model(bare) and tag in tags


def _behaviour(model: nn.Module) -> str:
    """Return what shapes do not show: kinds and settings of layers, pooling, preprocessing."""
    settings = ("num_heads", "scale", "eps", "global_pool", "num_prefix_tokens", "no_embed_class")
    seen = [
        (name, setting, getattr(module, setting))
        for name, module in model.named_modules()
        for setting in (*settings, "pool_include_prefix")
        if hasattr(module, setting)
    ]
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return f"{model} {seen} {[cfg.get(key) for key in _PREPROCESSING]}"
