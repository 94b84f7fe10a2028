"""The terms of the distillation's loss, and the mosaics it is also asked about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.training.distillation.settings import DistillationSettings


def losses(
    network: AttentionBranchNetwork,
    teacher: nn.Module,
    images: Tensor,
    config: DistillationSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the loss of a batch and its terms, each a scalar; see :func:`xai_abn.training.distill`.

    Args:
        network: the student; with ``match_scale`` its mechanism's scale moves.
        teacher: features (N, C, h, w) to logits (N, K).
        images: (N, 3, H, W), normalised.
        config: weights of the terms and number of mosaics.
        generator: draws the mosaics.
    """
    with torch.no_grad():
        features = network.feature_extractor(images)
        wanted = teacher(features).float().softmax(dim=1)
        if config.mosaics:
            mosaics, members = make_mosaics(images, config.mosaics, generator)
            features = torch.cat([features, network.feature_extractor(mosaics)])
            wanted = torch.cat([wanted, wanted[members].mean(dim=1)])
    attention_logits, attention_map, _ = network.attention_branch(features)
    if config.match_scale:
        network.mechanism.match_scale(features, attention_map, momentum=0.1)
    logits = network.perception_branch(network.mechanism(features, attention_map))
    terms = {
        "attention": _divergence(wanted, attention_logits),
        "perception": _divergence(wanted, logits),
        "area": attention_map.float().mean(),
    }
    loss = terms["attention"] + terms["perception"] + config.area_weight * terms["area"]
    if config.sufficiency_weight:
        terms["sufficiency"] = _divergence(wanted, teacher(features * attention_map))
        loss = loss + config.sufficiency_weight * terms["sufficiency"]
    if config.necessity_weight:
        left = teacher(features * (1 - attention_map)).float().softmax(dim=1)
        terms["necessity"] = torch.minimum(wanted, left).sum(dim=1).mean()
        loss = loss + config.necessity_weight * terms["necessity"]
    return {"loss": loss, **terms}


def _divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.float().log_softmax(dim=1), wanted, reduction="batchmean")


def make_mosaics(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put photos together four at a time, each at half its size.

    Args:
        images: (N, C, H, W); where H or W is odd, the last row or column is repeated.
        count: how many mosaics.
        generator: draws the photos, without repeating one within a mosaic where N >= 4.

    Returns:
        Mosaics (count, C, H, W) and the positions (count, 4) of their photos: top left, top right,
        bottom left, bottom right.
    """
    number, height, width = len(images), images.shape[2], images.shape[3]
    draws = [torch.randperm(number, generator=generator) for _ in range(count)]
    members = torch.stack([d.repeat(4)[:4] for d in draws]).to(images.device)
    half = F.avg_pool2d(images, 2)
    tiles = half[members]
    rows = [torch.cat([tiles[:, i], tiles[:, i + 1]], dim=3) for i in (0, 2)]
    mosaics = torch.cat(rows, dim=2)
    if height % 2 or width % 2:
        mosaics = F.pad(mosaics, (0, width % 2, 0, height % 2), mode="replicate")
    return mosaics, members
