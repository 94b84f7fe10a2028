"""Weakly supervised object localization: MaxBoxAcc, MaxBoxAccV2 and PxAP.

These are values of a whole data set: one threshold is chosen for all images, on the images themselves. Each image has a
curve over thresholds; :func:`accuracy_at_best_threshold` and :func:`pixel_average_precision` combine the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import flaws
from xai_abn.metrics.base import Scores
from xai_abn.metrics.localization import register_localization
from xai_abn.metrics.objects import Objects

#: Distance of the thresholds in the released evaluation script.
INTERVAL = 0.01
#: Overlaps at which MaxBoxAccV2 is averaged.
OVERLAPS = (0.3, 0.5, 0.7)


def max_box_accuracy(
    maps: Tensor, objects: Sequence[Objects], *, largest_only: bool, interval: float = INTERVAL
) -> Scores:
    """Return each image's best box overlap (IoU) at every threshold; its value is the largest.

    As in the released code, the map is enlarged bicubically, scaled to [0, 1], converted to 8 bits and cut at
    ``> int(t * max)``; boxes are drawn around its contours, and overlaps count both edges of a box.

    Args:
        maps: (N, h, w).
        objects: N; the truth is their boxes, truncated to whole numbers.
        largest_only: use only the contour with the largest area (MaxBoxAcc), not all contours (MaxBoxAccV2).
        interval: distance of the thresholds.

    Returns:
        values (N,) and curves (N, T) in [0, 1]. A flat or non-finite map has a NaN value and a curve of zeros.

    Source: Choe et al., "Evaluating WSOL Methods Right", CVPR 2020, and its released code.
    """
    thresholds = np.arange(0, 1, interval)
    curves = []
    for map_, present, flaw in _with_flaws(maps, objects):
        curves.append(np.zeros(len(thresholds)) if flaw else _overlap_curve(map_, present, thresholds, largest_only))
    stacked = torch.from_numpy(np.stack(curves)).float()
    flawed = torch.tensor([f is not None for f in flaws(maps)])
    return Scores(stacked.amax(dim=1).masked_fill(flawed, float("nan")), stacked)


def accuracy_at_best_threshold(curves: np.ndarray, weights: np.ndarray, overlaps: Sequence[float]) -> float:
    """Return the share of images whose overlap reaches d at the best common threshold, averaged over ``overlaps``.

    Args:
        curves: (N, T) of :func:`max_box_accuracy`.
        weights: (N,) that sum to 1.
        overlaps: the values of d; each has its own best threshold.
    """
    return float(np.mean([(weights @ (curves >= d)).max() for d in overlaps]))


def pxap(maps: Tensor, objects: Sequence[Objects], interval: float = INTERVAL) -> Scores:
    """Return how many pixels inside and outside the objects reach each threshold.

    The value of an image is its own average precision; the published PxAP pools all images first.

    Returns:
        values (N,) in [0, 1], NaN for a flat or non-finite map; curves (N, 2 (T + 2)): the numbers of pixels inside
        at or above each threshold, then those outside, by ascending threshold. A flat or non-finite map counts as 0
        everywhere, as published.

    Source: Choe et al., 2020, section 4.2 and released code (masks without ignored regions).
    """
    thresholds = np.arange(0, 1, interval)
    curves = []
    for map_, present, flaw in _with_flaws(maps, objects):
        large = np.zeros(present.size, np.float32) if flaw else _unit_map(map_, present.size)
        edges = np.concatenate([thresholds, [1.0, 2.0, 3.0]])
        inside = np.histogram(large[present.mask.numpy()], edges)[0][::-1].cumsum()[::-1]
        outside = np.histogram(large[~present.mask.numpy()], edges)[0][::-1].cumsum()[::-1]
        curves.append(np.concatenate([inside, outside]).astype(np.float64))
    stacked = np.stack(curves)
    own = [pixel_average_precision(row[None], np.ones(1)) for row in stacked]
    values = torch.tensor(own).masked_fill(torch.tensor([f is not None for f in flaws(maps)]), float("nan"))
    return Scores(values, torch.from_numpy(stacked).float())


def pixel_average_precision(curves: np.ndarray, weights: np.ndarray) -> float:
    """Return PxAP in [0, 1] of pooled pixels.

    Args:
        curves: (N, 2 (T + 2)) of :func:`pxap`.
        weights: (N,) of the images; equal for the published value.
    """
    inside, outside = np.split((weights @ curves.astype(np.float64))[::-1].copy(), 2)[::-1]
    recall = inside / max(inside[-1], 1e-12)
    precision = inside / np.maximum(inside + outside, 1e-12)
    return float((precision[1:] * np.diff(recall)).sum())


def _with_flaws(maps: Tensor, objects: Sequence[Objects]) -> list[tuple[np.ndarray, Objects, str | None]]:
    if maps.dim() != 3 or len(maps) != len(objects) or not len(maps):
        raise InvalidInputError(f"expected N maps (N, h, w) and N Objects, got {tuple(maps.shape)} and {len(objects)}")
    return list(zip(maps.detach().float().cpu().numpy(), objects, flaws(maps), strict=True))


def _unit_map(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    large = np.asarray(cv2.resize(map_, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))
    low, high = np.min(large), np.max(large)
    return (large - low) / (high - low) if high > low else np.zeros_like(large)


def _overlap_curve(map_: np.ndarray, present: Objects, thresholds: np.ndarray, largest_only: bool) -> np.ndarray:
    levels = np.floor(_unit_map(map_, present.size) * 255).astype(np.uint8)
    cuts = (thresholds * int(np.max(levels))).astype(int)
    truth = present.boxes.numpy().astype(int)
    at_cut = {cut: _best_overlap(levels > cut, truth, largest_only) for cut in np.unique(cuts).tolist()}
    return np.array([at_cut[cut] for cut in cuts.tolist()])


def _best_overlap(region: np.ndarray, truth: np.ndarray, largest_only: bool) -> float:
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return float(_overlaps(np.zeros((1, 4), int), truth).max())
    chosen = [max(contours, key=cv2.contourArea)] if largest_only else contours
    height, width = region.shape
    boxes = np.array([cv2.boundingRect(c) for c in chosen])
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], [width - 1, height - 1])
    return float(_overlaps(boxes, truth).max())


def _overlaps(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return IoU (A, B) of boxes whose right and bottom edges are inside."""
    corner = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.clip(end - corner + 1, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (boxes, truth)]
    result: np.ndarray = common / (areas[0][:, None] + areas[1][None] - common)
    return result


for _protocol, _overlaps_at, _largest in (("wsol-v1", (0.5,), True), ("wsol-v2", OVERLAPS, False)):
    register_localization(
        "max-box-accuracy",
        _protocol,
        partial(max_box_accuracy, largest_only=_largest),
        f"Share of images where the box around the {'largest' if _largest else 'best'} contour of the thresholded map "
        f"overlaps a true box by at least {', '.join(map(str, _overlaps_at))}, at the best common threshold, chosen on "
        "the same images.",
        "Choe et al., CVPR 2020, released code",
        units="share of trials",
        aggregate=partial(accuracy_at_best_threshold, overlaps=_overlaps_at),
    )
register_localization(
    "pxap",
    "wsol-2020",
    pxap,
    "Average precision of the pooled pixels of all images against the objects' pixels.",
    "Choe et al., CVPR 2020, released code",
    aggregate=pixel_average_precision,
)
