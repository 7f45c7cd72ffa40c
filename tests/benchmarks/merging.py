"""Compare ways to merge tokens, and a lower resolution, at equal cost on the same images.

    python tests/benchmarks/merging.py MODEL --calibration DIR --evaluation DIR --classes FILE

Prints a Markdown table; figures are of the torch models, agreement and KL against the dense one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from common import arguments, context_of

from vitcompress.console import console
from vitcompress.data.images import open_images
from vitcompress.evaluation import Runner, judge, torch_runner
from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.output import cache_folder
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.rival import interpolated, lower_resolution
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.stage import recover

WAYS: dict[str, dict[str, Any]] = {
    "ToMe, constant": {"method": "tome", "schedule": "constant"},
    "MCTF, constant": {"method": "mctf", "schedule": "constant"},
    "PPT, published shape": {"method": "ppt", "schedule": "published"},
    "EViT, published shape": {"method": "evit", "schedule": "published"},
    "DiffRate, published shape": {"method": "diffrate", "schedule": "published"},
    "ToMe, searched": {"method": "tome"},
    "DiffRate, searched": {"method": "diffrate"},
    "Fisher, published shape": {"method": "fisher", "schedule": "published"},
    "Fisher, searched": {"method": "fisher"},
    "DiffRate, random schedules": {"method": "diffrate", "schedule": "random"},
    "DiffRate, attention mass": {"method": "diffrate", "schedule": "mass"},
    "Farthest, searched": {"method": "farthest"},
    "Soft, searched": {"method": "soft"},
    **{
        f"{method}, block 4 alone": {"method": method, "block": 4}
        for method in ("fisher", "farthest", "soft", "soft_kmeans", "soft_grid")
    },
}

# What papers report without training, of DeiT-S: EViT keeps 0.7 of the patches at blocks 3, 6 and 9
# (79.8 → 78.5), MCTF and ToMe take 16 away in each block, MCTF from the second on (79.2, 78.0).
_SIXTEEN = [max(197 - 16 * block, 12) for block in range(11)]
PUBLISHED: dict[str, dict[str, Any]] = {
    "EViT, keep 0.7 (published)": {
        "method": "evit",
        "schedule": [197, 197, 197, 140, 140, 140, 100, 100, 100, 72, 72],
        "proportional": False,
    },
    "MCTF, 16 a block (published)": {"method": "mctf", "schedule": _SIXTEEN},
    "ToMe, 16 a block": {"method": "tome", "schedule": _SIXTEEN},
}
WAYS |= {name: {"budget": None, **way} for name, way in PUBLISHED.items()}


def smaller(model: VitModel, share: float) -> tuple[str, Runner, int]:
    """`model` at the largest input size that costs at most `share` of its multiply-accumulates."""
    at_size = lower_resolution(model, share * macs(model))
    assert at_size is not None
    run, small = torch_runner(at_size, torch.device("cpu")), at_size.preprocess.input_size[0]

    def rescaled(pixels: np.ndarray) -> np.ndarray:
        return run(interpolated(torch.from_numpy(pixels), at_size).numpy())

    return f"{small} px instead", rescaled, macs(at_size)


def ways(
    names: list[str], model: VitModel, context: Context, share: float, steps: int
) -> Iterator[tuple[str, Runner, int]]:
    """Each way's name, its runner and its cost; and again after so many `steps` of recovery."""
    for name in names:
        config = MergeConfig.model_validate({"budget": {"macs": share}, **WAYS[name]})
        merged = merge(model, config, context).model
        yield name, torch_runner(merged, context.device), macs(merged)
        if steps:
            found = recover(merged, RecoverConfig(steps=steps, batch=8), context).model
            yield f"… recovered, {steps} steps", torch_runner(found, context.device), macs(found)
    yield smaller(model, share)


@torch.no_grad()
def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.65, 0.55])
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=[name for name in WAYS if name not in PUBLISHED]
    )
    parser.add_argument(
        "--recover", type=int, default=0, metavar="STEPS", help="train each so long"
    )
    given = parser.parse_args()
    model = from_source(given.model, None, {}, None, {})
    images = open_images(given.evaluation, classes=given.classes, labelled=True, limit=given.limit)
    images_for = context_of(model, given.calibration, given.images, cache_folder())
    whole = torch_runner(model, images_for.device)
    dense = judge(whole, images, model.preprocess, 0.01, "dense")
    base = dense.figures(model.task, dense)

    def told(row: str) -> None:
        console.print(row, soft_wrap=True, markup=False)

    told("| | MACs | top-1 | agreement | KL |\n|---|---|---|---|---|")
    told(f"| dense | {macs(model) / 1e9:.2f} G | {base.top1:.1f} | | |")
    for share in given.budgets:
        for name, run, cost in ways(given.ways, model, images_for, share, given.recover):
            found = judge(run, images, model.preprocess, 0.01, name).figures(model.task, dense)
            told(
                f"| {name} | {cost / 1e9:.2f} G ({cost / macs(model) - 1:+.0%}) | "
                f"{found.top1:.1f} | {found.agreement:.1f} | {found.kl:.4f} |"
            )


if __name__ == "__main__":
    main()
