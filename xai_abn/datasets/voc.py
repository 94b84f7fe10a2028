"""Photos with boxes in Pascal VOC's format."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from xai_abn.datasets.annotated import AnnotatedData, AnnotatedImage, AnnotatedObject, datasets
from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.errors import DatasetError

#: Lists of photos under ImageSets/Main, the first that exists is taken.
SPLITS = ("test.txt", "val.txt")


@datasets.register("voc")
def read_voc(path: str) -> AnnotatedData:
    """Read a year of a VOCdevkit.

    Args:
        path: a folder with ``Annotations/*.xml`` and ``JPEGImages/``. If ``ImageSets/Main/test.txt`` exists, the
            photos it lists are read, else those of ``val.txt`` there, else every annotated one.

    Returns:
        The photos that have objects. Photos that are listed but absent, not annotated or without object are
        among the problems.

    Raises:
        DatasetError: nothing there, or a file is damaged or lacks something.
    """
    root = Path(path)
    for folder in ("Annotations", "JPEGImages"):
        if not (root / folder).is_dir():
            raise DatasetError(
                f"{root / folder}: no such folder; give a year of a VOCdevkit, such as VOCdevkit/VOC2012"
            )
    images, problems = [], []
    for stem in _stems(root):
        file = root / "Annotations" / f"{stem}.xml"
        if not file.is_file():
            problems.append((str(file), "no such file"))
            continue
        tree = _parse(file)
        photo = _photo(root, stem, tree)
        objects = tuple(_object(node, f"{file}: object {i}") for i, node in enumerate(tree.findall("object"), 1))
        if not photo.is_file():
            problems.append((str(photo), "no such file"))
        elif not objects:
            problems.append((str(photo), "no annotated object"))
        else:
            images.append(AnnotatedImage(str(photo), objects))
    names = tuple(sorted({thing.label for image in images for thing in image.objects}))
    wnids = {name: wnids_of(name) for name in names if wnids_of(name)}
    return AnnotatedData("voc", tuple(images), names, wnids, tuple(problems))


def _stems(root: Path) -> list[str]:
    """Return the names of the photos, without ending, in the order of the list or of the alphabet."""
    for split in SPLITS:
        file = root / "ImageSets" / "Main" / split
        if file.is_file():
            lines = [line.split() for line in _text(file, "names of photos, one a line").splitlines()]
            return list(dict.fromkeys(words[0] for words in lines if words))
    return sorted(file.stem for file in (root / "Annotations").glob("*.xml"))


def _text(file: Path, expected: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: cannot be read as UTF-8 text ({error}); expected {expected}") from error


def _parse(file: Path) -> ElementTree.Element:
    """Parse one annotation, refusing the document types and entities that can blow up a parser."""
    text = _text(file, "a VOC annotation")
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise DatasetError(f"{file}: has a document type or entities, which no VOC annotation needs; remove them")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{file}: damaged XML ({error}); expected a VOC annotation") from error
    if tree.tag != "annotation":
        raise DatasetError(f"{file}: starts with <{tree.tag}>; expected <annotation>, as in VOC")
    return tree


def _photo(root: Path, stem: str, tree: ElementTree.Element) -> Path:
    """Return the photo of the same name; failing that, the one that the annotation names."""
    photo = root / "JPEGImages" / f"{stem}.jpg"
    named = (tree.findtext("filename") or "").strip()
    return root / "JPEGImages" / named if named and not photo.is_file() else photo


def _object(node: ElementTree.Element, where: str) -> AnnotatedObject:
    """Turn one <object> into an object: VOC counts pixels from 1, and its right and bottom belong to the box."""
    label = (node.findtext("name") or "").strip()
    if not label:
        raise DatasetError(f"{where} has no <name>; expected its class")
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
