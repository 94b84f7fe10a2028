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
#: A map counts as the same after a change if its rank correlation with the one before is at least this.
SAME = 0.5


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
        known |= {"flat_counts_as": None, "aggregated": "mean", "parameters": {}, "depends_on": ""}
        table.append({**known, **record, "full_name": full_name, "name": name, "protocol": protocol})
    return table


def summary_table(section: Section) -> list[dict[str, Any]]:
    """Return each metric's value for each method, with its interval and the number of flawed maps.

    ``best`` marks the best method, baselines excluded; ``beats_best`` marks a baseline that is at least as good.
    ``level_with`` names the methods that the best one is not significantly ahead of; None if that is not tested.
    """
    table: list[dict[str, Any]] = []
    estimates = _estimates(section)
    for metric, record in section.metrics.items():
        cells = [_cell(section, metric, method, *estimates[metric, method.name]) for method in section.methods]
        _mark_best(cells, record.get("higher_is_better"))
        for cell, method in zip(cells, section.methods, strict=True):
            cell["level_with"] = _level_with(section, metric, method) if cell["best"] else None
        table += [cell for cell in cells if cell["images"] or cell["flaws"]]
    return table


def _cell(section: Section, metric: str, method: Method, estimate: Estimate, note: str) -> dict[str, Any]:
    found = section.results(metric, method).flaws
    flaws = dict(Counter(flaw for flaw in found if flaw is not None))
    cell = {"metric": metric, "method": method.name, "baseline": method.baseline}
    return {**cell, **asdict(estimate), "trials": len(found), "flaws": flaws, "note": note}


def _estimates(section: Section) -> dict[tuple[str, str], tuple[Estimate, str]]:
    """Return the value of each metric and method, with a note where there is none."""
    places = [(metric, method) for metric in section.metrics for method in section.methods]
    single = [place for place in places if not _over_data_set(section, place[0])]
    found = statistics.mean_intervals([section.values(*place).values for place in single])
    estimates = {(m, method.name): (e, "") for (m, method), e in zip(single, found, strict=True)}
    return estimates | {
        (metric, method.name): _aggregated(section, metric, method)
        for metric, method in places
        if (metric, method.name) not in estimates
    }


def _aggregated(section: Section, metric: str, method: Method) -> tuple[Estimate, str]:
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


def _level_with(section: Section, metric: str, best: Method) -> list[str] | None:
    """Return the methods that the best one is not significantly ahead of, each by a test of its own."""
    if _over_data_set(section, metric):
        return None
    own, higher = section.values(metric, best).values, bool(section.metrics[metric]["higher_is_better"])
    others = {m.name: section.values(metric, m).values for m in section.compared if m is not best}
    return [
        name
        for name, values in others.items()
        if np.isfinite(values).any() and not statistics.is_ahead(own, values, higher, SIGNIFICANCE)
    ]


def sanity_table(section: Section, summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each sanity check and method, whether the maps change as they should, by the mean's interval.

    ``verdict`` is ``"passes"`` if all of the interval lies below ``SAME``, ``"fails"`` if none does, ``"undecided"``
    otherwise, and ``"by design"`` for maps that are the same for every class where the class was changed. Baselines
    are left out.

    Args:
        section: the runs.
        summary: from :func:`summary_table`.
    """
    agnostic = {method.name for method in section.methods if not method.class_specific}
    table = []
    for cell in summary:
        changed = section.metrics[cell["metric"]].get("depends_on")
        if changed and cell["value"] is not None and not cell["baseline"]:
            verdict = _sanity(cell, changed == "the class" and cell["method"] in agnostic)
            row = {"metric": cell["metric"], "method": cell["method"], "depends_on": changed}
            table.append({**row, "value": cell["value"], "verdict": verdict})
    return table


def _sanity(cell: dict[str, Any], same_by_design: bool) -> str:
    if same_by_design:
        return "by design"
    low, high = (cell["value"] if cell[end] is None else cell[end] for end in ("low", "high"))
    return "passes" if high < SAME else "fails" if low >= SAME else "undecided"


def comparison_table(section: Section, reference: Method) -> list[dict[str, Any]]:
    """Return each method against the reference, p values adjusted by Holm within each metric."""
    table = []
    others = [m for m in section.methods if m is not reference]
    comparisons = _compared(section, others, reference)
    for metric, record in section.metrics.items():
        found = comparisons[metric]
        for method, comparison, p in zip(others, found, statistics.holm([c.p for c in found]), strict=True):
            if not comparison.difference.images:
                continue
            row = {"metric": metric, "method": method.name, "baseline": method.baseline}
            row |= {**asdict(comparison.difference), "p": comparison.p, "p_holm": p, "effect": comparison.effect}
            table.append(row | {"verdict": _verdict(comparison, p, record.get("higher_is_better"))})
    return table


def _compared(section: Section, others: list[Method], reference: Method) -> dict[str, list[Comparison]]:
    """Return, by metric, the comparison of each other method with the reference."""
    single = [metric for metric in section.metrics if not _over_data_set(section, metric)]
    pairs = [(section.values(m, o).values, section.values(m, reference).values) for m in single for o in others]
    found = iter(statistics.compare_all(pairs))
    by_metric = {metric: [next(found) for _ in others] for metric in single}
    return by_metric | {
        metric: [_compared_over_data_set(section, metric, other, reference) for other in others]
        for metric in section.metrics
        if metric not in by_metric
    }


def _compared_over_data_set(section: Section, metric: str, method: Method, reference: Method) -> Comparison:
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
    found = [(metric, m, *section.curves(metric, m)) for metric in section.metrics for m in section.methods]
    found = [(n, m, curves, i) for n, m, curves, i in found if len(curves) and curves.shape[1] == len(_axis(n, m))]
    means = statistics.mean_curves([(curves, images) for *_, curves, images in found])
    series: dict[str, list[dict[str, Any]]] = {}
    for (metric, method, _, images), curve in zip(found, means, strict=True):
        ends = {name: values.tolist() for name, values in zip(("mean", "low", "high"), curve, strict=True)}
        row = {"method": method.name, "baseline": method.baseline, "images": len(np.unique(images))}
        series.setdefault(metric, []).append({**row, "axis": _axis(metric, method), **ends})
    return [{"metric": metric, "series": rows} for metric, rows in series.items()]


def _axis(metric: str, method: Method) -> list[float]:
    return [float(x) for x in method.run.metrics.get(metric, {}).get("axis") or []]


def class_table(section: Section) -> list[dict[str, Any]]:
    """Return the mean of each class and method, for each metric that scores the classes present.

    ``over_classes`` is the mean of a method's class means, in which rare classes count as much as common ones.
    """
    table = []
    for metric, record in section.metrics.items():
        if record.get("subject") != "classes" or _over_data_set(section, metric):
            continue
        trials = sorted({t for m in section.methods for t in section.results(metric, m).trials}, key=str.casefold)
        columns = [_class_cells(section, metric, m) for m in section.methods]
        cells = [[column.get(t, {"mean": None, "n": 0}) for column in columns] for t in trials]
        means = [[cell["mean"] for cell in column if cell["n"]] for column in zip(*cells, strict=True)]
        over = [float(np.mean(found)) if found else None for found in means]
        rows = [{"class": t, "cells": row} for t, row in zip(trials, cells, strict=True)]
        if rows:
            methods = [m.name for m in section.methods]
            table.append({"metric": metric, "methods": methods, "rows": rows, "over_classes": over})
    return table


def _class_cells(section: Section, metric: str, method: Method) -> dict[str, dict[str, Any]]:
    """Return mean and number of the values of each class of which there are any."""
    results = section.results(metric, method)
    values: dict[str, list[float]] = {}
    for trial, value in zip(
        results.trials, results.counted(section.metrics[metric].get("flat_counts_as")), strict=True
    ):
        if not np.isnan(value):
            values.setdefault(trial, []).append(value)
    return {trial: {"mean": float(np.mean(found)), "n": len(found)} for trial, found in values.items()}


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
