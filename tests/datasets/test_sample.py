"""Samples and their objects: what is refused, and objects on a network's grid."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from xai_abn.datasets import READERS, AnnotatedObject, ReadOptions, Sample, read_dataset
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError, UnknownNameError
from xai_abn.models.settings import ModelSettings
from xai_abn.training.settings import DistillationSettings, TrainingSettings

WHOLE = (0.0, 0.0, 20.0, 10.0)


def thing(**changes):
    return AnnotatedObject(**({"label": "dog", "box": (2, 3, 6, 8)} | changes))


def on_whole(*things, region=WHOLE, grid=(10, 20), **options):
    return Sample("a.jpg", things).on_grid((10, 20), region, grid, **options)


def test_the_four_formats_are_registered():
    """Importing the package is enough to know every format."""
    assert set(READERS.names()) >= {"coco", "voc", "imagenet-boxes", "images"}


@pytest.mark.parametrize("spec", ["coco", "coco:", "/some/folder", ""])
def test_data_must_be_kind_and_path(spec):
    """A spec without a colon or a path is refused, and the kinds are listed."""
    with pytest.raises(DatasetError, match=r"must be KIND:PLACE with KIND one of .*coco,"):
        read_dataset(spec)


def test_an_unknown_kind_gives_the_nearest():
    """A slip in the kind is answered with the right one."""
    with pytest.raises(UnknownNameError, match="unknown data set 'cocco'; did you mean 'coco'"):
        read_dataset("cocco:x")


def test_data_without_usable_images_is_refused(tmp_path):
    """If every listed image has a problem, the first reason is given."""
    (tmp_path / "boxes.csv").write_text("file,wnid,boxes\ngone.jpg,n02134084,1 2 3 4\n")
    with pytest.raises(DatasetError, match=r"1 are listed but unusable, the first .*gone\.jpg: no such file"):
        read_dataset(f"imagenet-boxes:{tmp_path / 'boxes.csv'}")


@pytest.mark.parametrize("kind", ["coco", "voc", "imagenet-boxes", "images"])
def test_a_path_with_nothing_there_is_named(kind, tmp_path):
    """Every reader says what is missing."""
    with pytest.raises(DatasetError, match=r"nothing.*: no such (file|folder);"):
        read_dataset(f"{kind}:{tmp_path / 'nothing'}")


def test_a_digest_is_that_of_runs_of_format_1(tmp_path):
    """The hashed text is part of the run format: with another, every image of an existing run is measured again."""
    (tmp_path / "a.png").write_bytes(b"pixels")
    two = (thing(box=(2.0, 3.0, 6.0, 8.5), crowd=True), thing(difficult=True))
    first = "AnnotatedObject(label='dog', box=(2.0, 3.0, 6.0, 8.5), polygons=(), runs=(), difficult=False, crowd=True)"
    second = "AnnotatedObject(label='dog', box=(2, 3, 6, 8), polygons=(), runs=(), difficult=True, crowd=False)"
    texts = {(): "(None, ())", two[:1]: f"(None, ({first},))", two: f"(None, ({first}, {second}))"}
    for objects, text in texts.items():
        digest = hashlib.sha256(text.encode() + b"pixels").hexdigest()[:32]
        assert Sample(str(tmp_path / "a.png"), objects).digest() == digest
    outlined = [Sample(str(tmp_path / "a.png"), (thing(outline=((0, 0, 6, 0, 6, y),)),)).digest() for y in (6, 7)]
    assert len({*outlined, Sample(str(tmp_path / "a.png"), (thing(),)).digest()}) == 3
    with pytest.raises(ImageLoadError, match=r"gone\.png: No such file"):
        Sample(str(tmp_path / "gone.png")).digest()


@pytest.mark.parametrize("box", [(2, 3, 2, 8), (2, 8, 6, 3), (math.nan, 3, 6, 8), (2, 3, math.inf, 8)])
def test_a_box_without_area_is_refused(box):
    """An empty, turned or infinite box is named with its class."""
    with pytest.raises(DatasetError, match=r"a\.jpg: box .* of 'dog' has no area"):
        Sample("a.jpg", (thing(box=box),)).check((10, 20))


@pytest.mark.parametrize("box", [(-3, 3, 6, 8), (2, -3, 6, 8), (2, 3, 23, 8), (2, 3, 6, 13)])
def test_a_box_outside_the_image_is_refused(box):
    """A box more than 2 pixels over an edge belongs to another image."""
    with pytest.raises(DatasetError, match=r"reaches outside the image \(20x10 pixels\)"):
        Sample("a.jpg", (thing(box=box),)).check((10, 20))


def test_a_box_slightly_over_the_edge_is_accepted():
    """Up to 2 pixels are rounding."""
    Sample("a.jpg", (thing(box=(-2, -2, 22, 12)),)).check((10, 20))


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([50, 50], [10, 10], "the mask is 10x10, the image 20x10 pixels"),
        ([50, 50], [10, 20], "cover fewer than 20x10 pixels"),
        ([50, 151], [10, 20], "cover more than 20x10 pixels"),
        ("d0", [10, 20], "cover fewer than 20x10 pixels"),
        ("N", [10, 20], "cover more than 20x10 pixels"),  # a negative length
    ],
)
def test_run_lengths_must_cover_the_image(counts, size, message):
    """Masks of another size, too short and too long ones are refused when checked and when drawn."""
    wrong = thing(outline={"size": size, "counts": counts})
    with pytest.raises(DatasetError, match=rf"a\.jpg: box 2 3 6 8 of 'dog': .*{message}"):
        Sample("a.jpg", (wrong,)).check((10, 20))
    with pytest.raises(DatasetError, match=message):
        wrong.mask((10, 20))


@pytest.mark.parametrize("number", [1e8, 1e12, -1e9, 1e308])
def test_an_outline_that_would_take_all_memory_is_refused(number):
    """The library ends the process; so do many corners far from each other."""
    far = (0.0, 0.0, number, 0.0, number, 9.0)
    zigzag = (0.0, 0.0, 1e4, 0.0) * 200
    for outline in ((far,), ((1.0, 1.0, 3.0, 1.0, 3.0, 3.0), far), (zigzag,)):
        with pytest.raises(DatasetError, match=r"the outline is .* pixels long, more than 2,000,000"):
            thing(outline=outline).mask((10, 20))
        with pytest.raises(DatasetError, match=r"a\.jpg: box 2 3 6 8 of 'dog': the outline is "):
            Sample("a.jpg", (thing(outline=outline),)).check((10, 20))


@pytest.mark.parametrize("number", [-5, 2**40, 10**20])
def test_run_lengths_out_of_range_are_refused(number):
    """As given in Python; a file is checked when it is read."""
    with pytest.raises(DatasetError, match="run lengths"):
        thing(outline={"size": [10, 20], "counts": [number, 10]}).mask((10, 20))


def test_runs_polygons_and_boxes_agree_on_a_rectangle():
    """The same rectangle in all three ways is the same pixels, and no more than its area."""
    runs = {"size": [10, 20], "counts": [23, 5, 5, 5, 5, 5, 5, 5, 142]}
    polygon = (2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0)
    masks = [thing(**way).mask((10, 20)) for way in ({}, {"outline": runs}, {"outline": (polygon,)})]
    assert masks[0].sum() == 20
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert masks[0][3:8, 2:6].all()


def test_overlapping_polygons_are_united():
    """Two polygons of one object do not cancel out where they overlap."""
    first, second = (0, 0, 6, 0, 6, 6, 0, 6), (3, 0, 9, 0, 9, 6, 3, 6)
    mask = thing(outline=(first, second)).mask((10, 20))
    assert mask.sum() == 54
    assert mask[:6, :9].all()


def test_a_triangle_has_its_area():
    """A slanted outline covers the pixels whose centers are inside it, also one that leaves the image."""
    mask = thing(outline=((0, 0, 10, 0, 0, 10),)).mask((10, 20))
    assert mask.sum() == 45
    assert thing(outline=((-50, -50, 50, -50, 50, 50, -50, 50),)).mask((10, 20)).all()


@pytest.mark.parametrize(
    "outline", [{"outline": ((2, 3, 6, 3, 2, 3),)}, {"outline": {"size": [10, 20], "counts": [200]}}]
)
def test_an_empty_outline_gives_the_box(outline):
    """An object never loses all its pixels."""
    assert torch.equal(thing(**outline).mask((10, 20)), thing().mask((10, 20)))


def test_on_grid_moves_boxes_and_outlines_alike():
    """The left half at double size: a box and the same rectangle as a polygon give the same pixels."""
    polygon = (2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0)
    objects = on_whole(thing(), thing(outline=(polygon,)), region=(0.0, 0.0, 10.0, 10.0), grid=(20, 20))
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
    corner = thing(box=(5, 0, 20, 10), outline=((15, 0, 20, 0, 20, 10, 5, 10, 5, 9, 15, 9),))
    assert on_whole(corner, region=(0.0, 0.0, 10.0, 8.0), grid=(8, 10)) is None
    assert on_whole(corner, region=(0.0, 0.0, 10.0, 10.0), grid=(10, 10)).masks.sum() == 5


def test_a_tiny_outline_marks_the_pixel_it_lies_in():
    """An object between the grid's samples is not lost, and does not grow to its box."""
    tiny = thing(box=(0, 0, 10, 10), outline=((0, 0, 1, 0, 1, 1, 0, 1),))
    mask = on_whole(tiny, grid=(2, 4)).masks[0]
    assert mask.sum() == 1
    assert mask[0, 0]


@pytest.mark.parametrize("factor", [2, 0.5, 0.01])
def test_an_outline_of_another_size_than_the_box_is_refused(factor):
    """As of images that were resized with their boxes alone."""
    corners = (20, 20, 40, 20, 40, 40, 20, 40)
    box = (20, 20, 40, 40)
    Sample("a.jpg", (thing(box=box, outline=(corners,)),)).check((80, 100))
    scaled = tuple(factor * value for value in corners)
    with pytest.raises(DatasetError, match="'dog': its outline lies elsewhere; was only one of them scaled"):
        Sample("a.jpg", (thing(box=box, outline=(scaled,)),)).check((80, 100))


@pytest.mark.parametrize(
    ("box", "outline"),
    [
        ((10, 10, 90, 70), (12, 12, 20, 12, 20, 20)),  # most of the object is hidden
        ((60, 10, 100, 40), (60, 10, 140, 10, 140, 40, 60, 40)),  # the box is clipped to the image, the outline is not
        ((10, 10, 11, 40), (10, 10, 10, 40, 10, 25)),  # a line
    ],
)
def test_outlines_that_fit_their_box_are_accepted(box, outline):
    """As far as they lie in the image."""
    Sample("a.jpg", (thing(box=box, outline=(outline,)),)).check((80, 100))


@pytest.mark.parametrize("kind", sorted(READERS))
def test_a_place_that_cannot_be_a_path_is_refused(kind, monkeypatch):
    """A name longer than the file system takes, for every reader."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetError) as caught:
        read_dataset(f"{kind}:{'a' * 5000}")
    assert len(str(caught.value)) < 600
    with pytest.raises(DatasetError, match="data must be KIND:PLACE"):
        read_dataset("a" * 5000)


@pytest.mark.parametrize("settings", [TrainingSettings, DistillationSettings, ModelSettings, ReadOptions])
def test_a_size_that_no_memory_holds_is_refused(settings):
    """Before an image or a network is made of it."""
    given = {"data": "images:DIR"} if settings is TrainingSettings else {}
    with pytest.raises(InvalidInputError, match="size must be at most 4096, got 1000000"):
        settings(size=1_000_000, **given)
