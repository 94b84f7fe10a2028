"""Our methods where others are expected: captum, Quantus, Ray Data, Hugging Face datasets."""

from xai_abn.integrations.attribution import CaptumStyle, explain_func
from xai_abn.integrations.batches import BatchExplainer

__all__ = ["BatchExplainer", "CaptumStyle", "explain_func"]
