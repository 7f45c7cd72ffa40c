"""Plain ViTs and DeiTs: with or without class, distillation and register tokens, LayerScale, any
pooling."""

from torch import nn

from vitcompress.model.anatomy import Anatomy
from vitcompress.model.head import HeadPlace
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.sequence import adopt_mlps, adopt_patches, sequence_anatomy, sequence_head


def matches(module: nn.Module) -> bool:
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(module, VisionTransformer)


def adopt(module: nn.Module) -> nn.Module:
    from timm.layers import Attention as TimmAttention
    from timm.models.vision_transformer import Block as TimmBlock

    for name, child in list(module.named_modules()):
        if type(child) is TimmAttention:
            module.set_submodule(name, Attention(child))
    for name, child in list(module.named_modules()):
        if type(child) is TimmBlock and isinstance(child.attn, Attention):
            module.set_submodule(name, Block(child))
    adopt_mlps(module)
    if not getattr(module, "dynamic_img_size", False):
        adopt_patches(module)
    return module


def anatomy(module: nn.Module) -> Anatomy:
    return sequence_anatomy(module, "plain")


def head_place(module: nn.Module) -> HeadPlace:
    return sequence_head(module)
