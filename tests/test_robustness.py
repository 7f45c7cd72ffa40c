"""What an average hides, measured on clean and on corrupted images."""

import numpy as np
import pytest
import torch

from helpers.cli import Call
from vitcompress.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from vitcompress.evaluation import Judged
from vitcompress.robustness import by_class

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    """Images that are smooth, with some texture, in 8 bits, 0 to 1."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (56, 56), mode="bilinear")
    grain = 0.05 * torch.randn(3, 3, 56, 56, generator=random)
    return ((smooth + grain).clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_is_further_from_the_image(name: str, clean: torch.Tensor) -> None:
    def changed(severity: int) -> torch.Tensor:
        return CORRUPTIONS[name](clean, severity, torch.Generator().manual_seed(1))

    errors = [float((changed(severity) - clean).square().mean()) for severity in SEVERITIES]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert changed(3).shape == clean.shape
    assert torch.equal(changed(3), changed(3))


def test_a_corruption_is_of_the_image_that_an_input_comes_from(clean: torch.Tensor) -> None:
    shift, scale = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    inputs = (clean - shift) / scale
    assert torch.allclose(corrupted(inputs, MEAN, STD, lambda pixels: pixels), inputs, atol=1e-5)
    black = corrupted(inputs, MEAN, STD, lambda pixels: pixels - 2)
    assert torch.allclose(black, (-shift / scale).expand_as(inputs))


def test_the_classes_that_lost_most_come_first() -> None:
    labels = (0, 0, 1, 1, 2, 2)
    right = np.eye(3)[list(labels)]
    worse = right.copy()
    worse[[0, 1]] = np.eye(3)[[2, 0]]  # one of class 0 is wrong
    names = ("ant", "bee", "cow")
    table = by_class(Judged(worse, labels), Judged(right, labels), names)
    assert table.rows[0] == {"class": "ant", "images": 2, "top1": 50.0, "dense_top1": 100.0}
    assert [row["class"] for row in table.rows] == ["ant", "bee", "cow"]
    alone = by_class(Judged(worse, labels), None, None)
    assert alone.rows[0] == {"class": "0", "images": 2, "top1": 50.0}


def test_eval_holds_a_model_against_its_dense_one_under_corruptions(call: Call) -> None:
    glyphs = "example:glyphs"
    given = ("eval", glyphs, "--evaluation", f"{glyphs}/evaluation", "--limit", 33)
    found = call(*given, "--dense", glyphs, "--robustness", "--json").json
    assert (found["agreement"], found["kl"]) == (100, 0)
    assert len(found["robustness"]) == len(CORRUPTIONS) * len(SEVERITIES)
    for row in found["robustness"]:  # both have seen the same noise
        assert (row["agreement"], row["top1"]) == (100, row["dense_top1"])
    noisy = [row["top1"] for row in found["robustness"] if row["corruption"] == "noise"]
    assert found["top1"] >= noisy[0] > noisy[-1]
    told = call(*given).stderr
    assert "top1" in told
    assert "robustness" not in told
