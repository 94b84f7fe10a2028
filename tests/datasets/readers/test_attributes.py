"""Images with attributes from tables: values, splits, people, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from xai_abn.datasets import ReadOptions, read_training_data, training_data
from xai_abn.datasets.batches import InMemorySplit, LazySplit, UnreadableWarning
from xai_abn.errors import DatasetError
from xai_abn.images.loading import load_image
from xai_abn.training import TrainingSettings, train

CPU = torch.device("cpu")


def save(path, seed):
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (22, 18, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def table(tmp_path):
    """Six images in ``images`` beside a CSV file, which is returned."""
    for i in range(6):
        save(tmp_path / "images" / f"{i}.png", i)
    path = tmp_path / "list.csv"
    rows = "".join(f"{i}.png,{i % 2},{int(i > 2)}\n" for i in range(6))
    path.write_text(f"file,smiling,young\n{rows}")
    return path


def read(path, **options):
    return read_training_data(f"attributes:{path}", ReadOptions(**{"size": 16, "workers": 0, **options}))


def test_a_table_gives_attributes(table):
    """Columns are labels, cells are targets 0 or 1, and -1 is 0, too."""
    data = read(table)
    assert data.labels == ("smiling", "young")
    assert data.multi_label
    assert data.train.targets.tolist() == [[i % 2, float(i > 2)] for i in range(6)]
    table.write_text(table.read_text().replace(",0", ",-1"))
    assert torch.equal(read(table).train.targets, data.train.targets)


def test_small_sets_are_kept_in_memory_as_evaluation_sees_them(table, monkeypatch):
    """Kept or read when needed, validation is the checkpoint's preprocessing; only the crops of training differ."""
    kept = read(table)
    monkeypatch.setattr(training_data, "MEMORY", 0)
    lazy = read(table)
    assert isinstance(kept.train, InMemorySplit)
    assert isinstance(lazy.train, LazySplit)
    one, two = (next(data.train.load([torch.tensor([4, 1])], CPU, None)) for data in (kept, lazy))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.targets, two.targets)
    prepared = kept.preprocess(load_image(table.parent / "images" / "4.png"))
    torch.testing.assert_close(one.images[0], prepared.tensor, atol=1e-5, rtol=1e-5)
    assert next(lazy.train.load([torch.tensor([4, 1])], CPU, 1)).images.shape == (2, 3, 16, 16)


def test_unreadable_images_are_left_out_of_memory_with_a_warning(table):
    """The others keep their labels; "stop" names the file; nothing readable is an error."""
    (table.parent / "images" / "1.png").write_bytes(b"broken")
    with pytest.warns(UnreadableWarning, match=r"1 of 6 images cannot be read and are left out, as .*1\.png"):
        data = read(table)
    assert data.train.targets.tolist() == [[i % 2, float(i > 2)] for i in (0, 2, 3, 4, 5)]
    with pytest.raises(DatasetError, match=r"1\.png"):
        read(table, on_unreadable="stop")
    for i in range(6):
        (table.parent / "images" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of 6 images"):
        read(table)


def people_table(tmp_path, count=40):
    for i in range(count * 2):
        save(tmp_path / f"{i}.png", i)
    rows = "".join(f"{i}.png,p{i % count},{i % 2}\n" for i in range(count * 2))
    path = tmp_path / "people.csv"
    path.write_text(f"file,identity,a\n{rows}")
    return path


def test_no_person_is_in_two_splits(tmp_path, monkeypatch):
    """80, 10 and 10 % of the people, whatever the order of the rows."""
    monkeypatch.setattr(training_data, "MEMORY", 0)
    path = people_table(tmp_path)

    def people():
        data = read(path)
        splits = (data.train, data.validation, data.test)
        return [{int(s.source.split("/")[-1][:-4]) % 40 for s in split.samples} for split in splits]

    train_people, validation, test = found = people()
    assert [len(part) for part in found] == [32, 4, 4]
    assert train_people | validation | test == set(range(40))
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]))
    assert people() == found


def test_a_file_under_two_names_is_left_out_and_a_column_without_one_refused(table):
    """No one knows which row holds, or in which split the image is; an index would be an attribute."""
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1].replace("0.png", "./0.png")]))
    with pytest.warns(UnreadableWarning, match=r"2 images cannot be used .*line 2: the file is listed twice"):
        assert len(read(table).train) == 5
    table.write_text("\n".join([f",{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[1:]))]))
    with pytest.raises(DatasetError, match="column 1 has no name; name it, or remove it"):
        read(table)


def test_validation_is_of_other_people_where_the_splits_leave_it_open(tmp_path, monkeypatch):
    """If the splits have no validation, a tenth of the people in the training split is held out."""
    monkeypatch.setattr(training_data, "MEMORY", 0)
    path = people_table(tmp_path)
    header, *rows = path.read_text().splitlines()
    split = ["test" if int(row.split(",p")[1].split(",")[0]) >= 20 else "train" for row in rows]
    path.write_text("\n".join([f"{header},split", *(f"{r},{s}" for r, s in zip(rows, split, strict=True))]))
    assert read(path, validation=0.0).validation is None
    data = read(path, validation=0.1).held_out(0.3)
    found = [
        {int(s.source.split("/")[-1][:-4]) % 40 for s in part.samples}
        for part in (data.train, data.validation, data.test)
    ]
    assert [len(part) for part in found] == [18, 2, 20]
    assert set.union(*found) == set(range(40))
    one = [header + ",split", rows[0] + ",train", rows[20] + ",test"]
    path.write_text("\n".join(one))
    with pytest.raises(DatasetError, match="1 groups to train on cannot be divided into 2 splits"):
        read(path)


def test_a_split_column_is_taken_and_must_agree_with_the_people(table):
    """``val`` is validation; a person in two splits is named; so is an unknown split."""
    lines = table.read_text().splitlines()
    names = ["split", "train", "train", "val", "validation", "test", "test"]
    table.write_text("\n".join(f"{line},{name}" for line, name in zip(lines, names, strict=True)))
    data = read(table)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [2, 2, 2]
    assert data.validation.targets.tolist() == [[0, 0], [1, 1]]
    assert data.labels == ("smiling", "young")
    people = ["identity", "a", "b", "c", "c", "d", "b"]
    table.write_text("\n".join(f"{line},{p}" for line, p in zip(table.read_text().splitlines(), people, strict=True)))
    with pytest.raises(DatasetError, match="'b' is in train and in test"):
        read(table)
    table.write_text(table.read_text().replace("validation", "dev"))
    with pytest.raises(DatasetError, match="line 5: split 'dev' is none of"):
        read(table)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.png,1,0", "1.png,yes,0", "line 3: 'smiling' is 'yes'; attributes are 1 and 0"),
        ("1.png,1,0", "1.png,1,2", "line 3: 'young' is '2'"),
        ("1.png,1,0", "1.png,1,-1", "it has both 0 and -1"),
        ("1.png,1,0", '"1.png,1,0', r"list\.csv, line 3: cannot be read as CSV \(a quote is not closed\)"),
        ("1.png,1,0\n2.png", '1.png,1,"0\n2.png"', r"line 3: .*a quote is opened and closed in another line"),
        ("file,", "name,", "no column 'file'; its columns are name, smiling, young"),
        ("young", "smiling", "two columns have the same name: 'smiling'"),
    ],
)
def test_a_damaged_table_is_refused(table, old, new, message):
    """One line says where and what."""
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        read(table)


@pytest.mark.parametrize(
    ("old", "new", "lost", "reason"),
    [
        ("1.png,1,0", "1.png,,0", [1], r"1\.png \(.*line 3: 'smiling' is missing"),
        ("1.png,1,0", "1.png,1", [1], r"1\.png \(.*line 3: 2 values for 3 columns"),
        ("1.png,1,0", "1.png,1,0,1", [1], r"1\.png \(.*line 3: 4 values for 3 columns"),
        ("1.png", "0.png", [0, 1], r"0\.png \(.*line 2: the file is listed twice"),
        ("1.png", "nowhere.png", [1], r"nowhere\.png \(no such file; looked for it in .*images"),
    ],
)
def test_a_damaged_row_costs_its_image(table, old, new, lost, reason):
    """The others keep their values, and the first reason is told; a run that is to stop does."""
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.warns(UnreadableWarning, match=rf"{len(lost)} images cannot be used and are left out.*{reason}"):
        data = read(table)
    assert data.train.targets.tolist() == [[i % 2, float(i > 2)] for i in range(6) if i not in lost]
    with pytest.raises(DatasetError, match=reason):
        read(table, on_unreadable="stop")


def test_an_empty_table_is_refused(table):
    """No file, no header, no rows, no attributes."""
    for content, message in (("", "no column"), ("file,a\n", "no images"), ("file\n0.png\n", "no attributes")):
        table.write_text(content)
        with pytest.raises(DatasetError, match=message):
            read(table)
    with pytest.raises(DatasetError, match="no such file"):
        read(table.with_name("nothing.csv"))


def test_celebas_own_files(table):
    """The list, its partition and its identities give what a CSV would; a list cut short is refused."""
    path = table.with_name("list_attr_celeba.txt")
    rows = [f"{i}.png  {1 if i % 2 else -1} -1" for i in range(6)]
    path.write_text("\n".join(["6", "Smiling Young ", *rows]) + "\n")
    (table.parent / "images").rename(table.parent / "img_align_celeba")
    data = read(path)
    assert data.labels == ("Smiling", "Young")
    assert data.train.targets[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    path.with_name("list_eval_partition.txt").write_text("".join(f"{i}.png {i // 2}\n" for i in range(6)))
    assert [len(s) for s in (read(path).train, read(path).validation, read(path).test)] == [2, 2, 2]
    path.with_name("identity_CelebA.txt").write_text("".join(f"{i}.png {i // 3}\n" for i in range(6)))
    with pytest.raises(DatasetError, match="'0' is in train and in validation"):
        read(path)
    path.with_name("identity_CelebA.txt").write_text("0.png 1\n")
    with pytest.raises(DatasetError, match=r"no line for 5 images, such as 1\.png"):
        read(path)
    path.write_text("\n".join(["7", "Smiling Young", *rows]))
    with pytest.raises(DatasetError, match="6 images, but the first line says 7"):
        read(path)


def test_a_network_learns_attributes(table, tmp_path):
    """An ABN trains on them for an epoch; accuracies are shares of attributes."""
    settings = {"epochs": 1, "batch_size": 2, "lr": 0.01, "validation": 0.34, "maps_every": 0, "size": 32}
    result = train(TrainingSettings(data=f"attributes:{table}", **settings), tmp_path / "run")
    assert 0 <= result["final"]["validation_accuracy"] <= 1
