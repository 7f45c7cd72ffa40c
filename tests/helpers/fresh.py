"""What a new process does with the folder of a model."""

from pathlib import Path

import numpy as np
import torch

import vitcompress

PIXELS, LOGITS = "pixels.npy", "logits.npy"


def write_logits(home: Path) -> None:
    """Load the model in `home`, and write its logits of the pixels there."""
    torch.set_num_threads(1)
    pixels = torch.from_numpy(np.load(home / PIXELS))
    np.save(home / LOGITS, vitcompress.load(home)(pixels).numpy())
