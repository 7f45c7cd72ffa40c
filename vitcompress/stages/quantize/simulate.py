"""Simulate: what inputs of fewer bits than the integer kernels know would cost, in floats.

The setting of published tables: the inputs of all quantized layers, and the queries, keys, values
and weights of attention, are rounded to a few values each. No kernel computes so: the simulated
model is there to be measured, and is never exported.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.memory import copied
from vitcompress.methods.grids import Quantizer, fitted
from vitcompress.methods.reparametrisation import Reparametrisation, identity
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel
from vitcompress.model.balance import level_keys
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.calibrate import LayerStatistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig, Simulation
from vitcompress.stages.quantize.layer import InputRange, changes_of, rounded_layer, trial
from vitcompress.stages.quantize.rounding import rounding_of
from vitcompress.stages.quantize.sequence import in_sequence, refitted_layer
from vitcompress.stages.stage import Study

# Of reparametrisations: the fewer the values, the more a full one pays.
_STRENGTHS = (0.5, 0.75, 1.0)
_FITTED_IMAGES = 8  # that the quantizers of attention are fitted to: each has every token and head


class SimulatedAttention(Attention):
    """Attention whose products have inputs of few bits, fitted to the first batch it sees."""

    def __init__(self, source: Attention, study: Simulation) -> None:
        table = cast(Tensor | None, source.relative_position_bias_table)
        super().__init__(source, source.rotation, table, source.positions, source.windows)
        self.widths = source.widths
        self.study = study
        self.quantizers: dict[str, Quantizer] = {}

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        windows, heads = self.windows, self.num_heads
        if windows is not None:
            q, k, v = (windows.as_heads(each) for each in (q, k, v))
            heads *= windows.count
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        if not self.quantizers:
            self.quantizers = self._fitted(q, k, v, bias)
        narrow = self.quantizers
        queries, keys = _through(q, narrow["queries"]), _through(k, narrow["keys"])
        weights = _through(self._weights(queries, keys, bias), narrow["softmax"])
        y = (weights @ _through(v, narrow["values"])).transpose(1, 2).flatten(2)
        return y if windows is None else windows.as_tokens(y)

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        logits = q @ k.transpose(-2, -1) * self.scale
        return (logits if bias is None else logits + bias).softmax(-1)

    def _fitted(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> dict[str, Quantizer]:
        """Of each input of the two products, the quantizer of the least error in what they give."""
        weights, bits = self._weights(q, k, bias), self.study.bits
        target = weights @ v

        def error(output: Tensor) -> float:
            return float((output - target).square().mean())

        return {
            "queries": fitted("uniform", q, bits, lambda x: error(self._weights(x, k, bias) @ v)),
            "keys": fitted("uniform", k, bits, lambda x: error(self._weights(q, x, bias) @ v)),
            "values": fitted("uniform", v, bits, lambda x: error(weights @ x)),
            "softmax": fitted(self.study.softmax, weights, bits, lambda x: error(x @ v)),
        }


class SimulatedLinear(nn.Module):
    """A layer of rounded weights, for float inputs, whose input is rounded first."""

    def __init__(self, layer: QuantizedLinear, narrow: Quantizer) -> None:
        super().__init__()
        self.layer, self.narrow = layer, narrow

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(_through(x, self.narrow)))


def _through(x: Tensor, narrow: Quantizer) -> Tensor:
    """`x` rounded, with the gradient that it would have if it were not."""
    return x + (narrow(x) - x).detach() if torch.is_grad_enabled() else narrow(x)


def check_simulate(model: VitModel, config: QuantizeConfig) -> None:
    """Raise `InputError` where `simulate` is asked for and no attention is known."""
    if config.simulate and not _attentions(model.anatomy):
        raise InputError(
            f"stages.{config.name}.simulate: no attention is known that could be simulated in "
            f"{model.architecture.timm}; leave simulate out"
        )


def _attentions(anatomy: Anatomy) -> list[str]:
    """The names of all attentions."""
    return [site.name for site in anatomy.sites if site.kind == "attention"]


def simulated(
    model: VitModel,
    config: QuantizeConfig,
    bits: Mapping[str, int],
    found: Mapping[str, LayerStatistics],
    context: Context,
) -> tuple[Study, ...]:
    """The simulation that `config` asks for, if any: a copy of the float `model` to be measured.

    `bits` are those of the weights of each layer to quantize, `found` the statistics of its inputs.
    """
    study = config.simulate
    if study is None:
        return ()
    module = simulation(model.module, config, study, bits, found, context)
    note = (
        f"{study.bits}-bit inputs of layers and of attention are simulation only, not "
        "exported; in the exported file layers have 8-bit inputs, and attention is float"
    )
    facts = {
        "inputs, queries, keys and values": f"{study.bits} bits, uniform",
        "after GELU": f"{study.bits} bits, {study.gelu}",
        "after softmax": f"{study.bits} bits, {study.softmax}",
    }
    return (Study("simulated", note, module, facts),)


def simulation(
    dense: nn.Module,
    config: QuantizeConfig,
    study: Simulation,
    bits: Mapping[str, int],
    found: Mapping[str, LayerStatistics],
    context: Context,
) -> nn.Module:
    """A copy of `dense` with the weights of some layers in so many `bits`, and the inputs of these
    layers and of all products of attention as `study` says."""
    floats = copied(dense).cpu()
    anatomy, style = anatomy_of(floats), replace(config.style, activations="float")
    # Reparametrisations first: that of one layer may change the weights of another.
    inputs = {
        name: _narrowed(anatomy, name, found[name], config, study, bits[name])
        for name in track(bits, "simulating inputs", len(bits))
    }
    if config.reparametrise and anatomy.merged is None:
        _level_keys(anatomy, inputs, found)
    module, later = copied(floats), _later(anatomy, config, bits)
    for name in _attentions(anatomy):
        attention = cast(Attention, module.get_submodule(name))
        module.set_submodule(name, SimulatedAttention(attention, study))
    for name in track([n for n in bits if n not in later], "simulating layers", len(bits)):
        linear, (input_range, narrow) = cast(nn.Linear, floats.get_submodule(name)), inputs[name]
        layer = rounded_layer(linear, input_range, found[name], style, bits[name])
        rows = input_range.change.apply(found[name].rows)
        layer.bias = layer.bias + (linear(rows) - layer(narrow(rows))).mean(0)
        module.set_submodule(name, SimulatedLinear(layer, narrow))
    seen = {name: inputs[name][1] for name in later}
    for name, moments in in_sequence(floats, module, seen, context) if later else ():
        linear, (input_range, narrow) = cast(nn.Linear, floats.get_submodule(name)), inputs[name]
        layer = refitted_layer(linear, input_range, moments, style, bits[name])
        module.set_submodule(name, SimulatedLinear(layer, narrow))
    fit(module, context)
    return module


def _later(anatomy: Anatomy, config: QuantizeConfig, names: Collection[str]) -> list[str]:
    """Which of the layers `names` are refitted to what those before leave of their inputs."""
    feedback = rounding_of(config.rounding).feedback
    if not config.sequential or not feedback or anatomy.merged is not None:
        return []
    every = (name for site in anatomy.sites for name in (site.first_name, site.last_name))
    return [name for name in every if name in names]


def _level_keys(
    anatomy: Anatomy,
    inputs: Mapping[str, tuple[InputRange, Quantizer]],
    found: Mapping[str, LayerStatistics],
) -> None:
    """Make queries and keys easy to round, where the inputs of their layer are known (in place)."""
    for site in anatomy.sites:
        if site.kind == "attention" and (name := site.first_name) in inputs:
            rows = inputs[name][0].change.apply(found[name].rows)
            level_keys(cast(Attention, site.operator), rows)


def fit(module: nn.Module, context: Context) -> None:
    """Let all attentions without quantizers find them."""
    module(next(context.shared_batches("fitting attention", _FITTED_IMAGES)))


def _narrowed(
    anatomy: Anatomy,
    name: str,
    found: LayerStatistics,
    config: QuantizeConfig,
    study: Simulation,
    bits: int,
) -> tuple[InputRange, Quantizer]:
    """The change and the quantizer of a layer's input that together leave least error in its
    output; the change is applied to the model."""
    weight = cast(nn.Linear, anatomy.module.get_submodule(name)).weight
    apply = anatomy.input_reparametrisation(name) if config.reparametrise else None
    changes = [identity(weight.shape[1])]
    if apply is not None:
        changes += changes_of(anatomy, name, found, _STRENGTHS)
    kind = study.gelu if anatomy.hidden_source(name) else "uniform"

    def tried(change: Reparametrisation) -> tuple[InputRange, Quantizer]:
        """The best quantizer of the input under `change`, weights rounded to nearest."""
        rows, rounded, target = trial(change, weight, found, config.style, bits)

        def error(x: Tensor) -> float:
            left = x @ rounded.T - target
            return float((left - left.mean(0)).square().mean())  # the bias takes the mean

        narrow = fitted(kind, rows, study.bits, error)
        return InputRange(change, rows.amin(), rows.amax(), 1.0, error(narrow(rows))), narrow

    input_range, narrow = min(map(tried, changes), key=lambda each: each[0].error)
    if input_range.change.strength and apply is not None:
        apply(input_range.change.shift, input_range.change.scale)
    return input_range, narrow
