"""One class out of several: the outputs are logits of a softmax."""

import torch.nn.functional as F
from torch import Tensor

from vitcompress.methods.saliency import fisher_readout
from vitcompress.tasks import Task, all_images, not_negative

_TEMPERATURE = 0.6  # at which the probabilities of deit_tiny fit labels best (docs/search.md)


def distance(output: Tensor, dense: Tensor) -> Tensor:
    """KL(softmax of `dense` ‖ softmax of `output`) in nats, both [n, classes] → [n]."""
    ours, theirs = output.log_softmax(-1), dense.log_softmax(-1)
    return not_negative(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1))


def explained(output: Tensor) -> Tensor:
    """The largest logit, [n, classes] → [n]."""
    return output.amax(-1)


def answers(output: Tensor) -> Tensor:
    """The class with the largest logit, [n, classes] → [n]."""
    return output.argmax(-1)


def kl(outputs: Tensor, dense: Tensor) -> float:
    """Mean KL in nats."""
    return float(distance(outputs, dense).mean())


def agreement(outputs: Tensor, dense: Tensor) -> float:
    """Percent of the images with the same largest logit in both."""
    return 100 * float((outputs.argmax(-1) == dense.argmax(-1)).double().mean())


def expected_drop(outputs: Tensor, dense: Tensor) -> float:
    """The points of top-1 that are lost if the dense model's probabilities, sharpened, are those of
    the labels.

    Where the largest logit is another one, the dense model's probability of its own answer is lost,
    and that of the other is gained: fewer images tell it than labels would. Models that were
    trained on smoothed labels and mixed images are right more often than they are sure; for those
    that are not, the drop is told too large rather than too small.
    """
    own, other = dense.argmax(-1, keepdim=True), outputs.argmax(-1, keepdim=True)
    probabilities = (dense / _TEMPERATURE).softmax(-1)
    return 100 * float((probabilities.gather(-1, own) - probabilities.gather(-1, other)).mean())


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Percent of the images whose label [n] has the largest logit."""
    return _top(outputs, labels, 1)


def top5(outputs: Tensor, labels: Tensor) -> float:
    """Percent of the images whose label [n] has one of the five largest logits."""
    return _top(outputs, labels, 5)


def _top(outputs: Tensor, labels: Tensor, k: int) -> float:
    largest = outputs.topk(min(k, outputs.shape[-1])).indices
    return 100 * float((largest == labels[:, None]).any(1).double().mean())


TASK = Task(
    name="classification",
    means="logits of the classes: their softmax gives probabilities",
    needs="a head of two outputs or more",
    fits=lambda outputs: outputs >= 2,
    labels="classes",
    distance=distance,
    readout=fisher_readout,
    explained=explained,
    against_dense={"agreement": agreement, "kl": kl},
    against_labels={"top1": top1, "top5": top5},
    expected_drops={"top1": expected_drop},
    rates=dict.fromkeys(("agreement", "top1", "top5"), all_images),
    answers=answers,
)
