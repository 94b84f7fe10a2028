"""Metrics of explanations: functions that give one value per image, each under a named protocol."""

from xai_abn.heatmaps import flaws, upsample
from xai_abn.metrics.base import Metric, Scores, Subject, get, names, register
from xai_abn.metrics.complexity import entropy, gini
from xai_abn.metrics.curves import Curve, PerturbationProtocol, curve_metric, perturbation_curves
from xai_abn.metrics.deletion_insertion import deletion, insertion
from xai_abn.metrics.faithfulness import average_drop, increase_in_confidence, polarity
from xai_abn.metrics.localization import (
    best_iou,
    energy_pointing_game,
    peak_inside,
    pointing_game,
    pointing_game_difficult,
    relevance_rank_accuracy,
)
from xai_abn.metrics.multi_object import all_objects_found, energy_confusion, grid_pointing, object_recall
from xai_abn.metrics.objects import Objects
from xai_abn.metrics.road import road
from xai_abn.metrics.sanity import infidelity, model_parameter_randomization, random_logit, sensitivity_max
from xai_abn.metrics.similarity import map_agreement, rank_correlation
from xai_abn.metrics.wsol import accuracy_at_best_threshold, max_box_accuracy, pixel_average_precision, pxap

__all__ = [
    "Curve",
    "Metric",
    "Objects",
    "PerturbationProtocol",
    "Scores",
    "Subject",
    "accuracy_at_best_threshold",
    "all_objects_found",
    "average_drop",
    "best_iou",
    "curve_metric",
    "deletion",
    "energy_confusion",
    "energy_pointing_game",
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
    "model_parameter_randomization",
    "names",
    "object_recall",
    "peak_inside",
    "perturbation_curves",
    "pixel_average_precision",
    "pointing_game",
    "pointing_game_difficult",
    "polarity",
    "pxap",
    "random_logit",
    "rank_correlation",
    "register",
    "relevance_rank_accuracy",
    "road",
    "sensitivity_max",
    "upsample",
]
