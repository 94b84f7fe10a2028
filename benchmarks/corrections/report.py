"""Print all results as tables, or those of ground.py as one.

python -m benchmarks.corrections.report --results results.jsonl > tables.md
python -m benchmarks.corrections.report --results ground.jsonl
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
#: How images were chosen, in words.
CHOICES = {
    "random": "at random",
    "queue": "by the queue",
    "wrong": "the least right first",
    "outside": "most of the map outside first",
    "diverse": "far from each other",
    "misled": "misled by the shortcut first",
}


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
    places = [None, *CHOICES]
    for data, number, choice in sorted(grouped, key=lambda key: (key[0], key[1], places.index(key[2]))):
        ways = grouped[data, number, choice]
        chosen = f"{number} corrections, {CHOICES.get(choice, '')}"
        yield f"\n{data}, {chosen if number else 'no corrections'}:\n"
        titles = ["trained", "seeds", *SHARES, *VALUES, "worst group, gain by seed", "as in training, gain"]
        yield "| " + " | ".join(titles) + " |"
        yield "|---" * len(titles) + "|"
        for way, found in ways.items():
            shares = [f"{100 * statistics.mean(row[key] for row in found):.1f}" for key in SHARES.values()]
            values = [f"{statistics.mean(row[key] for row in found):.2f}" for key in VALUES.values()]
            found = sorted(found, key=lambda row: row["seed"])
            known = [row for row in found if row["loss"] not in (None, "none") and same(row) in controls]
            gains = [
                ", ".join(f"{100 * (row[key] - controls[same(row)][key]):+.1f}" for row in known)
                for key in ("worst", "own")
            ]
            yield "| " + " | ".join([way, str(len(found)), *shares, *values, *gains]) + " |"


def measurements(rows: list[Row]) -> Iterator[str]:
    """Yield lines of Markdown: what ``ground.py`` measured, as means over seeds, and each seed's worst group."""
    values = ("weight", "number", "epochs", "loss")
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["what"] == "probe":
            yield f"{row['of']} from features {row['place']}: {100 * row['accuracy']:.1f} %  "
        else:
            grouped[tuple(row.get(name) for name in ("what", *values))].append(row)
    titles = ["measured", *values, *SHARES, "energy", "worst group by seed"]
    yield "\n| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"
    for key, found in grouped.items():
        shares = [f"{100 * statistics.mean(row[name] for row in found):.1f}" for name in SHARES.values()]
        energy = f"{statistics.mean(row['energy grad-cam'] for row in found):.2f}"
        seeds = ", ".join(f"{100 * row['worst']:.1f}" for row in found)
        yield "| " + " | ".join(["" if v is None else str(v) for v in key] + [*shares, energy, seeds]) + " |"


def main() -> None:
    """Print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True)
    rows = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    if "what" in rows[0]:
        print("\n".join(measurements(rows)))
    else:
        print("# Corrections: all results\n\nMade by `report.py`; the [README](README.md) says what the columns mean.")
        print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
