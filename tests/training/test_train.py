"""Training: the loop, its files, killing and resuming, several ranks, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import load_file
from support import call as run_command

from xai_abn import load_model
from xai_abn import signals as signals_received
from xai_abn.cli.main import app
from xai_abn.cli.settings import telling_how_to_resume
from xai_abn.datasets import read_training_data
from xai_abn.errors import (
    CheckpointError,
    DatasetError,
    InvalidInputError,
    NonFiniteError,
    OutputError,
    RunError,
    UnknownNameError,
    UnsupportedModelError,
)
from xai_abn.networks.architectures import create_model
from xai_abn.training import loop, make_training_settings, train
from xai_abn.training.evaluate import evaluation_sums
from xai_abn.training.log import read_log
from xai_abn.training.losses import classification_losses
from xai_abn.training.ranks import synchronize_batch_norms
from xai_abn.training.run_folder import STATE
from xai_abn.training.settings import TrainingSettings, published_recipe, read_settings, resumed_settings
from xai_abn.training.state import FORMAT, Position, State, read_state, save_state
from xai_abn.training.supervised import (
    BEST,
    FINAL,
    RESULT,
    LeftOutWarning,
    build_network,
    load_backbone,
    validation_key,
)

CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Return a folder of CIFAR-10's form: 200 + 50 noisy images whose class is the brightness of one corner."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 5)):
        for number, label in enumerate(CLASSES):
            images = rng.integers(0, 60, (count, 3, 32, 32), dtype=np.uint8)
            images[:, number % 3, :16, (number // 3) * 8 : (number // 3) * 8 + 8] = 250
            (folder / part / label).mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / part / label / f"{i:02}.png")
    return folder


def settings(cifar, **more):
    given = {"data": f"cifar10:{cifar}", "epochs": 2, "batch_size": 20, "log_every": 3, "maps_every": 1, "lr": 0.02}
    return make_training_settings({**given, "milestones": None if more.get("epochs") == 1 else (1.5,), **more})


def flags(cifar, output, **more):
    given = {"data": f"cifar10:{cifar}", "epochs": 2, "batch-size": 20, "log-every": 3, "lr": 0.02}
    given |= {"save-minutes": 0, **({} if more.get("epochs") == 1 else {"milestones": 1.5}), **more}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["train", "--output", str(output), "--quiet", *words]


PROGRAM = (sys.executable, "-m", "xai_abn.cli")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def call(command):
    ranks = {"OMP_NUM_THREADS": "1"}  # of each rank, or they wait for each other's threads
    done = subprocess.run(command, env={**os.environ, **ranks}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(cifar, tmp_path_factory):
    """Return the folder of a finished run, and what it gave."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(settings(cifar), folder)


def test_a_run_leaves_everything_it_promises(run):
    """Settings, log, curves, maps, state, two loadable models and the result are there and agree."""
    folder, result = run
    made = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    models = {STATE, BEST, FINAL}
    assert made == {
        "config.yaml",
        "log.jsonl",
        "curves.png",
        RESULT,
        *models,
        "maps/epoch_001.png",
        "maps/epoch_002.png",
    }
    assert json.loads((folder / RESULT).read_text()) == result
    epochs = read_log(folder / "log.jsonl", "epoch")
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert result["final"]["validation_accuracy"] == pytest.approx(epochs[-1]["validation_accuracy"], abs=1e-5)
    model = load_model(folder / FINAL)
    assert model.labels == CLASSES
    assert model.preprocess.size == 32
    assert "command" in (folder / "config.yaml").read_text()


def test_the_test_accuracy_is_the_saved_models(run, cifar):
    """Loaded again, the last epoch's network gets as much right on the test images as the result says."""
    folder, result = run
    test = read_training_data(f"cifar10:{cifar}").test
    model = load_model(folder / FINAL)
    batch = next(iter(test.load([torch.arange(len(test))], torch.device("cpu"), None)))
    with torch.no_grad():
        right = (model.module(batch.images).logits.argmax(dim=1) == batch.targets).float().mean()
    assert result["final"]["test_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_it_learns(run):
    """The loss of the second epoch is below that of the first, and accuracy above chance."""
    epochs = read_log(run[0] / "log.jsonl", "epoch")
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert epochs[1]["accuracy"] > 0.15


def steps_saved(folder):
    position = read_state(folder / STATE).position
    return position.epoch * 9 + position.step


def same(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_killed_run_resumes_to_the_same_bits(run, cifar, tmp_path):
    """Killed -9 in the middle and resumed, the weights and the log are those of an undisturbed run."""
    folder, whole = tmp_path / "run", run[0]
    process = subprocess.Popen([*PROGRAM, *flags(cifar, folder)], env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not ((folder / STATE).exists() and steps_saved(folder) > 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < steps_saved(folder) < 18
    assert not (folder / RESULT).exists()
    train(settings(cifar), folder, resume=True)
    assert all(same(whole / name, folder / name) for name in (FINAL, BEST))
    logs = [read_log(f / "log.jsonl", "epoch") for f in (whole, folder)]
    timeless = [[{**line, "seconds": 0} for line in log] for log in logs]
    assert timeless[0] == timeless[1]


@pytest.mark.skipif(os.name == "nt", reason="signals are those of Unix")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_the_step_and_says_how_to_go_on(images, tmp_path, number, code):
    """Ctrl-C, which the process that reads images gets too, and SIGTERM; resumed, it ends with the same bits."""
    folder = tmp_path / "run"
    options = ["--arch", "resnet20", "--size", "32", "--epochs", "4000", "--batch-size", "8", "--milestones", "1,1.5"]
    options += ["--log-every", "1000", "--save-minutes", "1000", "--maps-every", "0", "--workers", "1", "--quiet"]
    command = [*PROGRAM, "train", "--data", f"images:{images}", "--output", str(folder), *options]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not ((folder / STATE).exists() and read_state(folder / STATE).position.epoch > 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = read_state(folder / STATE).position
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    after = read_state(folder / STATE).position
    assert (after.epoch, after.step) >= (before.epoch, before.step)  # the signal may come while that is saved
    step = after.epoch * (32 // 8) + after.step
    advice = f"continue with xai-abn train --resume --output {folder}"
    assert said.splitlines()[-1] in (
        f"xai-abn: interrupted; the state after step {step} is saved; {advice}",
        # of a process that reads images which the signal ended before it could ignore it
        f"xai-abn: interrupted; the last saved state is kept; {advice}",
    )
    assert "Traceback" not in said
    saved = make_training_settings(read_settings(folder / "config.yaml")[0])
    short = saved.replace(epochs=after.epoch + 1)
    train(short, folder, resume=True)
    train(short, tmp_path / "whole")
    assert same(folder / FINAL, tmp_path / "whole" / FINAL)


def test_a_signal_in_the_last_epoch_ends_the_run_before_its_test(run, cifar, tmp_path):
    """The state is saved, and the command that goes on is told; other interruptions tell it, too."""
    folder = tmp_path / "a run"

    def signaled(done, total, said=""):
        if done == total:
            signal.raise_signal(signal.SIGINT)

    command = shlex.join(["xai-abn", "train", "--resume", "--output", str(folder)])
    message = f"the state after step 18 is saved; continue with {command}"
    with pytest.raises(KeyboardInterrupt, match=f"^{re.escape(message)}$"):
        train(settings(cifar), folder, progress=signaled)
    assert not (folder / FINAL).exists()
    for place, said in ((folder, f"the last saved state is kept; continue with {command}"), (tmp_path, "")):
        with pytest.raises(KeyboardInterrupt, match=f"^{re.escape(said)}$"), telling_how_to_resume("train", place):
            raise KeyboardInterrupt  # while the network is tested, or before anything was written
    train(settings(cifar), folder, resume=True)
    assert same(folder / FINAL, run[0] / FINAL)


def test_a_second_signal_acts_at_once(monkeypatch):
    """The first is held back until the state is saved; afterwards the handlers are the caller's again."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with loop._SignalsHeldBack(wanted=True) as signals:
        for _ in range(2):  # at once, as of a scheduler that sends several
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        monkeypatch.setattr(signals_received, "TOGETHER", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signals = loop._SignalsHeldBack(wanted=True).__enter__()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.__exit__(RuntimeError)  # torch's, of a process that reads images
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Cut(BaseException):
    """Stands for a kill."""


def cut_at(step):
    def progress(done, total, text):
        if done == step:
            raise Cut

    return progress


@pytest.fixture
def images(tmp_path):
    """Return a folder of 3 x 12 noisy images of different sizes; the class is a color."""
    rng = np.random.default_rng(1)
    for channel, label in enumerate(("red", "green", "blue")):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(12):
            image = rng.integers(0, 120, (40 + i, 64, 3), dtype=np.uint8)
            image[:, :, channel] += 120
            Image.fromarray(image).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


def test_a_run_cut_within_an_epoch_resumes_to_the_same_bits(images, tmp_path):
    """With dropout, a moving average, and images that a worker reads; where the data has moved meanwhile, too."""
    given = {"arch": "torchvision:squeezenet1_1", "mechanism": "none", "size": 64, "ema": 0.8, "epochs": 2, "lr": 0.01}
    given |= {"batch_size": 8, "workers": 1, "log_every": 1, "save_minutes": 0.0}
    config = make_training_settings(given, {"data": f"images:{images}"})
    train(config, tmp_path / "whole")
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut_at(3))
    assert read_state(tmp_path / "cut" / STATE).position.step == 2
    images.rename(tmp_path / "elsewhere")
    moved = config.replace(data=f"images:{tmp_path / 'elsewhere'}")
    train(moved, tmp_path / "cut", resume=True)
    assert same(tmp_path / "whole" / FINAL, tmp_path / "cut" / FINAL)
    ends = [read_state(tmp_path / name / STATE).tensors for name in ("whole", "cut")]
    assert all(torch.equal(v, ends[1][group][k]) for group, values in ends[0].items() for k, v in values.items())
    assert ends[0].keys() == {"network", "optimizer", "average"}


def test_a_run_resumes_without_the_weights_file_it_started_from(cifar, tmp_path):
    """The state holds what became of them."""
    torch.save(create_model("resnet20", 10, mechanism=None).state_dict(), tmp_path / "w.pth")
    config = settings(cifar, weights=str(tmp_path / "w.pth"), mechanism="none", maps_every=0)
    train(config, tmp_path / "whole")
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut_at(12))
    (tmp_path / "w.pth").unlink()
    train(config, tmp_path / "cut", resume=True)
    assert same(tmp_path / "whole" / FINAL, tmp_path / "cut" / FINAL)


LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_ranks_do_what_one_does_where_images_are_missing(images, tmp_path):
    """Unreadable images weigh nothing, however they fall on the ranks; activations in timm's BatchNorms stay."""
    for label, number in (("red", 3), ("red", 7), ("green", 1), ("blue", 0), ("blue", 5)):
        (images / label / f"{number}.png").write_bytes(b"broken")
    given = {"data": f"images:{images}", "arch": "timm:mobilenetv3_small_050", "mechanism": "none", "size": 64}
    given |= {"batch_size": 8, "workers": 0, "log_every": 1, "epochs": 1, "lr": 1e-4}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    call([*LAUNCHER, "-m", "xai_abn.cli", "train", "--output", str(tmp_path / "two"), "--quiet", *words])
    train(make_training_settings(given), tmp_path / "one")
    one, two = (read_log(tmp_path / n / "log.jsonl", "step") for n in ("one", "two"))
    assert sum(line["skipped"] for line in one) >= 3
    for a, b in zip(one, two, strict=True):
        assert b["skipped"] == a["skipped"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=1e-6)
    ends = [load_file(tmp_path / n / FINAL) for n in ("one", "two")]
    auxiliary = ["--data", f"images:{images}", "--arch", "resnet20", "--mechanism", "auxiliary", "--size", "32"]
    auxiliary += ["--batch-size", "8", "--workers", "0", "--epochs", "1", "--quiet", "--output", str(tmp_path / "aux")]
    call([*LAUNCHER, "-m", "xai_abn.cli", "train", *auxiliary])  # what is frozen stays so
    statistics = [name for name in ends[0] if name.endswith(("running_mean", "running_var"))]
    for name in statistics:
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=1e-3, atol=1e-5)
    results = [json.loads((tmp_path / n / RESULT).read_text()) for n in ("one", "two")]
    assert results[1]["best"]["validation_loss"] == pytest.approx(results[0]["best"]["validation_loss"], rel=1e-3)


def test_a_batch_norm_that_cannot_be_joined_is_refused():
    """What another BatchNorm does besides is not thrown away silently."""

    class Own(torch.nn.BatchNorm2d):
        pass

    with pytest.raises(UnsupportedModelError, match="1 is a Own, whose statistics cannot be joined"):
        synchronize_batch_norms(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Own(4)))


def test_two_ranks_do_what_one_does(cifar, tmp_path):
    """At the same global batch torchrun's two gloo ranks give one rank's losses and updates, but for rounding.

    The rate is small because a network in training amplifies rounding; the updates are compared with their own size.
    """
    call([*LAUNCHER, "-m", "xai_abn.cli", *flags(cifar, tmp_path / "two", epochs=1, lr=1e-4)])
    train(settings(cifar, epochs=1, lr=1e-4), tmp_path / "one")
    one, two = (read_log(tmp_path / n / "log.jsonl", "step") for n in ("one", "two"))
    assert [line["step"] for line in one] == [3, 6, 9]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = dict(build_network(settings(cifar), read_training_data(f"cifar10:{cifar}")).named_parameters())
    ends = [load_file(tmp_path / n / FINAL) for n in ("one", "two")]
    moved, between = ([torch.sum((ends[0][k] - other[k].detach()) ** 2) for k in start] for other in (start, ends[1]))
    assert sum(between) < 0.05**2 * sum(moved)
    results = [json.loads((tmp_path / n / RESULT).read_text()) for n in ("one", "two")]
    assert [r["ranks"] for r in results] == [1, 2]
    assert results[1]["final"]["validation_loss"] == pytest.approx(results[0]["final"]["validation_loss"], rel=1e-3)


def test_a_finished_run_goes_on_to_more_epochs(run, cifar, tmp_path):
    """To the bits of a run that had as many from the start, if its steps had the learning rates they would have had."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    result = train(settings(cifar, epochs=3), folder, resume=True)
    train(settings(cifar, epochs=3), tmp_path / "whole")
    assert result["epochs"] == 3
    ends = [load_file(path / FINAL) for path in (folder, tmp_path / "whole")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert [line["epoch"] for line in read_log(folder / "log.jsonl", "epoch")] == [1, 2, 3]
    assert f"--resume --epochs 3 --output {folder}" in " ".join((folder / "config.yaml").read_text().split())
    for other, message in (
        ({"epochs": 4, "milestones": (1,)}, r"would have had another learning rate; keep it with milestones 1\.5"),
        ({"epochs": 4, "milestones": None}, r"keep it with milestones 1\.5"),
        ({"epochs": 1}, r"the run has done 3 epochs; it cannot end after 1"),
    ):
        with pytest.raises(RunError, match=message):
            train(settings(cifar, **other), folder, resume=True)
    cosine = settings(cifar, epochs=1, schedule="cosine")
    train(cosine, tmp_path / "cosine")
    with pytest.raises(RunError, match="a cosine schedule cannot be extended, so start a new run"):
        train(cosine.replace(epochs=2), tmp_path / "cosine", resume=True)


def test_more_epochs_on_the_command_line_leave_the_milestones(cifar, tmp_path):
    """Also those that followed from the number of epochs; a note says so."""
    short = ["--validation", "0", "--maps-every", "0"]
    start = [*flags(cifar, tmp_path / "run", epochs=1), *short]
    for command in (start, ["train", "--output", str(tmp_path / "run"), "--resume", "--epochs", "2", "--quiet"]):
        code, _, err = run_command(*command)
        assert code == 0, err
    assert "note: the run continues to 2 epochs; the learning rate still falls after epochs 0.5, 0.75" in err
    rates = [line["lr"] for line in read_log(tmp_path / "run/log.jsonl", "step")]
    assert rates[-1] == pytest.approx(0.02 * 0.1 * 0.1)
    code, _, err = run_command("train", "--output", str(tmp_path / "run"), "--resume", "--epochs", "1", "--quiet")
    assert code == 1
    assert "the run has done 2 epochs; it cannot end after 1" in err


def test_milestones_behind_a_new_end_are_left_out(cifar):
    """So that a run which was stopped early can end early; a cosine has none."""
    run = settings(cifar, epochs=8).to_dict()
    assert resumed_settings({**run, "milestones": None}, {"epochs": 5}).milestones == (4.0,)
    assert resumed_settings({**run, "milestones": None}, {}).milestones is None
    assert resumed_settings({**run, "milestones": [6.0]}, {"epochs": 5}).milestones == ()
    assert resumed_settings({**run, "schedule": "cosine", "milestones": None}, {"epochs": 9}).milestones is None


def test_a_run_is_only_replaced_on_request(run, cifar, tmp_path):
    """A folder with a run is refused without overwrite; nothing to resume and other settings are refused, too."""
    folder, _ = run
    before = (folder / FINAL).read_bytes()
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite"):
        train(settings(cifar), folder)
    with pytest.raises(RunError, match=r"lr was 0\.02 and is 0\.3"):
        train(settings(cifar, lr=0.3), folder, resume=True)
    with pytest.raises(RunError, match="arch was 'resnet20' and is 'resnet32'"):
        train(settings(cifar, arch="resnet32"), folder, resume=True)
    with pytest.raises(RunError, match="no run to resume"):
        train(settings(cifar), tmp_path / "none", resume=True)
    assert (folder / FINAL).read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (
            {"arch": "torchvision:alexnet", "mechanism": "none"},
            InvalidInputError,
        ),  # the first batch is too small for it
        ({"mechanism": "residul"}, UnknownNameError),
        ({"batch_size": 800}, InvalidInputError),
        ({"weights": "no.pth"}, CheckpointError),
    ],
)
def test_a_mistake_costs_no_earlier_run(cifar, tmp_path, wrong, error):
    """With overwrite, too, nothing is touched before data, network and settings are found good."""
    train(settings(cifar, epochs=1, mechanism="none", milestones=None), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(error):
        train(settings(cifar, **wrong), tmp_path, overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    with pytest.raises(error):
        train(settings(cifar, **wrong), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore::xai_abn.datasets.splits.CopiesWarning")
def test_what_training_made_stays_where_the_test_cannot_be_read(images, tmp_path):
    """The last epoch's network and the curves are there; once the images are repaired, resume finishes the run."""
    (images / "train").mkdir()
    for label in ("red", "green", "blue"):
        (images / label).rename(images / "train" / label)
        (images / "test" / label).mkdir(parents=True)
        (images / "test" / label / "t.png").write_bytes(b"broken")
    given = {"arch": "resnet20", "mechanism": "none", "size": 32, "epochs": 1, "batch_size": 8, "workers": 0}
    config = make_training_settings(given, {"data": f"images:{images}"})
    with pytest.raises(DatasetError, match="none of the 3 images to evaluate on can be read"):
        train(config, tmp_path / "run")
    assert load_model(tmp_path / "run" / FINAL).labels == ("blue", "green", "red")
    assert (tmp_path / "run" / "curves.png").exists()
    for label in ("red", "green", "blue"):
        shutil.copy(images / "train" / label / "0.png", images / "test" / label / "t.png")
    assert "test_accuracy" in train(config, tmp_path / "run", resume=True)["final"]


def test_images_that_fill_no_batch_give_a_warning(cifar, tmp_path):
    """If they are more than a tenth of the images."""
    config = settings(cifar, epochs=1, mechanism="none", milestones=None, batch_size=100)
    with pytest.warns(
        LeftOutWarning, match="80 of 180 training images do not fill a batch of 100 and are skipped in each epoch"
    ):
        train(config, tmp_path / "run")


def test_of_epochs_as_accurate_the_one_of_lower_loss_is_best():
    """The first of equals is kept."""
    one = {"validation_accuracy": 0.5, "validation_loss": 2.0}
    assert validation_key({**one, "validation_loss": 1.0}) > validation_key(one)
    assert validation_key({**one, "validation_accuracy": 0.6, "validation_loss": 9.0}) > validation_key(one)
    assert not validation_key(one) > validation_key(one)
    assert validation_key(one) > validation_key({})


def test_overwriting_leaves_nothing_of_the_old_run(cifar, tmp_path):
    """Images of a longer run's maps are gone; what is somebody else's stays, and is not replaced unasked."""
    (tmp_path / "result.json").write_text("mine")
    with pytest.raises(RunError, match=r"result\.json"):
        train(settings(cifar), tmp_path)
    assert (tmp_path / "result.json").read_text() == "mine"
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "epoch_300.png").touch()
    (tmp_path / "notes.txt").touch()
    train(settings(cifar, epochs=1, milestones=None), tmp_path, overwrite=True)
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["epoch_001.png"]
    assert (tmp_path / "notes.txt").exists()
    with pytest.raises(InvalidInputError, match="give one of them"):
        train(settings(cifar), tmp_path, resume=True, overwrite=True)


def test_a_run_without_its_state_is_not_started_again(run, cifar, tmp_path):
    """It is refused, and its results stay."""
    for name in ("config.yaml", "log.jsonl", BEST, FINAL):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    with pytest.raises(RunError, match=r"state\.safetensors is missing"):
        train(settings(cifar), tmp_path, resume=True)
    assert (tmp_path / FINAL).read_bytes() == (run[0] / FINAL).read_bytes()
    for name in (BEST, FINAL):
        (tmp_path / name).unlink()
    with pytest.raises(RunError, match="lr was"):
        train(settings(cifar, lr=0.3), tmp_path, resume=True)


def typed(command):
    """The settings of a command of train, as the command line reads them."""
    name, *arguments = shlex.split(command)[1:]
    given = typer.main.get_command(app).commands[name].make_context(name, arguments).params
    return make_training_settings({k: v for k, v in given.items() if k in TrainingSettings.model_fields and v})


@pytest.mark.filterwarnings("ignore::xai_abn.training.supervised.LeftOutWarning")
def test_a_run_does_not_resume_with_other_data(cifar, tmp_path):
    """A class renamed or an image missing between kill and resume is refused; a lost log is not."""
    data = tmp_path / "data"
    shutil.copytree(cifar, data)
    config = settings(data, epochs=1, mechanism="none", milestones=None)
    train(config, tmp_path / "run")
    for part in ("train", "test"):
        (data / part / "a").rename(data / part / "z")
    with pytest.raises(RunError, match="the run was made with other data"):
        train(config, tmp_path / "run", resume=True)
    for part in ("train", "test"):
        (data / part / "z").rename(data / part / "a")
    (data / "train" / "b" / "19.png").rename(tmp_path / "19.png")
    with pytest.raises(RunError, match="the run was made with other data"):
        train(config, tmp_path / "run", resume=True)
    (tmp_path / "19.png").rename(data / "train" / "b" / "19.png")
    (tmp_path / "run" / "log.jsonl").unlink()
    train(config, tmp_path / "run", resume=True)
    first, second = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["commands"]
    assert "--mechanism none --epochs 1 --lr 0.02" in first
    assert second == f"xai-abn train --resume --output {tmp_path / 'run'}"
    assert typed(first) == config


def test_a_run_that_saved_nothing_starts_again(run, cifar, tmp_path):
    """Killed before its first checkpoint, a run is resumed from its start and becomes what it would have become."""
    (tmp_path / "config.yaml").write_bytes((run[0] / "config.yaml").read_bytes())
    (tmp_path / "log.jsonl").write_text("half a li")
    train(settings(cifar), tmp_path, resume=True)
    assert same(run[0] / FINAL, tmp_path / FINAL)


def test_damaged_and_newer_states_are_refused(run, cifar, tmp_path):
    """Truncated, foreign, newer: one clear error, and the files stay."""
    state = tmp_path / STATE
    whole = (run[0] / STATE).read_bytes()
    (tmp_path / "config.yaml").write_bytes((run[0] / "config.yaml").read_bytes())
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04not a safetensors file"):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable"):
            train(settings(cifar), tmp_path, resume=True)
        assert state.read_bytes() == content
    state.write_bytes((run[0] / FINAL).read_bytes())
    with pytest.raises(CheckpointError, match="not the state of a run"):
        read_state(state)
    save_state(state, State("train", {"network": {"a": torch.zeros(1)}}, Position(), None, {}))
    content = state.read_bytes().replace(b'"format_version":"2"', b'"format_version":"9"')
    state.write_bytes(content)
    assert FORMAT.encode() in content
    with pytest.raises(CheckpointError, match="newer xai-abn"):
        read_state(state)


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(cifar, tmp_path):
    """The message gives step, learning rate and the last good checkpoint, which is from before and finite."""
    config = settings(cifar, lr=1e18, warmup=1.0, epochs=3, save_minutes=0.0, log_every=1)
    with pytest.raises(NonFiniteError, match=r"step \d+ \(epoch 1\) with learning rate .*last good state is") as caught:
        train(config, tmp_path / "run")
    state = read_state(tmp_path / "run" / STATE)
    assert f" step {state.position.step + 1} " in str(caught.value)
    with pytest.raises(NonFiniteError) as late:
        train(config.replace(log_every=50), tmp_path / "late")
    for error in (caught, late):  # the rate is that step's, also where it is found out later
        found = re.search(r" step (\d+) .* learning rate (\S+);", str(error.value))
        assert found[2] == f"{config.rate((int(found[1]) - 1) / 9):.4g}"
    assert all(value.isfinite().all() for value in state.tensors["network"].values())


def test_a_full_disk_leaves_the_last_checkpoint(cifar, tmp_path, monkeypatch):
    """When a checkpoint cannot be written the run stops with one error, and the one before is whole."""
    from xai_abn.networks import checkpoint

    folder = tmp_path / "run"
    calls = []
    save = checkpoint.save_file

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) > 3:  # before the first epoch, and after it twice
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        train(settings(cifar), folder)
    assert read_state(folder / STATE).position.epoch == 1
    assert not list(folder.rglob("*.part"))


def test_settings_come_from_flags_then_file_then_recipe(cifar):
    """Later sources win, a recipe fills what none of them says, and YAML's odd numbers are read as numbers."""
    config = make_training_settings({"data": "cifar10:x", "lr": "1e-3", "epochs": 7}, {"epochs": 9}, preset="published")
    assert (config.lr, config.epochs, config.weight_decay, config.batch_size) == (1e-3, 9, 1e-4, 128)
    assert make_training_settings({"data": "x:y", "milestones": "3,4.5"}).drops == (3.0, 4.5)
    assert make_training_settings({"data": "x:y", "epochs": 30}).drops == (15.0, 22.5)
    assert make_training_settings({"data": "x:y"}, preset="published").drops == (150, 225)
    assert make_training_settings({"data": "x:y", "epochs": 30}, preset="published").drops == (15.0, 22.5)
    assert make_training_settings({"data": "x:y", "epochs": 30, "milestones": (9,)}, preset="published").drops == (9,)
    assert make_training_settings({"data": "x:y", "epochs": 30, "milestones": (9,)}, {"epochs": 10}).drops == (3,)
    assert make_training_settings({"data": "x:y", "milestones": (9,)}, {"epochs": 10}).drops == (9,)
    saved = {"data": "x:y", "arch": "resnet50", "epochs": 90, "milestones": None}
    assert make_training_settings(saved, preset="published").drops == (31, 61)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet110", {"epochs": 300, "batch_size": 128, "weight_decay": 1e-4, "milestones": (150, 225), "gamma": 0.1}),
        ("densenet-bc-100-12", {"epochs": 300, "batch_size": 64, "weight_decay": 1e-4}),
        ("wrn-28-10", {"epochs": 300, "weight_decay": 5e-4, "gamma": 0.2}),
        ("resnext29-8x64d", {"weight_decay": 5e-4, "gamma": 0.1}),
        ("resnet152", {"epochs": 90, "batch_size": 256, "milestones": (31, 61)}),
    ],
)
def test_recipes_are_those_published(arch, expected):
    """The released code's commands and logs: SGD 0.9, rate 0.1, these epochs, batches and drops."""
    recipe = published_recipe(arch)
    assert recipe["lr"] == 0.1
    assert {name: recipe[name] for name in expected} == expected


def test_the_learning_rate_follows_its_schedule():
    """Warm-up rises in a line; steps multiply at their epochs; a cosine ends at 0."""
    step = make_training_settings({"data": "x:y", "epochs": 10, "lr": 1.0, "warmup": 2.0, "milestones": (5, 8)})
    assert [step.rate(e) for e in (0, 1, 2, 4.99, 5, 8)] == pytest.approx([0, 0.5, 1, 1, 0.1, 0.01])
    cosine = make_training_settings({"data": "x:y", "epochs": 10, "lr": 1.0, "schedule": "cosine"})
    assert [cosine.rate(e) for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"epochs": 0}, InvalidInputError, "epochs must be at least 1"),
        ({"ema": 1.0}, InvalidInputError, "ema must be below 1"),
        ({"schedule": "cosin"}, UnknownNameError, "cosine"),
        ({"lr": "fast"}, InvalidInputError, "lr must be a number"),
        ({"lr": float("inf")}, InvalidInputError, "lr must be a finite number"),
        ({"gamma": -1.0}, InvalidInputError, "gamma must be above 0"),
        ({"warmup": -3.0}, InvalidInputError, "warmup must be at least 0"),
        ({"attention_weight": -5.0}, InvalidInputError, "attention_weight"),
        ({"maps_every": -1}, InvalidInputError, "maps_every"),
        ({"milestones": (1.0, 2.0)}, InvalidInputError, "milestones must lie within the 2 epochs"),
        ({"milestones": (-1.0,)}, InvalidInputError, "milestones must lie within the 2 epochs"),
        ({"warmup": 5.0}, InvalidInputError, "warmup and milestones must lie within"),
        ({"seed": 10**23}, InvalidInputError, "seed must be "),
        ({"milestones": 5}, InvalidInputError, "milestones must be a list"),
        ({"nesterov": True, "momentum": 0.0}, InvalidInputError, "nesterov needs momentum"),
        ({"mechanism": "none", "area_weight": 1.0}, InvalidInputError, "area_weight is for an attention branch"),
        ({"mechanism": "none", "maps": "per-attribute"}, InvalidInputError, "maps is for an attention branch"),
        ({"epoch": 3}, UnknownNameError, "epochs"),
        ({"mechanism": "residul"}, UnknownNameError, "residual"),
        ({"arch": "resnet21"}, InvalidInputError, r"the depth of a ResNet for CIFAR is 6n \+ 2, got 21"),
        ({"arch": "resent20"}, UnknownNameError, "resnet20"),
        ({"data": "cifar11:x"}, UnknownNameError, "cifar10"),
        ({"batch_size": 100000}, InvalidInputError, "no larger than the data"),
        (
            {"arch": "resnet18", "batch_size": 1},
            InvalidInputError,
            "resnet18 cannot be trained on a batch of 1x3x32x32",
        ),
        ({"arch": "torchvision:vit_b_16"}, UnsupportedModelError, "does not take an image of 32x32"),
        ({"arch": "timm:vit_tiny_patch16_224", "mechanism": "none"}, InvalidInputError, "doesn't match model"),
    ],
)
def test_wrong_settings_are_named(cifar, tmp_path, wrong, error, message):
    """A mistake gives one error that names it."""
    with pytest.raises(error, match=message):
        train(settings(cifar, **wrong), tmp_path / "run")
    assert not (tmp_path / "run" / BEST).exists()


def test_the_average_is_what_is_measured_and_saved(cifar, tmp_path):
    """With ema the saved weights are the moving average of the steps' weights, worked out by hand over one epoch."""
    config = settings(cifar, epochs=1, ema=0.7, maps_every=0, log_every=1, save_minutes=0.0, mechanism="none")
    weights = []

    def take(*_):
        weights.append(read_state(tmp_path / "run" / STATE).tensors["network"]["fc.weight"])

    train(config, tmp_path / "run", progress=take)
    take()
    average = weights[1]  # weights[0] are those before the first step
    for after in weights[2:]:
        average = 0.7 * average + 0.3 * after
    assert len(weights) == 10
    torch.testing.assert_close(load_file(tmp_path / "run" / FINAL)["fc.weight"], average)


def test_losses_are_the_published_ones():
    """CE + CE, the area penalty only where asked for, binary cross-entropy for attributes; by hand on small numbers."""
    from xai_abn import ABNOutput

    logits, branch = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    answer = ABNOutput(logits, branch, torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 2, 2, 2))
    ce = [float(torch.log1p(torch.exp(torch.tensor(x)))) for x in (-2.0, 1.0)]
    targets = torch.tensor([0])
    assert float(classification_losses(answer, targets)["loss"]) == pytest.approx(sum(ce))
    weighted = classification_losses(answer, targets, attention_weight=0.5, area_weight=2.0)
    assert float(weighted["loss"]) == pytest.approx(ce[0] + 0.5 * ce[1] + 2.0 * 0.25)
    plain = classification_losses(logits, targets)
    assert set(plain) == {"loss", "perception"}
    assert float(plain["loss"]) == pytest.approx(ce[0])
    attributes = classification_losses(logits, torch.tensor([[1, 0]]))
    assert float(attributes["loss"]) == pytest.approx((ce[0] + float(torch.log(torch.tensor(2.0)))) / 2)


def test_a_convolution_as_head_is_left_out_where_the_classes_differ(tmp_path):
    """As a linear layer is."""
    torch.manual_seed(5)
    other = create_model("torchvision:squeezenet1_1", 7, mechanism=None)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    network = create_model("torchvision:squeezenet1_1", 10, mechanism=None)
    with pytest.warns(LeftOutWarning, match=r"the last layer, classifier\.1, has 7 classes and is left out"):
        load_backbone(network, str(tmp_path / "w.pth"))
    assert torch.equal(network.features[0].weight, other.features[0].weight)
    assert network.classifier[1].out_channels == 10


def test_a_backbone_starts_from_given_weights(cifar, tmp_path):
    """Weights of a file are the backbone's start, but for a last layer of another number of classes."""
    torch.manual_seed(5)
    other = create_model("resnet20", 7, mechanism=None)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    data = read_training_data(f"cifar10:{cifar}")
    with pytest.warns(LeftOutWarning, match="the last layer, fc, has 7 classes and is left out"):
        network = build_network(settings(cifar, weights=str(tmp_path / "w.pth")), data)
    assert torch.equal(network.feature_extractor.conv1.weight, other.conv1.weight)
    assert network.perception_branch.fc.out_features == 10
    torch.save(create_model("resnet32", 10, mechanism=None).state_dict(), tmp_path / "w32.pth")
    with pytest.raises(CheckpointError, match="do not fit"):
        build_network(settings(cifar, weights=str(tmp_path / "w32.pth")), data)
    squeezed = create_model("torchvision:squeezenet1_1", 10, mechanism=None)  # it has no linear layer
    torch.save(squeezed.state_dict(), tmp_path / "squeezed.pth")
    arch = {"arch": "torchvision:squeezenet1_1", "mechanism": "none", "weights": str(tmp_path / "squeezed.pth")}
    loaded = build_network(settings(cifar, **arch), data)
    assert torch.equal(loaded.classifier[1].weight, squeezed.classifier[1].weight)
    grey = {**other.state_dict(), "conv1.weight": torch.zeros(16, 1, 3, 3)}
    torch.save(grey, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError, match="more than the last layer has another shape: conv1"):
        build_network(settings(cifar, weights=str(tmp_path / "grey.pth")), data)


def test_measured_sums_have_the_same_names_whatever_can_be_read(cifar):
    """Ranks add their sums up by position, so one without images gives as many."""
    data = read_training_data(f"cifar10:{cifar}")
    cpu = torch.device("cpu")
    for mechanism in (None, "residual"):
        network = create_model("resnet20", 10, mechanism=mechanism)
        (names, some), (same_names, none) = (
            evaluation_sums(network, data.test, [torch.arange(n)], cpu) for n in (3, 0)
        )
        assert names == same_names
        assert some[names.index("count")] == 3
        assert not none.any()


def test_what_the_map_alone_needs_is_frozen_where_it_is_not_used(cifar):
    """Of an auxiliary branch no parameter is without a gradient, which several ranks would not bear."""
    labels = ("a", "b", "c")
    data = replace(read_training_data(f"cifar10:{cifar}"), labels=labels, multi_label=True)
    for maps in ("shared", "per-attribute"):
        network = build_network(settings(cifar, mechanism="auxiliary", maps=maps), data)
        answer = network(torch.randn(2, 3, 32, 32))
        classification_losses(answer, torch.ones(2, 3))["loss"].backward()
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    vit = settings(cifar, mechanism="auxiliary", arch="timm:test_vit", size=None)
    branch = build_network(vit, data).attention_branch
    assert not branch.att_conv3.weight.requires_grad
    assert branch.att_conv2.weight.requires_grad
    with pytest.raises(InvalidInputError, match="label_smoothing is for classes"):
        build_network(settings(cifar, label_smoothing=0.1), data)


def test_tensorboard_files_hold_the_log(cifar, tmp_path):
    """With tensorboard every logged value is there once, under the same steps, also after a kill."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(cifar, epochs=1, maps_every=0, mechanism="none", tensorboard=True, save_minutes=0.0)
    with pytest.raises(Cut):
        train(config, tmp_path / "run", progress=cut_at(6))  # it has been written, but its checkpoint has not
    time.sleep(1.1)  # TensorBoard tells files apart by the second
    train(config, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = read_log(tmp_path / "run" / "log.jsonl", "step")
    found = [(e.step, round(e.value, 4)) for e in events.Scalars("step/loss")]
    assert found == [(line["step"], round(line["loss"], 4)) for line in lines]


def test_what_there_is_to_train_is_listed():
    """xai-abn list architectures names every network with its input size."""
    from typer.testing import CliRunner

    from xai_abn.cli.main import app
    from xai_abn.networks.architectures import architectures

    shown = CliRunner().invoke(app, ["list", "architectures"]).stdout
    assert all(name in shown for name in architectures.names())


def test_a_mistake_on_the_command_line_is_one_line(cifar, tmp_path):
    """An unknown mechanism exits 2 with one line that names the nearest, and no traceback."""
    command = [*PROGRAM, *flags(cifar, tmp_path / "run", mechanism="residul")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert "residual" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nmilestones: [*b, *b]",
        "milestones: " + "[" * 2000 + "]" * 2000,
        "seed: " + "9" * 6000,
        "epochs: 1e999",
        "\x00",
    ],
)
def test_hostile_settings_are_one_error_at_once(tmp_path, text):
    """Aliases that stand for more than memory holds, deep nesting, numbers of thousands of digits."""
    (tmp_path / "config.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(InvalidInputError):
        TrainingSettings(data="images:x", **read_settings(tmp_path / "config.yaml")[0])
    assert time.perf_counter() - started < 5
