"""Is a map the right way up? Asked of photos that were never trained on, without boxes or labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.metrics.polarity import polarity
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.tracing import evaluating

#: A map whose values differ by less than this weighs all positions alike.
FLAT_RANGE = 0.01
#: A mean polarity nearer to 0 than this says nothing, however sure it is: a hundredth of the probability.
LEAST_POLARITY = 0.01

#: What is said of each verdict but ``"upright"``, which needs no warning.
WARNINGS = {
    "inverted": "the map is inverted: it lights what the answer does not need (polarity {polarity:.3f}, above 0 on "
    "{upright:.0%} of the photos); raise sufficiency_weight and necessity_weight, or start from another seed",
    "flat": "the map is flat: on most photos it weighs all positions alike (mean range {range:.4f}); lower area_weight "
    "or raise map_lr",
    "undecided": "the map's polarity cannot be told from 0 ({polarity:.3f}, above 0 on {upright:.0%} of the photos): "
    "train longer, or hold out more photos",
}


@dataclass(frozen=True)
class MapCheck:
    """What the held-out photos say; means over photos.

    Attributes:
        photos: how many.
        agreement: share whose top-1 class is the teacher's, perception branch.
        attention_agreement: the same for the attention branch.
        area: mean of M, in [0, 1].
        range: largest less smallest value of M, in [0, 1].
        polarity: :func:`xai_abn.metrics.polarity` of M for the network's own top-1 class; above 0 is the right way
            up. NaN if every map is flat.
        upright: share of the maps that are not flat whose polarity is above 0. NaN likewise.
        kept: probability the teacher gives its top-1 class when it sees what the map keeps, g*M.
        hidden: the same when it sees what the map hides, g(1 - M). Both depend on the map's size as well as on its
            sign, so the verdict rests on polarity, which does not.
        verdict: ``"upright"``, ``"inverted"`` (mean polarity above or below 0 by more than two standard errors
            and ``LEAST_POLARITY``), ``"undecided"`` (neither), or ``"flat"`` (on most photos M differs by less than
            ``FLAT_RANGE``).
    """

    photos: int
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
        """What is wrong with the map, or None if it is the right way up."""
        text = WARNINGS.get(self.verdict)
        return text and text.format(**vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the values and the warning as JSON knows them: rounded, None in place of NaN."""
        values = {n: round(v, 5) if isinstance(v, float) else v for n, v in vars(self).items()}
        return {**{n: None if v != v else v for n, v in values.items()}, "warning": self.warning}


def check_map(network: AttentionBranchNetwork, teacher: nn.Module, inputs: Tensor, *, batch_size: int = 16) -> MapCheck:
    """Check a network's map and answers; the network stays as it is.

    Args:
        network: the student.
        teacher: features (N, C, h, w) to logits (N, K), as for :func:`xai_abn.training.distill`.
        inputs: (N, 3, H, W) with N >= 1, normalised, not trained on; on any device.
        batch_size: inputs a pass.
    """
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        rows = [
            _rows(network, teacher, batch.to(device, memory_format=torch.channels_last))
            for batch in inputs.split(batch_size)
        ]
    values = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    signs = values.pop("polarity")
    signs = signs[~signs.isnan()]
    mean = signs.mean().item() if len(signs) else math.nan
    return MapCheck(
        photos=len(inputs),
        polarity=mean,
        upright=(signs > 0).double().mean().item() if len(signs) else math.nan,
        verdict=_verdict(signs, values["range"]),
        **{name: value.mean().item() for name, value in values.items()},
    )


def _rows(network: AttentionBranchNetwork, teacher: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return one value a photo for every question, float64 on the CPU."""
    features = network.feature_extractor(inputs)
    attention_logits, attention_map, _ = network.attention_branch(features)
    own = network.perception_branch(network.mechanism(features, attention_map)).argmax(dim=1)
    wanted = teacher(features).argmax(dim=1)

    def answer(seen: Tensor) -> Tensor:
        result: Tensor = teacher(seen).float().softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        return result

    flat = attention_map.flatten(1)
    rows = {
        "agreement": own == wanted,
        "attention_agreement": attention_logits.argmax(dim=1) == wanted,
        "area": flat.mean(dim=1),
        "range": flat.amax(dim=1) - flat.amin(dim=1),
        "polarity": polarity(lambda x: network(x).logits, inputs, attention_map[:, 0], own),
        "kept": answer(features * attention_map),
        "hidden": answer(features * (1 - attention_map)),
    }
    return {name: value.double().cpu() for name, value in rows.items()}


def _verdict(signs: Tensor, ranges: Tensor) -> str:
    if (ranges < FLAT_RANGE).double().mean() > 0.5 or not len(signs):
        return "flat"
    mean = signs.mean().item()
    error = signs.std().item() / math.sqrt(len(signs)) if len(signs) > 1 else math.inf
    if abs(mean) > max(2 * error, LEAST_POLARITY):
        return "upright" if mean > 0 else "inverted"
    return "undecided"
