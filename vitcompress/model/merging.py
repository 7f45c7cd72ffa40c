"""Blocks that pass on fewer tokens: merging between attention and MLP."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.methods import tokens
from vitcompress.methods.selection import rows
from vitcompress.methods.tokens import Choice, Merge, View, method_of
from vitcompress.model.anatomy import State, unmoved
from vitcompress.model.modules.block import Block
from vitcompress.terms import MergeMethod

RANK = 31
"""How many coordinates a reader has, where nothing else is said: with the level 32 columns, as
kernels of matrix products like them."""


class Merging(BaseModel):
    """How tokens are merged.

    `kept`: for each block how many tokens, prefix included, go on to its MLP; the last block may
    compute fewer besides. `dropped`: for each block how many tokens are dropped and not merged
    (empty: none). `proportional`: a merged token counts in attention as often as the patches
    it stands for. `unmixed`: in how many of the first blocks a token that takes others in keeps its
    value and only grows in size. `rank`: how many coordinates readers have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MergeMethod
    kept: tuple[Annotated[int, Field(ge=1)], ...]
    dropped: tuple[Annotated[int, Field(ge=0)], ...] = ()
    proportional: bool = True
    unmixed: Annotated[int, Field(ge=0)] = 0
    rank: Annotated[int, Field(ge=1)] = RANK

    @model_validator(mode="after")
    def _drops(self) -> "Merging":
        if self.dropped and method_of(self.method).drop is None:
            raise ValueError(f"dropped: {self.method} drops no tokens")
        return self

    def merges(self, block: int, tokens: int) -> bool:
        """Whether `block` gets more tokens than it keeps, where `tokens` enter the first."""
        return self.kept[block] < (self.kept[block - 1] if block else tokens)


class MergingBlocks(nn.Sequential):
    """The blocks of a ViT, which carry the sizes of merged tokens from one to the next.

    The first `prefix` of the tokens are never touched; the very first is a class token, or there
    is none; the others are patches of `grid`. With `restore`, every patch gets the token
    it was merged into before the tokens leave, so that a head that pools over patches counts each
    merged token as often as the patches it stands for.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        merging: Merging,
        grid: tuple[int, int],
        prefix: int,
        class_token: bool,
        restore: bool,
    ) -> None:
        super().__init__(*blocks)
        self.merging, self.method = merging, method_of(merging.method)
        self.grid, self.prefix, self.restore = grid, prefix, restore
        self.class_token = class_token
        tokens = prefix + math.prod(grid)
        steps = [number for number in range(len(self)) if merging.merges(number, tokens)]
        if self.method.mixtures and len(steps) > 1:
            raise InputError(f"merging: {merging.method} merges in one block, not {len(steps)}")
        for number in steps if self.method.reading.fitted else ():
            channels = cast(Block, self[number]).attn.qkv.in_features
            self.register_buffer(f"reader_{number}", torch.zeros(channels, 1 + merging.rank))

    def fill(self, readers: Mapping[str, Tensor]) -> None:
        """Take over the readers of tokens, by name."""
        for name in self._buffers:
            self.register_buffer(name, readers[name])

    def forward(self, x: Tensor) -> Tensor:
        state = State(x)
        for number in range(len(self)):
            state = self.advance(number, state)
        return self.restored(state)

    def advance(self, number: int, state: State) -> State:
        """The state after block `number`, from that before it."""
        between = self.attended(number, state)[1]
        return between._replace(x=cast(Block, self[number]).fed(between.x))

    def attended(self, number: int, state: State) -> tuple[Tensor, State]:
        """What the attention of block `number` leaves of the state before it, and the state that
        its MLP gets, in which tokens have merged.

        Where tokens are is noted, for heads that read all and whoever starts with `places`.
        """
        block, keep = cast(Block, self[number]), self.merging.kept[number]
        x, sizes, places, origins = state
        bias = None
        if sizes is not None and self.merging.proportional:
            bias = F.pad(sizes.log(), (self.prefix, 0))
        of_keys = None if bias is None else bias[:, None, None]
        left, q, k = block.attended(x, of_keys, origins)
        if keep >= left.shape[1]:
            return left, state._replace(x=left)
        if sizes is None:
            sizes = left.new_ones(left.shape[0], left.shape[1] - self.prefix)
        choice = self._choice(number, left, q, k, bias, sizes)
        if self.restore or places is not None:
            now = tokens.places(choice, self.prefix)
            places = now if places is None else rows(now, places)
        if any(cast(Block, later).attn.rotation is not None for later in self):
            stay = tokens.origins(choice, self.prefix)
            origins = stay if origins is None else rows(origins, stay)
        x, sizes = tokens.combine(left, sizes, choice, self.prefix)
        return left, State(x, sizes, places, origins)

    def trail(self, x: Tensor) -> list[Tensor]:
        """Where each of the tokens that come in is after each block: int64 [B, p + N] each."""
        found: list[Tensor] = []
        state = State(x, places=unmoved(x))
        for number in range(len(self)):
            state = self.advance(number, state)
            found.append(cast(Tensor, state.places))
        return found

    def restored(self, state: State) -> Tensor:
        """What the rest of the model reads of the state after the last block."""
        return state.x if state.places is None else rows(state.x, state.places)

    def _choice(
        self, number: int, x: Tensor, q: Tensor, k: Tensor, bias: Tensor | None, sizes: Tensor
    ) -> Choice:
        """What becomes of patch tokens in block `number`; `x`, `q`, `k`: of all tokens."""
        keep, method, dropped = self.merging.kept[number] - self.prefix, self.method, 0
        attention = cast(Block, self[number]).attn
        view = View(
            x=x,
            sizes=sizes,
            queries=q,
            keys=k,
            bias=bias,
            prefix=self.prefix,
            class_token=self.class_token,
            heads=attention.num_heads,
            scale=attention.scale,
            reader=self._buffers.get(f"reader_{number}"),
            grid=self.grid if sizes.shape[1] == math.prod(self.grid) else None,
        )
        seen = method.reading.tokens(view)
        if self.merging.dropped:
            dropped = self.merging.dropped[number]
        choice: Choice
        if dropped and method.drop is not None:
            choice = method.drop(seen, keep, dropped)
        else:
            choice = method.choose(seen, keep)
        if isinstance(choice, Merge):
            return replace(choice, mixed=number >= self.merging.unmixed)
        return choice


def token_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """After each block of a ViT that merges, the token that each patch of `pixels` is part of.

    int64 [B, patches] each, patches row by row; tokens are numbered from 0 without the prefix.
    """
    blocks = next(part for part in module.modules() if isinstance(part, MergingBlocks))
    seen: list[Tensor] = []
    handle = blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        module(pixels)
    finally:
        handle.remove()
    return [places[:, blocks.prefix :] - blocks.prefix for places in blocks.trail(seen[0])]
