"""Optimal brain surgery: hidden units by greedy elimination on the covariance of the inputs of the
layer that reads them, dimensions of heads by what they add to logits and to the output."""

import torch
from torch import Tensor

from vitcompress.methods import saliency
from vitcompress.methods.compensation import covariance
from vitcompress.methods.elimination import eliminate
from vitcompress.model.anatomy import Site
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.worth import Evidence, Saliency


def worth(evidence: Evidence, site: Site, kind: StructureKind) -> Tensor:
    """The loss of what each unit adds, in the Fisher information."""
    if kind == "query_key":
        found = evidence.moments.query_key[site.name]
        pairs = zip(found.query, found.key, strict=True)
        return torch.cat([saliency.logit_energy(*pair) for pair in pairs])
    gram, metric = evidence.moments.inputs[site.name], evidence.importance[site.name].metric
    return saliency.output_energy(covariance(gram), site.last.weight.cpu(), metric)


SALIENCY = Saliency(worth, eliminate)
