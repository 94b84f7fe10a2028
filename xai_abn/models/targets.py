"""What a map is asked to explain: a class, one class rather than another, or any score of the network's answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.models.adapter import ModelAdapter


@dataclass(frozen=True)
class Difference:
    """Why this class and not that one? The score explained is the difference of their logits.

    Args:
        versus: index or label of the class compared with.
        target: index or label; default: the picture's top-1 class.

    Example:
        >>> import xai_abn
        >>> why = xai_abn.Difference("tabby", versus="Egyptian cat")
        >>> result = xai_abn.explain(xai_abn.load_model("lite0"), "example:cat", "cam", why)
        >>> result["cam"].label
        'tabby rather than Egyptian cat'
    """

    target: int | str | None = None
    versus: int | str = 0


#: An index or label, or two compared.
Target: TypeAlias = int | str | Difference
#: A function of the network's answer to a batch that gives one score an image (N,).
Score: TypeAlias = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Question:
    """One target of one picture, looked up.

    Attributes:
        index: class index.
        label: for people.
        versus: index of the class compared with, or None.
    """

    index: int
    label: str
    versus: int | None = None

    @staticmethod
    def of(model: ModelAdapter, target: Target | None, top: int, classes: int) -> Question:
        """Look a target up; None is the top-1 class.

        Raises:
            UnknownNameError: no such label; the message gives the nearest.
            InvalidInputError: no such index, or a class compared with itself.
        """
        if not isinstance(target, Difference):
            index = top if target is None else model.target_index(target, classes)
            return Question(index, model.label(index))
        index = top if target.target is None else model.target_index(target.target, classes)
        versus = model.target_index(target.versus, classes)
        if index == versus:
            raise InvalidInputError(f"{model.label(index)!r} is compared with itself; choose another class")
        return Question(index, f"{model.label(index)} rather than {model.label(versus)}", versus)

    def probability(self, logits: Tensor, model: ModelAdapter) -> float:
        """Return the probability of the class, or of this class rather than the other; logits are (K,).

        The latter is that of the first if exactly one of the two holds, of classes and of attributes alike. NaN where
        the model has no probabilities.
        """
        if self.versus is not None and not model.scores_only:
            return float((logits[self.index] - logits[self.versus]).sigmoid())
        return float(model.probabilities(logits[None])[0, self.index])


def default_targets(model: ModelAdapter, logits: Tensor) -> list[int]:
    """Return what is explained of a picture with logits (K,) where no target is named.

    The top-1 class; of a multi-label model all attributes that are more probable than not, the most probable first, or
    the most probable alone where none is.
    """
    ranked = logits.argsort(descending=True).tolist()
    present = [index for index in ranked if logits[index] > 0] if model.multi_label else []
    return present or ranked[:1]


def distinct(questions: Sequence[Question]) -> list[Question]:
    """Return one picture's questions, each once; different classes of one label get their index behind it."""
    once = list(dict.fromkeys(questions))
    labels = [q.label for q in once]
    return [replace(q, label=f"{q.label} ({q.index})") if labels.count(q.label) > 1 else q for q in once]


def as_tensor(questions: Sequence[Question], logits: Tensor) -> Tensor:
    """Return indices (N,), or directions (N, K) where any question compares two classes; logits are (N, K)."""
    indices = torch.tensor([q.index for q in questions], device=logits.device)
    if all(q.versus is None for q in questions):
        return indices
    directions = torch.zeros_like(logits).scatter_(1, indices[:, None], 1.0)
    for row, question in enumerate(questions):
        if question.versus is not None:
            directions[row, question.versus] = -1.0
    return directions
