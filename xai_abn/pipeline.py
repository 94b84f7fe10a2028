"""The only path from images to explanations: read, prepare, run once per batch, compute every method's maps."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_abn import __version__
from xai_abn.errors import ImageLoadError, InvalidInputError, NonFiniteError, XaiAbnError, shown
from xai_abn.explainers import Explainer, make_explainers, passes_of, run_pass
from xai_abn.explanation import Explanation, Explanations, ImageExplanations
from xai_abn.images.clips import ClipPreprocess, clip_of, load_clip
from xai_abn.images.loading import decode_image, from_array, load_image, to_rgb
from xai_abn.images.preprocess import PreparedImage, Preprocess
from xai_abn.images.volumes import NIFTI, load_volume
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.detection import Detection, DetectionTarget, as_target, find_detection
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.inputs import rows_of
from xai_abn.models.passes import Passes
from xai_abn.models.segmentation import Region, SegmentationTarget, find_region
from xai_abn.models.targets import (
    Difference,
    ResolvedTarget,
    ScoreFunction,
    Target,
    can_be_explained,
    resolve_targets,
    target_directions,
    target_scores,
)
from xai_abn.networks.checkpoint import fingerprint
from xai_abn.networks.tracing import refuse_fork
from xai_abn.rendering import with_box
from xai_abn.threads import in_order

_log = logging.getLogger(__name__)

#: Images per forward pass on a GPU, until memory runs out, and on a CPU, whose caches hold eight of 224x224.
_ON_GPU, _ON_CPU, _VALUES_ON_CPU = 256, 8, 8 * 3 * 224 * 224

#: Images per forward pass of networks for which memory ran out.
_MOST: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()

#: Number of classes of which a record has the probability.
TOP = 5

#: A target other than the prediction with a smaller probability gets a note.
UNSEEN = 0.01

#: The targets of one image (None for the default), or a function from its logits (K,) to them.
ImageTargets: TypeAlias = Sequence[Target | None] | Callable[[Tensor], Sequence[Target | None]]
#: The result for one image: its explanations, or the error that prevented them.
Result: TypeAlias = ImageExplanations | XaiAbnError


def explain(
    model: ModelAdapter | torch.nn.Module,
    images: Any,
    methods: str | Explainer | Sequence[str | Explainer] | None = None,
    targets: Target | ScoreFunction | Sequence[Target | Sequence[Target]] | None = None,
    *,
    create_graph: bool = False,
    other_inputs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Explanations:
    """Explain one or many images with one or many methods, from one forward pass per batch.

    Args:
        model: from :func:`xai_abn.load_model` or :func:`xai_abn.wrap`; a bare module is wrapped.
        images: one image or several: path or ``"example:cat"``, Pillow image, encoded bytes, open binary file, uint8
            array (H, W, 3), uint8 tensor (3, H, W), or normalized float tensor (3, H, W) or (N, 3, H, W), used as is.
            For a network that takes volumes or clips: normalized float tensor (C, D, H, W) or (N, C, D, H, W), used as
            is, or the path of a NIfTI file, whose values are used as they are; for one with a
            :class:`~xai_abn.images.clips.ClipPreprocess` also the path of a video or an animated GIF, or a uint8 array
            of frames (T, H, W, 3).
        methods: specifications such as ``"grad-cam"`` or ``"rise:masks=500"``, or :class:`Explainer` objects; default
            ``"abn-mask"`` for an ABN with masks, ``"abn"`` for another that uses its map, else ``"grad-cam"``.
        targets: None for each image's top-1 class, or, for a multi-label model, all attributes that it is more likely
            to have than not; one target for all images, or one per image: an index, a label or a :class:`Difference`
            of two classes. A list inside the list asks for several targets of one image. Or a function that takes the
            network's output for a batch and gives one score per image (N,). For a network that scores every class at
            every position, a class is explained where it is the top one, or in a :class:`SegmentationTarget`. For a
            detector, a target is a class, such as ``"dog"`` or ``"dog#2"`` for the second of them by score, or a
            :class:`DetectionTarget`.
        create_graph: keep the history of the maps in ``Explanation.tensor``, so that a loss of them can be
            differentiated by the network's weights; see :meth:`Explanations.tensors`. All images run in one pass,
            in evaluation mode as always. Only methods with a differentiable formula.
        other_inputs: for a network of several inputs (see :func:`xai_abn.wrap`), the others than the image by name:
            tensors with a row for each image, (N, ...). Methods that change an image leave its other inputs as they
            are. Each image is then explained alone.
        batch_size: images per forward pass; default: as many as the device takes, see :func:`images_per_pass`.

    Returns:
        A list with, for each image, a dictionary from method to :class:`Explanation`; for several targets from
        (method, label).

    Raises:
        ImageLoadError: an image cannot be read.
        UnknownNameError: an unknown method, option, layer or label; the message suggests the nearest.
        UnsupportedModelError: a method does not apply to the model.
        InvalidInputError: an image, target or their number is wrong; or, with ``create_graph``, gradients are switched
            off, the method is not differentiable, or nothing that the map depends on requires a gradient.
        NonFiniteError: the model outputs NaN or infinity.

    Examples:
        >>> import xai_abn
        >>> result = xai_abn.explain(xai_abn.load_model("lite0"), "example:cat", ["cam", "grad-cam"])
        >>> result["cam"].label
        'tiger cat'
    """
    model = model if isinstance(model, ModelAdapter) else wrap(model)
    if callable(targets):
        model = model.with_output(targets, getattr(targets, "__name__", type(targets).__name__))
        targets = None
    explainers = make_explainers(model, methods)
    listed = listed_images(images, model.axes)
    if create_graph and any(isinstance(image, Tensor) and image.requires_grad for image in listed):
        raise InvalidInputError(
            "create_graph=True differentiates maps by weights, not by images, and these require a gradient; give "
            "images.detach()"
        )
    explanations = Explanations()
    wanted = targets_per_image(targets, len(listed))
    size = max(len(listed), 1) if create_graph else batch_size
    results = _explain_tensor(model, images, explainers, wanted, size, create_graph)
    if results is None:
        passes = None if create_graph or other_inputs is not None else passes_of(model, explainers, len(listed))
        results = explain_images(
            model, listed, explainers, wanted, batch_size=size, create_graph=create_graph, passes=passes
        )
    if other_inputs is not None:
        others = (model.with_inputs(inputs) for inputs in rows_of(other_inputs, len(listed)))
        results = (
            _explain_read(one, _read(image, one, f"image {number}"), explainers, asked, create_graph)
            for number, (one, image, asked) in enumerate(zip(others, listed, wanted, strict=True))
        )
    for result in results:
        if isinstance(result, XaiAbnError):
            raise result
        explanations.append(result)
    return explanations


def explain_images(
    model: ModelAdapter,
    images: Iterable[Any],
    explainers: Sequence[Explainer],
    targets: Iterable[ImageTargets] | None = None,
    *,
    batch_size: int | None = None,
    kind: str = "image",
    create_graph: bool = False,
    workers: int = 0,
    passes: Passes | None = None,
) -> Iterator[Result]:
    """Explain many images, read as they are needed; an image that fails gives its error and does not stop the others.

    Args:
        model: the model.
        images: see :func:`explain`; also mappings with ``"bytes"`` or ``"path"``, as Hugging Face stores images.
        explainers: from :func:`xai_abn.explainers.make_explainers`.
        targets: one entry per image; default: each image's default targets.
        batch_size: images per forward pass; default: see :func:`images_per_pass`.
        kind: the word for an image without a name, as in ``"image 3"``.
        create_graph: see :func:`explain`.
        workers: threads that read and prepare images while the network runs; 0 reads each when it is its turn.
        passes: what computes the forward passes, from :func:`xai_abn.explainers.passes_of`; default: the network.

    Yields:
        One result per image, in order.

    Raises:
        UnsupportedModelError: a method does not apply to the model.
        InvalidInputError: this process was forked from one that had run a network.
    """
    refuse_fork()  # before the first image is prepared, which takes several threads too
    pairs = zip(images, repeat((None,)) if targets is None else targets, strict=False)

    def read(numbered: tuple[int, tuple[Any, ImageTargets]]) -> tuple[PreparedImage | XaiAbnError, ImageTargets]:
        number, (image, wanted) = numbered
        return _read(image, model, f"{kind} {number}"), wanted

    entries = in_order(read, enumerate(pairs), workers, ahead=2 * (_ON_CPU if model.device.type == "cpu" else _ON_GPU))
    if model.gives_map or model.detects:
        for prepared, wanted in entries:
            yield _explain_read(model, prepared, explainers, wanted, create_graph)
        return
    waiting: list[tuple[PreparedImage | XaiAbnError, ImageTargets]] = []
    shape: tuple[int, ...] | None = None
    for prepared, wanted in entries:
        size = tuple(prepared.tensor.shape) if isinstance(prepared, PreparedImage) else shape
        if (shape is not None and size != shape) or len(waiting) >= (batch_size or images_per_pass(model, size)):
            yield from _explain_waiting(model, waiting, explainers, create_graph, passes)
            waiting = []
        waiting.append((prepared, wanted))
        shape = size
    yield from _explain_waiting(model, waiting, explainers, create_graph, passes)


def dependencies(
    model: ModelAdapter, explainers: Sequence[Explainer], targets: Sequence[Target | None]
) -> dict[str, Any]:
    """Return all that the maps of an image depend on besides the image, as JSON values."""
    return {
        "version": __version__,
        "model": [model.name, fingerprint(model.module), model.labels, model.read_as()],
        "preprocess": model.preprocess.to_dict(),
        "methods": [explainer.identity(model) for explainer in explainers],
        "targets": repr(list(targets)),
    }


def images_per_pass(model: ModelAdapter, shape: Sequence[int] | None) -> int:
    """Return how many images of a shape (C, H, W) run in one pass: what a GPU has memory for, or a CPU caches for."""
    if model.device.type != "cpu":
        return _MOST.get(model.module, _ON_GPU)
    return min(max(_VALUES_ON_CPU // max(math.prod(shape or (1,)), 1), _ON_CPU), _ON_GPU)


def _explain_tensor(
    model: ModelAdapter,
    images: Any,
    explainers: Sequence[Explainer],
    targets: Sequence[ImageTargets],
    batch_size: int | None,
    create_graph: bool,
) -> Iterator[Result] | None:
    """Explain a batch (N, C, H, W) that stays in one piece on its device; None if its images must be checked alone."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4 or model.axes != 2:
        return None
    if model.gives_map or model.detects:
        return None
    refuse_fork()
    prepared = model.preprocess.prepared_batch(images, [f"image {number}" for number in range(len(images))])
    if prepared is None:
        return None
    size = batch_size or images_per_pass(model, images.shape[1:])
    turns = [slice(start, start + size) for start in range(0, len(images), size)]
    return (
        result
        for turn in turns
        for result in _explain_in_memory(
            model, prepared[turn], explainers, targets[turn], create_graph, images.detach()[turn].float()
        )
    )


def _explain_in_memory(
    model: ModelAdapter,
    prepared: Sequence[PreparedImage],
    explainers: Sequence[Explainer],
    targets: Sequence[ImageTargets],
    create_graph: bool,
    inputs: Tensor | None = None,
    passes: Passes | None = None,
) -> list[Result]:
    """Explain a batch in one pass, or where memory runs out in two halves, which sets the size of later passes."""
    try:
        return explain_batch(model, prepared, explainers, targets, create_graph, inputs=inputs, passes=passes)
    except torch.OutOfMemoryError:
        if len(prepared) == 1 or create_graph:
            raise
    half = len(prepared) // 2
    _MOST[model.module] = half
    torch.cuda.empty_cache()
    halves = [slice(0, half), slice(half, None)]
    return [
        result
        for part in halves
        for result in _explain_in_memory(
            model, prepared[part], explainers, targets[part], create_graph, None if inputs is None else inputs[part]
        )
    ]


def _explain_read(
    model: ModelAdapter,
    image: PreparedImage | XaiAbnError,
    explainers: Sequence[Explainer],
    targets: ImageTargets,
    create_graph: bool,
) -> Result:
    """Explain one image alone."""
    if isinstance(image, XaiAbnError):
        return image
    if model.gives_map or model.detects:
        return _explain_parts(model, image, explainers, targets, create_graph)
    return explain_batch(model, [image], explainers, [targets], create_graph)[0]


def explain_batch(
    model: ModelAdapter,
    prepared: Sequence[PreparedImage],
    explainers: Sequence[Explainer],
    targets: Sequence[ImageTargets],
    create_graph: bool = False,
    forward_pass: ForwardPass | None = None,
    inputs: Tensor | None = None,
    passes: Passes | None = None,
) -> list[Result]:
    """Explain prepared images of one size in one forward pass.

    An image whose logits are not finite, or one of whose targets cannot be resolved, gives its error; the others are
    explained without it.

    Args:
        model: the model.
        prepared: images of one size.
        explainers: from :func:`xai_abn.explainers.make_explainers`.
        targets: one entry per image.
        create_graph: see :func:`explain`.
        forward_pass: of the images, if the network has run.
        inputs: (N, C, H, W), the tensors of the images, if they are in one piece.
        passes: see :func:`explain_images`.

    Returns:
        One result per image.

    Raises:
        UnsupportedModelError: a method does not apply to the model.
    """
    if not prepared:
        return []
    if forward_pass is None:
        forward_pass = _run_pass(model, prepared, explainers, create_graph, inputs=inputs, passes=passes)
    logits = forward_pass.logits.cpu()
    model.check_labels(logits.shape[1])
    usable, masked = can_be_explained(logits).tolist(), bool(logits.isneginf().any())
    top: list[int] = logits.argmax(dim=1).tolist()
    one_by_default = not (model.multi_label or model.scores_only)
    results: list[Result] = []
    resolved: list[list[ResolvedTarget]] = []
    for row, (image, wanted) in enumerate(zip(prepared, targets, strict=True)):
        try:
            if not usable[row]:
                raise model.not_finite(image.source)
            found = wanted(logits[row]) if callable(wanted) else wanted
            if one_by_default and len(found) == 1 and found[0] is None:
                resolved.append([ResolvedTarget(top[row], model.label(top[row]))])
            else:
                resolved.append(resolve_targets(model, found, logits[row]) if found else [])
            hidden = next((t for t in resolved[-1] if masked and logits[row, t.index].isneginf()), None)
            if hidden is not None:
                raise NonFiniteError(f"{image.source}: the score of {hidden.label!r} is minus infinity; choose another")
            results.append(ImageExplanations())
        except XaiAbnError as error:
            results.append(error)
    good = [row for row, result in enumerate(results) if not isinstance(result, XaiAbnError)]
    if len(good) < len(prepared):  # without the bad ones, whose NaN would reach methods that look at the whole batch
        readable, wanted_of = [prepared[row] for row in good], [targets[row] for row in good]
        rest = explain_batch(model, readable, explainers, wanted_of, create_graph)
        for row, result in zip(good, rest, strict=True):
            results[row] = result
        return results
    answers = _Answers(forward_pass, logits, top)
    for explainer in explainers:
        begun = perf_counter()
        _ask(answers, explainer, prepared, resolved, results)  # type: ignore[arg-type]
        _log.info("%s of %d images from %s: %.2f s", explainer.spec, len(prepared), model.name, perf_counter() - begun)
    return results


def _run_pass(
    model: ModelAdapter,
    prepared: Sequence[PreparedImage],
    explainers: Sequence[Explainer],
    create_graph: bool,
    *,
    parts: bool = False,
    inputs: Tensor | None = None,
    passes: Passes | None = None,
) -> ForwardPass:
    inputs = torch.stack([image.tensor for image in prepared]) if inputs is None else inputs
    inputs = inputs.contiguous(memory_format=model.memory_format)
    sources = [image.source for image in prepared]
    if passes is not None:
        return passes(inputs, sources)
    return run_pass(model, inputs, explainers, sources, create_graph=create_graph, parts=parts)


def _explain_parts(
    model: ModelAdapter,
    image: PreparedImage,
    explainers: Sequence[Explainer],
    targets: ImageTargets,
    create_graph: bool,
) -> Result:
    """Explain an image to a network for segmentation or a detector: each target is a part of its output."""
    try:
        shared = _run_pass(model, [image], explainers, create_graph, parts=True)
        parts = (_regions if model.gives_map else _detections)(model, shared.output, image, targets)
    except XaiAbnError as error:
        return error
    found = ImageExplanations()
    for part in parts:
        shown = replace(image, view=with_box(image.view, part.box.tolist())) if isinstance(part, Detection) else image
        own = shared.scoring(part)
        (result,) = explain_batch(own.model, [shown], explainers, [(None,)], create_graph, own)
        if isinstance(result, XaiAbnError):
            return result
        for e in result.values():
            key = (e.method, part.label) if len(parts) > 1 and e.class_specific else e.method
            notes = (*image.notes, part.note) if e.class_specific else image.notes
            found[key] = replace(
                e,
                target=part.index,
                class_label=model.label(part.index),
                predicted=part.index,
                notes=notes,
                top=(),
            )
    return found


def _regions(model: ModelAdapter, output: object, image: PreparedImage, targets: ImageTargets) -> list[Region]:
    scores = model.class_map(output, image.source)
    wanted = targets(scores.flatten(1).mean(dim=1)) if callable(targets) else targets
    regions = []
    for target in wanted:
        if isinstance(target, (Difference, DetectionTarget)):
            raise InvalidInputError(
                f"{model.name} scores every class at every position; give a label, an index or a SegmentationTarget, "
                f"not a {type(target).__name__}"
            )
        target = target if isinstance(target, SegmentationTarget) else SegmentationTarget(target)
        regions.append(find_region(target, scores, image, model.label, model.target_index))
    return regions


def _detections(model: ModelAdapter, output: object, image: PreparedImage, targets: ImageTargets) -> list[Detection]:
    found = model.detections(output, image)
    wanted = targets(found.scores) if callable(targets) else targets
    index = partial(model.target_index, classes=None if model.labels is None else len(model.labels))
    read = model.detections_in((image.tensor.shape[1], image.tensor.shape[2]))
    several = [find_detection(as_target(t), found, image, model.label, index, read) for t in wanted]
    return list({detection.label: detection for detection in several}.values())


class _Answers:
    """What the network says about a batch, read once for all methods.

    Args:
        forward_pass: of the batch.
        logits: its logits (N, K), on the CPU.
        top: the class of the largest of each image.
    """

    def __init__(self, forward_pass: ForwardPass, logits: Tensor, top: Sequence[int]) -> None:
        self.forward_pass, self.model, self.logits, self.top = forward_pass, forward_pass.model, logits, top
        self.top_labels = [self.model.label(index) for index in top]
        self.probabilities = self.model.probabilities(logits)
        self.notes = self.model.notes(logits)
        best = self.probabilities.topk(min(TOP, logits.shape[1]))
        values, indices = best.values.tolist(), best.indices.tolist()
        labels = {index: self.model.label(index) for row in indices for index in row}
        self.probable = [
            tuple([(labels[k], p) for p, k in zip(*row, strict=True) if p == p])  # without NaN
            for row in zip(values, indices, strict=True)
        ]
        self.known: dict[tuple[bool, int], _Asked] = {}  # by whether the method is class-specific, and number
        self.versions = {"xai-abn": __version__, "torch": torch.__version__}

    def asked(
        self, resolved: Sequence[Sequence[ResolvedTarget]], number: int, prepared: Sequence[PreparedImage]
    ) -> _Asked:
        """Return one target of each image, the ``number``-th or its last, with what records say about it."""
        targets = [
            own[min(number, len(own) - 1)] if own else ResolvedTarget(top, "")
            for own, top in zip(resolved, self.top, strict=True)
        ]
        directions = target_directions(targets, self.forward_pass.logits)
        scores: list[float] = target_scores(self.logits, directions.cpu()).tolist()
        of_classes = self.probabilities[torch.arange(len(targets)), torch.tensor([t.index for t in targets])].tolist()
        records: list[dict[str, Any]] = []
        model = self.model
        for row, (image, target) in enumerate(zip(prepared, targets, strict=True)):
            versus, top = target.versus, self.top[row]
            probability = of_classes[row] if versus is None else target.probability(self.logits[row], model)
            of_top = target.index if model.scores_only else top  # the largest of several values is no class
            records.append(
                {
                    "target": target.index,
                    "label": target.label,
                    "class_label": model.label(target.index),
                    "versus": versus,
                    "score": scores[row],
                    "probability": probability,
                    "predicted": of_top,
                    "predicted_label": model.label(of_top),
                    "top": self.probable[row],
                    "view": image.deferred_view,
                    "source": image.source,
                    "image_size": image.size,
                    "region": image.region,
                    "affine": image.affine,
                    "notes": image.notes + self.notes + _notes_on(target, probability, top, model.name),
                }
            )
        return _Asked(directions, records)


@dataclass(frozen=True, eq=False)
class _Asked:
    """One target of each image of a batch.

    Attributes:
        directions: see :func:`xai_abn.models.targets.target_directions`.
        records: fields of the :class:`Explanation` of each image that do not depend on the method.
    """

    directions: Tensor
    records: list[dict[str, Any]]


def _ask(
    answers: _Answers,
    explainer: Explainer,
    prepared: Sequence[PreparedImage],
    resolved: Sequence[Sequence[ResolvedTarget]],
    results: Sequence[ImageExplanations],
) -> None:
    """Compute one method's maps of all targets, one target per image at a time, and add them to the results."""
    forward_pass, model = answers.forward_pass, answers.model
    class_specific, spec = explainer.is_class_specific(model), explainer.spec
    if not class_specific:
        pairs = zip(answers.top, answers.top_labels, resolved, strict=True)
        resolved = [[ResolvedTarget(top, label)] if targets else [] for top, label, targets in pairs]
    facts: dict[str, Any] = {
        "method": spec,
        "class_specific": class_specific,
        "layer": explainer.layer_of(model),
        "model": model.name,
        "parameters": explainer.options,
        "limits": explainer.limits,
        "versions": answers.versions,
        "backend": forward_pass.backend,
    }
    for number in range(max(map(len, resolved))):
        started = perf_counter()
        if (class_specific, number) not in answers.known:
            answers.known[class_specific, number] = answers.asked(resolved, number, prepared)
        asked = answers.known[class_specific, number]
        tensors = explainer.explain(forward_pass, asked.directions)
        maps = tensors.detach().float().cpu().contiguous().numpy()
        cells = _notes_on_cells(maps.shape[1:], facts["layer"], prepared[0].tensor.shape[1:])
        facts["seconds"] = (forward_pass.seconds + perf_counter() - started) / len(prepared)
        for row, record in enumerate(asked.records):
            if number >= len(resolved[row]):
                continue
            record = {**record, "notes": record["notes"] + cells} if cells else record
            results[row][spec if len(resolved[row]) == 1 else (spec, record["label"])] = Explanation(
                map=maps[row], tensor=tensors[row] if forward_pass.create_graph else None, **facts, **record
            )


def _notes_on(target: ResolvedTarget, probability: float, predicted: int, model: str) -> tuple[str, ...]:
    """Return a note if a target is a class that the model does not see in the image."""
    if target.versus is not None or target.index == predicted or not probability < UNSEEN:
        return ()
    return (f"{model} gives {target.label!r} {probability:.1%}: the map shows evidence for a class it does not see",)


def _notes_on_cells(cells: tuple[int, ...], layer: str, size: Sequence[int]) -> tuple[str, ...]:
    """Return a note if a map has a single position, which shows nothing."""
    if max(cells) > 1:
        return ()
    seen = "x".join(map(str, size))
    return (f"{layer!r} has a single position at {seen} pixels: name an earlier layer, or give larger images",)


def _explain_waiting(
    model: ModelAdapter,
    waiting: Sequence[tuple[PreparedImage | XaiAbnError, ImageTargets]],
    explainers: Sequence[Explainer],
    create_graph: bool,
    passes: Passes | None,
) -> Iterator[Result]:
    """Yield one result per entry: its error, or the result for its image."""
    readable = [(image, targets) for image, targets in waiting if isinstance(image, PreparedImage)]
    images, targets = [image for image, _ in readable], [wanted for _, wanted in readable]
    explained = iter(_explain_in_memory(model, images, explainers, targets, create_graph, passes=passes))
    for image, _ in waiting:
        yield image if isinstance(image, XaiAbnError) else next(explained)


def prepare(model: ModelAdapter, images: Any, kind: str = "image") -> list[PreparedImage]:
    """Return one or several images of any kind that :func:`explain` takes as inputs of a model.

    Args:
        model: the model.
        images: the images.
        kind: the word for an image without a name, as in ``"image 3"``.

    Raises:
        ImageLoadError: an image cannot be read.
        InvalidInputError: something is no image, or there is none.
    """
    prepared = []
    for number, image in enumerate(listed_images(images, model.axes)):
        found = _read(image, model, f"{kind} {number}")
        if isinstance(found, XaiAbnError):
            raise found
        prepared.append(found)
    if not prepared:
        raise InvalidInputError(f"there is no {kind}; give at least one")
    return prepared


def _read(image: Any, model: ModelAdapter, name: str) -> PreparedImage | XaiAbnError:
    """Return an image of any accepted kind as a network's input, or what is wrong with it."""
    prepared = _prepared(image, model.preprocess, name, model.axes)
    if isinstance(prepared, PreparedImage) and len(prepared.tensor) != model.channels:
        form = "H, W" if model.axes == 2 else "D, H, W"
        return InvalidInputError(
            f"{name}: expected a normalized float tensor ({model.channels}, {form}) for {model.name}, got "
            f"{len(prepared.tensor)} channels; for a network with other inputs use wrap(..., example_input=...)"
        )
    return prepared


def _prepared(image: Any, preprocess: Preprocess, name: str, axes: int) -> PreparedImage | XaiAbnError:
    try:
        if isinstance(image, Mapping) and "bytes" not in image and "path" not in image:
            raise InvalidInputError(
                f"{name}: expected a mapping with 'bytes' or 'path', got one with "
                f"{', '.join(map(str, image)) or 'nothing'}; from a processor's batch give its tensor, such as "
                "batch['pixel_values']"
            )
        if isinstance(image, Mapping):
            name = image.get("path") or name
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if image is None:
            raise ImageLoadError(f"{name}: there is no image")
        if axes == 3:
            return _prepared_volume(image, preprocess, name)
        if isinstance(image, (str, Path)):
            return preprocess(load_image(image))
        if hasattr(image, "read"):
            image = image.read()
        if isinstance(image, bytes):
            return preprocess(decode_image(image, name))
        if isinstance(image, Image.Image):
            return preprocess(to_rgb(image, getattr(image, "filename", "") or name))
        if isinstance(image, np.ndarray):
            return preprocess(from_array(image, name))
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:
            return preprocess(from_array(image.permute(1, 2, 0).cpu().numpy(), name))
        if isinstance(image, Tensor):
            return preprocess.prepared_tensor(image, name)
    except XaiAbnError as error:
        return error
    except OSError as error:
        return ImageLoadError(f"{name}: cannot be read ({error.strerror or error})")
    except MemoryError:
        raise
    except Exception as error:  # a file or tensor of another library can raise anything
        return ImageLoadError(f"{name}: cannot be read ({type(error).__name__}: {shown(str(error))})")
    return InvalidInputError(
        f"{name}: expected a path, file, Pillow image, uint8 array or tensor, got {type(image).__name__}"
    )


def _prepared_volume(volume: Any, preprocess: Preprocess, name: str) -> PreparedImage:
    """Return a volume or clip of any accepted kind as a network's input."""
    frames = preprocess.frames if isinstance(preprocess, ClipPreprocess) else 0
    if isinstance(volume, (str, Path)) and str(volume).lower().endswith(NIFTI):
        loaded = load_volume(volume)
        prepared = preprocess.prepared_tensor(torch.from_numpy(loaded.values), loaded.source, 3)
        return replace(prepared, affine=loaded.affine)
    if isinstance(volume, Tensor) and volume.dtype == torch.uint8 and frames:
        volume = volume.cpu().numpy()
    if isinstance(preprocess, ClipPreprocess) and isinstance(volume, (str, Path)):
        return preprocess.of_clip(load_clip(volume, frames))
    if isinstance(preprocess, ClipPreprocess) and isinstance(volume, np.ndarray):
        return preprocess.of_clip(clip_of(volume, frames, name))
    if isinstance(volume, Tensor):
        return preprocess.prepared_tensor(volume, name, 3)
    other = (
        "the path of a video or GIF, or a uint8 array of frames (T, H, W, 3)" if frames else "the path of a NIfTI file"
    )
    got = volume if isinstance(volume, (str, Path)) else type(volume).__name__
    raise InvalidInputError(f"{name}: expected a normalized float tensor (C, D, H, W), or {other}, got {got}")


def listed_images(images: Any, axes: int = 2) -> list[Any]:
    """Return one image or several, of any kind that :func:`explain` accepts, as a list.

    Args:
        images: see :func:`explain`.
        axes: how many axes of positions an image has: 2, or 3 of volumes and clips.

    Raises:
        InvalidInputError: neither an image nor a sequence.
    """
    if isinstance(images, (str, Path, bytes, Image.Image, Mapping)) or hasattr(images, "read"):
        return [images]
    if isinstance(images, (Tensor, np.ndarray)):
        return list(images) if images.ndim == axes + 2 else [images]
    if not isinstance(images, Iterable):
        raise InvalidInputError(f"images must be one image or a sequence of them, got {type(images).__name__}")
    return list(images)


def targets_per_image(targets: Any, number: int) -> list[list[Target | None]]:
    """Return the targets of each of ``number`` images, given for all or one per image; see :func:`explain`.

    Raises:
        InvalidInputError: another number of targets than images, an empty list, a function among them, or no targets.
    """
    shaped = isinstance(targets, (Tensor, np.ndarray, np.generic))
    if shaped and targets.ndim > 2:
        raise InvalidInputError(f"targets must be indices (N,) or (N, several), got the shape {tuple(targets.shape)}")
    if shaped:
        targets = targets.tolist()
        rows = targets if isinstance(targets, list) and targets and isinstance(targets[0], list) else []
        if rows and len(rows[0]) > 1 and {value for row in rows for value in row} <= {0, 1}:
            raise InvalidInputError(
                "targets are indices of classes, got rows of zeros and ones; give the indices of the ones, as a list "
                "for each image: [row.nonzero().flatten().tolist() for row in targets]"
            )
    if targets is None or isinstance(targets, (int, float, str, Difference, SegmentationTarget, DetectionTarget)):
        return [[targets]] * number  # type: ignore[list-item]
    if not isinstance(targets, Iterable) or isinstance(targets, (Mapping, Set, bytes)):
        raise InvalidInputError(
            "targets must be an index, a label, a Difference, a function, or a list of one per image, got "
            f"{type(targets).__name__}"
        )
    chosen = list(targets)
    if len(chosen) != number:
        raise InvalidInputError(
            f"got {len(chosen)} targets for {number} images; give one for all, or one per image (a list for several "
            "targets of an image)"
        )
    return [_several(target) for target in chosen]


def _several(target: Any) -> list[Target | None]:
    """Return the targets of one image as a list."""
    if isinstance(target, (Tensor, np.ndarray, np.generic)):
        target = target.tolist()
    if isinstance(target, (list, tuple)):
        if not target:
            raise InvalidInputError("an image's list of targets is empty; leave it out for the top-1 class")
        return list(target)
    if callable(target):
        raise InvalidInputError("a function as target applies to all images at once: targets=function")
    return [target]
