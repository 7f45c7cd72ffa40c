"""Matrices stored without their zero cells: the bits and the cells that are left."""

import pytest
import torch

from vitcompress.methods import compact


@pytest.mark.parametrize("cell", [(1, 1), (1, 4), (3, 2), (16, 16)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (9, 16), (33, 20)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_is_expanded_is_what_was_compacted(
    cell: tuple[int, int], shape: tuple[int, int], share: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    down, across = compact.cell_counts(*shape, cell)
    left = torch.rand(down, across, generator=generator) < share
    spread = left.repeat_interleave(cell[0], 0).repeat_interleave(cell[1], 1)
    matrix = torch.randn(shape, generator=generator) * spread[: shape[0], : shape[1]]
    values, mask = compact.compacted(matrix, cell)
    assert values.shape == (left.sum(), cell[0] * cell[1])
    assert mask.shape == (-(-down // 8), across)
    assert torch.equal(compact.present(mask, *shape, cell), left)
    assert torch.equal(compact.expanded(values, mask, *shape, cell), matrix)


def test_groups_with_too_few_are_made_up_with_zeros() -> None:
    matrix = torch.tensor([[0, 5, 0, 0, 0, 1, 2, 3.0], [0, 0, 0, 0, 1, 2, 3, 4]]).T
    values, mask = compact.compacted(matrix, (1, 1), 2, 4)
    left = compact.present(mask, 8, 2, (1, 1))
    assert left.T.int().tolist() == [[1, 1, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1]]
    assert left[matrix != 0].all()  # more than two are never lost
    assert torch.equal(compact.expanded(values, mask, 8, 2, (1, 1)), matrix)
