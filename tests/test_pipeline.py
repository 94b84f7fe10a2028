"""xai_abn.explain: images and targets in every accepted form, and what is refused."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import xai_abn
from xai_abn.errors import ImageLoadError, InvalidInputError, NonFiniteError, UnknownNameError, UnsupportedModelError
from xai_abn.explainers import GradCAM


def test_every_kind_of_image_gives_the_same_map(gap_net, image, image_file):
    """A path, a Pillow image, an array and a uint8 tensor of one image are explained alike."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    kinds = [str(image_file), image_file, Image.fromarray(image), image, tensor]
    maps = [r["grad-cam"].map for r in xai_abn.explain(gap_net, kinds, "grad-cam")]
    assert all(np.allclose(m, maps[0], atol=1e-6) for m in maps)


def test_prepared_tensors_are_used_as_they_are(gap_net, image, image_file):
    """A normalised tensor is the network's input; its view is the tensor un-normalised."""
    prepared = gap_net.preprocess(xai_abn.pipeline.load_image(image_file))
    result = xai_abn.explain(gap_net, prepared.tensor, "grad-cam")["grad-cam"]
    expected = xai_abn.explain(gap_net, image, "grad-cam")["grad-cam"]
    np.testing.assert_allclose(result.map, expected.map, atol=1e-6)
    assert result.view.shape == (32, 32, 3)
    batch = torch.stack([prepared.tensor] * 3)
    assert len(xai_abn.explain(gap_net, batch)) == 3


def test_one_image_may_skip_the_index(gap_net, image):
    """result["cam"] is result[0]["cam"]; with several images the shortcut is refused."""
    result = xai_abn.explain(gap_net, image, ["cam", "grad-cam"])
    assert result["cam"] is result[0]["cam"]
    assert list(result[0]) == list(result.keys()) == ["cam", "grad-cam"]
    assert "cam" in result
    assert "abn" not in result
    assert result.get("cam") is result["cam"]
    assert result.get("abn") is None
    with pytest.raises(InvalidInputError, match=r"result\[0\]"):
        xai_abn.explain(gap_net, [image, image])["grad-cam"]


def test_targets_in_every_form(gap_net, image):
    """None is top-1; an index, a label in any case, digits, or one of these an image."""
    top = xai_abn.explain(gap_net, image)["grad-cam"]
    assert top.target == top.predicted
    for target in (2, "bicycle", "BiCycle ", "2"):
        record = xai_abn.explain(gap_net, image, "cam", target)["cam"]
        assert (record.target, record.label) == (2, "bicycle")
    several = xai_abn.explain(gap_net, [image] * 3, "cam", [0, "kite", 3])
    assert [r["cam"].target for r in several] == [0, 4, 3]


def test_score_and_probability_are_of_the_same_pass(gap_net, image):
    """The record's score is the target's logit and the probability its softmax."""
    record = xai_abn.explain(gap_net, image, "cam", 1)["cam"]
    prepared = gap_net.preprocess(xai_abn.images.from_array(image))
    with torch.no_grad():
        logits = gap_net.module(prepared.tensor[None])[0]
    assert record.score == pytest.approx(float(logits[1]), abs=1e-5)
    assert record.probability == pytest.approx(float(logits.softmax(0)[1]), abs=1e-6)


def test_more_images_than_a_batch_keep_their_order(gap_net, image):
    """Batches and singles give the same maps in the same order, sizes may differ among tensors."""
    images = [np.roll(image, 5 * i, axis=1) for i in range(19)]
    together = xai_abn.explain(gap_net, images, "cam", 0)
    for image, result in zip(images, together, strict=True):
        alone = xai_abn.explain(gap_net, image, "cam", 0)["cam"]
        np.testing.assert_allclose(result["cam"].map, alone.map, atol=1e-5)
    sizes = [torch.randn(3, s, s) for s in (32, 32, 48, 32)]
    assert [r["cam"].map.shape for r in xai_abn.explain(gap_net, sizes, "cam")] == [(8, 8), (8, 8), (12, 12), (8, 8)]


def test_explainer_objects_and_layers_are_accepted(resnet18, image):
    """An explainer made by hand brings its own layer, which is recorded."""
    record = xai_abn.explain(resnet18, image, [GradCAM(layer="layer2")])["grad-cam:layer=layer2"]
    assert record.layer == "layer2"
    assert record.map.shape == (8, 8)


def test_two_layers_of_one_method_are_two_methods(resnet18, image):
    """A layer is an option of its method: it is in the key, and each map is that of its own layer."""
    result = xai_abn.explain(resnet18, image, "grad-cam,grad-cam:layer=layer2,grad-cam:layer=layer3")[0]
    assert list(result) == ["grad-cam", "grad-cam:layer=layer2", "grad-cam:layer=layer3"]
    assert [e.layer for e in result.values()] == ["layer4", "layer2", "layer3"]
    for key, together in result.items():
        np.testing.assert_allclose(together.map, xai_abn.explain(resnet18, image, key)[key].map, atol=1e-6)


def test_a_map_of_one_position_says_what_to_do(resnet18):
    """A network made for large images leaves a single position of a small one."""
    (note,) = xai_abn.explain(resnet18, torch.randn(3, 32, 32), "grad-cam")["grad-cam"].notes
    assert note == "'layer4' has a single position at 32x32 pixels: name an earlier layer, or give larger images"
    assert xai_abn.explain(resnet18, torch.randn(3, 64, 64), "grad-cam")["grad-cam"].notes == ()


def test_a_bare_module_is_wrapped(gap_net, image):
    """Any nn.Module may be explained directly."""
    assert xai_abn.explain(gap_net.module, image, "cam")["cam"].label.startswith("class ")


def test_an_abn_is_explained_by_its_map_unless_told_otherwise(abn_resnet18, resnet18, image):
    """The default method is abn for an ABN and grad-cam for a plain network."""
    assert list(xai_abn.explain(abn_resnet18, image)[0]) == ["abn"]
    assert list(xai_abn.explain(resnet18, image)[0]) == ["grad-cam"]


def test_all_three_kinds_of_map_come_from_one_pass(abn_resnet18, image):
    """ABN's map, its class maps and post-hoc maps of the perception branch stand side by side."""
    _ = abn_resnet18.target_layer  # found once a model, by a pass of its own
    calls = []
    handle = abn_resnet18.module.register_forward_hook(lambda *_: calls.append(1))
    result = xai_abn.explain(abn_resnet18, image, ["abn", "abn-class", "cam", "grad-cam"])[0]
    handle.remove()
    assert len(calls) == 1
    assert result["cam"].layer.startswith("perception_branch.")
    assert not result["abn"].class_specific


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": "nothing.jpg"}, ImageLoadError, "no such file"),
        ({"images": 7}, InvalidInputError, "sequence"),
        ({"images": [object()]}, InvalidInputError, "image 0: expected a path"),
        ({"images": torch.zeros(4, 32, 32)}, InvalidInputError, "normalized float tensor"),
        ({"images": torch.full((3, 32, 32), float("nan"))}, InvalidInputError, "NaN"),
        ({"methods": "grad-cm"}, UnknownNameError, "did you mean 'grad-cam'"),
        ({"methods": "abn"}, UnsupportedModelError, "abn-lite0"),
        ({"methods": [GradCAM(layer="featurs")]}, UnknownNameError, "features"),
        ({"targets": "bycicle"}, UnknownNameError, "'bicycle'"),
        ({"targets": 5}, InvalidInputError, "0 to 4"),
        ({"targets": -1}, InvalidInputError, "0 to 4"),
        ({"targets": [0, 1]}, InvalidInputError, "2 targets for 1 images"),
        ({"targets": [1.5]}, InvalidInputError, "index or a label"),
    ],
)
def test_bad_input_is_one_clear_error(gap_net, image, arguments, error, message):
    """Each mistake has its own error, which says what was expected."""
    with pytest.raises(error, match=message):
        xai_abn.explain(gap_net, **{"images": image, **arguments})


def test_empty_input_gives_an_empty_answer(gap_net):
    """No images, no explanations."""
    assert xai_abn.explain(gap_net, []) == []


def test_labels_that_name_two_classes_need_an_index(gap_net, image):
    """ImageNet has two cranes: a label that names two classes is refused, with their indices."""
    model = xai_abn.wrap(gap_net.module, labels=["crane", "dog", "crane", "cat", "kite"], preprocess=gap_net.preprocess)
    with pytest.raises(InvalidInputError, match="0, 2"):
        xai_abn.explain(model, image, "cam", "crane")


def test_nan_scores_are_refused(gap_net, image):
    """A network that answers NaN is not explained."""
    with torch.no_grad():
        gap_net.module.fc.bias[2] = float("nan")
    with pytest.raises(NonFiniteError, match="gap-net outputs NaN"):
        xai_abn.explain(gap_net, image)


def test_wrap_checks_what_it_is_given(gap_net):
    """Not a module, a wrong number of labels, an unknown layer: refused at once."""
    with pytest.raises(UnsupportedModelError, match="function"):
        xai_abn.wrap(lambda x: x)
    with pytest.raises(InvalidInputError, match="has 5 classes, got 3 labels"):
        xai_abn.wrap(gap_net.module, labels=["a", "b", "c"])
    with pytest.raises(UnknownNameError, match="features"):
        xai_abn.wrap(gap_net.module, layer="feature")


def test_a_copy_without_metadata_explains(monkeypatch):
    """A package on a path or in an archive is not installed; its version is its own."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", missing)
    found = xai_abn.explain(xai_abn.load_model("abn-cifar100"), "example:rocket", "abn")[0]["abn"]
    assert found.to_dict()["versions"]["xai-abn"] == xai_abn.__version__


def test_a_class_that_is_not_seen_is_noted(gap_net, image):
    """In words, so that a map of nothing is not read as a find; not for the prediction or a map of no class."""
    with torch.no_grad():
        gap_net.module.fc.bias[:] = torch.tensor([20.0, 0, 0, 0, 19.0])
    result = xai_abn.explain(gap_net, image, ["cam", "eigen-cam"], [[1, 0, 4]])[0]
    noted = {key: record.notes for key, record in result.items() if record.notes}
    assert list(noted) == [("cam", gap_net.label(1))]
    assert noted["cam", gap_net.label(1)] == (
        f"gap-net gives {gap_net.label(1)!r} 0.0%: the map shows evidence for a class it does not see",
    )


@pytest.mark.parametrize(
    ("facts", "heading"),
    [
        ({}, "predicted: cat  75.0%"),
        ({"class_specific": False}, "predicted: cat  75.0% (same map for every class)"),
        ({"target": 1, "label": "dog", "probability": 0.1}, "dog  10.0% (predicted: cat)"),
        ({"target": 1, "label": "dog", "probability": 0.7}, "dog  70.0%"),
        ({"versus": 2, "label": "cat rather than kite"}, "cat rather than kite  75.0%"),
        ({"label": "sum", "probability": float("nan")}, "sum  score 3"),
    ],
)
def test_the_heading_says_what_is_explained(gap_net, image, facts, heading):
    """In words that need no manual."""
    usual = {"target": 0, "predicted": 0, "label": "cat", "predicted_label": "cat", "probability": 0.75, "score": 3.0}
    record = replace(xai_abn.explain(gap_net, image, "cam")["cam"], **{**usual, **facts})
    assert record.panel.subtitle == heading
