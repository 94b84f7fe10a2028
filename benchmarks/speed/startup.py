"""How long does ``xai-abn`` take to start? Whole processes, in turns, as multiples of ``import torch``.

python -m benchmarks.speed.startup [--repeats 7]

The package's modules are compiled once before the first measurement, as pip does when it installs a package. Processor
time, user and system, says more than seconds where the machine has other work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks._harness import machine, make_parser

_TORCH = "import torch"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    machine()
    with tempfile.TemporaryDirectory() as folder:
        explain = ["-m", "xai_abn", "explain", "example:cat", "--output", folder, "--method"]
        processes = {
            _TORCH: ["-c", "import torch"],
            "--help": ["-m", "xai_abn", "--help"],
            "list methods": ["-m", "xai_abn", "list", "methods"],
            "explain with abn": [*explain, "abn"],
            "explain with grad-cam": [*explain, "grad-cam"],
        }
        run(processes["list methods"])
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        for _ in range(repeats):
            for name, arguments in processes.items():
                times[name].append(run(arguments))
    seconds, used = ({n: statistics.median(pair[k] for pair in found) for n, found in times.items()} for k in (0, 1))
    print(f"| process | seconds, median of {repeats} | x {_TORCH} | seconds of processor time | x {_TORCH} |")
    print("|---|---|---|---|---|")
    for name in processes:
        shares = seconds[name] / seconds[_TORCH], used[name] / used[_TORCH]
        print(f"| {name} | {seconds[name]:.2f} | {shares[0]:.2f} | {used[name]:.2f} | {shares[1]:.3f} |")


def run(arguments: list[str]) -> tuple[float, float]:
    """Return the seconds that a process takes, and those of processor time."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, used


if __name__ == "__main__":
    main()
