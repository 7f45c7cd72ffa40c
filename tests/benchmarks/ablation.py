"""What each part of the prune stage is worth: the same budget spent in different ways.

    python tests/benchmarks/ablation.py MODEL --calibration DIR --evaluation DIR --classes FILE

Prints a Markdown table, one row a variant, all on the same images, computed in torch. The first
variant is the stage as it is; each of the others changes what its row says and nothing else. Of
each, the row below shows the very same removal without any refit.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import arguments, context_of

from vitcompress.console import console
from vitcompress.data.images import open_images
from vitcompress.evaluation import judge, torch_runner
from vitcompress.measure import cost
from vitcompress.measure.latencies import LatencyTable
from vitcompress.model.architecture import from_source
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import choose_structures, described, meters, rebuilt
from vitcompress.stages.prune.study import study

VARIANTS: dict[str, dict[str, Any]] = {
    "obs, as it is": {},
    "even widths": {"allocate": "uniform"},
    "no rotation": {"rotate": False},
    "chosen without compensation": {"compensate": False},
    **{
        name: {"saliency": name}
        for name in ("hessian", "taylor", "magnitude", "strength", "frequency", "random", "fold")
    },
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--macs", type=float, default=0.8)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these variants only")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    dense = from_source(given.model, None, {}, None, {})
    images = open_images(given.evaluation, classes=given.classes, labelled=True, limit=given.limit)
    cpu = torch.device("cpu")
    with TemporaryDirectory() as folder:
        images_for = context_of(dense, given.calibration, given.images, Path(folder))

        def judged(model: Any, title: str) -> Any:
            return judge(torch_runner(model, cpu), images, dense.preprocess, 0.01, title)

        whole = judged(dense, "dense")
        console.print("| variant | MACs | top-1 | agreement | KL |\n|---|---|---|---|---|")

        def row(name: str, module: torch.nn.Module) -> None:
            model = described(dense, module)
            found = judged(model, name).figures(dense.task, whole)
            share = cost.macs(model) / cost.macs(dense)
            console.print(
                f"| {name} | {share:.3f} | {found.top1:.1f} | {found.agreement:.1f} "
                f"| {found.kl:.4f} |",
                soft_wrap=True,
                markup=False,
            )

        row("dense", dense.module)
        for name in given.only or VARIANTS:
            config = PruneConfig(budget={"macs": given.macs}, **VARIANTS[name])
            found = study(dense, config, images_for)
            meter = meters(dense, config, LatencyTable())
            _, chosen, stream = choose_structures(dense, config, found, meter)
            row(name, rebuilt(dense, found, chosen, stream.width, config.compensate)[0])
            if config.compensate:
                plain, _ = rebuilt(dense, found, chosen, stream.width, compensate=False)
                row("… without its refits", plain)


if __name__ == "__main__":
    main()
