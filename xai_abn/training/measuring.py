"""Measure a network on a split, of which each rank takes its share, and put a run's result together."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import DataSplit
from xai_abn.errors import DatasetError
from xai_abn.training.attributes import attribute_accuracies, attribute_sums
from xai_abn.training.losses import measured_sums

#: Pixels at once when measuring: 64 pictures of 224x224, 500 of 32x32.
MEASURED_PIXELS = 3_300_000


class Measurer:
    """Measures networks on the splits of some data.

    Args:
        data: whose size and labels count.
        accelerator: Accelerate's, which joins the ranks.
    """

    def __init__(self, data: TrainingData, accelerator: Any) -> None:
        self.data, self.accelerator = data, accelerator
        self.at_once = min(500, max(8, MEASURED_PIXELS // data.preprocess.size**2))

    def accuracies(self, network: nn.Module, split: DataSplit) -> dict[str, float]:
        """Return accuracies in [0, 1] and the loss over what can be read of a split.

        Raises:
            DatasetError: nothing of it can be read.
        """
        sums = measured_sums(network, split, self._mine(split), self.accelerator.device, self.at_once)
        totals = self._summed(torch.tensor(list(sums.values()), dtype=torch.float64))
        found = dict(zip(sums, totals.tolist(), strict=True))
        count, skipped = found.pop("count"), found.pop("skipped")
        if not count:
            raise DatasetError(f"none of {skipped:.0f} pictures to measure on can be read")
        means = {name: total / count for name, total in found.items()}
        return {**means, "skipped": skipped} if skipped else means

    def attributes(self, network: nn.Module, split: DataSplit) -> dict[str, dict[str, float]]:
        """Return what :func:`attribute_accuracies` does."""
        names = self.data.labels
        batches = self._mine(split).split(self.at_once)
        sums = attribute_sums(network, split, batches, self.accelerator.device, len(names))
        return attribute_accuracies(self._summed(sums), names)

    def _summed(self, sums: torch.Tensor) -> torch.Tensor:
        """Return sums, float64 on the CPU, over all ranks; a device alone need not know float64."""
        if self.accelerator.num_processes == 1:
            return sums
        result: torch.Tensor = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").cpu()
        return result

    def _mine(self, split: DataSplit) -> torch.Tensor:
        return torch.arange(len(split))[self.accelerator.process_index :: self.accelerator.num_processes]
