"""Annotated objects on the pixel grid that a map is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, as regions of one pixel grid.

    Attributes:
        masks: (B, H, W) bool, one per object, none empty.
        boxes: (B, 4) float, left, top, right, bottom in pixels of the grid, right and bottom exclusive.
        difficult: (B,) bool: objects that a protocol may leave out (VOC's flag).
        single: (B,) bool: False for an annotation that covers a crowd instead of a single object.

    Raises:
        InvalidInputError: the shapes do not fit, there is no object, or a mask is empty.
    """

    masks: Tensor
    boxes: Tensor
    difficult: Tensor
    single: Tensor

    def __post_init__(self) -> None:
        """Check the shapes; with an empty mask every metric would be meaningless."""
        number = len(self.boxes)
        if self.boxes.dim() != 2 or self.boxes.shape[1] != 4 or number == 0:
            raise InvalidInputError(f"boxes must have shape (B, 4) with B >= 1, got {tuple(self.boxes.shape)}")
        if self.masks.dim() != 3 or len(self.masks) != number or self.masks.dtype != torch.bool:
            raise InvalidInputError(
                f"masks must be bool ({number}, H, W), got {self.masks.dtype} {tuple(self.masks.shape)}"
            )
        if self.difficult.shape != (number,) or self.single.shape != (number,):
            raise InvalidInputError(f"difficult and single must have shape ({number},)")
        if not bool(self.masks.flatten(1).any(dim=1).all()):
            raise InvalidInputError("an object has an empty mask; leave it out or correct its annotation")

    @classmethod
    def from_boxes(cls, boxes: Tensor | Sequence[Sequence[float]], size: tuple[int, int]) -> Objects:
        """Return filled boxes, rounded to the nearest pixel, clipped to the grid, at least one pixel each.

        Args:
            boxes: (B, 4) left, top, right, bottom in pixels of the grid; right and bottom exclusive.
            size: (H, W) of the grid.

        Raises:
            InvalidInputError: there are no boxes, or a box is not four finite numbers in order.
        """
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
            raise InvalidInputError(f"boxes must have shape (B, 4) with B >= 1, got {tuple(boxes.shape)}")
        if not bool(torch.isfinite(boxes).all()) or bool((boxes[:, 2:] < boxes[:, :2]).any()):
            raise InvalidInputError("boxes must be finite, with left <= right and top <= bottom")
        masks = torch.stack([box_mask(box, size) for box in boxes])
        none = torch.zeros(len(boxes), dtype=torch.bool)
        return cls(masks, boxes, difficult=none, single=~none)

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """Combine objects on one grid."""
        names = ("masks", "boxes", "difficult", "single")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the grid."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def mask(self) -> Tensor:
        """The union of all objects, (H, W) bool."""
        return self.masks.any(dim=0)


def box_mask(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one box (4,) as a bool mask (H, W): rounded to pixels, clipped, at least one pixel."""
    height, width = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    left, top, right, bottom = box.round().long().tolist()
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask
