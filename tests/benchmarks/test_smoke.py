"""Every script in benchmarks/ runs on tiny data: its figures mean nothing, but its calls are right."""

from __future__ import annotations

import csv
import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from support import make_images

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT / "benchmarks").with_suffix("")).replace("/", ".")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "__main__" in path.read_text()
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as ``benchmarks.…``; the package under test stays the installed one."""
    package = types.ModuleType("benchmarks")
    package.__path__ = [str(ROOT / "benchmarks")]
    monkeypatch.setitem(sys.modules, "benchmarks", package)
    threads, convolutions = torch.get_num_threads(), getattr(torch.backends.mkldnn, "conv", None)
    precision = getattr(convolutions, "fp32_precision", None)
    yield
    torch.set_num_threads(threads)
    if convolutions is not None:
        convolutions.fp32_precision = precision
    for name in [name for name in sys.modules if name.startswith("benchmarks.")]:
        del sys.modules[name]


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *(str(a) for a in arguments), "--threads", "1"])
    runpy.run_module(f"benchmarks.{script}", run_name="__main__")


def write_image(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path):
    """``imagenet_val`` and ``coco_multi`` as the benchmarks expect them, with eight images each."""
    make_images(tmp_path / "coco_multi")
    for number in range(8):
        write_image(tmp_path / "imagenet_val" / "images" / f"{number}.png", (40, 60), number)
    rows = [f"{number}.png,n02123045,5 5 20 20;30 10 50 30" for number in range(8)]
    (tmp_path / "imagenet_val" / "boxes.csv").write_text("\n".join(["file,wnid,boxes", *rows]) + "\n")
    return tmp_path


#: Arguments of scripts that read no data.
ALONE = {
    "agreement.run": ["--networks", "resnet18"],
    "agreement.rounding": [],
    "app.strokes": ["--strokes", "2"],
    "cam_family.agreement": ["--networks", "resnet18", "--methods", "grad-cam", "kpca-cam", "ablation-cam"],
    "cam_family.memory": ["--calls", "5", "--methods", "grad-cam"],
    "cam_family.speed": ["--networks", "resnet50", "--batches", "1", "--repeats", "1", "--channels", "2"],
    "speed.here": ["--batches", "1", "--rounds", "1", "--methods", "cam", "abn"],
    "speed.gpu": ["--device", "cpu", "--networks", "lite0", "--batches", "1", "--images", "1", "--rounds", "1"],
    "models.detectors": ["--only", "SSDlite, MobileNetV3", "--rounds", "1"],
    "models.drawn": ["--only", "resnet26", "--count", "1"],
    "models.families": ["--only", "ViT (HF)"],
    "models.hundred": ["--only", "two heads"],
    "robustness.million": ["--copies", "2"],
    "robustness.fuzz": ["--images", "8", "--checkpoints", "2", "--annotations", "8"],
    "robustness.kills": ["--benchmark", "1", "--training", "0"],
    "robustness.load": ["--requests", "4", "--explanations", "20"],
    "speed.run": ["--networks", "lite0", "--batches", "1", "--repeats", "1", "--explanations", "10"],
    "speed.startup": ["--repeats", "1"],
    "training_speed.run": ["--archs", "resnet20", "--rounds", "1"],
    "vit_abn.run": ["--steps", "2", "--seeds", "1"],
}
#: Scripts that read the images above; {data} is their folder.
ON_IMAGES = {
    "default_abn.evaluate": ["--data", "{data}"],
    "engine.killed": [
        *("--data", "imagenet-boxes:{data}/imagenet_val/boxes.csv", "--kills", "0", "--limit", "2"),
        *("--whole", "{data}/whole.sqlite", "--killed", "{data}/killed.sqlite"),
    ],
    "engine.speed": [
        *("--images", "{data}/imagenet_val/images", "--rounds", "1", "--networks", "lite0"),
        *("--batch", "2", "--growth", "2"),
    ],
    "speed.ray_folder": [
        *("{data}/imagenet_val/images", "--number", "8", "--rounds", "1"),
        *("--partition", "4", "--processes", "2", "--methods", "abn"),
    ],
    "speed.folder": ["{data}/imagenet_val/images", "--number", "8", "--rounds", "1", "--coming", "0"],
    "class_masks.judges": [
        *("--data", "imagenet-boxes:{data}/imagenet_val/boxes.csv", "--limit", "2", "--judges", "abn-lite0"),
    ],
    "multi_object.why": ["--data", "imagenet-boxes:{data}/imagenet_val/boxes.csv", "--limit", "2"],
}
ELSEWHERE = {
    "celeba.prepare", "celeba.report", "celeba.run", "cifar.run", "class_masks.split", "corrections.report",
    "corrections.ground", "corrections.run", "fine_grained.report", "fine_grained.run", "structure.walks",
}  # fmt: skip


def test_every_script_is_run():
    """A new script is entered in this file."""
    assert set(SCRIPTS) == {*ALONE, *ON_IMAGES, *ELSEWHERE}


@pytest.mark.parametrize("script", ALONE)
def test_a_script_that_needs_no_data_runs(script, monkeypatch, tmp_path):
    """With one network and one round it runs and, if it has results, writes them."""
    run(monkeypatch, script, *ALONE[script], "--output", tmp_path / "results.json")


@pytest.mark.parametrize("script", ON_IMAGES)
def test_a_script_on_annotated_images_runs(script, monkeypatch, data):
    """On eight images of noise."""
    arguments = [argument.replace("{data}", str(data)) for argument in ON_IMAGES[script]]
    run(monkeypatch, script, *arguments, "--output", data / "results.json")


def test_the_corrections_scripts_run(monkeypatch, tmp_path, capsys):
    """Cells of every kind on a hundred images for an epoch; what is there is not computed again."""
    images, annotations = [], []
    for number in range(12):
        write_image(tmp_path / "coco" / "images" / f"{number}.png", (80, 80), number)
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 80})
        outline = [[10, 10, 60, 10, 60, 70, 10, 70]]
        thing = {"image_id": number, "category_id": number // 3 % 2, "bbox": [10, 10, 50, 60], "segmentation": outline}
        annotations.append({**thing, "id": number, "iscrowd": 0})
    categories = [{"id": 0, "name": "person"}, {"id": 1, "name": "car"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco" / "instances.json").write_text(json.dumps(document))
    for folder in ("one", "other"):
        for number in range(6):
            write_image(tmp_path / folder / f"{number}.png", (40, 60), number)
    output = tmp_path / "results.jsonl"
    given = ["--coco", tmp_path / "coco", "--grounds", tmp_path / "one", tmp_path / "other", "--output", output]
    given += ["--work", tmp_path / "work", "--seeds", "0", "--sizes", "100", "24", "--epochs", "1"]
    for only, count in (("decoy-95", 4), ("on='attention-map'", 1), ("queue", 2), ("ground-95", 1)):
        run(monkeypatch, "corrections.run", *given, "--only", only, "--cells", count)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({json.dumps([row[name] for name in ("data", "network", "loss", "on", "choice")]) for row in rows}) == 8
    run(monkeypatch, "corrections.report", "--results", output)
    assert "| plain, counter-examples | 1 |" in capsys.readouterr().out
    for option, value in (("--output", "ground.jsonl"), ("--work", "other work")):
        given[given.index(option) + 1] = tmp_path / value
    given[given.index("--sizes") + 1] = "220"  # with the copies, whole batches
    run(monkeypatch, "corrections.ground", *given, "--cells", "5")
    found = [json.loads(line)["what"] for line in (tmp_path / "ground.jsonl").read_text().splitlines()]
    assert found == ["probe"] * 4 + ["untied", "untouched", "cut out", "cells", "moved", "moved"]


def test_boxes_of_dogs_lie_on_their_images(tmp_path):
    """Scaled from the original to the file and the square; without a box or from the validation set, none."""
    from benchmarks.corrections.scenes import dogs

    things, images = [], []
    for number in range(6):
        name = f"n0{number % 2}_{number}"
        write_image(tmp_path / "images" / f"n0{number % 2}" / f"{name}.png", (100, 200), number)
        (tmp_path / "images" / f"n0{number % 2}" / f"{name}.png").rename(tmp_path / "images" / f"{name}.JPEG")
        images.append({"id": number, "file_name": f"{number % 2}-breed/{name}.jpg", "width": 400, "height": 200})
        things.append({"id": number, "image_id": number, "category_id": number % 2, "bbox": [100, 50, 200, 100]})
    for name in ("n00_9", "ILSVRC2012_val_1"):
        write_image(tmp_path / "images" / f"{name}.png", (100, 200), 9)
        (tmp_path / "images" / f"{name}.png").rename(tmp_path / "images" / f"{name}.JPEG")
    document = {"images": images, "annotations": things, "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}
    (tmp_path / "instances_train.json").write_text(json.dumps(document))
    train, test = dogs(tmp_path / "images", tmp_path)
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (("a", "b"), [0, 0, 1, 1], [0, 1])
    expected = np.zeros((96, 96), bool)
    expected[24:72, 24:72] = True
    assert np.array_equal(train.objects, np.stack([expected] * 4))


@pytest.mark.filterwarnings("ignore::xai_abn.training.supervised.LeftOutWarning")
def test_the_cifar_scripts_run(monkeypatch, tmp_path):
    """Train two variants for an epoch, make the table and the shipped file."""
    for label in range(100):
        for number in range(3):
            part = "test" if number == 2 else "train"
            write_image(tmp_path / "data" / part / f"class{label:02}" / f"{number}.png", (32, 32), 3 * label + number)
    places = ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    variants = ["--variants", "baseline", "residual", "--seeds", "0"]
    run(monkeypatch, "cifar.run", "train", *places, *variants, "--epochs", 1)
    run(monkeypatch, "cifar.run", "table", *places, *variants, "--output", tmp_path / "results.json")
    run(monkeypatch, "cifar.run", "ship", *places, *variants, "--output", tmp_path / "abn.safetensors")
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "abn.safetensors").exists()


@pytest.mark.filterwarnings("ignore::xai_abn.training.supervised.LeftOutWarning")
def test_the_fine_grained_scripts_run(monkeypatch, tmp_path, capsys):
    """Networks of two classes on noise, with two rates and two seeds; what is there is not made again."""
    rows = []
    for number in range(42):
        file = f"{number // 21}/{number}.jpg"
        write_image(tmp_path / file, (40, 60), number)
        rows.append((file, number // 21 + 1, number % 7))
    for name, places in (("train", range(4)), ("val", (4,)), ("test", (5, 6))):
        lines = [f"{file}, {label - 1}, 0" for file, label, place in rows if place in places]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    annotations = np.array([(file, label) for file, label, _ in rows], [("fname", "O"), ("class", "O")])
    scipy.io.savemat(tmp_path / "labels.mat", {"annotations": annotations})
    output = tmp_path / "results.jsonl"
    given = ["--images", tmp_path, "--work", tmp_path / "work", "--output", output, "--epochs", "1"]
    given += ["--rates", "0.01", "0.02", "--seeds", "0", "1", "--shown", "8"]
    pasted = ["--labels", tmp_path / "labels.mat", "--grounds", tmp_path, "--classes", "2", "--pasted", "2"]
    for data, more in (("grocery", []), ("cars", pasted), ("cars", pasted)):
        run(monkeypatch, "fine_grained.run", data, *given, *more)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["kind"] for row in rows].count("training") == 2 * 4 * 3
    assert len(rows) == 2 * (4 * 3 + 17)
    run(monkeypatch, "fine_grained.report", "--results", output)
    assert "| abn | abn-class |" in capsys.readouterr().out


def test_the_celeba_scripts_run(monkeypatch, tmp_path):
    """Prepare twelve people, train a shared map and maps for each attribute, and measure them."""
    attributes = ["Bangs", "Smiling"]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", *attributes])
        for number in range(96):
            write_image(tmp_path / "faces" / f"person{number // 8}" / f"{number}.jpg", (40, 40), number)
            writer.writerow([f"{number}.jpg", number % 2 * 2 - 1, number // 2 % 2 * 2 - 1])
    prepare = ["--faces", tmp_path / "faces", "--table", tmp_path / "table.csv", "--attributes", *attributes]
    monkeypatch.setattr(sys, "argv", ["prepare", *(str(a) for a in prepare), "--output", str(tmp_path / "data")])
    runpy.run_module("benchmarks.celeba.prepare", run_name="__main__")
    places = ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    run(monkeypatch, "celeba.run", *places, "--networks", "shared", "per-attribute", "--epochs", 1)
    run(monkeypatch, "celeba.report", *places, "--output", tmp_path / "results.json")
    assert (tmp_path / "results.json").exists()


def test_the_counter_of_walks_runs(monkeypatch):
    """It prints a line for each walk."""
    monkeypatch.setattr(sys, "argv", ["walks"])
    runpy.run_path(str(ROOT / "benchmarks" / "structure" / "walks.py"), run_name="__main__")
