"""Labels and preprocessing are right on real photographs: a known model reaches its accuracy."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from vitcompress.data.images import batches, open_images
from vitcompress.data.preprocess import Preprocess

ASSETS = Path(__file__).parents[3] / "shared" / "assets"


@pytest.mark.slow
@pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"needs the real checkpoints and images in {ASSETS}"
)
def test_deit_tiny_reaches_its_known_accuracy() -> None:
    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict(
        load_file(ASSETS / "checkpoints" / "deit_tiny_patch16_224.in1k.safetensors")
    )
    images = open_images(
        ASSETS / "imagenet1k" / "evaluation",
        classes=ASSETS / "imagenet1k" / "wnids.txt",
        labelled=True,
        limit=100,
        seed=0,
    )
    right = 0
    with torch.inference_mode():
        for batch in batches(images, Preprocess.from_timm(model.pretrained_cfg), 25):
            assert batch.labels is not None
            right += int((model(batch.pixels).argmax(dim=1) == batch.labels).sum())
    assert 80 <= right <= 93  # 86.4 % on the whole set
