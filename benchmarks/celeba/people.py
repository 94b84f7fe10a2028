"""Means over attributes and their bootstrap intervals, which resample people with all their images."""

from __future__ import annotations

from typing import Any

import numpy as np


def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted means (B, T) of values (N, T), NaN left out, under weights (B, N)."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ np.where(there, values, 0) / (weights @ there))


def precisions(scores: np.ndarray, has: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return average precisions (B, T) of scores (N, T) under weights (B, N)."""
    columns = []
    for score, present in zip(scores.T, has.T, strict=True):
        order = np.argsort(-score, kind="stable")
        drawn = weights[:, order]
        true = drawn * present[order]
        at = np.cumsum(true, axis=1) / np.maximum(np.cumsum(drawn, axis=1), 1)
        columns.append((true * at).sum(axis=1) / true.sum(axis=1))
    return np.stack(columns, axis=1)


def resampled(people: np.ndarray, number: int = 2000) -> np.ndarray:
    """Return how often each image counts in each draw of people with replacement, (B, N)."""
    count = people.max() + 1
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=number)[:, people].astype(float)


def estimate(values: np.ndarray) -> dict[str, float]:
    """Return the mean over attributes of the first row of (1 + B, T), and the 95 % interval of the others."""
    kept = values[:, np.isfinite(values[0])]
    low, high = np.nanpercentile(np.nanmean(kept[1:], axis=1), (2.5, 97.5))
    return {"mean": kept[0].mean(), "low": low, "high": high}


def rounded(value: Any) -> Any:
    """Return a value for JSON: four digits, None for NaN."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return None if value is None or value != value else value if isinstance(value, int) else round(float(value), 4)
