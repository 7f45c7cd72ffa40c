"""What torch finds out about operators at every export, a second each time: found out once."""

from copy import copy
from functools import cache

import torch._export.utils
import torch.export.decomp_utils
import torch.export.exported_program
from torch.onnx._internal.exporter._registration import ONNXRegistry


def find_once() -> None:
    """Let this process find out once which operators there are, and their signatures, which are
    parsed from their source."""
    registry = cache(ONNXRegistry.from_torchlib)

    def registered(opset_version: int) -> ONNXRegistry:
        own = copy(registry(opset_version))
        own.functions = {target: list(known) for target, known in own.functions.items()}
        return own

    composite = cache(torch._export.utils._collect_all_valid_cia_ops)
    for module in (torch._export.utils, torch.export.decomp_utils, torch.export.exported_program):
        vars(module)["_collect_all_valid_cia_ops"] = composite
    ONNXRegistry.from_torchlib = staticmethod(registered)
