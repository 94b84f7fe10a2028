"""What do predictions, explanations and perturbation curves cost on a GPU? In one minute, with the card's name.

    python -m benchmarks.speed.gpu [--output gpu.json]

Milliseconds a batch, medians: the bare forward (float32 without TF32, and bfloat16 under autocast), our predictor with
what it chose, ``explain`` with Grad-CAM and with nine methods. Then the curves of deletion and insertion of images of
noise, against as many bare forwards in bfloat16. Random inputs of 224x224; lite0 with its weights, resnet50 without.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision

import xai_abn
from benchmarks._harness import machine, make_parser, settled, write_json
from xai_abn.explainers import make_explainers
from xai_abn.metrics.curves import perturbation_curves
from xai_abn.metrics.deletion_insertion import PROTOCOLS

NINE = "cam,grad-cam,grad-cam++,hires-cam,layer-cam,xgrad-cam,grad-cam-elementwise,eigen-cam,finer-cam"
NETWORKS: dict[str, Callable[[], xai_abn.ModelAdapter]] = {
    "lite0": lambda: xai_abn.load_model("lite0"),
    "resnet50": lambda: xai_abn.wrap(torchvision.models.resnet50().eval(), preprocess=xai_abn.Preprocess()),
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--images", type=int, default=256, help="for deletion and insertion")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--coming", type=int, default=10_000, help="images of which a predictor is told, to choose")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(arguments.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    result: dict[str, Any] = {**machine(), "card": card, "rounds": arguments.rounds, "batches": {}, "curves": {}}
    print(card)
    for name in arguments.networks:
        torch.manual_seed(0)
        model = NETWORKS[name]()
        model.module.to(device)
        for size in arguments.batches:
            result["batches"][f"{name}, {size}"] = found = batch(
                model, size, device, arguments.rounds, arguments.coming
            )
            print(f"{name}, {size}: " + ", ".join(f"{k} {v}" for k, v in found.items()), flush=True)
        result["curves"][name] = found = curves(model, arguments.images, device, arguments.coming)
        print(f"{name}, deletion + insertion: " + ", ".join(f"{k} {v}" for k, v in found.items()), flush=True)
    write_json(arguments.output, result)


def batch(model: xai_abn.ModelAdapter, size: int, device: torch.device, rounds: int, coming: int) -> dict[str, Any]:
    """Return milliseconds a batch of each way, the choices, and explanations as multiples of the bare forward."""
    inputs = torch.randn(size, 3, 224, 224, device=device)
    given = inputs.contiguous(memory_format=model.memory_format)
    found: dict[str, Any] = {}
    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model.module, given, False),
        "bare bf16": lambda: bare(model.module, given, True),
    }
    for precision in ("float32", "bf16"):
        predictor = settled(model, inputs, coming, bf16=precision == "bf16")
        found[f"choice {precision}"] = str(predictor)
        found |= {f"notes {precision}": predictor.notes} if predictor.notes else {}
        ways[f"predictor {precision}"] = lambda predictor=predictor: predictor(inputs)  # type: ignore[misc]
    one, nine = make_explainers(model, "grad-cam"), make_explainers(model, NINE)
    ways["explain grad-cam"] = lambda: xai_abn.explain(model, inputs, one)
    ways["explain nine"] = lambda: xai_abn.explain(model, inputs, nine)
    times = {name: milliseconds(way, device, rounds) for name, way in ways.items()}
    found |= {name: round(value, 3) for name, value in times.items()}
    for name in ("explain grad-cam", "explain nine"):
        found[f"{name} / bare"] = round(times[name] / times["bare"], 2)
    return found


def curves(model: xai_abn.ModelAdapter, images: int, device: torch.device, coming: int) -> dict[str, Any]:
    """Return images a second of the engine and of bare forwards in bfloat16, and the share of the two."""
    size = min(256, 8 * images)
    inputs = torch.randn(images, 3, 224, 224, device=device)
    maps = torch.rand(images, 7, 7, device=device)
    targets = torch.zeros(images, dtype=torch.long)
    chunk = inputs.repeat(-(-size // images), 1, 1, 1)[:size]
    predictor = settled(model, chunk, coming, bf16=True)
    rates: dict[str, list[float]] = {"engine": [], "bare": [], "predictor": []}
    for turn in range(4):
        wait(device)
        started = time.perf_counter()
        made = perturbation_curves(predictor, inputs, maps, targets, PROTOCOLS["xai-abn"], batch_size=size)
        wait(device)
        engine = made.evaluations / (time.perf_counter() - started)
        passes = max(1, made.evaluations // size)
        given = chunk.contiguous(memory_format=torch.channels_last)
        others = {}
        ways: dict[str, Callable[[], object]] = {
            "bare": partial(bare, model.module, given, True),
            "predictor": partial(predictor, chunk),
        }
        for name, way in ways.items():
            way()
            wait(device)
            started = time.perf_counter()
            for _ in range(passes):
                way()
            wait(device)
            others[name] = passes * size / (time.perf_counter() - started)
        if turn:  # the first warms up
            rates["engine"].append(engine)
            for name, value in others.items():
                rates[name].append(value)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    found: dict[str, Any] = {f"{name}, images/s": round(value, 1) for name, value in medians.items()}
    found |= {"choice": str(predictor), "engine / bare": round(medians["engine"] / medians["bare"], 3)}
    return found | {"engine / predictor": round(medians["engine"] / medians["predictor"], 3)}


@torch.inference_mode()
def bare(module: torch.nn.Module, inputs: torch.Tensor, bf16: bool) -> None:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        module(inputs)


def milliseconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median of a few calls behind two that warm up."""
    times = []
    for number in range(rounds + 2):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number > 1:
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
