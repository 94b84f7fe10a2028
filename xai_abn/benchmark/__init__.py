"""Benchmarks of explanations: run, store, compare, report."""

from xai_abn.benchmark.runner import BenchmarkSettings, Summary, benchmark
from xai_abn.benchmark.store import Store

__all__ = ["BenchmarkSettings", "Store", "Summary", "benchmark"]
