"""A method, a metric, a model and a dataset reader of another package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import xai_abn
from xai_abn.datasets import Dataset, Sample
from xai_abn.explainers import Explainer
from xai_abn.metrics import Metric
from xai_abn.models.forward_pass import ForwardPass


class Brightness(Explainer):
    """Brightness of the network input at every pixel."""

    class_specific = False
    reads_layer = False
    source = "the example plug-in"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the mean of the channels, (N, H, W)."""
        return forward_pass.inputs.mean(dim=1)


MEAN_VALUE = Metric(
    name="mean-value",
    protocol="example",
    function=lambda maps: maps.mean(dim=(1, 2)),
    higher_is_better=None,
    range=(float("-inf"), float("inf")),
    units="the map's own",
    source="the example plug-in",
    definition="Mean of the raw map.",
)


def two_colors() -> xai_abn.ModelAdapter:
    """Classifies images as red or blue."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None])
        network[3].weight.copy_(torch.eye(2))
        network[3].bias.zero_()
    preprocess = xai_abn.Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return xai_abn.wrap(network.eval(), labels=["red", "blue"], preprocess=preprocess, name="two-colors")


def read_colors(place: str) -> Dataset:
    """Images called COLOR-NUMBER.png; even numbers are for training."""
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for path in sorted(Path(place).glob("*.png")):
        color, _, number = path.stem.partition("-")
        splits["test" if int(number) % 2 else "train"].append(Sample(str(path), label=color))
    return Dataset("colors", splits, ("blue", "red"))
