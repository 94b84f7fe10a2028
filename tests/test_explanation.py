"""Masks and boxes out of a map."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import xai_abn
from xai_abn.errors import InvalidInputError, UnusableMapError
from xai_abn.heatmaps import boxes_of


@pytest.fixture
def record(gap_net, image):
    """An explanation whose map is replaced; the network saw an image of 8x8 pixels whole."""
    made = xai_abn.explain(gap_net, image, "cam")["cam"]
    return replace(made, view=np.zeros((8, 8, 3), np.uint8), image_size=(8, 8), region=(0, 0, 8, 8))


def with_map(record, values, **more):
    return replace(record, map=np.asarray(values, np.float32), **more)


def test_a_box_surrounds_each_part_the_largest_first(record):
    """Right and bottom are exclusive."""
    values = np.zeros((8, 8))
    values[1, 1] = 1
    values[4:7, 3:8] = 0.6
    found = with_map(record, values)
    assert found.boxes() == [(3, 4, 8, 7), (1, 1, 2, 2)]
    assert found.boxes(largest=True) == [(3, 4, 8, 7)]
    assert found.boxes(0.7) == [(1, 1, 2, 2)]
    assert found.mask().sum() == 16


def test_only_positive_values_count_where_there_are_negative_ones(record):
    """Half of the range from -4 to 1 would be evidence against the class."""
    values = np.full((8, 8), -4.0)
    values[2, 2:4], values[5, 5] = (1.0, 0.6), -0.5
    assert with_map(record, values).boxes() == [(2, 2, 4, 3)]


def test_a_box_is_in_the_whole_image(record):
    """The network saw the middle of an image twice as wide as high, and at half its size."""
    values = np.zeros((8, 8))
    values[0:2, 6:8] = 1
    found = with_map(record, values, image_size=(16, 32), region=(8, 0, 24, 16))
    assert found.mask().shape == (16, 32)
    ((left, top, right, bottom),) = found.boxes()
    assert (top, right) == (0, 24)
    assert abs(left - 20) <= 1
    assert abs(bottom - 4) <= 1


def test_a_map_with_borders_is_cut_to_the_image(record):
    """The network saw an image twice as wide as high between two borders."""
    values = np.zeros((8, 8))
    values[2:4, 0:2] = 1  # the upper left corner of the image
    values[7, 7] = 1  # in a border
    found = with_map(record, values, image_size=(16, 32), region=(0, -8, 32, 24))
    assert found.heatmap((16, 32)).shape == (16, 32)
    ((left, top, right, bottom),) = found.boxes()
    assert (left, top) == (0, 0)
    assert abs(right - 8) <= 1
    assert abs(bottom - 8) <= 1
    narrow = with_map(record, values.T, image_size=(32, 16), region=(-8, 0, 24, 32))
    np.testing.assert_allclose(narrow.heatmap((32, 16)), found.heatmap((16, 32)).T, atol=1e-6)


def test_a_map_without_a_part_is_refused(record):
    """As is a threshold that every pixel or none would pass."""
    with pytest.raises(UnusableMapError, match="flat"):
        with_map(record, np.ones((8, 8))).boxes()
    with pytest.raises(UnusableMapError, match="flat"):
        with_map(record, -np.arange(1.0, 65).reshape(8, 8)).mask()
    for threshold in (0, -1, 1.1):
        with pytest.raises(InvalidInputError, match="threshold must be above 0 and at most 1"):
            with_map(record, np.arange(64).reshape(8, 8)).boxes(threshold)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=48, max_size=48))
def test_boxes_are_those_of_another_library(pixels):
    """Scipy labels the same parts."""
    mask = np.array(pixels).reshape(6, 8)
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    expected = [(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(labels)]
    assert sorted(boxes_of(mask)) == sorted(expected)


@pytest.fixture
def of_volume(record):
    """An explanation of a volume of 8x10x12."""
    draw = np.random.default_rng(0)
    map_ = np.zeros((4, 5, 6), np.float32)
    map_[1, 2, 3], map_[3, 4, 0] = 2, 1
    view = draw.integers(0, 255, (8, 10, 12, 3), dtype=np.uint8)
    return replace(record, map=map_, view=view, image_size=None, region=None)


def test_parts_of_the_map_of_a_volume(of_volume):
    """Boxes are (left, top, first, right, bottom, last) around the connected parts of the mask."""
    heat = of_volume.heatmap()
    assert heat.shape == (8, 10, 12)
    mask = of_volume.mask(0.2)
    np.testing.assert_array_equal(mask, heat >= 0.2)
    boxes = of_volume.boxes(0.2)
    for box in boxes:
        left, top, first, right, bottom, last = box
        inside = mask[first:last, top:bottom, left:right]
        for axis in range(3):
            faces = inside.any(axis=tuple(a for a in range(3) if a != axis))
            assert faces[0]
            assert faces[-1]
    assert len(boxes) == 2
    assert of_volume.boxes(0.2, largest=True) == boxes[:1]
    assert all(low <= at < high for low, at, high in zip(boxes[0][:3], (7, 5, 3), boxes[0][3:], strict=True))
    with pytest.raises(InvalidInputError, match="3 numbers"):
        of_volume.heatmap((10, 12))


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_a_volume_is_drawn_as_slices_and_as_a_clip(of_volume, tmp_path, ending):
    """Eight slices on one page; every slice in the clip."""
    assert of_volume.overlay().width > of_volume.view.shape[2] * 4
    flat = replace(of_volume, map=np.zeros((4, 5, 6), np.float32))
    assert flat.overlay().size == of_volume.overlay().size
    path = tmp_path / f"clip{ending}"
    of_volume.save_clip(path)
    capture = cv2.VideoCapture(str(path))
    found = 0
    while capture.read()[0]:
        found += 1
    assert found == 8


def test_only_volumes_become_clips(record, of_volume, tmp_path):
    """And only as GIF or MP4."""
    for found, name in ((record, "a.gif"), (of_volume, "a.webm")):
        with pytest.raises(InvalidInputError, match=r"\.gif or \.mp4"):
            found.save_clip(tmp_path / name)
