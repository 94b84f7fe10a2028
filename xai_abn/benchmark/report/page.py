"""A report as one HTML page: functions that its template calls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xai_abn.benchmark.report import text

#: Okabe and Ito's colors, which color-blind readers can tell apart, without those too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Dashes of the lines, taken in turn with the colors, so that no two lines differ by color alone.
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 5", "9 3 2 3 2 3")
#: Color of the baselines' lines.
GRAY = "#8a8f98"

#: Size of a figure and its plot's edges, in SVG units.
WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 448, 12, 254


def page(report: dict[str, Any], drawings: dict[tuple[int, int, str], str]) -> str:
    """Return the page of a report's plain values and drawings."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (
        text.number, text.interval, text.p_value, text.flaws, text.seconds, text.percent, text.span, text.plural,
        text.title, text.overview, text.outcomes, text.identity_lines, text.meaning, text.coded,
    )  # fmt: skip
    environment.globals.update({function.__name__: function for function in words})
    environment.globals.update(notes=text.NOTES, directions=text.DIRECTIONS, shade=shade)
    environment.globals.update(whisker=whisker, column_scale=column_scale, figure=figure, by_method=by_method)
    return environment.get_template("report.html.j2").render(report=report, drawings=drawings)


def by_method(section: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the cells of the summary by method, then metric."""
    table: dict[str, dict[str, Any]] = {}
    for cell in section["summary"]:
        table.setdefault(cell["method"], {})[cell["metric"]] = cell
    return table


def column_scale(section: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """Return the smallest and largest end of one metric's intervals, or None if nothing can be drawn."""
    ends = [c[end] for c in section["summary"] if c["metric"] == metric for end in ("low", "value", "high")]
    ends = [end for end in ends if end is not None]
    return (min(ends), max(ends)) if ends and max(ends) > min(ends) else None


def whisker(cell: dict[str, Any], scale: tuple[float, float]) -> dict[str, float]:
    """Return where a value and its interval lie on a line from 4 to 96."""
    low, high = scale
    ends = {end: cell["value"] if cell[end] is None else cell[end] for end in ("low", "value", "high")}
    return {end: round(4 + 92 * (value - low) / (high - low), 1) for end, value in ends.items()}


def shade(rho: float | None) -> str:
    """Return the background of a correlation: blue for agreement, orange for contradiction."""
    if rho is None:
        return "transparent"
    color = "0, 114, 178" if rho >= 0 else "213, 94, 0"
    return f"rgba({color}, {0.5 * min(abs(rho), 1):.2f})"


def figure(section: dict[str, Any], curves: dict[str, Any]) -> dict[str, Any]:
    """Return the lines, bands, ticks and labels of one metric's mean curves in SVG units."""
    series = curves["series"]
    low, high = min(min(s["low"]) for s in series), max(max(s["high"]) for s in series)
    x_ends = min(min(s["axis"]) for s in series), max(max(s["axis"]) for s in series)
    x_ticks, y_ticks = ticks(*x_ends), ticks(min(low, 0.0), high)
    y_ends = min(low, y_ticks[0]), max(high, y_ticks[-1])
    styles = _styles(section["methods"])
    lines = [{**styles[s["method"]], **_line(s, x_ends, y_ends), "id": number} for number, s in enumerate(series)]
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "lines": lines,
        "x_ticks": [(_place(t, x_ends, LEFT, RIGHT), f"{t:g}") for t in x_ticks],
        "y_ticks": [(_place(t, y_ends, BOTTOM, TOP), f"{t:g}") for t in y_ticks],
        **_axis_labels(section, curves["metric"]),
    }  # fmt: skip


def _line(series: dict[str, Any], x_ends: tuple[float, float], y_ends: tuple[float, float]) -> dict[str, Any]:
    """Return the paths of a mean curve and its band."""
    xs = [_place(x, x_ends, LEFT, RIGHT) for x in series["axis"]]
    ys = {part: [_place(y, y_ends, BOTTOM, TOP) for y in series[part]] for part in ("mean", "low", "high")}
    band = [*zip(xs, ys["high"], strict=True), *reversed([*zip(xs, ys["low"], strict=True)])]
    path, around = _path([*zip(xs, ys["mean"], strict=True)]), _path(band) + "Z"
    return {"path": path, "band": around, "name": series["method"], "images": series["images"]}


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return approximately ``about`` round numbers in [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _axis_labels(section: dict[str, Any], metric: str) -> dict[str, str]:
    """Return the labels of the axes, from the record of the metric."""
    record = next(m for m in section["metrics"] if m["full_name"] == metric)
    reads_probabilities = record.get("reads_probabilities")
    return {
        "x_label": record.get("axis_label") or "point of the curve",
        "y_label": "probability of the target" if reads_probabilities else "value",
    }


def _styles(methods: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Give each method a color and dashes that it keeps in every figure; baselines are gray and dashed."""
    styles, counts = {}, {True: 0, False: 0}
    for method in methods:
        index = counts[method["baseline"]]
        counts[method["baseline"]] += 1
        if method["baseline"]:
            styles[method["name"]] = {"color": GRAY, "dash": DASHES[1 + index % (len(DASHES) - 1)]}
        else:
            styles[method["name"]] = {
                "color": PALETTE[index % len(PALETTE)],
                "dash": DASHES[(index // len(PALETTE)) % len(DASHES)],
            }
    return styles


def _place(value: float, ends: tuple[float, float], start: float, stop: float) -> float:
    span = ends[1] - ends[0]
    return round(start + (stop - start) * ((value - ends[0]) / span if span else 0.5), 1)


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)
