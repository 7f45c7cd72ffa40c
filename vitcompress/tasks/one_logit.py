"""Yes or no: the only output is the logit of yes."""

from torch import Tensor

from vitcompress.tasks import Task, all_images, multi_label


def explained(output: Tensor) -> Tensor:
    """The magnitude of the logit, [n, 1] → [n]."""
    return output.flatten(1).abs().sum(1)


def answers(output: Tensor) -> Tensor:
    """1 where the logit is positive, else 0: [n, 1] → [n]."""
    return (output.flatten() > 0).long()


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Percent of the images with a positive logit where the label [n] is 1, and only there."""
    return 100 * float(((outputs.flatten() > 0) == (labels == 1)).double().mean())


TASK = Task(
    name="one_logit",
    means="one logit: its logistic function gives the probability of yes",
    needs="a head of one output",
    fits=lambda outputs: outputs == 1,
    labels="two classes",
    distance=multi_label.distance,
    readout=multi_label.readout,
    explained=explained,
    against_dense={"agreement": multi_label.agreement, "kl": multi_label.kl},
    against_labels={"top1": top1},
    rates=dict.fromkeys(("agreement", "top1"), all_images),
    answers=answers,
)
