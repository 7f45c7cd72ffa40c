"""MAE of Facebook Research: pre-trained encoders with their decoder, and models fine-tuned with
pooling over patches."""

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import PLAIN, assumed, plain_options
from vitcompress.model.layouts._renaming import all_known, renamed

_POOLED = (*PLAIN, (r"(fc_norm\..+)", r"\1"))
_DECODER = r"mask_token|decoder_.+"


def matches(source: Source) -> bool:
    keys = source.tensors.keys()
    if not {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= keys:
        return False
    pooled = "fc_norm.weight" in keys and "norm.weight" not in keys
    return "decoder_embed.weight" in keys or (pooled and all_known(source.tensors, _POOLED))


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _POOLED, source.place, "MAE", dropped=_DECODER)
    options = plain_options(tensors, source.place)
    if "fc_norm.weight" in tensors:
        options |= {"global_pool": "avg", "fc_norm": True}
    facts = f"{options['num_heads']} heads, and images prepared as timm prepares them for MAE"
    left_out = "the decoder is left out: the class token of the encoder is the output"
    return Converted(
        timm="vit_base_patch16_224.mae",
        tensors=tensors,
        options=options,
        norm_eps=1e-6,
        notes=(
            *([left_out] if len(tensors) < len(source.tensors) else []),
            assumed(facts, "model.options.num_heads", "data.mean", "data.std"),
        ),
    )
