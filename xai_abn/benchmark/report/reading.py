"""Reading of run files for a report: shards are joined, and runs that can be compared are grouped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, TypeAlias

import numpy as np

from xai_abn.benchmark.statistics import ImageValues, per_image
from xai_abn.benchmark.store import FailureRow, ImageRow, MapRow, Store
from xai_abn.errors import RunError, UnknownNameError

#: The default reference method, if the run has it.
USUAL_REFERENCE = "abn"
#: Views by image, and maps by (image, method, trial).
Drawings: TypeAlias = tuple[dict[str, bytes], dict[tuple[str, str, str], MapRow]]


@dataclass(frozen=True, eq=False)
class Results:
    """The values of one metric and method, in columns: a row for each trial of an image.

    Attributes:
        images: key of the image of each row.
        trials: name of the trial of each row.
        values: (R,) NaN where there is none.
        flaws: why a map could not be scored, or None.
        curves: float32 as bytes, or None.
    """

    images: list[str]
    trials: list[str]
    values: np.ndarray
    flaws: list[str | None]
    curves: list[bytes | None]

    @classmethod
    def read(cls, rows: Iterable[tuple[str, str, float | None, str | None, bytes | None]]) -> Results:
        """Return rows of :meth:`Store.rows_of` as columns, which share their texts."""
        images, trials, values, flaws, curves = [], [], [], [], []
        for image, trial, value, flaw, curve in rows:
            images.append(intern(image))
            trials.append(intern(trial))
            values.append(np.nan if value is None else value)
            flaws.append(flaw and intern(flaw))
            curves.append(curve)
        return cls(images, trials, np.array(values, float), flaws, curves)

    def joined(self, other: Results) -> Results:
        """Return the rows of both; of a trial that both have, that of the other, so that shards may overlap."""
        images, trials = self.images + other.images, self.trials + other.trials
        rows = list({trial: row for row, trial in enumerate(zip(images, trials, strict=True))}.values())
        flaws, curves = self.flaws + other.flaws, self.curves + other.curves
        return Results(
            [images[row] for row in rows],
            [trials[row] for row in rows],
            np.concatenate([self.values, other.values])[rows],
            [flaws[row] for row in rows],
            [curves[row] for row in rows],
        )

    def counted(self, flat_counts_as: float | None) -> np.ndarray:
        """Return the values (R,) with that of flawed maps, NaN to leave them out."""
        flawed = np.array([flaw is not None for flaw in self.flaws], bool)
        return np.where(flawed, np.nan if flat_counts_as is None else flat_counts_as, self.values)

    def row(self, image: str, trial: str) -> int | None:
        """Return the row of a trial, or None."""
        places = enumerate(zip(self.images, self.trials, strict=True))
        return next((row for row, place in places if place == (image, trial)), None)


#: Results of a metric that a method was not measured with.
_NONE = Results([], [], np.zeros(0), [], [])


@dataclass(frozen=True, eq=False)
class Run:
    """All files of one identity, such as the shards of one benchmark.

    Attributes:
        paths: the files.
        images: images whose values count, by key, without their views.
        results: by (metric, method).
        seconds: time of each map by method.
        flaws: number of maps by method and flaw.
    """

    paths: list[Path]
    identity: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, ImageRow] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)
    results: dict[tuple[str, str], Results] = field(default_factory=dict)
    failures: list[FailureRow] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    flaws: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(_dict(self.identity.get("model")).get("name", "model"))

    @property
    def files(self) -> list[str]:
        """Names of the files, without their folders."""
        return [path.name for path in self.paths]

    def drawings(self, images: Sequence[str]) -> Drawings:
        """Return the views of some images by key, and their maps by (image, method, trial)."""
        views: dict[str, bytes] = {}
        maps: dict[tuple[str, str, str], MapRow] = {}
        for path in self.paths:
            with Store.read(path) as store:
                views.update(store.views(images))
                maps.update({(row.image, row.method, row.trial): row for image in images for row in store.maps(image)})
        return views, maps


@dataclass(frozen=True, eq=False)
class Method:
    """A method under its name in the report."""

    name: str
    bare: str
    run: Run
    record: dict[str, Any]

    @property
    def baseline(self) -> bool:
        """Whether the method is a baseline, which shows what chance or a fixed map reaches."""
        return bool(self.record.get("baseline", False))

    @property
    def class_specific(self) -> bool:
        """Whether the map depends on the class."""
        return bool(self.record.get("class_specific", True))


@dataclass(frozen=True, eq=False)
class Section:
    """Runs of the same data and metrics, which can be compared."""

    runs: list[Run]
    methods: list[Method]
    metrics: dict[str, dict[str, Any]]
    images: list[str]

    @property
    def compared(self) -> list[Method]:
        """The methods without the baselines."""
        return [m for m in self.methods if not m.baseline]

    def results(self, metric: str, method: Method) -> Results:
        """Return the results of one metric and method."""
        return method.run.results.get((metric, method.bare), _NONE)

    def values(self, metric: str, method: Method) -> ImageValues:
        """Return the values of one metric and method by image, in the order of ``images``."""
        if (metric, method) not in self._values:
            results = self.results(metric, method)
            flawed = np.array([flaw is not None for flaw in results.flaws], bool)
            counts_as = self.metrics[metric].get("flat_counts_as")
            images = self._index(results.images)
            self._values[metric, method] = per_image(images, results.values, flawed, counts_as, len(self.images))
        return self._values[metric, method]

    def curves(self, metric: str, method: Method) -> tuple[np.ndarray, np.ndarray]:
        """Return the curves (R, T) of one metric and method that count, and the index (R,) of their images.

        The curve of a flawed map counts if the metric counts flawed maps and gave this one a curve. Curves of another
        length than the first are left out.
        """
        flawed_count = self.metrics[metric].get("flat_counts_as") is not None
        results = self.results(metric, method)
        rows = zip(results.images, results.flaws, results.curves, strict=True)
        found = [(image, curve) for image, flaw, curve in rows if curve and (flaw is None or flawed_count)]
        found = [(image, curve) for image, curve in found if np.isfinite(np.frombuffer(curve, np.float32)).all()]
        found = [(image, curve) for image, curve in found if len(curve) == len(found[0][1])]
        curves = np.frombuffer(b"".join(curve for _, curve in found), np.float32).astype(float)
        return curves.reshape(len(found), -1 if found else 0), self._index([image for image, _ in found])

    def run_of(self, image: str) -> Run:
        """Return the first run that has an image."""
        return next(run for run in self.runs if image in run.images)

    def reference(self, name: str | None) -> Method | None:
        """Return the method that others are compared with: the one named, else ``abn``, else the first.

        The model may be left out of the name if only one method fits. None if no method of this section fits.
        """
        if name is None:
            usual = [m for m in self.compared if m.bare == USUAL_REFERENCE]
            return (usual or self.compared or self.methods)[0]
        exact = [m for m in self.methods if m.name == name]
        bare = [m for m in self.methods if m.bare == name]
        return exact[0] if exact else bare[0] if len(bare) == 1 else None

    @cached_property
    def _position(self) -> dict[str, int]:
        return {image: i for i, image in enumerate(self.images)}

    @cached_property
    def _values(self) -> dict[tuple[str, Method], ImageValues]:
        return {}

    def _index(self, images: Sequence[str]) -> np.ndarray:
        return np.array([self._position[image] for image in images], int)


def read_sections(paths: Sequence[Path], reference: str | None = None) -> list[Section]:
    """Read run files into sections that can be compared.

    Raises:
        RunError: a file is not a run or has no results, or files of one identity contradict each other.
        UnknownNameError: no section has the reference method.
    """
    runs: dict[str, Run] = {}
    for path in dict.fromkeys(Path(p) for p in paths):
        _read(path, runs)
    if not runs:
        raise RunError("no run to report; name at least one file made by 'xai-abn benchmark run'")
    groups: dict[str, list[Run]] = {}
    for run in runs.values():
        groups.setdefault(_comparable(run), []).append(run)
    sections = [_section(group) for group in groups.values()]
    if reference is not None and all(s.reference(reference) is None for s in sections):
        known = dict.fromkeys(m.name for s in sections for m in s.methods)
        raise UnknownNameError("reference method", reference, known)
    return sections


def _comparable(run: Run) -> str:
    """Return what runs must share to be compared: data and metrics."""
    return _plain([run.identity.get("data"), _identities(run.metrics)])


def _identities(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the identity of each metric or method; definitions and sources may differ between versions.

    A record without an identity is compared whole, except for the axis of its curves, which varies with the input size.
    """
    bare = {name: {k: v for k, v in record.items() if k != "axis"} for name, record in records.items()}
    return {name: record.get("identity", record) for name, record in bare.items()}


def _read(path: Path, runs: dict[str, Run]) -> None:
    """Add one file to the run of its identity."""
    with Store.read(path) as store:
        results = {pair: Results.read(store.rows_of(*pair)) for pair in store.measured()}
        if not any(found.images for found in results.values()):
            failed = store.count("failures")
            why = f" ({failed} failures are recorded)" if failed else ""
            raise RunError(f"{path}: has no results yet{why}; run xai-abn benchmark run --output {path} first")
        model = {k: v for k, v in store.identity.get("model", {}).items() if k.startswith("fingerprint")}
        key = _plain([{**store.identity, "model": model or store.identity.get("model")}, _identities(store.metrics())])
        run = runs.setdefault(key, Run([], store.identity, store.metrics(), {}))
        _check_methods(path, run, store.methods())
        run.paths.append(path)
        run.methods.update(store.methods())
        run.sessions.extend(store.sessions)
        images = store.images(superseded=True, views=False)
        run.images.update({i.image: i for i in images if not i.superseded})
        run.superseded.update(i.image for i in images if i.superseded)
        run.failures.extend(f for f in store.failures() if f not in run.failures)
        for pair, found in results.items():
            if found.images:
                run.results[pair] = run.results[pair].joined(found) if pair in run.results else found
        for method, seconds, flaw in store.map_facts():
            run.seconds.setdefault(method, []).append(seconds)
            if flaw is not None:
                counts = run.flaws.setdefault(method, {})
                counts[flaw] = counts.get(flaw, 0) + 1


def _check_methods(path: Path, run: Run, methods: dict[str, dict[str, Any]]) -> None:
    known = _identities(run.methods)
    for name, identity in _identities(methods).items():
        if known.get(name, identity) != identity:
            raise RunError(
                f"{path}: method {name!r} means something else than in {run.files[0]}; make two reports, one each"
            )


def _section(runs: list[Run]) -> Section:
    labels = _model_labels(runs)
    methods = [
        Method(f"{label}: {bare}" if len(runs) > 1 else bare, bare, run, _dict(run.methods.get(bare)))
        for run, label in zip(runs, labels, strict=True)
        for bare in dict.fromkeys([*run.methods, *(method for _, method in run.results)])
        if any(method == bare for _, method in run.results)
    ]
    methods.sort(key=lambda m: m.baseline)
    metrics = dict(runs[0].metrics)
    for metric in dict.fromkeys(metric for run in runs for metric, _ in run.results):
        metrics.setdefault(metric, {})
    measured = {image for run in runs for results in run.results.values() for image in results.images}
    positions = {key: image.position for run in runs for key, image in run.images.items() if key in measured}
    return Section(runs, methods, metrics, sorted(positions, key=lambda key: (positions[key], key)))


def _model_labels(runs: list[Run]) -> list[str]:
    """Name the models; if two share a name, add what distinguishes them."""
    labels = [run.model for run in runs]
    tellers = (
        lambda run: str(run.identity.get("precision", "")),
        lambda run: str(_dict(run.identity.get("model")).get("fingerprint", ""))[:8],
        lambda run: run.files[0],
    )
    for tell in tellers:
        if len(set(labels)) == len(labels):
            break
        told = [tell(run) for run in runs]
        if len(set(told)) > 1:
            labels = [f"{label} {more}".rstrip() for label, more in zip(labels, told, strict=True)]
    return labels


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
