"""A part of the images, spread over the classes."""

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helpers.pictures import CLASSES, PIXELS, write_folder
from vitcompress.data import images as module
from vitcompress.data.images import open_images


def groups_of(*sizes: int) -> list[str]:
    return [f"c{c:03d}" for c, size in enumerate(sizes) for _ in range(size)]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_seeded_sample_is_spread_as_evenly_as_can_be(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    groups = groups_of(*sizes)
    limit = data.draw(st.integers(1, len(groups)))
    chosen = list(module._sample(groups, limit, seed))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == limit
    taken, there = Counter(groups[i] for i in chosen), Counter(groups)
    most = max(taken.values())
    assert all(taken[g] >= min(most - 1, there[g]) for g in there)


def test_seeds_give_different_classes_and_different_images() -> None:
    groups = groups_of(*[10] * 50)
    samples = {seed: module._sample(groups, 20, seed) for seed in (0, 1)}
    assert samples[0] == module._sample(groups, 20, 0)
    assert {groups[i] for i in samples[0]} != {groups[i] for i in samples[1]}
    everyone = {seed: module._sample(groups, 50, seed) for seed in (0, 1)}
    assert everyone[0] != everyone[1]  # all classes in both, by other images


def test_without_a_seed_the_sample_is_evenly_spaced() -> None:
    assert list(module._sample(groups_of(4, 4, 4), 6, None)) == [0, 2, 4, 6, 8, 10]
    assert list(module._sample(groups_of(7), 3, None)) == [0, 2, 4]
    assert list(module._sample(groups_of(3), 5, 0)) == [0, 1, 2]


def test_a_sample_keeps_names_labels_and_contents_together(tmp_path: Path) -> None:
    images = open_images(write_folder(tmp_path), labelled=True, limit=4, seed=3)
    assert images.labels is not None
    assert set(images.labels) == {0, 1, 2}
    for i, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
        folder, _, number = name.removesuffix(".png").partition("/")
        assert CLASSES[label] == folder
        assert np.array_equal(np.asarray(images.read(i)), PIXELS[int(number)])
