"""Batches from memory: random shifts and crops, and what they depend on."""

from __future__ import annotations

import numpy as np
import torch

from xai_abn.datasets.batches import InMemorySplit, RandomCrops, random_crop, random_crop_box, shifted
from xai_abn.datasets.sample import ArraySamples, Sample
from xai_abn.errors import ImageLoadError
from xai_abn.images.preprocess import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def tensor_split(number=10, size=8, padding=2):
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))
    return InMemorySplit(images, torch.arange(number) % 3, MEAN, STD, padding)


def loaded(split, batches, seed):
    return list(split.load([torch.tensor(b) for b in batches], CPU, seed))


def test_shifted_is_pad_crop_and_flip():
    """A slow loop over images, rows and columns of the padded image gives the same."""
    images = torch.randint(1, 256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.manual_seed(0))
    places = torch.tensor([[0, 0, 0], [4, 4, 0], [2, 2, 1], [0, 3, 1], [4, 1, 0], [2, 2, 0]])
    expected = torch.zeros_like(images)
    for n, (top, left, flip) in enumerate(places.tolist()):
        for row in range(5):
            for column in range(7):
                y, x = row + top - 2, column + left - 2
                value = images[n, :, y, x] if 0 <= y < 5 and 0 <= x < 7 else torch.zeros(3)
                expected[n, :, row, 6 - column if flip else column] = value
    assert torch.equal(shifted(images, places, 2), expected)
    assert torch.equal(shifted(images, places, 2)[5], images[5])


def test_images_in_memory_are_normalized_and_channels_last():
    """Without a seed a batch is (pixels / 255 - mean) / std of the images as they are, with their labels."""
    split = tensor_split()
    (batch,) = loaded(split, [[3, 0]], None)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(batch.images, (split.images[[3, 0]] / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.tolist() == [0, 0]
    assert batch.skipped == 0


def test_crops_in_memory_depend_on_seed_and_index_alone():
    """Other batches, another order and torch's random state change nothing; another seed does."""
    split = tensor_split()
    one = torch.cat([b.images for b in loaded(split, [range(10)], 5)])
    torch.manual_seed(99)
    other = torch.cat([b.images for b in loaded(split, [[9, 8, 7], [6, 5, 4, 3, 2, 1, 0]], 5)]).flip(0)
    assert torch.equal(one, other)
    assert not torch.equal(one, loaded(split, [range(10)], 6)[0].images)
    same = InMemorySplit(split.images[:1].expand(10, -1, -1, -1), split.targets, MEAN, STD, padding=2)
    assert len(loaded(same, [range(10)], 5)[0].images.unique(dim=0)) > 3


def test_random_crop_boxes_lie_inside_and_keep_to_their_shares():
    """Crops reach every area and aspect ratio allowed; an image too long for any gives its center."""
    random = np.random.default_rng(0)
    drawn = [random_crop_box((200, 100), random, (0.2, 0.5)) for _ in range(300)]
    areas = [(r - left) * (b - t) / 20000 for (left, t, r, b), _ in drawn]
    shapes = [(r - left) / (b - t) for (left, t, r, b), _ in drawn]
    assert all(0 <= left < r <= 200 and 0 <= t < b <= 100 for (left, t, r, b), _ in drawn)
    assert 0.19 < min(areas) < 0.25 < 0.45 < max(areas) < 0.51
    assert 0.73 < min(shapes) < 0.8 < 1.25 < max(shapes) < 1.37
    assert 100 < sum(flipped for _, flipped in drawn) < 200
    assert random_crop_box((1000, 10), random, (0.9, 1.0))[0] == (493, 0, 506, 10)


def test_crops_without_labels_are_those_of_training():
    """They follow torch's random numbers alone, and are cut as in training; an unreadable image gives its error."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    samples = [*ArraySamples("noise", pixels, ["a", "b"]), Sample("gone.png")]
    crops = RandomCrops(samples, Preprocess(size=8), (0.3, 0.6))
    torch.manual_seed(5)
    given = [crops[1], crops[1]]
    torch.manual_seed(5)
    seeds = [int(torch.randint(2**63 - 1, ())) for _ in range(2)]
    assert not torch.equal(*given)
    for crop, seed in zip(given, seeds, strict=True):
        image = samples[1].load().image
        expected = random_crop(image, crops.preprocess, np.random.default_rng(seed), (0.3, 0.6))
        assert torch.equal(crop, crops.preprocess.normalize(expected))
    assert isinstance(crops[2], ImageLoadError)
