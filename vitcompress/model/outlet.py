"""Where what a site adds to the stream can be scaled and shifted at no cost."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.model.anatomy import Site
from vitcompress.model.modules.quantized import QuantizedLinear

_LEAST = 1e-3  # of a LayerScale's root mean square: what is less hardly lets a shift through

Outlet = nn.Linear | QuantizedLinear | nn.LayerNorm


def outlet_name(site: Site) -> str:
    """The name of the last module of `site` with weights: a norm, where it comes after."""
    return site.norm_name if site.block.norm_after else site.last_name


def outlet(site: Site) -> Outlet | None:
    """That module, where each of its outputs has a weight or scale of its own."""
    found: nn.Module = site.norm if site.block.norm_after else site.last
    known = isinstance(found, Outlet) and getattr(found, "weight", True) is not None
    return cast(Outlet, found) if known else None


def shifts(site: Site) -> bool:
    """Whether it has a bias."""
    return getattr(outlet(site), "bias", None) is not None


def adjusted(site: Site, scale: Tensor, shift: Tensor) -> Outlet:
    """A copy of the `outlet` of `site` with which the site adds `scale` · what it adds + `shift`,
    [channels] each; a shift that is not zero needs a bias."""
    layer = copy.deepcopy(outlet(site))
    assert layer is not None
    like = next(t for t in layer.state_dict().values() if t.is_floating_point())
    scale, shift = scale.to(like), shift.to(like)
    gamma = getattr(site.scale, "gamma", torch.ones(())).to(like)
    least = _LEAST * gamma.square().mean().sqrt()
    inner = shift * gamma / (gamma.square() + least.square())  # through the LayerScale
    if layer.bias is not None:
        layer.bias.copy_(layer.bias * scale + inner)
    if isinstance(layer, QuantizedLinear):
        layer.scale.mul_(scale)
    else:
        layer.weight.mul_(scale if layer.weight.ndim == 1 else scale[:, None])
    return layer
