"""Unlabelled photos from folders, cropped at random for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from xai_abn.errors import ImageLoadError
from xai_abn.images import find_images, load_image


class PhotoFolder(Dataset):
    """Every picture below some folders, as random crops normalised for a network.

    Args:
        sources: folders (searched recursively), files or globs.
        size: height and width of the crops.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation in [0, 1].
        scale: share of the photo's area that a crop covers, as (least, most).
        exclude: photos whose file name contains one of these are left out.

    A photo that cannot be read gives ``None``; :func:`stack_readable` leaves it out and counts it.

    Raises:
        ImageLoadError: no photo is found.
    """

    def __init__(
        self,
        sources: Iterable[str | Path],
        *,
        size: int = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        scale: tuple[float, float] = (0.25, 1.0),
        exclude: Sequence[str] = (),
    ) -> None:
        sources = list(sources)
        found = [path for source in sources for path in find_images(source)]
        self.paths = [p for p in found if not any(part in Path(p).name for part in exclude)]
        if not self.paths:
            raise ImageLoadError(f"no photos found in {', '.join(map(str, sources))}")
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | None:
        """Return a crop (3, size, size), or None where the photo cannot be read."""
        try:
            return self.transform(load_image(self.paths[index]).image)
        except ImageLoadError:
            return None


def stack_readable(crops: Sequence[Tensor | None]) -> tuple[Tensor, int]:
    """Collate: return the readable crops as (N, 3, H, W) and how many were unreadable.

    Raises:
        ImageLoadError: none of them is readable.
    """
    readable = [c for c in crops if c is not None]
    if not readable:
        raise ImageLoadError(f"none of the {len(crops)} photos of a batch can be read")
    return torch.stack(readable), len(crops) - len(readable)
