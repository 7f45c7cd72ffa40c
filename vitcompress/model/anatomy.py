"""What a model consists of, in the order of computation: the one view of it that others have.

A model is a row of steps from a stream of tokens to a stream of tokens, between a stem that makes
the stream of the pixels and a head that reads it. Most steps are blocks of two sites, an attention
and an MLP; others, such as the downsampling of windowed models, only change the stream. Who knows
the modules of timm that this is read off is `families`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.patches import PatchEmbed
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.patterns import match
from vitcompress.model.reparametrise import (
    Reparametrise,
    through_norm,
    through_pixels,
    through_values,
)

SiteKind = Literal["attention", "mlp"]

Alteration = Literal["tail", "prune", "embedding", "merge"]
"""What a family may not allow: to compute only what the head reads, to narrow blocks, to narrow the
stream of tokens, and to merge tokens."""


class State(NamedTuple):
    """Between steps: `x` [B, p + n, C], the tokens; of grids, row by row.

    `sizes` of patch tokens [B, n], None as long as all are 1. `places` of the tokens that came
    in [B, p + N], None where they are not asked for or nothing merged. `origins` [B, p + n]:
    which of the tokens that came in each was, whose position it keeps; None likewise.
    """

    x: Tensor
    sizes: Tensor | None = None
    places: Tensor | None = None
    origins: Tensor | None = None


def unmoved(x: Tensor) -> Tensor:
    """The places of tokens `x` [B, N, C] of which none has merged: int64 [B, N]."""
    return torch.arange(x.shape[1], device=x.device).expand(len(x), -1)


class Step(NamedTuple):
    """A part of the model that turns one state into the next, and its name there.

    `tokens`: how many, prefix included, come in, and how many go out. None where that is not known.
    """

    name: str
    module: nn.Module
    tokens: tuple[int, int] | None = None


class SiteTokens(NamedTuple):
    """Of each image: how many tokens the first and the last layer of a site see, and how many keys
    each of its queries attends to (0: an MLP)."""

    first: int
    last: int
    keys: int


@dataclass(frozen=True)
class Site:
    """An attention or an MLP, with its norm and its scale: what one branch adds to the stream.

    `name`: of its operator in the model (blocks.3.attn). `number`: of its block among the blocks.
    """

    name: str
    kind: SiteKind
    number: int
    block: Block

    @property
    def norm(self) -> nn.Module:
        return cast(nn.Module, self.block.norm1 if self.kind == "attention" else self.block.norm2)

    @property
    def norm_name(self) -> str:
        return f"{self.name.rpartition('.')[0]}.norm{1 if self.kind == 'attention' else 2}"

    @property
    def operator(self) -> Any:
        return self.block.attn if self.kind == "attention" else self.block.mlp

    @property
    def scale(self) -> nn.Module:
        """What scales the branch: a LayerScale, or an identity."""
        return cast(nn.Module, self.block.ls1 if self.kind == "attention" else self.block.ls2)

    @property
    def scale_name(self) -> str:
        return f"{self.name.rpartition('.')[0]}.ls{1 if self.kind == 'attention' else 2}"

    @property
    def first_name(self) -> str:
        return f"{self.name}.{'qkv' if self.kind == 'attention' else 'fc1'}"

    @property
    def last_name(self) -> str:
        return f"{self.name}.{'proj' if self.kind == 'attention' else 'fc2'}"

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the stream: queries, keys and values, or hidden units and gates."""
        branch = self.operator
        return cast(nn.Linear, branch.qkv if self.kind == "attention" else branch.fc1)

    @property
    def last(self) -> nn.Linear:
        """The layer whose output is added to the stream."""
        return cast(
            nn.Linear, self.operator.proj if self.kind == "attention" else self.operator.fc2
        )

    def half(self, x: Tensor) -> Tensor:
        """The stream after this site, from that before it."""
        return self.block.mixed(x) if self.kind == "attention" else self.block.fed(x)

    def hidden_source(self, name: str) -> str | None:
        """As `Anatomy.hidden_source`, for a layer of this site."""
        mlp = self.operator
        plain = self.kind == "mlp" and getattr(mlp, "gates", None) == 0
        if not plain or name != self.last_name or not isinstance(mlp.norm, nn.Identity):
            return None
        return self.first_name if isinstance(mlp.fc1, nn.Linear) else None

    def input_reparametrisation(self, name: str) -> Reparametrise | None:
        """As `Anatomy.input_reparametrisation`, for a layer of this site."""
        operator, attention = self.operator, self.kind == "attention"
        if attention and operator.gate is not None:
            return None
        if name == self.first_name and not self.block.norm_after:
            known = attention or getattr(operator, "gates", None) is not None
            padded = attention and operator.windows is not None and operator.windows.padded
            return through_norm(self.norm, self.first) if known and not padded else None
        if name == self.last_name and attention and isinstance(operator.norm, nn.Identity):
            return through_values(operator.qkv, self.last)
        return None


@dataclass(frozen=True)
class Anatomy:
    """A live view of `module`, which others read and change by it.

    `family`: the name of its file in `families`. `start`: pixels [B, C, H, W] → the state before
    the first step. `advance`: (number of a step, state before it) → state after it. `finish`: the
    state after the last step → the output of the model. `prefix_tokens`: how many tokens stand
    before those of patches; the very first is a class token where `class_token` says so.
    `grid`: rows and columns of patches, where they are the same in all blocks. `reads_prefix`:
    whether the head reads nothing but the prefix tokens. `stem`, `head`: names of the parts that
    make tokens of pixels, and the output. `called`: the linear layers that can be replaced, as they
    are called as modules (None: all). `obstacles`: gives `refusals`; asked at most once, since
    finding them takes a look at every block. `merged`: what `attended` gives where tokens merge
    (None: they do not).
    """

    family: str
    module: nn.Module
    steps: tuple[Step, ...]
    start: Callable[[Tensor], State]
    advance: Callable[[int, State], State]
    finish: Callable[[State], Tensor]
    prefix_tokens: int = 0
    class_token: bool = False
    grid: tuple[int, int] | None = None
    reads_prefix: bool = False
    stem: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    called: frozenset[str] | None = None
    obstacles: Callable[[], Mapping[Alteration, str]] = dict
    merged: Callable[[int, State], tuple[Tensor, State]] | None = None

    def attended(self, number: int, state: State) -> tuple[Tensor, State]:
        """Of the block that is step `number`, from the state before it: the tokens after its
        attention, and the state that its MLP gets, in which some may have merged."""
        if self.merged is not None:
            return self.merged(number, state)
        x = cast(Block, self.steps[number].module).mixed(state.x)
        return x, State(x)

    @cached_property
    def refusals(self) -> Mapping[Alteration, str]:
        """What cannot be changed in this model, and why, in words that go on "NAME cannot …: "."""
        return self.obstacles()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The steps that are blocks of sites."""
        return tuple(step.module for step in self.steps if isinstance(step.module, Block))

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if isinstance(step.module, Block))

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order of computation; a site that was pruned away is not there."""
        return tuple(self._sites())

    def _sites(self) -> Iterator[Site]:
        for number, (name, block) in enumerate(zip(self.block_names, self.blocks, strict=True)):
            if block.attn is not None:
                yield Site(f"{name}.attn", "attention", number, block)
            if block.mlp is not None:
                yield Site(f"{name}.mlp", "mlp", number, block)

    @property
    def tokens(self) -> int:
        """How many tokens, prefix included, come into the first block of a model with a `grid`."""
        assert self.grid is not None
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    def site_of(self, layer: str) -> Site | None:
        """The site that the layer of this name belongs to: blocks.3.attn for blocks.3.attn.qkv."""
        return next((site for site in self.sites if layer.startswith(f"{site.name}.")), None)

    def step_of(self, name: str) -> int | None:
        """The number of the step that the module of this name lies in; None for stem and head."""
        for number, step in enumerate(self.steps):
            if not step.name and not self.in_head(name):  # the whole module
                return number
            if _within(name, (step.name,)):
                return number
        return None

    def linears(self) -> dict[str, nn.Linear]:
        """The float linear layers that may be compressed, by name, in the order of the module."""
        return {
            name: layer
            for name, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear) and (self.called is None or _within(name, self.called))
        }

    def quantized(self) -> dict[str, QuantizedLinear]:
        """The quantized linear layers by name, in the order of the module."""
        modules = self.module.named_modules()
        return {name: layer for name, layer in modules if isinstance(layer, QuantizedLinear)}

    def select(
        self, patterns: Iterable[str], key: str, among: Iterable[str] | None = None
    ) -> list[str]:
        """The names of `linears` (None: all, else those `among` them) that any pattern selects, in
        their order.

        The words `stem`, `blocks` and `head` are patterns too: for the layers that make tokens of
        pixels, for those in steps, and for those that make the output, even if there are none.
        Raises `InputError` as `match` does.
        """
        names = list(self.linears() if among is None else among)
        groups = {
            "blocks": [name for name in names if self.step_of(name) is not None],
            "head": [name for name in names if self.in_head(name)],
            "stem": [name for name in names if _within(name, self.stem)],
        }
        return match(patterns, names, key, self.quantized(), groups)

    def hidden_source(self, name: str) -> str | None:
        """The Linear whose outputs, each by itself, become the inputs of the Linear `name`: fc1 of
        fc2.

        The order of these outputs is of no account: both layers may be reordered together. None
        where something between mixes them, or another layer reads them.
        """
        site = self.site_of(name)
        return None if site is None else site.hidden_source(name)

    def input_reparametrisation(self, name: str) -> Reparametrise | None:
        """How the input channels of the Linear `name` can be shifted and scaled without a trace.

        None where something before the layer forbids it. Four kinds of input allow it: those of
        qkv and fc1 follow a LayerNorm, that of proj is a mixture of values with weights that sum to
        one, and pixels are what they are, if all of a channel are changed alike (`inputs_alike`).
        """
        if (embed := self._patches(name)) is not None:
            return through_pixels(embed)
        site = self.site_of(name)
        return None if site is None else site.input_reparametrisation(name)

    def inputs_alike(self, name: str) -> int:
        """How many neighbouring inputs of the Linear `name` can only be shifted and scaled alike:
        the pixels of a patch that are of one channel."""
        embed = self._patches(name)
        return 1 if embed is None else math.prod(embed.patch_size)

    def _patches(self, name: str) -> PatchEmbed | None:
        """The patch embedding whose product the Linear `name` is."""
        owner, _, layer = name.rpartition(".")
        embed = self.module.get_submodule(owner) if layer == "proj" else None
        return embed if isinstance(embed, PatchEmbed) else None

    def tokens_at(self, site: Site) -> SiteTokens | None:
        """How many tokens `site` computes with; None where that is not known."""
        step = next(step for step in self.steps if step.module is site.block)
        if step.tokens is None:
            return None
        (coming, going), computed = step.tokens, site.block.tokens
        if site.kind == "mlp":
            return SiteTokens(going, going, 0)
        windows = site.operator.windows
        if windows is None:
            return SiteTokens(coming, computed or coming, coming)
        return SiteTokens(len(windows.order), coming, windows.size)

    def in_head(self, name: str) -> bool:
        """Whether the module of this name comes after the last step.

        What is in no step is taken for the stem, but for what is known to make the output.
        """
        return _within(name, self.head)

    def run(self, pixels: Tensor) -> Tensor:
        """What the module gives for `pixels`, step by step."""
        state = self.start(pixels)
        for number in range(len(self.steps)):
            state = self.advance(number, state)
        return self.finish(state)

    def check(self, change: Alteration, where: str, name: str) -> None:
        """Raise `InputError` where the model, called `name`, does not allow `change`."""
        if (reason := self.refusals.get(change)) is not None:
            raise InputError(f"{where}: {name}: {reason}; take the stage out of the recipe")


def _within(name: str, parts: Iterable[str]) -> bool:
    """Whether the module of this name is one of `parts`, or lies in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def all_steps(steps: Iterable[Step]) -> Callable[[int, State], State]:
    """`Anatomy.advance` for steps whose modules need the tokens alone."""
    modules = [step.module for step in steps]

    def advance(number: int, state: State) -> State:
        return State(modules[number](state.x))

    return advance
