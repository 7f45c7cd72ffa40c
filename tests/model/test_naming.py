"""Telling the timm model from tensor shapes and file names."""

import time
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.naming import infer_name, matching_models


def shapes(name: str, **options: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        state: dict[str, Tensor] = timm.create_model(
            name, weight_init="skip", **options
        ).state_dict()
    return state


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("deit_tiny_patch16_224", {}, ["deit_tiny_patch16_224", "vit_tiny_patch16_224"]),
        (
            "vit_tiny_patch16_224",
            {"num_classes": 7, "in_chans": 1},
            ["deit_tiny_patch16_224", "vit_tiny_patch16_224"],
        ),
        # DeiT-tiny might have been tuned at 384 pixels as well: timm's size is no proof.
        ("vit_tiny_patch16_384", {}, ["deit_tiny_patch16_224", "vit_tiny_patch16_384"]),
        ("deit_tiny_distilled_patch16_224", {}, ["deit_tiny_distilled_patch16_224"]),
        ("deit3_small_patch16_384", {}, ["deit3_small_patch16_384"]),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 224}, ["vit_small_patch14_reg4_dinov2"]),
        ("vit_tiny_patch16_224", {"embed_dim": 96}, []),
        ("vit_tiny_patch16_224", {"depth": 11}, []),
        ("vit_tiny_patch16_224", {"patch_size": 8}, []),
        ("vit_tiny_patch16_224", {"img_size": (224, 240)}, []),
    ],
    ids=str,
)
def test_candidates(name: str, options: dict[str, Any], expected: list[str]) -> None:
    assert list(matching_models(shapes(name, **options))) == expected


def test_candidates_are_found_quickly() -> None:
    state = shapes("vit_base_patch16_224")
    start = time.process_time()
    assert list(matching_models(state)) == ["deit_base_patch16_224", "vit_base_patch16_224"]
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "name", ["deit_small_distilled_patch16_224", "deit3_small_patch16_224", "flexivit_small"]
)
def test_shapes_that_only_one_model_has(name: str) -> None:
    assert infer_name(shapes(name, num_classes=10), "best.pth") == name


def test_shapes_of_several_models_that_behave_alike() -> None:
    state = shapes("vit_small_patch14_dinov2")
    assert list(matching_models(state)) == ["vit_small_patch14_dinov2"]
    state = shapes("vit_base_patch16_siglip_224", img_size=240)
    assert len(matching_models(state)) > 1
    assert infer_name(state, "best.pth") == "vit_base_patch16_siglip_224"


def test_equal_shapes_of_different_activations_are_not_guessed() -> None:
    state = shapes("vit_base_patch32_clip_224")
    assert "vit_base_patch32_clip_quickgelu_224" in matching_models(state)
    with pytest.raises(InputError, match="cannot tell"):
        infer_name(state, "best.pth")


def test_ambiguity_is_told_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        infer_name(shapes("deit_tiny_patch16_224"), "runs/best.pth")
    message = str(caught.value)
    assert message.startswith("runs/best.pth: ")
    assert "deit_tiny_patch16_224, vit_tiny_patch16_224" in message
    assert "pass --model NAME or set model.name in the recipe" in message
    assert "\n" not in message


def test_no_candidate() -> None:
    with pytest.raises(InputError, match=r"best.pth: .* fit no plain ViT .*--model NAME"):
        infer_name({"conv.weight": torch.ones(3)}, "best.pth")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("deit_tiny_patch16_224.in1k.safetensors", "deit_tiny_patch16_224"),
        ("runs/best_vit_tiny_patch16_224-ema.pth", "vit_tiny_patch16_224"),
        ("DeiT_Tiny_Patch16_224.pth", "deit_tiny_patch16_224"),
        ("vit_base_patch16_224_miil.pth", "vit_base_patch16_224_miil"),
        ("vit_base_patch16_224.mae.safetensors", "vit_base_patch16_224.mae"),
        (
            "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth",
            "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        ),
        ("vit_tiny_patch16_224_teacher_of_deit_base_patch16_224.pth", "vit_tiny_patch16_224"),
    ],
)
def test_file_names(source: str, expected: str) -> None:
    assert infer_name(shapes("vit_tiny_patch16_224"), source) == expected


def test_part_of_a_word_is_no_name() -> None:
    with pytest.raises(InputError, match="cannot tell"):
        infer_name(shapes("vit_tiny_patch16_224"), "xvit_tiny_patch16_2240.pth")
