"""What a metric is, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.registry import Registry

if TYPE_CHECKING:
    from xai_abn.metrics.perturbation import PerturbationProtocol


class Subject(str, Enum):
    """Which maps a benchmark scores with a metric."""

    #: The map of the model's own top-1 class, one a photo.
    PREDICTION = "top-1"
    #: The map of each annotated class that the model knows, several a photo.
    CLASSES = "each class present"


class Needs(str, Enum):
    """What a metric's function is given; see :class:`Metric`."""

    MAPS = "maps"
    MODEL = "model"
    OBJECTS = "objects"
    CLASS_OBJECTS = "objects of the class and of others"
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
        perturbation: for deletion and insertion: a benchmark computes both, of all methods, in common batches.
        parameters: further settings, for the record.
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
    perturbation: PerturbationProtocol | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """``"name:protocol"``."""
        return f"{self.name}:{self.protocol}"

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as plain JSON values."""
        left_out = ("function", "aggregate", "perturbation")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        values.update(
            needs=self.needs.value, subject=self.subject.value, range=[v if isfinite(v) else None for v in self.range]
        )
        values["parameters"] = dict(self.parameters)
        values["aggregated"] = "over the data set" if self.aggregate else "mean"
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


def add(metric: Metric) -> Metric:
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
