"""How fast is a training step, as a multiple of the published implementation's? And does bf16 learn the same?

    python -m benchmarks.training_speed.run [--data cifar100:DIR] [--output results.json]

The published step is written down here: the same network in float32 and torch's usual memory layout, plain SGD, one
image at a time through torchvision's transforms for the data. Ours is the step of ``xai-abn train --bf16``, its very
code: bfloat16 autocast, channels last, accuracy counted, images cropped and flipped as one tensor. Within a round
each takes its turn, so that a noisy moment hits both; figures are medians over rounds. Loss curves need ``--data``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torchvision import transforms

from benchmarks._harness import machine, make_parser, time_in_turns, write_json
from xai_abn.datasets import TrainingData, read_training_data
from xai_abn.datasets.batches import Batch, InMemorySplit
from xai_abn.datasets.readers.cifar import MEAN, STD
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.architectures import create_model
from xai_abn.training import TrainingSettings
from xai_abn.training.loop import TrainingLoop
from xai_abn.training.losses import classification_losses
from xai_abn.training.supervised import SupervisedObjective

BATCH = 128


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--archs", nargs="+", default=["resnet20", "resnet110-bottleneck"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", help="such as cifar100:DIR, for the loss curves")
    parser.add_argument("--steps", type=int, default=200, help="of the loss curves")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {**machine(), "device": kind, "batch": BATCH, "rounds": arguments.rounds}
    result["images_per_second"] = {arch: speed(arch, arguments.rounds, device) for arch in arguments.archs}
    result["data_images_per_second"] = data_speed(arguments.rounds)
    for arch, found in result["images_per_second"].items():
        print(arch, {name: round(value, 1) for name, value in found.items()})
    print("data alone", {name: round(value) for name, value in result["data_images_per_second"].items()})
    if arguments.data:
        result["losses"] = curves(arguments.data, arguments.archs[0], arguments.steps, device)
        print(
            "mean loss of the last 20 steps",
            {n: round(statistics.fmean(v[-20:]), 3) for n, v in result["losses"].items()},
        )
    write_json(arguments.output, result)


def stepper(
    arch: str, ours: bool, device: torch.device, bf16: bool = True
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Return a function that learns from one batch; ours or the published way. Both start from the same weights."""
    torch.manual_seed(0)
    network = create_model(arch, 100).train()
    if ours:
        split = InMemorySplit(torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8), torch.zeros(BATCH).long(), MEAN, STD)
        data = TrainingData("noise", tuple(map(str, range(100))), Preprocess(32), split)
        settings = TrainingSettings(data="cifar100:", arch=arch, bf16=bf16, batch_size=BATCH)
        accelerator = Accelerator(cpu=device.type == "cpu")
        loop = TrainingLoop(SupervisedObjective(settings, data, network, accelerator, Path()), accelerator)
        return lambda images, targets: float(loop.train_step(Batch(images, targets))["loss"].detach())
    network = network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4)

    def step(images: torch.Tensor, targets: torch.Tensor) -> float:
        loss = classification_losses(network(images), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def speed(arch: str, rounds: int, device: torch.device) -> dict[str, Any]:
    images, targets = torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(0, 100, (BATCH,), device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    ways = {
        "published": (stepper(arch, False, device), images),
        "ours, float32": (stepper(arch, True, device, bf16=False), last),
        "ours": (stepper(arch, True, device), last),
    }
    times = time_in_turns(
        {name: partial(step, batch, targets) for name, (step, batch) in ways.items()}, rounds, calls=2
    )
    found = {name: BATCH / statistics.median(values) for name, values in times.items()}
    ratios = [p / o for p, o in zip(times["published"], times["ours"], strict=True)]
    return {**found, "ours / published": statistics.median(ratios)}


def data_speed(rounds: int) -> dict[str, Any]:
    """Return images per second that the data alone gives: torchvision one at a time, and ours as one tensor."""
    images = torch.randint(0, 256, (20 * BATCH, 3, 32, 32), dtype=torch.uint8)
    split = InMemorySplit(images, torch.zeros(len(images), dtype=torch.long), MEAN, STD)
    one = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def published() -> Iterator[torch.Tensor]:
        for part in images.split(BATCH):
            yield torch.stack([one(image) for image in part])

    batches = list(torch.arange(len(images)).split(BATCH))
    ways = {"published": published, "ours": lambda: split.load(batches, torch.device("cpu"), 0)}
    times = time_in_turns({name: partial(exhaust, way) for name, way in ways.items()}, rounds, warm_up=0)
    return {name: len(images) / statistics.median(values) for name, values in times.items()}


def exhaust(make: Callable[[], Iterator[Any]]) -> None:
    for _ in make():
        pass


def curves(data: str, arch: str, steps: int, device: torch.device) -> dict[str, Any]:
    """Return the losses of both precisions on the same batches, from the same weights."""
    split = read_training_data(data).train
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    losses: dict[str, list[float]] = {}
    for name, bf16 in (("float32", False), ("bf16", True)):
        step = stepper(arch, True, device, bf16)
        batches = list(order.split(BATCH)[:steps])
        losses[name] = [round(step(b.images, b.targets), 5) for b in split.load(batches, device, 0)]
    return losses


if __name__ == "__main__":
    main()
