"""What float16 does not hold stays float32, and is refused where it was asked for."""

import pytest
import torch

from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import plan, quantize

CONFIG = QuantizeConfig(rest="float16", residual=0, rounding="nearest", activations="dynamic")


@torch.no_grad()
@pytest.mark.parametrize("planned", [True, False])
def test_a_position_embedding_beyond_float16_stays_as_it_is(
    planned: bool, vit: VitModel, context: Context
) -> None:
    position = vit.module.get_parameter("pos_embed")
    position[0, 0, 0] = 1e5
    model = (plan(vit, CONFIG) if planned else quantize(vit, CONFIG, context)).model
    held = stored_tensors(model)
    assert torch.equal(held["pos_embed"], position)
    assert held["patch_embed.proj.weight"].dtype == torch.float16


@torch.no_grad()
@pytest.mark.parametrize("factor", [1e6, 1e-9])
def test_a_layer_that_is_pinned_to_float16_has_to_fit(factor: float, vit: VitModel) -> None:
    vit.module.get_parameter("head.weight").mul_(factor)
    config = QuantizeConfig(layers=("*",), pin={"head": "float16"})
    with pytest.raises(InputError, match=r"quantize\.pin: head\.weight .* float16 .* float32"):
        plan(vit, config)
    plan(vit, QuantizeConfig(layers=("*",), pin={"head": "float32"}))
