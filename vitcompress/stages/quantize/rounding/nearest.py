"""Each weight to the value next to it."""

from vitcompress.stages.quantize.rounding import Rounding

ROUNDING = Rounding(lambda weight, lattice, _: lattice.nearest(weight), feedback=False)
