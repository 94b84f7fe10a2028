"""The shared forward pass: what it keeps, what it differentiates, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.models.forward_pass import ForwardPass


def test_logits_are_the_models_own(resnet18, inputs):
    """The pass answers what the model answers."""
    with torch.no_grad():
        expected = resnet18.module(inputs)
    assert torch.equal(ForwardPass(resnet18, inputs, ["layer3", "layer4"], gradients=True).logits, expected)


def test_gradients_equal_a_full_backward(resnet18, inputs):
    """Partial differentiation gives what autograd through the whole network gives, at two layers of one pass."""
    targets = torch.tensor([5, 0, 999])
    shared = ForwardPass(resnet18, inputs, ["layer4", "layer2"], gradients=True)
    kept = {}
    handles = [
        resnet18.module.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: kept.update({name: o}))
        for name in ("layer2", "layer4")
    ]
    logits = resnet18.module(inputs)
    [h.remove() for h in handles]
    full = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), [kept["layer2"], kept["layer4"]])
    for name, gradient in zip(("layer2", "layer4"), full, strict=True):
        torch.testing.assert_close(shared.gradients(name, targets), gradient, rtol=1e-4, atol=1e-7)


def test_looking_the_last_layers_row_up_equals_multiplying_it_out(resnet18, abn_resnet18, inputs):
    """The short cut through the final linear layer gives the gradients of the long way."""
    for model in (resnet18, abn_resnet18):
        layer = model.target_layer
        short = ForwardPass(model, inputs, [layer], gradients=True)
        assert short._pooled is not None
        long = ForwardPass(model, inputs, [layer], gradients=True)
        long._pooled = None
        for targets in (torch.tensor([4, 0, 9]), torch.tensor([1, 3, 5])):
            torch.testing.assert_close(short.gradients(layer, targets), long.gradients(layer, targets))


class Rescaled(nn.Module):
    """A network that changes its logits behind its last linear layer: no row can be looked up."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.in_place = in_place

    def forward(self, x):
        scores = self.fc(self.conv(x).mean((2, 3)))
        return scores.mul_(3) if self.in_place else scores * 3


@pytest.mark.parametrize("in_place", [False, True])
def test_no_row_is_looked_up_where_the_logits_are_changed_afterwards(inputs, in_place):
    """Scaled logits have scaled gradients: the last linear layer alone does not tell."""
    torch.manual_seed(0)
    model = xai_abn.wrap(Rescaled(in_place))
    shared = ForwardPass(model, inputs, ["conv"], gradients=True)
    gradient = shared.gradients("conv", torch.tensor([0, 1, 2]))
    area = gradient.shape[2] * gradient.shape[3]
    expected = 3 * model.module.fc.weight.detach()[:, :, None, None] / area
    torch.testing.assert_close(gradient, expected.expand_as(gradient))


def test_gradients_are_computed_once_a_target(resnet18, inputs):
    """The second call for the same targets gives the very same tensor."""
    shared = ForwardPass(resnet18, inputs, ["layer4"], gradients=True)
    targets = torch.tensor([1, 2, 3])
    assert shared.gradients("layer4", targets) is shared.gradients("layer4", targets.clone())
    assert shared.gradients("layer4", targets + 1) is not shared.gradients("layer4", targets)


class InPlace(nn.Module):
    """A convolution whose output is overwritten by an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("gradients", [False, True])
def test_an_in_place_operation_does_not_overwrite_what_was_captured(inputs, gradients):
    """The activation in front of an in-place ReLU keeps its negative values, and the scores stay right."""
    torch.manual_seed(0)
    model = xai_abn.wrap(InPlace(), layer="conv")
    shared = ForwardPass(model, inputs, ["conv"], gradients=gradients)
    torch.testing.assert_close(shared.activations("conv"), model.module.conv(inputs).detach())
    assert shared.activations("conv").min() < 0
    torch.testing.assert_close(shared.logits, model.module(inputs).detach())
    if gradients:
        target = torch.zeros(3, dtype=torch.long)
        positive = shared.activations("conv") > 0
        area = positive.shape[2] * positive.shape[3]
        expected = positive * model.module.fc.weight[0, :, None, None] / area
        torch.testing.assert_close(shared.gradients("conv", target), expected.detach())


def test_densenets_functional_in_place_relu_is_survived(inputs):
    """Torchvision's DenseNet applies F.relu(inplace=True) to the captured layer: capture keeps its own copy."""
    torch.manual_seed(0)
    model = xai_abn.wrap(torchvision.models.densenet121().eval())
    shared = ForwardPass(model, inputs, ["features"], gradients=True)
    assert shared.activations("features").min() < 0


def test_frozen_weights_still_give_gradients(inputs):
    """A network whose parameters require no gradient can be differentiated at two layers."""
    module = torchvision.models.resnet18().eval().requires_grad_(False)
    shared = ForwardPass(xai_abn.wrap(module), inputs, ["layer3", "layer4"], gradients=True)
    assert shared.gradients("layer3", torch.tensor([0, 1, 2])).abs().sum() > 0


def test_half_of_the_network_runs_without_autograd(resnet18, inputs):
    """Nothing in front of the captured layer is recorded, and what is captured is a leaf."""
    shared = ForwardPass(resnet18, inputs, ["layer4"], gradients=True)
    assert shared._kept["layer4"].is_leaf


def test_inference_mode_is_refused_with_a_way_out(resnet18, inputs):
    """Gradients inside inference mode are impossible, and the message says what to use."""
    with torch.inference_mode(), pytest.raises(InvalidInputError, match="no_grad"):
        ForwardPass(resnet18, inputs, ["layer4"], gradients=True)


def test_unknown_layers_are_refused_with_the_nearest(resnet18, inputs):
    """A misspelt layer names its neighbours."""
    with pytest.raises(UnknownNameError, match="layer4"):
        ForwardPass(resnet18, inputs, ["layer44"])


def test_asking_for_what_was_not_captured_is_refused(resnet18, inputs):
    """Layers and gradients have to be ordered with the pass; targets need one row an image."""
    shared = ForwardPass(resnet18, inputs, ["layer4"])
    with pytest.raises(InvalidInputError, match="not captured"):
        shared.activations("layer3")
    with pytest.raises(InvalidInputError, match="without gradients"):
        shared.gradients("layer4", torch.tensor([0, 0, 0]))
    shared = ForwardPass(resnet18, inputs, ["layer4"], gradients=True)
    with pytest.raises(InvalidInputError, match="targets"):
        shared.gradients("layer4", torch.tensor([0]))


class Odd(nn.Module):
    """A module with an answer that is no (N, K) tensor, a branch that never runs and one without effect."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.conv, self.idle, self.blind = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)
        self.answer = answer

    def forward(self, x):
        self.blind(x)
        scores = self.fc(self.conv(x).mean((2, 3)))
        return {"tuple": (scores, scores), "map": scores[:, :, None], "plain": scores}[self.answer]


@pytest.mark.parametrize("answer", ["tuple", "map"])
def test_answers_that_are_no_logits_are_refused(inputs, answer):
    """A tuple or a 3-D answer is refused and said what it was."""
    with pytest.raises(UnsupportedModelError, match=r"logits \(N, K\), got"):
        ForwardPass(xai_abn.wrap(Odd(answer)), inputs)


def test_layers_that_do_not_run_or_do_not_matter_are_refused(inputs):
    """A layer outside the computation has neither activation nor gradient."""
    model = xai_abn.wrap(Odd("plain"))
    with pytest.raises(UnsupportedModelError, match="does not run"):
        ForwardPass(model, inputs, ["idle"])
    shared = ForwardPass(model, inputs, ["blind"], gradients=True)
    with pytest.raises(UnsupportedModelError, match="do not depend"):
        shared.gradients("blind", torch.tensor([0, 0, 0]))


def test_layers_of_a_transformer_are_listed(small_vit):
    """Token layers on the patch grid are layers to choose from."""
    names = [o.name for o in small_vit.spatial_layers()]
    assert {"patch_embed.proj", "blocks.0", "blocks.2.norm1"} <= set(names)
    assert small_vit.target_layer in names


FORKED = """
import os, sys
import torch, xai_abn
torch.set_num_threads(2)
if sys.argv[1] == "used":
    model = xai_abn.load_model("abn-cifar100")
child = os.fork()
if not child:
    torch.set_num_threads(int(sys.argv[2]))
    try:
        if sys.argv[1] == "fresh":
            model = xai_abn.load_model("abn-cifar100")
        xai_abn.explain(model, "example:cat")
    except xai_abn.errors.InvalidInputError as error:
        assert "spawn" in str(error)
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("state", "threads", "code"), [("used", 2, 7), ("used", 1, 0), ("fresh", 2, 0)])
def test_a_forked_process_does_not_hang(state, threads, code):
    """It says what to do instead, unless it is safe: one thread, or a fork before the model is loaded."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, state, str(threads)], timeout=120, check=False)
    assert done.returncode == code
