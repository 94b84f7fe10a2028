"""Detectors: what they found in an image, and the score of one detection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError, shown
from xai_abn.networks.tracing import LayerOutput

if TYPE_CHECKING:
    from xai_abn.images.preprocess import PreparedImage

#: Detectors of Hugging Face whose last class is none, by the names of their outputs; others have a sigmoid a class.
_WITH_NONE = ("Detr", "TableTransformer", "Yolos")
#: Parts of a detector's backbone that only change its scale.
_PYRAMID = {"fpn", "extra"}
#: Of a YOLO network: how many places with the highest scores are looked at, and how many detections there are at most.
_PLACES, _FOUND = 1000, 300
#: Overlap (intersection over union) from which two detections of a class are the same; ultralytics' default.
_SAME = 0.7
#: Smallest overlap (intersection over union) of a detection with the box that is asked for.
LEAST_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: (D, 4) left, top, right, bottom, as shares of the input's width and height.
        classes: (D,) class indices.
        scores: (D,) in [0, 1], differentiable where the network is.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def detections(output: object, size: tuple[int, int], yolo: int | None = None) -> list[Detections] | None:
    """Return what a detector found in each image, or None if this is no detector's output.

    Args:
        output: of a network: a list with ``boxes``, ``labels`` and ``scores`` of each image (torchvision), or an object
            with ``logits`` (N, Q, K), or (N, Q, K + 1) where the last class is none, and ``pred_boxes`` (N, Q, 4)
            (DETR and its successors of Hugging Face).
        size: (height, width) of the input.
        yolo: number of classes of a network of ultralytics, whose outputs have a form of their own; else None.

    Raises:
        UnsupportedModelError: boxes, classes and scores do not belong together.
    """
    if yolo is not None:
        return _of_yolo(output, size, yolo)
    boxes, logits = getattr(output, "pred_boxes", None), getattr(output, "logits", None)
    if isinstance(boxes, Tensor) and isinstance(logits, Tensor) and logits.dim() == 3:
        with_none = type(output).__name__.removesuffix("ObjectDetectionOutput") in _WITH_NONE
        probabilities = logits.softmax(dim=-1)[..., :-1] if with_none else logits.sigmoid()
        scores, classes = probabilities.max(dim=-1)
        from torchvision.ops import box_convert  # whose import takes as long as torch's

        corners = box_convert(boxes.detach(), "cxcywh", "xyxy")
        return [Detections(*parts) for parts in zip(corners, classes, scores, strict=True)]
    if not isinstance(output, (list, tuple)) or not output:
        return None
    if not all(isinstance(one, Mapping) and {"boxes", "labels", "scores"} <= set(one) for one in output):
        return None
    return [_in_shares(one["boxes"], one["labels"], one["scores"], size) for one in output]


def _in_shares(boxes: Tensor, classes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
    """Return detections of which the boxes are in pixels of an input of ``size`` (H, W)."""
    if boxes.dim() != 2 or boxes.shape != (len(scores), 4) or classes.shape != scores.shape or scores.dim() != 1:
        raise UnsupportedModelError(
            "a detector must output boxes (D, 4), labels (D,) and scores (D,) of each image, got boxes "
            f"{tuple(boxes.shape)}, labels {tuple(classes.shape)}, scores {tuple(scores.shape)}"
        )
    sides = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return Detections(boxes.detach() / sides, classes.long(), scores)


def _of_yolo(output: object, size: tuple[int, int], classes: int) -> list[Detections]:
    """Return what a network of ultralytics found.

    Its output is (N, 4 + K, A): center, width and height in pixels and K probabilities of each of A places, of which
    the best are chosen as ultralytics does, but with any score; or end-to-end (N, D, 6): corners, score and class.
    """
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(found, Tensor) and found.dim() == 3 and found.shape[1] == 4 + classes:
        return [_best_places(one, size) for one in found]
    if isinstance(found, Tensor) and found.dim() == 3 and found.shape[2] == 6:
        return [_in_shares(one[:, :4], one[:, 5], one[:, 4], size) for one in found]
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise UnsupportedModelError(
        f"a YOLO network must output boxes and {classes} classes, (N, {4 + classes}, A) or (N, D, 6), got {got}; those "
        "that also find masks, poses or turned boxes are not supported"
    )


def _best_places(found: Tensor, size: tuple[int, int]) -> Detections:
    from torchvision.ops import batched_nms, box_convert

    scores, classes = found[4:].max(dim=0)
    boxes = box_convert(found[:4].detach().T, "cxcywh", "xyxy")
    best = scores.detach().topk(min(_PLACES, len(scores))).indices
    shifted = boxes[best] - boxes[best].min()  # batched_nms needs coordinates of at least 0 to keep classes apart
    kept = best[batched_nms(shifted, scores.detach()[best], classes[best], _SAME)][:_FOUND]
    return _in_shares(boxes[kept], classes[kept], scores[kept], size)


def scores_of_detections(output: object) -> Tensor:
    """Return the scores (N, D) of a detector that finds equally many things in every image, as those of Hugging Face.

    Raises:
        UnsupportedModelError: it does not.
    """
    scores = [found.scores for found in detections(output, (1, 1)) or ()]
    if not scores or not scores[0].numel() or len({len(one) for one in scores}) > 1:
        raise UnsupportedModelError("the detector finds nothing in noise")
    return torch.stack(scores)


def backbone_layer(outputs: Sequence[LayerOutput]) -> str | None:
    """Return the last layer of a detector's backbone in front of its pyramid, or None if there is none.

    It is the last inside of what is called the backbone, else the last before a map is finer than the one before it.

    Args:
        outputs: of layers with positions that depend on the image, in order of computing.
    """
    parts = [set(o.name.split(".")) for o in outputs]
    inside = [o for o, names in zip(outputs, parts, strict=True) if "backbone" in names and not _PYRAMID & names]
    finer = [before for before, after in pairwise(outputs) if _positions(after) > 2 * _positions(before)]
    found = inside[-1:] or finer[:1]
    return found[0].name if found else None


def _positions(output: LayerOutput) -> int:
    return 0 if output.layout is None else output.layout.grid[0] * output.layout.grid[1]


@dataclass(frozen=True)
class DetectionTarget:
    """A detection, as target for a detector.

    The score explained is that of the detection of the same class that overlaps its box most, times their overlap
    (intersection over union), 0 if none does. So it follows an object while methods change the image. D-RISE also
    weighs by the similarity of the probabilities of all classes, which detectors do not output after selection.

    Attributes:
        target: index or label of the class; None for any.
        rank: which of them, 1 for the one with the highest score.
        box: (left, top, right, bottom) in pixels of the image: of them, the one that overlaps this box most, by at
            least one half.

    Example::

        xai_abn.explain(model, "street.jpg", "grad-cam", xai_abn.DetectionTarget("dog", rank=2))

    Source: Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps" (D-RISE), CVPR 2021.
    """

    target: int | str | None = None
    rank: int = 1
    box: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class Detection:
    """One detection in an image.

    Attributes:
        index: of its class.
        label: the name of its class and its rank among these, such as ``"dog#1"``.
        box: (4,) as shares of the input's width and height.
        read: returns what the detector found in each image of an output.
        note: what is scored, for a reader.
    """

    index: int
    label: str
    box: Tensor
    read: Callable[[object], list[Detections] | None]
    note: str

    def score(self, output: object) -> Tensor:
        """Return the score (N,) in [0, 1] of this detection for an output of N images."""
        found = self.read(output)
        if found is None:
            raise UnsupportedModelError("the detector outputs something else than on the image itself")
        return torch.stack([self._score(one) for one in found])

    def _score(self, found: Detections) -> Tensor:
        from torchvision.ops import box_iou

        same = found.classes == self.index
        if not bool(same.any()):
            return found.scores.new_zeros(())
        overlap = box_iou(self.box[None].to(found.boxes), found.boxes[same])[0].nan_to_num()  # of boxes without area
        best: Tensor = (overlap * found.scores[same]).max()
        return best


def find_detection(
    target: DetectionTarget,
    found: Detections,
    image: PreparedImage,
    label: Callable[[int], str],
    index: Callable[[int | str], int],
    read: Callable[[object], list[Detections] | None],
) -> Detection:
    """Find the detection that a target means.

    Args:
        target: the target.
        found: what the detector found in the image.
        image: the image.
        label: gives the name of a class.
        index: gives the index of a class of its index or label.
        read: returns what the detector found in each image of an output.

    Raises:
        InvalidInputError: there is no such detection or class.
        UnknownNameError: no class has this label; the message suggests the nearest.
    """
    from torchvision.ops import box_iou

    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    order = found.scores.detach().argsort(descending=True, stable=True)
    order = order[(sides[order] > 0).all(dim=1)]  # nothing overlaps a box without area
    boxes, classes, scores = found.boxes[order], found.classes[order].tolist(), found.scores.detach()[order].tolist()
    ranks = [classes[: row + 1].count(kind) for row, kind in enumerate(classes)]
    chosen = None if target.target is None else index(target.target)
    rows = [row for row, kind in enumerate(classes) if chosen in (None, kind)]
    seen = ", ".join(f"{label(k)}#{r} ({s:.0%})" for k, r, s in zip(classes[:5], ranks, scores, strict=False))
    if not rows:
        wanted = "nothing" if chosen is None else f"no {label(chosen)!r}"
        raise InvalidInputError(f"{image.source}: the detector finds {wanted}" + (f"; it finds {seen}" if seen else ""))
    left, top, right, bottom = image.seen
    if target.box is not None:
        corners = boxes.new_tensor(_checked_box(target.box)) - boxes.new_tensor([left, top, left, top])
        wanted_box = corners / boxes.new_tensor([right - left, bottom - top] * 2)
        overlaps = box_iou(wanted_box[None], boxes[rows])[0].nan_to_num()
        if float(overlaps.max()) < LEAST_OVERLAP:
            raise InvalidInputError(
                f"{image.source}: no detection overlaps the box {list(target.box)} by {LEAST_OVERLAP:.0%} (at most "
                f"{float(overlaps.max()):.0%}); it finds {seen}"
            )
        row = rows[int(overlaps.argmax())]
    elif not isinstance(target.rank, int) or not 1 <= target.rank <= len(rows):
        raise InvalidInputError(f"{image.source}: there are {len(rows)} such detections, none of rank {target.rank}")
    else:
        row = rows[target.rank - 1]
    name = f"{label(classes[row])}#{ranks[row]}"
    x0, y0, x1, y1 = (boxes[row] * boxes.new_tensor([right - left, bottom - top] * 2)).tolist()
    place = ", ".join(f"{value:.0f}" for value in (x0 + left, y0 + top, x1 + left, y1 + top))
    return Detection(
        classes[row], name, boxes[row], read, f"{name}: score {scores[row]:.2f}, box {place} (x, y in pixels)"
    )


def as_target(target: object) -> DetectionTarget:
    """Return a target of a detector: itself, a class, or a class with its rank, such as ``"dog#2"``.

    Raises:
        InvalidInputError: anything else.
    """
    if isinstance(target, DetectionTarget):
        return target
    if target is None or (isinstance(target, int) and not isinstance(target, bool)):
        return DetectionTarget(target)
    if isinstance(target, str):
        name, mark, rank = target.rpartition("#")
        return DetectionTarget(name, int(rank)) if mark and rank.isdecimal() else DetectionTarget(target)
    raise InvalidInputError(
        f"a target of a detector must be a label, such as 'dog' or 'dog#2', an index or a DetectionTarget, got "
        f"{type(target).__name__}"
    )


def _checked_box(box: Sequence[float]) -> list[float]:
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError):
        left = top = right = bottom = 0.0
    if not (left < right and top < bottom):
        raise InvalidInputError(f"a box must be (left, top, right, bottom) in pixels, got {shown(repr(box))}")
    return [left, top, right, bottom]
