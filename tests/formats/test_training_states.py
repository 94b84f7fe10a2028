"""States of training and distillation runs of every format version resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xai_abn.networks.checkpoint import read_checkpoint
from xai_abn.training import DistillationSettings, TrainingSettings, run_distillation, train
from xai_abn.training.settings import read_settings

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected-v1.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the images on which the stored runs were begun."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for split, number in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(number):
                noise = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "pictures" / split / name / f"{i}.png")
    draw = np.random.default_rng(1)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        noise = draw.integers(0, 255, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i:02d}.png")
    shutil.copy(HERE / "checkpoint-v1-classifier.safetensors", tmp_path)
    return tmp_path


def sums(path):
    """The sums of the small weights of a checkpoint."""
    _, state = read_checkpoint(path)
    return {n: float(t.double().sum()) for n, t in state.items() if t.is_floating_point() and t.numel() < 2000}


def test_a_training_run_of_version_1_resumes(here):
    """It ends with the accuracies and the weights of the run that was not interrupted."""
    shutil.copytree(HERE / "train-v1", here / "run")
    settings = TrainingSettings(**read_settings(here / "run" / "config.yaml"))
    result = train(settings, here / "run", resume=True)
    expected = EXPECTED["train-v1"]
    assert result["final"] == pytest.approx(expected["result"], abs=1e-4)
    assert sums(here / "run" / "final.safetensors") == pytest.approx(expected["sum"], abs=1e-3)


def test_a_distillation_of_version_1_resumes(here):
    """It ends near the run that was not interrupted: the random crops of its last steps are others since version 2."""
    shutil.copytree(HERE / "distill-v1", here / "run")
    settings = DistillationSettings(**read_settings(here / "run" / "config.yaml"))
    summary = run_distillation(here / "run", settings, resume=True)
    expected = EXPECTED["distill-v1"]
    assert [check["step"] for check in summary.checks] == [0, 2, 4]
    for found, wanted in zip(summary.checks[:2], expected["checks"][:2], strict=True):
        assert found == wanted
    assert summary.done == 4
    ended = sums(summary.checkpoint)
    assert {n: ended[n] for n in expected["sum"]} == pytest.approx(expected["sum"], abs=0.05)
