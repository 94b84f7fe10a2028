"""How long does ``xai-abn --help`` take, as a share of ``xai-abn explain``?

python -m benchmarks.speed.startup [--repeats 7]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

from benchmarks._harness import machine, make_parser, time_in_turns


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    machine()
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "--help": lambda: run(["--help"]),
            "explain": lambda: run(["explain", "example:cat", "--output", folder]),
        }
        times = time_in_turns(commands, repeats, warm_up=0)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"xai-abn {name:<10} {value:6.2f} s (median of {repeats})")
    print(f"share              {medians['--help'] / medians['explain']:6.3f} (target: at most 0.1)")


def run(arguments: list[str]) -> None:
    code = "from xai_abn.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
