"""Accuracy of a model on a data set, against predictions made one by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import call, make_images

import xai_abn
from xai_abn.benchmark.accuracy import accuracy
from xai_abn.datasets import read_dataset
from xai_abn.errors import DatasetError, UnsupportedModelError
from xai_abn.images.loading import load_image
from xai_abn.models import zoo

LABELS = [f"thing {number}" for number in range(8)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = xai_abn.abn_from(timm.create_model("test_resnet", num_classes=8).eval(), input_size=64)
    return xai_abn.wrap(network, labels=LABELS, preprocess=xai_abn.Preprocess(64), name="small")


@pytest.fixture
def folder(tmp_path):
    """Thirty images of six classes of the model and of one that it lacks; one file is damaged."""
    for number in range(30):
        name = ["unheard of", *LABELS[:6]][number % 7]
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    (tmp_path / "set" / LABELS[0] / "damaged.png").write_bytes(b"\x89PNG\r\n")
    return tmp_path / "set"


def by_hand(model, folder):
    """Return label, logits and logits of the attention branch of every image, each in a pass of its own."""
    found = []
    for path in sorted(folder.glob("*/[0-9]*.png")):
        if path.parent.name in LABELS:
            with torch.no_grad():
                output = model.module(model.preprocess(load_image(path)).tensor[None])
            found.append((LABELS.index(path.parent.name), output.logits[0], output.attention_logits[0]))
    return found


def test_shares_are_those_counted_by_hand(model, folder):
    """Top-1, top-5, the attention branch and each class; images that cannot be judged are counted."""
    expected = by_hand(model, folder)
    found = accuracy(model, read_dataset(f"images:{folder}"), batch_size=7)
    right = [int(logits.argmax()) == label for label, logits, _ in expected]
    assert found.top_1.value == pytest.approx(np.mean(right))
    assert found.top_1.images == len(expected) == 25
    near = [label in logits.argsort(descending=True)[:5] for label, logits, _ in expected]
    assert found.top_5.value == pytest.approx(np.mean(near))
    assert 0 < found.top_5.value < 1
    assert found.attention.value == pytest.approx(np.mean([int(b.argmax()) == label for label, _, b in expected]))
    for index, name in enumerate(LABELS[:6]):
        own = [hit for hit, (label, _, _) in zip(right, expected, strict=True) if label == index]
        assert found.by_class[name] == (len(own), sum(own))
    assert found.balanced == pytest.approx(np.mean([hits / count for count, hits in found.by_class.values()]))
    assert (found.unknown_classes, found.left_out) == (("unheard of",), 5)
    ((name, reason),) = found.failed
    assert name.endswith("damaged.png")
    assert reason


def test_the_interval_is_wilsons(model, folder):
    """By its formula, with z of 95 %."""
    found = accuracy(model, read_dataset(f"images:{folder}")).top_5
    share, n, z = found.value, found.images, 1.959963984540054
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_an_image_of_several_classes_is_right_with_one_of_them(gap_net, tmp_path):
    """Each of its classes is counted."""
    data = read_dataset(f"coco:{make_images(tmp_path / 'set')}")
    found = accuracy(gap_net, data)
    right = []
    for sample in data.samples:
        answer = xai_abn.explain(gap_net, sample.source, "cam")["cam"].predicted_label
        known = [name for name in sample.classes if name in gap_net.labels]
        right.append(answer in known)
        assert known
    assert found.top_1.value == pytest.approx(np.mean(right))
    assert found.attention is None
    assert found.predictions == "network, float32"


def test_a_backend_predicts_the_same(gap_net, small_abn, folder):
    """It is named in the result; of an Attention Branch Network only the network gives both branches."""
    data = read_dataset(f"images:{folder}")
    model = replace(gap_net, labels=tuple(LABELS[:5]))
    plain, other = accuracy(model, data), accuracy(replace(model, backend="onnxruntime"), data)
    assert other.predictions.startswith("onnxruntime, float32: ")
    assert replace(other, predictions=plain.predictions) == plain
    with pytest.raises(UnsupportedModelError, match="leave the backend out"):
        accuracy(replace(small_abn, backend="folded"), data)


def test_what_has_no_accuracy_is_refused(model, folder):
    """A part that is not there, classes that the model lacks, images that cannot be read, and other kinds of models."""
    data = read_dataset(f"images:{folder}")
    with pytest.raises(DatasetError, match="split test; it has train"):
        accuracy(model, data, "test")
    with pytest.raises(DatasetError, match="knows none of the classes"):
        accuracy(xai_abn.wrap(model.module, labels=[f"other {i}" for i in range(8)], preprocess=model.preprocess), data)
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DatasetError, match="none of the 26 images can be read"):
        accuracy(model, read_dataset(f"images:{folder}"))
    several = xai_abn.wrap(model.module, labels=LABELS, preprocess=model.preprocess, multi_label=True)
    with pytest.raises(UnsupportedModelError, match="one class"):
        accuracy(several, data)


def test_the_command(model, folder, monkeypatch, tmp_path):
    """It prints the shares, writes every class, says what is left out, and fails for an image that it cannot read."""
    monkeypatch.setitem(zoo.models, "small", lambda: model)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("evaluate", "--model", "small", "--data", f"images:{folder}", "-o", str(tmp_path / "a.json"))
    assert code == 1
    found = accuracy(model, read_dataset(f"images:{folder}"))
    assert "small: 25 images of 6 classes" in out
    assert f"{found.top_1.value:.2%}" in out
    assert "left out 5 images of classes that the model lacks: unheard of" in err
    assert "damaged.png" in err
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["top_1"]["value"] == found.top_1.value
    assert written["by_class"][LABELS[3]] == {"images": 4, "right": found.by_class[LABELS[3]][1]}
    (folder / LABELS[0] / "damaged.png").unlink()
    assert call("evaluate", "--model", "small", "--data", f"images:{folder}")[0] == 0
