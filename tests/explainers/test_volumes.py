"""Methods on volumes, against loops and other libraries."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.transform import resize
from volumes import net3d, seeded_volumes

import xai_abn
from xai_abn import explainers

VOLUME = seeded_volumes(1, 1, 12, 16, 20)


@pytest.fixture(scope="module")
def model():
    return net3d()


def map_of(model, spec, target=1):
    return xai_abn.explain(model, VOLUME, spec, target)[0][spec].map


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_gradients(model):
    """Saliency and input times gradient, by plain autograd."""
    volume = VOLUME.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.module(volume)[0, 1], volume)
    close(map_of(model, "saliency"), gradient[0, 0].abs().numpy())
    close(map_of(model, "input-x-gradient"), (gradient * VOLUME)[0, 0].numpy())


def test_integrated_gradients_and_deep_lift(model):
    """By captum, called directly."""
    module = model.module
    direct = captum.attr.IntegratedGradients(module).attribute(VOLUME, VOLUME * 0, target=1, n_steps=8)
    close(map_of(model, "integrated-gradients:steps=8"), direct[0, 0].detach().numpy())
    found = map_of(model, "deep-lift")
    with torch.no_grad():
        difference = (module(VOLUME) - module(VOLUME * 0))[0, 1].item()
    assert abs(found.sum() - difference) < 1e-4 * max(1, abs(difference))


def test_occlusion(model):
    """Blocks of a quarter of each side, by a loop."""
    total, count = np.zeros((12, 16, 20)), np.zeros((12, 16, 20))
    with torch.no_grad():
        whole = model.module(VOLUME)[0, 1].item()
        for z in range(0, 12, 3):
            for y in range(0, 16, 4):
                for x in range(0, 20, 5):
                    block = (slice(z, z + 3), slice(y, y + 4), slice(x, x + 5))
                    blanked = VOLUME.clone()
                    blanked[(0, 0, *block)] = 0
                    total[block] += whole - model.module(blanked)[0, 1].item()
                    count[block] += 1
    close(map_of(model, "occlusion:window=0.25,stride=0.25"), total / count)


def test_rise(model):
    """The mean of the masks weighted by the probability; a mask is a random grid, enlarged and shifted."""
    explainer = explainers.get("rise")(masks=12, side=3, keep=0.4, seed=5)
    cells = (4, 6, 7)
    grids, shifts = explainer.random_grids(cells)
    assert grids.shape == (12, 3, 3, 3)
    expected = np.zeros((12, 16, 20))
    for grid, shift in zip(grids.numpy(), shifts.tolist(), strict=True):
        large = resize(grid, [4 * cell for cell in cells], order=1, mode="reflect", anti_aliasing=False)
        z, y, x = shift
        mask = large[z : z + 12, y : y + 16, x : x + 20]
        with torch.no_grad():
            logits = model.module(VOLUME * torch.from_numpy(mask).float())
        expected += logits.softmax(1)[0, 1].item() * mask
    close(map_of(model, "rise:masks=12,side=3,keep=0.4,seed=5"), expected / (12 * 0.4))


def test_score_cam(model):
    """Channels as masks, enlarged in three axes, by a loop."""
    channels = model.module.body(VOLUME)[0].detach()
    scores = []
    for channel in channels:
        mask = F.interpolate(channel[None, None], (12, 16, 20), mode="trilinear", align_corners=False)
        span = mask.max() - mask.min()
        mask = (mask - mask.min()) / span if span > 0 else mask * 0
        with torch.no_grad():
            scores.append(model.module(VOLUME * mask)[0, 1])
    weights = torch.stack(scores).softmax(0)
    close(map_of(model, "score-cam"), torch.einsum("k,kdhw->dhw", weights, channels).relu().numpy())


def test_ablation_cam(model):
    """Each channel set to 0."""
    module = model.module
    with torch.no_grad():
        channels = module.body(VOLUME)
        full = module(VOLUME)[0, 1]
        without = [channels.clone().index_fill_(1, torch.tensor([k]), 0) for k in range(channels.shape[1])]
        scores = torch.cat([module.fc(c.mean((2, 3, 4)))[:, 1] for c in without])
        expected = torch.einsum("k,kdhw->dhw", (full - scores) / full, channels[0]).relu()
    close(map_of(model, "ablation-cam"), expected.numpy())


def test_eigen_cam(model):
    """The first singular vector of the centered positions, up to its sign."""
    positions = model.module.body(VOLUME)[0].flatten(1).T.detach().double()
    left, values, _ = torch.linalg.svd(positions - positions.mean(0), full_matrices=False)
    expected = (left[:, 0] * values[0]).view(6, 4, 5).numpy()
    expected *= np.sign(expected.flat[np.abs(expected).argmax()])
    close(map_of(model, "eigen-cam"), expected)


def test_sobel(model):
    """The magnitude of the gradient of the volume, by SciPy."""
    edges = [ndimage.sobel(VOLUME[0, 0].numpy(), axis, mode="nearest") for axis in range(3)]
    close(map_of(model, "sobel"), np.sqrt(sum(e.astype(np.float64) ** 2 for e in edges)))


def test_superpixels_of_a_volume_are_connected_blocks_of_it(model):
    """Feature ablation gives each the drop of the score without it."""
    regions = explainers.perturbation.superpixels(VOLUME, 6)[0, 0]
    assert regions.max() > 1
    found = map_of(model, "feature-ablation:segments=6")
    blanked = VOLUME.masked_fill(regions == 1, 0)
    with torch.no_grad():
        drop = (model.module(VOLUME) - model.module(blanked))[0, 1].item()
    np.testing.assert_allclose(found[regions.numpy() == 1], drop, rtol=1e-3, atol=1e-6)
