"""Weights as people have them: with prefixes, inside checkpoints, of another number of classes."""

import argparse
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from typer.testing import CliRunner

import xai_abn
from xai_abn.cli.main import app
from xai_abn.errors import CheckpointError, InvalidInputError
from xai_abn.models.metadata import as_labels
from xai_abn.models.zoo import read_labels
from xai_abn.networks.weights import WeightsWarning


def state(classes=3, seed=0, library="timm"):
    torch.manual_seed(seed)
    if library == "timm":
        return timm.create_model("resnet18", num_classes=classes).state_dict()
    return torchvision.models.resnet18(num_classes=classes).state_dict()


def prefixed(prefix, tensors):
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in tensors.items())


def load(tmp_path, content, **options):
    torch.save(content, tmp_path / "w.pth")
    return xai_abn.load_model("timm:resnet18", weights=tmp_path / "w.pth", **options)


def assert_loaded(model, expected):
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_number_of_classes_is_read_from_the_head(tmp_path, classes, library):
    """Nothing else has to be said."""
    expected = state(classes, library=library)
    torch.save(expected, tmp_path / "w.pth")
    model = xai_abn.load_model(f"{library}:resnet18", weights=tmp_path / "w.pth")
    assert model.number_of_classes == classes
    assert (model.labels is None) == (classes != 1000)
    assert_loaded(model, expected)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "net.model.", "encoder."]
)
def test_prefixes_are_removed(tmp_path, prefix):
    """Those of DataParallel, torch.compile, Lightning, one inside the other, and any other that all names share."""
    model = load(tmp_path, prefixed(prefix, state()))
    assert_loaded(model, state())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema", "my_weights"])
def test_weights_inside_a_checkpoint_are_found(tmp_path, key):
    """Under the names people use, or the only one that holds tensors."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    model = load(tmp_path, {key: state(), "epoch": 3, "optimizer": optimizer})
    assert_loaded(model, state())


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict"])
def test_averaged_weights_come_first(tmp_path, key):
    """As in timm's own loader, and a warning says so."""
    averaged = state(seed=1)
    with pytest.warns(WeightsWarning, match=key):
        model = load(tmp_path, {"state_dict": state(), key: prefixed("module.", averaged)})
    assert_loaded(model, averaged)


def test_numbers_and_arguments_beside_the_weights_do_no_harm(tmp_path):
    """As training scripts write them."""
    model = load(
        tmp_path,
        {
            "state_dict": state(),
            "args": argparse.Namespace(lr=0.1, names=["a"]),
            "config": types.SimpleNamespace(depth=3),
            "best_acc": np.float64(0.5),
            "metric": np.float32(0.5),
            "epoch": np.int64(3),
        },
    )
    assert_loaded(model, state())


def test_lightning_checkpoints_are_read(tmp_path):
    """With the weights of a loss beside those of the network."""
    tensors = prefixed("model.", state()) | {"criterion.weight": torch.ones(3)}
    content = {"state_dict": tensors, "pytorch-lightning_version": "2.0", "hyper_parameters": {"lr": 0.1}, "epoch": 1}
    with pytest.warns(WeightsWarning, match=r"criterion\.weight"):
        assert_loaded(load(tmp_path, content), state())


class Own:
    """An object that nobody knows."""


@pytest.mark.parametrize(
    "content", [{"state_dict": {}, "config": Own()}, timm.create_model("resnet18"), {"state_dict": state(), "x": Own()}]
)
def test_objects_are_named_and_not_executed(tmp_path, content):
    """With the line that makes a plain file of it."""
    with pytest.raises(CheckpointError, match=r"holds .*(Own|timm).*weights_only=False.*torch.save"):
        load(tmp_path, content)


def test_several_sets_of_weights_are_not_guessed_between(tmp_path):
    """The keys are named."""
    with pytest.raises(CheckpointError, match=r"student, teacher.*torch.save"):
        load(tmp_path, {"student": state(), "teacher": state(seed=1)})


@pytest.mark.parametrize(
    "content",
    [{0: torch.ones(2)}, [torch.ones(2)], {}, {"state_dict": {}}, {"state_dict": {1: torch.ones(1)}}, 5, "text"],
)
def test_other_contents_are_refused(tmp_path, content):
    """Whatever they are."""
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        load(tmp_path, content)


def test_weights_of_another_network_are_refused(tmp_path):
    """Another number of classes does not excuse another shape."""
    wrong = state() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    with pytest.raises(CheckpointError, match="conv1"):
        load(tmp_path, wrong)


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    """What is said has to be true."""
    with pytest.raises(InvalidInputError, match="3 classes, not 5"):
        load(tmp_path, state(3), classes=5)
    with pytest.raises(InvalidInputError, match="classes"):
        xai_abn.load_model("lite0", classes=5)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_fine_tuned_weights_are_explained_from_the_command_line(tmp_path, library):
    """With labels, a size and a normalization of their own."""
    torch.save({"state_dict": prefixed("module.", state(library=library))}, tmp_path / "w.pth.tar")
    (tmp_path / "labels.txt").write_text("ant\nbee\nwasp\n\n")
    arguments = ["explain", "example:cat", "--model", f"{library}:resnet18", "--weights", str(tmp_path / "w.pth.tar")]
    arguments += ["--labels", str(tmp_path / "labels.txt"), "--size", "64", "--mean", "0.5,0.5,0.5"]
    arguments += ["--target", "wasp", "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert '"label": "wasp"' in result.output


@pytest.mark.parametrize("content", ["ant\nbee\n", None])
def test_labels_have_to_fit(tmp_path, content):
    """Two for three classes, and a file that is not there."""
    torch.save(state(), tmp_path / "w.pth")
    if content:
        (tmp_path / "labels.txt").write_text(content)
    with pytest.raises(InvalidInputError, match="labels"):
        xai_abn.load_model("timm:resnet18", weights=tmp_path / "w.pth", labels=tmp_path / "labels.txt")


def test_a_file_of_weights_as_model_says_what_is_missing(tmp_path):
    """Its network."""
    torch.save(state(), tmp_path / "ten.pth")
    with pytest.raises(CheckpointError, match=r"timm:NAME.*weights .*ten\.pth"):
        xai_abn.load_model(str(tmp_path / "ten.pth"))
    save_file(state(), tmp_path / "ten.safetensors")
    with pytest.raises(CheckpointError, match=r"timm:NAME.*ten\.safetensors"):
        xai_abn.load_model(str(tmp_path / "ten.safetensors"))


def test_the_folder_of_a_run_is_a_model(tmp_path):
    """Its best checkpoint, under the name of the folder."""
    source = xai_abn.load_model("abn-cifar100")
    run = tmp_path / "my-run"
    run.mkdir()
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        xai_abn.load_model(run)
    shipped = Path(xai_abn.__file__).parent / "weights" / "abn_cifar100.safetensors"
    (run / "best.safetensors").write_bytes(shipped.read_bytes())
    model = xai_abn.load_model(run)
    assert model.name == "my-run"
    assert_loaded(model, source.module.state_dict())


ELEVEN = "\n".join(f"{i},class" for i in (0, 10, *range(1, 10)))  # sorted as text


@pytest.mark.parametrize("lines", ["1: dog\n0: cat", "2 dog\n1 cat\n3 owl", ELEVEN])
def test_lines_numbered_in_another_order_are_refused(tmp_path, lines):
    """Else each class would have the name of another."""
    (tmp_path / "labels.txt").write_text(lines)
    with pytest.raises(InvalidInputError, match=r"numbered, but line \d has the number .*; sort them"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize("lines", ["0: cat\n1: dog", "3 spots\n1 stripe", "7\n0\n1", "cat\ndog"])
def test_other_lines_are_labels_as_they_are(tmp_path, lines):
    """Also with numbers that are in order, or are none of lines."""
    (tmp_path / "labels.txt").write_text(lines)
    assert read_labels(tmp_path / "labels.txt") == tuple(lines.splitlines())


@pytest.mark.parametrize("labels", [{"cat", "dog", "owl"}, frozenset(("cat", "dog"))])
def test_labels_without_an_order_are_refused(labels):
    """A set has another order in every process."""
    with pytest.raises(InvalidInputError, match="labels must be a list"):
        as_labels(labels)
    assert as_labels(dict.fromkeys(("b", "a")).keys()) == ("b", "a")
