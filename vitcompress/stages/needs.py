"""How much memory a run will need, from the model that it begins with."""

import torch
from torch import Tensor, nn

from vitcompress.model.architecture import VitModel
from vitcompress.stages.calibrate import statistics_bytes
from vitcompress.stages.context import BATCH

_PROGRAM = 950_000_000  # torch, its exporter and onnxruntime, once a tiny model was exported
_COPIES = 3  # of the weights at a time: dense, changed, and what is written of them


def memory(model: VitModel) -> int:
    """Bytes that a run of any stages but the training `recover` will hold at most, roughly.

    The program, copies of the weights, the statistics of all linear layers, and what a backward
    pass of one batch keeps of its activations.
    """
    weights: int = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    layers = [each for each in model.module.modules() if isinstance(each, nn.Linear)]
    statistics = sum(statistics_bytes(each.in_features) for each in layers)
    return _PROGRAM + _COPIES * weights + statistics + BATCH * _kept_bytes(model)


def _kept_bytes(model: VitModel) -> int:
    """What a forward pass of one image keeps for its backward pass, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.module.state_dict().values()}
    kept = dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor
        return tensor

    pixels = torch.zeros(1, model.preprocess.channels, *model.preprocess.input_size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        model.module(pixels.requires_grad_())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
