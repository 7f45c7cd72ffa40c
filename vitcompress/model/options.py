"""What a model may be made with: those arguments of timm's constructors that are plain data.

Descriptions of models come with files of others, and timm does more than build by some arguments:
it reads pickles (`checkpoint_path`), fetches weights, or imports what is named. Hence no argument
is passed on that is not listed here as one of shapes, numbers, switches or short words.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from vitcompress.errors import InputError

_DEPTHS = "depth depths depth_token_only cls_attn_layers stages extra_norm_period q_pool"
_COUNTS = """
embed_dim embed_dims dims num_heads num_kv_heads num_heads_inner num_heads_outer head_dim
attn_head_dim attn_pool_num_heads head_hidden_size inner_dim key_dim rel_pos_dim neck_chans in_chans
img_size patch_size window_size window_ratio pretrained_window_sizes reg_tokens num_reg_tokens
swiglu_align_to first_stride output_stride stem_stride patch_kernel patch_stride patch_padding
q_stride mask_unit_size global_pos_size global_attn_indexes ref_feat_shape kernel_sizes sr_ratios
wss rope_mrope_section window_sizes local_conv_size base_dims heads layers stem_hidden_dim
focal_levels focal_windows num_blocks stride down_kernel_size serial_depths parallel_depth
"""
_CLASSES = "num_classes"
_NUMBERS = """
mlp_ratio mlp_ratios mlp_ratio_token_only attn_pool_mlp_ratio attn_ratio dim_mul head_mul eta
init_values ls_init_value head_init_scale norm_eps drop_rate drop_path_rate proj_drop_rate
pos_drop_rate patch_drop_rate attn_drop_rate rope_temperature rope_grid_offset rope_shift_coords
rope_jitter_coords rope_rescale_coords mbconv_expand_ratio expand_ratio layerscale_value
layer_scale layer_scale_init_values
"""
_SWITCHES = """
class_token no_embed_class pool_include_prefix pre_norm final_norm fc_norm use_fc_norm qk_norm
qkv_bias qkv_fused proj_bias conv_bias conv_mlp scale_mlp scale_attn_inner scale_attn_norm
scale_mlp_norm swiglu_mlp use_abs_pos_emb use_abs_pos use_pos_embed use_rel_pos use_rel_pos_bias
use_shared_rel_pos_bias shared_rel_pos use_rot_pos_emb use_rope rope_rotate_half use_grn use_conv
use_post_norm use_pre_transformer_norm use_post_transformer_norm use_expand_proj always_partition
strict_img_size dynamic_img_size dynamic_img_pad fix_init sep_pos_embed abs_win_pos_embed
mask_unit_attn sequential_attn extra_norm_stage attn_only_layer_scale tokens_norm head_norm_first
legacy linear distilled nlhb stem_norm mlp_bias use_mlp_head
"""
_WORDS = """
global_pool pos_embed weight_init act_layer attn_act_layer norm_layer embed_norm_layer attn_type
attn_types rope_type rope_grid_indexing rel_pos_type stem_type down_op
"""
_PAIRS = {"img_size"}  # one number, or height and width
_WORD = re.compile(r"[a-z0-9_]{0,32}")


def _count(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e6


def _switch(value: Any) -> bool:
    return type(value) is bool


def _word(value: Any) -> bool:
    return type(value) is str and _WORD.fullmatch(value) is not None


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: (test, words)
    for names, test, words in (
        (_DEPTHS, _count(128), "a whole number up to 128"),
        (_COUNTS, _count(65_536), "a whole number up to 65536"),
        (_CLASSES, _count(10_000_000), "a whole number up to 10000000"),
        (_NUMBERS, _number, "a finite number"),
        (_SWITCHES, _switch, "true or false"),
        (_WORDS, _word, "a short word of small letters"),
    )
    for name in names.split()
}


def _fault(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key of the first of `options` that may not be passed to timm, and what is wrong."""
    for key, value in options.items():
        if key not in _KINDS:
            return key, f"{key} is no option that a model may be made with"
        test, words = _KINDS[key]
        pair = key not in _PAIRS or not isinstance(value, (list, tuple)) or len(value) == 2
        if not pair or not _all(value, test):
            return key, f"{key} must be {words}, or a list of such, not {str(value)[:60]!r}"
    return None


def _all(value: Any, test: Callable[[Any], bool], depth: int = 3) -> bool:
    """Whether `value`, or all in it if it is a list, passes the test; None does."""
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= 100 and all(_all(v, test, depth - 1) for v in value)
    return value is None or test(value)


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Raise `InputError` for options of `where` that may not be passed to timm."""
    if (wrong := _fault(options)) is not None:
        raise InputError(f"{where}: {wrong[1]}; take it out or correct it")


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if (wrong := _fault(options)) is not None:
        # Braces would be taken for fields of the message.
        message = wrong[1].replace("{", "(").replace("}", ")")
        raise PydanticCustomError("option", message, {"at": (wrong[0],)})
    return options


ModelOptions = Annotated[dict[str, Any], AfterValidator(_checked)]
"""Arguments of timm's constructors, as fields of descriptions hold them."""
