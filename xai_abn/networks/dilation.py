"""Removal of the stride from the attention branch's copy of the last stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.networks.tracing import evaluating, hooks

_Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


def plan_windows(stage: nn.Module, features: Tensor, dilate: bool) -> dict[str, dict[str, Any]]:
    """Return the changes that make a stage keep the size of its input.

    Args:
        stage: the last stage of a classifier; it is run, but not changed.
        features: its input, (1, C, h, w).
        dilate: multiply the dilation of each convolution by the factor by which its input grows without the strides
            before it (Yu et al., 2017).

    Returns:
        See :data:`xai_abn.networks.assembly.Windows`; modules without a change are left out.
    """
    growth = _input_growth(stage, features) if dilate else {}
    changes: dict[str, dict[str, Any]] = {}
    for name, module in stage.named_modules():
        if not isinstance(module, _Window):
            continue
        change: dict[str, Any] = {}
        kernel, padding = _pair(module.kernel_size), module.padding
        dilation = _pair(getattr(module, "dilation", 1))
        factor = growth.get(name, 1) if max(kernel) > 1 else 1
        if isinstance(module, nn.Conv2d) and factor > 1 and isinstance(padding, tuple):
            dilation, padding = tuple(factor * d for d in dilation), tuple(factor * p for p in padding)
            change |= {"dilation": list(dilation), "padding": list(padding)}
        if max(_pair(module.stride)) > 1:
            change["stride"] = [1, 1]
            reach = [(kernel[axis] - 1) * dilation[axis] for axis in (0, 1)]
            if not isinstance(padding, str) and not _pads_itself(module):
                (rows, columns), (top, left) = reach, _pair(padding)
                if rows != 2 * top or columns != 2 * left:  # such as 2x2 pooling: pad by replication instead
                    change |= {"padding": [0, 0], "replicate": [left, columns - left, top, rows - top]}
        if change:
            changes[name] = change
    return changes


def _input_growth(stage: nn.Module, features: Tensor) -> dict[str, int]:
    """Return by what factor the input of each convolution and pooling is smaller than the features.

    Measured on features four times as large, because convolutions without padding shrink small ones further. A stage
    that takes inputs of one size only, such as one with attention over fixed positions, is measured at that size if
    that gives whole factors.

    Raises:
        UnsupportedModelError: it does not give whole factors.
    """
    large = features.new_zeros(1, features.shape[1], 4 * features.shape[2], 4 * features.shape[3])
    try:
        heights, height = _input_heights(stage, large), large.shape[2]
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        heights, height = _input_heights(stage, features), features.shape[2]
        inexact = [name for name, found in heights.items() if height % found]
        if inexact:
            raise UnsupportedModelError(
                f"cannot measure how much smaller the input of {inexact[0]!r} is than the features: {height} rows "
                f"become {heights[inexact[0]]}, and larger features are refused ({str(error).partition(chr(10))[0]}); "
                "give dilate=False"
            ) from error
    return {name: round(height / found) for name, found in heights.items()}


def _input_heights(stage: nn.Module, features: Tensor) -> dict[str, int]:
    """Return the height of the input of each convolution and pooling, by name."""
    heights: dict[str, int] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs:
            heights.setdefault(name, inputs[0].shape[2])

    windows = [(name, module) for name, module in stage.named_modules() if isinstance(module, _Window)]
    noting = (m.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs)) for name, m in windows)
    with hooks(noting), evaluating(stage), torch.no_grad():
        stage(features)
    return heights


def _pads_itself(module: nn.Module) -> bool:
    """Return whether a convolution adapts its padding to the input: timm's, which need not be imported, or ours."""
    return any(kind.__name__ == "Conv2dSame" for kind in type(module).__mro__)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
