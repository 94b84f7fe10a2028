"""Training and distillation of Attention Branch Networks. Names are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xai_abn.training.distillation import distill, run_distillation
    from xai_abn.training.settings import DistillationSettings, TrainingSettings, make_training_settings
    from xai_abn.training.supervised import train

_HOMES = {
    "DistillationSettings": "settings",
    "TrainingSettings": "settings",
    "distill": "distillation",
    "make_training_settings": "settings",
    "run_distillation": "distillation",
    "train": "supervised",
}

__all__ = ["DistillationSettings", "TrainingSettings", "distill", "make_training_settings", "run_distillation", "train"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'xai_abn.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"xai_abn.training.{_HOMES[name]}"), name)
