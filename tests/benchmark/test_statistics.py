"""The statistics of a report against values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from xai_abn.benchmark import statistics

NAN = float("nan")


def scored(values, flawed, counts_as, images=(0, 0, 1)):
    return statistics.per_image(np.array(images), np.array(values), np.array(flawed), counts_as, 3)


def test_trials_of_a_image_are_averaged_first():
    """Two trials of one image weigh as much as the one of another; an image without any is NaN."""
    found = scored([0.2, 0.6, 1.0], [False] * 3, None)
    np.testing.assert_allclose(found.values, [0.4, 1.0, NAN])
    assert found.trials.tolist() == [2, 1, 0]
    assert found.flagged == 0


def test_flagged_maps_count_as_misses_where_the_metric_says_so():
    """A flat map counts as 0 if the metric says 0, also where it carries a value, and is flagged."""
    found = scored([1.0, 1.0, NAN], [False, True, True], 0.0)
    np.testing.assert_allclose(found.values, [0.5, 0.0, NAN])
    assert found.flagged == 2


def test_flagged_maps_are_left_out_where_the_metric_gives_them_no_value():
    """Without a value for flat maps they are flagged but not averaged."""
    found = scored([1.0, 0.0, 0.0], [False, True, True], None)
    np.testing.assert_allclose(found.values, [1.0, NAN, NAN])
    assert found.trials.tolist() == [1, 0, 0]
    assert found.flagged == 2


def test_a_value_that_is_missing_without_a_flaw_is_left_out():
    """A question that an image does not pose is no miss, even where flat maps are."""
    np.testing.assert_allclose(scored([NAN, 1.0, NAN], [False] * 3, 0.0).values, [1.0, NAN, NAN])


def test_equal_values_have_an_interval_of_no_width():
    """Resampling a constant gives the constant."""
    found = statistics.mean_interval(np.array([0.25, NAN, 0.25, 0.25]))
    assert (found.value, found.low, found.high, found.images) == (0.25, 0.25, 0.25, 3)


def test_one_image_has_a_mean_but_no_interval():
    """An interval needs two images, a mean one."""
    assert statistics.mean_interval(np.array([0.5])) == statistics.Estimate(0.5, None, None, 1)
    assert statistics.mean_interval(np.array([NAN])) == statistics.Estimate(None, None, None, 0)


def test_the_interval_is_the_same_each_time():
    """The resampling is seeded; another seed gives another interval."""
    values = np.random.default_rng(3).random(40)
    assert statistics.mean_interval(values) == statistics.mean_interval(values)
    assert statistics.mean_interval(values) != statistics.mean_interval(values, seed=1)


def test_the_interval_is_about_two_standard_errors_each_way():
    """For many images the percentile interval is the normal one, within the noise of 2000 resamples."""
    values = np.random.default_rng(0).normal(5, 2, 1000)
    found = statistics.mean_interval(values)
    error = values.std() / np.sqrt(1000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    """Of 300 samples of 60 hits and misses with p = 0.3, some 95 % of the intervals hold 0.3."""
    random = np.random.default_rng(0)
    found = [statistics.mean_interval((random.random(60) < 0.3).astype(float)) for _ in range(300)]
    covered = np.mean([f.low <= 0.3 <= f.high for f in found])
    assert 0.91 <= covered <= 0.985


def test_large_samples_are_resampled_in_parts(monkeypatch):
    """However small the parts, all 2000 resamples are drawn and their weights sum to 1."""
    monkeypatch.setattr(statistics, "_CHUNK", 700)
    weights = np.concatenate([*statistics._resampled(100, seed=0)])
    assert weights.shape == (2000, 100)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_a_mean_curve_is_the_mean_at_each_point_over_images():
    """Two trials of one image share its weight; the band at a point is that of the point's values."""
    curves = np.array([[0.0, 1.0], [1.0, 1.0], [0.1, 0.5]])
    ((mean, low, high),) = statistics.mean_curves([(curves, np.array([4, 4, 9]))])
    np.testing.assert_allclose(mean, [0.3, 0.75])
    first = statistics.mean_interval(np.array([0.5, 0.1]))
    assert (low[0], high[0]) == pytest.approx((first.low, first.high))


def test_a_value_of_the_whole_data_set_comes_from_weighted_curves():
    """With the weighted mean as aggregate it equals the mean over images, interval included."""
    curves = np.array([[0.0], [1.0], [0.1], [0.7]])
    found = statistics.aggregate_interval(lambda c, w: float(w @ c[:, 0]), curves, np.array([2, 2, 5, 8]))
    plain = statistics.mean_interval(np.array([0.5, 0.1, 0.7]))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert found.images == 3


def test_no_curve_gives_no_value():
    """A method without a single curve has no value of the data set."""
    assert statistics.aggregate_interval(lambda c, w: 1.0, np.zeros((0, 0)), np.zeros(0, int)).value is None


def test_values_of_the_whole_data_set_are_compared_on_common_images():
    """The difference uses only images that both methods have, and there is no test."""
    first = (np.array([[1.0], [0.5], [9.0]]), np.array([0, 1, 7]))
    second = (np.array([[5.0], [0.2], [0.2]]), np.array([8, 0, 1]))
    found = statistics.compare_aggregates(lambda c, w: float(w @ c[:, 0]), first, second)
    assert found.difference.value == pytest.approx(0.55)
    assert (found.difference.images, found.p, found.effect) == (2, None, None)


def test_six_photos_better_is_two_in_sixty_four():
    """All six differences of one sign, no ties: p = 2 / 2^6 and the effect is 1."""
    found = statistics.compare(np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6]), np.ones(6))
    assert found.p == pytest.approx(2 / 64)
    assert found.effect == pytest.approx(1)
    assert found.difference.value == pytest.approx(0.35)


def test_equal_methods_have_p_one():
    """No difference on any image is no evidence at all."""
    found = statistics.compare(np.array([0.1, NAN, 0.3]), np.array([0.1, 0.2, 0.3]))
    assert (found.p, found.effect, found.difference.value, found.difference.images) == (1.0, 0.0, 0.0, 2)


def test_methods_without_a_common_image_are_not_compared():
    """Nothing in common: no value, no p, no effect."""
    found = statistics.compare(np.array([0.1, NAN]), np.array([NAN, 0.2]))
    assert (found.p, found.effect, found.difference.value, found.difference.images) == (None, None, None, 0)


def test_rounding_errors_are_no_differences():
    """0.1 + 0.2 and 0.3 are a tie."""
    assert statistics.compare(np.array([0.1 + 0.2, 0.5]), np.array([0.3, 0.5])).p == 1.0


@pytest.mark.parametrize(
    ("differences", "effect"),
    [
        ([1, -2, 3, 4], (1 - 2 + 3 + 4) / 10),
        ([1, 1, -1], (2 + 2 - 2) / 6),
        ([0, 0, 1], 3 / 6),
        ([-5, -1], -1),
        ([0, 0], 0),
    ],
)
def test_the_effect_is_the_difference_of_the_rank_sums(differences, effect):
    """Favourable less unfavourable ranks over all ranks; ties share ranks, zeros count for neither."""
    assert statistics.rank_biserial(np.array(differences, float)) == pytest.approx(effect)


def test_holm_by_hand():
    """Of three: the smallest times 3, the next times 2, the last times 1 but not below the one before."""
    assert statistics.holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_metric_agrees_with_itself_and_contradicts_its_opposite():
    """Spearman is 1 for any increasing change of the values, -1 where the better end is the other."""
    values = np.random.default_rng(0).random((20, 3))
    assert statistics.agreement(values, values, True, True) == (pytest.approx(1), 20)
    assert statistics.agreement(values, values, True, False)[0] == pytest.approx(-1)
    assert statistics.agreement(values, -values, True, False)[0] == pytest.approx(1)


def test_hard_photos_do_not_make_metrics_agree():
    """Unrelated metrics that share only how hard each image is have about no agreement."""
    random = np.random.default_rng(0)
    hard = random.normal(0, 50, (400, 1))
    a, b = hard + random.random((400, 4)), hard + random.random((400, 4))
    assert abs(statistics.agreement(a, b, True, True)[0]) < 0.1


def test_photos_with_one_method_tell_nothing_of_agreement():
    """An image needs two methods scored by both metrics; without any there is no number."""
    a, b = np.array([[1.0, NAN], [0.5, 0.7]]), np.array([[1.0, 0.2], [NAN, 0.1]])
    assert statistics.agreement(a, b, True, True) == (None, 0)


def test_a_metric_that_never_varies_has_no_agreement():
    """Ranks of equal values mean nothing."""
    assert statistics.agreement(np.full((5, 2), 0.1), np.random.default_rng(0).random((5, 2)), True, True)[0] is None


def test_many_arrays_at_once_give_what_each_gives_alone():
    """Arrays of as many images share their draws; others, hits and misses and missing values keep theirs."""
    random = np.random.default_rng(0)
    columns = [random.random(n) for n in (30, 30, 17, 1, 0)] + [random.integers(0, 2, 30).astype(float)]
    columns[1][3] = np.nan
    for values, found in zip(columns, statistics.mean_intervals(columns), strict=True):
        alone = statistics.mean_interval(values)
        assert found.images == alone.images == np.isfinite(values).sum()
        ends = [(getattr(e, end) for end in ("value", "low", "high")) for e in (found, alone)]
        for one, other in zip(*ends, strict=True):
            assert (one is None and other is None) or one == pytest.approx(other, rel=1e-12)
    pairs = [(columns[0], columns[1]), (columns[0], columns[5]), (columns[2], columns[2]), (columns[4], columns[4])]
    for pair, found in zip(pairs, statistics.compare_all(pairs), strict=True):
        alone = statistics.compare(*pair)
        assert (found.p, found.effect, found.difference.images) == (alone.p, alone.effect, alone.difference.images)
        if alone.difference.images > 1:
            assert found.difference.low == pytest.approx(alone.difference.low, rel=1e-12)
    series = [(random.random((6, 4)), np.array([0, 0, 1, 2, 3, 4])), (random.random((5, 2)), np.arange(5))]
    for pair, found in zip(series, statistics.mean_curves(series), strict=True):
        (alone,) = statistics.mean_curves([pair])
        for ends, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(ends, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shift", "higher", "ahead"), [(0.1, True, True), (0.1, False, False), (-0.1, False, True), (0.0, True, False)]
)
def test_a_method_is_ahead_if_the_test_says_so(shift, higher, ahead):
    """In the better direction only, and not by chance."""
    others = np.random.default_rng(0).random(20)
    noise = np.random.default_rng(1).normal(0, 0.05, 20)
    assert statistics.is_ahead(others + shift + noise, others, higher, 0.05) == ahead
    assert not statistics.is_ahead(np.full(3, np.nan), np.ones(3), higher, 0.05)


@pytest.mark.parametrize("differences", [[1, 1, -1, 2, 2, 0, 3], [0, 0, 4], [2, 2, 2, 2, -2], [-1, 1]])
def test_p_of_few_tied_differences_counts_all_signs(differences):
    """Zeros keep their ranks and take no side; p is twice the share of signs whose rank sum is as far out."""
    differences = np.array(differences, float)
    ranks = stats.rankdata(np.abs(differences)) * (differences != 0)
    sums = np.array([ranks @ signs for signs in itertools.product((-1, 1), repeat=len(ranks))])
    tails = [(sign * sums >= sign * (ranks @ np.sign(differences))).mean() for sign in (-1, 1)]
    found = statistics.compare(differences, np.zeros(len(differences)))
    assert found.p == pytest.approx(min(1, 2 * min(tails)))
