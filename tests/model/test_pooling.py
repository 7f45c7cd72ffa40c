"""How tokens are pooled, in all ways that timm knows: as it computes it, read, and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.models import WINDOWED
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel
from vitcompress.model.checkpoint import load_model
from vitcompress.model.layouts import Converted

KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "plain": (
        "vit_tiny_patch16_224",
        {"reg_tokens": 2},
        ("token", "avg", "max", "avgmax", "map", "prr"),
    ),
    "plain, no class token": (
        "vit_tiny_patch16_224",
        {"class_token": False},
        ("avg", "max", "avgmax", "map", "prr"),
    ),
    "rotary": ("eva02_tiny_patch14_224", {}, ("token", "avg", "max", "avgmax", "map")),
    "beit": ("beit_base_patch16_224", {}, ("token", "avg")),
    "windows": ("swin_tiny_patch4_window7_224", WINDOWED, ("avg", "max", "avgmax", "catavgmax")),
}
each = pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, {**options, "global_pool": pool}, id=f"{kind}: {pool}")
        for kind, (name, options, pools) in KINDS.items()
        for pool in pools
    ],
)


@each
def test_a_checkpoint_is_read_and_computes_what_timm_does(
    name: str,
    options: dict[str, Any],
    make_module: Callable[..., nn.Module],
    make_vit: Callable[..., VitModel],
    pixels: Tensor,
) -> None:
    trained = make_module(name, **options)
    expected, model = trained(pixels), make_vit(name, **options)
    assert torch.allclose(model.module(pixels), expected, atol=1e-5)
    assert torch.allclose(model.anatomy.run(pixels), expected, atol=1e-5)
    assert model.anatomy.reads_prefix == (options["global_pool"] == "token" and name[:4] != "swin")
    unseen = {k: v for k, v in model.architecture.options.items() if k != "num_classes"}
    read, _ = load_model(Converted(name, trained.state_dict()), unseen, source="x.pth")
    assert torch.allclose(read(pixels), expected, atol=1e-5)


def test_pooling_that_timm_does_not_have_is_refused(
    make_module: Callable[..., nn.Module], make_vit: Callable[..., VitModel]
) -> None:
    name, options = "vit_tiny_patch16_224", make_vit().architecture.options
    state = make_module().state_dict()
    with pytest.raises(InputError, match=r"x\.pth: .*ggem"):
        load_model(Converted(name, state), {**options, "global_pool": "ggem"}, source="x.pth")
    more = {**state, "ggem.p": torch.ones(4)}
    with pytest.raises(InputError, match=r"1 unexpected \(ggem.p \[4\]\)"):
        load_model(Converted(name, more), options, source="x.pth")


@pytest.mark.slow
@each
def test_an_exported_file_gives_the_same(
    name: str,
    options: dict[str, Any],
    make_vit: Callable[..., VitModel],
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    model = make_vit(name, **options)
    export_onnx(model, tmp_path / "model.onnx", {})
    assert check_parity(tmp_path / "model.onnx", model, pixels, 1)["passed"]
