"""A report over a run of a million values: seconds and memory.

    python -m benchmarks.robustness.million [--copies N]

A small network is measured on ten images with ten methods and ten metrics. The rows of the run are then copied, with
noise on the values, as if there were as many more images, and `xai-abn benchmark report` is run on it.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._harness import machine, make_parser

IMAGES = 10
METHODS = "grad-cam,hires-cam,layer-cam,eigen-cam,xgrad-cam,cam,center,uniform,random-7,sobel"
METRICS = (
    "gini,entropy,deletion,insertion,average-drop,increase-in-confidence,deletion:rise-2018,"
    "insertion:rise-2018,average-drop:undivided,road"
)
TABLES = {  # columns that hold the key of a row or of its image, and so differ between copies
    "images": ("image", "source"),
    "maps": ("key", "image"),
    "results": ("key", "image", "measurement"),
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--copies", type=int, default=1000)
    arguments = parser.parse_args()
    machine()
    with tempfile.TemporaryDirectory() as folder:
        run = measured(Path(folder))
        multiply(run, arguments.copies)
        values = sqlite3.connect(run).execute("SELECT COUNT(*) FROM results").fetchone()[0]
        started = time.perf_counter()
        command = [sys.executable, "-m", "xai_abn", "benchmark", "report", str(run), "--output", str(run.parent / "r")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the report ended with {status}")
        seconds, page = time.perf_counter() - started, (run.parent / "r/report.html").stat().st_size
        print(
            f"{values:,} values, {run.stat().st_size / 2**20:.0f} MiB: report in {seconds:.1f} s, at most "
            f"{used.ru_maxrss / 2**10:.0f} MiB, a page of {page / 2**20:.1f} MiB"
        )


def measured(folder: Path) -> Path:
    """Return a run on random images, made by the command itself."""
    (folder / "images/one").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/one/{number}.png")
    command = [sys.executable, "-m", "xai_abn", "benchmark", "run", "--data", f"images:{folder / 'images'}"]
    command += ["--model", "torchvision:resnet18", "--weights", "random", "--size", "96"]
    command += ["--method", METHODS, "--metric", METRICS, "--output", str(folder / "run.sqlite")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "run.sqlite"


def multiply(run: Path, copies: int) -> None:
    """Copy all rows of a run, each copy as of other images and with other values."""
    with sqlite3.connect(run) as connection:
        draw = np.random.default_rng(0)
        connection.create_function("noisy", 1, lambda v: None if v is None else v + draw.normal(0, 0.05))
        for table, keys in TABLES.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            chosen = [f"{c} || '-' || n" if c in keys else "noisy(value)" if c == "value" else c for c in columns]
            connection.execute(
                f"WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < {copies - 1}) "
                f"INSERT INTO {table} SELECT {', '.join(chosen)} FROM {table}, counter"
            )


if __name__ == "__main__":
    main()
