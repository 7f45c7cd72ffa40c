"""The squares of the weights of a unit."""

from torch import Tensor

from vitcompress.methods import saliency
from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    return saliency.magnitude(*evidence.tied_weights(site, kind)).cpu()


SALIENCY = Saliency(worth)
