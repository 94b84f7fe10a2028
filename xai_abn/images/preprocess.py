"""Preprocessing: images become network inputs by resizing, cropping and normalizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.images.loading import LoadedImage

_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_CROPS = ("center", "squash")
#: Views are drawn at this multiple of the network's input size, so that overlays are sharp.
VIEW_SCALE = 2


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image as the network and as a person sees it.

    Attributes:
        tensor: (3, H, W) float32, normalized: the network's input.
        view: (h, w, 3) uint8 RGB: exactly the part of the image that the network saw, with its original colors, at
            ``VIEW_SCALE`` times the input's size. Made from the image, not from ``tensor``.
        source: where the image came from.
        notes: what was done to the image when it was read.
    """

    tensor: Tensor
    view: np.ndarray
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that a network expects.

    Attributes:
        size: height and width of the input.
        crop_pct: with ``crop="center"``, the shorter side is first resized to ``size / crop_pct``.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"lanczos"`` or ``"nearest"``, antialiased.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        crop: ``"center"`` crops the middle square, as is usual; ``"squash"`` resizes the whole
            image to a square, ignoring its aspect ratio, so that nothing is cut off.

    Raises:
        InvalidInputError: a value is out of range or unknown.
    """

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: str = "center"

    def __post_init__(self) -> None:
        """Check the values, so that a mistake is found here and not in a wrong map."""
        if self.interpolation not in _INTERPOLATION:
            raise InvalidInputError(
                f"interpolation must be one of {', '.join(_INTERPOLATION)}, got {self.interpolation!r}"
            )
        if self.crop not in _CROPS:
            raise InvalidInputError(f"crop must be one of {', '.join(_CROPS)}, got {self.crop!r}")
        if self.size < 1 or not 0 < self.crop_pct <= 1:
            raise InvalidInputError(f"need size >= 1 and 0 < crop_pct <= 1, got {self.size} and {self.crop_pct}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InvalidInputError(f"mean and std need three values, std above 0; got {self.mean} and {self.std}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild from :meth:`to_dict`, ignoring nothing.

        Raises:
            InvalidInputError: a field is unknown or its value wrong.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise InvalidInputError(f"unknown preprocessing fields: {', '.join(sorted(unknown))}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def __call__(self, loaded: LoadedImage) -> PreparedImage:
        """Prepare one image (RGB, any size)."""
        image = loaded.image
        shown = (self.size * VIEW_SCALE, self.size * VIEW_SCALE)
        view = image.resize(shown, Image.Resampling.LANCZOS, box=self.region(*image.size))
        return PreparedImage(self.normalize(self.pixels(image)), np.asarray(view), loaded.source, loaded.notes)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return what the network sees of an image (RGB, any size) before normalizing: (H, W, 3) uint8."""
        if self.crop == "squash":
            return np.asarray(image.resize((self.size, self.size), self.resampling))
        resized = image.resize(_scaled(*image.size, self._resized_side), self.resampling)
        left, top = (round((side - self.size) / 2) for side in resized.size)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image of that size that the network sees: left, top, right, bottom in its pixels."""
        if self.crop == "squash":
            return 0.0, 0.0, float(width), float(height)
        scale = self._resized_side / min(width, height)
        left, top = (round((side - self.size) / 2) for side in _scaled(width, height, self._resized_side))
        region = (left / scale, top / scale, (left + self.size) / scale, (top + self.size) / scale)
        return _inside(region, width, height)

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return _INTERPOLATION[self.interpolation]

    @property
    def _resized_side(self) -> int:
        return math.floor(self.size / self.crop_pct)

    def normalize(self, pixels: np.ndarray) -> Tensor:
        """Return a normalized (3, H, W) float32 tensor for (H, W, 3) uint8 pixels."""
        scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        return (scaled - _channels(self.mean)) / _channels(self.std)

    def prepared_tensor(self, tensor: Tensor, source: str) -> PreparedImage:
        """Wrap a normalized float tensor (3, H, W); its view is the denormalized tensor.

        Raises:
            InvalidInputError: another shape or dtype, or values that are not finite.
        """
        if tensor.dim() != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point():
            raise InvalidInputError(
                f"{source}: expected a normalized float tensor (3, H, W) or (N, 3, H, W), "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
        tensor = tensor.detach().float().cpu()
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"{source}: the tensor holds NaN or infinity")
        pixels = (tensor * _channels(self.std) + _channels(self.mean)).clamp(0, 1) * 255
        view = pixels.round().byte().permute(1, 2, 0).numpy()
        return PreparedImage(tensor, np.ascontiguousarray(view), source)


def normalizer(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Return the function that normalizes training batches: (..., 3, H, W) uint8 on the device to float32.

    It equals :meth:`Preprocess.normalize` up to rounding, in one multiplication and one subtraction.
    """
    scale = (1 / (255 * torch.tensor(std))).view(3, 1, 1).to(device)
    offset = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1).to(device)
    return lambda images: images * scale - offset


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _scaled(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Return the size whose shorter side is ``shorter``, the longer one rounded down, as torchvision does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _inside(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
