"""The ABN block against a slow version written from the published description, and identities by hand."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.networks.abn import AttentionBranch, mechanisms
from xai_abn.networks.assembly import split
from xai_abn.networks.dilation import plan_windows
from xai_abn.networks.splitting import find_cut


def batch_norm(x, layer):
    """BatchNorm in evaluation mode, element by element of the formula."""
    x = (x - layer.running_mean.numpy()[:, None, None]) / np.sqrt(layer.running_var.numpy()[:, None, None] + layer.eps)
    return x * layer.weight.detach().numpy()[:, None, None] + layer.bias.detach().numpy()[:, None, None]


def convolve(x, weight):
    """Stride-1 cross-correlation of (C, h, w) with (O, C, k, k), zero padding k // 2, in plain loops."""
    out, _, k, _ = weight.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    height, width = x.shape[1:]
    result = np.zeros((out, height, width))
    for o in range(out):
        for i in range(height):
            for j in range(width):
                result[o, i, j] = (padded[:, i : i + k, j : j + k] * weight[o]).sum()
    return result


def randomise(module):
    """Give every parameter and statistic a seeded value, so that no step is an identity."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                draw = torch.randn(value.shape, generator=generator)
                value.copy_(draw.abs() + 0.5 if "var" in name else draw * 0.5)


def test_the_block_equals_the_published_one():
    """Scores, map and class maps equal a NumPy version of reference/abn.md 1.1 within 1e-5."""
    branch = AttentionBranch(nn.Conv2d(6, 8, 3, padding=1, bias=False), 8, 5).eval()
    randomise(branch)
    features = torch.randn(1, 6, 7, 9, generator=torch.Generator().manual_seed(4))
    scores, attention, class_maps = branch(features)
    weights = {n: p.detach().numpy().astype(np.float64) for n, p in branch.named_parameters()}
    a = convolve(features[0].numpy().astype(np.float64), weights["stage.weight"])
    a = batch_norm(a, branch.bn_att)
    a = np.maximum(batch_norm(convolve(a, weights["att_conv.weight"]), branch.bn_att2), 0)
    s = convolve(a, weights["att_conv2.weight"])
    m = 1 / (1 + np.exp(-batch_norm(convolve(a, weights["att_conv3.weight"]), branch.bn_att3)))
    assert np.abs(class_maps[0].detach().numpy() - s).max() < 1e-5
    assert np.abs(attention[0].detach().numpy() - m).max() < 1e-5
    assert np.abs(scores[0].detach().numpy() - s.mean(axis=(1, 2))).max() < 1e-5


def test_smoothing_averages_the_map_over_its_neighbours():
    """Smoothing once is the mean of up to nine neighbours, at the edge of those there are; 0 is the published map."""
    torch.manual_seed(0)
    stage = nn.Conv2d(3, 4, 1)
    plain, smooth = AttentionBranch(stage, 4, 5).eval(), AttentionBranch(stage, 4, 5, smoothing=1).eval()
    smooth.load_state_dict(plain.state_dict())
    features = torch.randn(1, 3, 6, 6)
    rough, even = plain(features)[1][0, 0], smooth(features)[1][0, 0]
    torch.testing.assert_close(even[2, 3], rough[1:4, 2:5].mean())
    torch.testing.assert_close(even[0, 0], rough[:2, :2].mean())


@pytest.mark.parametrize(("name", "expected"), [("residual", "g * m + g"), ("product", "g * m")])
def test_mechanisms_are_the_papers_formulas(name, expected):
    """Residual is g(1 + M), product gM."""
    g, m = torch.randn(2, 4, 3, 3), torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(mechanisms[name](4)(g, m), eval(expected, {"g": g, "m": m}))


def test_concatenation_starts_as_residual_and_can_learn_otherwise():
    """[gM, g] mixed by two identities is g(1 + M); with other weights each half counts by itself."""
    g, m = torch.randn(2, 4, 3, 3), torch.rand(2, 1, 3, 3)
    mechanism = mechanisms["concatenation"](4)
    torch.testing.assert_close(mechanism(g, m), g * m + g)
    with torch.no_grad():
        mechanism.mix.weight[:, 4:] = 0
    torch.testing.assert_close(mechanism(g, m), g * m)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("mechanism", ["residual", "concatenation"])
def test_a_map_of_zeros_gives_the_baseline(backbone, inputs, mechanism):
    """With M = 0 the perception branch computes exactly what the backbone does."""
    network = xai_abn.abn_from(backbone, mechanism=mechanism, input_size=64)
    with torch.no_grad():
        edited = network(inputs, attention=torch.zeros(1, 1, 4, 4))
        torch.testing.assert_close(edited.logits, backbone(inputs))
    assert edited.attention_map.abs().max() == 0


def test_a_map_of_ones_gives_the_baseline_for_the_product(backbone, inputs):
    """With M = 1, g*M is g."""
    network = xai_abn.abn_from(backbone, mechanism="product", input_size=64)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs, attention=torch.ones(3, 1, 4, 4)).logits, backbone(inputs))


def test_parameters_are_the_baselines_plus_the_branchs(backbone):
    """ABN minus its attention branch has the backbone's parameters, and as many in all as published for K = 1000."""
    network = xai_abn.abn_from(backbone)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(network) - count(network.attention_branch) == count(backbone) == 11_689_512
    assert round(count(network) / 1e6, 2) == 21.61
    assert round(count(network.attention_branch) / 1e6, 2) == 9.92


def test_the_split_is_the_published_one(backbone):
    """A ResNet is cut behind layer3; at 224 pixels the map is 14x14."""
    assert find_cut(backbone).layer == "layer3"
    assert xai_abn.abn_from(backbone)(torch.zeros(1, 3, 224, 224)).attention_map.shape == (1, 1, 14, 14)


def test_class_maps_average_to_the_attention_logits(backbone, inputs):
    """The class maps are an exact CAM of the attention branch, at any input size."""
    network = xai_abn.abn_from(backbone, input_size=64)
    for images in (inputs, torch.randn(1, 3, 96, 160)):
        output = network(images)
        torch.testing.assert_close(output.class_maps.mean(dim=(2, 3)), output.attention_logits)
        assert 0 <= output.attention_map.min() <= output.attention_map.max() <= 1
        assert output.attention_map.shape[2:] == (images.shape[2] // 16, images.shape[3] // 16)


def test_the_attention_loss_does_not_reach_the_map_head(backbone, inputs):
    """The map is learned through the perception branch alone, as in the released code."""
    network = xai_abn.abn_from(backbone, input_size=64)
    network(inputs).attention_logits.sum().backward()
    assert network.attention_branch.att_conv3.weight.grad is None
    network(inputs).logits.sum().backward()
    assert network.attention_branch.att_conv3.weight.grad.abs().sum() > 0


def test_the_fresh_branch_classifies_as_the_backbone_does(abn_lite0):
    """Class maps of an untrained branch put the backbone's own answer first on nearly every example image."""
    lite0 = xai_abn.load_model("lite0")
    network = xai_abn.abn_from(lite0.module)
    from xai_abn.images.loading import load_image

    images = ["astronaut", "cat", "coffee", "rocket"]
    images = torch.stack([lite0.preprocess(load_image(f"example:{n}")).tensor for n in images])
    with torch.no_grad():
        top5 = network(images).attention_logits.topk(5).indices
        answer = lite0.module(images).argmax(dim=1)
    assert (top5 == answer[:, None]).any(dim=1).sum() >= 3


def test_building_leaves_the_backbone_alone(backbone):
    """abn_from copies: the backbone keeps its weights, strides and mode, and shares none with the network."""
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    network = xai_abn.abn_from(backbone)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())
    assert backbone.layer4[0].conv1.stride == (2, 2)
    assert not backbone.training


def test_without_dilation_the_branch_is_the_released_codes(backbone):
    """dilate=False leaves every convolution of the branch undilated; the default dilates behind the removed stride."""
    plain = xai_abn.abn_from(backbone, dilate=False).attention_branch.stage
    dilated = xai_abn.abn_from(backbone).attention_branch.stage
    assert {m.dilation for m in plain.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert {m.dilation for m in dilated.modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (2, 2)}


def test_dilation_keeps_what_the_stage_computes(backbone):
    """At every second position the dilated stage equals the strided one."""
    parts = split(backbone, find_cut(backbone))
    branch = xai_abn.abn_from(backbone).attention_branch
    features = torch.randn(1, 256, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(branch.stage(features)[:, :, ::2, ::2], parts.last_stage(features))


@pytest.mark.parametrize("spec", ["torchvision:shufflenet_v2_x0_5", "timm:mobileone_s0", "timm:fasternet_t0"])
def test_dilation_follows_the_way_through_parallel_branches(spec):
    """Strides side by side count once, whatever the order in which the network was written down."""
    torch.manual_seed(0)
    module = xai_abn.load_model(spec, weights="random").module
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    parts = split(module, find_cut(module, input_size=128))
    stage = xai_abn.abn_from(module, input_size=128).attention_branch.stage
    with torch.no_grad():
        features = parts.feature_extractor(torch.randn(2, 3, 128, 128))
        small, large = parts.last_stage(features), stage(features)
    size = (small - large[:, :, ::2, ::2]).abs().mean() / small.abs().mean()
    assert large.shape[2] == features.shape[2] == 2 * small.shape[2]
    assert float(size) < 1e-5


def test_dilation_is_the_stride_also_where_small_maps_shrink_more():
    """Without padding a 6x6 map becomes 2x2, and the stride is 2 still."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    stage = xai_abn.abn_from(module, layer="1", input_size=12).attention_branch.stage
    assert [m.dilation for m in stage.modules() if isinstance(m, nn.Conv2d)] == [(1, 1), (2, 2)]


FAMILIES = [
    "torchvision:densenet121",
    "torchvision:vgg11_bn",
    "torchvision:efficientnet_b0",
    "torchvision:mobilenet_v2",
    "torchvision:convnext_tiny",
    "torchvision:regnet_y_400mf",
    "timm:resnet26d",
    "timm:convnext_atto",
    "timm:mobilenetv3_small_050",
    "timm:regnety_002",
    "timm:tf_efficientnet_lite0",
    "timm:dla46_c",  # its head is a 1x1 convolution
]


@pytest.mark.parametrize("spec", FAMILIES)
def test_every_family_splits_without_changing_its_answer(spec):
    """Extractor and perception branch together give the backbone's logits; the map doubles the resolution."""
    torch.manual_seed(0)
    module = xai_abn.load_model(spec, weights="random").module
    images = torch.randn(2, 3, 64, 64)
    parts = split(module, find_cut(module, input_size=64))
    with torch.no_grad():
        features = parts.feature_extractor(images)
        torch.testing.assert_close(parts.perception(features), module(images))
        output = xai_abn.abn_from(module, input_size=64)(images)
        small = parts.last_stage(features)
    assert output.attention_map.shape[2:] == features.shape[2:]
    assert features.shape[2] == 2 * small.shape[2]


def test_a_head_that_is_a_convolution_starts_the_branch():
    """Untrained, the attention branch of a network with such a head has the rectified evidence of the classifier."""
    torch.manual_seed(0)
    module = timm.create_model("dla46_c", num_classes=5).eval()
    network = xai_abn.abn_from(module, input_size=64)
    branch = network.attention_branch
    assert torch.equal(branch.att_conv.weight, module.fc.weight)
    assert torch.equal(branch.bn_att2.bias, module.fc.bias)


def test_what_cannot_be_split_is_refused(backbone):
    """Unknown layers, layers without anything spatial behind them, transformers: each with a reason."""
    with pytest.raises(UnknownNameError, match="layer3"):
        xai_abn.abn_from(backbone, layer="layer33")
    with pytest.raises(UnsupportedModelError, match="no spatial output"):
        xai_abn.abn_from(backbone, layer="layer4")
    with pytest.raises(UnknownNameError, match="residual"):
        xai_abn.abn_from(backbone, mechanism="residuel")
    with pytest.raises(UnsupportedModelError, match="downsamples"):
        xai_abn.abn_from(torchvision.models.vit_b_32(), input_size=224)


def test_a_wrong_map_is_refused(abn_resnet18, inputs):
    """An edited map must fit the features and lie in [0, 1]."""
    network = abn_resnet18.module
    with pytest.raises(InvalidInputError, match="shape"):
        network(inputs, attention=torch.zeros(3, 1, 5, 5))
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        network(inputs, attention=torch.full((3, 1, 4, 4), 1.5))


def test_as_classifier_gives_the_perception_logits(abn_resnet18, inputs):
    """Libraries that expect one tensor get the prediction."""
    network = abn_resnet18.module
    with torch.no_grad():
        assert torch.equal(network.as_classifier()(inputs), network(inputs).logits)


def test_as_classifier_computes_no_class_maps(inputs):
    """Which the prediction does not need; where the map is not used, the attention branch does not run either."""
    ran = []
    for mechanism in ("residual", "auxiliary"):
        network = xai_abn.abn_from(torchvision.models.resnet18().eval(), mechanism=mechanism).eval()
        branch = network.attention_branch
        for name, layer in (("class maps", branch.att_conv2), ("map", branch.att_conv3)):
            layer.register_forward_hook(lambda *_, name=f"{mechanism}: {name}": ran.append(name))
        with torch.no_grad():
            found = network.as_classifier()(inputs)
        assert ran == {"residual": ["residual: map"], "auxiliary": []}[mechanism]
        with torch.no_grad():
            torch.testing.assert_close(found, network(inputs).logits)
        ran.clear()


class FixedSize(nn.Module):
    """Accepts features of one size only."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, features):
        assert features.shape[2] == self.side, "one size only"
        return features


@pytest.mark.parametrize(("side", "exact"), [(8, True), (7, False)])
def test_a_stage_of_one_size_is_measured_there_or_refused(side, exact):
    """7 rows become 4: the factor is not known, and is not guessed."""
    stage = nn.Sequential(FixedSize(side), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1))
    features = torch.zeros(1, 4, side, side)
    if exact:
        assert plan_windows(stage, features, dilate=True)["2"]["dilation"] == [2, 2]
    else:
        with pytest.raises(UnsupportedModelError, match=r"input of .*one size only.*dilate=False"):
            plan_windows(stage, features, dilate=True)
        assert plan_windows(stage, features, dilate=False) == {"1": {"stride": [1, 1]}}
