"""Every method on every odd network: a sound map or an error that says what to do, and nothing left behind."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import pytest
import sklearn.linear_model  # noqa: F401 - importing it draws a random number, so here once for all
import torch
from odd_networks import ODD
from support import check_error
from torch import nn

import xai_abn
from xai_abn.errors import UnsupportedModelError, XaiAbnError
from xai_abn.explainers import get, names

#: Options that make an expensive method fast.
QUICK = {
    "feature-ablation": "segments=4",
    "gradient-shap": "samples=2",
    "integrated-gradients": "steps=2",
    "is-cam": "steps=1",
    "kernel-shap": "segments=4,samples=6",
    "lime": "segments=4,samples=6",
    "occlusion": "window=0.5,stride=0.5",
    "rise": "masks=4,side=3",
    "smooth-grad": "samples=2",
    "smooth-grad-cam++": "samples=1",
    "ss-cam": "samples=1",
    "var-grad": "samples=2",
}
#: Methods that look at the network first and refuse many.
CHOOSY = {
    "abn", "abn-class", "abn-mask", "attention-relevance", "attention-rollout", "cam", "deep-lift", "guided-backprop",
    "guided-grad-cam", "legrad", "refine-cam", "rise",
}  # fmt: skip
#: Other libraries on themselves, and on what these networks do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:::(torch|scipy|sklearn|odd_networks)")


@lru_cache(maxsize=4)
def model(name):
    """The wrapped network, shared by the methods."""
    return ODD[name].model()


def spec(method):
    """The method with fast options."""
    return f"{method}:{QUICK[method]}" if method in QUICK else method


def state(module):
    """Everything of a network and of this thread that an explanation must leave as it was."""
    members = dict(module.named_modules(remove_duplicate=False))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": {n: m.training for n, m in members.items()},
        "hooks": {n: [len(getattr(m, h, ())) for h in hooks] for n, m in members.items()},
        "attributes": {n: sorted(vars(m)) for n, m in members.items() if not isinstance(m, torch.jit.ScriptModule)},
        "flags": {n: t.requires_grad for n, t in tensors.items()},
        "gradients": {n: t.grad is None for n, t in tensors.items() if t.is_leaf},
        "values": {n: t.detach().clone() for n, t in tensors.items()},
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random": (torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1]), random.getstate()),
    }


def changed(before, after, odd):
    """The names of the parts of the state that differ, less those that the network changes itself."""
    own = {"attributes", "values", "flags", "gradients", "modes", "hooks"} if odd.keeps else set()
    own |= {"random"} if odd.random else set()
    return [key for key in before if key not in own and not equal(before[key], after[key])]


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(), two.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, tuple) and isinstance(two, tuple):
        return all(equal(a, b) for a, b in zip(one, two, strict=True))
    return one == two


def expected(method, odd):
    """Whether a method has to work on a network; None if it may refuse."""
    kind = get(method)
    if odd.runs is None or (method in CHOOSY and odd.runs):
        return None
    differentiable = odd.gradients or (odd.behind and kind.reads_layer)
    return odd.runs and (odd.layer is not None or not kind.reads_layer) and (differentiable or not kind.needs_gradient)


@pytest.mark.parametrize("name", [n for n, odd in ODD.items() if not odd.refused])
def test_a_sound_map_or_an_error_that_helps(name):
    """Of each method: never another exception, never anything left on the network; works where it has to."""
    odd, network, failures = ODD[name], model(name), []
    before = state(network.module)
    for method in names():
        images = odd.images
        try:
            check_method(method, odd, network, images)
            after = state(network.module)
            assert torch.equal(images, odd.images)
            assert changed(before, after, odd) == []
            before = after
        except Exception as error:
            failures.append(f"{method} on {name}: {type(error).__name__}: {error}")
            network = ODD[name].model()  # as it was, for the next method
            before = state(network.module)
    assert not failures, "\n".join(failures)


def check_method(method, odd, network, images):
    """One method on one network."""
    try:
        results, refusal = xai_abn.explain(network, images, spec(method), 0), None
    except XaiAbnError as error:
        results, refusal = [], error
    if refusal is None:
        assert expected(method, odd) is not False
        assert len(results) == 2
    else:
        check_error(refusal)
        assert not expected(method, odd), refusal
        assert method not in CHOOSY or not odd.runs or not odd.gradients or " fails on " not in str(refusal), refusal
    for (record,) in (result.values() for result in results):
        check_record(record, odd)


def check_record(record, odd):
    """A map has a sensible size, and is finite unless its flaw says so."""
    height, width = odd.shape[1:]
    assert record.map.ndim == 2
    assert record.map.dtype == np.float32
    assert 1 <= record.map.shape[0] <= max(height, 28)
    assert 1 <= record.map.shape[1] <= max(width, 28)
    assert np.isfinite(record.map).all() or record.flaw == "not finite"
    assert np.isfinite(record.score)
    assert np.isnan(record.probability) or 0 <= record.probability <= 1


@pytest.mark.parametrize("name", [n for n, odd in ODD.items() if odd.refused])
def test_some_networks_are_refused_at_once(name):
    """With what to give instead."""
    with pytest.raises(UnsupportedModelError, match=ODD[name].refused) as caught:
        model(name)
    check_error(caught.value)


def test_every_method_works_on_some_network():
    """Otherwise the table would not try it."""
    for method in names():
        worked = False
        for name in ("plain", "class token", "attention branch"):
            try:
                xai_abn.explain(model(name), ODD[name].images, spec(method), 0)
                worked = True
            except UnsupportedModelError:
                continue
        assert worked, method


def plain_gradient_maps(odd, network, target):
    """Grad-CAM and HiResCAM by a plain hook and one backward pass over the whole network, (N, h, w) each."""
    kept = []

    def keep(_module, _inputs, output):
        output = output if output.requires_grad else output.detach().requires_grad_()
        kept.append(output)
        return output.clone()

    module = network.module.eval()
    handle = module.get_submodule(odd.layer).register_forward_hook(keep)
    try:
        inputs = odd.images.to(next(p.dtype for p in module.parameters() if p.dim() > 1 and p.is_floating_point()))
        with torch.enable_grad():
            scores = network.logits_of(module(inputs))[:, target]
            values = kept[odd.call]
            (gradient,) = torch.autograd.grad(scores.sum(), values)
    finally:
        handle.remove()
    activations, gradients = odd.maps(values.detach()).float(), odd.maps(gradient).float()
    products = gradients * activations
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu(), products.sum(1)


#: Networks on which Grad-CAM has to work; a random one gives another map each time.
EXPLAINED = [n for n, o in ODD.items() if o.layer and o.runs and o.gradients and not (o.refused or o.random)]


@pytest.mark.parametrize("name", EXPLAINED)
def test_grad_cam_is_that_of_plain_autograd(name):
    """Of the layer that the table names, however odd the network is."""
    odd, network = ODD[name], model(name)
    everywhere = xai_abn.SegmentationTarget(0, region=np.ones(odd.images.shape[2:], bool))
    target = [[everywhere]] * len(odd.images) if network.gives_map else 0
    results = xai_abn.explain(network, odd.images, ["grad-cam", "hires-cam"], target)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.module.parameters())
    half |= "autocast" in name
    for method, right in zip(("grad-cam", "hires-cam"), plain_gradient_maps(odd, network, 0), strict=True):
        for result, map_ in zip(results, right.numpy(), strict=True):
            assert result[method].layer == odd.layer
            scale = np.abs(map_).max()
            np.testing.assert_allclose(result[method].map, map_, rtol=0, atol=(1e-2 if half else 1e-5) * scale + 1e-37)


def test_batches_of_one_are_explained():
    """A network that takes one image at a time."""
    odd, network = ODD["images one at a time"], model("images one at a time")
    single = xai_abn.explain(network, odd.images[:1], "grad-cam", 0)[0]["grad-cam"]
    plain = xai_abn.explain(model("plain"), odd.images[:1], "grad-cam", 0)[0]["grad-cam"]
    np.testing.assert_allclose(single.map, plain.map, rtol=1e-5, atol=1e-7)


class Unhookable(nn.Module):
    """A layer that refuses hooks."""

    def forward(self, x):
        return x

    def register_forward_hook(self, *_, **__):
        raise RuntimeError("no hooks here")


@pytest.mark.parametrize("method", ["grad-cam", "score-cam", "attention-rollout"])
def test_no_hook_is_left_where_one_cannot_be_set(method):
    """Those that were set before it are removed."""
    network = nn.Sequential(ODD["plain"].build(), Unhookable()).eval()
    wrapped = xai_abn.wrap(network, example_input=ODD["plain"].images[:1])
    with pytest.raises(XaiAbnError):
        xai_abn.explain(wrapped, ODD["plain"].images, method, 0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
