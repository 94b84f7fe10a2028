"""Explanations as images: scaling, flaws, sheets."""

from __future__ import annotations

import dataclasses
import io
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnusableMapError
from xai_abn.explanation import Explanation, sheet
from xai_abn.heatmaps import heatmap_of
from xai_abn.rendering import COLORMAPS, Panel, _font, blend, blend_heatmap, clip_bytes
from xai_abn.rendering import overlay as draw
from xai_abn.rendering import sheet as draw_sheet

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


# Where the map is seen through.


def drawn_part(page, size, column=0):
    """The pixels of the image in a drawing of a panel with a title alone, of size (height, width)."""
    top, left = 14 // 2 + 22 + 6, column * (size[1] + 2 * 14) + 14
    return np.asarray(page)[top : top + size[0], left : left + size[1]].astype(int)


def test_weak_parts_show_the_image_untouched():
    """The opacity is three quarters of the heatmap; a number makes it the same everywhere."""
    view = np.full((4, 256, 3), 200, np.uint8)
    ramp = np.linspace(0, 8, 256, dtype=np.float32)[None].repeat(4, axis=0)
    color = blend(view, ramp, opacity=1).astype(float)
    found = blend(view, ramp)  # a fine map: its largest hundredth is clipped
    expected = 200 + 0.75 * np.minimum(ramp[0] / np.percentile(ramp, 99), 1)[:, None] * (color[0] - 200)
    assert np.abs(found[0] - expected).max() <= 1
    assert np.array_equal(found[:, 0], view[:, 0])
    assert np.array_equal(blend(view, ramp, opacity=0), view)
    half = blend(view, ramp, opacity=0.5).astype(float)
    assert np.abs(half - (200 + color) / 2).max() <= 0.5


def test_a_map_is_blended_within_limits():
    """A map of half the largest value leaves half as much color; it is not scaled to its own range."""
    view = np.zeros((4, 4, 3), np.uint8)
    half = np.array([[0, 0.25], [0.25, 0.5]], np.float32)
    drawn = blend(view, half, limits=(0.0, 1.0))
    as_heatmap = blend_heatmap(view, np.full((4, 4), 0.5, np.float32))
    assert np.array_equal(drawn[3, 3], as_heatmap[3, 3])
    assert not np.array_equal(drawn, blend(view, half))


def test_a_map_in_two_colors_is_white_at_zero_where_it_is_shown_alone():
    """Red, white, blue: the image does not show through."""
    alone = blend(np.zeros((8, 3, 3), np.uint8), np.array([[-2, 0, 2]] * 8, np.float32), opacity=1)
    assert alone[0].tolist() == [[5, 103, 190], [255, 255, 255], [202, 0, 32]]


# Contours.


def neighbors(mask, row, column):
    return mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_contour_is_the_border_of_the_mask(record, sign):
    """White where the mask has a neighbor outside, black where the rest has one inside; nothing else changes."""
    map_ = np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32)
    map_ = np.abs(map_) if sign > 0 else map_
    view = np.full((256, 256, 3), 128, np.uint8)
    one = replace(with_map(record, map_), view=view, image_size=None, region=None)
    bare, lined = (drawn_part(draw(replace(one.panel, subtitle=""), contour=c), (256, 256)) for c in (None, 0.4))
    mask = one.mask(0.4)
    assert 0.05 < mask.mean() < 0.6
    expected = bare.copy()
    for row, column in np.ndindex(256, 256):
        around = neighbors(mask, row, column)
        if mask[row, column] and not around.all():
            expected[row, column] = 255
        elif not mask[row, column] and around.any():
            expected[row, column] = 0
    assert np.array_equal(lined, expected)


def test_a_map_without_evidence_has_no_contour():
    """All of it is against the target."""
    panel = Panel(np.zeros((256, 256, 3), np.uint8), "m", map=-1 - np.random.default_rng(0).random((4, 4), np.float32))
    assert np.array_equal(np.asarray(draw(panel, contour=0.5)), np.asarray(draw(panel)))


def test_the_contour_of_a_small_image_keeps_to_its_pixels():
    """They are enlarged eight times, and so is the mask."""
    map_ = np.zeros((32, 32), np.float32)
    map_[8:16, 8:16] = 1
    lined = drawn_part(draw(Panel(np.full((32, 32, 3), 128, np.uint8), "m", map=map_), contour=0.5), (256, 256))
    white = (lined == 255).all(axis=2)
    rows, columns = np.nonzero(white)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 127, 64, 127)
    assert white.sum() == 4 * 63


@pytest.mark.parametrize("contour", [0, 1.5, float("nan"), -1])
def test_a_contour_out_of_range_is_refused(record, contour):
    """It is a share of the range."""
    with pytest.raises(InvalidInputError, match="contour must be above 0 and at most 1"):
        record.overlay(contour=contour)
    with pytest.raises(InvalidInputError, match="threshold must be above 0"):
        record.mask(contour)


# The color bar.


def bar(page, size):
    top = 14 // 2 + 22 + 6 + size[0] + 8
    return np.asarray(page)[top : top + 10, 14 : 14 + size[1]].astype(int)


@pytest.mark.parametrize(("map_", "place"), [([[0, 1], [2, 4]], 0.25), ([[-4, 1], [2, 4]], 0.625)])
def test_the_bar_marks_where_the_contour_is(map_, place):
    """A line at the value: a quarter of the way from 0 to 4, whatever the other end is."""
    panel = Panel(np.full((256, 256, 3), 128, np.uint8), "m", map=np.array(map_, np.float32))
    marked = np.flatnonzero((bar(draw(panel, contour=0.25), (256, 256)) == 0).all(axis=(0, 2)))
    assert marked.tolist() == [pytest.approx(place * 255, abs=1.5)]


def test_the_ends_of_the_bar_are_in_words(record, monkeypatch):
    """What they mean comes first, then the value in the units of the map."""
    written = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, xy, text, *rest: written.append(text))
    overlay(with_map(record, [[1, 2], [3, 5]]))
    assert written[-2:] == ["low (1)", "high (5)"]
    overlay(with_map(record, [[-1, 2], [3, 5]]))
    assert written[-3:] == ["negative (-5)", "positive (5)", "0"]


# Scales of a sheet.


def test_maps_of_several_targets_share_a_scale():
    """A weak one is drawn weak; panels with another scale, or none, keep their own."""
    view, strong = np.full((256, 256, 3), 128, np.uint8), np.array([[0, 8], [4, 2]], np.float32)
    panels = [
        Panel(view, "m", map=strong * factor, scale=name) for factor, name in ((1, "a"), (0.25, "a"), (0.25, "b"))
    ]
    page = draw_sheet(panels)
    one, weak, alone = (drawn_part(page, (256, 256), column) for column in range(3))
    assert np.array_equal(one, alone)  # both over their own range
    ranged = np.clip(heatmap_of(strong, (256, 256)) / 4, 0, 1)
    assert np.array_equal(weak, blend_heatmap(view, ranged))


def test_signed_and_positive_maps_on_one_scale_have_zero_in_the_middle():
    """The positive one is red, not viridis."""
    view = np.full((256, 256, 3), 128, np.uint8)
    maps = [np.array([[-1, 2], [0, 1]], np.float32), np.array([[0, 4], [0, 0]], np.float32)]
    page = draw_sheet([Panel(view, "m", map=m, scale="a") for m in maps])
    second = drawn_part(page, (256, 256), 1)
    assert second[0, 255, 0] > 150 > second[0, 255, 2]
    assert np.array_equal(second[255, 0], [128, 128, 128])


def test_maps_of_probabilities_keep_a_scale_each(gap_net, image):
    """Their gradients vanish where the probability is near 1, so their size does not compare."""
    logits = xai_abn.explain(gap_net, image, "grad-cam", [[0, 1]])[0]
    assert {e.panel.scale for e in logits.values()} == {"grad-cam"}
    network = torch.nn.Sequential(gap_net.module, torch.nn.Softmax(1))
    squashed = xai_abn.explain(xai_abn.wrap(network), image, "grad-cam", [[0, 1]])[0]
    assert {e.panel.scale for e in squashed.values()} == {""}


def test_rows_of_a_sheet_are_of_equal_length():
    """Seven panels are four and three."""
    panel = Panel(np.zeros((256, 256, 3), np.uint8), "m")
    one = draw(panel)
    assert draw_sheet([panel] * 7).size == (4 * one.width, 2 * one.height)


def test_notebooks_show_the_sheets_of_several_images(gap_net, image):
    """One below the other, at most eight; the text names all."""
    result = xai_abn.explain(gap_net, [image] * 9, "cam")
    sheet_ = Image.open(io.BytesIO(result[0]._repr_png_()))
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert shown.size == (sheet_.width, 8 * sheet_.height)
    assert repr(result).startswith("Explanations of 9 images")
    assert xai_abn.explain(gap_net, [], "cam")._repr_png_() is None


def test_slices_of_a_volume_have_the_contour_of_its_mask():
    """One threshold for all slices; the bar of a page of the clip marks it, too."""
    map_ = np.zeros((3, 32, 32), np.float32)
    map_[0, 8:16, 8:16], map_[2, 20:24, 4:12] = 1, 0.4
    panel = Panel(np.full((3, 32, 32, 3), 128, np.uint8), "m", map=map_)
    for contour, parts in ((0.5, [64, 0, 0]), (0.3, [64, 0, 32])):
        page = np.asarray(draw(panel, contour=contour)).astype(int)
        top = 14 // 2 + 22 + 6 + 22
        for number, pixels in enumerate(parts):
            left = 14 + number * (128 + 4)
            tile = page[top : top + 128, left : left + 128]
            rows, columns = np.nonzero((tile == 255).all(axis=2))
            inside = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) // 16 if len(rows) else 0
            assert inside == pixels
    assert clip_bytes(panel, ".gif", contour=0.5) != clip_bytes(panel, ".gif")


def test_limits_decide_how_strong_a_map_is_drawn():
    """With them, a map with small values hardly colors its image; without, its largest value gets the last color."""
    gray = np.full((64, 64, 3), 128, np.uint8)
    small = Panel(gray, "title", map=np.linspace(0, 0.04, 64, dtype=np.float32).reshape(8, 8))
    for limits, least, most in ((None, 100, 255), ((0.0, 1.0), 0, 12)):
        drawn = np.asarray(draw(replace(small, limits=limits)), np.int64)[-200:]
        colored = (drawn.max(axis=2) - drawn.min(axis=2))[:120]
        assert least <= colored.max() <= most
