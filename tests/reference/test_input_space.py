"""Input-space methods against direct calls of captum, slow reference versions and known identities."""

from __future__ import annotations

import math
import threading

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from skimage.transform import resize
from torch import nn

import xai_abn
from xai_abn import explainers
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers.captum_methods import CaptumMethod
from xai_abn.explainers.perturbation import similarity, superpixels
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.captum_copy import UnfoldedMaxPool, hookable_copy, unfold_max_pooling
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.seeding import seeded

SIDE = 24
METHODS = [n for n in explainers.names() if issubclass(explainers.get(n), CaptumMethod) or n == "rise"]


class PlainNet(nn.Module):
    """A network that captum handles correctly: no activation runs twice, and pooling windows do not overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool = nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.conv3, self.relu2 = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.relu2(self.conv3(x)).mean(dim=(2, 3)))


class SharedNet(nn.Module):
    """An in-place ReLU that runs three times, once on a tensor used elsewhere, and an overlapping padded pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        y = self.conv2(x)
        x = self.relu(y.clone()) + 0.5 * y + x
        return self.fc(self.relu(x).mean(dim=(2, 3)))


class LinearNet(nn.Module):
    """Logits linear in the input, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * SIDE * SIDE, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def seeded_model(kind, **settings) -> xai_abn.ModelAdapter:
    torch.manual_seed(0)
    return xai_abn.wrap(kind().eval(), preprocess=Preprocess(size=SIDE), name=kind.__name__, **settings)


@pytest.fixture(scope="module")
def plain():
    """A seeded PlainNet for 24-pixel inputs."""
    return seeded_model(PlainNet, layer="relu2")


@pytest.fixture
def images():
    """Two seeded inputs (2, 3, 24, 24)."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


TARGETS = torch.tensor([3, 1])


def shared_pass(model, explainer, images):
    return ForwardPass(model, images, explainer.layers_read(model), gradients=explainer.needs_gradient)


def spread(image, share):
    return share * float(image.detach().max() - image.detach().min())


def noisy(kind):
    def by_hand(net, x, t):
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(net))
        deviation = spread(x, 0.15)
        return tunnel.attribute(
            x, nt_type=kind, nt_samples=5, nt_samples_batch_size=2, stdevs=deviation, target=t, abs=False
        )

    return {"samples": 5, "batch_size": 2}, by_hand


def gradient_shap(net, x, t):
    return captum.attr.GradientShap(net).attribute(x, x * 0, n_samples=5, stdevs=spread(x, 0.05), target=t)


def occlusion(net, x, t):
    return captum.attr.Occlusion(net).attribute(x, (3, 6, 6), strides=(3, 3, 3), baselines=0, target=t)


def over_superpixels(kind, **more):
    def by_hand(net, x, t):
        return kind(net).attribute(x, baselines=0, target=t, feature_mask=superpixels(x, 9), **more)

    return by_hand


def lime(net):
    return captum.attr.Lime(net, SkLearnRidge(alpha=1.0), similarity)


#: Our options, and the direct call of captum with the network itself and a target.
BY_HAND = {
    "saliency": ({}, lambda net, x, t: captum.attr.Saliency(net).attribute(x, t, abs=False)),
    "input-x-gradient": ({}, lambda net, x, t: captum.attr.InputXGradient(net).attribute(x, t)),
    "integrated-gradients": (
        {"steps": 6, "batch_size": 4},
        lambda net, x, t: captum.attr.IntegratedGradients(net).attribute(x, target=t, n_steps=6, internal_batch_size=4),
    ),
    "smooth-grad": noisy("smoothgrad"),
    "var-grad": noisy("vargrad"),
    "gradient-shap": ({"samples": 5}, gradient_shap),
    "guided-backprop": ({}, lambda net, x, t: captum.attr.GuidedBackprop(net).attribute(x, t)),
    "guided-grad-cam": (
        {},
        lambda net, x, t: captum.attr.GuidedGradCam(net, net.relu2).attribute(x, t, interpolate_mode="bilinear"),
    ),
    "deep-lift": ({}, lambda net, x, t: captum.attr.DeepLift(net).attribute(x, 0, target=t)),
    "occlusion": ({"window": 1 / 4, "stride": 1 / 8, "batch_size": 1}, occlusion),
    "feature-ablation": ({"segments": 9, "batch_size": 1}, over_superpixels(captum.attr.FeatureAblation)),
    "kernel-shap": (
        {"segments": 9, "samples": 20, "batch_size": 1},
        over_superpixels(captum.attr.KernelShap, n_samples=20),
    ),
    "lime": ({"segments": 9, "samples": 20, "batch_size": 1}, over_superpixels(lime, n_samples=20)),
}


#: Methods that ask for predictions alone.
ASKING = {"occlusion", "feature-ablation", "kernel-shap", "lime"}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_raw_attribution_is_captums(name, plain, images):
    """Before the channels are combined, every value equals that of captum bit for bit, or to rounding.

    Methods that only ask for predictions get them in the memory format that is faster.
    """
    arguments, by_hand = BY_HAND[name]
    explainer = explainers.get(name)(**arguments)
    found = explainer.attributions(shared_pass(plain, explainer, images), TARGETS)
    for row in range(2):
        with seeded(0):
            expected = by_hand(plain.module, images[row : row + 1].clone().requires_grad_(), int(TARGETS[row]))
        if name in ASKING:
            torch.testing.assert_close(found[row : row + 1], expected.detach(), atol=1e-7, rtol=1e-5)
        else:
            assert torch.equal(found[row : row + 1], expected.detach())


def test_every_method_is_compared():
    """All input-space methods are compared with captum, except RISE, which has its own reference."""
    assert set(METHODS) == {*BY_HAND, "rise"}


@pytest.mark.parametrize("name", BY_HAND)
def test_channels_are_merged_as_documented(name, plain, images):
    """Magnitudes: the largest. Region values: the common value of all channels. Signed shares: the sum."""
    arguments, _ = BY_HAND[name]
    explainer = explainers.get(name)(**arguments)
    shared = shared_pass(plain, explainer, images)
    raw, maps = explainer.attributions(shared, TARGETS), explainer.explain(shared, TARGETS)
    if name in ("saliency", "smooth-grad", "guided-backprop", "guided-grad-cam"):
        assert torch.equal(maps, raw.abs().amax(dim=1))
    elif name in ("occlusion", "feature-ablation", "kernel-shap", "lime"):
        assert all(torch.equal(maps, raw[:, channel]) for channel in range(3))
    else:
        assert torch.equal(maps, raw.sum(dim=1))


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("rise", "lime", "kernel-shap")])
def test_a_direction_of_one_class_is_that_class(name, plain, images):
    """The direction e_c gives the map of class c."""
    explainer = explainers.get(name)(**BY_HAND[name][0])
    shared = shared_pass(plain, explainer, images)
    directions = F.one_hot(TARGETS, 5).float()
    torch.testing.assert_close(explainer.explain(shared, directions), explainer.explain(shared, TARGETS))


LINEAR_IN_SCORE = [
    *("input-x-gradient", "integrated-gradients", "gradient-shap", "deep-lift"),
    *("occlusion", "feature-ablation", "kernel-shap", "lime", "rise"),
]


@pytest.mark.parametrize("name", LINEAR_IN_SCORE)
def test_the_map_of_a_difference_is_the_difference_of_maps(name, plain, images):
    """For methods linear in the score, the map along e_a - e_b is map a - map b."""
    arguments = {"masks": 20, "side": 3} if name == "rise" else BY_HAND[name][0]
    explainer = explainers.get(name)(**arguments)
    shared = shared_pass(plain, explainer, images)
    other = torch.tensor([0, 4])
    directions = (F.one_hot(TARGETS, 5) - F.one_hot(other, 5)).float()
    difference = explainer.explain(shared, TARGETS) - explainer.explain(shared, other)
    scale = float(difference.abs().max())
    torch.testing.assert_close(explainer.explain(shared, directions), difference, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("input-x-gradient", {}),
        ("integrated-gradients", {"steps": 3}),
        ("deep-lift", {}),
        ("gradient-shap", {"noise": 0.0, "samples": 3}),
    ],
)
def test_a_linear_networks_map_is_weight_times_input(name, arguments, images):
    """With logits w x + b, each of these is w * x, summed over channels."""
    model = seeded_model(LinearNet)
    explainer = explainers.get(name)(**arguments)
    maps = explainer.explain(shared_pass(model, explainer, images), TARGETS)
    weights = model.module.fc.weight.detach()[TARGETS].view_as(images)
    torch.testing.assert_close(maps, (weights * images).sum(dim=1), rtol=1e-5, atol=1e-6)


def test_perturbations_of_a_linear_network(images):
    """Ablating a superpixel removes its w * x, which is also its Shapley value."""
    model = seeded_model(LinearNet)
    shared = ForwardPass(model, images[:1])
    weighted = (model.module.fc.weight.detach()[3].view(3, SIDE, SIDE) * images[0]).sum(dim=0)
    regions = superpixels(images[:1], 6)[0, 0]
    expected = torch.stack([weighted[regions == r].sum() for r in range(int(regions.max()) + 1)])[regions]
    for name, arguments in (("feature-ablation", {}), ("kernel-shap", {"samples": 60})):
        maps = explainers.get(name)(segments=6, **arguments).explain(shared, TARGETS[:1])
        torch.testing.assert_close(maps[0], expected, rtol=1e-3, atol=1e-3)


def completed(model, images):
    """The value to which an attribution relative to a blank image must add up."""
    with torch.no_grad():
        return (model.module(images) - model.module(images * 0)).gather(1, TARGETS[:, None])[:, 0]


def test_integrated_gradients_add_up(plain, images):
    """Their sum is the difference between the logits of the image and the blank image."""
    explainer = explainers.IntegratedGradients(steps=300, batch_size=100)
    maps = explainer.explain(shared_pass(plain, explainer, images), TARGETS)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), completed(plain, images), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shared_net", [True, False])
def test_deep_lift_adds_up(shared_net, images):
    """The sum is exact with a reused ReLU and overlapping pooling, which captum alone gets wrong."""
    model = seeded_model(SharedNet if shared_net else torchvision.models.resnet18)
    explainer = explainers.DeepLIFT()
    explainer.check(model)
    maps = explainer.explain(shared_pass(model, explainer, images), TARGETS)
    expected = completed(model, images)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), expected, rtol=1e-3, atol=1e-4)
    raw = captum.attr.DeepLift(hookable_copy(model.module, images, explainer.kinds))
    without = raw.attribute(images.clone().requires_grad_(), 0, target=TARGETS).sum(dim=(1, 2, 3)).detach()
    assert not torch.allclose(without, expected, rtol=1e-2, atol=1e-3)


class Offset(nn.Module):
    """Adds a different value at every position, so that the activations of a blank image are not constant."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(6, 22, 22))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.values


def test_deep_lift_adds_up_where_a_pooling_reads_a_relu(images):
    """With captum alone, the ReLU uses the gradient before the rule of the pooling, and the sum is wrong."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3), Offset(), nn.ReLU(), nn.MaxPool2d(2)
    layers = nn.Sequential(*first, nn.Flatten(), nn.Linear(6 * 11 * 11, 5))
    model = xai_abn.wrap(layers.eval(), preprocess=Preprocess(size=SIDE))
    explainer = explainers.DeepLIFT()
    maps = explainer.explain(shared_pass(model, explainer, images), TARGETS)
    expected = completed(model, images)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), expected, rtol=1e-3, atol=1e-4)
    raw = captum.attr.DeepLift(layers).attribute(images.clone().requires_grad_(), 0, target=TARGETS).detach()
    assert not torch.allclose(raw.sum(dim=(1, 2, 3)), expected, rtol=1e-2, atol=1e-3)


def test_our_rules_are_for_modules_that_captum_has_rules_for():
    """No module is accepted for which captum would fall back to the plain gradient."""
    assert set(explainers.DeepLIFT.kinds) <= set(SUPPORTED_NON_LINEAR)


def test_guided_backprop_equals_a_network_written_with_guided_relus(images):
    """On a network with a shared ReLU, compared with an autograd function that implements the guided rule."""

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.relu() * (ctx.saved_tensors[0] > 0)

    class GuidedReLU(nn.Module):
        def forward(self, x):
            return Guided.apply(x)

    model, by_hand = seeded_model(SharedNet), seeded_model(SharedNet).module
    by_hand.relu = GuidedReLU()
    explainer = explainers.GuidedBackprop()
    found = explainer.attributions(shared_pass(model, explainer, images), TARGETS)
    inputs = images.clone().requires_grad_()
    score = by_hand(inputs).gather(1, TARGETS[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(score, inputs)[0])


@pytest.mark.parametrize("layer", [None, "layer3", "layer4.0.bn2"])
def test_guided_grad_cam_is_the_product(resnet18, inputs, layer):
    """Guided backpropagation times enlarged Grad-CAM, also at a layer whose output is modified in place."""
    explainer = explainers.GuidedGradCAM(layer=layer)
    targets = torch.tensor([3, 1, 4])
    shared = shared_pass(resnet18, explainer, inputs)
    guided = explainers.GuidedBackprop().attributions(shared, targets)
    enlarged = F.interpolate(
        explainers.GradCAM(layer=layer).explain(shared, targets)[:, None], (64, 64), mode="bilinear"
    )
    found = explainer.attributions(shared, targets)
    torch.testing.assert_close(found, guided * enlarged, rtol=1e-3, atol=1e-5 * float(found.abs().max()))


def test_rise_equals_the_paper_written_out(plain, images):
    """The sum over masks, one mask and one image at a time, masks enlarged as in the authors' code."""
    explainer = explainers.RISE(masks=30, side=5, keep=0.4, seed=3, batch_size=7)
    found = explainer.explain(ForwardPass(plain, images), TARGETS)
    cell = math.ceil(SIDE / 5)
    grids, shifts = explainer.random_grids((cell, cell))
    expected = torch.zeros(2, SIDE, SIDE, dtype=torch.float64)
    for grid, (down, right) in zip(grids.numpy(), shifts.tolist(), strict=True):
        large = resize(grid, (6 * cell, 6 * cell), order=1, mode="reflect", anti_aliasing=False)
        mask = torch.from_numpy(large[down : down + SIDE, right : right + SIDE])
        for row, target in enumerate(TARGETS.tolist()):
            with torch.no_grad():
                probability = plain.module((images[row] * mask).float()[None]).softmax(dim=1)[0, target]
            expected[row] += probability * mask / (30 * 0.4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_rise_masks_are_shared_seeded_and_kept_at_the_given_share(images):
    """Masks do not depend on the batch size, their mean is about ``keep``, and another seed gives other masks."""
    whole = torch.cat(list(explainers.RISE(masks=300, keep=0.3).stacks(SIDE, 20)))
    parts = torch.cat(list(explainers.RISE(masks=300, keep=0.3, batch_size=11).stacks(SIDE, 20)))
    assert whole.shape == (300, SIDE, 20)
    torch.testing.assert_close(whole, parts)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1 + 1e-6
    assert abs(float(whole.mean()) - 0.3) < 0.02
    other = torch.cat(list(explainers.RISE(masks=300, keep=0.3, seed=1).stacks(SIDE, 20)))
    assert not torch.equal(whole, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": 0}, "masks must be at least 1, got 0"),
        ({"side": 0}, "side must be at least 1, got 0"),
        ({"keep": 0.0}, r"keep must be above 0, got 0\.0"),
        ({"keep": 1.5}, r"keep must be at most 1, got 1\.5"),
    ],
)
def test_rise_refuses_options_out_of_range(arguments, message):
    """No masks, no cells, or a share outside (0, 1] are refused."""
    with pytest.raises(InvalidInputError, match=message):
        explainers.RISE(**arguments)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rise_of_values_is_their_covariance_with_visibility(offset, images):
    """Whatever constant is added to them."""
    model = seeded_model(LinearNet, scores_only=True)
    with torch.no_grad():
        model.module.fc.bias += offset
    explainer = explainers.RISE(masks=40, side=5, keep=0.4, seed=3, batch_size=7)
    found = explainer.explain(ForwardPass(model, images), TARGETS)
    masks = torch.cat(list(explainer.stacks(SIDE, SIDE))).double().numpy()
    weights = model.module.fc.weight.detach().double().numpy()
    for row, target in enumerate(TARGETS.tolist()):
        values = (images[row].double().numpy() * masks[:, None]).reshape(40, -1) @ weights[target]
        cells = masks.reshape(40, -1).T
        expected = np.array([np.cov(values, cell, bias=True)[0, 1] for cell in cells]).reshape(SIDE, SIDE) / 0.4
        np.testing.assert_allclose(found[row].numpy(), expected, atol=(1e-6 + 1e-7 * offset) * 10)
        assert expected.min() < -0.01 < 0.01 < expected.max()


@pytest.mark.parametrize("kind", [PlainNet, SharedNet, torchvision.models.resnet18, torchvision.models.squeezenet1_1])
def test_the_private_copy_gives_the_same_logits(kind):
    """Bit for bit at every call, with all activations and poolings replaced."""
    model = seeded_model(kind)
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    own = hookable_copy(model.module, inputs[:1], explainers.DeepLIFT.kinds)
    unfold_max_pooling(own)
    with torch.no_grad():
        expected = model.module(inputs)
        assert torch.equal(own(inputs), expected)
        assert torch.equal(own(inputs[:1]), model.module(inputs[:1]))
    assert not any(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("settings", [(3, 2, 1, 1, False), (3, 2, 0, 1, True), (2, 1, 1, 1, True), (3, 2, 1, 2, False)])
@pytest.mark.parametrize("size", [(13, 16), (14, 11)])
def test_separate_windows_pool_the_same(settings, size):
    """Kernel, stride, padding, dilation and ceil mode work as in max pooling."""
    kernel, stride, padding, dilation, ceil = settings
    pooling = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    inputs = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4))
    assert torch.equal(UnfoldedMaxPool(pooling)(inputs), pooling(inputs))


def test_copying_while_another_thread_hooks_is_safe():
    """Copies are complete even if hooks are added and removed meanwhile."""
    model, done = seeded_model(torchvision.models.resnet18), threading.Event()

    def hooking():
        while not done.is_set():
            handles = [m.register_forward_hook(lambda *_: None) for m in model.module.modules()]
            [h.remove() for h in handles]

    thread = threading.Thread(target=hooking)
    thread.start()
    try:
        for _ in range(5):
            hookable_copy(model.module, torch.zeros(1, 3, 32, 32), (nn.ReLU,))
    finally:
        done.set()
        thread.join()


class Functional(PlainNet):
    """One ReLU is called as a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(F.relu(self.conv3(x)).mean(dim=(2, 3)))


class Product(PlainNet):
    """Features are multiplied by a gate computed from them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.conv1(x))
        return self.fc(self.relu2(self.conv3(x * x.mean(dim=(2, 3), keepdim=True))).mean(dim=(2, 3)))


class Idle(LinearNet):
    """A ReLU that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()


class Smooth(PlainNet):
    """GELU instead of ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2 = nn.GELU(), nn.GELU()


REFUSALS = [
    ("guided-backprop", LinearNet, "runs no nn.ReLU"),
    ("guided-backprop", Idle, "runs no nn.ReLU"),
    ("guided-backprop", Functional, r"computes Relu outside.*smooth-grad"),
    ("guided-grad-cam", Functional, r"computes Relu outside.*smooth-grad"),
    ("guided-backprop", Smooth, "computes Gelu outside"),
    ("deep-lift", Functional, r"also computes Relu.*integrated-gradients"),
    ("deep-lift", Product, r"also computes Mul.*integrated-gradients"),
    ("deep-lift", Smooth, r"also computes Gelu.*integrated-gradients"),
]


@pytest.mark.parametrize(("name", "kind", "message"), REFUSALS)
def test_rules_that_do_not_fit_are_refused(name, kind, message, images):
    """Where captum would silently use the plain gradient; both by check() and by explain()."""
    model = seeded_model(kind, layer=None if issubclass(kind, LinearNet) else "conv2")
    explainer = explainers.get(name)()
    with pytest.raises(UnsupportedModelError, match=message):
        explainer.check(model)
    shared = shared_pass(model, explainer, images)
    with pytest.raises(UnsupportedModelError, match=message):
        explainer.explain(shared, TARGETS)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "guided-grad-cam"])
def test_a_layer_is_refused(name, plain):
    """They read the input, so a layer makes no sense."""
    with pytest.raises(UnsupportedModelError, match="reads no layer"):
        explainers.get(name)(layer="conv1").check(plain)


def test_superpixels_are_numbered_and_repeatable(images):
    """Numbers without gaps, about as many as requested, also for noise and a single color; a single one is refused."""
    for image in (images[:1], torch.zeros(1, 3, SIDE, SIDE)):
        regions = superpixels(image, 16)
        assert regions.shape == image.shape
        assert regions.unique().tolist() == list(range(int(regions.max()) + 1))
        assert 8 <= int(regions.max()) + 1 <= 24
        assert torch.equal(regions, superpixels(image, 16))
    with pytest.raises(InvalidInputError, match="more segments"):
        superpixels(images[:1], 1)


def test_the_kernel_of_lime_is_the_published_one():
    """sqrt(exp(-d^2 / 0.25^2)), d the cosine distance from all ones."""
    left = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0]])
    distance = 1 - F.cosine_similarity(left.double(), torch.ones(1, 8).double())
    expected = float(torch.exp(-(distance**2) / 0.25**2).sqrt())
    assert similarity(left, left, left) == pytest.approx(expected, rel=1e-6)
    assert similarity(left, left, torch.ones(1, 8)) == 1


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_recorded(name):
    """Every option that changes the map is in the record."""
    explainer = explainers.get(name)()
    chosen = {option for option, _, _ in explainer.describe()} - {"batch_size", "layer"}
    assert chosen <= set(explainer.options)


@pytest.mark.parametrize("name", METHODS)
def test_an_attention_branch_network_is_explained_or_refused_with_a_reason(name, abn_resnet18, inputs):
    """Its prediction is explained like any other; methods with gradient rules refuse its functional ReLU."""
    arguments = {"masks": 4} if name == "rise" else BY_HAND[name][0]
    explainer = explainers.get(name)(**arguments)
    if name in ("guided-backprop", "guided-grad-cam", "deep-lift"):
        with pytest.raises(UnsupportedModelError, match="Relu"):
            explainer.check(abn_resnet18)
        return
    explainer.check(abn_resnet18)
    maps = explainer.explain(shared_pass(abn_resnet18, explainer, inputs[:1]), TARGETS[:1])
    assert maps.shape == (1, 64, 64)
    assert torch.isfinite(maps).all()
