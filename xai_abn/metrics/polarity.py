"""Is a map the right way up: does it light what the answer needs?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.base import Metric, Needs, register
from xai_abn.metrics.confidence import check_numbers, probabilities


def polarity(
    predict: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    share: float = 0.2,
) -> Tensor:
    """How much more the target's probability falls without the map's top pixels than without its bottom ones.

    ABN's loss does not fix the sign of its map: a network can mark what does *not* matter. Needs no
    annotation. Removed pixels become 0, the mean colour of a normalised input.

    Args:
        predict: inputs (N, 3, H, W) to logits (N, K).
        inputs: (N, 3, H, W), normalised.
        maps: (N, h, w).
        targets: (N,) class indices.
        share: of the pixels removed each time, in (0, 0.5].

    Returns:
        (N,) in [-1, 1]: above 0 is the right way up, below 0 inverted, about 0 says nothing.
        NaN for a flat or non-finite map.

    Raises:
        InvalidInputError: numbers or shares that do not fit.
    """
    if not 0 < share <= 0.5:
        raise InvalidInputError(f"share must lie in (0, 0.5], got {share}")
    check_numbers(inputs, maps, targets)
    large = upsample(maps, (inputs.shape[2], inputs.shape[3])).flatten(1)
    order = large.argsort(dim=1, stable=True)
    count = round(share * large.shape[1])
    left = []
    for removed in (order[:, :count], order[:, -count:]):
        keep = torch.ones_like(large).scatter_(1, removed, 0).view(len(inputs), 1, *inputs.shape[2:])
        left.append(probabilities(predict, inputs * keep, targets))
    return (left[0] - left[1]).masked_fill(~usable(maps).to(left[0].device), float("nan"))


register(
    Metric(
        name="polarity",
        protocol="top-20%",
        function=polarity,
        needs=Needs.MODEL,
        reads_probabilities=True,
        higher_is_better=True,
        range=(-1, 1),
        units="probability",
        definition="Probability without the map's bottom 20 % of pixels minus that without its top 20 %; removed "
        "pixels become the mean colour. Below 0 the map is inverted.",
        source="this project",
    )
)
