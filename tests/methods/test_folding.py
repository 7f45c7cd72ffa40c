"""Candidate folds: what they do to ranges."""

import pytest
import torch

from vitcompress.methods.folding import Reparametrisation, identity, reparametrisations

LOW = torch.tensor([-1.0, -10.0, 2.0, -0.1, 0.0])
HIGH = torch.tensor([1.0, 30.0, 3.0, 0.1, 0.0])


def ranges(fold: Reparametrisation) -> tuple[torch.Tensor, torch.Tensor]:
    return fold.apply(LOW), fold.apply(HIGH)


def test_the_identity_changes_nothing() -> None:
    assert all(map(torch.equal, ranges(identity(5)), (LOW, HIGH)))
    assert identity(5).strength == 0


def test_every_fold_is_finite_and_positive() -> None:
    folds = list(reparametrisations(LOW, HIGH))
    assert len({(f.strength, f.clip) for f in folds}) == len(folds) > 1
    for fold in folds:
        assert fold.shift.isfinite().all()
        assert fold.scale.isfinite().all()
        assert (fold.scale > 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_a_stronger_fold_brings_ranges_nearer_to_each_other(clip: float) -> None:
    def spread(fold: Reparametrisation) -> float:
        low, high = (end[:4] for end in ranges(fold))
        return float((high - low).log().std())

    spreads = [
        spread(f)
        for f in sorted(reparametrisations(LOW, HIGH), key=lambda fold: fold.strength)
        if f.clip == clip
    ]
    assert [spread(identity(5)), *spreads] == sorted([spread(identity(5)), *spreads], reverse=True)


def test_a_fold_moves_the_middle_by_its_strength() -> None:
    for fold in reparametrisations(LOW, HIGH):
        low, high = ranges(fold)
        left = (low + high) / 2 * fold.scale
        assert torch.allclose(left, (1 - fold.strength) * (LOW + HIGH) / 2, atol=1e-5)


def test_a_fold_brings_all_ranges_to_one_by_its_strength() -> None:
    for fold in (f for f in reparametrisations(LOW, HIGH) if f.clip == 0):
        low, high = (end[:4] for end in ranges(fold))  # the last channel has no range
        half, before = (high - low) / 2, (HIGH - LOW)[:4] / 2
        # What is left of the differences is their power 1 − strength: none at full strength.
        left = half / before ** (1 - fold.strength)
        assert torch.allclose(left, left.mean().expand(4), rtol=1e-5)


def test_clipping_limits_the_scale_of_outlier_channels() -> None:
    half = torch.ones(100)
    half[0] = 1000
    plain, clipped = (
        next(f for f in reparametrisations(-half, half) if f.strength == 0.5 and f.clip == clip)
        for clip in (0.0, 0.02)
    )
    assert plain.scale[0] / plain.scale[1] == pytest.approx(1000**0.5)
    assert clipped.scale[0] / clipped.scale[1] < 10


def test_channels_that_are_always_zero_can_be_folded() -> None:
    for fold in reparametrisations(torch.zeros(3), torch.zeros(3)):
        assert fold.scale.isfinite().all()
        assert (fold.scale > 0).all()


def test_strengths_can_be_asked_for() -> None:
    assert {fold.strength for fold in reparametrisations(LOW, HIGH, (0.25, 1.0))} == {0.25, 1.0}
    whole = next(fold for fold in reparametrisations(LOW, HIGH, (1.0,)))
    low, high = (end[:4] for end in ranges(whole))
    assert torch.allclose(low, -high, atol=1e-5)  # at full strength all ranges are one
    assert torch.allclose(high, high.mean().expand(4), rtol=1e-5)
