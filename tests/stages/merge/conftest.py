"""A tiny model with blocks enough to merge in."""

from collections.abc import Callable

import pytest

from vitcompress.model.architecture import VitModel


@pytest.fixture
def deep(make_vit: Callable[..., VitModel]) -> VitModel:
    return make_vit(depth=4)
