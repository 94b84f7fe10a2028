"""Every explainer gives the same map on a GPU as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Switch TF32 off, so that the GPU computes in float32 as the CPU does."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", explainers.names())
@pytest.mark.parametrize("fixture", ["small_resnet", "small_abn", "small_vit"])
def test_maps_on_the_gpu_equal_those_on_the_cpu(request, fixture, name):
    """Maps differ by less than a thousandth of their range, or both devices refuse with the same message."""
    model = request.getfixturevalue(fixture)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    on_gpu = xai_abn.wrap(
        copy.deepcopy(model.module).cuda(), preprocess=model.preprocess, labels=model.labels, name=model.name
    )
    expected, refusal = None, ""
    try:
        expected = xai_abn.explain(model, images, name)
    except UnsupportedModelError as error:
        refusal = str(error)
    if expected is None:
        with pytest.raises(UnsupportedModelError) as refused:
            xai_abn.explain(on_gpu, images, name)
        assert str(refused.value) == refusal
        return
    found = xai_abn.explain(on_gpu, images, name)
    for row in range(3):
        want, got = expected[row][name].map, found[row][name].map
        assert got.shape == want.shape
        span = max(float(abs(want).max()), 1e-12)
        assert float(abs(got - want).max()) <= 1e-3 * span, name
