"""Gallery of a report: small drawings of the images on which methods differ most."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from PIL import Image

from xai_abn.benchmark.report.reading import Drawings, Method, Section
from xai_abn.benchmark.store import ImageRow, MapRow
from xai_abn.errors import RunError
from xai_abn.rendering import blend

#: Longer side of a drawing in pixels, and its JPEG quality: twelve images of eight methods stay below 8 MB.
SIDE = 320
QUALITY = 82
#: Height of a name on an image, and width of one of its letters, in percent of the image's width.
_LINE, _LETTER = 6.0, 2.7


@dataclass(frozen=True)
class Gallery:
    """Images and maps to show.

    Attributes:
        facts: plain values: the metrics, and for each image the metric that chose it, its objects and each method's
            value of that metric.
        drawings: data URI of each drawing by (row, method), the image itself under method "".
    """

    facts: dict[str, Any]
    drawings: dict[tuple[int, str], str]


def make_gallery(section: Section, reference: Method, number: int) -> Gallery | None:
    """Return the images where methods differ most, or None if none are wanted or no metric has a value for each image.

    Each metric in turn chooses the image with the largest spread of its values between methods, baselines excluded,
    since methods that differ by one metric may be equal by another; of several classes present, the one with the
    largest spread is shown.
    """
    metrics = gallery_metrics(section)
    if not metrics or number < 1:
        return None
    chosen = _choose(section, metrics, number)
    images = [image for _, image, *_ in chosen]
    read = [run.drawings(images) for run in section.runs]
    rows, drawings = [], {}
    for index, (metric, image, trial, spread) in enumerate(chosen):
        row, drawn = _row(section, metric, image, trial, reference, read)
        rows.append({**row, "metric": metric, "spread": spread})
        drawings.update({(index, name): uri for name, uri in drawn.items()})
    return Gallery({"metrics": metrics, "compared": len(section.compared), "rows": rows}, drawings)


def gallery_metrics(section: Section) -> list[str]:
    """Return the metrics that have a value for each image and a better end, or else the first with values."""
    usable = [m for m, r in section.metrics.items() if r.get("aggregated", "mean") == "mean"]
    usable = [m for m in usable if any(section.results(m, method).images for method in section.methods)]
    ranking = [m for m in usable if section.metrics[m].get("higher_is_better") is not None]
    return ranking or usable[:1]


def _choose(section: Section, metrics: list[str], number: int) -> list[tuple[str, str, str, float]]:
    """Return (metric, image, trial, spread) of up to ``number`` images, by metric, those of largest spread first."""
    waiting = {metric: _by_spread(section, metric) for metric in metrics}
    chosen: dict[str, tuple[str, float]] = {}
    for metric in cycle(metrics):
        if len(chosen) == number or not any(waiting.values()):
            break
        while waiting[metric]:
            image, spread = waiting[metric].pop(0)
            if image not in chosen:
                chosen[image] = metric, spread
                break
    compared = section.compared or section.methods
    rows = [(m, image, _trial(section, m, image, compared), spread) for image, (m, spread) in chosen.items()]
    return sorted(rows, key=lambda row: metrics.index(row[0]))


def _by_spread(section: Section, metric: str) -> list[tuple[str, float]]:
    """Return (image, spread), the largest spread first; of equal ones, those with more methods at both ends."""
    compared = section.compared or section.methods
    values = np.stack([section.values(metric, m).values for m in compared], axis=1)
    there = np.isfinite(values)
    spread = np.where(there, values, -np.inf).max(axis=1) - np.where(there, values, np.inf).min(axis=1)
    spread = np.where(there.any(axis=1), spread, -1)
    means = np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    deviation = (np.where(there, values - means[:, None], 0) ** 2).sum(axis=1)
    order = np.lexsort([np.arange(len(spread)), -np.round(deviation, 9), -np.round(spread, 9)])
    return [(section.images[i], float(spread[i])) for i in order.tolist() if spread[i] >= 0]


def _trial(section: Section, metric: str, image: str, compared: list[Method]) -> str:
    """Return the trial of an image on which the methods differ most."""
    values: dict[str, list[float]] = {}
    for method in compared:
        results = section.results(metric, method)
        counted = results.counted(section.metrics[metric].get("flat_counts_as"))
        for shown, trial, value in zip(results.images, results.trials, counted, strict=True):
            if shown == image:
                values.setdefault(trial, []).extend([] if np.isnan(value) else [value])
    return max(values, key=lambda trial: max(values[trial], default=0) - min(values[trial], default=0))


def _row(
    section: Section,
    metric: str,
    image: str,
    trial: str,
    reference: Method,
    read: list[Drawings],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the facts of one image, and its drawings by method."""
    own = reference.run if image in reference.run.images else section.run_of(image)
    shown, view = own.images[image], read[section.runs.index(own)][0][image]
    entries, drawings = [], {"": _data_uri(_opened(shown.source, view))}
    for method in section.methods:
        views, maps = read[section.runs.index(method.run)]
        found = _map_of(maps, image, method, trial)
        entries.append(_entry(section, metric, image, trial, method, found))
        if found is not None:
            drawings[method.name] = _data_uri(blend(_opened(shown.source, views[image]), found.map))
    objects = _boxes(shown, entries, trial)
    row = {"source": shown.source, "label": shown.label, "trial": trial, "objects": objects, "methods": entries}
    targets = list(dict.fromkeys((e["target"], e["probability"]) for e in entries if e["target"] is not None))
    row["target"], row["probability"] = targets[0] if len(targets) == 1 else (None, None)
    return row, drawings


def _entry(
    section: Section, metric: str, image: str, trial: str, method: Method, found: MapRow | None
) -> dict[str, Any]:
    results = section.results(metric, method)
    row = results.row(image, trial)
    flaw = None if row is None else results.flaws[row]
    value = None if row is None or flaw is not None or np.isnan(results.values[row]) else float(results.values[row])
    return {
        "method": method.name,
        "baseline": method.baseline,
        "class_specific": method.class_specific,
        "value": value,
        "flaw": found.flaw if found and found.flaw else flaw,
        "target": found.label if found else None,
        "probability": found.probability if found else None,
    }


def _map_of(maps: dict[tuple[str, str, str], MapRow], image: str, method: Method, trial: str) -> MapRow | None:
    """Return the map of a trial; of a method that has one map for every class, any map of the image."""
    exact = maps.get((image, method.bare, trial))
    if exact is not None or method.class_specific:
        return exact
    return next((row for (key, name, _), row in maps.items() if (key, name) == (image, method.bare)), None)


def _opened(source: str, content: bytes) -> np.ndarray:
    """Return the view (H, W, 3) uint8 of an image, its longer side at most SIDE pixels."""
    try:
        view = Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise RunError(f"{source}: its drawing in the run is damaged; delete the run and measure again") from error
    view.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(view)


def _boxes(image: ImageRow, entries: list[dict[str, Any]], trial: str) -> list[dict[str, Any]]:
    """Return the objects' boxes; the largest of each class is named where its name covers no other one."""
    targets = {trial, *(e["target"] for e in entries)}
    boxes = [box for thing in image.objects if (box := _box(thing, targets))]
    largest: dict[str, dict[str, Any]] = {}
    for box in boxes:
        known = largest.setdefault(box["label"], box)
        if box["width"] * box["height"] > known["width"] * known["height"]:
            largest[box["label"]] = box
    named = sorted(largest.values(), key=lambda box: (not box["of_target"], -box["width"] * box["height"]))
    places: list[tuple[float, float, float]] = []
    for box in named:
        box["name_at"] = _free_place(box, places)
        places += [box["name_at"]] if box["name_at"] else []
    return boxes


def _free_place(box: dict[str, Any], taken: list[tuple[float, float, float]]) -> tuple[float, float, float] | None:
    """Return left, top and width, in percent, of a place for a box's name that is free, or None.

    Places are tried above the box, inside it and below it, from its left and from its right.
    """
    width = min(_LETTER * (len(box["label"]) + 1), 100)
    rows = (box["top"] - _LINE, box["top"], box["top"] + box["height"] - _LINE, box["top"] + box["height"])
    columns = (box["left"], box["left"] + box["width"] - width)
    for top in rows:
        for left in (min(max(column, 0), 100 - width) for column in columns):
            apart = all(left + width <= x or x + w <= left or top + _LINE <= y or y + _LINE <= top for x, y, w in taken)
            if 0 <= top <= 100 - _LINE and apart:
                return left, top, width
    return None


def _box(thing: dict[str, Any], targets: set[str]) -> dict[str, Any] | None:
    """Return an object's box in percent of the view, clipped to it; None if the object is out of view."""
    left, top, right, bottom = (min(max(float(edge), 0.0), 1.0) * 100 for edge in thing["box"])
    if right <= left or bottom <= top:
        return None
    label = str(thing.get("label", "object"))
    notes = [word for word in ("crowd", "difficult") if thing.get(word)]
    box = {"left": left, "top": top, "width": right - left, "height": bottom - top, "of_target": label in targets}
    return {**box, "label": label + (f" ({', '.join(notes)})" if notes else ""), "name_at": None}


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
