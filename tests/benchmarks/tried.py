"""What was tried: one row a method, each a chain with settings, all on the same images.

    python tests/benchmarks/tried.py MODEL --calibration DIR --evaluation DIR --classes FILE

Prints the table of `vitcompress docs tried`; `--only` chooses rows by name. Figures are of the ONNX
files, and in a row that says so of a simulation, which has none.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from common import arguments

import vitcompress
from vitcompress.console import console
from vitcompress.report.figures import BY_KEY
from vitcompress.report.model import Metrics, Report

COLUMNS = {
    "bytes": "file",
    "macs": "MACs",
    "speedup": "speed",
    "agreement": "agreement",
    "kl": "KL",
    "top1": "top-1",
    "images": "n",
}
HEADER = f"| method | model | {' | '.join(COLUMNS.values())} |\n{'|---' * (len(COLUMNS) + 2)}|"


@dataclass(frozen=True)
class Row:
    """A recipe and the settings that make a method of it."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()


def codes(codebook: str, bits: int, *more: str) -> Row:
    """Weights of the blocks in codes of `bits` bits; ranges of inputs are taken at run time, which
    saves the search for them, much longer than all else."""
    chosen = (f"bits={bits}", f"codebook={codebook}", "activations=dynamic", "residual=0", *more)
    return Row(f"{codebook}, {bits} bits", "vit-w4a8", tuple(f"stages.quant.{s}" for s in chosen))


def merging(method: str, share: float, *settings: str) -> Row:
    """A way to merge at a share of the multiply-accumulates; `settings` of its stage besides."""
    given = (f"method={method}", f"budget.macs={share}", *settings)
    name = " ".join((method, f"{share:.0%}", *settings))
    return Row(name, "vit-merge", tuple(f"stages.merge.{each}" for each in given))


def pruning(saliency: str) -> Row:
    """The recipe `vit-prune` by another saliency."""
    return Row(f"prune by {saliency}", "vit-prune", (f"stages.prune.saliency={saliency}",))


def sparsifying(allocation: str) -> Row:
    """Half of the weights of all blocks, the density of each layer by `allocation`."""
    given = ("pattern=unstructured", "density=0.5", "layers=[blocks]", f"allocation={allocation}")
    return Row(f"half, {allocation}", "vit-2of4", tuple(f"stages.sparse.{each}" for each in given))


def products(pattern: str, density: float, *more: str) -> Row:
    """Two small products in the place of the linears of the blocks, of so much of their work."""
    chosen = (f"pattern={pattern}", f"density={density}", "layers=[blocks]", *more)
    settings = tuple(f"stages.sparse.{s}" for s in chosen)
    return Row(" ".join([pattern, f"{density:g}", *more]), "vit-block", settings)


def pruned(macs: float) -> Row:
    """What recipes do instead."""
    settings = f"stages.prune.budget.macs={macs}", "gates.max_ratio.macs=1"
    return Row(f"vit-prune {macs:g}", "vit-prune", settings)


ROWS = [
    *(codes("uniform", bits) for bits in (5, 4, 3, 2)),
    *(codes("power_of_two", bits) for bits in (5, 4, 3)),
    *(codes("kmeans", bits) for bits in (4, 3)),
    codes("ternary", 2),
    *(
        merging(method, share)
        for share in (0.65, 0.55)
        for method in ("fisher", "farthest", "soft", "soft_kmeans", "soft_grid")
    ),
    *(merging("diffrate", 0.65, f"schedule={name}") for name in ("search", "mass", "random")),
    *(pruning(name) for name in ("obs", "hessian", "fold", "magnitude", "strength", "frequency")),
    *(sparsifying(name) for name in ("distortion", "uniform", "erk")),
    *(products("low_rank", density) for density in (0.8, 0.7, 0.6)),
    products("low_rank", 0.7, "allocation=uniform"),
    *(products(f"monarch:{blocks}", 0.7) for blocks in (2, 4)),
    *(pruned(macs) for macs in (0.8, 0.7)),
]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    console.print(HEADER, soft_wrap=True, markup=False)
    for row in ROWS:
        if given.only and row.name not in given.only:
            continue
        with TemporaryDirectory() as folder:
            report = vitcompress.compress(
                row.recipe,
                given.model,
                Path(folder) / "out",
                calibration=given.calibration,
                evaluation=given.evaluation,
                classes=given.classes,
                settings=(f"data.images={given.images}", *row.settings),
                limit=given.limit,
                threads=1,
                resume=True,
            )
        for line in told(row.name, Path(given.model).name.partition(".")[0], report):
            console.print(line, soft_wrap=True, markup=False)


def told(name: str, model: str, report: Report) -> Iterator[str]:
    """The row of what came out, and one for each simulation on the way."""
    yield line(name, model, report.final)
    for stage in report.stages:
        for study in stage.details.studies:
            yield line(f"{name} ({study.name})", model, study.figures)


def line(name: str, model: str, figures: Metrics) -> str:
    cells = [BY_KEY[key].text(BY_KEY[key].read(figures)) for key in COLUMNS]
    return f"| {name} | {model} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
