"""Compare what a search proposes with chance, at equal effort.

    python tests/benchmarks/searching.py MODEL --calibration DIR --evaluation DIR \
        --recipe vit-search-small --max-drop 1.0 --minimize bytes --trials 12 [--set KEY=VALUE ...]

Prints a Markdown table: the least cost within the limits, as a share of the dense model's, after so
many candidates, and what the last best costs and loses on the evaluation images, which decide
nothing. Seeds beside one another tell how much of a difference is luck.
"""

import argparse
from pathlib import Path

from common import arguments

from vitcompress.chain import Options
from vitcompress.cli_options import given_values
from vitcompress.console import console
from vitcompress.recipe import Recipe, check_inputs, find_recipe, load_recipe
from vitcompress.report.model import Report
from vitcompress.searching.config import settings_of
from vitcompress.searching.search import Effort, Outcome, search

PROPOSERS = ("search", "chance")


def recipe_of(told: argparse.Namespace) -> Recipe:
    limits = settings_of({"max_drop.top1": told.max_drop, "max.kl": told.max_kl}, told.minimize)
    images = f"data.images={told.images}"
    given = given_values(told.model, None, told.calibration, told.evaluation, told.classes)
    return load_recipe(find_recipe(told.recipe), [images, *told.set, *limits], given)


def course(outcome: Outcome, minimized: str) -> list[float | None]:
    """The least cost within the limits after each candidate."""
    best, found = None, list[float | None]()
    for each in outcome.report.tried:
        if each.within and (best is None or each.costs[minimized] < best):
            best = each.costs[minimized]
        found.append(best)
    return found


def judged(best: Report | None) -> str:
    """What the best is on the evaluation images."""
    if best is None:
        return "none holds the limits"
    final, dense = best.final, best.baseline
    return (
        f"top-1 {dense.top1} → {final.top1}, agreement {final.agreement}, KL {final.kl:.3g}, "
        f"{(final.bytes or 0) / 1e6:.2f} MB, n = {final.images}"
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="vit-search")
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--max-kl", type=float)
    parser.add_argument("--minimize", default="bytes")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--by", nargs="+", choices=PROPOSERS, default=PROPOSERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("out/searching"))
    told = parser.parse_args()
    recipe = recipe_of(told)
    check_inputs(recipe)
    marks = sorted({told.trials, *range(4, told.trials, 4)})
    heads = " | ".join(f"after {mark}" for mark in marks)
    rows = [f"| proposed by | seed | {heads} | on the evaluation images |"]
    rows.append("|---" * (len(marks) + 3) + "|")
    for seed in told.seeds:
        for name in told.by:
            options = Options(seed=seed, limit=told.limit)
            effort = Effort(trials=told.trials, guided=name == "search")
            out = told.out / f"{name}-{seed}"
            outcome = search(recipe, out, options, effort)
            costs = course(outcome, recipe.search.minimize)
            cells = [costs[min(mark, len(costs)) - 1] for mark in marks]
            told_costs = " | ".join("–" if each is None else f"{each:.4f}" for each in cells)
            rows.append(f"| {name} | {seed} | {told_costs} | {judged(outcome.best)} |")
    console.print("\n".join(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
