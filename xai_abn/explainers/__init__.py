"""Explainers: methods that turn a forward pass into maps."""

from xai_abn.explainers.abn import ABN, ABNClass, ABNMask
from xai_abn.explainers.attention import AttentionRelevance, AttentionRollout, LeGrad
from xai_abn.explainers.base import (
    Explainer,
    get,
    make_explainers,
    names,
    parse_spec,
    passes_of,
    register,
    run_pass,
)
from xai_abn.explainers.baselines import Center, Random7, Random14, Sobel, Uniform
from xai_abn.explainers.cam import CAM
from xai_abn.explainers.captum_methods import (
    DeepLIFT,
    GradientSHAP,
    GuidedBackprop,
    GuidedGradCAM,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    VarGrad,
)
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
from xai_abn.explainers.multi_pass_cam import RefineCAM, SmoothGradCAMPlusPlus
from xai_abn.explainers.perturbation import LIME, FeatureAblation, KernelSHAP, Occlusion
from xai_abn.explainers.recipro_cam import ReciproCAM
from xai_abn.explainers.rise import RISE
from xai_abn.explainers.score_cam import ISCAM, SSCAM, AblationCAM, ScoreCAM

__all__ = [
    "ABN",
    "CAM",
    "ISCAM",
    "KPCACAM",
    "LIME",
    "RISE",
    "SSCAM",
    "ABNClass",
    "ABNMask",
    "AblationCAM",
    "AttentionRelevance",
    "AttentionRollout",
    "Center",
    "DeepLIFT",
    "EigenCAM",
    "EigenGradCAM",
    "Explainer",
    "FeatureAblation",
    "FinerCAM",
    "GradCAM",
    "GradCAMElementwise",
    "GradCAMPlusPlus",
    "GradientSHAP",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "LeGrad",
    "Occlusion",
    "Random7",
    "Random14",
    "ReciproCAM",
    "RefineCAM",
    "Saliency",
    "ScoreCAM",
    "ShapleyCAM",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "Sobel",
    "Uniform",
    "VarGrad",
    "XGradCAM",
    "get",
    "make_explainers",
    "names",
    "parse_spec",
    "passes_of",
    "register",
    "run_pass",
]
