"""Parts shared by the benchmark scripts: arguments, interleaved timing, and JSON results."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision

from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.predictor import Predictor

#: Vector extensions on which the speed of a forward depends, by the names of /proc/cpuinfo.
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")

Call = Callable[[], object]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the script's docstring, with the options that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


def machine() -> dict[str, Any]:
    """Return and print what the figures depend on: processor with vector extensions, threads and torch's version."""
    processor, extensions = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        found = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        processor = found.get("model name", processor)
        extensions = " ".join(e for e in EXTENSIONS if e in found.get("flags", found.get("Features", "")).split())
    facts: dict[str, Any] = {"processor": processor, "extensions": extensions}
    facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    return facts


def settled(model: ModelAdapter, inputs: torch.Tensor, coming: int = 10_000, **options: Any) -> Predictor:
    """Return a predictor that has chosen its backend for inputs, as in a run of so many more."""
    predictor = Predictor(model, **options)
    predictor.expect(coming)
    for _ in range(3):
        predictor(inputs)
    return predictor


def write_json(path: Path | None, result: object) -> None:
    """Write results where ``--output`` says, if it was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


def seconds(call: Call, calls: int = 1) -> float:
    """Return the median duration of a few calls in a row."""
    durations = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def time_in_turns(
    contenders: Mapping[str, Call], rounds: int, calls: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each contender, one figure a round.

    Within a round each contender takes its turn, so that a noisy moment hits all of them. A turn is the median of a few
    calls, without Python's garbage collector.
    """
    for call in [*contenders.values()] * warm_up:
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        with _no_garbage_collection():
            for name, call in contenders.items():
                times[name].append(seconds(call, calls))
    return times


def ratios(reference: Call, contenders: Mapping[str, Call], rounds: int, calls: int = 1) -> dict[str, float]:
    """Return the cost of each contender as a multiple of the reference: medians over rounds.

    Every turn of a contender stands between two turns of the reference and is divided by their mean.
    """
    for call in [reference, *contenders.values()] * 2:
        call()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        with _no_garbage_collection():
            for name, call in contenders.items():
                before, own, after = seconds(reference, calls), seconds(call, calls), seconds(reference, calls)
                found[name].append(2 * own / (before + after))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _OutOfPlace:
    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)

    @staticmethod
    def relu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        return torch.relu(x)


def densenet_out_of_place() -> Any:
    """Return a context in which torchvision's DenseNet has no in-place ReLU, which overwrites what peers read."""
    return patch.object(torchvision.models.densenet, "F", _OutOfPlace())
