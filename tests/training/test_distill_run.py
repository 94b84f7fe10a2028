"""A distillation run: its folder, its checks, its resuming, and one clear error for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import GapNet
from torch import nn
from typer.testing import CliRunner

import xai_abn
from xai_abn.cli.main import app
from xai_abn.datasets import Sample
from xai_abn.datasets.splits import find_samples, hold_out
from xai_abn.errors import (
    CheckpointError,
    ImageLoadError,
    InvalidInputError,
    NonFiniteError,
    OutputError,
    RunError,
    UnknownNameError,
    UnsupportedModelError,
    XaiAbnError,
)
from xai_abn.images.preprocess import Preprocess
from xai_abn.models import zoo
from xai_abn.networks.abn import AttentionBranchNetwork, Residual
from xai_abn.networks.architectures import create_model
from xai_abn.networks.checkpoint import CheckpointConfig, read_checkpoint, save_checkpoint
from xai_abn.training import DistillationSettings, TrainingSettings, crops, distillation, run_distillation
from xai_abn.training.crops import InfiniteCrops
from xai_abn.training.distillation import DistillationObjective
from xai_abn.training.map_check import check_map
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import read_settings
from xai_abn.training.state import read_state, save_state

SIZE = 32


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The checkpoint of a tiny seeded classifier of ten classes for 32-pixel inputs."""
    torch.manual_seed(0)
    network = create_model("timm:test_resnet", 10, mechanism=None).eval()
    path = tmp_path_factory.mktemp("classifier") / "tiny.safetensors"
    look = Preprocess(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    save_checkpoint(path, network, CheckpointConfig("timm:test_resnet", 10, None, look, [f"c{i}" for i in range(10)]))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of twenty generated images."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def settings(classifier, images):
    """Six small steps, checked every two."""
    return DistillationSettings(
        model=str(classifier),
        images=(str(images),),
        steps=6,
        batch_size=4,
        mosaics=1,
        check_every=2,
        workers=0,
        bf16=False,
    )


def changed(settings, **values):
    return settings.replace(**values)


class Interrupted(BaseException):
    """Stands for a kill."""


def interrupted_run(folder, settings, step):
    """Start a run that ends when a step is logged, before it is checked or saved."""

    def progress(done, total, text):
        if done == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_distillation(folder, settings, progress=progress)


def saved_settings(folder):
    return DistillationSettings(**RunFolder(folder).read_settings()[0])


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_run_leaves_a_model_a_log_and_its_settings(settings, images, tmp_path):
    """The model loads with the teacher's preprocessing and labels; every step and check is logged."""
    done = []
    summary = run_distillation(tmp_path / "run", settings, progress=lambda *n: done.append(n[:2]))
    made = {"model.safetensors", "log.jsonl", "config.yaml", "state.safetensors"}
    assert {f.name for f in (tmp_path / "run").iterdir()} == made
    model = xai_abn.load_model(tmp_path / "run/model.safetensors")
    assert model.is_abn
    assert model.preprocess.to_dict() == xai_abn.load_model(settings.model).preprocess.to_dict()
    assert model.labels == tuple(f"c{i}" for i in range(10))
    assert xai_abn.explain(model, str(images / "00.png"), ["abn"])["abn"].map.shape == (4, 4)
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    checks = [r["step"] for r in records if r["kind"] == "check"]
    assert checks == [0, 2, 4, 6] == [c["step"] for c in summary.checks]
    assert done == [(i, 6) for i in range(1, 7)]
    training = read_checkpoint(summary.checkpoint)[0].training
    assert training["steps_done"] == 6
    assert training["images"] + training["held_out"] == 20
    assert training["map_check"]["verdict"] in ("upright", "inverted", "undecided", "flat")
    assert saved_settings(tmp_path / "run") == settings


def test_the_checkpoint_names_no_folder_of_this_machine(settings, tmp_path, images, classifier):
    """Folders and paths are left out of its header; the command in it shows what was not the default."""
    run_distillation(tmp_path / "first", changed(settings, steps=1))
    again = changed(settings, steps=1, continue_from=str(tmp_path / "first/model.safetensors"), exclude=("19",))
    run_distillation(tmp_path / "second", again)
    training = read_checkpoint(tmp_path / "second/model.safetensors")[0].training
    text = json.dumps(training)
    assert not any(str(folder) in text for folder in (tmp_path, images, classifier.parent))
    assert "--model tiny.safetensors" in training["command"]
    assert "--exclude 19" in training["command"]
    assert "--continue-from model.safetensors" in training["command"]
    assert [record["settings"]["steps"] for record in training["earlier"]] == [1]


def test_a_killed_run_resumes_to_the_same_weights(settings, tmp_path, monkeypatch):
    """Killed between two checks and resumed, a run makes bit by bit the weights of one that was not, and its log."""
    run_distillation(tmp_path / "whole", settings)
    losses = DistillationObjective.losses

    def fatal(self, batch, step):
        if step == 4:
            raise KeyboardInterrupt
        return losses(self, batch, step)

    monkeypatch.setattr(DistillationObjective, "losses", fatal)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(tmp_path / "killed", changed(settings, check_every=3))
    monkeypatch.undo()
    with (tmp_path / "killed/log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    done = []
    run_distillation(
        tmp_path / "killed", changed(settings, check_every=3), resume=True, progress=lambda *n: done.append(n)
    )
    assert len(done) == 3
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    records = [json.loads(line) for line in (tmp_path / "killed/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]


def test_a_signal_saves_the_state_between_two_checks(settings, tmp_path):
    """The command that goes on is told, and makes the same weights."""

    def signaled(done, total, said=""):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    run_distillation(tmp_path / "whole", settings)
    run = tmp_path / "run"
    advice = f"^the state after step 3 is saved; continue with xai-abn distill --resume --output {run}$"
    with pytest.raises(KeyboardInterrupt, match=advice):
        run_distillation(run, settings, progress=signaled)
    assert read_state(run / "state.safetensors").position.step == 3
    run_distillation(run, settings, resume=True)
    assert same(weights(tmp_path / "whole"), weights(run))


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_resumes_with_its_own_settings(settings, tmp_path, step):
    """Resumed from its own config.yaml it makes the same weights; a finished one is left alone."""
    run_distillation(tmp_path / "whole", settings)
    interrupted_run(tmp_path / "run", settings, step)
    settings = saved_settings(tmp_path / "run")
    assert run_distillation(tmp_path / "run", settings, resume=True).done == 6
    first, second = RunFolder(tmp_path / "run").read_settings()[1]["commands"]
    assert first.startswith("xai-abn distill --")
    assert f"--images {settings.images[0]}" in first
    assert second == f"xai-abn distill --resume --output {tmp_path / 'run'}"
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    before = (tmp_path / "run/model.safetensors").stat().st_mtime_ns
    again = run_distillation(tmp_path / "run", settings, resume=True)
    assert [c["step"] for c in again.checks] == [0, 2, 4, 6]
    assert (tmp_path / "run/model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_only_changed_on_request(settings, tmp_path, images, monkeypatch):
    """Another run's folder, other settings, images and weights, and a lost state are refused, and nothing changes."""
    run = tmp_path / "run"
    with pytest.raises(RunError, match="no run to resume"):
        run_distillation(run, settings, resume=True)
    interrupted_run(run, settings, 3)
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite"):
        run_distillation(run, settings)
    with pytest.raises(RunError, match=r"lr was 0\.0001 and is 0\.01"):
        run_distillation(run, changed(settings, lr=0.01), resume=True)
    with pytest.raises(ImageLoadError, match="no such file or folder"):
        run_distillation(run, changed(settings, images=("gone",)), overwrite=True)
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before
    shutil.copytree(images, tmp_path / "fewer", ignore=shutil.ignore_patterns("03.png", "04.png"))
    with pytest.raises(RunError, match="made with other images"):
        run_distillation(run, changed(settings, images=(str(tmp_path / "fewer"),)), resume=True)
    build = DistillationSettings.load

    def other(*arguments):
        adapter = build(*arguments)
        with torch.no_grad():
            next(adapter.module.parameters()).add_(1)
        return adapter

    monkeypatch.setattr(DistillationSettings, "load", other)
    with pytest.raises(RunError, match="another classifier"):
        run_distillation(run, settings, resume=True)
    monkeypatch.undo()
    (run / "state.safetensors").unlink()
    with pytest.raises(RunError, match=r"state.safetensors is missing.*model.safetensors, are unchanged"):
        run_distillation(run, settings, resume=True)
    assert run_distillation(run, changed(settings, steps=1), overwrite=True).done == 1
    with pytest.raises(InvalidInputError, match="give one of them"):
        run_distillation(run, settings, resume=True, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="it is a file"):
        run_distillation(tmp_path / "file", settings)


def test_a_damaged_state_is_refused(settings, tmp_path):
    """A state cut short, or of another network, is an error of its own."""
    run = tmp_path / "run"
    interrupted_run(run, settings, 3)
    whole = (run / "state.safetensors").read_bytes()
    (run / "state.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable"):
        run_distillation(run, settings, resume=True)
    (run / "state.safetensors").write_bytes(whole)
    state = read_state(run / "state.safetensors")
    state.tensors["network"]["attention_branch.att_conv3.weight"] = torch.zeros(2)
    save_state(run / "state.safetensors", state)
    with pytest.raises(CheckpointError, match="does not fit"):
        run_distillation(run, settings, resume=True)


def test_a_loss_that_is_not_finite_keeps_the_last_good_model(settings, tmp_path, monkeypatch):
    """The error names the step, the learning rate and the step that is kept; the model there is finite."""
    losses = distillation.distillation_losses
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        terms = losses(*arguments)
        return {**terms, "loss": terms["loss"] * (float("nan") if len(calls) == 4 else 1)}

    monkeypatch.setattr(distillation, "distillation_losses", poisoned)
    with pytest.raises(
        NonFiniteError, match=r"nan at step 4 .*with learning rate .*last good state is .*state.safetensors"
    ):
        run_distillation(tmp_path / "run", settings)
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values() if t.is_floating_point())


def test_a_full_disk_keeps_what_was_saved(settings, tmp_path, monkeypatch):
    """When the third save fails, the run stops with one error and the second checkpoint is whole."""
    save = crops.save_checkpoint
    calls = []

    def full(path, *rest, **more):
        calls.append(1)
        if len(calls) == 3:
            (path.with_name(path.name + ".part")).write_bytes(b"half")
            raise OutputError(f"cannot write checkpoint {path}: No space left on device")
        save(path, *rest, **more)

    monkeypatch.setattr(crops, "save_checkpoint", full)
    with pytest.raises(OutputError, match="No space left"):
        run_distillation(tmp_path / "run", settings)
    assert read_checkpoint(tmp_path / "run/model.safetensors")[0].training["steps_done"] == 2
    monkeypatch.undo()
    assert run_distillation(tmp_path / "run", settings, resume=True).done == 6


def test_continuing_from_another_classifiers_network_is_refused(settings, classifier, tmp_path):
    """A network made of another classifier does not get this one's head as a teacher."""
    run_distillation(tmp_path / "first", changed(settings, steps=1, half=True))
    made = str(tmp_path / "first/model.safetensors")
    run_distillation(tmp_path / "more", changed(settings, steps=1, continue_from=made))
    description, state = read_checkpoint(classifier)
    network = create_model("timm:test_resnet", 10, mechanism=None)
    network.load_state_dict({name: value * 1.5 if value.dim() == 4 else value for name, value in state.items()})
    save_checkpoint(tmp_path / "other.safetensors", network, description)
    mixed = changed(settings, model=str(tmp_path / "other.safetensors"), continue_from=made)
    with pytest.raises(CheckpointError, match="was made of another classifier than"):
        run_distillation(tmp_path / "run", mixed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"images": ()}, ImageLoadError, "no images to train on"),
        ({"images": ("nothing/",)}, ImageLoadError, "nothing/: no such file or folder"),
        ({"exclude": (".png",)}, ImageLoadError, "no images found"),
        ({"batch_size": 17}, InvalidInputError, "a batch of 17 needs as many images to train on, got 16"),
        ({"model": "lite1"}, UnknownNameError, "did you mean 'lite0'"),
        ({"model": "abn-lite0"}, UnsupportedModelError, "Attention Branch Network already"),
        ({"model": "small"}, UnsupportedModelError, "plug-in"),
        ({"model": "timm:vit_tiny_patch16_224", "weights": "random"}, UnsupportedModelError, "Vision Transformer"),
        ({"mechanism": "sum"}, UnknownNameError, "mechanism"),
        ({"layer": "layer9"}, UnknownNameError, "layer9"),
        ({"continue_from": "gone.safetensors"}, CheckpointError, "gone.safetensors"),
        ({"device": "nonsense"}, InvalidInputError, "cannot use device"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    settings, tmp_path, gap_net, monkeypatch, values, error, message
):
    """Each mistake is one error of its own, and there is no folder afterwards."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    with pytest.raises(error, match=message):
        run_distillation(tmp_path / "run", changed(settings, **values))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"lr": 0.0, "perception_lr": 0.0, "map_lr": 0.0}, "nothing would be trained"),
        ({"warmup": 1.5}, "warmup"),
        ({"on_unreadable": "weep"}, "known: skip, stop"),
        ({"least_area": 0.0}, "least_area"),
        ({"held_out": 0}, "held_out must be at least 1"),
        ({"check_every": 0}, "check_every"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    """The message names the setting and what it may be."""
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        DistillationSettings(**values)


def test_settings_from_yaml_are_checked(tmp_path):
    """Numbers such as 1e-4, which YAML reads as text, are understood; unknown names and kinds are refused."""
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-3\nimages: one\nsteps: 7\nbf16: false\nstop_after: null\n")
    assert DistillationSettings(**{**read_settings(file)[0], "steps": 8}) == DistillationSettings(
        lr=1e-3, images=("one",), steps=8, bf16=False
    )
    for text, error, message in [
        ("stepps: 3", UnknownNameError, "did you mean 'steps'"),
        ("steps: many", InvalidInputError, "whole number, got 'many'"),
        ("steps: true", InvalidInputError, "whole number"),
        ("lr: [1]", InvalidInputError, "a number"),
        ("bf16: 1", InvalidInputError, "true or false"),
        ("- 1", InvalidInputError, "expected lines such as"),
        ("a: [", InvalidInputError, "not a readable YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(error, match=message):
            DistillationSettings(**read_settings(file)[0])


def test_unreadable_images_are_skipped_or_stop_the_run(settings, images, tmp_path):
    """Skipped images are named once each; with stop the first ends the run; a folder of them never starts."""
    shutil.copytree(images, tmp_path / "images")
    for name in ("bad-1.png", "bad-2.png"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    some = changed(settings, images=(str(tmp_path / "images"),))
    summary = run_distillation(tmp_path / "skip", some)
    assert sorted(re.findall(r"bad-\d", " ".join(summary.unreadable))) == ["bad-1", "bad-2"]
    for workers in (0, 1):
        with pytest.raises(ImageLoadError, match=r"bad-\d.png: not an image"):
            run_distillation(tmp_path / f"stop-{workers}", changed(some, on_unreadable="stop", workers=workers))
    for file in (tmp_path / "images").glob("[0-9]*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ImageLoadError, match="none of the 22 images can be read"):
        run_distillation(tmp_path / "none", some)


def test_held_out_images_are_not_trained_on(images, tmp_path):
    """They and their copies under other names are not among the rest; they stay the same when the folder moves."""
    shutil.copytree(images, tmp_path / "a" / images.name)
    samples = find_samples([tmp_path / "a" / images.name])
    held = hold_out(samples, Preprocess(size=SIZE), 3)
    out = {s.source for s in samples} - {s.source for s in held.rest}
    assert held.inputs.shape == (3, 3, SIZE, SIZE)
    assert len(out) == 3
    copy = str(tmp_path / "copy.png")
    shutil.copy(min(out), copy)
    assert Sample(copy) not in hold_out([*samples, *samples, Sample(copy)], Preprocess(size=SIZE), 3).rest
    elsewhere = find_samples([images])
    moved = set(elsewhere) - set(hold_out(elsewhere, Preprocess(size=SIZE), 3).rest)
    assert {s.source.rsplit("/")[-1] for s in moved} == {p.rsplit("/")[-1] for p in out}
    assert len(hold_out(samples, Preprocess(size=SIZE), 64).inputs) == 4
    with pytest.raises(InvalidInputError, match="none is left"):
        hold_out(samples[:1], Preprocess(size=SIZE), 1)


def test_draws_depend_on_seed_and_number_alone():
    """Each epoch shows every image once, in an order of its own; starting later or with workers changes nothing."""
    images = [torch.tensor([float(i)]) for i in range(5)]
    draws = InfiniteCrops(images, seed=3)
    epochs = [[int(draws[n]) for n in range(start, start + 5)] for start in (0, 5)]
    assert [sorted(e) for e in epochs] == [[0, 1, 2, 3, 4]] * 2
    assert epochs[0] != epochs[1]

    class Random(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return index + torch.rand(1, 1, 1)

    network = xai_abn.abn_from(GapNet(), layer="features.1", input_size=SIZE)

    def drawn(steps, workers):
        settings = DistillationSettings(batch_size=3, seed=1, workers=workers)
        objective = DistillationObjective(network, Random(), settings)
        crops = [batch.images for batch in objective.batches(0, steps.start, steps.stop)]
        return torch.cat(crops).flatten().tolist()

    state = torch.get_rng_state()
    whole = drawn(range(6), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn(range(2, 6), 0) == whole[6:]
    assert drawn(range(6), 2) == whole
    assert len(set(whole)) == 18


class Lamp(nn.Module):
    """An attention branch whose map lights the bright positions, or the dark ones, or all alike."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, features):
        grey = features.mean(dim=1, keepdim=True)
        return features.mean(dim=(2, 3))[:, :2], torch.sigmoid(self.sign * grey), features


@pytest.mark.parametrize(("sign", "verdict"), [(2.0, "upright"), (-2.0, "inverted"), (1e-4, "flat"), (0.0, "flat")])
def test_a_map_is_said_to_be_upright_inverted_or_flat(sign, verdict):
    """The class is bright spots: a map that lights them is upright, one that lights the rest is inverted."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        head[2].weight.copy_(torch.tensor([[3.0] * 3, [-3.0] * 3]))
        head[2].bias.zero_()
    network = AttentionBranchNetwork(nn.AvgPool2d(4), Lamp(sign), head, Residual(3))
    inputs = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1 - 0.2
    inputs[:, :, 8:20, 8:20] += 4
    modes = [m.training for m in network.modules()]
    check = check_map(network, head, inputs, batch_size=5)
    assert [m.training for m in network.modules()] == modes
    assert check.verdict == verdict
    assert check.images == 12
    assert check.agreement == 1
    assert (check.warning is None) == (verdict == "upright")
    if verdict != "upright":
        assert f"the map is {verdict}" in check.warning
    if verdict != "flat":
        assert (check.kept > check.hidden) == (sign > 0)
        assert (check.upright > 0.9) == (sign > 0)
    assert json.loads(json.dumps(check.to_dict(), allow_nan=False))["verdict"] == verdict


def test_a_polarity_of_next_to_nothing_is_undecided(small_abn, inputs):
    """One value has no standard error, and an untrained network's answers do not depend on what is removed."""
    network = small_abn.module
    assert check_map(network, network.perception_branch, inputs[:1]).verdict == "undecided"
    assert check_map(network, network.perception_branch, inputs).verdict == "undecided"


def call(*arguments):
    """Run the command as main() does: a mistake is one line on stderr and exit code 1."""
    result = CliRunner().invoke(app, ["distill", *map(str, arguments)], env={"COLUMNS": "250"})
    if isinstance(result.exception, XaiAbnError):
        return 1, result.stdout, result.stderr + f"xai-abn: {result.exception.line}\n"
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_distills_warns_and_resumes(classifier, images, tmp_path, monkeypatch):
    """It prints each check; a map that is wrong is a warning on stderr; --resume needs nothing else but the folder."""
    check = distillation.check_map

    def inverted(*arguments):
        found = check(*arguments)
        return replace(found, verdict="inverted", polarity=-0.2, upright=0.1)

    monkeypatch.setattr(distillation, "check_map", inverted)
    small = ["--steps", 3, "--batch-size", 4, "--mosaics", 0, "--workers", 0, "--no-bf16", "--check-every", 2]
    asked = ["--model", classifier, "--images", images, *small]
    step = DistillationObjective.losses

    def fatal(self, batch, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(DistillationObjective, "losses", fatal)
    assert call(*asked, "-o", tmp_path / "run")[0] == 130
    monkeypatch.setattr(DistillationObjective, "losses", step)
    code, out, err = call("--resume", "-o", tmp_path / "run")
    assert code == 0
    assert "3 of 3 steps" in out
    assert "warning: the map is inverted" in err
    assert "above 0 on 10%" in err
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["0", "2", "3", f"{tmp_path}/run/model.safetensors:"]
    training = read_checkpoint(tmp_path / "run/model.safetensors")[0].training
    assert "the map is inverted" in training["map_check"]["warning"]
    code, out, err = call(*asked, "-o", tmp_path / "run")
    assert (code, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert "resume it (--resume)" in err
    code, _, err = call("--config", tmp_path / "run/config.yaml", "-o", tmp_path / "other", "--steps", 1, "--lr", 0.01)
    assert code == 0, err
    assert read_checkpoint(tmp_path / "other/model.safetensors")[0].training["settings"]["lr"] == 0.01


def test_every_setting_is_an_option_with_its_own_words():
    """Each setting of a distillation and of a training run is an option, explained as in its class."""
    from typing import get_args

    from xai_abn.cli import distill, train

    for module, kind in ((distill, DistillationSettings), (train, TrainingSettings)):
        annotations = module.command.__annotations__
        for name, default, description in kind.describe():
            help_text = get_args(annotations[name])[1].help
            assert re.match(r"[A-Z'].{15,}[.]", description)
            assert help_text.startswith(description)
            if default:
                assert help_text.endswith(f"[default: {default}]")
    required = [get_args(m.command.__annotations__[n])[1].help for m, n in ((train, "data"), (distill, "images"))]
    assert all(text.endswith("[required, unless --config or --resume gives it]") for text in required)
