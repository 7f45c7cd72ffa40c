"""How often a hidden unit is not near zero (Lazy Neuron, Sparsing Law); dimensions of heads go by
their magnitude."""

from torch import Tensor

from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.saliencies import magnitude
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    """Of Li et al. (2210.06313), for GELU with what is near zero in place of zeros."""
    if kind != "hidden":
        return magnitude.worth(evidence, site, kind)
    return evidence.activities[site.name].frequency


SALIENCY = Saliency(worth)
