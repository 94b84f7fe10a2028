"""Pictures in memory, their random crops, what is held out, and CIFAR in the forms it comes in."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from xai_abn.datasets import TrainingData, read_training_data
from xai_abn.datasets.training_data import INTERPOLATION, TensorSplit, check_labels, shifted
from xai_abn.errors import DatasetError, InvalidInputError, UnknownNameError
from xai_abn.images.preprocess import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


LOOK = Preprocess(4, 1.0, INTERPOLATION, MEAN, STD)


def tensor_split(number=10, size=8, padding=2):
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))
    return TensorSplit(images, torch.arange(number) % 3, MEAN, STD, padding)


def loaded(split, batches, seed):
    return list(split.load([torch.tensor(b) for b in batches], CPU, seed))


def test_shifted_is_pad_crop_and_flip():
    """A slow loop over pictures, rows and columns of the padded picture gives the same."""
    images = torch.randint(1, 256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.manual_seed(0))
    places = torch.tensor([[0, 0, 0], [4, 4, 0], [2, 2, 1], [0, 3, 1], [4, 1, 0], [2, 2, 0]])
    expected = torch.zeros_like(images)
    for n, (top, left, flip) in enumerate(places.tolist()):
        for row in range(5):
            for column in range(7):
                y, x = row + top - 2, column + left - 2
                value = images[n, :, y, x] if 0 <= y < 5 and 0 <= x < 7 else torch.zeros(3)
                expected[n, :, row, 6 - column if flip else column] = value
    assert torch.equal(shifted(images, places, 2), expected)
    assert torch.equal(shifted(images, places, 2)[5], images[5])


def test_pictures_in_memory_are_normalised_and_channels_last():
    """Without a seed a batch is (pixels / 255 - mean) / std of the pictures as they are, with their labels."""
    split = tensor_split()
    (batch,) = loaded(split, [[3, 0]], None)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(batch.images, (split.images[[3, 0]] / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.tolist() == [0, 0]
    assert batch.skipped == 0


def test_crops_in_memory_depend_on_seed_and_index_alone():
    """Other batches, another order and torch's random state change nothing; another seed does."""
    split = tensor_split()
    one = torch.cat([b.images for b in loaded(split, [range(10)], 5)])
    torch.manual_seed(99)
    other = torch.cat([b.images for b in loaded(split, [[9, 8, 7], [6, 5, 4, 3, 2, 1, 0]], 5)]).flip(0)
    assert torch.equal(one, other)
    assert not torch.equal(one, loaded(split, [range(10)], 6)[0].images)
    same = TensorSplit(split.images[:1].expand(10, -1, -1, -1), split.targets, MEAN, STD, padding=2)
    assert len(loaded(same, [range(10)], 5)[0].images.unique(dim=0)) > 3


def test_what_is_held_out_is_disjoint_complete_and_seeded():
    """Validation and training share no picture, leave out none, and are the same again for the same seed."""
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    data = TrainingData(
        "t",
        ("a",),
        Preprocess(4, 1.0, INTERPOLATION, MEAN, STD),
        TensorSplit(images, torch.zeros(20).long(), MEAN, STD),
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


def test_holding_out_leaves_every_class_something_to_learn():
    """Of a class with a single picture it is never the one held out."""
    images, targets = torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.tensor([0] * 18 + [1, 2])
    data = TrainingData("t", ("a", "b", "c"), LOOK, TensorSplit(images, targets, MEAN, STD))
    for seed in range(5):
        held = data.held_out(0.5, seed)
        assert set(held.train.targets.tolist()) == {0, 1, 2}
        assert len(held.train) + len(held.validation) == 20


def test_a_fingerprint_changes_with_pictures_targets_and_labels():
    """Whatever would change what is learnt changes it; reading the same again does not."""
    images, targets = torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])

    def fingerprint(images=images, targets=targets, labels=("a", "b")):
        return TrainingData("t", labels, LOOK, TensorSplit(images, targets, MEAN, STD)).fingerprint()

    other = images.clone()
    other[0, 0, 0, 0] = 1
    changed = [fingerprint(other), fingerprint(targets=targets.flip(0)), fingerprint(labels=("b", "a"))]
    assert fingerprint() == fingerprint(images.clone())
    assert len({fingerprint(), *changed}) == 4


def test_labels_out_of_range_are_refused():
    """The message says how many and from where to where."""
    check_labels(torch.tensor([0, 2]), 3, "x")
    with pytest.raises(DatasetError, match=r"x: 2 labels are outside 0 to 2 \(from -1 to 3\)"):
        check_labels(torch.tensor([0, 3, -1]), 3, "x")


def test_an_unknown_kind_lists_the_known_ones():
    """A typing error costs one line."""
    with pytest.raises(UnknownNameError, match=r"did you mean 'images'.*cifar10"):
        read_training_data("image:somewhere")
    with pytest.raises(UnknownNameError, match="cifar10:PLACE"):
        read_training_data("somewhere")


def write_records(folder, classes=10, number=2):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for i in range(classes):
            records = rng.integers(0, 256, (number, 3072), dtype=np.uint8)
            records[:, 0] = i
            records.tofile(folder / part / f"class_{i}-{i}-{part}.bin")


def test_cifar_is_read_from_records_by_class(tmp_path):
    """File names give the classes, bytes the pictures, channels first."""
    write_records(tmp_path)
    data = read_training_data(f"cifar10:{tmp_path}")
    assert data.labels == tuple(f"class_{i}" for i in range(10))
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.train.images[:, 0, 0, 0].tolist() == data.train.targets.tolist() == sorted([*range(10)] * 2)
    assert (len(data.test), data.validation, data.preprocess.size) == (20, None, 32)


def test_cifar_records_cut_short_and_missing_classes_are_refused(tmp_path):
    """A file of no whole number of records is named; so is a class without a file; the counts must be CIFAR's."""
    write_records(tmp_path)
    with pytest.raises(DatasetError, match="CIFAR-100 has 100 classes, found 10"):
        read_training_data(f"cifar100:{tmp_path}")
    file = tmp_path / "train" / "class_3-3-train.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"class_3-3-train\.bin: 6143 bytes are no whole number"):
        read_training_data(f"cifar10:{tmp_path}")
    file.unlink()
    (tmp_path / "test" / "class_3-3-test.bin").unlink()
    with pytest.raises(DatasetError, match="no file of class 3"):
        read_training_data(f"cifar10:{tmp_path}")
    with pytest.raises(DatasetError, match="no such folder"):
        read_training_data(f"cifar10:{tmp_path / 'nothing'}")


class Malicious:
    """What makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("kind", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_of_a_wrong_checksum_is_refused_and_never_unpickled(tmp_path, kind, folder):
    """A file made by somebody else could run anything."""
    (tmp_path / folder).mkdir()
    trap = tmp_path / "trap"
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"]:
        (tmp_path / folder / name).write_bytes(pickle.dumps(Malicious(trap)))
    for place in (tmp_path, tmp_path / folder):
        with pytest.raises(DatasetError, match="checksums differ"):
            read_training_data(f"{kind}:{place}")
    assert not trap.exists()


def test_cifar_is_read_from_picture_folders(tmp_path):
    """Grey pictures become colour; another size, an empty class and a class missing from one part are refused."""
    for part in ("train", "test"):
        for i in range(10):
            (tmp_path / part / f"c{i}").mkdir(parents=True)
            Image.new("L" if i else "RGB", (32, 32), i).save(tmp_path / part / f"c{i}" / "a.png")
    data = read_training_data(f"cifar10:{tmp_path}")
    assert data.train.images[:, 1, 5, 5].tolist() == [0, *range(1, 10)]
    odd = tmp_path / "train" / "c4" / "b.png"
    Image.new("RGB", (33, 32)).save(odd)
    with pytest.raises(DatasetError, match=r"b\.png: CIFAR pictures are 32x32, this is 33x32"):
        read_training_data(f"cifar10:{tmp_path}")
    odd.unlink()
    (tmp_path / "test" / "c4" / "a.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"c4/a\.png: the file is empty"):
        read_training_data(f"cifar10:{tmp_path}")
    (tmp_path / "test" / "c4" / "a.png").unlink()
    with pytest.raises(DatasetError, match="test/c4: no pictures"):
        read_training_data(f"cifar10:{tmp_path}")
    (tmp_path / "test" / "c4").rmdir()
    with pytest.raises(DatasetError, match="test: the folder of class 'c4' is missing"):
        read_training_data(f"cifar10:{tmp_path}")
