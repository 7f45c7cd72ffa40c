"""Criteria: what they rank, how many weights they leave, and the folder they are found in."""

import pytest
import torch

from vitcompress import registry
from vitcompress.methods.patterns import parse_pattern
from vitcompress.stages.sparsify import criteria
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.criteria import Asked, criterion_of, dimap
from vitcompress.stages.sparsify.moments import LayerMoments


def asked(weight: torch.Tensor, pattern: str, density: float) -> Asked:
    generator = torch.Generator().manual_seed(0)
    inputs = weight.shape[1]
    x = torch.randn(200, inputs, generator=generator, dtype=torch.float64)
    covariance = x.T @ x / 200
    moments = LayerMoments(x.mean(0), covariance, covariance, torch.ones(len(weight)))
    return Asked(weight, moments, parse_pattern(pattern), density, 0)


@pytest.mark.parametrize("name", registry.names(criteria.PACKAGE))
@pytest.mark.parametrize("pattern", ["2:4", "2x4", "unstructured"])
def test_half_of_the_weights_stay(name: str, pattern: str) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    for quick in (False, True):
        mask = criterion_of(name).chosen(asked(weight, pattern, 0.5), quick)
        assert mask.shape == weight.shape
        assert mask.sum() == weight.numel() / 2
        if pattern == "2:4":
            assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert criterion_of(name).chosen(asked(weight, pattern, 1)).all()


def test_wanda_compares_within_rows_and_others_over_the_layer() -> None:
    weight = torch.linspace(1, 2, 128).view(8, 16)
    by_row, whole = (
        criterion_of(name).chosen(asked(weight, "unstructured", 0.25)).sum(1)
        for name in ("wanda", "magnitude")
    )
    assert (by_row == 4).all()
    assert whole.tolist() == [0] * 6 + [16] * 2


def test_dimap_gives_each_weight_its_share_of_what_would_be_left() -> None:
    weight = torch.tensor([[2.0, -3.0, 0.0], [1.0, 0.0, 0.0]])
    found = dimap.score(asked(weight, "unstructured", 0.5))
    wanted = torch.tensor([[4 / 13, 1.0, 0.0], [1 / 14, 0.0, 0.0]])
    torch.testing.assert_close(found, wanted.double())


def test_the_schema_names_the_files() -> None:
    schema = SparsifyConfig.model_json_schema()["properties"]["criterion"]
    assert schema["enum"] == list(registry.names(criteria.PACKAGE))
