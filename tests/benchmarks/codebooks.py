"""Put the codebooks of weights side by side: all layers of the blocks rounded, inputs float.

    python tests/benchmarks/codebooks.py MODEL --calibration DIR --evaluation DIR --classes FILE

Prints a Markdown table, one row a codebook, width and size of groups: bits of a weight with
multipliers, scales and tables; the error that is left in the outputs of layers, as a share of their
variance (the mean over layers); agreement with the float model, KL from it, and top-1.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from common import arguments, context_of
from torch import nn

from vitcompress.console import console
from vitcompress.data.images import open_images
from vitcompress.evaluation import Judged, judge, torch_runner
from vitcompress.memory import copied
from vitcompress.methods.reparametrisation import identity
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.stages.calibrate import LayerStatistics, statistics
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.describe import code_bytes
from vitcompress.stages.quantize.layer import InputRange, layer_error, rounded_layer

VARIANTS: dict[str, tuple[str, int, int | None]] = {
    f"{codebook}, {bits} bits{'' if group else ', no groups'}": (codebook, bits, group)
    for codebook, bits, group in [
        *[("uniform", bits, 24) for bits in (5, 4, 3, 2)],
        *[("power_of_two", bits, 24) for bits in (5, 4, 3)],
        *[("kmeans", bits, 24) for bits in (4, 3, 2)],
        ("ternary", 2, 24),
        *[("uniform", bits, None) for bits in (4, 3)],
        *[("kmeans", bits, None) for bits in (4, 3)],
    ]
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--rounding", choices=["nearest", "gptq", "descent"], default="gptq")
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    model = from_source(given.model, None, {}, None, {})
    context = context_of(
        model, given.calibration, given.images, given.cache or Path(tempfile.mkdtemp())
    )
    images = open_images(given.evaluation, classes=given.classes, labelled=True, limit=given.limit)

    def judged(module: nn.Module) -> Judged:
        whole = VitModel(module, model.architecture, model.preprocess)
        return judge(torch_runner(whole, torch.device("cpu")), images, model.preprocess, 0.01, "")

    dense, layers = judged(model.module), model.anatomy.select(["blocks"], "layers")
    found = statistics(model, layers, context)
    console.print(
        "| codes | bits | error | agreement | KL | top-1 | n |\n|---|---|---|---|---|---|---|"
    )
    for name in given.only or VARIANTS:
        codebook, bits, group = VARIANTS[name]
        config = QuantizeConfig(
            bits=bits, codebook=codebook, group=group, activations="float", rounding=given.rounding
        )
        module, error, width = rounded(model.module, found, config)
        figures = judged(module).figures(model.task, dense)
        cells = f"{figures.agreement:.1f} | {figures.kl:.4f} | {figures.top1:.1f} | {len(images)}"
        console.print(f"| {name} | {width:.2f} | {error:.4f} | {cells} |", soft_wrap=True)


def rounded(
    dense: nn.Module, found: Mapping[str, LayerStatistics], config: QuantizeConfig
) -> tuple[nn.Module, float, float]:
    """A copy with rounded weights, the mean error of its layers, and the bits of a weight."""
    module, errors, size, count = copied(dense), list[float](), 0, 0
    assert isinstance(config.bits, int)
    for name, known in found.items():
        linear = cast(nn.Linear, module.get_submodule(name))
        plain = identity(linear.in_features)
        as_it_is = InputRange(plain, known.low.amin(), known.high.amax(), 1.0, 0.0)
        layer = rounded_layer(linear, as_it_is, known, config.style, config.bits)
        errors.append(layer_error(layer, linear, as_it_is, known) or 0.0)
        size += code_bytes(linear, config.bits, config)
        count += linear.weight.numel()
        module.set_submodule(name, layer.dequantized())
    return module, sum(errors) / len(errors), 8 * size / count


if __name__ == "__main__":
    main()
