"""Compare the scores of the quantize stage at equal bits: which layers get more, and which less.

    python tests/benchmarks/scores.py MODEL --calibration DIR --evaluation DIR [--classes FILE]

Prints a Markdown table: KL from the float model and agreement with it, by score and average bits,
with weights rounded and activations float, so that nothing but the allocation differs. The row
`same bits` gives all layers the same width. Evaluation images are judged without their labels.
"""

import argparse
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.model.architecture import from_source
from vitcompress.stages.context import Context
from vitcompress.stages.importance import Score
from vitcompress.stages.quantize_bits import allocated, counts, prepare, weight_errors, weighted
from vitcompress.stages.quantize_config import BitBudget, QuantizeConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.5, 4, 5, 6])
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    parser.add_argument("--crop-pct", type=float)
    parser.add_argument("--interpolation")
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    names = ("mean", "std", "crop_pct", "interpolation")
    facts = {key: getattr(given, key) for key in names if getattr(given, key) is not None}
    model = from_source(given.model, None, {}, None, facts)
    images = open_images(given.calibration, labelled=False, limit=given.images, seed=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            calibration=images.subset(order.tolist()),
            preprocess=model.preprocess,
            seed=0,
            device=torch.device("cpu"),
            cache=given.cache or Path(folder),
            resume=True,
        )
        config = QuantizeConfig(
            bits=BitBudget(average=4, widths=tuple(given.widths)), rounding="gptq"
        )
        known = prepare(model, config, context)
        errors = weight_errors(known, config)
    judged = open_images(
        given.evaluation, classes=given.classes, labelled=True, limit=given.limit, seed=1
    )
    pixels = [b.pixels for b in batches(judged, model.preprocess, 16)]
    dense = torch.cat([model.module(p) for p in pixels]).log_softmax(-1)

    def figures(bits: dict[str, int]) -> str:
        for name, b in bits.items():
            known.module.set_submodule(name, known.rounded(name, config.style, b).dequantized())
        now = torch.cat([known.module(p) for p in pixels]).log_softmax(-1)
        for name, linear in known.floats.items():
            known.module.set_submodule(name, linear)
        return f"{_kl(dense, now):.4f} / {_agreement(dense, now):.1f}"

    console.print("| score | seconds | " + " | ".join(f"{b:g} bits" for b in given.bits) + " |")
    console.print("|---|---|" + "---|" * len(given.bits))
    same = [
        figures(dict.fromkeys(known.floats, int(b))) if b in given.widths else "–"
        for b in given.bits
    ]
    console.print("| same bits | | " + " | ".join(same) + " |")
    for score in get_args(Score):
        start = time.monotonic()
        costs = weighted(errors, counts(known, config, score, errors, context))
        seconds = time.monotonic() - start
        cells = []
        for average in given.bits:
            budget = BitBudget(average=average, widths=tuple(given.widths))
            asked = config.model_copy(update={"bits": budget})
            bits = allocated(model, asked, known.floats, costs, lambda _: math.nan)
            cells.append(figures(bits))
        console.print(f"| {score} | {seconds:.0f} | " + " | ".join(cells) + " |")


def _kl(dense: Tensor, now: Tensor) -> float:
    return float((dense.exp() * (dense - now)).sum(-1).mean())


def _agreement(dense: Tensor, now: Tensor) -> float:
    return 100 * float((dense.argmax(-1) == now.argmax(-1)).double().mean())


if __name__ == "__main__":
    main()
