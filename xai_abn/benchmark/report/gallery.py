"""Gallery of a report: small drawings of the images on which methods differ most."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from xai_abn.benchmark.report.reading import Drawings, Method, Section
from xai_abn.benchmark.store import ImageRow, MapRow
from xai_abn.errors import RunError
from xai_abn.rendering import blend

#: Longer side of a drawing in pixels, and its JPEG quality: twelve images of eight methods stay below 8 MB.
SIDE = 288
QUALITY = 82


@dataclass(frozen=True)
class Gallery:
    """Images and maps to show.

    Attributes:
        facts: plain values: the metric, and for each image its objects and each method's value.
        drawings: data URI of each drawing by (row, method), the image itself under method "".
    """

    facts: dict[str, Any]
    drawings: dict[tuple[int, str], str]


def make_gallery(section: Section, reference: Method, number: int) -> Gallery | None:
    """Return the images where methods differ most, or None if none are wanted or no metric has a value for each image.

    Images are chosen by the largest spread of one metric's per-image values between methods, baselines excluded; of
    several classes present, the one with the largest spread is shown.
    """
    metric = gallery_metric(section)
    if metric is None or number < 1:
        return None
    chosen = _choose(section, metric, number)
    images = [image for image, *_ in chosen]
    read = [run.drawings(images) for run in section.runs]
    rows, drawings = [], {}
    for index, (image, trial, spread) in enumerate(chosen):
        row, drawn = _row(section, metric, image, trial, reference, read)
        rows.append({**row, "spread": spread})
        drawings.update({(index, name): uri for name, uri in drawn.items()})
    return Gallery({"metric": metric, "compared": len(section.compared), "rows": rows}, drawings)


def gallery_metric(section: Section) -> str | None:
    """Return the first metric that has a value for each image and a better end, else the first with values."""
    usable = [m for m, r in section.metrics.items() if r.get("aggregated", "mean") == "mean"]
    usable = [m for m in usable if any(section.results(m, method).images for method in section.methods)]
    ranking = [m for m in usable if section.metrics[m].get("higher_is_better") is not None]
    return next(iter(ranking or usable), None)


def _choose(section: Section, metric: str, number: int) -> list[tuple[str, str, float]]:
    """Return (image, trial, spread) of the largest spread; of equal ones, those with more methods at both ends."""
    compared = section.compared or section.methods
    values = np.stack([section.values(metric, m).values for m in compared], axis=1)
    there = np.isfinite(values)
    spread = np.where(there, values, -np.inf).max(axis=1) - np.where(there, values, np.inf).min(axis=1)
    spread = np.where(there.any(axis=1), spread, -1)
    means = np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    deviation = (np.where(there, values - means[:, None], 0) ** 2).sum(axis=1)
    order = np.lexsort([np.arange(len(spread)), -np.round(deviation, 9), -np.round(spread, 9)])
    best = [i for i in order.tolist() if spread[i] >= 0][:number]
    return [(section.images[i], _trial(section, metric, section.images[i], compared), float(spread[i])) for i in best]


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
    """Return the objects' boxes; the largest of each class is named, since more names would cover small objects."""
    targets = {trial, *(e["target"] for e in entries)}
    boxes = [box for thing in image.objects if (box := _box(thing, targets))]
    largest: dict[str, dict[str, Any]] = {}
    for box in boxes:
        known = largest.setdefault(box["label"], box)
        if box["width"] * box["height"] > known["width"] * known["height"]:
            largest[box["label"]] = box
    return [{**box, "named": box is largest[box["label"]]} for box in boxes]


def _box(thing: dict[str, Any], targets: set[str]) -> dict[str, Any] | None:
    """Return an object's box in percent of the view, clipped to it; None if the object is out of view."""
    left, top, right, bottom = (min(max(float(edge), 0.0), 1.0) * 100 for edge in thing["box"])
    if right <= left or bottom <= top:
        return None
    label = str(thing.get("label", "object"))
    notes = [word for word in ("crowd", "difficult") if thing.get(word)]
    box = {"left": left, "top": top, "width": right - left, "height": bottom - top, "of_target": label in targets}
    return {**box, "label": label + (f" ({', '.join(notes)})" if notes else "")}


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
