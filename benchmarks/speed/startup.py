"""How long does ``xai-abn`` take to start? Whole processes, as multiples of ``import torch``.

python -m benchmarks.speed.startup [--repeats 7]

The package's modules are compiled once before the first measurement, as pip does when it installs a package.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

from benchmarks._harness import machine, make_parser, time_in_turns

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
        calls = {name: partial(run, arguments) for name, arguments in processes.items()}
        times = time_in_turns(calls, repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"| process | seconds, median of {repeats} | multiples of {_TORCH} |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / medians[_TORCH]:.2f} |")


def run(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    main()
