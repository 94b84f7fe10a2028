"""Explainers: methods that turn a forward pass into maps."""

from xai_abn.explainers.abn import ABN, ABNClass
from xai_abn.explainers.base import Explainer, get, names, register, run_pass
from xai_abn.explainers.cam import CAM
from xai_abn.explainers.controls import Centre, Random7, Random14, Sobel, Uniform
from xai_abn.explainers.grad_cam import GradCAM

__all__ = [
    "ABN",
    "CAM",
    "ABNClass",
    "Centre",
    "Explainer",
    "GradCAM",
    "Random7",
    "Random14",
    "Sobel",
    "Uniform",
    "get",
    "names",
    "register",
    "run_pass",
]
