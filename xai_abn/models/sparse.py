"""Backward passes of a score that depends on little of what the network computes, such as that of one detection."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Rows are left out if at most this share of them has a gradient; picking them costs time, too.
WORTHWHILE = 0.5


class SkippingZeros(TorchDispatchMode):
    """A context in which a backward pass leaves out the rows and positions at which its gradients are 0.

    The score of one detection comes from one proposal of a thousand, or from one position of one map of several. So in
    the head nearly all gradients are 0, and computing with them would cost more than the forward pass. The results are
    the same up to rounding. Left out are rows of matrix products, regions that were pooled, and what lies outside of
    the box around all other values in the gradient of a convolution.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = dict(_RULES)
        if "torchvision" in sys.modules:  # else no network pools regions with it
            self._rules[torch.ops.torchvision._roi_align_backward.default] = _pooled_regions

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator of the backward pass, by its rule if there is one that saves time."""
        rule = self._rules.get(operator)
        found = None if rule is None else rule(*arguments)
        if found is not None:
            return found
        return operator(*arguments, **options) if options else operator(*arguments)


def _product(gradient: Tensor, weight: Tensor) -> Tensor | None:
    """Return the product of matrices (R, A) and (A, B)."""
    rows = _rows(gradient)
    if rows is None:
        return None
    found = gradient.new_zeros(len(gradient), weight.shape[1])
    found[rows] = gradient[rows] @ weight
    return found


def _pooled_regions(gradient: Tensor, regions: Tensor, *options: Any) -> Tensor | None:
    """Return the gradient of maps pooled in regions (R, 5), for a gradient (R, C, h, w)."""
    rows = _rows(gradient)
    if rows is None:
        return None
    found: Tensor = torch.ops.torchvision._roi_align_backward(gradient[rows], regions[rows], *options)
    return found


def _convolution(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    biases: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, None, None] | None:
    """Return the gradient of the inputs (N, C, H, W) of a convolution, if it alone is wanted."""
    if gradient.dim() != 4 or transposed or any(wanted[1:]):
        return None
    found = torch.zeros_like(inputs)
    seen = (gradient != 0).any(dim=1)
    if not bool(seen.any()):
        return found, None, None
    box, size, from_part, into = [], [], [], []
    for axis in (0, 1):
        places = seen.any(dim=2 - axis).any(dim=0).nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        start = first * stride[axis] - padding[axis]  # what the box reaches of the inputs, and beyond their edges
        end = last * stride[axis] - padding[axis] + dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        low = max(start, 0)
        high = max(low, min(end, inputs.shape[2 + axis]))
        box.append(slice(first, last + 1))
        size.append(end - start)
        from_part.append(slice(low - start, high - start))
        into.append(slice(low, high))
    part = gradient[:, :, box[0], box[1]]
    if part.numel() > WORTHWHILE * gradient.numel():
        return None
    reached, _, _ = torch.ops.aten.convolution_backward(
        part.contiguous(),
        inputs.new_empty(*inputs.shape[:2], *size),
        weight,
        biases,
        stride,
        [0, 0],
        dilation,
        False,
        output_padding,
        groups,
        wanted,
    )
    found[:, :, into[0], into[1]] = reached[:, :, from_part[0], from_part[1]]
    return found, None, None


_RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.convolution_backward.default: _convolution,
}


def _rows(gradient: Tensor) -> Tensor | None:
    """Return the indices of the rows that are not 0, or None if leaving out the others does not save time."""
    rows = (gradient.flatten(1) != 0).any(dim=1).nonzero()[:, 0]
    return rows if len(rows) <= WORTHWHILE * len(gradient) else None
