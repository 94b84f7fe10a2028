"""Images with boxes in Pascal VOC's format."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from xai_abn.datasets.imagenet_classes import own_wnids, wnids_of
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, Sample
from xai_abn.errors import DatasetError
from xai_abn.images.loading import EXTENSIONS

#: What tools write into <difficult>.
_DIFFICULT = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True, "unspecified": False}
#: Lists under ImageSets/Main, of which the first that exists is read.
SPLITS = {"test": "test.txt", "validation": "val.txt"}


#: Folders of images, one of them beside ``Annotations``.
FOLDERS = ("JPEGImages", "Images", "images", "JPEGImage", "Data")


@READERS.register("voc")
def read_voc(place: str, images: Path | None = None) -> Dataset:
    """Read images with boxes in Pascal VOC's format: a year of a VOCdevkit, or a folder of such files.

    Args:
        place: a folder with ``Annotations/*.xml`` and ``JPEGImages/`` (or ``images/``), or with XML files and images
            side by side. If ``ImageSets/Main/test.txt`` exists, the images it lists are read, else those of ``val.txt``
            there, else every annotated one.
        images: folder of the images, if it is another.

    Returns:
        The images, also those without objects. Images that are listed but absent or not annotated are among the
        problems. An image is that with the name of the XML file, whatever its ending; or else the one that the file
        names, unless that is the image of another XML file. Of several endings, the file's own name decides.

    Raises:
        DatasetError: nothing is there, or a file is damaged or incomplete.
    """
    root = Path(place)
    annotations = root / "Annotations" if (root / "Annotations").is_dir() else root
    if not root.is_dir() or not any(annotations.glob("*.xml")):
        raise DatasetError(
            f"{annotations}: {'no XML files in it' if root.is_dir() else 'no such folder'}; give a year of a "
            "VOCdevkit, such as VOCdevkit/VOC2012, or a folder of XML files"
        )
    folder = images or next((root / name for name in FOLDERS if (root / name).is_dir()), annotations)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of images")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS:
            files.setdefault(path.stem, []).append(path)
    samples, problems = [], []
    part, stems = _listed(root, annotations)
    for stem in stems:
        file = annotations / f"{stem}.xml"
        if not file.is_file():
            problems.append((str(file), "no such file"))
            continue
        try:
            tree = _parse(file)
            objects = tuple(_object(node, f"{file}: object {i}") for i, node in enumerate(tree.findall("object"), 1))
        except DatasetError as error:
            problems.append((str(file), error.line))
            continue
        named = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
        other = Path(named).stem if Path(named).suffix.lower() in EXTENSIONS else named
        images_of = files.get(stem) or ([] if (annotations / f"{other}.xml").is_file() else files.get(other, []))
        chosen = [image for image in images_of if len(images_of) == 1 or image.name == named]
        if chosen:
            samples.append(Sample(str(chosen[0]), objects, size=_size(tree)))
        elif images_of:
            several = " and ".join(image.name for image in images_of)
            problems.append((str(file), f"{several} are in {folder}, and its <filename> is {named!r}, neither of them"))
        else:
            problems.append((str(file), f"no image called {stem} in {folder}, and none of its own called {named!r}"))
    names = tuple(sorted({thing.label for sample in samples for thing in sample.objects}))
    wnids = {name: wnids_of(name) for name in names if wnids_of(name)} | own_wnids(names)
    return Dataset("voc", {part: samples}, names, wnids, tuple(problems))


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Return the size of the image that the annotation records, (H, W); tools without one write 0 or nothing."""
    try:
        height, width = (round(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height and width else None


def _listed(root: Path, annotations: Path) -> tuple[str, list[str]]:
    """Return the split that is read, and the names of its images, without ending."""
    for part, name in SPLITS.items():
        file = root / "ImageSets" / "Main" / name
        if file.is_file():
            lines = [line.split() for line in _text(file, "names of images, one a line").splitlines()]
            return part, list(dict.fromkeys(words[0] for words in lines if words))
    return "train", sorted(file.stem for file in annotations.glob("*.xml") if not file.name.startswith("."))


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


def _object(node: ElementTree.Element, where: str) -> AnnotatedObject:
    """Convert one <object>: VOC counts pixels from 1, and its boxes include right and bottom."""
    label = (node.findtext("name") or "").strip()
    if not label:
        raise DatasetError(f"{where} has no <name>; expected a class")
    left, top, right, bottom = (_number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (node.findtext("difficult") or "0").strip().lower()
    if difficult not in _DIFFICULT:
        raise DatasetError(f"{where}: <difficult> is {difficult!r}; expected 0 or 1")
    return AnnotatedObject(label, (left - 1, top - 1, right, bottom), difficult=_DIFFICULT[difficult])


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
