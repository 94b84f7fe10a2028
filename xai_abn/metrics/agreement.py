"""How alike two sets of maps are."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.ranks import scattered_ranks


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman correlation (N,) of maps (N, h, w), equal values sharing their mean rank; NaN where one is flat.

    Raises:
        InvalidInputError: different numbers of maps.
    """
    _check_pair(first, second)
    if first.shape != second.shape:
        second = upsample(second, (first.shape[1], first.shape[2]))
    ranks = [_mean_ranks(m.detach().double().flatten(1).cpu()) for m in (first, second)]
    centred = [r - r.mean(dim=1, keepdim=True) for r in ranks]
    value = (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1))
    good = usable(first).cpu() & usable(second).cpu()
    result: Tensor = value.float().masked_fill(~good, float("nan"))
    return result


def map_agreement(first: Tensor, second: Tensor, share: float = 0.2) -> Tensor:
    """Intersection over union of the top pixels of two maps, as of two training seeds.

    Two unrelated maps agree by about share / (2 - share), 0.11 for a fifth. Of equal values on the border, as the
    zeros of a sparse map, each map takes its own random choice, so that two sparse maps do not agree on nothing.

    Args:
        first: (N, h, w).
        second: (N, h, w), enlarged or reduced to the first's size.
        share: of the pixels that count as top, in (0, 1).

    Returns:
        (N,) in [0, 1]; NaN where a map is flat or not finite.

    Source: Lee et al., "LFI-CAM", ICCV 2021, section 4.3 (IoU between models), by rank in place of a threshold.
    """
    if not 0 < share < 1:
        raise InvalidInputError(f"share must lie in (0, 1), got {share}")
    _check_pair(first, second)
    second = upsample(second, (first.shape[1], first.shape[2]))
    count = max(1, round(share * first[0].numel()))
    tops = [scattered_ranks(maps.detach().float().cpu(), seed) < count for seed, maps in enumerate((first, second))]
    value = (tops[0] & tops[1]).sum(1) / (tops[0] | tops[1]).sum(1)
    return value.float().masked_fill(~(usable(first) & usable(second)).cpu(), float("nan"))


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.dim() != 3 or second.dim() != 3 or len(first) != len(second):
        raise InvalidInputError(f"expected two times N maps (N, h, w), got {tuple(first.shape)}, {tuple(second.shape)}")


def _mean_ranks(flat: Tensor) -> Tensor:
    """Ranks (N, P) from 0, equal values sharing the mean of theirs."""
    ordered = flat.contiguous().sort(dim=1).values
    below = torch.searchsorted(ordered, flat.contiguous())
    not_above = torch.searchsorted(ordered, flat.contiguous(), right=True)
    return (below + not_above - 1).double() / 2
