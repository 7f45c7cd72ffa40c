import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcompress.methods.packing import pack, parts, unpack


@given(
    bits=st.integers(1, 8), rows=st.integers(1, 41), columns=st.integers(1, 9), seed=st.integers(0)
)
def test_unpacking_gives_the_codes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, rows), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_wastes_nothing_where_rows_divide_evenly(bits: int) -> None:
    assert pack(torch.zeros(64, 3, dtype=torch.uint8), bits).shape == (64 * bits // 8, 3)


def test_eight_bits_are_stored_as_they_are() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(64, 4)
    assert torch.equal(pack(codes, 8), codes)


def test_a_code_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit in 3 bits"):
        pack(torch.tensor([[8]], dtype=torch.uint8), 3)


def test_a_width_outside_one_to_eight_is_refused() -> None:
    with pytest.raises(ValueError, match="not 9"):
        parts(9, 4)
