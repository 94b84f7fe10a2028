"""Faithfulness without curves: average drop, increase in confidence and polarity."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import unit_range, upsample, usable
from xai_abn.metrics.base import Metric, Predict, probabilities_of, register


def average_drop(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor, *, divided: bool = True) -> Tensor:
    """Return how much of the target's probability is lost when the input is multiplied by its map. Lower is better.

    The map is scaled to [0, 1] and then enlarged, in the order of torchcam and grad-cam. Large, even maps score well.

    Args:
        predict: inputs (B, 3, H, W) to logits (B, K).
        inputs: (N, 3, H, W), normalized.
        maps: (N, h, w).
        targets: (N,) class indices.
        divided: divide by the probability on the whole image, as the paper and torchcam do; grad-cam 1.5 does not.

    Returns:
        (N,) in [0, 1]; NaN for a flat or non-finite map.

    Raises:
        InvalidInputError: the numbers of inputs, maps and targets differ.

    Source: Chattopadhyay et al., "Grad-CAM++", WACV 2018, section 4.1; in percent there.
    """
    before, after = _before_and_after(predict, inputs, maps, targets)
    drop = (before - after).clamp_min(0)
    return drop / (before + 1e-7) if divided else drop


def increase_in_confidence(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the target's probability rises when the input is multiplied by its map, else 0.

    Arguments, errors and source as for :func:`average_drop`. Returns (N,); NaN for a flat or non-finite map.
    """
    before, after = _before_and_after(predict, inputs, maps, targets)
    return torch.where(after.isnan(), after, (after > before).float())


def polarity(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor, share: float = 0.2) -> Tensor:
    """Return the target's probability without the map's bottom pixels minus that without its top pixels.

    ABN's loss does not fix the sign of its map: a network can mark what does *not* matter. This needs no annotation.
    Removed pixels become 0, the mean color of a normalized input.

    Args:
        predict: inputs (N, 3, H, W) to logits (N, K).
        inputs: (N, 3, H, W), normalized.
        maps: (N, h, w).
        targets: (N,) class indices.
        share: of the pixels removed each time, in (0, 0.5].

    Returns:
        (N,) in [-1, 1]: above 0 the map is upright, below 0 inverted, near 0 undecided. NaN for a flat or non-finite
        map.

    Raises:
        InvalidInputError: the numbers of inputs, maps and targets differ, or an impossible share.
    """
    if not 0 < share <= 0.5:
        raise InvalidInputError(f"share must be in (0, 0.5], got {share}")
    check_numbers(inputs, maps, targets)
    large = upsample(maps, inputs.shape[2:]).flatten(1)
    order = large.argsort(dim=1, stable=True)
    count = round(share * large.shape[1])
    left = []
    for removed in (order[:, :count], order[:, -count:]):
        keep = torch.ones_like(large).scatter_(1, removed, 0).view(len(inputs), 1, *inputs.shape[2:])
        left.append(probabilities(predict, inputs * keep, targets))
    return (left[0] - left[1]).masked_fill(~usable(maps).to(left[0].device), float("nan"))


def probabilities(predict: Predict, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability (N,) of each input's target without gradients; see :func:`probabilities_of`."""
    with torch.no_grad():
        logits = predict(inputs).float()
    check_targets(inputs, targets, logits.shape[1])
    return probabilities_of(predict, logits).gather(1, targets.to(logits.device)[:, None])[:, 0]


def check_numbers(inputs: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Check that there are as many maps (N, h, w) and targets (N,) as inputs (N, C, H, W); of volumes one axis more.

    Raises:
        InvalidInputError: the message gives the numbers.
    """
    if not len(inputs) == len(maps) == len(targets) or maps.dim() != inputs.dim() - 1:
        raise InvalidInputError(
            f"expected N inputs, maps (N, h, w) and N targets, of volumes (N, d, h, w), got {len(inputs)} inputs, "
            f"{len(maps)} maps of shape {tuple(maps.shape)} and {len(targets)} targets"
        )
    check_targets(inputs, targets)


def check_targets(inputs: Tensor, targets: Tensor, classes: int | None = None) -> None:
    """Check that targets are one class index for each input.

    Raises:
        InvalidInputError: the message gives the targets.
    """
    if len(targets) != len(inputs):
        raise InvalidInputError(f"expected one target per input, got {len(targets)} targets for {len(inputs)} inputs")
    if len(targets) and (int(targets.min()) < 0 or (classes is not None and int(targets.max()) >= classes)):
        raise InvalidInputError(
            f"targets must be class indices from 0 to {'K' if classes is None else classes} - 1, got {targets}"
        )


def _before_and_after(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    check_numbers(inputs, maps, targets)
    good = usable(maps)
    finite = torch.where(good.view(-1, *[1] * (maps.dim() - 1)), maps.float(), torch.zeros(()))
    scaled = upsample(unit_range(finite), inputs.shape[2:])
    before = probabilities(predict, inputs, targets)
    after = probabilities(predict, inputs * scaled[:, None].to(inputs), targets)
    return before, after.masked_fill(~good.to(after.device), float("nan"))


for _protocol, _divided, _definition, _source in (
    ("grad-cam++-2018", True, "Divided by the probability before.", "Grad-CAM++, 2018; torchcam 0.5.0"),
    ("undivided", False, "Not divided by the probability before.", "grad-cam 1.5"),
):
    register(
        Metric(
            name="average-drop",
            protocol=_protocol,
            function=partial(average_drop, divided=_divided),
            reads_probabilities=True,
            higher_is_better=False,
            range=(0, 1),
            units="share" if _divided else "probability",
            definition="Probability lost when the normalized input is multiplied by the map; a gain counts as 0. "
            f"{_definition}",
            source=_source,
        )
    )
register(
    Metric(
        name="increase-in-confidence",
        protocol="grad-cam++-2018",
        function=increase_in_confidence,
        reads_probabilities=True,
        higher_is_better=True,
        range=(0, 1),
        units="share of images",
        definition="The probability is higher on the normalized input multiplied by the map.",
        source="Grad-CAM++, 2018",
        flat_counts_as=0.0,
    )
)
register(
    Metric(
        name="polarity",
        protocol="top-20%",
        function=polarity,
        reads_probabilities=True,
        higher_is_better=True,
        range=(-1, 1),
        units="probability",
        definition="Probability without the map's bottom 20 % of pixels minus that without its top 20 %; removed "
        "pixels become the mean color. Below 0 the map is inverted.",
        source="this project",
    )
)
