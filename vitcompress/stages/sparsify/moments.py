"""What the sparsify stage knows of the inputs of a layer."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vitcompress.memory import Room, in_memory
from vitcompress.methods.compensation import varying
from vitcompress.stages.calibrate import LayerStatistics

_DAMPING = 1e-3  # of the Gram matrix, as a share of its mean diagonal


@dataclass(frozen=True)
class LayerMoments:
    """Of a layer's inputs, weighted by importance: mean [in], covariance and its damped form
    [in, in], all float64; `outputs` [out]: the mean importance of each output."""

    mean: Tensor
    covariance: Tensor
    hessian: Tensor
    outputs: Tensor

    @property
    def second(self) -> Tensor:
        """The mean square of each input, [in]."""
        return self.covariance.diagonal() + self.mean.square()

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of `hessian`."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))

    @classmethod
    def of(cls, found: LayerStatistics, has_bias: bool, room: Room = in_memory) -> "LayerMoments":
        """Without a bias to make it good, the mean counts like any other error. `room`: where
        matrices are kept."""
        mean = found.total / found.weight * has_bias
        gram = found.gram / found.weight
        covariance = varying(gram - torch.outer(mean, mean), gram)
        # Few rows say little of their covariance: damp it by how many there are for each input.
        share = _DAMPING + 0.1 * len(covariance) / max(float(found.effective), 1.0)
        level = share * covariance.diagonal().mean().clamp_min(1e-30)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        hessian = covariance + level * eye
        return cls(mean, room(covariance), room(hessian), found.output_weights)

    def ordered(self, order: Tensor) -> "LayerMoments":
        """With the inputs in another order, indices [in]."""
        across = (order[:, None], order[None, :])
        return LayerMoments(
            self.mean[order], self.covariance[across], self.hessian[across], self.outputs
        )
