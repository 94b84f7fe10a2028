"""What a network says of itself: its outputs, labels and preprocessing."""

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from support import check_error
from torch import nn
from torchvision import transforms

import xai_abn
from xai_abn.errors import InvalidInputError, NonFiniteError, UnsupportedModelError
from xai_abn.models.metadata import as_labels
from xai_abn.models.zoo import read_labels

SMALL = xai_abn.Preprocess(size=64)


def body(classes=4):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)]
    return nn.Sequential(*layers).eval()


def images(number=2):
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def wrapped(network, **options):
    return xai_abn.wrap(network.eval(), preprocess=SMALL, **options)


# Softmax and sigmoid inside.


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_probabilities_are_not_taken_for_logits(last):
    """They are shown as the network gives them, and the reader is told."""
    network = body()
    expected = network(images()).softmax(1)
    results = xai_abn.explain(wrapped(nn.Sequential(network, last)), images(), "hires-cam", 2)
    for result, row in zip(results, expected, strict=True):
        assert result["hires-cam"].probability == pytest.approx(float(row[2]), rel=1e-4)
        assert any("probabilities" in note for note in result["hires-cam"].notes)


def test_plain_logits_are_shown_as_before():
    """Softmax, and no note."""
    network = body()
    record = xai_abn.explain(wrapped(network), images(), "hires-cam", 2)[0]["hires-cam"]
    assert record.probability == pytest.approx(float(network(images()).softmax(1)[0, 2]), rel=1e-4)
    assert record.notes == ()


def test_a_difference_of_probabilities_is_that_of_the_classes():
    """The same number as without the softmax."""
    why = xai_abn.Difference(2, versus=1)
    network = body()
    right = xai_abn.explain(wrapped(network), images(), "hires-cam", why)[0]["hires-cam"].probability
    found = xai_abn.explain(wrapped(nn.Sequential(network, nn.Softmax(1))), images(), "hires-cam", why)
    assert found[0]["hires-cam"].probability == pytest.approx(right, rel=1e-4)


def test_attributes_with_a_sigmoid_inside_are_those_above_one_half():
    """Every output is above 0, and not every attribute is there."""
    network = body(6)
    right = xai_abn.explain(wrapped(network, multi_label=True), images(), "hires-cam")
    found = xai_abn.explain(wrapped(nn.Sequential(network, nn.Sigmoid()), multi_label=True), images(), "hires-cam")
    for one, two in zip(found, right, strict=True):
        assert one.keys() == two.keys()
        assert [e.probability for e in one.values()] == pytest.approx([e.probability for e in two.values()], rel=1e-4)


def test_a_masked_class_is_no_error():
    """A logit of minus infinity is a class without a chance; as a target, or everywhere, it is refused."""

    class Masked(nn.Module):
        def __init__(self, masked):
            super().__init__()
            self.inner, self.masked = body(), masked

        def forward(self, x):
            return self.inner(x).masked_fill(torch.tensor(self.masked), float("-inf"))

    model = wrapped(Masked([False, False, False, True]))
    assert np.isfinite(xai_abn.explain(model, images(), "grad-cam", 1)[0]["grad-cam"].score)
    with pytest.raises(NonFiniteError):
        xai_abn.explain(model, images(), "grad-cam", 3)
    with pytest.raises(NonFiniteError):
        xai_abn.explain(wrapped(Masked([True] * 4)), images(), "grad-cam", 1)


# Labels.


class Heads(nn.Module):
    """Two heads, and a layer with weights registered behind them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.age, self.gender = nn.Linear(8, 10), nn.Linear(8, 2)
        self.squeeze = nn.Linear(8, 8)

    def forward(self, x):
        features = self.body(x)
        features = (features * self.squeeze(features.mean((2, 3))).sigmoid()[..., None, None]).mean((2, 3))
        return {"age": self.age(features), "gender": self.gender(features)}


@pytest.mark.parametrize(("output", "number"), [("age", 10), ("gender", 2)])
def test_labels_are_those_of_the_explained_output(output, number):
    """Not of the linear layer that was registered last."""
    labels = [f"label {i}" for i in range(number)]
    model = wrapped(Heads(), output=output, labels=labels)
    assert xai_abn.explain(model, images(), "grad-cam", 1)[0]["grad-cam"].label == "label 1"
    with pytest.raises(InvalidInputError, match=f"has {number} classes, got 3 labels"):
        wrapped(Heads(), output=output, labels=["a", "b", "c"])


def test_a_convolution_as_head_has_labels():
    """There is no linear layer to count."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert wrapped(network, labels=["a", "b", "c"]).labels == ("a", "b", "c")


def test_cam_reads_the_head_that_gives_the_logits():
    """Written out for the first of two heads."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
            self.age, self.gender = nn.Linear(8, 10), nn.Linear(8, 2)

        def forward(self, x):
            features = self.body(x).mean((2, 3))
            return self.age(features), self.gender(features)

    network = Plain().eval()
    found = xai_abn.explain(wrapped(network, output=0), images(), "cam", 7)[1]["cam"].map
    right = (network.body(images())[1] * network.age.weight[7][:, None, None]).sum(0).detach()
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [{0: "a b", 1: "c", 2: "d", 3: "e"}, {"0": "a b", "1": "c", "2": "d", "3": "e"}, ["a b\n", "c\n", " d", "e\r\n"]],
)
def test_labels_come_as_people_have_them(labels):
    """A mapping such as id2label, or the lines of a file."""
    model = wrapped(body(), labels=labels)
    assert model.labels == ("a b", "c", "d", "e")
    assert xai_abn.explain(model, images(), "grad-cam", "a b")[0]["grad-cam"].target == 0


@pytest.mark.parametrize("labels", ["abcd", {0: "a", 5: "b"}, {"0": "a", 0: "b"}, {"a": 0, "b": 1}, [1, 2, 3, 4], 4])
def test_other_labels_are_refused(labels):
    """A text, a mapping with gaps, numbers."""
    with pytest.raises(InvalidInputError, match="labels"):
        wrapped(body(), labels=labels)


def test_labels_of_hugging_face_are_read():
    """From the configuration, unless they are placeholders."""
    config = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    named = transformers.ViTConfig(**config, image_size=64, id2label={0: "cat", 1: "dog"})
    model = xai_abn.wrap(transformers.ViTForImageClassification(named), preprocess=SMALL)
    assert xai_abn.explain(model, images(), "grad-cam", "dog")[0]["grad-cam"].target == 1
    bare = transformers.ViTConfig(**config, image_size=64, num_labels=3)
    assert xai_abn.wrap(transformers.ViTForImageClassification(bare), preprocess=SMALL).labels is None


def test_gaps_in_the_labels_of_hugging_face_are_named():
    """With what to do; labels that are given count instead."""
    config = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    gaps = transformers.ViTConfig(**config, image_size=64, id2label={0: "cat", 2: "dog", 5: "fox"})
    network = transformers.ViTForImageClassification(gaps)
    with pytest.raises(InvalidInputError, match=r"without 1, 3, 4; give labels=\[") as caught:
        xai_abn.wrap(network, preprocess=SMALL)
    check_error(caught.value)
    assert xai_abn.wrap(network, preprocess=SMALL, labels=["cat", "dog", "fox"]).labels == ("cat", "dog", "fox")


def test_a_repeated_name_needs_an_index():
    """The default and an index are explained; the name alone is refused with the classes that have it."""
    model = wrapped(body(), labels=["cat", "dog", "cat", "fox"])
    records = xai_abn.explain(model, images(1), "grad-cam", [[0, 2]])[0]
    assert [record.label for record in records.values()] == ["cat (0)", "cat (2)"]
    assert [record.class_label for record in records.values()] == ["cat", "cat"]
    with pytest.raises(InvalidInputError, match="names classes 0, 2; give the index"):
        xai_abn.explain(model, images(1), "grad-cam", "cat")


# Values in place of classes.


class Squeezed(nn.Module):
    """One value per image, as people write it: a scalar for a single image."""

    def __init__(self, to=None):
        super().__init__()
        self.inner, self.to = body(1), to

    def forward(self, x):
        return self.inner(x).squeeze() if self.to is None else self.inner(x)[:, 0]


@pytest.mark.parametrize("network", [body(1), Squeezed(), Squeezed("vector")])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("options", [{}, {"scores_only": True}, {"labels": ["age"], "scores_only": True}])
def test_one_value_per_image_is_no_class(network, number, options):
    """(N, 1), (N,) or a scalar: shown as it is, and CAM and Grad-CAM are those written out."""
    inner = network if isinstance(network, nn.Sequential) else network.inner
    results = xai_abn.explain(wrapped(network, **options), images(number), ["grad-cam", "saliency"])
    for row, result in enumerate(results):
        record, image = result["grad-cam"], images(number)[row : row + 1].requires_grad_()
        features = inner[:2](image)
        value = inner(image)[0, 0]
        gradient, by_image = torch.autograd.grad(inner[2:](features)[0, 0], [features, image])
        assert record.score == pytest.approx(float(value.detach()), rel=1e-5)
        assert np.isnan(record.probability)
        assert record.top == ()
        name = "age" if "labels" in options else "output 0"
        assert (record.label, record.answer) == (name, f"{name}  score {record.score:.4g}")
        assert record.panel.subtitle == record.answer
        assert any("scores_only=True" in note for note in record.notes) == (not options)
        expected = (gradient.mean((2, 3), True) * features).sum(1).relu()[0].detach()
        np.testing.assert_allclose(record.map, expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(result["saliency"].map, by_image.abs().amax(1)[0], rtol=1e-4, atol=1e-7)


def test_several_values_are_all_explained():
    """In their order, without a softmax; one can be named, two compared."""
    network = body(3)
    model = wrapped(network, labels=["age", "height", "weight"], scores_only=True)
    result = xai_abn.explain(model, images(1), ["grad-cam", "eigen-cam"])[0]
    assert list(result) == [*(("grad-cam", name) for name in ("age", "height", "weight")), "eigen-cam"]
    values = network(images(1))[0].detach()
    for record, value in zip(result.values(), values, strict=False):
        assert record.score == pytest.approx(float(value), rel=1e-5)
        assert record.predicted_label == record.label
        assert np.isnan(record.probability)
    drawn = {record.panel.subtitle for record in result.values()}
    assert not any("%" in text or "predicted" in text or "class" in text for text in drawn)
    assert "same map for every output" in result["eigen-cam"].panel.subtitle
    assert xai_abn.explain(model, images(1), "grad-cam", "height")["grad-cam"].target == 1
    why = xai_abn.explain(model, images(1), "grad-cam", xai_abn.Difference("age", versus="weight"))["grad-cam"]
    assert why.score == pytest.approx(float(values[0] - values[2]), rel=1e-4)


def test_the_drawing_of_values_names_no_prediction(monkeypatch):
    """The heading of the image holds the values."""
    written = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, xy, text, *rest: written.append(text))
    model = wrapped(body(2), labels=["a", "b"], scores_only=True)
    xai_abn.explain(model, images(1), "hires-cam")[0].sheet()
    headings = [text for text in written if "score" in text]
    assert len(headings) == 3
    assert not any("%" in text or "predicted" in text for text in written)


def test_values_are_no_attributes():
    """Values have no probabilities, attributes do."""
    with pytest.raises(InvalidInputError, match="not both") as caught:
        wrapped(body(3), scores_only=True, multi_label=True)
    check_error(caught.value)


def test_one_logit_is_a_probability_where_it_is_said_to_be():
    """The sigmoid, and its class by name."""
    network = body(1)
    record = xai_abn.explain(wrapped(network, labels=["tumor"], multi_label=True), images(1), "grad-cam")["grad-cam"]
    assert record.probability == pytest.approx(float(network(images(1))[0, 0].sigmoid().detach()), rel=1e-5)
    assert record.label == "tumor"


# Preprocessing.


def test_preprocessing_of_timm_is_read_from_the_network():
    """As load_model does; also inside another module, and with another size than that of the weights."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=1)
    assert (
        xai_abn.wrap(network).preprocess == xai_abn.load_model("timm:vit_tiny_patch16_224", weights="random").preprocess
    )
    assert xai_abn.wrap(network).preprocess.mean == (0.5, 0.5, 0.5)
    assert xai_abn.wrap(nn.Sequential(network, nn.Softmax(1))).preprocess.mean == (0.5, 0.5, 0.5)
    small = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=1, img_size=(96, 48))
    assert xai_abn.wrap(small).preprocess.shape == (3, 96, 48)


def test_labels_of_timm_are_those_of_its_weights():
    """A thousand classes are ImageNet's, five are not."""
    assert xai_abn.wrap(timm.create_model("resnet18")).labels[281] == "tabby"
    assert xai_abn.wrap(timm.create_model("resnet18", num_classes=5)).labels is None


PROCESSORS = {
    "squash": (transformers.ViTImageProcessor, {"size": {"height": 96, "width": 96}}),
    "crop": (
        transformers.CLIPImageProcessor,
        {"size": {"shortest_edge": 112}, "crop_size": {"height": 96, "width": 96}},
    ),
    "not normalized": (transformers.ViTImageProcessor, {"size": {"height": 96, "width": 96}, "do_normalize": False}),
    "nearest": (transformers.ViTImageProcessor, {"size": {"height": 96, "width": 96}, "resample": 0}),
    "squash and crop": (transformers.DeiTImageProcessor, {}),
    "a share of the shorter side": (transformers.PoolFormerImageProcessor, {}),
    "a share of its own": (transformers.LevitImageProcessor, {}),
    "a share, if small": (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 224}}),
    "squash, if large": (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 384}}),
    "normalized twice": (transformers.EfficientNetImageProcessor, {}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_of_hugging_face_is_followed(kind):
    """To the pixel values that it gives, but for rounding on resizing."""
    made, options = PROCESSORS[kind]
    processor = made(**options)
    loaded = xai_abn.images.loading.load_image("example:cat")
    right = processor(loaded.image, return_tensors="pt")["pixel_values"][0]
    found = xai_abn.wrap(body(), preprocess=processor).preprocess(loaded).tensor
    assert found.shape == right.shape
    assert float((found - right).abs().mean()) < 0.02


OTHER_PROCESSORS = {
    "borders": (transformers.MobileViTImageProcessor, {"size": {"shortest_edge": 64}, "crop_size": 256}),
    "no resizing": (transformers.ViTImageProcessor, {"do_resize": False}),
    "no crop": (transformers.CLIPImageProcessor, {"do_center_crop": False}),
    "values up to 255": (transformers.ViTImageProcessor, {"do_rescale": False}),
    "values from -1": (transformers.EfficientNetImageProcessor, {"rescale_offset": True}),
    "no settings": (transformers.ImageGPTImageProcessor, {}),
}


@pytest.mark.parametrize("kind", OTHER_PROCESSORS)
def test_a_processor_that_does_something_else_is_refused(kind):
    """Instead of images that its network does not know."""
    made, options = OTHER_PROCESSORS[kind]
    with pytest.raises(InvalidInputError, match=r"give xai_abn.Preprocess\("):
        xai_abn.wrap(body(), preprocess=made(**options))


class TurnedRound(nn.Module):
    """What the error about channels in another order tells to write."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(1))


@pytest.mark.parametrize(
    "processor",
    [
        transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size=64, resample=2),
        transformers.PPLCNetImageProcessor(resize_short=72, size={"height": 72, "width": 72}, crop_size=64),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_channels_in_another_order_are_refused_with_what_gives_the_same(processor):
    """As MobileViT and PP-LCNet have them: done as the error says, the network sees what its processor makes."""
    network, loaded = body(), xai_abn.images.loading.load_image("example:cat")
    with pytest.raises(InvalidInputError, match=r"blue, green, red; .*network\(x\.flip\(1\)\)") as caught:
        xai_abn.wrap(network, preprocess=processor)
    given = eval(str(caught.value).partition("preprocess=")[2], {"xai_abn": xai_abn})
    model = xai_abn.wrap(TurnedRound(network), preprocess=given)
    right = processor(loaded.image, return_tensors="pt")["pixel_values"]
    seen = model.preprocess(loaded).tensor[None].flip(1)
    assert (seen - right).abs().mean() < 0.02 * right.std()
    torch.testing.assert_close(model.logits_of(model.module(seen.flip(1))), network(right), rtol=0.05, atol=0.01)


def test_a_processor_around_a_network_of_timm_is_followed():
    """It holds timm's data configuration."""
    config = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.75}
    processor = transformers.TimmWrapperImageProcessor(config)
    found = xai_abn.wrap(body(), preprocess=processor).preprocess
    assert (found.size, found.mean, found.std, found.crop_pct) == (96, (0.5,) * 3, (0.25,) * 3, 0.75)


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_modes_of_timm_are_followed(mode):
    """To the values that its transform gives, also where it squashes and crops."""
    config = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.8, "crop_mode": mode}
    loaded = xai_abn.images.loading.load_image("example:cat")
    right = timm.data.create_transform(**config, interpolation="bicubic")(loaded.image)
    found = xai_abn.wrap(body(), preprocess=config).preprocess(loaded)
    torch.testing.assert_close(found.tensor, right, rtol=0, atol=0.05)
    left, top, right, bottom = found.region
    if mode == "squash":  # a tenth of each side is cut off
        assert (left / 451, top / 300, right / 451, bottom / 300) == pytest.approx((0.1, 0.1, 0.9, 0.9), abs=0.01)


@pytest.mark.parametrize("config", [{"crop_mode": "border"}, {"resize_mode": "longest"}])
def test_borders_are_refused(config):
    """They would move the map."""
    with pytest.raises(InvalidInputError, match="adds borders"):
        xai_abn.wrap(body(), preprocess={"size": 96, "mean": (0.5,) * 3, "std": (0.5,) * 3, **config})


def test_transforms_of_torchvision_are_followed():
    """To the values that they give."""
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    loaded = xai_abn.images.loading.load_image("example:cat")
    found = xai_abn.wrap(body(), preprocess=preset).preprocess(loaded).tensor
    torch.testing.assert_close(found, preset(loaded.image), rtol=0, atol=0.05)


def test_a_data_configuration_of_timm_is_followed():
    """A dictionary."""
    config = timm.data.resolve_model_data_config(timm.create_model("vit_tiny_patch16_224", depth=1))
    assert xai_abn.wrap(body(), preprocess=config).preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("other", [transforms.Compose([transforms.ToTensor()]), 64, "imagenet", {"size": 3}])
def test_other_preprocessing_is_refused_at_once(other):
    """With what to give."""
    with pytest.raises(InvalidInputError, match=r"xai_abn.Preprocess\("):
        xai_abn.wrap(body(), preprocess=other)


def test_an_unknown_preprocessing_of_hugging_face_is_said():
    """Its mean and deviation are in a processor, which the network does not carry."""
    config = transformers.ResNetConfig(depths=[1, 1, 1, 1], embedding_size=8, hidden_sizes=[8, 8, 8, 8], num_labels=3)
    network = transformers.ResNetForImageClassification(config).eval()
    record = xai_abn.explain(xai_abn.wrap(network), images(), "grad-cam")[0]["grad-cam"]
    assert any("processor" in note for note in record.notes)
    record = xai_abn.explain(wrapped(network), images(), "grad-cam")[0]["grad-cam"]
    assert record.notes == ()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), "0 to 1"),
        (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255, "0 to 255"),
    ],
)
def test_a_tensor_that_cannot_be_normalized_is_said_to_be(tensor, says):
    """Values from 0 to 1, or to 255."""
    record = xai_abn.explain(wrapped(body()), tensor, "grad-cam")["grad-cam"]
    assert any(says in note for note in record.notes)
    assert xai_abn.explain(wrapped(body()), images(), "grad-cam")[0]["grad-cam"].notes == ()


# Arguments.


@pytest.mark.parametrize("layer", [["0", "1"], 3, nn.Linear(2, 2)])
def test_a_layer_is_one_name_or_one_module(layer):
    """Of the network."""
    with pytest.raises(InvalidInputError, match="layer"):
        wrapped(body(), layer=layer)


def test_a_layer_may_be_given_as_a_module():
    """Its name is found."""
    network = body()
    assert wrapped(network, layer=network[1]).target_layer == "1"


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_rows_of_zeros_and_ones_are_not_taken_for_indices(kind):
    """One for each class that holds: what other libraries call multi-hot."""
    with pytest.raises(InvalidInputError, match="indices"):
        xai_abn.explain(wrapped(body()), images(1), "grad-cam", kind([[0, 0, 1, 0]]))


@pytest.mark.parametrize("method", [xai_abn.explainers.GradCAM, 5, [5]])
def test_methods_are_names_or_records(method):
    """A class or a number is refused."""
    with pytest.raises(InvalidInputError, match="method"):
        xai_abn.explain(wrapped(body()), images(1), method)


@pytest.mark.parametrize("model", [5, nn.Module, None, nn.Linear(2, 2)])
def test_a_model_is_a_module(model):
    """Or a name, for load_model."""
    if not isinstance(model, nn.Linear):
        with pytest.raises(UnsupportedModelError, match="Module"):
            xai_abn.explain(model, images(1))
    with pytest.raises(InvalidInputError, match="name"):
        xai_abn.load_model(model)


def test_a_batch_of_hugging_face_is_said_to_be_none():
    """The tensor inside is what to give."""
    with pytest.raises(InvalidInputError, match="pixel_values"):
        xai_abn.explain(wrapped(body()), {"pixel_values": images(1)}, "grad-cam")


# What was seen of the image.


def test_the_map_of_a_crop_is_laid_in_its_place():
    """At the size of the whole image it covers the part the network saw, and is 0 elsewhere."""
    preprocess = xai_abn.Preprocess(size=64, crop_pct=0.5)
    model = xai_abn.wrap(body(), preprocess=preprocess)
    result = xai_abn.explain(model, "example:cat", "saliency", 1)["saliency"]
    height, width = result.image_size
    left, top, right, bottom = result.region
    assert (result.image_size[1], result.image_size[0]) == xai_abn.images.loading.load_image("example:cat").image.size
    whole = result.heatmap(result.image_size)
    inside = np.zeros((height, width), bool)
    inside[round(top) : round(bottom), round(left) : round(right)] = True
    assert 0 < inside.mean() < 0.5
    assert whole[~inside].max() == 0
    assert whole[inside].max() == 1
    assert result.to_dict()["region"] == list(result.region)


def test_a_map_is_not_distorted():
    """A size of other proportions is refused, whatever it is of."""
    result = xai_abn.explain(wrapped(body()), images(), "saliency", 1)[0]["saliency"]
    assert result.heatmap((128, 128)).shape == (128, 128)
    with pytest.raises(InvalidInputError, match="proportions"):
        result.heatmap((128, 256))


def test_a_squashed_image_has_its_map_on_the_whole():
    """There is nothing outside, and the proportions are those of the image again."""
    model = xai_abn.wrap(body(), preprocess=xai_abn.Preprocess(size=64, crop="squash"))
    result = xai_abn.explain(model, "example:cat", "saliency", 1)["saliency"]
    assert result.heatmap(result.image_size).shape == result.image_size


ELEVEN = "\n".join(f"{i},class" for i in (0, 10, *range(1, 10)))  # sorted as text


@pytest.mark.parametrize("lines", ["1: dog\n0: cat", "2 dog\n1 cat\n3 owl", ELEVEN])
def test_lines_numbered_in_another_order_are_refused(tmp_path, lines):
    """Else each class would have the name of another."""
    (tmp_path / "labels.txt").write_text(lines)
    with pytest.raises(InvalidInputError, match=r"numbered, but line \d has the number .*; sort them"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize("lines", ["0: cat\n1: dog", "3 spots\n1 stripe", "7\n0\n1", "cat\ndog"])
def test_other_lines_are_labels_as_they_are(tmp_path, lines):
    """Also with numbers that are in order, or are none of lines."""
    (tmp_path / "labels.txt").write_text(lines)
    assert read_labels(tmp_path / "labels.txt") == tuple(lines.splitlines())


@pytest.mark.parametrize("labels", [{"cat", "dog", "owl"}, frozenset(("cat", "dog"))])
def test_labels_without_an_order_are_refused(labels):
    """A set has another order in every process."""
    with pytest.raises(InvalidInputError, match="labels must be a list"):
        as_labels(labels)
    assert as_labels(dict.fromkeys(("b", "a")).keys()) == ("b", "a")
