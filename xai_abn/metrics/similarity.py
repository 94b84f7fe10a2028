"""Similarity of two sets of maps."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.curves import scattered_ranks


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of two sets of maps; equal values share their mean rank.

    Args:
        first: (N, h, w), or (N, d, h, w).
        second: (N, h, w), resized to the first's size.

    Returns:
        (N,) in [-1, 1]; NaN where a map is flat or not finite.

    Raises:
        InvalidInputError: the numbers of maps differ.
    """
    _check_pair(first, second)
    if first.shape != second.shape:
        second = upsample(second, first.shape[1:])
    good = (usable(first) & usable(second)).cpu()
    centered = []
    for maps in (first, second):
        ranks = rankdata(maps.detach().double().flatten(1).cpu().nan_to_num().numpy(), axis=1)
        centered.append(ranks - ranks.mean(axis=1, keepdims=True))
    a, b = centered
    with np.errstate(invalid="ignore"):
        values = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return torch.from_numpy(values).float().masked_fill(~good, float("nan"))


def map_agreement(first: Tensor, second: Tensor, share: float = 0.2) -> Tensor:
    """Return the intersection over union of the top pixels of two maps, for example of two training seeds.

    Two unrelated maps agree by about share / (2 - share), which is 0.11 for a fifth. Equal values at the border of the
    top pixels, such as the zeros of a sparse map, are chosen at random, differently in each map; so two sparse maps do
    not agree where neither marks anything.

    Args:
        first: (N, h, w), or (N, d, h, w).
        second: (N, h, w), resized to the first's size.
        share: of the pixels that count as top, in (0, 1).

    Returns:
        (N,) in [0, 1]; NaN where a map is flat or not finite.

    Raises:
        InvalidInputError: the numbers of maps differ, or an impossible share.

    Source: Lee et al., "LFI-CAM", ICCV 2021, section 4.3 (IoU between models), by rank instead of a threshold.
    """
    if not 0 < share < 1:
        raise InvalidInputError(f"share must be in (0, 1), got {share}")
    _check_pair(first, second)
    second = upsample(second, first.shape[1:])
    count = max(1, round(share * first[0].numel()))
    tops = [scattered_ranks(maps.detach().float().cpu(), seed) < count for seed, maps in enumerate((first, second))]
    values = (tops[0] & tops[1]).sum(1) / (tops[0] | tops[1]).sum(1)
    return values.float().masked_fill(~(usable(first) & usable(second)).cpu(), float("nan"))


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.dim() not in (3, 4) or second.dim() != first.dim() or len(first) != len(second):
        raise InvalidInputError(f"expected two times N maps (N, h, w), got {tuple(first.shape)}, {tuple(second.shape)}")
