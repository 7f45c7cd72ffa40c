"""What a model costs is known from its shapes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.stages import needs


def test_costs_are_those_of_a_forward_pass_and_nothing_is_computed(
    make_vit: Callable[..., VitModel], pixels: Tensor
) -> None:
    vit, devices = make_vit(), set[str]()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vit.module(pixels)

    def seen(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        devices.add(given[0].device.type)

    for module in vit.module.modules():
        module.register_forward_pre_hook(seen)
    assert 2 * len(pixels) * cost.macs(vit) == counter.get_total_flops()
    assert needs.memory(vit) > 0
    assert devices == {"meta"}
    assert all(not tensor.is_meta for tensor in vit.module.state_dict().values())


def test_memory_for_a_backward_pass_is_about_what_one_keeps(
    make_vit: Callable[..., VitModel],
) -> None:
    vit, kept = make_vit(), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    one = torch.zeros(1, vit.preprocess.channels, *vit.preprocess.input_size, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        found = vit.module(one)  # held, and all that it keeps
    assert found.requires_grad
    assert 0.5 < needs.kept_bytes(vit) / sum(kept.values()) < 2
