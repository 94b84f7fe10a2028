"""Image classifiers of Hugging Face: by name, and given to wrap() as they are."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import call

import xai_abn
from xai_abn.errors import InvalidInputError, WeightsError
from xai_abn.models.adapter import ModelAdapter

SIZE, LABELS = 64, {0: "cat", 1: "dog", 2: "tree"}
TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIZE,
    "patch_size": 16,
}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "image_size": SIZE}
WINDOWS = STAGES | {"embed_dim": 16, "num_heads": [1, 2, 2, 4], "window_size": 2}
#: Class of the network and the arguments of its configuration.
FAMILIES = {
    "ViT": ("ViTForImageClassification", TOKENS),
    "DeiT": ("DeiTForImageClassification", TOKENS),
    "DeiT with teacher": ("DeiTForImageClassificationWithTeacher", TOKENS),
    "BEiT": ("BeitForImageClassification", TOKENS),
    "DINOv2": ("Dinov2ForImageClassification", TOKENS),
    "DINOv2 with registers": ("Dinov2WithRegistersForImageClassification", TOKENS),
    "SigLIP": ("SiglipForImageClassification", {"vision_config": TOKENS}),
    "Swin": ("SwinForImageClassification", WINDOWS),
    "Swin v2": ("Swinv2ForImageClassification", WINDOWS),
    "ConvNeXt": ("ConvNextForImageClassification", STAGES | {"hidden_sizes": [8, 8, 16, 16]}),
    "ResNet": ("ResNetForImageClassification", STAGES | {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16]}),
    "MobileViT": (
        "MobileViTForImageClassification",
        {"image_size": SIZE, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]},
    ),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"image_size": SIZE, "width_coefficient": 0.25, "hidden_dim": 320},
    ),
}


def network(family):
    """Return a small network of the family, with random weights and three classes."""
    kind, arguments = FAMILIES[family]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    module = made(made.config_class(**arguments, id2label=dict(LABELS))).eval()
    with torch.no_grad():
        for values in module.parameters():  # an initial weight of 0 would switch a branch off
            values.add_(torch.randn_like(values) * 0.05)
    return module


def save(module, folder, processor=True):
    module.save_pretrained(folder)
    if processor:
        made = transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.4] * 3)
        made.save_pretrained(folder)
    return folder


def grad_cam_by_hand(module, layer, inputs, target, grid):
    """Return ReLU of the sum of the layer's channels, each weighted by the mean of its gradient."""
    kept = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    module(inputs).logits[:, target].sum()
    handle.remove()
    with torch.enable_grad():
        handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
        score = module(inputs).logits[:, target].sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept[-1])
    features = kept[-1].detach()
    if features.dim() == 3:  # tokens: the patches are the last of them
        number = grid[0] * grid[1]
        features, gradient = (t[:, -number:].transpose(1, 2).unflatten(2, grid) for t in (features, gradient))
    return (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()[0].detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_hugging_face_is_explained_by_name_and_as_it_is(family, tmp_path):
    """Labels and preprocessing are the model's own; the map is that of plain autograd; both ways give the same."""
    module = network(family)
    by_name = xai_abn.load_model(f"hf:{save(module, tmp_path / 'model')}")
    assert by_name.labels == ("cat", "dog", "tree")
    assert by_name.preprocess == xai_abn.Preprocess(
        size=SIZE, crop_pct=1.0, interpolation="bilinear", mean=(0.4,) * 3, std=(0.5,) * 3, crop="squash"
    )
    result = xai_abn.explain(by_name, "example:cat", ["grad-cam"], ["dog"])[0]
    found = result["grad-cam"]
    inputs = by_name.preprocess(xai_abn.images.load_image("example:cat")).tensor[None]
    expected = grad_cam_by_hand(by_name.module, found.layer, inputs, 1, found.map.shape)
    assert found.map.shape[0] == found.map.shape[1] > 1
    torch.testing.assert_close(torch.from_numpy(found.map.copy()), expected, rtol=1e-4, atol=1e-6)
    loaded = type(module).from_pretrained(tmp_path / "model")
    as_it_is = xai_abn.wrap(loaded)
    assert (as_it_is.labels, as_it_is.preprocess) == (by_name.labels, by_name.preprocess)
    again = xai_abn.explain(as_it_is, "example:cat", ["grad-cam"], ["dog"])[0]["grad-cam"]
    assert again.notes == ()
    torch.testing.assert_close(torch.from_numpy(again.map.copy()), torch.from_numpy(found.map.copy()))


def test_a_network_without_a_processor_says_that_its_preprocessing_is_assumed(tmp_path):
    """As one that was never saved."""
    folder = save(network("ViT"), tmp_path / "model", processor=False)
    for model in (xai_abn.load_model(f"hf:{folder}"), xai_abn.wrap(network("ViT"), preprocess=None)):
        assert model.assumed_preprocessing
        assert any("assumed to be ImageNet's" in note for note in model.notes(torch.randn(1, 3)))


def test_an_untrained_network_has_any_number_of_classes(tmp_path):
    """Its weights are drawn; the folder only says which network it is."""
    folder = save(network("ResNet"), tmp_path / "model")
    model = xai_abn.load_model(f"hf:{folder}", weights="random", classes=5)
    assert isinstance(model, ModelAdapter)
    assert (model.number_of_classes, model.labels, model.weights) == (5, None, "random")


def test_what_is_no_image_classifier_is_refused(tmp_path):
    """A backbone without a head would be explained with random weights."""
    folder = tmp_path / "backbone"
    transformers.ViTModel(transformers.ViTConfig(**TOKENS)).save_pretrained(folder)
    with pytest.raises(WeightsError, match=r"no weights for classifier\.bias, .* not a trained image classifier"):
        xai_abn.load_model(f"hf:{folder}")
    transformers.BertModel(transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10
    )).save_pretrained(tmp_path / "text")  # fmt: skip
    with pytest.raises(WeightsError, match=r"cannot be loaded \(Unrecognized configuration class"):
        xai_abn.load_model(f"hf:{tmp_path / 'text'}")
    with pytest.raises(WeightsError, match="no such folder"):
        xai_abn.load_model(f"hf:{tmp_path / 'missing'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        xai_abn.load_model(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(InvalidInputError, match="save a fine-tuned model with model"):
        xai_abn.load_model(f"hf:{folder}", weights="mine.pth")


def test_the_command_line_takes_a_folder(tmp_path):
    """With hf: in front, which the message says where it is forgotten."""
    folder = save(network("ConvNeXt"), tmp_path / "model")
    code, out, err = call("explain", "example:cat", "--model", f"hf:{folder}", "--target", "tree", "-o", tmp_path / "o")
    assert code == 0, err
    assert "tree" in out
    code, _, err = call("explain", "example:cat", "--model", folder, "-o", tmp_path / "o")
    assert code != 0
    assert f"give hf:{folder}" in err
