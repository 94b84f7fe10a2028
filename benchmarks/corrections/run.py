"""Do a few corrections free a network from a shortcut? By network, loss, number of corrections and how they are chosen.

A network learns from images in which something beside the object tells the class. Then some of its training images are
marked where the object was put, and it is trained further on all images and these marks. Each cell of the grid is a
line of the results; cells that are there are left out, so a run goes on where it ended:

    python -m benchmarks.corrections.run --coco coco_multi --grounds church golf --work /tmp/work --output results.jsonl

All networks stand on the first five stages of EfficientNet-Lite0 as trained on ImageNet. These do not change, so what
they give for an image is computed once, and a cell takes seconds.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks._features import Features
from benchmarks._harness import machine, make_parser
from benchmarks.corrections.scenes import Scenes, dogs, pasted
from xai_abn import Corrections, abn_from, load_model, wrap
from xai_abn.app.suspicion import sorted_by_suspicion, suspicion_of
from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import Batch, Corrected
from xai_abn.datasets.sample import ArraySamples
from xai_abn.explainers.base import make_explainers, run_pass
from xai_abn.images.preprocess import Preprocess, normalizer
from xai_abn.metrics import polarity
from xai_abn.models.adapter import ModelAdapter
from xai_abn.seeding import seeded
from xai_abn.training import TrainingSettings, make_training_settings
from xai_abn.training.correction_losses import COPIES, MAP_LOSSES, WEIGHTS
from xai_abn.training.corrections import CorrectionObjective, read_corrections
from xai_abn.training.loop import TrainingLoop
from xai_abn.training.supervised import SupervisedObjective

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PREPROCESS = Preprocess(96, 1.0, "bilinear", MEAN, STD)
#: Data sets: shortcut, and share of the training images that show it.
DATA = {
    "decoy-95": ("decoy", 0.95),
    "ground-95": ("ground", 0.95),
    "decoy-100": ("decoy", 1.0),
    "ground-100": ("ground", 1.0),
}
#: Images with boxes, without a shortcut of ours.
DOGS = "dogs"
#: Maps that a loss reads, by network. CAM of the plain one is Grad-CAM, as its head is a mean and a linear layer.
MAPS = {"plain": ("grad-cam",), "abn": ("class-map", "attention-map", "grad-cam")}
#: Ways of training: network, loss, and the map that it reads; and those that are tried everywhere.
WAYS = [
    (network, loss, on)
    for network, maps in MAPS.items()
    for loss, on in [
        ("none", None),
        *((name, None) for name in COPIES),
        ("rrr", None),
        *itertools.product(MAP_LOSSES, maps),
    ]
]
FEW = [("plain", "none", None), ("plain", "kl", "grad-cam"), ("abn", "none", None), ("abn", "kl", "attention-map")]
#: Other orders than those of the queue, with few corrections; see :meth:`Bench.order`.
ORDERED = list(itertools.product((10, 25), ("wrong", "outside", "diverse", "misled")))
SIZES = (1000, 600)
#: Images that the corrected ones are chosen from.
POOL = 400
#: Channels of the two convolutions.
WIDTH = 32
#: Settings of the first and of the further training.
COMMON = {"batch_size": 50, "maps_every": 0, "schedule": "cosine", "validation": 0.0, "weight_decay": 1e-3}
FIRST = {**COMMON, "epochs": 8, "lr": 0.05}
FURTHER = {**COMMON, "epochs": 4, "lr": 0.05}
#: Corrected images in a step, beside the ordinary ones.
BATCH = 25


@dataclass(frozen=True)
class Cell:
    """One training. ``loss`` is None for the untouched network, and ``"none"`` for the control without masks."""

    data: str
    seed: int
    network: str
    loss: str | None = None
    on: str | None = None
    number: int = 0
    choice: str | None = None


def cells(seeds: Sequence[int]) -> list[Cell]:
    """Return the grid, the most telling first: every way with 50 corrections at random, then the ways of ``FEW``."""
    first, others = (50, "random"), [(25, "queue"), (50, "queue"), *itertools.product((10, 200), ("random", "queue"))]
    decoy, *more = DATA
    stages = [([decoy], [first], WAYS), (more[:1], [first], FEW), ([decoy], others, FEW), (more, [first], FEW)]
    stages += [(more, [first], WAYS), ([DOGS], [first], WAYS), ([decoy], ORDERED, FEW)]
    stages += [([DOGS], [(200, "random")], WAYS), (list(DATA), others, FEW), (list(DATA), others, WAYS)]
    found: dict[Cell, None] = {}
    for names, numbers, ways in stages:
        for data, (number, choice), seed in itertools.product(names, numbers, seeds):
            for network, loss, on in ways:
                found |= {Cell(data, seed, network): None, Cell(data, seed, network, loss, on, number, choice): None}
    return list(found)


class Front(nn.Module):
    """The first stages; they take images, or what they gave for them, (N, 112, 6, 6).

    Args:
        stages: how many.
        trained: whether they are trained as well; otherwise they never change.
    """

    def __init__(self, stages: int = 5, trained: bool = False) -> None:
        super().__init__()
        self.trained = trained
        network: Any = load_model("lite0").module
        layers = (network.conv_stem, network.bn1, *network.blocks[:stages])
        self.layers = nn.Sequential(*layers).requires_grad_(trained).eval()
        self.channels = int(self(torch.zeros(1, 3, PREPROCESS.size, PREPROCESS.size)).shape[1])

    def train(self, mode: bool = True) -> Front:
        """Stay in evaluation mode."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return x if x.shape[1] != 3 else self.layers(x)


class Network(nn.Module):
    """Two convolutions on the features, global average pooling and a linear layer."""

    def __init__(self, front: Front, classes: int) -> None:
        super().__init__()
        self.front = front
        self.first = nn.Sequential(nn.Conv2d(front.channels, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.pool(self.second(self.first(self.front(x)))).flatten(1))
        return logits


class Marked:
    """The corrected images of a folder, and what the front gives for them and for copies with noise."""

    def __init__(self, folder: Path, front: Front, labels: Sequence[str]) -> None:
        model = wrap(Network(front, len(labels)), labels=labels, preprocess=PREPROCESS, name="small")
        self.images, self.front, self.labels = read_corrections(str(folder), model, PREPROCESS), front, labels
        self.features = features(front, self.images.pixels[:, :3])
        self._copies: dict[str, list[Tensor]] = {}

    def copies(self, loss: str) -> list[Tensor]:
        """Return the features of four rounds of copies with noise or another background where not to look."""
        if loss not in self._copies:
            pixels, masks = self.images.pixels.split([3, 2], dim=1)
            generator = torch.Generator().manual_seed(0)
            made = [COPIES[loss](pixels, masks, generator) for _ in range(4)]
            self._copies[loss] = [features(self.front, part) for part in made]
        return self._copies[loss]


class FeatureCorrections(CorrectionObjective):
    """Corrections whose images are features; ``rrr`` takes gradients by these."""

    def __init__(self, settings: TrainingSettings, network: nn.Module, marked: Marked) -> None:
        self.settings, self.ranks, self.images, self.marked = settings, 1, marked.images, marked
        self.model = wrap(network, labels=marked.labels, preprocess=PREPROCESS, name="small")
        self._explainer = self._make_explainer() if settings.correction_loss in MAP_LOSSES else None
        usual = WEIGHTS.get(settings.correction_loss, 0.0)
        self.weight = usual if settings.correction_weight is None else settings.correction_weight

    def join(self, batch: Batch, step: int, rank: int) -> Batch:
        """Do what is done with images, without shifts and flips."""
        rows = self._drawn(step)
        targets, shown = self.images.targets[rows], [self.marked.features[rows]]
        if self.settings.correction_loss in COPIES:
            copies = self.marked.copies(self.settings.correction_loss)
            shown.append(copies[step % len(copies)][rows])
        corrected = Corrected(shown[0], targets, self.images.pixels[rows, 3:])
        return Batch(
            torch.cat([batch.images, *shown]), torch.cat([batch.targets, *[targets] * len(shown)]), 0, corrected
        )


def features(front: Front, pixels: Tensor) -> Tensor:
    """Return what the front gives for pixels (N, 3, H, W) uint8; for one that is trained, its input."""
    normalize = normalizer(MEAN, STD, torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([normalize(part) if front.trained else front(normalize(part)) for part in pixels.split(50)])


class Bench:
    """A data set: networks trained on it, images to correct, and what is measured.

    Args:
        name: of the data set.
        scenes: to train on, and to test.
        work: folder for networks and corrections.
        fewer: settings in place of the usual ones, for a try.
        front: default: five stages that do not change.
    """

    def __init__(
        self,
        name: str,
        scenes: tuple[Scenes, Scenes],
        work: Path,
        fewer: dict[str, Any],
        front: Front | None = None,
    ) -> None:
        self.name, self.work, self.fewer = name, work / name, fewer
        self.work.mkdir(parents=True, exist_ok=True)
        self.train, self.test = scenes
        self.front = front or Front()
        pixels = (torch.from_numpy(part.pixels).permute(0, 3, 1, 2) for part in scenes)
        self.seen, self.inputs = (features(self.front, part) for part in pixels)
        split = Features(self.seen, torch.from_numpy(self.train.labels))
        self.labels = self.train.classes
        self.data = TrainingData(name, self.labels, PREPROCESS, split)
        self.accelerator, self.marked = Accelerator(cpu=True), dict[Path, Marked]()

    def fit(
        self, network: nn.Module, seed: int, settings: dict[str, Any], marks: dict[str, Any] | None = None
    ) -> nn.Module:
        """Train a network, with corrections if there are marks."""
        usual = make_training_settings({"data": self.name, "seed": seed}, settings, self.fewer)
        with seeded(seed):
            objective = SupervisedObjective(usual, self.data, network.train(), self.accelerator, self.work, "small")
            if marks is not None:
                folder = Path(marks["corrections"])
                if folder not in self.marked:
                    self.marked[folder] = Marked(folder, self.front, self.labels)
                objective.corrections = FeatureCorrections(usual.replace(**marks), network, self.marked[folder])
            TrainingLoop(objective, self.accelerator).run()
        return network.eval()

    def start(self, name: str, seed: int) -> nn.Module:
        """Return the network after the first training, which is kept in the work folder."""
        with seeded(seed):
            network: nn.Module = Network(self.front, len(self.labels))
            if name == "abn":
                network = abn_from(network, input_size=PREPROCESS.size, layer="first", start="random")
        file = self.work / f"{name}-{seed}.pt"
        if file.exists():
            network.load_state_dict(torch.load(file))
            return network.eval()
        network = self.fit(network, seed, FIRST)
        torch.save(network.state_dict(), file)
        return network

    def model(self, network: nn.Module) -> ModelAdapter:
        """Return a network with its labels."""
        return wrap(network, labels=self.labels, preprocess=PREPROCESS, name="small")

    @cached_property
    def samples(self) -> ArraySamples:
        """The training images."""
        return ArraySamples("train", self.train.pixels, [self.labels[label] for label in self.train.labels])

    def corrections(self, network: str, seed: int, number: int, choice: str) -> Path:
        """Return a folder with corrections of training images, marked where the object is."""
        folder = self.work / f"marks-{'any' if choice == 'random' else network}-{seed}-{choice}-{number}"
        if not folder.exists():
            order = self.order(network, seed, choice)
            draft = Corrections(folder.with_name(f"draft-{folder.name}"))
            for index in order[:number]:
                sample = self.samples[index]
                draft.add(sample.load(), self.train.objects[index], str(sample.label))
            draft.folder.rename(folder)
        return folder

    def order(self, name: str, seed: int, choice: str) -> list[int]:
        """Return the images that may be corrected, in an order.

        ``"random"``; ``"queue"``, that of the app; ``"wrong"``, the least probability of the right class first;
        ``"outside"``, most of Grad-CAM outside the object first; ``"diverse"``, each as far as can be from those before
        it, by the mean of its features (k-center, Sener and Savarese, ICLR 2018); ``"misled"``, those whose shortcut
        misleads first, which nobody knows beforehand.
        """
        pool = self.pool(seed)
        if choice == "random":
            return pool
        if choice == "queue":
            return self.queue(name, seed)
        labels, inputs = torch.from_numpy(self.train.labels[pool]), self.seen[pool]
        model = self.model(self.start(name, seed))
        if choice == "wrong":
            with torch.no_grad():
                logits = model.logits_of(model.module(inputs))
            scores = -logits.softmax(dim=1)[torch.arange(len(pool)), labels]
        elif choice == "outside":
            objects = torch.from_numpy(self.train.objects[pool])
            large = enlarged(model, inputs, labels, objects.shape[1:])
            scores = 1 - ((large * objects).sum(dim=(1, 2)) / large.sum(dim=(1, 2))).nan_to_num(0.0)
        elif choice == "misled":
            scores = torch.from_numpy(self.train.kinds[pool] == 1).float()
        else:
            means = inputs.mean(dim=(2, 3))
            chosen = [0]
            nearest = (means - means[0]).norm(dim=1)
            while len(chosen) < len(pool):
                chosen.append(int(nearest.argmax()))
                nearest = nearest.minimum((means - means[chosen[-1]]).norm(dim=1))
                nearest[chosen] = -1
            return [pool[place] for place in chosen]
        return [pool[place] for place in scores.argsort(descending=True, stable=True).tolist()]

    def pool(self, seed: int) -> list[int]:
        """Return the images that may be corrected, at random."""
        return [int(index) for index in np.random.default_rng(seed).permutation(len(self.samples))[:POOL]]

    def queue(self, name: str, seed: int) -> list[int]:
        """Return them in the order of the app's queue; those with a map like an earlier one's come last."""
        file = self.work / f"queue-{name}-{seed}.json"
        if not file.exists():
            model, found, indices = self.model(self.start(name, seed)), [], {}
            for index in self.pool(seed):
                sample = self.samples[index]
                prepared = replace(PREPROCESS(sample.load()), tensor=self.seen[index])
                found.append(suspicion_of(model, prepared, sample))
                indices[sample.source] = index
            queue = sorted(sorted_by_suspicion(found), key=lambda one: one.like is not None)
            file.write_text(json.dumps([indices[one.name] for one in queue]))
        return list(json.loads(file.read_text()))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train as a cell says, and return what is measured on the test images."""
        begun, started = self.start(cell.network, cell.seed), time.process_time()
        network = copy.deepcopy(begun)
        if cell.loss is not None:
            folder = self.corrections(cell.network, cell.seed, cell.number, str(cell.choice))
            marks = {"corrections": str(folder), "correction_batch": BATCH}
            if cell.loss == "none":
                marks |= {"correction_loss": "energy", "correction_weight": 0.0}
            else:
                marks |= {"correction_loss": cell.loss, **({"on": cell.on} if cell.on else {})}
            self.fit(network, cell.seed, FURTHER, marks)
        seconds = time.process_time() - started
        return {**asdict(cell), **self.measured(network, begun), "seconds": round(seconds, 1)}

    def measured(self, network: nn.Module, begun: nn.Module) -> dict[str, Any]:
        """Return accuracies by kind and class, what changed, and what the maps are like where the shortcut misleads."""
        test, model = self.test, self.model(network)
        labels, kinds = torch.from_numpy(test.labels), torch.from_numpy(test.kinds)
        with torch.no_grad():
            answers, before = (self.model(net).logits_of(net(self.inputs)).argmax(dim=1) for net in (network, begun))
        right, own = (answers == labels).float(), kinds == 0
        misled = kinds == kinds.clamp_max(1).max()
        groups = [
            [float(right[(kinds == k) & (labels == c)].mean()) for c in range(len(self.labels))] for k in kinds.unique()
        ]
        found = {
            "groups": [[round(value, 4) for value in kind] for kind in groups],
            "worst": min(map(min, groups)),
            "mean": float(np.mean(groups)),
            "own": float(right[own].mean()),
            "changed": float((answers != before)[own].float().mean()),
            **self._maps(model, self.inputs[misled], labels[misled], torch.from_numpy(test.objects)[misled]),
        }
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}

    def _maps(self, model: ModelAdapter, inputs: Tensor, labels: Tensor, objects: Tensor) -> dict[str, float]:
        """Return energy, IoU and polarity of the maps of the true class; polarity removes features, not pixels."""
        methods = ("grad-cam", "abn", "abn-class") if model.is_abn else ("grad-cam",)
        explainers = make_explainers(model, methods)
        shared = run_pass(model, inputs, explainers)
        found: dict[str, float] = {}
        for method, explainer in zip(methods, explainers, strict=True):
            maps = explainer.explain(shared, labels).float()
            large = F.interpolate(maps[:, None], objects.shape[1:], mode="bilinear")[:, 0].clamp_min(0)
            lit = large > 0.5 * large.amax(dim=(1, 2), keepdim=True)
            signs = polarity(lambda x: model.logits_of(model.module(x)), inputs, maps, labels)
            found |= {
                f"polarity {method}": float(signs.nanmean()),
                f"energy {method}": float(((large * objects).sum(dim=(1, 2)) / large.sum(dim=(1, 2))).nanmean()),
                f"IoU {method}": float(((lit & objects).sum(dim=(1, 2)) / (lit | objects).sum(dim=(1, 2))).mean()),
            }
        return found


def enlarged(model: ModelAdapter, inputs: Tensor, targets: Tensor, size: Sequence[int]) -> Tensor:
    """Return the positive part of Grad-CAM at a size."""
    (explainer,) = make_explainers(model, "grad-cam")
    maps = explainer.explain(run_pass(model, inputs, [explainer]), targets).float()
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear")[:, 0].clamp_min(0)


def known(output: Path) -> set[Cell]:
    """Return the cells that the results hold."""
    names = {field.name for field in fields(Cell)}
    lines = output.read_text().splitlines() if output.exists() else []
    return {Cell(**{name: value for name, value in json.loads(line).items() if name in names}) for line in lines}


def main() -> None:
    """Compute the cells that are missing."""
    parser = make_parser(__doc__)
    parser.add_argument("--coco", type=Path, required=True, help="folder with images/ and instances.json")
    parser.add_argument("--grounds", type=Path, nargs=2, required=True, help="two folders of images")
    parser.add_argument(
        "--dogs", type=Path, nargs=2, help="folder of imagewoof2-320, and of the boxes of Stanford Dogs"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and corrections")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES, help="number of training and test images")
    parser.add_argument("--cells", type=int, help="compute at most so many")
    parser.add_argument("--only", default="", help="compute only cells whose text contains this")
    parser.add_argument("--epochs", type=int, help="fewer, for a try")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    done = known(arguments.output)
    wanted = [cell for cell in cells(arguments.seeds) if cell.data != DOGS or arguments.dogs]
    missing = [cell for cell in wanted if cell not in done and arguments.only in str(cell)]
    benches: dict[str, Bench] = {}
    for cell in missing[: arguments.cells]:
        if cell.data not in benches:
            scenes = (
                dogs(*arguments.dogs)
                if cell.data == DOGS
                else pasted(*DATA[cell.data], arguments.coco, arguments.grounds, tuple(arguments.sizes))
            )
            fewer = {} if arguments.epochs is None else {"epochs": arguments.epochs}
            benches[cell.data] = Bench(cell.data, scenes, arguments.work, fewer)
        row = benches[cell.data].measure(cell)
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
