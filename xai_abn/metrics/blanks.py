"""What stands where pixels are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Blank:
    """What stands where pixels are missing.

    Attributes:
        name: for the record.
        make: ``f(inputs (N, 3, H, W), black (3,))`` to (N, 3, H, W), or (1, 3, H, W) where it is the same for all.
    """

    name: str
    make: Callable[[Tensor, Tensor], Tensor]


def rise_kernel() -> Tensor:
    """RISE's 11x11 blur kernel: a unit impulse smoothed by SciPy with sigma 5 inside those 11 pixels.

    Reflection at the impulse picture's edge makes it nearly flat (centre 0.00883, corner 0.00774); it is not a
    truncated Gaussian of sigma 5.
    """
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    return torch.from_numpy(gaussian_filter(impulse, 5)).float()


def _rise_blur(inputs: Tensor, black: Tensor) -> Tensor:
    channels = inputs.shape[1]
    kernel = rise_kernel().to(inputs).expand(channels, 1, 11, 11)
    return F.conv2d(inputs.contiguous(), kernel, padding=5, groups=channels)


def _wide_blur(inputs: Tensor, black: Tensor) -> Tensor:
    """Gaussian of sigma = a twelfth of the shorter side, cut at two sigma, edges mirrored."""
    sigma = min(inputs.shape[2:]) / 12
    radius = min(round(2 * sigma), min(inputs.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=inputs.device)
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    line = (line / line.sum()).to(inputs.dtype)
    channels = inputs.shape[1]
    padded = F.pad(inputs.contiguous(), (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _black(inputs: Tensor, black: Tensor) -> Tensor:
    return black.view(1, -1, 1, 1).expand(1, -1, *inputs.shape[2:])


#: Normalised 0: the mean colour.
ZERO = Blank("normalised zero", lambda inputs, black: torch.zeros_like(inputs[:1]))
#: Black, before normalising.
BLACK = Blank("black", _black)
#: RISE's own blur, with its zero padding.
RISE_BLUR = Blank("RISE's 11x11 blur, zero padded", _rise_blur)
#: A blur wide enough to leave no object, without dark borders.
WIDE_BLUR = Blank("Gaussian blur, sigma 1/12 of the shorter side, mirrored edges", _wide_blur)
