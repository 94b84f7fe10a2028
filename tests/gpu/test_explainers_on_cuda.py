"""Every explainer gives the same map on a GPU as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError

#: Methods whose noise captum draws on the device, so that each device has its own.
NOISY = {"smooth-grad", "var-grad", "gradient-shap"}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Switch TF32 off, so that the GPU computes in float32 as the CPU does."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", [name for name in explainers.names() if name not in NOISY])
@pytest.mark.parametrize("fixture", ["small_resnet", "small_abn", "small_vit"])
def test_maps_on_the_gpu_equal_those_on_the_cpu(request, fixture, name):
    """Maps differ by less than a thousandth of their range, or both devices refuse."""
    model = request.getfixturevalue(fixture)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    on_gpu = xai_abn.wrap(
        copy.deepcopy(model.module).cuda(), preprocess=model.preprocess, labels=model.labels, name=model.name
    )
    try:
        expected = xai_abn.explain(model, images, name)
    except UnsupportedModelError:
        expected = None
    if expected is None:
        with pytest.raises(UnsupportedModelError):
            xai_abn.explain(on_gpu, images, name)
        return
    found = xai_abn.explain(on_gpu, images, name)
    for row in range(3):
        want, got = expected[row][name].map, found[row][name].map
        assert got.shape == want.shape
        span = max(float(abs(want).max()), 1e-12)
        assert float(abs(got - want).max()) <= 1e-3 * span, name


@pytest.mark.parametrize("name", sorted(NOISY))
def test_noise_is_repeatable(small_resnet, name):
    """Two calls give the same map."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = xai_abn.wrap(copy.deepcopy(small_resnet.module).cuda(), preprocess=small_resnet.preprocess)
    first, second = (xai_abn.explain(model, images, name)[1][name].map for _ in range(2))
    assert float(abs(first - second).max()) <= 1e-6 * float(abs(first).max())
