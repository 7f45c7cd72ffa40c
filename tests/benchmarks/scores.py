"""Compare the scores of the quantize stage at equal bits: which layers get more, and which less.

    python tests/benchmarks/scores.py --task MODEL CALIBRATION EVALUATION [KEY=VALUE ...] [--task …]

Prints a Markdown table: KL from the float model / agreement with it, by model, score and average
bits, with weights rounded (GPTQ) and activations float, so that nothing but the allocation differs.
Every score is multiplied by the measured error of each layer and width; `uniform` is that error
alone, `same bits` gives all layers one width. Evaluation images are judged without their labels.
"""

import argparse
import functools
import json
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import context_of
from torch import Tensor, nn

from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.model.architecture import from_source
from vitcompress.registry import names
from vitcompress.stages.quantize.bits import (
    allocated_bits,
    error_factors,
    scores,
    weight_errors,
    weighted,
)
from vitcompress.stages.quantize.config import BitBudget, QuantizeConfig
from vitcompress.stages.quantize.prepare import prepare_quantize
from vitcompress.stages.quantize.scores import PACKAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--task",
        nargs="+",
        action="append",
        required=True,
        metavar="MODEL CALIBRATION EVALUATION [KEY=VALUE ...]",
        help="a checkpoint and its images; KEY=VALUE: preprocessing, as crop_pct=0.875",
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.5, 4, 5])
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    console.print(
        "| model | score | seconds | " + " | ".join(f"{b:g} bits" for b in given.bits) + " |"
    )
    console.print("|---|---|---|" + "---|" * len(given.bits))
    for model, calibration, evaluation, *facts in given.task:
        compare(model, calibration, evaluation, _preprocessing(facts), given)


def _preprocessing(facts: list[str]) -> dict[str, Any]:
    pairs = (fact.split("=") for fact in facts)
    return {key: value if key == "interpolation" else json.loads(value) for key, value in pairs}


def compare(
    checkpoint: str,
    calibration: str,
    evaluation: str,
    facts: dict[str, Any],
    given: argparse.Namespace,
) -> None:
    """Print the rows of one model."""
    model = from_source(checkpoint, None, {}, None, facts)
    config = QuantizeConfig(bits=BitBudget(average=4, widths=tuple(given.widths)), rounding="gptq")
    with tempfile.TemporaryDirectory() as folder:
        images = context_of(model, calibration, given.images, given.cache or Path(folder))
        known = prepare_quantize(model, config, images)
        errors = weight_errors(known)
        judged = open_images(evaluation, labelled=False, limit=given.limit, seed=1)
        pixels = [b.pixels for b in batches(judged, model.preprocess, 16)]
        dense = torch.cat([model.module(p) for p in pixels]).log_softmax(-1)

        @functools.cache
        def twin(name: str, b: int) -> nn.Linear:
            return known.float_twin(name, known.rounded(name, b))

        @functools.cache
        def figures(bits: tuple[int, ...]) -> str:
            for name, b in zip(known.floats, bits, strict=True):
                known.anatomy.module.set_submodule(name, twin(name, b))
            now = torch.cat([known.anatomy.module(p) for p in pixels]).log_softmax(-1)
            for name, linear in known.floats.items():
                known.anatomy.module.set_submodule(name, linear)
            return f"{_kl(dense, now):.4f} / {_agreement(dense, now):.1f}"

        def row(score: str, seconds: str, cells: list[str]) -> None:
            name = Path(checkpoint).name.partition(".")[0]
            console.print(
                f"| {name} | {score} | {seconds} | " + " | ".join(cells) + " |", soft_wrap=True
            )

        count = len(known.floats)
        whole = [b if b in given.widths else None for b in given.bits]
        row("same bits", "", ["–" if b is None else figures((int(b),) * count) for b in whole])
        for score in names(PACKAGE):
            start = time.monotonic()
            found = scores(known, config.model_copy(update={"score": score}), errors, images)
            costs = weighted(errors, error_factors(found, score))
            seconds = time.monotonic() - start
            cells = []
            for average in given.bits:
                budget = BitBudget(average=average, widths=tuple(given.widths))
                asked = config.model_copy(update={"bits": budget})
                bits = allocated_bits(model, asked, known.floats, costs, lambda _: math.nan)
                cells.append(figures(tuple(bits.values())))
            row(score, f"{seconds:.0f}", cells)


def _kl(dense: Tensor, now: Tensor) -> float:
    return float((dense.exp() * (dense - now)).sum(-1).mean())


def _agreement(dense: Tensor, now: Tensor) -> float:
    return 100 * float((dense.argmax(-1) == now.argmax(-1)).double().mean())


if __name__ == "__main__":
    main()
