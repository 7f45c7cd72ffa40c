"""torchvision: VisionTransformer."""

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import IMAGENET, assumed, plain_options
from vitcompress.model.layouts._renaming import needed, renamed

_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
_RULES = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
    (_BLOCK + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (_BLOCK + r"self_attention\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
    (_BLOCK + r"self_attention\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(.+)", r"norm.\1"),
    (r"heads\.head\.(.+)", r"head.\1"),
)
_LARGE = 384  # from this size on, published weights are SWAG's


def matches(source: Source) -> bool:
    return all(key in source.tensors for key in ("conv_proj.weight", "encoder.pos_embedding"))


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _RULES, source.place, "torchvision ViT")
    options = plain_options(tensors, source.place)
    patches = needed(tensors, "pos_embed", 3, source.place).shape[1] - 1
    stem = needed(tensors, "patch_embed.proj.weight", 4, source.place)
    large = patches * stem[0, 0].numel() >= _LARGE**2
    images = (
        {"interpolation": "bicubic", "crop_pct": 1.0}
        if large
        else {"interpolation": "bilinear", "crop_pct": 0.875}
    )
    facts = f"{options['num_heads']} heads, and images prepared as torchvision does for this size"
    return Converted(
        timm="vit_base_patch16_224",
        tensors=tensors,
        options=options,
        norm_eps=1e-6,
        preprocess={**IMAGENET, **images, "crop_mode": "center"},
        notes=(assumed(facts, "model.options.num_heads", "data.crop_pct", "data.interpolation"),),
    )
