"""What the benchmarks share: options, models whose weights are drawn, images drawn as a run draws
them, and files timed in turns."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from vitcompress import targets
from vitcompress.data.images import open_images
from vitcompress.data.preprocess import Preprocess
from vitcompress.measure.runtime import Timing, time_in_turns
from vitcompress.model.architecture import Architecture, VitModel
from vitcompress.model.families import adopt
from vitcompress.stages.cache import Cache
from vitcompress.stages.context import Context


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of one model have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--images", type=int, default=256, help="to calibrate on")
    parser.add_argument("--limit", type=int, help="images to evaluate on")
    return parser


def context_of(model: VitModel, calibration: str, images: int, cache: Path) -> Context:
    """What a stage may use: `images` of the folder `calibration`, in the order of a run."""
    sample = open_images(calibration, labelled=False, limit=images, seed=0)
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
    return Context(
        dense=model,
        calibration=sample.subset(order.tolist()),
        preprocess=model.preprocess,
        seed=0,
        device=torch.device("cpu"),
        cache=Cache(cache, resume=True),
    )


@torch.no_grad()
def drawn(name: str, options: Mapping[str, Any], size: int) -> VitModel:
    """A model of timm for images of `size` pixels whose weights are drawn."""
    torch.manual_seed(0)
    module = timm.create_model(name, **options).eval().requires_grad_(False)
    for key, parameter in module.named_parameters():
        if parameter.ndim > 1:  # timm draws them too small to tell images apart
            parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
        elif "norm" not in key:
            parameter.copy_(torch.randn(parameter.shape) / 2)
        elif key.endswith("weight"):  # those of Swin V2 begin at zero, and its blocks do nothing
            parameter.fill_(1)
    grey = (0.5, 0.5, 0.5)
    return VitModel(
        module=adopt(module),
        architecture=Architecture(timm=name, options=dict(options)),
        preprocess=Preprocess(
            input_size=(size, size), mean=grey, std=grey, crop_pct=1, interpolation="bicubic"
        ),
    )


Key = tuple[str, str]
"""What a file is, and the target in whose runtime it is run."""


def timed(
    files: Mapping[Key, Path], pixels: np.ndarray, threads: int, seconds: float, runs: int = 50
) -> dict[Key, Timing]:
    """Latencies of all files, in turns."""
    held = {
        " in ".join(key): targets.load_target(key[1]).session(file, threads)
        for key, file in files.items()
    }
    found = time_in_turns(held, pixels, seconds, runs)
    return dict(zip(files, found.values(), strict=True))


def beside(found: Timing, baseline: Timing) -> str:
    """A cell of a table: a latency, and how many times as fast as the baseline that is."""
    return f"{found.p50:.1f} ms, {baseline.p50 / found.p50:.2f}×"


def size(file: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    others = (file.with_suffix(".bin"), file.with_name(f"{file.name}.data"))
    return sum(each.stat().st_size for each in (file, *others) if each.exists())
