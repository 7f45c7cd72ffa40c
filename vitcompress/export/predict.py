"""What any exported model says of images, as its file says that they are prepared.

Without torch, which takes seconds to import. What an output folder has as `predict.py` is made of
the template beside this file, and does the same for one model.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image

MODEL = "model.onnx"
_MOST_RESIZED = 2**25  # pixels
_PREFIX = "vitcompress."
_TOP = 5
_SHOWN = 8  # numbers of an embedding that are printed
_WHOLE = ("uint8", "uint16", "int16")  # integers whose range is known
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The only decoders that are tried, whatever a file is called.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")


class BadInput(Exception):
    """What a user gave is wrong: told in one line."""


class Prediction(NamedTuple):
    """`output`: float32 [...], as the model gives it. `facts`: what it means, as plain JSON."""

    image: str
    output: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """An exported file, held ready, and what it says of itself.

    `preprocessing`: by the names of timm (`input_size`, `mean`, `std`, `crop_pct`,
    `interpolation`, `crop_mode`), with `channels`, and where they are set, `floor_crop` and
    `float_resize`.
    """

    session: onnxruntime.InferenceSession
    preprocessing: dict[str, Any]
    task: str
    class_names: tuple[str, ...] | None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels float32 [C, H, W] → output [...]. One image at a time: a layer whose activations
        are quantized dynamically takes their range from the whole batch."""
        (entry,) = self.session.get_inputs()
        output: np.ndarray = self.session.run(None, {entry.name: pixels[None]})[0][0]
        return output


def load(path: Path) -> Model:
    """The model in the ONNX file `path`. Raises `BadInput` where it cannot be used."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give the {MODEL} that a run has written")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not _adds_exactly() and _version() >= (1, 30):  # it ends the process of earlier ones
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: onnxruntime ≥ 1.24 is needed to load it: {reason}") from None
    said = session.get_modelmeta().custom_metadata_map
    if not {f"{_PREFIX}preprocessing", f"{_PREFIX}task"} <= said.keys():
        raise BadInput(
            f"{path}: does not say how images are prepared; give the {MODEL} that a run has written"
        )
    try:
        spec = json.loads(said[f"{_PREFIX}preprocessing"])
        names = json.loads(said.get(f"{_PREFIX}class_names", "null"))
        (entry,) = session.get_inputs()
        if [spec["channels"], *spec["input_size"]] != entry.shape[1:]:
            raise ValueError(f"it reads {entry.shape}")
        names = None if names is None else tuple(map(str, names))
        if names is not None and len(names) != session.get_outputs()[0].shape[-1]:
            raise ValueError(f"{len(names)} class names")
    except Exception as error:  # whatever somebody has written there
        raise BadInput(f"{path}: what it says of itself is wrong ({_reason(error)})") from None
    return Model(session, preprocessing=spec, task=said[f"{_PREFIX}task"], class_names=names)


def _version() -> tuple[int, ...]:
    """Of onnxruntime: the first two numbers."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def _adds_exactly() -> bool:
    """Whether the processor adds products of 8 bits in 32: elsewhere slower kernels must do it."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def predictions(
    model: Model, images: Sequence[str], threshold: float = 0.5
) -> Iterator[Prediction]:
    """What `model` says of each of the files `images`, one after the other; a folder stands for the
    images in it, at any depth.

    `threshold`: the probability from which an output counts as yes. Raises `BadInput`.
    """
    for image in (each for given in images for each in _files(given)):
        pixels = prepared(Path(image), model.preprocessing)
        try:
            output = model(pixels)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise BadInput(f"{image}: the model cannot be run: {_reason(error)}") from None
        if not np.isfinite(output).all():
            raise BadInput(f"{image}: the output is NaN or infinite; give another model or image")
        yield Prediction(image, output, meaning(model, output, threshold))


def _files(given: str) -> list[str]:
    """The images in a folder, sorted; else what is `given`."""
    if not Path(given).is_dir():
        return [given]
    files = sorted(
        file
        for file in Path(given).rglob("*")
        if file.suffix.lower() in _ENDINGS and file.is_file()
    )
    if not files:
        raise BadInput(f"{given}: no images in it ({', '.join(_ENDINGS)})")
    return list(map(str, files))


def meaning(model: Model, output: np.ndarray, threshold: float) -> dict[str, Any]:
    """What `output` [...] says by the task of `model`."""
    values = output.astype(np.float64)
    if model.task == "classification":
        shares = np.exp(values - values.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[:_TOP]
        return {"classes": [_class(model, int(i), shares[i]) for i in best]}
    if model.task in ("multi_label", "one_logit"):
        shares = 0.5 * (1 + np.tanh(values / 2))  # the logistic function, whatever the magnitude
        if model.task == "one_logit":
            return {"yes": bool(shares[0] >= threshold), "probability": float(shares[0])}
        found = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] >= threshold]
        return {"classes": [_class(model, i, shares[i]) for i in found]}
    if model.task == "regression":
        return {"values": values.tolist()}
    return {"embedding": output.tolist()}


def _class(model: Model, number: int, probability: float) -> dict[str, Any]:
    name = str(number) if model.class_names is None else model.class_names[number]
    return {"class": name, "probability": float(probability)}


def prepared(path: Path, spec: dict[str, Any]) -> np.ndarray:
    """The model input for one image file: float32 [channels, height, width].

    A picture of 8 bits becomes grey for a model of 1 channel, and RGB for one of 3. Of arrays in
    .npy, [channels, height, width] or [height, width, channels], and of greys of more bits, each
    channel is prepared on its own, in floats: integers over the largest of their type, floats as
    they are. Raises `BadInput` for what cannot be read, or has other channels.
    """
    channels, means = spec["channels"], spec["mean"]
    try:
        if path.exists() and not path.is_file():
            raise ValueError("a device, a pipe or a folder")
        image = _array(path, channels) if path.suffix.lower() == ".npy" else _picture(path)
        if isinstance(image, Image.Image) and channels in (1, 3):
            image = image.convert("RGB" if channels == 3 else "L")
        if isinstance(image, Image.Image) and channels in (1, 3) and not spec.get("float_resize"):
            planes = np.asarray(_fitted(image, spec, [round(255 * mean) for mean in means]))
            planes = planes.reshape(*planes.shape[:2], channels).transpose(2, 0, 1)
            pixels = planes.astype(np.float32) / np.float32(255)
        else:
            of_each = zip(_floats(np.asarray(image), channels), means, strict=True)
            fitted = [_fitted(Image.fromarray(plane), spec, [mean]) for plane, mean in of_each]
            pixels = np.stack([np.asarray(plane) for plane in fitted])
    except Exception as error:  # decoders of damaged files raise almost anything
        raise BadInput(f"{path}: unreadable ({_reason(error)}); give another image") from None
    mean, std = (np.array(spec[key], np.float32)[:, None, None] for key in ("mean", "std"))
    normalised: np.ndarray = (pixels - mean) / std
    return normalised


def _picture(path: Path) -> Image.Image | np.ndarray:
    """A picture of 8 bits, or an array [height, width] of more."""
    with Image.open(path, formats=_FORMATS) as image:
        image.load()
        if image.mode.startswith(("I", "F")):
            return np.asarray(image)
        # The same colours as the direct way, which warns.
        clear = image.mode == "P" and "transparency" in image.info
        return image.convert("RGBA") if clear else image.copy()


def _array(path: Path, channels: int) -> Image.Image | np.ndarray:
    """The same of an array, whose channels come last."""
    array: np.ndarray = np.load(path, allow_pickle=False)
    if array.ndim == 3 and array.shape[0] == channels != array.shape[2]:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    coloured = array.ndim == 2 or array.shape[2] == 3
    is_picture = array.dtype == np.uint8 and channels in (1, 3) and coloured
    return Image.fromarray(array) if is_picture else array


def _floats(array: np.ndarray, channels: int) -> np.ndarray:
    """[height, width] or [height, width, channels] as floats, channels first."""
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if len(planes) == 1 and channels == 3:
        planes = planes.repeat(3, 0)
    kind = array.dtype
    if len(planes) != channels or not (kind.kind == "f" or kind.name in _WHOLE):
        wanted = f"{channels} channels of floats, {', '.join(_WHOLE)}"
        raise ValueError(f"{kind} of shape {list(array.shape)}, and the model takes {wanted}")
    values = np.ascontiguousarray(planes, np.float32)
    return values if kind.kind == "f" else values / np.float32(np.iinfo(kind).max)


def _fitted(image: Image.Image, spec: dict[str, Any], border: list[float]) -> Image.Image:
    """`image` resized and cropped to `input_size`, as timm and torchvision do it; `border`: the
    colour of what a crop mode of this name adds."""
    height, width = spec["input_size"]
    tall, wide = (math.floor(side / spec["crop_pct"]) for side in (height, width))
    if spec["crop_mode"] == "squash":
        size = (wide, tall)
    elif spec["crop_mode"] == "center" and tall == wide:
        short, long = sorted(image.size)
        longer = int(tall * long / short)
        size = (tall, longer) if image.width <= image.height else (longer, tall)
    else:
        choose = max if spec["crop_mode"] == "border" else min
        ratio = choose(image.height / tall, image.width / wide)
        size = (round(image.width / ratio), round(image.height / ratio))
    if math.prod(size) > _MOST_RESIZED:
        raise ValueError(f"would have {size[0]}×{size[1]} pixels before it is cropped")
    if size != image.size:
        image = image.resize(size, Image.Resampling[spec["interpolation"].upper()])
    if spec["crop_mode"] == "border":
        return _cropped(image, width, height, border)
    if spec.get("floor_crop"):
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    return _cropped(image, width, height, [0] * len(image.getbands()))


def _cropped(image: Image.Image, width: int, height: int, fill: list[float]) -> Image.Image:
    """The middle of `image`, with borders of the colour `fill` where it is smaller."""
    wide, tall = max(width, image.width), max(height, image.height)
    if (wide, tall) != image.size:
        colour = tuple(fill) if len(fill) > 1 else fill[0]
        padded = Image.new(image.mode, (wide, tall), colour)
        padded.paste(image, ((wide - image.width) // 2, (tall - image.height) // 2))
        image = padded
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:160] or type(error).__name__


def written(found: Sequence[Prediction], file: Path) -> None:
    """Write `outputs` [n, ...] and the names of the `images` [n] to a .npz. Raises `BadInput` where
    it cannot be written to."""
    outputs, images = [each.output for each in found], [each.image for each in found]
    try:
        with file.open("wb") as opened:
            np.savez(opened, outputs=np.stack(outputs), images=np.array(images))
    except OSError as error:
        raise BadInput(f"--npz {file}: cannot be written to: {_reason(error)}") from None


def told(prediction: Prediction) -> str:
    """A prediction in words: a line with the name of the image, and what is found, one a line."""
    facts, lines = prediction.facts, [prediction.image]
    if "classes" in facts:
        lines += [f"  {100 * c['probability']:6.2f} %  {c['class']}" for c in facts["classes"]]
        lines += [] if facts["classes"] else ["  none of its classes"]
    elif "yes" in facts:
        lines += [f"  {'yes' if facts['yes'] else 'no'} ({100 * facts['probability']:.2f} %)"]
    elif "values" in facts:
        lines += ["  " + " ".join(f"{value:.6g}" for value in facts["values"])]
    else:
        shape, first = list(prediction.output.shape), prediction.output.flat[:_SHOWN]
        more = " …" if prediction.output.size > _SHOWN else ""
        lines += [f"  embedding {shape}: {' '.join(f'{value:.4g}' for value in first)}{more}"]
    return "\n".join(lines)


def as_json(found: Sequence[Prediction], task: str) -> list[dict[str, Any]]:
    return [{"image": each.image, "task": task, **each.facts} for each in found]
