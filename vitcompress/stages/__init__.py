"""The stages of a chain: one file a stage, each a config and its functions."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from vitcompress.stages import merge, prune, quantize, sparsify
from vitcompress.stages.pruning.config import PruneConfig


class Stage(NamedTuple):
    """What can be done with a config.

    `run`: (model, config, context) → the new model and details for the report; in them, `warnings`
    are for the whole report, and a `module` under `simulated` is measured and not exported.
    `plan`: (model, config) → a model of the same shape, its tensors not computed, and details for
    the plan. `sensitivity`: (model, config, context) → the rows of one table, flat, the first
    column naming a layer or block: what each part of the model would cost; None for a stage without
    a choice.
    """

    run: Callable[..., Any]
    plan: Callable[..., Any]
    sensitivity: Callable[..., list[dict[str, Any]]] | None = None


StageConfig = Annotated[
    merge.MergeConfig | PruneConfig | quantize.QuantizeConfig | sparsify.SparsifyConfig,
    Field(discriminator="type"),
]

STAGES: dict[type[Any], Stage] = {
    PruneConfig: Stage(prune.prune, prune.plan, prune.sensitivity),
    merge.MergeConfig: Stage(merge.merge, merge.plan, merge.sensitivity),
    sparsify.SparsifyConfig: Stage(sparsify.sparsify, sparsify.plan, sparsify.sensitivity),
    quantize.QuantizeConfig: Stage(quantize.quantize, quantize.plan, quantize.sensitivity),
}
