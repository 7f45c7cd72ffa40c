"""Small models of other libraries with random weights, and what is read of their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompress.model.architecture import VitModel, from_source
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

Agree = Callable[[nn.Module, Path, Callable[[Any, Tensor], Tensor]], VitModel]


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def randomized() -> Callable[[nn.Module], nn.Module]:
    """Fills all parameters, also those that start as zeros or ones, so that each one counts."""

    def fill(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            ones = float(parameter.ndim == 1 and bool((parameter == 1).all()))
            parameter.data = ones + 0.2 * torch.randn(parameter.shape, generator=generator)
        return module.eval()

    return fill


@pytest.fixture
def agree(pixels: Tensor) -> Agree:
    """Reads a file or folder and holds its outputs against those of the module it came from."""

    @torch.no_grad()
    def check(module: nn.Module, saved: Path, output: Callable[[Any, Tensor], Tensor]) -> VitModel:
        read = from_source(str(saved), None, {}, None, {})
        found, expected = read.module(pixels), output(module, pixels)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        return read

    return check


@pytest.fixture
def quantizes(pixels: Tensor, context: Context) -> Callable[[VitModel], None]:
    """Holds the outputs of a model at 8 bits against those that it had, once its random weights
    are of a size that lets no attention saturate."""

    def check(model: VitModel) -> None:
        for layer in model.anatomy.linears().values():
            layer.weight.data /= layer.weight.std() * layer.in_features**0.5
        dense = model.module(pixels)
        result = quantize(model, QuantizeConfig(rounding="nearest"), context)
        assert result.model.architecture.quantized
        assert (result.model.module(pixels) - dense).norm() < 0.1 * dense.norm()

    return check
