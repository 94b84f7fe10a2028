"""Print the tables of the README from the results.

python -m benchmarks.corrections.report --results benchmarks/corrections/results.jsonl
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._harness import make_parser

Row = dict[str, Any]
#: Titles and names of the values that a table shows as percent, and of those that it shows as they are.
SHARES = {"worst group": "worst", "all groups": "mean", "as in training": "own", "changed": "changed"}
VALUES = {"energy": "energy grad-cam", "IoU": "IoU grad-cam", "polarity": "polarity grad-cam"}


def name_of(row: Row) -> str:
    """Return what was trained, in words."""
    network = {"plain": "plain", "abn": "ABN"}[row["network"]]
    loss = {None: "untouched", "none": "no masks"}.get(row["loss"], row["loss"])
    return f"{network}, {loss}" + (f" on {row['on']}" if row["on"] else "")


def same(row: Row) -> tuple[Any, ...]:
    """Return what a row shares with its control: the same network trained on the same images without masks."""
    return tuple(row[name] for name in ("data", "seed", "network", "number", "choice"))


def tables(rows: list[Row]) -> Iterator[str]:
    """Yield lines of Markdown: a table for each data set, number and choice, with a row for each way of training."""
    controls = {same(row): row for row in rows if row["loss"] == "none"}
    grouped: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["data"], row["number"], row["choice"]][name_of(row)].append(row)
    for (data, number, choice), ways in grouped.items():
        chosen = f"{number} corrections, {'at random' if choice == 'random' else 'by the queue'}"
        yield f"\n{data}, {chosen if number else 'no corrections'}:\n"
        titles = ["trained", "seeds", *SHARES, *VALUES, "worst group, gain by seed", "as in training, gain"]
        yield "| " + " | ".join(titles) + " |"
        yield "|---" * len(titles) + "|"
        for way, found in ways.items():
            shares = [f"{100 * statistics.mean(row[key] for row in found):.1f}" for key in SHARES.values()]
            values = [f"{statistics.mean(row[key] for row in found):.2f}" for key in VALUES.values()]
            known = [row for row in found if row["loss"] not in (None, "none") and same(row) in controls]
            gains = [
                ", ".join(f"{100 * (row[key] - controls[same(row)][key]):+.1f}" for row in known)
                for key in ("worst", "own")
            ]
            yield "| " + " | ".join([way, str(len(found)), *shares, *values, *gains]) + " |"


def main() -> None:
    """Print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True)
    rows = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
