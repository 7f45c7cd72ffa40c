import itertools
import math

import pytest
import torch
from torch import Tensor

from vitcompress.tasks import chosen, multi_label, one_logit
from vitcompress.tasks.multi_label import agreement, distance, explained, mean_average_precision


def bernoulli(f: float, g: float) -> float:
    p, q = (1 / (1 + math.exp(-x)) for x in (f, g))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_distance_adds_up_bernoulli_divergences() -> None:
    dense, output = [[0.3, -2.0], [4.0, 0.0]], [[-1.0, -2.5], [1.0, 0.5]]
    wanted = [sum(map(bernoulli, f, g)) for f, g in zip(dense, output, strict=True)]
    found = distance(torch.tensor(output).double(), torch.tensor(dense).double())
    assert found.tolist() == pytest.approx(wanted)
    sure = distance(torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, -199.0]]))
    assert float(sure) == pytest.approx(200.0)


def average_precision(logits: list[float], hits: list[int]) -> float:
    """By thresholds: Σ (recall − recall before) × precision."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(logits), reverse=True):
        chosen = [hit for logit, hit in zip(logits, hits, strict=True) if logit >= threshold]
        recall = sum(chosen) / sum(hits)
        total += (recall - before) * sum(chosen) / len(chosen)
        before = recall
    return total


@pytest.mark.parametrize("steps", [3, 1000])  # with many ties, and without
def test_mean_average_precision_is_that_of_its_definition(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    logits = torch.randint(steps, (30, 4), generator=generator).double()
    labels = torch.randint(2, (30, 4), generator=generator)
    labels[:, 2] = 0  # of no image: does not count
    wanted = [average_precision(logits[:, c].tolist(), labels[:, c].tolist()) for c in (0, 1, 3)]
    found = mean_average_precision(logits, labels)
    assert found == pytest.approx(100 * sum(wanted) / 3)
    assert mean_average_precision(logits * 3 - 1, labels) == found  # only the order counts


def test_mean_average_precision_at_its_ends() -> None:
    labels = torch.tensor([[1, 0], [0, 1], [0, 0]])
    assert mean_average_precision(labels.double(), labels) == 100
    assert mean_average_precision(torch.zeros(3, 2), labels) == pytest.approx(100 / 3)
    assert mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 2)) is None
    assert mean_average_precision(torch.zeros(1, 2), torch.tensor([[1, 0]])) == 100


def test_agreement_is_that_of_signs_of_all_outputs() -> None:
    dense = torch.tensor([[1.0, -1.0, -1.0], [2.0, 2.0, -2.0]])
    changed = torch.tensor([[0.1, -5.0, 0.2], [2.0, -0.1, -2.0]])
    assert agreement(changed, dense) == pytest.approx(100 * 4 / 6)


def test_positive_logits_are_explained_or_else_the_largest() -> None:
    output = torch.tensor([[1.0, 3.0, -4.0], [-2.0, -5.0, -3.0]])
    assert explained(output).tolist() == [4, -2]


@pytest.mark.parametrize(("f", "g"), [*itertools.product((-0.5, 2.0), (-3.0, 0.1))])
def test_one_logit_does_not_always_agree(f: float, g: float) -> None:
    task, dense = chosen(None, 1), torch.tensor([[f]])
    found = task.compared(torch.tensor([[g]]), dense)
    assert found["agreement"] == (100 if f * g > 0 else 0)
    assert found["kl"] == pytest.approx(bernoulli(f, g), rel=1e-5)
    assert float(one_logit.explained(dense)) == abs(f)
    assert task.distance is multi_label.distance


def test_one_logit_is_right_at_zero() -> None:
    outputs: Tensor = torch.tensor([[-1.0], [0.2], [3.0], [-4.0]])
    assert one_logit.top1(outputs, torch.tensor([0, 1, 0, 0])) == 75
