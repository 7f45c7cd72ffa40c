import math

import pytest
import torch

from vitcompress.tasks.classification import TASK, agreement, distance, explained, top1, top5


def test_distance_is_kl_in_nats_and_forgives_a_common_shift() -> None:
    dense, output = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    wanted = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(distance(output, dense)) == pytest.approx(wanted)
    assert torch.allclose(distance(output + 5, dense - 7), distance(output, dense), atol=1e-6)


def test_accuracy_is_counted_among_the_largest() -> None:
    outputs = torch.arange(8.0).expand(4, 8)
    labels = torch.tensor([7, 6, 3, 2])
    assert top1(outputs, labels) == 25
    assert top5(outputs, labels) == 75
    assert top5(outputs[:, :3], torch.tensor([0, 1, 2, 2])) == 100  # fewer classes than five
    assert TASK.judged(outputs, labels) == {"top1": 25, "top5": 75}


def test_agreement_is_that_of_the_largest() -> None:
    dense = torch.eye(4)
    assert agreement(dense[[0, 1, 3, 2]], dense) == 50


def test_the_largest_logit_is_explained() -> None:
    assert explained(torch.tensor([[1.0, 3.0], [-2.0, -5.0]])).tolist() == [3, -2]
