"""Maps with a graph: each with the gradient of a loss of it by every weight, against plain autograd in float64."""

from __future__ import annotations

import copy
import gc
from functools import partial

import numpy as np
import pytest
import timm
import torch
from odd_networks import UNet
from support import GapNet, check_error
from torch import nn
from torch.utils.checkpoint import checkpoint

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers import get, names, parse_spec, run_pass
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.build import add_mask_branch

TARGETS = torch.tensor([3, 1, 4])
OF_TRANSFORMERS = ("attention-rollout", "attention-relevance", "legrad")


class TinyCNN(nn.Module):
    """BatchNorm and dropout on both sides of the layer ``early``, and a head that is not linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.SiLU(), nn.Dropout(0.5))
        self.early = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, x):
        return self.head(self.late(self.early(self.stem(x))).mean(dim=(2, 3)))


def trained(network):
    """A network as in the middle of training: double, in training mode, with statistics of BatchNorm."""
    network = network.double().train()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64, dtype=torch.double))
    return network


def cnn():
    torch.manual_seed(0)
    network = trained(TinyCNN())
    return network, xai_abn.wrap(network, layer="early", preprocess=Preprocess(size=32)), torch.randn(3, 3, 32, 32)


def small_cnn():
    network, model, _ = cnn()
    return network, model, torch.randn(3, 3, 12, 12)


def gap():
    torch.manual_seed(0)
    network = trained(GapNet())
    return network, xai_abn.wrap(network, preprocess=Preprocess(size=32)), torch.randn(3, 3, 32, 32)


def abn():
    torch.manual_seed(0)
    network = trained(xai_abn.abn_from(GapNet(), layer="features.1", input_size=32))
    return network, xai_abn.wrap(network, preprocess=Preprocess(size=32)), torch.randn(3, 3, 32, 32)


def vit():
    torch.manual_seed(0)
    options = {"img_size": 64, "num_classes": 5, "depth": 3, "embed_dim": 24, "num_heads": 3, "proj_drop_rate": 0.5}
    network = trained(timm.create_model("vit_tiny_patch16_224", **options))
    return network, xai_abn.wrap(network, preprocess=Preprocess(size=64)), torch.randn(3, 3, 64, 64)


grad = partial(torch.autograd.grad, create_graph=True)


def scores_of(logits):
    return logits[torch.arange(3), TARGETS].sum()


def mean(values):
    return values.mean(dim=(2, 3), keepdim=True)


def plus_plus(a, g):
    weights = torch.where(g > 0, 1 / torch.where(g > 0, 2 + g * a.sum((2, 3), keepdim=True), 1.0), 0.0) * g.relu()
    return (a * weights.sum((2, 3), keepdim=True)).sum(1).relu()


def x_grad(a, g):
    total = a.sum((2, 3), keepdim=True)
    alive = (total != 0).double()  # a channel that sums to 0 counts nothing
    return (alive * a * (g * a).sum((2, 3), keepdim=True) / (total + 1 - alive)).sum(1).relu()


COMBINED = {
    "grad-cam": lambda a, g: (a * mean(g)).sum(1).relu(),
    "grad-cam++": plus_plus,
    "xgrad-cam": x_grad,
    "hires-cam": lambda a, g: (a * g).sum(1),
    "grad-cam-elementwise": lambda a, g: (a * g).relu().sum(1),
    "layer-cam": lambda a, g: (a * g.relu()).sum(1).relu(),
}


def cnn_map(method, network, x):
    """The map of a method on TinyCNN, by plain autograd."""
    x = x.clone().requires_grad_()
    a = network.early(network.stem(x))
    logits = network.head(network.late(a).mean((2, 3)))
    if method in COMBINED:
        return COMBINED[method](a, *grad(scores_of(logits), a))
    if method == "saliency":
        return grad(scores_of(logits), x)[0].abs().amax(1)
    if method == "input-x-gradient":
        return (x.detach() * grad(scores_of(logits), x)[0]).sum(1)
    if method == "finer-cam":
        scores = []
        for row, target in zip(logits, TARGETS.tolist(), strict=True):
            rest = sorted((k for k in range(5) if k != target), key=lambda k: abs(row[k].item() - row[target].item()))
            scores.append(row[target] - 0.6 * row[rest[:3]].mean())
        return COMBINED["grad-cam"](a, *grad(torch.stack(scores).sum(), a))
    raise AssertionError(method)


def shapley(network, x):
    """``ReLU(sum_k mean(G - H A / 2)_k A_k)`` with the rows of H written out."""
    a = network.early(network.stem(x))
    (g,) = grad(scores_of(network.head(network.late(a).mean((2, 3)))), a)
    rows = torch.stack([grad(value, a, retain_graph=True)[0] for value in g.flatten()])  # (P, N, C, h, w)
    change = (rows * a).flatten(1).sum(1).view_as(g)
    return (a * mean(g - change / 2)).sum(1).relu()


def of_two_layers(network, x, formula, scale, join):
    """Maps of ``stem`` and ``early``, scaled and enlarged, then joined."""
    stem = network.stem(x)
    early = network.early(stem)
    gradients = grad(scores_of(network.head(network.late(early).mean((2, 3)))), [stem, early])
    maps = [formula(a, g)[:, None] for a, g in zip((stem, early), gradients, strict=True)]
    return join(*(scale(nn.functional.interpolate(m, stem.shape[2:], mode="bilinear"), m) for m in maps))[:, 0]


def ends(maps):
    return maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)


def between_0_and_1(large, small):
    low, high = ends(small)
    return (large - low) / (high - low)


def blocks(network, x):
    """Tokens behind each block of a ViT and its attention, written out."""
    tokens = network.norm_pre(network._pos_embed(network.patch_embed(x)))
    found = []
    for block in network.blocks:
        n, t, c = tokens.shape
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(tokens)).view(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / (c // heads) ** 0.5).softmax(-1)
        tokens = tokens + block.attn.proj((weights @ v).transpose(1, 2).reshape(n, t, c))
        tokens = tokens + block.mlp(block.norm2(tokens))
        found.append((tokens, weights))
    return found


def vit_map(method, network, x):
    found = blocks(network, x)
    weights = [w for _, w in found]

    def scored(tokens):
        return scores_of(network.head(network.norm(tokens)[:, 0]))

    if method == "attention-rollout":
        rolled = torch.eye(17, dtype=torch.double)
        for w in weights:
            rolled = (w.mean(1) + torch.eye(17)) / 2 @ rolled
        return rolled[:, 0, 1:].view(3, 4, 4)
    if method == "attention-relevance":
        relevance = torch.eye(17, dtype=torch.double)
        for w, g in zip(weights, grad(scored(found[-1][0]), weights), strict=True):
            relevance = relevance + (w * g).relu().mean(1) @ relevance
        return relevance[:, 0, 1:].view(3, 4, 4)
    if method == "legrad":
        keys = []
        for tokens, w in found:
            score = scores_of(network.head(network.norm(tokens.mean(1))))
            keys.append(grad(score, w)[0].relu().mean((1, 2))[:, 1:])
        return torch.stack(keys).mean(0).view(3, 4, 4)
    (g,) = grad(scored(found[-1][0]), found[1][0])  # grad-cam of the second block
    a, g = (t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for t in (found[1][0], g))
    return COMBINED[method](a, g)


def cam_map(network, x):
    return torch.einsum("nkhw,nk->nhw", network.features(x), network.fc.weight[TARGETS])


CASES = {
    **{f"cnn {m}": (cnn, m, partial(cnn_map, m)) for m in (*COMBINED, "saliency", "input-x-gradient", "finer-cam")},
    "cnn shapley-cam": (small_cnn, "shapley-cam", shapley),
    "cnn refine-cam": (
        cnn,
        "refine-cam:layers=stem+early",
        partial(of_two_layers, formula=plus_plus, scale=between_0_and_1, join=torch.mul),
    ),
    "cnn layer-cam of layers": (
        cnn,
        "layer-cam:layers=stem+early",
        partial(
            of_two_layers,
            formula=COMBINED["layer-cam"],
            scale=lambda large, _: large / ends(large)[1],
            join=torch.maximum,
        ),
    ),
    "gap cam": (gap, "cam", cam_map),
    "abn abn": (abn, "abn", lambda network, x: network(x).attention_map[:, 0]),
    "abn abn-class": (abn, "abn-class", lambda network, x: network(x).class_maps[torch.arange(3), TARGETS]),
    **{
        f"vit {m}": (vit, m, partial(vit_map, m))
        for m in ("grad-cam", "layer-cam", "attention-rollout", "attention-relevance", "legrad")
    },
}


def explained(model, images, method, targets=TARGETS):
    layer = "blocks.1" if model.attends and get(method.partition(":")[0]).reads_layer else None
    return xai_abn.explain(model, images, parse_spec(method, layer), targets, create_graph=True)


def loss_of(maps):
    """A loss that is not linear and weighs all positions differently."""
    weights = torch.linspace(-1, 2, maps.numel(), dtype=torch.double).view_as(maps)
    return (maps * weights).sum() + 3 * (maps.square() * weights.flip(0)).sum()


def check_same(found, expected, what=""):
    """Equal to seven digits of the largest value; Finer-CAM's mixture of classes is single precision."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * largest, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_the_map_and_all_gradients_are_those_of_plain_autograd(case):
    """In evaluation mode, while the network stays in training mode; layers before and behind the target layer."""
    make, method, reference = CASES[case]
    network, model, images = make()
    plain = copy.deepcopy(network).eval()
    expected = reference(plain, images.double())
    maps = explained(model, images, method).tensors()
    assert maps.dtype == torch.double
    assert maps.detach().std() > 0
    check_same(maps, expected)
    found = torch.autograd.grad(loss_of(maps), list(network.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(loss_of(expected), list(plain.parameters()), allow_unused=True)
    reached = 0
    for (name, weight), one, other in zip(network.named_parameters(), found, wanted, strict=True):
        one, other = (torch.zeros_like(weight) if g is None else g for g in (one, other))
        check_same(one, other, name)
        reached += bool(one.any())
    assert reached > 2


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_finite_differences(case):
    """The loss of the map changes along a direction in the space of all weights as the gradient says."""
    make, method, _ = CASES[case]
    network, model, images = make()
    weights = list(network.parameters())
    loss = loss_of(explained(model, images, method).tensors())
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    torch.manual_seed(1)
    direction = [torch.randn_like(w) for w in weights]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=sign * step)
        values.append(loss_of(explained(model, images, method).tensors()).item())
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.sub_(d, alpha=sign * step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_grad_cam_of_an_abn_reaches_both_branches():
    """Through the perception branch and the map that weights its features."""
    network, model, images = abn()
    maps = xai_abn.explain(model, images, "grad-cam", TARGETS, create_graph=True).tensors()
    plain = copy.deepcopy(network).eval()
    kept = []
    plain.get_submodule(model.target_layer).register_forward_hook(lambda _m, _i, o: kept.append(o.clone()) or kept[0])
    logits = plain(images.double()).logits
    expected = COMBINED["grad-cam"](kept[0], *grad(scores_of(logits), kept[0]))
    check_same(maps, expected)
    found = torch.autograd.grad(loss_of(maps), list(network.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(loss_of(expected), list(plain.parameters()), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            check_same(one, other)


def test_grad_cam_of_a_region_reaches_all_weights():
    """Of a network for segmentation, whose target is a class where it is the top one."""
    torch.manual_seed(0)
    network = trained(UNet())
    model = xai_abn.wrap(network, preprocess=Preprocess(size=64))
    image = torch.randn(1, 3, 64, 64)
    target = xai_abn.SegmentationTarget(1, region=np.ones((64, 64), bool))
    record = xai_abn.explain(model, image, "grad-cam", target, create_graph=True)["grad-cam"]
    plain, kept = copy.deepcopy(network).eval(), []
    plain.get_submodule(model.target_layer).register_forward_hook(lambda _m, _i, o: kept.append(o))
    scores = plain(image.double())
    (gradient,) = grad(scores[:, 1].mean(), kept[0])
    expected = COMBINED["grad-cam"](kept[0], gradient)[0]
    check_same(record.tensor, expected)
    found = torch.autograd.grad(loss_of(record.tensor), list(network.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(loss_of(expected), list(plain.parameters()), allow_unused=True)
    for one, other, weight in zip(found, wanted, network.parameters(), strict=True):
        one, other = (torch.zeros_like(weight) if g is None else g for g in (one, other))
        check_same(one, other)


def test_the_network_stays_as_it_was():
    """Modes, running statistics, gradients and random state; the map is the one that explain gives without a graph."""
    network, model, images = cnn()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = explained(model, images, "grad-cam")
    loss_of(found.tensors()).backward()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    plain = xai_abn.explain(model, images, "grad-cam", TARGETS)
    for one, other, tensor in zip(found, plain, found.tensors(), strict=True):
        np.testing.assert_array_equal(one["grad-cam"].map, other["grad-cam"].map)
        np.testing.assert_array_equal(one["grad-cam"].map, tensor.detach().float().numpy())
        assert other["grad-cam"].tensor is None


@pytest.mark.parametrize("method", [name for name in names() if not get(name).no_graph])
def test_without_create_graph_no_map_has_a_history(method):
    """Also where a method is called directly, outside of ``torch.no_grad()``."""
    make = abn if method.startswith("abn") else vit if method in OF_TRANSFORMERS else gap
    _, model, images = make()
    explainer = get(method)()
    assert not explainer.explain(run_pass(model, images, [explainer]), TARGETS).requires_grad


def test_a_dead_channel_gives_no_nan():
    """XGrad-CAM divides by the sum of a channel; one that is 0 everywhere has weight 0 and a finite gradient."""
    network, model, images = cnn()
    with torch.no_grad():
        network.early[1].bias[2] = -100.0
    explained(model, images, "xgrad-cam").tensors().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", names())
def test_every_method_gives_a_graph_or_says_why_not(method):
    """No method loses the history silently."""
    make = abn if method.startswith("abn") else vit if method in OF_TRANSFORMERS else gap
    network, model, images = make()
    if method == "abn-mask":
        add_mask_branch(network.float(), images[:1], width=8)
    ask = partial(xai_abn.explain, model, images, method, TARGETS, create_graph=True)
    if reason := get(method).no_graph:
        with pytest.raises(InvalidInputError, match=f"the maps of .* cannot be differentiated: {reason}") as caught:
            ask()
        check_error(caught.value)
    else:
        gradients = torch.autograd.grad(ask().tensors().sum(), list(network.parameters()), allow_unused=True)
        assert any(g is not None and g.any() for g in gradients)


def test_where_there_is_no_graph_it_says_so():
    """Gradients switched off, nothing to train, images with a history, and maps asked for that are not there."""
    network, model, images = cnn()
    for off in (torch.no_grad(), torch.inference_mode()):
        with off, pytest.raises(InvalidInputError, match="leave the block of"):
            explained(model, images, "grad-cam")
    with pytest.raises(InvalidInputError, match=r"give images\.detach\(\)"):
        explained(model, images.clone().requires_grad_(), "grad-cam")
    found = explained(model, images, "grad-cam")
    with pytest.raises(InvalidInputError, match="not every image has one map of cam"):
        found.tensors("cam")
    with pytest.raises(InvalidInputError, match="create_graph=True"):
        xai_abn.explain(model, images, "grad-cam").tensors()
    with pytest.raises(InvalidInputError, match="name one of the methods: grad-cam, layer-cam"):
        xai_abn.explain(model, images, ["grad-cam", "layer-cam"], create_graph=True).tensors()
    mixed = xai_abn.explain(model, [images[0], torch.randn(3, 48, 48)], "grad-cam", create_graph=True)
    with pytest.raises(InvalidInputError, match="different sizes"):
        mixed.tensors()
    several = xai_abn.explain(model, images, "grad-cam", [[0, 1]] * 3, create_graph=True)
    assert not torch.equal(several.tensors("grad-cam", 0), several.tensors("grad-cam", 1))
    with pytest.raises(InvalidInputError, match="name method and target"):
        several.tensors()
    network, model, images = abn()
    network.feature_extractor.requires_grad_(False)
    network.attention_branch.requires_grad_(False)
    with pytest.raises(InvalidInputError, match="the maps of abn depend on no weight"):
        explained(model, images, "abn")
    network.requires_grad_(False)
    with pytest.raises(InvalidInputError, match="none of them requires a gradient"):
        explained(model, images, "grad-cam")


class Recomputed(TinyCNN):
    """Saves memory in a way that runs a part again in the backward pass, where the network is in another mode."""

    reentrant = False

    def forward(self, x):
        x = self.stem[0](x)
        x = checkpoint(self.stem[1:], x, use_reentrant=self.reentrant)
        return self.head(self.late(self.early(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_network_that_recomputes_itself_is_refused(reentrant):
    """Otherwise its gradients would be those of training mode."""
    network = Recomputed()
    network.reentrant = reentrant
    model = xai_abn.wrap(network, layer="early", preprocess=Preprocess(size=32))
    for method in ("grad-cam", "saliency", "cam"):
        with pytest.raises(UnsupportedModelError, match="recomputes parts of itself"):
            xai_abn.explain(model, torch.randn(2, 3, 32, 32), method, create_graph=True)


def test_images_from_files_have_a_graph_too(tmp_path):
    """They are read and prepared as always; the maps depend on the weights all the same."""
    from PIL import Image

    network, model, _ = cnn()
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    xai_abn.explain(model, [path, path], "grad-cam", create_graph=True).tensors().sum().backward()
    assert all(bool(p.grad.any()) for p in network.stem[0].parameters())


def test_two_hundred_steps_leave_nothing_behind():
    """As many tensors as before live after each step, without the garbage collector."""
    network, model, images = small_cnn()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        found = xai_abn.explain(model, images, ["grad-cam", "saliency"], TARGETS, create_graph=True)
        (found.tensors("grad-cam").mean() + found.tensors("saliency").mean()).backward()
        optimizer.step()

    def living():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for _ in range(3):
        step()
    gc.collect()
    gc.disable()
    try:
        before = living()
        for _ in range(200):
            step()
        assert living() == before
    finally:
        gc.enable()


def two_classes(number, seed):
    """Images whose class shows twice: as stripes on the left half, and as the color of a spot on the right."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 2, (number,), generator=draw)
    images = 0.3 * torch.randn(number, 3, 32, 32, generator=draw)
    stripes = torch.arange(32) // 2 % 2 * 2.0 - 1
    for image, one in zip(images, classes.tolist(), strict=True):
        image[:, 6:26, 3:14] += stripes[6:26, None] if one else stripes[None, 3:14]
        image[one, 10:20, 20:30] += 2.0
    return images, classes


def energy_inside(maps):
    """Share of the positive energy in the left half, (N,)."""
    positive = maps.clamp(min=0)
    return positive[:, :, : maps.shape[2] // 2].sum((1, 2)) / positive.sum((1, 2)).clamp_min(1e-12)


def test_training_moves_the_map_to_where_it_should_look():
    """Lowering the energy of Grad-CAM outside a mask raises the energy inside, on images not trained on."""
    images, classes = two_classes(64, seed=0)
    held_out, their_classes = two_classes(32, seed=1)
    found = {}
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
        ).train()
        model = xai_abn.wrap(network, layer="4", preprocess=Preprocess(size=32))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for step in range(40):
            rows = torch.arange(16) + step % 4 * 16
            loss = nn.functional.cross_entropy(network(images[rows]), classes[rows])
            if weight:
                maps = xai_abn.explain(model, images[rows], "grad-cam", classes[rows], create_graph=True).tensors()
                loss = loss + weight * (1 - energy_inside(maps)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = float((network.eval()(held_out).argmax(1) == their_classes).float().mean())
        records = xai_abn.explain(model, held_out, "grad-cam", their_classes)
        maps = torch.stack([torch.from_numpy(record["grad-cam"].map.copy()) for record in records])
        found[weight] = float(energy_inside(maps).mean()), right
    assert found[3.0][0] > found[0.0][0] + 0.2, found
    assert found[3.0][0] > 0.8, found
    assert min(right for _, right in found.values()) > 0.9, found
