"""Bases of heads, and of the stream of tokens, in which the first dimensions matter most.

Queries and keys of a head only meet in their product, and its values only reach the output through
the projection: both may be turned by any invertible map that the other side undoes. In the right
basis, to drop the last dimensions is the best approximation there is of that rank (Eckart–Young).
"""

from typing import NamedTuple

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


class NormedHeads(NamedTuple):
    """Sums over tokens of the heads of a block, queries and keys normed, weights left out.

    `query` [heads, d + 1, d + 1]: of queries with a constant 1 at the end. `key` [heads, d, d]: of
    keys centred within their image. `whole_key` [heads, d, d]: of keys as they are.
    """

    query: Tensor
    key: Tensor
    whole_key: Tensor


class Affine(NamedTuple):
    """Weight and bias of a norm, [d] each, float64."""

    weight: Tensor
    bias: Tensor


def selected_norm(
    heads: NormedHeads, query: Affine, key: Affine, kept: Tensor, centred: bool, with_bias: bool
) -> Affine:
    """The norm of queries over the dimensions `kept` that keeps the logits best; that of keys is 1.

    With u and v the normed queries and keys over all dimensions, logits are Σ (γ u + β) γ' v, keys
    centred, since what all keys of a query share changes no softmax (nor does the bias of keys).
    The norm over fewer dimensions divides by their own deviation: on average over tokens it gives
    u_S / s, centred over S for LayerNorm, with s² the mean square of what stays. New logits are
    Σ_S (a u + b) v, linear in a and b: their least squared error over all pairs of a query and a
    key has the normal matrix (E[u uᵀ] ∘ E[v vᵀ]), summed over heads, and its solution is drawn a
    little (a thousandth) towards the weights there were.

    Args:
        heads: the moments.
        query: the affine part of the norm of queries.
        key: of the norm of keys.
        kept: [k] indices of dimensions, rising, the same in all heads.
        centred: whether the norm takes out the mean, as LayerNorm does and RMSNorm does not.
        with_bias: whether the norm of queries may have a bias.

    Returns:
        The affine part of the norm of queries over the dimensions kept, [k].
    """
    count = len(kept)
    pick = torch.eye(len(key.weight), dtype=torch.float64)[kept]
    if centred:
        pick = pick - pick.mean(0)
    pick_query = torch.block_diag(pick, torch.ones(1, 1, dtype=torch.float64))
    turn = torch.cat([torch.diag(query.weight), query.bias[:, None]], 1)
    second, second_key = pick_query @ heads.query @ pick_query.T, pick @ heads.key @ pick.T
    cross = (pick_query @ heads.query @ turn.T, pick @ heads.key * key.weight)
    deviation = (_mean_square(second[:, :-1, :-1]) / second[:, -1, -1].mean()).sqrt()
    share = _mean_square(pick @ heads.whole_key @ pick.T) / _mean_square(heads.whole_key)
    key_deviation = share.sqrt()

    normal = second[:, :count, :count] * second_key
    target = (cross[0][:, :count] * cross[1]).sum(-1)
    prior = query.weight[kept] * key.weight[kept] / (deviation * key_deviation)
    if with_bias:
        mixed = second[:, :count, -1:] * second_key
        below = torch.cat([mixed.mT, second[:, -1:, -1:] * second_key], -1)
        normal = torch.cat([torch.cat([normal, mixed], -1), below], -2)
        target = torch.cat([target, (cross[0][:, -1:] * cross[1]).sum(-1)], -1)
        prior = torch.cat([prior, query.bias[kept] * key.weight[kept] / key_deviation])
    normal, target = normal.sum(0), target.sum(0)
    penalty = 1e-3 * normal.diagonal().mean()
    solution = torch.linalg.solve(
        normal + penalty * torch.eye(len(normal), dtype=torch.float64), target + penalty * prior
    )
    weight = solution[:count] * deviation * key_deviation
    bias = solution[count:] * key_deviation if with_bias else torch.zeros_like(weight)
    return Affine(weight, bias)


def _mean_square(grams: Tensor) -> Tensor:
    return grams.diagonal(dim1=-2, dim2=-1).mean()
