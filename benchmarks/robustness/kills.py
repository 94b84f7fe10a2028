"""A benchmark and a training run killed at random moments end as if nobody had killed them.

    python -m benchmarks.robustness.kills [--benchmark N] [--training N] [--seed S]

Each run is made once whole, then again with SIGKILL after a random time, resumed, and killed again until it ends. The
values of the benchmark and the weights of the training run are compared, bit by bit.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from benchmarks._harness import machine, make_parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--benchmark", type=int, default=20, help="kills of a benchmark")
    parser.add_argument("--training", type=int, default=10, help="kills of a training run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        data = f"images:{folder / 'images'}"
        measure = ["benchmark", "run", "--data", data, "--model", "abn-cifar100", "--method", "abn,center"]
        measure += ["--metric", "deletion,insertion", "--batch-size", "1"]
        train = ["train", "--data", data, "--arch", "resnet20", "--mechanism", "residual", "--epochs", "4"]
        train += ["--batch-size", "8", "--size", "32", "--workers", "0", "--quiet", "--save-minutes", "0"]
        draw = random.Random(arguments.seed)
        for kind, command, kills in (
            ("benchmark", measure, arguments.benchmark),
            ("training", train, arguments.training),
        ):
            if kills:
                print(f"{kind}: {killed(kind, command, kills, folder, draw)}", flush=True)


def make_images(folder: Path) -> None:
    """Write twelve noisy images of each of two classes for training, and two for testing."""
    for part, number in (("train", 12), ("test", 2)):
        for seed, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = np.random.default_rng([seed, index]).integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")


def killed(kind: str, command: list[str], kills: int, folder: Path, draw: random.Random) -> str:
    """Return how the killed runs ended, compared with a whole one."""
    suffix = ".sqlite" if kind == "benchmark" else ""
    whole = folder / f"{kind}-whole{suffix}"
    started = time.monotonic()
    start(command, whole).wait()
    seconds = time.monotonic() - started
    right, differing, done, runs = contents(kind, whole), 0, 0, 0
    while done < kills:
        output = folder / f"{kind}-{runs}{suffix}"
        for _ in range(min(3, kills - done)):
            process = start(command, output)
            try:
                process.wait(draw.uniform(0.2, 0.9) * seconds)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
        if start(command, output).wait():
            return f"a run killed {done} times cannot be resumed"
        differing += contents(kind, output) != right
        runs += 1
    return f"{done} kills in {runs} runs, {differing} runs differ from the whole one ({seconds:.0f} s)"


def start(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if command[0] == "train" and (output / "state.safetensors").exists() else []
    if command[0] == "train" and output.exists() and not resume:
        resume = ["--overwrite"]
    full = command if not resume or resume == ["--overwrite"] else ["train"]
    line = [sys.executable, "-m", "xai_abn", *full, "--output", str(output), *resume]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contents(kind: str, output: Path) -> object:
    """Return what a run holds, without times."""
    if kind == "training":
        parts = [load_file(output / name) for name in ("best.safetensors", "final.safetensors")]
        return [{name: tensor.numpy().tobytes() for name, tensor in part.items()} for part in parts]
    with sqlite3.connect(output) as store:
        values = store.execute("SELECT key, value, curve FROM results ORDER BY key").fetchall()
        return values, store.execute("SELECT key, map FROM maps ORDER BY key").fetchall()


if __name__ == "__main__":
    main()
