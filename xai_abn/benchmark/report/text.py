"""A report in words, and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

#: Words for a metric's better direction, and its arrow.
DIRECTIONS = {
    True: ("higher is better", "↑"),
    False: ("lower is better", "↓"),
    None: ("neither direction is better", ""),
}

#: Explanations of a report's numbers, shown beside them.
NOTES = {
    "summary": "Mean over images with its 95 % bootstrap interval (2000 resamples of images; Wilson's interval for "
    "hits and misses). The maps of one image are averaged first. Flagged maps count as their metric defines, or are "
    "left out, so means can be over different images.",
    "sanity": "A sanity check changes the weights or the class and compares the maps before and after. A method passes "
    "if the interval of the mean rank correlation lies below 0.5, and fails if it lies above.",
    "comparisons": "On the images that both methods have: mean difference (method minus reference) with its 95 % "
    "bootstrap "
    "interval, Wilcoxon's signed-rank test (two-sided; zero differences ranked as Pratt proposed) with Holm's "
    "correction over all methods of one metric, and the matched-pairs rank-biserial correlation as effect (above 0: "
    "the method's values are larger). Better and worse need an adjusted p below 0.05. Metrics with one value for the "
    "whole data set are not tested; check whether the interval contains 0.",
    "agreement": "Spearman's rank correlation over images and methods, values centered on each image's own mean. 1: "
    "the metrics prefer the same methods on the same images; 0: they are unrelated; \N{MINUS SIGN}1: they contradict "
    "each other. Baselines are left out.",
    "scale": "The line under a value is its interval, on the scale under the heading.",
    "curves": "Mean over images. A band is the 95 % bootstrap interval at each point; choose a method in the legend to "
    "show or hide its band.",
    "time": "Time is the median per map, including the image's share of the forward pass.",
}
#: Shown where there is no value.
NONE = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Return a value with three decimals, or four digits if it is large; zero has no sign."""
    if value is None:
        return NONE
    shown = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return "0.000" if shown == "-0.000" else shown.replace("-", "\N{MINUS SIGN}")


def interval(cell: dict[str, Any]) -> str:
    """Return ``[low, high]``, or nothing where there is none."""
    return "" if cell["low"] is None else f"[{number(cell['low'])}, {number(cell['high'])}]"


def p_value(p: float | None) -> str:
    """Return p with three decimals."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def flaws(counts: dict[str, int]) -> str:
    """Return counts of flaws as text, such as ``2 flat, 1 not finite``."""
    return ", ".join(f"{n} {flaw}" for flaw, n in counts.items())


def seconds(value: float | None) -> str:
    """Return a time in ms, or s if long."""
    if value is None:
        return NONE
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def percent(share: float) -> str:
    """Return a share as text, such as ``63.0 %``, that does not break across lines."""
    return f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def span(ends: Sequence[float | None]) -> str:
    """Return a range as text, such as ``0 to 1``; None means no limit."""
    low, high = ("any" if end is None else f"{end:g}" for end in ends)
    return f"{low} to {high}"


def plural(count: int, word: str) -> str:
    """Return a count with its noun, such as ``1 image`` or ``2 images``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def meaning(metric: dict[str, Any]) -> str:
    """Return the first sentence of a metric's definition, which says what is measured."""
    first, dot, _ = str(metric["definition"]).partition(". ")
    return first + dot.strip()


def coded(text: str) -> list[tuple[bool, str]]:
    """Return the parts of a docstring's text, each with whether it is a formula or code, between double backticks."""
    return [(bool(index % 2), part) for index, part in enumerate(text.split("``"))]


def title(section: dict[str, Any]) -> str:
    """Return the section's models and kind of data."""
    return f"{', '.join(section['models'])} on {section['data'].get('kind', 'data')}"


def overview(section: dict[str, Any]) -> list[str]:
    """Return sentences on what was measured and what the results are."""
    baselines = sum(m["baseline"] for m in section["methods"])
    methods = plural(len(section["methods"]) - baselines, "method") + (
        f" and {plural(baselines, 'baseline')}" if baselines else ""
    )
    lines = [f"{plural(section['images'], 'image')}, {methods}, {plural(len(section['metrics']), 'metric')}."]
    failed = sum(f["count"] for f in section["failures"])
    lines[0] += f" {plural(failed, 'measurement')} failed." if failed else " Every measurement succeeded."
    methods_maps = [m for m in section["methods"] if not m["baseline"]]
    flat = sum(n for m in methods_maps for n in m["flaws"].values())
    maps = sum(m["maps"] for m in methods_maps)
    if maps:
        what = f"{flat} of {maps} maps are" if flat else f"None of {maps} maps is"
        lines[0] += f" {what} flat or not finite, baselines excluded."
    if section["superseded"]:
        lines[0] += f" {plural(section['superseded'], 'image')} changed since and no longer count."
    return lines + _leaders(section) + _warnings(section) + _sanity(section)


def _leaders(section: dict[str, Any]) -> list[str]:
    """Return sentences on which method leads on which metrics, and where another may be as good."""
    leads: dict[str, list[str]] = {}
    names = _short_names(section)
    for cell in section["summary"]:
        if cell["best"]:
            leads.setdefault(cell["method"], []).append(names[cell["metric"]] + _level(cell["level_with"]))
    if not leads or len(section["methods"]) < 2:
        return []
    total = len({cell["metric"] for cell in section["summary"] if cell["best"]})
    ordered = sorted(leads.items(), key=lambda item: -len(item[1]))
    parts = [f"{name} on {len(found)} of {total}: {', '.join(found)}" for name, found in ordered]
    return [f"Best mean: {'; '.join(parts)}."]


def _level(others: Sequence[str] | None) -> str:
    if others is None:
        return " (not tested)"
    return f" (not significantly ahead of {', '.join(others)})" if others else ""


#: What a verdict of a sanity check means, as the end of a sentence about some methods.
_SANITY = {
    "passes": "depend on {}",
    "undecided": "may depend on {} or not (more images would tell)",
    "by design": "are the same for every class by design",
    "fails": "hardly depend on {}, so do not read them as an explanation of it",
}


def _sanity(section: dict[str, Any]) -> list[str]:
    """Return a sentence on each sanity check."""
    lines, names = [], _short_names(section)
    for metric in dict.fromkeys(row["metric"] for row in section["sanity"]):
        rows = [row for row in section["sanity"] if row["metric"] == metric]
        found = {v: [row["method"] for row in rows if row["verdict"] == v] for v in _SANITY}
        parts = [
            f"maps of {', '.join(methods)} {_SANITY[verdict].format(rows[0]['depends_on'])}"
            for verdict, methods in found.items()
            if methods
        ]
        lines.append(f"Sanity check {names[metric]}: {'; '.join(parts)}.")
    return lines


def _warnings(section: dict[str, Any]) -> list[str]:
    names = _short_names(section)
    ahead = [f"{c['method']} on {names[c['metric']]}" for c in section["summary"] if c["beats_best"]]
    return [f"Baselines that do at least as well as every method: {', '.join(ahead)}."] if ahead else []


def _short_names(section: dict[str, Any]) -> dict[str, str]:
    """Return the metrics' names, with the protocol only where two share a name."""
    names = [m["name"] for m in section["metrics"]]
    return {m["full_name"]: m["name"] if names.count(m["name"]) == 1 else m["full_name"] for m in section["metrics"]}


def outcomes(section: dict[str, Any]) -> str:
    """Return a sentence with the counts of the paired tests' verdicts."""
    verdicts = Counter(c["verdict"] for c in section["comparisons"] if not c["baseline"])
    words = [f"{verdicts[v]} {v}" for v in ("better", "worse", "higher", "lower") if verdicts[v]]
    words += [f"{verdicts[v]} {v}" for v in ("no difference shown", "not tested") if verdicts[v]]
    if not words:
        return "Only baselines to compare with."
    return f"{plural(sum(verdicts.values()), 'comparison')} with methods, baselines excluded: {', '.join(words)}."


def cell_text(cell: dict[str, Any] | None, bold: bool = False) -> str:
    """Return a cell of the summary: value, interval and flagged maps; ``bold`` marks the best in Markdown."""
    if cell is None:
        return NONE
    value = f"**{number(cell['value'])}**" if bold and cell["best"] else number(cell["value"])
    return " ".join(filter(None, [value, interval(cell), f"({flaws(cell['flaws'])})" if cell["flaws"] else ""]))


def identity_lines(identity: dict[str, Any]) -> list[tuple[str, str]]:
    """Return nested facts as (name, value) lines."""
    lines = []
    for name, value in identity.items():
        if isinstance(value, dict):
            lines += [(f"{name} {inner}", text) for inner, text in identity_lines(value)]
        elif value not in (None, ""):
            lines.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def markdown(report: dict[str, Any]) -> str:
    """Return the tables of a report as Markdown."""
    blocks = ["# Explanation benchmark", f"<!-- {report['about']} -->"]
    for section in report["sections"]:
        blocks += [f"## {_safe(title(section))}", *map(_safe, overview(section))]
        blocks += ["### Summary", _summary(section), NOTES["summary"]]
        blocks += [NOTES["sanity"]] if section["sanity"] else []
        if section["comparisons"]:
            blocks += [
                f"### Against {_safe(section['reference'])}",
                _safe(outcomes(section)),
                _comparisons(section),
                NOTES["comparisons"],
            ]
        if len(section["agreement"]["metrics"]) > 1:
            blocks += ["### Agreement between metrics", _agreement(section), NOTES["agreement"]]
        if section["failures"]:
            blocks += ["### Failures", _failures(section)]
        blocks += ["### Protocols", _protocols(section)]
    blocks += ["## Runs", *(_run(run) for run in report["runs"])]
    return "\n\n".join(blocks) + "\n"


def _summary(section: dict[str, Any]) -> str:
    metrics = [m["full_name"] for m in section["metrics"]]
    arrows = [f"{m['full_name']} {DIRECTIONS[m['higher_is_better']][1]}".strip() for m in section["metrics"]]
    cells = {(c["method"], c["metric"]): c for c in section["summary"]}
    rows = []
    for method in section["methods"]:
        name = f"{method['name']} (baseline)" if method["baseline"] else method["name"]
        rows.append([name, *(cell_text(cells.get((method["name"], metric)), bold=True) for metric in metrics)])
    return _table(["method", *arrows], rows)


def _comparisons(section: dict[str, Any]) -> str:
    rows = [
        [
            c["metric"], c["method"], str(c["images"]), f"{number(c['value'])} {interval(c)}".strip(),
            p_value(c["p_holm"]), number(c["effect"]), c["verdict"],
        ]
        for c in section["comparisons"]
    ]  # fmt: skip
    return _table(["metric", "method", "images", "difference", "p (Holm)", "effect", "method is"], rows)


def _agreement(section: dict[str, Any]) -> str:
    names, matrix = section["agreement"]["metrics"], section["agreement"]["matrix"]
    return _table(["", *names], [[name, *map(number, row)] for name, row in zip(names, matrix, strict=True)])


def _failures(section: dict[str, Any]) -> str:
    columns = ("count", "reason", "example")
    return _table(columns, [[str(f[c]) for c in columns] for f in section["failures"]])


def _protocols(section: dict[str, Any]) -> str:
    lines = []
    for m in section["metrics"]:
        better = DIRECTIONS[m["higher_is_better"]][0].capitalize()
        facts = [m["definition"], f"{better}.", f"Source: {m['source'] or 'not stated'}"]
        lines.append(f"- **{_safe(m['full_name'])}**: {_safe(' '.join(filter(None, facts)))}")
    return "\n".join(lines)


def _run(run: dict[str, Any]) -> str:
    facts = [("files", ", ".join(run["files"])), *identity_lines(run["identity"])]
    for session in run["sessions"]:
        facts += [("command", str(session["command"]))] if session.get("command") else []
        facts += [("predictions", str(session["predictions"]["choice"]))] if session.get("predictions") else []
    return "\n".join(f"- {_safe(name)}: {_safe(value)}" for name, value in facts)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_safe(cell) for cell in line) + " |" for line in lines)


def _safe(text: str) -> str:
    """Escape what Markdown or HTML would read as more than text."""
    for old, new in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(old, new)
    return text
