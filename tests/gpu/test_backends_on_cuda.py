"""Ways to compute logits on a GPU."""

from __future__ import annotations

import pytest
import torch
from support import GapNet

import xai_abn
from xai_abn.models import predictor as predictor_module
from xai_abn.models.backends import BACKENDS
from xai_abn.models.predictor import Predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if not backend.missing("cuda")])
def test_every_backend_gives_the_networks_logits(name, bf16, monkeypatch):
    """For the batch it was built with and for smaller and larger ones, from the CPU and from the GPU."""
    if bf16 and not BACKENDS[name].bf16:
        return
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = xai_abn.wrap(GapNet().eval().cuda(), preprocess=xai_abn.Preprocess(size=32), name="gap-net")
    predictor = Predictor(model, backend=name, bf16=bf16)
    bound = 0.05 if bf16 else 1e-5
    for size in (6, 1, 9):
        inputs = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            expected = model.module(inputs.cuda())
        for given in (inputs, inputs.cuda()):
            found = predictor(given)
            assert found.device == given.device
            torch.testing.assert_close(found.cuda(), expected, atol=bound, rtol=bound)
    assert predictor.backend == name


def test_a_backend_is_chosen(monkeypatch):
    """Of those that run here, after a few batches."""
    monkeypatch.setattr(predictor_module, "SHARE", 0.2)
    model = xai_abn.wrap(GapNet().eval().cuda(), preprocess=xai_abn.Preprocess(size=32), name="gap-net")
    predictor = Predictor(model)
    predictor.expect(1_000_000)
    for _ in range(3):
        predictor(torch.randn(8, 3, 32, 32, device="cuda"))
    assert {trial.backend for trial in predictor.trials} >= {"folded", "cuda-graph"}
    assert all(trial.difference <= 1e-5 for trial in predictor.trials)
