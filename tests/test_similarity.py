"""Similarity to reference images, explained as any other score."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from support import check_error
from torch import nn
from torch.nn.functional import cosine_similarity

import xai_abn
from xai_abn.errors import ImageLoadError, InvalidInputError, NonFiniteError, UnsupportedModelError
from xai_abn.images import load_image

SIZE = 64
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = SMALL | {"image_size": SIZE, "patch_size": 16}
TEXT = SMALL | {"vocab_size": 12, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
PREPROCESS = xai_abn.Preprocess(size=SIZE)


def of_timm():
    network = timm.create_model("resnet10t", num_classes=0)
    return network, network


def dino():
    network = transformers.Dinov2Model(transformers.Dinov2Config(**{**VISION, "mlp_ratio": 2}))
    return network, lambda images: network(pixel_values=images).pooler_output


def resnet():
    config = transformers.ResNetConfig(depths=[1, 1, 1, 1], embedding_size=8, hidden_sizes=[8, 8, 8, 8])
    network = transformers.ResNetModel(config)
    return network, lambda images: network(pixel_values=images).pooler_output.flatten(1)


def tower():
    network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION, projection_dim=8))
    return network, lambda images: network(pixel_values=images).image_embeds


def clip():
    network = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))

    def encoded(images):
        found = network.get_image_features(pixel_values=images)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    return network, encoded


def openai():
    vision = open_clip.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=16, image_size=SIZE)
    text = open_clip.CLIPTextCfg(context_length=16, width=16, heads=2, layers=1)
    network = open_clip.CLIP(8, vision, text)
    return network, network.encode_image


def varied(network):
    """Change the weights that start at zero or one, which would make images equal."""
    with torch.no_grad():
        for values in network.parameters():
            values.add_(torch.randn_like(values) * 0.02)
    return network.eval()


def inputs(*names):
    return torch.stack([PREPROCESS(load_image(f"example:{name}")).tensor for name in names])


@pytest.mark.parametrize("kind", [of_timm, dino, resnet, tower, clip, openai])
def test_score_and_map_are_those_of_plain_autograd(kind):
    """The cosine with the embedding of the reference, and Grad-CAM of it at the layer that was found."""
    torch.manual_seed(0)
    network, embed = kind()
    varied(network)
    model = xai_abn.similar_to(network, ["example:coffee", "example:rocket"], preprocess=PREPROCESS)
    result = xai_abn.explain(model, "example:cat", "grad-cam")[0]
    with torch.no_grad():
        references = embed(inputs("coffee", "rocket"))
    kept = []
    found = next(iter(result.values()))
    layer = model.module.get_submodule(found.layer)  # shared with the network
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    image = inputs("cat").requires_grad_()
    scores = cosine_similarity(embed(image), references)
    handle.remove()
    for row, name in enumerate(["coffee", "rocket"]):
        record = result["grad-cam", f"similarity to example:{name}"]
        assert record.score == pytest.approx(float(scores[row].detach()), abs=1e-5)
        assert np.isnan(record.probability)
        output = kept[-1][0] if isinstance(kept[-1], tuple) else kept[-1]
        (gradient,) = torch.autograd.grad(scores[row], output, retain_graph=True)
        if output.dim() == 3:  # patches, on a grid of 4x4, without the class token
            gradient, output = (v[:, -16:].transpose(1, 2).unflatten(2, (4, 4)) for v in (gradient, output))
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * output).sum(dim=1).relu()[0].detach()
        np.testing.assert_allclose(record.map, expected, rtol=1e-3, atol=1e-7)


def test_methods_that_change_the_image_ask_for_the_same_similarity():
    """Occlusion written out for one window, and the gradient by the input."""
    torch.manual_seed(0)
    network, embed = of_timm()
    varied(network)
    model = xai_abn.similar_to(network, "example:coffee", preprocess=PREPROCESS)
    result = xai_abn.explain(model, "example:cat", ["saliency", "occlusion:window=1,stride=1"])[0]
    image = inputs("cat").requires_grad_()
    with torch.no_grad():
        reference, blank = embed(inputs("coffee")), embed(torch.zeros(1, 3, SIZE, SIZE))
    score = cosine_similarity(embed(image), reference)[0]
    (gradient,) = torch.autograd.grad(score, image)
    np.testing.assert_allclose(result["saliency"].map, gradient.abs().amax(dim=1)[0], rtol=1e-3, atol=1e-7)
    drop = float(score.detach() - cosine_similarity(blank, reference)[0])
    assert result["occlusion:window=1,stride=1"].map == pytest.approx(drop, abs=1e-4)


def test_several_references_may_count_as_one():
    """The mean of their scores."""
    torch.manual_seed(0)
    network, embed = of_timm()
    model = xai_abn.similar_to(varied(network), ["example:coffee", "example:rocket"], preprocess=PREPROCESS)
    record = xai_abn.explain(model, "example:cat", "grad-cam", lambda scores: scores.mean(dim=1))["grad-cam"]
    with torch.no_grad():
        expected = cosine_similarity(embed(inputs("cat")), embed(inputs("coffee", "rocket"))).mean()
    assert record.score == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "hugging face", "convolution", "abn"])
def test_the_embedding_of_a_classifier_is_what_its_last_layer_reads(kind):
    """Pooled features; the classifier keeps its head."""
    torch.manual_seed(0)
    if kind == "plain":
        network = varied(timm.create_model("resnet10t", num_classes=4))
        embed = lambda images: network.forward_head(network.forward_features(images), pre_logits=True)  # noqa: E731
        head = "fc"
    elif kind == "hugging face":
        network = varied(transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=4)))
        embed = lambda images: network.vit(images).last_hidden_state[:, 0]  # noqa: E731
        head = "classifier"
    elif kind == "convolution":
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        network = varied(nn.Sequential(body, nn.Conv2d(8, 4, 1), nn.Flatten()))
        embed = lambda images: body(images).flatten(1)  # noqa: E731
        head = "1"
    else:
        network = varied(xai_abn.create_model("resnet20", 4))
        embed = None
        head = "perception_branch"
    adapter = xai_abn.wrap(network, preprocess=PREPROCESS)
    model = xai_abn.similar_to(adapter, "example:coffee")
    record = xai_abn.explain(model, "example:cat", "grad-cam")["grad-cam"]
    assert -1 <= record.score <= 1
    assert not isinstance(network.get_submodule(head), nn.Identity)
    assert adapter.number_of_classes == 4
    if embed is not None:
        with torch.no_grad():
            expected = cosine_similarity(embed(inputs("cat")), embed(inputs("coffee")))
        assert record.score == pytest.approx(float(expected), abs=1e-5)
    own = xai_abn.explain(model, "example:coffee", "grad-cam")["grad-cam"]
    assert own.score == pytest.approx(1, abs=1e-5)
    assert own.answer == "similarity to example:coffee  score 1"


def test_where_the_embedding_is_may_be_said():
    """A key of a dictionary, a position, a function."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images):
            return {"maps": images, "embedding": self.body(images)}

    network = varied(Two())
    with torch.no_grad():
        expected = float(cosine_similarity(network.body(inputs("cat")), network.body(inputs("coffee"))))
    for output in ("embedding", lambda found: found["embedding"]):
        model = xai_abn.similar_to(network, "example:coffee", preprocess=PREPROCESS, output=output)
        assert xai_abn.explain(model, "example:cat")["grad-cam"].score == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UnsupportedModelError, match="must output embeddings") as caught:
        xai_abn.similar_to(network, "example:coffee", preprocess=PREPROCESS)
    check_error(caught.value)


def test_the_network_is_left_as_it_was():
    """Its mode, weights and gradients."""
    network = timm.create_model("resnet10t", num_classes=0).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    xai_abn.explain(xai_abn.similar_to(network, "example:coffee", preprocess=PREPROCESS), "example:cat", "grad-cam")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


class Dark(nn.Module):
    """An embedding of zeros for dark images."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, images):
        return self.body(images).mean(dim=(2, 3))


def test_bad_references_are_refused(tmp_path):
    """Missing, damaged, none, or without an embedding."""
    network = Dark()
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no image")
    for place in (tmp_path / "gone.jpg", tmp_path / "bad.jpg"):
        with pytest.raises(ImageLoadError, match=place.name):
            xai_abn.similar_to(network, place, preprocess=PREPROCESS)
    with pytest.raises(InvalidInputError, match="no reference"):
        xai_abn.similar_to(network, [], preprocess=PREPROCESS)
    with pytest.raises(InvalidInputError, match="reference 1"):
        xai_abn.similar_to(network, ["example:cat", 5], preprocess=PREPROCESS)
    with pytest.raises(NonFiniteError, match="reference 0") as caught:
        xai_abn.similar_to(network, torch.zeros(3, SIZE, SIZE), preprocess=PREPROCESS)
    assert "zero" in str(caught.value)


def test_a_classifier_without_a_last_linear_layer_is_refused(gap_net):
    """Such as one with a softmax, or one that compares with texts."""
    network = nn.Sequential(gap_net.module, nn.Softmax(1))
    with pytest.raises(UnsupportedModelError, match="does not end in a linear layer") as caught:
        xai_abn.similar_to(xai_abn.wrap(network, preprocess=PREPROCESS), "example:cat")
    check_error(caught.value)


def test_the_command_line_does_the_same(gap_net, tmp_path, monkeypatch):
    """A score in the table; a reference that cannot be read is one line."""
    from support import call

    from xai_abn.models import zoo

    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save("one.png")
    asked = ("explain", "example:cat", "--model", "small", "--method", "grad-cam", "--similar-to")
    code, out, _ = call(*asked, "one.png", "--json")
    (record,) = json.loads(out)["explanations"]
    expected = xai_abn.explain(xai_abn.similar_to(gap_net, "one.png"), "example:cat", "grad-cam")["grad-cam"]
    assert (code, record["label"], record["probability"]) == (0, "similarity to one.png", None)
    assert record["score"] == pytest.approx(expected.score)
    assert f"score {record['score']:.4g}" in call(*asked, "one.png")[1]
    code, _, err = call(*asked, "gone.png")
    assert (code, "gone.png: no such file" in err) == (1, True)
