"""From one batch of photos to maps and values: one forward pass for all methods, common batches for all curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.benchmark.records import MapRow, ResultRow
from xai_abn.benchmark.store import key_of
from xai_abn.benchmark.trials import TOP, Photo, Trial, trials_of
from xai_abn.errors import NonFiniteError
from xai_abn.explainers import Explainer, run_pass
from xai_abn.heatmaps import flaws, upsample
from xai_abn.images.preprocess import Preprocess
from xai_abn.metrics.base import Metric, Needs, Scores, Subject
from xai_abn.metrics.objects import Objects
from xai_abn.metrics.perturbation import PerturbationProtocol, area, perturbation_curves
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.predictor import FastPredictor

#: Largest side of the maps that are kept.
MAP_SIDE = 56

#: Metrics to compute and, for each, the methods to compute it for.
Wanted = Sequence[tuple[Metric, Sequence[str]]]
#: Photo's key, method and metric to the key of a value.
KeyOf = Callable[[str, str, str], str]


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps (T, h, w) of one method for some trials, in their order, and the seconds each took."""

    maps: Tensor
    flaws: list[str | None]
    seconds: float


class Scorer:
    """Explains and scores batches of photos.

    Args:
        model: the model to explain.
        preprocess: how its pictures were made.
        predict: its logits for perturbed pictures.
        indices: the model's classes for each class of the data set.
        evaluations: perturbed pictures per batch.
    """

    def __init__(
        self,
        model: ModelAdapter,
        preprocess: Preprocess,
        predict: FastPredictor,
        indices: dict[str, tuple[int, ...]],
        evaluations: int,
    ) -> None:
        self.model = model
        self.predict = predict
        self.indices = indices
        self.evaluations = evaluations
        self.black = (0 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)

    def score(
        self, photos: Sequence[Photo], methods: Mapping[str, Explainer], wanted: Wanted, key: KeyOf
    ) -> tuple[list[MapRow], list[ResultRow]]:
        """Return the maps and values of photos of one size.

        Raises:
            NonFiniteError: scores of some photos are not finite; ``rows`` says which.
            UnsupportedModelError: a method does not apply to the model.
        """
        batch = _Batch(self, photos, methods, {metric.subject for metric, _ in wanted})
        results: list[ResultRow] = []
        curves = [(m, names) for m, names in wanted if m.perturbation is not None]
        for metric, names in wanted:
            if metric.perturbation is None:
                for name in names:
                    results += batch.rows(metric, name, batch.scores(metric, name), key, batch.askable(metric, name))
        for group in _common(curves):
            results += batch.curves(group, key)
        return batch.map_rows(), results


def _common(curves: Wanted) -> list[Wanted]:
    """Group deletion and insertion of one protocol for the same methods: they share predictions."""
    groups: dict[tuple[PerturbationProtocol | None, tuple[str, ...], Subject], list[tuple[Metric, Sequence[str]]]] = {}
    for metric, names in curves:
        groups.setdefault((metric.perturbation, tuple(names), metric.subject), []).append((metric, names))
    return list(groups.values())


class _Batch:
    """The maps of one batch and what is measured on them."""

    def __init__(
        self, scorer: Scorer, photos: Sequence[Photo], methods: Mapping[str, Explainer], subjects: set[Subject]
    ) -> None:
        self.scorer, self.photos, self.methods = scorer, photos, methods
        inputs = torch.stack([p.prepared.tensor for p in photos])
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        started = perf_counter()
        shared = run_pass(scorer.model, self.inputs, methods.values(), [p.name for p in photos])
        bad = [row for row, good in enumerate(torch.isfinite(shared.logits).all(dim=1).tolist()) if not good]
        if bad:
            names = ", ".join(photos[row].name for row in bad)
            raise NonFiniteError(f"{names}: {scorer.model.name} answers with NaN or infinite scores", bad)
        self.logits, self.top = shared.logits.cpu(), shared.logits.argmax(dim=1).cpu()
        self.probabilities = scorer.model.probabilities(self.logits)
        self.shared_seconds = (perf_counter() - started) / len(photos)
        self.trials: dict[Subject, list[Trial]] = {Subject.PREDICTION: [], Subject.CLASSES: []}
        if Subject.PREDICTION in subjects:
            self.trials[Subject.PREDICTION] = [Trial(row, TOP, int(t)) for row, t in enumerate(self.top)]
        if Subject.CLASSES in subjects:
            self.trials[Subject.CLASSES] = [
                t for row, p in enumerate(photos) for t in trials_of(p, row, self.logits, scorer.indices)
            ]
        self.maps = {
            (s, name): self._explain(shared, e, self.trials[s]) for s in subjects for name, e in methods.items()
        }

    def _explain(self, shared: ForwardPass, explainer: Explainer, trials: Sequence[Trial]) -> _Maps:
        """Explain every trial; a class-agnostic method is asked once, a class-specific one once for each class."""
        started = perf_counter()
        if not trials:
            return _Maps(torch.zeros(0, 1, 1), [], 0.0)
        made: list[Tensor | None] = [None] * len(trials)
        if not explainer.is_class_specific(self.scorer.model):
            maps = explainer.explain(shared, self.top.to(shared.logits.device)).detach().float().cpu()
            made = [maps[t.row] for t in trials]
        else:
            for turn in _turns(trials):
                targets = self.top.clone()
                for i in turn:
                    targets[trials[i].row] = trials[i].target
                maps = explainer.explain(shared, targets.to(shared.logits.device)).detach().float().cpu()
                for i in turn:
                    made[i] = maps[trials[i].row]
        stacked = torch.stack([m for m in made if m is not None])
        seconds = self.shared_seconds + (perf_counter() - started) / len(trials)
        return _Maps(stacked, flaws(stacked), seconds)

    def scores(self, metric: Metric, name: str) -> Scores:
        """Return one metric of one method for all trials of its subject."""
        trials, maps = self.trials[metric.subject], self.maps[metric.subject, name].maps
        if not trials:
            return Scores(torch.zeros(0))
        rows, targets = torch.tensor([t.row for t in trials]), torch.tensor([t.target for t in trials])
        if metric.needs is Needs.MAPS:
            found = metric.function(maps)
        elif metric.needs is Needs.MODEL:
            found = metric.function(self.scorer.predict, self._inputs_of(rows), maps, targets)
        elif metric.needs is Needs.EXPLAIN:
            explain = _ExplainCall(self, name)
            module, classes = self.scorer.model.module, self.logits.shape[1]
            found = metric.function(explain, module, self._inputs_of(rows), targets, classes)
        else:
            found = self._with_objects(metric, maps, trials)
        return found if isinstance(found, Scores) else Scores(found)

    def _with_objects(self, metric: Metric, maps: Tensor, trials: Sequence[Trial]) -> Scores:
        """Score the trials whose objects are in view; the others have no value."""
        own: list[Objects | None] = []
        for t in trials:
            classes = None if t.name == TOP else [t.name]
            own.append(self.photos[t.row].objects(classes, at_photo_size=metric.at_photo_size))
        seen = [i for i, o in enumerate(own) if o is not None]
        if not seen:
            return Scores(torch.full((len(trials),), math.nan))
        arguments = [[o for o in own if o is not None]]
        if metric.needs is Needs.CLASS_OBJECTS:
            others = [
                self.photos[trials[i].row].others(trials[i].name, at_photo_size=metric.at_photo_size) for i in seen
            ]
            arguments.append(others)  # type: ignore[arg-type]
        found = metric.function(maps[seen], *arguments)
        found = found if isinstance(found, Scores) else Scores(found)
        values = torch.full((len(trials),), math.nan)
        values[seen] = found.values.float()
        if found.curves is None:
            return Scores(values)
        curves = torch.full((len(trials), found.curves.shape[1]), math.nan)
        curves[seen] = found.curves.float()
        return Scores(values, curves)

    def curves(self, group: Wanted, key: KeyOf) -> list[ResultRow]:
        """Return deletion and insertion of all methods of one protocol, from common batches of perturbed pictures."""
        metric, names = group[0]
        assert metric.perturbation is not None  # the caller chose those
        trials = self.trials[metric.subject]
        if not trials:
            return []
        size = (self.inputs.shape[2], self.inputs.shape[3])
        maps = torch.stack([upsample(self.maps[metric.subject, n].maps, size) for n in names], dim=1)
        rows, targets = torch.tensor([t.row for t in trials]), torch.tensor([t.target for t in trials])
        found = perturbation_curves(
            self.scorer.predict,
            self._inputs_of(rows),
            maps,
            targets,
            metric.perturbation,
            [m.name for m, _ in group],  # type: ignore[misc]
            batch_size=self.scorer.evaluations,
            black=self.scorer.black,
        )
        results = []
        for member, _ in group:
            points = found.deletion if member.name == "deletion" else found.insertion
            assert points is not None  # it was asked for
            areas = area(points, found.axis)
            for i, name in enumerate(names):
                results += self.rows(member, name, Scores(areas[:, i], points[:, i]), key)
        return results

    def _inputs_of(self, rows: Tensor) -> Tensor:
        if torch.equal(rows, torch.arange(len(self.photos))):
            return self.inputs
        return self.inputs[rows].contiguous(memory_format=torch.channels_last)

    def askable(self, metric: Metric, name: str) -> list[bool]:
        """Say of each trial whether any map could be scored; a flawed map counts as a miss only there.

        Found out by scoring a sound map, a ramp, in place of each flawed one.
        """
        found, trials = self.maps[metric.subject, name], self.trials[metric.subject]
        flawed = [i for i, flaw in enumerate(found.flaws) if flaw]
        answers = [True] * len(trials)
        if flawed and metric.needs in (Needs.OBJECTS, Needs.CLASS_OBJECTS):
            ramps = torch.linspace(0, 1, 49).view(1, 7, 7).expand(len(flawed), -1, -1)
            values = self._with_objects(metric, ramps, [trials[i] for i in flawed]).values
            for i, value in zip(flawed, values.tolist(), strict=True):
                answers[i] = math.isfinite(value)
        return answers

    def rows(
        self, metric: Metric, name: str, scores: Scores, key: KeyOf, askable: Sequence[bool] | None = None
    ) -> list[ResultRow]:
        """Return the values as rows; photos without a trial get one that says so, so that they count as done."""
        found, trials = self.maps[metric.subject, name], self.trials[metric.subject]
        values = scores.values.double().tolist()
        curves = None if scores.curves is None else scores.curves.numpy().astype(np.float32)
        results = []
        for i, trial in enumerate(trials):
            value = values[i] if math.isfinite(values[i]) else None
            curve = curves[i] if curves is not None and np.isfinite(curves[i]).all() else None
            flaw = found.flaws[i] if value is None and (askable is None or askable[i]) else None
            results.append(self._row(metric, name, trial, value, flaw, curve, key))
        without = set(range(len(self.photos))) - {t.row for t in trials}
        results += [self._row(metric, name, Trial(r, "", -1), None, None, None, key) for r in sorted(without)]
        return results

    def _row(
        self,
        metric: Metric,
        name: str,
        trial: Trial,
        value: float | None,
        flaw: str | None,
        curve: np.ndarray | None,
        key: KeyOf,
    ) -> ResultRow:
        photo = self.photos[trial.row]
        work = key(photo.key, name, metric.full_name)
        return ResultRow(
            key_of(work=work, trial=trial.name),
            photo.key,
            name,
            trial.name,
            trial.target,
            metric.full_name,
            value,
            flaw,
            curve,
            work,
        )

    def map_rows(self) -> list[MapRow]:
        """Return every map that was made."""
        made = []
        for (subject, name), found in self.maps.items():
            for i, trial in enumerate(self.trials[subject]):
                photo = self.photos[trial.row]
                made.append(
                    MapRow(
                        key_of(image=photo.key, method=name, trial=trial.name),
                        photo.key,
                        name,
                        trial.name,
                        trial.target,
                        self.scorer.model.label(trial.target),
                        float(self.probabilities[trial.row, trial.target]),
                        found.flaws[i],
                        found.seconds,
                        _small(found.maps[i]).numpy(),
                    )
                )
        return made


def _small(map_: Tensor) -> Tensor:
    """Return a map of at most ``MAP_SIDE`` cells a side, larger ones averaged: only the report's pictures need it."""
    if max(map_.shape) <= MAP_SIDE:
        return map_
    size = [min(side, MAP_SIDE) for side in map_.shape]
    return F.interpolate(map_[None, None], size, mode="area")[0, 0]


class _ExplainCall:
    """A method as ``explain(inputs, targets, module=None)``, for sanity and stability metrics."""

    def __init__(self, batch: _Batch, name: str) -> None:
        self._model, self._explainer = batch.scorer.model, batch.methods[name]

    def __call__(self, inputs: Tensor, targets: Tensor, module: nn.Module | None = None) -> Tensor:
        model = self._model if module is None else self._model.with_module(module)
        with torch.enable_grad():
            shared = run_pass(model, inputs, [self._explainer])
            return self._explainer.explain(shared, targets.to(shared.logits.device)).detach()


def _turns(trials: Sequence[Trial]) -> list[list[int]]:
    """Split trials into rounds that hold each photo at most once."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for i, trial in enumerate(trials):
        turn = seen.get(trial.row, 0)
        seen[trial.row] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(i)
    return rounds
