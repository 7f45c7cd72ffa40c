"""What a unit of a network is worth. A unit is all that goes when one dimension is removed.

`Sums` hold, per image, the sum of gradient × parameter over every parameter tied to a unit. No
gradients of parameters are needed for it: the sum over a row of a linear layer and its bias is
Σ over tokens of the output times the gradient at the output, and the sum over a column is the same
of the input.
"""

import torch
from torch import Tensor


def tied(values: Tensor, gradients: Tensor) -> Tensor:
    """Σ over tokens of values × gradients, both [images, tokens, units] → [images, units]."""
    return (values * gradients).sum(1)


def fisher_readout(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Weights [images, classes] on logits whose gradients have the Fisher information as their mean
    outer product.

    With probabilities p and random signs s, z = √p ⊙ s − p (√p · s) has the covariance
    diag(p) − p pᵀ, as the gradients of the cross-entropy have for labels drawn from p. But those of
    a confident model are nearly zero for nearly all draws and large for a few; here every image has
    its say, so the estimate from few images is far steadier.
    """
    shares = logits.detach().cpu().softmax(-1)
    signs = 2.0 * torch.randint(2, shares.shape, generator=generator) - 1
    drawn = shares.sqrt() * signs
    return (drawn - shares * drawn.sum(-1, keepdim=True)).to(logits.device)


def hessian(sums: Tensor) -> Tensor:
    """The second-order loss change when each unit is set to zero, with the Fisher information.

    With the Hessian approximated by the mean outer product of gradients, ½ wᵀ H w over the
    parameters w tied to a unit is half the mean square of Σ g·w: the sum runs over all of them
    before it is squared, and it is squared for each image (NViT, 2110.04869, equation 4). The unit
    is loss, so that units of different structures compare.

    Args:
        sums: [images, units].

    Returns:
        [units].
    """
    return 0.5 * sums.double().square().mean(0)


def taylor(sums: Tensor) -> Tensor:
    """The first-order loss change when each unit is set to zero: the mean of |Σ g·w|, [units]."""
    return sums.double().abs().mean(0)


def magnitude(*tied_weights: Tensor) -> Tensor:
    """The sum of squares of the weights tied to each unit, from matrices [units, any]."""
    return torch.stack([w.double().square().sum(1) for w in tied_weights]).sum(0)


def strength(*tied_weights: Tensor) -> Tensor:
    """The sum of |weights| tied to each unit, from matrices [units, any]: QuickSelection's strength
    of a neuron (2012.00560), without its training."""
    return torch.stack([w.double().abs().sum(1) for w in tied_weights]).sum(0)


def active(hidden: Tensor) -> Tensor:
    """Which of `hidden` [..., units] are not near zero: a hundredth of the root mean square of all
    units of the token, or more. Of a ReLU that is all that is not zero but for its last percent."""
    return hidden.square() > 1e-4 * hidden.square().mean(-1, keepdim=True)


def random(units: int, generator: torch.Generator) -> Tensor:
    """Worths drawn from 0 to 1, [units]: the baseline that every other has to beat."""
    return torch.rand(units, generator=generator, dtype=torch.float64)


def logit_energy(query_gram: Tensor, key_gram: Tensor) -> Tensor:
    """The mean square of what each dimension adds to the logits, [d], from moments [d, d]."""
    return query_gram.diagonal() * key_gram.diagonal()


def output_energy(gram: Tensor, projection: Tensor, metric: Tensor) -> Tensor:
    """½ Δyᵀ M Δy of what each dimension adds to an output.

    `gram` [d, d] of the inputs, `projection` [out, d], `metric` M [out, out] → [d].
    """
    projection = projection.double()
    return 0.5 * gram.diagonal() * (projection * (metric @ projection)).sum(0)
