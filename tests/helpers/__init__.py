"""What several test modules share and is no fixture; asserts in it tell as much as in a test."""

import pkgutil

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
