"""Train an ABN and its controls for fine-grained recognition from lite0's weights, and measure their maps.

    python -m benchmarks.fine_grained.run grocery --images DIR --work WORK --output results.jsonl
    python -m benchmarks.fine_grained.run cars --images DIR --labels FILE --grounds DIR --work WORK --output ...

Everything in front of the branches is frozen, so what it gives for an image is computed once. Each training, and then
the maps of each network, are lines of the results; lines that are there are not made again.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._features import Features
from benchmarks._harness import machine, make_parser
from benchmarks.fine_grained.images import SIZE, Pasted, Split, cars, grocery, pasted, pixels_of
from xai_abn import ABNOutput, abn_from, load_model, wrap
from xai_abn.benchmark.statistics import mean_interval
from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import Batch
from xai_abn.explainers.base import make_explainers, run_pass
from xai_abn.images.preprocess import Preprocess, normalizer
from xai_abn.metrics import energy_pointing_game, polarity
from xai_abn.metrics.localization import peak_inside
from xai_abn.metrics.multi_object import energy_confusion
from xai_abn.metrics.objects import Objects
from xai_abn.metrics.similarity import map_agreement
from xai_abn.models.adapter import ModelAdapter
from xai_abn.seeding import seeded
from xai_abn.training import make_training_settings
from xai_abn.training.loop import TrainingLoop
from xai_abn.training.supervised import SupervisedObjective

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PREPROCESS = Preprocess(SIZE, 1.0, "bilinear", MEAN, STD, crop="squash")
CHANNELS = 192
#: Maps of each network.
READ = ("cam", "grad-cam", "layer-cam")
NETWORKS = {
    "baseline": (*READ, "center", "random-7"),
    "abn": ("abn", "abn-class", *READ),
    "auxiliary": ("abn-class", *READ),
    "wide": READ,
}
SETTINGS = {"batch_size": 16, "schedule": "cosine", "nesterov": True, "warmup": 0.5, "validation": 0.0, "maps_every": 0}
#: Learning rates that are tried with the first seed.
RATES = (0.01, 0.03)
SEEDS = (0, 1, 2)
#: Of so many images whose maps are compared, the polarity of one is measured, which runs the front again.
FEWER = 8


class Front(nn.Module):
    """The part that does not change; it takes images, or what it gave for them, (N, 192, 5, 5)."""

    def __init__(self) -> None:
        super().__init__()
        network: Any = load_model("lite0").module
        self.layers = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:6]).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Front:
        """Stay in evaluation mode."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return x if x.shape[1] == CHANNELS else self.layers(x)


class SideBySide(nn.ModuleList):
    """Stages that read the same features; their channels are joined."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, sum of the channels, h, w)."""
        return torch.cat([stage(x) for stage in self], dim=1)


class Network(nn.Module):
    """EfficientNet-Lite0 with a new classifier, and with as many copies of its last stage as asked."""

    def __init__(self, front: Front, classes: int, width: int = 1) -> None:
        super().__init__()
        network: Any = load_model("lite0").module
        stage = nn.Sequential(network.blocks[6], network.conv_head, network.bn2)
        self.front = front
        self.stage = stage if width == 1 else SideBySide(copy.deepcopy(stage) for _ in range(width))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width * network.conv_head.out_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.pool(self.stage(self.front(x))).flatten(1))
        return logits


class HalfFeatures(Features):
    """Features kept in half precision."""

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield batches in float32."""
        for batch in super().load(batches, device, seed):
            features = batch.images.float().to(memory_format=torch.channels_last)
            yield Batch(features, batch.targets)


class Bench:
    """A data set, the networks that are trained on it, and what is measured."""

    def __init__(self, name: str, splits: dict[str, Split], work: Path, epochs: int, shown: int) -> None:
        self.name, self.splits, self.work, self.epochs, self.shown = name, splits, work / name, epochs, shown
        self.work.mkdir(parents=True, exist_ok=True)
        self.front, self.accelerator = Front(), Accelerator(cpu=True)
        self.classes = int(torch.cat([split.labels for split in splits.values()]).max()) + 1
        self.labels = tuple(map(str, range(self.classes)))
        self.features = {part: HalfFeatures(self.given_for(part), split.labels) for part, split in splits.items()}
        self.data = TrainingData(name, self.labels, PREPROCESS, self.features["train"])

    @torch.no_grad()
    def given(self, pixels: Tensor) -> Tensor:
        """Return what the front gives for pixels (N, 3, H, W)."""
        normalize = normalizer(MEAN, STD, torch.device("cpu"))
        return torch.cat([self.front(normalize(part)).half() for part in pixels.split(20)])

    def given_for(self, part: str) -> Tensor:
        """Return the features of a split, which are kept in the work folder."""
        file = self.work / f"{part}.pt"
        if not file.exists():
            files, parts = self.splits[part].files, []
            for start in range(0, len(files), 20):
                parts.append(self.given(torch.stack(list(pixels_of(files[start : start + 20])))))
            torch.save(torch.cat(parts), file)
        found: Tensor = torch.load(file)
        return found

    def network(self, name: str) -> nn.Module:
        """Return an untrained network."""
        network = Network(self.front, self.classes, 2 if name == "wide" else 1)
        if name in ("abn", "auxiliary"):
            mechanism = "residual" if name == "abn" else name
            return abn_from(network, layer="front", input_size=SIZE, mechanism=mechanism)
        return network

    def file(self, name: str, seed: int, rate: float) -> Path:
        """Return the file of a trained network's weights."""
        return self.work / f"{name}-{seed}-{rate}.pt"

    def train(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Train a network and return what it reaches."""
        settings = make_training_settings(
            {"data": self.name, "seed": seed}, {**SETTINGS, "epochs": self.epochs, "lr": rate}
        )
        started = time.process_time()
        with seeded(seed):
            network = self.network(name).train()
            TrainingLoop(
                SupervisedObjective(settings, self.data, network, self.accelerator, self.work, "lite0"),
                self.accelerator,
            ).run()
        seconds = time.process_time() - started
        torch.save(network.eval().state_dict(), self.file(name, seed, rate))
        found: dict[str, Any] = {"kind": "training", "data": self.name, "network": name, "seed": seed, "rate": rate}
        for part in ("val", "test"):
            for branch, right in self.right(network, part).items():
                found[f"{part} {branch}"] = round(float(right.float().mean()), 4)
                if (part, branch) == ("test", "perception"):
                    found |= {"tests": len(right), "right": np.packbits(right.numpy()).tobytes().hex()}
        return {**found, **self.cost(network), "epochs": self.epochs, "seconds": round(seconds, 1)}

    @torch.no_grad()
    def right(self, network: nn.Module, part: str) -> dict[str, Tensor]:
        """Return which images (N,) are classified rightly: by the branches, by both, and through a map that is flat."""
        split, found = self.features[part], []
        for batch in split.load(torch.arange(len(split)).split(100), torch.device("cpu"), None):
            output = network(batch.images)
            answers = {"perception": output}
            if isinstance(output, ABNOutput):
                both = output.logits.softmax(dim=1) + output.attention_logits.softmax(dim=1)
                answers = {"perception": output.logits, "attention": output.attention_logits, "both": both}
                flat = output.attention_map.mean(dim=(2, 3), keepdim=True).expand_as(output.attention_map)
                answers["flat"] = network(batch.images, attention=flat).logits
            found.append({branch: values.argmax(dim=1) == batch.targets for branch, values in answers.items()})
        return {branch: torch.cat([each[branch] for each in found]) for branch in found[0]}

    def cost(self, network: nn.Module) -> dict[str, int]:
        """Return parameters, those that are trained, and multiply-adds of an image."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, SIZE, SIZE))
        parameters = list(network.parameters())
        return {
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "multiply_adds": counter.get_total_flops() // 2,
        }

    def maps(self, name: str, files: Sequence[Path], scenes: Pasted | None) -> Iterator[dict[str, Any]]:
        """Yield a line for each kind of map of a network: polarity, stability, and where it lies on pasted cars."""
        methods = NETWORKS[name]
        test, split = self.features["test"], self.splits["test"]
        rows = torch.linspace(0, len(test) - 1, min(self.shown, len(test))).long()
        pixels = torch.stack(list(pixels_of([split.files[row] for row in rows[::FEWER]])))
        images = normalizer(MEAN, STD, torch.device("cpu"))(pixels)
        found: dict[str, list[Tensor]] = {method: [] for method in methods}
        signs: dict[str, list[float]] = {method: [] for method in methods}
        places: dict[str, list[Tensor]] = {method: [] for method in methods}
        either: list[float] = []
        inputs = self.given(scenes.pixels).float() if scenes is not None else images
        for file in files:
            network = self.network(name)
            network.load_state_dict(torch.load(file))
            model = wrap(network.eval(), labels=self.labels, preprocess=PREPROCESS, name=name)
            explained = self.explained(model, methods, test.features[rows].float(), test.targets[rows])
            for method, maps in explained.items():
                found[method].append(maps)
                values = polarity(self.predict(model), images, maps[::FEWER], test.targets[rows][::FEWER])
                signs[method].append(float(values.nanmean()))
            if scenes is not None:
                top = self.predict(model)(inputs).argmax(dim=1, keepdim=True)
                either.append(float((scenes.labels == top).any(dim=1).float().mean()))
                for method, values in self.placed(model, methods, inputs, scenes).items():
                    places[method].append(values)
        for method in methods:
            pairs = [float(map_agreement(a, b).nanmean()) for a, b in itertools.combinations(found[method], 2)]
            line: dict[str, Any] = {"kind": "maps", "data": self.name, "network": name, "method": method}
            line |= {"images": len(rows), "stability": pairs, "images of polarity": len(images)}
            line |= {"polarity": signs[method]}
            if scenes is not None:
                line |= {"pasted": len(scenes.labels), "top-1 is one of two": either}
                for column, measure in enumerate(("energy", "pointing", "confusion")):
                    values = torch.stack(places[method])[..., column].nanmean(dim=2)  # of both cars
                    estimate = mean_interval(values.nanmean(dim=0).numpy())
                    line[measure] = values.nanmean(dim=1).tolist()
                    line[f"{measure} interval"] = [estimate.low, estimate.high]
            yield {key: rounded(value) for key, value in line.items()}

    @staticmethod
    def predict(model: ModelAdapter) -> Any:
        """Return a function from images or features to logits."""

        @torch.no_grad()
        def logits(inputs: Tensor) -> Tensor:
            return torch.cat([model.logits_of(model.module(part)) for part in inputs.split(50)])

        return logits

    @staticmethod
    def explained(model: ModelAdapter, methods: Sequence[str], inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the maps (N, 5, 5) of features, by method; those of baselines have the size that these have."""
        explainers = make_explainers(model, methods)
        parts = []
        for part, wanted in zip(inputs.split(50), targets.split(50), strict=True):
            shared = run_pass(model, part, explainers)
            parts.append([explainer.explain(shared, wanted).float().cpu() for explainer in explainers])
        return {method: torch.cat(maps) for method, maps in zip(methods, zip(*parts, strict=True), strict=True)}

    def placed(self, model: ModelAdapter, methods: Sequence[str], inputs: Tensor, scenes: Pasted) -> dict[str, Tensor]:
        """Return energy, pointing and confusion (N, 2, 3) of the maps of both cars' classes."""
        columns: dict[str, list[Tensor]] = {method: [] for method in methods}
        size = (SIZE, SIZE)
        objects = [[Objects.from_boxes(box[None], size) for box in pair.float()] for pair in scenes.boxes]
        for car in range(2):
            own, others = [pair[car] for pair in objects], [pair[1 - car] for pair in objects]
            for method, maps in self.explained(model, methods, inputs, scenes.labels[:, car]).items():
                values = (energy_pointing_game(maps, own), peak_inside(maps, own), energy_confusion(maps, own, others))
                columns[method].append(torch.stack(values, dim=1))
        return {method: torch.stack(values, dim=1) for method, values in columns.items()}


def rounded(value: Any) -> Any:
    """Return floats with four digits."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Make the lines that are missing."""
    parser = make_parser(__doc__)
    parser.add_argument("data", choices=["grocery", "cars"])
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--labels", type=Path, help="cars_train_annos.mat of the cars' devkit")
    parser.add_argument("--grounds", type=Path, help="folder of images to paste cars on")
    parser.add_argument("--classes", type=int, default=40, help="number of classes of cars")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and networks")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--shown", type=int, default=480, help="images whose maps are measured")
    parser.add_argument("--pasted", type=int, default=200, help="images with pasted cars")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    if hasattr(torch.backends.mkldnn, "conv"):  # convolutions multiply in bfloat16, twice as fast where there is AMX
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
    output: Path = arguments.output
    made = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []

    def write(row: dict[str, Any]) -> None:
        made.append(row)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({key: value for key, value in row.items() if key != "right"}), flush=True)

    def rows(kind: str, **values: Any) -> list[dict[str, Any]]:
        wanted = {"kind": kind, "data": arguments.data, **values}
        return [row for row in made if all(row[key] == value for key, value in wanted.items())]

    scenes = None
    if arguments.data == "grocery":
        splits = grocery(arguments.images)
    else:
        splits = cars(arguments.images, arguments.labels, arguments.classes)
        scenes = pasted(splits["test"], arguments.grounds, arguments.pasted)
    bench = Bench(arguments.data, splits, arguments.work, arguments.epochs, arguments.shown)
    first, *others = arguments.seeds
    for rate, name in itertools.product(arguments.rates, arguments.networks):
        if not rows("training", network=name, seed=first, rate=rate):
            write(bench.train(name, first, rate))
    best = {
        name: max(rows("training", network=name, seed=first), key=lambda row: row["val perception"])["rate"]
        for name in arguments.networks
    }
    for seed, name in itertools.product(others, arguments.networks):
        if not rows("training", network=name, seed=seed):
            write(bench.train(name, seed, best[name]))
    for name in arguments.networks:
        if not rows("maps", network=name):
            files = [bench.file(name, seed, best[name]) for seed in arguments.seeds]
            for row in bench.maps(name, files, scenes):
                write(row)


if __name__ == "__main__":
    main()
