"""Explainers: methods that turn a forward pass into maps."""

from xai_abn.explainers.abn import ABN, ABNClass
from xai_abn.explainers.base import Explainer, get, names, register, run_pass
from xai_abn.explainers.cam import CAM
from xai_abn.explainers.captum_gradients import InputXGradient, IntegratedGradients, Saliency
from xai_abn.explainers.captum_noise import GradientSHAP, SmoothGrad, VarGrad
from xai_abn.explainers.captum_perturbations import LIME, FeatureAblation, KernelSHAP, Occlusion
from xai_abn.explainers.captum_rules import DeepLIFT, GuidedBackprop, GuidedGradCAM
from xai_abn.explainers.controls import Centre, Random7, Random14, Sobel, Uniform
from xai_abn.explainers.grad_cam import GradCAM
from xai_abn.explainers.rise import RISE

__all__ = [
    "ABN",
    "CAM",
    "LIME",
    "RISE",
    "ABNClass",
    "Centre",
    "DeepLIFT",
    "Explainer",
    "FeatureAblation",
    "GradCAM",
    "GradientSHAP",
    "GuidedBackprop",
    "GuidedGradCAM",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "Occlusion",
    "Random7",
    "Random14",
    "Saliency",
    "SmoothGrad",
    "Sobel",
    "Uniform",
    "VarGrad",
    "get",
    "names",
    "register",
    "run_pass",
]
