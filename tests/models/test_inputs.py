"""Networks of several inputs: each image keeps its own, in every pass."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from support import check_error
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError, XaiAbnError

SMALL = xai_abn.Preprocess(size=32)
AGES = torch.tensor([[0.2, -1.0], [3.0, 1.0], [-2.0, 0.5]])


class Patient(nn.Module):
    """An image and two numbers, which gate the features, so that they change the map and not only the score."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.Tanh())
        self.gate, self.fc = nn.Linear(2, 6), nn.Linear(6, 4)

    def forward(self, image, numbers, *, double: bool = False):
        features = self.features(image) * self.gate(numbers).sigmoid()[:, :, None, None]
        return self.fc(features.square().mean(dim=(2, 3))) * (2 if double else 1)


class Pair(nn.Module):
    """Two images through one encoder, as in a change detector."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, before, after):
        return self.head((self.encoder(before) - self.encoder(after)).abs().mean(dim=(2, 3)))


class Words(nn.Module):
    """An image and words by number, in another type and place."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Tanh())
        self.fc = nn.Linear(8, 3)

    def forward(self, input_ids, pixel_values):
        asked = self.words(input_ids).mean(dim=1)
        return self.fc((self.features(pixel_values) * asked[:, :, None, None]).mean(dim=(2, 3)))


def made(kind):
    torch.manual_seed(1)
    return kind().eval()


def images(number=3):
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def patient(**more):
    network = made(Patient)
    return network, xai_abn.wrap(network, preprocess=SMALL, other_inputs={"numbers": AGES[:1]}, **more)


def by_autograd(network, layer, target, *inputs):
    """Grad-CAM of one image from a hook and torch.autograd, without xai_abn."""
    kept = []
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = network(*inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, target], kept[-1])
    return (gradient.mean(dim=(2, 3), keepdim=True) * kept[-1]).sum(dim=1).relu()[0].detach().numpy()


def test_grad_cam_of_each_image_is_that_with_its_own_numbers():
    """Plain autograd, three images with different numbers in one call; the score, too."""
    network, model = patient()
    assert model.target_layer == "network.features"
    results = xai_abn.explain(model, images(), "grad-cam", [0, 1, 2], other_inputs={"numbers": AGES})
    for row, result in enumerate(results):
        one, numbers = images()[row : row + 1], AGES[row : row + 1]
        expected = by_autograd(network, network.features, row, one, numbers)
        np.testing.assert_allclose(result["grad-cam"].map, expected, rtol=1e-4, atol=1e-7)
        assert result["grad-cam"].score == pytest.approx(float(network(one, numbers)[0, row].detach()), rel=1e-5)
        assert result["grad-cam"].source == f"image {row}"
        assert result["grad-cam"].notes == ()
    same = by_autograd(network, network.features, 1, images()[1:2], AGES[:1])
    assert not np.allclose(results[1]["grad-cam"].map, same, rtol=1e-2)


def test_passes_on_changed_images_keep_the_numbers_of_the_image():
    """Occlusion with captum's additional_forward_args, Score-CAM written out, RISE by its own masks."""
    network, model = patient()
    results = xai_abn.explain(
        model, images(), ["occlusion", "score-cam", "rise:masks=40"], [0, 1, 2], other_inputs={"numbers": AGES}
    )
    for row, result in enumerate(results):
        one, numbers = images()[row : row + 1], AGES[row : row + 1]
        with torch.no_grad():  # a seventh and a fourteenth of 32 pixels
            expected = captum.attr.Occlusion(network).attribute(
                one, (3, 5, 5), strides=(3, 2, 2), target=row, additional_forward_args=(numbers,)
            )
        np.testing.assert_allclose(result["occlusion"].map, expected[0, 0], rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            features = network.features(one)[0]
            masks = torch.nn.functional.interpolate(features[:, None], (32, 32), mode="bilinear")
            masks = (masks - masks.amin((2, 3), True)) / (masks.amax((2, 3), True) - masks.amin((2, 3), True))
            gains = torch.cat([network(one * mask, numbers)[:, row] for mask in masks]).softmax(dim=0)
        expected = (gains[:, None, None] * features).sum(dim=0).relu()
        np.testing.assert_allclose(result["score-cam"].map, expected, rtol=1e-3, atol=1e-5)
        rise = xai_abn.explainers.RISE(masks=40)
        maps = torch.zeros(32, 32)
        for stack in rise.stacks(32, 32):
            with torch.no_grad():
                seen = network(one * stack[:, None], numbers.expand(len(stack), -1)).softmax(dim=1)[:, row]
            maps += torch.tensordot(seen, stack, dims=1)
        np.testing.assert_allclose(result["rise:masks=40"].map, maps / 20, rtol=1e-4)


def test_layers_are_replaced_beside_the_numbers_of_the_image():
    """Several values of a layer for one image, behind which the numbers come in."""
    network, model = patient()
    shared = xai_abn.ForwardPass(model.with_inputs({"numbers": AGES[1:2]}), images(1), ["network.features"])
    values = torch.randn(5, 6, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        gated = values * network.gate(AGES[1:2]).sigmoid()[:, :, None, None]
        expected = network.fc(gated.square().mean(dim=(2, 3)))
    torch.testing.assert_close(shared.rerun("network.features", 0, values), expected)


def test_integrated_gradients_are_those_of_captum_with_its_arguments():
    """additional_forward_args, one image after the other."""
    network, model = patient()
    results = xai_abn.explain(
        model, images(), "integrated-gradients:steps=8", [1, 1, 1], other_inputs={"numbers": AGES}
    )
    for row, result in enumerate(results):
        expected = captum.attr.IntegratedGradients(network).attribute(
            images()[row : row + 1], target=1, n_steps=8, additional_forward_args=(AGES[row : row + 1],)
        )
        np.testing.assert_allclose(
            next(iter(result.values())).map, expected.sum(dim=1)[0].detach(), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("explained", ["before", "after"])
def test_either_of_two_images_is_explained(explained):
    """The one that is not given as another input, of a network that runs one encoder on both."""
    network = made(Pair)
    other = "after" if explained == "before" else "before"
    partners = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    model = xai_abn.wrap(network, preprocess=SMALL, other_inputs={other: torch.zeros(1, 3, 32, 32)})
    results = xai_abn.explain(model, images(2), ["grad-cam", "saliency"], 2, other_inputs={other: partners})
    for row, result in enumerate(results):
        one = images(2)[row : row + 1].requires_grad_()
        inputs = {explained: one, other: partners[row : row + 1]}
        (gradient,) = torch.autograd.grad(network(**inputs)[0, 2], one)
        np.testing.assert_allclose(result["saliency"].map, gradient.abs().amax(dim=1)[0], rtol=1e-4, atol=1e-7)
        features = network.encoder(one)
        apart = (features - network.encoder(inputs[other])) * (1 if explained == "before" else -1)
        before = apart if explained == "before" else -apart
        logit = network.head((before).abs().mean(dim=(2, 3)))[0, 2]
        (by_features,) = torch.autograd.grad(logit, features)
        expected = (by_features.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()[0].detach()
        np.testing.assert_allclose(result["grad-cam"].map, expected, rtol=1e-4, atol=1e-7)


def test_whole_numbers_stay_whole_and_the_image_need_not_come_first():
    """Token ids, and an image as the second argument; the network in half precision, too."""
    network = made(Words)
    words = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model = xai_abn.wrap(network, preprocess=SMALL, other_inputs={"input_ids": words[:1]})
    results = xai_abn.explain(model, images(2), "grad-cam", 0, other_inputs={"input_ids": words})
    for row, result in enumerate(results):
        expected = by_autograd(network, network.features, 0, words[row : row + 1], images(2)[row : row + 1])
        np.testing.assert_allclose(result["grad-cam"].map, expected, rtol=1e-4, atol=1e-7)
    assert (
        xai_abn.wrap(network.bfloat16(), preprocess=SMALL, other_inputs={"input_ids": words[:1]}).number_of_classes == 3
    )


def test_inputs_that_are_no_tensors_are_passed_on():
    """Such as a switch."""
    network, model = patient()
    switched = xai_abn.wrap(network, preprocess=SMALL, other_inputs={"numbers": AGES[:1], "double": True})
    plain, doubled = (
        xai_abn.explain(m, images(1), "grad-cam", 0, other_inputs={"numbers": AGES[1:2]})["grad-cam"].score
        for m in (model, switched)
    )
    assert doubled == pytest.approx(2 * plain, rel=1e-5)


def test_inputs_given_to_wrap_alone_are_said_to_be():
    """They are the same for every image of a batch."""
    network, model = patient()
    results = xai_abn.explain(model, images(), "grad-cam", 0)
    for row, result in enumerate(results):
        expected = float(network(images()[row : row + 1], AGES[:1])[0, 0].detach())
        assert result["grad-cam"].score == pytest.approx(expected, rel=1e-5)
        assert any("numbers" in note and "given to wrap" in note for note in result["grad-cam"].notes)


def test_a_score_of_the_output_and_a_bad_image_work_as_ever():
    """A function as target; an image that cannot be read is its own error."""
    network, model = patient()
    record = xai_abn.explain(
        model, images(2), "grad-cam", lambda logits: logits[:, 0] - logits[:, 1], other_inputs={"numbers": AGES[:2]}
    )[1]["grad-cam"]
    logits = network(images(2)[1:], AGES[1:2])[0].detach()
    assert record.score == pytest.approx(float(logits[0] - logits[1]), rel=1e-4)
    with pytest.raises(XaiAbnError, match=r"gone\.png"):
        xai_abn.explain(model, ["gone.png"], "grad-cam", other_inputs={"numbers": AGES[:1]})


def test_the_network_is_left_as_it_was():
    """No input, mode or gradient stays on it."""
    network = made(Patient).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = xai_abn.wrap(network, preprocess=SMALL, other_inputs={"numbers": AGES[:1]})
    xai_abn.explain(model, images(), "grad-cam", 0, other_inputs={"numbers": AGES})
    assert network.training
    assert set(before) == set(network.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"numbers": AGES[:2]}, "row for each of 3 images"),
        ({"numbers": torch.tensor(1.0)}, "row for each of 3 images"),
        ({}, "must give numbers, got none"),
        ({"age": AGES}, "must give numbers, got age"),
        ([AGES], "mapping"),
        ({"numbers": AGES[:, :1]}, "Patient cannot be run"),
    ],
)
def test_wrong_other_inputs_are_refused(others, message):
    """Of another number, name or shape."""
    _, model = patient()
    with pytest.raises(XaiAbnError, match=message) as caught:
        xai_abn.explain(model, images(), "grad-cam", 0, other_inputs=others)
    if isinstance(caught.value, InvalidInputError):
        check_error(caught.value)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"number": AGES[:1]}, UnknownNameError, "numbers"),
        ({"numbers": AGES}, InvalidInputError, "one row"),
        ({"numbers": AGES[:1], "image": images(1)}, UnsupportedModelError, "Patient does not accept"),
        ({"numbers": AGES[:1], "image": images(1), "double": True}, InvalidInputError, "none is left for the image"),
        ({}, InvalidInputError, "mapping"),
        (AGES, InvalidInputError, "mapping"),
    ],
)
def test_wrong_examples_of_other_inputs_are_refused(others, error, message):
    """On wrapping, or when the network is first run."""
    with pytest.raises(error, match=message) as caught:
        _ = xai_abn.wrap(made(Patient), preprocess=SMALL, other_inputs=others).target_layer
    check_error(caught.value)


def test_a_network_of_images_alone_takes_no_other_inputs(gap_net):
    """It is told how to wrap it."""
    with pytest.raises(InvalidInputError, match="takes only images"):
        xai_abn.explain(gap_net, images(1), "grad-cam", other_inputs={"age": AGES[:1]})
    with pytest.raises(InvalidInputError, match="no named inputs"):
        xai_abn.wrap(Nameless(), other_inputs={0: AGES[:1]})


class Nameless(nn.Module):
    """Inputs without names."""

    def forward(self, *inputs, **more):
        return inputs[0]
