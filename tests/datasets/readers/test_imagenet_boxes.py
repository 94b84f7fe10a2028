"""ILSVRC boxes in a CSV file: what is read, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import touch

from xai_abn.datasets import AnnotatedObject, read_dataset
from xai_abn.errors import DatasetError


def boxes_csv(folder, *lines, header="file,wnid,boxes"):
    touch(folder / "images", "a.JPEG")
    touch(folder, "b.JPEG")
    (folder / "boxes.csv").write_text("\n".join([header, *lines]) + "\n")
    return f"imagenet-boxes:{folder / 'boxes.csv'}"


def test_imagenet_boxes_are_read_as_given(tmp_path):
    """Boxes keep their numbers, the WordNet id is class and label, images lie in images/ or beside the file."""
    data = read_dataset(boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4;5 6 7.5 8", "b.JPEG,n99999999,1 2 3 4"))
    bear, other = data.samples
    assert bear.source == str(tmp_path / "images" / "a.JPEG")
    assert bear.label == "n02134084"
    assert bear.objects == (AnnotatedObject(bear.label, (1, 2, 3, 4)), AnnotatedObject(bear.label, (5, 6, 7.5, 8)))
    assert other.source == str(tmp_path / "b.JPEG")
    assert data.class_names == ("n02134084", "n99999999")
    assert data.wnids == {"n02134084": ("n02134084",)}


def test_imagenet_images_that_cannot_be_used_are_problems(tmp_path):
    """An absent image and a line without boxes are set aside."""
    data = read_dataset(
        boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", "c.JPEG,n02134084,1 2 3 4", "b.JPEG,n02134084,")
    )
    assert len(data.samples) == 1
    assert [reason[:12] for _, reason in data.problems] == ["no such file", "no box"]


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
    ],
)
def test_a_bad_line_costs_its_image_and_no_other(tmp_path, line, message):
    """It is among the problems, with its number."""
    data = read_dataset(boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", line))
    assert [Path(sample.source).name for sample in data.samples] == ["a.JPEG"]
    ((_, reason),) = data.problems
    assert re.search(rf"boxes\.csv, line 3: .*{message}", reason)


def test_an_image_on_two_lines_is_not_measured(tmp_path):
    """Neither line has all of its boxes."""
    lines = ("a.JPEG,n02134084,1 2 3 4", "b.JPEG,n02134084,1 2 3 4", "a.JPEG,n02134084,5 6 7 8")
    data = read_dataset(boxes_csv(tmp_path, *lines))
    assert [Path(sample.source).name for sample in data.samples] == ["b.JPEG"]
    assert [Path(source).name for source, _ in data.problems] == ["a.JPEG", "a.JPEG"]
    assert "listed twice; join the boxes of an image by ';'" in data.problems[0][1]


def test_a_bad_line_of_kaggles_list_costs_its_image(tmp_path):
    """Its name does not depend on the boxes."""
    touch(tmp_path / "images", "ILSVRC2012_val_1.JPEG", "ILSVRC2012_val_2.JPEG")
    text = "ImageId,PredictionString\nILSVRC2012_val_1,n02134084 1 2 3\nILSVRC2012_val_2,n02134084 1 2 3 4\n"
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    data = read_dataset(f"imagenet-boxes:{tmp_path / 'LOC_val_solution.csv'}")
    assert [Path(sample.source).name for sample in data.samples] == ["ILSVRC2012_val_2.JPEG"]
    assert "line 2: PredictionString is 'n02134084 1 2 3'" in data.problems[0][1]


@pytest.mark.parametrize("header", ["file,wnid", "1,2,3", ""])
def test_a_csv_file_needs_its_columns(tmp_path, header):
    """The first line must name every column."""
    with pytest.raises(DatasetError, match=r"line 1: no column '(file|boxes)'; expected file,wnid,boxes"):
        read_dataset(boxes_csv(tmp_path, header=header))


@pytest.mark.parametrize(
    ("line", "reason"),
    [('"b.JPEG,n02134084,1 2 3 4', "a quote is not closed"), ('b.JPEG,"n02134084,1 2 3 4', "a quote is not closed")],
)
def test_an_open_quote_is_one_error_with_its_line(tmp_path, line, reason):
    """It would hide every row behind it."""
    spec = boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", line, "c.JPEG,n02134084,1 2 3 4", "d.JPEG,n02134084,1 2 3 4")
    with pytest.raises(DatasetError, match=rf"boxes\.csv, line 3: cannot be read as CSV \({reason}\)"):
        read_dataset(spec)
    spec = boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", '"b.JPEG,n02134084,1', 'c.JPEG",n02134084,1 2 3 4')
    with pytest.raises(DatasetError, match=r"boxes\.csv, line 3: .*a quote is opened and closed in another line"):
        read_dataset(spec)


def test_a_csv_file_that_is_no_text_is_refused(tmp_path):
    """Bytes that are no text are one line of error; a name in other bytes than UTF-8 costs its own image."""
    spec = boxes_csv(tmp_path, "a.JPEG,n02134084,1 2 3 4", "b.JPEG,n02134084,1 2 3 4")
    content = (tmp_path / "boxes.csv").read_bytes()
    (tmp_path / "boxes.csv").write_bytes(content.replace(b"b.JPEG", b"caf\xe9.JPEG"))
    data = read_dataset(spec)
    assert [Path(sample.source).name for sample in data.samples] == ["a.JPEG"]
    ((name, reason),) = data.problems
    assert "caf" in name
    assert "no such file" in reason
    (tmp_path / "boxes.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DatasetError, match="no column 'file'"):
        read_dataset(spec)
