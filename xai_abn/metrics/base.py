"""Record of a metric, and the registry of metrics."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.metrics.objects import Objects
from xai_abn.registry import Registry


class Subject(str, Enum):
    """Which maps a benchmark scores with a metric."""

    #: The map of the model's own top-1 class, one per image.
    PREDICTION = "prediction"
    #: The map of each annotated class that the model knows, several per image.
    CLASSES = "classes"


#: What the function of a metric may ask for, by the name of its parameter.
ARGUMENTS = {
    "maps": "(N, h, w), the maps of one method, in their own units; of volumes and clips (N, d, h, w).",
    "inputs": "(N, C, H, W), normalized; volumes and clips (N, C, D, H, W).",
    "targets": "(N,) class indices.",
    "predict": "inputs to logits (B, K); see :func:`probabilities_of`.",
    "objects": "N :class:`Objects`: those of the class, or of any class for the map of the prediction.",
    "others": "N :class:`Objects` or None: those of the other classes.",
    "explain": "makes maps of other inputs, targets or weights; see :class:`xai_abn.metrics.sanity.Explain`.",
    "module": "the network.",
    "classes": "K, the number of its classes.",
}

#: Inputs (B, C, H, W) or (B, C, D, H, W) to logits (B, K); see also :func:`probabilities_of`.
Predict = Callable[[Tensor], Tensor]

#: Combines per-image curves (N, T) and weights (N,) that sum to 1 into one value of the data set.
Aggregate = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Scores:
    """The values of a metric.

    Attributes:
        values: (N,), or (N, M) for M maps per image; NaN where a map could not be scored.
        curves: (N, T) or (N, M, T) that the values were computed from, or None.
    """

    values: Tensor
    curves: Tensor | None = None


class Family(ABC):
    """Metrics that are computed together, such as deletion and insertion.

    A member is an immutable record; members of one ``group`` are computed by one call of :meth:`compute`.
    """

    @property
    @abstractmethod
    def group(self) -> Hashable:
        """Equal for members that can be computed together."""

    @abstractmethod
    def axis(self, *size: int) -> Tensor:
        """Return the points of the members' curves (T,), for inputs of this size (H, W) or (D, H, W)."""

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
            predict: inputs to logits (B, K).
            inputs: (N, C, H, W) or (N, C, D, H, W), normalized.
            maps: (N, M, h, w) or (N, M, d, h, w), M maps per image.
            targets: (N,) class indices.
            batch_size: images per call of ``predict``.
            black: (C,) the normalized value of black.
        """


@dataclass(frozen=True)
class Metric:
    """A metric under one named protocol.

    Attributes:
        name: such as ``"deletion"``.
        protocol: such as ``"rise-2018"``. It fixes every choice, so that equal names mean equal values.
        function: computes one value per image. Its parameters without a default name what it is given, out of
            ``ARGUMENTS``. Returns :class:`Scores`, or a tensor (N,) where there are no curves.
        subject: which maps a benchmark scores.
        higher_is_better: None where neither end is better.
        range: the least and the largest value.
        units: of the value.
        source: the paper or program that defines the protocol.
        definition: one or two sentences.
        flat_counts_as: value of a flat or non-finite map in means, such as 0 for a metric of hits; None leaves it out.
            It is flagged either way.
        at_image_size: maps are scored at the image's own size instead of the network's input size.
        applies: whether a trial can be scored, from the objects of the class and of the other classes; None for always.
            Where it cannot, a flat map is no miss.
        aggregate: computes the value of a whole data set from the curves; None for the mean over images.
        family: computes several metrics together, for all methods in common batches.
        parameters: further settings; part of the identity of a value.
        version: raised when the computation changes, so that a benchmark does not mix old and new values.
        reads_probabilities: whether values depend on the model's probabilities, which are sigmoids for a multi-label
            model.
        axis_label: what the points of the curves are, for the report.
        depends_on: of a sanity check whose value is a correlation with the map after a change: what was changed, and
            what a map should therefore depend on, such as ``"the weights"``. Else empty.

    Raises:
        InvalidInputError: the function has a parameter that is not one of ``ARGUMENTS``.
    """

    name: str
    protocol: str
    function: Callable[..., Any]
    higher_is_better: bool | None
    range: tuple[float, float]
    units: str
    source: str
    definition: str
    subject: Subject = Subject.PREDICTION
    flat_counts_as: float | None = None
    at_image_size: bool = False
    applies: Callable[[Objects, Objects | None], bool] | None = None
    aggregate: Aggregate | None = None
    family: Family | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    reads_probabilities: bool = False
    axis_label: str = ""
    depends_on: str = ""

    def __post_init__(self) -> None:
        unknown = [name for name in self.arguments if name not in ARGUMENTS]
        if unknown:
            raise InvalidInputError(
                f"the function of the metric {self.full_name} must name what it needs, out of {', '.join(ARGUMENTS)}; "
                f"got {unknown[0]!r}"
            )

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of what the function is given."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)

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
        left_out = ("function", "applies", "aggregate", "family")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        values.update(subject=self.subject.value, range=[v if isfinite(v) else None for v in self.range])
        values["parameters"] = dict(self.parameters)
        values["aggregated"] = "data-set" if self.aggregate else "mean"
        return values


def probabilities_of(predict: Predict, logits: Tensor) -> Tensor:
    """Return the probabilities of logits (B, K), by ``predict.probabilities`` if there is one, else by softmax.

    :class:`~xai_abn.models.predictor.Predictor` has one; for a multi-label model it is the sigmoid.
    """
    own = getattr(predict, "probabilities", None)
    return logits.softmax(dim=1) if own is None else own(logits)


def _full_name(name: str, item: object) -> str:
    """Return the full name of a plug-in's metric."""
    if not isinstance(item, Metric):
        raise InvalidInputError(f"{name!r} must be a xai_abn.metrics.Metric, not {type(item).__name__}")
    return item.full_name


METRICS: Registry[Metric] = Registry("metric", "xai_abn.metrics", _full_name)


def register(metric: Metric) -> Metric:
    """Register a metric under ``name:protocol``, for the command line, benchmarks and tests.

    Raises:
        InvalidInputError: the name is taken.
    """
    return METRICS.register(metric.full_name)(metric)


def names() -> list[str]:
    """Return the ``name:protocol`` of all metrics, including those of installed plug-ins."""
    return METRICS.names()


def get(name: str) -> Metric:
    """Return a metric by ``name:protocol``, or by name alone for its default protocol, the first one registered.

    Raises:
        UnknownNameError: there is no such metric; the message suggests the nearest names.
    """
    if ":" in name:
        return METRICS[name]
    for full in METRICS:
        if full.split(":")[0] == name:
            return METRICS[full]
    raise UnknownNameError("metric", name, [*dict.fromkeys(n.split(":")[0] for n in METRICS), *METRICS])
