"""Benchmarks of explanations: run, store, compare, report."""

from xai_abn.evaluation.runner import Settings, Summary, benchmark
from xai_abn.evaluation.store import Store

__all__ = ["Settings", "Store", "Summary", "benchmark"]
