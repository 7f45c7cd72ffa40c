"""Hidden units are not dropped but join those that are most like them; dimensions of heads go by
their magnitude. No data decide which."""

from vitcompress.methods.folding import fold
from vitcompress.stages.prune.saliencies.magnitude import worth
from vitcompress.stages.prune.worth import Saliency

SALIENCY = Saliency(worth, fold=fold)
