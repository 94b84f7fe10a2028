"""A new attention mechanism is one registered class, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import xai_abn
from xai_abn.networks.abn import Mechanism, mechanisms
from xai_abn.networks.checkpoint import CheckpointConfig, save_checkpoint
from xai_abn.training.losses import classification_losses


class Gate(Mechanism):
    """``g * (w M + 1 - w)`` with a learned w for each channel, and maps that start low."""

    initial_map_bias = -2.0

    def __init__(self, channels):
        super().__init__(channels)
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, features, attention):
        return features * (self.weight * attention + 1 - self.weight)


@pytest.fixture
def gate():
    """The name of the registered mechanism."""
    mechanisms.register("gate")(Gate)
    yield "gate"
    del mechanisms["gate"]


@pytest.mark.parametrize(
    ("spec", "maps"), [("resnet20", "shared"), ("resnet20", "per-attribute"), ("timm:test_vit", "shared")]
)
def test_a_mechanism_is_one_class(gate, spec, maps, tmp_path):
    """A network with it is built, trains a step, and is saved and loaded."""
    size = 160 if "vit" in spec else 32
    torch.manual_seed(0)
    classifier = xai_abn.create_model(spec, 3, mechanism=None)
    network = xai_abn.abn_from(classifier, mechanism=gate, input_size=size, maps=maps)
    assert network.uses_map
    if maps == "shared":
        assert network.attention_branch.bn_att3.bias.item() == Gate.initial_map_bias

    inputs = torch.randn(4, 3, size, size)
    targets = torch.randint(2, (4, 3)).float() if maps == "per-attribute" else torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    classification_losses(network(inputs), targets)["loss"].backward()
    optimizer.step()
    (weight,) = [p for name, p in network.mechanism.named_parameters() if name.endswith("weight")]
    assert (weight != 0.5).any()

    path = tmp_path / "gate.safetensors"
    config = CheckpointConfig(spec, 3, network.description, xai_abn.Preprocess(size=size))
    save_checkpoint(path, network, config)
    loaded = xai_abn.load_model(path).module
    with torch.no_grad():
        for mine, theirs in zip(loaded(inputs), network.eval()(inputs), strict=True):
            torch.testing.assert_close(mine, theirs)
