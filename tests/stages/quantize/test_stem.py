"""The stem in integers: pixels of 8 bits lie on its codes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from helpers.models import images_of, rebuilt
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

CONFIG = QuantizeConfig(layers=("stem",), rounding="nearest")


def test_pixels_are_read_without_rounding_however_they_are_normalised(
    vit: VitModel, context: Context, tmp_path: Path, in_fresh_process: Callable[..., Tensor]
) -> None:
    unequal = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.4, 0.125)}
    preprocess = context.preprocess.model_copy(update=unequal)
    context = replace(context, preprocess=preprocess)
    pixels = images_of(context)
    model = quantize(vit, CONFIG, context).model
    stem = model.module.patch_embed.proj
    assert stem.terms == 1
    seen: list[Tensor] = []
    stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = model.module.patch_embed(pixels)
    exact = stem.dequantized()(seen[0])
    assert ((found - exact) - (found - exact).mean((0, 1))).abs().max() < 1e-5 * exact.abs().max()

    plain = quantize(vit, CONFIG.model_copy(update={"reparametrise": False}), context).model
    expected = vit.module.patch_embed(pixels)
    errors = [float((each.module.patch_embed(pixels) - expected).norm()) for each in (model, plain)]
    assert errors[0] < errors[1]

    assert model.architecture.pixel_scale
    assert not plain.architecture.pixel_scale
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    assert torch.allclose(in_fresh_process(model, pixels), model.module(pixels), atol=1e-5)
    export_onnx(model, tmp_path / "m.onnx", {})
    assert check_parity(tmp_path / "m.onnx", model, pixels, 1)["fused_layers"] == 1
