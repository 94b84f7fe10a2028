"""Reading of run files for a report: shards are joined, and runs that can be compared are grouped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xai_abn.benchmark.statistics import ImageValues, per_image
from xai_abn.benchmark.store import FailureRow, ImageRow, MapRow, ResultRow, Store
from xai_abn.errors import RunError, UnknownNameError

#: The default reference method, if the run has it.
USUAL_REFERENCE = "abn"


@dataclass(frozen=True, eq=False)
class Run:
    """All files of one identity, such as the shards of one benchmark.

    Attributes:
        paths: the files.
        images: images whose values count, by key.
        results: by (metric, method), each by (image, trial), so that shards that overlap count once.
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
    results: dict[tuple[str, str], dict[tuple[str, str], ResultRow]] = field(default_factory=dict)
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

    def maps(self, images: Iterable[str]) -> dict[tuple[str, str, str], MapRow]:
        """Return the maps of some images by (image, method, trial)."""
        wanted, found = list(images), {}
        for path in self.paths:
            with Store.read(path) as store:
                rows = [row for image in wanted for row in store.maps(image)]
            found.update({(row.image, row.method, row.trial): row for row in rows})
        return found


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

    def rows(self, metric: str, method: Method) -> dict[tuple[str, str], ResultRow]:
        """Return the results of one metric and method by (image, trial)."""
        return method.run.results.get((metric, method.bare), {})

    def values(self, metric: str, method: Method) -> ImageValues:
        """Return the values of one metric and method by image, in the order of ``images``."""
        rows = list(self.rows(metric, method).values())
        values = np.array([np.nan if r.value is None else r.value for r in rows], float)
        flawed = np.array([r.flaw is not None for r in rows], bool)
        return per_image(
            self._index(rows), values, flawed, self.metrics[metric].get("flat_counts_as"), len(self.images)
        )

    def curves(self, metric: str, method: Method) -> tuple[np.ndarray, np.ndarray]:
        """Return the curves (R, T) of one metric and method that count, and the index (R,) of their images.

        The curve of a flawed map counts if the metric counts flawed maps and gave this one a curve.
        """
        flawed_count = self.metrics[metric].get("flat_counts_as") is not None
        rows = [r for r in self.rows(metric, method).values() if r.flaw is None or flawed_count]
        pairs = [(r, r.curve.astype(float)) for r in rows if r.curve is not None and np.isfinite(r.curve).all()]
        pairs = [(r, curve) for r, curve in pairs if len(curve) == len(pairs[0][1])]
        stacked = np.stack([curve for _, curve in pairs]) if pairs else np.zeros((0, 0))
        return stacked, self._index([r for r, _ in pairs])

    def image(self, key: str) -> ImageRow:
        """Return an image from the first run that has it."""
        return next(run.images[key] for run in self.runs if key in run.images)

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

    def _index(self, rows: Sequence[ResultRow]) -> np.ndarray:
        return np.array([self._position[r.image] for r in rows], int)


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
        results = store.results()
        if not results:
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
        images = store.images(superseded=True)
        run.images.update({i.image: i for i in images if not i.superseded})
        run.superseded.update(i.image for i in images if i.superseded)
        run.failures.extend(f for f in store.failures() if f not in run.failures)
        for row in results:
            run.results.setdefault((row.metric, row.method), {})[row.image, row.trial] = row
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
    measured = {image for run in runs for rows in run.results.values() for image, _ in rows}
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
