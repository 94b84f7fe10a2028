"""Print the tables of the README from the results.

python -m benchmarks.fine_grained.report --results benchmarks/fine_grained/results.jsonl
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks._harness import make_parser
from xai_abn.benchmark.statistics import mean_interval

Row = dict[str, Any]


def chosen(rows: list[Row]) -> dict[str, list[Row]]:
    """Return each network's trainings at the learning rate that did best on the validation images, by seed."""
    found: dict[str, list[Row]] = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        tried = [row for row in own if row["seed"] == own[0]["seed"]]
        rate = max(tried, key=lambda row: float(row["val perception"]))["rate"]
        found[name] = [row for row in own if row["rate"] == rate]
    return found


def right(rows: list[Row]) -> np.ndarray:
    """Return whether each test image (seeds, N) is classified rightly; rows are filled to whole bytes."""
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[: row["tests"]] for row in rows]
    return np.stack(bits).astype(float)


def accuracies(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table of networks; intervals are over images, or over seeds by Student's t."""
    networks = chosen(rows)
    titles = ["network", "parameters", "multiply-adds", "training", "rate", "test (over images)", "by seed"]
    titles += ["above the baseline (over images)", "(over seeds)", "attention branch", "both branches", "flat map"]
    yield "| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"
    baseline = right(networks["baseline"])
    for name, own in networks.items():
        answers = right(own)
        cells = [name, f"{own[0]['parameters'] / 1e6:.2f} M", f"{own[0]['multiply_adds'] / 1e6:.0f} M"]
        cells += [f"{statistics.fmean(row['seconds'] for row in own):.0f} s", f"{own[0]['rate']:g}"]
        cells += [with_interval(answers.mean(axis=0)), ", ".join(f"{100 * row['test perception']:.1f}" for row in own)]
        if name == "baseline" or len(answers) != len(baseline):
            cells += ["", ""]
        else:
            more = answers - baseline
            each = more.mean(axis=1)
            margin = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each) if len(each) > 1 else np.nan
            ends = f"{100 * (each.mean() - margin):+.1f} to {100 * (each.mean() + margin):+.1f}"
            cells += [with_interval(more.mean(axis=0), "+"), ends] if more.any() else ["same predictions", ""]
        for branch in ("attention", "both", "flat"):
            values = [row[f"test {branch}"] for row in own if f"test {branch}" in row]
            cells.append(f"{100 * statistics.fmean(values):.1f}" if values else "")
        yield "| " + " | ".join(cells) + " |"


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """Return a mean in percent with its interval."""
    found = mean_interval(values)
    mean, low, high = (f"{100 * (value or 0):{sign}.1f}" for value in (found.value, found.low, found.high))
    return f"{mean} ({low} to {high})"


def maps(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table of maps."""
    places = [name for name in ("energy", "pointing", "confusion") if name in rows[0]]
    titles = ["network", "map", "polarity", "by seed", "stability", *places]
    yield "| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        cells = [row["network"], row["method"], f"{statistics.fmean(row['polarity']):.2f}"]
        cells += [", ".join(f"{value:.2f}" for value in row["polarity"])]
        same = row["method"] in ("center", "random-7") or not row["stability"]  # for every seed
        cells.append("" if same else f"{statistics.fmean(row['stability']):.2f}")
        for name in places:
            low, high = row[f"{name} interval"]
            cells.append(f"{statistics.fmean(row[name]):.2f} ({low:.2f} to {high:.2f})")
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True)
    rows = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    for data in dict.fromkeys(row["data"] for row in rows):
        for kind, table in (("training", accuracies), ("maps", maps)):
            wanted = [row for row in rows if (row["data"], row["kind"]) == (data, kind)]
            if wanted:
                print("\n".join([f"\n{data}, {kind}:\n", *table(wanted)]))


if __name__ == "__main__":
    main()
