"""Deletion and insertion under four named protocols.

``xai-abn``, the project's own and the default, avoids chance and artifacts of RISE's protocol. One wide, mirrored blur
replaces missing pixels in both curves: gray patches have sharp edges that look like objects, and a zero-padded blur
darkens the border. Twenty steps are equal to within a pixel and weighted by their true width. Equal values, such as the
zeros of Grad-CAM, change in a fixed random order instead of from the upper left corner.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.metrics.base import Predict, register
from xai_abn.metrics.curves import (
    BLACK,
    DELETION,
    INSERTION,
    RISE_BLUR,
    WIDE_BLUR,
    ZERO,
    Curve,
    CurveOf,
    PerturbationProtocol,
    at_most,
    curve_metric,
    equal,
    patch_ranks,
    reversed_ranks,
    scattered_ranks,
    stable_ranks,
)


def _rise_counts(height: int, width: int) -> list[int]:
    step = 8 * width
    return [*range(0, height * width, step), height * width]


def _pid_counts(height: int, width: int) -> list[int]:
    """Return the number of patches changed at each point, as in LABN's code: ten more each time, plus one."""
    patches = height * width // PID_PATCH**2
    if patches <= 10:
        raise InvalidInputError(
            f"pid-2022 needs more than 10 patches of {PID_PATCH} pixels, got {height}x{width} pixels"
        )
    return [min(10 * (i + 1), patches - 1) + 1 for i in range(math.ceil(patches / 10))]


PID_PATCH = 16

PROTOCOLS = {
    "xai-abn": PerturbationProtocol("xai-abn", scattered_ranks, equal(20), WIDE_BLUR, WIDE_BLUR, volumes=True),
    "rise-2018": PerturbationProtocol("rise-2018", reversed_ranks, _rise_counts, ZERO, RISE_BLUR, even=True),
    "torchcam-20": PerturbationProtocol("torchcam-20", stable_ranks, at_most(20), ZERO, ZERO, volumes=True),
    "pid-2022": PerturbationProtocol(
        "pid-2022", partial(patch_ranks, patch=PID_PATCH), _pid_counts, BLACK, BLACK, even=True, patch=PID_PATCH
    ),
}

_DEFINITIONS = {
    "xai-abn": (
        "20 equal steps; missing pixels become a Gaussian blur (sigma 1/12 of the shorter side, mirrored edges) in "
        "both curves; ties in a fixed random order; softmax probability, trapezoid area.",
        "this project",
    ),
    "rise-2018": (
        "Steps of 8 rows' pixels (28 at 224); deleted pixels become normalized zero, insertion starts from RISE's "
        "11x11 blur with zero padding; ties in reversed reading order; softmax probability, equal-width trapezoid.",
        "Petsiuk et al., RISE, BMVC 2018, and its released evaluation code",
    ),
    "torchcam-20": (
        "At most 20 steps of equal size, the last one shorter; missing pixels become normalized zero in both curves; "
        "ties in reading order; softmax probability, trapezoid area over true shares.",
        "torchcam 0.5.0, DeletionInsertionMetric with softmax",
    ),
    "pid-2022": (
        f"Patches of {PID_PATCH} pixels ranked by their largest value, ten more at each point after the first eleven, "
        "replaced by black, ties together; the unchanged image is not a point of the curve; softmax probability, "
        "equal-width trapezoid.",
        "Iida et al., Lambda ABN, ACCV 2022, released code with step 10",
    ),
}


def deletion(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    protocol: str | PerturbationProtocol = "xai-abn",
    *,
    batch_size: int = 16,
    black: Tensor | None = None,
) -> Tensor:
    """Return the area under the target's probability as pixels are deleted, top pixels first. Lower is better.

    Args:
        predict: inputs to logits (B, K).
        inputs: (N, C, H, W), normalized, or volumes or clips (N, C, D, H, W), for which two protocols are defined:
            ``xai-abn`` and ``torchcam-20``.
        maps: (N, h, w), or (N, M, h, w) for M maps per image; those of volumes have one more axis.
        targets: (N,) or (N, M) class indices.
        protocol: one of ``PROTOCOLS``, or your own.
        batch_size: images per call of ``predict``.
        black: (C,) the normalized value of black, which ``pid-2022`` needs.

    Returns:
        (N,) or (N, M) in [0, 1]; NaN for a flat or non-finite map.

    Raises:
        InvalidInputError: the shapes do not fit.
        UnknownNameError: there is no such protocol.

    Source: given with each protocol in ``xai-abn list metrics``.
    """  # fmt: skip
    return _area(DELETION, predict, inputs, maps, targets, protocol, batch_size, black)


def insertion(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    protocol: str | PerturbationProtocol = "xai-abn",
    *,
    batch_size: int = 16,
    black: Tensor | None = None,
) -> Tensor:
    """Return the area under the target's probability as pixels are inserted, top pixels first. Higher is better.

    Arguments, result, errors and source as for :func:`deletion`.
    """  # fmt: skip
    return _area(INSERTION, predict, inputs, maps, targets, protocol, batch_size, black)


def get_protocol(protocol: str | PerturbationProtocol) -> PerturbationProtocol:
    """Return a protocol by name.

    Raises:
        UnknownNameError: there is no such protocol; the message suggests the nearest names.
    """
    if isinstance(protocol, PerturbationProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


def _area(
    curve: Curve,
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    protocol: str | PerturbationProtocol,
    batch_size: int,
    black: Tensor | None,
) -> Tensor:
    member = CurveOf(get_protocol(protocol), curve)
    return member.compute([member], predict, inputs, maps, targets, batch_size=batch_size, black=black)[0].values


_MEANINGS = {
    DELETION: "Mean probability of the target while pixels are deleted, those of the map's highest values first: it "
    "falls early if the map is right.",
    INSERTION: "Mean probability of the target while pixels are inserted, those of the map's highest values first: it "
    "rises early if the map is right.",
}

for _name, _protocol in PROTOCOLS.items():
    for _curve, _meaning in _MEANINGS.items():
        _how, _source = _DEFINITIONS[_name]
        register(curve_metric(_curve, _protocol, f"{_meaning} {_how}", _source))
