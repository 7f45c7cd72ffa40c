"""Layer-wise relevance propagation in the form input × gradient.

With every nonlinearity replaced by a linear map that has the same value at the input at hand, the
gradient of an output with respect to a tensor, times the tensor, is the relevance that the rules of
layer-wise relevance propagation assign to it (Bach et al. 2015; AttnLRP, 2402.05602, section 3 and
appendix A; here with their CP variant for attention):

- Linear and convolution: the 0-rule, R_i = Σ_j x_i w_ij / z_j · R_j, the bias taking its share;
- residual sum: each summand in proportion to its value;
- LayerNorm: the standard deviation is a constant, (x − mean) and the bias share the relevance;
  RMSNorm likewise;
- GELU and other elementwise functions: the identity rule, f(x) = x · const;
- attention: the probabilities are constants, relevance flows through the values; so are sigmoid
  gates;
- other products of two things that depend on the input: half to each factor (the uniform
  rule of AttnLRP).

Since the whole model is then linear in its input and its biases, the relevance of these leaves adds
up to the explained output exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm whose standard deviation counts as a constant."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    deviation = (centred.detach().square().mean(axes, keepdim=True) + eps).sqrt()
    y = centred / deviation
    if weight is not None:
        y = y * weight.detach()
    return y if bias is None else y + bias


def rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm whose root mean square counts as a constant."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / (x.detach().square().mean(axes, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight.detach()


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` as x · const, with the same value; where x is 0, the constant is 0 too."""

    def linear(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("inplace", None)
        held = x.detach()
        value = function(held, *args, **kwargs)
        return x * torch.where(held == 0, torch.zeros_like(held), value / held)

    return linear


def constant_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Scaled dot-product attention whose probabilities count as constants."""
    result = F.scaled_dot_product_attention(q.detach(), k.detach(), v, *args, **kwargs)
    return result


def product(one: Any, other: Any) -> Any:
    """one · other, of which either factor gets half the relevance where both can get any."""
    if not all(isinstance(factor, Tensor) and factor.requires_grad for factor in (one, other)):
        return one * other
    return (one * other.detach() + one.detach() * other) / 2


def as_constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` as a constant."""

    def held(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return function(x.detach(), *args, **kwargs)

    return held


RULES: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    **dict.fromkeys((F.rms_norm, torch.rms_norm), rms_norm),
    F.scaled_dot_product_attention: constant_attention,
    **{f: as_constant(f) for f in (F.softmax, torch.softmax, Tensor.softmax)},
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), product),
    **{f: as_constant(f) for f in (torch.sigmoid, Tensor.sigmoid)},
    **{f: elementwise(f) for f in (F.gelu, F.silu, F.relu, F.leaky_relu, F.hardswish)},
    **{f: elementwise(f) for f in (torch.relu, torch.tanh, Tensor.tanh)},
}


class Propagation(TorchFunctionMode):
    """Inside, gradients of what is computed are relevances divided by the tensors themselves."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return RULES.get(function, function)(*args, **(kwargs or {}))


def of(tensor: Tensor) -> Tensor:
    """The relevance of `tensor`, once the gradient of the explained output is there."""
    gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return tensor.detach() * gradient
