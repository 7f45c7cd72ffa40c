"""Models and images that are in memory, as the files that a run reads."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitcompress.data.decoding import Prepared, encode
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel

Prepareds = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Prepared pixels, [n, C, H, W] or [C, H, W], each alone or with the labels, [n] or []: what a
`torch.utils.data.DataLoader` gives."""

_SAME = 1e-3  # of the largest output: what other operators of equal weights may differ by


def checkpoint_of(module: nn.Module, name: str | None, folder: Path) -> tuple[Path, str | None]:
    """The tensors of `module` in a file in `folder`, and what timm calls it: `name`, or as a module
    that timm has made says itself."""
    known = getattr(module, "pretrained_cfg", None)
    told = known.get("architecture") if isinstance(known, dict) else None
    name = name or told
    path = folder / f"{name or 'model'}.safetensors"
    state = {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}
    save_file(state, path)
    return path, name


@torch.no_grad()
def check_same(module: nn.Module, model: VitModel) -> None:
    """Raise `InputError` where `model`, made of the tensors of `module`, computes something else:
    then `module` is not what timm calls so."""
    size = (2, model.preprocess.channels, *model.preprocess.input_size)
    pixels = torch.randn(size, generator=torch.Generator().manual_seed(0))
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    was_training = module.training
    try:
        given = module.eval()(pixels.to(device))
    finally:
        module.train(was_training)
    if not isinstance(given, Tensor):
        raise InputError(
            f"model: gives a {type(given).__name__} and not a tensor; wrap it in a module that does"
        )
    made = model.module(pixels)
    given = given.to(made)
    if given.shape != made.shape or (given - made).abs().max() > _SAME * made.abs().max():
        raise InputError(
            f"model: computes something else than timm's {model.architecture.timm} with its "
            "weights; give the name of what it is, and its options as model.options.KEY=VALUE"
        )


def archive_of(images: Prepareds, path: Path, most: int | None = None) -> Path:
    """A .tar at `path` of the first images, `most` of them, with their labels where they have any.

    Raises `InputError` for what is no image, and where there are none.
    """
    with tarfile.open(path, "w") as archive:
        count = 0
        for pixels, label in islice(_one_by_one(images), most):
            _add(archive, f"{count:08d}.npz", encode(Prepared(_floats(pixels))))
            if label is not None:
                _add(archive, f"{count:08d}.cls", str(int(label)).encode())
            count += 1
    if not count:
        raise InputError(f"{path.stem}: gives no images")
    return path


def _one_by_one(images: Prepareds) -> Iterator[tuple[Tensor, Tensor | None]]:
    for given in images:
        pixels, labels = given if isinstance(given, tuple | list) else (given, None)
        if not isinstance(pixels, Tensor) or pixels.ndim not in (3, 4):
            raise InputError(
                "images: give tensors [n, C, H, W] or [C, H, W], alone or with their labels, not "
                f"{_told(pixels)}"
            )
        if pixels.ndim == 3:
            yield pixels, labels
            continue
        for index, image in enumerate(pixels):
            yield image, None if labels is None else labels[index]


def _told(given: object) -> str:
    shape = list(given.shape) if isinstance(given, Tensor) else ""
    return f"{type(given).__name__} {shape}".strip()


def _floats(pixels: Tensor) -> np.ndarray:
    if not pixels.is_floating_point():
        raise InputError(
            f"images: are {pixels.dtype}; give them as the model takes them, in floats"
        )
    return pixels.detach().float().cpu().numpy()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
