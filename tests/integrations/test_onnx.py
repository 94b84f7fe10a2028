"""Models as ONNX: the same answers and maps in onnxruntime, at every size that is promised."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
import timm
import torch
import torchvision
from support import call
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, OutputError, UnsupportedModelError
from xai_abn.images.loading import load_image
from xai_abn.integrations.onnx import export_onnx
from xai_abn.models import zoo

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = session.run(names, {"images": inputs.numpy()})
    return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}


@pytest.mark.parametrize("fixture", ["abn_lite0", "abn_resnet18"])
def test_an_abn_gives_logits_and_both_maps(request, fixture, tmp_path):
    """One file answers batches and sizes that the export itself did not try."""
    model = request.getfixturevalue(fixture)
    made = export_onnx(model, tmp_path / "abn.onnx")
    assert made.any_size
    assert max(made.differences.values()) < 1e-3
    for batch, size in ((1, (224, 224)), (3, (160, 97))):
        inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        found = answers(made.path, inputs)
        with torch.no_grad():
            expected = model.module.eval()(inputs)
        assert list(found) == ["logits", "attention_map", "class_maps"]
        for name, values in found.items():
            torch.testing.assert_close(values, getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_a_file_in_half_precision_takes_and_gives_float32(abn_lite0, tmp_path):
    """Half the size, the same outputs within a hundredth of the largest value, on images."""
    whole, made = (
        export_onnx(abn_lite0, tmp_path / "abn.onnx"),
        export_onnx(abn_lite0, tmp_path / "half.onnx", half=True),
    )
    assert made.path.stat().st_size < 0.52 * whole.path.stat().st_size
    assert made.any_size
    inputs = torch.stack([abn_lite0.preprocess(load_image(f"example:{n}")).tensor for n in ("cat", "coffee")])
    with torch.no_grad():
        expected = abn_lite0.module(inputs)
    for name, values in answers(made.path, inputs).items():
        assert values.dtype == torch.float32
        largest = float(getattr(expected, name).abs().max())
        torch.testing.assert_close(values, getattr(expected, name), rtol=0, atol=1e-2 * largest)
    assert all(p.dtype == torch.float32 for p in abn_lite0.module.parameters())


def test_a_network_too_large_for_half_precision_is_refused(tmp_path):
    """Beyond 65504 there is no float16."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    nn.init.constant_(network[2].weight, 1e6)
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=32))
    with pytest.raises(UnsupportedModelError, match=r"logits differ .*; export it without half precision"):
        export_onnx(model, tmp_path / "half.onnx", half=True)
    export_onnx(model, tmp_path / "whole.onnx")


def test_torchvisions_transformers_are_exported(tmp_path):
    """Their attention has a fast path that ONNX has not."""
    network = torchvision.models.VisionTransformer(64, 16, 2, 4, 32, 64, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    made = export_onnx(xai_abn.wrap(network.eval(), preprocess=xai_abn.Preprocess(size=64)), tmp_path / "vit.onnx")
    assert made.differences["logits"] < 1e-4
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_file_says_how_to_use_it(gap_net, tmp_path):
    """Labels, preprocessing, name, version and the maps are in its metadata."""
    made = export_onnx(gap_net, tmp_path / "net.onnx")
    metadata = onnxruntime.InferenceSession(str(made.path)).get_modelmeta()
    facts = metadata.custom_metadata_map
    assert xai_abn.Preprocess.from_dict(json.loads(facts["preprocess"])) == gap_net.preprocess
    assert json.loads(facts["labels"]) == list(gap_net.labels)
    assert (facts["model"], facts["xai-abn"]) == ("gap-net", xai_abn.__version__)
    assert made.outputs == ("logits", "class_maps")
    assert json.loads(facts["maps"]) == {"cam": ["class_maps", "features"]}


def resnet():
    return timm.create_model("resnet10t", channels=(8, 12, 16, 24), num_classes=6)


def mobilenet():
    """Its logits are a 1x1 convolution of the pooled features."""
    network = timm.create_model("mobilenetv3_small_050", num_classes=6)
    return network.eval()


def vgg():
    stages = torchvision.models.vgg.make_layers([8, "M", 12, "M", 16, "M"])
    network = torchvision.models.VGG(stages, num_classes=6)
    network.avgpool = nn.Identity()
    network.classifier = nn.Sequential(nn.Linear(16 * 64, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 6))
    return network


def vgg_with_pooling():
    """As torchvision's, it pools to the 7x7 positions that its features have at their usual size, or to a part."""
    network = vgg()
    network.features.append(nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((2, 4))))
    network.avgpool = nn.AdaptiveAvgPool2d((2, 4))
    network.classifier[0] = nn.Linear(16 * 8, 12)
    return network


class ConvolutionalHead(nn.Module):
    """Classifies the pooled features by a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torchvision.models.mobilenet_v2(width_mult=0.1).features
        self.classifier = nn.Conv2d(1280, 6, 1)

    def forward(self, x):
        return self.classifier(self.body(x).mean((2, 3), keepdim=True)).flatten(1)


class ScoresThenMean(nn.Module):
    """Classifies every position, then averages, as SqueezeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))

    def forward(self, x):
        return self.body(x).mean((2, 3))


def transformer():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, num_classes=6, depth=3, embed_dim=48, class_token=False,
        global_pool="avg", fc_norm=False,
    )  # fmt: skip


SIDE = 64


def seeded(build):
    """The network with random weights and statistics, for 64-pixel inputs."""
    torch.manual_seed(0)
    network = build().eval()
    with torch.no_grad():
        for name, values in (*network.named_parameters(), *network.named_buffers()):
            if values.is_floating_point():
                values.add_(0.05 * (torch.rand_like(values) if "running_var" in name else torch.randn_like(values)))
    return xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=SIDE), name=build.__name__)


def run_with(network, layer, inputs, change=lambda output: output):
    """The output of the network and of a layer, which is changed."""
    kept = []

    def hook(_module, _inputs, output):
        kept.append(output.clone())
        return change(output)

    handle = network.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        logits = network(inputs)
    handle.remove()
    return logits, kept[0]


def cam_by_hand(network, layer, inputs):
    """The rows of the classifier at every position, (N, K, h, w)."""
    features = run_with(network, layer, inputs)[1]
    if features.dim() == 3:  # tokens
        features = features.transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16))
    head = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(network, ScoresThenMean):
        return features
    with torch.no_grad():
        return torch.stack([(features * row.view(1, -1, 1, 1)).sum(1) for row in head.weight.flatten(1)], dim=1)


def recipro_cam_by_hand(network, layer, inputs):
    """The softmax with one position at a time, of one image at a time, (N, K, h, w)."""
    maps = []
    for image in inputs.split(1):
        shape = run_with(network, layer, image)[1].shape
        places = torch.eye(int(shape[1:2].numel() if len(shape) == 3 else shape[2:].numel()))
        alone = [place.view(1, -1, 1) if len(shape) == 3 else place.view(1, 1, *shape[2:]) for place in places]
        scores = [run_with(network, layer, image, lambda o, m=m: o * m)[0].softmax(1) for m in alone]
        grid = (SIDE // 16, SIDE // 16) if len(shape) == 3 else shape[2:]
        maps.append(torch.stack(scores, dim=2).unflatten(2, grid))
    return torch.cat(maps)


@pytest.mark.parametrize(
    ("build", "layer"),
    [(resnet, "layer4"), (ConvolutionalHead, "body"), (ScoresThenMean, "body"), (transformer, "norm")],
)
def test_the_maps_of_cam_are_in_the_file(build, layer, tmp_path):
    """Of all classes, where CAM applies, without being asked; they are what a plain loop computes."""
    model = seeded(build)
    made = export_onnx(model, tmp_path / "net.onnx")
    assert made.outputs == ("logits", "class_maps")
    assert made.maps == {"cam": ("class_maps", layer)}
    assert made.any_size == (build is not transformer)
    for shape in [(2, 3, SIDE, SIDE), (1, 3, SIDE, SIDE), *([(3, 3, 96, 80)] if made.any_size else [])]:
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        found, expected = answers(made.path, inputs), cam_by_hand(model.module, layer, inputs)
        torch.testing.assert_close(found["logits"], model.module(inputs).detach(), rtol=1e-4, atol=1e-4)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found["class_maps"] / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "method", "layer"),
    [
        (resnet, "recipro-cam", "layer4"),
        (resnet, "recipro-cam:layer=layer3", "layer3"),
        (mobilenet, "recipro-cam", "blocks"),
        (vgg, "recipro-cam", "features.7"),
        (vgg_with_pooling, "recipro-cam:layer=features.7", "features.7"),
        (transformer, "recipro-cam", "norm"),
        (transformer, "recipro-cam:layer=blocks.1", "blocks.1"),
    ],
)
def test_the_maps_of_recipro_cam_are_in_the_file(build, method, layer, tmp_path):
    """Of all classes, for any batch, with any head; they are what one pass for each position gives."""
    model = seeded(build)
    made = export_onnx(model, tmp_path / "net.onnx", method=method)
    assert made.maps == {"recipro-cam": ("class_maps", layer)}
    assert made.any_size == (build in (resnet, mobilenet))
    for shape in [(3, 3, SIDE, SIDE), (1, 3, SIDE, SIDE), *([(2, 3, 96, 80)] if made.any_size else [])]:
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        found, expected = answers(made.path, inputs)["class_maps"], recipro_cam_by_hand(model.module, layer, inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert float(expected.std(dim=(2, 3)).max()) > 1e-3  # or nothing would be compared


def test_where_cam_does_not_apply_the_reason_is_said(tmp_path):
    """By default there are logits alone; a method that was named is refused."""
    model = seeded(vgg)
    made = export_onnx(model, tmp_path / "net.onnx")
    assert made.outputs == ("logits",)
    assert made.maps == {}
    assert "CAM needs a head of global average pooling" in made.no_maps_because
    with pytest.raises(UnsupportedModelError, match="CAM needs a head"):
        export_onnx(model, tmp_path / "net.onnx", method="cam")
    assert export_onnx(seeded(resnet), tmp_path / "net.onnx", method="none").outputs == ("logits",)


def test_maps_in_half_precision(tmp_path):
    """As near as the logits are."""
    model = seeded(resnet)
    inputs = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for method, by_hand in (("cam", cam_by_hand), ("recipro-cam", recipro_cam_by_hand)):
        made = export_onnx(model, tmp_path / "half.onnx", half=True, method=method)
        expected = by_hand(model.module, "layer4", inputs)
        found = answers(made.path, inputs)["class_maps"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


def test_attributes_have_sigmoids(tmp_path):
    """The probabilities of Recipro-CAM are those of the model."""
    model = dataclasses.replace(seeded(resnet), multi_label=True)
    made = export_onnx(model, tmp_path / "net.onnx", method="recipro-cam")
    inputs = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    corner = run_with(
        model.module, "layer4", inputs, lambda o: o * torch.eye(o.shape[2] * o.shape[3])[0].view(o.shape[2:])
    )
    found = answers(made.path, inputs)["class_maps"][0, :, 0, 0]
    torch.testing.assert_close(found, corner[0][0].sigmoid(), rtol=1e-5, atol=1e-6)


def test_an_abn_has_no_other_maps(small_abn, tmp_path):
    """Its class maps are those of its branch; without them there are logits alone."""
    with pytest.raises(InvalidInputError, match="leave cam out, or give none"):
        export_onnx(small_abn, tmp_path / "net.onnx", method="cam")
    assert export_onnx(small_abn, tmp_path / "net.onnx", method="none").outputs == ("logits",)


def test_methods_that_no_file_can_compute_are_refused(gap_net, small_vit, tmp_path):
    """With what to give: those with gradients, and a layer whose output meets tokens of the image itself."""
    with pytest.raises(InvalidInputError, match="cam or recipro-cam, which need no gradients, not of grad-cam"):
        export_onnx(gap_net, tmp_path / "net.onnx", method="grad-cam")
    with pytest.raises(UnsupportedModelError, match=r"behind 'blocks.2.norm1' cannot run .*; name another layer"):
        export_onnx(small_vit, tmp_path / "net.onnx", method="recipro-cam")
    export_onnx(small_vit, tmp_path / "net.onnx", method="recipro-cam:layer=blocks.1")


class OtherMaps(torch.nn.Module):
    """Computes other features when traced, of the same mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(3) if torch.jit.is_tracing() else x


@pytest.mark.parametrize("method", ["cam", "recipro-cam"])
def test_a_file_with_other_maps_is_not_kept(method, tmp_path):
    """Its logits are right."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.ReLU(), OtherMaps(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = xai_abn.wrap(network.append(nn.Linear(4, 2)).eval(), preprocess=xai_abn.Preprocess(size=SIDE))
    with pytest.raises(UnsupportedModelError, match="class_maps differ from PyTorch's"):
        export_onnx(model, tmp_path / "net.onnx", method=f"{method}:layer=2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (nn.Identity(), "not accept other sizes"),
        (nn.AdaptiveAvgPool2d(3), "1 pools adaptively to 3, which ONNX"),
    ],
)
def test_a_network_that_needs_its_size_gets_it(pool, reason, tmp_path):
    """Where no other size is possible, in the network or in ONNX, the file says so and takes any batch."""
    side = 32 if isinstance(pool, nn.Identity) else 24
    features = 4 * (side // 4) ** 2 if isinstance(pool, nn.Identity) else 36
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), pool, nn.Flatten(), nn.Linear(features, 2)).eval()
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=side))
    made = export_onnx(model, tmp_path / "net.onnx")
    assert not made.any_size
    assert re.search(reason, made.fixed_because)
    inputs = torch.randn(5, 3, side, side)
    torch.testing.assert_close(answers(made.path, inputs)["logits"], network(inputs).detach())


class Fickle(nn.Module):
    """Answers otherwise when traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * (2 if torch.jit.is_tracing() else 1)


def test_nothing_is_left_of_an_export_that_failed(gap_net, tmp_path, monkeypatch):
    """A wrong answer, a wrong ending, a missing folder or package: one error, and the old file stays."""
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    model = xai_abn.wrap(Fickle(), preprocess=xai_abn.Preprocess(size=32))
    with pytest.raises(UnsupportedModelError, match="logits differ from PyTorch's by"):
        export_onnx(model, target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(InvalidInputError, match=r"must end in \.onnx"):
        export_onnx(gap_net, tmp_path / "net.pt")
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(gap_net, tmp_path / "nowhere" / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidInputError, match=r"needs onnxruntime: pip install 'xai-abn\[onnx\]'"):
        export_onnx(gap_net, target)


def test_exporting_leaves_the_model_alone(gap_net, tmp_path):
    """Mode and flags stay as they were."""
    gap_net.module.train()
    export_onnx(gap_net, tmp_path / "net.onnx")
    assert all(m.training for m in gap_net.module.modules())
    assert all(p.requires_grad for p in gap_net.module.parameters())


def test_the_command_writes_what_the_ending_says(gap_net, tmp_path, monkeypatch):
    """``xai-abn export MODEL FILE.onnx`` prints outputs, sizes and difference; other endings are refused."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("export", "small", "small.onnx")
    assert code == 0
    assert out.startswith(
        "small.onnx: logits, class_maps; class_maps are those of cam at features; any batch, any size\n"
        "largest difference from PyTorch: logits "
    )
    assert (tmp_path / "small.onnx").is_file()
    assert call("export", "small", "half.onnx", "--half")[0] == 0
    assert (tmp_path / "half.onnx").stat().st_size < (tmp_path / "small.onnx").stat().st_size
    code, out, _ = call("export", "small", "logits.onnx", "--method", "none")
    assert out.startswith("logits.onnx: logits; any batch, any size\n")
    monkeypatch.setitem(zoo.models, "other", lambda: seeded(vgg))
    code, out, err = call("export", "other", "other.onnx")
    assert code == 0
    assert out.startswith("other.onnx: logits; any batch, only 64x64 pixels\n")
    assert "note: no maps, as CAM needs a head" in err
    assert call("export", "other", "other.onnx", "--method", "recipro-cam")[0] == 0
    code, _, err = call("export", "small", "small.pt")
    assert code == 2
    assert err.startswith("xai-abn: small.pt: the file must end in .onnx")
