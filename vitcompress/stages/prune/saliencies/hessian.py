"""The second-order change of the loss when a unit goes (NViT)."""

from torch import Tensor

from vitcompress.methods import saliency
from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    return saliency.hessian(evidence.gradient_sums[site.name, kind])


SALIENCY = Saliency(worth)
