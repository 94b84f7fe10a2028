"""Checkpoints: complete, plain, and refused when anything is wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import xai_abn
from xai_abn.errors import (
    CheckpointError,
    InvalidInputError,
    OutputError,
    UnknownNameError,
    UnsupportedModelError,
    WeightsError,
)
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.abn import ABNDescription
from xai_abn.networks.checkpoint import CheckpointConfig, read_checkpoint, read_tensors, save_checkpoint
from xai_abn.training.state import Position, State, save_state

CONFIG = CheckpointConfig(
    backbone="torchvision:resnet18",
    classes=4,
    abn=ABNDescription(
        "layer3",
        "layer4",
        256,
        512,
        {
            "layer4.0.conv1": {"stride": [1, 1]},
            "layer4.0.conv2": {"dilation": [2, 2], "padding": [2, 2]},
            "layer4.0.downsample.0": {"stride": [1, 1]},
            "layer4.1.conv1": {"dilation": [2, 2], "padding": [2, 2]},
            "layer4.1.conv2": {"dilation": [2, 2], "padding": [2, 2]},
        },
        mechanism="concatenation",
    ),
    preprocess=Preprocess(size=64, crop="squash"),
    labels=["a", "b", "c", "d"],
    training={"seed": 7},
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return xai_abn.abn_from(torchvision.models.resnet18(num_classes=4), mechanism="concatenation")


def test_a_checkpoint_rebuilds_the_model_by_itself(network, tmp_path, inputs):
    """Architecture, labels, preprocessing and training come back; outputs are equal."""
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, network, CONFIG)
    model = xai_abn.load_model(path)
    assert model.labels == ("a", "b", "c", "d")
    assert model.preprocess == Preprocess(size=64, crop="squash")
    assert read_checkpoint(path)[0] == CONFIG
    with torch.no_grad():
        for mine, theirs in zip(model.module(inputs), network(inputs), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_checkpoint_has_the_rights_of_other_files(network, tmp_path):
    """Whoever may read what is written beside it may read a checkpoint."""
    beside = tmp_path / "beside.txt"
    beside.touch()
    save_checkpoint(tmp_path / "mine.safetensors", network, CONFIG)
    assert (tmp_path / "mine.safetensors").stat().st_mode == beside.stat().st_mode


def test_half_precision_halves_the_file(network, tmp_path, inputs):
    """fp16 weights give nearly the same scores from half the bytes, and load as float32."""
    save_checkpoint(tmp_path / "full.safetensors", network, CONFIG)
    save_checkpoint(tmp_path / "half.safetensors", network, CONFIG, half=True)
    sizes = [(tmp_path / n).stat().st_size for n in ("full.safetensors", "half.safetensors")]
    assert 0.48 < sizes[1] / sizes[0] < 0.53
    half = xai_abn.load_model(tmp_path / "half.safetensors").module
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(half(inputs).logits, network(inputs).logits, rtol=0.05, atol=0.05)


def test_descriptions_of_something_unknown_are_refused(network, tmp_path):
    """An unknown entry of the ABN, layer or mechanism, a format version that is no number: one error each."""
    path = tmp_path / "mine.safetensors"
    config = dataclasses.asdict(CONFIG)
    for change, message in (
        ({"heads": 3}, "description is damaged .*heads"),
        ({"mechanism": "sum"}, "unknown mechanism 'sum'"),
        ({"layer": "layer9"}, "layer9"),
    ):
        changed = {**config, "abn": {**config["abn"], **change}}
        header = {"format": "xai-abn-checkpoint", "format_version": "2", "config": json.dumps(changed)}
        save_file({n: t.clone() for n, t in network.state_dict().items()}, path, metadata=header)
        with pytest.raises(CheckpointError, match=message):
            xai_abn.load_model(path)
    save_checkpoint(path, network, CONFIG)
    path.write_bytes(path.read_bytes().replace(b'"format_version":"4"', b'"format_version":"x"'))
    with pytest.raises(CheckpointError, match="format version 'x'"):
        xai_abn.load_model(path)


def test_damaged_and_foreign_checkpoints_are_refused(network, tmp_path):
    """Cut short, newer, of another kind, with a damaged description or other weights: one clear error each."""
    path = tmp_path / "good.safetensors"
    save_checkpoint(path, network, CONFIG)
    state = {n: t.clone() for n, t in network.state_dict().items()}
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    header = {"format": "xai-abn-checkpoint", "format_version": "2", "config": json.dumps(dataclasses.asdict(CONFIG))}
    save_file(state, tmp_path / "bare.safetensors")
    save_file(state, tmp_path / "newer.safetensors", metadata={**header, "format_version": "99"})
    save_file(state, tmp_path / "odd.safetensors", metadata={**header, "config": "{}"})
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=header)
    unknown = json.dumps({**dataclasses.asdict(CONFIG), "backbone": "timm:nothing"})
    save_file(state, tmp_path / "unknown.safetensors", metadata={**header, "config": unknown})
    messages = {
        "cut": "not a readable",
        "bare": "without a description",
        "newer": "newer xai-abn",
        "odd": "description is damaged",
        "other": "do not fit",
        "unknown": "unknown timm model 'nothing'",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            xai_abn.load_model(tmp_path / f"{name}.safetensors")


def test_an_unwritable_path_leaves_nothing_behind(network, tmp_path):
    """A checkpoint that cannot be written is an error, without a half-written file."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "taken" / "x.safetensors", network, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_files_load_into_library_models(tmp_path, suffix, inputs):
    """weights= takes a bare state dict, with or without "module." prefixes."""
    torch.manual_seed(1)
    module = torchvision.models.resnet18().eval()
    state = {f"module.{k}": v for k, v in module.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    loaded = xai_abn.load_model("torchvision:resnet18", weights=path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(inputs), module(inputs))


class Bomb:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_never_executed(tmp_path):
    """A weights file that holds more than tensors is refused, and its code does not run."""
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "pwned")}))
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        xai_abn.load_model("torchvision:resnet18", weights=path)
    torch.save({"w": Bomb(tmp_path / "pwned")}, path)
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        xai_abn.load_model("torchvision:resnet18", weights=path)
    assert not (tmp_path / "pwned").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    """Weights of another architecture, and a missing file, name what is wrong."""
    path = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointError, match="do not fit ResNet"):
        xai_abn.load_model("torchvision:resnet18", weights=path)
    with pytest.raises(CheckpointError, match="no such weights file"):
        xai_abn.load_model("torchvision:resnet18", weights=tmp_path / "gone.pt")


def test_models_with_weights_of_their_own_take_none(tmp_path):
    """weights= for a shipped model is a mistake."""
    with pytest.raises(InvalidInputError, match="its own weights"):
        xai_abn.load_model("lite0", weights="random")
    with pytest.raises(InvalidInputError, match=r"own\.safetensors holds its own weights"):
        xai_abn.load_model(tmp_path / "own.safetensors", weights="random")


def test_the_state_of_a_run_is_no_model(tmp_path):
    """It says what it is."""
    save_state(tmp_path / "state.safetensors", State("train", {"network": {"a": torch.zeros(1)}}, Position(), {}, {}))
    with pytest.raises(CheckpointError, match="is a training state, not a model"):
        xai_abn.load_model(tmp_path / "state.safetensors")


def test_a_map_that_is_not_used_is_not_shown_as_the_answers(tmp_path, inputs):
    """Of the control without a map, ABN's map was never trained: it is refused, and not the default."""
    torch.manual_seed(0)
    made = xai_abn.abn_from(torchvision.models.resnet18(num_classes=4), mechanism="auxiliary")
    assert not made.uses_map
    model = xai_abn.wrap(made, preprocess=Preprocess(size=64))
    with pytest.raises(UnsupportedModelError, match="is not used and was not trained"):
        xai_abn.explain(model, inputs[0], "abn")
    assert list(xai_abn.explain(model, inputs[0])[0]) == ["grad-cam"]
    assert "abn-class" in xai_abn.explain(model, inputs[0], "abn-class")[0]


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(monkeypatch):
    """Without a network, the error offers a file or random weights."""
    import timm

    def offline(*_, pretrained, **__):
        if pretrained:
            raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"no network.*weights=FILE.*random"):
        xai_abn.load_model("timm:resnet18")


def test_unknown_models_name_their_neighbours():
    """Misspelt names of each library are answered with the nearest."""
    for spec, nearest in [("lite", "lite0"), ("timm:resnet5o", "resnet50"), ("torchvision:resnet51", "resnet50")]:
        with pytest.raises(UnknownNameError, match=nearest):
            xai_abn.load_model(spec)


def test_the_small_abn_ships():
    """Under 2 MB, it takes any image down to 32 pixels and sees the rocket; its maps have the features' resolution."""
    path = Path(xai_abn.__file__).parent / "weights" / "abn_cifar100.safetensors"
    assert path.stat().st_size < 2e6
    assert path.with_suffix(".md").is_file()
    model = xai_abn.load_model("abn-cifar100")
    assert (len(model.labels), model.preprocess.size, model.is_abn) == (100, 32, True)
    found = xai_abn.explain(model, "example:rocket", ["abn", "abn-class"])[0]
    assert found["abn"].predicted_label == "rocket"
    assert found["abn"].map.shape == found["abn-class"].map.shape == (16, 16)


def test_lite0_loads_offline_with_labels():
    """The offline classifier has 1,000 labels and EfficientNet-Lite's preprocessing."""
    model = xai_abn.load_model("lite0")
    assert model.labels[281] == "tabby"
    assert model.preprocess == Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_a_checkpoint_that_does_not_say_its_format_is_refused(tmp_path):
    """The header has everything else."""
    shipped = Path(xai_abn.__file__).parent / "weights" / "abn_cifar100.safetensors"
    header, state = read_tensors(shipped)
    del header["format_version"]
    save_file(state, tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match="format version 'missing'"):
        xai_abn.load_model(tmp_path / "x.safetensors")
