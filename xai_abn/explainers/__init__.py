"""Explainers: methods that turn a forward pass into maps."""

from xai_abn.explainers.abn import ABN, ABNClass
from xai_abn.explainers.attention import AttentionRelevance, AttentionRollout, LeGrad
from xai_abn.explainers.base import Explainer, get, names, register, run_pass
from xai_abn.explainers.cam import CAM
from xai_abn.explainers.controls import Centre, Random7, Random14, Sobel, Uniform
from xai_abn.explainers.eigen_cam import KPCACAM, EigenCAM, EigenGradCAM
from xai_abn.explainers.grad_cam import (
    FinerCAM,
    GradCAM,
    GradCAMElementwise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ShapleyCAM,
    XGradCAM,
)
from xai_abn.explainers.many_passes import RefineCAM, SmoothGradCAMPlusPlus
from xai_abn.explainers.masked_cam import ISCAM, SSCAM, AblationCAM, ScoreCAM

__all__ = [
    "ABN",
    "CAM",
    "ISCAM",
    "KPCACAM",
    "SSCAM",
    "ABNClass",
    "AblationCAM",
    "AttentionRelevance",
    "AttentionRollout",
    "Centre",
    "EigenCAM",
    "EigenGradCAM",
    "Explainer",
    "FinerCAM",
    "GradCAM",
    "GradCAMElementwise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "Random7",
    "Random14",
    "RefineCAM",
    "ScoreCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "Sobel",
    "Uniform",
    "XGradCAM",
    "get",
    "names",
    "register",
    "run_pass",
]
