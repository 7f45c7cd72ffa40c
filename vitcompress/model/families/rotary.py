"""Models with rotary position embeddings (timm's Eva: EVA-02, RoPE ViT, PE, DINOv3), but for those
whose queries share keys."""

from typing import Any, cast

from torch import nn

from vitcompress.model.anatomy import Anatomy
from vitcompress.model.rotary import RotaryVit, adopt_rotary
from vitcompress.model.sequence import adopt_mlps, sequence_anatomy


def matches(module: nn.Module) -> bool:
    from timm.models.eva import Eva

    if isinstance(module, Eva):
        blocks = cast(Any, module).blocks
        return all(getattr(block.attn, "num_kv_groups", 1) == 1 for block in blocks)
    return isinstance(module, RotaryVit)


def adopt(module: nn.Module) -> nn.Module:
    module = adopt_rotary(module)
    adopt_mlps(module)
    return module


def anatomy(module: nn.Module) -> Anatomy:
    return sequence_anatomy(module, "rotary")
