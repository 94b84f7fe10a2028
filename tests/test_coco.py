"""Parts of maps in COCO's format, read back by pycocotools and by our own reader."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from support import GapNet

import xai_abn
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError
from xai_abn.explanation import ImageExplanations


def read(place, document):
    """What pycocotools makes of a document."""
    place.write_text(json.dumps(document))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(place))


@pytest.fixture
def results(gap_net, image):
    wide = np.asarray(Image.fromarray(image).resize((120, 60)))
    return xai_abn.explain(gap_net, [image, wide], ["grad-cam", "cam"], [["cat", "kite"], "dog"])


def test_pycocotools_reads_the_masks_of_the_records(results, tmp_path):
    """The parts of a map together are its mask, each inside its own box; sizes are those of the whole images."""
    found = read(tmp_path / "a.json", xai_abn.to_coco(results, 0.6))
    assert [(i["height"], i["width"]) for i in found.loadImgs([1, 2])] == [
        results[0]["cam", "cat"].image_size,
        (60, 120),
    ]
    names = {c["name"]: c["id"] for c in found.loadCats(found.getCatIds())}
    assert names == {"cat": 0, "dog": 1, "kite": 4}
    checked = 0
    for number, result in enumerate(results, 1):
        for e in result.values():
            parts = [
                a
                for a in found.loadAnns(found.getAnnIds(imgIds=[number], catIds=[names[e.label]], iscrowd=False))
                if a["method"] == e.method
            ]
            if not e.has_parts:
                assert not parts
                continue
            masks = np.array([found.annToMask(a) for a in parts])
            assert np.array_equal(masks.sum(axis=0), e.mask(0.6))
            for mask, part in zip(masks, parts, strict=True):
                rows, columns = np.nonzero(mask)
                left, top, width, height = part["bbox"]
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
                assert part["area"] == mask.sum()
                assert part["score"] == e.probability
            areas = [a["area"] for a in parts]
            assert areas == sorted(areas, reverse=True)
            checked += 1
    assert checked >= 3


def test_our_reader_reads_it(gap_net, image, tmp_path):
    """Boxes, outlines and labels come back."""
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    document = xai_abn.to_coco(xai_abn.explain(gap_net, tmp_path / "images" / "one.png", "grad-cam", "sofa"))
    document["images"][0]["file_name"] = "one.png"
    (tmp_path / "instances.json").write_text(json.dumps(document))
    data = read_dataset(f"coco:{tmp_path}")
    (sample,) = data.splits["train"]
    assert data.class_names == ("sofa",)
    x, y, width, height = document["annotations"][0]["bbox"]
    assert sample.objects[0].box == (x, y, x + width, y + height)
    assert sample.objects[0].outline == document["annotations"][0]["segmentation"]
    assert data.problems == ()


def test_a_map_without_evidence_is_an_image_without_annotations(results):
    """Flat, or against the target everywhere; the image is listed, as a negative."""
    one = results[1]["cam"]
    for values in (np.zeros((4, 4)), -1 - np.arange(16.0).reshape(4, 4)):
        empty = replace(one, map=values.astype(np.float32))
        document = xai_abn.to_coco([ImageExplanations({"cam": empty})])
        assert len(document["images"]) == 1
        assert document["annotations"] == []


def test_a_score_without_probability_is_left_out(gap_net, image):
    """It would be no number in JSON."""
    document = xai_abn.to_coco(xai_abn.explain(gap_net, image, "grad-cam", lambda logits: logits[:, 0]))
    assert document["annotations"]
    assert all("score" not in part for part in document["annotations"])
    json.dumps(document, allow_nan=False)


def test_categories_are_classes_not_comparisons(gap_net, image):
    """The class alone, whatever it was compared with."""
    why = xai_abn.Difference("dog", versus="cat")
    document = xai_abn.to_coco(xai_abn.explain(gap_net, image, "grad-cam", why))
    assert document["categories"] == [{"id": 1, "name": "dog"}]


def test_a_tensor_has_the_size_of_the_input():
    """There is no image behind it."""
    torch.manual_seed(0)
    document = xai_abn.to_coco(xai_abn.explain(GapNet().eval(), torch.rand(3, 40, 56), "grad-cam"))
    assert (document["images"][0]["height"], document["images"][0]["width"]) == (40, 56)
    assert document["categories"][0]["name"].startswith("class ")


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(results, threshold):
    """It is a share of the range."""
    with pytest.raises(InvalidInputError, match="threshold must be above 0 and at most 1"):
        xai_abn.to_coco(results, threshold)


def test_many_parts_are_kept_apart(results):
    """Pixels that touch at a corner are one part."""
    values = np.zeros((6, 6), np.float32)
    values[0, 0] = values[1, 1] = values[0, 3] = values[4, 4] = values[4, 5] = values[5, 2] = 1
    one = replace(results[1]["cam"], map=values, view=np.zeros((6, 6, 3), np.uint8), image_size=None, region=None)
    document = xai_abn.to_coco([ImageExplanations({"cam": one})], 1)
    assert [a["bbox"] for a in document["annotations"]] == [[0, 0, 2, 2], [4, 4, 2, 1], [3, 0, 1, 1], [2, 5, 1, 1]]
    assert [a["id"] for a in document["annotations"]] == [1, 2, 3, 4]


def test_the_image_is_not_needed(results, tmp_path):
    """A document depends on the records alone, also those of unreadable files."""
    moved = [ImageExplanations({k: replace(e, source="gone.jpg") for k, e in results[0].items()})]
    found = read(tmp_path / "a.json", xai_abn.to_coco(moved))
    assert found.loadImgs([1])[0]["file_name"] == "gone.jpg"
    assert found.annToMask(found.loadAnns([1])[0]).any()


def test_volumes_are_refused(results):
    """The format holds images; boxes and masks of volumes are there."""
    deep = replace(results[1]["cam"], map=np.random.default_rng(0).random((4, 6, 6), np.float32))
    with pytest.raises(InvalidInputError, match="holds images; give boxes or masks"):
        xai_abn.to_coco([ImageExplanations({"cam": deep})])
