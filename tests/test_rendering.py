"""Explanations as images: scaling, flaws, sheets."""

from __future__ import annotations

import dataclasses
import io
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnusableMapError
from xai_abn.explanation import Explanation, sheet
from xai_abn.rendering import COLORMAPS, _font, blend

overlay = Explanation.overlay


@pytest.fixture
def record(gap_net, image):
    return xai_abn.explain(gap_net, image, "cam")["cam"]


def with_map(record, values):
    return dataclasses.replace(record, map=np.asarray(values, np.float32))


def test_heatmap_scales_and_resizes_in_one_place(record):
    """The smallest value becomes 0, the largest 1; bilinear with half-pixel centres."""
    heat = with_map(record, [[-2, 0], [2, 6]]).heatmap((4, 4))
    assert (heat.min(), heat.max()) == (0, 1)
    np.testing.assert_allclose(heat[0], [0, 0.0625, 0.1875, 0.25], atol=1e-6)


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), 7.5), np.full((4, 4), 1e9) + 0.0])
def test_a_flat_map_is_flagged_never_scaled(record, values):
    """A constant map has the flaw "flat" and no heat map."""
    flat = with_map(record, values)
    assert flat.flaw == "flat"
    with pytest.raises(UnusableMapError, match="flat"):
        flat.heatmap()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_flagged(record, value):
    """One NaN is enough."""
    broken = np.arange(16, dtype=np.float32).reshape(4, 4)
    broken[1, 1] = value
    assert with_map(record, broken).flaw == "not finite"


def test_tiny_maps_are_not_flat(record):
    """Flatness is relative: gradients of 1e-12 still have a shape."""
    assert with_map(record, np.arange(16).reshape(4, 4) * 1e-12).flaw is None


def test_a_flawed_map_leaves_the_image_bare(record):
    """The overlay of a flat map shows the untouched image, and a line that says why."""
    flat = with_map(record, np.zeros((4, 4)))
    pixels = np.asarray(overlay(flat))
    view = record.view.repeat(4, axis=0).repeat(4, axis=1)  # an image of 64 pixels is enlarged
    height, width = view.shape[:2]
    bare = pixels[-height - 44 : -44, 14 : 14 + width]
    assert np.array_equal(bare, view)
    assert not np.array_equal(np.asarray(overlay(record))[-height - 44 : -44, 14 : 14 + width], view)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_every_colour_map_draws(record, colormap):
    """Each named colour map gives an image of its own."""
    other = "viridis" if colormap != "viridis" else "inferno"
    assert overlay(record, colormap=colormap).tobytes() != overlay(record, colormap=other).tobytes()


def test_a_sheet_sets_methods_side_by_side(gap_net, image):
    """One column for the image and one a method; several images do not mix."""
    result = xai_abn.explain(gap_net, image, ["cam", "grad-cam"])[0]
    one = overlay(result["cam"])
    assert sheet(list(result.values())).width == 3 * one.width
    other = xai_abn.explain(gap_net, [image, image], "cam")[1]["cam"]
    with pytest.raises(InvalidInputError, match="one image"):
        sheet([result["cam"], other])
    with pytest.raises(InvalidInputError, match="at least one"):
        sheet([])


def test_wrong_options_are_refused(record):
    """Unknown colour maps and impossible opacities have clear errors."""
    with pytest.raises(UnknownNameError, match="viridis"):
        overlay(record, colormap="virdis")
    with pytest.raises(InvalidInputError, match="opacity"):
        overlay(record, opacity=1.5)


@pytest.mark.parametrize("letters", ["ÄÖÜéñçşłđ", "ЖΩא"])
def test_letters_of_other_alphabets_are_drawn_as_themselves(letters):
    """None is the box that stands for an unknown letter, and no two look alike."""
    masks = [bytes(_font(20).getmask(letter)) for letter in (*letters, "\uffff")]
    assert len(set(masks)) == len(masks)


def test_notebooks_show_the_overlay_and_the_sheet(gap_net, image):
    """Explanations have a PNG representation, alone and together."""
    result = xai_abn.explain(gap_net, image, ["cam", "grad-cam"])[0]
    single = Image.open(io.BytesIO(result["cam"]._repr_png_()))
    together = Image.open(io.BytesIO(result._repr_png_()))
    assert together.width == 3 * single.width


def test_the_map_is_read_only(record):
    """A frozen record does not change through its array."""
    with pytest.raises(ValueError, match="read-only"):
        record.map[0, 0] = 1


def test_the_view_is_the_crop_the_network_saw(gap_net):
    """The view shows the centre crop: a mark outside it is not drawn, one inside is where it should be."""
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, :40] = (255, 0, 0)
    wide[28:36, 92:100] = (0, 255, 0)
    view = xai_abn.explain(gap_net, wide, "cam")["cam"].view
    assert view[:, :, 0].max() < 10
    rows, columns = np.nonzero(view[:, :, 1] > 200)
    assert abs(rows.mean() - (view.shape[0] - 1) / 2) < 1
    assert abs(columns.mean() - (view.shape[1] - 1) / 2) < 1


def two_sided():
    """A map as fine as its image: noise around 0, a strong spot above and one below, and one pixel far out."""
    map_ = np.random.default_rng(0).normal(0, 0.05, (64, 64)).astype(np.float32)
    map_[10:20, 10:20], map_[40:50, 40:50], map_[0, 63] = 1, -1, 50
    return map_


def test_zero_is_in_the_middle_of_a_map_with_negative_values(record):
    """Red above, blue below, the image itself at 0; single pixels do not wash out the rest."""
    view = np.full((64, 64, 3), 128, np.uint8)
    drawn = blend(view, two_sided()).astype(int)
    assert drawn[15, 15, 0] - drawn[15, 15, 2] > 80
    assert drawn[45, 45, 2] - drawn[45, 45, 0] > 80
    empty = np.zeros((64, 64), np.float32)
    empty[0, 0] = -1
    assert np.array_equal(blend(view, empty)[8:, 8:], view[8:, 8:])


def test_single_pixels_do_not_wash_out_a_fine_map():
    """The largest hundredth is cut off; of a coarse map nothing is."""
    view = np.zeros((64, 64, 3), np.uint8)
    fine = np.abs(two_sided())
    assert np.array_equal(blend(view, fine, opacity=1)[15, 15], blend(view, fine, opacity=1)[0, 63])
    coarse = np.array([[0, 1], [2, 50]], np.float32)
    drawn = blend(view, coarse, opacity=1)
    assert not np.array_equal(drawn[0, 63], drawn[63, 63])


@pytest.mark.parametrize("text", ["a\nb", "a" * 20_000, "\x00\x1b[0m", "\u202e", "日本語 한국어 عربى", ""])
def test_any_text_is_written(record, text):
    """Line breaks, very long labels, control characters, other alphabets."""
    started = time.perf_counter()
    overlay(replace(record, label=text))
    assert time.perf_counter() - started < 2
