"""Join faces in folders of identities and CelebA's attributes into what ``attributes:CSV`` reads.

    python -m benchmarks.celeba.prepare --faces DIR --table list_attr_celeba01.csv --output DATA

``--faces`` holds images under their CelebA names, each in a folder named after its person, at any depth: folders of
one name are one person. Writes ``DATA/faces.csv`` (file, split, identity, attributes) and small copies of the
images, the whole 178x218 resized to a square as the released multi-task code does. People, not images, are split:
in the order of a hash of their name, 25 % test, 10 % validation, the rest training. Give ``--attributes all`` for 40.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

from PIL import Image

#: Well populated, and most of them at one place of an aligned face.
ATTRIBUTES = (
    "Bangs",
    "Blond_Hair",
    "Wearing_Hat",
    "Eyeglasses",
    "Big_Nose",
    "Mouth_Slightly_Open",
    "Mustache",
    "Smiling",
    "Wearing_Lipstick",
    "Wearing_Necktie",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--attributes", nargs="+", default=ATTRIBUTES)
    arguments = parser.parse_args()
    faces = sorted(arguments.faces.rglob("*.jpg"), key=lambda path: path.name)
    names = {face.name for face in faces}
    if not faces or len(names) < len(faces):
        raise SystemExit(f"{arguments.faces}: {len(faces)} images of {len(names)} different names")
    with arguments.table.open(newline="") as file:
        rows = {row.pop("image_id"): row for row in csv.DictReader(file)}
    if names - rows.keys():
        raise SystemExit(f"{arguments.table}: says nothing of {len(names - rows.keys())} images")
    split = split_of(sorted({face.parent.name for face in faces}))
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    with (arguments.output / "faces.csv").open("w", newline="") as file:
        known = list(next(iter(rows.values())))
        attributes = known if list(arguments.attributes) == ["all"] else arguments.attributes
        writer = csv.writer(file)
        writer.writerow(["file", "split", "identity", *attributes])
        for face in faces:
            small = f"{face.stem}.png"
            with Image.open(face) as image:
                size = (arguments.size, arguments.size)
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(arguments.output / "images" / small)
            person = face.parent.name
            writer.writerow([small, split[person], person, *(rows[face.name][a] for a in attributes)])
    count = {part: list(split.values()).count(part) for part in ("train", "validation", "test")}
    print(f"{arguments.output / 'faces.csv'}: {len(faces)} images, people {count}")


def split_of(people: list[str]) -> dict[str, str]:
    """Return the split of each person."""
    order = sorted(people, key=lambda person: hashlib.blake2b(person.encode()).digest())
    test, validation = round(0.25 * len(order)), round(0.1 * len(order))
    parts = ["test"] * test + ["validation"] * validation
    return dict(zip(order, parts + ["train"] * (len(order) - len(parts)), strict=True))


if __name__ == "__main__":
    main()
