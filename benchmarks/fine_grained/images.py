"""The two data sets of the fine-grained benchmark, and cars pasted on other images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor

#: Height and width of all images; proportions are not kept.
SIZE = 160
#: Side of a pasted car as a share of the image's side, and the most of it that another car may hide.
SIDES = (0.36, 0.5)


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        files: N of them.
        labels: (N,) class of each.
    """

    files: list[Path]
    labels: Tensor


@dataclass(frozen=True)
class Pasted:
    """Images with two cars of different classes each.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        labels: (N, 2) classes of the cars.
        boxes: (N, 2, 4) left, top, right, bottom in pixels.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor


def grocery(folder: Path) -> dict[str, Split]:
    """Return the official splits of the Grocery Store data set, by its fine classes.

    Args:
        folder: ``dataset/`` of marcusklasson/GroceryStoreDataset.
    """
    splits = {}
    for name in ("train", "val", "test"):
        rows = [line.split(",") for line in (folder / f"{name}.txt").read_text().splitlines()]
        splits[name] = Split([folder / row[0] for row in rows], torch.tensor([int(row[1]) for row in rows]))
    return splits


def cars(folder: Path, labels: Path, classes: int) -> dict[str, Split]:
    """Return the first classes of Stanford Cars, of whose 42 images each 24 train, 6 choose and 12 test, by number.

    Args:
        folder: images, cut to the boxes of the cars.
        labels: ``cars_train_annos.mat`` of the devkit.
        classes: how many.
    """
    found: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    seen = [0] * classes
    parts = ["train"] * 4 + ["val"] + ["test"] * 2
    for row in loadmat(labels, squeeze_me=True)["annotations"]:
        label = int(row["class"]) - 1
        if label < classes:
            found[parts[seen[label] % len(parts)]].append((folder / str(row["fname"]), label))
            seen[label] += 1
    return {
        name: Split([file for file, _ in rows], torch.tensor([label for _, label in rows]))
        for name, rows in found.items()
    }


def pixels_of(files: list[Path]) -> Iterator[Tensor]:
    """Yield images (3, H, W) uint8."""
    for file in files:
        image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        yield torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pasted(split: Split, grounds: Path, number: int, seed: int = 0) -> Pasted:
    """Return images with two cars of different classes at random places and scales, which do not overlap.

    Args:
        split: images of cars.
        grounds: folder of images without cars, searched recursively.
        number: of images.
        seed: of everything that is drawn.
    """
    random = np.random.default_rng(seed)
    places = sorted(grounds.rglob("*.jpg"))
    scenes, labels, boxes = [], [], []
    for _ in range(number):
        scene = next(pixels_of([places[random.integers(len(places))]])).clone()
        first = int(random.integers(len(split.files)))
        others = (split.labels != split.labels[first]).nonzero().flatten()
        pair = [first, int(others[random.integers(len(others))])]
        corners = two_squares(random)
        for index, (left, top, right, bottom) in zip(pair, corners, strict=True):
            car = Image.open(split.files[index]).convert("RGB").resize((right - left, bottom - top))
            scene[:, top:bottom, left:right] = torch.from_numpy(np.array(car)).permute(2, 0, 1)
        scenes.append(scene)
        labels.append([int(split.labels[index]) for index in pair])
        boxes.append(corners)
    return Pasted(torch.stack(scenes), torch.tensor(labels), torch.tensor(boxes))


def two_squares(random: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Return two boxes that do not overlap."""
    while True:
        sides = [round(SIZE * random.uniform(*SIDES)) for _ in range(2)]
        (a, b), (c, d) = (random.integers(SIZE - side + 1, size=2).tolist() for side in sides)
        if (
            abs((a + sides[0] / 2) - (c + sides[1] / 2)) >= sum(sides) / 2
            or abs((b + sides[0] / 2) - (d + sides[1] / 2)) >= sum(sides) / 2
        ):
            return [(a, b, a + sides[0], b + sides[0]), (c, d, c + sides[1], d + sides[1])]
