"""Kill a benchmark with SIGKILL, finish it, and compare every value with an uninterrupted run.

    python -m benchmarks.engine.killed --data imagenet-boxes:CSV --whole whole.sqlite --killed killed.sqlite

Makes or completes the uninterrupted run first: 6 methods, 4 metrics, lite0, bf16.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._harness import machine, make_parser
from xai_abn.benchmark import Store

METHODS = "cam,grad-cam,center,random-7,random-14,sobel"
METRICS = "deletion,insertion,pointing-game,energy-pointing-game"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--whole", required=True, type=Path)
    parser.add_argument("--killed", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1_000_000, help="number of images")
    arguments = parser.parse_args()
    machine()
    subprocess.run(command(arguments.data, arguments.whole, arguments.limit), check=True)
    with Store.read(arguments.whole) as store:
        images = store.count("images")
    for share in (kill / (arguments.kills + 1) for kill in range(1, arguments.kills + 1)):
        process = subprocess.Popen(command(arguments.data, arguments.killed, arguments.limit))
        while measured(arguments.killed) < share * images:
            if process.poll() is not None:
                sys.exit("the run ended before it could be killed")
            time.sleep(0.37)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed with {measured(arguments.killed)} of {images} images in the file", flush=True)
    subprocess.run(command(arguments.data, arguments.killed, arguments.limit), check=True)
    compare(arguments.whole, arguments.killed)


def command(data: str, output: Path, limit: int) -> list[str]:
    options = [
        "--data",
        data,
        "--limit",
        str(limit),
        "--model",
        "lite0",
        "--bf16",
        "--method",
        METHODS,
        "--metric",
        METRICS,
    ]
    return [sys.executable, "-m", "xai_abn.cli", "benchmark", "run", *options, "--output", str(output)]


def measured(path: Path) -> int:
    try:
        with Store.read(path) as store:
            return store.count("images")
    except Exception as error:  # the file is not there yet
        if isinstance(error.__cause__, sqlite3.Error) or not path.exists():
            return 0
        raise


def compare(whole: Path, killed: Path) -> None:
    """Print how many values there are, how many differ, and by how much at most."""
    wanted = {m if ":" in m else m.split(":")[0] for m in METRICS.split(",")}
    tables = []
    for path in (whole, killed):
        with Store.read(path) as store:
            rows = [r for r in store.results() if r.metric.split(":")[0] in wanted and r.method in METHODS.split(",")]
            tables.append({(r.image, r.method, r.trial, r.metric): (r.value, r.flaw) for r in rows})
    first, second = tables
    pairs = [(first[k], second[k]) for k in first.keys() & second.keys()]
    gaps = [abs(a[0] - b[0]) for a, b in pairs if a[0] is not None and b[0] is not None]
    print(f"{len(first)} values in the whole run, {len(second)} in the killed one, {len(pairs)} in common")
    print(f"{sum(a != b for a, b in pairs)} differ; largest difference {max(gaps):.2g}")


if __name__ == "__main__":
    main()
