"""Networks as people have them: frozen, in half precision, wrapped, compiled, odd answers, odd layers."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
import torchvision
from torch import nn

import xai_abn
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import CAM, AblationCAM, GradCAM, LayerCAM, ScoreCAM, get, run_pass
from xai_abn.images.preprocess import Preprocess

METHODS = [CAM, GradCAM, LayerCAM, ScoreCAM, AblationCAM]
TARGETS = torch.tensor([3, 1, 4])


class Net(nn.Module):
    """GAP and a linear layer, with one ReLU module used twice, in place, and an answer of any kind."""

    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)
        self.answer = answer

    def forward(self, x):
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.answer(self.fc(x.mean((2, 3))))


def net(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


def maps(module, inputs, explainer, **options):
    model = xai_abn.wrap(module, preprocess=Preprocess(size=64), layer="relu", **options)
    chosen = explainer()
    return chosen.explain(run_pass(model, inputs, [chosen]), TARGETS)


@pytest.mark.parametrize("explainer", METHODS)
def test_a_module_used_twice_gives_its_last_output(inputs, explainer):
    """The in-place ReLU runs twice; the map is that of a network with two ReLUs out of place."""

    class Apart(Net):
        def forward(self, x):
            x = torch.relu(self.second(torch.relu(self.first(x))))
            return self.fc(self.last(x).mean((2, 3)))

    torch.manual_seed(0)
    apart = Apart().eval()
    apart.last = nn.Identity()
    model = xai_abn.wrap(apart, preprocess=Preprocess(size=64), layer="last")
    chosen = explainer()
    expected = chosen.explain(run_pass(model, inputs, [chosen]), TARGETS)
    torch.testing.assert_close(maps(net(), inputs, explainer), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("explainer", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision_work(inputs, explainer, dtype):
    """The map is near that in float32; a half-precision network computes in its own precision."""
    expected, found = maps(net(), inputs, explainer), maps(net().to(dtype), inputs, explainer).float()
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < (0.15 if dtype != torch.float64 else 1e-4) * scale


INPUT_SPACE = {
    "saliency": {},
    "input-x-gradient": {},
    "integrated-gradients": {"steps": 4},
    "smooth-grad": {"samples": 2},
    "var-grad": {"samples": 2},
    "gradient-shap": {"samples": 2},
    "occlusion": {"window": 0.5, "stride": 0.5},
    "feature-ablation": {"segments": 4},
    "kernel-shap": {"segments": 4, "samples": 12},
    "lime": {"segments": 4, "samples": 12},
    "guided-backprop": {},
    "guided-grad-cam": {},
    "rise": {"masks": 16, "side": 3},
}


@pytest.mark.parametrize("name", INPUT_SPACE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_methods_of_the_input_work_in_half_and_double_precision(inputs, name, dtype):
    """The map correlates with that in float32, in which noise, masks and results are."""
    found = []
    for module in (net(), net().to(dtype)):
        model = xai_abn.wrap(module, preprocess=Preprocess(size=64), layer="relu")
        chosen = get(name)(**INPUT_SPACE[name])
        found.append(chosen.explain(run_pass(model, inputs, [chosen]), TARGETS).float().flatten(1))
    assert found[1].isfinite().all()
    together = torch.nn.functional.cosine_similarity(found[0], found[1])
    assert float(together.min()) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deep_lift_refuses_half_precision(inputs, dtype):
    """Its divisors are too small for it."""
    with pytest.raises(UnsupportedModelError, match=r"module\.float"):
        maps(net().to(dtype), inputs, get("deep-lift"))
    maps(net().double(), inputs, get("deep-lift"))


@pytest.mark.parametrize("explainer", METHODS)
def test_frozen_weights_work(inputs, explainer):
    """Gradients are of activations, not of weights."""
    frozen = net().requires_grad_(False)
    torch.testing.assert_close(maps(frozen, inputs, explainer), maps(net(), inputs, explainer))


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrapped_and_compiled_networks_are_opened(inputs, wrapper):
    """The network inside is explained; layers keep its names."""
    torch.testing.assert_close(maps(wrapper(net()), inputs, GradCAM), maps(net(), inputs, GradCAM))


ANSWERS = {
    "key": (lambda logits: {"logits": logits, "aux": None}, "logits"),
    "position": (lambda logits: (None, logits), 1),
    "attribute": (lambda logits: namedtuple("Answer", "logits aux")(logits, None), "logits"),
    "function": (lambda logits: {"a": logits / 2}, lambda answer: answer["a"] * 2),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("explainer", METHODS)
def test_tuples_and_dictionaries_are_read_where_told(inputs, kind, explainer):
    """``output=`` says where the logits are; CAM's identity holds there, too."""
    answer, place = ANSWERS[kind]
    found = maps(net(answer=answer), inputs, explainer, output=place)
    torch.testing.assert_close(found, maps(net(), inputs, explainer), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "wrong"), [("key", None), ("position", None), ("key", "scores"), ("position", 7)])
def test_tuples_and_dictionaries_are_refused_with_the_way_out(inputs, kind, wrong):
    """Without ``output=``, or with one that is not there."""
    with pytest.raises(UnsupportedModelError, match=r"output=|has no"):
        maps(net(answer=ANSWERS[kind][0]), inputs, GradCAM, output=wrong)


def test_weights_on_meta_are_refused():
    """There is nothing to compute with."""
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    with pytest.raises(UnsupportedModelError, match="meta"):
        xai_abn.wrap(network)


def test_torchscript_is_refused(inputs):
    """Its layers cannot be seen."""
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        xai_abn.wrap(torch.jit.trace(net(), inputs))
