"""Which backend is quickest on this machine, and what does each method cost? In about a minute.

    python -m benchmarks.speed.here [--networks lite0 resnet50] [--batches 1 8 32] [--compile]

First the backends: milliseconds an image in turns (medians), the largest difference of probabilities, how many times as
fast as the folded copy each is, and how much of the machine it uses: the multiply-adds a second of the network as a
share of those of a plain matrix product on the same cores, which is the physical limit. Then each method that needs
less than some hundred passes, as a multiple of a bare forward of the network, one image; of the others, what their map
costs in passes. lite0 with its weights, resnet50 with random ones, 224x224. ``--compile`` adds torch.compile, which
takes a minute more for each network and batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import xai_abn
from benchmarks._harness import machine, make_parser, time_in_turns, write_json
from xai_abn.errors import XaiAbnError
from xai_abn.explainers import make_explainers
from xai_abn.models.backends import BACKENDS
from xai_abn.models.predictor import Predictor

NETWORKS: dict[str, Callable[[], xai_abn.ModelAdapter]] = {
    "lite0": lambda: xai_abn.load_model("lite0"),
    "resnet50": lambda: xai_abn.wrap(torchvision.models.resnet50().eval().to(memory_format=torch.channels_last)),
}
METHODS = (
    *("cam", "grad-cam", "grad-cam++", "hires-cam", "layer-cam", "xgrad-cam", "eigen-cam", "finer-cam"),
    *("recipro-cam", "saliency", "input-x-gradient", "integrated-gradients", "smooth-grad"),
)
ASKING = ("score-cam", "rise", "occlusion", "lime", "kernel-shap", "ablation-cam", "ss-cam", "is-cam")
#: Side of the matrices whose product is the limit.
SIDE = 2048


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["lite0"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--compile", action="store_true", help="also try torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {**machine(), "rounds": arguments.rounds, "backends": {}, "methods": {}}
    result["limit"] = limit = multiply_adds(arguments.rounds)
    print(f"matrix product: {limit / 1e9:.0f} billion multiply-adds a second", flush=True)
    for name in arguments.networks:
        torch.manual_seed(0)
        model = NETWORKS[name]()
        for size in arguments.batches:
            inputs = torch.randn(size, 3, 224, 224)
            found = backends(model, inputs, arguments.rounds, limit, arguments.compile)
            result["backends"][f"{name}, {size}"] = found
            print(f"\n{name}, batch {size}")
            for backend, row in found.items():
                print(f"  {backend:<14} " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        result["methods"][name] = found = methods(model, arguments.methods, arguments.rounds)
        print(f"\n{name}, one image, multiples of a bare forward")
        for method, cost in found.items():
            print(f"  {method:<22} {cost}", flush=True)
    write_json(arguments.output, result)


def multiply_adds(rounds: int) -> float:
    """Return multiply-adds a second of a product of two matrices in float32."""
    left, right = torch.randn(2, SIDE, SIDE)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return SIDE**3 / statistics.median(times[1:])


def backends(
    model: xai_abn.ModelAdapter, inputs: torch.Tensor, rounds: int, limit: float, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Return, for each backend that runs here, what was measured, or why it is left out."""
    kind = model.device.type
    found: dict[str, dict[str, Any]] = {}
    reference = Predictor(model, backend="network")(inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(inputs[:1])
    work = counter.get_total_flops() / 2
    calls: dict[str, Callable[[], object]] = {}
    for name, backend in BACKENDS.items():
        if name == "torch-compile" and not compiled:
            continue
        if problem := backend.missing(kind):
            found[name] = {"left out": problem}
            continue
        started = time.perf_counter()
        try:
            call = backend.build(model, False, inputs)
            output = call(inputs)
        except Exception as error:  # converters raise errors of many kinds
            found[name] = {"left out": str(error).splitlines()[0]}
            continue
        gap = (model.probabilities(output) - model.probabilities(reference)).abs().max()
        found[name] = {"seconds to build": round(time.perf_counter() - started, 2), "difference": f"{float(gap):.1g}"}
        calls[name] = partial(call, inputs)
    times = time_in_turns(calls, rounds)
    seconds = {name: statistics.median(values) / len(inputs) for name, values in times.items()}
    for name, value in seconds.items():
        found[name] |= {
            "ms an image": round(1000 * value, 2),
            "times folded": round(seconds["folded"] / value, 2),
            "share of the limit": round(work / value / limit, 3),
        }
    return found


def methods(model: xai_abn.ModelAdapter, names: list[str], rounds: int) -> dict[str, Any]:
    """Return the cost of explaining one image with each method, as a multiple of a bare forward."""
    inputs = torch.randn(1, 3, 224, 224).contiguous(memory_format=model.memory_format)

    def bare() -> None:
        with torch.inference_mode():
            model.module(inputs)

    calls: dict[str, Callable[[], object]] = {"bare": bare}
    found: dict[str, Any] = {}
    for name in names:
        try:
            calls[name] = partial(xai_abn.explain, model, inputs, make_explainers(model, name))
            calls[name]()
        except XaiAbnError as error:
            found[name] = f"does not apply: {error.line}"
            calls.pop(name, None)
    times = time_in_turns(calls, rounds)
    forward = statistics.median(times["bare"])
    found |= {name: round(statistics.median(times[name]) / forward, 2) for name in calls if name != "bare"}
    return found | {name: make_explainers(model, name)[0].cost for name in ASKING}


if __name__ == "__main__":
    main()
