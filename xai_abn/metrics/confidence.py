"""Average drop and increase in confidence: what remains of the answer when the picture is multiplied by its map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import unit_range, upsample, usable
from xai_abn.metrics.base import Metric, Needs, Predict, probabilities_of, register


def average_drop(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor, *, divided: bool = True) -> Tensor:
    """How much of the target's probability is lost when only what the map shows is kept. Lower is better.

    The normalised input is multiplied by the map, scaled to [0, 1] and then enlarged, in the order of torchcam and
    grad-cam. Rewards large, even maps.

    Args:
        predict: inputs (B, 3, H, W) to logits (B, K).
        inputs: (N, 3, H, W), normalised.
        maps: (N, h, w).
        targets: (N,) class indices.
        divided: by the probability on the whole picture, as in the paper and torchcam; grad-cam 1.5 does not.

    Returns:
        (N,) in [0, 1]; NaN for a flat or non-finite map.

    Raises:
        InvalidInputError: numbers of inputs, maps and targets that differ.

    Source: Chattopadhyay et al., "Grad-CAM++", WACV 2018, section 4.1; in percent there.
    """
    before, after = _before_and_after(predict, inputs, maps, targets)
    drop = (before - after).clamp_min(0)
    return drop / (before + 1e-7) if divided else drop


def increase_in_confidence(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    """1 where the target's probability is higher on the picture multiplied by its map, else 0.

    Arguments, errors and source as for :func:`average_drop`. Returns (N,) of 0 and 1; NaN for a flat or non-finite map.
    """
    before, after = _before_and_after(predict, inputs, maps, targets)
    return torch.where(after.isnan(), after, (after > before).float())


def probabilities(predict: Predict, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability (N,) of each input's target, see :func:`probabilities_of`, without gradients."""
    with torch.no_grad():
        logits = predict(inputs).float()
    check_targets(inputs, targets, logits.shape[1])
    return probabilities_of(predict, logits).gather(1, targets.to(logits.device)[:, None])[:, 0]


def check_numbers(inputs: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Refuse inputs (N, C, H, W), maps (N, h, w) and targets (N,) whose numbers differ.

    Raises:
        InvalidInputError: the message gives the numbers.
    """
    if not len(inputs) == len(maps) == len(targets) or maps.dim() != 3:
        raise InvalidInputError(
            f"got {len(inputs)} inputs, {len(maps)} maps and {len(targets)} targets; maps must be (N, h, w), "
            f"got {tuple(maps.shape)}"
        )
    check_targets(inputs, targets)


def check_targets(inputs: Tensor, targets: Tensor, classes: int | None = None) -> None:
    """Refuse targets that are not one class index from 0 for each input.

    Raises:
        InvalidInputError: the message gives the targets.
    """
    if len(targets) != len(inputs):
        raise InvalidInputError(f"got {len(targets)} targets for {len(inputs)} inputs")
    if len(targets) and (int(targets.min()) < 0 or (classes is not None and int(targets.max()) >= classes)):
        raise InvalidInputError(
            f"targets are class indices from 0 to {'K' if classes is None else classes} - 1, got {targets}"
        )


def _before_and_after(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    check_numbers(inputs, maps, targets)
    good = usable(maps)
    sound = torch.where(good[:, None, None], maps.float(), torch.zeros(()))
    scaled = upsample(unit_range(sound), (inputs.shape[2], inputs.shape[3]))
    before = probabilities(predict, inputs, targets)
    after = probabilities(predict, inputs * scaled[:, None].to(inputs), targets)
    return before, after.masked_fill(~good.to(after.device), float("nan"))


for _name, _protocol, _divided, _definition, _source in (
    ("average-drop", "grad-cam++-2018", True, "Divided by the probability before.", "Grad-CAM++, 2018; torchcam 0.5.0"),
    ("average-drop", "undivided", False, "Not divided by the probability before.", "grad-cam 1.5"),
):
    register(
        Metric(
            name=_name,
            protocol=_protocol,
            function=partial(average_drop, divided=_divided),
            needs=Needs.MODEL,
            reads_probabilities=True,
            higher_is_better=False,
            range=(0, 1),
            units="share" if _divided else "probability",
            definition=f"Probability lost when the normalised input is multiplied by the map, at least 0. "
            f"{_definition}",
            source=_source,
        )
    )
register(
    Metric(
        name="increase-in-confidence",
        protocol="grad-cam++-2018",
        function=increase_in_confidence,
        needs=Needs.MODEL,
        reads_probabilities=True,
        higher_is_better=True,
        range=(0, 1),
        units="share of photos",
        definition="The probability is higher on the normalised input multiplied by the map.",
        source="Grad-CAM++, 2018",
        flat_counts_as=0.0,
    )
)
