"""CAM, Grad-CAM and ABN against plain formulas and identities worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision

import xai_abn
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import ABN, CAM, ABNClass, GradCAM
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import find_classifier

TARGETS = torch.tensor([3, 1, 4])


def test_cam_equals_the_plain_sum(gap_net, inputs):
    """M_c(x, y) = sum_k w_ck f_k(x, y), in loops, within 1e-5."""
    shared = ForwardPass(gap_net, inputs, ["features"])
    maps = CAM().explain(shared, TARGETS)
    features = gap_net.module.features(inputs).detach()
    weight = gap_net.module.fc.weight.detach()
    for n, target in enumerate(TARGETS.tolist()):
        plain = torch.zeros(features.shape[2:])
        for k in range(features.shape[1]):
            plain += weight[target, k] * features[n, k]
        assert (maps[n] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0", "mobilenet_v2", "regnet_y_400mf"])
def test_the_mean_of_cam_plus_bias_is_the_logit(name, inputs):
    """CAM accounts for the whole score, on every torchvision family with a GAP head."""
    torch.manual_seed(0)
    model = xai_abn.wrap(torchvision.models.get_model(name, weights=None).eval())
    shared = ForwardPass(model, inputs, [model.target_layer])
    maps = CAM().explain(shared, TARGETS)
    expected = maps.mean(dim=(1, 2)) + find_classifier(model.module).bias[TARGETS].detach()
    torch.testing.assert_close(shared.logits.gather(1, TARGETS[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_grad_cam_is_rectified_cam_over_area_on_a_gap_head(gap_net, inputs):
    """D logit / d A_k is w_k / (h w) everywhere, so Grad-CAM = ReLU(CAM) / (h w)."""
    shared = ForwardPass(gap_net, inputs, ["features"], gradients=True)
    cam = CAM().explain(shared, TARGETS)
    grad_cam = GradCAM().explain(shared, TARGETS)
    torch.testing.assert_close(grad_cam, cam.relu() / cam[0].numel())


def test_grad_cam_equals_a_full_backward(resnet18, inputs):
    """At an inner layer, Grad-CAM from a partial backward equals the formula from a full one."""
    layer = "layer3"
    shared = ForwardPass(resnet18, inputs, [layer], gradients=True)
    maps = GradCAM(layer=layer).explain(shared, TARGETS)
    kept = []
    handle = resnet18.module.layer3.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = resnet18.module(inputs)
    handle.remove()
    for n, target in enumerate(TARGETS.tolist()):
        gradient = torch.autograd.grad(logits[n, target], kept[0], retain_graph=True)[0][n]
        plain = (gradient.mean(dim=(1, 2), keepdim=True) * kept[0][n]).sum(dim=0).relu()
        torch.testing.assert_close(maps[n], plain.detach(), rtol=1e-4, atol=1e-9)


def test_abn_gives_the_map_that_weighted_the_features(abn_resnet18, inputs):
    """The explanation is the very map of the prediction's own pass; class maps average to the branch's scores."""
    output = abn_resnet18.module(inputs)
    shared = ForwardPass(abn_resnet18, inputs)
    assert torch.equal(ABN().explain(shared, TARGETS), output.attention_map[:, 0].detach())
    class_maps = ABNClass().explain(shared, TARGETS)
    scores = output.attention_logits.gather(1, TARGETS[:, None])[:, 0].detach()
    torch.testing.assert_close(class_maps.mean(dim=(1, 2)), scores)


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v3_small", "convnext_tiny"])
def test_cam_refuses_heads_it_does_not_describe(name, inputs):
    """Where other steps stand between pooling and logits, CAM says so and names what to use."""
    torch.manual_seed(0)
    model = xai_abn.wrap(torchvision.models.get_model(name, weights=None).eval())
    shared = ForwardPass(model, inputs, [model.target_layer])
    with pytest.raises(UnsupportedModelError, match=r"global average pooling and one linear layer.*grad-cam"):
        CAM().explain(shared, TARGETS)


def test_cam_refuses_an_earlier_layer(resnet18, inputs):
    """Only the layer that is pooled has class weights."""
    shared = ForwardPass(resnet18, inputs, ["layer3"])
    with pytest.raises(UnsupportedModelError, match="layer3"):
        CAM(layer="layer3").explain(shared, TARGETS)


@pytest.mark.parametrize("explainer", [ABN, ABNClass])
def test_abn_on_a_plain_model_says_how_to_make_one(resnet18, abn_resnet18, explainer):
    """The message names abn_from and the model that ships; a layer cannot be chosen."""
    with pytest.raises(UnsupportedModelError, match=r"abn-lite0.*abn_from"):
        explainer().check(resnet18)
    with pytest.raises(UnsupportedModelError, match="no layer"):
        explainer(layer="layer4").check(abn_resnet18)


TARGET_LAYERS = {
    "torchvision:resnet50": "layer4",
    "torchvision:densenet121": "features",
    "torchvision:vgg16": "features.29",
    "torchvision:vgg16_bn": "features.42",
    "torchvision:efficientnet_b0": "features",
    "torchvision:mobilenet_v2": "features",
    "torchvision:mobilenet_v3_small": "features",
    "torchvision:convnext_tiny": "features",
    "torchvision:regnet_y_400mf": "trunk_output",
    "timm:resnet18": "layer4",
    "timm:densenet121": "features",
    "timm:vgg11": "features.19",
    "timm:efficientnet_b0": "bn2",
    "timm:mobilenetv3_small_050": "blocks",
    "timm:convnext_atto": "stages",
    "timm:regnety_002": "s4",
    "timm:vit_tiny_patch16_224": "blocks.11.norm1",
    "timm:deit_tiny_distilled_patch16_224": "blocks.11.norm1",
    "timm:beit_base_patch16_224": "blocks.11",
    "timm:swin_tiny_patch4_window7_224": "norm",
    "timm:pvt_v2_b0": "stages",
    "timm:levit_128s": "stages",
    "torchvision:vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
    "torchvision:swin_t": "permute",
}


@pytest.mark.parametrize("spec", TARGET_LAYERS)
def test_the_target_layer_is_found(spec):
    """The last layer with positions that is no pooling, on every family promised."""
    assert xai_abn.load_model(spec, weights="random").target_layer == TARGET_LAYERS[spec]
