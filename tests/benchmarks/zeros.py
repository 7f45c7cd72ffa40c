"""Compare the criteria of the sparsify stage, with and without reconstruction.

    python tests/benchmarks/zeros.py MODEL --calibration DIR --evaluation DIR

Prints a Markdown table: KL from the dense model and agreement with it, in percent, for 2:4 zeros by
each criterion, then for 16×16 blocks, evenly and with allocated densities. `--patterns` gives
others, as PATTERN or PATTERN@DENSITY. Evaluation images are judged without their labels.
"""

import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import arguments, context_of

from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.methods.patterns import parse_pattern
from vitcompress.model.architecture import from_source
from vitcompress.registry import names
from vitcompress.stages.sparsify import criteria
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import sparsify

BRIEF = ("magnitude", "obs")  # criteria for patterns that leave densities open
SHARES = ["uniform", "distortion"]


def settings(
    patterns: list[str], criteria: list[str], refits: list[bool]
) -> Iterator[dict[str, Any]]:
    """The rows of the table, as options of the stage."""
    for text in patterns:
        pattern, _, density = text.partition("@")
        fixed = pattern != "mixed" and parse_pattern(pattern).group > 0
        asked = criteria if fixed else [c for c in BRIEF if c in criteria]
        shares = ["uniform"] if fixed else ["distortion"] if pattern == "mixed" else SHARES
        for criterion, share, refit in itertools.product(asked, shares, refits):
            yield {
                "pattern": pattern,
                "density": float(density) if density else None,
                "criterion": criterion,
                "allocation": share,
                "reconstruct": refit,
            }


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(images=512, limit=500)
    parser.add_argument("--patterns", nargs="+", default=["2:4", "16x16@0.8"])
    parser.add_argument("--criteria", nargs="+", default=names(criteria.PACKAGE))
    parser.add_argument("--layers", nargs="+", default=["*.mlp.fc1", "*.mlp.fc2"])
    parser.add_argument("--only", choices=["mask", "refit"])
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    model = from_source(given.model, None, {}, None, {})
    judged = open_images(given.evaluation, labelled=False, limit=given.limit, seed=1)
    pixels = [b.pixels for b in batches(judged, model.preprocess, 16)]
    dense = torch.cat([model.module(p) for p in pixels])
    refits = [r for r in (False, True) if given.only != ("mask" if r else "refit")]
    console.print("| pattern | criterion | densities | refit | KL | agreement |")
    console.print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or Path(folder)
        images_for = context_of(model, given.calibration, given.images, cache)
        for options in settings(given.patterns, given.criteria, refits):
            config = SparsifyConfig.model_validate({**options, "layers": given.layers})
            console.quiet = True
            sparse = sparsify(model, config, images_for).model
            console.quiet = False
            now = torch.cat([sparse.module(p) for p in pixels])
            found = model.task.compared(now, dense)
            density = f" at {config.density:.0%}" if config.density else ""
            even = "even" if config.allocation == "uniform" else "allocated"
            console.print(
                f"| {config.pattern}{density} | {config.criterion} | {even} "
                f"| {'yes' if config.reconstruct else 'no'} "
                f"| {found['kl']:.4f} | {found['agreement']:.1f} |"
            )


if __name__ == "__main__":
    main()
