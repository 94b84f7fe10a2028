"""Networks that score every class at every position, and the score of a class in a region of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from xai_abn.images.preprocess import PreparedImage

#: Labels of what belongs to no class.
BACKGROUND = ("background", "__background__", "unlabeled", "void")


def class_scores(output: object) -> Tensor | None:
    """Return the map of class scores (N, K, h, w), or (N, K, d, h, w), that a network outputs, or None.

    It is the output itself, its ``logits`` (Hugging Face) or ``out`` (torchvision).
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if isinstance(found, Tensor) and found.dim() in (4, 5) and found.is_floating_point() and found[0, 0].numel() > 1:
        return found
    return None


@dataclass(frozen=True, eq=False)
class SegmentationTarget:
    """A class in a region, as target for a network that scores every class at every position.

    The score explained is the mean score of the class over the region (Seg-Grad-CAM takes the sum; their maps differ
    by a factor alone). The region is found once, on the image itself, and stays the same when methods change the image.

    Attributes:
        target: index or label of the class; None for the class with the most positions, other than the background.
        region: None for the positions at which this class has the highest score; a point (x, y), a box (left, top,
            right, bottom) or the corners (x, y) of a polygon, in pixels of the image; or a mask (H, W) of the image, or
            (D, H, W) of the volume, true in the region.

    Example::

        xai_abn.explain(model, "street.jpg", "grad-cam", xai_abn.SegmentationTarget("dog", region=(120, 80)))

    Source: Vinogradova et al., "Towards Interpretable Semantic Segmentation via Gradient-Weighted Class Activation
    Mapping", AAAI 2020.
    """

    target: int | str | None = None
    region: Sequence[float] | Sequence[Sequence[float]] | np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Region:
    """A class and where it is scored on one image.

    Attributes:
        index: of the class.
        label: its name.
        weights: (h, w) or (d, h, w), the share of each position of the network's output in the mean; they add up to 1.
        note: what is scored, for a reader.
    """

    index: int
    label: str
    weights: Tensor
    note: str

    def score(self, output: object) -> Tensor:
        """Return the mean score of the class over the region, (N,), for an output of N images."""
        scores = class_scores(output)
        if scores is None or scores.shape[2:] != self.weights.shape:
            raise UnsupportedModelError("the map of class scores has another size than on the image itself")
        return (scores[:, self.index] * self.weights.to(scores)).flatten(1).sum(dim=1)


def find_region(
    target: SegmentationTarget,
    scores: Tensor,
    image: PreparedImage,
    label: Callable[[int], str],
    index: Callable[[int | str, int], int],
) -> Region:
    """Find the region of a target.

    Args:
        target: the target.
        scores: (K, h, w) or (K, d, h, w) scores of the classes on the image.
        image: the image.
        label: gives the name of a class.
        index: gives the index of a class, of its index or label and the number of classes.

    Raises:
        InvalidInputError: no position has this class, or the region is none, or outside what the network saw.
    """
    top = scores.argmax(dim=0)
    counts = top.flatten().bincount(minlength=len(scores)).tolist()
    if target.target is None:
        named = [k for k in range(len(scores)) if label(k).casefold() not in BACKGROUND]
        chosen = max(named, key=lambda k: counts[k])
        chosen = chosen if counts[chosen] or target.region is not None else int(np.argmax(counts))
    else:
        chosen = index(target.target, len(scores))
    name = label(chosen)
    if target.region is None:
        weights = (top == chosen).float()
        if not counts[chosen]:
            seen = sorted(range(len(scores)), key=lambda k: -counts[k])[:3]
            found = ", ".join(f"{label(k)} ({counts[k] / top.numel():.0%})" for k in seen if counts[k])
            raise InvalidInputError(
                f"{image.source}: no position has {name!r}; the network sees {found}; choose one of these, or give a "
                "region"
            )
        share = counts[chosen] / top.numel()
        note = f"the score is the mean of {name!r} over the positions that have it, {share:.0%} of all"
    else:
        weights = torch.from_numpy(_cells(target.region, image, tuple(top.shape))).to(scores)
        note = f"the score is the mean of {name!r} over the given region, {float(weights.mean()):.2%} of the positions"
    return Region(chosen, name, weights / weights.sum(), note)


def _cells(region: Any, image: PreparedImage, grid: tuple[int, ...]) -> np.ndarray:
    """Return how much of each position of a grid lies in a region: in [0, 1], and somewhere above 0."""
    given = np.asarray(region.cpu() if isinstance(region, Tensor) else region)
    size = image.size or tuple(image.tensor.shape[1:])
    if len(grid) > 2 and given.dtype != bool:
        raise InvalidInputError(f"{image.source}: the region of a volume must be a mask of truth values {size}")
    left, top, right, bottom = image.seen
    if given.shape == (2,):
        x, y = (float(value) for value in given)
        if not (left <= x < right and top <= y < bottom):
            raise InvalidInputError(
                f"{image.source}: the network saw nothing at {x:g}, {y:g}; it saw the part from {left:.0f}, {top:.0f} "
                f"to {right:.0f}, {bottom:.0f} (x, y in pixels)"
            )
        cells = np.zeros(grid, np.float32)
        cells[int((y - top) / (bottom - top) * grid[0]), int((x - left) / (right - left) * grid[1])] = 1
        return cells
    if given.dtype != bool:
        return image.cells(region, grid)
    if given.shape != size:
        raise InvalidInputError(f"a mask must have the size of its image, {size}, got {given.shape}")
    height, width = size[-2:]
    around = (round(-top), round(bottom) - height), (round(-left), round(right) - width)
    sides = [[0, 0]] * (given.ndim - 2) + [[max(side, 0) for side in pair] for pair in around]
    bordered = np.pad(given.astype(np.float32), sides)
    first, last = max(round(top), 0), max(round(left), 0)
    seen = bordered[..., first : first + round(bottom) - round(top), last : last + round(right) - round(left)]
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    rows = pool(torch.from_numpy(seen)[None, None], grid)[0, 0].numpy()
    if not rows.any():
        raise InvalidInputError(f"{image.source}: the network saw nothing of the mask")
    return np.asarray(rows, np.float32)
