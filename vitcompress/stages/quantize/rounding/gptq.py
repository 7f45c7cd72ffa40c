"""Each rounding error is fed to the weights not yet rounded (GPTQ, 2210.17323)."""

from torch import Tensor

from vitcompress.methods.rounding import gptq
from vitcompress.stages.quantize.rounding import Lattice, Metric, Rounding


def codes(weight: Tensor, lattice: Lattice, metric: Metric) -> Tensor:
    return gptq(weight, lattice.step, metric.gram, lattice.levels, metric.damping)


ROUNDING = Rounding(codes)
