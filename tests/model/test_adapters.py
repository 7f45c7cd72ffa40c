"""Adapters (LoRA) as PEFT leaves them in a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.checkpoints import State, prefixed, read, refusal, saved

LAYER = "blocks.0.attn.qkv"


def adapted(state: State, adapter: str = ".default") -> tuple[State, State]:
    """A model as PEFT saves it, with an adapter of rank 2, and what it computes with."""
    down, up = torch.randn(2, 64), torch.randn(192, 2)
    base = {
        key.replace(f"{LAYER}.", f"{LAYER}.base_layer."): tensor
        for key, tensor in state.items()
        if not key.startswith("head.")
    }
    head = {
        f"head.{part}.{kind}": factor * state[f"head.{kind}"]
        for part, factor in (("original_module", 1), ("modules_to_save.default", 3))
        for kind in ("weight", "bias")
    }
    factors = {
        f"{LAYER}.lora_A{adapter}.weight": down,
        f"{LAYER}.lora_B{adapter}.weight": up,
    }
    merged = {**state, f"{LAYER}.weight": state[f"{LAYER}.weight"] + 8 / 2 * up @ down}
    merged |= {key: 3 * state[key] for key in state if key.startswith("head.")}
    return prefixed(base | head | factors, "base_model.model."), merged


def test_adapters_are_merged(state: State, tmp_path: Path) -> None:
    content, merged = adapted(state)
    path = saved(content, tmp_path / "x.pth")
    assert "scaling of its adapter (LoRA) is not known" in refusal(path)
    assert "merge_and_unload()" in refusal(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 2}))
    torch.testing.assert_close(read(path), merged)
    (tmp_path / "adapter_config.json").unlink()
    path = saved({"state_dict": content, "lora_alpha": 8}, tmp_path / "x.pth")
    torch.testing.assert_close(read(path), merged)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {k: t for k, t in s.items() if "lora_" in k}, "without the model itself"),
        (lambda s: {k: t for k, t in s.items() if "lora_B" not in k}, "one factor"),
        (
            lambda s: {**s, f"base_model.model.{LAYER}.lora_A.other.weight": torch.ones(2, 64)},
            "several adapters",
        ),
        (
            lambda s: {**s, f"base_model.model.{LAYER}.lora_magnitude_vector": torch.ones(192)},
            "not known",
        ),
        (
            lambda s: {**s, f"base_model.model.{LAYER}.lora_A.default.weight": torch.ones(3, 64)},
            "does not fit",
        ),
    ],
)
def test_adapters_that_cannot_be_merged(
    change: Callable[[State], State], told: str, state: State, tmp_path: Path
) -> None:
    path = saved({"model": change(adapted(state)[0]), "lora_alpha": 8}, tmp_path / "x.pth")
    message = refusal(path)
    assert told in message
    assert "merge_and_unload()" in message
