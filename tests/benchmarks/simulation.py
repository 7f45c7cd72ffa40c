"""Put the quantizers for study side by side: all weights, layer inputs and products of few bits.

    python tests/benchmarks/simulation.py MODEL --calibration DIR --evaluation DIR --classes FILE

Prints a Markdown table: top-1, agreement with the float model and KL from it on the evaluation
images, for each width and each quantizer after softmax. All linear layers are quantized, the head
too; the patch embedding stays float. `--refit` has layers refitted one after the other to what
those before leave of their inputs (ERQ); `--steps` trains what comes of that, by straight-through.
Simulation only: nothing here is exported.
"""

import copy
import logging
import tempfile
from pathlib import Path

import torch
from common import arguments, context_of
from torch import nn

from vitcompress.console import console
from vitcompress.data.images import open_images
from vitcompress.evaluation import Judged, judge, torch_runner
from vitcompress.methods import grids
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.registry import names
from vitcompress.stages.calibrate import statistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig, Simulation
from vitcompress.stages.quantize.simulate import SimulatedAttention, fit, simulation
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods.distill import METHOD


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6])
    parser.add_argument(
        "--softmax", nargs="+", choices=names(grids.PACKAGE), default=names(grids.PACKAGE)
    )
    parser.add_argument("--gelu", choices=["uniform", "twin_uniform"], default="twin_uniform")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    model = from_source(given.model, None, {}, None, {})
    cache = given.cache or Path(tempfile.mkdtemp())
    context = context_of(model, given.calibration, given.images, cache)
    images = open_images(given.evaluation, classes=given.classes, labelled=True, limit=given.limit)

    def judged(module: nn.Module) -> Judged:
        whole = VitModel(module, model.architecture, model.preprocess)
        return judge(torch_runner(whole, torch.device("cpu")), images, model.preprocess, 0.01, "")

    dense = judged(model.module)
    layers = list(model.anatomy.linears())
    found = statistics(model, layers, context)

    def row(title: str, figures: Judged) -> None:
        measured = figures.figures(model.task, dense)
        cells = f"{measured.top1:.1f} | {measured.agreement:.1f} | {measured.kl:.4f}"
        console.print(f"| {title} | {cells} |", soft_wrap=True)

    console.print("| | top-1 | agreement | KL |\n|---|---|---|---|")
    row("float", dense)
    for bits in given.bits:
        config = QuantizeConfig(bits=bits, group=32, sequential=given.refit)
        widths, base = dict.fromkeys(layers, bits), None
        for kind in given.softmax:
            study = Simulation(bits=bits, gelu=given.gelu, softmax=kind)
            if base is None or given.refit:  # which depends on the quantizers of attention
                base = simulation(model.module, config, study, widths, found, context)
            module, title = fitted_anew(base, study, context), f"W{bits}A{bits}, {kind}"
            row(title, judged(module))
            if given.steps:
                training = RecoverConfig(steps=given.steps, rate=given.rate)
                module = trained(model, module, training, context)
                row(f"{title}, {given.steps} steps", judged(module))


def trained(
    model: VitModel, module: nn.Module, config: RecoverConfig, context: Context
) -> nn.Module:
    """A simulation nearer to the dense model; an eighth of the images is there to choose by."""
    fit, watched = context.split(len(context.images) // 8)
    whole = VitModel(module, model.architecture, model.preprocess)
    return METHOD.recover(whole, config, fit, watched).module


def fitted_anew(base: nn.Module, study: Simulation, context: Context) -> nn.Module:
    """The same layers with other quantizers of attention."""
    module = copy.deepcopy(base)
    for each in module.modules():
        if isinstance(each, SimulatedAttention):
            each.study, each.quantizers = study, {}
    fit(module, context)
    return module


if __name__ == "__main__":
    main()
