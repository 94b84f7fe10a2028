"""An explainer refuses an unsuitable model by itself, with the error of the pipeline."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from support import GapNet
from torch import nn

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError, XaiAbnError
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.forward_pass import ForwardPass

SIDE = 32


class Perceptron(nn.Module):
    """No layer has positions, no step is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * SIDE * SIDE, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.hidden(x.flatten(1))))


class ProductHead(nn.Module):
    """The head is not a linear layer, and the features are multiplied by each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        return (x * x.sigmoid()).mean((2, 3))


def small_backbone():
    return timm.create_model("resnet10t", channels=(8, 12, 16, 24), num_classes=5)


def auxiliary_abn():
    return xai_abn.abn_from(small_backbone(), input_size=SIDE, mechanism="auxiliary")


def window_attention():
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=SIDE,
        window_size=2,
        embed_dim=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
    )


NETWORKS = {
    "residual network": small_backbone,
    "perceptron": Perceptron,
    "product head": ProductHead,
    "auxiliary ABN": auxiliary_abn,
    "window attention": window_attention,
    "user-defined score": GapNet,
    "bfloat16": lambda: GapNet().bfloat16(),
}


@pytest.fixture(scope="module")
def models():
    """Small seeded models, each unsuitable for some methods."""
    made = {}
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model = xai_abn.wrap(build().eval(), preprocess=Preprocess(size=SIDE), name=name)
        made[name] = model.with_output(lambda y: y[:, 0], "first") if name == "user-defined score" else model
    return made


def error_of(function, *arguments):
    """The type and text of the error that a call raises, or None."""
    try:
        function(*arguments)
    except XaiAbnError as error:
        return type(error), str(error)
    return None


def explain_directly(model, explainer, image):
    try:
        forward_pass = explainers.run_pass(model, image[None], [explainer])
    except UnsupportedModelError:  # the model has no layer to read
        forward_pass = ForwardPass(model, image[None])
    explainer.explain(forward_pass, torch.tensor([0]))


@pytest.mark.parametrize("layer", [None, "head"])
@pytest.mark.parametrize("name", explainers.names())
def test_the_direct_call_and_the_pipeline_refuse_alike(name, layer, models):
    """Either both explain a model or both give the same error; a layer given in vain is refused by both."""
    quick = {"rise": {"masks": 2}, "ss-cam": {"samples": 1}, "kernel-shap": {"samples": 9}, "lime": {"samples": 9}}
    explainer = explainers.get(name)(layer=layer, **quick.get(name, {}))
    image = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for model in models.values():
        by_pipeline = error_of(xai_abn.explain, model, image, explainer)
        assert error_of(explain_directly, model, explainer, image) == by_pipeline


def test_the_abn_method_refuses_a_plain_network(models):
    """Called directly, it names the network and says what to do."""
    model = models["residual network"]
    with pytest.raises(UnsupportedModelError, match="abn needs an Attention Branch Network and residual network is a"):
        explainers.ABN().explain(ForwardPass(model, torch.zeros(1, 3, SIDE, SIDE)), torch.tensor([0]))
