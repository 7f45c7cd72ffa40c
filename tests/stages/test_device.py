"""Every stage on a device that is not the CPU, without one.

The device is pretended: its tensors hold their values on the CPU and say that they are elsewhere;
an operation on tensors of both is refused, as a GPU refuses it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.registry import StageConfig, stage_of

ELSEWHERE = torch.device("lazy")  # the one kind that torch knows everywhere and asks nothing of


class Away(Tensor):
    """A tensor on the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Away":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, device=ELSEWHERE, **layout
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """While it lasts, tensors can be moved to the pretended device and made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


# What a GPU does with tensors of the CPU as well: copies, and indices.
BETWEEN = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
}


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    away = any(isinstance(t, Away) for t in tensors)
    if away and func not in BETWEEN:
        here = [t for t in tensors if not isinstance(t, Away) and t.dim()]
        assert not here, f"{func} has tensors on two devices"
    if func is torch.ops.aten.copy_.default:
        away = isinstance(args[0], Away)
    if (device := kwargs.get("device")) is not None:
        away = device == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = tree_map(lambda t: t.held if isinstance(t, Away) else t, (args, kwargs))
    found = func(*plain[0], **plain[1])
    if not away:
        return found
    found = tree_map(lambda t: Away(t) if isinstance(t, Tensor) else t, found)
    return return_and_correct_aliasing(func, args, kwargs, found)


PLAIN: dict[str, Any] = {"depth": 1}
DEEPER: dict[str, Any] = {"depth": 2}  # where blocks share a budget, or follow each other
ROTARY = {"name": "vit_small_patch16_dinov3", "qk_norm": False}
NORMED = {"depth": 1, "qk_norm": True, "global_pool": "map", "class_token": False}

ALL = ["embedding", "query_key", "heads", "value", "hidden"]
PRUNE = {"type": "prune", "budget": {"macs": 0.7}}
MERGE = {"type": "merge", "budget": {"macs": 0.8}, "method": "fisher", "images": 32}
QUANTIZE = {"type": "quantize", "rounding": "nearest"}
MIXED = {**QUANTIZE, "bits": {"average": 6, "widths": [4, 8]}}
SIMULATE = {"bits": 4, "softmax": "log2", "gelu": "twin_uniform"}

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prune all by obs": (DEEPER, {**PRUNE, "structures": ALL}),
    "prune by magnitude": (DEEPER, {**PRUNE, "saliency": "magnitude"}),
    "prune by hessian": (PLAIN, {**PRUNE, "saliency": "hessian", "allocate": "uniform"}),
    "prune normed queries": ({**NORMED, **DEEPER}, {**PRUNE, "structures": ALL[1:]}),
    "prune rotary": (ROTARY, {**PRUNE, "structures": ALL[1:], "multiple": 4}),
    "merge by fisher": (DEEPER, MERGE),
    "merge by tome": ({**NORMED, **DEEPER}, {**MERGE, "method": "tome"}),
    "merge rotary": (ROTARY, MERGE),
    "sparsify by obs": (PLAIN, {"type": "sparsify", "layers": ["*.fc1"]}),
    "sparsify by wanda": (
        PLAIN,
        {"type": "sparsify", "pattern": "4x4", "density": 0.5, "criterion": "wanda"},
    ),
    "quantize by descent": (PLAIN, {"type": "quantize", "residual": 0.5}),
    "quantize by gptq": (PLAIN, {**QUANTIZE, "rounding": "gptq", "activations": "dynamic"}),
    "quantize in sequence": (
        DEEPER,
        {
            **QUANTIZE,
            "bits": 4,
            "rounding": "gptq",
            "sequential": True,
            "layers": ["*.proj", "*.fc1"],
        },
    ),
    "quantize by lrp": (PLAIN, MIXED),
    "quantize by kl": (NORMED, {**MIXED, "score": "kl", "layers": ["*.fc2"]}),
    "quantize rotary": (ROTARY, QUANTIZE),
    "simulate": (PLAIN, {**QUANTIZE, "simulate": SIMULATE}),
    # Another model than the dense one, which contexts have.
    "recover by affine": ({"init_values": 0.5}, {"type": "recover", "method": "affine"}),
}


# Of stages that have several methods, those that pass through most code stay.
_SLOW = {
    *("prune by magnitude", "prune by hessian", "prune normed queries", "prune rotary"),
    *("merge by tome", "merge rotary", "quantize by gptq", "quantize by lrp", "quantize rotary"),
    "simulate",
}


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        pytest.param(*run, id=name, marks=[pytest.mark.slow] if name in _SLOW else [])
        for name, run in RUNS.items()
    ],
)
def test_a_stage_gives_the_same_on_another_device(
    options: dict[str, Any],
    recipe: dict[str, Any],
    make_vit: Callable[..., VitModel],
    make_context: Callable[..., Context],
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    config = TypeAdapter[Any](StageConfig).validate_python(recipe)
    stage = stage_of(config)
    here = stage.run(make_vit(**options), config, make_context())
    context = make_context(device=ELSEWHERE, cache=tmp_path / "away")
    with Pretended():
        there = stage.run(make_vit(**options), config, context)
    assert {type(tensor) for tensor in there.model.module.state_dict().values()} == {Tensor}
    assert there.facts.keys() == here.facts.keys()
    if there.model.architecture.blocks != here.model.architecture.blocks:
        # Sums in another order: of choices that are as good, another may be the best. How near
        # its distance then is depends on the processor: 12 % are seen.
        key = "held_back_kl_refitted"
        assert there.facts[key] == pytest.approx(here.facts[key], rel=0.2)
        return
    logits, expected = there.model.module(pixels), here.model.module(pixels)
    assert (logits - expected).norm() < 0.05 * expected.norm()
