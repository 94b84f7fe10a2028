"""The layer that is read belongs to this image and to this score, and its patches are where they are said to be."""

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from odd_networks import (
    Columns,
    Flipped,
    Hooked,
    Locked,
    Pair,
    Plain,
    Queries,
    Recurrent,
    Siamese,
    Tokens,
    UNet,
    WithDecoder,
)
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers import get, names
from xai_abn.networks.tracing import trace_outputs

SMALL = xai_abn.Preprocess(size=64)


def wrapped(network, **options):
    return xai_abn.wrap(network.eval(), preprocess=SMALL, **options)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hires_cam(activations, score):
    """HiResCAM written out, from activations (1, C, h, w) with a history and the score they lead to."""
    (gradient,) = torch.autograd.grad(score, activations)
    return (activations * gradient).sum(dim=1)[0].detach().numpy()


# Patches.

SWINS = {
    "swin": (transformers.SwinConfig, transformers.SwinForImageClassification, "swin.layernorm"),
    "swinv2": (transformers.Swinv2Config, transformers.Swinv2ForImageClassification, "swinv2.layernorm"),
}


@pytest.mark.parametrize("kind", SWINS)
@pytest.mark.parametrize(
    ("width", "depths"), [(32, [1] * 4), (80, [1] * 4), (128, [1] * 4), (24, [1, 1, 2, 1]), (24, [2] * 4)]
)
def test_pooled_channels_are_no_patches(kind, width, depths):
    """Of 256, 640 or 1024 pooled channels, some numbers fit a square; the last layer with patches is read.

    Also behind shifted windows, which spread a small change on a blank image over half of the image.
    """
    torch.manual_seed(0)
    config, network, layer = SWINS[kind]
    heads = [1, 2, 4, 8]
    made = network(config(embed_dim=width, depths=depths, num_heads=heads, num_labels=5)).eval()
    model = xai_abn.wrap(made, output="logits")
    result = xai_abn.explain(model, noise(1, 3, 224, 224), "hires-cam", targets=2)["hires-cam"]
    assert (result.layer, result.map.shape) == (layer, (7, 7))
    kept = []
    handle = made.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output) or output)
    score = made(noise(1, 3, 224, 224)).logits[0, 2]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    right = (kept[0] * gradient).sum(dim=2).view(7, 7).detach().numpy()
    np.testing.assert_allclose(result.map, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


def data2vec():
    """A small network whose blocks return tuples."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Data2VecVisionConfig(**sizes, image_size=64, num_labels=5)
    return transformers.Data2VecVisionForImageClassification(config).eval()


def test_a_block_that_returns_a_tuple_is_read_by_name():
    """Its first tensor is its output, as of many blocks of Hugging Face; gradients and reruns go through it."""
    network, name, image = data2vec(), "data2vec_vision.encoder.layer.0", noise(1, 3, 64, 64)
    kept = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _i, output: kept.extend(output))
    score = network(image).logits[0, 2]
    handle.remove()
    assert len(kept) == 2  # a tuple
    right = (torch.autograd.grad(score, kept[0])[0] * kept[0])[0, 1:].sum(dim=1).view(4, 4).detach().numpy()
    model = wrapped(network, layer=name)
    found = xai_abn.explain(model, image, ["hires-cam", "ablation-cam"], targets=2)
    np.testing.assert_allclose(found["hires-cam"].map, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())
    assert (found["ablation-cam"].layer, found["ablation-cam"].flaw) == (name, None)


WINDOWS = {"embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 2, 4], "num_labels": 5}
SUMS = {
    "hiera.encoder.stages.3": lambda: transformers.HieraForImageClassification(
        transformers.HieraConfig(**WINDOWS, image_size=[64, 64])
    ),
    "donut.encoder.layers.3": lambda: transformers.DonutSwinForImageClassification(
        transformers.DonutSwinConfig(**WINDOWS, image_size=64, window_size=2)
    ),
    "data2vec_vision.encoder.layer.1": data2vec,
}


@pytest.mark.parametrize("layer", SUMS)
def test_of_a_block_that_returns_a_tuple_the_sum_is_the_target_layer(layer):
    """Not its last branch, which is the last module inside it: the score depends on the skip around it, too."""
    torch.manual_seed(0)
    network, image, kept = SUMS[layer]().eval(), noise(1, 3, 64, 64), []
    with torch.no_grad():
        for values in network.parameters():  # an initial weight of 0 would switch a branch off
            values.add_(torch.randn_like(values) * 0.05)
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output[0]))
    score = network(image).logits[0, 2]
    handle.remove()
    products = (torch.autograd.grad(score, kept[0])[0] * kept[0])[0].sum(dim=1).detach().numpy()
    model = wrapped(network)
    found = xai_abn.explain(model, image, ["hires-cam", "score-cam"], targets=2)
    assert model.target_layer == layer
    right = products[-found["hires-cam"].map.size :].reshape(found["hires-cam"].map.shape)
    np.testing.assert_allclose(found["hires-cam"].map, right, rtol=1e-3, atol=1e-4 * np.abs(right).max())
    assert found["score-cam"].map.shape == right.shape


def test_legrad_takes_blocks_that_return_tuples_and_refuses_windows():
    """It reads the blocks itself, so it never asks for another layer."""
    assert xai_abn.explain(wrapped(data2vec()), noise(1, 3, 64, 64), "legrad")["legrad"].map.shape == (4, 4)
    config = transformers.SwinConfig(embed_dim=24, depths=[1] * 4, num_heads=[1, 2, 4, 8], num_labels=5)
    model = xai_abn.wrap(transformers.SwinForImageClassification(config).eval())
    with pytest.raises(UnsupportedModelError, match="legrad needs attention over all patches"):
        xai_abn.explain(model, noise(1, 3, 224, 224), "legrad")


@pytest.mark.parametrize("method", ["grad-cam", "eigen-cam"])
def test_columns_are_no_patches(method):
    """Sixteen columns are not read as a grid of 4x4."""
    with pytest.raises(UnsupportedModelError, match="do not fit a grid of patches"):
        xai_abn.explain(wrapped(Columns()), noise(1, 3, 64, 64), method)


@pytest.mark.parametrize("number", [1, 4, 9, 16, 25, 100])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_queries_are_no_patches(number, seed):
    """Not even where there are as many as patches."""
    torch.manual_seed(seed)
    assert wrapped(Queries(number)).target_layer == "encoder"


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("grid", "other"),
    [((2, 3), 2), ((4, 8), 4), ((5, 10), 5), ((7, 7), 15), ((3, 3), 7), ((2, 2), 5), ((1, 14), 1), ((4, 6), 1)],
)
def test_the_patch_grid_is_known(grid, other, behind):
    """The patches are found among other tokens, whatever other grids their number would fit."""
    torch.manual_seed(0)
    rows, columns = grid
    example = noise(1, 3, 16 * rows, 16 * columns)
    outputs = trace_outputs(Tokens(other, behind).eval(), example)
    layout = next(o.layout for o in outputs if o.name == "encoder")
    assert (layout.grid, layout.prefix) == (grid, 0 if behind else other)


def test_linear_patches_of_the_image_itself_are_patches():
    """Patches can be cut without a convolution, as in many hand-written transformers."""

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.token = nn.Linear(3 * 64, 32), nn.Parameter(torch.zeros(1, 1, 32))
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)
            self.fc = nn.Linear(32, 5)

        def forward(self, x):
            patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(patches)], dim=1)
            return self.fc(self.encoder(tokens)[:, 0])

    torch.manual_seed(0)
    model = wrapped(Cut())
    result = xai_abn.explain(model, noise(1, 3, 64, 64), "grad-cam")["grad-cam"]
    assert result.map.shape == (8, 8)


SEQUENCE_METHODS = [
    "attention-rollout",
    "attention-relevance",
    "legrad",
    "grad-cam",
    "ablation-cam",
    "eigen-cam",
    "score-cam",
    "shapley-cam",
]


@pytest.mark.parametrize("method", SEQUENCE_METHODS)
@pytest.mark.parametrize("other", [0, 1])
def test_the_order_of_axes_does_not_matter(method, other):
    """A transformer that computes on (T, N, C) gives the maps of the same one on (N, T, C)."""
    torch.manual_seed(0)
    one, two = Tokens(other), Tokens(other, batch_first=False)
    two.load_state_dict(one.state_dict())
    images = noise(2, 3, 64, 64)
    maps = [[r[method].map for r in xai_abn.explain(wrapped(n), images, method, 1)] for n in (one, two)]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-4, atol=1e-5 * np.abs(maps[0]).max())


# Layers that run several times.


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("layer", [None, "encoder", "encoder.0"])
def test_the_call_with_the_image_is_explained(first, layer):
    """Whether it comes before or behind that with another image."""
    torch.manual_seed(0)
    network = Siamese(first).eval()
    image = noise(1, 3, 64, 64)
    result = xai_abn.explain(wrapped(network, layer=layer), image, "hires-cam", targets=0)["hires-cam"]
    inner = network.encoder[0](image).detach().requires_grad_()
    activations = inner.relu() if layer != "encoder.0" else inner
    other = network.encoder(network.other).mean((2, 3))
    score = network.fc(
        torch.cat([inner.relu().mean((2, 3)) if layer == "encoder.0" else activations.mean((2, 3)), other], 1)
    )
    np.testing.assert_allclose(result.map, hires_cam(activations, score[0, 0]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["score-cam", "ablation-cam", "eigen-cam", "grad-cam"])
def test_two_images_do_not_get_one_map(method):
    """The fixed image is not explained in place of the given one."""
    torch.manual_seed(0)
    model = wrapped(Siamese())
    first, second = (xai_abn.explain(model, noise(1, 3, 64, 64, seed=s), method, 0)[method].map for s in (1, 2))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("layer", [None, "body"])
@pytest.mark.parametrize("method", ["grad-cam", "eigen-cam", "score-cam"])
def test_a_layer_that_sees_the_image_twice_is_refused(method, layer):
    """Its two outputs are of two views, which one map cannot show."""
    with pytest.raises(UnsupportedModelError, match=r"'body' .*2 times .*(name|choose)"):
        xai_abn.explain(wrapped(Flipped(), layer=layer), noise(1, 3, 64, 64), method)


@pytest.mark.parametrize("method", ["grad-cam", "ablation-cam", "hires-cam", "eigen-cam"])
def test_of_a_layer_in_a_row_the_last_output_is_explained(method):
    """As of three layers with the same weights."""
    torch.manual_seed(0)
    shared, apart = Recurrent(), Recurrent(shared=False)
    apart.load_state_dict(
        shared.state_dict() | {f"steps.{i}.{n}": v for i in range(3) for n, v in shared.steps[0].state_dict().items()}
    )
    image = noise(1, 3, 64, 64)
    with torch.no_grad():
        found = xai_abn.explain(wrapped(shared, layer="steps.0"), image, method, 1)[method].map
    right = xai_abn.explain(wrapped(apart, layer="steps.2"), image, method, 1)[method].map
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)


# The score depends on the layer.


def test_a_branch_without_a_say_is_not_the_target_layer():
    """The decoder runs last, but the scores do not depend on it; also where the caller wants no gradients."""
    with torch.no_grad():
        assert wrapped(WithDecoder(), output="logits").target_layer == "body"
    assert wrapped(WithDecoder(), output="logits").target_layer == "body"


@pytest.mark.parametrize(
    ("name", "aux", "layer"),
    [
        ("deeplabv3_mobilenet_v3_large", True, "backbone.16"),
        ("deeplabv3_mobilenet_v3_large", False, "backbone.16"),
        ("lraspp_mobilenet_v3_large", None, "backbone.16"),
        ("fcn_resnet50", False, "backbone.layer4"),
    ],
)
@pytest.mark.parametrize("method", ["grad-cam", "eigen-cam"])
def test_the_layer_of_a_segmentation_network_is_in_front_of_its_head(name, aux, layer, method):
    """Neither the auxiliary head, which the score does not depend on, nor the map of scores itself."""
    torch.manual_seed(0)
    options = {} if aux is None else {"aux_loss": aux}
    network = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, **options)
    result = xai_abn.explain(wrapped(network), noise(1, 3, 64, 64), method, lambda o: o["out"][:, 15].mean((1, 2)))
    assert result[method].layer == layer


def test_the_layer_of_a_u_net_is_its_bottleneck():
    """The coarsest grid in front of the last convolution."""
    result = xai_abn.explain(wrapped(UNet()), noise(1, 3, 64, 64), "grad-cam", lambda o: o[:, 1].mean((1, 2)))
    assert result["grad-cam"].layer == "bottom"


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "vit_base_patch16_siglip_224"])
def test_a_layer_inside_an_attention_is_not_the_target_layer(name):
    """Such as the values of an attention that pools or reads the class token."""
    layer = wrapped(timm.create_model(name, img_size=64, num_classes=5)).target_layer
    assert "attn." not in layer


def test_a_block_called_after_pooling_is_no_pooling():
    """Of Hugging Face's PoolFormer every block has the word in its name."""
    config = transformers.PoolFormerConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_labels=5)
    network = transformers.PoolFormerForImageClassification(config)
    assert "output" not in wrapped(network, output="logits").target_layer


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_size_of_the_image_does_not_change_the_target_layer(size):
    """SegFormer has as many rows in one layer as tokens in another, at some sizes."""
    torch.manual_seed(0)
    network = transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=5)).eval()
    model = xai_abn.wrap(network, output="logits", preprocess=xai_abn.Preprocess(size=size))
    names = ("segformer.stages.3", "segformer.encoder.layer_norm.3")  # versions of transformers differ
    assert model.target_layer in names


# Every block is seen.


@pytest.mark.parametrize("method", ["attention-rollout", "attention-relevance", "legrad"])
@pytest.mark.parametrize("name", ["pvt_v2_b0", "twins_pcpvt_small", "vit_base_patch16_siglip_224"])
def test_attention_that_is_not_of_all_tokens_is_refused(method, name):
    """Attention to fewer keys, within windows, or of one query alone is not left out silently."""
    network = timm.create_model(name, num_classes=5, **({"img_size": 64} if "vit" in name else {}))
    with pytest.raises(UnsupportedModelError, match=r"grad-cam|Grad-CAM"):
        xai_abn.explain(wrapped(network), noise(1, 3, 64, 64), method)


def test_masked_attention_is_explained():
    """Of a network with relative positions, at an inner layer."""
    network = timm.create_model("beit_base_patch16_224", depth=2, embed_dim=48, num_heads=3, img_size=64, num_classes=5)
    result = xai_abn.explain(wrapped(network, layer="blocks.1.norm1"), noise(1, 3, 64, 64), "grad-cam")
    assert result["grad-cam"].map.shape == (4, 4)


# Inputs that are not (3, S, S).


def plain(channels):
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 4, 1), nn.ReLU(), *head).eval()


QUICK = {
    "rise": ":masks=8",
    "lime": ":segments=4,samples=8",
    "kernel-shap": ":segments=4,samples=8",
    "feature-ablation": ":segments=4",
    "occlusion": ":window=0.5,stride=0.5",
}


@pytest.mark.parametrize("method", [n for n in names() if not n.startswith(("abn", "attention", "legrad"))])
@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 32, 32), (3, 48, 32), (11, 32, 48)])
def test_every_method_takes_other_inputs(method, shape):
    """One, four or more channels, and rectangles; a method that does not apply says why."""
    inputs = noise(1, *shape)
    spec = f"{method}{QUICK.get(method, '')}"
    model = xai_abn.wrap(plain(shape[0]), example_input=inputs)
    if method == "refine-cam":  # the network has one resolution
        with pytest.raises(UnsupportedModelError, match="several resolutions"):
            xai_abn.explain(model, inputs, spec, targets=1)
        return
    found = next(iter(xai_abn.explain(model, inputs, spec, targets=1)[0].values()))
    assert np.isfinite(found.map).all()
    if not get(method).baseline:
        assert (found.map.shape[0] >= found.map.shape[1]) == (shape[1] >= shape[2])


def test_gray_images_are_read_for_a_network_of_one_channel():
    """One mean and deviation make the preprocessing one of gray images."""
    preprocess = xai_abn.Preprocess(size=28, mean=(0.5,), std=(0.25,))
    result = xai_abn.explain(xai_abn.wrap(plain(1), preprocess=preprocess), "example:cat", ["grad-cam", "score-cam"])
    assert result["grad-cam"].view.shape == (56, 56, 3)


def test_a_rectangle_is_cut_from_an_image_as_torchvision_does():
    """Resized to cover the input, then cropped in the middle."""
    preprocess = xai_abn.Preprocess(size=96, width=48, crop_pct=1.0)
    image = xai_abn.images.loading.load_image("example:cat")
    prepared = preprocess(image)
    assert prepared.tensor.shape == (3, 96, 48)
    left, top, right, bottom = preprocess.region(*image.image.size)
    assert (right - left) / (bottom - top) == pytest.approx(0.5, rel=0.01)


def test_methods_of_a_rectangular_transformer():
    """Every method finds its layers with the example."""
    network = timm.create_model("vit_tiny_patch16_224", img_size=(96, 48), depth=2, embed_dim=48, num_classes=5)
    example = noise(1, 3, 96, 48)
    model = xai_abn.wrap(network.eval(), example_input=example)
    methods = ["grad-cam", "attention-rollout", "attention-relevance", "legrad", "score-cam"]
    result = xai_abn.explain(model, example, methods)[0]
    assert {r.map.shape for r in result.values()} == {(6, 3)}


@pytest.mark.parametrize("example", ["image", torch.zeros(3, 4, 4), (torch.zeros(1, 3, 4, 4), torch.zeros(1))])
def test_an_example_is_one_tensor(example):
    """Anything else is refused, with what to do for a network of two inputs."""
    with pytest.raises(InvalidInputError, match="the other inputs of a network with several as other_inputs="):
        xai_abn.wrap(plain(3), example_input=example)


def test_the_wrong_number_of_channels_is_refused():
    """Before the network runs, and it says what helps."""
    with pytest.raises(InvalidInputError, match=r"\(3, H, W\).*example_input"):
        xai_abn.explain(wrapped(plain(3)), noise(1, 4, 32, 32), "grad-cam")


@pytest.mark.parametrize("method", ["grad-cam", "saliency", "rise:masks=4", "attention-rollout", "score-cam"])
def test_a_network_of_two_inputs_is_refused_clearly(method):
    """With what is missing."""
    with pytest.raises(UnsupportedModelError, match="'y'"):
        xai_abn.explain(wrapped(Pair()), noise(1, 3, 64, 64), method)


# Networks that use gradients, keep tensors, or mix precisions.


@pytest.mark.parametrize("method", [n for n in names() if not n.startswith(("abn", "attention", "legrad"))])
def test_a_network_that_needs_gradients_is_explained(method):
    """By every method as the same network without a hook, also when it keeps the tensor."""
    torch.manual_seed(0)
    hooked = Hooked().eval()
    same = Plain().eval()
    same.load_state_dict(hooked.state_dict())
    image = noise(1, 3, 64, 64)
    hooked(image)
    spec = f"{method}{QUICK.get(method, '')}"
    try:
        right = xai_abn.explain(wrapped(same), image, spec, 1)[0]
    except UnsupportedModelError:
        with pytest.raises(UnsupportedModelError):
            xai_abn.explain(wrapped(hooked), image, spec, 1)
        return
    found = xai_abn.explain(wrapped(hooked), image, spec, 1)[0]
    for one, two in zip(found.values(), right.values(), strict=True):
        np.testing.assert_allclose(one.map, two.map, rtol=1e-4, atol=1e-5 * np.abs(two.map).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision_is_that_of_the_first_matrix(dtype):
    """A scale in float32, or a table of integers, comes first in some networks."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.arange(4), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(()))
            self.rest = plain(3).to(dtype)

        def forward(self, x):
            return self.rest(x) * self.scale

    result = xai_abn.explain(wrapped(Mixed()), noise(1, 3, 64, 64), ["grad-cam", "score-cam"], 1)[0]
    assert all(np.isfinite(r.map).all() for r in result.values())


@pytest.mark.parametrize("method", ["grad-cam", "guided-backprop", "score-cam", "saliency"])
def test_a_network_with_a_lock_and_a_kept_tensor_is_explained(method):
    """Copies share the lock and drop the history of the tensor."""
    network = Locked().eval()
    network(noise(1, 3, 64, 64))
    same = Plain()
    same.load_state_dict(network.state_dict())
    right = xai_abn.explain(wrapped(same), noise(1, 3, 64, 64), method, 1)[method].map
    found = xai_abn.explain(wrapped(network), noise(1, 3, 64, 64), method, 1)[method].map
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)
