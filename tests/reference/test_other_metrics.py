"""Confidence, ROAD, complexity, sanity and polarity against slow versions, closed forms, SciPy, captum and torchcam."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
from support import probability
from torch import nn

from xai_abn import metrics
from xai_abn.errors import InvalidInputError
from xai_abn.metrics import (
    average_drop,
    entropy,
    flaws,
    gini,
    increase_in_confidence,
    infidelity,
    map_agreement,
    model_parameter_randomization,
    polarity,
    random_logit,
    rank_correlation,
    road,
    sensitivity_max,
    upsample,
)
from xai_abn.metrics.road import NOISE, SHARES, impute


@pytest.fixture(autouse=True)
def _seeded():
    """Draw the same images and maps in every run."""
    torch.manual_seed(0)


def small_net(classes=4, seed=0):
    """A seeded convolutional network whose answers depend on where things are."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[-1].weight.mul_(12)
    return net


def cam(net, inputs, targets):
    """Grad-CAM at the last ReLU, without its own: signed maps of a network in loops over images."""
    maps = []
    for image, target in zip(inputs, targets.tolist(), strict=True):
        with torch.enable_grad():  # captum turns gradients off
            kept = net[:5](image[None])
            gradient = torch.autograd.grad(net[5:](kept)[0, target], kept)[0]
        maps.append((gradient.mean(dim=(2, 3), keepdim=True) * kept).sum(dim=1)[0].detach())
    return torch.stack(maps)


# ---------------------------------------------------------------- average drop and increase


def test_drop_and_increase_equal_slow_ones():
    """Full-sized maps: x times the map in [0, 1]; relu(b - a) / (b + 1e-7), undivided without, increase if a > b."""
    net, inputs = small_net(), torch.randn(12, 3, 16, 20)
    maps, targets = 5 * torch.randn(12, 16, 20) - 3, torch.arange(12) % 4
    divided, undivided = (average_drop(net, inputs, maps, targets, divided=d) for d in (True, False))
    increase = increase_in_confidence(net, inputs, maps, targets)
    for n in range(12):
        scaled = (maps[n] - maps[n].min()) / (maps[n].max() - maps[n].min())
        before = probability(net, inputs[n], int(targets[n]))
        after = probability(net, inputs[n] * scaled, int(targets[n]))
        assert undivided[n].item() == pytest.approx(max(0, before - after), abs=1e-6)
        assert divided[n].item() == pytest.approx(max(0, before - after) / (before + 1e-7), abs=1e-5)
        assert increase[n].item() == float(after > before)
    assert 0 < increase.sum() < 12


@pytest.mark.filterwarnings("ignore")
def test_full_sized_maps_score_as_torchcams_metric():
    """ClassificationMetric of torchcam 0.5 on maps of the input's size gives our mean drop and increase."""
    torchcam = pytest.importorskip("torchcam.metrics")
    from torchcam.methods import GradCAM

    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
    ).eval()  # fmt: skip
    inputs = 3 * torch.randn(8, 3, 24, 24)
    with GradCAM(net, "1") as extractor:
        theirs = torchcam.ClassificationMetric(extractor, lambda logits: logits.softmax(dim=-1))
        theirs.update(inputs)
        targets = net(inputs).argmax(dim=1)
        maps = extractor.fuse_cams(extractor(targets.tolist(), net(inputs).softmax(dim=-1))).detach()
    assert maps.shape[1:] == (24, 24)
    assert average_drop(net, inputs, maps, targets).mean().item() == pytest.approx(
        theirs.summary()["avg_drop"], abs=1e-6
    )
    assert increase_in_confidence(net, inputs, maps, targets).mean().item() == pytest.approx(
        theirs.summary()["conf_increase"]
    )


def test_small_maps_are_scaled_before_they_are_enlarged():
    """As torchcam and grad-cam do, which the protocol names: scale the map to [0, 1], then enlarge it."""
    net, inputs = small_net(), torch.randn(6, 3, 32, 32)
    maps, targets = torch.rand(6, 4, 4), torch.arange(6) % 4
    found = average_drop(net, inputs, maps, targets)
    for n in range(6):
        scaled = (maps[n] - maps[n].min()) / (maps[n].max() - maps[n].min())
        before = probability(net, inputs[n], int(targets[n]))
        after = probability(net, inputs[n] * upsample(scaled[None], (32, 32))[0], int(targets[n]))
        assert found[n].item() == pytest.approx(max(0, before - after) / (before + 1e-7), abs=1e-5)


# ---------------------------------------------------------------- ROAD


def slow_impute(image, removed):
    """Solve sum of w (x_i - x_j) over existing neighbours = 0 for every removed pixel, as one dense system."""
    channels, height, width = image.shape
    pixels = image.double().numpy()
    gone = removed.view(height, width).numpy()
    system, right = np.eye(height * width), pixels.reshape(channels, -1).T.copy()
    for row in range(height):
        for column in range(width):
            if not gone[row, column]:
                continue
            here = row * width + column
            system[here] = 0
            right[here] = 0
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    r, c = row + down, column + across
                    if (down, across) == (0, 0) or not (0 <= r < height and 0 <= c < width):
                        continue
                    weight = 1 / 12 if down and across else 1 / 6
                    system[here, here] += weight
                    system[here, r * width + c] -= weight
    return np.linalg.solve(system, right).T.reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 0.02])
def test_imputation_solves_the_dense_system(channels, kept):
    """Any number of channels, few and nearly all pixels removed, corners and whole edges among them."""
    image = torch.randn(channels, 8, 9)
    removed = torch.rand(72) >= kept
    removed[[0, 8, 63, 71]] = True
    removed[:9] = True
    removed[40] = False
    found = impute(image, removed, np.random.default_rng(0), noise=0)
    np.testing.assert_allclose(found.numpy(), slow_impute(image, removed), atol=1e-5)
    assert found.flatten(1)[:, ~removed].equal(image.flatten(1)[:, ~removed])


def test_imputation_by_hand():
    """One corner missing: its three neighbours, 2/5, 2/5 and 1/5; a linear ramp's inner pixel comes back as it was."""
    image = torch.tensor([[[9.0, 1.0, 0.0], [2.0, 3.0, 0.0], [0.0, 0.0, 0.0]]])
    removed = torch.zeros(9, dtype=torch.bool)
    removed[0] = True
    found = impute(image, removed, np.random.default_rng(0), noise=0)
    assert found[0, 0, 0].item() == pytest.approx((2 * 1 + 2 * 2 + 1 * 3) / 5)
    ramp = torch.arange(25.0).view(1, 5, 5)
    removed = torch.zeros(25, dtype=torch.bool)
    removed[[6, 7, 12]] = True
    torch.testing.assert_close(impute(ramp, removed, np.random.default_rng(0), noise=0), ramp, atol=1e-5, rtol=0)


def test_imputed_pixels_carry_noise_and_others_none():
    """Noise of the given deviation on removed pixels only; the same seed gives the same noise."""
    image, removed = torch.zeros(3, 60, 60), torch.arange(3600) % 2 == 0
    first, again = (impute(image, removed, np.random.default_rng(4), noise=0.01) for _ in range(2))
    assert first.equal(again)
    assert first.flatten(1)[:, removed].std().item() == pytest.approx(0.01, rel=0.05)
    assert not first.flatten(1)[:, ~removed].any()


def test_road_equals_a_slow_one():
    """Half of bottom-removed minus top-removed, mean of nine shares, by plain sorting and dense systems."""
    net, inputs = small_net(), torch.randn(2, 3, 12, 10)
    maps = torch.stack([torch.rand(12, 10), torch.randint(0, 3, (12, 10)).float()])
    targets = torch.tensor([1, 2])
    found = road(net, inputs, maps, targets)
    shuffle = torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()
    tie = {place: position for position, place in enumerate(shuffle)}
    for n in range(2):
        values = maps[n].flatten().tolist()
        order = sorted(range(120), key=lambda i: (-values[i], tie[i]))
        noise = np.random.default_rng(0)
        sums = {}
        for end in ("top", "bottom"):
            sums[end] = 0.0
            for share in SHARES:
                count = round(share * 120)
                removed = torch.zeros(120, dtype=torch.bool)
                removed[order[:count] if end == "top" else order[120 - count :]] = True
                image = slow_impute(inputs[n], removed).reshape(3, -1)
                image[:, removed.numpy()] += NOISE * noise.standard_normal((3, count))
                image = torch.from_numpy(image).float().view(3, 12, 10)
                sums[end] += probability(net, image, int(targets[n]))
        expected = (sums["bottom"] - sums["top"]) / len(SHARES) / 2
        assert found[n].item() == pytest.approx(expected, abs=1e-5)


def test_road_does_not_depend_on_the_batch():
    """RGB images with one-channel maps: each alone scores what it scores among others, in any order."""
    net, inputs, maps, targets = small_net(), torch.randn(4, 3, 16, 16), torch.rand(4, 4, 4), torch.arange(4)
    together = road(net, inputs, maps, targets)
    for n in range(4):
        alone = road(net, inputs[n : n + 1], maps[n : n + 1], targets[n : n + 1])
        torch.testing.assert_close(alone, together[n : n + 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(road(net, inputs.flip(0), maps.flip(0), targets.flip(0)).flip(0), together)


def test_a_sparse_map_loses_the_share_asked_for():
    """Nine tenths zeros: grad-cam's percentile threshold removes every pixel, ranks remove just as many as asked."""
    inputs, map_ = torch.randn(1, 3, 20, 20), torch.zeros(1, 20, 20)
    map_[0, :2] = torch.rand(2, 20) + 0.1
    threshold = np.percentile(map_[0].numpy(), 80)
    assert (map_[0].numpy() >= threshold).all()  # the rule keeps values below the threshold: none
    shares, counts = (0.1, 0.2, 0.5), []

    def count(images):
        changed = (images != inputs).any(dim=1).flatten(1)
        counts.extend(changed.sum(dim=1).tolist())
        rows = changed.view(-1, 20, 20)
        assert rows[0, :2].all()  # the top tenth is the two rows of values
        assert not rows[3:6, :2].any()  # up to a half, the bottom is zeros alone
        return torch.zeros(len(images), 2)

    assert road(count, inputs, map_, torch.tensor([0]), shares=shares).item() == 0
    assert counts == [40, 80, 200] * 2


@pytest.mark.parametrize("shares", [(1.0,), (1.5,), (-0.1,), ()])
def test_road_refuses_impossible_shares(shares):
    """Shares lie inside (0, 1), and there is at least one."""
    with pytest.raises(InvalidInputError):
        road(small_net(), torch.randn(1, 3, 8, 8), torch.rand(1, 4, 4), torch.tensor([0]), shares=shares)


# ---------------------------------------------------------------- complexity


def test_gini_in_closed_form():
    """Even: 0; one of N: 1 - 1/N; signs do not matter; else half the relative mean difference of all pairs."""
    assert gini(torch.ones(1, 4, 5)).item() == pytest.approx(0, abs=1e-7)
    dot = torch.zeros(1, 4, 5)
    dot[0, 2, 2] = -3
    assert gini(dot).item() == pytest.approx(1 - 1 / 20)
    values = np.random.default_rng(0).normal(size=20)
    slow = sum(abs(a - b) for a in abs(values) for b in abs(values)) / (2 * 20 * sum(abs(values)))
    found = gini(torch.from_numpy(values).view(1, 4, 5).float()).item()
    assert found == pytest.approx(slow, abs=1e-6)
    assert gini(torch.zeros(1, 4, 5)).isnan().all()


def test_entropy_in_closed_form():
    """Even: 1; a dot: 0; k equal values of N: log k / log N; negatives count as 0; equal to SciPy's."""
    assert entropy(torch.ones(1, 4, 5)).item() == pytest.approx(1)
    few = -torch.ones(1, 4, 5)
    few[0, 0, :4] = 2
    assert entropy(few).item() == pytest.approx(math.log(4) / math.log(20), abs=1e-6)
    dot = torch.zeros(1, 4, 5)
    dot[0, 1, 1] = 7
    assert entropy(dot).item() == 0
    values = np.random.default_rng(0).normal(size=20)
    expected = scipy.stats.entropy(values.clip(0)) / math.log(20)
    assert entropy(torch.from_numpy(values).view(1, 4, 5).float()).item() == pytest.approx(expected, abs=1e-6)
    assert entropy(-torch.ones(1, 4, 5)).isnan().all()


@pytest.mark.parametrize(
    ("function", "bad"),
    [
        (gini, float("nan")), (gini, float("inf")), (gini, float("-inf")), (entropy, float("nan")),
        (entropy, float("inf")), (entropy, float("-inf")),
    ],
)  # fmt: skip
def test_complexity_of_a_non_finite_map_is_nan(function, bad):
    """One NaN or infinity, of either sign, and there is no value."""
    map_ = torch.rand(1, 4, 5)
    map_[0, 0, 0] = bad
    assert function(map_).isnan().all()


def test_flaws_are_told_apart():
    """Not finite, flat to a millionth of the largest magnitude, or none; wrong shapes are refused."""
    maps = torch.ones(6, 4, 5)
    maps[1, 0, 0], maps[2, 0, 0], maps[3, 0, 0], maps[4, 0, 0] = float("nan"), float("-inf"), 1 + 5e-7, 1 + 1e-5
    maps[5] = 0
    assert flaws(maps) == ["flat", "not finite", "not finite", "flat", None, "flat"]
    with pytest.raises(InvalidInputError, match="expected maps"):
        flaws(maps[0])


# ---------------------------------------------------------------- correlation and agreement


def test_rank_correlation_is_scipys():
    """Spearman's correlation with ties, both ways round and perfect; NaN where a map is flat or not finite."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 6, (6, 7, 8), generator=generator).float()
    second = torch.randint(0, 9, (6, 7, 8), generator=generator).float() + 0.4 * first
    found = rank_correlation(first, second)
    for n in range(6):
        expected = scipy.stats.spearmanr(first[n].flatten(), second[n].flatten()).statistic
        assert found[n].item() == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(first, first.exp()).tolist() == pytest.approx([1] * 6)
    assert rank_correlation(first, -first).tolist() == pytest.approx([-1] * 6)
    second[0], second[1, 0, 0] = 3, float("nan")
    assert rank_correlation(first, second).isnan().tolist() == [True, True, False, False, False, False]
    assert rank_correlation(second, first).isnan().tolist() == [True, True, False, False, False, False]
    small = torch.rand(6, 3, 4)
    torch.testing.assert_close(rank_correlation(first, small), rank_correlation(first, upsample(small, (7, 8))))


def test_map_agreement_in_closed_form():
    """Tops of 20 pixels that share s have s / (40 - s); equal maps agree wholly, opposite ones not at all."""
    ramp = torch.arange(100.0).view(1, 10, 10)
    for shift, shared in ((0, 20), (5, 15), (20, 0)):
        assert map_agreement(ramp, ramp.flatten().roll(shift).view(1, 10, 10)).item() == pytest.approx(
            shared / (40 - shared)
        )
    assert map_agreement(ramp, -ramp).item() == 0
    assert map_agreement(ramp, torch.ones(1, 10, 10)).isnan().all()
    assert map_agreement(ramp, torch.full((1, 10, 10), float("nan"))).isnan().all()
    for share in (0, 1, 1.2):
        with pytest.raises(InvalidInputError, match="share"):
            map_agreement(ramp, ramp, share)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_unrelated_maps_agree_by_chance(share):
    """The mean over random pairs is share / (2 - share)."""
    first, second = torch.rand(300, 20, 20), torch.rand(300, 20, 20)
    assert map_agreement(first, second, share).mean().item() == pytest.approx(share / (2 - share), abs=0.01)


def test_sparse_maps_that_share_nothing_do_not_agree():
    """A dot here and a dot there, zeros elsewhere: agreement is not above that of unrelated maps."""
    first, second = torch.zeros(1, 20, 20), torch.zeros(1, 20, 20)
    first[0, 3, 3] = second[0, 15, 15] = 1
    assert not map_agreement(first, second).item() > 0.2


# ---------------------------------------------------------------- sanity checks


def test_a_map_that_knows_no_class_has_random_logit_one():
    """Class-agnostic maps give 1; maps of opposite sign for odd classes give 1 or -1; the class drawn is another."""
    inputs, targets = torch.randn(40, 3, 8, 8), torch.arange(40) % 2
    asked = []

    def agnostic(inputs, targets, module=None):
        asked.append(targets.clone())
        return inputs.mean(dim=1)

    assert random_logit(agnostic, inputs, targets, 5).tolist() == pytest.approx([1.0] * 40)
    assert (asked[0] == targets).all()
    assert (asked[1] != targets).all()
    assert asked[1].min() >= 0
    assert asked[1].max() <= 4
    assert len(asked[1].unique()) == 5

    def signed(inputs, targets, module=None):
        return inputs.mean(dim=1) * (1 - 2 * (targets % 2)).view(-1, 1, 1)

    assert random_logit(signed, inputs, targets, 2).tolist() == pytest.approx([-1.0] * 40)
    with pytest.raises(InvalidInputError, match="at least 2"):
        random_logit(agnostic, inputs, targets, 1)


def test_random_logit_is_the_correlation_with_the_drawn_class():
    """Maps of a network for the target and for the class drawn, correlated by SciPy; the seed fixes the draw."""
    net, inputs, targets = small_net(), torch.randn(5, 3, 24, 24), torch.arange(5) % 4
    asked = []

    def explain(inputs, targets, module=None):
        asked.append(targets)
        return cam(net, inputs, targets)

    found = random_logit(explain, inputs, targets, 4, seed=3)
    first, second = (cam(net, inputs, t).flatten(1) for t in asked)
    for n in range(5):
        assert found[n].item() == pytest.approx(scipy.stats.spearmanr(first[n], second[n]).statistic, abs=1e-6)
    torch.testing.assert_close(random_logit(explain, inputs, targets, 4, seed=3), found)


def test_randomisation_of_a_map_that_ignores_the_network_is_one():
    """It correlates wholly at every stage; the network, its mode and the random state stay as they were."""
    net, inputs, targets = small_net(), torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = model_parameter_randomization(lambda i, t, module=None: i.mean(dim=1), net, inputs, targets)
    assert found.shape == (3, 5)
    torch.testing.assert_close(found, torch.ones(3, 5))
    assert torch.get_rng_state().equal(state)
    assert not net.training
    for name, value in net.state_dict().items():
        assert value.equal(before[name])


def test_randomisation_goes_backwards_from_the_output():
    """After stage k of 4, the last k of the four layers with parameters differ, the others do not; seeded."""
    net, inputs, targets = small_net(), torch.randn(2, 3, 24, 24), torch.tensor([0, 1])
    changed = []

    def explain(inputs, targets, module=None):
        if module is not None:
            assert not module.training
            changed.append([i for i in (0, 2, 3, 7) if not module[i].bias.equal(net[i].bias)
                            or not module[i].weight.equal(net[i].weight)])  # fmt: skip
        return cam(net if module is None else module, inputs, targets)

    with torch.no_grad():
        net[3].weight.mul_(1.5)  # else a BatchNorm that is initialised again is as before
    found = model_parameter_randomization(explain, net, inputs, targets, stages=4, seed=1)
    assert changed == [[7], [3, 7], [2, 3, 7], [0, 2, 3, 7]]
    torch.testing.assert_close(model_parameter_randomization(explain, net, inputs, targets, stages=4, seed=1), found)
    changed.clear()
    model_parameter_randomization(explain, net, inputs, targets, stages=1)
    assert changed == [[0, 2, 3, 7]]


def test_randomisation_refuses_what_it_cannot_do():
    """Fewer than one stage, or nothing to randomise."""
    inputs, targets = torch.randn(1, 3, 8, 8), torch.tensor([0])

    def explain(inputs, targets, module=None):
        return inputs.mean(dim=1)

    with pytest.raises(InvalidInputError, match="stages"):
        model_parameter_randomization(explain, small_net(), inputs, targets, stages=0)
    with pytest.raises(InvalidInputError, match="reset_parameters"):
        model_parameter_randomization(explain, nn.ReLU(), inputs, targets)


def test_randomisation_reaches_every_parameter():
    """At the last stage nothing learnt is left, also in attention (whose reset is private) and bare parameters."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 4, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

    net, left = Tokens().eval(), []

    def explain(inputs, targets, module=None):
        if module is not None:
            old = dict(net.named_parameters())
            left[:] = [n for n, p in module.named_parameters() if p.equal(old[n]) and p.unique().numel() > 1]
        return inputs.mean(dim=1)

    model_parameter_randomization(explain, net, torch.randn(1, 3, 8, 8), torch.tensor([0]))
    assert left == []


def test_sensitivity_is_captums_under_the_seed():
    """Called directly with the same seed, captum gives the same numbers; the random state is left as it was."""
    captum = pytest.importorskip("captum.metrics")
    net, inputs, targets = small_net(), torch.randn(3, 3, 24, 24), torch.tensor([0, 1, 2])

    def explain(inputs, targets, module=None):
        return cam(net, inputs, targets)

    state = torch.get_rng_state()
    found = sensitivity_max(explain, inputs, targets, radius=0.05, samples=6, seed=11)
    assert torch.get_rng_state().equal(state)
    for n in range(3):
        torch.manual_seed(11)
        expected = captum.sensitivity_max(
            lambda x, n=n: (cam(net, x[0], targets[n].expand(len(x[0]))),),
            inputs[n : n + 1], perturb_radius=0.05, n_perturb_samples=6,
        )  # fmt: skip
        torch.testing.assert_close(found[n : n + 1], expected)
    assert (found > 0).all()


def test_sensitivity_of_a_single_image():
    """One image is a batch too: ``explain`` is given as many targets as images, whatever captum passes on."""

    def explain(inputs, targets, module=None):
        assert len(inputs) == len(targets)
        return inputs.mean(dim=1)

    assert sensitivity_max(explain, torch.randn(1, 3, 8, 8), torch.tensor([2])).isfinite().all()


def test_sensitivity_by_hand():
    """The map x changes by at most the radius a value: |noise| / |x|; a map that does not change has 0; flat is NaN."""
    inputs, targets = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    steady = torch.rand(1, 8, 8)
    same = sensitivity_max(lambda i, t, module=None: steady.expand(len(i), -1, -1), inputs, targets)
    assert same.tolist() == [0, 0]
    moved = sensitivity_max(lambda i, t, module=None: i[:, 0], inputs, targets)
    bound = 0.02 * 8 / inputs[:, 0].flatten(1).norm(dim=1)
    assert (moved <= bound).all()
    assert (moved > 0.4 * bound).all()
    flat = sensitivity_max(lambda i, t, module=None: torch.ones(len(i), 8, 8), inputs, targets)
    assert flat.isnan().all()


def test_infidelity_is_captums_under_the_seed():
    """Called directly with the same seed and the enlarged map, captum gives the same numbers; NaN for flat maps."""
    captum = pytest.importorskip("captum.metrics")
    net, inputs, targets = small_net(), torch.randn(4, 3, 24, 24), torch.arange(4)
    maps = torch.randn(4, 6, 6)
    state = torch.get_rng_state()
    found = infidelity(net, inputs, maps, targets, samples=7, noise=0.3, seed=5)
    assert torch.get_rng_state().equal(state)

    def perturb(values):
        step = 0.3 * torch.randn_like(values)
        return step, values - step

    large = upsample(maps, (24, 24))[:, None].repeat(1, 3, 1, 1)
    for n in range(4):
        torch.manual_seed(5)
        with torch.no_grad():
            expected = captum.infidelity(
                net, perturb, inputs[n : n + 1], large[n : n + 1], target=n, n_perturb_samples=7, normalize=True
            )
        torch.testing.assert_close(found[n : n + 1], expected)
    torch.testing.assert_close(infidelity(net, inputs, 9 * maps, targets, samples=7, noise=0.3, seed=5), found)
    maps[0], maps[1, 0, 0] = 2, float("nan")
    again = infidelity(net, inputs, maps, targets, samples=7, noise=0.3, seed=5)
    assert again.isnan().tolist() == [True, True, False, False]
    torch.testing.assert_close(again[2:], found[2:])


def test_a_linear_networks_own_weights_have_no_infidelity():
    """If the logit is sum of w x, with w the same for all channels, the map w explains every perturbation."""
    weights = torch.randn(8, 8)

    def linear(inputs):
        total = (inputs * weights).sum(dim=(1, 2, 3))
        return torch.stack([total, -total], dim=1)

    inputs, targets = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    maps = torch.stack([weights, -weights])
    assert infidelity(linear, inputs, maps, targets).abs().max() < 1e-3
    assert infidelity(linear, inputs, torch.randn(2, 8, 8), targets).min() > 0.1


@pytest.mark.parametrize("name", ["infidelity", "sensitivity-max", "random-logit"])
def test_seeded_metrics_do_not_depend_on_the_batch(name):
    """An image has one value under one seed, whatever batch or shard it stands in."""
    net, inputs, maps = small_net(), torch.randn(3, 3, 24, 24), torch.randn(3, 6, 6)
    targets = torch.tensor([0, 1, 2])

    def explain(inputs, targets, module=None):
        return cam(net, inputs, targets)

    def value(some):
        if name == "infidelity":
            return infidelity(net, inputs[some], maps[some], targets[some])
        if name == "sensitivity-max":
            return sensitivity_max(explain, inputs[some], targets[some])
        return random_logit(explain, inputs[some], targets[some], 4)

    together = value(slice(0, 3))
    alone = torch.cat([value(slice(n, n + 1)) for n in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- polarity


def pixel_mean(inputs):
    """Two classes: the mean of all values, and 0."""
    total = inputs.mean(dim=(1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_polarity_in_closed_form():
    """The pixel-mean model loses exactly what the removed pixels held; upside down, the map scores the negative."""
    values = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
    inputs = values.expand(1, 3, 10, 10).contiguous()
    target = torch.tensor([0])
    for share, count in ((0.2, 20), (0.5, 50), (0.05, 5)):
        without_bottom = torch.tensor(sum(range(count + 1, 101)) / 100).sigmoid()
        without_top = torch.tensor(sum(range(1, 101 - count)) / 100).sigmoid()
        expected = (without_bottom - without_top).item()
        up = polarity(pixel_mean, inputs, values[:, 0], target, share)
        assert up.item() == pytest.approx(expected, abs=1e-6)
        assert polarity(pixel_mean, inputs, -values[:, 0], target, share).item() == pytest.approx(-expected, abs=1e-6)


def test_polarity_equals_a_slow_one():
    """Top and bottom pixels of enlarged maps set to 0 one by one; each image alone scores as in the batch."""
    net, inputs, maps, targets = small_net(), torch.randn(3, 3, 15, 13), torch.rand(3, 4, 4), torch.tensor([1, 3, 0])
    found = polarity(net, inputs, maps, targets)
    large = upsample(maps, (15, 13))
    for n in range(3):
        flat = large[n].flatten().tolist()
        order = sorted(range(195), key=lambda i: (flat[i], i))
        left = []
        for removed in (order[:39], order[156:]):
            image = inputs[n].clone().flatten(1)
            image[:, removed] = 0
            left.append(probability(net, image.view(3, 15, 13), int(targets[n])))
        assert found[n].item() == pytest.approx(left[0] - left[1], abs=1e-6)


def test_polarity_refuses_what_does_not_fit():
    """Shares above a half would overlap; numbers of inputs, maps and targets must agree."""
    inputs = torch.rand(2, 3, 4, 4)
    with pytest.raises(InvalidInputError, match="share"):
        polarity(pixel_mean, inputs, torch.rand(2, 4, 4), torch.tensor([0, 0]), share=0.6)
    with pytest.raises(InvalidInputError, match="1 maps"):
        polarity(pixel_mean, inputs, torch.rand(1, 4, 4), torch.tensor([0, 0]))


# ---------------------------------------------------------------- maps that mean nothing, and refusals

ON_MODEL = [name for name in metrics.names() if "predict" in metrics.get(name).arguments]
BLACK = {"black": torch.tensor([-2.1, -2.0, -1.8])}


def score(name, predict, inputs, maps, targets):
    found = metrics.get(name).function(
        predict=predict, inputs=inputs, maps=maps, targets=targets, **(BLACK if "pid" in name else {})
    )
    return found.values if isinstance(found, metrics.Scores) else found


@pytest.mark.parametrize("name", ON_MODEL)
def test_a_map_that_means_nothing_has_no_value(name):
    """Flat, nearly flat, NaN and infinite maps give NaN under every metric that runs the network; others a number."""
    maps = torch.rand(6, 4, 4)
    maps[0], maps[1], maps[2] = 0, 3, 1 + 4e-7 * torch.rand(4, 4)
    maps[3], maps[4, 0, 0] = float("nan"), float("inf")
    values = score(name, small_net(), torch.randn(6, 3, 64, 64), maps, torch.zeros(6, dtype=torch.long))
    assert values.isnan().tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("name", ON_MODEL)
def test_numbers_that_differ_are_refused(name):
    """Two images, one map: a typed error under every metric that runs the network."""
    with pytest.raises(InvalidInputError):
        score(name, small_net(), torch.randn(2, 3, 64, 64), torch.rand(1, 4, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ON_MODEL)
@pytest.mark.parametrize("target", [-1, 4])
def test_targets_out_of_range_are_refused(name, target):
    """A class that the network does not have is a typed error under every metric that runs the network."""
    with pytest.raises(InvalidInputError):
        score(name, small_net(), torch.randn(1, 3, 64, 64), torch.rand(1, 4, 4), torch.tensor([target]))


@pytest.mark.parametrize("function", [gini, entropy, rank_correlation, map_agreement])
def test_wrong_shapes_of_maps_are_refused(function):
    """One map without its batch axis, or numbers of maps that differ, is a typed error."""
    with pytest.raises(InvalidInputError):
        function(torch.rand(4, 4)) if function in (gini, entropy) else function(
            torch.rand(2, 4, 4), torch.rand(3, 4, 4)
        )
