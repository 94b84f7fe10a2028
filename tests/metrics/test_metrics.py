"""Metrics against values worked out by hand; slow reference versions stand in tests/reference."""

from __future__ import annotations

import pytest
import torch

from xai_abn.metrics import Objects, all_objects_found, energy_pointing_game, object_recall, polarity, upsample
from xai_abn.models.forward_pass import ForwardPass


def test_energy_counts_positive_values_only():
    """A map of 3 inside, 1 outside and negative values elsewhere has 3 of 4 inside."""
    map_ = -torch.ones(1, 8, 10)
    map_[0, 1, 2], map_[0, 7, 9] = 3, 1
    assert energy_pointing_game(map_, [Objects.from_boxes([[2, 1, 6, 3]], (8, 10))]).item() == pytest.approx(0.75)


def test_recall_counts_objects_that_hold_a_top_pixel():
    """With the top 10 % in the first row, the two boxes that reach it are found and the third is not."""
    map_ = torch.zeros(1, 10, 10)
    map_[0, 0] = torch.arange(10.0) + 1
    three = Objects.from_boxes([[0, 0, 2, 2], [8, 0, 10, 5], [3, 4, 6, 8]], (10, 10))
    assert object_recall(map_, [three], share=0.1).item() == pytest.approx(2 / 3)
    assert object_recall(map_, [three], share=0.05).item() == pytest.approx(1 / 3)
    assert all_objects_found(map_, [three], share=0.1).item() == 0
    two = Objects.from_boxes([[0, 0, 2, 2], [8, 0, 10, 5]], (10, 10))
    assert all_objects_found(map_, [two], share=0.1).item() == 1


def test_upsampling_is_bilinear_with_half_pixel_centres():
    """A step from 0 to 1 over two cells becomes 0, 1/4, 3/4, 1."""
    large = upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    torch.testing.assert_close(large[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_the_shipped_map_is_the_right_way_up(abn_lite0):
    """On the mean of four example images, removing what abn-lite0's map lights hurts more than the rest."""
    from xai_abn.images.loading import load_image

    names = ["cat", "coffee", "rocket", "astronaut"]
    inputs = torch.stack([abn_lite0.preprocess(load_image(f"example:{n}")).tensor for n in names])
    shared = ForwardPass(abn_lite0, inputs)
    values = polarity(
        lambda x: abn_lite0.module(x).logits, inputs, shared.attention_map[:, 0], shared.logits.argmax(dim=1)
    )
    assert values.mean() > 0
