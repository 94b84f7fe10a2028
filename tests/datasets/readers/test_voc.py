"""Pascal VOC's format: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import touch

from xai_abn.datasets import AnnotatedObject, read_dataset
from xai_abn.datasets.imagenet_classes import COCO_TO_IMAGENET
from xai_abn.errors import DatasetError

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>8.5</ymax></bndbox>"
SOFA = f"<object><name>sofa</name><difficult>1</difficult>{BOX}</object>"
CAT = f"<object><name>cat</name>{BOX}<part><name>head</name><bndbox/></part></object>"


def voc(folder, split=None, images=("a", "b"), **annotations):
    """Write a year of a VOCdevkit with the given annotations and images."""
    touch(folder / "JPEGImages", *(f"{stem}.jpg" for stem in images))
    (folder / "Annotations").mkdir(exist_ok=True, parents=True)
    for stem, body in annotations.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{body}</annotation>")
    for name, lines in (split or {}).items():
        touch(folder / "ImageSets" / "Main", name)
        (folder / "ImageSets" / "Main" / name).write_text(lines)
    return f"voc:{folder}"


def stems(data):
    return [image.source[-5] for image in data.samples]


def test_voc_boxes_count_from_one(tmp_path):
    """1-based inclusive corners become 0-based ones with right and bottom exclusive; difficult is kept."""
    data = read_dataset(voc(tmp_path, a=SOFA + CAT))
    sofa, cat = data.samples[0].objects
    assert sofa == AnnotatedObject("sofa", (0, 1, 5, 8.5), difficult=True)
    assert (cat.label, cat.difficult) == ("cat", False)
    assert data.class_names == ("cat", "sofa")
    assert data.wnids["sofa"] == COCO_TO_IMAGENET["couch"]


def test_voc_takes_test_then_val_then_all(tmp_path):
    """The list test.txt goes before val.txt, and without either every annotated image is read."""
    spec = voc(tmp_path, a=SOFA, b=CAT)
    assert stems(read_dataset(spec)) == ["a", "b"]
    voc(tmp_path, {"val.txt": "b\n", "train.txt": "a\n"})
    assert stems(read_dataset(spec)) == ["b"]
    voc(tmp_path, {"test.txt": "b\na -1\n\n"})
    assert stems(read_dataset(spec)) == ["b", "a"]


def test_voc_images_that_cannot_be_used_are_problems(tmp_path):
    """Absent images and absent annotations are set aside; an image without objects is a negative."""
    data = read_dataset(voc(tmp_path, {"val.txt": "a\nb\nc\nd\n"}, a=SOFA, b="", c=CAT))
    assert stems(data) == ["a", "b"]
    assert [(source[-5:], reason[:17]) for source, reason in data.problems] == [
        ("c.xml", "no image called c"),
        ("d.xml", "no such file"),
    ]


def test_an_image_of_the_same_name_counts_whatever_its_ending(tmp_path):
    """A stale <filename> does not put the boxes on another image."""
    touch(tmp_path / "JPEGImages", "new_a.png", "b.png")
    (tmp_path / "Annotations").mkdir(exist_ok=True)
    data = read_dataset(voc(tmp_path, images=(), new_a=f"<filename>b.png</filename>{SOFA}", b=CAT))
    assert {Path(s.source).name: s.objects[0].label for s in data.samples} == {"new_a.png": "sofa", "b.png": "cat"}
    (tmp_path / "JPEGImages" / "new_a.png").unlink()
    data = read_dataset(f"voc:{tmp_path}")
    assert stems(data) == ["b"]
    assert "no image called new_a" in data.problems[0][1]


def test_ilsvrc_is_read_as_it_comes(tmp_path):
    """XML files alone, names of images without an ending, classes named by WordNet ids."""
    folder = tmp_path / "val"
    folder.mkdir()
    voc(tmp_path / "made", images=(), x=f"<filename>ILSVRC_1</filename>{CAT.replace('cat', 'n02123045')}")
    (folder / "ILSVRC_1.xml").write_text((tmp_path / "made" / "Annotations" / "x.xml").read_text())
    (folder / "._ILSVRC_1.xml").write_bytes(b"\xff\xfe\x00")
    touch(tmp_path / "pixels", "ILSVRC_1.JPEG")
    data = read_dataset(f"voc:{folder}", images=tmp_path / "pixels")
    assert [Path(s.source).name for s in data.samples] == ["ILSVRC_1.JPEG"]
    assert data.wnids == {"n02123045": ("n02123045",)}


@pytest.mark.parametrize(("text", "difficult"), [("Unspecified", False), ("true", True), ("0", False), ("", False)])
def test_difficult_is_written_in_many_ways(tmp_path, text, difficult):
    """As the tools have it."""
    body = SOFA.replace("<difficult>1</difficult>", f"<difficult>{text}</difficult>")
    (sample,) = read_dataset(voc(tmp_path, a=body)).samples
    assert sample.objects[0].difficult is difficult


def test_voc_falls_back_on_the_named_image(tmp_path):
    """An image that is not named like its annotation is found by <filename>."""
    touch(tmp_path / "JPEGImages", "other.png")
    data = read_dataset(voc(tmp_path, images=(), a=f"<filename>other.png</filename>{SOFA}"))
    assert data.samples[0].source.endswith("other.png")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<object>", "damaged XML"),
        (f"<object>{BOX}</object>", "object 1 has no <name>"),
        ("<object><name>cat</name></object>", "object 1 has no <bndbox/xmin>; expected a number"),
        (SOFA + CAT.replace("<ymax>8.5", "<ymax>low"), "object 2: <bndbox/ymax> is 'low'; expected a number"),
        (SOFA.replace("8.5", "nan"), "<bndbox/ymax> is 'nan'; expected a number"),
        (SOFA.replace(">1</difficult", ">maybe</difficult"), "<difficult> is 'maybe'; expected 0 or 1"),
    ],
)
def test_bad_voc_annotations_are_refused(tmp_path, body, message):
    """One line names the file, the object and what was expected."""
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(voc(tmp_path, a=body))
    assert str(tmp_path / "Annotations" / "a.xml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "document type or entities"),
        ("<!doctype annotation><annotation/>", "document type or entities"),
        ("<svg/>", "starts with <svg>; expected <annotation>"),
        ("", "damaged XML"),
    ],
)
def test_voc_files_of_another_kind_are_refused(tmp_path, text, message):
    """Document types and entities, which can blow up a parser, and foreign XML are refused."""
    spec = voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_dataset(spec)


def test_voc_entities_cannot_hide_in_another_encoding(tmp_path):
    """XML that is not UTF-8 is refused before it is parsed."""
    spec = voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_bytes("<!DOCTYPE a><annotation/>".encode("utf-16"))
    with pytest.raises(DatasetError, match="cannot be read as UTF-8 text"):
        read_dataset(spec)


def test_voc_takes_the_image_that_the_file_names_of_several(tmp_path):
    """a.jpg and a.png have the same name without ending."""
    spec = voc(tmp_path, a=f"<filename>a.png</filename>{SOFA}", b=CAT)
    touch(tmp_path / "JPEGImages", "a.png", "b.png")
    data = read_dataset(spec)
    assert [Path(sample.source).name for sample in data.samples] == ["a.png"]
    assert data.problems[0][1].startswith(f"b.jpg and b.png are in {tmp_path / 'JPEGImages'}, and its <filename> is ''")
