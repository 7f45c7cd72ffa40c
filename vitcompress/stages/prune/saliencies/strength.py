"""The sum of the weights of a unit, without their signs (QuickSelection's neuron strength)."""

from torch import Tensor

from vitcompress.methods import saliency
from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    """Of Atashgahi et al. (2022), where it ranks inputs; here of all that is tied to a unit."""
    return saliency.strength(*evidence.tied_weights(site, kind)).cpu()


SALIENCY = Saliency(worth)
