"""The methods under the interfaces of captum, Quantus, Ray Data and Hugging Face datasets."""

from xai_abn.integrations.attribution import CaptumStyle, explain_func
from xai_abn.integrations.batches import BatchExplainer

__all__ = ["BatchExplainer", "CaptumStyle", "explain_func"]
