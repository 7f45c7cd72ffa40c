"""Compare the criteria of the sparsify stage, with and without reconstruction.

    python tests/benchmarks/zeros.py MODEL --calibration DIR --evaluation DIR [--classes FILE]

Prints a Markdown table: KL from the dense model / agreement with it, in percent, for each pattern.
A pattern is given as PATTERN or PATTERN@DENSITY. Evaluation images are judged without their labels.
"""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import get_args

import torch

from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.measure.accuracy import agreement, mean_kl
from vitcompress.methods.sparsity import Criterion
from vitcompress.model.architecture import from_source
from vitcompress.stages.context import Context
from vitcompress.stages.sparsify import SparsifyConfig, sparsify

PATTERNS = ["2:4", "unstructured@0.7", "16x16@0.8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--criteria", nargs="+", default=list(get_args(Criterion)))
    parser.add_argument("--layers", nargs="+", default=["*.mlp.fc1", "*.mlp.fc2"])
    parser.add_argument("--allocation", nargs="+", default=["uniform"])
    parser.add_argument("--only", choices=["mask", "reconstructed"])
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    model = from_source(given.model, None, {}, None, {})
    images = open_images(given.calibration, labelled=False, limit=given.images, seed=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    judged = open_images(
        given.evaluation, classes=given.classes, labelled=True, limit=given.limit, seed=1
    )
    pixels = [b.pixels for b in batches(judged, model.preprocess, 16)]
    dense = torch.cat([model.module(p) for p in pixels]).numpy()
    refits = [r for r in (False, True) if given.only != ("mask" if r else "reconstructed")]
    console.print("| criterion | allocation | refit | " + " | ".join(given.patterns) + " |")
    console.print("|---|---|---|" + "---|" * len(given.patterns))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            calibration=images.subset(order.tolist()),
            preprocess=model.preprocess,
            seed=0,
            device=torch.device("cpu"),
            cache=given.cache or Path(folder),
            resume=True,
        )

        def figures(text: str, **options: object) -> str:
            pattern, _, density = text.partition("@")
            config = SparsifyConfig.model_validate(
                {
                    "pattern": pattern,
                    "density": float(density) if density else None,
                    "layers": given.layers,
                    **options,
                }
            )
            console.quiet = True
            sparse = sparsify(model, config, context)[0]
            console.quiet = False
            now = torch.cat([sparse.module(p) for p in pixels]).numpy()
            return f"{mean_kl(now, dense):.4f} / {agreement(now, dense):.1f}"

        for criterion in given.criteria:
            for allocation in given.allocation:
                for reconstruct in refits:
                    options = {
                        "criterion": criterion,
                        "allocation": allocation,
                        "reconstruct": reconstruct,
                    }
                    cells = [figures(text, **options) for text in given.patterns]
                    word = "yes" if reconstruct else "no"
                    console.print(f"| {criterion} | {allocation} | {word} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
