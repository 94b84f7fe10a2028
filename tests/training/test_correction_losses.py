"""Losses of maps that differ from marks: each against a slow reference in plain Python, with its properties."""

from __future__ import annotations

import math

import pytest
import torch

from xai_abn.training import correction_losses
from xai_abn.training.correction_losses import (
    MAP_LOSSES,
    WEIGHTS,
    Marks,
    backgrounds,
    counter_examples,
    right_reasons,
    scaled,
)

H, W = 4, 5
#: Marks of where to look and where not to: of the first kind alone, of the second alone, and of both.
KINDS = ("look", "avoid", "both")


def masks_of(kind, size=(2 * H, 3 * W)):
    """Return marks (1, 2, height, width), with borders that cut through the cells of a grid (H, W)."""
    found = torch.zeros(1, 2, *size, dtype=torch.uint8)
    if kind != "avoid":
        found[0, 0, 1:5, 2:9] = 1
    if kind != "look":
        found[0, 1, 5:8, 7:13] = 1
    return found


@pytest.fixture(params=KINDS)
def marks(request):
    return Marks.of(masks_of(request.param), (H, W))


@pytest.fixture
def maps():
    return torch.rand(1, H, W, generator=torch.Generator().manual_seed(3))


def cells(marks, maps):
    """Return (map, look, avoid) of every cell as numbers, and whether a person said where to look."""
    rows = zip(*(part[0].flatten().tolist() for part in (maps, marks.look, marks.avoid)), strict=True)
    return list(rows), bool(marks.told[0])


def energy(marks, maps):
    rows, _ = cells(marks, maps)
    inside, outside = sum(m * look for m, look, _ in rows), sum(m * avoid for m, _, avoid in rows)
    return 1 - inside / (inside + outside)


def kl(marks, maps):
    rows, told = cells(marks, maps)
    weights = [math.exp(m) * (look + avoid) for m, look, avoid in rows]
    shares = [weight / sum(weights) for weight in weights]
    if not told:
        return -math.log(sum(q * look for q, (_, look, _) in zip(shares, rows, strict=True)))
    total = sum(look for _, look, _ in rows)
    pairs = [(look / total, q) for q, (_, look, _) in zip(shares, rows, strict=True) if look]
    return sum(p * math.log(p / q) for p, q in pairs)


def l1(marks, maps):
    rows, told = cells(marks, maps)
    wrong = sum(told * look * abs(1 - m) + avoid * abs(m) for m, look, avoid in rows)
    return wrong / sum(told * look + avoid for _, look, avoid in rows)


def abn(marks, maps):
    rows, told = cells(marks, maps)
    return math.sqrt(sum((told * look * (1 - m) - avoid * m) ** 2 for m, look, avoid in rows))


def tolerant(marks, maps):
    rows, told = cells(marks, maps)
    fill = [look if told else 0.0 for _, look, _ in rows]
    avoid = [part for _, _, part in rows]
    values = [m for m, _, _ in rows]

    def agreement(threshold):
        above = sum(f for m, f in zip(values, fill, strict=True) if m > threshold) / (sum(fill) or 1)
        return above + sum(a for m, a in zip(values, avoid, strict=True) if m <= threshold) / sum(avoid)

    best = max(agreement(value) for value in values)
    threshold = min(value for value in values if agreement(value) > best - 1e-6) if told else 0.5
    lit = [math.tanh(5 * (m - threshold)) for m in values]
    sides = sum(f * abs(v - 1) + a * abs(v + 1) for v, f, a in zip(lit, fill, avoid, strict=True))
    loss = sides / (sum(fill) + sum(avoid))
    if not told:
        return loss
    blurred = [blur(fill, row, column) for row in range(H) for column in range(W)]
    return loss + sum(abs(m - b / max(blurred)) for m, b in zip(values, blurred, strict=True)) / (H * W)


def blur(values, row, column):
    """Return one cell of a 3x3 Gaussian with reflected borders, as OpenCV's of kernel size 3."""
    total = 0.0
    for down, outer in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        for right, inner in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            r, c = abs(row + down), abs(column + right)
            r, c = (H - 1) - abs(H - 1 - r), (W - 1) - abs(W - 1 - c)
            total += outer * inner * values[r * W + c]
    return total


REFERENCES = {"energy": energy, "kl": kl, "l1": l1, "tolerant": tolerant, "abn": abn}


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_a_loss_is_its_slow_reference(name, marks, maps):
    """For marks of where to look, of where not to, and of both."""
    assert float(MAP_LOSSES[name](maps, marks)) == pytest.approx(REFERENCES[name](marks, maps), abs=2e-5)


def test_every_loss_has_a_reference_and_a_weight():
    """A new loss is entered here."""
    assert set(MAP_LOSSES) == set(REFERENCES)
    assert set(WEIGHTS) == {*MAP_LOSSES, "rrr"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAP_LOSSES)
def test_the_right_map_costs_less_than_its_opposite(name, kind):
    """A map that is 1 where to look and 0 elsewhere against one that is 1 where not to; the smooth one is between."""
    marks = Marks.of(masks_of(kind), (2 * H, 3 * W))
    right, wrong = marks.look.clone(), marks.avoid.clone()
    least, most = (float(MAP_LOSSES[name](found, marks)) for found in (right, wrong))
    between = float(MAP_LOSSES[name](0.5 * (right + wrong), marks))
    assert least < between < most
    if name in ("energy", "l1", "abn"):
        assert least == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_the_loss_of_an_image_depends_on_no_other(name):
    """A batch of three kinds of marks gives the losses of its images."""
    masks = torch.cat([masks_of(kind) for kind in KINDS])
    found = torch.rand(3, H, W, generator=torch.Generator().manual_seed(5))
    alone = [MAP_LOSSES[name](found[i : i + 1], Marks.of(masks[i : i + 1], (H, W))) for i in range(3)]
    torch.testing.assert_close(MAP_LOSSES[name](found, Marks.of(masks, (H, W))), torch.cat(alone))


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_gradients_are_those_of_differences(name, marks, maps, monkeypatch):
    """In float64; the threshold of 'tolerant' is a constant."""
    threshold = correction_losses._threshold(maps.double(), marks.look, marks.avoid)
    monkeypatch.setattr(correction_losses, "_threshold", lambda *_: threshold)
    exact = Marks(marks.look.double(), marks.avoid.double(), marks.told)
    assert torch.autograd.gradcheck(lambda m: MAP_LOSSES[name](m, exact), maps.double().requires_grad_())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", MAP_LOSSES)
def test_a_flat_map_gives_finite_numbers(name, marks, value):
    """The loss and its gradients, also where nothing is positive."""
    flat = torch.full((1, H, W), value, requires_grad=True)
    loss = MAP_LOSSES[name](scaled(flat), marks)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool((loss >= 0).all())
    assert bool(flat.grad.isfinite().all())
    assert value or not bool(flat.grad.any())


def test_a_map_of_zero_has_all_its_energy_elsewhere(marks):
    """As in the released code; it is no map that looks where it should."""
    assert float(MAP_LOSSES["energy"](torch.zeros(1, H, W), marks)) == 1


def test_marks_are_shares_of_cells():
    """Counted pixel by pixel; what is not marked counts as the other kind only where one kind is missing."""
    masks = masks_of("both")
    marks = Marks.of(masks, (H, W))
    for row in range(H):
        for column in range(W):
            block = masks[0, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            counts = [int(block[kind].sum()) for kind in (0, 1)]
            assert [float(marks.look[0, row, column]) * 6, float(marks.avoid[0, row, column]) * 6] == pytest.approx(
                counts
            )
    look, avoid = Marks.of(masks_of("look"), (H, W)), Marks.of(masks_of("avoid"), (H, W))
    torch.testing.assert_close(look.avoid, 1 - look.look)
    torch.testing.assert_close(avoid.look, 1 - avoid.avoid)
    assert (bool(look.told), bool(avoid.told), bool(marks.told)) == (True, False, True)


def test_gradients_count_where_not_to_look():
    """Squares of all channels, one position after the other."""
    gradients = torch.randn(1, 3, 8, 15, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        masks = masks_of(kind)
        total = 0.0
        for row in range(8):
            for column in range(15):
                forbidden = masks[0, 1, row, column] if kind != "look" else 1 - masks[0, 0, row, column]
                total += float(forbidden) * sum(float(gradients[0, c, row, column]) ** 2 for c in range(3))
        assert float(right_reasons(gradients, masks)) == pytest.approx(total, rel=1e-5)


def test_noise_is_pasted_where_not_to_look():
    """And nowhere else; the same seed gives the same noise, of every value."""
    masks = torch.cat([masks_of(kind, (32, 30)) for kind in KINDS])
    pixels = torch.full((3, 3, 32, 30), 77, dtype=torch.uint8)
    made = [counter_examples(pixels, masks, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*made)
    forbidden = torch.stack([1 - masks[0, 0], masks[1, 1], masks[2, 1]]).bool()[:, None].expand(-1, 3, -1, -1)
    assert bool((made[0][~forbidden] == 77).all())
    noise = made[0][forbidden].float()
    assert float((noise == 77).float().mean()) < 0.02
    assert float(noise.mean()) == pytest.approx(127.5, abs=5)
    assert (float(noise.min()), float(noise.max())) == (0, 255)


def test_backgrounds_come_from_another_image():
    """By hand, of two images: each keeps its part and gets the other's rest, with the mean where that has its part."""
    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    masks = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    masks[0, 0, :2, :2], masks[1, 0, 1:3, 1:3] = 1, 1
    made = backgrounds(pixels, masks, torch.Generator().manual_seed(0))
    for own, other in ((0, 1), (1, 0)):
        part, hole = masks[own, 0].bool(), masks[other, 0].bool()
        for channel in range(3):
            values = pixels[other, channel].float()
            expected = torch.where(hole, values[~hole].mean().round(), values)
            expected[part] = pixels[own, channel].float()[part]
            assert torch.equal(made[own, channel].float(), expected)
    alone = backgrounds(pixels[:1], masks[:1], torch.Generator().manual_seed(0))
    assert torch.equal(alone[0, :, masks[0, 0].bool()], pixels[0, :, masks[0, 0].bool()])
