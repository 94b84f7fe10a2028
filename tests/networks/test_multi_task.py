"""Networks of several attributes: a map for each, sigmoids for probabilities, and the way from training to CLI."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from support import call
from torch import nn

import xai_abn
from xai_abn import Difference
from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import InMemorySplit
from xai_abn.errors import InvalidInputError, RunError, UnknownNameError, UnsupportedModelError
from xai_abn.explainers import run_pass
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.architectures import Architecture, architectures
from xai_abn.networks.checkpoint import CheckpointConfig, read_checkpoint, save_checkpoint
from xai_abn.networks.multi_task import AttributeBranch, MultiTaskABN
from xai_abn.training import TrainingSettings, train
from xai_abn.training.losses import classification_losses
from xai_abn.training.state import read_state, save_state
from xai_abn.training.supervised import build_network

NAMES = ["Smiling", "Eyeglasses", "Young", "Wearing_Hat", "Bald"]


@pytest.fixture(scope="module")
def backbone():
    """A seeded ResNet of few channels and five outputs, none of which is 0."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", channels=(8, 12, 16, 24), num_classes=5).eval()
    nn.init.normal_(network.fc.weight, std=0.5)
    nn.init.normal_(network.fc.bias, std=0.5)
    return network


@pytest.fixture(scope="module")
def network(backbone):
    """Its multi-task ABN."""
    return xai_abn.abn_from(backbone, input_size=64, maps="per-attribute")


@pytest.fixture
def model(network):
    """The same, ready to be explained."""
    return xai_abn.wrap(network, labels=NAMES, preprocess=Preprocess(size=64), name="faces")


# the network


def test_maps_of_zeros_give_the_classifier(backbone, network, inputs):
    """With M = 0 every attribute's logit is the classifier's own."""
    with torch.no_grad():
        edited = network(inputs, attention=torch.zeros(1, 5, 4, 4))
        torch.testing.assert_close(edited.logits, backbone(inputs))
    assert edited.attention_map.abs().max() == 0


def test_class_maps_average_to_the_attention_logits(network, inputs):
    """Each class map is an exact CAM of the attention branch; maps lie in [0, 1]; inputs may have any size."""
    for images in (inputs, torch.randn(1, 3, 96, 160)):
        output = network(images)
        grid = (images.shape[2] // 16, images.shape[3] // 16)
        assert output.logits.shape == output.attention_logits.shape == (len(images), 5)
        assert output.attention_map.shape == output.class_maps.shape == (len(images), 5, *grid)
        torch.testing.assert_close(output.class_maps.mean(dim=(2, 3)), output.attention_logits)
        assert 0 <= output.attention_map.min() <= output.attention_map.max() <= 1


def test_the_fresh_branch_is_the_classifier_at_each_position(backbone, network):
    """Before any training class maps are the classifier's rows applied to the stage's output, maps their sigmoid."""
    features = network.feature_extractor(torch.randn(1, 3, 64, 64))
    branch = network.attention_branch
    expected = torch.einsum("tc,nchw->nthw", backbone.fc.weight, branch.stage(features))
    _, maps, class_maps = branch(features)
    torch.testing.assert_close(class_maps, expected + backbone.fc.bias[:, None, None])
    torch.testing.assert_close(maps, class_maps.sigmoid(), rtol=1e-4, atol=1e-4)


def test_attributes_at_once_equal_one_after_the_other(network, inputs):
    """The t-th logit is what the perception branch says in a pass of its own, however many run together."""
    network = network.eval()
    with torch.no_grad():
        features = network.feature_extractor(inputs)
        maps = network.attention_branch(features)[1]
        alone = [network.perception_branch(features * (1 + maps[:, t : t + 1]))[:, t] for t in range(5)]
        for network.at_once in (1, 2, 5, 8):
            torch.testing.assert_close(network(inputs).logits, torch.stack(alone, dim=1))
    del network.at_once


def test_an_attribute_depends_on_its_own_map_alone(network, inputs):
    """Darkening one map changes one logit."""
    with torch.no_grad():
        own = network(inputs)
        edited = own.attention_map.clone()
        edited[:, 2] = 0
        changed = (network(inputs, attention=edited).logits - own.logits).abs().amax(dim=0) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]


def test_the_published_variant_has_signed_unbounded_maps(backbone, inputs):
    """Without a sigmoid the map is S itself, the score its maximum, the features g*M; maps of any size are taken."""
    published = xai_abn.abn_from(backbone, input_size=64, mechanism="product", maps="per-attribute-signed")
    with torch.no_grad():
        output = published(inputs)
        assert torch.equal(output.attention_map, output.class_maps)
        assert float(output.attention_map.min()) < 0
        assert torch.equal(output.attention_logits, output.class_maps.amax(dim=(2, 3)))
        features = published.feature_extractor(inputs)
        first = published.perception_branch(features * output.attention_map[:, :1])[:, 0]
        torch.testing.assert_close(output.logits[:, 0], first)
        scaled = published(inputs, attention=7 * output.attention_map)
        assert float(scaled.attention_map.abs().max()) > 1
        torch.testing.assert_close(published(inputs, attention=torch.ones(1, 5, 4, 4)).logits, backbone(inputs))


def test_one_map_for_all_attributes_is_the_published_single_task_network(backbone, inputs):
    """maps="shared" is the block of one map: the control for what a map for each attribute brings."""
    shared = xai_abn.abn_from(backbone, input_size=64, maps="shared")
    assert not isinstance(shared, MultiTaskABN)
    with torch.no_grad():
        output = shared(inputs)
    assert output.attention_map.shape == (3, 1, 4, 4)
    assert output.class_maps.shape == (3, 5, 4, 4)


def test_both_losses_reach_the_maps(backbone, inputs):
    """Attention and perception loss each have a gradient in the map's convolution; targets are 0 and 1."""
    targets = torch.tensor([[0, 1, 1, 0, 1]] * 3)
    network = xai_abn.abn_from(backbone, input_size=64, maps="per-attribute").train()
    for name in ("perception", "attention"):
        network.zero_grad(set_to_none=True)
        classification_losses(network(inputs), targets)[name].backward()
        assert network.attention_branch.att_conv.weight.grad.abs().sum() > 0
    network.zero_grad(set_to_none=True)
    classification_losses(network(inputs), targets)["loss"].backward()
    assert all(p.grad is not None for p in network.parameters())


def test_smoothing_averages_each_map_by_itself():
    """The maps are those of a single map, one for one."""
    rough, even = (AttributeBranch(nn.Identity(), 4, 3, smoothing=n).eval() for n in (0, 1))
    even.load_state_dict(rough.state_dict())
    features = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(even(features)[1][0, 1, 2, 2], rough(features)[1][0, 1, 1:4, 1:4].mean())


@pytest.mark.parametrize(
    "mistake",
    [
        {"maps": "per-class"},
        {"maps": "per-attribute", "start": "anyhow"},
    ],
)
def test_unknown_choices_are_refused(backbone, mistake):
    """Unknown kinds of maps name the known ones."""
    with pytest.raises(UnknownNameError):
        xai_abn.abn_from(backbone, input_size=64, **mistake)


def test_maps_that_do_not_fit_are_refused(network, inputs):
    """A map for all, and values outside [0, 1] where there is a sigmoid."""
    with pytest.raises(InvalidInputError, match="shape"):
        network(inputs, attention=torch.zeros(3, 1, 4, 4))
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        network(inputs, attention=torch.full((3, 5, 4, 4), -0.5))


def test_transformers_have_one_map():
    """A Vision Transformer with a map for each attribute is refused with the reason."""
    with pytest.raises(UnsupportedModelError, match="one map"):
        xai_abn.abn_from(timm.create_model("test_vit"), maps="per-attribute")


# explanations


def test_probabilities_are_sigmoids(model, backbone, inputs):
    """Of a multi-task ABN always, of another network where wrap is told; they are not shares of one."""
    shared = ForwardPass(model, inputs)
    torch.testing.assert_close(shared.probabilities, shared.logits.sigmoid())
    for multi_label in (False, True):
        plain = xai_abn.wrap(backbone, preprocess=Preprocess(size=64), multi_label=multi_label)
        found = xai_abn.explain(plain, inputs[0], "grad-cam", 1)["grad-cam"].probability
        logits = backbone(inputs[:1])[0].detach()
        expected = logits[1].sigmoid() if multi_label else logits.softmax(dim=0)[1]
        assert found == pytest.approx(float(expected), abs=1e-5)
        assert plain.with_module(backbone).multi_label == multi_label


def test_each_attribute_is_explained_by_its_own_map(model, network, inputs):
    """The method abn gives M_t, abn-class S_t, with the attribute's own probability; both are class-specific."""
    with torch.no_grad():
        output = network(inputs[:1])
    result = xai_abn.explain(model, inputs[0], ["abn", "abn-class"], [["Smiling", "Bald"]])[0]
    for name, index in (("Smiling", 0), ("Bald", 4)):
        record = result["abn", name]
        torch.testing.assert_close(torch.from_numpy(record.map.copy()), output.attention_map[0, index])
        class_map = torch.from_numpy(result["abn-class", name].map.copy())
        torch.testing.assert_close(class_map, output.class_maps[0, index])
        assert record.class_specific
        assert record.probability == pytest.approx(float(output.logits[0, index].sigmoid()), abs=1e-5)


def test_a_shared_map_stays_class_agnostic(backbone, inputs):
    """Of an ABN with one map, multi-label or not, abn says that its map is for any class."""
    shared = xai_abn.abn_from(backbone, input_size=64)
    model = xai_abn.wrap(shared, labels=NAMES, preprocess=Preprocess(size=64), multi_label=True)
    assert not xai_abn.explain(model, inputs[0], "abn", "Bald")["abn"].class_specific


def test_without_targets_the_attributes_present_are_explained(model, inputs):
    """All that are more probable than not, the most probable first; the most probable alone where none is."""
    logits = ForwardPass(model, inputs).logits
    for row, answers in enumerate(xai_abn.explain(model, inputs, "abn")):
        present = [NAMES[i] for i in logits[row].argsort(descending=True) if logits[row, i] > 0]
        assert [e.label for e in answers.values()] == (present or [NAMES[int(logits[row].argmax())]])
        assert answers["abn"].label == NAMES[int(logits[row].argmax())]
    with torch.no_grad():
        nothing = xai_abn.wrap(xai_abn.abn_from(_lowered(model), input_size=64, maps="per-attribute"))
    assert [e.target for e in xai_abn.explain(nothing, inputs[0], "abn")[0].values()] == [
        int(ForwardPass(nothing, inputs[:1]).logits.argmax())
    ]


def _lowered(model):
    """Return a classifier none of whose attributes is present."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", channels=(8, 12, 16, 24), num_classes=5).eval()
    network.fc.bias -= 100
    return network


def test_two_attributes_can_be_compared(model, network, inputs):
    """The map of a difference is the difference of the maps."""
    output = network(inputs[:1])
    record = xai_abn.explain(model, inputs[0], "abn", Difference("Young", versus="Bald"))["abn"]
    expected = (output.attention_map[0, 2] - output.attention_map[0, 4]).detach()
    torch.testing.assert_close(torch.from_numpy(record.map.copy()), expected)


def test_methods_read_the_features_in_front_of_the_maps(model, network, inputs):
    """Grad-CAM's gradients there are those of the attribute's logit; CAM is refused, as its head is not there."""
    assert model.target_layer == "feature_extractor.layer3"
    targets = torch.tensor([3, 1, 4])
    shared = ForwardPass(model, inputs, [model.target_layer], gradients=True)
    features = network.feature_extractor(inputs).detach().requires_grad_()
    maps = network.attention_branch(features)[1]
    logits = network.perceive(features, maps).gather(1, targets[:, None]).sum()
    (expected,) = torch.autograd.grad(logits, features)
    torch.testing.assert_close(shared.gradients(model.target_layer, targets), expected)
    with pytest.raises(UnsupportedModelError, match="grad-cam"):
        xai_abn.explain(model, inputs, "cam")


@pytest.mark.parametrize("layer", ["perception_branch.layer4", "mechanism"])
def test_layers_behind_the_maps_are_refused(model, inputs, layer):
    """They run once for each attribute: no output belongs to an image."""
    with pytest.raises(UnsupportedModelError, match=r"once for each attribute.*feature_extractor.layer3"):
        run_pass(model, inputs, [xai_abn.explainers.GradCAM(layer=layer)])


def test_a_made_up_score_has_no_attribute(model, inputs):
    """The method abn refuses a function of the answer: none of its maps is that score's."""
    with pytest.raises(UnsupportedModelError, match="one map per class"):
        xai_abn.explain(model, inputs, "abn", lambda answer: answer.logits[:, 0] * 2)


# files


@pytest.mark.parametrize("kind", ["per-attribute", "per-attribute-signed", "shared"])
def test_a_checkpoint_rebuilds_the_model_by_itself(backbone, kind, inputs, tmp_path):
    """Kind of maps, labels and sigmoids come back; outputs are equal."""
    arguments = {"maps": kind, "mechanism": "product", "smoothing": 1}
    torch.manual_seed(1)
    network = xai_abn.abn_from(timm.create_model("test_resnet", num_classes=5), input_size=64, **arguments)
    config = CheckpointConfig("timm:test_resnet", 5, network.description, Preprocess(size=64), NAMES, multi_label=True)
    save_checkpoint(tmp_path / "faces.safetensors", network, config)
    model = xai_abn.load_model(tmp_path / "faces.safetensors")
    assert model.multi_label
    assert model.is_multi_task == (kind != "shared")
    with torch.no_grad():
        for mine, theirs in zip(model.module(inputs), network(inputs), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_checkpoint_without_the_flag_has_classes(tmp_path):
    """What was written before there were multi-label models loads as before."""
    path = tmp_path / "old.safetensors"
    module = timm.create_model("test_resnet", num_classes=2)
    save_checkpoint(path, module, CheckpointConfig("timm:test_resnet", 2, None, Preprocess(size=64)))
    with safe_open(str(path), framework="pt") as file:
        header, state = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    description = json.loads(header["config"])
    del description["multi_label"]
    from safetensors.torch import save_file

    save_file(state, path, metadata={**header, "config": json.dumps(description)})
    assert not xai_abn.load_model(path).multi_label


def test_the_command_explains_each_attribute(model, network, inputs, image_file, tmp_path, monkeypatch):
    """--target, repeated, gives a row and an image an attribute, with its own probability."""
    from xai_abn.models import zoo

    monkeypatch.setitem(zoo.models, "faces", lambda: model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    command = ("explain", image_file, "--model", "faces", "--method", "abn", "-t", "Smiling", "-t", "Eyeglasses")
    code, out, _ = call(*command)
    assert code == 0
    assert all(text in out for text in ("Smiling", "Eyeglasses", "%", "abn"))
    assert "any class" not in out
    records = json.loads(call(*command, "--json")[1])["explanations"]
    logits = ForwardPass(model, model.preprocess(xai_abn.images.load_image(image_file)).tensor[None]).logits[0]
    assert [r["label"] for r in records] == ["Smiling", "Eyeglasses"]
    assert [r["probability"] for r in records] == pytest.approx(logits[:2].sigmoid().tolist(), abs=1e-5)
    for record in records:
        with Image.open(record["files"][0]) as image:
            assert json.loads(image.info["xai-abn"])[0]["label"] == record["label"]


@pytest.mark.parametrize("at_once", [2, 8])
def test_onnx_gives_all_maps(model, inputs, tmp_path, at_once):
    """The file answers any batch with the logits and T maps of each kind, and says that probabilities are sigmoids."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from xai_abn.integrations.onnx import export_onnx

    model = model.with_module(copy.deepcopy(model.module))
    model.module.at_once = at_once
    made = export_onnx(model, tmp_path / "faces.onnx")
    assert made.any_size
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["multi_label"] == "true"
    with torch.no_grad():
        expected = model.module(inputs)
    for name, values in zip(made.outputs, session.run(list(made.outputs), {"images": inputs.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(values), getattr(expected, name), rtol=1e-4, atol=1e-4)


# training


class Tiny(nn.Module):
    """Three convolutions, GAP and one linear layer: learns colours in seconds."""

    def __init__(self, classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, classes)

    def forward(self, x):
        return self.fc(self.pool(self.last(self.second(self.first(x)))).flatten(1))


@pytest.fixture
def tiny(monkeypatch):
    """The architecture ``tiny``."""
    made = Architecture(Tiny, 32, "three convolutions", {"layer": "second", "dilate": False})
    monkeypatch.setitem(architectures, "tiny", made)


SIDE, PATCH = 32, 8


def patches(number, seed):
    """Return noise with a red and a blue patch at independent places, each in every second image, and the places."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(60, 120, (number, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    has = torch.randint(0, 2, (number, 2), generator=generator)
    corners = torch.randint(0, SIDE - PATCH + 1, (number, 2, 2), generator=generator)
    for row in range(number):
        for attribute, channel in enumerate((0, 2)):
            if has[row, attribute]:
                top, left = corners[row, attribute].tolist()
                images[row, :, top : top + PATCH, left : left + PATCH] = 30
                images[row, channel, top : top + PATCH, left : left + PATCH] = 230
    return images, has, corners


def colours(number=384):
    """Attributes red and blue as training data."""
    look = Preprocess(SIDE, 1.0, "bilinear", (0.35,) * 3, (0.2,) * 3)
    splits = [
        InMemorySplit(*patches(n, seed)[:2], look.mean, look.std, padding=0)
        for n, seed in ((number, 0), (96, 1), (128, 2))
    ]
    return TrainingData("colours", ("red", "blue"), look, *splits, multi_label=True)


def config(**more):
    settings = {"arch": "tiny", "maps": "per-attribute", "epochs": 8, "batch_size": 32, "lr": 0.1, "maps_every": 4}
    return TrainingSettings(data="colours:", **{**settings, **more})


def hits(model, method, seed=3):
    """Return how often, where both are there, an attribute's map peaks on its own patch, and on the other one."""
    images, has, corners = patches(200, seed)
    both = has.all(dim=1)
    images, corners = images[both], corners[both]
    result = xai_abn.explain(model, list(images), method, [["red", "blue"]] * len(images))
    on = torch.zeros(2)
    for row, answers in enumerate(result):
        for attribute, name in enumerate(("red", "blue")):
            heatmap = torch.from_numpy(answers[method, name].heatmap((SIDE, SIDE)))
            place = torch.tensor(divmod(int(heatmap.argmax()), SIDE))
            inside = ((place >= corners[row]) & (place < corners[row] + PATCH)).all(dim=1)
            on += torch.stack([inside[attribute], inside[1 - attribute]])
    return (on / (2 * len(images))).tolist()


def test_each_attributes_map_finds_its_own_patch(tiny, tmp_path):
    """After seconds of training both colours are told, and each map peaks on its colour: chance is a sixteenth."""
    result = train(config(), tmp_path / "run", data=colours())
    assert result["final"]["test_accuracy"] > 0.9
    model = xai_abn.load_model(tmp_path / "run/final.safetensors")
    assert model.is_multi_task
    assert model.labels == ("red", "blue")
    for method in ("abn", "abn-class"):
        own, other = hits(model, method)
        assert own > 0.8
        assert other < 0.2
    assert set(result["attributes"]) == {"red", "blue"}
    _, has, _ = patches(128, 2)
    for index, name in enumerate(("red", "blue")):
        share = float(has[:, index].double().mean())
        assert result["attributes"][name]["majority"] == pytest.approx(max(share, 1 - share))
    mean = sum(a["accuracy"] for a in result["attributes"].values()) / 2
    assert mean == pytest.approx(result["final"]["test_accuracy"], abs=1e-6)
    assert json.loads((tmp_path / "run/result.json").read_text())["attributes"] == result["attributes"]
    assert read_checkpoint(tmp_path / "run/final.safetensors")[0].multi_label
    with Image.open(tmp_path / "run/maps/epoch_008.png") as image:
        gap, line, tile = 12, 20, 96 + 12
        top, block = line + 2 * gap, line + tile + 2 * (line + tile) + gap
        assert image.size == (8 * tile + gap, top + 2 * block)  # two rows of eight, each above two named maps
        first = top + line + tile
        names = [np.asarray(image)[y : y + line] for y in (first, first + line + tile)]
    assert all(strip[:, -300:].min() == 255 and strip[:, :40].min() < 128 for strip in names)
    assert not np.array_equal(*names)


@pytest.mark.parametrize(
    "settings",
    [
        {"maps": "per-attribute-signed", "mechanism": "product", "lr": 0.01},
        {"maps": "shared"},
        {"maps": "per-attribute", "mechanism": "auxiliary"},
        {"mechanism": "none", "maps": "shared"},
    ],
)
def test_every_kind_trains_and_loads(tiny, tmp_path, settings):
    """Published, shared, unused maps and the plain classifier: one epoch, a finite loss, a multi-label model."""
    result = train(config(epochs=1, maps_every=1, **settings), tmp_path / "run", data=colours(96))
    assert result["final"]["test_loss"] < 10
    assert set(result["attributes"]) == {"red", "blue"}
    model = xai_abn.load_model(tmp_path / "run/final.safetensors")
    assert model.multi_label
    probabilities = ForwardPass(model, torch.zeros(1, 3, SIDE, SIDE)).probabilities
    assert probabilities.shape == (1, 2)


def test_a_run_goes_on_where_it_was(tiny, tmp_path):
    """Resumed, also by a program that has a setting more, the weights become what they would have become."""
    whole = train(config(epochs=2, maps_every=0), tmp_path / "whole", data=colours(96))
    folder = tmp_path / "cut"

    def cut(done, total, text):
        if done == total:  # the second epoch's steps are lost
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(epochs=2, maps_every=0), folder, data=colours(96), progress=cut)
    state = read_state(folder / "state.safetensors")
    assert state.position.epoch == 1
    del state.settings["maps"]  # as written before the setting existed: its default, "shared"
    save_state(folder / "state.safetensors", state)
    with pytest.raises(RunError, match="maps was 'shared' and is 'per-attribute'"):
        train(config(epochs=2, maps_every=0), folder, resume=True, data=colours(96))
    state.settings["maps"] = "per-attribute"
    save_state(folder / "state.safetensors", state)
    again = train(config(epochs=2, maps_every=0), folder, resume=True, data=colours(96))
    assert again["attributes"] == whole["attributes"]
    assert again["final"] == whole["final"]


def test_what_makes_no_sense_is_refused_before_training(tiny):
    """A map for each attribute of one-class data, and an area of signed maps."""
    with pytest.raises(InvalidInputError, match="attributes"):
        build_network(config(), replace(colours(96), multi_label=False))
    with pytest.raises(InvalidInputError, match="area"):
        config(maps="per-attribute-signed", area_weight=0.1)


def test_distillation_is_for_classes_and_one_map(network, model):
    """Distilling a network with several maps, or a multi-label classifier, is refused."""
    from xai_abn.training import DistillationSettings, distill
    from xai_abn.training.distillation import make_student

    with pytest.raises(UnsupportedModelError, match="with labels"):
        distill(network, None)
    with pytest.raises(UnsupportedModelError, match="with labels"):
        make_student(model, DistillationSettings(model="faces", images=("images",)))
