"""Time deletion + insertion against the RISE loop, torchcam's metric and Quantus's pixel flipping; growth and overhead.

    python -m benchmarks.engine.speed --images DIR [--output results.json]

DIR holds at least 16 images (400 for the growth). All take the same kind of steps, an eighth of the pixels each time;
what is compared is the time for one network evaluation, side by side in rounds, with medians. Quantus flips single
channel values, not pixels, so its values are of another protocol and are not compared.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
import torchvision
from quantus.metrics.faithfulness.pixel_flipping import PixelFlipping
from torch import nn
from torchcam.methods import GradCAM as TorchcamGradCAM
from torchcam.metrics import DeletionInsertionMetric

import xai_abn
from benchmarks._harness import machine, make_parser, settled, time_in_turns, write_json
from xai_abn.benchmark import BenchmarkSettings, benchmark
from xai_abn.datasets import read_dataset
from xai_abn.heatmaps import upsample
from xai_abn.images.loading import find_images, load_image
from xai_abn.metrics import PerturbationProtocol
from xai_abn.metrics.curves import area, at_most, every, perturbation_curves, rise_kernel
from xai_abn.metrics.deletion_insertion import PROTOCOLS
from xai_abn.models.predictor import Predictor

warnings.filterwarnings("ignore")
PIXELS = 224 * 224
STEP = PIXELS // 8


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=["lite0", "resnet50"], default=["lite0", "resnet50"])
    parser.add_argument("--batch", type=int, default=16, help="number of images")
    parser.add_argument("--growth", nargs="+", type=int, default=[20, 100, 200, 400], help="images of each run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {**machine(), "rounds": arguments.rounds}
    for name, module, adapter in networks():
        if name.split()[0] not in arguments.networks:
            continue
        paths = find_images(arguments.images)[: arguments.batch]
        inputs = torch.stack([adapter.preprocess(load_image(path)).tensor for path in paths])
        result[name] = compare(name, module, adapter, inputs, arguments.rounds)
    result["growth"] = growth(arguments.images, arguments.growth)
    write_json(arguments.output, result)


def networks() -> Iterator[tuple[str, nn.Module, xai_abn.ModelAdapter]]:
    """Yield each network as its users have it (plain, NCHW) and wrapped."""
    lite0 = xai_abn.load_model("lite0")
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    plain.load_state_dict(lite0.module.state_dict())
    yield "lite0", plain, lite0
    resnet = torchvision.models.resnet50().eval()
    yield "resnet50 (random weights)", resnet, xai_abn.wrap(resnet)


def compare(
    name: str, module: nn.Module, adapter: xai_abn.ModelAdapter, inputs: torch.Tensor, rounds: int
) -> dict[str, Any]:
    targets = module(inputs).argmax(dim=1).detach()
    with TorchcamGradCAM(module, adapter.target_layer) as extractor:
        maps = extractor.fuse_cams(extractor(targets.tolist(), module(inputs).softmax(dim=-1))).detach()
    fast, half = settled(adapter, inputs), settled(adapter, inputs, bf16=True)
    print(f"{name}: {fast}")
    rise = replace(PROTOCOLS["rise-2018"], counts=every(STEP))
    cam = replace(PROTOCOLS["torchcam-20"], counts=at_most(8))
    found: dict[str, tuple[Any, ...]] = {}
    contenders: dict[str, Callable[[], object]] = {}

    def enter(label: str, work: Callable[[], tuple[Any, ...]]) -> None:
        def call() -> None:
            found[label] = work()

        contenders[label] = call

    def bare_forwards(kind: str, predict: Predictor) -> tuple[Any, ...]:
        return bare(predict, inputs, found[f"ours, rise-2018, {kind}"][2])

    kinds = {"float32": fast, "folded": Predictor(adapter, backend="folded")}
    kinds |= {"bf16": half} if name == "lite0" else {}
    enter("RISE loop", lambda: rise_loop(module, inputs, maps, targets))
    enter("torchcam", lambda: torchcam_metric(module, adapter, inputs, targets))
    enter("Quantus", lambda: quantus_flipping(module, inputs, maps, targets))
    for kind, predict in kinds.items():
        for protocol in (rise, cam):
            enter(f"ours, {protocol.name}, {kind}", partial(our_curves, predict, inputs, maps, targets, protocol))
        enter(f"bare forwards, {kind}", partial(bare_forwards, kind, predict))
    return report(name, found, time_in_turns(contenders, rounds, warm_up=0))


def report(name: str, found: dict[str, Any], seconds: dict[str, Any]) -> dict[str, Any]:
    """Return and print milliseconds for one evaluation, ratios of medians, and differences of the areas."""
    cost = {label: 1000 * statistics.median(s) / found[label][2] for label, s in seconds.items()}
    pairs = {
        "RISE loop": "rise-2018",
        "torchcam": "torchcam-20",
        "Quantus": "rise-2018",
    }
    ratios, differences = {}, {}
    precisions = [p for p in ("float32", "folded", "bf16") if f"bare forwards, {p}" in cost]
    for label, protocol in pairs.items():
        for precision in precisions:
            own = f"ours, {protocol}, {precision}"
            ratios[f"{label} / ours {precision}"] = cost[label] / cost[own]
            if label != "Quantus":
                gaps = [np.abs(np.subtract(found[label][i], found[own][i])) for i in (0, 1)]
                differences[f"{label} - ours {precision}, largest"] = float(max(g.max() for g in gaps))
                means = [np.mean(found[label][i]) - np.mean(found[own][i]) for i in (0, 1)]
                differences[f"{label} - ours {precision}, of the means"] = float(max(map(abs, means)))
    for precision in precisions:
        overhead = cost[f"ours, rise-2018, {precision}"] / cost[f"bare forwards, {precision}"]
        ratios[f"engine / bare forwards, {precision}"] = overhead
    print(f"\n{name}")
    for label, value in cost.items():
        print(f"  {label:<28} {value:7.2f} ms an evaluation ({found[label][2]} evaluations)")
    for label, value in (ratios | differences).items():
        print(f"  {label:<48} {value:.6g}", flush=True)
    counts = {label: found[label][2] for label in found}
    return {
        "ms per evaluation": cost,
        "evaluations": counts,
        "ratios": ratios,
        "differences of areas": differences,
    }


def our_curves(
    predict: Predictor,
    inputs: torch.Tensor,
    maps: torch.Tensor,
    targets: torch.Tensor,
    protocol: PerturbationProtocol,
) -> tuple[Any, ...]:
    curves = perturbation_curves(predict, inputs, maps, targets, protocol)
    assert curves.deletion is not None
    assert curves.insertion is not None
    areas = [area(c, curves.axis) for c in (curves.deletion, curves.insertion)]
    if protocol.name.startswith("torchcam"):  # torchcam keeps the mean alone
        areas = [a.mean() for a in areas]
    return areas[0].numpy(), areas[1].numpy(), curves.evaluations


@torch.inference_mode()
def rise_loop(
    module: torch.nn.Module, inputs: torch.Tensor, maps: torch.Tensor, targets: torch.Tensor
) -> tuple[Any, ...]:
    """The released single-image loop: one image at a time, pixels copied step by step."""
    large = upsample(maps, (224, 224)).flatten(1).numpy()
    kernel = torch.zeros(3, 3, 11, 11)
    for c in range(3):
        kernel[c, c] = rise_kernel()
    evaluations = 0
    areas: tuple[list[float], list[float]] = ([], [])
    for n in range(len(inputs)):
        image = inputs[n : n + 1]
        order = np.flip(np.argsort(large[n], kind="stable"))
        blurred = nn.functional.conv2d(image, kernel, padding=5)
        for which, (start, finish) in enumerate(((image, torch.zeros_like(image)), (blurred, image))):
            now, end = start.clone().reshape(3, -1).numpy(), finish.reshape(3, -1).numpy()
            scores = []
            for step in range(9):
                answer = module(torch.from_numpy(now).view(1, 3, 224, 224)).softmax(dim=1)
                scores.append(float(answer[0, targets[n]]))
                chosen = order[STEP * step : STEP * (step + 1)]
                now[:, chosen] = end[:, chosen]
            evaluations += len(scores)
            areas[which].append((sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1))
    return np.array(areas[0]), np.array(areas[1]), evaluations


def torchcam_metric(
    module: torch.nn.Module, adapter: xai_abn.ModelAdapter, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[Any, ...]:
    """Its time includes making its maps: one more forward and backward pass."""
    with TorchcamGradCAM(module, adapter.target_layer) as extractor:
        metric = DeletionInsertionMetric(extractor, lambda x: x.softmax(dim=-1), steps=8, batch_size=16)
        metric.update(inputs, targets.tolist())
        summary = metric.summary()
    return summary["deletion_auc"], summary["insertion_auc"], len(inputs) * (1 + 1 + 2 * 7)


def quantus_flipping(
    module: torch.nn.Module, inputs: torch.Tensor, maps: torch.Tensor, targets: torch.Tensor
) -> tuple[Any, ...]:
    metric = PixelFlipping(
        features_in_step=PIXELS // 4,
        perturb_baseline="mean",
        disable_warnings=True,
        return_auc_per_sample=False,
    )
    wide = upsample(maps, (224, 224))[:, None].expand(-1, 3, -1, -1).numpy()
    with torch.no_grad():
        metric(module, inputs.numpy(), targets.numpy(), wide, batch_size=16, device="cpu", softmax=True)
    return None, None, len(inputs) * 12  # three channels of four steps


def bare(predict: Predictor, inputs: torch.Tensor, evaluations: int) -> tuple[Any, ...]:
    """As many forward passes as the engine needs, in batches of 16, of images that are there already."""
    for start in range(0, evaluations, 16):
        predict(inputs[: min(16, evaluations - start)])
    return None, None, evaluations


def growth(folder: Path, numbers: list[int]) -> dict[str, Any]:
    """Seconds an image, and memory, of runs over more and more images."""
    model, data = xai_abn.load_model("lite0"), read_dataset(f"images:{folder}")
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        for number in numbers:
            settings = BenchmarkSettings(bf16=True, limit=number)
            summary = benchmark(model, data, ["cam"], ["deletion"], f"{place}/{number}.sqlite", settings)
            gc.collect()
            memory = psutil.Process().memory_info().rss / 2**20
            rows[str(number)] = {"seconds an image": summary.seconds / number, "resident MiB afterwards": memory}
            print(f"  {number} images: {summary.seconds / number:.3f} s an image, {memory:.0f} MiB", flush=True)
    return rows


if __name__ == "__main__":
    main()
