"""Preprocessing: images become network inputs by resizing, cropping and normalizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.images.loading import LoadedImage

_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_CROPS = ("center", "squash", "squash-center", "letterbox")
#: Gray of the borders of a letterbox, that of YOLO.
_BORDER = 114
#: Views are drawn at this multiple of the network's input size, so that overlays are sharp.
VIEW_SCALE = 2
#: Parts of a side of a map's cell of which each is inside or outside an outline.
_PARTS = 16


class Deferred:
    """A field of a frozen record that may be given as a function, which makes the value when it is first read."""

    def __init__(self, name: str) -> None:
        self._key = f"_{name}"

    def __get__(self, record: object, owner: type | None = None) -> Any:
        """Return the value."""
        if record is None:
            return self
        values = record.__dict__
        if callable(values[self._key]):
            values[self._key] = values[self._key]()
        return values[self._key]

    def __set__(self, record: object, value: object) -> None:
        """Keep a value, or the function that makes it."""
        record.__dict__[self._key] = value


class Views:
    """The views (N, H, W, 3) uint8 of a batch, which leave the device once, when the first of them is read."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels: Tensor | np.ndarray = pixels

    def row(self, row: int) -> np.ndarray:
        """Return one view, (H, W, 3)."""
        if isinstance(self._pixels, Tensor):
            self._pixels = self._pixels.cpu().numpy()
        found: np.ndarray = self._pixels[row]
        return found


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image, volume or clip as the network and as a person sees it.

    Attributes:
        tensor: (C, H, W) float32, or (C, D, H, W) of a volume or clip, normalized: the network's input.
        view: (h, w, 3) uint8 RGB, or a function that makes it: exactly the part of the image that the network saw, with
            its original colors, at ``VIEW_SCALE`` times the size of the input. Made from the image, not from
            ``tensor``. Of a volume or clip
            (D, h, w, 3), its slices or frames.
        source: where the image came from.
        notes: what was done to the image when it was read.
        size: (height, width) of the image, of a clip (frames, height, width); None for a tensor.
        region: (left, top, right, bottom) of the view in the image, in pixels; None for a tensor.
        affine: (4, 4) of the NIfTI file that a volume came from, or None.
    """

    tensor: Tensor
    view: np.ndarray
    source: str
    notes: tuple[str, ...] = ()
    size: tuple[int, ...] | None = None
    region: tuple[float, float, float, float] | None = None
    affine: np.ndarray | None = None

    @property
    def deferred_view(self) -> Any:
        """The view, or the function that makes it if it was not read yet."""
        return vars(self)["_view"]

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the network saw, in pixels of the image; of a tensor, of the tensor."""
        return self.region or (0.0, 0.0, float(self.tensor.shape[-1]), float(self.tensor.shape[-2]))

    def cells(
        self, outline: Sequence[float] | Sequence[Sequence[float]] | np.ndarray, grid: Sequence[int]
    ) -> np.ndarray:
        """Return how much of each cell of a map lies in a part of the image, to change a map there.

        Args:
            outline: a box (left, top, right, bottom), the corners (x, y) of a polygon, or a mask (height, width) of
                bool, in pixels of the image as it is shown (of the tensor, if there is no image).
            grid: (h, w) of the map.

        Returns:
            (h, w) float32: the share of each cell inside the outline, in [0, 1], to a sixteenth of a cell's sides.

        Raises:
            InvalidInputError: neither a box nor a polygon nor a mask of the image's size, or the network saw nothing
                of it.
        """
        height, width = (int(side) * _PARTS for side in grid)
        if isinstance(outline, np.ndarray) and outline.dtype == bool:
            inside, what = self.seen_of(outline, (height, width)), "the mask"
        else:
            inside, what = self._inside_polygon(outline, (height, width)), repr(outline)
        if not inside.any():
            left, top, right, bottom = self.seen
            raise InvalidInputError(
                f"{self.source}: the network saw nothing of {what}; it saw the part from {left:.0f}, {top:.0f} to "
                f"{right:.0f}, {bottom:.0f} (x, y in pixels), so choose a part of that"
            )
        parts = inside.reshape(height // _PARTS, _PARTS, width // _PARTS, _PARTS)
        return np.asarray(parts.mean(axis=(1, 3)), np.float32)

    def _inside_polygon(self, outline: Any, grid: tuple[int, int]) -> np.ndarray:
        """Return which of the centers of a grid (h, w) over the view lie in a box or polygon."""
        from matplotlib.path import Path

        try:
            corners = np.asarray(outline, np.float64)
        except (TypeError, ValueError):  # reported below
            corners = np.zeros(0)
        if corners.shape == (4,):
            left, top, right, bottom = corners
            corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
            raise InvalidInputError(
                f"outline must be a box (left, top, right, bottom) or at least three corners (x, y), got {outline!r}"
            )
        y, x = self._centers(grid)
        points = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
        return Path(corners).contains_points(points.reshape(-1, 2)).reshape(grid)

    def _centers(self, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return y (h,) and x (w,), in pixels of the image, of the centers of a grid (h, w) over the view."""
        left, top, right, bottom = self.seen
        height, width = grid
        y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
        return y / height * (bottom - top) + top, x / width * (right - left) + left

    def seen_of(self, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Return what the network saw of a mask of the image, on a grid (h, w) over the view, by nearest neighbor.

        Raises:
            InvalidInputError: the mask (height, width) has not the size of the image.
        """
        size = self.size or (self.tensor.shape[1], self.tensor.shape[2])
        if mask.shape != size:
            got = "x".join(map(str, mask.shape[::-1]))
            raise InvalidInputError(f"{self.source}: expected a mask of {size[1]}x{size[0]} pixels, got {got}")
        y, x = (np.floor(at).astype(int).clip(0, side - 1) for at, side in zip(self._centers(grid), size, strict=True))
        seen: np.ndarray = mask[y][:, x]
        return seen

    def on_image(self, seen: np.ndarray) -> np.ndarray:
        """Return a mask of the view (h, w) bool in its place on the whole image, by nearest neighbor.

        Returns:
            (height, width) bool of the image; False outside the part the network saw.
        """
        left, top, right, bottom = self.seen
        height, width = self.size or (self.tensor.shape[1], self.tensor.shape[2])
        y = np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * seen.shape[0]).astype(int)
        x = np.floor((np.arange(width) + 0.5 - left) / (right - left) * seen.shape[1]).astype(int)
        rows, columns = (y >= 0) & (y < seen.shape[0]), (x >= 0) & (x < seen.shape[1])
        whole = np.zeros((height, width), bool)
        whole[np.ix_(rows, columns)] = seen[y[rows]][:, x[columns]]
        return whole


PreparedImage.view = Deferred("view")  # type: ignore[assignment]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that a network expects.

    Attributes:
        size: height of the input, and its width unless ``width`` is given.
        crop_pct: with ``crop="center"``, the image is first resized to just cover ``1 / crop_pct`` times the input.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"lanczos"`` or ``"nearest"``, antialiased.
        mean: per channel, in [0, 1]: three values for RGB, one for a network that takes gray images.
        std: per channel, in [0, 1].
        crop: ``"center"`` crops the middle, as is usual; ``"squash"`` resizes the whole
            image to the input, ignoring its aspect ratio, so that nothing is cut off; ``"squash-center"`` resizes it
            to ``1 / crop_pct`` times the input, ignoring its aspect ratio, and crops the middle; ``"letterbox"`` shows
            the whole image with its own aspect ratio between gray borders, as YOLO does.
        width: width of the input, if it is not a square.

    Raises:
        InvalidInputError: a value is out of range or unknown.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # of checkpoints

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: str = "center"
    width: int | None = None

    def __post_init__(self) -> None:
        """Check the values, so that a mistake is found here and not in a wrong map."""
        if self.interpolation not in _INTERPOLATION:
            raise InvalidInputError(
                f"interpolation must be one of {', '.join(_INTERPOLATION)}, got {self.interpolation!r}"
            )
        if self.crop not in _CROPS:
            raise InvalidInputError(f"crop must be one of {', '.join(_CROPS)}, got {self.crop!r}")
        if not isinstance(self.size, int):
            raise InvalidInputError(f"size must be a number; for a rectangle give size and width, got {self.size!r}")
        if min(self.height_and_width) < 1 or not 0 < self.crop_pct <= 1:
            raise InvalidInputError(
                f"size must be at least 1 and crop_pct in (0, 1], got {self.size} and {self.crop_pct}"
            )
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise InvalidInputError(
                f"mean and std must have three values, or one for gray images, with std above 0; got {self.mean} and "
                f"{self.std}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild from :meth:`to_dict`.

        Raises:
            InvalidInputError: a field is unknown or its value wrong.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise InvalidInputError(f"unknown preprocessing fields: {', '.join(sorted(unknown))}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; a width only if there is one."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if k != "width" or v is not None}

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Size of the input, (H, W)."""
        return self.size, self.width or self.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input, (C, H, W)."""
        return (len(self.mean), *self.height_and_width)

    @property
    def side(self) -> int:
        """Side of the input of a network that takes square RGB images.

        Raises:
            InvalidInputError: it takes gray images, rectangles or borders, which training and the benchmark cannot
                handle.
        """
        height, width = self.height_and_width
        if len(self.shape) != 3 or len(self.mean) != 3 or height != width:
            raise InvalidInputError(
                f"only square RGB inputs can be trained on and measured, got (C, H, W) = {self.shape}; explain works"
            )
        if self.crop == "letterbox":
            raise InvalidInputError("inputs with borders cannot be trained on and measured; give crop='squash'")
        return self.size

    def __call__(self, loaded: LoadedImage) -> PreparedImage:
        """Prepare one image (RGB, any size)."""
        image = loaded.image
        height, width = self.height_and_width
        shown = (width * VIEW_SCALE, height * VIEW_SCALE)
        region = self.region(*image.size)
        if self.crop == "letterbox":
            view = np.asarray(self._bordered(image, VIEW_SCALE, Image.Resampling.LANCZOS))
        else:
            view = np.asarray(image.resize(shown, Image.Resampling.LANCZOS, box=region))
        tensor = self.normalize(self.pixels(image))
        return PreparedImage(tensor, view, loaded.source, loaded.notes, (image.height, image.width), region)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return what the network sees of an image (RGB, any size) before normalizing: (H, W, C) uint8."""
        if len(self.mean) == 1:
            image = image.convert("L")
        if self.crop == "letterbox":
            height, width = self.height_and_width
            return np.asarray(self._bordered(image, 1, self.resampling)).reshape(height, width, len(self.mean))
        return self._cropped(np.asarray(image.resize(self._resized(*image.size), self.resampling)))

    def _cropped(self, resized: np.ndarray) -> np.ndarray:
        """Return the middle of an image that was resized, (H, W, C)."""
        height, width = self.height_and_width
        left, top = round((resized.shape[1] - width) / 2), round((resized.shape[0] - height) / 2)
        return resized[top : top + height, left : left + width].reshape(height, width, len(self.mean))

    def _bordered(self, image: Image.Image, scale: int, resampling: Image.Resampling) -> Image.Image:
        """Return an image between its borders, at ``scale`` times the size of the input."""
        height, width = self.height_and_width
        own_width, own_height = self._resized(*image.size)
        left, top = self._borders(own_width, own_height)
        found = Image.new(image.mode, (width * scale, height * scale), (_BORDER,) * len(image.getbands()))
        found.paste(image.resize((own_width * scale, own_height * scale), resampling), (left * scale, top * scale))
        return found

    def _borders(self, width: int, height: int) -> tuple[int, int]:
        """Return the widths of the left and the upper border around a resized image; the others may be wider by one."""
        own_height, own_width = self.height_and_width
        return (own_width - width) // 2, (own_height - height) // 2

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image of that size that the network sees: left, top, right, bottom in its pixels.

        With borders it is larger than the image.
        """
        if self.crop == "squash":
            return 0.0, 0.0, float(width), float(height)
        own_height, own_width = self.height_and_width
        if self.crop == "letterbox":
            resized = self._resized(width, height)
            left, top = self._borders(*resized)
            across, down = resized[0] / width, resized[1] / height
            return -left / across, -top / down, (own_width - left) / across, (own_height - top) / down
        across, down = self._scales(width, height)
        resized = self._resized(width, height)
        left, top = round((resized[0] - own_width) / 2), round((resized[1] - own_height) / 2)
        region = (left / across, top / down, (left + own_width) / across, (top + own_height) / down)
        return _inside(region, width, height)

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return _INTERPOLATION[self.interpolation]

    def _covered(self) -> tuple[int, int]:
        """Return the (width, height) that an image covers at least before it is cropped."""
        share = 1 if self.crop == "squash" else self.crop_pct
        height, width = self.height_and_width
        return math.floor(width / share), math.floor(height / share)

    def _scales(self, width: int, height: int) -> tuple[float, float]:
        """Return by what factors the sides of an image of that size are enlarged before it is cropped."""
        own_width, own_height = self._covered()
        across, down = own_width / width, own_height / height
        return (max(across, down),) * 2 if self.crop == "center" else (across, down)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of an image before it is cropped; one may be rounded down, as torchvision does."""
        if self.crop == "letterbox":
            share = min(self.height_and_width[1] / width, self.height_and_width[0] / height)
            return max(round(width * share), 1), max(round(height * share), 1)
        own_width, own_height = self._covered()
        if self.crop != "center":
            return own_width, own_height
        if own_width * height >= own_height * width:
            return own_width, int(own_width * height / width)
        return int(own_height * width / height), own_height

    def normalize(self, pixels: np.ndarray) -> Tensor:
        """Return a normalized (C, H, W) float32 tensor for (H, W, C) uint8 pixels."""
        scaled = np.divide(pixels, 255, dtype=np.float32)  # torch would start threads for it in every thread
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.std, np.float32)
        return torch.from_numpy(scaled).permute(2, 0, 1)

    def prepared_tensor(self, tensor: Tensor, source: str, axes: int = 2) -> PreparedImage:
        """Wrap a normalized float tensor (C, H, W), or with three axes (C, D, H, W); its view is denormalized.

        The view of a tensor with another number of channels than the preprocessing is the mean of its channels, in
        gray, from its smallest to its largest value.

        Raises:
            InvalidInputError: another shape or dtype, a volume of a single slice, or values that are not finite.
        """
        if tensor.dim() != axes + 1 or not tensor.is_floating_point() or not tensor.numel():
            form = "(C, H, W) or (N, C, H, W)" if axes == 2 else "(C, D, H, W) or (N, C, D, H, W)"
            raise InvalidInputError(
                f"{source}: expected a normalized float tensor {form}, got {tensor.dtype} {tuple(tensor.shape)}"
                + ("; add an axis for the channels: tensor[None]" if axes == 3 == tensor.dim() else "")
            )
        if axes == 3 and tensor.shape[1] == 1:
            raise InvalidInputError(
                f"{source}: expected a volume or clip (C, D, H, W) of at least two slices, got one; use a network for "
                "images"
            )
        tensor = tensor.detach().float().cpu()
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"{source}: expected finite values, the tensor holds NaN or infinity")
        if len(tensor) == len(self.mean) and len(self.shape) == tensor.dim():
            pixels = (tensor * _channels(self.std, axes) + _channels(self.mean, axes)).clamp(0, 1)
        else:
            gray = tensor.mean(dim=0, keepdim=True)
            pixels = (gray - gray.min()) / (gray.max() - gray.min()).clamp_min(1e-12)
        view = (pixels * 255).round().byte().movedim(0, -1).expand(*tensor.shape[1:], 3).numpy()
        notes = self._doubts(float(tensor.min()), float(tensor.max())) if len(self.shape) == tensor.dim() else ()
        return PreparedImage(tensor, np.ascontiguousarray(view), source, notes)

    def prepared_batch(self, batch: Tensor, sources: Sequence[str]) -> list[PreparedImage] | None:
        """Wrap a batch of normalized float tensors (N, C, H, W), on any device, as :meth:`prepared_tensor` does each.

        Returns:
            The images; None if one of them has to be refused, which :meth:`prepared_tensor` does, or their channels are
            not those of the preprocessing.
        """
        if batch.dim() != 4 or len(self.shape) != 3 or batch.shape[1] != len(self.mean) or not batch.numel():
            return None
        batch = batch.detach().float()
        ends = torch.stack(batch.flatten(1).aminmax(dim=1)).tolist()  # NaN spreads to both
        if not all(math.isfinite(end) for row in ends for end in row):
            return None
        pixels = batch * _channels(self.std).to(batch) + _channels(self.mean).to(batch)
        views = Views(pixels.clamp_(0, 1).mul_(255).round_().byte().permute(0, 2, 3, 1).contiguous())
        return [
            PreparedImage(image, partial(views.row, row), source, self._doubts(low, high) if low >= 0 else ())  # type: ignore[arg-type]
            for row, (image, source, low, high) in enumerate(zip(batch, sources, *ends, strict=True))
        ]

    def _doubts(self, lowest: float, highest: float) -> tuple[str, ...]:
        """Return a note if the values of a tensor are unlikely for a normalized image."""
        black = min(-m / s for m, s in zip(self.mean, self.std, strict=True))
        white = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        if lowest >= 0 and highest > 2 * max(white, 1):
            kind = "0 to 255"
        elif black < 0 and lowest >= 0 and 0 < highest <= 1:
            kind = "0 to 1"
        else:
            return ()
        return (
            f"the tensor's values, from {lowest:.3g} to {highest:.3g}, look like pixels of {kind}; inputs are "
            f"normalized, from {black:.2g} to {white:.2g}",
        )


def normalizer(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Return the function that normalizes training batches: (..., 3, H, W) uint8 on the device to float32.

    It equals :meth:`Preprocess.normalize` up to rounding, in one multiplication and one subtraction.
    """
    scale = (1 / (255 * torch.tensor(std))).view(3, 1, 1).to(device)
    offset = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1).to(device)
    return lambda images: images * scale - offset


def _channels(values: tuple[float, ...], axes: int = 2) -> Tensor:
    return torch.tensor(values).view(-1, *[1] * axes)


def _inside(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
