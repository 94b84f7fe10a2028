"""What a metric is, and the table of their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.registry import Registry


class Subject(str, Enum):
    """Which maps a benchmark scores with a metric."""

    #: The map of the model's own top-1 class, one per image.
    PREDICTION = "prediction"
    #: The map of each annotated class that the model knows, several per image.
    CLASSES = "classes"


class Needs(str, Enum):
    """What a metric's function is given; see :class:`Metric`."""

    MAPS = "maps"
    MODEL = "model"
    OBJECTS = "objects"
    CLASS_OBJECTS = "class-objects"
    EXPLAIN = "explain"


#: Inputs (B, 3, H, W) to logits (B, K); see also :func:`probabilities_of`.
Predict = Callable[[Tensor], Tensor]

#: Combines per-image curves (N, T) and weights (N,) that sum to 1 into one value of the data set.
Aggregate = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a metric found.

    Attributes:
        values: (N,), or (N, M) for M maps a picture; NaN where a map could not be scored.
        curves: (N, T) or (N, M, T) behind the values, or None.
    """

    values: Tensor
    curves: Tensor | None = None


class Family(ABC):
    """What several metrics have in common that are computed together, as deletion and insertion are.

    A member is an immutable record; members of one ``group`` are computed by one call of :meth:`compute`.
    """

    @property
    @abstractmethod
    def group(self) -> Hashable:
        """Equal for members that can be computed together."""

    @abstractmethod
    def axis(self, height: int, width: int) -> Tensor:
        """Return the points of the members' curves (T,), for inputs of this size."""

    @abstractmethod
    def compute(
        self,
        members: Sequence[Any],
        predict: Predict,
        inputs: Tensor,
        maps: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        black: Tensor,
    ) -> list[Scores]:
        """Return the scores (N, M) of each member, with curves (N, M, T).

        Args:
            members: of this group.
            predict: inputs (B, 3, H, W) to logits (B, K).
            inputs: (N, 3, H, W), normalized.
            maps: (N, M, h, w), M maps per image.
            targets: (N,) class indices.
            batch_size: images per call of ``predict``.
            black: (3,) the normalized value of black.
        """


@dataclass(frozen=True)
class Metric:
    """A metric under one named protocol.

    Attributes:
        name: such as ``"deletion"``.
        protocol: such as ``"rise-2018"``: fixes every choice, so that equal names mean equal numbers.
        function: computes one value an image. By ``needs``:
            ``MAPS``: ``f(maps)``;
            ``MODEL``: ``f(predict, inputs, maps, targets)``;
            ``OBJECTS``: ``f(maps, objects)``;
            ``CLASS_OBJECTS``: ``f(maps, objects of the class, objects of the other classes or None)``.
            ``EXPLAIN``: ``f(explain, module, inputs, targets, number of classes)``, see :mod:`xai_abn.metrics.sanity`.
            Returns :class:`Scores`, or a tensor (N,) where there are no curves.
        needs: what the function is given.
        subject: which maps a benchmark scores.
        higher_is_better: None where neither end is better.
        range: the least and the largest value.
        units: of the value.
        source: the paper or program that defines the protocol.
        definition: one or two sentences.
        flat_counts_as: what a flat or non-finite map counts as in means: 0 for hits, which it never
            is; None where it is left out. It is flagged and counted either way.
        at_photo_size: maps are compared at the photo's own size, not the network's.
        aggregate: for values that only a whole data set has, made from the curves; None for the mean.
        family: for metrics that a benchmark computes together, of all methods in common batches.
        parameters: further settings; part of the identity of a value.
        version: raised when the computation changes, so that a benchmark does not mix old and new values.
        reads_probabilities: whether values depend on the model's probabilities, which are sigmoids for a multi-label
            model.
        axis_label: what the points of the curves are, for the report.
    """

    name: str
    protocol: str
    function: Callable[..., Any]
    needs: Needs
    higher_is_better: bool | None
    range: tuple[float, float]
    units: str
    source: str
    definition: str
    subject: Subject = Subject.PREDICTION
    flat_counts_as: float | None = None
    at_photo_size: bool = False
    aggregate: Aggregate | None = None
    family: Family | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    reads_probabilities: bool = False
    axis_label: str = ""

    @property
    def full_name(self) -> str:
        """``"name:protocol"``."""
        return f"{self.name}:{self.protocol}"

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the values: name, protocol, version and parameters."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "version": self.version,
            "parameters": dict(self.parameters),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values, for the report."""
        left_out = ("function", "aggregate", "family")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        values.update(
            needs=self.needs.value, subject=self.subject.value, range=[v if isfinite(v) else None for v in self.range]
        )
        values["parameters"] = dict(self.parameters)
        values["aggregated"] = "data-set" if self.aggregate else "mean"
        return values


def probabilities_of(predict: Predict, logits: Tensor) -> Tensor:
    """Return logits (B, K) as probabilities: by ``predict.probabilities`` if it has one, else by softmax.

    :class:`~xai_abn.models.predictor.FastPredictor` has one: each attribute of a multi-label model is a sigmoid.
    """
    own = getattr(predict, "probabilities", None)
    return logits.softmax(dim=1) if own is None else own(logits)


def _full_name(name: str, item: object) -> str:
    """Return the name of a plug-in's metric, which its record holds."""
    if not isinstance(item, Metric):
        raise InvalidInputError(f"{name!r} must be a xai_abn.metrics.Metric, not {type(item).__name__}")
    return item.full_name


metrics: Registry[Metric] = Registry("metric", "xai_abn.metrics", _full_name)


def register(metric: Metric) -> Metric:
    """Make a metric known under ``name:protocol``, to the CLI, the benchmark and the tests too.

    Raises:
        InvalidInputError: the name is taken.
    """
    return metrics.register(metric.full_name)(metric)


def names() -> list[str]:
    """Return ``name:protocol`` of all metrics, installed plug-ins included."""
    return metrics.names()


def get(name: str) -> Metric:
    """Return a metric by ``name:protocol``, or by name alone: then under its first, the default protocol.

    Raises:
        UnknownNameError: there is none; the message gives the nearest.
    """
    if ":" in name:
        return metrics[name]
    for full in metrics:
        if full.split(":")[0] == name:
            return metrics[full]
    raise UnknownNameError("metric", name, [*dict.fromkeys(n.split(":")[0] for n in metrics), *metrics])
