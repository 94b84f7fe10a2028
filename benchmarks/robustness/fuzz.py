"""Mutated images, checkpoints and annotations: read, or refused with an error of the package, and nothing else.

    python -m benchmarks.robustness.fuzz [--images N] [--checkpoints N] [--annotations N] [--seed S]

Every file is made by a seeded mutation of a good one: bytes flipped, cut, inserted or repeated, header fields set to
extremes, values of JSON, XML and CSV replaced. A file counts as a fault if reading it raises anything but an
``XaiAbnError``, takes more than 5 s, or more than 1 GiB beyond what the process had, or ends the process.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._harness import machine, make_parser
from xai_abn.datasets import read_dataset
from xai_abn.errors import XaiAbnError
from xai_abn.images.loading import load_image
from xai_abn.models.zoo import load_model

SECONDS, KILOBYTES = 5.0, 2**20
#: What a process puts in front of an outcome; libraries print, too.
MARK = "outcome: "
ROOT = Path(__file__).parents[2]
#: Files that one process reads before the next one begins.
CHUNK = 250
FORMATS = {
    "jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "webp": {"format": "WEBP"},
    "tif": {"format": "TIFF"},
    "deflate.tif": {"format": "TIFF", "compression": "tiff_deflate"},
    "ppm": {"format": "PPM"},
    "jp2": {"format": "JPEG2000"},
}
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F")
ODD: list[Any] = [None, "", "x", -1, 0, 1.5, 1e30, 2**63, 10**30, True, [], {}, [[]], "9" * 5000, "\x00", "../../etc"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=1_000)
    parser.add_argument("--annotations", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, *numbers = arguments.one
        tries(kind, *map(int, numbers))
        return
    machine()
    print("| files | number | read | refused | faults |\n|---|---|---|---|---|")
    faults: list[str] = []
    for kind in KINDS:
        number = getattr(arguments, kind)
        counts: Counter[str] = Counter()
        for start in range(0, number, CHUNK):
            for outcome in in_process(kind, arguments.seed, start, min(start + CHUNK, number)):
                counts[outcome if outcome in ("read", "refused") else "faults"] += 1
                faults += [f"{kind}: {outcome}"] if outcome not in ("read", "refused") else []
        print(f"| {kind} | {number} | {counts['read']} | {counts['refused']} | {counts['faults']} |", flush=True)
    print("\n".join(faults))


def in_process(kind: str, seed: int, start: int, stop: int) -> list[str]:
    """Return what became of each file, tried in a process of its own; the rest is a fault if the process dies."""
    command = [sys.executable, "-m", "benchmarks.robustness.fuzz", "--one", kind, str(seed), str(start), str(stop)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    outcomes = [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if len(outcomes) < stop - start:
        outcomes.append(f"the process ended at file {start + len(outcomes)} of seed {seed}")
    return outcomes


def tries(kind: str, seed: int, start: int, stop: int) -> None:
    """Make and read the files from one number to another, and print what became of each."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(start, stop):
            read = KINDS[kind](random.Random(f"{seed}/{number}"), Path(folder) / str(number))
            print(MARK + json.dumps(one_try(read, number)), flush=True)


def one_try(read: Callable[[], object], number: int) -> str:
    """Read one file and return ``"read"``, ``"refused"``, or the fault."""

    def stop(*_: object) -> None:
        raise TimeoutError("over a minute")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = "read"
    try:
        read()
    except XaiAbnError:
        outcome = "refused"
    except BaseException as error:  # whatever else is what is looked for
        outcome = f"file {number}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    seconds = time.process_time() - started
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if seconds > SECONDS or kilobytes > KILOBYTES:
        return f"file {number}: {seconds:.1f} s, {kilobytes / 1024:.0f} MiB"
    return outcome


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some of them flipped, cut, repeated, inserted or set to extremes, mostly near the start."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(len(data), 512) if draw.random() < 0.6 else len(data)) if data else 0
        match draw.randrange(6):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
            case 3:
                del data[at : at + draw.randrange(1, 64)]
            case 4:
                data[at:at] = draw.randbytes(draw.randrange(1, 64))
            case _:
                data += data[at : at + draw.randrange(1, 4096)]
    return bytes(data)


def an_image(draw: random.Random, path: Path) -> Callable[[], object]:
    ending = draw.choice(list(FORMATS))
    generator = np.random.default_rng(draw.randrange(2**32))
    mode = draw.choice(MODES)
    image = Image.fromarray(generator.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    try:
        (image.convert("L") if mode in ("I;16", "F") else image).convert(mode).save(buffer, **FORMATS[ending])  # type: ignore[arg-type]
    except (OSError, ValueError):  # the format has no such mode
        buffer = io.BytesIO()
        image.save(buffer, **FORMATS[ending])  # type: ignore[arg-type]
    file = path.with_suffix(f".{ending}")
    file.write_bytes(mutated(buffer.getvalue(), draw))
    return lambda: load_image(file)


def odd_value(value: Any, draw: random.Random) -> Any:
    """Return a value of JSON with one of its parts replaced, left out or repeated."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: odd_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        if draw.random() < 0.15:
            return [*value, *value]
        return [*value[:at], odd_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def a_checkpoint(draw: random.Random, path: Path) -> Callable[[], object]:
    """Change the description or the bytes of a shipped checkpoint."""
    import xai_abn

    good = (Path(xai_abn.__file__).parent / "weights" / "abn_cifar100.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    file = path.with_suffix(".safetensors")
    if draw.random() < 0.8:
        config = json.loads(header["__metadata__"]["config"])
        if draw.random() < 0.9:
            header["__metadata__"]["config"] = json.dumps(odd_value(config, draw))
        else:
            metadata = odd_value(header["__metadata__"], draw)
            header["__metadata__"] = (
                {k: str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else metadata
            )
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
    else:
        file.write_bytes(mutated(good[: 8 + length], draw) + good[8 + length :])
    return lambda: load_model(file)


def an_annotation(draw: random.Random, path: Path) -> Callable[[], object]:
    """Change a COCO file, a VOC annotation, a table of attributes or a list of boxes."""
    path.mkdir()
    (path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(path / "images" / "a.jpg")
    kind = draw.choice(("coco", "coco", "voc", "attributes", "imagenet-boxes"))
    if kind == "coco":
        document = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "iscrowd": 0, "segmentation": s}
                for s in ([[1, 2, 11, 2, 11, 14]], {"size": [30, 40], "counts": [600, 600]})
            ],
        }
        text = json.dumps(odd_value(document, draw))
        place = path / "instances.json"
        place.write_bytes(mutated(text.encode(), draw) if draw.random() < 0.3 else text.encode())
        place = path
    elif kind == "voc":
        (path / "Annotations").mkdir()
        values = [str(draw.choice(ODD))[:100] if draw.random() < 0.2 else str(v) for v in (40, 30, 1, 2, 30, 20, 0)]
        text = (
            "<annotation><filename>a.jpg</filename><size><width>{}</width><height>{}</height></size><object>"
            "<name>cat</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
            "<difficult>{}</difficult></object></annotation>"
        ).format(*values)
        content = text.encode("utf-8", "replace")
        (path / "Annotations" / "a.xml").write_bytes(mutated(content, draw) if draw.random() < 0.5 else content)
        place = path
    else:
        text = "file,Smiling,Young,split\na.jpg,1,0,train\n"
        if kind == "imagenet-boxes":
            text = "file,wnid,boxes\na.jpg,n02123045,1 2 9 9\n"
        place = path / "list.csv"
        place.write_bytes(mutated(text.encode(), draw))

    def read() -> None:
        data = read_dataset(f"{kind}:{place}")
        for sample in data.samples:
            image = sample.load().image
            sample.check((image.height, image.width))
            sample.on_grid((image.height, image.width), (0, 0, image.width, image.height), (7, 7))

    return read


KINDS: dict[str, Callable[[random.Random, Path], Callable[[], object]]] = {
    "images": an_image,
    "checkpoints": a_checkpoint,
    "annotations": an_annotation,
}

if __name__ == "__main__":
    main()
