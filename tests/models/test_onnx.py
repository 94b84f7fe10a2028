"""ONNX files as black boxes: the scores of onnxruntime under every method that only asks, else one clear error."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
import threading
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from support import GapNet, call, check_error, make_images
from torch import nn

import xai_abn
from xai_abn.errors import CheckpointError, InvalidInputError, UnsupportedModelError
from xai_abn.integrations.onnx import export_onnx
from xai_abn.models.folding import FastPredictor
from xai_abn.models.predictor import Predictor
from xai_abn.networks.checkpoint import fingerprint

SIDE, CLASSES = 32, 5
QUICK = ["occlusion:window=0.5,stride=0.5", "feature-ablation:segments=4", "rise:masks=8,side=3", "sobel"]
QUICK += ["kernel-shap:segments=4,samples=8", "lime:segments=4,samples=8"]


@pytest.fixture(scope="module")
def network():
    """A seeded GapNet."""
    torch.manual_seed(0)
    return GapNet(CLASSES).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class Taking(nn.Module):
    """A network whose input has another form."""

    def __init__(self, network, form, output=lambda logits: logits):
        super().__init__()
        self.network, self.form, self.output = network, form, output

    def forward(self, *inputs):
        return self.output(self.network(self.form(*inputs)))


def write(path, network, *inputs, free=("batch",), **options):
    """Write a file as another program does, without any metadata."""
    axes = dict(enumerate(free))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), inputs or (torch.zeros(2, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=17,
            input_names=["x", *(f"x{i}" for i in range(1, len(inputs)))], dynamic_axes={"x": axes} if free else None,
            **options,
        )  # fmt: skip
    return f"onnx:{path}"


def load(path, network, *inputs, **options):
    return xai_abn.load_model(write(path, network, *inputs, **options))


def expected_logits(network, images):
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("method", QUICK)
def test_methods_that_only_ask_give_the_networks_maps(method, network, images, tmp_path):
    """The maps of the same network in PyTorch."""
    box = load(tmp_path / "net.onnx", network)
    twin = xai_abn.wrap(network, preprocess=box.preprocess)
    for found, right in zip(*(xai_abn.explain(m, images, method, 1) for m in (box, twin)), strict=True):
        scale = np.abs(right[method].map).max()
        np.testing.assert_allclose(found[method].map / scale, right[method].map / scale, atol=1e-4)
        assert found[method].probability == pytest.approx(right[method].probability, abs=1e-5)


def test_our_files_bring_their_labels_and_preprocessing(gap_net, images, tmp_path):
    """And the kind of their probabilities; there is no note on the preprocessing."""
    model = dataclasses.replace(
        gap_net, multi_label=True, preprocess=xai_abn.Preprocess(size=SIDE, mean=(0.5,) * 3, std=(0.2,) * 3)
    )
    box = xai_abn.load_model(f"onnx:{export_onnx(model, tmp_path / 'net.onnx').path}")
    assert (box.labels, box.preprocess, box.multi_label) == (model.labels, model.preprocess, True)
    assert box.notes(torch.zeros(1, CLASSES)) == model.notes(torch.zeros(1, CLASSES))
    record = xai_abn.explain(box, images[0], "occlusion", "dog")["occlusion"]
    assert record.probability == pytest.approx(float(expected_logits(model.module, images)[0, 1].sigmoid()), abs=1e-5)
    assert box.black_box
    assert not gap_net.black_box


@pytest.mark.parametrize("method", ["cam", "recipro-cam", "recipro-cam:layer=features.1"])
def test_maps_in_the_file_are_read(method, gap_net, images, tmp_path):
    """By the method that made them, for any class and difference, as the default; those of another layer are not."""
    box = xai_abn.load_model(f"onnx:{export_onnx(gap_net, tmp_path / 'net.onnx', method=method).path}")
    name, _, option = method.partition(":layer=")
    layer = option or "features"
    for target in (3, "kite", xai_abn.Difference(1, versus=2), None):
        for found, right in zip(*(xai_abn.explain(m, images, method, target) for m in (box, gap_net)), strict=True):
            (right,), found = right.values(), found[method]
            np.testing.assert_allclose(found.map, right.map, rtol=0, atol=1e-5 * np.abs(right.map).max())
            assert (found.layer, found.label, found.class_specific) == (layer, right.label, True)
    assert [*xai_abn.explain(box, images[0])[0]] == [name]
    for other in (f"{name}:layer=features.4", "grad-cam"):
        with pytest.raises(UnsupportedModelError, match=f"black box .* use {name}, whose maps it outputs") as caught:
            xai_abn.explain(box, images, other)
        check_error(caught.value)
    with pytest.raises(UnsupportedModelError, match=f"{name} reads layers .* black box"):
        xai_abn.explain(box, images, name, lambda logits: logits[:, 0] - logits[:, 1])


def test_an_abn_in_a_file_gives_its_maps(small_abn, tmp_path):
    """Its map is the default; the map of one whose map is not used is refused."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    box = xai_abn.load_model(f"onnx:{export_onnx(small_abn, tmp_path / 'net.onnx').path}")
    for method in ("abn", "abn-class"):
        for found, right in zip(*(xai_abn.explain(m, images, method, 3) for m in (box, small_abn)), strict=True):
            np.testing.assert_allclose(found[method].map, right[method].map, rtol=0, atol=1e-5)
            assert found[method].layer == right[method].layer
            assert found[method].class_specific == right[method].class_specific
    assert [*xai_abn.explain(box, images[0])[0]] == ["abn"]
    auxiliary = xai_abn.abn_from(copy.deepcopy(GapNet()), input_size=64, mechanism="auxiliary", layer="features.1")
    model = xai_abn.wrap(auxiliary, preprocess=xai_abn.Preprocess(size=64))
    other = xai_abn.load_model(f"onnx:{export_onnx(model, tmp_path / 'other.onnx').path}")
    assert [*other.maps_given] == ["abn-class"]
    with pytest.raises(UnsupportedModelError, match="abn needs an Attention Branch Network"):
        xai_abn.explain(other, images, "abn")


def test_a_map_for_each_attribute_stays_one(tmp_path):
    """Of a multi-task ABN, the map depends on the class."""
    torch.manual_seed(0)
    network = xai_abn.abn_from(GapNet(3), input_size=64, maps="per-attribute", layer="features.1")
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=64))
    box = xai_abn.load_model(f"onnx:{export_onnx(model, tmp_path / 'net.onnx').path}")
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    for target in range(3):
        found, right = (xai_abn.explain(m, image, "abn", target)["abn"] for m in (box, model))
        np.testing.assert_allclose(found.map, right.map, rtol=0, atol=1e-5)
        assert found.class_specific


def pixels(images):
    """Undo ImageNet's normalization."""
    plain = xai_abn.Preprocess()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (plain.mean, plain.std))
    return (images * std + mean) * 255


def test_files_take_what_they_take(network, images, tmp_path):
    """Fixed batches, channels last, half and double precision, pixels: the scores are those of the network."""
    right = expected_logits(network, images)
    one, last = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(2, SIDE, SIDE, 3)
    for name, form, example, free in [
        ("one at a time", lambda x: x, one, ()),
        ("two at a time", lambda x: x, torch.zeros(2, 3, SIDE, SIDE), ()),
        ("any size", lambda x: x, one, ("batch", "c", "h", "w")),
        ("channels last", lambda x: x.permute(0, 3, 1, 2), last, ("batch",)),
        ("channels last, any size", lambda x: x.permute(0, 3, 1, 2), last, ("batch", "h", "w")),
        ("half", lambda x: x.float(), one.half(), ("batch",)),
        ("double", lambda x: x.float(), one.double(), ("batch",)),
    ]:
        box = load(tmp_path / f"{name}.onnx", Taking(network, form), example, free=free)
        tolerance = 2e-3 if name == "half" else 1e-5
        torch.testing.assert_close(box.module(images), right, rtol=0, atol=tolerance)
        torch.testing.assert_close(FastPredictor(box)(images), right, rtol=0, atol=tolerance)
        assert box.preprocess.size == (224 if "any size" in name else SIDE), name
        assert "unknown and assumed to be ImageNet's" in box.notes(right)[0]


def test_pixels_are_those_of_the_image(network, image, tmp_path):
    """A file with uint8 input gets the very pixels that the preprocessing cuts out, and its mean color is blank."""
    kept = []

    def form(x):
        return x.permute(0, 3, 1, 2).float() / 255 - 0.5

    box = load(tmp_path / "net.onnx", Taking(network, form), torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8))
    session = box.module._session
    box.module._session = lambda output, inputs: kept.append(inputs["x"]) or session(output, inputs)
    record = xai_abn.explain(box, image, "sobel")["sobel"]
    cut = box.preprocess.pixels(Image.fromarray(image))
    assert any(np.array_equal(given[0], cut) for given in kept)
    right = expected_logits(network, torch.from_numpy(cut[None].copy()).permute(0, 3, 1, 2).float() / 255 - 0.5)
    assert record.score == pytest.approx(float(right.max()), abs=1e-5)
    assert record.notes == ()
    box.module(torch.zeros(1, 3, SIDE, SIDE))
    assert kept[-1][0, 0, 0].tolist() == [124, 116, 104]
    with pytest.raises(InvalidInputError, match=r"takes pixels .*; leave mean and std out"):
        xai_abn.load_model(f"onnx:{tmp_path / 'net.onnx'}", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_other_numbers_of_channels(tmp_path):
    """Gray images, and tensors of four channels."""
    torch.manual_seed(0)
    for channels in (1, 4):
        network = nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        box = load(tmp_path / f"{channels}.onnx", network.eval(), torch.zeros(2, channels, 24, 40))
        image = torch.randn(channels, 24, 40)
        (record,) = xai_abn.explain(box, image, "occlusion:window=0.5,stride=0.5", 1)[0].values()
        assert record.score == pytest.approx(float(expected_logits(network, image[None])[0, 1]), abs=1e-5)
        assert record.map.shape == (24, 40)
    assert xai_abn.load_model(f"onnx:{tmp_path / '1.onnx'}").preprocess.shape == (1, 24, 40)


def test_outputs_of_all_kinds(network, images, tmp_path):
    """Probabilities, scores with two more axes, one with a name, a class beside them, a map of class scores."""
    right = expected_logits(network, images)

    def same(x):
        return x

    soft = load(tmp_path / "a.onnx", Taking(network, same, lambda y: y.softmax(1)))
    assert "outputs probabilities" in " ".join(soft.notes(soft.module(images)))
    torch.testing.assert_close(soft.probabilities(soft.module(images)), right.softmax(1), rtol=0, atol=1e-5)
    axes = load(tmp_path / "b.onnx", Taking(network, same, lambda y: y[:, :, None, None]))
    torch.testing.assert_close(axes.module(images), right, rtol=0, atol=1e-5)
    several = Taking(network, same, lambda y: (y + 1, y))
    named = load(tmp_path / "c.onnx", several, output_names=["other", "logits"])
    torch.testing.assert_close(named.module(images), right, rtol=0, atol=1e-5)
    beside = load(tmp_path / "d.onnx", Taking(network, same, lambda y: (y.argmax(1), y)))
    torch.testing.assert_close(beside.module(images), right, rtol=0, atol=1e-5)
    segmenter = load(tmp_path / "e.onnx", nn.Conv2d(3, 4, 3, 2, 1).eval())
    assert segmenter.gives_map
    assert len(xai_abn.explain(segmenter, images[:1], "occlusion:window=0.5,stride=0.5")[0]) == 1
    with pytest.raises(UnsupportedModelError, match=r"one output of class scores .*, got a .*, b .*; keep that one"):
        load(tmp_path / "f.onnx", several, output_names=["a", "b"])
    for kind, output in {"classes alone": lambda y: y.argmax(1), "numbers": lambda y: y[:, 0]}.items():
        with pytest.raises(UnsupportedModelError, match="must have one output of class scores") as caught:
            load(tmp_path / "g.onnx", Taking(network, same, output))
        check_error(caught.value), kind
    mean = load(tmp_path / "h.onnx", Taking(network, same, lambda y: y.mean(0, keepdim=True)))
    with pytest.raises(UnsupportedModelError, match="must output one row for each image"):
        mean.module(images)


def test_inputs_that_are_no_images_are_refused(network, tmp_path):
    """Several, vectors, integers: with what came and what to do."""
    for name, made in {
        "two": (Taking(network, lambda x, y: x + y), torch.zeros(2, 3, SIDE, SIDE), torch.zeros(2, 3, SIDE, SIDE)),
        "vector": (nn.Linear(4, 2), torch.zeros(2, 4)),
        "long": (Taking(network, lambda x: x.float()), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.long)),
    }.items():
        with pytest.raises(UnsupportedModelError, match="must have one input of images") as caught:
            load(tmp_path / f"{name}.onnx", *made)
        check_error(caught.value)


def test_another_size_is_refused_where_it_is_fixed(network, images, tmp_path):
    """By the shape that the file states, or by what onnxruntime says of one that is wrongly free."""
    spec = write(tmp_path / "net.onnx", network)
    with pytest.raises(UnsupportedModelError, match=r"takes inputs of 3x32x32 .* got 3x48x48; leave --size out"):
        xai_abn.explain(xai_abn.load_model(spec, size=48), torch.zeros(3, 48, 48), "rise")
    flat = nn.Sequential(nn.Conv2d(3, 2, 3, 4, 1), nn.Flatten(), nn.Linear(128, 2)).eval()
    free = load(tmp_path / "free.onnx", flat, free=("batch", "c", "h", "w"))
    with pytest.raises(UnsupportedModelError, match=r"cannot be run on an input of 3x224x224; give the size") as caught:
        xai_abn.explain(free, "example:cat", "rise")
    check_error(caught.value)
    fitting = xai_abn.load_model(f"onnx:{tmp_path / 'free.onnx'}", size=SIDE)
    torch.testing.assert_close(fitting.module(images), expected_logits(flat, images), rtol=0, atol=1e-5)


def test_files_that_are_none_are_one_error(network, tmp_path, monkeypatch):
    """Missing, empty, cut, foreign, with an operation that does not exist, without the file of their weights."""
    write(tmp_path / "net.onnx", network)
    whole = (tmp_path / "net.onnx").read_bytes()
    node = helper.make_node("NoSuchOperation", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 2]))]
    strange = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
    for name, content in {
        "empty": b"", "text": b"not a network", "cut": whole[:400], "unknown": strange.SerializeToString(),
    }.items():  # fmt: skip
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"expected an ONNX file|cannot be run by onnxruntime") as caught:
            xai_abn.load_model(f"onnx:{tmp_path / name}.onnx")
        check_error(caught.value)
    for missing in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(CheckpointError, match="expected an ONNX file"):
            xai_abn.load_model(f"onnx:{missing}")
    with pytest.raises(CheckpointError, match="is an ONNX file; give onnx:"):
        xai_abn.load_model(tmp_path / "net.onnx")
    with pytest.raises(InvalidInputError, match="holds its own weights"):
        xai_abn.load_model(f"onnx:{tmp_path / 'net.onnx'}", weights="random")
    with pytest.raises(InvalidInputError, match="has 5 classes, got 2 labels"):
        xai_abn.load_model(f"onnx:{tmp_path / 'net.onnx'}", labels=["a", "b"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidInputError, match=r"needs onnxruntime: pip install 'xai-abn\[onnx\]'"):
        xai_abn.load_model(f"onnx:{tmp_path / 'net.onnx'}")


def test_metadata_that_is_damaged_is_one_error(gap_net, tmp_path):
    """That of other programs is not read."""
    export_onnx(gap_net, tmp_path / "net.onnx")
    content = onnx.load(tmp_path / "net.onnx")
    for damage in ({"preprocess": "{"}, {"preprocess": '{"size": "big"}'}, {"labels": "3"}, {"maps": '{"cam": 1}'}):
        facts = {p.key: p.value for p in content.metadata_props} | damage
        other = copy.deepcopy(content)
        helper.set_model_props(other, facts)
        onnx.save(other, tmp_path / "other.onnx")
        with pytest.raises(CheckpointError, match=r"metadata cannot be read .*; give it as") as caught:
            xai_abn.load_model(f"onnx:{tmp_path / 'other.onnx'}")
        check_error(caught.value)
    helper.set_model_props(content, {"labels": "not JSON", "names": json.dumps({0: "a"})})
    onnx.save(content, tmp_path / "foreign.onnx")
    assert xai_abn.load_model(f"onnx:{tmp_path / 'foreign.onnx'}").labels is None


def test_weights_in_files_beside_it_count(network, images, tmp_path):
    """They are read, they are part of the fingerprint, and one that is missing is named."""
    write(tmp_path / "net.onnx", network)
    for name in ("one", "two"):
        content = onnx.load(tmp_path / "net.onnx")
        if name == "two":
            bias = next(t for t in content.graph.initializer if t.name == "fc.bias")
            bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "fc.bias"))
        (tmp_path / name).mkdir()
        where = {"location": "net.data", "size_threshold": 0}
        onnx.save(content, tmp_path / name / "net.onnx", save_as_external_data=True, **where)
    one, two = (xai_abn.load_model(f"onnx:{tmp_path / name / 'net.onnx'}") for name in ("one", "two"))
    torch.testing.assert_close(two.module(images), one.module(images) + 1)
    torch.testing.assert_close(one.module(images), expected_logits(network, images), rtol=0, atol=1e-5)
    assert (tmp_path / "one/net.onnx").read_bytes() == (tmp_path / "two/net.onnx").read_bytes()
    assert fingerprint(one.module) != fingerprint(two.module)
    (tmp_path / "one/net.data").unlink()
    with pytest.raises(CheckpointError, match=r"keeps weights in net\.data, which cannot be read"):
        xai_abn.load_model(f"onnx:{tmp_path / 'one/net.onnx'}")


def test_the_fingerprint_is_that_of_the_bytes(network, tmp_path):
    """Equal for a copy of the file, also elsewhere; another for other weights."""
    one = load(tmp_path / "one.onnx", network)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "one.onnx").read_bytes())
    torch.manual_seed(1)
    other = load(tmp_path / "other.onnx", GapNet(CLASSES).eval())
    prints = [fingerprint(m.module) for m in (one, xai_abn.load_model(f"onnx:{tmp_path / 'copy.onnx'}"), other)]
    assert prints[0] == prints[1] != prints[2]


def test_copies_pickles_and_threads_share_a_file(network, images, tmp_path):
    """All give the scores of one."""
    box = load(tmp_path / "net.onnx", network)
    right = box.module(images)
    assert torch.equal(copy.deepcopy(box).module(images), right)
    assert torch.equal(pickle.loads(pickle.dumps(box.module))(images), right)
    found = {}
    work = [threading.Thread(target=lambda n=n: found.update({n: box.module(images)})) for n in range(8)]
    [t.start() for t in work]
    [t.join() for t in work]
    assert len(found) == 8
    assert all(torch.equal(scores, right) for scores in found.values())


def test_a_device_without_onnxruntime_is_refused(network, tmp_path):
    """It runs on CUDA where onnxruntime does, and nowhere silently on the CPU."""
    box = load(tmp_path / "net.onnx", network)
    with pytest.raises(InvalidInputError, match="runs on the devices cpu and cuda, not meta"):
        copy.deepcopy(box.module).to("meta")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(InvalidInputError, match="install onnxruntime-gpu"):
            type(box.module._session)(str(tmp_path / "net.onnx"), "cuda:0")


def test_what_needs_the_inside_is_refused(network, images, tmp_path):
    """Layers, faster predictions, an ABN: one sentence each, with what to do."""
    box = load(tmp_path / "net.onnx", network)
    for wrong in (
        lambda: box.target_layer,
        lambda: box.check_layer("features"),
        lambda: Predictor(box, bf16=True),
        lambda: Predictor(box, backend="folded"),
        lambda: xai_abn.abn_from(box.module),
        lambda: export_onnx(box, tmp_path / "again.onnx"),
    ):
        with pytest.raises(UnsupportedModelError, match=r"give|use|leave|made of") as caught:
            wrong()
        check_error(caught.value)


def test_the_commands_take_a_file(gap_net, tmp_path, monkeypatch):
    """Explain, a benchmark that goes on, labels; what they cannot do is one line."""
    monkeypatch.chdir(tmp_path)
    export_onnx(gap_net, "net.onnx")
    make_images(tmp_path, 3)
    code, out, err = call("explain", "images/0.png", "--model", "onnx:net.onnx", "--output", "out")
    assert code == 0, err
    assert (tmp_path / "out/0.cam.png").is_file()
    run = ("benchmark", "run", "--model", "onnx:net.onnx", "--data", "coco:.", "--output", "run.sqlite")
    methods = ("--method", "cam,occlusion:window=0.5;stride=0.5,center".replace(";", ","))
    metrics = ("--metric", "deletion,insertion,road,pointing-game,average-drop,random-logit,polarity")
    code, out, err = call(*run, *methods, *metrics)
    assert code == 0, err
    assert "3 images measured" in out
    assert "0 images measured" in call(*run, *methods, *metrics)[1]
    code, _, err = call(*run, "--method", "cam", "--metric", "model-parameter-randomization")
    assert code == 1
    assert "changes the weights, and net.onnx is an ONNX file, a black box; leave it out" in err
    code, _, err = call(*run[:-1], "other.sqlite", "--method", "cam", "--metric", "deletion", "--bf16")
    assert code == 1
    assert "leave bf16 out" in err
    assert not (tmp_path / "other.sqlite").exists()
    assert call("list", "labels", "--model", "onnx:net.onnx")[0] == 0
    code, _, err = call("list", "layers", "--model", "onnx:net.onnx")
    assert code == 1
    assert "black box" in err
    code, _, err = call("distill", "--model", "onnx:net.onnx", "--images", "images", "--output", "run")
    assert code == 1
    assert "of which no ABN can be made" in err
    export_onnx(gap_net, "net.onnx", method="none")  # other bytes under the same name
    code, _, err = call(*run, "--method", "center", "--metric", "deletion")
    assert code == 1
    assert err.startswith("xai-abn: run.sqlite: this run has another model")
