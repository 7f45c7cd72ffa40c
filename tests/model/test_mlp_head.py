"""Heads of several layers that somebody put on a backbone, and what a recipe says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.checkpoints import NAME, SMALL
from helpers.cli import Call
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.model.head import Choice
from vitcompress.model.layouts import Converted
from vitcompress.model.mlp_head import described
from vitcompress.model.naming import skeleton

Make = Callable[..., nn.Module]


class Dense(nn.Module):
    """As models of transformers have it: layers with names, and an activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


HEADS: dict[str, tuple[str, str | None, Callable[[], nn.Module], list[str]]] = {
    "linear, gelu, linear": (
        "head",
        "gelu",
        lambda: nn.Sequential(nn.Linear(64, 24), nn.GELU(), nn.Linear(24, 5)),
        ["linear", "activation", "linear"],
    ),
    "dropouts": (
        "mlp_head",
        "silu",
        lambda: nn.Sequential(
            nn.Dropout(), nn.Linear(64, 24), nn.SiLU(), nn.Dropout(), nn.Linear(24, 5, False)
        ),
        ["linear", "activation", "linear"],
    ),
    "norm first, nothing between": (
        "head",
        None,
        lambda: nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 5)),
        ["layer_norm", "linear"],
    ),
    "a dropout after the norm": (
        "classifier",
        None,
        lambda: nn.Sequential(nn.LayerNorm(64), nn.Dropout(), nn.Linear(64, 5)),
        ["layer_norm", "linear"],
    ),
    "a dropout between": (
        "fc",
        "none",
        lambda: nn.Sequential(nn.Linear(64, 24), nn.Dropout(), nn.Linear(24, 5)),
        ["linear", "linear"],
    ),
    "batch norm before the activation": (
        "head",
        "relu",
        lambda: nn.Sequential(
            nn.Linear(64, 24, False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 5)
        ),
        ["linear", "activation", "linear"],
    ),
    "batch norms after the activation and first": (
        "head",
        "tanh",
        lambda: nn.Sequential(
            nn.BatchNorm1d(64, affine=False),
            nn.Linear(64, 24),
            nn.Tanh(),
            nn.BatchNorm1d(24),
            nn.Linear(24, 5),
        ),
        ["linear", "activation", "linear"],
    ),
    "layer norm between": (
        "head.layers",
        "gelu_tanh",
        lambda: nn.Sequential(
            nn.Linear(64, 24), nn.LayerNorm(24), nn.GELU(approximate="tanh"), nn.Linear(24, 5)
        ),
        ["linear", "layer_norm", "activation", "linear"],
    ),
    "names with numbers": ("classifier", "relu", Dense, ["linear", "activation", "linear"]),
}


def filled(head: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for key, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.1 if key.endswith("running_var") else drawn - 0.4)
    return head.eval().requires_grad_(False)


def saved(file: Path, backbone: nn.Module, head: nn.Module, at: str, prefix: str = "") -> Path:
    state = {f"{prefix}{key}": tensor for key, tensor in backbone.state_dict().items()}
    state |= {f"{at}.{key}": tensor for key, tensor in head.state_dict().items()}
    save_file(state, file)
    return file


def read(file: Path, activation: Any = None, output: Any = None) -> VitModel:
    return from_source(
        str(file), NAME, SMALL, None, {}, choice=Choice(output, activation=activation)
    )


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(("at", "activation", "make", "kinds"), HEADS.values(), ids=HEADS)
def test_a_head_is_read_as_it_is(
    at: str,
    activation: str | None,
    make: Callable[[], nn.Module],
    kinds: list[str],
    prefix: str,
    make_module: Make,
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    backbone, head = make_module(num_classes=0), filled(make())
    expected = head(backbone(pixels))
    model = read(saved(tmp_path / "x.safetensors", backbone, head, at, prefix), activation)
    assert model.architecture.head is not None
    assert [layer.type for layer in model.architecture.head.layers or ()] == kinds
    torch.testing.assert_close(model.module(pixels), expected, rtol=1e-5, atol=1e-5)
    assert (model.task.name, model.num_classes) == ("classification", 5)


def test_it_is_exported_and_rebuilt(
    make_module: Make,
    pixels: Tensor,
    tmp_path: Path,
    in_fresh_process: Callable[[VitModel, Tensor], Tensor],
) -> None:
    at, activation, make, _ = HEADS["batch norms after the activation and first"]
    backbone, head = make_module(num_classes=0), filled(make())
    model = read(saved(tmp_path / "x.safetensors", backbone, head, at), activation)
    export_onnx(model, tmp_path / "model.onnx", {})
    assert check_parity(tmp_path / "model.onnx", model, pixels, 1)["passed"]
    assert torch.equal(in_fresh_process(model, pixels), model.module(pixels))


def test_the_activation_is_asked_for_by_its_key(
    call: Call, make_module: Make, tmp_path: Path
) -> None:
    at, _, make, _ = HEADS["linear, gelu, linear"]
    file = saved(tmp_path / "x.safetensors", make_module(num_classes=0), filled(make()), at)
    settings = [f"--set=model.options.{key}={value}" for key, value in SMALL.items()]
    given = ("inspect", file, "--model", NAME, *settings)
    assert call(*given, code=2).stderr.strip().splitlines() == [
        f"error: {file}: its head head has a step without tensors before layer 2: say which by "
        "model.head.activation, as --set model.head.activation=gelu (relu, …; none for a Dropout)"
    ]
    done = call(*given, "--set", "model.head.activation=gelu")
    assert "is taken for Linear 64→24, gelu, Linear 24→5" in done.told
    done = call(*given, "--set", "model.head.activation=softsign", code=2)
    assert "model.head.activation" in done.error
    assert read(file, output="pooled").num_classes == 0  # without the head, nothing is asked


def test_an_activation_of_nothing_is_refused(make_module: Make, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(make_module().state_dict(), file)
    with pytest.raises(InputError, match=r"model\.head\.activation: it has no head of several"):
        read(file, "gelu")
    head = filled(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 5)))
    saved(file, make_module(num_classes=0), head, "head")
    with pytest.raises(InputError, match=r"model\.head\.activation: its layers leave no room"):
        read(file, "gelu")


@pytest.mark.parametrize("name", ["caformer_s18", "inception_next_tiny", "crossvit_9_240"])
def test_heads_of_timm_stay_as_they_are(name: str) -> None:
    converted = Converted(name, skeleton(name, {}, name).state_dict())
    assert described(converted, None, "x.pth") is converted


def test_a_norm_beside_no_linear_is_refused(make_module: Make, tmp_path: Path) -> None:
    head = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.BatchNorm1d(24))
    file = saved(tmp_path / "x.safetensors", make_module(num_classes=0), filled(head), "head")
    with pytest.raises(InputError, match="BatchNorm1d with no Linear beside it"):
        read(file, "relu")
