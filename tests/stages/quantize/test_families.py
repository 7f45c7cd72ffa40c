"""Quantize and sparsify on models of all families, and their files in onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import WINDOWED
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.selection import selected
from vitcompress.stages.quantize.stage import plan, quantize, sensitivity
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import sparsify

MakeVit = Callable[..., VitModel]

_NOT_PLAIN = dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"))
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "plain, headless": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "plain, map": ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}),
    "rotary": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "beit": ("beit_base_patch16_224", {}),
    "swin": ("swin_tiny_patch4_window7_224", WINDOWED),
    "swin, headless": ("swin_tiny_patch4_window7_224", {**WINDOWED, "num_classes": 0}),
    "swin v2": ("swinv2_tiny_window8_256", WINDOWED),
    "convnext": (
        "convnext_atto",
        {**_NOT_PLAIN, "dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "conv_mlp": False},
    ),
}


# In every run a model with a head and one without, sites of plain blocks and of windows.
_ALWAYS = ("plain", "swin, headless")


def _param(name: str) -> Any:
    return pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.slow)


@pytest.fixture(params=map(_param, FAMILIES))
def model(request: pytest.FixtureRequest, make_vit: MakeVit) -> VitModel:
    name, options = FAMILIES[request.param]
    return make_vit(name, **options)


def reloads(model: VitModel, pixels: Tensor, home: Path) -> None:
    """Whether a model read again is the same."""
    save_folder(model, home)
    assert torch.equal(load_folder(home).module(pixels), model.module(pixels))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in ("plain, headless", "swin v2", "swin") else ()
        )
        for name in FAMILIES
    ],
)
def test_8_bits(
    family: str, make_vit: MakeVit, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    name, options = FAMILIES[family]
    model = make_vit(name, **options)
    config = QuantizeConfig(layers=("blocks", "head"), rest="float16", rounding="nearest")
    dense = model.module(pixels)
    names = list(plan(model, config).model.architecture.quantized)
    result = quantize(model, config, context)
    assert list(result.model.architecture.quantized) == names == selected(model, config)
    assert (result.model.module(pixels) - dense).norm() < 0.1 * dense.norm()
    export_onnx(result.model, tmp_path / "model.onnx", {})
    assert check_parity(tmp_path / "model.onnx", result.model, pixels, 1)["passed"]
    reloads(result.model, pixels, tmp_path)


@pytest.mark.parametrize("score", ["lrp", "fisher", "kl"])
def test_a_mean_of_5_bits(
    score: str, model: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    budget = {"average": 5}
    options = {
        "bits": budget,
        "score": score,
        "rounding": "gptq",
        "residual": 0,
        "pin": {"head": 8},
    }
    config = QuantizeConfig.model_validate({"layers": ["blocks", "head"], **options})
    result = quantize(model, config, context)
    widths = {name: q.bits for name, q in result.model.architecture.quantized.items()}
    assert 4 < result.facts["average_bits"] <= 5
    assert all(b == 8 for name, b in widths.items() if model.anatomy.in_head(name))
    if score == "lrp":
        reloads(result.model, pixels, tmp_path)
        found = sensitivity(model, config, context)
        assert {row["layer"]: row["bits"] for row in found.rows} == widths


def test_zeros_then_bits_in_sequence(
    model: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    sparse = sparsify(model, SparsifyConfig(), context).model
    zeros = {name: layer.weight == 0 for name, layer in sparse.anatomy.linears().items()}
    assert {name for name, each in zeros.items() if each.any()} == set(sparse.architecture.sparse)
    config = QuantizeConfig(bits=6, sequential=True, rounding="gptq", reparametrise=False)
    result = quantize(sparse, config, context)
    for name in sparse.architecture.sparse:
        if name in result.model.architecture.quantized:
            assert (
                result.model.module.get_submodule(name).dequantized().weight[zeros[name]] == 0
            ).all()
    sites = {n for site in model.anatomy.sites for n in (site.first_name, site.last_name)}
    assert result.facts["rounded_in_sequence"] == len(sites)
    reloads(result.model, pixels, tmp_path)


def test_a_mixed_choice_of_zeros(model: VitModel, context: Context) -> None:
    config = SparsifyConfig(pattern="mixed", layers=("blocks",), density=0.7)
    result = sparsify(model, config, context)
    assert result.facts["density"] <= 0.7
    column = f"{model.task.word}_measured"
    assert all(row[column] > 0 for row in result.table("allocations").rows)


def test_words_hold_without_a_head(make_vit: MakeVit) -> None:
    headless = make_vit(num_classes=0)
    config = QuantizeConfig(layers=("blocks", "head"), pin={"head": 8}, floor={"head": 6}, bits=4)
    assert len(selected(headless, config)) == 8
    for options in ({"layers": ("head",)}, {"layers": ("head",), "name": "last"}):
        key = options.get("name", "quantize")
        with pytest.raises(InputError, match=rf"stages\.{key}\.layers: head select no linear"):
            plan(headless, QuantizeConfig.model_validate(options))
    with pytest.raises(InputError, match=r"stages\.sparsify\.layers: head select no linear"):
        sparsify(headless, SparsifyConfig(layers=("head",)), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [("blocks",), ("blocks", "head")])
def test_words_select_what_patterns_of_plain_models_do(words: Any, vit: VitModel) -> None:
    patterns = tuple({"blocks": "blocks.*"}.get(word, word) for word in words)
    named, matched = (selected(vit, QuantizeConfig(layers=layers)) for layers in (words, patterns))
    assert named == matched


def test_a_second_stage_takes_what_the_first_left(
    model: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    if not model.anatomy.sites:
        pytest.skip("no sites to tell apart")
    first = {"layers": ["*mlp*"], "bits": 4, "rounding": "gptq", "rest": "int8"}
    half = quantize(model, QuantizeConfig.model_validate(first), context).model
    rest = {"bits": {"average": 6}, "score": "kl", "rounding": "gptq", "sequential": True}
    whole = quantize(half, QuantizeConfig.model_validate(rest), context).model
    assert set(selected(model, QuantizeConfig())) <= set(whole.architecture.quantized)
    reloads(whole, pixels, tmp_path)
    with pytest.raises(InputError, match="quantized already"):
        quantize(whole, QuantizeConfig(), context)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_an_input_that_never_changes(
    value: float, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    vit = make_vit()
    norm = vit.module.blocks[0].norm2
    norm.weight.zero_()
    norm.bias.fill_(value)
    dense = vit.module(pixels)
    for bits, sequential in ((8, False), (4, True), ({"average": 5}, False)):
        given = {"bits": bits, "rounding": "gptq", "sequential": sequential}
        config = QuantizeConfig.model_validate(given)
        result = quantize(vit, config, context)
        assert (result.model.module(pixels) - dense).norm() < 0.5 * dense.norm()
        assert all(0 <= (row["output_error"] or 0) < 1 for row in result.table("layers").rows)
    zeros = sparsify(vit, SparsifyConfig(), context).model
    assert (zeros.module(pixels) - dense).norm() < dense.norm()
