"""Divide the images of COCO and ImageNet into a part for development and a part that is set aside, by their names.

    python -m benchmarks.class_masks.split DATA OUTPUT

DATA holds ``coco_multi/`` (``images/``, ``instances.json``) and ``imagenet_val/`` (``images/``, ``boxes.csv``). OUTPUT
gets the annotations of both parts. An image is set aside if the SHA-256 of its name is divisible by 4.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

PARTS = ("development", "set-aside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    coco = json.loads((arguments.data / "coco_multi/instances.json").read_text())
    with (arguments.data / "imagenet_val/boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for part in PARTS:
        folder = arguments.output / part
        folder.mkdir(parents=True, exist_ok=True)
        images = [image for image in coco["images"] if part_of(image["file_name"]) == part]
        known = {image["id"] for image in images}
        annotations = [each for each in coco["annotations"] if each["image_id"] in known]
        chosen = {**coco, "images": images, "annotations": annotations}
        (folder / "instances.json").write_text(json.dumps(chosen))
        boxes = [row for row in rows if part_of(row["file"]) == part]
        with (folder / "boxes.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(boxes)
        print(f"{part}: {len(images)} images of COCO, {len(boxes)} of ImageNet")


def part_of(name: str) -> str:
    """Return the part of an image of that name."""
    return PARTS[int(hashlib.sha256(name.encode()).hexdigest(), 16) % 4 == 0]


if __name__ == "__main__":
    main()
