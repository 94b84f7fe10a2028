"""How many images a second does a core explain, in processes of Ray and in one process? In turns.

    RAY_worker_niceness=0 python -m benchmarks.speed.ray_folder IMAGES [--number 400] [--processes 2] [--rounds 3]

A turn explains the first images of a folder. Beside processes of Ray, which save maps as Parquet, stands ``xai-abn
explain`` in one process with a torch thread for each core, which draws overlays. The rate of Ray counts from the end of
the first partition, when its processes have started; the seconds of the whole turn stand beside it. What a core does
alone is measured in CPU time, which other work on the machine disturbs less: that of partitions explained in this
process with one thread. Ray's processes give way to others (nice 15) unless the environment says otherwise.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

import xai_abn
from benchmarks._harness import machine, make_parser, write_json
from benchmarks.speed.folder import explain
from xai_abn import cluster
from xai_abn.images.loading import find_images
from xai_abn.integrations.partitions import PartitionExplainer, Question, explain_partitions, find_partitions


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("images", help="folder")
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partition", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--model", default="abn-lite0")
    parser.add_argument("--methods", nargs="+", default=["abn", "grad-cam"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = machine()
    files = find_images(arguments.images)[: arguments.number]
    model, rates = xai_abn.load_model(arguments.model), dict[str, list[float]]()
    sizes: dict[str, float] = {}
    with cluster.connected():
        for number in range(arguments.rounds):
            for method in arguments.methods:
                started = time.perf_counter()
                explain(model, files, method, 2)
                rate = len(files) / (time.perf_counter() - started)
                rates.setdefault(f"{method}, one process, {arguments.threads} threads", []).append(rate)
                torch.set_num_threads(1)
                rates.setdefault(f"{method}, a second of a core", []).append(by_core(arguments.model, method, files))
                torch.set_num_threads(arguments.threads)
                for processes in arguments.processes:
                    rate, whole, sizes[method] = on_ray(arguments.model, method, files, processes, arguments.partition)
                    rates.setdefault(f"{method}, Ray, {processes} processes", []).append(rate)
                    said = f"{method}, {processes} processes: {rate:.1f} images/s, {whole:.0f} s in all"
                    print(f"round {number + 1}: {said}", flush=True)
            print(f"round {number + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        print(f"{name:<36} {rate:6.1f} images/s")
    for method, size in sizes.items():
        print(f"{method:<36} {size / 1024:6.2f} KiB an image in Parquet")
    write_json(arguments.output, {**facts, "images": len(files), "images/s": medians, "bytes an image": sizes})


def on_ray(model: str, method: str, files: list[str], processes: int, partition: int) -> tuple[float, float, float]:
    """Return images a second after the first partition, the seconds of the whole, and bytes an image."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        output, question = Path(folder, "maps.parquet"), Question(partial(load, model), [method])
        told = lambda done, total: ends.append(time.perf_counter())  # noqa: E731
        summary = explain_partitions(
            files, str(output), question, size=partition, processes=processes, workers=1, progress=told
        )
        assert not summary.failures
        size = sum(path.stat().st_size for path in output.glob("*.parquet"))
    rate = (len(files) - partition) / (ends[-1] - ends[0]) if len(ends) > 1 else len(files) / summary.seconds
    return rate, summary.seconds, size / len(files)


def by_core(model: str, method: str, files: list[str]) -> float:
    """Return images a second of CPU time, explained as a process of Ray does."""
    with tempfile.TemporaryDirectory() as folder:
        output, question = Path(folder, "maps.parquet"), Question(partial(load, model), [method])
        adapter = load(model, "cpu")
        shapes = {e.method: e.map.shape for e in xai_abn.explain(adapter, files[0], method)[0].values()}
        output.mkdir()
        process = PartitionExplainer(question, str(output), shapes, question.identity(adapter), workers=1)
        (partition,) = find_partitions(files[:100], len(files))
        started = time.process_time()
        made = process(partition)
        return made.images / (time.process_time() - started)


def load(model: str, device: str) -> xai_abn.ModelAdapter:
    """Return the model in a process of Ray."""
    return xai_abn.load_model(model, device=device)


if __name__ == "__main__":
    main()
