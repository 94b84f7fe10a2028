"""Annotated photos: the readers, what they refuse, and objects on a network's grid."""

from __future__ import annotations

import json
import math

import pytest
import torch

from xai_abn.datasets import AnnotatedImage, AnnotatedObject, datasets, read_data
from xai_abn.datasets.coco import decode_counts
from xai_abn.datasets.imagenet_classes import (
    COCO_TO_IMAGENET,
    COCO_WITHOUT_IMAGENET,
    NAMED,
    VOC_TO_COCO,
    known_wnids,
    wnids_of,
)
from xai_abn.errors import DatasetError, UnknownNameError

COCO_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush""".replace("\n", " ").split(", ")
WHOLE = (0.0, 0.0, 20.0, 10.0)


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def annotation(**changes):
    return {"image_id": 1, "category_id": 7, "bbox": [2, 3, 4, 5], "iscrowd": 0, "segmentation": None} | changes


def coco(folder, *annotations, **changes):
    """Write a folder in COCO's layout: photo 1 is there and annotated, a dog is category 7."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "person"}],
        "annotations": list(annotations) or [annotation()],
    }
    touched(folder / "images", "a.jpg")
    document = {key: value for key, value in (document | changes).items() if value != "left out"}
    (folder / "instances.json").write_text(json.dumps(document))
    return f"coco:{folder}"


def thing(**changes):
    return AnnotatedObject(**({"label": "dog", "box": (2, 3, 6, 8)} | changes))


def on_whole(*things, region=WHOLE, grid=(10, 20), **options):
    return AnnotatedImage("a.jpg", things).on_grid((10, 20), region, grid, **options)


# --- read_data


def test_the_four_formats_are_registered():
    """Importing the package is enough to know every format."""
    assert set(datasets.names()) >= {"coco", "voc", "imagenet-boxes", "folder"}


@pytest.mark.parametrize("spec", ["coco", "coco:", "/some/folder", ""])
def test_data_must_be_kind_and_path(spec):
    """A spec without a colon or a path is refused, and the kinds are listed."""
    with pytest.raises(DatasetError, match="must be KIND:PATH with KIND one of coco,"):
        read_data(spec)


def test_an_unknown_kind_gives_the_nearest():
    """A slip in the kind is answered with the right one."""
    with pytest.raises(UnknownNameError, match="unknown data set 'cocco'; did you mean 'coco'"):
        read_data("cocco:x")


def test_data_without_usable_photos_is_refused(tmp_path):
    """If every listed photo has a problem, the first reason is given."""
    spec = coco(tmp_path, images=[{"id": 1, "file_name": "gone.jpg"}])
    with pytest.raises(DatasetError, match="no photos; 1 are listed but unusable, as no such file"):
        read_data(spec)


@pytest.mark.parametrize("kind", ["coco", "voc", "imagenet-boxes", "folder"])
def test_a_path_with_nothing_there_is_named(kind, tmp_path):
    """Every reader says what is missing."""
    with pytest.raises(DatasetError, match=r"nothing.*: no such (file|folder);"):
        read_data(f"{kind}:{tmp_path / 'nothing'}")


# --- COCO


def test_coco_boxes_become_corners(tmp_path):
    """x, y, width, height become left, top, right, bottom; names are labels; iscrowd is kept."""
    data = read_data(coco(tmp_path, annotation(), annotation(category_id=3, iscrowd=1)))
    dog, crowd = data.images[0].objects
    assert (dog.label, dog.box, dog.crowd) == ("dog", (2, 3, 6, 8), False)
    assert (crowd.label, crowd.crowd) == ("person", True)
    assert data.class_names == ("dog", "person")
    assert data.images[0].classes == ("dog", "person")
    assert data.wnids == {"dog": wnids_of("dog")}
    assert data.images[0].source == str(tmp_path / "images" / "a.jpg")


def test_coco_reads_a_json_file_of_any_name(tmp_path):
    """A path to a .json file takes the photos from images/ beside it."""
    coco(tmp_path)
    file = (tmp_path / "instances.json").rename(tmp_path / "instances_val2017.json")
    assert len(read_data(f"coco:{file}").images) == 1


def test_coco_outlines_are_polygons_runs_or_nothing(tmp_path):
    """All of COCO's ways to write an outline are read."""
    square = [[2, 3, 6, 3, 6, 8, 2, 8]]
    lists = {"counts": [20, 5, 175], "size": [10, 20]}
    packed = {"counts": "d05_5", "size": [10, 20]}
    outlines = [square, lists, packed, None, []]
    things = read_data(coco(tmp_path, *(annotation(segmentation=s) for s in outlines))).images[0].objects
    assert things[0].polygons == (tuple(map(float, square[0])),)
    assert things[1].runs == things[2].runs == (20, 5, 175)
    assert all(t.polygons == t.runs == () for t in things[3:])


def packed(counts):
    """Pack run lengths as COCO's own tool does, written from its C code."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = x & 31
            x >>= 5
            more = x != -1 if bits & 16 else x != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


@pytest.mark.parametrize("counts", [[], [0, 1], [20, 5, 175], [6, 1, 40, 4, 5, 4, 5, 4, 21], [0, 70_000, 3, 15, 16, 1]])
def test_packed_run_lengths_are_decoded(counts):
    """Decoding undoes COCO's packing, also of differences below zero."""
    assert decode_counts(packed(counts)) == counts


def test_a_packed_example_of_coco_is_decoded():
    """Two strings worked out by hand: 1 and 31 (two characters), then 20 5 175."""
    assert decode_counts("1o0") == [1, 31]
    assert decode_counts("d05_5") == [20, 5, 175]


@pytest.mark.parametrize("text", ["d", "0 1", "d05é", "N"])
def test_damaged_packed_run_lengths_are_refused(text):
    """Unfinished numbers, foreign characters and negative lengths are errors."""
    with pytest.raises(DatasetError, match="compressed run lengths"):
        decode_counts(text)


def test_coco_photos_that_cannot_be_used_are_problems(tmp_path):
    """An absent photo and one without objects are set aside; the others are read."""
    names = {1: "a.jpg", 2: "gone.jpg", 4: "bare.jpg"}
    touched(tmp_path / "images", "bare.jpg")
    photos = [{"id": key, "file_name": name} for key, name in names.items()]
    data = read_data(coco(tmp_path, annotation(), annotation(image_id=2), images=photos))
    assert [i.source for i in data.images] == [str(tmp_path / "images" / "a.jpg")]
    folder = tmp_path / "images"
    assert data.problems == (
        (str(folder / "gone.jpg"), "no such file"),
        (str(folder / "bare.jpg"), "no annotated object"),
    )


BAD_ANNOTATIONS = [
    ({"image_id": 99}, r"annotations\[0\] belongs to image_id 99"),
    ({"category_id": 99}, r"annotations\[0\] has category_id 99"),
    ({"image_id": [1]}, r"'image_id' is \[1\]; expected a whole number"),
    ({"category_id": True}, "'category_id' is True; expected a whole number"),
    ({"bbox": [1, 2, 3]}, "'bbox' has 3 numbers; expected left, top, width, height"),
    ({"bbox": "1 2 3 4"}, "'bbox' is '1 2 3 4'; expected a list"),
    ({"bbox": [1, 2, 3, None]}, r"'bbox' is \[1, 2, 3, None\]; expected a list of numbers"),
    ({"bbox": [1, 2, 3, math.nan]}, "expected a list of numbers, each finite"),
    ({"bbox": [1, 2, 3, math.inf]}, "expected a list of numbers, each finite"),
    ({"bbox": [1, 2, 3, 10**400]}, "expected a list of numbers, each finite"),
    ({"iscrowd": 2}, "'iscrowd' is 2; expected 0 or 1"),
    ({"segmentation": 3}, "'segmentation' is 3; expected a list of polygons, run lengths or null"),
    ({"segmentation": [3]}, r"'segmentation'\[0\] is 3; expected a list of numbers"),
    ({"segmentation": [[1, 2, 3, 4]]}, "has 4 numbers; expected x, y of at least 3 corners"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "has 7 numbers; expected x, y of at least 3 corners"),
    ({"segmentation": {"counts": [5]}}, "'segmentation' has no 'size'"),
    ({"segmentation": {"size": [5, 1]}}, "'segmentation' has no 'counts'"),
    ({"segmentation": {"counts": [4], "size": [5, 1]}}, r"'counts' cover 4 pixels; 'size' is \[5, 1\]"),
    ({"segmentation": {"counts": [6, -1], "size": [5, 1]}}, "whole numbers"),
    ({"segmentation": {"counts": [4.5, 0.5], "size": [5, 1]}}, "whole numbers"),
    ({"segmentation": {"counts": "d", "size": [5, 1]}}, r"annotations\[0\]: 'segmentation': compressed run lengths"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ANNOTATIONS)
def test_bad_coco_annotations_are_refused(tmp_path, changes, message):
    """One line names the file, the annotation, what is wrong and what was expected."""
    with pytest.raises(DatasetError, match=message) as caught:
        read_data(coco(tmp_path, annotation(**changes)))
    assert str(caught.value).startswith(f"{tmp_path / 'instances.json'}: annotations[0]")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
def test_a_coco_annotation_needs_its_keys(tmp_path, key):
    """A missing key is named."""
    short = {k: v for k, v in annotation().items() if k != key}
    with pytest.raises(DatasetError, match=rf"annotations\[0\] has no '{key}'; expected a"):
        read_data(coco(tmp_path, short))


BAD_DOCUMENTS = [
    ({"images": "left out"}, "has no 'images'; expected a list"),
    ({"annotations": "left out"}, "has no 'annotations'; expected a list"),
    ({"categories": {}}, r"'categories' is \{\}; expected a list"),
    ({"images": ["a.jpg"]}, r"images\[0\] is 'a.jpg'; expected a JSON object"),
    ({"images": [{"id": 1}]}, r"images\[0\] has no 'file_name'; expected a text"),
    ({"images": [{"id": "1", "file_name": "a.jpg"}]}, r"images\[0\]: 'id' is '1'; expected a whole number"),
    ({"images": [{"id": 1, "file_name": " "}]}, r"images\[0\]: 'file_name' is empty"),
    ({"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}, r"images\[1\] repeats id 1"),
    ({"categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "dog"}]}, r"categories\[1\] repeats .* 'dog'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_DOCUMENTS)
def test_bad_coco_documents_are_refused(tmp_path, changes, message):
    """A missing or wrong part of the file is named."""
    with pytest.raises(DatasetError, match=message):
        read_data(coco(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe\x00\x01", b"[" * 100_000])
def test_damaged_json_is_refused(tmp_path, content):
    """A file that is no JSON is one line of error."""
    coco(tmp_path)
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"instances\.json: cannot be read as JSON"):
        read_data(f"coco:{tmp_path}")


def test_json_of_another_kind_is_refused(tmp_path):
    """A JSON list is not COCO's format."""
    coco(tmp_path)
    (tmp_path / "instances.json").write_text("[]")
    with pytest.raises(DatasetError, match="expected a JSON object with images, annotations and categories"):
        read_data(f"coco:{tmp_path}")


def test_coco_needs_its_photos_folder(tmp_path):
    """Without images/ the message says where the photos belong."""
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"images: no such folder; put the photos there, beside val\.json"):
        read_data(f"coco:{tmp_path / 'val.json'}")


# --- VOC

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>8.5</ymax></bndbox>"
SOFA = f"<object><name>sofa</name><difficult>1</difficult>{BOX}</object>"
CAT = f"<object><name>cat</name>{BOX}<part><name>head</name><bndbox/></part></object>"


def voc(folder, split=None, photos=("a", "b"), **annotations):
    """Write a year of a VOCdevkit with the given annotations and photos."""
    touched(folder / "JPEGImages", *(f"{stem}.jpg" for stem in photos))
    (folder / "Annotations").mkdir(exist_ok=True)
    for stem, body in annotations.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{body}</annotation>")
    for name, lines in (split or {}).items():
        touched(folder / "ImageSets" / "Main", name)
        (folder / "ImageSets" / "Main" / name).write_text(lines)
    return f"voc:{folder}"


def stems(data):
    return [image.source[-5] for image in data.images]


def test_voc_boxes_count_from_one(tmp_path):
    """1-based inclusive corners become 0-based ones with right and bottom exclusive; difficult is kept."""
    data = read_data(voc(tmp_path, a=SOFA + CAT))
    sofa, cat = data.images[0].objects
    assert sofa == AnnotatedObject("sofa", (0, 1, 5, 8.5), difficult=True)
    assert (cat.label, cat.difficult) == ("cat", False)
    assert data.class_names == ("cat", "sofa")
    assert data.wnids["sofa"] == COCO_TO_IMAGENET["couch"]


def test_voc_takes_test_then_val_then_all(tmp_path):
    """The list test.txt goes before val.txt, and without either every annotated photo is read."""
    spec = voc(tmp_path, a=SOFA, b=CAT)
    assert stems(read_data(spec)) == ["a", "b"]
    voc(tmp_path, {"val.txt": "b\n", "train.txt": "a\n"})
    assert stems(read_data(spec)) == ["b"]
    voc(tmp_path, {"test.txt": "b\na -1\n\n"})
    assert stems(read_data(spec)) == ["b", "a"]


def test_voc_photos_that_cannot_be_used_are_problems(tmp_path):
    """Absent photos, absent annotations and photos without objects are set aside."""
    data = read_data(voc(tmp_path, {"val.txt": "a\nb\nc\nd\n"}, a=SOFA, b="", c=CAT))
    assert stems(data) == ["a"]
    assert [(source[-5:], reason) for source, reason in data.problems] == [
        ("b.jpg", "no annotated object"),
        ("c.jpg", "no such file"),
        ("d.xml", "no such file"),
    ]


def test_voc_falls_back_on_the_named_photo(tmp_path):
    """A photo that is not named like its annotation is found by <filename>."""
    touched(tmp_path / "JPEGImages", "other.png")
    data = read_data(voc(tmp_path, photos=(), a=f"<filename>other.png</filename>{SOFA}"))
    assert data.images[0].source.endswith("other.png")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<object>", "damaged XML"),
        (f"<object>{BOX}</object>", "object 1 has no <name>"),
        ("<object><name>cat</name></object>", "object 1 has no <bndbox/xmin>; expected a number"),
        (SOFA + CAT.replace("<ymax>8.5", "<ymax>low"), "object 2: <bndbox/ymax> is 'low'; expected a number"),
        (SOFA.replace("8.5", "nan"), "<bndbox/ymax> is 'nan'; expected a number"),
        (SOFA.replace(">1</difficult", ">yes</difficult"), "<difficult> is 'yes'; expected 0 or 1"),
    ],
)
def test_bad_voc_annotations_are_refused(tmp_path, body, message):
    """One line names the file, the object and what was expected."""
    with pytest.raises(DatasetError, match=message) as caught:
        read_data(voc(tmp_path, a=body))
    assert str(caught.value).startswith(str(tmp_path / "Annotations" / "a.xml"))


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
        read_data(spec)


def test_voc_entities_cannot_hide_in_another_encoding(tmp_path):
    """XML that is not UTF-8 is refused before it is parsed."""
    spec = voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_bytes("<!DOCTYPE a><annotation/>".encode("utf-16"))
    with pytest.raises(DatasetError, match="cannot be read as UTF-8 text"):
        read_data(spec)


# --- ImageNet boxes


def boxes_csv(folder, *lines, header="file,wnid,boxes"):
    touched(folder / "images", "a.JPEG")
    touched(folder, "b.JPEG")
    (folder / "boxes.csv").write_text("\n".join([header, *lines]) + "\n")
    return f"imagenet-boxes:{folder / 'boxes.csv'}"


def test_imagenet_boxes_are_read_as_given(tmp_path):
    """Boxes keep their numbers, the WordNet id is class and label, photos lie in images/ or beside the file."""
    data = read_data(boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4;5 6 7.5 8", "b.JPEG,n99999999,1 2 3 4"))
    bear, other = data.images
    assert bear.source == str(tmp_path / "images" / "a.JPEG")
    assert bear.label == "n02134084"
    assert bear.objects == (thing(label=bear.label, box=(1, 2, 3, 4)), thing(label=bear.label, box=(5, 6, 7.5, 8)))
    assert other.source == str(tmp_path / "b.JPEG")
    assert data.class_names == ("n02134084", "n99999999")
    assert data.wnids == {"n02134084": ("n02134084",)}


def test_imagenet_photos_that_cannot_be_used_are_problems(tmp_path):
    """An absent photo and a line without boxes are set aside."""
    data = read_data(boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", "c.JPEG,n02134084,1 2 3 4", "b.JPEG,n02134084,"))
    assert len(data.images) == 1
    assert [reason for _, reason in data.problems] == ["no such file", "no box"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.JPEG,n02134084", "too many or too few columns"),
        ("b.JPEG,n02134084,1 2 3 4,5", "too many or too few columns"),
        ("b.JPEG,n02134084,1 2 3", "box '1 2 3'; expected four numbers x1 y1 x2 y2"),
        ("b.JPEG,n02134084,1 2 3 4;1 2 x 4", "box '1 2 x 4'; expected four numbers"),
        ("b.JPEG,n02134084,1 2 nan 4", "expected four numbers"),
        ("b.JPEG,bear,1 2 3 4", "wnid is 'bear'; expected n and 8 digits"),
        (",n02134084,1 2 3 4", "the file is empty"),
        ("a.JPEG,n02134084,1 2 3 4", "a.JPEG is on line 2 already"),
    ],
)
def test_bad_lines_are_numbered(tmp_path, line, message):
    """A damaged line is refused with its number."""
    with pytest.raises(DatasetError, match=rf"boxes\.csv, line 3: .*{message}"):
        read_data(boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", line))


@pytest.mark.parametrize("header", ["file,wnid", "1,2,3", ""])
def test_a_csv_file_needs_its_columns(tmp_path, header):
    """The first line must name every column."""
    with pytest.raises(DatasetError, match=r"line 1: no column '(file|boxes)'; expected file,wnid,boxes"):
        read_data(boxes_csv(tmp_path, header=header))


def test_a_csv_file_that_is_no_text_is_refused(tmp_path):
    """Bytes that are no text are one line of error."""
    spec = boxes_csv(tmp_path)
    (tmp_path / "boxes.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DatasetError, match="cannot be read as CSV"):
        read_data(spec)


# --- folders


def test_a_flat_folder_has_no_classes(tmp_path):
    """Photos directly in the folder have no label; a folder without photos beside them is no class."""
    touched(tmp_path, "b.jpg", "a.png", "notes.txt", "empty/notes.txt")
    data = read_data(f"folder:{tmp_path}")
    assert [i.source for i in data.images] == [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert {i.label for i in data.images} == {None}
    assert data.class_names == data.images[0].classes == ()


def test_folders_of_the_first_level_are_classes(tmp_path):
    """Each folder gives its name to the photos anywhere below it; WordNet ids of ImageNet-1k are recognised."""
    touched(tmp_path, "n02134084/deep/a.jpg", "n02134084/b.jpg", "n99999999/c.jpg", "own/d.jpg", ".cache/e.jpg")
    data = read_data(f"folder:{tmp_path}")
    assert data.class_names == ("n02134084", "n99999999", "own")
    assert sorted(i.label for i in data.images) == ["n02134084", "n02134084", "n99999999", "own"]
    assert data.images[0].classes == ("n02134084",)
    assert data.wnids == {"n02134084": ("n02134084",)}


def test_photos_beside_class_folders_are_problems(tmp_path):
    """A photo that is in none of the classes is set aside."""
    touched(tmp_path, "cat/a.jpg", "stray.jpg")
    data = read_data(f"folder:{tmp_path}")
    assert data.problems == ((str(tmp_path / "stray.jpg"), "beside the class folders, so of no class"),)


def test_a_class_without_photos_is_refused(tmp_path):
    """An empty class would never be measured, so it is named."""
    touched(tmp_path, "cat/a.jpg", "dog/notes.txt")
    with pytest.raises(DatasetError, match="dog: no photos of this class"):
        read_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["notes.txt", ".hidden/a.jpg"])
def test_a_folder_without_photos_is_refused(tmp_path, name):
    """Neither other files nor hidden photos count."""
    touched(tmp_path, name)
    with pytest.raises(DatasetError, match=r"no (photos|pictures) in this folder"):
        read_data(f"folder:{tmp_path}")


# --- checks, masks and grids


@pytest.mark.parametrize("box", [(2, 3, 2, 8), (2, 8, 6, 3), (math.nan, 3, 6, 8), (2, 3, math.inf, 8)])
def test_a_box_without_area_is_refused(box):
    """An empty, turned or infinite box is named with its class."""
    with pytest.raises(DatasetError, match=r"a\.jpg: box .* of 'dog' has no area"):
        AnnotatedImage("a.jpg", (thing(box=box),)).check((10, 20))


@pytest.mark.parametrize("box", [(-3, 3, 6, 8), (2, -3, 6, 8), (2, 3, 23, 8), (2, 3, 6, 13)])
def test_a_box_outside_the_photo_is_refused(box):
    """A box more than 2 pixels over an edge belongs to another photo."""
    with pytest.raises(DatasetError, match=r"reaches outside the photo \(20x10 pixels\)"):
        AnnotatedImage("a.jpg", (thing(box=box),)).check((10, 20))


def test_a_box_slightly_over_the_edge_is_accepted():
    """Up to 2 pixels are rounding."""
    AnnotatedImage("a.jpg", (thing(box=(-2, -2, 22, 12)),)).check((10, 20))


def test_runs_of_another_size_are_refused():
    """Run lengths must add up to the photo's pixels, when checked and when drawn."""
    wrong = thing(runs=(50, 50))
    with pytest.raises(DatasetError, match=r"run lengths cover 100 pixels, the photo has 20x10"):
        AnnotatedImage("a.jpg", (wrong,)).check((10, 20))
    with pytest.raises(DatasetError, match="run lengths cover 100 pixels"):
        wrong.mask((10, 20))


def test_runs_polygons_and_boxes_agree_on_a_rectangle():
    """The same rectangle in all three ways is the same pixels, and no more than its area."""
    runs = (23, 5, 5, 5, 5, 5, 5, 5, 142)
    polygon = (2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0)
    masks = [thing(**way).mask((10, 20)) for way in ({}, {"runs": runs}, {"polygons": (polygon,)})]
    assert masks[0].sum() == 20
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert masks[0][3:8, 2:6].all()


def test_overlapping_polygons_are_united():
    """Two polygons of one object do not cancel out where they overlap."""
    first, second = (0, 0, 6, 0, 6, 6, 0, 6), (3, 0, 9, 0, 9, 6, 3, 6)
    mask = thing(polygons=(first, second)).mask((10, 20))
    assert mask.sum() == 54
    assert mask[:6, :9].all()


def test_a_triangle_has_its_area():
    """A slanted outline covers the pixels whose centres are inside it, also one that leaves the photo."""
    mask = thing(polygons=((0, 0, 10, 0, 0, 10),)).mask((10, 20))
    assert mask.sum() == 45
    assert thing(polygons=((-50, -50, 50, -50, 50, 50, -50, 50),)).mask((10, 20)).all()


@pytest.mark.parametrize("outline", [{"polygons": ((2, 3, 6, 3, 2, 3),)}, {"runs": (200,)}])
def test_an_empty_outline_gives_the_box(outline):
    """An object never loses all its pixels."""
    assert torch.equal(thing(**outline).mask((10, 20)), thing().mask((10, 20)))


def test_on_grid_moves_boxes_and_outlines_alike():
    """The left half at double size: a box and the same rectangle as a polygon give the same pixels."""
    polygon = (2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0)
    objects = on_whole(thing(), thing(polygons=(polygon,)), region=(0.0, 0.0, 10.0, 10.0), grid=(20, 20))
    assert objects.boxes.tolist() == [[4, 6, 12, 16]] * 2
    assert torch.equal(objects.masks[0], objects.masks[1])
    assert objects.masks[0].sum() == 80


def test_on_grid_keeps_flags_and_filters_classes():
    """Flags travel along, and only the classes asked for are kept."""
    things = (thing(difficult=True), thing(label="cat", crowd=True))
    objects = on_whole(*things)
    assert objects.difficult.tolist() == [True, False]
    assert objects.single.tolist() == [True, False]
    assert len(on_whole(*things, classes=["cat"]).boxes) == 1
    assert on_whole(*things, classes=["cow"]) is None


def test_objects_outside_the_region_are_left_out():
    """What was cut away is not an object; with nothing left there are no objects."""
    right = thing(box=(15, 3, 19, 8))
    assert on_whole(right, region=(0.0, 0.0, 10.0, 10.0), grid=(10, 10)) is None
    assert len(on_whole(right, thing(), region=(0.0, 0.0, 10.0, 10.0), grid=(10, 10)).boxes) == 1
    assert on_whole() is None


def test_an_outline_outside_the_region_is_left_out_though_its_box_is_not():
    """A corner of the box alone is no pixel of the object."""
    corner = thing(box=(5, 0, 20, 10), polygons=((15, 0, 20, 0, 20, 10, 5, 10, 5, 9, 15, 9),))
    assert on_whole(corner, region=(0.0, 0.0, 10.0, 8.0), grid=(8, 10)) is None
    assert on_whole(corner, region=(0.0, 0.0, 10.0, 10.0), grid=(10, 10)).masks.sum() == 5


def test_a_tiny_outline_marks_the_pixel_it_lies_in():
    """An object between the grid's samples is not lost, and does not grow to its box."""
    tiny = thing(box=(0, 0, 10, 10), polygons=((0, 0, 1, 0, 1, 1, 0, 1),))
    mask = on_whole(tiny, grid=(2, 4)).masks[0]
    assert mask.sum() == 1
    assert mask[0, 0]


# --- the table of classes


def test_every_coco_class_is_in_exactly_one_table():
    """The 80 classes either have counterparts or a reason for having none."""
    assert len(COCO_NAMES) == 80
    assert sorted([*COCO_TO_IMAGENET, *COCO_WITHOUT_IMAGENET]) == sorted(COCO_NAMES)
    assert all(COCO_TO_IMAGENET.values())
    assert all(reason and "\n" not in reason for reason in COCO_WITHOUT_IMAGENET.values())


def test_every_wnid_is_an_imagenet_class_and_named_right():
    """Each id is one of the 1,000, stands under one COCO class only, and is followed by its first name."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    first = {info.index_to_label_name(i): info.index_to_description(i).split(", ")[0] for i in range(1000)}
    assert first.keys() == known_wnids()
    listed = [pair.split(" ", 1) for text in NAMED.values() for pair in text.split(", ")]
    assert all(first[wnid] == name for wnid, name in listed)
    wnids = [wnid for wnids in COCO_TO_IMAGENET.values() for wnid in wnids]
    assert wnids == [wnid for wnid, _ in listed]
    assert len(wnids) == len(set(wnids))


def test_large_families_are_complete():
    """ILSVRC has 118 breeds of dog, 59 birds, 5 house cats and 4 bears."""
    assert {k: len(COCO_TO_IMAGENET[k]) for k in ("dog", "bird", "cat", "bear")} == {
        "dog": 118,
        "bird": 59,
        "cat": 5,
        "bear": 4,
    }


def test_voc_names_lead_to_coco_names():
    """The 20 names of VOC are known, and mean the same as COCO's."""
    assert len(VOC_TO_COCO) == 20
    assert set(VOC_TO_COCO.values()) <= set(COCO_NAMES)
    assert wnids_of("tvmonitor") == wnids_of("tv") != ()
    assert wnids_of("aeroplane") == COCO_TO_IMAGENET["airplane"]
    assert wnids_of("person") == wnids_of("pottedplant") == wnids_of("no such class") == ()
