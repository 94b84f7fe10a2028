"""Metrics of maps: plain functions of maps and annotations, one value an image."""

from xai_abn.metrics.localisation import energy_inside, object_recall, peak_inside, upsample
from xai_abn.metrics.polarity import polarity

__all__ = ["energy_inside", "object_recall", "peak_inside", "polarity", "upsample"]
