"""DeiT III of Facebook Research, whose layers are scaled by `gamma_1` and `gamma_2`."""

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import PLAIN, assumed, plain_options
from vitcompress.model.layouts._renaming import all_known, renamed

_RULES = (*PLAIN, (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"))


def matches(source: Source) -> bool:
    keys = source.tensors.keys()
    return {"blocks.0.gamma_1", "pos_embed"} <= keys and all_known(source.tensors, _RULES)


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _RULES, source.place, "DeiT III")
    options = plain_options(tensors, source.place)
    facts = f"{options['num_heads']} heads, and images prepared as timm prepares them for DeiT III"
    return Converted(
        timm="deit3_base_patch16_224",
        tensors=tensors,
        options=options,
        norm_eps=1e-6,
        notes=(assumed(facts, "model.options.num_heads", "data.crop_pct"),),
    )
