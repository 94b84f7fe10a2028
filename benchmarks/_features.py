"""Features computed once, as a split to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from xai_abn.datasets.batches import Batch


class Features:
    """What frozen layers give for the images of a split; a :class:`~xai_abn.datasets.batches.DataSplit`."""

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return len(self.targets)

    def fingerprint(self) -> str:
        """Return nothing, as no run is resumed."""
        return ""

    def subset(self, indices: Tensor) -> Self:
        """Return a part."""
        return type(self)(self.features[indices], self.targets[indices])

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield batches of features."""
        yield from (Batch(self.features[rows], self.targets[rows]) for rows in batches)
