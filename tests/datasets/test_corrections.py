"""Corrections as files: what is saved is found again, and what cannot be used is refused with a sentence."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import check_error

import xai_abn
from xai_abn.datasets.corrections import AVOID, LOOK, Corrections
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError, OutputError, UnknownNameError, XaiAbnError


@pytest.fixture
def mask():
    """A box in the image (60, 80)."""
    found = np.zeros((60, 80), bool)
    found[20:40, 30:50] = True
    return found


@pytest.fixture
def corrections(tmp_path):
    return Corrections(tmp_path / "corrections")


def test_a_correction_is_found_again(corrections, image_file, mask, gap_net):
    """With mask, image, class, model and time, by another object and by the image's pixels."""
    saved = corrections.add(image_file, mask, "DOG", model=gap_net)
    again = Corrections(corrections.folder)
    assert list(again) == [saved]
    (found,) = again.of(image_file)
    assert (found.kind, found.label, found.target, found.model, found.classes) == (LOOK, "dog", 1, "gap-net", 5)
    assert (found.name, found.size) == ("image.png", (60, 80))
    assert found.time.startswith("20")
    assert np.array_equal(found.mask, mask)
    assert found.load().image.tobytes() == Image.open(image_file).convert("RGB").tobytes()
    assert found.target_in(gap_net) == 1
    again.check(gap_net)
    assert again.of("example:cat") == []


def test_the_files_are_plain(corrections, image_file, mask):
    """A mask that any program shows, and a record that a person reads; nothing else is left behind."""
    saved = corrections.add(image_file, mask, "dog")
    names = sorted(path.name for path in corrections.folder.iterdir())
    assert names == [saved.path.name, saved.path.with_suffix(".png").name, "images"]
    assert saved.path.name.startswith("image-dog-look-here-")
    record = json.loads(saved.path.read_text())
    assert (record["format"], record["format_version"], record["kind"]) == ("xai-abn-correction", 2, "look here")
    drawn = np.asarray(Image.open(saved.path.with_suffix(".png")))
    assert set(np.unique(drawn)) == {0, 255}
    assert np.array_equal(drawn > 0, mask)
    kept = list((corrections.folder / "images").iterdir())
    assert [path.read_bytes() for path in kept] == [image_file.read_bytes()]


def test_marks_replace_all_earlier_ones_of_image_and_class(corrections, image_file, mask):
    """Of both kinds; those of another class stay, and the image until nothing is left."""
    corrections.add(image_file, mask, "cat")
    corrections.mark(image_file, "dog", mask, np.roll(mask, 20, axis=1))
    assert sorted((c.label, c.kind) for c in corrections) == [("cat", LOOK), ("dog", LOOK), ("dog", AVOID)]
    corrections.mark(image_file, "dog", avoid=mask)  # where 'look here' was before
    assert sorted((c.label, c.kind) for c in Corrections(corrections.folder)) == [("cat", LOOK), ("dog", AVOID)]
    assert len(list(corrections.folder.glob("*.png"))) == 2
    for correction in corrections:
        corrections.remove(correction)
    assert [path.name for path in corrections.folder.rglob("*")] == ["images"]


def test_marks_of_two_maps_are_kept_apart(corrections, image_file, mask):
    """They may differ, and one replaces what held for its map; marks for every map contradict those of each."""
    corrections.mark(image_file, "dog", mask, on="attention-map")
    corrections.mark(image_file, "dog", avoid=mask, on="class-map")
    found = {(c.on, c.kind): c for c in Corrections(corrections.folder)}
    assert set(found) == {("attention-map", LOOK), ("class-map", AVOID)}
    assert [c.holds_for("class-map") for c in found.values()] == [on == "class-map" for on, _ in found]
    assert all(c.holds_for(None) for c in found.values())
    corrections.check()
    with pytest.raises(InvalidInputError, match="marked both"):
        corrections.add(image_file, mask, "dog")
    with pytest.raises(InvalidInputError, match="on must be 'attention-map' or 'class-map'"):
        corrections.add(image_file, mask, "dog", on="grad-cam")
    corrections.mark(image_file, "dog", on="class-map")
    corrections.add(image_file, mask, "dog")
    corrections.mark(image_file, "dog", avoid=mask, on="attention-map")  # in place of the mark for every map, too
    assert [(c.on, c.kind) for c in Corrections(corrections.folder)] == [("attention-map", AVOID)]


BAD = {
    "empty": (lambda mask: np.zeros_like(mask), {}, "empty"),
    "full": (lambda mask: np.ones_like(mask), {}, "whole image"),
    "another size": (lambda mask: mask[:50], {}, "80x50 and the image 80x60"),
    "not bool": (lambda mask: mask.astype(np.uint8), {}, "bool"),
    "kind": (lambda mask: mask, {"kind": "there"}, "not here"),
    "contradiction": (lambda mask: mask, {"kind": AVOID}, "400 pixels of image.png are marked both"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mark_that_says_nothing_is_refused(corrections, image_file, mask, name):
    """With a sentence, and nothing is written."""
    corrections.add(image_file, mask, "dog")
    before = {path: path.stat().st_mtime_ns for path in corrections.folder.rglob("*")}
    change, more, words = BAD[name]
    with pytest.raises(InvalidInputError, match=words) as raised:
        corrections.add(image_file, change(mask), "dog", **more)
    check_error(raised.value)
    assert {path: path.stat().st_mtime_ns for path in corrections.folder.rglob("*")} == before


def test_another_image_size_or_model_is_refused(corrections, image_file, mask, gap_net, small_resnet, tmp_path):
    """When the correction is used for it."""
    found = corrections.add(image_file, mask, "dog", model=gap_net)
    other = tmp_path / "other.png"
    for pixels, words in ((np.zeros((60, 80, 3), np.uint8), "another image"), (np.zeros((9, 9, 3), np.uint8), "9x9")):
        Image.fromarray(pixels).save(other)
        with pytest.raises(DatasetError, match=words) as raised:
            found.check(xai_abn.images.load_image(other))
        check_error(raised.value)
    with pytest.raises(DatasetError, match="made for gap-net and is for the class 'dog', which small-resnet") as raised:
        found.target_in(small_resnet)
    check_error(raised.value)
    with pytest.raises(UnknownNameError, match="platypus"):
        corrections.add(image_file, mask, "platypus", model=gap_net)


def test_a_class_is_found_by_its_label_in_another_model(corrections, image_file, mask, gap_net):
    """Also at another index; without labels by the index."""
    found = corrections.add(image_file, mask, "dog", model=gap_net)
    assert found.target_in(replace(gap_net, labels=("dog", "cat", "a", "b", "c"))) == 0
    assert found.target_in(replace(gap_net, labels=None)) == 1


def damage(folder, how):
    (record,) = folder.glob("*.json")
    mask, (image,) = record.with_suffix(".png"), (folder / "images").iterdir()
    content = json.loads(record.read_text())
    if how == "cut short":
        record.write_bytes(record.read_bytes()[:40])
    elif how == "newer":
        record.write_text(json.dumps(content | {"format_version": 3}))
    elif how == "foreign":
        record.write_text("[1, 2]")
    elif how == "way out":
        content["image"]["file"] = "../../secret.png"
        record.write_text(json.dumps(content))
    elif how == "mask missing":
        mask.unlink()
    elif how == "mask emptied":
        Image.fromarray(np.zeros((60, 80), np.uint8)).save(mask)
    elif how == "mask resized":
        Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(mask)
    elif how == "image changed":
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(image)
    elif how == "image missing":
        image.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut short", "expected JSON"),
        ("newer", "written by a newer xai-abn"),
        ("foreign", "expected the record of a correction"),
        ("way out", "image.file"),
        ("mask missing", "expected a mask as PNG"),
        ("mask emptied", "is empty"),
        ("mask resized", "is 20x20 and the image 80x60"),
        ("image changed", "another image or was changed"),
        ("image missing", "no such file"),
    ],
)
def test_damaged_files_are_named(corrections, image_file, mask, how, words):
    """By check(), in one sentence; others in the folder stay usable."""
    corrections.add(image_file, mask, "dog")
    damage(corrections.folder, how)
    corrections.add("example:cat", np.eye(300, 451, dtype=bool), "cat")
    again = Corrections(corrections.folder)
    assert "cat" in [c.label for c in again]
    with pytest.raises((DatasetError, ImageLoadError), match=words) as raised:
        again.check()
    check_error(raised.value)


def test_contradictions_made_outside_are_found(corrections, image_file, mask):
    """A mask that a person changed in another program overlaps the other kind's."""
    corrections.mark(image_file, "dog", mask, np.roll(mask, 20, axis=1))
    (avoid,) = [c for c in corrections if c.kind == AVOID]
    Image.fromarray(mask).save(avoid.path.with_suffix(".png"))
    with pytest.raises(DatasetError, match="mark the same pixels") as raised:
        Corrections(corrections.folder).check()
    check_error(raised.value)


def test_a_thousand_corrections_open_in_less_than_a_second(corrections, image_file, mask):
    """In process time, since the machine may be busy."""
    saved = corrections.add(image_file, mask, "dog")
    for number in range(1000):
        shutil.copy(saved.path, corrections.folder / f"copy-{number}.json")
    started = time.process_time()
    assert len(Corrections(corrections.folder)) == 1001
    assert time.process_time() - started < 1


def test_coco_there_and_back(corrections, image_file, mask, tmp_path):
    """Masks, classes and kinds are the same in a folder made from the exported file."""
    corrections.mark(image_file, "dog", mask, np.roll(mask, 20, axis=1))
    corrections.add("example:cat", np.eye(300, 451, dtype=bool), "cat")
    file = corrections.export_coco()
    other = Corrections(tmp_path / "other")
    assert other.import_coco(file) == 3

    def facts(found):
        return sorted((c.image_digest, c.label, c.kind, c.mask.tobytes()) for c in found)

    assert facts(other) == facts(corrections)
    assert len(Corrections(corrections.folder)) == 3  # the exported file is not taken for a record


def test_polygons_of_coco_become_masks(corrections, image_file, gap_net, tmp_path):
    """All objects of a class together; a category of another name is told its class, or left out."""
    annotation = {"image_id": 1, "iscrowd": 0}
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    document = {
        "images": [{"id": 1, "file_name": "image.png", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "hound"}, {"id": 2, "name": "not here: cat"}, {"id": 3, "name": "tree"}],
        "annotations": [
            annotation | {"category_id": 1, "bbox": [10, 10, 10, 10], "segmentation": square},
            annotation | {"category_id": 1, "bbox": [40, 10, 10, 10]},
            annotation | {"category_id": 2, "bbox": [0, 30, 80, 20]},
            annotation | {"category_id": 3, "bbox": [0, 0, 5, 5]},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(document))
    with pytest.raises(UnknownNameError, match="hound"):
        corrections.import_coco(file, model=gap_net)
    names = {"hound": "dog", "tree": None}
    assert corrections.import_coco(file, model=gap_net, images=tmp_path, labels=names) == 2
    look, avoid = sorted(corrections, key=lambda c: c.kind)
    assert (look.label, look.kind, avoid.label, avoid.kind) == ("dog", LOOK, "cat", AVOID)
    expected = np.zeros((60, 80), bool)
    expected[10:20, 10:20] = expected[10:20, 40:50] = True
    assert np.array_equal(look.mask, expected)
    assert int(avoid.mask.sum()) == 80 * 20


def test_a_folder_that_cannot_be_is_refused(image_file, mask, tmp_path):
    """A file, and one whose place is taken."""
    with pytest.raises(DatasetError) as raised:
        Corrections(image_file)
    check_error(raised.value)
    corrections = Corrections(tmp_path / "folder")
    (tmp_path / "folder").write_text("")
    with pytest.raises(OutputError):
        corrections.add(image_file, mask, "dog")


def test_the_public_name_is_the_class():
    """As in docs/how-to/corrections.md."""
    assert xai_abn.Corrections is Corrections
    assert issubclass(DatasetError, XaiAbnError)
