"""Rounding of weights with the error of each column made good by the columns after it."""

import torch
from torch import Tensor

from .quantizer import weight_limit

_BLOCK = 64


def gptq(weight: Tensor, scale: Tensor, gram: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Codes that make ‖(W − sQ)X‖² small: optimal brain quantization in the form of GPTQ.

    Columns are rounded one by one, those with the largest inputs first; each rounding error is
    spread over the columns not yet rounded by the inverse Hessian (Frantar et al., 2210.17323,
    equations 2 and 3, with the Cholesky form of section 3).

    Args:
        weight: [out, in].
        scale: [out].
        gram: [in, in], XXᵀ over the calibration rows, up to a factor.
        bits: width of the codes.
        damping: added to the diagonal of the Gram matrix, as a share of its mean.

    Returns:
        Signed codes [out, in], float32.
    """
    limit = weight_limit(bits)
    hessian = gram.double()
    hessian = hessian + damping * hessian.diagonal().mean().clamp_min(1e-30) * torch.eye(
        len(hessian), dtype=torch.float64
    )
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    remaining = weight[:, order].clone()
    codes = torch.empty_like(remaining)
    columns = weight.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = remaining.new_zeros(len(weight), stop - start)
        for j in range(start, stop):
            codes[:, j] = torch.round(remaining[:, j] / scale).clamp(-limit, limit)
            error = (remaining[:, j] - codes[:, j] * scale) / factor[j, j]
            remaining[:, j:stop] -= error[:, None] * factor[j, j:stop]
            errors[:, j - start] = error
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored
