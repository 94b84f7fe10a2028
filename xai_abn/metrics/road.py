"""ROAD (remove and debias): pixels are removed by noisy linear imputation, which leaves no edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.base import Metric, Predict, register
from xai_abn.metrics.curves import scattered_ranks
from xai_abn.metrics.faithfulness import check_numbers, probabilities

#: Shares of the pixels removed.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Standard deviation of the noise added to imputed pixels, in normalized units.
NOISE = 0.01

_DIRECT, _DIAGONAL = 1 / 6, 1 / 12
_NEIGHBORS = [(r, c, _DIAGONAL if r and c else _DIRECT) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]


def road(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Tensor:
    """Return ROAD-combined: half the difference of the probability without the bottom and without the top pixels.

    Exactly ``round(share * H * W)`` pixels are removed by rank, equal values in one fixed random order. So a sparse
    map, most of which is 0, loses as many pixels as any other; a percentile as threshold would remove all of them.

    Args:
        predict: inputs (B, 3, H, W) to logits (B, K).
        inputs: (N, C, H, W), normalized, with any number of channels.
        maps: (N, h, w).
        targets: (N,) class indices.
        shares: of the pixels removed, each in (0, 1).
        seed: of the noise.

    Returns:
        (N,) in [-0.5, 0.5]; NaN for a flat or non-finite map.

    Raises:
        InvalidInputError: the numbers of inputs, maps and targets differ, a share is impossible, or the inputs are
            volumes, for which no imputation is published.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022; combined
    as in grad-cam 1.5 (its ``ROADCombined``), with ranks instead of percentile thresholds, and with a seed.
    """
    check_numbers(inputs, maps, targets)
    if inputs.dim() != 4:
        raise InvalidInputError(
            f"ROAD imputes pixels from their neighbors in an image (N, C, H, W), got {tuple(inputs.shape)}; use "
            "deletion and insertion, which are defined for volumes and clips"
        )
    if not shares or not all(0 < share < 1 for share in shares):
        raise InvalidInputError(f"shares must be one or more numbers in (0, 1), got {tuple(shares)}")
    good = usable(maps)
    values = torch.full((len(inputs),), float("nan"))
    for n in good.nonzero()[:, 0].tolist():
        ranks = scattered_ranks(upsample(maps[n : n + 1], (inputs.shape[2], inputs.shape[3])))[0]
        generator = np.random.default_rng(seed)
        counts = [round(share * len(ranks)) for share in shares]
        removed = [ranks < c for c in counts] + [ranks >= len(ranks) - c for c in counts]
        images = torch.stack([impute(inputs[n], r, generator) for r in removed])
        found = probabilities(predict, images, targets[n].expand(len(images)))
        top, bottom = found.split(len(counts))
        values[n] = float((bottom - top).mean() / 2)
    return values


def impute(image: Tensor, removed: Tensor, generator: np.random.Generator, noise: float = NOISE) -> Tensor:
    """Replace pixels by the weighted mean of their eight neighbors, solved for all at once, plus noise.

    Args:
        image: (C, H, W).
        removed: (H * W,) bool.
        generator: of the noise.
        noise: its standard deviation.

    Returns:
        (C, H, W). Direct neighbors weigh 1/6 and diagonal ones 1/12; at the edge only existing ones count.

    Source: Rong et al., 2022, section 4.2, noisy linear imputation.
    """
    channels, height, width = image.shape
    pixels = image.detach().double().reshape(channels, -1).cpu().numpy().copy()
    gone = removed.cpu().numpy()
    number = np.full(len(gone), -1)
    number[gone] = np.arange(int(gone.sum()))
    at = np.flatnonzero(gone)
    if not len(at):
        return image.clone()
    rows, columns, weights, known, total = _equations(at, gone, number, pixels, (height, width))
    matrix = scipy.sparse.csc_matrix((weights, (rows, columns)), shape=(len(at), len(at)))
    matrix = scipy.sparse.diags(total, format="csc") - matrix
    solved = scipy.sparse.linalg.splu(matrix).solve(known)
    pixels[:, at] = solved.T + noise * generator.standard_normal((channels, len(at)))
    return torch.from_numpy(pixels).to(image).view_as(image)


def _equations(
    at: np.ndarray, gone: np.ndarray, number: np.ndarray, pixels: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sparse matrix of removed pixels (rows, columns, weights), and the sums of known pixels and weights."""
    height, width = size
    row, column = np.divmod(at, width)
    known, total = np.zeros((len(at), len(pixels))), np.zeros(len(at))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for down, right, weight in _NEIGHBORS:
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        own = np.flatnonzero(inside)
        other = (row[own] + down) * width + column[own] + right
        total[own] += weight
        missing = gone[other]
        parts.append((own[missing], number[other[missing]], np.full(int(missing.sum()), weight)))
        known[own[~missing]] += weight * pixels[:, other[~missing]].T
    rows, columns, weights = (np.concatenate(p) for p in zip(*parts, strict=True))
    return rows, columns, weights, known, total


register(
    Metric(
        name="road",
        protocol="combined-ranked",
        function=road,
        reads_probabilities=True,
        higher_is_better=True,
        range=(-0.5, 0.5),
        units="probability",
        definition="Half the difference of the target's probability without the bottom and without the top pixels, "
        "averaged over 10, 20 ... 90 % removed by rank, imputed from their neighbors with seeded noise 0.01.",
        source="Rong et al., ROAD, ICML 2022; combined as in grad-cam 1.5, ranks instead of percentile thresholds",
        parameters={"shares": list(SHARES), "noise": NOISE, "seed": 0},
    )
)
