"""Splits: by group, by names, and unlabeled images from several places."""

from __future__ import annotations

import pytest
from support import touch

from xai_abn.datasets import Sample
from xai_abn.datasets.splits import divide_by_group, find_samples, find_splits, hold_out_groups
from xai_abn.errors import DatasetError, ImageLoadError


def test_images_are_found_in_folders_files_globs_and_data_sets(tmp_path):
    """Sources keep their order and may repeat; of a data set the training split is taken; names are excluded."""
    touch(
        tmp_path, "a/1.png", "a/deep/2.png", "b.png", "set/train/cat/3.png", "set/train/dog/4.png", "set/val/cat/5.png"
    )
    sources = [tmp_path / "b.png", tmp_path / "a", f"{tmp_path}/b.*", f"images:{tmp_path / 'set'}", "example:cat"]
    found = find_samples(sources, exclude=["2"])
    names = ["b.png", "a/1.png", "b.png", "set/train/cat/3.png", "set/train/dog/4.png"]
    assert [sample.source for sample in found] == [*(str(tmp_path / name) for name in names), "example:cat"]
    assert [sample.label for sample in found[3:5]] == ["cat", "dog"]
    for wrong, message in (([], "no images to train on"), (["nothing"], "nothing: no such file or folder")):
        with pytest.raises(ImageLoadError, match=message):
            find_samples(wrong)
    with pytest.raises(DatasetError, match="no such folder"):
        find_samples([f"images:{tmp_path / 'nothing'}"])


def test_a_division_by_group_does_not_depend_on_the_order():
    """Each group is in one split, the shares are of groups, and a subset of a subset finds its samples."""
    samples = [Sample(f"{i}.png", group=f"p{i % 10}") for i in range(40)]
    parts = divide_by_group(samples, ["validation", "test"], 0.2, "x")
    groups = {name: {s.group for s in part} for name, part in parts.items()}
    assert {name: len(found) for name, found in groups.items()} == {"train": 6, "validation": 2, "test": 2}
    assert len(set.union(*groups.values())) == 10
    again = divide_by_group(samples[::-1], ["validation", "test"], 0.2, "x")
    assert {name: {s.group for s in part} for name, part in again.items()} == groups
    held = hold_out_groups({"train": parts["train"]}, 0.2, "x")
    assert {s.source for part in held.values() for s in part} == {s.source for s in parts["train"]}
    assert not {s.group for s in held["train"]} & {s.group for s in held["validation"]}
    with pytest.raises(DatasetError, match="x: 2 groups to train on cannot be divided into 3 splits"):
        divide_by_group([s for s in samples if s.group in ("p1", "p2")], ["validation", "test"], 0.2, "x")


def test_a_group_in_two_splits_is_refused():
    """What a network saw in training is not measured on."""
    with pytest.raises(DatasetError, match="x: 'ann' is in train and in test; move it to one of them"):
        hold_out_groups({"train": [Sample("a.png", group="ann")], "test": [Sample("b.png", group="ann")]}, 0.1, "x")


def test_splits_are_known_by_their_usual_names():
    """Upper or lower case; two names for one split, or none for training, are refused."""
    assert find_splits(["Test", "VALID", "training"], "x") == {
        "test": "Test",
        "validation": "VALID",
        "train": "training",
    }
    with pytest.raises(DatasetError, match="both val and valid"):
        find_splits(["train", "val", "valid"], "x")
    with pytest.raises(DatasetError, match="it has test, but no split called train"):
        find_splits(["test"], "x")
