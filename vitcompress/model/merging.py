"""Blocks that pass on fewer tokens: merging between attention and MLP."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vitcompress.methods.selection import rows
from vitcompress.methods.tokens import (
    OPERATORS,
    Choice,
    Tokens,
    attention_paid,
    combine,
    diffrate,
    fisher,
    normalised,
)
from vitcompress.model.layers import Block

Method = Literal["tome", "diffrate", "evit", "mctf", "ppt", "fisher"]


RANK = 32
"""How many coordinates `fisher` compares tokens by, where nothing else is said."""


class Merging(BaseModel):
    """How tokens are merged.

    `kept`: for each block how many tokens, prefix included, go on to its MLP; the last block may
    compute fewer besides. `dropped`: for each block how many tokens `diffrate` drops and does not
    merge (empty: none). `proportional`: a merged token counts in attention as often as the patches
    it stands for. `rank`: how many coordinates `fisher` compares tokens by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    kept: tuple[Annotated[int, Field(ge=1)], ...]
    dropped: tuple[Annotated[int, Field(ge=0)], ...] = ()
    proportional: bool = True
    rank: Annotated[int, Field(ge=1)] = RANK

    def merges(self, block: int, tokens: int) -> bool:
        """Whether `block` gets more tokens than it keeps, where `tokens` enter the first."""
        return self.kept[block] < (self.kept[block - 1] if block else tokens)


State = tuple[Tensor, Tensor | None, Tensor | None]
"""Between blocks: tokens [B, n, C]; their sizes [B, n, 1], None as long as all are 1; and the place
of each of the N tokens that came in [B, N], None where it is not asked for or nothing merged."""


class MergingBlocks(nn.Sequential):
    """The blocks of a ViT, which carry the sizes of merged tokens from one to the next.

    The first `prefix` of the `tokens` are never touched. With `restore`, every patch gets the token
    it was merged into before the tokens leave, so that a head that pools over patches counts each
    merged token as often as the patches it stands for.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], merging: Merging, tokens: int, prefix: int, restore: bool
    ) -> None:
        super().__init__(*blocks)
        self.merging, self.prefix, self.restore = merging, prefix, restore
        for number, block in enumerate(self):
            if merging.method == "fisher" and merging.merges(number, tokens):
                channels = cast(Block, block).attn.qkv.in_features
                self.register_buffer(f"level_{number}", torch.zeros(channels, 1))
                self.register_buffer(f"coordinates_{number}", torch.zeros(channels, merging.rank))

    def fill(self, readers: Mapping[str, Tensor]) -> None:
        """Take over the tensors that `fisher` reads tokens with, by name."""
        for name in self._buffers:
            self.register_buffer(name, readers[name])

    def forward(self, x: Tensor) -> Tensor:
        state: State = (x, None, None)
        for number in range(len(self)):
            state = self.advance(number, *state)
        return self.restored(*state)

    def advance(self, number: int, x: Tensor, sizes: Tensor | None, places: Tensor | None) -> State:
        """The state after block `number`, from that before it."""
        block, keep = cast(Block, self[number]), self.merging.kept[number]
        bias = None
        if sizes is not None and self.merging.proportional:
            bias = sizes[..., 0].log()
        x, q, k = block.attended(x, bias)
        if keep < x.shape[1]:
            sizes = torch.ones_like(x[..., :1]) if sizes is None else sizes
            choice = self._choice(number, x, q, k, sizes)
            if self.restore:
                place = self._placed(x, choice)
                places = place if places is None else rows(place, places)
            x, sizes = self._merged(x, sizes, choice)
        return block.fed(x), sizes, places

    def restored(self, x: Tensor, sizes: Tensor | None, places: Tensor | None) -> Tensor:
        """What the rest of the model reads of the state after the last block."""
        return x if places is None else rows(x, places)

    def _choice(self, number: int, x: Tensor, q: Tensor, k: Tensor, sizes: Tensor) -> Choice:
        """Which patch tokens of `x` [B, n, C] stay in block `number`."""
        keep, prefix = self.merging.kept[number] - self.prefix, self.prefix
        patches, patch_sizes = x[:, prefix:], sizes[:, prefix:]
        if self.merging.method == "fisher":
            h = normalised(patches)
            level = h @ self.get_buffer(f"level_{number}")
            importance = (level * 0.5).exp() * patch_sizes
            keys = h @ self.get_buffer(f"coordinates_{number}")
            return fisher(Tokens(patches, patch_sizes, keys, importance[..., 0]), keep)
        attention = cast(Block, self[number]).attn
        heads = attention.num_heads
        # Without a class token: what the mean query pays.
        query = q[:, :1] if prefix else q.mean(1, keepdim=True)
        paid = attention_paid(query, k, heads, attention.scale, sizes)[:, prefix:]
        keys = k[:, prefix:].unflatten(-1, (heads, -1)).mean(-2)
        tokens = Tokens(patches, patch_sizes, keys, paid)
        if self.merging.dropped:
            return diffrate(tokens, keep, self.merging.dropped[number])
        return OPERATORS[self.merging.method](tokens, keep)

    def _merged(self, x: Tensor, sizes: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        prefix = self.prefix
        merged, merged_sizes = combine(x[:, prefix:], sizes[:, prefix:], choice)
        if not prefix:
            return merged, merged_sizes
        return (
            torch.cat([x[:, :prefix], merged], 1),
            torch.cat([sizes[:, :prefix], merged_sizes], 1),
        )

    def _placed(self, x: Tensor, choice: Choice) -> Tensor:
        first = torch.arange(self.prefix, device=x.device).expand(x.shape[0], -1)
        return torch.cat([first, choice.places() + self.prefix], 1)
