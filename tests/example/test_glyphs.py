import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vitcompress.example.glyphs import (
    CHECKPOINT,
    CLASSES,
    IMAGE_SIZE,
    TIMM_NAME,
    TIMM_OPTIONS,
    draw,
    draw_with_masks,
)
from vitcompress.example.train import accuracy, tensor

SPLITS = ("train", "calibration", "evaluation")


def test_shapes_dtypes_and_range():
    images, labels = draw("train", 5)
    assert images.shape == (5, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    pixels = tensor(images)
    assert pixels.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_bytes_twice(split):
    np.testing.assert_array_equal(draw(split, 40)[0], draw(split, 40)[0])


def test_an_image_depends_on_its_index_alone():
    images, labels = draw("evaluation", 50)
    some, their_labels = draw("evaluation", 7, start=30)
    np.testing.assert_array_equal(some, images[30:37])
    np.testing.assert_array_equal(their_labels, labels[30:37])


def test_splits_share_no_image():
    pictures = [image.tobytes() for split in SPLITS for image in draw(split, 100)[0]]
    assert len(set(pictures)) == len(pictures)


def test_an_unknown_split_is_refused():
    with pytest.raises(KeyError):
        draw("test", 1)


def test_classes_are_balanced():
    labels = draw("calibration", 4 * len(CLASSES))[1]
    assert np.bincount(labels).tolist() == [4] * len(CLASSES)


def test_class_names_are_unique():
    assert len(set(CLASSES)) == len(CLASSES)


def test_the_easiest_picture_is_its_own_mask():
    images, _, masks = draw_with_masks("train", 20, difficulty=0.0)
    np.testing.assert_array_equal(images, np.stack([masks] * 3, axis=-1))


def test_masks_do_not_change_the_pictures():
    np.testing.assert_array_equal(draw_with_masks("train", 20)[0], draw("train", 20)[0])


def test_checkpoint_is_small_and_without_metadata():
    assert CHECKPOINT.stat().st_size < 4_000_000
    with safe_open(CHECKPOINT, "pt") as file:
        assert not file.metadata()


def test_checkpoint_recognises_the_glyphs():
    model = timm.create_model(TIMM_NAME, num_classes=len(CLASSES), **TIMM_OPTIONS)
    model.load_state_dict({name: value.float() for name, value in load_file(CHECKPOINT).items()})
    assert accuracy(model, 500) >= 0.97
