"""Stages one after the other on models with rotary embeddings, and what they count for layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure.cost import dense_macs, macs
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import prune
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.scores import Scored, score_of
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import sparsify

MakeVit = Callable[..., VitModel]


def fewer_tokens(model: VitModel, context: Context) -> VitModel:
    given = {"method": "diffrate", "schedule": "constant", "budget": {"macs": 0.7}}
    return merge(model, MergeConfig.model_validate(given), context).model


def test_stages_follow_each_other(
    make_vit: MakeVit,
    context: Context,
    pixels: Tensor,
    tmp_path: Path,
    in_fresh_process: Callable[[VitModel, Tensor], Tensor],
) -> None:
    dense = make_vit("vit_small_patch16_dinov3", global_pool="token")
    narrow = PruneConfig.model_validate({"budget": {"macs": 0.9}, "multiple": 4})
    model = fewer_tokens(prune(dense, narrow, context).model, context)
    model = sparsify(model, SparsifyConfig.model_validate({"pattern": "2:4"}), context).model
    given = {"bits": {"average": 6}, "score": "lrp", "rest": "int8", "rounding": "nearest"}
    result = quantize(model, QuantizeConfig.model_validate(given), context)
    model = result.model
    assert len(result.galleries[0].rows) > 0
    assert macs(model) < 0.75 * dense_macs(dense)
    assert not [name for name in model.architecture.coded if "rotation" in name]
    export_onnx(model, tmp_path / "model.onnx", {})
    facts = check_parity(tmp_path / "model.onnx", model, pixels, 1)
    assert facts["passed"]
    assert torch.equal(in_fresh_process(model, pixels), model.module(pixels))


@pytest.mark.parametrize("score", ["lrp", "fisher"])
def test_every_layer_counts_something(score: Any, make_vit: MakeVit, context: Context) -> None:
    model = fewer_tokens(make_vit("eva02_tiny_patch14_224", rope_type="mixed"), context)
    names = list(model.anatomy.linears())
    scored = Scored(model.anatomy, names, model.task, context, lambda _: 0.0)
    assert all(value > 0 for value in score_of(score).measure(scored))
