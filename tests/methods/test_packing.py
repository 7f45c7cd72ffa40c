import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcompress.methods.packing import pack, parts, unpack

VALUES = [3, *(1 << bits for bits in range(1, 9))]


@given(
    values=st.sampled_from(VALUES),
    rows=st.integers(1, 41),
    columns=st.integers(1, 9),
    seed=st.integers(0),
)
def test_unpacking_gives_the_codes_back(values: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    codes = torch.randint(0, values, (rows, columns), generator=generator).to(torch.uint8)
    assert torch.equal(unpack(pack(codes, values), values, rows), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_wastes_nothing_where_rows_divide_evenly(bits: int) -> None:
    assert pack(torch.zeros(64, 3, dtype=torch.uint8), 1 << bits).shape == (64 * bits // 8, 3)


def test_five_ternary_codes_lie_in_a_byte() -> None:
    codes = torch.tensor([[2], [0], [1], [2], [2]], dtype=torch.uint8)
    assert pack(codes, 3).tolist() == [[2 + 0 * 3 + 1 * 9 + 2 * 27 + 2 * 81]]


def test_eight_bits_are_stored_as_they_are() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(64, 4)
    assert torch.equal(pack(codes, 256), codes)


def test_a_code_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 8 values"):
        pack(torch.tensor([[8]], dtype=torch.uint8), 8)


@pytest.mark.parametrize("values", [1, 5, 512])
def test_other_numbers_of_values_are_refused(values: int) -> None:
    with pytest.raises(ValueError, match=f"not {values}"):
        parts(values, 4)
