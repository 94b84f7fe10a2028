"""Losses of training and of distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork
from xai_abn.training.settings import DistillationSettings


def classification_losses(
    output: Tensor | ABNOutput,
    targets: Tensor,
    *,
    attention_weight: float = 1.0,
    area_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Return the training loss and its terms.

    ``loss = CE(perception) + attention_weight * CE(attention branch) + area_weight * mean(M)``; for a plain classifier
    only the first term.

    Args:
        output: logits (N, K), or the output of an ABN.
        targets: (N,) class indices; or (N, K) of 0 and 1, whose cross-entropy is binary, the mean over attributes.
        attention_weight: 1 as published.
        area_weight: 0 as published.
        label_smoothing: in [0, 1); 0 as published; for class indices only.

    Returns:
        Scalars in nats: ``loss``, ``perception``, and for an ABN ``attention`` and ``area`` (the mean of M).

    Source: Fukui et al., CVPR 2019, section 3.4; the area penalty is this project's.
    """
    if not isinstance(output, ABNOutput):
        perception = cross_entropy(output, targets, label_smoothing)
        return {"loss": perception, "perception": perception}
    terms = {
        "perception": cross_entropy(output.logits, targets, label_smoothing),
        "attention": cross_entropy(output.attention_logits, targets, label_smoothing),
        "area": output.attention_map.float().mean(),
    }
    loss = terms["perception"] + attention_weight * terms["attention"]
    if area_weight:
        loss = loss + area_weight * terms["area"]
    return {"loss": loss, **terms}


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy in nats: over classes for (N,) indices, binary for (N, K) attributes."""
    if targets.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) numbers in [0, 1]: 1 where the top class is right; or the share of attributes that are right."""
    if targets.dim() == 2:
        return ((logits > 0) == (targets > 0.5)).float().mean(dim=1)
    return (logits.argmax(dim=1) == targets).float()


def distillation_losses(
    network: AttentionBranchNetwork,
    teacher: nn.Module,
    images: Tensor,
    settings: DistillationSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the distillation loss of a batch and its terms, each a scalar; see :func:`xai_abn.training.distill`.

    Args:
        network: the student; the mechanism follows the scale of its features.
        teacher: features (N, C, h, w) to logits (N, K).
        images: (N, 3, H, W), normalized.
        settings: weights of the terms and number of mosaics.
        generator: random numbers of the mosaics.
    """
    with torch.no_grad():
        features = network.feature_extractor(images)
        target = teacher(features).float().softmax(dim=1)
        if settings.mosaics:
            mosaics, members = make_mosaics(images, settings.mosaics, generator)
            features = torch.cat([features, network.feature_extractor(mosaics)])
            target = torch.cat([target, target[members].mean(dim=1)])
    attention_logits, attention_map, _ = network.attention_branch(features)
    network.mechanism.match_scale(features, attention_map, momentum=0.1)
    logits = network.perception_branch(network.mechanism(features, attention_map))
    terms = {
        "attention": _divergence(target, attention_logits),
        "perception": _divergence(target, logits),
        "area": attention_map.float().mean(),
    }
    loss = terms["attention"] + terms["perception"] + settings.area_weight * terms["area"]
    if settings.sufficiency_weight:
        terms["sufficiency"] = _divergence(target, teacher(features * attention_map))
        loss = loss + settings.sufficiency_weight * terms["sufficiency"]
    if settings.necessity_weight:
        hidden = teacher(features * (1 - attention_map)).float().softmax(dim=1)
        terms["necessity"] = torch.minimum(target, hidden).sum(dim=1).mean()
        loss = loss + settings.necessity_weight * terms["necessity"]
    return {"loss": loss, **terms}


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.float().log_softmax(dim=1), target, reduction="batchmean")


def make_mosaics(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put images together four at a time, each at half its size.

    Args:
        images: (N, C, H, W); if H or W is odd, the last row or column is repeated.
        count: number of mosaics.
        generator: random numbers that choose the images, without repeating one within a mosaic if N >= 4.

    Returns:
        Mosaics (count, C, H, W) and the positions (count, 4) of their images: top left, top right, bottom left, bottom
        right.
    """
    number, height, width = len(images), images.shape[2], images.shape[3]
    draws = [torch.randperm(number, generator=generator) for _ in range(count)]
    members = torch.stack([draw.repeat(4)[:4] for draw in draws]).to(images.device)
    tiles = F.avg_pool2d(images, 2)[members]
    rows = [torch.cat([tiles[:, i], tiles[:, i + 1]], dim=3) for i in (0, 2)]
    mosaics = torch.cat(rows, dim=2)
    if height % 2 or width % 2:
        mosaics = F.pad(mosaics, (0, width % 2, 0, height % 2), mode="replicate")
    return mosaics, members
