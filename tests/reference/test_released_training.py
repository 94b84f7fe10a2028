"""A step of training of a converted ResNeXt against the released code's, written down on tensors by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support import released_names

import xai_abn
from xai_abn.networks.architectures import create_model
from xai_abn.networks.released_code import convert_file

RATE = 0.05


def norm(x, weights, name):
    """Normalization by the batch."""
    return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)


def block(x, weights, name, stride, groups):
    """Reduce, 3x3 in groups, expand, and the shortcut, which is a projection where it has weights."""
    out = F.relu(norm(F.conv2d(x, weights[f"{name}.conv_reduce.weight"]), weights, f"{name}.bn_reduce"))
    out = F.conv2d(out, weights[f"{name}.conv_conv.weight"], None, stride, 1, groups=groups)
    out = F.relu(norm(out, weights, f"{name}.bn"))
    out = norm(F.conv2d(out, weights[f"{name}.conv_expand.weight"]), weights, f"{name}.bn_expand")
    if f"{name}.shortcut.shortcut_conv.weight" in weights:
        x = F.conv2d(x, weights[f"{name}.shortcut.shortcut_conv.weight"], None, stride)
        x = norm(x, weights, f"{name}.shortcut.shortcut_bn")
    return F.relu(x + out)


def released_resnext(x, weights, groups):
    """Both branches' logits. ``bn_att`` is not in it: the released code defines it and never calls it."""
    x = F.relu(norm(F.conv2d(x, weights["conv_1_3x3.weight"], None, 1, 1), weights, "bn_1"))
    for number, stride in ((1, 1), (2, 2)):
        x = block(x, weights, f"stage_{number}.stage_{number}_bottleneck_0", stride, groups)
    a = block(x, weights, "stage_att.stage_att_bottleneck_0", 1, groups)
    a = F.relu(norm(F.conv2d(a, weights["att_conv.weight"]), weights, "bn_att2"))
    attention = torch.sigmoid(norm(F.conv2d(a, weights["att_conv3.weight"], None, 1, 1), weights, "bn_att3"))
    scores = F.conv2d(a, weights["att_conv2.weight"]).mean(dim=(2, 3))
    x = block(x * attention + x, weights, "stage_3.stage_3_bottleneck_0", 2, groups).mean(dim=(2, 3))
    return scores, F.linear(x, weights["classifier.weight"], weights["classifier.bias"])


def test_a_converted_resnext_trains_as_the_released_one(tmp_path):
    """Three steps of gradient descent on the sum of both losses give the same losses and the same weights."""
    torch.manual_seed(0)
    state = released_names(create_model("resnext11-2x64d", 4), "resnext")
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"module.bn_att.{name}"] = torch.rand_like(state[f"module.bn_att.{name}"]) + 1
    torch.save({"state_dict": state}, tmp_path / "released.pth.tar")
    convert_file(tmp_path / "released.pth.tar", tmp_path / "ours.safetensors")
    network = xai_abn.load_model(tmp_path / "ours.safetensors").module.double().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    used = {k.removeprefix("module."): v.double() for k, v in state.items() if "running" not in k and "num" not in k}
    weights = {name: value.clone().requires_grad_() for name, value in used.items() if not name.startswith("bn_att.")}
    for _ in range(3):
        images, classes = torch.randn(4, 3, 32, 32, dtype=torch.double), torch.randint(4, (4,))
        expected = sum(F.cross_entropy(scores, classes) for scores in released_resnext(images, weights, groups=2))
        gradients = torch.autograd.grad(expected, list(weights.values()))
        with torch.no_grad():
            for value, gradient in zip(weights.values(), gradients, strict=True):
                value -= RATE * gradient
        output = network(images)
        loss = F.cross_entropy(output.attention_logits, classes) + F.cross_entropy(output.logits, classes)
        torch.testing.assert_close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(network.attention_branch.att_conv.weight, weights["att_conv.weight"])
    torch.testing.assert_close(network.perception_branch.fc.weight, weights["classifier.weight"])
    assert not [name for name in network.state_dict() if "bn_att." in name]
