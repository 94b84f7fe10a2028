"""Weights files that people bring: every wrapping is read, what was taken is said, and nothing is executed."""

from __future__ import annotations

import argparse
import collections
import pathlib
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support import call, make_images
from torch import nn
from torch.optim.swa_utils import AveragedModel

import xai_abn
from xai_abn.errors import CheckpointError, InvalidInputError, UnknownNameError
from xai_abn.networks.released_code import convert_file
from xai_abn.networks.weights import WeightsWarning, WithoutRandomWeights, on_meta, read_weights

LABELS = ("cat", "dog", "kite")


def small(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.shufflenet_v2_x0_5(num_classes=classes).eval()


@pytest.fixture(scope="module")
def network():
    return small()


@pytest.fixture(scope="module")
def other():
    return small(1).state_dict()


def loaded(path, **more):
    return xai_abn.load_model("torchvision:shufflenet_v2_x0_5", weights=path, **more)


def same(model, network):
    own, given = model.module.state_dict(), network.state_dict()
    return own.keys() == given.keys() and all(torch.equal(own[name], given[name]) for name in own)


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def inserted(state):
    """Names of a network whose stages were compiled and sharded one by one."""
    return {
        name.replace("stage2.", "stage2._orig_mod.").replace("branch2.", "branch2._fsdp_wrapped_module."): value
        for name, value in state.items()
    }


WRAPPED = {
    "bare": lambda s: s,
    "DataParallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: {"model": prefixed(s, "_orig_mod.module.")},
    "both, the other way": lambda s: prefixed(s, "module._orig_mod."),
    "inside": inserted,
    "repeated": lambda s: {"model_state_dict": prefixed(s, "module.module.")},
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
    "backbone": lambda s: {"state_dict": prefixed(s, "net.backbone.")},
    "nested": lambda s: {"model": {"state_dict": {"net": s}}},
    "net": lambda s: {"net": s, "acc": 0.9, "epoch": 3},
    "one prefix of any name": lambda s: prefixed(s, "encoder."),
    "the average alone": lambda s: {"ema": s, "epoch": 3},
    "any key": lambda s: {"my_classifier": s, "best_acc1": torch.tensor(0.9), "optimizer": {"state": {0: s}}},
    "twice": lambda s: {"state_dict": s, "model": dict(s)},
    "without counters": lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
    "half": lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_weights_load_silently(kind, network, tmp_path, inputs):
    """Whatever keys lead to the state dict and whatever prefix its names have, it is the same network."""
    torch.save(WRAPPED[kind](network.state_dict()), tmp_path / "mine.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = loaded(tmp_path / "mine.pth")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if kind == "half" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(dict(model.module.named_parameters()), dict(network.named_parameters()), **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(model.module(inputs), network(inputs), **(tolerance if kind == "half" else {}))


AVERAGED = {
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "ConvNeXt": lambda raw, ema: {"model": raw, "model_ema": prefixed(ema, "module.")},
    "another word order": lambda raw, ema: {"state_dict": raw, "ema_state_dict": prefixed(ema, "module.")},
    "two dictionaries": lambda raw, ema: {"model": raw, "ema": {"module": ema, "updates": 3}},
    "two prefixes": lambda raw, ema: {"state_dict": {**prefixed(raw, "model."), **prefixed(ema, "ema_model.")}},
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_averaged_weights_are_taken_and_said(kind, network, other, tmp_path):
    """As timm's loader does; the warning names what was taken and what was not."""
    torch.save(AVERAGED[kind](other, network.state_dict()), tmp_path / "ema.pth")
    with pytest.warns(WeightsWarning, match=r"averaged weights .*ema.* are used, not "):
        model = loaded(tmp_path / "ema.pth")
    assert same(model, network)


def test_averaged_weights_that_are_incomplete_are_not_taken_silently(network, other, tmp_path):
    """An average of the parameters alone lacks the statistics of BatchNorm."""
    parameters = {name: other[name] for name, _ in small().named_parameters()}
    torch.save({"state_dict": network.state_dict(), "ema": parameters}, tmp_path / "ema.pth")
    with pytest.warns(WeightsWarning, match=r"state_dict is used; ema lacks \d+ of the weights"):
        model = loaded(tmp_path / "ema.pth")
    assert same(model, network)


@pytest.mark.parametrize("key", [("ema", "shadow_params"), ("shadow_params",), ("model_ema",)])
def test_averaged_weights_without_names_are_told_with_the_line_that_names_them(key, network, other, tmp_path):
    """As torch_ema and diffusers write them: a list in the order of the parameters. The line, run, loads them."""
    path, averaged = tmp_path / "ema.pth", small(1)
    content = [p.detach() for p in averaged.parameters()]
    for name in reversed(key):
        content = {name: content}
    torch.save({"state_dict": network.state_dict(), **content}, path)
    with pytest.warns(WeightsWarning, match=r"state_dict is used; .* without names.*torch\.save\(") as told:
        assert same(loaded(path), network)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"without names, which are not read; .*network\.named_parameters"):
        loaded(path)
    line = str(told[0].message).partition("name them: ")[2].replace("weights.pth", str(tmp_path / "mended.pth"))
    exec(line, {"torch": torch, "network": network, "WEIGHTS_USED": network.state_dict()})
    model = loaded(tmp_path / "mended.pth")
    assert all(torch.equal(p, q) for p, q in zip(model.module.parameters(), averaged.parameters(), strict=True))


def test_tensors_beside_the_network_are_named(network, tmp_path):
    """Those of a criterion or a metric in a Lightning module; the counter of torch's own average."""
    state = {**prefixed(network.state_dict(), "model."), "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.warns(WeightsWarning, match=r"state_dict with prefix model\. is used; 1 .*criterion\.weight"):
        assert same(loaded(tmp_path / "last.ckpt"), network)
    torch.save(AveragedModel(network).state_dict(), tmp_path / "swa.pth")
    with pytest.warns(WeightsWarning, match=r"prefix module\. is used; 1 .*n_averaged"):
        assert same(loaded(tmp_path / "swa.pth"), network)


def test_two_networks_are_not_guessed(network, other, tmp_path):
    """Teacher and student: the file must hold one."""
    torch.save({"student": network.state_dict(), "teacher": other}, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match=r"several networks that fit \(student, teacher\).*torch\.save"):
        loaded(tmp_path / "dino.pth")


def test_numbers_and_arguments_beside_the_weights_are_read(network, tmp_path):
    """Of numpy, argparse and pathlib: they hold values and do nothing."""
    arguments = argparse.Namespace(lr=0.1, data=pathlib.Path("data"), sizes=np.arange(3), dtype=np.dtype("float32"))
    history = collections.defaultdict(list, {"loss": [np.float32(0.1)]})
    beside = {"args": arguments, "best_acc": np.float64(0.9), "epoch": np.int64(3), "history": history}
    for legacy in (False, True):
        torch.save(
            {"state_dict": network.state_dict(), **beside},
            tmp_path / "args.pth.tar",
            _use_new_zipfile_serialization=not legacy,
        )
        assert same(loaded(tmp_path / "args.pth.tar"), network)


class Config:
    """A class of the user's own."""

    def __init__(self) -> None:
        self.lr = 0.1


def test_what_is_never_executed_is_named_with_the_line_that_mends_it(network, tmp_path):
    """A whole network, an object of the user's class, a TorchScript program, a pointer of Git LFS."""
    path = tmp_path / "mine.pth"
    torch.save(network, path)
    with pytest.raises(
        CheckpointError, match=r"holds .*ShuffleNetV2, a whole object.* never executed.*x\.state_dict\(\)"
    ):
        loaded(path)
    torch.save({"state_dict": network.state_dict(), "config": Config()}, path)
    with pytest.raises(CheckpointError, match=r"holds .*\.Config, .*x\['state_dict'\]"):
        loaded(path)
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(str(path))
    with pytest.raises(CheckpointError, match=r"a TorchScript program; .*torch\.jit\.load"):
        loaded(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        loaded(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(3), 1: torch.zeros(2)}, "expected a dictionary of tensors, got dict; its keys are 0, 1"),
        ([torch.zeros(3)], "expected a dictionary of tensors, got list"),
        ({}, "expected a dictionary of tensors, got dict"),
        (5, "expected a dictionary of tensors, got int"),
        ({"state_dict": {1: torch.zeros(1)}}, "its keys are state_dict"),
        ({"epoch": 3}, "its keys are epoch"),
        ({"fc.weight": torch.zeros(0)}, "do not fit"),
        ({"fc.weight": torch.tensor(1.0), "fc.bias": torch.tensor(1.0)}, "do not fit"),
    ],
)
def test_other_contents_are_one_error(content, message, tmp_path):
    """Integer names, no tensors, tensors of another number of axes."""
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path / "odd.pth")


def test_quantized_weights_are_not_read_as_numbers(network, tmp_path):
    """Whole numbers in the place of floating-point ones would give another network."""
    state = {n: v.to(torch.int8) if n == "fc.weight" else v for n, v in network.state_dict().items()}
    save_file(state, tmp_path / "int8.safetensors")
    with pytest.raises(CheckpointError, match=r"fc\.weight holds torch\.int8"):
        loaded(tmp_path / "int8.safetensors")


def test_a_file_is_known_by_its_content_not_its_name(network, tmp_path):
    """Safetensors named .bin."""
    save_file(network.state_dict(), tmp_path / "model.bin")
    assert same(loaded(tmp_path / "model.bin"), network)


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision:resnet18",
        "torchvision:squeezenet1_1",
        "torchvision:mobilenet_v3_small",
        "torchvision:googlenet",
        "torchvision:regnet_y_400mf",
        "timm:test_vit",
        "timm:test_efficientnet",
        "timm:deit_tiny_distilled_patch16_224",
        "timm:resnet10t",
        "timm:swin_tiny_patch4_window7_224",
    ],
)
def test_the_number_of_classes_is_read_from_the_last_layer(spec, tmp_path):
    """A convolution, a linear layer, two of them; networks with tensors that are computed and not in the file."""
    torch.manual_seed(2)
    made = xai_abn.load_model(spec, weights="random", classes=7)
    torch.save(made.module.state_dict(), tmp_path / "seven.pth")
    model = xai_abn.load_model(spec, weights=tmp_path / "seven.pth", labels=list("abcdefg"))
    assert (model.number_of_classes, model.labels) == (7, tuple("abcdefg"))
    example = torch.randn(1, *model.preprocess.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(model.logits_of(model.module(example)), made.logits_of(made.module(example)))


def test_weights_of_another_network_are_refused(network, tmp_path):
    """Another number of classes does not excuse another shape."""
    first = next(iter(network.state_dict()))
    torch.save({**network.state_dict(), first: torch.zeros(24, 1, 3, 3)}, tmp_path / "gray.pth")
    with pytest.raises(CheckpointError, match=first):
        loaded(tmp_path / "gray.pth")


def test_auxiliary_heads_may_be_left_out(tmp_path):
    """Torchvision's Inception has a second head for training, which many files lack."""
    made = torchvision.models.inception_v3(num_classes=4, aux_logits=False, init_weights=True)
    torch.save(made.state_dict(), tmp_path / "inception.pth")
    model = xai_abn.load_model("torchvision:inception_v3", weights=tmp_path / "inception.pth")
    assert same(model, made)


def test_a_changed_head_says_what_to_do(network, tmp_path):
    """A head of several layers is not in the architecture's own network."""
    changed = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    torch.save({**changed, "fc.1.weight": torch.zeros(3, 1024), "fc.1.bias": torch.zeros(3)}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"fc\.weight.*fc\.1\.weight.*xai_abn\.wrap\(network"):
        loaded(tmp_path / "head.pth")


def test_classes_and_labels_are_checked(network, tmp_path):
    """Against the weights; without weights of one's own there are no other classes."""
    path = tmp_path / "mine.pth"
    torch.save(network.state_dict(), path)
    assert loaded(path, classes=3, labels=LABELS).labels == LABELS
    with pytest.raises(InvalidInputError, match="has 3 classes, not 4"):
        loaded(path, classes=4)
    with pytest.raises(InvalidInputError, match="has 3 classes, got 2 labels"):
        loaded(path, labels=["a", "b"])
    with pytest.raises(InvalidInputError, match=r"has 1000 classes, not 2; .*weights=FILE"):
        xai_abn.load_model("lite0", classes=2)
    assert loaded("random", labels=LABELS).number_of_classes == 3
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\nÉlan\r\n kite \r\n\r\n".encode())
    assert loaded(path, labels=tmp_path / "names.txt").labels == ("cat", "Élan", "kite")
    (tmp_path / "names.txt").write_text("cat\n\nkite\n")
    with pytest.raises(InvalidInputError, match="line 2 is empty"):
        loaded(path, labels=tmp_path / "names.txt")
    with pytest.raises(InvalidInputError, match=r"gone\.txt: expected a text file .*No such file"):
        loaded(path, labels=tmp_path / "gone.txt")


def test_preprocessing_of_ones_own(network, tmp_path):
    """Size, mean and deviation replace the library's; the rest stays."""
    path = tmp_path / "mine.pth"
    torch.save(network.state_dict(), path)
    plain, own = loaded(path).preprocess, loaded(path, size=64, mean=[0.5] * 3, std=[0.25] * 3).preprocess
    assert (own.size, own.mean, own.std) == (64, (0.5,) * 3, (0.25,) * 3)
    assert (own.crop_pct, own.interpolation) == (plain.crop_pct, plain.interpolation)
    with pytest.raises(InvalidInputError, match="std above 0"):
        loaded(path, std=(0, 1, 1))


@pytest.fixture
def brought(tmp_path):
    """A Lightning checkpoint, names of its classes, and the options that load it."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=2)
    torch.save({"state_dict": prefixed(network.state_dict(), "model."), "epoch": 3}, tmp_path / "pets.ckpt")
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    options = ["--model", "timm:test_efficientnet", "--weights", tmp_path / "pets.ckpt", "--classes", 2]
    return [*options, "--labels", tmp_path / "pets.txt", "--size", 64, "--mean", "0.5,0.5,0.5"]


def test_a_classifier_of_any_classes_is_explained_from_the_command_line(brought, tmp_path):
    """Its own labels are in the result; what does not fit is one line."""
    code, out, err = call("explain", "example:cat", *brought, "--target", "dog", "--json", "-o", tmp_path / "out")
    assert code == 0, err
    assert '"label": "dog"' in out
    for wrong, message in (
        (["--classes", 4], "has 2 classes, not 4"),
        (["--std", "a"], "std must be a number, got 'a'"),
        (["--mean", "0.5,0.5"], "mean and std must have three values"),
    ):
        at = brought.index(wrong[0]) if wrong[0] in brought else len(brought)
        code, _, err = call("explain", "example:cat", *brought[:at], *wrong, *brought[at + 2 :], "-o", tmp_path / "out")
        assert code == 2
        assert message in err


def test_a_classifier_of_any_classes_is_measured_distilled_and_exported(brought, tmp_path):
    """With its own classes and preprocessing; the ABN keeps them, and is found in the folder of its run."""
    data = make_images(tmp_path / "coco")
    run = ["benchmark", "run", "--data", f"coco:{data}", "--method", "grad-cam", "--metric", "gini"]
    assert call(*run, *brought, "-o", tmp_path / "run.sqlite")[0] == 0
    assert call("export", brought[1], tmp_path / "pets.onnx", *brought[2:])[0] == 0
    short = ["--steps", 1, "--batch-size", 2, "--mosaics", 0, "--held-out", 1, "--no-bf16", "--workers", 0]
    code, _, err = call("distill", *brought, "--images", data / "images", *short, "-o", tmp_path / "run", "--quiet")
    assert code == 0, err
    model = xai_abn.load_model(tmp_path / "run")
    assert (model.name, model.labels, model.is_abn) == ("run", ("cat", "dog"), True)
    assert (model.preprocess.size, model.preprocess.mean) == (64, (0.5, 0.5, 0.5))


def test_a_weights_file_as_model_says_what_is_missing(network, tmp_path):
    """The network it is for."""
    path = tmp_path / "pets.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"say for which network: --model timm:NAME .*--weights .*pets\.pth"):
        xai_abn.load_model(path)
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"without a description; .*--model timm:NAME .*--weights"):
        xai_abn.load_model(tmp_path / "bare.safetensors")


def test_the_folder_of_a_run_is_a_model(tmp_path):
    """The best weights are loaded, and called by the folder's name."""
    source = pathlib.Path(__file__).parents[1] / "formats" / "checkpoint-v2-classifier.safetensors"
    run = tmp_path / "baseline"
    run.mkdir()
    with pytest.raises(CheckpointError, match=r"baseline: a folder without a model; expected one of best\.safetensors"):
        xai_abn.load_model(run)
    (run / "best.safetensors").write_bytes(source.read_bytes())
    (run / "final.safetensors").write_bytes(b"not this one")
    model = xai_abn.load_model(run)
    assert (model.name, model.weights) == ("baseline", str(run / "best.safetensors"))
    with pytest.raises(UnknownNameError, match=r"FILE\. Or give timm:NAME, .*folder of a run\."):
        xai_abn.load_model("bxselixe")
    with pytest.raises(UnknownNameError):
        xai_abn.load_model("x" * 5000)


def test_a_network_on_meta_draws_nothing():
    """Torch's random state stays, and large tensors take no memory."""
    before = torch.get_rng_state()
    large = [p for p in on_meta(lambda: torchvision.models.vgg16(num_classes=2)).parameters() if p.numel() > 2**20]
    assert large
    assert all(p.is_meta for p in large)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bounds", [(-2, 2), (0.5, 3), (0.9, 1.1)])
def test_truncated_draws_end(bounds):
    """Torch draws again until every value is within the bounds, whatever was in the memory."""
    weight = nn.Parameter(torch.full((10,), 1e9))
    with WithoutRandomWeights():
        nn.init.trunc_normal_(weight, mean=1.0, std=0.5, a=bounds[0], b=bounds[1])
    assert weight.abs().max() < 1e9


def test_a_state_dict_alone_needs_no_names(tmp_path):
    """For networks whose names are not those of the file."""
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["a"], torch.ones(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"att_conv.weight": torch.tensor(1.0)},
        {"att_conv.weight": torch.zeros(10)},
        {"att_conv3.weight": torch.zeros(3)},
        {"att_conv.weight": torch.zeros(10, 64, 1, 1), "module.other": torch.zeros(1)},
    ],
)
def test_converting_odd_tensors_is_one_error(changes, tmp_path):
    """A scalar, one axis instead of four, a name too many."""
    state = {"att_conv.weight": torch.zeros(10, 64, 1, 1), "att_conv3.weight": torch.zeros(1, 10, 3, 3), **changes}
    torch.save({"state_dict": state, "best_acc": np.float64(0.9)}, tmp_path / "released.pth.tar")
    with pytest.raises(CheckpointError, match=r"released\.pth\.tar: "):
        convert_file(tmp_path / "released.pth.tar", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
