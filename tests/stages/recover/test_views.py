"""Views: the same for the same step, of all images alike."""

from dataclasses import replace

import pytest
import torch

from vitcompress.data.images import ImageSet
from vitcompress.stages.context import Context
from vitcompress.stages.recover.views import Originals, Views


@pytest.fixture
def originals(images: ImageSet, context: Context) -> Originals:
    return Originals([images, images.subset(range(3))], context)


def test_views_depend_on_seed_and_step_alone(originals: Originals, context: Context) -> None:
    views = Views(originals, context.preprocess, (0.5, 1.0), seed=1)
    batch = views.batch(5, 6)
    assert batch.shape == (6, 3, 32, 32)
    state = torch.get_rng_state()
    views.batch(4, 6)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are used up
    assert torch.equal(views.batch(5, 6), batch)
    assert not torch.equal(views.batch(6, 6), batch)
    assert not torch.equal(replace(views, seed=2).batch(5, 6), batch)


def test_all_images_come_before_any_comes_again(originals: Originals, context: Context) -> None:
    views = Views(originals, context.preprocess, (1.0, 1.0), seed=0)
    assert len(originals) == 23
    for turn in range(2):
        places = range(23 * turn, 23 * (turn + 1))
        assert sorted(map(views._index, places)) == list(range(23))


def test_whole_images_are_what_the_model_takes(
    originals: Originals, context: Context, images: ImageSet
) -> None:
    """But for being drawn larger before, and turned."""
    views = Views(originals, context.preprocess, (1.0, 1.0), seed=0)
    taken = torch.cat(list(context.calibration_batches("")))
    for place, view in enumerate(views.batch(0, 10)):
        wanted = taken[views._index(place) % 20]
        near = min(float((v - wanted).square().mean()) for v in (view, view.flip(-1)))
        assert near < 0.05 * float(wanted.square().mean())
