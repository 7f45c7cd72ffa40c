"""How good logits are: against labels, and against the logits of the dense model."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def top_k(logits: np.ndarray, labels: Sequence[int], k: int) -> float:
    """Percent of the rows of `logits` [n, classes] with the label among the `k` largest."""
    largest = torch.from_numpy(logits).topk(min(k, logits.shape[1])).indices
    hits = (largest == torch.tensor(labels)[:, None]).any(1)
    return 100 * float(hits.double().mean())


def agreement(logits: np.ndarray, dense: np.ndarray) -> float:
    """Percent of the rows with the same largest entry in both, [n, classes]."""
    return 100 * float((logits.argmax(1) == dense.argmax(1)).mean())


def mean_kl(logits: np.ndarray, dense: np.ndarray) -> float:
    """Mean KL(dense ‖ logits) in nats over the rows of both, [n, classes]."""
    ours, theirs = (torch.from_numpy(x).double().log_softmax(1) for x in (logits, dense))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return max(0.0, float(divergence))  # rounding may leave −1e-17
