"""A head that keeps some of its outputs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.head import ActivationLayer, Head, LinearLayer
from vitcompress.model.subset import restricted

KEPT, NAMES = (1, 4, 9), ("b", "e", "j")
MLP = Head(
    layers=(
        LinearLayer(inputs=64, outputs=10),
        ActivationLayer(name="gelu"),
        LinearLayer(inputs=10, outputs=10),
    )
)


def models(make_vit: Callable[..., VitModel]) -> dict[str, VitModel]:
    plain = make_vit()
    options: dict[str, Any] = {**plain.architecture.options, "num_classes": 0}
    described = Architecture(timm=plain.architecture.timm, options=options, head=MLP)
    return {
        "one head": plain,
        "two heads": make_vit("deit_tiny_distilled_patch16_224"),
        "several layers": replace(plain, module=build(described), architecture=described),
    }


@pytest.mark.parametrize("head", ["one head", "two heads", "several layers"])
def test_the_outputs_that_are_kept_are_what_they_were(
    head: str,
    make_vit: Callable[..., VitModel],
    pixels: Tensor,
    in_fresh_process: Callable[[VitModel, Tensor], Tensor],
) -> None:
    whole = models(make_vit)[head]
    part = restricted(whole, KEPT, NAMES)
    wanted = whole.module(pixels)[:, list(KEPT)]
    torch.testing.assert_close(part.module(pixels), wanted, rtol=1e-5, atol=1e-5)
    assert (part.num_classes, part.class_names) == (3, NAMES)
    assert torch.equal(in_fresh_process(part, pixels), part.module(pixels))


def test_a_head_that_cannot_be_cut_is_refused(make_vit: Callable[..., VitModel]) -> None:
    class Odd(nn.Module):
        """Outputs that depend on each other."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.inner = module

        def forward(self, pixels: Tensor) -> Tensor:
            return self.inner(pixels).cumsum(-1)  # type: ignore[no-any-return]

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner.state_dict(*args, **kwargs)

    model = make_vit()
    with pytest.raises(InputError, match=r"classes: the head of vit_tiny.* cannot be cut"):
        restricted(replace(model, module=Odd(model.module)), KEPT, NAMES)
