"""Concentration of maps: Gini index and entropy.

Neither end is better in itself: a map of a single dot is concentrated and can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import usable
from xai_abn.metrics.base import Metric, register


def gini(maps: Tensor) -> Tensor:
    """Return the Gini index of the magnitudes: 0 if all are equal, near 1 if one pixel has everything.

    Args:
        maps: (N, h, w) or (N, d, h, w).

    Returns:
        (N,) in [0, 1]; NaN for a non-finite map and one of zeros.

    Source: Hurley and Rickard, "Comparing Measures of Sparsity", 2009; "sparseness" of Chalasani et al., 2020.
    """
    flat = _finite(maps).abs().sort(dim=1).values
    number = flat.shape[1]
    weights = number - torch.arange(1, number + 1, device=flat.device) + 0.5
    value = 1 - 2 * (flat / flat.sum(dim=1, keepdim=True) * weights / number).sum(dim=1)
    return value.float()


def entropy(maps: Tensor) -> Tensor:
    """Return the entropy of the positive values, divided by that of an even map.

    Args:
        maps: (N, h, w) or (N, d, h, w).

    Returns:
        (N,) in [0, 1], 1 for an even map; NaN for a non-finite map and one without positive values.

    Source: Shannon; "complexity" of Bhatt et al., 2020, on the positive part and divided by log(h w).
    """
    flat = _finite(maps).clamp_min(0)
    shares = flat / flat.sum(dim=1, keepdim=True)
    total = -torch.special.xlogy(shares, shares).sum(dim=1)
    result: Tensor = (total / torch.tensor(float(flat.shape[1])).log()).float()
    return result


def _finite(maps: Tensor) -> Tensor:
    """Return maps as (N, P) doubles; a map with a non-finite value becomes NaN throughout."""
    if maps.dim() not in (3, 4):
        raise InvalidInputError(f"expected maps (N, h, w) or (N, d, h, w), got shape {tuple(maps.shape)}")
    flat = maps.detach().double().flatten(1)
    return flat.masked_fill(~torch.isfinite(flat).all(dim=1, keepdim=True), float("nan"))


def _of_usable(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function with NaN for flat maps, which a benchmark flags."""
    return lambda maps: function(maps).masked_fill(~usable(maps), float("nan"))


for _name, _function, _definition, _source in (
    (
        "gini",
        gini,
        "Gini index of the magnitudes: near 0 for an even map, near 1 for a single dot.",
        "Hurley, Rickard 2009",
    ),
    ("entropy", entropy, "Entropy of the positive values, divided by that of an even map.", "Bhatt et al., 2020"),
):
    register(
        Metric(
            name=_name,
            protocol="raw-map",
            function=_of_usable(_function),
            higher_is_better=None,
            range=(0, 1),
            units="1",
            definition=f"{_definition} Computed at the map's own resolution.",
            source=_source,
        )
    )
