"""Which inputs of a linear layer can go, when the others are refitted to make good for them."""

import torch
from torch import Tensor


def eliminate(
    covariance: Tensor, weight: Tensor, metric: Tensor, group: int, damping: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Order the inputs by greedy optimal brain surgery, `group` of them a step.

    The loss of an output error Δy is ½ Δyᵀ M Δy. Removing the inputs g and refitting the others
    costs ½ tr(M W_g ([H⁻¹]_gg)⁻¹ W_gᵀ), after which W ← W − W_g ([H⁻¹]_gg)⁻¹ H⁻¹_g and H⁻¹ is
    eliminated by blocks (Hassibi & Stork 1993, equation 5; for groups: ZipLM, 2302.04089,
    equations 3 and 4). Here g are the inputs that would each alone cost least.

    Args:
        covariance: [in, in] of the inputs; the mean goes into the bias.
        weight: [out, in].
        metric: M [out, out], positive semi-definite.
        group: inputs removed a step.
        damping: added to the diagonal of the covariance, as a share of its mean.

    Returns:
        The inputs in the order of their removal, int64 [in], and the summed loss after each step,
        float64 [⌈in / group⌉], never falling.
    """
    hessian = covariance.double()
    values, vectors = torch.linalg.eigh(metric.double())
    weight = (vectors * values.clamp_min(0).sqrt()).T @ weight.double()  # now M is the identity
    size = len(hessian)
    level = hessian.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse = torch.linalg.inv(hessian + damping * level * torch.eye(size, dtype=torch.float64))
    alive = torch.ones(size, dtype=torch.bool)
    order, losses, total = [], [], 0.0
    while alive.any():
        costs = weight.square().sum(0) / inverse.diagonal()
        costs = torch.where(alive, costs, torch.inf)
        chosen = costs.argsort(stable=True)[: min(group, int(alive.sum()))]
        column = weight[:, chosen]
        within = torch.linalg.inv(inverse[chosen][:, chosen])
        total += 0.5 * float((column * (column @ within)).sum().clamp_min(0))
        spread = within @ inverse[chosen]
        weight = weight - column @ spread
        inverse = inverse - inverse[:, chosen] @ spread
        weight[:, chosen] = 0
        inverse[chosen] = inverse[:, chosen] = 0
        inverse[chosen, chosen] = 1
        alive[chosen] = False
        order.append(chosen)
        losses.append(total)
    return torch.cat(order), torch.tensor(losses, dtype=torch.float64)
