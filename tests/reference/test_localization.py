"""Localisation metrics against slow versions written from the definitions, and golden numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from xai_abn import metrics
from xai_abn.errors import InvalidInputError
from xai_abn.metrics import (
    Objects,
    accuracy_at_best_threshold,
    all_objects_found,
    best_iou,
    energy_confusion,
    energy_pointing_game,
    grid_pointing,
    max_box_accuracy,
    object_recall,
    peak_inside,
    pixel_average_precision,
    pointing_game,
    pointing_game_difficult,
    pxap,
    relevance_rank_accuracy,
)
from xai_abn.metrics.objects import box_mask


@pytest.fixture(autouse=True)
def _seeded():
    """Draw the same maps in every run."""
    torch.manual_seed(0)


def filled(size, *corners, boxes=None, difficult=None, single=None):
    """Objects of given top, left, bottom, right, all inclusive."""
    masks = torch.zeros(len(corners), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top : bottom + 1, left : right + 1] = True
    if boxes is None:
        boxes = [[left, top, right + 1, bottom + 1] for top, left, bottom, right in corners]
    none = torch.zeros(len(corners), dtype=torch.bool)
    return Objects(
        masks,
        torch.tensor(boxes, dtype=torch.float32),
        difficult=none if difficult is None else torch.tensor(difficult),
        single=~none if single is None else torch.tensor(single),
    )


def bumps(size, *peaks):
    """Gaussians of given (row, column, spread, height); spread is twice the variance."""
    row, column = np.mgrid[: size[0], : size[1]]
    total = sum(h * np.exp(-((row - r) ** 2 + (column - c) ** 2) / s) for r, c, s, h in peaks)
    return torch.from_numpy(total).float()


# ---------------------------------------------------------------- the golden case of WSOL

GOLDEN_MAP = bumps((32, 32), (10, 12, 30, 1.0), (24, 22, 12, 0.6))[None]
GOLDEN = filled((32, 32), (5, 7, 15, 17), (20, 18, 28, 26), boxes=[[7, 5, 17, 15], [18, 20, 26, 28]])


def test_golden_best_box_overlap():
    """The best overlap is .840278 at threshold .299; at .2 it is .617347 of the largest contour, .790123 of all."""
    thresholds = np.arange(0, 1, 0.001)
    for largest, at_fifth in ((True, 0.617347), (False, 0.790123)):
        found = max_box_accuracy(GOLDEN_MAP, [GOLDEN], largest_only=largest, interval=0.001)
        assert found.values.item() == pytest.approx(0.840278, abs=1e-6)
        assert thresholds[int(found.curves[0].argmax())] == pytest.approx(0.299)
        assert found.curves[0, 200].item() == pytest.approx(at_fifth, abs=1e-6)


def test_golden_pixels():
    """PxAP is 92.211918 % at interval .001, the energy inside .748991, the rank accuracy .816832."""
    found = pxap(GOLDEN_MAP, [GOLDEN], interval=0.001)
    assert 100 * found.values.item() == pytest.approx(92.211918, abs=1e-5)
    assert energy_pointing_game(GOLDEN_MAP, [GOLDEN]).item() == pytest.approx(0.748991, abs=1e-6)
    assert relevance_rank_accuracy(GOLDEN_MAP, [GOLDEN]).item() == pytest.approx(0.816832, abs=1e-6)


# ---------------------------------------------------------------- MaxBoxAcc and PxAP, slowly


def slow_overlap(box, truth):
    """IoU of two boxes whose right and bottom edges belong to them."""
    width = max(0, min(box[2], truth[2]) - max(box[0], truth[0]) + 1)
    height = max(0, min(box[3], truth[3]) - max(box[1], truth[1]) + 1)
    area = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, truth))
    return width * height / (area - width * height)


def slow_overlap_curve(map_, truths, thresholds, largest_only):
    """Boxes from connected regions in place of contours; the regions have no holes and one is clearly the largest."""
    low, high = map_.min(), map_.max()
    levels = np.floor((map_ - low) / (high - low) * np.float32(255)).astype(int)
    height, width = map_.shape
    curve = []
    for threshold in thresholds:
        region, number = scipy.ndimage.label(levels > int(threshold * levels.max()), np.ones((3, 3)))
        boxes = []
        for rows, columns in scipy.ndimage.find_objects(region):
            boxes.append(
                [columns.start, rows.start, min(columns.stop, width - 1), min(rows.stop, height - 1)]
            )  # fmt: skip
        if largest_only and boxes:
            sizes = [int((region == label).sum()) for label in range(1, number + 1)]
            boxes = [boxes[int(np.argmax(sizes))]]
        curve.append(max(slow_overlap(b, t) for b in boxes or [[0, 0, 0, 0]] for t in truths))
    return curve


WSOL_MAPS = torch.stack(
    [
        bumps((40, 48), (12, 14, 90, 1.0), (30, 36, 20, 0.9)),
        bumps((40, 48), (20, 40, 150, 1.0)),
        bumps((40, 48), (35, 5, 60, 1.0), (8, 30, 15, 0.5)),
    ]
)
WSOL_OBJECTS = [
    filled((40, 48), (4, 6, 20, 23), (26, 31, 35, 41)),
    filled((40, 48), (8, 28, 33, 47)),
    filled((40, 48), (2, 2, 12, 12)),
]


@pytest.mark.parametrize("largest", [True, False])
def test_box_overlaps_equal_connected_regions(largest):
    """Round regions without holes: contours and labeled regions give the same boxes at every threshold."""
    thresholds = np.arange(0, 1, 0.01)
    found = max_box_accuracy(WSOL_MAPS, WSOL_OBJECTS, largest_only=largest)
    assert found.curves.shape == (3, 100)
    for n in range(3):
        truths = WSOL_OBJECTS[n].boxes.int().tolist()
        slow = slow_overlap_curve(WSOL_MAPS[n].numpy(), truths, thresholds, largest)
        np.testing.assert_allclose(found.curves[n].numpy(), slow, atol=1e-6)
        assert found.values[n].item() == pytest.approx(max(slow), abs=1e-6)


def test_max_box_accuracy_has_one_threshold_for_all_images():
    """Each overlap d has its own best threshold, the same for all images: a loop over d, threshold and image."""
    curves = max_box_accuracy(WSOL_MAPS, WSOL_OBJECTS, largest_only=False).curves.numpy()
    for overlaps in ((0.5,), (0.3, 0.5, 0.7)):
        best = []
        for d in overlaps:
            best.append(max(sum(curves[n, t] >= d for n in range(3)) / 3 for t in range(100)))
        found = accuracy_at_best_threshold(curves, np.full(3, 1 / 3), overlaps)
        assert found == pytest.approx(sum(best) / len(best))
    assert accuracy_at_best_threshold(np.array([[0.6, 0.2], [0.1, 0.9]]), np.array([0.5, 0.5]), (0.5,)) == 0.5
    assert accuracy_at_best_threshold(np.array([[0.6, 0.2], [0.1, 0.9]]), np.array([0.25, 0.75]), (0.5,)) == 0.75


def test_a_region_that_fills_its_box_overlaps_it_wholly():
    """Right and bottom edges, exclusive in Objects, are those that the released code draws: a perfect map has 1."""
    objects = filled((30, 30), (5, 7, 14, 20))
    assert max_box_accuracy(objects.mask[None].float(), [objects], largest_only=True).values.item() == 1


def test_maps_are_enlarged_bicubically_for_boxes():
    """A small map is resized with OpenCV's bicubic rule before it is scaled and cut."""
    import cv2

    small = torch.rand(1, 5, 6)
    large = cv2.resize(small[0].numpy(), (48, 40), interpolation=cv2.INTER_CUBIC)
    assert large.shape == (40, 48)
    for function in (lambda m: max_box_accuracy(m, WSOL_OBJECTS[:1], largest_only=False),
                     lambda m: pxap(m, WSOL_OBJECTS[:1])):  # fmt: skip
        torch.testing.assert_close(function(small).curves, function(torch.from_numpy(large)[None]).curves)


def slow_pxap(maps, objects, interval):
    """Pool all pixels; fall from threshold to threshold; precision times gain of recall. In [0, 1]."""
    scores, inside = [], []
    for map_, present in zip(maps.numpy(), objects, strict=True):
        scores.append(((map_ - map_.min()) / (map_.max() - map_.min())).ravel())
        inside.append(present.mask.numpy().ravel())
    scores, inside = np.concatenate(scores), np.concatenate(inside)
    total, recall = 0.0, 0.0
    for threshold in [1.0, *np.arange(0, 1, interval)[::-1]]:
        taken = scores >= threshold
        if taken.any():
            gained = (taken & inside).sum() / inside.sum()
            total += (taken & inside).sum() / taken.sum() * (gained - recall)
            recall = gained
    return total


@pytest.mark.parametrize("interval", [0.01, 0.05])
def test_pxap_pools_all_images(interval):
    """The pooled value equals a plain loop over thresholds on all pixels at once, and is not the images' mean."""
    noisy = WSOL_MAPS + 0.2 * torch.rand(WSOL_MAPS.shape)
    found = pxap(noisy, WSOL_OBJECTS, interval)
    pooled = pixel_average_precision(found.curves.numpy(), np.full(3, 1 / 3))
    assert pooled == pytest.approx(slow_pxap(noisy, WSOL_OBJECTS, interval), abs=1e-9)
    for n in range(3):
        own = slow_pxap(noisy[n : n + 1], WSOL_OBJECTS[n : n + 1], interval)
        assert found.values[n].item() == pytest.approx(own, abs=1e-6)
    assert abs(pooled - found.values.mean().item()) > 1e-3


def test_flat_maps_count_as_zero_everywhere_in_pooled_metrics():
    """A flat or NaN map has no value of its own; its curves are a miss at every threshold, and pixels at 0."""
    bad = torch.stack([torch.full((40, 48), 0.7), torch.full((40, 48), float("nan"))])
    boxes = max_box_accuracy(bad, WSOL_OBJECTS[:2], largest_only=True)
    assert boxes.values.isnan().all()
    assert not boxes.curves.any()
    pixels = pxap(bad, WSOL_OBJECTS[:2])
    assert pixels.values.isnan().all()
    inside, outside = pixels.curves[0].chunk(2)
    assert inside[0] == WSOL_OBJECTS[0].mask.sum()
    assert outside[0] == (~WSOL_OBJECTS[0].mask).sum()
    assert not inside[1:].any()
    assert not outside[1:].any()


# ---------------------------------------------------------------- pointing games


def dot(size, row, column):
    map_ = torch.zeros(1, *size)
    map_[0, row, column] = 1
    return map_


@pytest.mark.parametrize(("row", "column", "hit"), [(25, 45, 0), (26, 45, 1), (30, 29, 1), (29, 29, 0)])
def test_pointing_game_tolerance_is_strict(row, column, hit):
    """Rows and columns 40-49: a distance of exactly 15 misses, 14 hits; diagonally 10, 11 hits and 11, 11 misses."""
    objects = filled((80, 80), (40, 40, 49, 49))
    assert pointing_game(dot((80, 80), row, column), [objects]).item() == hit
    mirrored = 89 - row, 89 - column
    assert pointing_game(dot((80, 80), *mirrored), [objects]).item() == hit


def slow_resize(map_, size):
    """Bilinear with half-pixel centres and edges held, in loops."""
    height, width = map_.shape
    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = y - top, x - left
            out[row, column] = (
                (1 - a) * (1 - b) * map_[top, left] + (1 - a) * b * map_[top, right]
                + a * (1 - b) * map_[down, left] + a * b * map_[down, right]
            )  # fmt: skip
    return out


def slow_pointing(map_, present, tolerance):
    """TorchRay's rule: first largest value, any pixel of the mask nearer than the tolerance."""
    point = np.unravel_index(np.argmax(map_), map_.shape)
    hit = False
    for row, column in np.argwhere(present.mask.numpy()):
        distance = (row - point[0]) ** 2 + (column - point[1]) ** 2
        hit = hit or distance < tolerance**2 or distance == 0
    return float(hit)


@pytest.mark.parametrize("tolerance", [0, 1, 4, 15])
def test_pointing_game_equals_a_slow_one_at_the_photos_size(tolerance):
    """Small maps are resized to each image's own size; twenty random maps hit where plain loops say."""
    maps = torch.rand(20, 6, 7)
    sizes = [(40, 60), (33, 21)] * 10
    objects = [filled(size, (10, 12, 17, 17), (2, 3, 4, 5)) for size in sizes]
    found = pointing_game(maps, objects, tolerance)
    slow = [
        slow_pointing(slow_resize(m.numpy(), size), o, tolerance)
        for m, o, size in zip(maps, objects, sizes, strict=True)
    ]
    assert found.tolist() == slow
    assert tolerance == 15 or 0 <= sum(slow) < 20


def test_upsampling_equals_a_slow_one():
    """Enlarging and reducing, whole and broken factors."""
    for size in ((8, 8), (13, 29), (3, 4), (6, 7)):
        map_ = torch.randn(1, 6, 7)
        found = metrics.upsample(map_, size)[0].numpy()
        np.testing.assert_allclose(found, slow_resize(map_[0].numpy(), size), atol=1e-6)


def test_the_first_of_equal_peaks_counts():
    """Two equal largest values: the first in reading order decides, in or out."""
    map_ = dot((8, 10), 1, 2)
    map_[0, 6, 6] = 1
    assert peak_inside(map_, [filled((8, 10), (1, 2, 2, 3))]).item() == 1
    assert peak_inside(map_, [filled((8, 10), (5, 5, 7, 7))]).item() == 0


def test_the_peak_is_inside_up_to_the_last_row_and_column():
    """Right and bottom edges of boxes are exclusive."""
    objects = Objects.from_boxes([[2, 1, 6, 3]], (8, 10))
    for row, column, expected in [(1, 2, 1), (2, 5, 1), (3, 5, 0), (2, 6, 0), (0, 2, 0)]:
        assert peak_inside(dot((8, 10), row, column), [objects]).item() == expected


def test_a_trial_of_difficult_objects_alone_is_left_out():
    """VOC's flag: all difficult gives NaN; one that is not keeps the trial, and the union of all masks counts."""
    corners = (2, 2, 5, 5), (20, 20, 25, 25)
    maps = dot((60, 60), 3, 3)
    assert pointing_game(maps, [filled((60, 60), *corners, difficult=[True, True])]).isnan().all()
    assert pointing_game(maps, [filled((60, 60), *corners, difficult=[True, False])], 0).item() == 1


def test_the_difficult_set_needs_a_small_object_and_another_class():
    """Less than a quarter of the image, strictly, and another class present; else NaN."""
    size, other = (20, 20), filled((20, 20), (15, 15, 19, 19))
    quarter, less = filled(size, (0, 0, 9, 9)), filled(size, (0, 0, 9, 8))
    maps = dot(size, 3, 3).repeat(4, 1, 1)
    maps[3] = dot(size, 19, 19)
    found = pointing_game_difficult(maps, [quarter, less, less, less], [other, None, other, other], tolerance=2)
    assert found.isnan().tolist() == [True, True, False, False]
    assert found[2:].tolist() == [1, 0]


# ---------------------------------------------------------------- energy, ranks, overlap


def test_energy_and_rank_accuracy_equal_slow_ones():
    """Signed maps with ties, overlapping objects that count once: plain sums and a plain sort."""
    for seed in range(5):
        map_ = torch.randint(-3, 4, (1, 9, 11), generator=torch.Generator().manual_seed(seed)).float()
        objects = filled((9, 11), (1, 1, 4, 5), (3, 4, 7, 8))
        positive = inside = 0.0
        for row in range(9):
            for column in range(11):
                value = max(0.0, float(map_[0, row, column]))
                positive += value
                inside += value * bool(objects.mask[row, column])
        assert energy_pointing_game(map_, [objects]).item() == pytest.approx(inside / positive, abs=1e-6)
        flat, mask = map_.flatten().tolist(), objects.mask.flatten().tolist()
        order = sorted(range(99), key=lambda i: (-flat[i], i))[: sum(mask)]
        expected = sum(mask[i] for i in order) / sum(mask)
        assert relevance_rank_accuracy(map_, [objects]).item() == pytest.approx(expected, abs=1e-6)


def test_a_uniform_map_has_the_area_share_as_energy():
    """Spread evenly, the energy inside is the objects' share of the area; without positive values there is none."""
    objects = filled((8, 10), (1, 2, 2, 5))
    assert energy_pointing_game(torch.ones(1, 8, 10), [objects]).item() == pytest.approx(0.1)
    assert energy_pointing_game(-torch.ones(1, 8, 10), [objects]).isnan().all()


def test_best_iou_equals_brute_force_over_all_thresholds():
    """Every value of the map as a threshold, ties going together."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        maps = torch.stack([torch.randn(9, 11, generator=generator),
                            torch.randint(0, 4, (9, 11), generator=generator).float()])  # fmt: skip
        objects = filled((9, 11), (1, 1, 4, 5), (3, 4, 7, 8))
        for map_, found in zip(maps, best_iou(maps, [objects, objects]).tolist(), strict=True):
            best = 0.0
            for threshold in map_.unique().tolist():
                region = map_ >= threshold
                best = max(best, float((region & objects.mask).sum() / (region | objects.mask).sum()))
            assert found == pytest.approx(best, abs=1e-6)
    assert best_iou(objects.mask[None].float(), [objects]).item() == 1


# ---------------------------------------------------------------- several objects


def test_object_recall_and_all_found_equal_slow_ones():
    """Exactly round(share H W) top pixels, ties in reading order, crowds left out: plain loops."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        map_ = torch.randint(0, 12, (1, 9, 11), generator=generator).float()
        objects = filled(
            (9, 11), (0, 0, 1, 1), (4, 4, 5, 5), (7, 8, 8, 10), (3, 0, 8, 3), single=[True, True, True, False]
        )
        for share in (0.05, 0.2, 0.37):
            flat = map_.flatten().tolist()
            top = sorted(range(99), key=lambda i: (-flat[i], i))[: round(share * 99)]
            found = [any(bool(mask.flatten()[i]) for i in top) for mask in objects.masks[:3]]
            assert object_recall(map_, [objects], share).item() == pytest.approx(sum(found) / 3)
            assert all_objects_found(map_, [objects], share).item() == float(all(found))


def test_recall_of_a_image_of_crowds_alone_has_no_value():
    """Crowds are no single objects: NaN, for recall and for all found."""
    objects = filled((9, 11), (0, 0, 1, 1), single=[False])
    for function in (object_recall, all_objects_found):
        assert function(torch.rand(1, 9, 11), [objects]).isnan().all()


def test_energy_confusion_equals_a_slow_one():
    """Positive values on other classes only, over those on any object; shared pixels are the class's own."""
    own, other = filled((9, 11), (1, 1, 4, 5)), filled((9, 11), (3, 4, 7, 8), (0, 9, 1, 10))
    map_ = torch.randn(1, 9, 11)
    right = wrong = 0.0
    for row in range(9):
        for column in range(11):
            value = max(0.0, float(map_[0, row, column]))
            if own.mask[row, column]:
                right += value
            elif other.mask[row, column]:
                wrong += value
    assert energy_confusion(map_, [own], [other]).item() == pytest.approx(wrong / (right + wrong), abs=1e-6)
    assert energy_confusion(map_, [own], [None]).isnan().all()
    assert energy_confusion(-torch.ones(1, 9, 11), [own], [other]).isnan().all()


def test_a_map_of_nothing_known_confuses_by_area():
    """A uniform map gets the other classes' share of the annotated area."""
    own, other = filled((9, 11), (0, 0, 1, 4)), filled((9, 11), (5, 0, 7, 9))
    assert energy_confusion(torch.ones(1, 9, 11), [own], [other]).item() == pytest.approx(30 / 40)


def test_energy_confusion_pairs_by_position():
    """The same Objects may stand twice, with different others: each map is scored against its own partner."""
    own, near, far = (filled((9, 11), corner) for corner in ((0, 0, 1, 4), (5, 0, 7, 9), (8, 0, 8, 0)))
    maps = torch.ones(2, 9, 11)
    together = energy_confusion(maps, [own, own], [near, far])
    alone = [energy_confusion(maps[:1], [own], [other]).item() for other in (near, far)]
    assert together.tolist() == pytest.approx(alone)


def test_grid_pointing_is_the_share_in_the_cells():
    """On a 2x2 grid: positive values in the class's cell over all; none at all scores 0; evenly spread, a quarter."""
    cell = filled((8, 8), (0, 4, 3, 7))
    map_ = torch.randn(1, 8, 8)
    expected = float(map_[0, :4, 4:].clamp_min(0).sum() / map_.clamp_min(0).sum())
    assert grid_pointing(map_, [cell]).item() == pytest.approx(expected, abs=1e-6)
    assert grid_pointing(torch.ones(1, 8, 8), [cell]).item() == 0.25
    assert grid_pointing(-torch.ones(1, 8, 8), [cell]).item() == 0
    assert grid_pointing(torch.zeros(1, 8, 8), [cell]).item() == 0
    assert grid_pointing(map_ * 1e-10, [cell]).item() == 0


# ---------------------------------------------------------------- flat maps, registry, refusals

LOCAL = [name for name in metrics.names() if "objects" in metrics.get(name).arguments]


def score(name, maps, objects, others):
    metric = metrics.get(name)
    more = {"others": others} if "others" in metric.arguments else {}
    found = metric.function(maps=maps, objects=objects, **more)
    return found.values if isinstance(found, metrics.Scores) else found


@pytest.mark.parametrize("name", LOCAL)
def test_a_map_that_means_nothing_never_hits(name):
    """A NaN or infinite map has no value anywhere; a flat one none either, or the area share where energy is shared."""
    own, other = filled((16, 16), (0, 0, 5, 7)), filled((16, 16), (10, 10, 13, 13))
    bad = torch.zeros(6, 4, 4)
    bad[1], bad[2] = 3.0, -3.0
    bad[3], bad[4, 1, 2], bad[5, 0, 0] = float("nan"), float("inf"), float("-inf")
    values = score(name, bad, [own] * 6, [other] * 6)
    assert values[3:].isnan().all()
    if name.split(":")[0] in ("energy-pointing-game", "grid-pointing"):
        assert values[1].item() == pytest.approx(48 / 256)
        assert all(v.isnan() or v == 0 for v in values[[0, 2]])
    elif name.startswith("energy-confusion"):
        assert values[1].item() == pytest.approx(16 / 64)
        assert values[[0, 2]].isnan().all()
    else:
        assert values[:3].isnan().all()


@pytest.mark.parametrize("name", LOCAL)
def test_a_perfect_map_scores_best_and_each_map_on_its_own(name):
    """The mask itself reaches the better end, and its value does not change with the maps beside it."""
    own, other = filled((16, 16), (2, 2, 5, 7)), filled((16, 16), (10, 10, 13, 13))
    maps = torch.stack([own.mask.float(), torch.rand(16, 16)])
    objects = [filled((16, 16), (2, 2, 5, 7)), filled((16, 16), (1, 1, 3, 3))]
    values = score(name, maps, objects, [other, other])
    assert values[0].item() == (1.0 if metrics.get(name).higher_is_better else 0.0)
    for n in range(2):
        alone = score(name, maps[n : n + 1], objects[n : n + 1], [other])
        torch.testing.assert_close(alone[0], values[n])


@pytest.mark.parametrize("name", LOCAL)
def test_numbers_that_differ_are_refused(name):
    """Two maps and one Objects, or one map without its batch axis."""
    own = filled((16, 16), (2, 2, 5, 7))
    with pytest.raises(InvalidInputError):
        score(name, torch.rand(2, 4, 4), [own], [own])
    with pytest.raises(InvalidInputError):
        score(name, torch.rand(4, 4), [own] * 4, [own] * 4)


def test_an_empty_mask_is_refused():
    """Elsewhere an empty mask counts as a hit; here it is no object, nor are wrong shapes or none at all."""
    good = filled((8, 8), (0, 0, 1, 1), (4, 4, 5, 5))
    masks = good.masks.clone()
    masks[1] = False
    with pytest.raises(InvalidInputError, match="empty mask"):
        Objects(masks, good.boxes, good.difficult, good.single)
    for change in (
        {"masks": good.masks.float()},
        {"masks": good.masks[:1]},
        {"masks": good.masks[0]},
        {"boxes": good.boxes[:, :3]},
        {"boxes": good.boxes[0]},
        {"difficult": good.difficult[:1]},
        {"single": good.single[:1]},
    ):
        facts = {"masks": good.masks, "boxes": good.boxes, "difficult": good.difficult, "single": good.single}
        with pytest.raises(InvalidInputError):
            Objects(**(facts | change))
    with pytest.raises(InvalidInputError, match="boxes must have shape"):
        Objects.from_boxes(torch.zeros(0, 4), (8, 8))


def test_boxes_cover_at_least_one_pixel_and_stay_inside():
    """A box thinner than a pixel or over the edge still marks pixels of the grid; the union counts pixels once."""
    assert box_mask(torch.tensor([1.1, 1.1, 1.2, 1.2]), (4, 4)).sum() == 1
    assert box_mask(torch.tensor([3.0, 3.0, 9.0, 9.0]), (4, 4)).sum() == 1
    assert box_mask(torch.tensor([9.0, 9.0, 12.0, 12.0]), (4, 4))[3, 3]
    assert box_mask(torch.tensor([-5.0, -5.0, 9.0, 9.0]), (4, 4)).all()
    objects = Objects.from_boxes([[2, 1, 6, 3], [2, 1, 6, 3]], (8, 10))
    assert objects.mask.sum() == 8
    assert objects.size == (8, 10)
    assert objects.mask.equal(filled((8, 10), (1, 2, 2, 5)).mask)


@pytest.mark.parametrize("box", [[math.nan] * 4, [5, 5, 2, 2], [0, 0, math.inf, 4]])
def test_boxes_that_are_none_are_refused(box):
    """A box with NaN or infinity, or whose right edge lies left of its left one, is an error in the annotation."""
    with pytest.raises(InvalidInputError):
        Objects.from_boxes([box], (8, 8))


def test_impossible_shares_are_refused():
    """The share of top pixels lies inside (0, 1)."""
    for share in (0, 1, 1.5, -0.1):
        for function in (object_recall, all_objects_found):
            with pytest.raises(InvalidInputError, match="share"):
                function(torch.rand(1, 8, 8), [filled((8, 8), (0, 0, 1, 1))], share)


@pytest.mark.parametrize("function", [pointing_game_difficult, energy_confusion])
def test_missing_others_are_refused(function):
    """One entry of ``others`` a map, or a typed error."""
    own = filled((8, 8), (0, 0, 1, 1))
    with pytest.raises(InvalidInputError):
        function(torch.rand(2, 8, 8), [own, own], [None])
