"""The CAM family against slow versions of the papers' equations, closed forms and libraries that follow them."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers import (
    CAM,
    ISCAM,
    AblationCAM,
    AttentionRelevance,
    AttentionRollout,
    EigenCAM,
    FinerCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    LeGrad,
    ReciproCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    make_explainers,
    parse_spec,
    run_pass,
)
from xai_abn.explainers.grad_cam import largest_of
from xai_abn.heatmaps import unit_range
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import find_classifier

TARGETS = torch.tensor([3, 1, 4])


def maps(model, explainer, inputs, targets=TARGETS):
    return explainer.explain(run_pass(model, inputs, [explainer]), targets).detach()


def parts(model, inputs, targets=TARGETS):
    """Activations and gradients of the target layer, by plain autograd."""
    kept = []
    layer = model.module.get_submodule(model.target_layer)
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model.module(inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[torch.arange(len(inputs)), targets].sum(), kept[0])
    return kept[0].detach(), gradient


@pytest.fixture(scope="module")
def vit():
    """A seeded, untrained ViT of three blocks with a class token, for 64-pixel inputs."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=3)
    return xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64), name="vit")


@pytest.fixture(scope="module")
def pooled_vit():
    """The same without a class token: its patches are averaged."""
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=10, depth=3, class_token=False, global_pool="avg"
    )
    return xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64), name="pooled-vit")


@pytest.fixture(scope="module")
def torchvision_vit():
    """torchvision's, whose attention is ``nn.MultiheadAttention``."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(64, 16, 3, 4, 32, 64, num_classes=10)
    nn.init.normal_(network.heads.head.weight)
    return xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64), name="torchvision-vit")


def test_grad_cam_plus_plus_is_equation_19(gap_net, inputs):
    """Weights written out pixel by pixel, with squares, cubes and a division, in float64."""
    activations, gradients = (t.double() for t in parts(gap_net, inputs))
    expected = torch.zeros(3, *activations.shape[2:], dtype=torch.float64)
    for n in range(3):
        for k in range(activations.shape[1]):
            a, g = activations[n, k], gradients[n, k]
            alpha = torch.where(g != 0, g**2 / (2 * g**2 + a.sum() * g**3), 0.0)
            expected[n] += (alpha * g.clamp_min(0)).sum() * a
    torch.testing.assert_close(maps(gap_net, GradCAMPlusPlus(), inputs).double(), expected.relu(), rtol=1e-4, atol=1e-7)


def test_xgrad_layer_and_hires_cam_are_their_equations(gap_net, inputs):
    """Summed channel by channel."""
    a, g = parts(gap_net, inputs)
    weights = torch.nan_to_num((g * a).sum((2, 3)) / a.sum((2, 3)))
    torch.testing.assert_close(
        maps(gap_net, XGradCAM(), inputs), (a * weights[..., None, None]).sum(1).relu(), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(maps(gap_net, LayerCAM(), inputs), (g.relu() * a).sum(1).relu())
    torch.testing.assert_close(maps(gap_net, HiResCAM(), inputs), (g * a).sum(1))


def test_hires_cam_sums_to_the_logit_behind_a_linear_head(gap_net, inputs):
    """Its completeness: the map's sum plus the bias is the logit."""
    found = maps(gap_net, HiResCAM(), inputs)
    logits = ForwardPass(gap_net, inputs).logits[torch.arange(3), TARGETS]
    torch.testing.assert_close(found.sum((1, 2)) + find_classifier(gap_net.module).bias.detach()[TARGETS], logits)


def test_shapley_cam_is_grad_cam_where_the_score_is_linear(gap_net, inputs):
    """The second derivative of a linear head is 0."""
    torch.testing.assert_close(maps(gap_net, ShapleyCAM(), inputs), maps(gap_net, GradCAM(), inputs))


def test_shapley_cam_halves_the_curvature(inputs):
    """With the score sum(mean(A)^2) the second derivative is known: weights are halved."""

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.ReLU())

        def forward(self, x):
            return self.features(x).mean((2, 3)).square()

    torch.manual_seed(0)
    model = xai_abn.wrap(Squared(), preprocess=Preprocess(size=64))
    linear, found = maps(model, GradCAM(), inputs), maps(model, ShapleyCAM(), inputs)
    torch.testing.assert_close(found, linear / 2)


def test_eigen_cam_is_the_first_principal_component_with_a_fixed_sign(resnet18, inputs):
    """The singular vectors of torch, with the sign that makes the largest magnitude positive."""
    shared = ForwardPass(resnet18, inputs, ["layer4"])
    found = EigenCAM().explain(shared, TARGETS)
    for n in range(3):
        flat = shared.activations("layer4")[n].flatten(1).T
        centered = (flat - flat.mean(0)).double()
        projection = (centered @ torch.linalg.svd(centered, full_matrices=False).Vh[0]).view(2, 2).float()
        expected = projection if projection.max() > -projection.min() else -projection
        torch.testing.assert_close(found[n], expected, rtol=1e-3, atol=1e-4)
        assert found[n].max() >= found[n].abs().max()


def test_eigen_cam_of_many_positions_equals_that_of_few_channels(gap_net):
    """Both ways of computing the component agree: for more positions than channels, and for fewer."""
    from xai_abn.explainers.eigen_cam import first_component

    values = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values, torch.zeros(2, 20, 3, 4)], dim=1)
    torch.testing.assert_close(first_component(values), first_component(padded), rtol=1e-4, atol=1e-5)


def test_the_leading_eigenvector_of_a_large_matrix_is_that_of_its_decomposition():
    """Found in a few steps if it dominates, and by full decomposition if two eigenvalues are nearly equal."""
    from xai_abn.explainers.eigen_cam import _scaled_eigenvector

    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 100, 100, generator=generator, dtype=torch.float64)).Q
    for second in (0.5, 0.999999):
        values = torch.cat([torch.linspace(0, 0.4, 98), torch.tensor([second, 1.0])]).double()
        found = _scaled_eigenvector(basis * values @ basis.mT)
        expected = basis[..., -1] * torch.sign((basis[..., -1] * found).sum(1, keepdim=True))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_lanczos_tells_which_matrices_it_did_not_solve():
    """Those whose first eigenvalues are close; others are solved, also of rank one and smaller than the steps."""
    from xai_abn.explainers.eigen_cam import STEPS, _decomposed, _lanczos

    generator = torch.Generator().manual_seed(0)
    for size in (4, STEPS + 1, 40):
        factors = torch.randn(3, size, size, generator=generator)
        factors[1] = factors[1, :, :1] @ factors[1, :1]
        grams = factors @ factors.mT
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
        close = 1 + 1e-3 * torch.rand(size, generator=generator)
        grams[2] = basis * close @ basis.mT
        found, solved = _lanczos(grams)
        expected = _decomposed(grams).float()
        assert bool(solved[1])
        if size == 40:
            assert not bool(solved[2])
        else:
            assert bool(solved[0])
        signs = (found * expected).sum(dim=1, keepdim=True).sign()
        for row in (0, 1):  # the direction of the third hardly differs from others in the size of its product
            if bool(solved[row]):
                torch.testing.assert_close(found[row] * signs[row], expected[row], rtol=1e-3, atol=1e-3)


class Pooled(nn.Module):
    """Pools features in front of its 1x1 convolution, or the class scores behind it."""

    def __init__(self, pool_first):
        super().__init__()
        self.pool_first = pool_first
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        f = self.features(x)
        return self.head(f.mean((2, 3), keepdim=True)).flatten(1) if self.pool_first else self.head(f).mean((2, 3))


@pytest.mark.parametrize("pool_first", [True, False])
def test_cam_of_a_1x1_convolution_is_that_of_a_linear_layer(pool_first, inputs):
    """Class weights times features at every position; behind the pooling without the bias, as of a linear layer."""
    torch.manual_seed(0)
    network = Pooled(pool_first).eval()
    with torch.no_grad():
        f, weights, bias = network.features(inputs), network.head.weight[TARGETS, :, 0, 0], network.head.bias[TARGETS]
        expected = (f * weights[:, :, None, None]).sum(1) + (0 if pool_first else bias[:, None, None])
    found = maps(xai_abn.wrap(network, preprocess=Preprocess(size=64)), CAM(), inputs)
    torch.testing.assert_close(found, expected)
    versus = torch.zeros(3, 5).scatter_(1, TARGETS[:, None], 1.0)
    versus[:, 0] -= 1
    difference = maps(xai_abn.wrap(network, preprocess=Preprocess(size=64)), CAM(), inputs, versus)
    zero = maps(xai_abn.wrap(network, preprocess=Preprocess(size=64)), CAM(), inputs, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(difference, expected - zero)


def test_cam_of_squeezenet_is_its_map_of_class_scores(inputs):
    """Rectified before the pooling; its mean is the logit."""
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=7).eval()
    with torch.no_grad():
        scores = network.classifier[1](network.features(inputs)).relu()
    found = maps(xai_abn.wrap(network, preprocess=Preprocess(size=64)), CAM(), inputs)
    torch.testing.assert_close(found, scores[torch.arange(3), TARGETS])


def test_finer_cam_of_strength_0_is_grad_cam(gap_net, inputs):
    """A strength of 0 switches the comparison off."""
    torch.testing.assert_close(maps(gap_net, FinerCAM(strength=0.0), inputs), maps(gap_net, GradCAM(), inputs))


def test_finer_cam_compares_with_the_closest_classes(gap_net, inputs):
    """Gradients of y_c - 0.6 mean(y_d), d being the three classes closest in logits."""
    logits = ForwardPass(gap_net, inputs).logits
    expected = []
    for n in range(3):
        target = int(TARGETS[n])
        others = sorted(
            (k for k in range(5) if k != target), key=lambda k: abs(float(logits[n, k] - logits[n, target]))
        )
        a, own = parts(gap_net, inputs[n : n + 1], TARGETS[n : n + 1])
        rest = [parts(gap_net, inputs[n : n + 1], torch.tensor([k]))[1] for k in others[:3]]
        weights = (own - 0.6 * torch.stack(rest).mean(0)).mean((2, 3))
        expected.append((a * weights[..., None, None]).sum(1).relu()[0])
    torch.testing.assert_close(maps(gap_net, FinerCAM(), inputs), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_score_cam_is_its_algorithm(gap_net, inputs):
    """One masked image at a time, also for constant channels; softmax of the logits over channels."""
    a, _ = parts(gap_net, inputs)
    a = a.clone()
    expected = []
    for n in range(3):
        scores = []
        for channel in a[n]:
            mask = unit_range(nn.functional.interpolate(channel[None, None], inputs.shape[2:], mode="bilinear"))
            scores.append(gap_net.module(inputs[n : n + 1] * mask)[0, TARGETS[n]])
        weights = torch.stack(scores).softmax(0)
        expected.append((weights[:, None, None] * a[n]).sum(0).relu())
    found = maps(gap_net, ScoreCAM(batch_size=5), inputs)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_is_cam_of_one_step_is_score_cam(gap_net, inputs):
    """The only mask is the full mask."""
    torch.testing.assert_close(maps(gap_net, ISCAM(steps=1), inputs), maps(gap_net, ScoreCAM(), inputs))


@pytest.mark.parametrize("layer", [None, "layer2"])
def test_ablation_cam_is_its_equation(resnet18, inputs, layer):
    """Each channel set to 0 in its own forward pass, for the last layer and one in the middle."""
    name = layer or "layer4"
    shared = ForwardPass(resnet18, inputs[:1], [name])
    a, whole = shared.activations(name)[0], shared.logits[0, 3]
    drops = []
    for k in range(0, len(a), 16):

        def cut(module, inputs, output, k=k):
            output = output.clone()
            output[:, k] = 0
            return output

        handle = resnet18.module.get_submodule(name).register_forward_hook(cut)
        with torch.no_grad():
            drops.append((whole - resnet18.module(inputs[:1])[0, 3]) / whole)
        handle.remove()
    explainer = AblationCAM(layer=name)
    lost = explainer.ablated_scores(shared, name, TARGETS[:1], 0)
    torch.testing.assert_close(((whole - lost) / whole)[::16], torch.stack(drops), rtol=1e-3, atol=1e-5)
    found = explainer.explain(shared, TARGETS[:1])[0]
    torch.testing.assert_close(found, (((whole - lost) / whole)[:, None, None] * a).sum(0).relu())


@pytest.mark.parametrize("layer", [None, "layer2"])
def test_recipro_cam_is_its_equation(resnet18, inputs, layer):
    """The softmax of the class with the features of one position alone, each in its own forward pass."""
    name = layer or "layer4"
    shared = ForwardPass(resnet18, inputs[:1], [name])
    height, width = shared.activations(name).shape[2:]
    expected = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):

            def keep(module, inputs, output, y=y, x=x):
                alone = torch.zeros_like(output)
                alone[:, :, y, x] = output[:, :, y, x]
                return alone

            handle = resnet18.module.get_submodule(name).register_forward_hook(keep)
            with torch.no_grad():
                expected[y, x] = resnet18.module(inputs[:1]).softmax(dim=1)[0, 3]
            handle.remove()
    found = ReciproCAM(layer=layer).explain(shared, TARGETS[:1])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert found.std() > 100 * (found - expected).abs().max()


def test_recipro_cam_of_a_transformer_keeps_the_class_token(vit, inputs):
    """Patch tokens are set to 0 but one, in front of the last attention."""
    name = vit.target_layer
    expected = torch.zeros(16)
    for place in range(16):

        def keep(module, inputs, output, place=place):
            alone = torch.zeros_like(output)
            alone[:, [0, 1 + place]] = output[:, [0, 1 + place]]
            return alone

        handle = vit.module.get_submodule(name).register_forward_hook(keep)
        with torch.no_grad():
            expected[place] = vit.module(inputs[:1]).softmax(dim=1)[0, 3]
        handle.remove()
    found = ReciproCAM().explain(ForwardPass(vit, inputs[:1], [name]), TARGETS[:1])[0]
    torch.testing.assert_close(found, expected.view(4, 4), rtol=1e-5, atol=0)


def test_running_again_from_inside_a_dense_block_works(inputs):
    """After such a layer, the features of one image are concatenated with those of B variants."""
    torch.manual_seed(0)
    model = xai_abn.wrap(torchvision.models.densenet121().eval(), preprocess=Preprocess(size=64))
    name = "features.denseblock4.denselayer15"
    shared = ForwardPass(model, inputs[:1], [name])
    again = ForwardPass(model, inputs[:1], [name]).rerun(name, 0, shared.activations(name).expand(3, -1, -1, -1))
    torch.testing.assert_close(again, shared.logits.expand(3, -1), rtol=1e-4, atol=1e-5)


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus(gap_net, inputs):
    """All copies equal the image."""
    found = maps(gap_net, SmoothGradCAMPlusPlus(samples=2, deviation=0.0), inputs)
    torch.testing.assert_close(found, maps(gap_net, GradCAMPlusPlus(), inputs), rtol=1e-3, atol=1e-6)


def test_refine_cam_multiplies_scaled_maps(resnet18, inputs):
    """At the resolution of the first layer; by default, the layers are the last of three resolutions."""
    explainer = RefineCAM()
    assert explainer.layers_read(resnet18) == ("layer2", "layer3", "layer4")
    each = [maps(resnet18, GradCAMPlusPlus(layer=name), inputs) for name in explainer.layers_read(resnet18)]
    large = [
        nn.functional.interpolate(unit_range(m)[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
        for m in each
    ]
    torch.testing.assert_close(maps(resnet18, explainer, inputs), large[0] * large[1] * large[2])


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "grad-cam++", "finer-cam"])
def test_several_layers_give_the_largest_of_their_scaled_maps(method, resnet18, inputs):
    """Of each layer's map by autograd and a hook in a pass of its own; a map of zeros stays zero."""
    names = ("layer2", "layer3", "layer4")
    found = maps(resnet18, parse_spec(f"{method}:layers={'+'.join(names)}"), inputs)
    each = [maps(resnet18, parse_spec(method, layer), inputs) for layer in names]
    large = [nn.functional.interpolate(m[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0] for m in each]
    scaled = [m / m.amax((1, 2), keepdim=True).clamp_min(1e-30) for m in large]
    torch.testing.assert_close(found, torch.maximum(torch.maximum(scaled[0], scaled[1]), scaled[2]))
    assert found.amin() >= 0
    zero = torch.zeros(1, 2, 2)
    torch.testing.assert_close(largest_of([zero, zero]), zero)


def test_layer_cam_of_several_layers_is_that_of_torchcam(resnet18, inputs):
    """Up to its tanh, which keeps the order."""
    torchcam = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    names = ["layer3.0", "layer3.1"]
    network, image = resnet18.module.eval(), inputs[:1]
    with torchcam.LayerCAM(network, names, input_shape=image.shape[1:]) as extractor:
        each = extractor(class_idx=3, scores=network(image), normalized=False)
        fused = extractor.fuse_cams([m / m.max() for m in each])
    found = maps(resnet18, LayerCAM(layers=names), image, TARGETS[:1])
    torch.testing.assert_close(torch.tanh(2 * found), fused, rtol=1e-4, atol=1e-5)


def test_several_layers_are_refused_where_they_mean_nothing(resnet18):
    with pytest.raises(UnsupportedModelError, match="hires-cam has negative values"):
        make_explainers(resnet18, "hires-cam:layers=layer3+layer4")
    with pytest.raises(InvalidInputError, match="grad-cam takes layer or layers, got both"):
        make_explainers(resnet18, "grad-cam:layers=layer3+layer4", layer="layer4")
    with pytest.raises(InvalidInputError, match="at least two different layers, got layer4"):
        make_explainers(resnet18, "grad-cam:layers=layer4+layer4")


def test_refine_cam_refuses_one_resolution(vit, inputs):
    """A ViT has one resolution, but layers can be named."""
    with pytest.raises(UnsupportedModelError, match="option layers"):
        RefineCAM().layers_read(vit)
    found = maps(vit, RefineCAM(layers=("blocks.1.norm1", "blocks.2.norm1")), inputs)
    assert found.shape == (3, 4, 4)


def plain_attention(model, inputs):
    """Attention weights of a timm ViT computed from its projections, and its logits."""
    network, kept = model.module, []
    x = network._pos_embed(network.patch_embed(inputs))
    for block in network.blocks:
        attn, y = block.attn, block.norm1(x)
        n, t, c = y.shape
        q, k, v = attn.qkv(y).reshape(n, t, 3, attn.num_heads, c // attn.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)
        kept.append(weights)
        x = x + attn.proj((weights @ v).transpose(1, 2).reshape(n, t, c))
        x = x + block.mlp(block.norm2(x))
    return kept, network.forward_head(network.norm(x))


@pytest.mark.parametrize("name", ["vit", "pooled_vit"])
def test_attention_is_what_the_projections_give(name, inputs, request):
    """Recorded without changing the logits."""
    model = request.getfixturevalue(name)
    shared = ForwardPass(model, inputs, attentions=True)
    expected, logits = plain_attention(model, inputs)
    torch.testing.assert_close(shared.logits, logits.detach(), rtol=1e-4, atol=1e-5)
    assert len(shared.attentions) == 3
    for found, own in zip(shared.attentions, expected, strict=True):
        torch.testing.assert_close(found, own.detach(), rtol=1e-4, atol=1e-6)


def test_watching_attention_does_not_change_torchvisions_logits(torchvision_vit, inputs):
    """``nn.MultiheadAttention`` gives the same output while its weights are recorded; rows sum to 1."""
    plain = ForwardPass(torchvision_vit, inputs)
    shared = ForwardPass(torchvision_vit, inputs, attentions=True, gradients=True)
    torch.testing.assert_close(shared.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert [tuple(a.shape) for a in shared.attentions] == [(3, 4, 17, 17)] * 3
    torch.testing.assert_close(shared.attentions[0].sum(-1), torch.ones(3, 4, 17))
    assert all(float(g.abs().max()) > 0 for g in shared.attention_gradients(TARGETS))


def test_rollout_is_its_equation(vit, pooled_vit, inputs):
    """A product of half attention, half identity; read from the class token, or averaged over patches."""
    for model, first in ((vit, 1), (pooled_vit, 0)):
        weights, _ = plain_attention(model, inputs)
        rolled = torch.eye(16 + first).expand(3, -1, -1)
        for attention in weights:
            rolled = (attention.mean(1) / 2 + torch.eye(16 + first) / 2) @ rolled
        expected = rolled[:, 0, 1:] if first else rolled.mean(1)
        found = maps(model, AttentionRollout(), inputs)
        torch.testing.assert_close(found, expected.detach().view(3, 4, 4), rtol=1e-4, atol=1e-6)


def test_attention_relevance_is_its_equations(vit, inputs):
    """R <- R + mean(ReLU(dA A)) R, with gradients by plain autograd."""
    weights, logits = plain_attention(vit, inputs)
    gradients = torch.autograd.grad(logits[torch.arange(3), TARGETS].sum(), weights)
    relevance = torch.eye(17).expand(3, -1, -1)
    for attention, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + (attention * gradient).clamp_min(0).mean(1) @ relevance
    found = maps(vit, AttentionRelevance(), inputs)
    torch.testing.assert_close(found, relevance[:, 0, 1:].detach().view(3, 4, 4), rtol=1e-3, atol=1e-7)


def test_legrad_equals_torchcam(torchvision_vit, inputs):
    """The library that follows the paper."""
    torchcam = pytest.importorskip("torchcam.methods")
    if not hasattr(torchcam, "LeGrad"):
        pytest.skip("torchcam before 0.5 has no LeGrad")
    network = torchvision_vit.module
    with torchcam.LeGrad(network, list(network.encoder.layers)) as extractor:
        network(inputs)
        expected = extractor(TARGETS.tolist(), normalized=False)[0]
    torch.testing.assert_close(maps(torchvision_vit, LeGrad(), inputs), expected, rtol=1e-3, atol=1e-8)


def test_attention_methods_refuse_what_they_do_not_describe(resnet18, inputs):
    """No attention at all, or attention in windows."""
    with pytest.raises(UnsupportedModelError, match="no self-attention"):
        AttentionRollout().check(resnet18)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1))
    model = xai_abn.wrap(swin, preprocess=Preprocess(size=64))
    with pytest.raises(UnsupportedModelError, match="windows"):
        maps(model, AttentionRollout(), inputs)


@pytest.mark.parametrize("explainer", [GradCAM, LayerCAM, XGradCAM, GradCAMPlusPlus, EigenCAM])
def test_patches_are_arranged_on_their_grid(vit, inputs, explainer):
    """The same map as from tokens without the class token, reshaped by hand."""
    shared = ForwardPass(vit, inputs, ["blocks.2.norm1"], gradients=True)
    kept = []
    handle = vit.module.blocks[2].norm1.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = vit.module(inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[torch.arange(3), TARGETS].sum(), kept[0])

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(3, -1, 4, 4)

    torch.testing.assert_close(shared.activations("blocks.2.norm1"), grid(kept[0].detach()))
    torch.testing.assert_close(shared.gradients("blocks.2.norm1", TARGETS), grid(gradient), rtol=1e-3, atol=1e-7)
    assert explainer().explain(shared, TARGETS).shape == (3, 4, 4)


def test_swins_channels_are_last(inputs):
    """Its layers give (N, h, w, C); the map equals that of the permuted layer."""
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1)).eval()
    model = xai_abn.wrap(swin, preprocess=Preprocess(size=64))
    shared = ForwardPass(model, inputs, ["norm"], gradients=True)
    assert shared.activations("norm").shape == (3, 768, 2, 2)
    torch.testing.assert_close(shared.activations("norm"), shared.raw_output("norm").detach().permute(0, 3, 1, 2))
