"""Rounding of weights with the error of each column made good by other columns."""

import torch
from torch import Tensor

from .quantizer import round_weight, weight_range

_BLOCK = 64
_METRIC_DAMPING = 0.1


def gptq(weight: Tensor, step: Tensor, gram: Tensor, bits: int, damping: float = 0.01) -> Tensor:
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
        bits: width of the codes.
        damping: added to the diagonal of the Gram matrix, as a share of its mean.

    Returns:
        Signed codes [out, in], float32.
    """
    low, high = weight_range(bits)
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
            rounded = torch.round(remaining[:, j] / steps[:, j]).clamp(low, high)
            codes[:, j] = rounded * present[:, j]
            error = (remaining[:, j] - codes[:, j] * steps[:, j]) / factor[j, j]
            remaining[:, j:stop] -= error[:, None] * factor[j, j:stop]
            errors[:, j - start] = error
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    nearest = round_weight(weight, step, bits)
    worse = output_error(weight, step, nearest, gram) < output_error(weight, step, restored, gram)
    return torch.where(worse[:, None], nearest, restored)


def descend(
    weight: Tensor,
    step: Tensor,
    gram: Tensor,
    codes: Tensor,
    bits: int,
    damping: float = 0.01,
    sweeps: int = 4,
    metric: Tensor | None = None,
) -> Tensor:
    """Better codes by coordinate descent on tr(M (W − Q∘step) G (W − Q∘step)ᵀ), from `codes`.

    G is the Gram matrix of the inputs and M, the `metric` [out, out], says what errors of outputs
    cost together (None: the identity): with M the second moments of the gradient at the output,
    this is the Fisher information of the layer as a Kronecker product (K-FAC, 1503.05671; rounding
    in this metric: YAQA, 2505.22988). A column at a time, each code is led to the value of least
    error given all others (a quadratic in one unknown, rounded and limited); changes that do not
    pay together are halved to the most promising. So the damped error never grows. A sweep takes
    each column once. Other arguments as of `gptq`.
    """
    low, high = weight_range(bits)
    hessian = _damped(gram, damping)
    hessian = hessian / hessian.diagonal().mean()
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    slope = (weight - codes * step).double() @ hessian
    if metric is not None:
        metric = _damped(metric, _METRIC_DAMPING)
        metric = metric / metric.diagonal().mean()
        slope = metric @ slope
        metric = metric.to(weight.dtype)
    slope, hessian = slope.to(weight.dtype), hessian.to(weight.dtype)
    steps, present = step.expand_as(weight), weight != 0
    own = torch.ones(len(weight)) if metric is None else metric.diagonal()
    codes = codes.clone()
    for _ in range(sweeps):
        for j in order:
            size, curvature = steps[:, j], own * hessian[j, j]
            wanted = codes[:, j] + slope[:, j] / (curvature * size)
            change = (wanted.round().clamp(low, high) - codes[:, j]) * present[:, j]
            if metric is not None:
                change = _paying(change, size, slope[:, j], hessian[j, j], metric)
            moved = change.nonzero()[:, 0]
            if len(moved):
                codes[moved, j] += change[moved]
                shift = change * size
                if metric is None:
                    slope[moved] -= shift[moved, None] * hessian[j]
                else:
                    slope.addr_(metric @ shift, hessian[j], alpha=-1)
    return codes


def _paying(
    change: Tensor, size: Tensor, slope: Tensor, curvature: Tensor, metric: Tensor
) -> Tensor:
    """Those of the `change` [out] of one column's codes that lower the error when made together."""
    shift = change * size
    gain = shift * (2 * slope - curvature * metric.diagonal() * shift)  # of each alone
    shift = torch.where(gain > 0, shift, 0.0)
    count = int((shift != 0).sum())
    while count and float((shift * (2 * slope - curvature * (metric @ shift))).sum()) <= 0:
        count //= 2
        if count:
            shift = torch.where(gain >= gain.topk(count).values[-1], shift, 0.0)
    return torch.where(shift != 0, change, 0.0) if count else torch.zeros_like(change)


def output_error(weight: Tensor, step: Tensor, codes: Tensor, gram: Tensor) -> Tensor:
    """‖(w − q∘step)X‖² of each row, [out], up to the factor of `gram`."""
    change = (weight - codes * step).double()
    return ((change @ gram) * change).sum(1)


def _damped(gram: Tensor, damping: float) -> Tensor:
    hessian = gram.double()
    ridge = damping * hessian.diagonal().mean().clamp_min(1e-30)
    return hessian + ridge * torch.eye(len(hessian), dtype=torch.float64, device=gram.device)
