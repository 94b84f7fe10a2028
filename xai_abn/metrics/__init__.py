"""Metrics of explanations: functions of maps, one value a photo, each under a named protocol."""

from xai_abn.heatmaps import flaws, upsample
from xai_abn.metrics.agreement import map_agreement, rank_correlation
from xai_abn.metrics.base import Metric, Needs, Scores, Subject, get, metrics, names, register
from xai_abn.metrics.complexity import entropy, gini
from xai_abn.metrics.confidence import average_drop, increase_in_confidence
from xai_abn.metrics.deletion_insertion import deletion, insertion
from xai_abn.metrics.localisation import (
    best_iou,
    difficult_pointing_game,
    energy_inside,
    peak_inside,
    pointing_game,
    relevance_rank_accuracy,
)
from xai_abn.metrics.multi_object import all_objects_found, energy_confusion, grid_pointing, object_recall
from xai_abn.metrics.objects import Objects
from xai_abn.metrics.perturbation import PerturbationProtocol, perturbation_curves
from xai_abn.metrics.polarity import polarity
from xai_abn.metrics.road import road
from xai_abn.metrics.sanity import cascading_randomisation, infidelity, random_logit, sensitivity_max
from xai_abn.metrics.wsol import box_overlaps, max_box_accuracy, pixel_average_precision, pixel_histograms

__all__ = [
    "Metric",
    "Needs",
    "Objects",
    "PerturbationProtocol",
    "Scores",
    "Subject",
    "all_objects_found",
    "average_drop",
    "best_iou",
    "box_overlaps",
    "cascading_randomisation",
    "deletion",
    "difficult_pointing_game",
    "energy_confusion",
    "energy_inside",
    "entropy",
    "flaws",
    "get",
    "gini",
    "grid_pointing",
    "increase_in_confidence",
    "infidelity",
    "insertion",
    "map_agreement",
    "max_box_accuracy",
    "metrics",
    "names",
    "object_recall",
    "peak_inside",
    "perturbation_curves",
    "pixel_average_precision",
    "pixel_histograms",
    "pointing_game",
    "polarity",
    "random_logit",
    "rank_correlation",
    "register",
    "relevance_rank_accuracy",
    "road",
    "sensitivity_max",
    "upsample",
]
