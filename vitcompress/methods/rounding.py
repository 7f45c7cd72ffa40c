"""Rounding of weights with the error of each column made good by other columns."""

import torch
from torch import Tensor

from .quantizer import Levels, nearest_level, round_weight

_BLOCK = 64


def gptq(
    weight: Tensor, step: Tensor, gram: Tensor, levels: Levels, damping: float = 0.01
) -> Tensor:
    """Codes that make ‖(W − Q∘step)X‖² small: optimal brain quantization in the form of GPTQ.

    Columns are rounded one by one, those with the largest inputs first; each rounding error is
    spread over the columns not yet rounded by the inverse Hessian (Frantar et al., 2210.17323,
    equations 2 and 3, with the Cholesky form of section 3). Rows do not touch one another: a row
    that feedback would make worse than rounding to nearest, which happens at very few bits, is
    rounded to nearest. Weights that are zero stay zero.

    Args:
        weight: [out, in].
        step: [out, 1 or in], may be negative.
        gram: [in, in], XXᵀ over the calibration rows, up to a factor.
        levels: of the codes.
        damping: added to the diagonal of the Gram matrix, as a share of its mean.

    Returns:
        Levels [out, in], float32.
    """
    hessian = _damped(gram, damping)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    remaining = weight[:, order].clone()
    steps = step.expand_as(weight)[:, order]
    present = remaining != 0
    codes = torch.empty_like(remaining)
    columns = weight.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = remaining.new_zeros(len(weight), stop - start)
        for j in range(start, stop):
            rounded = nearest_level(remaining[:, j] / steps[:, j], levels)
            codes[:, j] = rounded * present[:, j]
            error = (remaining[:, j] - codes[:, j] * steps[:, j]) / factor[j, j]
            remaining[:, j:stop] -= error[:, None] * factor[j, j:stop]
            errors[:, j - start] = error
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    nearest = round_weight(weight, step, levels)
    worse = output_error(weight, step, nearest, gram) < output_error(weight, step, restored, gram)
    return torch.where(worse[:, None], nearest, restored)


def descend(
    weight: Tensor,
    step: Tensor,
    gram: Tensor,
    codes: Tensor,
    levels: Levels,
    damping: float = 0.01,
    sweeps: int = 4,
) -> Tensor:
    """Better codes by coordinate descent on ‖(W − Q∘step)X‖², from `codes`.

    Each code in turn takes the value of least error given all others (a quadratic in one unknown,
    rounded and limited), so that the damped error never grows; a sweep takes each column once.
    Arguments as of `gptq`.
    """
    hessian = _damped(gram, damping)
    curvature = hessian.diagonal().to(weight.dtype)
    order = curvature.argsort(descending=True, stable=True).tolist()
    slope = ((weight - codes * step).double() @ hessian).to(weight.dtype)
    hessian = hessian.to(weight.dtype)
    steps, present = step.expand_as(weight), weight != 0
    codes = codes.clone()
    for _ in range(sweeps):
        before = codes.clone()
        for j in order:
            size = steps[:, j]
            wanted = codes[:, j] + slope[:, j] / (curvature[j] * size)
            change = (nearest_level(wanted, levels) - codes[:, j]) * present[:, j]
            moved = change.nonzero()[:, 0]
            if len(moved):
                codes[moved, j] += change[moved]
                slope[moved] -= (change[moved] * size[moved])[:, None] * hessian[j]
        if torch.equal(codes, before):
            break
    return codes


def refitted(weight: Tensor, step: Tensor, gram: Tensor, codes: Tensor, damping: float) -> Tensor:
    """The factor [out] on the steps of each row that makes its damped error least, given `codes`.

    Least squares in one unknown: ⟨w, q∘step⟩ / ⟨q∘step, q∘step⟩ with the Gram matrix as the inner
    product; 1 for a row of zeros, and where the codes point away from the weights. Arguments as
    of `gptq`.
    """
    rounded = (codes * step).double()
    pull = rounded @ _damped(gram, damping)
    inner, norm = (pull * weight).sum(1), (pull * rounded).sum(1)
    return torch.where(inner > 0, inner / norm, 1.0).to(weight.dtype)


def output_error(weight: Tensor, step: Tensor, codes: Tensor, gram: Tensor) -> Tensor:
    """‖(w − q∘step)X‖² of each row, [out], up to the factor of `gram`."""
    change = (weight - codes * step).double()
    return ((change @ gram) * change).sum(1)


def _damped(gram: Tensor, damping: float) -> Tensor:
    hessian = gram.double()
    ridge = damping * hessian.diagonal().mean().clamp_min(1e-30)
    return hessian + ridge * torch.eye(len(hessian), dtype=torch.float64, device=gram.device)
