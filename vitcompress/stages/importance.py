"""What the outputs of layers are worth to the answer of a model: its Fisher information there."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.stages.observe import Loss, Sample, Watch, observe

_HALF = 0.5  # of the weight of tokens follows their importance, the rest is uniform


@dataclass
class Importance:
    """What an output is worth, from gradients of the loss (the Fisher information).

    `metric` [d, d], float64: Σ over tokens of g gᵀ, a mean over images: ½ Δyᵀ M Δy, averaged over
    tokens, is the loss expected of output errors Δy. `prefix`: the share of class and register
    tokens, of which there are `prefix_tokens`, in its trace.
    """

    metric: Tensor
    prefix: float
    prefix_tokens: int

    def token_weights(self, tokens: int) -> Tensor:
        """How much each of `tokens` tokens counts, a mean of 1: half importance, half uniform.

        In late blocks nearly all importance lies on the class token, of which there is one an
        image: too few to fit a layer on alone.
        """
        weights, prefix = torch.full((tokens,), 1 - _HALF), self.prefix_tokens
        if 0 < prefix < tokens:
            weights[:prefix] += _HALF * self.prefix * tokens / prefix
            weights[prefix:] += _HALF * (1 - self.prefix) * tokens / (tokens - prefix)
        else:
            weights += _HALF
        return weights


def importances(
    module: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Sample],
    loss: Loss,
    prefix_tokens: int,
) -> dict[str, Importance]:
    """The importance of the outputs of the `layers` of `module`, by name.

    Outputs are [images, tokens, d], or [images, d] of one token an image.
    """
    names = list(layers)
    metrics, none = dict[str, Tensor](), torch.zeros((), dtype=torch.float64)
    shares = {name: torch.zeros(2, dtype=torch.float64) for name in names}

    def see(name: str, _: Tensor, __: Tensor, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient if gradient.ndim == 3 else gradient[:, None]
        energy = gradient.square().sum((0, 2)).double().cpu()
        shares[name] += torch.stack([energy[:prefix_tokens].sum(), energy.sum()])
        flat = gradient.flatten(0, 1)
        metrics[name] = metrics.get(name, none) + (flat.T @ flat).double().cpu()

    watches = [Watch(name, partial(see, name), "output") for name in names]
    images = observe(module, watches, batches, loss)
    metrics, shares = parallel.summed(metrics), parallel.summed(shares)
    images = sum(parallel.everybody(images))
    tiny = torch.finfo(torch.float32).tiny
    return {
        name: Importance(
            metrics.get(name, none) / images,
            float(share[0] / share[1].clamp_min(tiny)),
            prefix_tokens,
        )
        for name, share in shares.items()
    }
