"""COCO's instance format: what is read, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support import touch

from xai_abn.datasets import read_dataset
from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.errors import DatasetError


def annotation(**changes):
    return {"image_id": 1, "category_id": 7, "bbox": [2, 3, 4, 5], "iscrowd": 0, "segmentation": None} | changes


def coco(folder, *annotations, **changes):
    """Write a folder in COCO's layout: image 1 is there and annotated, a dog is category 7."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "person"}],
        "annotations": list(annotations) or [annotation()],
    }
    touch(folder / "images", "a.jpg")
    document = {key: value for key, value in (document | changes).items() if value != "left out"}
    (folder / "instances.json").write_text(json.dumps(document))
    return f"coco:{folder}"


def test_coco_boxes_become_corners(tmp_path):
    """x, y, width, height become left, top, right, bottom; names are labels; iscrowd is kept."""
    data = read_dataset(coco(tmp_path, annotation(), annotation(category_id=3, iscrowd=1)))
    dog, crowd = data.samples[0].objects
    assert (dog.label, dog.box, dog.crowd) == ("dog", (2, 3, 6, 8), False)
    assert (crowd.label, crowd.crowd) == ("person", True)
    assert data.class_names == ("dog", "person")
    assert data.samples[0].classes == ("dog", "person")
    assert data.wnids == {"dog": wnids_of("dog")}
    assert data.samples[0].source == str(tmp_path / "images" / "a.jpg")


def test_coco_reads_a_json_file_of_any_name(tmp_path):
    """A path to a .json file takes the images from images/ beside it."""
    coco(tmp_path)
    file = (tmp_path / "instances.json").rename(tmp_path / "instances_val2017.json")
    assert len(read_dataset(f"coco:{file}").samples) == 1


def test_coco_outlines_are_polygons_runs_or_nothing(tmp_path):
    """All of COCO's ways to write an outline are read, and give the pixels that COCO's own code gives."""
    square = [[2, 3, 6, 3, 6, 8, 2, 8]]
    lists = {"counts": [20, 5, 175], "size": [10, 20]}
    packed = {"counts": "d05_5", "size": [10, 20]}
    outlines = [square, lists, packed, None, []]
    things = read_dataset(coco(tmp_path, *(annotation(segmentation=s) for s in outlines))).samples[0].objects
    assert things[0].outline == (tuple(map(float, square[0])),)
    assert (things[1].outline, things[2].outline) == (lists, packed)
    assert not any(t.outline for t in things[3:])
    column = torch.zeros(10, 20, dtype=torch.bool)
    column[:5, 2] = True
    assert torch.equal(things[1].mask((10, 20)), column)
    assert torch.equal(things[2].mask((10, 20)), column)


def test_coco_images_that_cannot_be_used_are_problems(tmp_path):
    """An absent image is set aside; the others are read, also one without objects."""
    names = {1: "a.jpg", 2: "gone.jpg", 4: "bare.jpg"}
    touch(tmp_path / "images", "bare.jpg")
    images = [{"id": key, "file_name": name} for key, name in names.items()]
    data = read_dataset(coco(tmp_path, annotation(), annotation(image_id=2), images=images))
    assert [Path(i.source).name for i in data.samples] == ["a.jpg", "bare.jpg"]
    ((source, reason),) = data.problems
    assert source == "gone.jpg"
    assert reason.startswith(f"no such file; looked for it in {tmp_path / 'images'}")


BAD_ANNOTATIONS = [
    ({"image_id": 99}, " belongs to image_id 99, which is not among the images"),
    ({"category_id": 99}, " has category_id 99, which is not among the categories"),
    ({"image_id": [1]}, ".image_id: expected a number or a text, got [1]"),
    ({"category_id": True}, ".category_id: expected a number or a text, got True"),
    ({"bbox": [1, 2, 3]}, ".bbox[3] is missing"),
    ({"bbox": [1, 2, 3, 4, 5]}, ".bbox: expected "),
    ({"bbox": "1 2 3 4"}, ".bbox: expected a valid array, got '1 2 3 4'"),
    ({"bbox": [1, 2, 3, None]}, ".bbox[3]: expected a valid number, got None"),
    ({"bbox": [1, 2, 3, math.nan]}, ".bbox[3]: expected a finite number, got nan"),
    ({"bbox": [1, 2, 3, math.inf]}, ".bbox[3]: expected a finite number, got inf"),
    ({"bbox": [1, 2, 3, 10**400]}, ".bbox[3]: expected a "),
    ({"iscrowd": 2}, ".iscrowd: expected less than or equal to 1, got 2"),
    ({"segmentation": 3}, ".segmentation: expected a valid array, got 3"),
    ({"segmentation": [3]}, ".segmentation[0]: expected a valid array, got 3"),
    ({"segmentation": [[1, 2, 3, 4]]}, ".segmentation[0]: expected x, y of at least 3 corners, got [1, 2, 3, 4]"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, ".segmentation[0]: expected x, y of at least 3 corners, got [1, 2,"),
    ({"segmentation": {"counts": [5]}}, ".segmentation.size is missing"),
    ({"segmentation": {"size": [5, 1]}}, ".segmentation.counts is missing"),
    ({"segmentation": {"counts": [4], "size": [5, 1]}}, ".segmentation: expected run lengths that cover 1x5 pixels"),
    ({"segmentation": {"counts": [6, -1], "size": [5, 1]}}, ".segmentation.counts[1]: expected greater than or equal"),
    ({"segmentation": {"counts": [4.5, 0.5], "size": [5, 1]}}, ".segmentation.counts[0]: expected a valid integer"),
    *(
        ({"segmentation": {"counts": text, "size": [5, 1]}}, ".segmentation.counts: expected COCO's compressed run")
        for text in ("d", "0 1", "d05é")  # unfinished, and foreign characters
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ANNOTATIONS)
def test_bad_coco_annotations_are_refused(tmp_path, changes, message):
    """One line names the file, the annotation, what is wrong and what was expected."""
    with pytest.raises(DatasetError) as caught:
        read_dataset(coco(tmp_path, annotation(**changes)))
    assert f": annotations[0]{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_annotation_of_a_number_with_a_point_costs_its_image(tmp_path):
    """Some tools write ids as 2.0."""
    touch(tmp_path / "images", "b.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2.0, "file_name": "b.jpg"}]
    data = read_dataset(coco(tmp_path, annotation(), annotation(image_id=2.0, bbox=[1, 2]), images=images))
    assert [Path(image.source).name for image in data.samples] == ["a.jpg"]
    assert data.problems[0][0].endswith("b.jpg")


def test_a_bad_annotation_costs_its_image_and_no_other(tmp_path):
    """One of a thousand polygons is odd in most data sets."""
    touch(tmp_path / "images", "b.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    bad = annotation(image_id=2, segmentation=[[1, 2, 3, 4]])
    data = read_dataset(coco(tmp_path, annotation(), bad, annotation(image_id=2), images=images))
    assert [Path(s.source).name for s in data.samples] == ["a.jpg"]
    ((source, reason),) = data.problems
    assert Path(source).name == "b.jpg"
    assert "annotations[1].segmentation[0]: expected x, y of at least 3 corners" in reason


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
def test_a_coco_annotation_needs_its_keys(tmp_path, key):
    """A missing key is named."""
    short = {k: v for k, v in annotation().items() if k != key}
    with pytest.raises(DatasetError, match=rf"annotations\[0\]\.{key} is missing"):
        read_dataset(coco(tmp_path, short))


BAD_DOCUMENTS = [
    ({"images": "left out"}, "images is missing"),
    ({"annotations": "left out"}, "annotations is missing"),
    ({"categories": {}}, r"categories: expected a valid array, got \{\}"),
    ({"images": ["a.jpg"]}, r"images\[0\]: expected an object, got 'a.jpg'"),
    ({"images": [{"id": 1}]}, r"images\[0\]\.file_name is missing"),
    ({"images": [{"id": [1], "file_name": "a.jpg"}]}, r"images\[0\]\.id: expected a number or a text, got \[1\]"),
    ({"images": [{"id": 1, "file_name": " "}]}, r"images\[0\]\.file_name: expected a name that is not blank, got ' '"),
    ({"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}, r"images\[1\] repeats id 1"),
    ({"categories": [{"id": 7, "name": "dog"}, {"id": 7, "name": "cat"}]}, "categories repeat an id"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_DOCUMENTS)
def test_bad_coco_documents_are_refused(tmp_path, changes, message):
    """A missing or wrong part of the file is named."""
    with pytest.raises(DatasetError, match=message):
        read_dataset(coco(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe\x00\x01", b"[" * 100_000])
def test_damaged_json_is_refused(tmp_path, content):
    """A file that is no JSON is one line of error."""
    coco(tmp_path)
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"instances\.json: cannot be read as JSON"):
        read_dataset(f"coco:{tmp_path}")


def test_json_of_another_kind_is_refused(tmp_path):
    """A JSON list is not COCO's format."""
    coco(tmp_path)
    (tmp_path / "instances.json").write_text("[]")
    with pytest.raises(DatasetError, match="the document: expected an object"):
        read_dataset(f"coco:{tmp_path}")


def test_coco_needs_its_images_folder(tmp_path):
    """Without images the message says where they were looked for."""
    place = coco(tmp_path, annotation())
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"a\.jpg: no such file; looked for it in .*images"):
        read_dataset(place)


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_Train.json", "images/Train"),
        ("_annotations.coco.json", "."),
        ("result.json", "images"),
        ("instances.json", "images"),
        ("some.json", "."),
    ],
)
def test_the_layouts_of_other_tools_are_read(tmp_path, file, folder):
    """COCO's own, CVAT's, Roboflow's, Label Studio's: by the folder or by the file."""
    coco(tmp_path / "made", annotation())
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text((tmp_path / "made" / "instances.json").read_text())
    touch(tmp_path / folder, "a.jpg")
    for spec in (place, *([tmp_path] if file != "some.json" else [])):
        (sample,) = read_dataset(f"coco:{spec}").samples
        assert Path(sample.source).resolve() == (tmp_path / folder / "a.jpg").resolve()


def test_the_folder_of_images_may_be_said(tmp_path):
    """Wherever it is."""
    place = coco(tmp_path, annotation())
    touch(tmp_path / "elsewhere", "a.jpg")
    (sample,) = read_dataset(place, images=tmp_path / "elsewhere").samples
    assert Path(sample.source).parent.name == "elsewhere"
    with pytest.raises(DatasetError, match="nowhere"):
        read_dataset(place, images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["images/90fb-a.jpg", "my%20image%201.jpg", "/home/me/a.jpg", "C:\\data\\a.jpg", "../upload/a.jpg"]
)
def test_names_as_label_studio_writes_them_are_found(tmp_path, name):
    """With folders of another machine, or %-codes."""
    plain = name.replace("%20", " ").replace("\\", "/").rpartition("/")[2]
    touch(tmp_path / "images", plain)
    (sample,) = read_dataset(coco(tmp_path, annotation(), images=[{"id": 1, "file_name": name}])).samples
    assert Path(sample.source).name == plain


def test_names_that_differ_only_in_their_folder_are_not_mixed_up(tmp_path):
    """A name without its folder is used only if it is unique."""
    images = [{"id": 1, "file_name": "x/a.jpg"}, {"id": 2, "file_name": "y/a.jpg"}]
    touch(tmp_path / "images", "a.jpg")
    with pytest.raises(DatasetError, match=r"x/a\.jpg: no such file"):
        read_dataset(coco(tmp_path, annotation(), images=images))


@pytest.mark.parametrize("key", ["1", 1.0, "image-1"])
def test_ids_may_be_texts_or_have_a_decimal_point(tmp_path, key):
    """As some tools write them."""
    images = [{"id": key, "file_name": "a.jpg"}]
    (sample,) = read_dataset(coco(tmp_path, annotation(image_id=key), images=images)).samples
    assert len(sample.objects) == 1


def test_an_image_without_objects_is_a_negative(tmp_path):
    """And no failure."""
    data = read_dataset(coco(tmp_path, annotations=[]))
    assert [s.objects for s in data.samples] == [()]
    assert data.problems == ()
