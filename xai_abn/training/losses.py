"""What a classifier and an Attention Branch Network are trained to lower, and what is counted of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.datasets.batches import DataSplit
from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork


def classification_losses(
    answer: Tensor | ABNOutput,
    targets: Tensor,
    *,
    attention_weight: float = 1.0,
    area_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Return the training loss and its terms.

    ``loss = CE(perception) + attention_weight * CE(attention branch) + area_weight * mean(M)``; of a plain classifier
    the first term alone.

    Args:
        answer: logits (N, K), or what an ABN answers.
        targets: (N,) class indices; or (N, K) of 0 and 1, whose cross-entropy is binary, the mean over attributes.
        attention_weight: 1 as published.
        area_weight: 0 as published.
        label_smoothing: in [0, 1); 0 as published; for class indices alone.

    Returns:
        Scalars in nats: ``loss``, ``perception``, and of an ABN ``attention`` and ``area`` (the mean of M).

    Source: Fukui et al., CVPR 2019, section 3.4; the area penalty is this project's.
    """
    if not isinstance(answer, ABNOutput):
        perception = cross_entropy(answer, targets, label_smoothing)
        return {"loss": perception, "perception": perception}
    terms = {
        "perception": cross_entropy(answer.logits, targets, label_smoothing),
        "attention": cross_entropy(answer.attention_logits, targets, label_smoothing),
        "area": answer.attention_map.float().mean(),
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
    """Return what is answered rightly, as numbers in [0, 1], (N,): the top class, or the share of attributes."""
    if targets.dim() == 2:
        return ((logits > 0) == (targets > 0.5)).float().mean(dim=1)
    return (logits.argmax(dim=1) == targets).float()


@torch.no_grad()
def measured_sums(
    network: nn.Module, split: DataSplit, indices: Tensor, device: torch.device, at_once: int = 500
) -> dict[str, float]:
    """Return sums over pictures of what is right and of the cross-entropy, for the two branches of an ABN, in float32.

    Args:
        network: a classifier or an ABN; it is put into evaluation mode.
        split: the pictures.
        indices: (N,) of those to measure.
        device: where the network is.
        at_once: pictures a batch.

    Returns:
        Sums called ``accuracy``, ``loss``, ``count``, ``skipped`` (pictures that could not be read); of an ABN
        ``attention_accuracy`` and ``area`` (mean of M), too. The same names in the same order whatever can be read.
    """
    network.eval()
    names = ["count", "skipped", "accuracy", "loss"]
    if isinstance(network, AttentionBranchNetwork):
        names += ["attention_accuracy", "area"]
    sums = dict.fromkeys(names, 0.0)
    for batch in split.load(indices.split(at_once), device, None):
        sums["skipped"] += batch.skipped
        number = len(batch.images)
        if not number:
            continue
        answer = network(batch.images)
        logits = answer.logits if isinstance(answer, ABNOutput) else answer
        found = {
            "count": number,
            "accuracy": float(correct(logits, batch.targets).sum()),
            "loss": float(cross_entropy(logits, batch.targets)) * number,
        }
        if isinstance(answer, ABNOutput):
            found["attention_accuracy"] = float(correct(answer.attention_logits, batch.targets).sum())
            found["area"] = float(answer.attention_map.float().mean()) * number
        for name, value in found.items():
            sums[name] += value
    return sums
