"""Training and distillation of Attention Branch Networks. Names are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xai_abn.registry import load_names

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

__getattr__ = load_names(__name__, _HOMES)
