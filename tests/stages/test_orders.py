"""Two stages in any order, each with itself too: it works and can be loaded again, or the plan
refuses it in a line before any work."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from vitcompress.data.images import ImageSet
from vitcompress.errors import InputError
from vitcompress.export.folder import save_folder
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.registry import StageConfig, stage_of

STAGES: dict[str, dict[str, Any]] = {
    "tail": {},
    "prune": {"budget": {"params": 0.8}, "allocate": "uniform", "multiple": 4},
    "merge": {"method": "tome", "schedule": "constant", "budget": {"macs": 0.8}, "images": 8},
    "sparsify": {"layers": ["blocks.*"]},
    "quantize": {"rounding": "nearest", "residual": 0, "layers": ["*.fc1"]},
    "recover": {"method": "affine"},
}

REFUSED = {
    ("merge", "prune"): "put it before merge",
    ("merge", "merge"): "already merges tokens",
    ("sparsify", "prune"): "put it before sparsify",
    ("quantize", "prune"): "put it before quantize",
    ("quantize", "merge"): "put it before quantize",
    ("quantize", "sparsify"): "put the stage before quantize",
    ("quantize", "quantize"): "quantized already",
}


def configured(stage: str, name: str, **options: Any) -> Any:
    given = {"type": stage, "name": name, **STAGES[stage], **options}
    return TypeAdapter[Any](StageConfig).validate_python(given)


def described(model: VitModel) -> dict[str, Any]:
    """What a plan knows of the description; which sizes and schedules only a run tells."""
    known = model.architecture
    exact = {"tail_tokens", "embedding", "sparse", "quantized"}
    return {
        **known.model_dump(include=exact),
        "narrowed": known.blocks is not None,
        "merges": known.merging is not None,
    }


def refused(model: VitModel, config: Any, reason: str) -> None:
    """The plan of `config` is refused in a line, before any work."""
    with pytest.raises(InputError, match=reason) as error:
        stage_of(config).plan(model, config)
    assert str(error.value).startswith("stages.second")
    assert "\n" not in str(error.value)


def check_zeros(model: VitModel) -> None:
    """Layers that are said to be sparse are."""
    for name, pattern in model.architecture.sparse.items():
        layer = model.module.get_submodule(name)
        assert pattern == "2:4"
        if isinstance(layer, nn.Linear):
            assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()


def test_two_stages_work_in_any_order_or_the_plan_refuses_them(
    make_vit: Callable[..., VitModel],
    make_context: Callable[..., Context],
    images: ImageSet,
    pixels: Tensor,
    fresh_logits: Callable[[Path, Tensor], Tensor],
    tmp_path: Path,
) -> None:
    context, vit = make_context(calibration=images.subset(range(16))), make_vit()
    firsts = {stage: configured(stage, "first") for stage in STAGES}
    planned = {stage: stage_of(each).plan(vit, each).model for stage, each in firsts.items()}
    made = {stage: stage_of(each).run(vit, each, context).model for stage, each in firsts.items()}
    for first, second in itertools.product(STAGES, STAGES):
        # To narrow what is narrowed, less has to be left.
        again = {"budget": {"params": 0.7}} if first == second == "prune" else {}
        config = configured(second, "second", **again)
        if (first, second) in REFUSED:
            for model in (planned[first], made[first]):
                refused(model, config, REFUSED[first, second])
            continue
        plan = stage_of(config).plan(planned[first], config).model
        given = made[first].fingerprint()
        model = stage_of(config).run(made[first], config, context).model
        assert made[first].fingerprint() == given
        assert described(plan) == described(model)
        if "merge" not in (first, second):  # its plan has another schedule
            parameters = [cost.parameters(each.module) for each in (plan, model)]
            assert parameters[0] == pytest.approx(parameters[1], rel=0.03)
        check_zeros(model)
        home = tmp_path / f"{first}-{second}"
        home.mkdir()
        save_folder(model, home)
        assert torch.equal(fresh_logits(home, pixels), model.module(pixels)), home.name
