"""How to read from a token how much it matters and where it lies: solved in closed form."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class ReaderStatistics:
    """Sums over images, and the matrix solved from them that `tokens.fisher` reads tokens with."""

    second: Tensor
    within: Tensor
    cross: Tensor

    @classmethod
    def empty(cls, channels: int) -> "ReaderStatistics":
        square, row = (channels, channels), (channels,)
        return cls(*(torch.zeros(size, dtype=torch.float64) for size in (square, square, row)))

    def update(self, h: Tensor, gradient: Tensor) -> None:
        """Add `normalised` tokens [B, n, C] and the gradients of the loss there [B, n, C].

        The loss is that of `saliency.fisher_readout`. Every image counts the same, however sure the
        model is of it.
        """
        square = gradient.square().sum(-1)
        mean = square.mean(1, keepdim=True).clamp_min(torch.finfo(square.dtype).tiny)
        level = (square / mean + 1e-3).log() / 2
        level = (level - level.mean(1, keepdim=True)).flatten().double()
        whole = h.flatten(0, 1).double()
        centred = (h - h.mean(1, keepdim=True)).flatten(0, 1).double()
        self.second += whole.T @ whole
        self.within += centred.T @ centred
        self.cross += centred.T @ level

    def solve(self, rank: int) -> Tensor:
        """The matrix [C, 1 + rank].

        Of h times it, the first column predicts log |g| within an image, by ridge regression; the
        others are the coordinates of h along its principal directions.
        """
        eye = torch.eye(len(self.within), dtype=torch.float64)
        damped = self.within + 1e-3 * self.within.diagonal().mean() * eye
        level = torch.linalg.solve(damped, self.cross)
        directions = torch.linalg.eigh(self.second).eigenvectors.flip(1)[:, :rank]
        return torch.cat([level[:, None], directions], 1).float()


def normalised(x: Tensor) -> Tensor:
    """Tokens [..., C] of mean 0 and variance 1, as the layer after them sees them."""
    return F.layer_norm(x, x.shape[-1:])
