"""Corruptions of images: what a camera, a network or an accident does to them, in five strengths.

Noise, blur, contrast and JPEG as in ImageNet-C (Hendrycks and Dietterich, 1903.12261), whose
strengths these are; patches as transformers see them (Gu et al., 2111.10659).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

SEVERITIES = (1, 3, 5)

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""Pixels [n, C, H, W] from 0 to 1, how strongly (1 to 5), and what is drawn from → the same."""


def noise(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Normal noise on every value."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return pixels + deviation * torch.randn(pixels.shape, generator=generator)


def blur(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A Gaussian, whose deviations are pixels of images of 224."""
    sigma = (1, 2, 3, 4, 6)[severity - 1] * min(pixels.shape[-2:]) / 224
    reach = max(1, min(round(4 * sigma), min(pixels.shape[-2:]) - 1))  # what is mirrored is there
    blurred: Tensor = F.gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma, sigma])
    return blurred


def contrast(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Values nearer to the mean of their image and channel."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = pixels.mean((-2, -1), keepdim=True)
    return mean + share * (pixels - mean)


def jpeg(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Coding of low quality, of 1 or 3 channels."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    coded = [F.jpeg(image, quality) for image in _bytes(pixels)]
    return torch.stack(coded).float() / 255


def patches(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A share of all squares of 1/14 of the width is covered by noise."""
    share = (0.02, 0.05, 0.1, 0.2, 0.3)[severity - 1]
    side = max(1, pixels.shape[-1] // 14)
    rows, columns = (-(-length // side) for length in pixels.shape[-2:])
    covered = torch.rand(len(pixels), 1, rows, columns, generator=generator) < share
    covered = covered.repeat_interleave(side, -2).repeat_interleave(side, -1)
    covered = covered[..., : pixels.shape[-2], : pixels.shape[-1]]
    return torch.where(covered, torch.rand(pixels.shape, generator=generator), pixels)


CORRUPTIONS: dict[str, Corruption] = {
    each.__name__: each for each in (noise, blur, contrast, jpeg, patches)
}


def corrupted(
    normalised: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Model inputs [n, C, H, W] after a `change` of the images, in 8 bits, that they come from."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = change((normalised * scale + shift).clamp(0, 1))
    return (_bytes(pixels).float() / 255 - shift) / scale


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
