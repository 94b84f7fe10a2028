"""How long does ``xai-abn --help`` take, as a share of ``xai-abn explain``?

python benchmarks/speed/startup.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        commands = {"--help": ["--help"], "explain": ["explain", "example:cat", "--output", folder]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, arguments in commands.items():
                start = time.perf_counter()
                run(arguments)
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"xai-abn {name:<10} {value:6.2f} s (median of {repeats})")
    print(f"share              {medians['--help'] / medians['explain']:6.3f} (target: at most 0.1)")


def run(arguments: list[str]) -> None:
    code = "from xai_abn.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
