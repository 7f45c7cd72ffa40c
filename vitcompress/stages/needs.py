"""How much memory a run will need, from the model that it begins with."""

import torch
from torch import Tensor, nn

from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import run_on_shapes
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
    return _PROGRAM + _COPIES * weights + statistics + BATCH * kept_bytes(model)


def kept_bytes(model: VitModel) -> int:
    """What a forward pass of one image keeps for its backward pass, weights left out."""
    kept = dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage
        return tensor

    size = (1, model.preprocess.channels, *model.preprocess.input_size)
    pixels = torch.zeros(size, device="meta", requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_on_shapes(model.module, pixels)
    return sum(storage.nbytes() for storage in kept.values())
