"""What a new process does with the folder of a model."""

from pathlib import Path

import numpy as np
import torch

import vitcompress


def write_logits(home: Path, pixels: Path, logits: Path) -> None:
    """Load the model in `home`, and write to `logits` what it makes of `pixels`, both .npy."""
    torch.set_num_threads(1)
    found = vitcompress.load(home)(torch.from_numpy(np.load(pixels)))
    np.save(logits, found.numpy())
