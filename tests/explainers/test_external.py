"""Methods of other libraries and maps from files: the values of a direct call, and an unchanged model."""

from __future__ import annotations

import copy

import captum.attr
import numpy as np
import pytest
import torch
from PIL import Image

import xai_abn
from xai_abn.benchmark import Store, benchmark
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError, RunError, UnknownNameError
from xai_abn.explainers.base import run_pass
from xai_abn.explainers.external import CaptumExplainer, GradCAMExplainer, MapFolder, TorchCAMExplainer
from xai_abn.models.forward_pass import ForwardPass

TARGETS = torch.tensor([3, 1, 4])


def maps_of(model, explainer, inputs, targets=TARGETS):
    explainer.check(model)
    return explainer.explain(run_pass(model, inputs, [explainer]), targets)


@pytest.fixture(scope="module")
def grad_cam():
    return pytest.importorskip("pytorch_grad_cam")


@pytest.fixture(scope="module")
def torchcam():
    return pytest.importorskip("torchcam.methods")


def test_captum_gives_the_values_of_a_direct_call(resnet18, inputs):
    """Attributions of the input and of a layer, with options, a wrapped method and a reduction."""
    network = copy.deepcopy(resnet18.module)
    by_hand = captum.attr.IntegratedGradients(network).attribute(inputs, target=TARGETS, n_steps=5)
    ours = CaptumExplainer("ig", captum.attr.IntegratedGradients, n_steps=5)
    torch.testing.assert_close(maps_of(resnet18, ours, inputs), by_hand.sum(dim=1).float())
    layer = captum.attr.LayerGradCam(network, network.layer4).attribute(inputs, target=TARGETS)[:, 0].detach()
    ours = CaptumExplainer("layer-grad-cam", captum.attr.LayerGradCam, layer="layer4")
    torch.testing.assert_close(maps_of(resnet18, ours, inputs), layer)
    largest = CaptumExplainer("saliency", lambda n: captum.attr.Saliency(n), reduce=lambda a: a.amax(dim=1))
    by_hand = captum.attr.Saliency(network).attribute(inputs.clone(), target=TARGETS).amax(dim=1)
    torch.testing.assert_close(maps_of(resnet18, largest, inputs), by_hand)
    with pytest.raises(UnknownNameError, match="layer4"):
        CaptumExplainer("x", captum.attr.LayerGradCam, layer="layer44").check(resnet18)
    flat = CaptumExplainer("x", captum.attr.Saliency, reduce=lambda a: a.sum(dim=(1, 2)))
    with pytest.raises(InvalidInputError, match=r"x must give maps \(3, h, w\)"):
        maps_of(resnet18, flat, inputs)


def test_grad_cam_gives_the_values_of_a_direct_call(resnet18, inputs, grad_cam):
    """Maps have the size of the input and are in [0, 1]; a one-hot direction is a class."""
    network = copy.deepcopy(resnet18.module)
    targets = [grad_cam.utils.model_targets.ClassifierOutputTarget(int(t)) for t in TARGETS]
    for name in ("GradCAMPlusPlus", "LayerCAM", "EigenCAM"):
        made = getattr(grad_cam, name)
        with made(network, [network.layer4]) as method:
            by_hand = torch.as_tensor(method(inputs, targets))
        ours = maps_of(resnet18, GradCAMExplainer("g", made), inputs)
        assert ours.shape == (3, 64, 64)
        torch.testing.assert_close(ours, by_hand.float())
    one_hot = torch.nn.functional.one_hot(TARGETS, 1000).float()
    explainer = GradCAMExplainer("g", grad_cam.GradCAM, layer="layer3")
    torch.testing.assert_close(
        maps_of(resnet18, explainer, inputs, one_hot), maps_of(resnet18, explainer, inputs), rtol=1e-4, atol=1e-5
    )


def test_torchcam_gives_the_values_of_a_direct_call(resnet18, inputs, torchcam):
    """Raw maps have the size of the layer; directions are refused."""
    network = copy.deepcopy(resnet18.module)
    for name in ("GradCAM", "GradCAMpp", "CAM"):
        with getattr(torchcam, name)(network, "layer4") as extractor:
            (by_hand,) = extractor(TARGETS.tolist(), network(inputs), normalized=False)
        explainer = TorchCAMExplainer("t", getattr(torchcam, name))
        torch.testing.assert_close(maps_of(resnet18, explainer, inputs), by_hand.detach())
    with pytest.raises(InvalidInputError, match="t takes class indices"):
        maps_of(resnet18, explainer, inputs, torch.randn(3, 1000))


def test_the_model_does_not_change(abn_resnet18, resnet18, inputs, grad_cam, torchcam):
    """Modes, flags, gradients, hooks and weights do not change; for an ABN, its prediction is explained."""
    methods = [
        CaptumExplainer("guided-backprop", captum.attr.GuidedBackprop),
        GradCAMExplainer("layer-cam", grad_cam.LayerCAM),
        TorchCAMExplainer("grad-cam++", torchcam.GradCAMpp),
    ]
    for model in (abn_resnet18, resnet18):
        model = copy.deepcopy(model)
        model.module.requires_grad_(model.is_abn).train(model.is_abn)
        weights = {k: v.clone() for k, v in model.module.state_dict().items()}
        for method in methods:
            with torch.no_grad():
                maps = maps_of(model, method, inputs)
            assert torch.isfinite(maps).all()
            assert not maps.requires_grad
        assert all(m.training == model.is_abn for m in model.module.modules())
        assert all(p.grad is None and p.requires_grad == model.is_abn for p in model.module.parameters())
        assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.module.modules())
        assert all(torch.equal(v, weights[k]) for k, v in model.module.state_dict().items())
        assert inputs.grad is None
        assert not inputs.requires_grad


def test_a_vision_transformer_needs_no_reshape_function(inputs, grad_cam, torchcam):
    """Tokens are arranged as maps automatically."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, depth=2).eval()
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=64), layer="blocks.1.norm1")
    assert maps_of(model, GradCAMExplainer("g", grad_cam.GradCAM), inputs).shape == (3, 64, 64)
    assert maps_of(model, TorchCAMExplainer("t", torchcam.GradCAM), inputs).shape == (3, 4, 4)


def test_library_methods_in_explain_and_in_a_benchmark(gap_net, tmp_path, grad_cam):
    """Records hold their name, library, method and options, as for registered methods."""
    images = [noise(tmp_path / "set" / name, seed) for seed, name in enumerate(("a.png", "b.png"))]
    method = CaptumExplainer("saliency", captum.attr.Saliency, abs=False)
    record = xai_abn.explain(gap_net, images, [method, "cam"], targets="kite")[1]["saliency"]
    assert (record.method, record.layer, record.label, record.map.shape) == ("saliency", "input", "kite", (32, 32))
    assert record.parameters["method"] == "Saliency"
    assert record.parameters["abs"] is False
    assert record.parameters["library"].startswith("captum ")
    methods = [method, GradCAMExplainer("layer-cam", grad_cam.LayerCAM), "center"]
    run = tmp_path / "run.sqlite"
    benchmark(gap_net, read_dataset(f"images:{tmp_path / 'set'}"), methods, ["gini", "deletion"], run)
    assert benchmark(gap_net, read_dataset(f"images:{tmp_path / 'set'}"), methods, ["gini"], run).known == 2
    with Store.read(run) as store:
        assert store.methods()["layer-cam"]["source"] == "grad-cam"
        assert len(store.results("gini:raw-map")) == 6


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def maps(tmp_path):
    """A folder of maps for ``a.png`` and ``b.png``."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for i, name in enumerate("ab"):
        np.save(folder / f"{name}.npy", np.random.default_rng(i).random((5, 6)))
    return folder


def test_maps_from_a_folder(gap_net, maps, tmp_path):
    """They are found by the names of the images, in explain and in a benchmark; changed maps are noticed."""
    images = [noise(tmp_path / "set" / name, seed) for seed, name in enumerate(("a.png", "b.png"))]
    result = xai_abn.explain(gap_net, images, [MapFolder(maps), "cam"])
    np.testing.assert_allclose(result[1]["elsewhere"].map, np.load(maps / "b.npy"), rtol=1e-6)
    data, run = read_dataset(f"images:{tmp_path / 'set'}"), tmp_path / "run.sqlite"
    assert benchmark(gap_net, data, [MapFolder(maps)], ["gini", "deletion"], run).measured == 2
    assert benchmark(gap_net, data, [MapFolder(maps)], ["gini"], run).known == 2
    np.save(maps / "a.npy", np.eye(5))
    with pytest.raises(RunError, match=r"'elsewhere' was .* values are never mixed"):
        benchmark(gap_net, data, [MapFolder(maps)], ["gini"], run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"b.png: no map found at .*b\.npy"),
        (np.zeros((2, 5, 6)), r"b.png: its map .* must be numbers \(h, w\), got \(2, 5, 6\)"),
        (np.full((5, 6), np.nan), "b.png: its map .* not finite"),
        (np.zeros((6, 5)), r"b.png: its map has shape \(6, 5\), that of .*a.png \(5, 6\)"),
        (b"nothing", "b.png: its map .* cannot be read"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(gap_net, maps, tmp_path, content, message):
    """A missing, damaged or non-finite map and a wrong shape give one line with the name of the image."""
    (maps / "b.npy").unlink()
    if isinstance(content, bytes):
        (maps / "b.npy").write_bytes(content)
    elif content is not None:
        np.save(maps / "b.npy", content)
    images = [noise(tmp_path / name) for name in ("a.png", "b.png")]
    with pytest.raises(InvalidInputError, match=message):
        xai_abn.explain(gap_net, images, [MapFolder(maps)])


def test_a_map_belongs_to_one_image(gap_net, maps, tmp_path, inputs):
    """Maps may be in the same folders as the images; an empty folder and images without names are refused."""
    explainer = MapFolder(maps, name="mine")
    (maps / "cats").mkdir()
    np.save(maps / "cats" / "a.npy", np.ones((5, 6)))
    shared = ForwardPass(gap_net, inputs[:2], sources=["cats/a.jpg", "a.jpg"])
    assert explainer.explain(shared, TARGETS[:2])[0].min() == 1
    with pytest.raises(InvalidInputError, match=r"b\.npy belongs to both x/b\.jpg and dogs/b\.jpg"):
        explainer.explain(ForwardPass(gap_net, inputs[:2], sources=["x/b.jpg", "dogs/b.jpg"]), TARGETS[:2])
    with pytest.raises(InvalidInputError, match="mine finds maps by the names of the images"):
        explainer.explain(ForwardPass(gap_net, inputs), TARGETS)
    with pytest.raises(InvalidInputError, match=r"no \.cam\.npy files there"):
        MapFolder(maps, ending=".cam.npy")
