"""A branch that adds nothing to the stream, as one of a zero LayerScale or norm, is no trouble."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter
from torch import Tensor

from vitcompress.data.images import ImageSet
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.registry import StageConfig, stage_of

QUANTIZE = {"type": "quantize", "residual": 0}
MIXED = {"average": 6, "widths": [4, 8]}
STAGES: dict[str, dict[str, Any]] = {
    "prune": {"type": "prune", "budget": {"macs": 0.8}},
    "sparsify": {"type": "sparsify", "layers": ["*mlp*"]},
    "sparsify by wanda": {"type": "sparsify", "layers": ["*mlp*"], "criterion": "wanda"},
    "8 bits by descent": QUANTIZE,
    "bits by lrp": {**QUANTIZE, "rounding": "nearest", "bits": MIXED, "score": "lrp"},
    "4 bits by gptq": {**QUANTIZE, "rounding": "gptq", "bits": 4},
    "4 bits in sequence": {**QUANTIZE, "rounding": "gptq", "bits": 4, "sequential": True},
    "merge": {"type": "merge", "budget": {"macs": 0.8}, "method": "fisher", "images": 8},
    "recover": {"type": "recover", "method": "affine"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_go_on(
    stage: str,
    make_vit: Callable[..., VitModel],
    make_context: Callable[..., Context],
    images: ImageSet,
    pixels: Tensor,
) -> None:
    vit = make_vit(init_values=1.0)
    for branch in ("ls1", "ls2"):
        vit.module.get_parameter(f"blocks.0.{branch}.gamma").zero_()
    context = make_context(dense=vit, calibration=images.subset(range(16)))
    config = TypeAdapter[Any](StageConfig).validate_python(STAGES[stage])
    found = stage_of(config).run(vit, config, context).model
    assert found.module(pixels).isfinite().all()
    assert all(each.isfinite().all() for each in found.module.state_dict().values())
