"""Tensors that change after their storage was decided."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitcompress.export.folder import load_folder, save_folder
from vitcompress.model.architecture import VitModel
from vitcompress.model.storage import as_stored


def test_what_changed_is_as_its_files_give_it_back(
    vit: VitModel, pixels: Tensor, tmp_path: Path
) -> None:
    half, coded = ("blocks.0.mlp.fc1.weight", "pos_embed"), ("head.weight",)
    update = {"half": half, "coded": coded}
    vit = replace(vit, architecture=vit.architecture.model_copy(update=update))
    vit.module.get_parameter("pos_embed")[0, 0, 0] = 1e5  # beyond float16
    vit.module.get_parameter("head.weight").mul_(1.1)
    stored = as_stored(vit)
    assert stored.architecture.half == half[:1]
    assert stored.architecture.coded == coded
    save_folder(stored, tmp_path)
    logits = load_folder(tmp_path).module(pixels)
    assert torch.equal(logits.nan_to_num(), stored.module(pixels).nan_to_num())
