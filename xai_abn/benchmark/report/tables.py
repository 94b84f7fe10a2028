"""The tables of a report, as plain JSON values, one function each."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from xai_abn.benchmark import statistics
from xai_abn.benchmark.report.reading import Method, Section
from xai_abn.benchmark.statistics import Aggregate, Comparison, Estimate
from xai_abn.errors import UnknownNameError

#: A difference is significant if Holm's adjusted p is below this.
SIGNIFICANCE = 0.05


def method_table(section: Section) -> list[dict[str, Any]]:
    """Return the record of each method, with the median time of its maps and the number of flawed ones."""
    rows = []
    for method in section.methods:
        seconds = method.run.seconds.get(method.bare, [])
        row = {"name": method.name, "method": method.bare, "model": method.run.model, "baseline": method.baseline}
        row |= {key: method.record.get(key, "") for key in ("layer", "source", "definition")}
        row |= {"class_specific": method.class_specific, "parameters": method.record.get("parameters") or {}}
        row |= {"maps": len(seconds), "median_seconds": float(np.median(seconds)) if seconds else None}
        rows.append(row | {"flaws": method.run.flaws.get(method.bare, {})})
    return rows


def metric_table(section: Section) -> list[dict[str, Any]]:
    """Return the record of each metric under its full name."""
    table = []
    for full_name, record in section.metrics.items():
        name, _, protocol = full_name.partition(":")
        known: dict[str, Any] = {
            "higher_is_better": None,
            "subject": "",
            "units": "",
            "source": "",
            "definition": "",
            "range": None,
        }
        known |= {"flat_counts_as": None, "aggregated": "mean", "parameters": {}}
        table.append({**known, **record, "full_name": full_name, "name": name, "protocol": protocol})
    return table


def summary_table(section: Section) -> list[dict[str, Any]]:
    """Return each metric's value for each method, with its interval and the number of flawed maps.

    ``best`` marks the best method, baselines excluded; ``beats_best`` marks a baseline that is at least as good.
    """
    table: list[dict[str, Any]] = []
    for metric, record in section.metrics.items():
        cells = [_cell(section, metric, method) for method in section.methods]
        _mark_best(cells, record.get("higher_is_better"))
        table += [cell for cell in cells if cell["images"] or cell["flaws"]]
    return table


def _cell(section: Section, metric: str, method: Method) -> dict[str, Any]:
    rows = section.rows(metric, method).values()
    flaws = dict(Counter(r.flaw for r in rows if r.flaw is not None))
    cell = {"metric": metric, "method": method.name, "baseline": method.baseline}
    estimate, note = _estimate(section, metric, method)
    return {**cell, **asdict(estimate), "trials": len(rows), "flaws": flaws, "note": note}


def _estimate(section: Section, metric: str, method: Method) -> tuple[Estimate, str]:
    if not _over_data_set(section, metric):
        return statistics.mean_interval(section.values(metric, method).values), ""
    aggregate = _aggregate(metric)
    if aggregate is None:
        return Estimate(None, None, None, 0), "this metric is not installed here, so its values cannot be combined"
    return statistics.aggregate_interval(aggregate, *section.curves(metric, method)), ""


def _mark_best(cells: list[dict[str, Any]], higher: bool | None) -> None:
    sign = {True: 1, False: -1, None: 0}[higher]
    values = [c["value"] * sign for c in cells if c["value"] is not None and not c["baseline"]]
    for cell in cells:
        ahead = bool(sign and values and cell["value"] is not None and cell["value"] * sign >= max(values))
        cell["best"], cell["beats_best"] = ahead and not cell["baseline"], ahead and cell["baseline"]


def comparison_table(section: Section, reference: Method) -> list[dict[str, Any]]:
    """Return each method against the reference, p values adjusted by Holm within each metric."""
    table = []
    others = [m for m in section.methods if m is not reference]
    for metric, record in section.metrics.items():
        found = [_compared(section, metric, method, reference) for method in others]
        for method, comparison, p in zip(others, found, statistics.holm([c.p for c in found]), strict=True):
            if not comparison.difference.images:
                continue
            row = {"metric": metric, "method": method.name, "baseline": method.baseline}
            row |= {**asdict(comparison.difference), "p": comparison.p, "p_holm": p, "effect": comparison.effect}
            table.append(row | {"verdict": _verdict(comparison, p, record.get("higher_is_better"))})
    return table


def _compared(section: Section, metric: str, method: Method, reference: Method) -> Comparison:
    if not _over_data_set(section, metric):
        first, second = (section.values(metric, m).values for m in (method, reference))
        return statistics.compare(first, second)
    aggregate = _aggregate(metric)
    if aggregate is None:
        return Comparison(Estimate(None, None, None, 0), None, None)
    return statistics.compare_aggregates(aggregate, section.curves(metric, method), section.curves(metric, reference))


def _verdict(comparison: Comparison, p: float | None, higher: bool | None) -> str:
    """Return what the test shows about the method: better, worse, higher, lower, or no difference.

    The direction is that of the rank sums, on which the test is based.
    """
    if p is None:
        return "not tested"
    if p >= SIGNIFICANCE or not comparison.effect:
        return "no difference shown"
    above = comparison.effect > 0
    if higher is None:
        return "higher" if above else "lower"
    return "better" if above == higher else "worse"


def agreement_table(section: Section) -> dict[str, Any]:
    """Return how far each pair of metrics agrees on which methods are better.

    Baselines are left out: that random maps lose under every metric does not help to choose a method.
    """
    names = [m for m, r in section.metrics.items() if r.get("higher_is_better") is not None]
    names = [m for m in names if not _over_data_set(section, m) and section.compared]
    values = {m: np.stack([section.values(m, x).values for x in section.compared], axis=1) for m in names}
    names = [m for m in names if np.isfinite(values[m]).sum() and values[m].shape[1] > 1]
    matrix, images = [], []
    for a in names:
        higher = [bool(section.metrics[m]["higher_is_better"]) for m in (a, *names)]
        found = [
            statistics.agreement(values[a], values[b], higher[0], h) for b, h in zip(names, higher[1:], strict=True)
        ]
        matrix.append([rho for rho, _ in found])
        images.append([number for _, number in found])
    return {"metrics": names, "matrix": matrix, "images": images}


def curve_table(section: Section) -> list[dict[str, Any]]:
    """Return the mean curve of each method for each metric that has an axis."""
    table = []
    for metric in section.metrics:
        series = [found for method in section.methods if (found := _series(section, metric, method))]
        if series:
            table.append({"metric": metric, "series": series})
    return table


def _series(section: Section, metric: str, method: Method) -> dict[str, Any] | None:
    axis = [float(x) for x in method.run.metrics.get(metric, {}).get("axis") or []]
    curves, images = section.curves(metric, method)
    if not axis or not len(curves) or curves.shape[1] != len(axis):
        return None
    mean, low, high = (ends.tolist() for ends in statistics.mean_curve(curves, images))
    found = {"method": method.name, "baseline": method.baseline, "images": len(np.unique(images))}
    return {**found, "axis": axis, "mean": mean, "low": low, "high": high}


def class_table(section: Section) -> list[dict[str, Any]]:
    """Return the mean of each class and method, for each metric that scores the classes present.

    ``over_classes`` is the mean of a method's class means, in which rare classes count as much as common ones.
    """
    table = []
    for metric, record in section.metrics.items():
        if record.get("subject") != "classes" or _over_data_set(section, metric):
            continue
        trials = sorted({t for m in section.methods for _, t in section.rows(metric, m)}, key=str.casefold)
        cells = [[_class_cell(section, metric, m, t) for m in section.methods] for t in trials]
        means = [[cell["mean"] for cell in column if cell["n"]] for column in zip(*cells, strict=True)]
        over = [float(np.mean(found)) if found else None for found in means]
        rows = [{"class": t, "cells": row} for t, row in zip(trials, cells, strict=True)]
        if rows:
            methods = [m.name for m in section.methods]
            table.append({"metric": metric, "methods": methods, "rows": rows, "over_classes": over})
    return table


def _class_cell(section: Section, metric: str, method: Method, trial: str) -> dict[str, Any]:
    counts_as = section.metrics[metric].get("flat_counts_as")
    rows = [row for (_, name), row in section.rows(metric, method).items() if name == trial]
    values = [r.value if r.flaw is None else counts_as for r in rows]
    there = [v for v in values if v is not None]
    return {"mean": float(np.mean(there)) if there else None, "n": len(there)}


def failure_table(section: Section) -> list[dict[str, Any]]:
    """Return the reasons of failures, the most common first, each with one example."""
    several = len(section.runs) > 1
    groups: dict[tuple[str, str], list[str]] = {}
    for run in section.runs:
        for f in run.failures:
            reason = f.reason.replace(f.source, "…") if f.source else f.reason
            groups.setdefault((run.model if several else "", reason), []).append(f.source)
    table = [
        {"model": model, "reason": reason, "count": len(sources), "example": sources[0]}
        for (model, reason), sources in groups.items()
    ]
    return sorted(table, key=lambda row: -row["count"])


def _over_data_set(section: Section, metric: str) -> bool:
    return section.metrics[metric].get("aggregated") == "data-set"


def _aggregate(metric: str) -> Aggregate | None:
    """Return how a metric combines curves, or None if this installation does not know it."""
    from xai_abn import metrics

    try:
        return metrics.get(metric).aggregate
    except UnknownNameError:
        return None
