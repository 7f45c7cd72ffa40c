"""What is written under pictures of images."""

import pytest
import torch

from vitcompress.data.images import Batch
from vitcompress.stages.captions import captions
from vitcompress.tasks import chosen

BATCH = Batch(torch.zeros(2, 3, 4, 4), None, ["a", "b"])


def test_both_answers_are_told_where_they_differ() -> None:
    before, after = torch.eye(3)[[2, 0]], torch.eye(3)[[2, 1]]
    names = ("eel", "pike", "tench").__getitem__
    told = captions(BATCH, chosen("classification", 3), before, after, names)
    assert told == ["a: tench", "b: eel → pike"]


@pytest.mark.parametrize("task", ["embedding", "regression"])
def test_without_answers_images_have_their_names(task: str) -> None:
    outputs = torch.eye(2)
    assert captions(BATCH, chosen(task, 2), outputs, outputs, str) == ["a", "b"]
