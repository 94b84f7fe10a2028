"""CIFAR: torchvision's layout, folders of images, and what is refused."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

from xai_abn.datasets import read_dataset, read_training_data
from xai_abn.datasets.batches import UnreadableWarning
from xai_abn.errors import DatasetError


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


def test_cifar_is_read_from_torchvisions_layout(tmp_path, monkeypatch):
    """Pixels and labels are those of torchvision's own classes, in memory; no class is missing."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *given: True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (20, 3072), np.uint8), "labels": [*range(10)] * 2}
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))
    names = [f"class {i}" for i in range(10)]
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    data = read_training_data(f"cifar10:{tmp_path}")
    own = torchvision.datasets.CIFAR10(tmp_path, train=True)
    assert (data.labels, data.validation, data.preprocess.size) == (tuple(names), None, 32)
    assert (len(data.train), len(data.test)) == (100, 20)
    assert data.train.targets.tolist() == own.targets
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), own.data)
    sample = read_dataset(f"cifar10:{tmp_path}").samples[3]  # the benchmark's: the test split
    assert np.array_equal(np.asarray(sample.load().image), torchvision.datasets.CIFAR10(tmp_path, train=False).data[3])
    assert sample.label == "class 3"
    assert sample.digest() == read_dataset(f"cifar10:{tmp_path}").samples[3].digest()


def test_cifar_is_read_from_image_folders(tmp_path):
    """Gray images become color; an unreadable one is left out; the numbers of classes and splits must be CIFAR's."""
    for part in ("train", "test"):
        for i in range(10):
            (tmp_path / part / f"c{i}").mkdir(parents=True)
            brightness = i + 100 * (part == "test")
            Image.new("L" if i else "RGB", (32, 32), brightness).save(tmp_path / part / f"c{i}" / "a.png")
    data = read_training_data(f"cifar10:{tmp_path}")
    assert data.train.images[:, 1, 5, 5].tolist() == [0, *range(1, 10)]
    assert data.train.padding == 4
    (tmp_path / "train" / "c4" / "b.png").write_bytes(b"")
    with pytest.warns(UnreadableWarning, match=r"c4/b\.png: the file is empty"):
        assert len(read_training_data(f"cifar10:{tmp_path}").train) == 10
    with pytest.raises(DatasetError, match="CIFAR-100 has 100 classes, found 10"):
        read_dataset(f"cifar100:{tmp_path}")
    (tmp_path / "test" / "c4" / "a.png").unlink()
    with pytest.raises(DatasetError, match="test/c4: no images of this class"):
        read_dataset(f"cifar10:{tmp_path}")
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DatasetError, match="the test images are missing"):
        read_dataset(f"cifar10:{tmp_path}")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DatasetError, match="no CIFAR-10 in it; expected torchvision's layout"):
        read_dataset(f"cifar10:{tmp_path}")
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(f"cifar10:{tmp_path / 'nothing'}")
