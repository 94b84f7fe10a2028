"""Checks on held-out images of whether an attention map is upright, without boxes or labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.metrics.faithfulness import polarity
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.tracing import evaluating

#: A map whose values differ by less than this is flat: it weighs all positions alike.
FLAT_RANGE = 0.01
#: A mean polarity closer to 0 than this is undecided, however small its standard error: a hundredth of the probability.
LEAST_POLARITY = 0.01

#: Warnings by verdict; ``"upright"`` needs none.
WARNINGS = {
    "inverted": "the map is inverted: it marks what the prediction does not need (polarity {polarity:.3f}, above 0 on "
    "{upright:.0%} of the images); raise sufficiency_weight and necessity_weight, or start from another seed",
    "flat": "the map is flat: on most images it weighs all positions alike (mean range {range:.4f}); lower area_weight "
    "or raise map_lr",
    "undecided": "the map is undecided: its polarity does not differ from 0 ({polarity:.3f}, above 0 on "
    "{upright:.0%} of the images); train longer, or hold out more images",
}


@dataclass(frozen=True)
class MapCheck:
    """Results on held-out images; means over images.

    Attributes:
        images: number of images.
        agreement: share whose top-1 class is the teacher's, perception branch.
        attention_agreement: the same for the attention branch.
        area: mean of M, in [0, 1].
        range: largest minus smallest value of M, in [0, 1].
        polarity: :func:`xai_abn.metrics.polarity` of M for the network's own top-1 class; above 0 is upright. NaN if
            every map is flat.
        upright: share of maps with a polarity above 0 among those that are not flat. NaN if every map is flat.
        kept: probability the teacher gives its top-1 class when it sees what the map keeps, g*M.
        hidden: the same when it sees what the map hides, g(1 - M). Both depend on the map's size as well as on its
            sign, so the verdict rests on polarity, which does not.
        verdict: ``"upright"``, ``"inverted"`` (mean polarity above or below 0 by more than two standard errors
            and ``LEAST_POLARITY``), ``"undecided"`` (neither), or ``"flat"`` (on most images M varies by less than
            ``FLAT_RANGE``).
    """

    images: int
    agreement: float
    attention_agreement: float
    area: float
    range: float
    polarity: float
    upright: float
    kept: float
    hidden: float
    verdict: str

    @property
    def warning(self) -> str | None:
        """What is wrong with the map, or None if it is upright."""
        text = WARNINGS.get(self.verdict)
        return text and text.format(**vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the values and the warning for JSON: rounded, with None in place of NaN."""
        values = {n: round(v, 5) if isinstance(v, float) else v for n, v in vars(self).items()}
        return {**{n: None if v != v else v for n, v in values.items()}, "warning": self.warning}


def check_map(network: AttentionBranchNetwork, teacher: nn.Module, inputs: Tensor, *, batch_size: int = 16) -> MapCheck:
    """Check the map and the predictions of a network; the network does not change.

    Args:
        network: the student.
        teacher: features (N, C, h, w) to logits (N, K), as for :func:`xai_abn.training.distill`.
        inputs: (N, 3, H, W) with N >= 1, normalized, not trained on; on any device.
        batch_size: inputs in a forward pass.
    """
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        rows = [
            _measure(network, teacher, batch.to(device, memory_format=torch.channels_last))
            for batch in inputs.split(batch_size)
        ]
    values = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    polarities = values.pop("polarity")
    polarities = polarities[~polarities.isnan()]
    mean = polarities.mean().item() if len(polarities) else math.nan
    return MapCheck(
        images=len(inputs),
        polarity=mean,
        upright=(polarities > 0).double().mean().item() if len(polarities) else math.nan,
        verdict=_verdict(polarities, values["range"]),
        **{name: value.mean().item() for name, value in values.items()},
    )


def _measure(network: AttentionBranchNetwork, teacher: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return each measure with one value for each image, float64 on the CPU."""
    features = network.feature_extractor(inputs)
    attention_logits, attention_map, _ = network.attention_branch(features)
    own = network.perception_branch(network.mechanism(features, attention_map)).argmax(dim=1)
    predicted = teacher(features).argmax(dim=1)

    def teacher_probability(seen: Tensor) -> Tensor:
        result: Tensor = teacher(seen).float().softmax(dim=1).gather(1, predicted[:, None])[:, 0]
        return result

    flat = attention_map.flatten(1)
    rows = {
        "agreement": own == predicted,
        "attention_agreement": attention_logits.argmax(dim=1) == predicted,
        "area": flat.mean(dim=1),
        "range": flat.amax(dim=1) - flat.amin(dim=1),
        "polarity": polarity(lambda x: network(x).logits, inputs, attention_map[:, 0], own),
        "kept": teacher_probability(features * attention_map),
        "hidden": teacher_probability(features * (1 - attention_map)),
    }
    return {name: value.double().cpu() for name, value in rows.items()}


def _verdict(polarities: Tensor, ranges: Tensor) -> str:
    if (ranges < FLAT_RANGE).double().mean() > 0.5 or not len(polarities):
        return "flat"
    mean = polarities.mean().item()
    error = polarities.std().item() / math.sqrt(len(polarities)) if len(polarities) > 1 else math.inf
    if abs(mean) > max(2 * error, LEAST_POLARITY):
        return "upright" if mean > 0 else "inverted"
    return "undecided"
