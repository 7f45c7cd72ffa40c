"""Attention of few links, as a dense computation: to see what it would cost, not to be fast."""

from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.methods.links import Maps, kept_links, strongest
from vitcompress.model.modules.attention import Attention


class FewLinks(nn.Module):
    """`dense`, each query of which attends to a `share` of the keys it has there, one at least.

    Which these are, the logits tell or, with `maps`, those of mapped queries and keys. `head`: the
    only one that loses links (None: all do).
    """

    def __init__(
        self, dense: Attention, share: float, maps: Maps | None = None, head: int | None = None
    ) -> None:
        super().__init__()
        self.dense, self.share, self.head = dense, share, head
        self.maps = None if maps is None else Maps(*(m.float() for m in maps))

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x)[0]

    def attended(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.attended`, which is computed twice: first for its queries and keys."""
        _, q, k = self.dense.attended(x, queries, bias, places)
        lost = self._lost(len(x), self.dense.by_head(q), self.dense.by_head(k), bias)
        return self.dense.attended(x, queries, lost if bias is None else bias + lost, places)

    def _lost(self, images: int, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """A bias of logits, −∞ where a link is lost, from q and k as `by_head` gives them."""
        if self.maps is not None:
            q, k = q @ self.maps.queries.to(q), k @ self.maps.keys.to(k)
        scores = self.dense.scale * q @ k.mT
        for added in (self.dense.bias_by_head(images), bias):
            if added is not None:
                scores = scores + added[:, :, : scores.shape[-2]]
        lost = ~strongest(scores, kept_links(self.share, scores.shape[-1]))
        if self.head is not None:
            lost[:, : self.head] = lost[:, self.head + 1 :] = False
        cut = torch.zeros_like(scores).masked_fill(lost, -torch.inf)
        return cast(Tensor, cut.unflatten(0, (images, -1)).flatten(1, 2))
