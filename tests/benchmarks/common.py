"""What the benchmarks share: their options, and images drawn as a run draws them."""

import argparse
from pathlib import Path

import torch

from vitcompress.data.images import open_images
from vitcompress.model.architecture import VitModel
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
        calibration=sample.subset(order.tolist()),
        preprocess=model.preprocess,
        seed=0,
        device=torch.device("cpu"),
        cache=Cache(cache, resume=True),
    )
