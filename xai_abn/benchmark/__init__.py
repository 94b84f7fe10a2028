"""Benchmarks of explanations: run, store, compare, report. Names are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xai_abn.registry import load_names

if TYPE_CHECKING:
    from xai_abn.benchmark.runner import Summary, benchmark
    from xai_abn.benchmark.settings import BenchmarkSettings
    from xai_abn.benchmark.store import Store

_HOMES = {"BenchmarkSettings": "settings", "Store": "store", "Summary": "runner", "benchmark": "runner"}

__all__ = ["BenchmarkSettings", "Store", "Summary", "benchmark"]

__getattr__ = load_names(__name__, _HOMES)
