"""The tensors of the tiny model."""

from collections.abc import Callable

import pytest
from torch import nn

from helpers.checkpoints import State


@pytest.fixture(scope="module")
def state(make_module: Callable[..., nn.Module]) -> State:
    return make_module().state_dict()
