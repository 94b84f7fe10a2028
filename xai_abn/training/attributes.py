"""What a network of attributes reaches on each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xai_abn.datasets.batches import DataSplit
from xai_abn.networks.abn import ABNOutput


@torch.no_grad()
def attribute_sums(
    network: nn.Module, split: DataSplit, batches: Sequence[Tensor], device: torch.device, attributes: int
) -> Tensor:
    """Return, for each attribute, how many pictures there are, how many have it, and how many are answered rightly.

    Args:
        network: a classifier or an ABN of T attributes; it is put into evaluation mode.
        split: the pictures, with targets (N, T).
        batches: indices of those to measure, a batch each; what cannot be read of them does not count.
        device: where the network is.
        attributes: T.

    Returns:
        (3, T) float64 on the CPU, in that order.
    """
    network.eval()
    sums = torch.zeros(3, attributes, dtype=torch.float64)
    for batch in split.load(batches, device, None):
        if not len(batch.images):
            continue
        answer = network(batch.images)
        logits = answer.logits if isinstance(answer, ABNOutput) else answer
        has = batch.targets > 0.5
        sums = sums + torch.stack([torch.ones_like(has), has, (logits > 0) == has]).sum(dim=1).cpu()
    return sums


def attribute_accuracies(sums: Tensor, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return for each attribute its ``accuracy``, and ``majority``: that of the better of the two constant answers.

    Args:
        sums: (3, T) of :func:`attribute_sums`.
        labels: T names.
    """
    count, having, right = sums
    share = having / count
    majority = torch.maximum(share, 1 - share).tolist()
    accuracy = (right / count).tolist()
    return {name: {"accuracy": a, "majority": m} for name, a, m in zip(labels, accuracy, majority, strict=True)}
