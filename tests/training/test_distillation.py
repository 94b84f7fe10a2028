"""Distillation on a tiny network: it learns, it is repeatable, it freezes what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from support import GapNet

import xai_abn
from xai_abn.datasets.batches import RandomCrops, stack_readable
from xai_abn.datasets.splits import find_samples
from xai_abn.errors import ImageLoadError, NonFiniteError
from xai_abn.images.preprocess import Preprocess
from xai_abn.training import DistillationSettings, distill
from xai_abn.training.losses import make_mosaics

SMALL = DistillationSettings(steps=12, batch_size=8, mosaics=2, lr=1e-3, workers=0, bf16=False)


@pytest.fixture
def network():
    """An ABN of a tiny network whose only evidence is a bright patch."""
    torch.manual_seed(0)
    return xai_abn.abn_from(GapNet(), layer="features.1", input_size=32)


@pytest.fixture
def crops():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 32, 32, generator=generator) for _ in range(24)]


def test_the_student_comes_closer_to_its_teacher(network, crops):
    """Over the steps the loss falls, and every step is logged with all terms."""
    log = []
    with torch.no_grad():  # spoil the copied classifier, so that there is something to learn
        network.attention_branch.att_conv2.weight.copy_(-network.attention_branch.att_conv2.weight * 5)
    config = SMALL.replace(steps=80, lr=1e-2)
    distill(network, crops, config, log.append)
    assert [int(entry["step"]) for entry in log] == list(range(1, 81))
    assert {"loss", "attention", "perception", "area", "sufficiency", "necessity"} <= set(log[0])
    assert sum(e["attention"] for e in log[-10:]) < sum(e["attention"] for e in log[:10])
    assert sum(e["loss"] for e in log[-10:]) < sum(e["loss"] for e in log[:10])


def test_the_area_penalty_shrinks_the_map(network, crops):
    """A heavier penalty gives a smaller mean of M."""
    areas = []
    for weight in (0.0, 20.0):
        log = []
        distill(
            copy.deepcopy(network),
            crops,
            SMALL.replace(steps=40, map_lr=0.05, area_weight=weight),
            log.append,
        )
        areas.append(log[-1]["area"])
    assert areas[1] < areas[0] - 0.1


def test_distillation_is_repeatable(network, crops):
    """The same seed gives the same weights, bit by bit; another seed gives others."""
    runs = [distill(copy.deepcopy(network), crops, SMALL) for _ in range(2)]
    states = [list(r.state_dict().values()) for r in runs]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    other = distill(copy.deepcopy(network), crops, SMALL.replace(seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], other.state_dict().values(), strict=True))


def test_the_feature_extractor_and_the_statistics_stay(network, crops):
    """Only the branches learn; BatchNorm statistics move in the map's own norm alone; flags come back."""
    network.feature_extractor.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    flags = [p.requires_grad for p in network.parameters()]
    distill(network, crops, SMALL)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith("feature_extractor") for k in moved)
    statistics = {k for k in moved if "running" in k or "num_batches" in k}
    assert statistics == {
        f"attention_branch.bn_att3.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert "attention_branch.att_conv3.weight" in moved
    assert [p.requires_grad for p in network.parameters()] == flags
    assert not network.training


def test_a_loss_that_is_not_finite_stops(network, crops):
    """A crop that poisons the loss stops the run with the step and the learning rate."""
    crops[3] = torch.full((3, 32, 32), float("nan"))
    network.feature_extractor.requires_grad_(False)
    flags = [p.requires_grad for p in network.parameters()]
    with pytest.raises(NonFiniteError, match=r"at step [123].*lr"):
        distill(network, crops, SMALL)
    assert [p.requires_grad for p in network.parameters()] == flags
    assert not any(m.training for m in network.modules())


def test_the_features_keep_their_size(network, crops):
    """The residual's divisor becomes the least-squares factor between g(1 + M) and g; the caller's dice stay."""
    state = torch.get_rng_state()
    distill(network, crops, SMALL.replace(steps=60, lr=0.0, map_lr=0.0))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        features = network.feature_extractor(torch.stack(crops))
        attended = network.mechanism(features, network.attention_branch(features)[1])
    factor = (features * attended).sum() / features.square().sum()
    assert network.mechanism.scale > 1.01
    assert factor == pytest.approx(1.0, abs=0.02)


def test_mosaics_hold_the_images_they_name():
    """Each quarter of a mosaic is the named image at half its size."""
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 8, 8).contiguous()
    mosaics, members = make_mosaics(images, 6, torch.Generator().manual_seed(0))
    assert mosaics.shape == (6, 3, 8, 8)
    for mosaic, (a, b, c, d) in zip(mosaics, members.tolist(), strict=True):
        corners = [mosaic[0, 0, 0], mosaic[0, 0, 7], mosaic[0, 7, 0], mosaic[0, 7, 7]]
        assert [int(v) for v in corners] == [a, b, c, d]
        assert len({a, b, c, d}) == 4


def test_random_crops_leave_out_and_count_what_is_broken(tmp_path, image):
    """Images become normalised crops; unreadable ones are left out of the batch and counted."""
    Image.fromarray(image).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    Image.fromarray(image).save(tmp_path / "x_val_1.png")
    images = RandomCrops(find_samples([tmp_path], exclude=["_val_"]), Preprocess(32, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert len(images) == 2
    crops, unreadable = stack_readable([images[0], images[1]])
    assert crops.shape == (1, 3, 32, 32)
    assert crops.min() >= -1
    assert len(unreadable) == 1
    assert "broken.png" in unreadable[0]
    assert len(stack_readable([images[0]])[0]) == 0
    with pytest.raises(ImageLoadError, match="no images"):
        find_samples([tmp_path / "good.png"], exclude=["good"])
