"""Accuracy and loss of a network on a split, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.datasets.batches import DataSplit
from xai_abn.errors import DatasetError
from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork
from xai_abn.training.losses import correct, cross_entropy

#: Largest number of pixels in a batch: 64 images of 224x224, 500 of 32x32.
PIXELS = 3_300_000


def evaluate(
    network: nn.Module, split: DataSplit, size: int, accelerator: Any, attributes: Sequence[str] = ()
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return accuracies in [0, 1] and the loss in nats over the readable images of a split, in float32.

    Args:
        network: a classifier or an ABN; it is left in evaluation mode.
        split: the images.
        size: height and width of the images.
        accelerator: Accelerate's; each rank evaluates its share.
        attributes: names of the T attributes, for data with targets (N, T).

    Returns:
        Means called ``accuracy`` and ``loss``, and for an ABN ``attention_accuracy`` and ``area`` (the mean of M);
        ``skipped`` if images could not be read. And for each attribute its ``accuracy`` and ``majority``, the accuracy
        of the better of the two constant predictions.

    Raises:
        DatasetError: no image can be read.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches = torch.arange(len(split))[rank::ranks].split(min(500, max(8, PIXELS // size**2)))
    names, sums = evaluation_sums(network, split, batches, accelerator.device, len(attributes))
    if ranks > 1:  # otherwise the sums stay on the CPU, as not every device has float64
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
    means = dict(zip(names, sums[: len(names)].tolist(), strict=True))
    count, skipped = means.pop("count"), means.pop("skipped")
    if not count:
        raise DatasetError(f"none of the {skipped:.0f} images to evaluate on can be read")
    means = {name: total / count for name, total in means.items()}
    having, right = (part / count for part in sums[len(names) :].view(2, len(attributes)))
    rows = zip(attributes, right.tolist(), torch.maximum(having, 1 - having).tolist(), strict=True)
    by_attribute = {name: {"accuracy": accuracy, "majority": majority} for name, accuracy, majority in rows}
    return {**means, "skipped": skipped} if skipped else means, by_attribute


@torch.no_grad()
def evaluation_sums(
    network: nn.Module, split: DataSplit, batches: Sequence[Tensor], device: torch.device, attributes: int = 0
) -> tuple[list[str], Tensor]:
    """Return names, and sums over images in their order, float64 on the CPU.

    The names depend on the network alone, so that ranks can add their sums by position. Behind the named sums follow,
    for each of T attributes, the images that have it, and those whose prediction is right: 2T more.
    """
    network.eval()
    names = ["count", "skipped", "accuracy", "loss"]
    if isinstance(network, AttentionBranchNetwork):
        names += ["attention_accuracy", "area"]
    total = torch.zeros(len(names) + 2 * attributes, dtype=torch.float64)
    for batch in split.load(batches, device, None):
        count = len(batch.images)
        total[1] += batch.skipped
        if not count:
            continue
        output = network(batch.images)
        logits = output.logits if isinstance(output, ABNOutput) else output
        right, loss = correct(logits, batch.targets).sum(), cross_entropy(logits, batch.targets)
        values = [count, 0, float(right), float(loss) * count]
        if isinstance(output, ABNOutput):
            values += [
                float(correct(output.attention_logits, batch.targets).sum()),
                float(output.attention_map.float().mean()) * count,
            ]
        total[: len(names)] += torch.tensor(values, dtype=torch.float64)
        if attributes:
            has = batch.targets > 0.5
            total[len(names) :] += torch.cat([has.sum(dim=0), ((logits > 0) == has).sum(dim=0)]).cpu()
    return names, total
