"""Training Attention Branch Networks."""

from xai_abn.training.distillation import distill
from xai_abn.training.distillation_config import DistillationConfig
from xai_abn.training.distillation_run import run_distillation
from xai_abn.training.distillation_settings import DistillationSettings

__all__ = ["DistillationConfig", "DistillationSettings", "distill", "run_distillation"]
