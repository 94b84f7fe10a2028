"""Training on corrections: what is added to a batch, what it teaches, resuming, ranks, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import call, check_error

import xai_abn
from xai_abn import load_model
from xai_abn.datasets import read_training_data
from xai_abn.datasets.corrections import AVOID, Corrections
from xai_abn.errors import (
    DatasetError,
    InvalidInputError,
    RunError,
    UnsupportedModelError,
    XaiAbnError,
)
from xai_abn.training import make_training_settings, train
from xai_abn.training.correction_losses import COPIES
from xai_abn.training.corrections import CorrectionObjective, read_corrections
from xai_abn.training.log import read_log
from xai_abn.training.supervised import BEST, FINAL, read_start

LOSSES = ("energy", "kl", "l1", "tolerant", "abn", "rrr", "counter-examples", "backgrounds")
SIDE, OBJECT = 32, 10


def scene(label, rng):
    """Return stripes whose direction is the class, a patch whose color is the class, too, and the mask of each."""
    pixels = rng.integers(90, 140, (SIDE, SIDE, 3), dtype=np.uint8)
    left = int(rng.integers(2))
    top, column = int(rng.integers(SIDE - OBJECT)), left * (SIDE - OBJECT)
    stripes = np.indices((OBJECT, OBJECT))[label] // 2 % 2 * 255
    thing, patch = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    thing[top : top + OBJECT, column : column + OBJECT] = True
    other = (1 - left) * (SIDE - 8)
    patch[12:20, other : other + 8] = True
    pixels[thing] = stripes.reshape(-1, 1)
    pixels[patch] = ((250, 20, 20), (20, 20, 250))[label]
    return pixels, thing, patch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, an ABN and a classifier trained on it for three epochs, and six corrections."""
    folder = tmp_path_factory.mktemp("corrections")
    rng = np.random.default_rng(0)
    corrections = Corrections(folder / "marks")
    for part, count in (("train", 24), ("test", 8)):
        for label in ("rows", "columns"):
            (folder / "data" / part / label).mkdir(parents=True)
        for number in range(2 * count):
            label = ("rows", "columns")[number % 2]
            pixels, thing, patch = scene(number % 2, rng)
            file = folder / "data" / part / label / f"{number:02}.png"
            Image.fromarray(pixels).save(file)
            if part == "train" and number < 6:
                corrections.mark(file, label, thing if number < 4 else None, patch if number > 1 else None)
    for name, mechanism in (("abn", "residual"), ("plain", "none")):
        given = {"arch": "resnet20", "size": SIDE, "mechanism": mechanism, "epochs": 3, "lr": 0.05}
        train(make_training_settings(COMMON, given, {"data": f"images:{folder / 'data'}"}), folder / name)
    return folder


COMMON = {
    "batch_size": 14,
    "workers": 0,
    "log_every": 1,
    "maps_every": 0,
    "epochs": 1,
    "lr": 0.01,
}


def settings(place, start="abn", **more):
    given = {"continue_from": str(place / start), "corrections": str(place / "marks"), "correction_batch": 4}
    return make_training_settings(COMMON, {"data": f"images:{place / 'data'}"}, given, more)


@pytest.mark.parametrize("start", ["abn", "plain"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(place, tmp_path, loss, start):
    """An ABN and a classifier without attention branch, from their weights; the log has the loss of the maps."""
    result = train(settings(place, start, correction_loss=loss), tmp_path / "run")
    assert result["mechanism"] == {"abn": "residual", "plain": "none"}[start]
    lines = read_log(tmp_path / "run" / "log.jsonl", "step")
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert all(line.get("correction", 0.0) >= 0 for line in lines)
    assert ("correction" in lines[0]) == (loss not in COPIES)
    before, after = (load_model(path).module.state_dict() for path in (place / start / BEST, tmp_path / "run" / FINAL))
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("start", "on"), [("abn", "class-map"), ("abn", "attention-map"), ("abn", "grad-cam"), ("plain", "grad-cam")]
)
def test_the_loss_is_of_the_map_that_is_shown(place, start, on):
    """The map of ``explain``, of every class that was corrected, scaled as it is drawn."""
    config = settings(place, start, on=on, correction_loss="l1")
    begun = read_start(config.continue_from)
    data = read_training_data(config.data, preprocess=begun.model.preprocess)
    objective = CorrectionObjective(config, data, begun.model.module, "net", 1)
    corrected = objective.join(next(data.train.load([torch.arange(8)], torch.device("cpu"), 0)), 0, 0).corrected
    total = 0.0
    method = {"class-map": "abn-class", "attention-map": "abn", "grad-cam": "grad-cam"}[on]
    for image, target, (look, avoid) in zip(*corrected, strict=True):
        found = xai_abn.explain(begun.model, image[None], method, int(target))[0][method]
        shown = found.map if on == "attention-map" else np.maximum(found.map, 0) / max(found.map.max(), 1e-6)
        h, w = shown.shape

        def share(mask, h=h, w=w):
            return mask.float().reshape(h, SIDE // h, w, SIDE // w).mean(dim=(1, 3)).numpy()

        look, avoid = share(look), share(avoid)
        forbidden = avoid if avoid.any() else 1 - look
        total += (look * abs(1 - shown) + forbidden * abs(shown)).sum() / (look + forbidden).sum()
    assert float(objective.loss(corrected).detach()) == pytest.approx(total / len(corrected.targets), rel=1e-4)


def test_right_reasons_differentiate_twice(place):
    """The gradient of the loss by a weight is that of differences."""
    config = settings(place, "plain", correction_loss="rrr")
    begun = read_start(config.continue_from)
    network = begun.model.module.double()
    data = read_training_data(config.data, preprocess=begun.model.preprocess)
    objective = CorrectionObjective(config, data, network, "net", 1)
    corrected = objective.join(next(data.train.load([torch.arange(4)], torch.device("cpu"), 0)), 0, 0).corrected
    corrected = corrected._replace(images=corrected.images.double())
    weight = next(parameter for name, parameter in network.named_parameters() if name.endswith("fc.weight"))
    (slope,) = torch.autograd.grad(objective.loss(corrected), weight)
    weight.data[0, 3] += 1e-4
    high = objective.loss(corrected)
    weight.data[0, 3] -= 2e-4
    low = objective.loss(corrected)
    assert float(slope[0, 3]) == pytest.approx(float(high - low) / 2e-4, rel=1e-2)


def energy_inside(model, folder):
    """Return the mean share of the class map in the marks of where to look."""
    shares = []
    for correction in Corrections(folder):
        if correction.kind != AVOID:
            found = xai_abn.explain(model, correction.load().source, "abn-class", correction.label)[0]["abn-class"]
            shown = np.maximum(found.heatmap((SIDE, SIDE)), 0)
            shares.append(float(shown[correction.mask].sum() / shown.sum()))
    return np.mean(shares)


def test_maps_move_to_the_marks(place, tmp_path):
    """With the loss, the maps of the corrected images lie more inside than after the same training without it."""
    config = settings(place, epochs=4, lr=0.03, correction_batch=6, correction_loss="energy", on="class-map")
    for name, weight in (("told", 3.0), ("control", 0.0)):
        train(config.replace(correction_weight=weight), tmp_path / name)
    told, control = (energy_inside(load_model(tmp_path / n / FINAL), place / "marks") for n in ("told", "control"))
    assert told > control + 0.1


def test_a_batch_holds_ordinary_and_corrected_images(place):
    """The corrected are in it as ordinary ones where a person told their class; marks move with their image."""
    config = settings(place)
    begun = read_start(config.continue_from)
    data = read_training_data(config.data, preprocess=begun.model.preprocess)
    objective = CorrectionObjective(config, data, begun.model.module, "net", 1)
    ordinary = next(data.train.load([torch.arange(8)], torch.device("cpu"), 0))
    known = read_corrections(config.corrections, begun.model, data.preprocess)
    assert (len(known), known.sure.sum()) == (6, 4)
    drawn = torch.cat([objective._drawn(step) for step in range(3)])
    assert sorted(drawn.tolist()) == sorted([*range(6), *range(6)])  # each twice
    assert sorted(drawn[:6].tolist()) == [*range(6)]  # before one is drawn again
    patch = torch.tensor([[250, 20, 20], [20, 20, 250]])
    for step in range(6):
        batch = objective.join(ordinary, step, 0)
        assert torch.equal(batch.images[:8], ordinary.images)
        rows = objective._drawn(step)
        sure = known.sure[rows]
        assert torch.equal(batch.targets[8:], known.targets[rows][sure])
        assert torch.equal(batch.images[8:], batch.corrected.images[sure])
        mean, std = (torch.tensor(v)[:, None, None] for v in (data.preprocess.mean, data.preprocess.std))
        pixels = ((batch.corrected.images * std + mean) * 255).round().long()
        for image, target, (_, avoid) in zip(
            pixels, batch.corrected.targets.tolist(), batch.corrected.masks, strict=True
        ):
            marked = image[:, avoid.bool()].float()  # the image is resized, so colors at its borders are mixed
            if marked.shape[1]:
                color = patch[0 if data.labels[target] == "rows" else 1]
                assert bool(((marked.median(dim=1).values - color).abs() < 40).all())


@pytest.mark.parametrize(("loss", "least"), [("counter-examples", 0.95), ("backgrounds", 0.5)])
def test_copies_are_added_with_their_class(place, loss, least):
    """A second one of each image that is sure, with something else where not to look and nothing else changed."""
    config = settings(place, correction_loss=loss)
    begun = read_start(config.continue_from)
    data = read_training_data(config.data, preprocess=begun.model.preprocess)
    objective = CorrectionObjective(config, data, begun.model.module, "net", 1)
    ordinary = next(data.train.load([torch.arange(8)], torch.device("cpu"), 0))
    batch = objective.join(ordinary, 0, 0)
    count = (len(batch.images) - 8) // 2
    plain, noisy = batch.images[8 : 8 + count], batch.images[8 + count :]
    assert torch.equal(batch.targets[8 : 8 + count], batch.targets[8 + count :])
    masks = batch.corrected.masks[objective.images.sure[objective._drawn(0)]].bool()
    avoid = torch.where(masks[:, 1].flatten(1).any(dim=1)[:, None, None], masks[:, 1], ~masks[:, 0])
    changed = (plain != noisy).any(dim=1)
    assert not bool(changed[~avoid].any())
    assert float(changed[avoid].float().mean()) > least
    assert objective.loss(batch.corrected) is None


class Cut(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize(("loss", "on"), [("energy", "class-map"), ("kl", "grad-cam"), ("counter-examples", None)])
def test_a_cut_run_resumes_to_the_same_bits(place, tmp_path, loss, on):
    """In the middle of an epoch, also where the corrections were moved meanwhile."""
    marks = shutil.copytree(place / "marks", tmp_path / "marks")
    more = {"correction_loss": loss, "save_minutes": 0.0, "epochs": 2, **({} if on is None else {"on": on})}
    config = settings(place, **more)
    train(config, tmp_path / "whole")

    def progress(done, total, text):
        if done == 4:
            raise Cut

    with pytest.raises(Cut):
        train(config.replace(corrections=str(marks)), tmp_path / "cut", progress=progress)
    train(config, tmp_path / "cut", resume=True)
    one, other = (load_model(tmp_path / name / FINAL).module.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    first = next(iter(Corrections(marks)))
    mask = ~first.mask
    Image.fromarray(mask).save(first.path.with_suffix(".png"))
    with pytest.raises(RunError, match="other corrections") as raised:
        train(config.replace(corrections=str(marks), epochs=3), tmp_path / "cut", resume=True)
    check_error(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["class-map", "grad-cam"])
def test_two_ranks_do_what_one_does(place, tmp_path, on):
    """The losses of each step, but for rounding."""
    config = settings(place, on=on, lr=1e-4)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "xai_abn.cli", *config.command(tmp_path / "two").split()[1:], "--quiet"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(config, tmp_path / "one")
    one, two = (read_log(tmp_path / name / "log.jsonl", "step") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert b["correction"] == pytest.approx(a["correction"], rel=1e-3)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


def test_the_command_line_does_the_same(place, tmp_path):
    """And its config.yaml, where YAML 1.1 takes the word on for true, starts the same run again."""
    config = settings(place, on="attention-map", correction_loss="kl")
    code, _, err = call(*config.command(tmp_path / "one").split()[1:], "--quiet")
    assert code == 0, err
    file = tmp_path / "one" / "config.yaml"
    file.write_text(file.read_text().replace("'on':", "on:").replace('"on":', "on:"))
    assert yaml.safe_load(file.read_text())[True] == "attention-map"
    code, _, err = call("train", "--config", file, "--output", tmp_path / "two", "--quiet")
    assert code == 0, err
    train(config, tmp_path / "three")
    ends = [load_model(tmp_path / name / FINAL).module.state_dict() for name in ("one", "two", "three")]
    assert all(torch.equal(value, end[name]) for end in ends[1:] for name, value in ends[0].items())


def damage(folder, how):
    """Spoil the first correction in a folder in one way."""
    record = next(path for path in sorted(folder.glob("*.json")) if json.loads(path.read_text())["kind"] == "look here")
    content = json.loads(record.read_text())
    mask, image = folder / content["mask"], folder / content["image"]["file"]
    size = (content["image"]["height"], content["image"]["width"])
    if how == "another image":
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(image)
    elif how == "another size":
        Image.fromarray(np.zeros((16, 48, 3), np.uint8)).save(image)
    elif how == "mask of another size":
        Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(mask)
    elif how in ("empty", "full"):
        Image.fromarray(np.full(size, 255 * (how == "full"), np.uint8)).save(mask)
    elif how == "contradiction":
        other = next(path for path in folder.glob("*.json") if same_image(path, content, "not here"))
        shutil.copy(folder / json.loads(other.read_text())["mask"], mask)
    else:
        content["label"], content["model"] = "zebra", {"name": "another", "classes": 3}
        record.write_text(json.dumps(content))


def same_image(path, content, kind):
    record = json.loads(path.read_text())
    return record["image"]["digest"] == content["image"]["digest"] and record["kind"] == kind


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another image", "is another image or was changed"),
        ("another size", "of 32x32 pixels.*has 48x16"),
        ("mask of another size", "9x9"),
        ("empty", "empty"),
        ("full", "whole image"),
        ("contradiction", "mark the same pixels"),
        ("another model", "made for another and is for the class 'zebra', which .* does not have"),
    ],
)
def test_a_correction_that_cannot_be_used_is_one_sentence(place, tmp_path, how, words):
    """Before anything is written."""
    marks = tmp_path / "marks"
    corrections = Corrections(marks)
    for correction in Corrections(place / "marks").of(next(c for c in Corrections(place / "marks")).load()):
        corrections.add(correction.load(), correction.mask, correction.label, correction.kind)
    first = next(iter(corrections))
    other = np.zeros(first.size, bool)
    other[:2, :2] = True
    corrections.mark(first.load(), first.label, np.roll(other, 9), other)
    damage(marks, how)
    with pytest.raises(XaiAbnError, match=words) as raised:
        train(settings(place, corrections=str(marks)), tmp_path / "run")
    check_error(raised.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"corrections": "nowhere"}, "nowhere: there are no corrections; give a folder with some"),
        ({"continue_from": "plain", "on": "attention-map"}, "has no attention map; choose on='class-map'"),
        ({"continue_from": "nowhere"}, "nowhere: there is no model; give a checkpoint"),
        ({"arch": "resnet26"}, "arch is that of the network in continue_from"),
        ({"corrections": None}, "correction_batch is for corrections; give their folder"),
        ({"correction_loss": "rrr", "on": "class-map"}, "reads no such map; leave on out"),
        ({"correction_loss": "counter-examples", "correction_weight": 1.0}, "no weight of their own"),
        ({"correction_loss": "cosine"}, "unknown correction_loss 'cosine'; known: energy, kl"),
        ({"on": "cam"}, "unknown on 'cam'; did you mean"),
        ({"correction_weight": -1.0}, "correction_weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(place, tmp_path, more, words):
    """With what to do."""
    if more.get("continue_from") == "plain":
        more = {**more, "continue_from": str(place / "plain")}
    with pytest.raises(XaiAbnError, match=words) as raised:
        train(settings(place, **more), tmp_path / "run")
    check_error(raised.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_network_without_class_map_is_refused(place, tmp_path):
    """Its head is not one that CAM describes; and Grad-CAM of it cannot be differentiated, as it has a hard sigmoid."""
    given = {"data": f"images:{place / 'data'}", "arch": "torchvision:mobilenet_v3_small", "mechanism": "none"}
    given |= {"size": SIDE, "corrections": str(place / "marks"), "correction_batch": 4}
    with pytest.raises(UnsupportedModelError, match=r"cam|CAM") as raised:
        train(make_training_settings(COMMON, given, {"on": "class-map"}), tmp_path / "run")
    check_error(raised.value)
    with pytest.raises(
        UnsupportedModelError, match=r"choose another map or 'counter-examples': .*hardsigmoid"
    ) as raised:
        train(make_training_settings(COMMON, given, {"on": "grad-cam"}), tmp_path / "run")
    check_error(raised.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_data_of_other_classes_is_refused(place, tmp_path):
    """A network that is trained further keeps its classes."""
    shutil.copytree(place / "data", tmp_path / "data")
    for part in ("train", "test"):
        (tmp_path / "data" / part / "columns").rename(tmp_path / "data" / part / "dots")
    with pytest.raises(InvalidInputError, match="'dots'") as raised:
        train(settings(place, data=f"images:{tmp_path / 'data'}"), tmp_path / "run")
    check_error(raised.value)


def test_marks_that_the_network_does_not_see_are_refused(place, tmp_path):
    """Those at the border of a wide image, of which it sees the center."""
    pixels, _, _ = scene(0, np.random.default_rng(0))
    wide, mask = np.zeros((32, 96, 3), np.uint8), np.zeros((32, 96), bool)
    wide[:, 32:64] = pixels
    mask[10:20, 2:9] = True
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Corrections(tmp_path / "marks").add(str(tmp_path / "wide.png"), mask, "rows")
    with pytest.raises(DatasetError, match="sees nothing of the marks") as raised:
        train(settings(place, corrections=str(tmp_path / "marks")), tmp_path / "run")
    check_error(raised.value)


def test_counter_examples_need_a_class_that_is_sure(place, tmp_path):
    """Marks of where not to look alone do not tell that the image shows the class."""
    first = next(iter(Corrections(place / "marks")))
    Corrections(tmp_path / "marks").add(first.load(), first.mask, first.label, AVOID)
    config = settings(place, corrections=str(tmp_path / "marks"), correction_loss="counter-examples")
    with pytest.raises(DatasetError, match="mark where to look as well") as raised:
        train(config, tmp_path / "run")
    check_error(raised.value)


def test_marks_are_used_for_the_map_they_are_on(place, tmp_path):
    """Those on the other map are left out, and Grad-CAM takes all, unless they contradict each other."""
    one, two, *_ = Corrections(place / "marks")
    marks = Corrections(tmp_path / "marks")
    for correction, on in ((one, "attention-map"), (two, "class-map")):
        marks.add(correction.load(), correction.mask, correction.label, on=on)
    configs = [
        settings(place, corrections=str(marks.folder), correction_loss=loss, **more)
        for loss, more in (("kl", {"on": "class-map"}), ("kl", {"on": "grad-cam"}), ("rrr", {}))
    ]
    model = read_start(configs[0].continue_from).model
    data = read_training_data(configs[0].data, preprocess=model.preprocess)
    used = [len(CorrectionObjective(config, data, model.module, "net", 1).images) for config in configs]
    assert used == [1, 2, 2]
    read = partial(read_corrections, str(marks.folder), model, model.preprocess)
    assert [len(read(on)) for on in ("attention-map", "class-map", None)] == [1, 1, 2]
    marks.add(one.load(), one.mask, one.label, AVOID, on="class-map")
    assert len(read("attention-map")) == 1
    with pytest.raises(DatasetError, match="contradict each other") as raised:
        read(None)
    check_error(raised.value)
    for correction in [c for c in marks if c.on == "attention-map"]:
        marks.remove(correction)
    with pytest.raises(DatasetError, match="no mark is on the attention-map") as raised:
        read("attention-map")
    check_error(raised.value)
