"""States come back from a file as they were, however they lay in memory."""

import torch

from vitcompress.model.anatomy import State
from vitcompress.stages.states import StateFile


def test_states_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    file = StateFile()
    states = {
        "plain": State(torch.randn(2, 5, 4)),
        "turned": State(torch.randn(2, 4, 5).mT),
        "grid": State(torch.randn(2, 4, 3, 3).permute(0, 2, 3, 1)),
        "merged": State(
            torch.randn(2, 3, 4),
            torch.rand(2, 2, 1).double(),
            torch.randint(9, (2, 5, 1)),
            torch.arange(6).view(2, 3, 1),
        ),
        "spread": State(torch.randn(1, 5, 1).expand(2, 5, 4)),
        "none": State(torch.empty(0, 5, 4)),
    }
    for key, state in states.items():
        file.put(key, state)
    for key, state in states.items():
        for one, other in zip(file.get(key), state, strict=True):
            if other is None:
                assert one is None
            else:
                assert torch.equal(one, other)
                assert one.dtype == other.dtype
                assert key == "spread" or one.stride() == other.stride()


def test_states_take_the_place_of_others() -> None:
    file = StateFile()
    for number in range(3):
        file.put(number, State(torch.full((2, 4), float(number)), torch.ones(2)))
    size = file._end
    file.put(1, State(torch.full((2, 3), 7.0)))
    assert file._end == size
    file.put(0, State(torch.full((3, 4), 8.0), torch.zeros(1)))
    assert file.get(1).sizes is None
    assert file.get(1).x.tolist() == [[7.0] * 3] * 2
    assert file.get(0).x.tolist() == [[8.0] * 4] * 3
    assert file.get(2).x.tolist() == [[2.0] * 4] * 2
    file.put(1, State(torch.zeros(2, 4), torch.ones(2)))
    assert file.get(1).sizes is not None
    assert file.get(2).x.tolist() == [[2.0] * 4] * 2
