"""Deletion and insertion against slow loops written from the definitions, golden numbers and torchcam itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from support import probability
from torch import nn

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.metrics import PerturbationProtocol, deletion, insertion, perturbation_curves
from xai_abn.metrics.curves import (
    BLACK,
    DELETION,
    RISE_BLUR,
    WIDE_BLUR,
    ZERO,
    area,
    at_most,
    equal,
    every,
    reversed_ranks,
    rise_kernel,
    scattered_ranks,
    stable_ranks,
)
from xai_abn.metrics.deletion_insertion import PROTOCOLS

BLACK_VALUE = torch.tensor([-2.1, -2.0, -1.8])


@pytest.fixture(autouse=True)
def _seeded():
    """Draw the same images and maps in every run."""
    torch.manual_seed(0)


# ---------------------------------------------------------------- the golden case: 16x16, p(x) = sum of w x


def golden_predict(inputs):
    """Logits whose softmax is (p, 1 - p), p = sum of w x, w proportional to 0.98^r in reading order."""
    weights = 0.98 ** torch.arange(256, dtype=torch.float64)
    p = (inputs.double().flatten(1) * weights / weights.sum()).sum(dim=1).clamp(0, 1)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def golden(counts, ranks=stable_ranks, even=False):
    """Curves of the golden case at given counts of pixels."""
    protocol = PerturbationProtocol("golden", ranks, lambda height, width: list(counts), ZERO, ZERO, even=even)
    falling = torch.arange(256, 0, -1.0).view(1, 16, 16)
    return perturbation_curves(golden_predict, torch.ones(1, 1, 16, 16), falling, torch.tensor([0]), protocol)


def whole_steps(step):
    return [*range(0, 256, step), 256]


@pytest.mark.parametrize(
    ("counts", "even", "deleted", "inserted", "points"),
    [
        (range(257), False, 0.1876531814, 0.8123468186, 257),
        (whole_steps(16), True, 0.1893272395, 1 - 0.1893272395, 17),
        (whole_steps(7), True, 0.1857941758, 1 - 0.1857941758, 38),
        (whole_steps(32), True, 0.1943343938, 1 - 0.1943343938, 9),
        (at_most(20)(16, 16), False, 0.1887560840, 1 - 0.1887560840, 21),
        (at_most(16)(16, 16), False, 0.1893272395, 1 - 0.1893272395, 17),
        (at_most(100)(16, 16), False, 0.1877057829, 1 - 0.1877057829, 87),
        (np.linspace(0, 256, 11).astype(int).tolist(), True, 0.1933636414, 0.8066363586, 11),
        ([i * 256 // 30 for i in range(31)], True, 0.1896715177, 0.8103284823, 31),
    ],
    ids=["exact", "rise-16", "rise-7", "rise-32", "torchcam-20", "torchcam-16", "torchcam-100", "xplique", "openvino"],
)
def test_the_golden_case_has_the_peers_digits(counts, even, deleted, inserted, points):
    """Each peer's rule, as a protocol of one's own, gives that peer's number; whole and blank are run once."""
    ranks = reversed_ranks if even else stable_ranks  # without ties, both are the same order
    curves = golden(counts, ranks, even)
    assert curves.deletion.shape == curves.insertion.shape == (1, points)
    assert area(curves.deletion, curves.axis).item() == pytest.approx(deleted, abs=2e-7)
    assert area(curves.insertion, curves.axis).item() == pytest.approx(inserted, abs=2e-7)
    assert curves.evaluations == 2 * points - 2


@pytest.mark.parametrize(
    ("counts", "deleted", "inserted"),
    [
        ((np.linspace(0, 1, 100) * 256).astype(int).tolist(), 0.1927130446, 0.8072869554),  # AttriBench
        ([*range(0, 201, 25), 256], 0.2457959315, None),  # PnPXAI: the last step jumps to all
    ],
)
def test_the_golden_curves_give_the_means_of_peers_that_take_no_area(counts, deleted, inserted):
    """Where a peer averages the points, the mean of our curve at its counts is its number."""
    curves = golden(counts)
    assert curves.deletion.double().mean().item() == pytest.approx(deleted, abs=2e-7)
    if inserted:
        # AttriBench's insertion keeps the top share: the same counts from the other end.
        assert (1 - curves.deletion.double()).mean().item() == pytest.approx(inserted, abs=2e-7)


def test_the_golden_curve_of_torchxai_stops_early():
    """Fifty steps of 5 of 256 pixels, never the last six: 0.1923096811 at equal widths."""
    curves = golden(range(0, 251, 5))
    assert area(curves.deletion, torch.linspace(0, 1, 51)).item() == pytest.approx(0.1923096811, abs=2e-7)
    assert area(curves.insertion, torch.linspace(0, 1, 51)).item() == pytest.approx(0.8076903189, abs=2e-7)


# ---------------------------------------------------------------- slow references


def small_net(classes=4, seed=0):
    """A seeded convolutional network whose answers depend on where things are."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, classes),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[-1].weight.mul_(12)
    return net


def folded_kernel():
    """RISE's kernel from first principles: a Gaussian of sigma 5, cut at 20, whose tails reflect inside 11 pixels."""
    taps = np.exp(-0.5 * (np.arange(-20, 21) / 5) ** 2)
    taps /= taps.sum()
    line = np.zeros(11)
    mirrored = [*range(11), *range(10, -1, -1)]  # d c b a | a b c d | d c b a has period 22
    for place in range(11):
        for offset in range(-20, 21):
            if mirrored[(place + offset) % 22] == 5:
                line[place] += taps[offset + 20]
    return np.outer(line, line)


def slow_rise_blur(image):
    """Correlate each channel with the folded kernel, zeros outside."""
    kernel = folded_kernel()
    padded = np.pad(image.double().numpy(), ((0, 0), (5, 5), (5, 5)))
    out = np.zeros(image.shape)
    for down in range(11):
        for right in range(11):
            out += kernel[down, right] * padded[:, down : down + image.shape[1], right : right + image.shape[2]]
    return torch.from_numpy(out).float()


def slow_wide_blur(image):
    """Gaussian of a twelfth of the shorter side, cut at two sigma, mirrored without repeating the edge."""
    sigma = min(image.shape[1:]) / 12
    radius = round(2 * sigma)
    taps = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)])
    taps /= taps.sum()
    out = image.double().numpy()
    for axis in (1, 2):
        out = scipy.ndimage.correlate1d(out, taps, axis=axis, mode="mirror")
    return torch.from_numpy(out).float()


def slow_order(map_, ties):
    """Pixels of a full-sized map (H, W), first to last, by sorting pairs of value and place."""
    values = map_.flatten().tolist()
    places = list(range(len(values)))
    if ties == "reversed":
        tie = {place: -place for place in places}
    elif ties == "scattered":
        shuffle = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).tolist()
        tie = {place: position for position, place in enumerate(shuffle)}
    else:
        tie = {place: place for place in places}
    return sorted(places, key=lambda place: (-values[place], tie[place]))


def slow_curve(predict, image, blank, order, counts, target, insert):
    """One image a count, pixel by pixel."""
    values = []
    for count in counts:
        start, finish = (blank, image) if insert else (image, blank)
        now = start.clone()
        for place in order[:count]:
            row, column = divmod(place, image.shape[2])
            now[:, row, column] = finish[:, row, column]
        values.append(probability(predict, now, target))
    return values


def trapezoid(values, axis):
    return sum((b + a) / 2 * (s - r) for a, b, r, s in zip(values[:-1], values[1:], axis[:-1], axis[1:], strict=True))


def even_area(values):
    """RISE's formula."""
    return (sum(values) - values[0] / 2 - values[-1] / 2) / (len(values) - 1)


def slow_protocol(name, predict, image, map_, target, insert):
    """The area of one full-sized map under a named protocol."""
    height, width = map_.shape
    pixels = height * width
    if name == "rise-2018":
        counts = [min(i * 8 * width, pixels) for i in range(math.ceil(pixels / (8 * width)) + 1)]
        blank = slow_rise_blur(image) if insert else torch.zeros_like(image)
        return even_area(
            slow_curve(predict, image, blank, slow_order(map_, "reversed"), counts, target, insert)
        )  # fmt: skip
    if name == "torchcam-20":
        size = (pixels + 19) // 20
        counts = [*range(0, pixels, size), pixels]
        blank, order = torch.zeros_like(image), slow_order(map_, "reading")
    else:
        counts = [round(i * pixels / 20) for i in range(21)]
        blank, order = slow_wide_blur(image), slow_order(map_, "scattered")
    values = slow_curve(predict, image, blank, order, counts, target, insert)
    return trapezoid(values, [count / pixels for count in counts])


def slow_pid(predict, image, map_, target, insert, step=10, patch=16):
    """LABN's rule: patches go whose value reaches that of the patch at place step (i + 1), counted from 0."""
    height, width = map_.shape
    blocks = [
        [float(map_[r : r + patch, c : c + patch].max()) for c in range(0, width, patch)]
        for r in range(0, height, patch)
    ]
    falling = sorted((value for row in blocks for value in row), reverse=True)
    values = []
    for i in range(math.ceil(len(falling) / step)):
        threshold = falling[min(step * (i + 1), len(falling) - 1)]
        now = image.clone()
        for row in range(height):
            for column in range(width):
                chosen = blocks[row // patch][column // patch] >= threshold
                if chosen != insert:
                    now[:, row, column] = BLACK_VALUE
        values.append(probability(predict, now, target))
    return even_area(values)


def test_rise_kernel_is_the_folded_gaussian():
    """Centre .0088326, middle of an edge .0082665, corner .0077366: not a truncated Gaussian of sigma 5."""
    kernel = rise_kernel()
    assert kernel.shape == (11, 11)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    assert kernel[5, 5].item() == pytest.approx(0.0088326, abs=5e-8)
    assert kernel[0, 5].item() == kernel[5, 0].item() == pytest.approx(0.0082665, abs=5e-8)
    assert kernel[0, 0].item() == pytest.approx(0.0077366, abs=5e-8)
    np.testing.assert_allclose(kernel.numpy(), folded_kernel(), atol=1e-8)


@pytest.mark.parametrize("size", [(24, 24), (20, 32), (33, 21)])
def test_blurs_equal_slow_ones(size):
    """RISE's blur pads with zeros and so darkens edges; the wide one mirrors and keeps a constant image as it is."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    rise, wide = (blank.make(images, torch.zeros(3)) for blank in (RISE_BLUR, WIDE_BLUR))
    for n in range(2):
        torch.testing.assert_close(rise[n], slow_rise_blur(images[n]), atol=1e-6, rtol=0)
        torch.testing.assert_close(wide[n], slow_wide_blur(images[n]), atol=1e-6, rtol=0)
    ones = torch.ones(1, 3, *size)
    torch.testing.assert_close(WIDE_BLUR.make(ones, torch.zeros(3)), ones)
    assert RISE_BLUR.make(ones, torch.zeros(3))[0, 0, 0, 0] < 0.4


@pytest.mark.parametrize("name", ["xai-abn", "rise-2018", "torchcam-20"])
@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_pixel_protocols_equal_slow_loops(name, size):
    """Three-channel images, maps with many ties and maps to enlarge: pixel-by-pixel loops give the same areas."""
    generator = torch.Generator().manual_seed(5)
    net, images = small_net(), torch.randn(2, 3, *size, generator=generator)
    tied = torch.randint(0, 4, (1, *size), generator=generator).float()
    small = F.interpolate(torch.rand(1, 1, 5, 5, generator=generator), size, mode="bilinear")[0]
    maps, targets = torch.cat([tied, small]), torch.tensor([1, 3])
    for function, insert in ((deletion, False), (insertion, True)):
        found = function(net, images, maps, targets, name)
        for n in range(2):
            expected = slow_protocol(name, net, images[n], maps[n], int(targets[n]), insert)
            assert found[n].item() == pytest.approx(expected, abs=1e-6)


def test_small_maps_are_enlarged_before_ranking():
    """A 5x5 map scores what its bilinear enlargement to the input's size scores."""
    net, images = small_net(), torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(6))
    maps, targets = torch.rand(2, 5, 5), torch.tensor([0, 2])
    large = F.interpolate(maps[:, None], (24, 20), mode="bilinear", align_corners=False)[:, 0]
    for name in ("xai-abn", "rise-2018", "torchcam-20"):
        torch.testing.assert_close(
            deletion(net, images, maps, targets, name), deletion(net, images, large, targets, name)
        )


def test_pid_equals_slow_loops():
    """Patches by their largest value, ties together, onto black, eleven and then ten more: LABN's numbers."""
    generator = torch.Generator().manual_seed(7)
    net, images = small_net(), torch.randn(3, 3, 96, 80, generator=generator)
    maps = torch.rand(3, 96, 80, generator=generator)
    maps[1] = torch.randint(0, 3, (6, 5), generator=generator).float().repeat_interleave(16, 0).repeat_interleave(16, 1)
    maps[2] = (maps[2] > 0.997).float()
    targets = torch.tensor([2, 1, 0])
    for function, insert in ((deletion, False), (insertion, True)):
        found = function(net, images, maps, targets, "pid-2022", black=BLACK_VALUE)
        for n in range(3):
            expected = slow_pid(net, images[n], maps[n], int(targets[n]), insert)
            assert found[n].item() == pytest.approx(expected, abs=1e-6)


def test_pid_starts_with_eleven_patches_and_ends_with_all():
    """At 224 pixels LABN's twenty points are 11, 21 ... 191 and 196 of 196 patches."""
    assert PROTOCOLS["pid-2022"].counts(224, 224) == [*range(11, 192, 10), 196]


def test_pid_refuses_images_of_ten_patches_or_fewer():
    """An image of 48x48 has nine patches, hence one point, and no area under it."""
    images, maps = torch.randn(1, 3, 48, 48), torch.rand(1, 6, 6)
    with pytest.raises(InvalidInputError):
        insertion(small_net(), images, maps, torch.tensor([0]), "pid-2022", black=BLACK_VALUE)


@pytest.mark.parametrize(
    ("ranks", "ties"), [(stable_ranks, "reading"), (reversed_ranks, "reversed"), (scattered_ranks, "scattered")]
)
def test_ranks_invert_the_sorted_order(ranks, ties):
    """The pixel at place k of a plain sort has rank k, ties as the rule says, two maps at once."""
    maps = torch.randint(0, 3, (2, 7, 9), generator=torch.Generator().manual_seed(8)).float()
    found = ranks(maps)
    for n in range(2):
        assert found[n][slow_order(maps[n], ties)].tolist() == list(range(63))


def test_steps_of_the_counting_rules():
    """Steps of a size, at most so many and exactly so many; the last count is always every pixel."""
    assert every(100)(16, 16) == [0, 100, 200, 256]
    assert at_most(20)(224, 224)[1] == math.ceil(224 * 224 / 20)
    assert len(at_most(20)(224, 224)) == 21
    assert len(at_most(1000)(224, 224)) == 985
    assert len(every(1792)(224, 224)) == 29
    assert equal(20)(224, 224)[::10] == [0, 25088, 50176]
    assert max(np.diff(equal(30)(16, 16))) - min(np.diff(equal(30)(16, 16))) == 1


# ---------------------------------------------------------------- torchcam itself


@pytest.mark.filterwarnings("ignore")
def test_torchcams_own_metric_equals_torchcam_20():
    """DeletionInsertionMetric of torchcam 0.5 gives our means on its own maps, which explain the softmax."""
    metrics = pytest.importorskip("torchcam.metrics")
    from torchcam.methods import GradCAM

    net, images = small_net(seed=1), torch.randn(5, 3, 40, 36, generator=torch.Generator().manual_seed(9))
    targets = net(images).argmax(dim=1)
    with GradCAM(net, "2") as extractor:
        theirs = metrics.DeletionInsertionMetric(extractor, lambda logits: logits.softmax(dim=-1))
        theirs.update(images)
        scores = net(images).softmax(dim=-1)
        maps = extractor.fuse_cams(extractor(targets.tolist(), scores)).detach()
    ours = [f(net, images, maps, targets, "torchcam-20") for f in (deletion, insertion)]
    assert ours[0].mean().item() == pytest.approx(theirs.summary()["deletion_auc"], abs=1e-6)
    assert ours[1].mean().item() == pytest.approx(theirs.summary()["insertion_auc"], abs=1e-6)


# ---------------------------------------------------------------- several maps, layouts, batches, flat maps


class Counted:
    """A network that remembers the batches it was given."""

    def __init__(self, predict):
        self.predict, self.sizes, self.layouts = predict, [], []

    def __call__(self, inputs):
        self.sizes.append(len(inputs))
        self.layouts.append(inputs.is_contiguous(memory_format=torch.channels_last))
        return self.predict(inputs)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_several_maps_equal_one_by_one_at_less_cost(name):
    """M maps and targets an image score as alone; whole and blank images are shared, so that fewer are run."""
    generator = torch.Generator().manual_seed(10)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    maps, targets = torch.rand(2, 3, 8, 8, generator=generator), torch.tensor([[0, 1, 2], [3, 0, 1]])
    together, alone = Counted(small_net()), Counted(small_net())
    protocol = PROTOCOLS[name]
    found = perturbation_curves(together, images, maps, targets, protocol, black=BLACK_VALUE)
    for m in range(3):
        one = perturbation_curves(alone, images, maps[:, m], targets[:, m], protocol, black=BLACK_VALUE)
        torch.testing.assert_close(found.deletion[:, m], one.deletion, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.insertion[:, m], one.insertion, atol=1e-6, rtol=0)
    assert found.evaluations == sum(together.sizes) < sum(alone.sizes)


def test_the_cost_is_what_the_points_need():
    """N images, M maps, T points: 2 N M (T - 2) inner ones, N whole, and the blanks: one of zero, N blurred."""
    images, maps = torch.randn(3, 3, 32, 32), torch.rand(3, 2, 4, 4)
    targets = torch.zeros(3, 2, dtype=torch.long)
    for name, points, blanks in (("torchcam-20", 21, 1), ("xai-abn", 21, 3), ("rise-2018", 5, 1 + 3)):
        net = Counted(small_net())
        found = perturbation_curves(net, images, maps, targets, PROTOCOLS[name])
        assert found.deletion.shape == (3, 2, points)
        assert sum(net.sizes) == found.evaluations == 2 * 3 * 2 * (points - 2) + 3 + blanks
    net = Counted(small_net())
    deletion(net, images, maps[:, 0], targets[:, 0], "torchcam-20")
    assert sum(net.sizes) == 3 * (21 - 2) + 3 + 1


def test_channels_last_inputs_stay_so():
    """Images reach the network in the layout that the inputs have; the values are the same."""
    images, maps, targets = torch.randn(2, 3, 32, 24), torch.rand(2, 4, 4), torch.tensor([0, 1])
    plain, last = Counted(small_net()), Counted(small_net())
    expected = insertion(plain, images, maps, targets, "rise-2018")
    found = insertion(last, images.contiguous(memory_format=torch.channels_last), maps, targets, "rise-2018")
    assert all(last.layouts)
    assert not any(plain.layouts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_batch_size_does_not_matter():
    """Batches of 1, 7 and 500 give the same values, and no batch is larger than allowed."""
    images, maps, targets = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4), torch.tensor([0, 1])
    expected = deletion(small_net(), images, maps, targets)
    for size in (1, 7, 500):
        net = Counted(small_net())
        found = deletion(net, images, maps, targets, batch_size=size)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert max(net.sizes) <= size


def test_a_images_value_does_not_depend_on_the_others():
    """An image alone scores what it scores in a batch, under every protocol."""
    images, maps, targets = torch.randn(3, 3, 64, 64), torch.rand(3, 4, 4), torch.tensor([0, 1, 2])
    for name in PROTOCOLS:
        all_three = insertion(small_net(), images, maps, targets, name, black=BLACK_VALUE)
        last = insertion(small_net(), images[2:], maps[2:], targets[2:], name, black=BLACK_VALUE)
        torch.testing.assert_close(last, all_three[2:], atol=1e-6, rtol=0)


def test_flat_and_nan_maps_have_no_value_and_cost_nothing():
    """They give NaN values and curves without running the network; usable maps beside them are scored."""

    def refuse(inputs):
        raise AssertionError("the network was run")

    bad = torch.zeros(3, 4, 4)
    bad[1], bad[2, 0, 0] = 7.0, float("nan")
    images, targets = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    for name in PROTOCOLS:
        curves = perturbation_curves(refuse, images, bad, targets, PROTOCOLS[name], black=BLACK_VALUE)
        assert curves.evaluations == 0
        assert curves.deletion.isnan().all()
        assert curves.insertion.isnan().all()
        mixed = bad.clone()
        mixed[1] = torch.rand(4, 4)
        net = Counted(small_net())
        values = deletion(net, images, mixed, targets, name, black=BLACK_VALUE)
        assert values.isnan().tolist() == [True, False, True]
        alone = deletion(small_net(), images[1:2], mixed[1:2], targets[1:2], name, black=BLACK_VALUE)
        torch.testing.assert_close(values[1:2], alone, atol=1e-6, rtol=0)


def test_closed_form_of_a_pixel_sum():
    """If p is the sum of the values left, the value of rank k counts for (k + 1/2) / N of it under deletion."""
    values = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(11)).double()
    values /= values.sum()

    def pixel_sum(inputs):
        p = inputs.double().sum(dim=(1, 2, 3)).clamp(0, 1)
        return torch.stack([p.log(), (1 - p).log()], dim=1)

    protocol = PerturbationProtocol("all", stable_ranks, every(1), ZERO, ZERO)
    place = (torch.arange(99) + 0.5) / 99
    for sign, descending in ((1, True), (-1, False)):
        ordered = values.flatten().sort(descending=descending).values
        expected = float((ordered * place).sum())
        target = torch.tensor([0])
        found = deletion(pixel_sum, values.float(), sign * values[0].float(), target, protocol)
        assert found.item() == pytest.approx(expected, abs=1e-6)
        found = insertion(pixel_sum, values.float(), sign * values[0].float(), target, protocol)
        assert found.item() == pytest.approx(1 - expected, abs=1e-6)


def test_black_is_painted_as_given():
    """A protocol on black blanks each channel to its own value."""
    seen = []

    def remember(inputs):
        seen.append(inputs.clone())
        return torch.zeros(len(inputs), 2)

    insertion(remember, torch.rand(1, 3, 32, 64), torch.rand(1, 2, 4), torch.tensor([0]),
              PerturbationProtocol("b", stable_ranks, every(1024), BLACK, BLACK), black=BLACK_VALUE)  # fmt: skip
    torch.testing.assert_close(seen[0][0], BLACK_VALUE.view(3, 1, 1).expand(3, 32, 64))


# ---------------------------------------------------------------- what is refused


def test_what_does_not_fit_is_refused():
    """Numbers that differ, a protocol on black without black, sides that patches do not fill, an unknown protocol."""
    net, images, maps, targets = small_net(), torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4), torch.tensor([0, 1])
    with pytest.raises(InvalidInputError, match="expected inputs"):
        deletion(net, images, maps[:1], targets)
    with pytest.raises(InvalidInputError, match="expected inputs"):
        deletion(net, images, maps, targets[:1])
    with pytest.raises(InvalidInputError, match="expected inputs"):
        deletion(net, images, maps[0], targets)
    with pytest.raises(InvalidInputError, match="targets"):
        deletion(net, images, maps[:, None].repeat(1, 3, 1, 1), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="black"):
        deletion(net, images, maps, targets, "pid-2022")
    with pytest.raises(InvalidInputError, match="multiples of the patch"):
        deletion(net, images[:, :, :60], maps, targets, "pid-2022", black=BLACK_VALUE)
    with pytest.raises(UnknownNameError, match="rise-2018"):
        deletion(net, images, maps, targets, "rise")


@pytest.mark.parametrize("bad", ["target -1", "target K", "batch size 0", "batch size -1", "curve"])
def test_bad_targets_batches_and_curves_are_refused(bad):
    """A target outside 0 ... K - 1, a batch size below 1 or an unknown curve is a typed error, not a number."""
    net, images, maps = small_net(), torch.randn(1, 3, 32, 32), torch.rand(1, 4, 4)
    target = torch.tensor([{"target -1": -1, "target K": 4}.get(bad, 0)])
    size = {"batch size 0": 0, "batch size -1": -1}.get(bad, 16)
    curves = ("deletion",) if bad == "curve" else (DELETION,)
    with pytest.raises(InvalidInputError):
        perturbation_curves(net, images, maps, target, PROTOCOLS["xai-abn"], curves, batch_size=size)
