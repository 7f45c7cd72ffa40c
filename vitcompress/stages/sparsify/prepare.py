"""What the sparsify stage knows of a model before it decides: its layers and their inputs."""

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.memory import copied
from vitcompress.methods.patterns import Pattern
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.stages.calibrate import statistics
from vitcompress.stages.context import Context
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.layer import better_order
from vitcompress.stages.sparsify.moments import LayerMoments
from vitcompress.stages.sparsify.selection import allowed_sparsities
from vitcompress.tasks import Task


@dataclass(frozen=True)
class SparsifySetup:
    """A copy of a model, its layers to sparsify, what is known of them and what they may become."""

    module: nn.Module
    task: Task
    floats: dict[str, nn.Linear]
    moments: dict[str, LayerMoments]
    allowed: dict[str, list[tuple[Pattern, float]]]

    @property
    def weights(self) -> dict[str, int]:
        return {name: linear.weight.numel() for name, linear in self.floats.items()}


def prepare_sparsify(model: VitModel, config: SparsifyConfig, context: Context) -> SparsifySetup:
    """Calibrate, and put hidden units in order.

    Raises `InputError` as `allowed_sparsities` does.
    """
    allowed = allowed_sparsities(model, config)
    found = statistics(model, list(allowed), context, "importance")
    module = copied(model.module)
    floats = {name: cast(nn.Linear, module.get_submodule(name)) for name in allowed}
    moments = {
        n: LayerMoments.of(found.pop(n), _has_bias(floats[n]), context.room) for n in allowed
    }
    known = SparsifySetup(module, model.task, floats, moments, allowed)
    if config.permute and config.reconstruct:
        _order_hidden_units(known)
    return known


def _has_bias(linear: nn.Linear) -> bool:
    return cast(Tensor | None, linear.bias) is not None


def _order_hidden_units(known: SparsifySetup) -> None:
    """Reorder the inputs of layers with n:m patterns where that changes nothing else."""
    anatomy = anatomy_of(known.module)
    found = {
        name: (source, each[len(each) // 2 - 1 if len(each) > 1 else 0][0])
        for name, each in known.allowed.items()
        if each[0][0].group and (source := anatomy.hidden_source(name))
    }
    for name, (source, pattern) in track(found.items(), "ordering hidden units", len(found)):
        layer = known.floats[name]
        order = better_order(layer.weight, known.moments[name], pattern)
        layer.weight.copy_(layer.weight[:, order])
        known.moments[name] = known.moments[name].ordered(order)
        feeding = cast(nn.Linear, known.module.get_submodule(source))
        feeding.weight.copy_(feeding.weight[order])
        if _has_bias(feeding):
            feeding.bias.copy_(feeding.bias[order])
        if source in known.moments:
            outputs = known.moments[source].outputs[order]
            known.moments[source] = replace(known.moments[source], outputs=outputs)
