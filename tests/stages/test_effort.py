"""What a plan says of time: counts of work, at the speed of this machine."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter
from torch import nn

from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.stages.effort import Speed, Work, solving, speed
from vitcompress.stages.registry import StageConfig, stage_of

STAGES: list[dict[str, Any]] = [
    {"type": "quantize"},
    {"type": "quantize", "bits": 4},
    {"type": "quantize", "bits": {"average": 5}},
    {"type": "prune", "budget": {"macs": 0.8}},
    {"type": "merge", "budget": {"macs": 0.7}},
    {"type": "sparsify"},
    {"type": "sparsify", "pattern": "unstructured", "density": 0.5},
    {"type": "recover"},
]


def work(model: VitModel, given: dict[str, Any], images: int) -> Work | None:
    config: Any = TypeAdapter(StageConfig).validate_python(given)
    return stage_of(config).work(model, config, images)


@pytest.mark.parametrize("given", STAGES, ids=str)
def test_every_stage_counts_its_work(given: dict[str, Any], vit: VitModel) -> None:
    few, many = (work(vit, given, images) for images in (32, 256))
    assert few is not None
    assert many is not None
    assert 0 < few.passes <= many.passes
    assert few.products == many.products  # closed forms know sums over images alone
    assert (few.passes < many.passes) == (given["type"] != "recover")  # whose steps are given


def test_what_was_never_counted_is_not_told(vit: VitModel) -> None:
    assert work(vit, {"type": "recover", "method": "affine"}, 64) is None
    assert work(vit, {"type": "tail"}, 64) == Work()


def test_seconds_are_work_at_the_speed_of_this_machine(make_vit: Callable[..., VitModel]) -> None:
    assert Speed(a_pass=0.5, product=1e-9).seconds(Work(10, 2e9), share=0.5) == 4.5
    assert solving([nn.Linear(4, 2)], 2) == 2 * solving([nn.Linear(4, 2)])
    model = make_vit()
    found = speed(model, macs(model))
    assert found is not None
    assert 0 < found.product < found.a_pass < 10
    assert speed(model, 10**12) is None  # it would take too long
