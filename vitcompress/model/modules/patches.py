"""Images as vectors of patches, by one Linear."""

from typing import Any, cast

from torch import Tensor, nn

from vitcompress.model.modules.sources import linear

Size = tuple[int, int]
"""Height and width."""


class PatchEmbed(nn.Module):
    """timm's patch embedding, computing the same with a Linear over the pixels of each patch.

    A convolution whose windows do not overlap is such a product, and as one it can be quantized.
    Attributes have the names of timm's. Where there are `shift` and `scale`, float32 [C, 1, 1],
    pixels x are read as (x − shift) / scale.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.patch_size: Size = tuple(source.patch_size)
        self.proj = linear(source.proj.weight.flatten(1), [source.proj.bias])
        self.norm = source.norm
        self.register_buffer("shift", None)
        self.register_buffer("scale", None)
        self.set_input_size(source.img_size)

    def set_input_size(self, img_size: Size, patch_size: None = None) -> None:
        """Take images of `img_size` from now on; what is more than whole patches is cut off."""
        (height, width), (down, across) = img_size, self.patch_size
        self.img_size: Size = (height, width)
        self.grid_size: Size = (height // down, width // across)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def rescale(self, shift: Tensor, scale: Tensor) -> None:
        """Let the product read (x − shift) / scale, both [C], in the place of what it read."""
        shift, scale = shift[:, None, None], scale[:, None, None]
        if self.shift is not None and self.scale is not None:
            shift, scale = self.shift + self.scale * shift, self.scale * scale
        self.shift, self.scale = shift, scale

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] → [B, patches, D], row by row. Raises `ValueError` for another size."""
        if tuple(pixels.shape[2:]) != self.img_size:
            raise ValueError(f"the model takes images of {self.img_size}: {tuple(pixels.shape)}")
        if self.shift is not None and self.scale is not None:
            pixels = (pixels - self.shift) / self.scale
        (rows, columns), (down, across) = self.grid_size, self.patch_size
        if self.img_size != (rows * down, columns * across):
            pixels = pixels[:, :, : rows * down, : columns * across]
        parts = cast(Tensor, pixels.unflatten(3, (columns, across)).unflatten(2, (rows, down)))
        return cast(
            Tensor, self.norm(self.proj(parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)))
        )
