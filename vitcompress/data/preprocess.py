"""How an image becomes the model's input: facts as data, and timm's evaluation transform."""

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitcompress.errors import InputError

if TYPE_CHECKING:  # torch and Pillow are slow to import, and the recipe schema needs neither
    import torch
    from PIL.Image import Image

    from vitcompress.data.decoding import Pixels

Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]

_LONGEST = 8192  # pixels of a side
_MOST_RESIZED = 2**25  # pixels before the crop: 500 times as long as wide, for 224 pixels
_OWN = {"channels", "input_size", "floor_crop", "float_resize"}  # which timm's transform has not


class Preprocess(BaseModel):
    """The evaluation preprocessing of one model, in timm's terms.

    `input_size` is (height, width) in pixels; one number means a square. `mean` and `std` have one
    value a channel, on the 0…1 scale. The image is resized to input_size / `crop_pct`, then
    cropped. `crop_mode` says how: "center" keeps the aspect ratio and cuts what sticks out,
    "squash" does not keep it, "border" pads. Of an odd number of pixels to cut, the half on the
    left and top is rounded to even, or down where `floor_crop` is set. Pictures of 8 bits are
    rounded to these when they are resized, but not where `float_resize` is set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input_size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: Interpolation
    crop_mode: CropMode = "center"
    # Not written where they are not set: as it was before, and as timm takes it.
    floor_crop: Annotated[bool, Field(exclude_if=operator.not_)] = False
    float_resize: Annotated[bool, Field(exclude_if=operator.not_)] = False

    @field_validator("input_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < min(self.input_size) <= max(self.input_size) <= _LONGEST:
            raise ValueError(f"input_size {self.input_size} must be positive, up to {_LONGEST}")
        if not 0 < self.channels <= _LONGEST:
            raise ValueError(f"channels {self.channels} must be positive, up to {_LONGEST}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values and the model {self.channels} channels; "
                    f"give {name} one value a channel"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} must lie in (0, 1]")
        return self

    def in_words(self) -> str:
        """How to prepare an image, for whoever writes that again."""
        height, width = self.input_size
        tall, wide = (int(side / self.crop_pct) for side in self.input_size)
        smooth = "" if self.interpolation == "nearest" else ", which is antialiased"
        exact = "floats" if self.float_resize else "8 bits"
        how = f"with Pillow's {self.interpolation} filter{smooth}, in {exact}"
        resize = {
            "squash": f"resize to {tall} × {wide} pixels (height × width), {how}",
            "border": f"resize to fit into {tall} × {wide} pixels (height × width), {how}",
            "center": f"resize to cover {tall} × {wide} pixels (height × width), {how}",
        }[self.crop_mode]
        fill = "the mean" if self.crop_mode == "border" else "zeros"
        colours = {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")
        return (
            f"take the image as {colours}, 8 bits; {resize}; take the middle {height} × {width} "
            f"(what lies outside is {fill}); divide by 255; subtract {list(self.mean)} and divide "
            f"by {list(self.std)}, by channel; float32 [images, {self.channels}, {height}, {width}]"
        )

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping[str, Any], **overrides: Any) -> Self:
        """Read timm's `pretrained_cfg`; what it leaves out takes timm's own defaults.

        `overrides` are fields of this model that win over it; one that is None counts as not given.
        Raises InputError for values that no model can be prepared with.
        """
        from timm.data import resolve_data_config

        # The first argument must not be empty when the second is; a None there counts as absent.
        resolved = resolve_data_config({"in_chans": None}, pretrained_cfg=dict(pretrained_cfg))
        channels, height, width = resolved.pop("input_size")
        facts = {"input_size": (height, width), "channels": channels, **resolved}
        facts |= {key: value for key, value in overrides.items() if value is not None}
        channels = facts["channels"]
        for key in ("mean", "std"):
            if len(facts[key]) != channels:
                known = f"has {len(facts[key])} number(s)" if overrides.get(key) else "is not known"
                raise InputError(
                    f"data.{key}: {known} for a model of {channels} channel(s); give data.mean and "
                    f"data.std as in its training, {channels} number(s) each"
                )
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            raise InputError(f"preprocessing: {_one_line(error)}") from None


def model_input(image: "Pixels", spec: Preprocess) -> "torch.Tensor":
    """Return the model input for one image: float32 [channels, height, width].

    The result is that of timm's evaluation transform, but for `floor_crop` and `float_resize`.
    Before it a picture becomes RGB, or L for a one-channel model, as torchvision's ImageFolder does
    it: transparency is dropped and the EXIF orientation is not applied. Of images with other
    channels, or more than 8 bits, each channel is put through the same steps on its own, in floats;
    see `channels.fitted`, which also says what is raised. What is prepared already is only resized,
    where that is asked for; `InputError` for other channels.
    """
    import torch
    from PIL import Image

    from vitcompress.data.channels import fitted
    from vitcompress.data.decoding import Prepared, check_pixels

    if isinstance(image, Prepared):
        return _resized(torch.from_numpy(image.values), spec)
    found = fitted(image, spec.channels, floats=spec.float_resize)
    height, width = found.size[::-1] if isinstance(found, Image.Image) else found.shape[1:]
    check_pixels(*_resized_to(height, width, spec), _MOST_RESIZED)
    if isinstance(found, Image.Image):
        return _transform(spec)(found)
    steps = zip(_by_channel(spec), found, strict=True)
    return torch.cat([prepare(Image.fromarray(values)) for prepare, values in steps])


def _resized_to(height: int, width: int, spec: Preprocess) -> tuple[float, float]:
    """The width and height that an image gets before it is cropped: large where it is very narrow,
    and its shorter side becomes as long as that of the model."""
    tall, wide = (side / spec.crop_pct for side in spec.input_size)
    if spec.crop_mode != "center":
        return wide, tall
    scale = max(tall / height, wide / width)
    return width * scale, height * scale


def _resized(pixels: "torch.Tensor", spec: Preprocess) -> "torch.Tensor":
    """Prepared `pixels` [C, H, W] as large as `spec` has them."""
    import torch.nn.functional as F

    if pixels.ndim != 3 or len(pixels) != spec.channels:
        raise InputError(
            f"has prepared pixels {list(pixels.shape)}, and the model takes {spec.channels} "
            "channel(s), [C, H, W]"
        )
    if not pixels.isfinite().all():
        raise ValueError("holds pixels that are NaN or infinite")
    pixels = pixels.float()
    if pixels.shape[1:] == spec.input_size:
        return pixels
    return F.interpolate(pixels[None], spec.input_size, mode="bicubic", antialias=True)[0]


@lru_cache(maxsize=16)
def _transform(spec: Preprocess) -> "Callable[[Image], torch.Tensor]":
    """timm's transform, for pictures."""
    from timm.data import create_transform
    from torchvision.transforms import CenterCrop

    facts = spec.model_dump(exclude=_OWN)
    transform: Any = create_transform((spec.channels, *spec.input_size), is_training=False, **facts)
    if spec.floor_crop:
        steps = transform.transforms
        crop = partial(_floor_crop, size=spec.input_size)
        steps[:] = [crop if isinstance(step, CenterCrop) else step for step in steps]
    return cast("Callable[[Image], torch.Tensor]", transform)


@lru_cache(maxsize=16)
def _by_channel(spec: Preprocess) -> "list[Callable[[Image], torch.Tensor]]":
    """The same for each channel, as a picture of floats."""
    from timm.data.transforms import CenterCropOrPad

    found = []
    for mean, std in zip(spec.mean, spec.std, strict=True):
        own = {"channels": 1, "mean": (mean,), "std": (std,)}
        transform: Any = _transform.__wrapped__(spec.model_copy(update=own))
        for step in transform.transforms:
            if isinstance(step, CenterCropOrPad):
                step.fill = mean  # timm has it in 8 bits
        found.append(transform)
    return found


def _floor_crop(image: "Image", size: tuple[int, int]) -> "Image":
    left, top = (image.width - size[1]) // 2, (image.height - size[0]) // 2
    return image.crop((left, top, left + size[1], top + size[0]))


def _one_line(error: ValidationError) -> str:
    parts = []
    for detail in error.errors():
        where = ".".join(str(place) for place in detail["loc"])
        what = detail["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)
