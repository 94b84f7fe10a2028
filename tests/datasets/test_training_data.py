"""Training data: what is held out, fingerprints, and what cannot be trained on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from support import touch

from xai_abn.datasets import AnnotatedObject, Dataset, Sample, TrainingData, read_training_data
from xai_abn.datasets import training_data as training_data_module
from xai_abn.datasets.batches import ConvertedWarning, InMemorySplit, ReadOptions
from xai_abn.datasets.splits import hold_out
from xai_abn.datasets.training_data import INTERPOLATION, training_data
from xai_abn.errors import DatasetError, InvalidInputError
from xai_abn.images.preprocess import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PREPROCESS = Preprocess(4, 1.0, INTERPOLATION, MEAN, STD)


def test_the_validation_split_is_disjoint_complete_and_seeded():
    """Validation and training share no image and leave out none; the same seed gives the same ones."""
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    data = TrainingData(
        "t",
        ("a",),
        Preprocess(4, 1.0, INTERPOLATION, MEAN, STD),
        InMemorySplit(images, torch.zeros(20).long(), MEAN, STD),
    )

    def parts(seed):
        held = data.held_out(0.25, seed)
        return [held.train.images[:, 0, 0, 0].tolist(), held.validation.images[:, 0, 0, 0].tolist()]

    train, validation = parts(0)
    assert sorted(train + validation) == list(range(20))
    assert len(validation) == 5
    assert parts(0) == [train, validation] != parts(1)
    assert data.held_out(0.25).held_out(0.5).validation is not None
    assert len(data.held_out(0.25).held_out(0.5).train) == 15
    for share in (-0.1, 1.0, 0.01):
        with pytest.raises(InvalidInputError, match="share"):
            data.held_out(share)


def test_every_class_keeps_a_training_image():
    """The only image of a class is never held out."""
    images, targets = torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.tensor([0] * 18 + [1, 2])
    data = TrainingData("t", ("a", "b", "c"), PREPROCESS, InMemorySplit(images, targets, MEAN, STD))
    for seed in range(5):
        held = data.held_out(0.5, seed)
        assert set(held.train.targets.tolist()) == {0, 1, 2}
        assert len(held.train) + len(held.validation) == 20


def test_a_fingerprint_changes_with_images_targets_and_labels():
    """Other pixels, targets or labels give another one; reading the same data again does not."""
    images, targets = torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])

    def fingerprint(images=images, targets=targets, labels=("a", "b")):
        return TrainingData("t", labels, PREPROCESS, InMemorySplit(images, targets, MEAN, STD)).fingerprint()

    other = images.clone()
    other[0, 0, 0, 0] = 1
    changed = [fingerprint(other), fingerprint(targets=targets.flip(0)), fingerprint(labels=("b", "a"))]
    assert fingerprint() == fingerprint(images.clone())
    assert len({fingerprint(), *changed}) == 4


def test_samples_need_a_class_of_the_data_set():
    """A label that is not among the classes, or none at all, names the image; two classes are the least."""
    samples = [Sample("a.png", label="cat"), Sample("b.png", label="emu"), Sample("c.png")]
    with pytest.raises(DatasetError, match=r"images \(train\): 2 images have none of the classes, such as b\.png"):
        training_data(Dataset("images", {"train": samples}, ("cat", "dog")))
    boxes = Sample("a.png", (AnnotatedObject("cat", (0, 0, 8, 8)),))
    with pytest.raises(DatasetError, match=r"a\.png; training needs a class for each image"):
        training_data(Dataset("coco", {"train": [boxes]}, ("cat",)))
    with pytest.raises(DatasetError, match="coco: no training images"):
        training_data(Dataset("coco", {"test": [boxes]}, ("cat",)))


@pytest.mark.parametrize("workers", [0, 1])
def test_conversions_of_pixels_are_told_once(tmp_path, workers):
    """Of 16-bit images the first is named, in training, validation and any later epoch together."""
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                gray = np.full((16, 16), 9000 * i + len(part) + 9 * len(label) + ord(label[0]), np.uint16)
                Image.fromarray(gray).save(tmp_path / part / label / f"{i}.png")
    data = read_training_data(f"images:{tmp_path}", ReadOptions(size=16, workers=workers))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for split in (data.train.subset(torch.tensor([4, 1])), data.validation, data.train):
            assert sum(len(batch.images) for batch in split.load([torch.arange(2)], torch.device("cpu"), 0)) == 2
    assert [str(warning.message) for warning in given if warning.category is ConvertedWarning] == [
        f"{tmp_path}/train/dog/1.png: gray values scaled from [0, 65535] to 8 bits; other images of its kind are not "
        "named"
    ]
    with pytest.warns(ConvertedWarning, match="gray values scaled"):
        hold_out(data.train.samples, data.preprocess, 1)


def test_fingerprints_are_those_of_states_of_format_1(tmp_path, monkeypatch):
    """Recorded with the code that wrote format 1: a run saved then is resumed with the same data."""
    monkeypatch.setattr(training_data_module, "MEMORY", 0)
    names = [f"{part}/{label}/{i}.png" for part in ("train", "val") for label in ("cat", "dog") for i in range(6)]
    touch(tmp_path / "images", *names)
    assert read_training_data(f"images:{tmp_path / 'images'}").fingerprint() == "929c688291067c3872399c411f5f8f43"
    touch(tmp_path / "faces" / "images", *(f"{i}.png" for i in range(40)))
    parts = ["train", "train", "train", "test"]
    rows = [f"{i}.png,{i % 2},{int(i % 3 > 0)},{parts[i % 4]},p{i % 20}" for i in range(40)]
    (tmp_path / "faces" / "both.csv").write_text("\n".join(["file,smiling,young,split,identity", *rows]))
    faces = read_training_data(f"attributes:{tmp_path / 'faces' / 'both.csv'}")
    assert faces.fingerprint() == "e82ff95558ebb7a4a80532e00cf02390"
