"""A classifier of some of its classes: its head keeps the rows of these, and all before it is as it
was. What is compressed then need not tell the others apart (ED-ViT, 2410.11650)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vitcompress.errors import InputError
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.head import Head, LinearLayer

_SAME = 1e-4  # of the largest output: what rounding alone makes


@dataclass(frozen=True)
class Subset:
    """Which classes a model has kept. `whole`: the model with all of them, on the CPU. `kept`: the
    numbers they have there, ascending."""

    whole: VitModel
    kept: tuple[int, ...]


def restricted(model: VitModel, kept: Sequence[int], names: Sequence[str]) -> VitModel:
    """`model` with the outputs `kept` (ascending) alone, which are called `names`.

    Its other tensors are those of `model`. Raises `InputError` for a head that cannot be cut so.
    """
    architecture = _described(model.architecture, len(kept))
    module, rows = build(architecture), torch.tensor(kept)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    tensors = {
        name: tensor if tensor.shape == shapes[name] else tensor[rows]
        for name, tensor in model.module.state_dict().items()
    }
    module.load_state_dict(tensors, assign=True)
    found = replace(
        model,
        module=module.eval().requires_grad_(False),
        architecture=architecture,
        class_names=tuple(names),
        subset=Subset(model, tuple(kept)),
    )
    _check(found)
    return found


def _described(architecture: Architecture, outputs: int) -> Architecture:
    """`architecture` with so many outputs."""
    head = architecture.head
    if head is None or head.layers is None:
        options = {**architecture.options, "num_classes": outputs}
        return architecture.model_copy(update={"options": options})
    layers = list(head.layers)
    last = max(n for n, layer in enumerate(layers) if isinstance(layer, LinearLayer))
    layers[last] = layers[last].model_copy(update={"outputs": outputs})
    cut = Head(pool=head.pool, layers=tuple(layers), normalise=head.normalise)
    return architecture.model_copy(update={"head": cut})


@torch.no_grad()
def _check(model: VitModel) -> None:
    """Raise `InputError` where `model` does not give what is kept of the outputs of the whole."""
    subset, spec = model.subset, model.preprocess
    assert subset is not None
    size = (1, spec.channels, *spec.input_size)
    pixels = torch.randn(size, generator=torch.Generator().manual_seed(0))
    wanted = subset.whole.module(pixels)[:, list(subset.kept)]
    if not (model.module(pixels) - wanted).abs().max() <= _SAME * wanted.abs().max():
        raise InputError(
            f"classes: the head of {model.architecture.timm} cannot be cut to some of its outputs; "
            "leave classes out"
        )
