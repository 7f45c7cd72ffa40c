"""How to read from a token how much it matters and where it lies: solved in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor


class FisherStatistics:
    """Sums over images, and the tensors solved from them that `tokens.fisher` reads with."""

    def __init__(self, channels: int) -> None:
        self.gram = torch.zeros(channels, channels, dtype=torch.float64)
        self.cross = torch.zeros(channels, dtype=torch.float64)
        self.fisher = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, h: Tensor, gradient: Tensor) -> None:
        """Add `normalised` tokens [B, n, C] and the gradients of the loss there [B, n, C].

        The loss is taken with labels drawn from the model's own softmax. Every image counts the
        same, however sure the model is of it.
        """
        square = gradient.square().sum(-1)
        mean = square.mean(1, keepdim=True).clamp_min(torch.finfo(square.dtype).tiny)
        level = (square / mean + 1e-3).log() / 2
        level = (level - level.mean(1, keepdim=True)).flatten().double()
        centred = (h - h.mean(1, keepdim=True)).flatten(0, 1).double()
        even = (gradient / mean[..., None].sqrt()).flatten(0, 1).double()
        self.gram += centred.T @ centred
        self.cross += centred.T @ level
        self.fisher += even.T @ even

    def solve(self, rank: int) -> tuple[Tensor, Tensor]:
        """The tensors level [C, 1] and coordinates [C, rank].

        h @ level predicts log |g| within an image, by ridge regression. h @ coordinates weighs
        directions by the fourth root of the Fisher information there: the square root, which theory
        asks for, would trust too much in what few images say of it.
        """
        eye = torch.eye(len(self.gram), dtype=torch.float64)
        damped = self.gram + 1e-3 * self.gram.diagonal().mean() * eye
        level = torch.linalg.solve(damped, self.cross)
        values, vectors = torch.linalg.eigh(self.fisher / self.fisher.diagonal().sum())
        values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
        return level[:, None].float(), (vectors * values**0.25).float()


def normalised(x: Tensor) -> Tensor:
    """Tokens [..., C] of mean 0 and variance 1, as the layer after them sees them."""
    return F.layer_norm(x, x.shape[-1:])
