"""Training of masks: each part of the loss beside a slow one, and runs of the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from support import call
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.images.preprocess import Preprocess
from xai_abn.metrics.curves import RISE_BLUR, WIDE_BLUR
from xai_abn.networks.architectures import create_model
from xai_abn.networks.build import add_mask_branch
from xai_abn.networks.checkpoint import CheckpointConfig, save_checkpoint
from xai_abn.networks.masks import standardized
from xai_abn.training import DistillationSettings, run_distillation
from xai_abn.training.loop import TrainingLoop
from xai_abn.training.masks import (
    FLOORS,
    SOFTNESS,
    MaskObjective,
    check_masks,
    cut_mosaics,
    draw_classes,
    mask_losses,
    replacements,
    soft_masks,
)

SIZE = 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_soft_mask_lights_its_share_of_the_area():
    """To a position, for any share; a hard threshold at its middle gives as many positions."""
    scores = standardized(torch.randn(5, 28, 28, generator=generator()))
    areas = torch.tensor([0.02, 0.1, 0.35, 0.6, 0.95])
    masks = soft_masks(scores, areas, (28, 28))
    assert masks.shape == (5, 1, 28, 28)
    lit = (masks >= 0.5).double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(lit, areas.double(), atol=2 / 784, rtol=0)
    by_hand = torch.sigmoid((scores[1] - scores[1].flatten().sort().values[round(0.9 * 783)]) / SOFTNESS)
    torch.testing.assert_close(masks[1, 0], by_hand)


def test_the_loss_is_that_of_the_paper_of_this_project():
    """Image by image: keep, hide, variation of the scores and the share in a known place, in plain loops."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images = torch.randn(3, 3, SIZE, SIZE)
    scores = standardized(torch.randn(3, 8, 8)).requires_grad_()
    targets = torch.tensor([0, 4, 2])
    places = torch.ones(3, SIZE, SIZE, dtype=torch.bool)
    places[2, :, : SIZE // 2] = False
    settings = DistillationSettings(objective="masks", variation_weight=0.3, tile_weight=0.7)
    terms = mask_losses(scores, images, targets, places, network, settings, generator(5))

    drawn = generator(5)
    areas = 0.02 + 0.93 * torch.rand(3, generator=drawn) ** 1.5
    blanks = replacements(images, drawn)
    keep, hide, variation = 0.0, 0.0, 0.0
    for row in range(3):
        mask = soft_masks(scores[row : row + 1], areas[row : row + 1], (SIZE, SIZE))[0]
        for shown, kept in ((mask, True), (1 - mask, False)):
            seen = images[row] * shown + blanks[row] * (1 - shown)
            probability = network(seen[None]).softmax(dim=1)[0, targets[row]]
            if kept:
                keep -= torch.log(probability + FLOORS[0]) / 3
            else:
                hide -= torch.log(1 - probability + FLOORS[1]) / 3
        down = (
            sum(float((scores[row, y + 1, x] - scores[row, y, x]).detach().abs()) for y in range(7) for x in range(8))
            / 56
        )
        right = (
            sum(float((scores[row, y, x + 1] - scores[row, y, x]).detach().abs()) for y in range(8) for x in range(7))
            / 56
        )
        variation += (down + right) / 3
    shares = torch.exp(2 * scores[2]) / torch.exp(2 * scores[2]).sum()
    tile = -torch.log(shares[:, 4:].sum() + 1e-6)
    expected = {"keep": keep, "hide": hide, "variation": variation, "tile": tile}
    expected["loss"] = keep + hide + 0.3 * variation + 0.7 * tile
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(float(torch.as_tensor(value).detach()), rel=1e-4), name
    (gradient,) = torch.autograd.grad(terms["loss"], scores)
    assert float(gradient.abs().max()) > 0


def test_what_hides_pixels_is_one_of_four_kinds():
    """Two blurs, the mean color and a random color, all of which occur."""
    images = torch.randn(64, 3, 24, 24)
    found = replacements(images, generator())
    black = torch.zeros(3)
    kinds = {
        "wide": WIDE_BLUR.make(images, black),
        "narrow": RISE_BLUR.make(images, black),
        "mean": torch.zeros_like(images),
    }
    names = []
    for row in range(64):
        same = [name for name, values in kinds.items() if torch.allclose(found[row], values[row], atol=1e-6)]
        if not same:
            assert len(found[row].flatten(1).unique(dim=1).T) == 1
        names.append(same[0] if same else "random")
    assert {names.count(name) > 5 for name in ("wide", "narrow", "mean", "random")} == {True}


def test_classes_are_the_likely_ones():
    """The first of five in three of five images, each of the others in one of ten."""
    likely = torch.arange(5).expand(20_000, 5)
    drawn = draw_classes(likely, generator())
    shares = torch.bincount(drawn, minlength=5) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]), atol=0.01, rtol=0)
    assert set(draw_classes(torch.arange(2).expand(50, 2), generator()).tolist()) == {0, 1}
    assert set(draw_classes(torch.zeros(5, 1, dtype=torch.long), generator()).tolist()) == {0}


def test_a_mosaic_shows_images_in_their_places():
    """Each pixel belongs to one of four or nine; the known places show all images of the class that is asked for."""
    colors = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, SIZE, SIZE)
    classes = torch.arange(20) // 2

    def predict(images):
        """Know no class, so that each is asked for as often."""
        return torch.zeros(len(images), 10)

    made = cut_mosaics(colors, classes, 100, predict, generator())
    assert made.images.shape == (100, 3, SIZE, SIZE)
    shapes, several = set(), 0
    for image, target, place in zip(made.images, made.targets, made.places, strict=True):
        image = image[0].round()  # what is constant is resized to rounding
        tiles, shown = image.unique(), image[place].unique()
        assert set(shown.tolist()) == {tile for tile in tiles.tolist() if classes[int(tile)] == target}
        assert torch.equal(place, torch.isin(image, shown))
        several += len(shown) > 1
        across, down = (
            torch.unique_consecutive(line, return_counts=True)[1].tolist() for line in (image[0], image.T[0])
        )
        assert len(across) * len(down) == len(tiles)
        shapes.add((*across, *down))
        assert min(*across, *down) >= 0.12 * SIZE
    assert {len(shape) for shape in shapes} == {4, 6}
    assert len(shapes) > 4
    assert several
    few = cut_mosaics(colors[:3], classes[:3], 8, predict, generator(1))  # fewer images than tiles
    assert all(len(image.round().unique()) == 3 for image in few.images)


def test_a_mosaic_asks_for_a_class_that_is_recognized():
    """In proportion to the probabilities of the classes of its images."""
    colors = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, SIZE, SIZE)
    logits = torch.full((9,), -20.0)
    logits[2], logits[5] = 0.0, 1.0
    made = cut_mosaics(colors, torch.arange(9), 400, lambda images: logits.expand(len(images), 9), generator())
    whole = made.targets[
        (made.images.round().flatten(1).unsqueeze(2) == torch.tensor([2.0, 5.0])).any(dim=1).all(dim=1)
    ]
    assert set(whole.tolist()) == {2, 5}
    assert float((whole == 5).float().mean()) == pytest.approx(float(torch.tensor(1.0).sigmoid()), abs=0.06)


class Spots(nn.Module):
    """Logits of three classes: a red spot, a green one, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.stage(self.stem(x))).flatten(1))


def spots(number, seed):
    """Return images with a red spot at a random place, a green one, or none, and their classes."""
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.normal(0, 0.1, (number, 3, SIZE, SIZE)).astype(np.float32))
    classes = torch.from_numpy(draw.integers(0, 3, number))
    for image, kind in zip(images, classes, strict=True):
        y, x = draw.integers(2, SIZE - 10, 2)
        if kind < 2:
            image[kind, y : y + 8, x : x + 8] += 1
    return images, classes


class AsDataset(torch.utils.data.Dataset):
    """Images in memory as a data set."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_training_makes_masks_better_than_the_class_maps():
    """A network that knows spots by their color: masks keep and hide its classes better on images it never saw."""
    torch.manual_seed(0)
    classifier = Spots()
    images, classes = spots(256, 0)
    optimizer = torch.optim.Adam(classifier.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), classes, label_smoothing=0.1).backward()
        optimizer.step()
    network = xai_abn.abn_from(classifier.eval(), layer="stem", stage="stage", input_size=SIZE, mechanism="auxiliary")
    add_mask_branch(network, images[:1], width=16)
    settings = DistillationSettings(
        objective="masks", steps=200, batch_size=8, mosaics=4, workers=0, mask_lr=5e-3, seed=1
    )
    held_out, kinds = spots(64, 1)
    held_out = held_out[kinds < 2]
    assert float((classifier(held_out).argmax(dim=1) == kinds[kinds < 2]).float().mean()) > 0.95
    before = check_masks(network, held_out)
    assert before.kept == pytest.approx(before.kept_by_class_map, abs=1e-4)
    weights = {name: values.clone() for name, values in network.state_dict().items()}
    TrainingLoop(MaskObjective(network, AsDataset(images), settings), Accelerator(cpu=True)).run()
    after = check_masks(network, held_out)
    assert after.kept - after.hidden > before.kept - before.hidden + 0.02
    assert (after.verdict, after.warning) == ("better", None)
    changed = {name for name, values in network.state_dict().items() if not torch.equal(values, weights[name])}
    assert changed
    assert all(name.startswith("mask_branch.") for name in changed)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The checkpoint of a tiny classifier of ten classes for 32-pixel inputs."""
    torch.manual_seed(0)
    network = create_model("timm:test_resnet", 10, mechanism=None).eval()
    path = tmp_path_factory.mktemp("classifier") / "tiny.safetensors"
    save_checkpoint(path, network, CheckpointConfig("timm:test_resnet", 10, None, Preprocess(size=SIZE)))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def test_the_command_trains_saves_and_resumes_to_the_same_bits(classifier, images, tmp_path):
    """The model explains with abn-mask and predicts as its classifier; an interrupted run ends in the same weights."""
    words = ["distill", "--objective", "masks", "--model", classifier, "--images", images, "--batch-size", 4]
    words += ["--mosaics", 2, "--check-every", 2, "--workers", 0, "--held-out", 2]
    code, shown, problems = call(*words, "--steps", 4, "--output", tmp_path / "whole")
    assert code == 0, problems
    assert "where the class map is shown" in shown
    settings = DistillationSettings(
        objective="masks", model=str(classifier), images=(str(images),), batch_size=4, mosaics=2, check_every=2,
        workers=0, held_out=2, steps=4,
    )  # fmt: skip

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_distillation(tmp_path / "parts", settings, progress=stop)
    summary = run_distillation(tmp_path / "parts", settings, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [check["step"] for check in summary.checks] == [0, 2, 4]
    lines = [json.loads(line) for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert {"keep", "hide", "variation", "tile"} <= lines[1].keys()
    model = xai_abn.load_model(tmp_path / "whole")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.module(inputs).logits, xai_abn.load_model(classifier).module(inputs))
    assert xai_abn.explain(model, inputs, "abn-mask", 7)[0]["abn-mask"].map.shape == (8, 8)
    words[words.index(classifier)] = tmp_path / "whole"
    code, _, problems = call(*words, "--steps", 2, "--output", tmp_path / "more")
    assert code == 0, problems


def test_settings_of_the_other_objective_are_refused():
    """Each names the first one that has no meaning."""
    with pytest.raises(InvalidInputError, match=r"area_weight is not for objective=masks"):
        DistillationSettings(objective="masks", area_weight=1.0)
    with pytest.raises(InvalidInputError, match=r"tile_weight is not for objective=map"):
        DistillationSettings(tile_weight=1.0)


def test_a_network_without_a_mask_branch_is_refused():
    """In Python; the command adds one."""
    network = xai_abn.abn_from(create_model("resnet20", 4, mechanism=None).eval(), layer="layer2", input_size=SIZE)
    with pytest.raises(UnsupportedModelError, match="masks=True"):
        MaskObjective(network, AsDataset(torch.zeros(200, 3, SIZE, SIZE)), DistillationSettings(objective="masks"))
