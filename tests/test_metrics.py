"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from xai_abn.errors import InvalidInputError
from xai_abn.metrics import energy_inside, object_recall, peak_inside, polarity, upsample
from xai_abn.metrics.localisation import box_mask

BOX = torch.tensor([[2.0, 1.0, 6.0, 3.0]])  # 4 x 2 = 8 of 80 pixels


def test_a_uniform_map_has_the_area_share_as_energy():
    """Spread evenly, the energy inside is the boxes' share of the area; overlapping boxes count once."""
    assert energy_inside(torch.ones(8, 10), BOX) == pytest.approx(0.1)
    assert energy_inside(torch.ones(8, 10), BOX.repeat(2, 1)) == pytest.approx(0.1)


def test_energy_counts_positive_values_only():
    """A map of 3 inside, 1 outside and negative values elsewhere has 3 of 4 inside; without positives, NaN."""
    map_ = -torch.ones(8, 10)
    map_[1, 2], map_[7, 9] = 3, 1
    assert energy_inside(map_, BOX) == pytest.approx(0.75)
    assert math.isnan(energy_inside(-torch.ones(8, 10), BOX))


def test_the_peak_is_inside_up_to_the_last_row_and_column():
    """Right and bottom edges are exclusive; a constant map points nowhere."""
    for y, x, expected in [(1, 2, 1.0), (2, 5, 1.0), (3, 5, 0.0), (2, 6, 0.0), (0, 2, 0.0)]:
        map_ = torch.zeros(8, 10)
        map_[y, x] = 1
        assert peak_inside(map_, BOX) == expected
    assert math.isnan(peak_inside(torch.zeros(8, 10), BOX))


def test_recall_counts_objects_that_hold_a_top_pixel():
    """With the top 10 % in the first row, the two boxes that reach it are found and the third is not."""
    map_ = torch.zeros(10, 10)
    map_[0] = torch.arange(10.0) + 1
    boxes = torch.tensor([[0.0, 0, 2, 2], [8, 0, 10, 5], [3, 4, 6, 8]])
    assert object_recall(map_, boxes, share=0.1) == pytest.approx(2 / 3)
    assert object_recall(map_, boxes, share=0.05) == pytest.approx(1 / 3)
    assert math.isnan(object_recall(torch.ones(10, 10), boxes))


def test_boxes_cover_at_least_one_pixel_and_stay_inside():
    """A box thinner than a pixel or over the edge still marks pixels of the map."""
    like = torch.zeros(4, 4)
    assert box_mask(torch.tensor([[1.1, 1.1, 1.2, 1.2]]), like).sum() == 1
    assert box_mask(torch.tensor([[3.0, 3.0, 9.0, 9.0]]), like).sum() == 1
    assert box_mask(torch.tensor([[-5.0, -5.0, 9.0, 9.0]]), like).all()


def test_wrong_maps_boxes_and_shares_are_refused():
    """A map that is not finite or not (H, W), no boxes, an impossible share."""
    nan = torch.full((8, 10), float("nan"))
    for metric in (energy_inside, peak_inside, object_recall):
        with pytest.raises(InvalidInputError, match="finite"):
            metric(nan, BOX)
        with pytest.raises(InvalidInputError, match="boxes must have shape"):
            metric(torch.rand(8, 10), torch.zeros(0, 4))
    with pytest.raises(InvalidInputError, match="share"):
        object_recall(torch.rand(8, 10), BOX, share=1.0)


def pixel_sum(inputs):
    """Two classes: the mean of all values, and 0."""
    total = inputs.mean(dim=(1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_polarity_in_closed_form():
    """The pixel-mean model loses exactly what the removed pixels held; upside down, the map scores the negative."""
    values = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
    inputs = values.expand(1, 3, 10, 10).contiguous()
    target = torch.tensor([0])
    without_bottom = torch.tensor(sum(range(21, 101)) / 100).sigmoid()
    without_top = torch.tensor(sum(range(1, 81)) / 100).sigmoid()
    expected = (without_bottom - without_top).item()
    up = polarity(pixel_sum, inputs, values[:, 0], target)
    assert up.item() == pytest.approx(expected, abs=1e-6)
    assert polarity(pixel_sum, inputs, -values[:, 0], target).item() == pytest.approx(-expected, abs=1e-6)
    assert math.isnan(polarity(pixel_sum, inputs, torch.ones(1, 10, 10), target).item())


def test_polarity_refuses_what_does_not_fit():
    """Shares above a half would overlap; numbers of inputs, maps and targets must agree."""
    inputs = torch.rand(2, 3, 4, 4)
    with pytest.raises(InvalidInputError, match="share"):
        polarity(pixel_sum, inputs, torch.rand(2, 4, 4), torch.tensor([0, 0]), share=0.6)
    with pytest.raises(InvalidInputError, match="1 maps"):
        polarity(pixel_sum, inputs, torch.rand(1, 4, 4), torch.tensor([0, 0]))


def test_upsampling_is_bilinear_with_half_pixel_centres():
    """A step from 0 to 1 over two cells becomes 0, 1/4, 3/4, 1."""
    large = upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    torch.testing.assert_close(large[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_the_shipped_map_is_the_right_way_up(abn_lite0):
    """On the mean of four example photos, removing what abn-lite0's map lights hurts more than the rest."""
    from xai_abn.images import load_image

    names = ["cat", "coffee", "rocket", "astronaut"]
    inputs = torch.stack([abn_lite0.preprocess(load_image(f"example:{n}")).tensor for n in names])
    shared = abn_lite0.forward_pass(inputs)
    values = polarity(
        lambda x: abn_lite0.module(x).logits, inputs, shared.attention_map[:, 0], shared.logits.argmax(dim=1)
    )
    assert values.mean() > 0
