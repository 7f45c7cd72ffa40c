"""A block of attention and MLP."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from vitcompress.model.modules.attention import no_mask
from vitcompress.model.modules.sources import scale

_Norm = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """timm's block; `tokens` limits what it computes to the first tokens (None: all).

    Norms come before their operators or, `norm_after`, between these and the stream. A block that
    was pruned may lack its attention or its MLP, with the layers around it.
    """

    def __init__(self, source: Any, norm_after: bool = False) -> None:
        super().__init__()
        self.tokens: int | None = None
        self.norm_after = norm_after
        self.norm1, self.attn, self.ls1 = source.norm1, source.attn, scale(source, 1)
        self.norm2, self.mlp, self.ls2 = source.norm2, source.mlp, scale(source, 2)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        no_mask(attn_mask, is_causal)
        return self.fed(self.mixed(x))

    def mixed(self, x: Tensor) -> Tensor:
        """The first half: tokens after attention."""
        return x[:, : self.tokens] if self.attn is None else self.attended(x)[0]

    def attended(
        self, x: Tensor, bias: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of a block with attention, and its queries and keys."""
        before, after = self._norms(self.norm1)
        y, q, k = self.attn.attended(before(x), self.tokens, bias, places)
        return x[:, : self.tokens] + self.ls1(after(y)), q, k

    def fed(self, x: Tensor) -> Tensor:
        """The second half: tokens after the MLP."""
        if self.mlp is None:
            return x
        before, after = self._norms(self.norm2)
        return x + cast(Tensor, self.ls2(after(self.mlp(before(x)))))

    def _norms(self, norm: _Norm) -> tuple[_Norm, _Norm]:
        """What comes before an operator, and what after it."""
        return (_same, norm) if self.norm_after else (norm, _same)


def _same(x: Tensor) -> Tensor:
    return x
