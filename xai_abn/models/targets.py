"""Targets of explanations: a class, one class rather than another, or a score of the network's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.detection import DetectionTarget
from xai_abn.models.segmentation import SegmentationTarget


@dataclass(frozen=True)
class Difference:
    """Why this class and not that one? The score explained is the difference of their logits.

    Attributes:
        target: index or label of the class; None for the image's top-1 class.
        versus: index or label of the class it is compared with.

    Examples:
        >>> import xai_abn
        >>> why = xai_abn.Difference("tabby", versus="Egyptian cat")
        >>> result = xai_abn.explain(xai_abn.load_model("lite0"), "example:cat", "cam", why)
        >>> result["cam"].label
        'tabby rather than Egyptian cat'
    """

    target: int | str | None = None
    _: KW_ONLY
    versus: int | str


#: An index or label, two classes compared, a class in a region of the image, or a detection.
Target: TypeAlias = int | str | Difference | SegmentationTarget | DetectionTarget
#: A function of the network's output for a batch that gives one score per image, (N,).
ScoreFunction: TypeAlias = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ResolvedTarget:
    """A target of one image, with its class looked up.

    Attributes:
        index: class index.
        label: its name, for display.
        versus: index of the class compared with, or None.
    """

    index: int
    label: str
    versus: int | None = None

    def probability(self, logits: Tensor, model: ModelAdapter) -> float:
        """Return the probability of the class, or of this class rather than the other, from logits (K,).

        The latter is that of the first if exactly one of the two holds, for classes and attributes alike. NaN for a
        model without probabilities.
        """
        probabilities = model.probabilities(logits[None])[0]
        if self.versus is None or not bool(torch.isfinite(probabilities).all()):
            return float(probabilities[self.index])
        if model.output_kind(logits[None]) == "probabilities":
            odds = probabilities / (1 - probabilities) if model.multi_label else probabilities
            return float(odds[self.index] / (odds[self.index] + odds[self.versus]))
        return float((logits[self.index] - logits[self.versus]).sigmoid())


def resolve_targets(model: ModelAdapter, targets: Sequence[Target | None], logits: Tensor) -> list[ResolvedTarget]:
    """Look up the targets of one image, each once.

    None stands for the default: the top-1 class; for a multi-label model all attributes that are more probable than
    not, the most probable first, or the most probable alone; all outputs if they are values. Different classes with the
    same label get their index appended.

    Args:
        model: the model.
        targets: at least one.
        logits: (K,) of the image.

    Raises:
        UnknownNameError: no such label; the message suggests the nearest.
        InvalidInputError: no such index, or a class compared with itself.
    """
    top, classes = int(logits.argmax()), len(logits)
    present = list(range(classes)) if model.scores_only else []
    if model.multi_label:
        probabilities = model.probabilities(logits[None])[0]
        present = [index for index in logits.argsort(descending=True).tolist() if probabilities[index] > 0.5]
    found: dict[ResolvedTarget, None] = {}
    for target in targets:
        if target is None:
            found |= {ResolvedTarget(index, model.label(index)): None for index in present or [top]}
            continue
        if isinstance(target, (SegmentationTarget, DetectionTarget)):
            kind = "scores every class at every position" if isinstance(target, SegmentationTarget) else "detects"
            raise InvalidInputError(
                f"a {type(target).__name__} is for a network that {kind}, and {model.name} does not; give a label or "
                "an index"
            )
        one = target.target if isinstance(target, Difference) else target
        index = top if one is None else model.target_index(one, classes)
        label, versus = model.label(index), None
        if isinstance(target, Difference):
            versus = model.target_index(target.versus, classes)
            if index == versus:
                raise InvalidInputError(f"{label!r} is compared with itself; choose another class")
            label = f"{label} rather than {model.label(versus)}"
        found[ResolvedTarget(index, label, versus)] = None
    if len(found) == 1:
        return list(found)
    labels = [target.label for target in found]
    return [replace(t, label=f"{t.label} ({t.index})") if labels.count(t.label) > 1 else t for t in found]


def target_directions(targets: Sequence[ResolvedTarget], logits: Tensor) -> Tensor:
    """Return indices (N,), or directions (N, K) if any target compares two classes; logits are (N, K)."""
    indices = torch.tensor([t.index for t in targets], device=logits.device)
    if all(t.versus is None for t in targets):
        return indices
    directions = torch.zeros_like(logits).scatter_(1, indices[:, None], 1.0)
    for row, target in enumerate(targets):
        if target.versus is not None:
            directions[row, target.versus] = -1.0
    return directions


def checked_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets, detached, on the device of the logits (N, K): indices (N,), long, or directions (N, K), float32.

    Raises:
        InvalidInputError: another type or shape, a class that does not exist, or a direction that is not finite.
    """
    images, classes = logits.shape
    numbers = isinstance(targets, Tensor) and not (targets.is_complex() or targets.dtype == torch.bool)
    directions = numbers and targets.is_floating_point()
    if not numbers or tuple(targets.shape) != ((images, classes) if directions else (images,)):
        got = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise InvalidInputError(
            f"targets must be a tensor of indices ({images},) or directions ({images}, {classes}), got {got}"
        )
    if directions and not bool(targets.isfinite().all()):
        raise InvalidInputError("targets must be finite directions, got NaN or infinity")
    if not directions and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise InvalidInputError(f"targets must be from 0 to {classes - 1}, got {targets.tolist()}")
    return targets.detach().to(logits.device, torch.float32 if directions else torch.long)


def can_be_explained(logits: Tensor) -> Tensor:
    """Return whether each row of logits (N, K) has scores, (N,) bool; masked classes have minus infinity."""
    return ~((logits.isnan() | (logits == math.inf)).any(dim=1) | logits.isneginf().all(dim=1))


def target_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the score (N,) of logits (N, K): that of a class, or along a direction.

    Args:
        logits: (N, K).
        targets: (N,) class indices, or (N, K) floats, a weight for each logit, such as one class minus another.
    """
    if targets.is_floating_point():
        return (logits * targets.to(logits)).masked_fill(targets.to(logits) == 0, 0).sum(dim=1)  # 0 times infinity is 0
    return logits.gather(1, targets.to(logits.device)[:, None])[:, 0]


def select_targets(maps: Tensor, targets: Tensor) -> Tensor:
    """Return the map of each image's target, (N, h, w), from maps (N, K, h, w); for directions, the weighted sum."""
    if targets.is_floating_point():
        return torch.einsum("nk,nkhw->nhw", targets.to(maps), maps)
    rows = torch.arange(len(targets), device=maps.device)
    return maps[rows, targets.to(rows.device)]


def target_rows(rows: Tensor, targets: Tensor) -> Tensor:
    """Return the targets' rows (N, ...) of rows (K, ...), one per class; for directions, the mixture of the rows."""
    if targets.is_floating_point():
        result: Tensor = torch.tensordot(targets.to(rows), rows, dims=1)
        return result
    return rows[targets.to(rows.device)]
