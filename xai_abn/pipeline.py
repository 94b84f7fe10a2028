"""From pictures to explanations: read, prepare, run once a batch, ask every method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_abn.errors import InvalidInputError, NonFiniteError, XaiAbnError
from xai_abn.explainers import Explainer, make_explainers, run_batch
from xai_abn.explanation import Explanation
from xai_abn.images.loading import from_array, load_image, to_rgb
from xai_abn.images.preprocess import PreparedImage, Preprocess
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import Difference, Question, Score, Target, as_tensor, default_targets, distinct

#: Pictures per forward pass.
BATCH_SIZE = 8


class ImageExplanations(dict[str | tuple[str, str], Explanation]):
    """The explanations of one picture by method name, or, for several targets, by (method, label).

    With several targets the name alone gives the first of them. Shows their sheet in a notebook.
    """

    def __missing__(self, key: Any) -> Explanation:
        """Return the first explanation of a method."""
        for name, explanation in self.items():
            if isinstance(name, tuple) and key == name[0]:
                return explanation
            one_for_all = not explanation.class_specific
            if isinstance(key, tuple) and name == key[0] and (one_for_all or explanation.label == key[1]):
                return explanation
        raise KeyError(key)

    def _repr_png_(self) -> bytes:
        from xai_abn.rendering import png_bytes, sheet

        return png_bytes(sheet(list(self.values())))


class Explanations(list[ImageExplanations]):
    """One :class:`ImageExplanations` a picture; for a single picture, methods can be asked for directly.

    ``explain(model, "cat.jpg")["abn"]`` is ``explain(model, "cat.jpg")[0]["abn"]``.
    """

    def __getitem__(self, key: Any) -> Any:
        """Return the explanations at a position, or of a method if there is one picture.

        Raises:
            InvalidInputError: a method was asked for, but there are several pictures.
        """
        if isinstance(key, str):
            if len(self) != 1:
                raise InvalidInputError(f"there are {len(self)} pictures; choose one first, as in result[0][{key!r}]")
            return super().__getitem__(0)[key]
        return super().__getitem__(key)


def explain(
    model: ModelAdapter | torch.nn.Module,
    images: Any,
    methods: str | Explainer | Sequence[str | Explainer] | None = None,
    targets: Target | Score | Sequence[Target | Sequence[Target]] | None = None,
) -> Explanations:
    """Explain one or many pictures with one or many methods, from one forward pass a batch.

    Args:
        model: from :func:`xai_abn.load_model` or :func:`xai_abn.wrap`; a bare module is wrapped.
        images: one or a sequence of: path or ``"example:cat"``, Pillow image, uint8 array (H, W, 3),
            uint8 tensor (3, H, W), or normalised float tensor (3, H, W) or (N, 3, H, W), used as it is.
        methods: names or :class:`Explainer` objects; default ``"abn"`` for an ABN that uses its
            map, else ``"grad-cam"``.
        targets: None for each picture's top-1 class, of a multi-label model for all attributes it is more likely to
            have than not, the most probable first (or the most probable alone); one for all, or one a picture: an
            index, a label or a :class:`Difference` of two classes. A list inside the list asks for several of one
            picture. Or a function that takes the network's answer to a batch and gives one score an image (N,), for
            all.

    Returns:
        A list with, for each picture, a dictionary from method to :class:`Explanation`; with several targets from
        (method, label).

    Raises:
        ImageLoadError: a picture cannot be read.
        UnknownNameError: an unknown method, layer or label; the message gives the nearest.
        UnsupportedModelError: a method does not apply to the model.
        InvalidInputError: an image, target or their number is wrong.
        NonFiniteError: the model answers with NaN or infinity.

    Example:
        >>> import xai_abn
        >>> result = xai_abn.explain(xai_abn.load_model("lite0"), "example:cat", ["cam", "grad-cam"])
        >>> result["cam"].label
        'tiger cat'
    """
    model = model if isinstance(model, ModelAdapter) else wrap(model)
    if callable(targets):
        model = model.with_output(targets, getattr(targets, "__name__", type(targets).__name__))
        targets = None
    methods = make_explainers(model, methods)
    prepared = [prepare(image, model.preprocess, i) for i, image in enumerate(_listed(images))]
    chosen = _targets_per_image(targets, len(prepared))
    result = Explanations()
    for group, start in _same_size_groups(prepared):
        result.extend(explain_batch(model, group, methods, chosen[start : start + len(group)]))
    return result


def explain_batch(
    model: ModelAdapter,
    prepared: Sequence[PreparedImage],
    methods: Sequence[Explainer],
    targets: Sequence[Sequence[Target | None]],
) -> list[ImageExplanations]:
    """Explain prepared pictures of one size in one forward pass.

    Args:
        model: the model to explain.
        prepared: pictures.
        methods: explainers.
        targets: for each picture one or more.

    Raises:
        NonFiniteError: scores of some pictures are not finite; ``rows`` says which.
    """
    started = perf_counter()
    shared = run_batch(model, torch.stack([p.tensor for p in prepared]), methods, [p.source for p in prepared])
    check_finite(shared)
    top = shared.logits.argmax(dim=1).tolist()
    classes = shared.logits.shape[1]
    asked = [
        distinct([Question.of(model, w, int(logits.argmax()), classes) for w in _named(model, wanted, logits)])
        for wanted, logits in zip(targets, shared.logits, strict=True)
    ]
    plain = [[Question.of(model, None, t, classes)] for t in top]
    results = [ImageExplanations() for _ in prepared]
    shared_seconds = perf_counter() - started
    for method in methods:
        questions = asked if method.is_class_specific(model) else plain
        for turn in range(max(map(len, questions), default=0)):
            _explain_turn(shared, method, prepared, questions, turn, results, shared_seconds)
    return results


def _named(model: ModelAdapter, targets: Sequence[Target | None], logits: Tensor) -> list[Target]:
    """Return the targets of one picture, with those it has by default in place of None."""
    return [t for target in targets for t in (default_targets(model, logits) if target is None else [target])]


def _explain_turn(
    shared: ForwardPass,
    method: Explainer,
    prepared: Sequence[PreparedImage],
    questions: Sequence[Sequence[Question]],
    turn: int,
    results: Sequence[ImageExplanations],
    shared_seconds: float,
) -> None:
    """Ask one method the pictures' questions number ``turn``, and file the answers."""
    started, model = perf_counter(), shared.model
    now = [several[min(turn, len(several) - 1)] for several in questions]
    targets = as_tensor(now, shared.logits)
    maps = method.explain(shared, targets).detach().float().cpu().numpy()
    scores, facts = shared.scores(shared.logits, targets), _facts(shared, method)
    seconds = (shared_seconds + perf_counter() - started) / len(prepared)
    for row, (picture, question) in enumerate(zip(prepared, now, strict=True)):
        if turn >= len(questions[row]):
            continue
        logits = shared.logits[row]
        key = method.spec if len(questions[row]) == 1 else (method.spec, question.label)
        results[row][key] = Explanation(
            map=np.ascontiguousarray(maps[row]),
            target=question.index,
            label=question.label,
            versus=question.versus,
            score=float(scores[row]),
            probability=question.probability(logits, model),
            predicted=int(logits.argmax()),
            predicted_label=model.label(int(logits.argmax())),
            view=picture.view,
            source=picture.source,
            notes=picture.notes,
            seconds=seconds,
            **facts,
        )


def explain_each(
    model: ModelAdapter,
    sources: Iterable[str],
    methods: Sequence[Explainer],
    target: Target | Sequence[Target] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[str, ImageExplanations | XaiAbnError]]:
    """Explain many files; one that fails gives its error in place of its explanations, the rest go on.

    Yields:
        ``(source, explanations or error)`` in the order of ``sources``.
    """
    waiting: list[tuple[str, PreparedImage | XaiAbnError]] = []
    for source in sources:
        try:
            waiting.append((source, model.preprocess(load_image(source))))
        except XaiAbnError as error:
            waiting.append((source, error))
        if len(waiting) == batch_size:
            yield from explain_prepared(model, waiting, methods, target)
            waiting = []
    yield from explain_prepared(model, waiting, methods, target)


def explain_prepared(
    model: ModelAdapter,
    waiting: list[tuple[str, PreparedImage | XaiAbnError]],
    methods: Sequence[Explainer],
    target: Target | Sequence[Target] | None = None,
) -> Iterator[tuple[str, ImageExplanations | XaiAbnError]]:
    """Explain one batch of what could be read; pictures whose scores are not finite are set aside, the rest run again.

    Args:
        model: the model.
        waiting: (name, prepared picture of one size with the others, or why there is none).
        methods: from :func:`make_explainers`.
        target: explained in all of them; default: each one's top-1 class.

    Yields:
        ``(name, explanations or error)`` in the order of ``waiting``.
    """
    outcome: list[ImageExplanations | XaiAbnError | None] = [
        w if isinstance(w, XaiAbnError) else None for _, w in waiting
    ]
    left = [(i, w) for i, (_, w) in enumerate(waiting) if isinstance(w, PreparedImage)]
    while left:
        try:
            results = explain_batch(model, [p for _, p in left], methods, [_several(target) for _ in left])
        except NonFiniteError as error:
            for row in error.rows:
                outcome[left[row][0]] = NonFiniteError(_non_finite_message(model, left[row][1].source), [row])
            left = [item for row, item in enumerate(left) if row not in error.rows]
            continue
        except InvalidInputError as error:
            if not any(isinstance(t, Difference) and t.target is None for t in _several(target)):
                raise
            if len(left) > 1:  # a picture whose top-1 class is the one compared with: the others go on
                for i, item in left:
                    ((_, outcome[i]),) = explain_prepared(model, [(waiting[i][0], item)], methods, target)
            else:
                outcome[left[0][0]] = InvalidInputError(f"{left[0][1].source}: {error}")
            break
        for (i, _), result in zip(left, results, strict=True):
            outcome[i] = result
        break
    for (source, _), answer in zip(waiting, outcome, strict=True):
        assert answer is not None  # every picture was explained, unreadable or set aside
        yield source, answer


def prepare(image: Any, preprocess: Preprocess, position: int = 0) -> PreparedImage:
    """Turn any accepted picture into a network's input and its view; see :func:`explain`.

    Raises:
        ImageLoadError: a path that cannot be read.
        InvalidInputError: another kind of object, shape or dtype.
    """
    name = f"image {position}"
    if isinstance(image, (str, Path)):
        return preprocess(load_image(image))
    if isinstance(image, Image.Image):
        return preprocess(to_rgb(image, getattr(image, "filename", "") or name))
    if isinstance(image, np.ndarray):
        return preprocess(from_array(image, name))
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:
        return preprocess(from_array(image.permute(1, 2, 0).cpu().numpy(), name))
    if isinstance(image, Tensor):
        return preprocess.prepared_tensor(image, name)
    raise InvalidInputError(f"{name}: expected a path, Pillow image, uint8 array or tensor, got {type(image).__name__}")


def _listed(images: Any) -> list[Any]:
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, (Tensor, np.ndarray)):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise InvalidInputError(f"images must be one picture or a sequence of them, got {type(images).__name__}")
    return list(images)


def _targets_per_image(targets: Any, number: int) -> list[list[Target | None]]:
    if isinstance(targets, (Tensor, np.ndarray, np.generic)):
        targets = targets.tolist()
    if targets is None or isinstance(targets, (int, float, str, Difference)):
        return [[targets]] * number  # type: ignore[list-item]
    chosen = list(targets)
    if len(chosen) != number:
        raise InvalidInputError(
            f"got {len(chosen)} targets for {number} images; give one for all, or one each (several as a list in the "
            "list)"
        )
    return [_several(target) for target in chosen]


def _several(target: Any) -> list[Target | None]:
    """Return the targets of one picture as a list."""
    if isinstance(target, (Tensor, np.ndarray, np.generic)):
        target = target.tolist()
    if isinstance(target, (list, tuple)):
        if not target:
            raise InvalidInputError("a picture's list of targets is empty; leave it out for the top-1 class")
        return list(target)
    if callable(target):
        raise InvalidInputError("a function as target goes for all pictures at once: targets=function")
    return [target]


def _same_size_groups(prepared: list[PreparedImage]) -> Iterator[tuple[list[PreparedImage], int]]:
    """Yield runs of at most ``BATCH_SIZE`` neighbours of one size, with the position of the first."""
    start = 0
    for i in range(1, len(prepared) + 1):
        full = i - start == BATCH_SIZE
        if i == len(prepared) or full or prepared[i].tensor.shape != prepared[start].tensor.shape:
            yield prepared[start:i], start
            start = i


def check_finite(shared: ForwardPass) -> None:
    """Refuse a pass with NaN or infinite logits.

    Raises:
        NonFiniteError: names the pictures; ``rows`` says which.
    """
    rows = [i for i, good in enumerate(torch.isfinite(shared.logits).all(dim=1).tolist()) if not good]
    if rows:
        raise NonFiniteError(_non_finite_message(shared.model, *(shared.sources[i] for i in rows)), rows)


def _non_finite_message(model: ModelAdapter, *sources: str) -> str:
    return (
        f"{', '.join(sources)}: {model.name} answers with NaN or infinite scores; check its weights and preprocessing"
    )


def _facts(shared: ForwardPass, method: Explainer) -> dict[str, Any]:
    model = shared.model
    return {
        "method": method.spec,
        "class_specific": method.is_class_specific(model),
        "layer": method.layer_of(model),
        "model": model.name,
        "parameters": method.options,
        "versions": {"xai-abn": version("xai-abn"), "torch": torch.__version__},
    }
