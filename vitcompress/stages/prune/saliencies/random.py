"""Any units: the baseline that every other saliency has to beat."""

from torch import Tensor

from vitcompress.methods import saliency
from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    units = len(evidence.tied_weights(site, kind)[0])
    return saliency.random(units, evidence.generator)


SALIENCY = Saliency(worth)
