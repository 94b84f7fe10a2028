"""A benchmark gives the same values on a GPU as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import make_images

import xai_abn
from xai_abn import metrics
from xai_abn.benchmark import Store, benchmark
from xai_abn.datasets import read_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

METHODS = ["abn", "abn-class", "grad-cam", "cam", "rise:masks=16", "center"]


def test_values_on_the_gpu_equal_those_on_the_cpu(tmp_path, monkeypatch):
    """Every metric that draws no weights on the device; two pixels of nearly equal relevance may change places."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    data = read_dataset(f"coco:{make_images(tmp_path / 'set', 4)}")
    found = {}
    for device in ("cpu", "cuda"):
        path = Path(__file__).parent.parent / "formats" / "checkpoint-v2-abn.safetensors"
        model = xai_abn.load_model(path, device=device)
        names = [n for n in metrics.names() if "pid-2022" not in n and "cascading" not in n]
        summary = benchmark(model, data, METHODS, names, tmp_path / f"{device}.sqlite")
        assert summary.failed == []
        with Store.read(tmp_path / f"{device}.sqlite") as store:
            found[device] = {(r.image, r.method, r.trial, r.metric): r.value for r in store.results()}
    assert found["cpu"].keys() == found["cuda"].keys()
    for key, value in found["cpu"].items():
        assert (value is None) == (found["cuda"][key] is None), key
        if value is not None:
            assert found["cuda"][key] == pytest.approx(value, rel=1e-2, abs=2e-3), key
