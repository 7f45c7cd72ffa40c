"""What a model costs: multiply-accumulates and parameters."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from vitcompress.model.architecture import VitModel, spec_of
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.structure import run_on_shapes


@register_flop_formula(torch.ops.vitcompress.quantized_linear, get_raw=True)
def _quantized_linear_flops(x: Any, codes: Any, scale: Any, *args: Any, **kwargs: Any) -> int:
    terms, residual_tokens = args[-2:]
    inputs = int(x.numel())
    if terms == 2:
        inputs += int(x[..., :residual_tokens, :].numel()) if residual_tokens else inputs
    return 2 * inputs * int(scale.numel())


def macs(model: VitModel) -> int:
    """Multiply-accumulates for one image, in matrix products and convolutions.

    A product that is taken twice (a second term of quantized inputs) counts twice.
    """
    return _counted(model.module, model)


def dense_macs(model: VitModel) -> int:
    """`macs` of the model that `model` was made from, before any compression."""
    with torch.device("meta"):
        module = spec_of(model.architecture).build("dense model")
    return _counted(module.eval().requires_grad_(False), model)


def _counted(module: nn.Module, model: VitModel) -> int:
    size = (1, model.preprocess.channels, *model.preprocess.input_size)
    # Attention in one kernel is not counted on every device; as matrix products it is.
    with (
        torch.inference_mode(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        run_on_shapes(module, torch.zeros(size, device="meta"))
    return int(counter.get_total_flops()) // 2


def parameters(module: nn.Module) -> int:
    """Weights and biases, whatever their width; scales and zero points are not counted."""
    total = sum(parameter.numel() for parameter in module.parameters())
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            total += (layer.in_features + 1) * layer.out_features
    return total
