"""Metrics on maps of volumes, by loops; those that are defined for images alone are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage
from volumes import net3d, seeded_volumes

import xai_abn
from xai_abn import metrics
from xai_abn.errors import InvalidInputError
from xai_abn.metrics.curves import scattered_ranks
from xai_abn.metrics.objects import Objects

VOLUMES = seeded_volumes(2, 1, 12, 16, 20)
TARGETS = torch.tensor([1, 2])


@pytest.fixture(scope="module")
def model():
    return net3d()


@pytest.fixture(scope="module")
def maps(model):
    results = xai_abn.explain(model, VOLUMES, "hires-cam", TARGETS)
    return torch.stack([torch.from_numpy(np.array(r["hires-cam"].map)) for r in results])


def probability(model, volume, target):
    with torch.no_grad():
        return model.module(volume[None]).double().softmax(1)[0, target].item()


def enlarged(map_):
    return torch.nn.functional.interpolate(map_[None, None], (12, 16, 20), mode="trilinear")[0, 0]


@pytest.mark.parametrize("inserts", [False, True])
def test_deletion_and_insertion(model, maps, inserts):
    """Voxels change in the order of the enlarged map, in 20 steps; each slice is blurred alone."""
    expected = []
    for volume, map_, target in zip(VOLUMES, maps, TARGETS.tolist(), strict=True):
        ranks = scattered_ranks(enlarged(map_)[None])[0].view(12, 16, 20)
        slices = [ndimage.gaussian_filter(s.numpy(), 16 / 12, mode="mirror", radius=round(16 / 6)) for s in volume[0]]
        blurred = torch.from_numpy(np.stack(slices))[None]
        points = []
        for step in range(21):
            first = ranks < round(step * 3840 / 20)
            points.append(probability(model, torch.where(first == inserts, volume, blurred), target))
        expected.append(integrate.trapezoid(points, np.linspace(0, 1, 21)))
    metric = metrics.insertion if inserts else metrics.deletion
    found = metric(model.module, VOLUMES, maps, TARGETS)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    together = metric(model.module, VOLUMES, torch.stack([maps, -maps], 1), TARGETS)
    torch.testing.assert_close(together[:, 0], found)


def test_average_drop_and_polarity(model, maps):
    """The volume times its map, scaled and enlarged; the volume without its lowest and its highest fifth."""
    drops, polarities = [], []
    for volume, map_, target in zip(VOLUMES, maps, TARGETS.tolist(), strict=True):
        scaled = enlarged((map_ - map_.min()) / (map_.max() - map_.min()))
        before = probability(model, volume, target)
        drops.append(max(0, before - probability(model, volume * scaled, target)) / before)
        order, large = enlarged(map_).flatten().argsort(stable=True), []
        for part in (order[:768], order[-768:]):
            kept = volume.flatten().clone()
            kept[part] = 0
            large.append(probability(model, kept.view(volume.shape), target))
        polarities.append(large[0] - large[1])
    np.testing.assert_allclose(metrics.average_drop(model.module, VOLUMES, maps, TARGETS), drops, atol=1e-5)
    np.testing.assert_allclose(metrics.polarity(model.module, VOLUMES, maps, TARGETS), polarities, atol=1e-5)


def test_sanity_and_agreement(model, maps):
    """Randomized weights give other maps; maps agree with themselves."""

    def explain(inputs, targets, module=None):
        chosen = model if module is None else model.with_module(module)
        results = xai_abn.explain(chosen, inputs, "hires-cam", targets)
        return torch.stack([torch.from_numpy(np.array(r["hires-cam"].map)) for r in results])

    values = metrics.model_parameter_randomization(explain, model.module, VOLUMES, TARGETS, stages=2)
    assert values.shape == (2, 2)
    assert (values < 0.99).all()
    torch.testing.assert_close(metrics.rank_correlation(maps, maps), torch.ones(2))
    torch.testing.assert_close(metrics.map_agreement(maps, maps), torch.ones(2))
    assert metrics.random_logit(explain, VOLUMES, TARGETS, 4).shape == (2,)
    assert metrics.gini(maps).shape == metrics.entropy(maps.abs()).shape == (2,)


def test_metrics_of_images_are_refused(model, maps):
    """With what to use instead, or what was expected."""
    one = torch.ones(1, dtype=torch.bool)
    whole = Objects(torch.ones(1, 4, 4, dtype=torch.bool), torch.tensor([[0.0, 0, 4, 4]]), ~one, one)
    for protocol in ("rise-2018", "pid-2022"):
        with pytest.raises(InvalidInputError, match="defined for images"):
            metrics.deletion(model.module, VOLUMES, maps, TARGETS, protocol)
    with pytest.raises(InvalidInputError, match="use deletion and insertion"):
        metrics.road(model.module, VOLUMES, maps, TARGETS)
    with pytest.raises(InvalidInputError, match="expected N maps"):
        metrics.pointing_game(maps, [whole] * 2)
