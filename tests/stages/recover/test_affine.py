"""Scales and shifts of channels: what they bring back, in every family and after every stage."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.models import WINDOWED, rebuilt
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.outlet import adjusted, outlet_name
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import plan as prune_plan
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.stage import plan, recover
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import sparsify
from vitcompress.stages.tail.config import TailConfig
from vitcompress.stages.tail.stage import tail

MakeVit = Callable[..., VitModel]
MakeContext = Callable[..., Context]

FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.5},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "no head": {"num_classes": 0},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "rotary": {"name": "vit_small_patch16_dinov3", "global_pool": "token"},
    "norms after": {"name": "eva02_enormous_patch14_clip_224"},
    "swin": {"name": "swin_tiny_patch4_window7_224", **WINDOWED},
    "swin v2": {"name": "swinv2_tiny_window8_256", **WINDOWED},
}


def rescaled(model: VitModel) -> nn.Module:
    """A copy whose branches each have another scale and shift of each channel."""
    module, random = copy.deepcopy(model.module), torch.Generator().manual_seed(4)
    for site in anatomy_of(module).sites:
        width = site.last.out_features
        scale = torch.rand(width, generator=random) * 0.5 + 0.75
        shift = torch.randn(width, generator=random) / 10
        module.set_submodule(outlet_name(site), adjusted(site, scale, shift))
    return module


def fell(result: Any, word: str) -> float:
    """What is left of the distance on images held back, as a share."""
    return float(result.facts[f"held_back_{word}_after"] / result.facts[f"held_back_{word}_before"])


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_and_shifts_are_brought_back(
    family: str, make_vit: MakeVit, make_context: MakeContext
) -> None:
    dense, model = (make_vit(**FAMILIES[family]) for _ in range(2))
    model.module.load_state_dict(rescaled(model).state_dict())
    result = recover(
        model, RecoverConfig(method="affine", held_back=0.5), make_context(dense=dense)
    )
    assert fell(result, model.task.word) < 0.5
    assert result.facts["sites_changed"]
    assert result.model.architecture == model.architecture
    assert result.model.module.state_dict().keys() == model.module.state_dict().keys()
    assert cost.macs(result.model) == cost.macs(model)


def compressed(stage: str, vit: VitModel, context: Context) -> VitModel:
    """A model as a stage leaves it, with something more lost that can be brought back."""
    made = {
        "tail": lambda: tail(vit, TailConfig(), context),
        "merge": lambda: merge(
            vit,
            MergeConfig(method="tome", schedule="constant", budget={"macs": 0.8}, images=8),  # type: ignore[arg-type]
            context,
        ),
        "sparsify": lambda: sparsify(vit, SparsifyConfig(pattern="3:4"), context),
        "quantize": lambda: quantize(
            vit, QuantizeConfig(rounding="nearest", bits=4, residual=0, rest="float16"), context
        ),
    }[stage]().model
    made.module.load_state_dict(rescaled(made).state_dict())
    return made


@pytest.mark.parametrize("stage", ["tail", "merge", "sparsify", "quantize"])
def test_what_is_recovered_is_stored_as_before(
    stage: str, vit: VitModel, context: Context, pixels: Tensor
) -> None:
    model = compressed(stage, vit, context)
    result = recover(model, RecoverConfig(method="affine"), context)
    assert fell(result, "kl") < 0.9
    for name, tensor in result.model.module.state_dict().items():
        before = model.module.state_dict()[name]
        if name.endswith("codes"):
            assert torch.equal(tensor, before)
        if name.endswith("weight"):
            assert torch.equal(tensor != 0, before != 0)
    assert torch.equal(rebuilt(result.model)(pixels), result.model.module(pixels))


def test_the_same_images_and_seed_give_the_same_model(make_vit: MakeVit, context: Context) -> None:
    found = []
    for _ in range(2):
        model = make_vit()
        model.module.load_state_dict(rescaled(model).state_dict())
        found.append(recover(model, RecoverConfig(method="affine"), context).model.fingerprint())
    assert found[0] == found[1]


def test_a_narrower_stream_and_unknown_blocks_are_skipped(make_vit: MakeVit) -> None:
    narrow = PruneConfig(budget={"params": 0.8}, structures=("embedding", "hidden"))  # type: ignore[arg-type]
    model = prune_plan(make_vit(), narrow).model
    assert "its stream of tokens is narrower" in str(
        plan(model, RecoverConfig(method="affine")).facts["skipped"]
    )
    options = dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"))
    generic = make_vit("convnext_atto", **options, dims=(8, 16, 16, 16), depths=(1, 1, 1, 1))
    assert "not of a kind" in str(plan(generic, RecoverConfig(method="affine")).facts["skipped"])
