"""Training Attention Branch Networks."""

from xai_abn.training.distillation import DistillationConfig, distill

__all__ = ["DistillationConfig", "distill"]
