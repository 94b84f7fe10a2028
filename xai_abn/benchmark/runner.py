"""Run a benchmark: explain every image with every method, score every map, keep every value."""

from __future__ import annotations

import io
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xai_abn import __version__
from xai_abn.benchmark.scoring import Scorer
from xai_abn.benchmark.settings import BenchmarkSettings
from xai_abn.benchmark.store import Batch, FailureRow, ImageRow, MapRow, ResultRow, Store
from xai_abn.benchmark.trials import PreparedSample, class_indices, classes_called, short_names
from xai_abn.datasets import Dataset, Sample
from xai_abn.datasets.batches import warn_of_conversions
from xai_abn.errors import (
    DatasetError,
    InvalidInputError,
    RunError,
    UnsupportedModelError,
    XaiAbnError,
    XaiAbnWarning,
)
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.files import digest, key_of
from xai_abn.metrics.base import Metric, Subject
from xai_abn.metrics.base import get as get_metric
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.predictor import Predictor
from xai_abn.networks.checkpoint import fingerprint, fingerprints_v1

#: Side of the images kept for the report, in pixels.
VIEW = 320


@dataclass
class Summary:
    """Summary of one session of a run.

    Attributes:
        output: the run's file.
        images: number of images in this session's shard.
        measured: number of images measured in this session.
        known: number of images that were measured before.
        failed: (image, reason).
        superseded: number of images whose content or annotations changed since an earlier session.
        copies: number of images with the content and annotations of another one, which are measured once.
        unknown_classes: classes of the data set that no class of the model stands for; their objects are left out.
        shared_labels: those among them that are the label of several classes of the model, with these.
        seconds: wall time.
        predictions: how changed images were predicted.
        notes: what to tell about that.
    """

    output: Path
    images: int = 0
    measured: int = 0
    known: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    superseded: int = 0
    copies: int = 0
    unknown_classes: tuple[str, ...] = ()
    shared_labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: float = 0.0
    predictions: str = ""
    notes: tuple[str, ...] = ()


#: Perturbed images per forward pass on a CPU and on a GPU.
_ON_CPU, _ON_GPU = 16, 256
#: Called with the number of images done and their total.
Progress = Callable[[int, int], None]


def benchmark(
    model: ModelAdapter,
    data: Dataset,
    methods: Sequence[str | Explainer],
    metrics: Sequence[str],
    output: str | Path,
    settings: BenchmarkSettings | None = None,
    *,
    base: str | Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Summary:
    """Score methods on annotated images and keep every value in one file, which a later call can resume.

    Values that the file already holds are not computed again. An image that cannot be read is recorded with the reason.

    Args:
        model: the model to explain.
        data: from :func:`xai_abn.datasets.read_dataset`.
        methods: names or :class:`~xai_abn.explainers.Explainer` objects.
        metrics: names, with or without protocol; see :func:`xai_abn.metrics.names`.
        output: the run's file, created if missing.
        settings: see :class:`BenchmarkSettings`.
        base: another run that this one will be merged with; values that it holds are not computed either.
        command: recorded with the run.
        progress: called after each batch.

    Raises:
        UnknownNameError: a method or metric is not known.
        UnsupportedModelError: a method does not apply to the model.
        DatasetError: a metric needs annotations that the data set does not have.
        RunError: the file is damaged, busy, or of another model or other data.

    Examples:
        >>> import xai_abn
        >>> from xai_abn.datasets import read_dataset
        >>> from xai_abn.benchmark import benchmark
        >>> model, data = xai_abn.load_model(), read_dataset("images:images")
        >>> summary = benchmark(model, data, ["abn", "cam", "center"], ["deletion", "insertion"], "run.sqlite")
    """
    started, settings = time.perf_counter(), settings or BenchmarkSettings()
    run = _Run(model, data, methods, metrics, settings)
    known, superseded = (set(), set()) if base is None else run.held_by(base)
    with Store.create(output, run.identity, partial(fingerprints_v1, model.module)) as store:
        store.describe(run.metric_records, run.method_records)
        summary = Summary(
            Path(output), len(run.images), unknown_classes=run.unknown_classes, shared_labels=run.shared_labels
        )
        session = {"command": command, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_environment()}
        session |= {"shard": "/".join(map(str, settings.shard)), "images": len(run.images)}
        session |= {"unknown_classes": list(run.unknown_classes)} if run.unknown_classes else {}
        number = store.add_session({**session, **_process()})
        _warn_of_others(store, number)
        progress = progress or (lambda done, total: None)

        def still_working(done: int, total: int) -> None:
            store.update_session(number, active=time.time(), predictions=run.predictor.record())
            progress(done, total)

        run.work(store, summary, still_working, known | store.done(), superseded | store.superseded())
        if run.predictor.images:
            summary.predictions, summary.notes = str(run.predictor), tuple(run.predictor.notes)
        summary.superseded = len(store.superseded())
        summary.seconds = time.perf_counter() - started
        ended = dict.fromkeys(("machine", "process", "active"))
        store.update_session(number, seconds=round(summary.seconds, 3), measured=summary.measured, **ended)
    return summary


class _Run:
    """One session of a run: finds the values that are missing and measures them."""

    def __init__(
        self,
        model: ModelAdapter,
        data: Dataset,
        methods: Sequence[str | Explainer],
        metrics: Sequence[str],
        settings: BenchmarkSettings,
    ) -> None:
        if model.axes != 2:
            raise InvalidInputError(
                f"{model.name} takes volumes or clips, and the data sets of a benchmark hold images; use the "
                "functions of xai_abn.metrics on maps of volumes"
            )
        if model.detects or not model.has_probabilities:
            raise InvalidInputError(
                f"{model.name} is not a classifier, which a benchmark needs; if its one output is the logit of a "
                "class, wrap it with multi_label=True"
            )
        self.model = model if settings.backend is None else replace(model, backend=settings.backend)
        self.settings, self.data = settings, data
        self.preprocess = model.preprocess if settings.crop == "center" else replace(model.preprocess, crop="squash")
        if data.image_size is not None:
            self.preprocess = replace(self.preprocess, crop="squash", size=data.image_size)
        self.methods = {e.spec: e for e in make_explainers(model, list(methods))}
        chosen = [get_metric(name) for name in metrics]
        self.metrics = {m.full_name: m for m in chosen}
        if not self.metrics or len(self.metrics) < len(chosen):
            raise InvalidInputError(f"give each metric once and at least one, got {', '.join(metrics) or 'none'}")
        _check_annotations(data, chosen)
        _check_weights(model, chosen)
        self.predictor = Predictor(model, bf16=settings.bf16, backend=settings.backend)
        classes = model.number_of_classes
        wanted = any(m.subject is Subject.CLASSES for m in chosen)
        self.indices = class_indices(model, data, classes) if wanted else {}
        self.unknown_classes = tuple(n for n in data.class_names if n not in self.indices) if wanted else ()
        self.shared_labels = {n: c for n, c in classes_called(model, self.unknown_classes).items() if len(c) > 1}
        names = short_names(data.samples)
        index, number = settings.shard
        samples = [replace(sample, upright=False) if settings.exif == "ignore" else sample for sample in data.samples]
        listed = list(zip(range(len(names)), names, samples, strict=True))[: settings.limit]
        self.images = listed[index - 1 :: number]
        self._told: set[str] = set()
        self.identity = {
            "model": {
                "name": model.name,
                "fingerprint": fingerprint(model.module),
                "weights": Path(model.weights).name,
                **model.read_as(),
            },
            "preprocess": self.preprocess.to_dict(),
            "precision": "bfloat16" if settings.bf16 else "float32",
            "data": {"kind": data.kind},
        }
        size = self.preprocess.side
        self.metric_records = {n: _metric_record(model, m, size) for n, m in self.metrics.items()}
        self.method_records = {name: _method_record(model, e) for name, e in self.methods.items()}

    def held_by(self, base: str | Path) -> tuple[set[str], set[str]]:
        """Return the keys of what another run has measured, and of its images that changed since.

        Raises:
            RunError: it is of another model or other data, or has another version or other options of a method or
                metric.
        """
        with Store.read(base) as store:
            store.check_identity(self.identity)
            store.check_described(self.metric_records, self.method_records)
            return store.done(), store.superseded()

    def work(self, store: Store, summary: Summary, progress: Progress, known: set[str], superseded: set[str]) -> None:
        """Measure what is not known, batch by batch; an image that had changed and is restored counts again."""
        for source, reason in self.data.problems:
            summary.failed.append((source, reason))
            store.write(Batch(failures=[FailureRow(source, reason)]))
        scorer = None
        waiting: list[tuple[PreparedSample, Work]] = []
        seen: set[str] = set()
        for done, (position, name, annotated) in enumerate(self.images, 1):
            try:
                key = key_of(digest=annotated.digest(), preprocess=self.preprocess.to_dict())
                summary.copies += key in seen
                work = self._missing(key, known) if key not in seen else ()
                seen.add(key)
                if work:
                    waiting.append((self._load(key, position, name, annotated), work))
                else:
                    summary.known += 1
                    if key in superseded:  # the image was changed and restored
                        store.write(Batch(images=[_image_row(self._load(key, position, name, annotated))]))
            except RunError:
                raise
            except XaiAbnError as error:
                summary.failed.append((name, error.line))
                store.write(Batch(failures=[FailureRow(name, error.line)]))
            last = done == len(self.images)
            if waiting and (last or len(waiting) == self.settings.batch_size):
                is_first, scorer = scorer is None, scorer or self._scorer()
                for group in _alike(waiting):
                    self._measure(store, scorer, group, summary)
                if is_first:  # later images take about as many predictions
                    self.predictor.expect(self.predictor.images * (len(self.images) - done) // len(waiting))
                waiting = []
            if not waiting:
                progress(done, len(self.images))

    def _scorer(self) -> Scorer:
        """Return a new scorer; called only if there is something to measure."""
        usual = _ON_CPU if self.model.device.type == "cpu" else _ON_GPU
        evaluations = self.settings.evaluations or usual
        return Scorer(self.model, self.preprocess, self.predictor, self.indices, evaluations)

    def _load(self, key: str, position: int, name: str, annotated: Sample) -> PreparedSample:
        loaded = annotated.load()
        width, height = loaded.image.size
        annotated.check((height, width))
        region, prepared = self.preprocess.region(width, height), self.preprocess(loaded)
        warn_of_conversions(dict.fromkeys(prepared.notes, name), self._told)
        return PreparedSample(key, name, position, annotated, prepared, (height, width), region)

    def _missing(self, image: str, known: set[str]) -> Work:
        """Return each metric with the methods that it has not scored on an image, given by its key."""
        work = []
        for metric in self.metrics:
            methods = tuple(m for m in self.methods if self.key(image, m, metric) not in known)
            if methods:
                work.append((metric, methods))
        return tuple(work)

    def key(self, image: str, method: str, metric: str) -> str:
        """Return the key of the measurement of a metric, for a method, on an image given by its key."""
        return key_of(
            image=image,
            method=self.method_records[method]["identity"],
            metric=self.metric_records[metric]["identity"],
        )

    def _measure(
        self, store: Store, scorer: Scorer, group: list[tuple[PreparedSample, Work]], summary: Summary
    ) -> None:
        images, missing = [p for p, _ in group], group[0][1]
        needed = {m: self.methods[m] for _, names in missing for m in names}
        scores = scorer.score(images, needed, [(self.metrics[metric], methods) for metric, methods in missing])
        batch = Batch()
        for row, image in enumerate(images):
            if row in scores.errors:
                batch.failures.append(FailureRow(image.name, scores.errors[row].line, image.key))
            else:
                batch.images.append(_image_row(image))
        for m in scores.maps:
            shown, trial = images[m.trial.row].key, m.trial
            key = key_of(image=shown, method=m.method, trial=trial.name)
            label = self.model.label(trial.target)
            batch.maps.append(
                MapRow(key, shown, m.method, trial.name, trial.target, label, m.probability, m.flaw, m.seconds, m.map)
            )
        for v in scores.values:
            shown, trial = images[v.trial.row].key, v.trial
            measurement = self.key(shown, v.method, v.metric)
            key = key_of(measurement=measurement, trial=trial.name)
            batch.results.append(
                ResultRow(
                    key, shown, v.method, trial.name, trial.target, v.metric, v.value, v.flaw, v.curve, measurement
                )
            )
        store.write(batch)
        summary.failed += [(f.source, f.reason) for f in batch.failures]
        summary.measured += len(batch.images)


class SharedRunWarning(XaiAbnWarning):
    """Given when another process measures the same run, so that both measure the same images."""


#: Seconds since its last image after which a session on another machine counts as ended.
_QUIET = 60


def _process() -> dict[str, Any]:
    """Return what tells whether a session is at work, until it ends."""
    return {"machine": digest(platform.node().encode()), "process": os.getpid(), "active": time.time()}


def _warn_of_others(store: Store, own: int) -> None:
    """Warn if another session of the run than the ``own`` is at work; of two that start together, one sees the other.

    An earlier session of this process has failed.
    """
    machine = _process()["machine"]
    for number, session in enumerate(store.sessions):
        if number == own or "active" not in session:
            continue
        if (session["machine"], session["process"]) == (machine, os.getpid()):
            continue
        here = session["machine"] == machine and os.name == "posix"
        if _is_running(session["process"]) if here else time.time() - session["active"] < _QUIET:
            warnings.warn(
                SharedRunWarning(
                    f"another process, {session['process']}, is measuring this run, too, so images are measured "
                    "twice; stop one of them, or give each a part with --shard I/N"
                ),
                stacklevel=3,
            )


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


#: For each metric (by full name) still missing somewhere, the methods it is missing for.
Work = tuple[tuple[str, tuple[str, ...]], ...]


def _alike(waiting: list[tuple[PreparedSample, Work]]) -> Iterable[list[tuple[PreparedSample, Work]]]:
    """Group images that lack the same values."""
    groups: dict[Work, list[tuple[PreparedSample, Work]]] = {}
    for image, work in waiting:
        groups.setdefault(work, []).append((image, work))
    return groups.values()


def _check_annotations(data: Dataset, metrics: Sequence[Metric]) -> None:
    needy = [m.full_name for m in metrics if "objects" in m.arguments]
    if needy and not any(image.objects for image in data.samples):
        raise DatasetError(f"{', '.join(needy)} need annotated objects, and {data.kind} has none; leave them out")


def _check_weights(model: ModelAdapter, metrics: Sequence[Metric]) -> None:
    needy = [m.full_name for m in metrics if "module" in m.arguments]
    if needy and model.black_box:
        raise UnsupportedModelError(
            f"{', '.join(needy)} changes the weights, and {model.name} is an ONNX file, a black box; leave it out"
        )


def _metric_record(model: ModelAdapter, metric: Metric, size: int) -> dict[str, Any]:
    """Return the identity of a metric, and what the report says about it."""
    record = {"identity": metric.identity(), **metric.to_dict()}
    if model.multi_label and metric.reads_probabilities:
        record["definition"] += " The model is multi-label: a probability is the sigmoid of the target's logit."
    record["axis"] = metric.family.axis(size, size).tolist() if metric.family else None
    return record


def _method_record(model: ModelAdapter, explainer: Explainer) -> dict[str, Any]:
    """Return the identity of a method, and what the report says about it."""
    return {
        "identity": explainer.identity(model),
        "baseline": explainer.baseline,
        "class_specific": explainer.is_class_specific(model),
        "layer": explainer.layer_of(model),
        "source": explainer.source,
        "definition": (type(explainer).__doc__ or "").strip().split("\n")[0],
        "parameters": explainer.options,
    }


def _image_row(image: PreparedSample) -> ImageRow:
    small = Image.fromarray(image.prepared.view).resize((VIEW, VIEW), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    left, top, right, bottom = image.region
    objects = []
    for thing in image.annotated.objects:
        x0, y0, x1, y1 = thing.box
        box = [(x0 - left) / (right - left), (y0 - top) / (bottom - top)]
        box += [(x1 - left) / (right - left), (y1 - top) / (bottom - top)]
        objects.append({"label": thing.label, "box": box, "crowd": thing.crowd, "difficult": thing.difficult})
    return ImageRow(image.key, image.position, image.name, image.annotated.label, buffer.getvalue(), objects)


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "xai-abn": __version__}
    for package in ("torch", "torchvision", "timm", "captum", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = {"system": platform.system(), "processor": platform.machine(), "threads": torch.get_num_threads()}
    return {"versions": versions, "machine": machine}
