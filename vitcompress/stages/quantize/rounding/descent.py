"""GPTQ, then codes one by one as the others leave them best, and scales refitted to the codes."""

from torch import Tensor

from vitcompress.methods.rounding import descend, refitted
from vitcompress.stages.quantize.rounding import Lattice, Metric, Rounding
from vitcompress.stages.quantize.rounding.gptq import codes

_REFITS, _SWEEPS = 3, 2  # of scales to the codes, and of the codes to these


def refined(
    weight: Tensor, lattice: Lattice, metric: Metric, codes: Tensor
) -> tuple[Lattice, Tensor]:
    gram, damping, levels = metric.gram, metric.damping, lattice.levels
    codes = descend(weight, lattice.step, gram, codes, levels, damping)
    for _ in range(_REFITS if lattice.bits < 8 else 0):
        lattice = lattice.scaled(refitted(weight, lattice.step, gram, codes, damping))
        codes = descend(weight, lattice.step, gram, codes, levels, damping, _SWEEPS)
    return lattice, codes


ROUNDING = Rounding(codes, refined)
