"""What the quantize stage knows of a model before it decides: statistics, ranges, costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.memory import copied
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.calibrate import LayerStatistics, Weights, statistics
from vitcompress.stages.context import Context
from vitcompress.stages.probe import Probe, mean, probe_of
from vitcompress.stages.quantize.config import BitBudget, QuantizeConfig, Style
from vitcompress.stages.quantize.layer import (
    InputRange,
    best_input_range,
    ladder,
    ranged,
    rounded_layer,
)
from vitcompress.stages.quantize.selection import allowed_widths
from vitcompress.tasks import Task


@dataclass(frozen=True)
class QuantizeSetup:
    """A reparametrised copy of a model, what is known of its layers, and what they may be.

    `floats`: these layers, as they lie in the model. `allowed`: their widths, ascending. `ranges`:
    what their inputs become, so far. `probe`: measures what replacing some costs.
    """

    anatomy: Anatomy
    task: Task
    style: Style
    floats: dict[str, nn.Linear]
    found: dict[str, LayerStatistics]
    ranges: dict[str, InputRange]
    allowed: dict[str, tuple[int, ...]]
    probe: Probe

    def cost(self, layers: Mapping[str, nn.Module]) -> float:
        """The mean distance of the outputs with `layers`, by name, in their places."""
        return self.probe.cost(layers)

    def rounded(self, name: str, bits: int) -> QuantizedLinear:
        """One layer with weights of `bits` bits."""
        return rounded_layer(
            self.floats[name], self.ranges[name], self.found[name], self.style, bits
        )

    def ranged(
        self,
        name: str,
        layer: QuantizedLinear,
        terms: Literal[1, 2] = 1,
        residual_tokens: int | None = None,
    ) -> QuantizedLinear:
        """A rounded layer with the input that is chosen by now."""
        input_range, found = self.ranges[name], self.found[name]
        return ranged(layer, self.floats[name], input_range, found, terms, residual_tokens)

    def float_twin(self, name: str, quantized: QuantizedLinear) -> nn.Linear:
        """The weights of `quantized` for float inputs, the mean error in the bias."""
        layer, found, change = (
            self.floats[name],
            self.found[name],
            self.ranges[name].change,
        )
        twin = quantized.dequantized()
        mean = change.apply((found.total / found.weight).float())
        twin.bias.copy_((layer.weight - twin.weight) @ mean)
        if layer.bias is not None:
            twin.bias.add_(layer.bias)
        return twin

    def cheapest(self, name: str, bits: int) -> tuple[QuantizedLinear, float]:
        """The layer in `bits` bits, with the range that costs the model least near the chosen one,
        which is chosen from then on; and what it costs.

        A few tokens with huge activations may carry little of a layer's error and most of the
        model's: what to clip has the last word from the model's output. From the chosen range
        the search steps to wider ones while that helps, else to narrower ones.
        """
        chosen, found = self.ranges[name], self.found[name]
        best = self.rounded(name, bits)
        least = self._distances(name, best)
        assert least is not None  # there is no rival yet
        if self.style.activations != "static":
            return best, mean(least)
        rungs = ladder(chosen, found)
        start = next(i for i, rung in enumerate(rungs) if rung.share == chosen.share)
        for direction in (range(start - 1, -1, -1), range(start + 1, len(rungs))):
            for rung in direction:
                tried = ranged(best, self.floats[name], rungs[rung], found)
                price = self._distances(name, tried, least)
                if price is None or not mean(price) < mean(least):  # NaN is no gain
                    break
                best, least = tried, price
                self.ranges[name] = rungs[rung]
            if self.ranges[name] is not chosen:
                break
        return best, mean(least)

    def _distances(self, name: str, layer: nn.Module, rival: Tensor | None = None) -> Tensor | None:
        """The distance of each image with one layer replaced; None where it is clearly above that
        of `rival`."""
        with self.probe.replaced({name: layer}) as change:
            return self.probe.distances(change, rival)


def prepare_quantize(model: VitModel, config: QuantizeConfig, context: Context) -> QuantizeSetup:
    """Calibrate, reparametrise, and choose the ranges of the inputs.

    Raises `InputError` for a pattern that matches no layer.
    """
    allowed = allowed_widths(model, config)[0]
    found = statistics(model, list(allowed), context, _weights(model.anatomy, allowed))
    anatomy = anatomy_of(copied(model.module))
    # Foldings first: that of one layer may change the weights of another.
    chosen = {
        name: best_input_range(
            anatomy, name, found[name], config.style, _typical(config, each), config.reparametrise
        )
        for name, each in track(allowed.items(), "choosing ranges", len(allowed))
    }
    floats = {name: cast(nn.Linear, anatomy.module.get_submodule(name)) for name in allowed}
    probe = probe_of(anatomy, model.task, context)
    return QuantizeSetup(anatomy, model.task, config.style, floats, found, chosen, allowed, probe)


def _weights(anatomy: Anatomy, allowed: Mapping[str, tuple[int, ...]]) -> Weights:
    """Inputs count by their importance too where weights of few bits leave larger errors, and where
    the model has gradients: in late blocks the class token bears most of the output."""
    few = any(bits < 8 for each in allowed.values() for bits in each)
    return "both" if few and not anatomy.quantized() else "even"


def _typical(config: QuantizeConfig, allowed: tuple[int, ...]) -> int:
    """The width that a layer's reparametrisation is judged at, before its own is known."""
    average = config.bits.average if isinstance(config.bits, BitBudget) else config.bits
    return min(allowed, key=lambda b: abs(b - (average or 6)))
