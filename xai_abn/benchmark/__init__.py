"""Benchmarks of explanations: run, store, compare, report."""

from xai_abn.benchmark.runner import Settings, Summary, benchmark
from xai_abn.benchmark.store import Store

__all__ = ["Settings", "Store", "Summary", "benchmark"]
