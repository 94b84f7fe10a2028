"""xai-abn: ask an image classifier where it looked, and train classifiers that can tell.

Names are loaded when first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xai_abn.coco import to_coco
    from xai_abn.datasets.corrections import Corrections
    from xai_abn.explanation import Explanation
    from xai_abn.images.clips import ClipPreprocess
    from xai_abn.images.preprocess import Preprocess
    from xai_abn.models.adapter import ModelAdapter, wrap
    from xai_abn.models.detection import DetectionTarget
    from xai_abn.models.forward_pass import ForwardPass
    from xai_abn.models.segmentation import SegmentationTarget
    from xai_abn.models.targets import Difference
    from xai_abn.models.zero_shot import zero_shot
    from xai_abn.models.zoo import load_model
    from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork
    from xai_abn.networks.architectures import create_model
    from xai_abn.networks.build import abn_from
    from xai_abn.pipeline import explain
    from xai_abn.similarity import similar_to

__version__ = "0.1.0"

_HOMES = {
    "ABNOutput": "xai_abn.networks.abn",
    "AttentionBranchNetwork": "xai_abn.networks.abn",
    "Corrections": "xai_abn.datasets.corrections",
    "DetectionTarget": "xai_abn.models.detection",
    "Difference": "xai_abn.models.targets",
    "Explanation": "xai_abn.explanation",
    "ForwardPass": "xai_abn.models.forward_pass",
    "ModelAdapter": "xai_abn.models.adapter",
    "ClipPreprocess": "xai_abn.images.clips",
    "Preprocess": "xai_abn.images.preprocess",
    "SegmentationTarget": "xai_abn.models.segmentation",
    "abn_from": "xai_abn.networks.build",
    "create_model": "xai_abn.networks.architectures",
    "explain": "xai_abn.pipeline",
    "load_model": "xai_abn.models.zoo",
    "similar_to": "xai_abn.similarity",
    "to_coco": "xai_abn.coco",
    "wrap": "xai_abn.models.adapter",
    "zero_shot": "xai_abn.models.zero_shot",
}
_MODULES = ("errors", "explainers", "images", "metrics", "models", "rendering", "training")

__all__ = [
    "ABNOutput",
    "AttentionBranchNetwork",
    "ClipPreprocess",
    "Corrections",
    "DetectionTarget",
    "Difference",
    "Explanation",
    "ForwardPass",
    "ModelAdapter",
    "Preprocess",
    "SegmentationTarget",
    "abn_from",
    "create_model",
    "explain",
    "load_model",
    "similar_to",
    "to_coco",
    "wrap",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """Load a public name or module on first use."""
    if name in _HOMES:
        globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return globals()[name]
    if name in _MODULES:
        return importlib.import_module(f"xai_abn.{name}")
    raise AttributeError(f"module 'xai_abn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*__all__, *_MODULES, "__version__"])
