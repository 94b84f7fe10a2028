"""Images in class folders: what a network sees of them, and what is refused."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support import touch

import xai_abn
from xai_abn.datasets import ReadOptions, read_dataset, read_training_data
from xai_abn.datasets.batches import UnreadableWarning, random_crop_box
from xai_abn.datasets.sample import AlikeClassesWarning
from xai_abn.datasets.splits import CopiesWarning, UnusedSplitWarning, copies_of
from xai_abn.errors import DatasetError, InvalidInputError
from xai_abn.images.loading import load_image
from xai_abn.training import TrainingSettings, train
from xai_abn.training.supervised import read_data

CPU = torch.device("cpu")
#: The images have all modes; what is told of them has its own test.
pytestmark = pytest.mark.filterwarnings("ignore::xai_abn.datasets.batches.ConvertedWarning")
MODES = {"a.png": "RGB", "b.jpg": "L", "c.png": "RGBA", "d.jpg": "CMYK", "e.jpg": "RGB"}


def save(path, size=(40, 30), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(noise.squeeze(), mode="CMYK" if mode == "CMYK" else None).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes: five training images each, of different sizes and modes, and one validation image each."""
    for c, label in enumerate(("cat", "dog")):
        for i, (name, mode) in enumerate(MODES.items()):
            save(tmp_path / "set" / "train" / label / name, (30 + 9 * i, 50 - 7 * i), mode, 10 * c + i)
        save(tmp_path / "set" / "val" / label / "v.png", seed=100 + c)
    return tmp_path / "set"


def read(folder, **options):
    return read_training_data(f"images:{folder}", ReadOptions(**{"size": 24, "workers": 0, **options}))


def images(split, batches, seed=None):
    return list(split.load([torch.tensor(b) for b in batches], CPU, seed))


def test_folders_give_classes_and_splits(folder):
    """Images of any size and mode become (N, 3, size, size), channels last; ``<class>/`` alone is all training."""
    data = read(folder)
    assert data.labels == ("cat", "dog")
    assert data.name == f"images:{folder.name}"
    assert (len(data.train), len(data.validation), data.test) == (10, 2, None)
    (batch,) = images(data.train, [range(10)])
    assert batch.images.shape == (10, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.tolist() == [0] * 5 + [1] * 5
    assert batch.skipped == 0
    alone = read(folder / "train")
    assert (len(alone.train), alone.validation) == (10, None)
    held = alone.held_out(0.2)
    assert (len(held.train), len(held.validation)) == (8, 2)
    subset = alone.train.subset(torch.tensor([7, 2])).subset(torch.tensor([1]))
    assert torch.equal(images(subset, [[0]])[0].images, images(alone.train, [[2]])[0].images)


def test_validation_sees_what_explain_will_see(folder):
    """An evaluation's input is what the checkpoint's preprocessing makes of the same file."""
    data = read(folder)
    (batch,) = images(data.validation, [[0, 1]])
    for i, label in enumerate(data.labels):
        prepared = data.preprocess(load_image(folder / "val" / label / "v.png"))
        torch.testing.assert_close(batch.images[i], prepared.tensor, atol=1e-5, rtol=1e-5)
    assert data.preprocess.crop_pct == 0.875


def test_crops_of_files_depend_on_seed_and_index_alone(folder):
    """Workers, batches, order and torch's random state change nothing; another seed or index does."""
    split = read(folder).train
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = torch.cat([b.images for b in images(split, [range(10)], 7)])
    assert torch.equal(torch.get_rng_state(), before)
    other = torch.cat([b.images for b in images(read(folder, workers=2).train, [[9, 8, 7], range(6, -1, -1)], 7)])
    assert torch.equal(one, other.flip(0))
    assert not torch.equal(one, images(split, [range(10)], 8)[0].images)
    same = split.subset(torch.zeros(10, dtype=torch.long))
    assert len(images(same, [range(10)], 7)[0].images.unique(dim=0)) > 3


def test_training_sees_the_part_drawn_resized_and_flipped(folder):
    """Cutting, resizing and mirroring by hand gives the same images, some of them mirrored."""
    split = read(folder).train
    (batch,) = images(split, [range(10)], 7)
    mirrored = 0
    for index, sample in enumerate(split.samples):
        image = load_image(sample.source).image
        part, flipped = random_crop_box(image.size, np.random.default_rng((7, index)), (0.08, 1.0))
        seen = image.crop(part).resize((24, 24), Image.Resampling.BILINEAR)
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else seen
        torch.testing.assert_close(
            batch.images[index], split.preprocess.normalize(np.asarray(seen)), atol=1e-5, rtol=1e-5
        )
        mirrored += flipped
    assert 0 < mirrored < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_skipped_and_counted_or_stops(folder, workers):
    """A corrupt file in the middle leaves the others and their labels in place; "stop" names it, in one line."""
    broken = folder / "train" / "cat" / "b.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    whole, short = images(read(folder, workers=workers).train, [[5, 6], [0, 1, 9]], 3)
    assert (whole.skipped, short.skipped) == (0, 1)
    assert short.targets.tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"^\S*cat/b\.jpg: damaged or cut short") as caught:
        images(read(folder, workers=workers, on_unreadable="stop").train, [[5, 6], [0, 1, 9]], 3)
    assert caught.value.line == str(caught.value)


def test_a_batch_of_which_nothing_can_be_read(folder):
    """It stops training, with the reason; an evaluation gets an empty batch and its count."""
    for name in ("a.png", "b.jpg"):
        (folder / "train" / "cat" / name).write_bytes(b"no image")
    split = read(folder).train
    with pytest.raises(DatasetError, match=r"none of the 2 images of a batch can be read, as .*cat/a\.png"):
        images(split, [[0, 1]], 3)
    (batch,) = images(split, [[0, 1]])
    assert batch.images.shape == (0, 3, 24, 24)
    assert batch.skipped == 2


def test_names_of_splits_and_hidden_files(folder):
    """Train and VALID are splits, too; what hides behind a dot is no training image."""
    (folder / "train").rename(folder / "Train")
    (folder / "val").rename(folder / "VALID")
    save(folder / "Train" / "cat" / ".ipynb_checkpoints" / "a-checkpoint.png")
    save(folder / "Train" / "cat" / "._a.png")
    data = read(folder)
    assert (data.labels, len(data.train), len(data.validation)) == (("cat", "dog"), 10, 2)
    save(folder / "test" / "cat" / "t.png")
    before = data.fingerprint()
    assert read(folder).fingerprint() == before
    (folder / "Train" / "cat" / "a.png").rename(folder / "Train" / "cat" / "aa.png")
    assert read(folder).fingerprint() != before


def test_accents_of_two_computers_are_one_class(tmp_path):
    """Some write an accent as a character of its own."""
    for seed, place in enumerate(("train/caf\u00e9", "train/dog", "val/cafe\u0301", "val/dog")):
        save(tmp_path / place / "0.png", seed=seed)
    data = read_training_data(f"images:{tmp_path}")
    assert data.labels == ("caf\u00e9", "dog")
    assert data.validation.targets.tolist() == [0, 1]


def test_classes_that_differ_only_in_case_are_told(tmp_path):
    """They stay two, as the folders are, since no one else knows."""
    for seed, place in enumerate(("Cat", "cat", "dog")):
        save(tmp_path / place / "0.png", seed=seed)
    with pytest.warns(AlikeClassesWarning, match="'Cat' and 'cat' are different classes, but"):
        data = read_dataset(f"images:{tmp_path}")
    assert data.class_names == ("Cat", "cat", "dog")


def test_images_in_training_and_validation_are_told(folder, tmp_path):
    """By their bytes, not by their names; also of images drawn from one folder; files of equal size may differ."""
    train = folder / "train" / "cat"
    shutil.copy(sorted(train.iterdir())[0], folder / "val" / "dog" / "other-name.png")
    with pytest.warns(CopiesWarning, match=r"1 of 3 validation images are copies of .*other-name\.png"):
        read(folder)
    for name in "ab":
        (tmp_path / f"{name}.bin").write_bytes(bytes(5000) + name.encode())
    assert copies_of([str(tmp_path / "a.bin")], [str(tmp_path / "b.bin")]) == {}
    alone = tmp_path / "alone"
    for label in ("cat", "dog"):
        for i in range(4):
            save(alone / label / f"{i}.png", seed=label == "dog")
    with pytest.warns(CopiesWarning, match="of 4 validation images are copies"):
        read(alone).held_out(0.5)


def test_folders_of_systems_are_neither_classes_nor_searched(tmp_path):
    """Network drives keep a thumbnail of each image in one."""
    for place in ("cat", "dog", "cat/@eaDir/0.png", "@eaDir/0.png", "$RECYCLE.BIN", "__MACOSX/cat"):
        save(tmp_path / place / "0.png")
    data = read_dataset(f"images:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert len(data.splits["train"]) == 2


def test_names_that_are_no_utf8_have_a_fingerprint(folder):
    """File names are bytes; one that no text spells is as good as another."""
    before = read(folder).fingerprint()
    odd = os.fsdecode(os.fsencode(folder / "train" / "cat") + b"/\xff.png")
    (folder / "train" / "cat" / "a.png").rename(odd)
    assert read(folder).fingerprint() != before


def test_one_class_is_refused(tmp_path):
    """There is nothing to tell apart."""
    save(tmp_path / "cat" / "a.png")
    with pytest.raises(DatasetError, match="one class, 'cat'"):
        read(tmp_path)


def test_folders_that_contradict_themselves_are_refused(folder, tmp_path):
    """Each mistake has its message; nothing is passed over."""
    save(folder / "val" / "emu" / "v.png")
    with pytest.raises(DatasetError, match="class 'emu' has validation images but no training images"):
        read(folder)
    (folder / "val" / "emu" / "v.png").unlink()
    with pytest.raises(DatasetError, match=r"val/emu: no images of this class"):
        read(folder)
    (folder / "val" / "emu").rmdir()
    save(folder / "train" / "loose.png")
    with pytest.raises(DatasetError, match=r"1 images cannot be used, such as .*loose\.png \(beside the class folders"):
        read(folder, on_unreadable="stop")
    with pytest.warns(UnreadableWarning, match=r"1 images cannot be used and are left out, such as .*loose\.png"):
        read(folder)
    (folder / "train" / "loose.png").unlink()
    (folder / "validation").mkdir()
    with pytest.raises(DatasetError, match="both val and validation"):
        read(folder)
    with pytest.raises(DatasetError, match="no such folder"):
        read(folder / "nothing")
    with pytest.raises(DatasetError, match=r"5 images have none of the classes.*needs a class for each image"):
        read(folder / "train" / "cat")
    (folder / "validation").rmdir()
    (folder / "notes").mkdir()
    with pytest.warns(UnusedSplitWarning, match="not used beside train: notes"):
        read(folder)
    (folder / "notes").rmdir()
    (folder / "train").rename(folder / "Training")
    assert len(read(folder).validation)
    (folder / "Training").rename(folder / "more")
    with pytest.raises(DatasetError, match="it has more, val, but no split called train"):
        read(folder)


def test_the_size_is_the_architectures_unless_given(folder, tmp_path):
    """224 for ResNet-18; CIFAR images cannot have another."""
    config = TrainingSettings(data=f"images:{folder}", arch="resnet18")
    assert read_data(config).preprocess.size == 224
    assert read_data(TrainingSettings(data=f"images:{folder}", arch="resnet18", size=48)).preprocess.size == 48
    for i in range(10):
        for part in ("train", "test"):
            save(tmp_path / "cifar" / part / f"c{i}" / "a.png", (32, 32), seed=2 * i + (part == "test"))
    assert read_data(TrainingSettings(data=f"cifar10:{tmp_path / 'cifar'}", arch="resnet18")).preprocess.size == 32
    with pytest.raises(InvalidInputError, match="size must be 32"):
        read_data(TrainingSettings(data=f"cifar10:{tmp_path / 'cifar'}", size=48))


def test_bad_data_leaves_an_earlier_run_as_it_was(folder, tmp_path):
    """Data that cannot be read is found before anything is overwritten."""
    config = TrainingSettings(data=f"images:{folder / 'nothing'}")
    with pytest.raises(DatasetError, match="no such folder"):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.json").write_text("{}")
    with pytest.raises(DatasetError, match="no such folder"):
        train(config, tmp_path / "old", overwrite=True)
    assert (tmp_path / "old" / "result.json").exists()


def test_training_on_folders_goes_round_a_corrupt_file_or_stops(folder, tmp_path):
    """The log counts what was left out in each epoch, of training and validation; "stop" gives the file's name."""
    (folder / "train" / "dog" / "e.jpg").write_bytes(b"\xff\xd8\xff broken")
    save(folder / "val" / "dog" / "w.png")
    (folder / "val" / "dog" / "w.png").write_bytes(b"")
    settings = {"data": f"images:{folder}", "epochs": 2, "batch_size": 5, "lr": 0.01, "workers": 1, "maps_every": 0}
    result = train(TrainingSettings(**settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "validation_accuracy" in line]
    assert [(e["skipped"], e["validation_skipped"]) for e in epochs] == [(1, 1), (1, 1)]
    assert result["final"]["validation_skipped"] == 1
    model = xai_abn.load_model(str(tmp_path / "run" / "final.safetensors"))
    assert model.preprocess.size == 32
    assert model.preprocess == read(folder, size=32).preprocess
    with pytest.raises(DatasetError, match=r"e\.jpg"):
        train(TrainingSettings(**settings, on_unreadable="stop"), tmp_path / "stopped")


def test_a_flat_folder_has_no_classes(tmp_path):
    """Images directly in the folder have no label; a folder without images beside them is no class."""
    touch(tmp_path, "b.jpg", "a.png", "notes.txt", "empty/notes.txt")
    data = read_dataset(f"images:{tmp_path}")
    assert [i.source for i in data.samples] == [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert {i.label for i in data.samples} == {None}
    assert data.class_names == data.samples[0].classes == ()


def test_folders_of_the_first_level_are_classes(tmp_path):
    """Each folder gives its name to the images anywhere below it; WordNet ids of ImageNet-1k are recognized."""
    touch(tmp_path, "n02134084/deep/a.jpg", "n02134084/b.jpg", "n99999999/c.jpg", "own/d.jpg", ".cache/e.jpg")
    data = read_dataset(f"images:{tmp_path}")
    assert data.class_names == ("n02134084", "n99999999", "own")
    assert sorted(i.label for i in data.samples) == ["n02134084", "n02134084", "n99999999", "own"]
    assert data.samples[0].classes == ("n02134084",)
    assert data.wnids == {"n02134084": ("n02134084",)}


def test_a_benchmark_measures_the_test_or_the_validation_split(folder):
    """Images that were trained on are measured only if there are no others."""
    assert {s.source.split("/")[-3] for s in read_dataset(f"images:{folder}").samples} == {"val"}
    save(folder / "test" / "cat" / "t.png")
    assert [s.source.split("/")[-3] for s in read_dataset(f"images:{folder}").samples] == ["test"]
    assert len(read_dataset(f"images:{folder / 'train'}").samples) == 10


def test_images_beside_class_folders_are_problems(tmp_path):
    """An image that is in none of the classes is set aside."""
    touch(tmp_path, "cat/a.jpg", "stray.jpg")
    data = read_dataset(f"images:{tmp_path}")
    assert data.problems == ((str(tmp_path / "stray.jpg"), "beside the class folders, so it has no class"),)


def test_a_class_without_images_is_refused(tmp_path):
    """An empty class would never be measured, so it is named."""
    touch(tmp_path, "cat/a.jpg", "dog/notes.txt")
    with pytest.raises(DatasetError, match="dog: no images of this class"):
        read_dataset(f"images:{tmp_path}")


@pytest.mark.parametrize("name", ["notes.txt", ".hidden/a.jpg"])
def test_a_folder_without_images_is_refused(tmp_path, name):
    """Neither other files nor hidden images count."""
    touch(tmp_path, name)
    with pytest.raises(DatasetError, match=r"no images in this folder"):
        read_dataset(f"images:{tmp_path}")
