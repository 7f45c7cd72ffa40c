"""What any merging has to beat: the same model on smaller images, at the same cost."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.details import Fact, Row, Table
from vitcompress.measure.cost import dense_macs, macs
from vitcompress.model.architecture import VitModel
from vitcompress.model.resolution import resized
from vitcompress.model.structure import placed
from vitcompress.stages.context import BATCH, Context


def lower_resolution(model: VitModel, limit: float) -> VitModel | None:
    """`model` for the largest images, in whole patches, that cost at most `limit`
    multiply-accumulates; None where there are none, or where it cannot be resized."""
    rows, columns = model.anatomy.grid or (0, 0)
    for fewer in range(rows - 1, 0, -1):
        found = resized(model, (fewer, max(1, round(columns * fewer / rows))))
        if found is None or macs(found) <= limit:
            return found
    return None


def interpolated(pixels: Tensor, model: VitModel) -> Tensor:
    """`pixels` [n, C, H, W] at the input size of `model`."""
    return F.interpolate(pixels, model.preprocess.input_size, mode="bicubic", antialias=True)


@torch.no_grad()
def compared(
    dense: VitModel, merged: VitModel, context: Context, images: int
) -> tuple[dict[str, Fact], tuple[Table, ...]]:
    """`merged` and its rival against `dense`, on the last quarter of `images` calibration images,
    those that a search holds back: how many these are, and a table of both; nothing for a model
    without a rival."""
    rival = lower_resolution(dense, macs(merged))
    if rival is None:
        return {}, ()
    pixels = torch.cat(list(context.shared_batches("running at a lower resolution", images)))
    pixels = pixels[-max(1, len(pixels) // 4) :]

    def outputs(model: VitModel, pixels: Tensor) -> Tensor:
        module, parts = placed(model.module, context.device), pixels.split(BATCH)
        return torch.cat([module(part.to(context.device)).cpu() for part in parts])

    whole, task = outputs(dense, pixels), dense.task
    smaller = outputs(rival, interpolated(pixels, rival))
    if smaller.shape != whole.shape:  # a token each
        return {}, ()

    def row(name: str, model: VitModel, found: Tensor) -> Row:
        return {
            "model": name,
            "input_size": "×".join(map(str, model.preprocess.input_size)),
            "macs_ratio": macs(model) / dense_macs(dense),
            **task.compared(found, whole),
        }

    ours = row("merged", merged, outputs(merged, pixels))
    theirs = row("lower resolution", rival, smaller)
    context.say(f"at {theirs['input_size']} pixels instead: {_told(theirs)}; merged: {_told(ours)}")
    return {"compared_images": len(whole)}, (Table.of("lower_resolution", [ours, theirs]),)


def _told(row: Row) -> str:
    """The figures of `row` in words."""
    figures = {k: v for k, v in row.items() if isinstance(v, float) and k != "macs_ratio"}
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
