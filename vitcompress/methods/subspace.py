"""Bases of heads, and of the stream of tokens, in which the first dimensions matter most.

Queries and keys of a head only meet in their product, and its values only reach the output through
the projection: both may be turned by any invertible map that the other side undoes. In the right
basis, to drop the last dimensions is the best approximation there is of that rank (Eckart–Young).
"""

import torch
from torch import Tensor

_FLOOR = 1e-10


def query_key_basis(query_gram: Tensor, key_gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of queries and keys that keep qᵀk, sorted by what a dimension adds to it.

    With G_q^½ G_k^½ = U Λ Vᵀ the maps are T_q = G_q^-½ U Λ^½ and T_k = G_k^-½ V Λ^½. The mean
    square error of the logits, over all pairs with these moments, is Σ Λ² of what is dropped.
    Adding the same number to all logits of a query changes nothing, so that keys may be centred.

    Args:
        query_gram: E[q qᵀ], [d, d].
        key_gram: E[k kᵀ], [d, d], of keys centred within their image.

    Returns:
        T_q and T_k [d, d], to be used as q ← T_qᵀ q, and Λ² [d], falling; float64.
    """
    query_root, query_inverse = _roots(query_gram)
    key_root, key_inverse = _roots(key_gram)
    u, strength, v = torch.linalg.svd(query_root @ key_root)
    half = strength.clamp_min(strength[0] * _FLOOR).sqrt()
    return query_inverse @ u * half, key_inverse @ v.T * half, strength.square()


def value_basis(gram: Tensor, projection: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Map of values, sorted by what a dimension adds to the output.

    With G^½ Pᵀ M^½ = U Λ Vᵀ the map is T = G^-½ U. The mean of Δyᵀ M Δy is Σ Λ² of the dropped
    dimensions, the projection being P G^½ U on those that stay.

    Args:
        gram: E[z zᵀ] of the mixed values of one head, [d, d].
        projection: P [out, d], what is applied to them.
        metric: M [out, out], positive semi-definite.

    Returns:
        T [d, d], to be used as v ← Tᵀ v; its inverse, to be used as P ← P (T⁻¹)ᵀ; and Λ² [d].
    """
    root, inverse = _roots(gram)
    metric_root, _ = _roots(metric)
    u, strength, _ = torch.linalg.svd(root @ projection.double().T @ metric_root)
    energy = torch.zeros(len(root), dtype=torch.float64)
    energy[: len(strength)] = strength.square()
    return inverse @ u, u.T @ root, energy


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a positive semi-definite matrix, and its inverse; float64."""
    values, vectors = torch.linalg.eigh(gram.double())
    largest = values[-1].clamp_min(torch.finfo(torch.float32).tiny)
    roots = values.clamp_min(largest * _FLOOR).sqrt()
    return vectors * roots @ vectors.T, vectors / roots @ vectors.T


def stream_basis(gram: Tensor) -> Tensor:
    """The principal directions of a stream of tokens that LayerNorms read, all but their mean.

    A LayerNorm takes from a token its mean over channels, so that of C directions the one of equal
    channels carries nothing. `gram` [C, C] is a sum of second moments of centred tokens.

    Returns:
        Orthonormal columns [C, C − 1], each at right angles to the vector of ones, by falling
        energy; float64.
    """
    plane = _mean_free(len(gram))
    _, vectors = torch.linalg.eigh(plane.T @ gram.double() @ plane)
    basis: Tensor = plane @ vectors.flip(1)
    return basis


def stream_map(basis: Tensor, width: int) -> Tensor:
    """How a stream of C channels becomes one of C' = `width`, in which LayerNorm means the same.

    With V the first C' − 1 columns of `basis` and B an orthonormal basis [C', C' − 1] of the
    complement of ones, z = √(C'/C) B Vᵀ x has the mean 0, since 1ᵀB = 0. Its variance |z|²/C' is
    |Vᵀx|²/C: that of x, but for the share of what is dropped. So LayerNorm (2-norm of the centred
    token to √C, here √C') gives, with the share r² that stays, √(C'/C) B Vᵀ LN(x) / r: to read it,
    a layer W becomes W V Bᵀ √(C/C'), and eps, which is added to the variance, means the same.
    With C' = C nothing is lost. (SliceGPT, 2401.15024, does the like for RMSNorm.)

    B is that of the cosine transform: it spreads the principal directions, which differ widely,
    evenly over channels, as rounding to few bits wants them.

    Args:
        basis: as `stream_basis` gives it, [C, C − 1].
        width: C', from 2 to C.

    Returns:
        √(C'/C) B Vᵀ, [C', C], float64.
    """
    scale: float = (width / len(basis)) ** 0.5
    return scale * _mean_free(width) @ basis[:, : width - 1].T


def _mean_free(size: int) -> Tensor:
    """An orthonormal basis [size, size − 1] of the vectors of mean 0: cosines, without a constant.

    Column k is √(2/n) cos(π k (i + ½) / n), of the transform DCT-II.
    """
    place = torch.arange(size, dtype=torch.float64) + 0.5
    wave = torch.arange(1, size, dtype=torch.float64)
    basis: Tensor = (torch.pi / size * torch.outer(place, wave)).cos() * (2 / size) ** 0.5
    return basis
