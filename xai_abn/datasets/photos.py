"""Unlabelled photos from folders, cropped at random for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from xai_abn.errors import ImageLoadError
from xai_abn.images.loading import EXAMPLE_PREFIX, find_images, load_image


class PhotoFolder(Dataset):
    """Every picture below some folders, as random crops normalised for a network.

    Args:
        sources: folders (searched recursively), files or globs.
        size: height and width of the crops.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation in [0, 1].
        scale: share of the photo's area that a crop covers, as (least, most).
        exclude: photos whose file name contains one of these are left out.

    A photo that cannot be read gives its error, not raised; :func:`stack_readable` leaves it out and says so.

    Raises:
        ImageLoadError: no photo is found, or a source is not there.
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
        self.paths = find_photos(sources, exclude)
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

    def __getitem__(self, index: int) -> Tensor | ImageLoadError:
        """Return a crop (3, size, size), or why the photo cannot be read."""
        try:
            return self.transform(load_image(self.paths[index]).image)
        except ImageLoadError as error:
            return error


def find_photos(sources: Iterable[str | Path], exclude: Sequence[str] = ()) -> list[str]:
    """Return every picture below some folders, of some files or globs, in the order given.

    Args:
        sources: one named twice counts twice.
        exclude: photos whose file name contains one of these are left out.

    Raises:
        ImageLoadError: no photo is found, or a source is not there.
    """
    sources = list(sources)
    if not sources:
        raise ImageLoadError("no photos to learn from were named; give folders, files or patterns as photos")
    found = []
    for source in sources:
        pictures = find_images(source)
        if pictures == [str(source)] and not str(source).startswith(EXAMPLE_PREFIX) and not Path(source).exists():
            raise ImageLoadError(f"{source}: no such file or folder")
        found += [p for p in pictures if not any(part in Path(p).name for part in exclude)]
    if not found:
        raise ImageLoadError(f"no photos found in {', '.join(map(str, sources))}")
    return found


def stack_readable(crops: Sequence[Tensor | ImageLoadError]) -> tuple[Tensor, list[str]]:
    """Collate: return the readable crops as (N, 3, H, W), or an empty tensor, and why others are not among them."""
    readable = [c for c in crops if isinstance(c, Tensor)]
    reasons = [str(c) for c in crops if not isinstance(c, Tensor)]
    return torch.stack(readable) if readable else torch.empty(0), reasons
