"""What the merge stage refuses, and why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
from pydantic import ValidationError

from helpers.merging import config
from vitcompress.data.images import ImageSet
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import adopt
from vitcompress.model.sizes import resize, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge, plan
from vitcompress.stages.prune import stage as prune
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.quantize import stage as quantize
from vitcompress.stages.quantize.config import QuantizeConfig

MakeVit = Callable[..., VitModel]
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def test_a_search_needs_images_to_hold_back(
    deep: VitModel, make_context: Callable[..., Context], images: ImageSet
) -> None:
    damaged = replace(images, fetch=lambda index: images.fetch(index) if index < 3 else b"")
    for few in (images.subset(range(3)), damaged.subset(range(5))):
        context = make_context(calibration=few, max_unreadable=0.9)
        with pytest.raises(InputError, match=r"stages\.merge\.schedule: .* at least 4 calibration"):
            merge(deep, config(budget={"macs": 0.7}), context)


def test_a_model_of_one_block_is_refused(make_vit: MakeVit) -> None:
    with pytest.raises(InputError, match=r"stages\.merge: .* has one block"):
        plan(make_vit(depth=1), config(budget={"macs": 0.9}))
    plan(make_vit(depth=1, class_token=False, global_pool="avg"), config(budget={"macs": 0.9}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": [15, 12]}, r"stages\.merge\.schedule: 2 counts for 3 blocks"),
        (
            {"method": "tome", "schedule": [17, 8, 8]},
            r"schedule: block 1 cannot keep 8 of its 17 tokens; with tome from 9 to 17",
        ),
        ({"schedule": [12, 13, 9]}, r"block 1 cannot keep 13 of its 12 tokens"),
        ({"schedule": [12, 11, 10, 13]}, r"block 3 cannot keep 13 of its 10 tokens"),
        ({"schedule": [[14, 12], 11, 10]}, r"block 0 cannot drop 3 tokens .* only diffrate drops"),
        (
            {"method": "diffrate", "schedule": [[12, 13], 11, 10]},
            r"block 0 cannot drop 5 tokens and keep 13 of 17 with diffrate",
        ),
        ({"budget": {"macs": 0.1}}, r"stages\.merge\.budget\.macs: fisher .* does not go below"),
        ({"schedule": "deit_small@2.9"}, r"schedule: deit_small@2.9 is for 12 blocks"),
    ],
)
def test_what_cannot_be_met_is_refused(
    options: dict[str, Any], message: str, deep: VitModel, context: Context
) -> None:
    with pytest.raises(InputError, match=message):
        merge(deep, config(**options), context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cls_only_tail"}, "a stage of its own: write `type: tail`"),
        ({}, "budget: missing; .* or write `type: tail`"),
        ({"method": "fisher"}, "budget: missing"),
        ({"schedule": "linear"}, "'linear' is none of search, constant"),
        ({"schedule": "linear", "budget": {"macs": 0.5}}, "'linear' is none of search, constant"),
        ({"budget": {}}, "give either macs or latency"),
        ({"budget": {"macs": 0.5, "latency": 0.5}}, "give either macs or latency"),
        ({"method": "fisher", "schedule": [9], "budget": {"macs": 0.5}}, "take one of the two"),
    ],
)
def test_configs_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergeConfig.model_validate(options)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "window_size": 7, "embed_dim": 24, "num_heads": (2, 2, 4, 4)},
            "tokens that sit in windows cannot be merged",
        ),
        ("beit_base_patch16_224", OPTIONS, "the bias of its attention is looked up by position"),
        ("eva02_enormous_patch14_clip_224", OPTIONS, "its norms come after attention and MLP"),
        ("vit_tiny_patch16_224", {**OPTIONS, "dynamic_img_size": True}, None),
        ("vit_base_patch16_rpn_224", OPTIONS, "tokens in other numbers for each image, or blocks"),
        ("levit_128s", {}, "its blocks are not of a kind that is known"),
    ],
)
def test_families_that_cannot_merge_say_why(
    name: str, options: dict[str, Any], reason: str | None, vit: VitModel
) -> None:
    named = vit.architecture.model_copy(update={"timm": name})
    model = replace(vit, module=adopt(timm.create_model(name, **options)), architecture=named)
    if reason is None:
        plan(model, config(budget={"macs": 0.7}))
        return
    with pytest.raises(InputError, match=rf"^stages\.merge: {name}: {reason}.*take the stage out"):
        plan(model, config(budget={"macs": 0.7}))


def test_it_comes_before_quantize(vit: VitModel, context: Context) -> None:
    quantized = quantize.plan(vit, QuantizeConfig()).model
    with pytest.raises(InputError, match="put it before quantize"):
        merge(quantized, config(budget={"macs": 0.8}), context)


@pytest.mark.parametrize(
    ("part", "without"), [("attention", {"attention": None}), ("mlp", {"hidden": None})]
)
def test_a_block_without_a_half_is_refused(
    part: str, without: dict[str, None], deep: VitModel
) -> None:
    sizes = [sizes_of(block) for block in deep.module.blocks]
    sizes[1] = sizes[1].model_copy(update=without)
    resize(deep.module.blocks[1], sizes[1])
    blocks = deep.architecture.model_copy(update={"blocks": tuple(sizes)})
    pruned = replace(deep, architecture=blocks)
    with pytest.raises(InputError, match=rf"stages\.merge: a block without its {part} cannot"):
        plan(pruned, config(schedule="constant", budget={"macs": 0.9}))


def test_pruning_comes_first(deep: VitModel, context: Context) -> None:
    merged = plan(deep, config(schedule="constant", budget={"macs": 0.9})).model
    pruning = PruneConfig.model_validate({"budget": {"macs": 0.8}})
    with pytest.raises(InputError, match=r"stages\.prune: put it before merge"):
        prune.plan(merged, pruning)
