"""Training and distillation runs of every format version resume: settings, log and state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from xai_abn.errors import InvalidInputError, RunError
from xai_abn.networks.checkpoint import fingerprints_v1, read_checkpoint, read_tensors
from xai_abn.training import DistillationSettings, TrainingSettings, run_distillation, train
from xai_abn.training.log import read_log
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import read_settings
from xai_abn.training.state import Position, read_state, save_state

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected-v1.json").read_text())
STATE = "state.safetensors"


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
    settings = TrainingSettings(**read_settings(here / "run" / "config.yaml")[0])
    result = train(settings, here / "run", resume=True)
    expected = EXPECTED["train-v1"]
    assert result["final"] == pytest.approx(expected["result"], abs=1e-4)
    assert sums(here / "run" / "final.safetensors") == pytest.approx(expected["sum"], abs=1e-3)
    assert [line["step"] for line in read_log(here / "run/log.jsonl", "step")] == [1, 2, 3, 4]
    assert [line["epoch"] for line in read_log(here / "run/log.jsonl", "epoch")] == [1, 2]


def test_a_new_training_run_gives_the_same_values(here):
    """Weights and accuracies of a run started today are those of version 1."""
    settings = TrainingSettings(**read_settings(HERE / "train-v1" / "config.yaml")[0])
    expected = EXPECTED["train-v1"]
    assert train(settings, here / "run")["final"] == pytest.approx(expected["result"], abs=1e-4)
    assert sums(here / "run" / "final.safetensors") == pytest.approx(expected["sum"], abs=1e-3)


def test_a_distillation_of_version_1_resumes(here):
    """It ends near the run that was not interrupted: the random crops of its last steps are others since version 2."""
    shutil.copytree(HERE / "distill-v1", here / "run")
    settings = DistillationSettings(**read_settings(here / "run" / "config.yaml")[0])
    summary = run_distillation(here / "run", settings, resume=True)
    expected = EXPECTED["distill-v1"]
    assert [check["step"] for check in summary.checks] == [0, 2, 4]
    for found, wanted in zip(summary.checks[:2], expected["checks"][:2], strict=True):
        wanted["images"] = wanted.pop("photos")
        assert found == {"kind": "check", **wanted}
    assert summary.done == 4
    ended = sums(summary.checkpoint)
    assert {n: ended[n] for n in expected["sum"]} == pytest.approx(expected["sum"], abs=0.05)
    assert [line["step"] for line in read_log(here / "run/log.jsonl", "step")] == [1, 2, 3, 4]


def test_a_distillation_of_version_1_refuses_another_classifier(here):
    """Its classifier is known by the fingerprint of version 1."""
    shutil.copytree(HERE / "distill-v1", here / "run")
    state = read_state(here / "run" / STATE)
    assert state.origin["classifier"] not in fingerprints_v1(torch.nn.Linear(2, 1))
    path = here / "run" / STATE
    path.write_bytes(path.read_bytes().replace(state.origin["classifier"].encode(), b"0" * 32))
    settings = DistillationSettings(**read_settings(here / "run" / "config.yaml")[0])
    with pytest.raises(RunError, match="made with another classifier"):
        run_distillation(here / "run", settings, resume=True)


def test_states_are_read_into_the_same_record():
    """Version 1 had a format of its own for each kind of run; version 2 has one."""
    old = read_state(HERE / "train-v1" / STATE)
    assert (old.kind, old.position.epoch, old.position.step) == ("train", 1, 0)
    assert old.tensors.keys() == {"network", "optimizer"}
    assert old.origin.keys() == {"data"}
    assert old.settings["epochs"] == 2
    old = read_state(HERE / "distill-v1" / STATE)
    assert (old.kind, old.position.step, old.position.log_length) == ("distill", 2, None)
    assert old.tensors.keys() == {"network", "optimizer"}
    assert old.origin.keys() == {"images", "classifier"}


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("distill", "distill")])
def test_states_of_version_2_are_read(name, kind):
    """The golden files give back what was saved into them."""
    path = HERE / f"state-v2-{name}.safetensors"
    assert read_tensors(path)[0]["format_version"] == "2"
    state = read_state(path)
    assert state.kind == kind
    assert state.position == Position(epoch=1, step=2, sums={"loss": 0.5}, best={}, seconds=3.0, log_length=40)
    assert state.settings["seed"] == 7
    assert state.origin == {"data": "0123456789abcdef"}
    assert float(state.tensors["network"]["fc.weight"].sum()) == 6
    assert float(state.tensors["optimizer"]["0.momentum_buffer"].sum()) == 3


def test_what_is_saved_is_read_again(tmp_path):
    """A state read and saved again is the same."""
    for name in ("state-v2-train.safetensors", "train-v1/state.safetensors", "distill-v1/state.safetensors"):
        state = read_state(HERE / name)
        save_state(tmp_path / STATE, state)
        again = read_state(tmp_path / STATE)
        assert again.record == state.record
        assert all(again.tensors[group].keys() == values.keys() for group, values in state.tensors.items())


@pytest.mark.parametrize("name", ["train-v1", "distill-v1"])
def test_settings_are_read(name, tmp_path):
    """Settings of version 1 under their new names; a value that no longer exists is refused."""
    settings, notes = read_settings(HERE / name / "config.yaml")
    assert notes["commands"] == [f"xai-abn {name.removesuffix('-v1')}"]
    made = TrainingSettings(**settings) if name == "train-v1" else DistillationSettings(**settings)
    folder = RunFolder(tmp_path / "run")
    folder.start(made)
    assert type(made)(**folder.read_settings()[0]) == made
    if name == "distill-v1":
        assert made.images == ("photos",)
        values = yaml.safe_load((HERE / name / "config.yaml").read_text())
        (tmp_path / "old.yaml").write_text(yaml.safe_dump({**values, "match_scale": False}))
        with pytest.raises(InvalidInputError, match="no setting match_scale"):
            read_settings(tmp_path / "old.yaml")
