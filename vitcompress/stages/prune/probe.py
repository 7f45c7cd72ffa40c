"""What a change of some blocks does to the output of the model, on a few held-back images."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.model.layers import Block
from vitcompress.stages.context import BATCH


class _Given(nn.Module):
    """Stands before the first changed block and gives what that block got in the dense model."""

    def __init__(self) -> None:
        super().__init__()
        self.x: Tensor | None = None

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x if self.x is None else self.x


class Probe:
    """KL(dense ‖ changed) on `pixels`, with only the blocks from the first change on computed."""

    def __init__(self, module: nn.Module, pixels: Tensor) -> None:
        self.module = module
        self.blocks = cast(nn.Sequential, module.blocks)
        self.pixels = pixels.split(BATCH)
        self.inputs: list[list[Tensor]] = [[] for _ in self.blocks]
        handles = [
            block.register_forward_pre_hook(lambda _, args, held=held: held.append(args[0]))
            for block, held in zip(self.blocks, self.inputs, strict=True)
        ]
        self.dense = torch.cat([module(batch).log_softmax(-1) for batch in self.pixels])
        for handle in handles:
            handle.remove()

    def kl(self, changed: Mapping[int, Block]) -> float:
        """The mean KL in nats when the blocks `changed`, by number, take the place of theirs."""
        if not changed:
            return 0.0
        first, given = min(changed), _Given()
        rest = [changed.get(i, block) for i, block in enumerate(self.blocks) if i >= first]
        self.module.blocks = nn.Sequential(given, *rest)
        try:
            outputs = []
            for batch, x in zip(self.pixels, self.inputs[first], strict=True):
                given.x = x
                outputs.append(self.module(batch).log_softmax(-1))
        finally:
            self.module.blocks = self.blocks
        return self._kl(outputs)

    def kl_of(self, module: nn.Module) -> float:
        """The mean KL in nats when `module` takes the place of the whole model."""
        return self._kl([module(batch).log_softmax(-1) for batch in self.pixels])

    def _kl(self, outputs: list[Tensor]) -> float:
        found = F.kl_div(torch.cat(outputs), self.dense, reduction="batchmean", log_target=True)
        return max(0.0, float(found))
