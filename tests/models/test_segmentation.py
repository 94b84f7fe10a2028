"""Networks that score every class at every position: regions, and maps equal to those of plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from odd_networks import UNet
from PIL import Image
from support import call
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, NonFiniteError, UnsupportedModelError
from xai_abn.images.loading import from_array
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.segmentation import class_scores, find_region


def segformer(**options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 2, 4], "num_labels": 4}
    config = transformers.SegformerConfig(**small, decoder_hidden_size=16, **options)
    return transformers.SegformerForSemanticSegmentation(config)


def of_torchvision(name):
    return lambda: getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=4)


NETWORKS = {
    "U-Net": UNet,
    "LR-ASPP": of_torchvision("lraspp_mobilenet_v3_large"),
    "DeepLab": of_torchvision("deeplabv3_mobilenet_v3_large"),
    "FCN": of_torchvision("fcn_resnet50"),
    "SegFormer": segformer,
}


def model(name="U-Net", **options):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for module in network.modules():  # so that positions differ in their top class
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.3)
    return xai_abn.wrap(
        network, preprocess=Preprocess(size=64, crop="squash"), labels=["background", *"abc"], **options
    )


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)


def plain_maps(network, layer, inputs, weights, index):
    """Grad-CAM and HiResCAM of the mean score of a class under weights (h, w), with a hook and autograd."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _i, o: kept.append(o))
    scores = class_scores(network(inputs))
    handle.remove()
    (features,) = (o if isinstance(o, torch.Tensor) else o[0] for o in kept)
    (gradient,) = torch.autograd.grad((scores[:, index] * weights).sum() / weights.sum(), features)
    if features.dim() == 3:
        side = round(features.shape[1] ** 0.5)
        features, gradient = (t.transpose(1, 2).unflatten(2, (side, side)) for t in (features, gradient))
    grad_cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()
    return grad_cam[0].detach().numpy(), (gradient * features).sum(1)[0].detach().numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_that_of_plain_autograd(name, picture):
    """Of the mean score over the positions with this class, over a point and over a mask."""
    adapter = model(name)
    prepared = adapter.preprocess(from_array(picture))
    with torch.no_grad():
        scores = class_scores(adapter.module(prepared.tensor[None]))[0]
    height, width = scores.shape[1:]
    top = scores.argmax(0)
    index = int(top.flatten().bincount(minlength=4)[1:].argmax()) + 1
    point, left = torch.zeros(height, width), torch.zeros(height, width)
    point[height * 20 // 80, width * 90 // 120] = 1
    left[:, : width // 2] = 1
    mask = np.zeros((80, 120), bool)
    mask[:, :60] = True
    for region, weights in ((None, (top == index).float()), ((90, 20), point), (mask, left), ((0, 0, 60, 80), left)):
        if not weights.any():
            continue
        target = xai_abn.SegmentationTarget(index, region)
        result = xai_abn.explain(adapter, picture, "grad-cam,hires-cam", target)[0]
        record = result["grad-cam"]
        right = plain_maps(adapter.module, record.layer, prepared.tensor[None], weights, index)
        scale = np.abs(right[1]).max()
        assert scale > 0
        for found, map_ in zip(result.values(), right, strict=True):
            np.testing.assert_allclose(found.map, map_, atol=2e-5 * scale)
        assert record.score == pytest.approx(float((scores[index] * weights).sum() / weights.sum()), rel=1e-5)
        assert (record.target, record.label) == (index, "abc"[index - 1])
        assert np.isnan(record.probability)


def test_a_class_is_explained_where_it_is_the_top_one(picture):
    """Without a target it is the class with the most positions that is not the background."""
    adapter = model()
    image = adapter.preprocess(from_array(picture))
    scores = adapter.class_map(adapter.module(image.tensor[None]), image.source)
    counts = scores.argmax(0).flatten().bincount(minlength=4)
    best = int(counts[1:].argmax()) + 1
    record = xai_abn.explain(adapter, picture, "grad-cam")["grad-cam"]
    assert record.target == best
    share = f"{int(counts[best]) / counts.sum().item():.0%}"
    assert record.notes == (
        f"the score is the mean of {adapter.label(best)!r} over the positions that have it, {share} of all",
    )
    named = xai_abn.explain(adapter, picture, "grad-cam", adapter.label(best))["grad-cam"]
    np.testing.assert_array_equal(named.map, record.map)


def test_several_targets_and_images(picture):
    """Each image has its own regions, and an error of one does not stop the other."""
    adapter = model()
    where = [xai_abn.SegmentationTarget(name, (60, 40)) for name in "ab"]
    result = xai_abn.explain(adapter, [picture, picture[:, ::-1].copy()], ["grad-cam", "eigen-cam"], [where, where])
    for found in result:
        assert list(found) == [("grad-cam", "a"), "eigen-cam", ("grad-cam", "b")]
    alone = xai_abn.explain(adapter, picture[:, ::-1].copy(), "grad-cam", where[1])["grad-cam"]
    np.testing.assert_allclose(result[1]["grad-cam", "b"].map, alone.map, atol=1e-6)


def test_perturbations_keep_the_region(picture):
    """Occlusion: the score of the same positions, with and without each part."""
    adapter = model()
    target = xai_abn.SegmentationTarget("a", (60, 40))
    found = xai_abn.explain(adapter, picture, "occlusion:window=0.5,stride=0.5", target)[0]
    (record,) = found.values()
    inputs = adapter.preprocess(from_array(picture)).tensor[None]
    for row, column in ((0, 0), (1, 1)):
        changed = inputs.clone()
        changed[:, :, 32 * row :, 32 * column :][:, :, :32, :32] = 0
        with torch.no_grad():
            before, after = (class_scores(adapter.module(x))[0, 1, 16, 16] for x in (inputs, changed))
        assert record.map[32 * row + 16, 32 * column + 16] == pytest.approx(float(before - after), abs=1e-5)


def test_a_mask_is_where_the_image_is_between_borders(picture):
    """Of an image of 120x80 in a square, borders of a sixth are above and below."""
    prepared = Preprocess(size=48, crop="letterbox")(from_array(picture))
    mask = np.zeros((80, 120), bool)
    mask[:40, :60] = True
    target = xai_abn.SegmentationTarget(0, mask)
    weights = find_region(target, torch.zeros(2, 6, 6), prepared, str, lambda *_: 0).weights
    expected = torch.zeros(6, 6)
    expected[1:3, :3] = 1 / 6
    torch.testing.assert_close(weights, expected)


class Nan(UNet):
    """Its weights have gone wrong."""

    def forward(self, x):
        return super().forward(x) * float("nan")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (xai_abn.SegmentationTarget("a", (130, 20)), "saw nothing at 130, 20; it saw the part from 0, 0 to 120, 80"),
        (xai_abn.SegmentationTarget("a", (130, 90, 140, 99)), "saw nothing of"),
        (xai_abn.SegmentationTarget("a", np.ones((64, 64), bool)), r"must have the size of its image, \(80, 120\)"),
        (xai_abn.SegmentationTarget("a", np.zeros((80, 120), bool)), "saw nothing of the mask"),
        (xai_abn.SegmentationTarget("a", "left"), "outline must be a box"),
        (xai_abn.SegmentationTarget("d"), "unknown label 'd'"),
        (xai_abn.Difference("a", versus="b"), "give a label, an index or a SegmentationTarget, not a Difference"),
        (9, "target 9 is out of range"),
    ],
)
def test_what_is_no_region_is_refused(picture, target, problem):
    with pytest.raises((InvalidInputError, xai_abn.errors.UnknownNameError), match=problem):
        xai_abn.explain(model(), picture, "grad-cam", target)


def test_other_refusals(picture, gap_net):
    """A class that is nowhere, scores that are not finite, a classifier, and a benchmark."""
    torch.manual_seed(0)
    network = UNet()
    nn.init.constant_(network.head.bias, 0)
    with torch.no_grad():
        network.head.bias[2] = 1e3
    adapter = xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64))
    with pytest.raises(InvalidInputError, match=r"no position has 'class 1'; the network sees class 2 \(100%\)"):
        xai_abn.explain(adapter, picture, "grad-cam", 1)
    with pytest.raises(NonFiniteError, match="NaN or infinite scores"):
        xai_abn.explain(xai_abn.wrap(Nan(), layer="bottom", preprocess=Preprocess(size=64)), picture, "grad-cam")
    with pytest.raises(InvalidInputError, match="a SegmentationTarget is for a network that scores every class"):
        xai_abn.explain(gap_net, picture, "cam", xai_abn.SegmentationTarget(0))
    with pytest.raises(UnsupportedModelError, match="outputs no map"):
        gap_net.class_map(torch.zeros(1, 3), "image")


def test_segmentation_networks_are_loaded_by_name(tmp_path, picture):
    """Of torchvision with random weights or a file of one's own, of Hugging Face from a folder; in a command, too."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    network = of_torchvision("lraspp_mobilenet_v3_large")()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    (tmp_path / "names.txt").write_text("background\na\nb\nc\n")
    name = "torchvision:lraspp_mobilenet_v3_large"
    own = xai_abn.load_model(name, weights=tmp_path / "own.pth", labels=tmp_path / "names.txt")
    assert (own.number_of_classes, own.labels) == (4, ("background", "a", "b", "c"))
    assert (own.preprocess.size, own.preprocess.crop) == (520, "squash")
    assert xai_abn.load_model(name, weights="random", size=64).labels[12] == "dog"
    segformer(id2label=dict(enumerate(["background", "sky", "road", "car"]))).save_pretrained(tmp_path / "segformer")
    found = xai_abn.load_model(f"hf:{tmp_path / 'segformer'}", size=64)
    assert found.labels == ("background", "sky", "road", "car")
    arguments = ("--model", f"hf:{tmp_path / 'segformer'}", "--size", 64, "--json", "--output", tmp_path / "out")
    code, out, err = call("explain", tmp_path / "a.png", *arguments, "--method", "grad-cam")
    assert code == 0, err
    assert any(f'"label": "{label}"' in out for label in found.labels)
    (tmp_path / "set/one").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "set/one/a.png")
    options = ("--metric", "gini", "--method", "saliency", "--output", tmp_path / "run.sqlite")
    code, _, err = call("benchmark", "run", "--data", f"images:{tmp_path / 'set'}", *arguments[:4], *options)
    assert code == 2
    assert "is not a classifier, which a benchmark needs" in err
