"""Images whose object's place is known: made by command, with a shortcut that tells the class, and images of dogs.

In made images, something beside the object tells its class in training and not in test. Where the object is, is known,
because it was put there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

#: The classes, with their categories of COCO.
CLASSES = {
    "person": ("person",),
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
}
#: What the shortcut is, with the names of what it can show: that of the object's own class, of the other, or none.
SHORTCUTS = {"decoy": ("own patch", "other patch", "no patch"), "ground": ("own ground", "other ground")}
#: Color of each class's patch, and its side as a share of the image's.
COLORS, PATCH = ((230, 30, 30), (30, 30, 230)), 0.16
#: Least side of an object in its image, in pixels.
LEAST = 40


@dataclass(frozen=True)
class Scenes:
    """Images of one split.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        labels: (N,) class of the object.
        kinds: (N,) index of what the shortcut shows in :data:`SHORTCUTS`.
        objects: (N, H, W) bool, where the object is.
        classes: their names.
    """

    pixels: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    classes: tuple[str, ...] = tuple(CLASSES)


def pasted(
    shortcut: str,
    share: float,
    coco: Path,
    grounds: Sequence[Path],
    sizes: tuple[int, int],
    side: int = 96,
    seed: int = 0,
) -> tuple[Scenes, Scenes]:
    """Return persons and vehicles, cut out along COCO's polygons, on images of two kinds: to train on, and to test.

    With the shortcut ``"ground"``, persons are on the first kind and vehicles on the second in a ``share`` of the
    training images. With ``"decoy"``, grounds tell nothing, and a patch in a corner has the color of the class in a
    ``share`` of them. The test images have every kind in equal numbers. A third of the images that objects are cut
    from, and of the grounds, is for the test images alone.

    Args:
        shortcut: a key of :data:`SHORTCUTS`.
        share: of the training images that show what belongs to their class.
        coco: folder with ``images/`` and ``instances.json``.
        grounds: a folder of images for each class.
        sizes: number of training and of test images.
        side: of the images.
        seed: of everything that is drawn.

    Source of the ideas: Ross et al., IJCAI 2017 (decoys), and Sagawa et al., ICLR 2020 (Waterbirds).
    """
    random = np.random.default_rng(seed)
    things = [list(_cut_outs(coco, names)) for names in CLASSES.values()]
    places = [_grounds(folder) for folder in grounds]
    count = len(SHORTCUTS[shortcut])
    splits = []
    for number, testing in zip(sizes, (False, True), strict=True):
        rows, labels, kinds = [], [], []
        for index in range(number):
            label = index % 2
            kind = (index // 2) % count if testing else int(random.random() >= share)
            ground = label ^ kind if shortcut == "ground" else int(random.integers(2))
            mine = [thing for thing, image in things[label] if (image % 3 == 0) == testing]
            there = [place for i, place in enumerate(places[ground]) if (i % 3 == 0) == testing]
            pixels, thing = _on_ground(
                mine[random.integers(len(mine))], there[random.integers(len(there))], side, random
            )
            if shortcut == "decoy" and kind < 2:
                _add_patch(pixels, thing, COLORS[label ^ kind], random)
            rows.append((pixels, thing))
            labels.append(label)
            kinds.append(kind)
        pixels, objects = (np.stack(part) for part in zip(*rows, strict=True))
        splits.append(Scenes(pixels, np.array(labels), np.array(kinds), objects))
    return splits[0], splits[1]


def dogs(images: Path, boxes: Path, side: int = 96) -> tuple[Scenes, Scenes]:
    """Return images of dogs of 10 breeds, squeezed to squares, with their boxes: to train on, and every third to test.

    Args:
        images: folder with imagewoof2-320; files of ImageNet's validation set are left out.
        boxes: folder with the boxes of Stanford Dogs, ``instances_*.json`` in COCO's format. An image belongs to its
            boxes by the name of its file; images without a box, and those that a box covers by 95 %, are left out.
        side: of the images.
    """
    found: dict[str, tuple[str, int, list[list[float]]]] = {}
    for file in sorted(boxes.glob("instances_*.json")):
        content = json.loads(file.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        things: dict[int, list[dict[str, Any]]] = {}
        for thing in content["annotations"]:
            things.setdefault(thing["image_id"], []).append(thing)
        for image in content["images"]:
            if own := things.get(image["id"]):
                name = names[own[0]["category_id"]]
                found[Path(image["file_name"]).stem] = name, image["width"], [thing["bbox"] for thing in own]
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in sorted(images.rglob("*.JPEG")):
        if "_val_" in path.name or path.stem not in found:
            continue
        name, width, own_boxes = found[path.stem]
        loaded = Image.open(path).convert("RGB")
        mask, scale = np.zeros((side, side), bool), loaded.width / width  # of the file to the original
        for box in own_boxes:
            left, top, right, bottom = (
                scale * value * side / full
                for value, full in zip((box[0], box[1], box[0] + box[2], box[1] + box[3]), loaded.size * 2, strict=True)
            )
            mask[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))] = True
        if mask.mean() < 0.95:
            pixels = np.asarray(loaded.resize((side, side), Image.Resampling.BILINEAR))
            rows.setdefault(name, []).append((pixels, mask))
    classes = tuple(sorted(rows))
    splits = []
    for testing in (False, True):
        chosen = [
            (*row, label)
            for label, name in enumerate(classes)
            for index, row in enumerate(rows[name])
            if (index % 3 == 2) == testing
        ]
        pixels, masks, labels = (np.stack(part) for part in zip(*chosen, strict=True))
        splits.append(Scenes(pixels, labels, np.zeros(len(labels), int), masks, classes))
    return splits[0], splits[1]


def _grounds(folder: Path) -> list[Path]:
    """Return the images of a folder, without those of ImageNet's validation set."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    return [path for path in files if "_val_" not in path.name]


def _cut_outs(coco: Path, names: Sequence[str]) -> Iterator[tuple[Image.Image, int]]:
    """Yield each large object as RGBA, with the number of its image."""
    found = json.loads((coco / "instances.json").read_text())
    wanted = {category["id"] for category in found["categories"] if category["name"] in names}
    files = {image["id"]: image["file_name"] for image in found["images"]}
    numbers = {image: number for number, image in enumerate(sorted(files))}
    for thing in found["annotations"]:
        outlines = thing.get("segmentation")
        left, top, width, height = thing["bbox"]
        usable = isinstance(outlines, list) and outlines and not thing.get("iscrowd")
        if thing["category_id"] not in wanted or not usable or min(width, height) < LEAST:
            continue
        image = Image.open(coco / "images" / files[thing["image_id"]]).convert("RGB")
        alpha = Image.new("L", image.size)
        for outline in outlines:
            ImageDraw.Draw(alpha).polygon(outline, fill=255)
        image.putalpha(alpha)
        yield (
            image.crop((int(left), int(top), int(left + width) + 1, int(top + height) + 1)),
            numbers[thing["image_id"]],
        )


def _on_ground(
    thing: Image.Image, place: Path, side: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an object of half the side at a random place of an image, and where it is."""
    image = Image.open(place).convert("RGB")
    edge = min(image.size)
    left, top = (int(random.integers(full - edge + 1)) for full in image.size)
    scene = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BILINEAR)
    scale = side * random.uniform(0.45, 0.65) / max(thing.size)
    small = thing.resize((max(2, round(thing.width * scale)), max(2, round(thing.height * scale))))
    if random.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = int(random.integers(side - small.width + 1)), int(random.integers(side - small.height + 1))
    scene.paste(small, (x, y), small)
    mask = np.zeros((side, side), bool)
    mask[y : y + small.height, x : x + small.width] = np.asarray(small)[..., 3] > 127
    mask[y + small.height // 2, x + small.width // 2] = True  # of a thin object, at least its center
    return np.array(scene), mask


def _add_patch(pixels: np.ndarray, thing: np.ndarray, color: tuple[int, int, int], random: np.random.Generator) -> None:
    """Paint a patch into the corner where it hides least of the object, of three that are drawn."""
    size = round(PATCH * len(pixels))
    corners = [
        (slice(None, size) if c & 1 else slice(-size, None), slice(None, size) if c & 2 else slice(-size, None))
        for c in range(4)
    ]
    rows, columns = min((corners[i] for i in random.permutation(4)[:3]), key=lambda corner: thing[corner].sum())
    pixels[rows, columns] = color
    thing[rows, columns] = False
