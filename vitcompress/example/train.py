"""Train the example's Vision Transformer on freshly drawn glyphs and write its checkpoint.

    python -m vitcompress.example.train --out glyphs.safetensors --minutes 30

The draws and the initial weights are seeded; the learning rate anneals over the minutes given, so
the number of steps, and with it the exact weights, depends on the speed of the machine.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pixel_unshuffle

from vitcompress.console import note
from vitcompress.example.glyphs import (
    CLASSES,
    MEAN,
    STD,
    TIMM_NAME,
    TIMM_OPTIONS,
    draw,
    draw_with_masks,
)

_BATCH = 64
_MUON_RATE = 0.01
_ADAM_RATE = 2e-3
_WEIGHT_DECAY = 0.05
_WARMUP = 0.03  # share of the time
_GROWTH = 0.4  # share of the time until the pictures are as hard as they get
_SMOOTHING = 0.05
_REPORT_SECONDS = 60.0


def tensor(images: NDArray[np.uint8]) -> Tensor:
    """From images, uint8 [n, height, width, 3], to what the model reads, [n, 3, height, width]."""
    scaled = (torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return scaled.permute(0, 3, 1, 2).contiguous()


def accuracy(model: nn.Module, count: int) -> float:
    """Share of the first `count` evaluation images, 0 to 1, that the model names rightly."""
    images, labels = draw("evaluation", count)
    model.eval()
    with torch.inference_mode():
        named = torch.cat([model(part).argmax(1) for part in torch.split(tensor(images), _BATCH)])
    return float((named == torch.from_numpy(labels)).float().mean())


def save(model: nn.Module, path: Path) -> None:
    """Write the model's state dict, in half precision, as safetensors without metadata."""
    part = path.with_suffix(".part")
    save_file({name: value.half() for name, value in model.state_dict().items()}, part)
    part.replace(path)


def train(out: Path, minutes: float) -> nn.Module:
    """Train for `minutes` of wall time, writing the weights to `out` every minute.

    While it trains, the patch tokens also learn which of their pixels belong to the glyph, and
    the pictures grow from plain to fully cluttered: both shorten the training manyfold.
    """
    torch.manual_seed(0)
    set_fused_attn(False)  # for so few tokens, plain matrix products train faster on a CPU
    model: Any = timm.create_model(TIMM_NAME, num_classes=len(CLASSES), **TIMM_OPTIONS)
    with torch.no_grad():  # positions start out as waves: learning them from nothing takes longer
        waves = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), model.embed_dim)
        model.pos_embed[0, 1:] = 0.3 * waves
    patch = TIMM_OPTIONS["patch_size"]
    finder = nn.Linear(model.embed_dim, patch * patch)
    optimizers = _optimizers(model, finder)
    reported = 0.0
    for step, done in enumerate(_clock(minutes * 60)):
        images, labels, masks = draw_with_masks(
            "train", _BATCH, step * _BATCH, min(1.0, done / _GROWTH)
        )
        within = pixel_unshuffle(torch.from_numpy(masks)[:, None].float() / 255, patch)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.forward_features(tensor(images))
            logits = model.forward_head(tokens).float()
            found = finder(tokens[:, 1:]).float()
        named = cross_entropy(logits, torch.from_numpy(labels), label_smoothing=_SMOOTHING)
        traced = binary_cross_entropy_with_logits(found, within.flatten(2).mT)
        torch.autograd.backward(named + traced)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = min(1.0, (done + 1e-3) / _WARMUP) * (1 + math.cos(math.pi * done)) / 2
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        if done * minutes * 60 - reported >= _REPORT_SECONDS:
            reported = done * minutes * 60
            save(model, out)
            note(
                f"  {done * minutes:.1f} of {minutes:g} min, step {step}: loss {named.item():.3f}, "
                f"mask {traced.item():.3f}, top-1 {accuracy(model, 330):.1%}"
            )
    save(model, out)
    return cast(nn.Module, model)


def _optimizers(model: nn.Module, finder: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the blocks, AdamW for everything else; each with its peak rate."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = list(finder.parameters())
    for name, value in model.named_parameters():
        (inner if "blocks." in name and value.ndim == 2 else outer).append(value)
    return [
        (torch.optim.Muon(inner, weight_decay=_WEIGHT_DECAY), _MUON_RATE),
        (torch.optim.AdamW(outer, weight_decay=_WEIGHT_DECAY), _ADAM_RATE),
    ]


def _clock(seconds: float) -> Iterator[float]:
    """Yield the share of the time that has gone by, 0 to 1, until it is up."""
    start = time.monotonic()
    while (done := (time.monotonic() - start) / seconds) < 1:
        yield done


def main(
    out: Annotated[Path, typer.Option(help="Where to write the checkpoint.")] = Path(
        "glyphs.safetensors"
    ),
    minutes: Annotated[float, typer.Option(help="How long to train.", min=0.1)] = 30.0,
) -> None:
    """Train the example model and write it as a bare timm state dict."""
    model = train(out, minutes)
    note(f"  {out}: top-1 {accuracy(model, 2000):.2%} of 2000 evaluation images")


if __name__ == "__main__":
    typer.run(main)
