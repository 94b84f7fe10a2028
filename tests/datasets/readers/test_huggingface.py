"""Hugging Face datasets and tar shards, made here; nothing is downloaded."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from xai_abn.datasets import ReadOptions, read_dataset, read_training_data
from xai_abn.datasets.batches import UnreadableWarning
from xai_abn.datasets.splits import UnusedSplitWarning
from xai_abn.errors import DatasetError, InvalidInputError, XaiAbnError

CPU = torch.device("cpu")


def png_bytes(number):
    """Return a flat image of a brightness of its own, as PNG."""
    content = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), number * 10, np.uint8)).save(content, "png")
    return content.getvalue()


def write_shard(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def samples(numbers):
    return [f for n in numbers for f in ((f"{n:03d}.png", png_bytes(n)), (f"{n:03d}.cls", str(n % 3).encode()))]


def read(spec, **options):
    return read_training_data(spec, ReadOptions(**{"size": 16, "workers": 0, **options}))


def brightness(split, indices):
    (batch,) = split.load([torch.tensor(indices)], CPU, None)
    return (batch.images[:, 0, 8, 8] * 0.229 + 0.485).mul(25.5).round().int().tolist(), batch.targets.tolist()


def hub_table(numbers, labels, names=("cat", "dog")):
    from datasets import ClassLabel, Dataset, Features, Image, Value

    cells = [{"bytes": n if isinstance(n, bytes) else png_bytes(n), "path": None} for n in numbers]
    kinds = Features({"id": Value("int32"), "image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"id": range(len(labels)), "image": cells, "label": labels}, features=kinds)


@pytest.fixture
def saved(tmp_path):
    """A dictionary of splits that ``save_to_disk`` wrote; the test labels are hidden."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    validation, test = hub_table([5, b"broken"], [1, 0]), hub_table([7], [-1])
    both = datasets.DatasetDict(train=hub_table(range(5), [0, 1, 0, 1, 0]), validation=validation, test=test)
    both.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_hugging_face_dataset_is_read(saved):
    """Columns are found by their kind; a corrupt image is skipped or named by its row; hidden labels are no test."""
    data = read(f"hf:{saved}", workers=2)
    assert (data.labels, len(data.train), len(data.validation), data.test) == (("cat", "dog"), 5, 2, None)
    assert brightness(data.train, [4, 1]) == ([4, 1], [0, 1])
    (batch,) = data.validation.load([torch.arange(2)], CPU, None)
    assert (len(batch.images), batch.skipped) == (1, 1)
    with pytest.raises(DatasetError, match=r"validation\[1\]: not an image"):
        list(read(f"hf:{saved}", on_unreadable="stop").validation.load([torch.arange(2)], CPU, None))
    assert read(f"hf:{saved}#id").labels == ("0", "1", "2", "3", "4")


def test_splits_may_number_their_classes_differently(tmp_path):
    """Names count; hidden labels are none, also of numbers without names; what rows hold is in the fingerprint."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    train, test = hub_table([0, 1], [0, 1]), hub_table([2, 3], [0, 1], names=("dog", "cat"))
    datasets.DatasetDict(train=train, Test=test).save_to_disk(tmp_path / "a")
    data = read(f"hf:{tmp_path / 'a'}")
    assert data.labels == ("cat", "dog")
    assert brightness(data.test, [0, 1]) == ([2, 3], [1, 0])
    numbers = [t.cast_column("label", datasets.Value("int32")) for t in (train, hub_table([2], [-1]))]
    datasets.DatasetDict(train=numbers[0], test=numbers[1]).save_to_disk(tmp_path / "b")
    assert (read(f"hf:{tmp_path / 'b'}").labels, read(f"hf:{tmp_path / 'b'}").test) == (("0", "1"), None)
    datasets.DatasetDict(train=hub_table([0, 5], [0, 1]), Test=test).save_to_disk(tmp_path / "c")
    assert read(f"hf:{tmp_path / 'c'}").fingerprint() != data.fingerprint()
    datasets.DatasetDict(train=train, valid=test, extra=test, val=test).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetError, match="both valid and val"):
        read(f"hf:{tmp_path / 'd'}")
    datasets.DatasetDict(Training=train, valid=test, extra=test).save_to_disk(tmp_path / "e")
    with pytest.warns(UnusedSplitWarning, match="not used beside Training: extra"):
        assert brightness(read(f"hf:{tmp_path / 'e'}").validation, [0, 1]) == ([2, 3], [1, 0])
    (tmp_path / "a").rename(tmp_path / "moved")
    assert read(f"hf:{tmp_path / 'moved'}").fingerprint() == data.fingerprint()


def test_a_folder_that_datasets_loads_itself(tmp_path, monkeypatch):
    """A folder of parquet files."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    hub_table(range(3), [0, 1, 1]).to_parquet(tmp_path / "set" / "train.parquet")
    assert brightness(read(f"hf:{tmp_path / 'set'}").train, [2, 0]) == ([2, 0], [1, 0])


def test_tar_shards_are_read_by_datasets(tmp_path, monkeypatch):
    """WebDataset's shards of ``key.png`` and ``key.cls`` give images and classes; file names give the splits."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_shard(tmp_path / "set" / "train-000.tar", samples(range(6)))
    write_shard(tmp_path / "set" / "train-001.tar", samples(range(6, 9)))
    write_shard(tmp_path / "set" / "val-000.tar", samples(range(9, 12)))
    data = read(f"hf:{tmp_path / 'set'}")
    assert (data.labels, len(data.train), len(data.validation)) == (("0", "1", "2"), 9, 3)
    assert brightness(data.train, [7, 0, 5]) == ([7, 0, 5], [1, 0, 2])
    assert brightness(data.validation, [2, 0]) == ([11, 9], [2, 0])
    sample = read_dataset(f"hf:{tmp_path / 'set'}").samples[1]  # of the validation split, as there is no test split
    assert (sample.label, sample.load().image.size) == ("1", (24, 20))
    assert list(sample.content()) == [png_bytes(10)]


@pytest.mark.parametrize("with_path", [True, False])
def test_parquet_as_pandas_writes_it_holds_images(tmp_path, monkeypatch, with_path):
    """The bytes of files, with their paths or alone."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    cells = [{"bytes": png_bytes(n), "path": f"{n}.png"} if with_path else png_bytes(n) for n in range(3)]
    pandas.DataFrame({"image": cells, "label": ["cat", "dog", "cat"]}).to_parquet(tmp_path / "set" / "train.parquet")
    data = read(f"hf:{tmp_path / 'set'}")
    assert data.labels == ("cat", "dog")
    assert brightness(data.train, [2, 1]) == ([2, 1], [0, 1])


@pytest.mark.parametrize(
    ("ending", "content", "named"),
    [
        ("json", b'{"label": "dog", "width": 3}', ""),
        ("json", b'{"animal": "dog"}', "#json.animal"),
        ("txt", b"dog", "#txt"),
        ("a.cls", b"7", ""),
    ],
)
def test_labels_of_shards_in_other_files(tmp_path, monkeypatch, ending, content, named):
    """JSON, text, and keys with dots, also in a compressed shard; what is not clear is asked for by name."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    image = "a.png" if ending == "a.cls" else "png"
    files = [file for n in range(2) for file in ((f"00{n}.{image}", png_bytes(n)), (f"00{n}.{ending}", content))]
    write_shard(tmp_path / "set" / "train-000.tar", files)
    shard = tmp_path / "set" / "train-000.tar"
    shard.with_suffix(".tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    shard.unlink()
    data = read_dataset(f"hf:{tmp_path / 'set'}{named}")
    assert [sample.label for sample in data.samples] == ["7" if ending == "a.cls" else "dog"] * 2
    assert list(data.samples[1].content()) == [png_bytes(1)]
    if named:
        with pytest.raises(DatasetError, match=rf"add #COLUMN, one of .*{named[1:]}"):
            read_dataset(f"hf:{tmp_path / 'set'}")


@pytest.mark.parametrize("number", ["1000000000", "999999999999"])
def test_a_large_class_number_takes_no_memory(tmp_path, monkeypatch, number):
    """A class number is a name: no table of so many classes is made."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    files = [(f"{n}.{end}", body) for n in range(2) for end, body in (("png", png_bytes(n)), ("cls", number.encode()))]
    write_shard(tmp_path / "set" / "train-000.tar", files)
    assert read_dataset(f"hf:{tmp_path / 'set'}").class_names == (number,)


@pytest.mark.parametrize("name", ["s/{000..99999999}", "{0..9}{0..9}", "{9999999999..99999999999}.tar", "s/*", "a.tar"])
def test_patterns_and_files_are_refused(name):
    """A pattern is never expanded, and a shard is named by its folder."""
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    with pytest.raises(DatasetError, match="give the folder that holds the files"):
        read_dataset(f"hf:{name}")


def test_names_with_dots_in_a_shard_are_not_one_image(tmp_path, monkeypatch):
    """All files before the first dot are one row, of which only the first image would be read."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    files = [file for n in range(2) for file in ((f"img.{n}.png", png_bytes(n)), (f"img.{n}.cls", b"7"))]
    write_shard(tmp_path / "set" / "train-000.tar", files)
    with pytest.raises(DatasetError, match=r"the labels may be in 0\.cls, 1\.cls; .*replace the dots in their names"):
        read_dataset(f"hf:{tmp_path / 'set'}")
    assert len(read_dataset(f"hf:{tmp_path / 'set'}#1.cls").samples) == 1


def test_a_row_without_a_label_costs_its_image(tmp_path):
    """The others keep theirs."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    datasets.DatasetDict(train=hub_table([1, 2, 3], [0, None, 1])).save_to_disk(tmp_path / "holes")
    with pytest.warns(UnreadableWarning, match=r"1 images cannot be used and are left out, such as .*train\[1\]"):
        data = read(f"hf:{tmp_path / 'holes'}")
    assert brightness(data.train, [0, 1]) == ([1, 3], [0, 1])


def test_a_small_archive_of_much_is_refused(tmp_path, monkeypatch):
    """Before it is unpacked: the library reads whole members into memory."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("unpacked"))
    (tmp_path / "deep").mkdir()
    with gzip.open(tmp_path / "deep" / "train.tar.gz", "wb") as file:
        for _ in range(100):
            file.write(bytes(2**20))
    with pytest.raises(DatasetError, match=r"train\.tar\.gz: 10\d,\d{3} bytes hold 104,857,600.*unpack it"):
        read(f"hf:{tmp_path}")


def test_a_hugging_face_dataset_without_images_labels_or_train_is_refused(saved, tmp_path):
    """The message lists the columns or the splits."""
    import datasets

    def refused(message, place="other", **splits):
        datasets.DatasetDict(splits).save_to_disk(tmp_path / place)
        with pytest.raises(DatasetError, match=message):
            read(f"hf:{tmp_path / place}")

    table = hub_table([1, 2], [0, 1])
    refused("no column of images; its columns are id, label", "a", train=table.remove_columns("image"))
    refused("no column of labels found.*id, image", "b", train=table.remove_columns("label"))
    refused("it has test, but no split called train", "c", test=table)
    refused(r"1 are listed but unusable, the first .*\[0\]: no 'label' in this row", "d", train=hub_table([1], [None]))
    refused("class 'dog' has test images but no training", "e", train=hub_table([1], [0]), test=table)
    refused("test: no column 'label', which the train split has", "f", train=table, test=table.remove_columns("label"))
    other = hub_table([3], [1], names=("cat", "emu"))
    refused("test: 'label' is 'emu', which is not a class of the train split", "g", train=table, test=other)
    refused(
        "'label' is 0, which is not a class", "h", train=table, test=table.cast_column("label", datasets.Value("int32"))
    )
    listed = datasets.Sequence(datasets.Value("int32"))
    lists = table.remove_columns("label").add_column("label", [[0], [1]]).cast_column("label", listed)
    refused("'label' holds lists, not classes", "i", train=lists)
    with pytest.raises(DatasetError, match=r"'image' holds .*, not classes"):
        read(f"hf:{tmp_path / 'g'}#image")
    with pytest.raises(DatasetError, match="cannot be loaded"):
        read(f"hf:{tmp_path / 'nothing' / 'there' / 'at all'}")
    with pytest.raises(DatasetError, match="add #COLUMN"):
        read(f"hf:{saved}#nothing")


def test_without_datasets_the_extra_is_named(monkeypatch):
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'xai-abn\[datasets\]'") as caught:
        read("hf:somewhere")
    assert isinstance(caught.value, XaiAbnError)
