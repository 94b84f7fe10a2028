"""Which photo, cut how, comes when: a function of the seed and the number of the draw alone.

So a run that was killed goes on with the very crops it would have seen, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xai_abn.datasets.batches import stack_readable
from xai_abn.seeding import mixed_seed


class Draws(Dataset[Any]):
    """An endless sequence of crops: all photos in a random order, then all in another, and so on.

    Args:
        photos: gives crops; random ones are cut with torch's own random numbers.
        seed: of the orders and the crops, at least 0.
    """

    def __init__(self, photos: Dataset[Any], seed: int) -> None:
        self.photos = photos
        self.seed = seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, number: int) -> Any:
        """Return what draw ``number``, counted from 0, gives; torch's random state is as before."""
        epoch, position = divmod(number, len(self.photos))  # type: ignore[arg-type]
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.photos), generator=generator)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, "crop", number))
            return self.photos[int(self._order[position])]


def batches(
    photos: Dataset[Any], steps: Sequence[int], *, batch_size: int, seed: int, workers: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield the batch of each step as crops (N, 3, H, W) and why other photos of the batch cannot be read.

    Args:
        photos: gives (3, H, W) crops, or an ImageLoadError for a photo that cannot be read.
        steps: consecutive steps, counted from 0.
        batch_size: photos a step.
        seed: see :class:`Draws`.
        workers: processes that read photos.
    """
    loader = DataLoader(
        Draws(photos, seed),
        batch_size=batch_size,
        sampler=range(steps[0] * batch_size, (steps[-1] + 1) * batch_size) if steps else [],
        num_workers=workers,
        collate_fn=stack_readable,
        generator=torch.Generator().manual_seed(seed),
    )
    yield from loader


def mosaic_generator(seed: int, step: int) -> torch.Generator:
    """Return the random numbers from which a step, counted from 0, draws its mosaics."""
    return torch.Generator().manual_seed(mixed_seed(seed, "mosaics", step))
