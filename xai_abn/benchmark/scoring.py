"""Maps and values of one batch of images: one forward pass for all methods, common batches for all curves."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.benchmark.trials import TOP, PreparedSample, Trial, trials_of
from xai_abn.errors import XaiAbnError
from xai_abn.explainers import Explainer, run_pass
from xai_abn.heatmaps import flaws, upsample
from xai_abn.images.preprocess import Preprocess
from xai_abn.metrics.base import Metric, Scores, Subject
from xai_abn.metrics.objects import Objects
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.predictor import Predictor
from xai_abn.networks.tracing import on_device
from xai_abn.pipeline import explain_batch

#: Largest side of the maps that are kept.
MAP_SIDE = 56

#: Metrics to compute and, for each, the methods to compute it for.
Wanted = Sequence[tuple[Metric, Sequence[str]]]


@dataclass(frozen=True, eq=False)
class ScoredMap:
    """A map as it is stored.

    Attributes:
        trial: the target and image of the map.
        method: specification of the method.
        probability: probability of the trial's target.
        flaw: why the map means nothing, or None.
        seconds: wall time.
        map: (h, w) float32, at most ``MAP_SIDE`` cells a side.
    """

    trial: Trial
    method: str
    probability: float
    flaw: str | None
    seconds: float
    map: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoredValue:
    """A value of one metric for one method and trial.

    Attributes:
        trial: the target and image; for an image without a trial for the metric, a trial without a name.
        method: specification of the method.
        metric: ``"name:protocol"``.
        value: None if there is none.
        flaw: why the map could not be scored, or None.
        curve: (T,) float32, or None.
    """

    trial: Trial
    method: str
    metric: str
    value: float | None = None
    flaw: str | None = None
    curve: np.ndarray | None = None


@dataclass
class BatchScores:
    """The results of one batch.

    Attributes:
        errors: why an image could not be explained, by its position.
        maps: every map.
        values: every value.
    """

    errors: dict[int, XaiAbnError] = field(default_factory=dict)
    maps: list[ScoredMap] = field(default_factory=list)
    values: list[ScoredValue] = field(default_factory=list)


class Scorer:
    """Explains and scores batches of images.

    Args:
        model: the model to explain.
        preprocess: how its images were prepared.
        predict: returns its logits for perturbed images.
        indices: the model's classes for each class of the data set.
        evaluations: perturbed images per batch.
    """

    def __init__(
        self,
        model: ModelAdapter,
        preprocess: Preprocess,
        predict: Predictor,
        indices: dict[str, tuple[int, ...]],
        evaluations: int,
    ) -> None:
        self.model = model
        self.predict = predict
        self.indices = indices
        self.evaluations = evaluations
        self.black = (0 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)

    def score(self, images: Sequence[PreparedSample], methods: Mapping[str, Explainer], wanted: Wanted) -> BatchScores:
        """Return the maps and values of images of one size; an image that cannot be explained gives an error.

        Raises:
            UnsupportedModelError: a method does not apply to the model.
        """
        batch = _Batch(self, images, methods, {metric.subject for metric, _ in wanted})
        scores = BatchScores(batch.errors, batch.scored_maps())
        for metric, names in wanted:
            if metric.family is None:
                for name in names:
                    scores.values += batch.values(metric, name, batch.scores(metric, name))
        families: dict[tuple[Hashable, tuple[str, ...], Subject], list[Metric]] = {}
        for metric, names in wanted:
            if metric.family is not None:
                families.setdefault((metric.family.group, tuple(names), metric.subject), []).append(metric)
        for (_, names, _), members in families.items():
            scores.values += batch.family_values(members, names)
        return scores


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps (T, h, w) of one method for some trials, in their order, and the seconds of each."""

    maps: Tensor
    flaws: list[str | None]
    seconds: list[float]


class _Batch:
    """The maps of one batch, and the values measured on them."""

    def __init__(
        self, scorer: Scorer, images: Sequence[PreparedSample], methods: Mapping[str, Explainer], subjects: set[Subject]
    ) -> None:
        self.scorer, self.images, self.methods = scorer, images, methods
        inputs = torch.stack([p.prepared.tensor for p in images])
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits: dict[int, Tensor] = {}
        asked: dict[int, dict[Subject, list[Trial]]] = {}

        def targets_of(row: int, found: Tensor) -> list[int]:
            logits[row] = found.cpu()
            asked[row] = {
                Subject.PREDICTION: [Trial(row, TOP, int(found.argmax()))],
                Subject.CLASSES: trials_of(images[row], row, logits[row], scorer.indices),
            }
            return list(dict.fromkeys(t.target for s in subjects for t in asked[row][s]))

        explained = explain_batch(
            scorer.model,
            [p.prepared for p in images],
            list(methods.values()),
            [partial(targets_of, row) for row in range(len(images))],
        )
        self.errors = {row: result for row, result in enumerate(explained) if isinstance(result, XaiAbnError)}
        self.rows = [row for row in range(len(images)) if row not in self.errors]
        self.trials = {s: [t for row in self.rows for t in asked[row][s]] for s in subjects}
        self.probabilities = {row: scorer.model.probabilities(logits[row][None])[0] for row in self.rows}
        self.classes = max((len(found) for found in logits.values()), default=0)
        self.maps: dict[tuple[Subject, str], _Maps] = {}
        for subject, trials in self.trials.items():
            for name in methods:
                records = [e for t in trials if (e := explained[t.row].get(name, t.target))]  # type: ignore[union-attr]
                maps = [torch.from_numpy(np.array(e.map)) for e in records]
                stacked = torch.stack(maps) if maps else torch.zeros(0, 1, 1)
                self.maps[subject, name] = _Maps(stacked, flaws(stacked), [e.seconds for e in records])

    def scores(self, metric: Metric, name: str) -> Scores:
        """Return one metric of one method for all trials of its subject; without objects in view there is no value."""
        trials = self.trials[metric.subject]
        seen = [i for i, t in enumerate(trials) if "objects" not in metric.arguments or self.objects(metric, t)]
        values = torch.full((len(trials),), math.nan)
        if not seen:
            return Scores(values)
        given = _Arguments(self, metric, name, seen)
        found = metric.function(**{argument: getattr(given, argument) for argument in metric.arguments})
        found = found if isinstance(found, Scores) else Scores(found)
        values[seen] = found.values.float().cpu()
        if found.curves is None:
            return Scores(values)
        curves = torch.full((len(trials), found.curves.shape[1]), math.nan)
        curves[seen] = found.curves.float().cpu()
        return Scores(values, curves)

    def objects(self, metric: Metric, trial: Trial) -> Objects | None:
        """Return the objects in view of a trial's class, or of any class for the prediction."""
        classes = None if trial.name == TOP else [trial.name]
        return self.images[trial.row].objects(classes, at_image_size=metric.at_image_size)

    def others(self, metric: Metric, trial: Trial) -> Objects | None:
        """Return the objects in view of the other classes."""
        return self.images[trial.row].others(trial.name, at_image_size=metric.at_image_size)

    def _can_be_scored(self, metric: Metric, trial: Trial) -> bool:
        """Return whether the objects of a trial allow a value. If not, a flawed map does not count as a miss."""
        if "objects" not in metric.arguments:
            return True
        own = self.objects(metric, trial)
        others = self.others(metric, trial) if "others" in metric.arguments else None
        return own is not None and (metric.applies is None or metric.applies(own, others))

    def family_values(self, members: Sequence[Metric], names: Sequence[str]) -> list[ScoredValue]:
        """Return the values of metrics of one family for all methods, from common batches of perturbed images."""
        subject, family = members[0].subject, members[0].family
        trials = self.trials[subject]
        scores = [Scores(torch.zeros(0, len(names))) for _ in members]
        if trials and family is not None:
            size = (self.inputs.shape[2], self.inputs.shape[3])
            maps = torch.stack([upsample(self.maps[subject, n].maps, size) for n in names], dim=1)
            rows, targets = torch.tensor([t.row for t in trials]), torch.tensor([t.target for t in trials])
            scores = family.compute(
                [metric.family for metric in members],
                self.scorer.predict,
                self.inputs_of(rows).contiguous(),  # the predictor knows what is best for its backend
                maps,
                targets,
                batch_size=self.scorer.evaluations,
                black=self.scorer.black,
            )
        found = []
        for metric, score in zip(members, scores, strict=True):
            for i, name in enumerate(names):
                curves = None if score.curves is None else score.curves[:, i]
                found += self.values(metric, name, Scores(score.values[:, i], curves))
        return found

    def inputs_of(self, rows: Tensor) -> Tensor:
        """Return the inputs of these rows, channels-last."""
        if torch.equal(rows, torch.arange(len(self.images))):
            return self.inputs
        return self.inputs[rows].contiguous(memory_format=torch.channels_last)

    def values(self, metric: Metric, name: str, scores: Scores) -> list[ScoredValue]:
        """Return one value per trial; an image without a trial gets an empty value, so that it counts as done."""
        found, trials = self.maps[metric.subject, name], self.trials[metric.subject]
        values = scores.values.double().tolist()
        curves = None if scores.curves is None else scores.curves.numpy().astype(np.float32)
        results = []
        for i, trial in enumerate(trials):
            value = values[i] if math.isfinite(values[i]) else None
            curve = curves[i] if curves is not None and np.isfinite(curves[i]).all() else None
            flaw = found.flaws[i] if value is None and self._can_be_scored(metric, trial) else None
            results.append(ScoredValue(trial, name, metric.full_name, value, flaw, curve))
        without = sorted(set(self.rows) - {t.row for t in trials})
        return results + [ScoredValue(Trial(row, "", -1), name, metric.full_name) for row in without]

    def scored_maps(self) -> list[ScoredMap]:
        """Return every map."""
        found = []
        for (subject, name), maps in self.maps.items():
            for i, trial in enumerate(self.trials[subject]):
                probability = float(self.probabilities[trial.row][trial.target])
                small = _small(maps.maps[i]).numpy()
                found.append(ScoredMap(trial, name, probability, maps.flaws[i], maps.seconds[i], small))
        return found


def _small(map_: Tensor) -> Tensor:
    """Return a map of at most ``MAP_SIDE`` cells a side, larger ones averaged: only the report's images need it."""
    if max(map_.shape) <= MAP_SIDE:
        return map_
    size = [min(side, MAP_SIDE) for side in map_.shape]
    return F.interpolate(map_[None, None], size, mode="area")[0, 0]


class _Arguments:
    """What the function of a metric is given for some trials, by name; see ``xai_abn.metrics.base.ARGUMENTS``."""

    def __init__(self, batch: _Batch, metric: Metric, method: str, seen: list[int]) -> None:
        self._batch, self._metric, self._model = batch, metric, batch.scorer.model
        self._trials = [batch.trials[metric.subject][i] for i in seen]
        self.maps = batch.maps[metric.subject, method].maps[seen]
        self.targets = torch.tensor([t.target for t in self._trials])
        self.predict, self.module, self.classes = batch.scorer.predict, self._model.module, batch.classes
        self.explain = _ExplainCall(self._model, batch.methods[method])

    @property
    def inputs(self) -> Tensor:
        inputs = self._batch.inputs_of(torch.tensor([t.row for t in self._trials]))
        return on_device(inputs, self.module) if "explain" in self._metric.arguments else inputs

    @property
    def objects(self) -> list[Objects | None]:
        return [self._batch.objects(self._metric, trial) for trial in self._trials]

    @property
    def others(self) -> list[Objects | None]:
        return [self._batch.others(self._metric, trial) for trial in self._trials]


class _ExplainCall:
    """A method as ``explain(inputs, targets, module=None)``, for sanity and stability metrics."""

    def __init__(self, model: ModelAdapter, explainer: Explainer) -> None:
        self._model, self._explainer = model, explainer

    def __call__(self, inputs: Tensor, targets: Tensor, module: nn.Module | None = None) -> Tensor:
        model = self._model if module is None else self._model.with_module(module)
        with torch.enable_grad():
            shared = run_pass(model, inputs, [self._explainer])
            return self._explainer.explain(shared, targets.to(shared.logits.device)).detach()
