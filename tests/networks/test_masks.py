"""The mask branch: it starts as the class map, answers for any class, and changes no prediction."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from support import GapNet

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.networks.abn import AttentionBranchNetwork, Auxiliary
from xai_abn.networks.build import add_mask_branch
from xai_abn.networks.masks import LEVEL, LEVEL_UNITED, PRESENT, STEEPNESS, presence, standardized

SIZE = 64


def network(name="test_resnet", trained=True, **more):
    """Return a small ABN with a mask branch; a trained one has no weight of 0."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=6).eval()
    made = xai_abn.abn_from(backbone, input_size=SIZE, masks=True, **more)
    if trained:
        with torch.no_grad():
            for values in made.mask_branch.parameters():
                values.add_(torch.randn_like(values) * 0.1)
    return made


def images(number=2):
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def features_by_hand(made, inputs):
    """Return the outputs of the layers that the branch reads, and the class maps."""
    kept = {}
    handles = [
        made.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: kept.update({name: output}))
        for name in made.mask_branch.description.layers
    ]
    with torch.no_grad():
        output = made(inputs)
    for handle in handles:
        handle.remove()
    return list(kept.values()), output.class_maps


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_an_untrained_mask_is_the_class_map(name):
    """Enlarged and standardized, for every class; it is at least twice as fine as the class map."""
    made = network(name, trained=False)
    inputs = torch.randn(2, 3, *((160, 160) if name == "test_vit" else (SIZE, SIZE)))
    results = xai_abn.explain(made, inputs, ["abn-class", "abn-mask"], [[0, 5]] * 2)
    with torch.no_grad():
        every = made(inputs).class_maps
    for row, result in enumerate(results):
        for label in ("class 0", "class 5"):
            class_map = torch.from_numpy(result["abn-class", label].map.copy())[None, None]
            mask = torch.from_numpy(result["abn-mask", label].map.copy())
            assert mask.shape[0] >= 2 * class_map.shape[2]
            enlarged = F.interpolate(standardized(class_map), mask.shape, mode="bilinear")[0, 0]
            seen = presence_by_hand(every[row], int(label.removeprefix("class ")))
            expected = mask_by_hand(standardized(enlarged), seen)
            torch.testing.assert_close(mask, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mechanism", ["residual", "auxiliary"])
def test_the_method_gives_what_the_branch_gives(mechanism):
    """The layers are those that hooks set by hand see; the union is weighted by an attention map that is used."""
    made, inputs = network(mechanism=mechanism), images()
    features, class_maps = features_by_hand(made, inputs)
    with torch.no_grad():
        output = made(inputs)
        scores = made.mask_scores(features, class_maps, torch.tensor([[3], [1]]))[:, 0]
        likely = output.logits.topk(2).indices
        several = made.mask_scores(features, class_maps, likely)
    results = xai_abn.explain(made, inputs, ["abn-mask", "abn-mask:unite=2"], [3, 1])
    for row, result in enumerate(results):
        found = torch.from_numpy(result["abn-mask"].map.copy())
        expected = mask_by_hand(scores[row], presence_by_hand(class_maps[row], [3, 1][row]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        seen = [presence_by_hand(class_maps[row], int(c)).max() for c in likely[row]]
        parts = [p * torch.sigmoid(STEEPNESS * (z - LEVEL_UNITED)) for p, z in zip(seen, several[row], strict=True)]
        united = torch.maximum(*parts)
        if mechanism == "residual":
            used = F.interpolate(output.attention_map[row : row + 1], united.shape, mode="bilinear")[0, 0]
            united = united * used.sqrt()
        found = torch.from_numpy(result["abn-mask:unite=2"].map.copy())
        torch.testing.assert_close(found, united, atol=1e-5, rtol=1e-4)
        assert not result["abn-mask:unite=2"].class_specific


def mask_by_hand(scores, seen):
    """From standardized scores (H, W) and the presence (h, w) of the class."""
    local = F.interpolate(seen[None, None], scores.shape, mode="bilinear")[0, 0]
    return torch.sigmoid(STEEPNESS * (scores - LEVEL)) * (seen.max() * local).sqrt()


def presence_by_hand(class_maps, target):
    """By its definition, cell by cell, in float64; (h, w)."""
    found = torch.zeros(class_maps.shape[1:])
    for y in range(class_maps.shape[1]):
        for x in range(class_maps.shape[2]):
            powers = [math.exp(float(value)) for value in class_maps[:, y, x]]
            share = powers[target] / sum(powers)
            found[y, x] = min(1, max(0.001, (share - 1 / len(class_maps)) / PRESENT))
    return found


def test_presence():
    """A class that leads in one cell is present; one at chance everywhere is not; the share in between is linear."""
    class_maps = torch.zeros(1, 20, 3, 3)
    class_maps[0, 4, 2, 1] = 9
    class_maps[0, 7, 0, 0] = math.log(19 * 0.1 / 0.9)  # a share of 0.1, where chance gives 0.05
    found = presence(class_maps, torch.tensor([[4, 7, 0]]))
    torch.testing.assert_close(found.amax(dim=(2, 3)), torch.tensor([[1.0, 0.5, 0.001]]), atol=1e-6, rtol=1e-5)
    assert (found[0, 0] > 0.01).nonzero().tolist() == [[2, 1]]
    assert (found[0, 1] > 0.01).nonzero().tolist() == [[0, 0]]


def test_the_mask_of_a_class_that_is_not_there_is_dark():
    """And it is drawn from 0 to 1, so that it looks dark, too. The shipped masks, on an image of a cat."""
    labels = ["tabby", "airliner", "acoustic guitar", "fire engine"]
    model = xai_abn.load_model("abn-lite0-masks")
    cat, *others = xai_abn.explain(model, "example:cat", "abn-mask", [labels])[0].values()
    assert cat.map.max() > 0.9
    for other in others:
        assert other.map.mean() < 0.1 * cat.map.mean()
        assert other.panel.limits == (0, 1)


def test_several_classes_at_once_are_each_class_alone():
    """And masks of different classes differ."""
    made, inputs = network(), images()
    features, class_maps = features_by_hand(made, inputs)
    targets = torch.tensor([[0, 4, 2], [5, 1, 3]])
    together = made.mask_scores(features, class_maps, targets)
    for column in range(3):
        alone = made.mask_scores(features, class_maps, targets[:, column : column + 1])
        torch.testing.assert_close(together[:, column : column + 1], alone)
    assert float((together[:, 0] - together[:, 1]).detach().abs().max()) > 0.1


@pytest.mark.parametrize("mechanism", ["residual", "auxiliary"])
def test_predictions_stay(mechanism):
    """With a mask branch and without, bit for bit; of an ABN that does not use its map they are the classifier's."""
    made, inputs = network(mechanism=mechanism), images()
    torch.manual_seed(0)
    classifier = timm.create_model("test_resnet", num_classes=6).eval()
    without = xai_abn.abn_from(classifier, input_size=SIZE, mechanism=mechanism)
    with torch.no_grad():
        assert torch.equal(made(inputs).logits, without(inputs).logits)
        if mechanism == "auxiliary":
            torch.testing.assert_close(made(inputs).logits, classifier(inputs))


def test_a_flat_class_map_has_a_finite_gradient():
    """Its standardized map is 0."""
    flat = torch.full((1, 4, 4), 3.0, requires_grad=True)
    standardized(flat).square().sum().backward()
    assert torch.equal(flat.grad, torch.zeros(1, 4, 4))


def test_every_weight_is_used():
    """Each parameter of the branch gets a gradient."""
    made = network()
    features, class_maps = features_by_hand(made, images())
    made.mask_scores(features, class_maps, torch.tensor([[0], [1]])).square()[:, :, :3].sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in made.mask_branch.parameters())
    assert all(p.grad is None for n, p in made.named_parameters() if not n.startswith("mask_branch."))


def test_what_has_no_masks_is_refused():
    """A network with a map for each attribute, one built from parts, one without the branch, and other targets."""
    backbone = timm.create_model("test_resnet", num_classes=6).eval()
    with pytest.raises(UnsupportedModelError, match="maps='shared'"):
        xai_abn.abn_from(backbone, input_size=SIZE, maps="per-attribute", masks=True)
    plain = xai_abn.abn_from(backbone, input_size=SIZE)
    parts = AttentionBranchNetwork(
        plain.feature_extractor, plain.attention_branch, plain.perception_branch, Auxiliary(8)
    )
    with pytest.raises(UnsupportedModelError, match="abn_from"):
        add_mask_branch(parts, images(1))
    with pytest.raises(InvalidInputError, match="masks=True"):
        plain.mask_scores([], torch.zeros(1, 6, 2, 2), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(UnsupportedModelError, match="objective masks"):
        xai_abn.explain(plain, images(), "abn-mask")
    with pytest.raises(UnsupportedModelError, match="Attention Branch Network"):
        xai_abn.explain(GapNet().eval(), images(), "abn-mask")
    with pytest.raises(UnsupportedModelError, match="abn-class for a difference"):
        xai_abn.explain(network(), images(), "abn-mask", xai_abn.Difference(0, versus=1))


def test_masks_are_what_is_shown_where_there_are_any():
    """Without a method, a network with a mask branch is explained by its masks."""
    (result,) = xai_abn.explain(network(), images(1))
    assert list(result) == ["abn-mask"]
