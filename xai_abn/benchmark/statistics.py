"""Means, intervals and tests of a run's values: pure functions of arrays.

The image is the independent unit throughout. Several maps of one image (one per class present) are averaged first, and
every interval and test looks at images only.

Sources:
    interval of a share: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927;
    percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13;
    signed-rank test: Wilcoxon, "Individual Comparisons by Ranking Methods", 1945;
    zero differences: Pratt, "Remarks on Zeros and Ties in the Wilcoxon Signed Rank Procedures", 1959;
    many tests: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979;
    effect size: Kerby, "The Simple Difference Formula", 2014 (matched-pairs rank-biserial correlation);
    agreement: Spearman, "The Proof and Measurement of Association between Two Things", 1904.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Number of resamples of the images for an interval.
RESAMPLES = 2000
#: Share of the resampled means that an interval holds.
LEVEL = 0.95
#: Seed of the resampling; it is fixed so that the same run gives the same report.
SEED = 0
#: Differences below this share of the largest value count as none: they are rounding errors.
ROUNDING = 1e-9

#: Largest number of differences whose signs the signed-rank test tries all: 2 to the power of 13 is below 9999.
_FEW = 13
#: Largest number of values in memory at once while resampling.
_CHUNK = 1_000_000
Aggregate = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class ImageValues:
    """One metric of one method.

    Attributes:
        values: (P,) mean over the trials of each image; NaN where the image has none that counts.
        trials: (P,) number of trials that count.
        flagged: number of trials with a flaw, whether they count or not.
    """

    values: np.ndarray
    trials: np.ndarray
    flagged: int


@dataclass(frozen=True)
class Estimate:
    """A value over images with its 95 % interval; the interval is None for fewer than two images."""

    value: float | None
    low: float | None
    high: float | None
    images: int


@dataclass(frozen=True)
class Comparison:
    """A method against a reference on the images that both have.

    Attributes:
        difference: mean of method minus reference.
        p: of the two-sided signed-rank test; None without common images or per-image values.
        effect: matched-pairs rank-biserial correlation; above 0 the method's values are larger.
    """

    difference: Estimate
    p: float | None
    effect: float | None


def per_image(
    images: np.ndarray, values: np.ndarray, flawed: np.ndarray, flat_counts_as: float | None, number: int
) -> ImageValues:
    """Average the trials of each image.

    Args:
        images: (R,) index of each trial's image, in [0, number).
        values: (R,) NaN where there is none.
        flawed: (R,) bool: the map could not be scored.
        flat_counts_as: the value of a flawed trial; None leaves it out.
        number: how many images there are.
    """
    counted = np.where(flawed, np.nan if flat_counts_as is None else flat_counts_as, values.astype(float))
    there = np.isfinite(counted)
    trials = np.bincount(images[there], minlength=number)
    sums = np.bincount(images[there], weights=counted[there], minlength=number)
    means = np.divide(sums, trials, out=np.full(number, np.nan), where=trials > 0)
    return ImageValues(means, trials, int(flawed.sum()))


def mean_interval(values: np.ndarray, seed: int = SEED) -> Estimate:
    """Return the mean of (P,) values, NaN left out, with its interval over images.

    The interval is the percentile bootstrap's. For hits and misses (values of 0 and 1 only) it is Wilson's, since a
    bootstrap of hits alone would have no width.
    """
    return mean_intervals([values], seed)[0]


def mean_intervals(columns: Sequence[np.ndarray], seed: int = SEED) -> list[Estimate]:
    """Return :func:`mean_interval` of each of several arrays, much faster than one by one."""
    finite = [values[np.isfinite(values)] for values in columns]
    shares = [len(values) >= 2 and bool(np.isin(values, (0, 1)).all()) for values in finite]
    others = iter(_mean_intervals([v for v, share in zip(finite, shares, strict=True) if not share], seed))
    return [_share_interval(v) if share else next(others) for v, share in zip(finite, shares, strict=True)]


def _share_interval(hits: np.ndarray) -> Estimate:
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(hits.mean()), float(found.low), float(found.high), len(hits))


def _mean_intervals(columns: Sequence[np.ndarray], seed: int) -> list[Estimate]:
    """Return the mean of each array of finite values with its bootstrap interval."""
    ends = _bootstrapped(columns, seed)
    return [
        Estimate(float(values.mean()), float(low), float(high), len(values))
        if len(values) >= 2
        else Estimate(float(values[0]) if len(values) else None, None, None, len(values))
        for values, (low, high) in zip(columns, ends, strict=True)
    ]


def mean_curves(
    series: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = SEED
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return mean, lower and upper end (T,), point by point, of each pair of curves (R, T) and images (R,)."""
    by_image = []
    for curves, images in series:
        _, index, counts = np.unique(images, return_inverse=True, return_counts=True)
        of_image = np.zeros((len(counts), curves.shape[1]))
        np.add.at(of_image, index, curves / counts[index][:, None])
        by_image.append(of_image)
    means = [of_image.mean(axis=0) for of_image in by_image]
    ends = _bootstrapped(by_image, seed)
    return [
        (mean, *found) if len(of_image) >= 2 else (mean, mean, mean)
        for of_image, mean, found in zip(by_image, means, ends, strict=True)
    ]


def _bootstrapped(columns: Sequence[np.ndarray], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the ends of the bootstrap interval of the mean over the images of each array (P, ...).

    Arrays of as many images share the draws of images, which cost more than all else.
    """
    ends: list[tuple[np.ndarray, np.ndarray]] = [(np.array(np.nan), np.array(np.nan))] * len(columns)
    for number in {len(values) for values in columns} - {0, 1}:
        same = [place for place, values in enumerate(columns) if len(values) == number]
        stacked = np.concatenate([columns[place].reshape(number, -1) for place in same], axis=1)
        low, high = _interval(np.concatenate([weights @ stacked for weights in _resampled(number, seed)]))
        start = 0
        for place in same:
            shape = columns[place].shape[1:]
            part = slice(start, start + int(np.prod(shape)))
            ends[place] = low[part].reshape(shape), high[part].reshape(shape)
            start = part.stop
    return ends


def aggregate_interval(aggregate: Aggregate, curves: np.ndarray, images: np.ndarray, seed: int = SEED) -> Estimate:
    """Return a value that only a whole data set has, with its interval from resampling images.

    Args:
        aggregate: from curves (R, T) and weights (R,) that sum to 1.
        curves: one per trial.
        images: (R,) of each trial; the trials of an image share its weight.
        seed: of the resampling.
    """
    known, index, counts = np.unique(images, return_inverse=True, return_counts=True)
    return _resampled_value(lambda weights: aggregate(curves, (weights / counts)[index]), len(known), seed)


def compare(values: np.ndarray, reference: np.ndarray, seed: int = SEED) -> Comparison:
    """Compare two methods' (P,) values image by image.

    Zero differences keep their ranks but take no side (Pratt): with hits and misses most images are
    ties, and leaving them out would let two images decide for a thousand. No difference at all gives p = 1.
    """
    return compare_all([(values, reference)], seed)[0]


def compare_all(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = SEED) -> list[Comparison]:
    """Return :func:`compare` of each pair, much faster than one by one."""
    found = [_differences(values, reference) for values, reference in pairs]
    return [
        Comparison(estimate, _signed_rank_p(d), rank_biserial(d)) if len(d) else Comparison(estimate, None, None)
        for d, estimate in zip(found, _mean_intervals(found, seed), strict=True)
    ]


def is_ahead(values: np.ndarray, others: np.ndarray, higher: bool, significance: float) -> bool:
    """Return whether one method's (P,) values are significantly better than another's on the images of both.

    Args:
        values: of the one.
        others: of the other.
        higher: larger is better.
        significance: largest p of the test of :func:`compare`.
    """
    differences = _differences(values, others)
    effect = rank_biserial(differences) or 0.0
    return (effect > 0 if higher else effect < 0) and _signed_rank_p(differences) < significance


def _signed_rank_p(differences: np.ndarray) -> float:
    """Return p of the signed-rank test: of all signs of the ranks if there are few and tied, as scipy, but at once."""
    if not differences.any():
        return 1.0
    sizes = np.abs(differences)
    if len(sizes) > _FEW or (differences.all() and len(np.unique(sizes)) == len(sizes)):
        return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)
    ranks = stats.rankdata(sizes) * np.sign(differences)
    return float(stats.permutation_test((ranks,), np.sum, permutation_type="samples", vectorized=True).pvalue)


def compare_aggregates(
    aggregate: Aggregate,
    method: tuple[np.ndarray, np.ndarray],
    reference: tuple[np.ndarray, np.ndarray],
    seed: int = SEED,
) -> Comparison:
    """Compare two methods by a value of the whole data set; arguments are (curves, images) pairs.

    Such values have no image-wise differences, so there is an interval but no test.
    """
    both = np.intersect1d(method[1], reference[1])
    parts = []
    for curves, images in (method, reference):
        there = np.isin(images, both)
        _, index, counts = np.unique(images[there], return_inverse=True, return_counts=True)
        parts.append((curves[there], index, counts))

    def difference(weights: np.ndarray) -> float:
        first, second = (aggregate(curves, (weights / counts)[index]) for curves, index, counts in parts)
        return first - second

    return Comparison(_resampled_value(difference, len(both), seed), None, None)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p values: rejecting those below 0.05 rejects any wrongly with a probability below 0.05.

    The k-th smallest of m is multiplied by m - k + 1, is at least the one before it, and at most 1. None stays None and
    does not count.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def rank_biserial(differences: np.ndarray) -> float | None:
    """Return the matched-pairs rank-biserial correlation of (P,) differences, in [-1, 1].

    The rank sum of the positive differences minus that of the negative, over the sum of all ranks; zero
    differences are ranked too and count for neither, so that ties pull the effect towards 0.
    """
    if not len(differences):
        return None
    ranks = stats.rankdata(np.abs(differences))
    return float((ranks * np.sign(differences)).sum() / ranks.sum())


def agreement(a: np.ndarray, b: np.ndarray, higher_a: bool, higher_b: bool) -> tuple[float | None, int]:
    """Return Spearman's rank correlation of two metrics, which shows how far they agree, and the images used.

    Values (P, M) of M methods are centered on each image's own mean over the methods, and all images and
    methods are ranked together. Without that, images that are hard for every method would make any two
    metrics look alike. Images with fewer than two methods scored by both are left out.

    Args:
        a: (P, M) values of one metric, NaN where missing.
        b: (P, M) values of the other.
        higher_a: larger is better in ``a``; else its sign is turned.
        higher_b: the same for ``b``.
    """
    both = np.isfinite(a) & np.isfinite(b)
    both &= both.sum(axis=1, keepdims=True) >= 2
    images = int(both.any(axis=1).sum())
    pooled = [_centered(values, both) * (1 if higher else -1) for values, higher in ((a, higher_a), (b, higher_b))]
    if not images or any(not values.any() for values in pooled):
        return None, images
    return _finite(stats.spearmanr(*pooled).statistic), images


def _centered(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return the values that are not missing, minus their row's mean, as one row."""
    means = np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    centered = (values - means[:, None])[there]
    return _without_rounding(centered, np.abs(values[there]).max(initial=0))


def _differences(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    both = np.isfinite(values) & np.isfinite(reference)
    scale = np.abs([values[both], reference[both]]).max(initial=0)
    return _without_rounding(values[both] - reference[both], scale)


def _without_rounding(values: np.ndarray, scale: float) -> np.ndarray:
    """Round to a billionth of the scale, so that equal differences tie and none is exactly 0."""
    unit = float(scale) * ROUNDING
    return np.round(values / unit) * unit if unit else values


def _resampled_value(function: Callable[[np.ndarray], float], number: int, seed: int) -> Estimate:
    """Return a function of the images' weights (number,) at equal weights, and its interval."""
    if not number:
        return Estimate(None, None, None, 0)
    value = _finite(function(np.full(number, 1 / number)))
    if number < 2 or value is None:
        return Estimate(value, None, None, number)
    low, high = _interval(np.array([function(row) for weights in _resampled(number, seed) for row in weights]))
    return Estimate(value, _finite(low), _finite(high), number)


def _resampled(number: int, seed: int) -> Iterator[np.ndarray]:
    """Yield weights (rows, number), each row one draw of images with replacement, summing to 1."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // number)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = random.integers(number, size=(rows, number)) + np.arange(rows)[:, None] * number
        yield np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number) / number


def _interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends that hold the middle LEVEL of (R, ...) samples; NaN samples are left out."""
    ends = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
    if not np.isfinite(samples).any():
        return np.array(np.nan), np.array(np.nan)
    low, high = np.nanpercentile(samples, ends, axis=0)
    return low, high


def _finite(value: float | np.floating | np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
