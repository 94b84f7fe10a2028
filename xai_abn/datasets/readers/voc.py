"""Images with boxes in Pascal VOC's format."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, Sample
from xai_abn.errors import DatasetError

#: Lists under ImageSets/Main, of which the first that exists is read.
SPLITS = {"test": "test.txt", "validation": "val.txt"}


@READERS.register("voc")
def read_voc(place: str) -> Dataset:
    """Read images with boxes in Pascal VOC's format: a year of a VOCdevkit.

    Args:
        place: a folder with ``Annotations/*.xml`` and ``JPEGImages/``. If ``ImageSets/Main/test.txt`` exists, the
            images it lists are read, else those of ``val.txt`` there, else every annotated one.

    Returns:
        The images that have objects. Images that are listed but absent, not annotated or without object are among
        the problems.

    Raises:
        DatasetError: nothing is there, or a file is damaged or incomplete.
    """
    root = Path(place)
    for folder in ("Annotations", "JPEGImages"):
        if not (root / folder).is_dir():
            raise DatasetError(
                f"{root / folder}: no such folder; give a year of a VOCdevkit, such as VOCdevkit/VOC2012"
            )
    samples, problems = [], []
    part, stems = _listed(root)
    for stem in stems:
        file = root / "Annotations" / f"{stem}.xml"
        if not file.is_file():
            problems.append((str(file), "no such file"))
            continue
        tree = _parse(file)
        image = _image(root, stem, tree)
        objects = tuple(_object(node, f"{file}: object {i}") for i, node in enumerate(tree.findall("object"), 1))
        if not image.is_file():
            problems.append((str(image), "no such file"))
        elif not objects:
            problems.append((str(image), "no annotated object"))
        else:
            samples.append(Sample(str(image), objects))
    names = tuple(sorted({thing.label for sample in samples for thing in sample.objects}))
    wnids = {name: wnids_of(name) for name in names if wnids_of(name)}
    return Dataset("voc", {part: samples}, names, wnids, tuple(problems))


def _listed(root: Path) -> tuple[str, list[str]]:
    """Return the split that is read, and the names of its images, without ending."""
    for part, name in SPLITS.items():
        file = root / "ImageSets" / "Main" / name
        if file.is_file():
            lines = [line.split() for line in _text(file, "names of images, one a line").splitlines()]
            return part, list(dict.fromkeys(words[0] for words in lines if words))
    return "train", sorted(file.stem for file in (root / "Annotations").glob("*.xml"))


def _text(file: Path, expected: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: cannot be read as UTF-8 text ({error}); expected {expected}") from error


def _parse(file: Path) -> ElementTree.Element:
    """Parse one annotation; document types and entities, which can blow up a parser, are refused."""
    text = _text(file, "a VOC annotation")
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise DatasetError(f"{file}: has a document type or entities, which VOC annotations do not need; remove them")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{file}: damaged XML ({error}); expected a VOC annotation") from error
    if tree.tag != "annotation":
        raise DatasetError(f"{file}: starts with <{tree.tag}>; expected <annotation>, as in VOC")
    return tree


def _image(root: Path, stem: str, tree: ElementTree.Element) -> Path:
    """Return the image of the same name, or else the one that the annotation names."""
    image = root / "JPEGImages" / f"{stem}.jpg"
    named = (tree.findtext("filename") or "").strip()
    return root / "JPEGImages" / named if named and not image.is_file() else image


def _object(node: ElementTree.Element, where: str) -> AnnotatedObject:
    """Convert one <object>: VOC counts pixels from 1, and its boxes include right and bottom."""
    label = (node.findtext("name") or "").strip()
    if not label:
        raise DatasetError(f"{where} has no <name>; expected a class")
    left, top, right, bottom = (_number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DatasetError(f"{where}: <difficult> is {difficult!r}; expected 0 or 1")
    return AnnotatedObject(label, (left - 1, top - 1, right, bottom), difficult=difficult == "1")


def _number(node: ElementTree.Element, tag: str, where: str) -> float:
    text = node.findtext(tag)
    if text is None:
        raise DatasetError(f"{where} has no <{tag}>; expected a number")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{where}: <{tag}> is {text.strip()!r}; expected a number")
    return value
