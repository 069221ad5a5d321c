"""Statistical tests and intervals, checked by published values, by simulation and by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from resnetlib.analysis.significance import (
    Comparison,
    SeedStatistics,
    compare_networks,
    compare_predictions,
    compare_recipes,
    compare_seeds,
    compare_to_reference,
    format_p_value,
    format_points,
    holm,
    sampling_sd,
)
from resnetlib.evaluation import Evaluation


def evaluation(predictions, labels, classes=3):
    """Logits that name the predictions, a little different from one call to the next."""
    logits = torch.eye(classes)[torch.as_tensor(predictions)]
    return Evaluation(logits + 0.01 * torch.rand(()), torch.as_tensor(labels))


# Two networks ------------------------------------------------------------------------------------


def test_mcnemar_and_newcombe_match_the_textbook():
    """Cavo et al. 2012 as computed by Fagerland, Lydersen and Laake 2017, chapter 8."""
    result = Comparison(59, 6, 16, 80)
    assert result.p_value == pytest.approx(0.052479, abs=5e-7)
    assert result.difference == pytest.approx(-0.0621, abs=5e-5)
    assert result.interval == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert not result.distinguishable  # the exact test decides, also beside an interval without 0


def test_mcnemar_matches_another_known_table():
    assert Comparison(101, 121, 59, 33).p_value == pytest.approx(4.434e-6, rel=1e-3)


@pytest.mark.parametrize("table", [(101, 121, 59, 33), (59, 6, 16, 80), (700, 30, 31, 239)])
def test_p_value_is_that_of_statsmodels(table):
    both, first, second, neither = table
    result = mcnemar([[both, first], [second, neither]], exact=True)
    assert Comparison(*table).p_value == pytest.approx(result.pvalue)


def test_comparison_is_symmetric():
    one, other = Comparison(700, 90, 50, 160), Comparison(700, 50, 90, 160)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference
    assert one.interval == pytest.approx(tuple(-bound for bound in other.interval[::-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "shares"),
    [(10_000, (0.74, 0.07, 0.06, 0.13)), (450, (0.90, 0.04, 0.02, 0.04))],
)
def test_interval_covers_95_per_cent(images, shares):
    tables = np.random.default_rng(0).multinomial(images, shares, size=1000)
    true = shares[1] - shares[2]
    covered = [
        low <= true <= high for low, high in (Comparison(*t).interval for t in tables.tolist())
    ]
    assert 0.93 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize(
    "table", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (5, 0, 0, 5), (0, 5, 5, 0)]
)
def test_interval_of_extreme_tables_is_finite(table):
    result = Comparison(*table)
    low, high = result.interval
    assert -1 <= low <= result.difference <= high <= 1
    assert 0 <= result.p_value <= 1


def test_p_value_without_disagreement_is_1():
    assert Comparison(90, 0, 0, 10).p_value == 1


def test_compare_predictions_counts_images():
    labels = [0, 0, 1, 1, 2]
    result = compare_predictions(
        evaluation([0, 0, 1, 0, 1], labels), evaluation([0, 1, 0, 1, 0], labels), ("A", "B")
    )
    assert (result.both, result.only_first, result.only_second, result.neither) == (1, 2, 1, 1)
    assert result.accuracies == (0.6, 0.4)
    assert result.names == ("A", "B")


def test_verdict_names_the_better_network():
    result = Comparison(800, 90, 40, 70, ("A", "B")).verdict
    assert result.startswith("Distinguishable on these 1,000 images: A is better than B by 5.00")
    mirrored = Comparison(800, 40, 90, 70, ("A", "B")).verdict
    assert mirrored == result.replace("A is better than B", "B is better than A")


def test_verdict_without_a_significant_difference():
    result = Comparison(800, 60, 65, 75, ("A", "B")).verdict
    assert result.startswith("Not distinguishable on these 1,000 images: A minus B is −0.50 points")
    assert "exact McNemar p = 0.721" in result


def test_compare_predictions_refuses_other_test_sets():
    with pytest.raises(ValueError, match=r"different test sets \(2 and 3 images\)"):
        compare_predictions(evaluation([0, 1], [0, 1]), evaluation([0, 1, 2], [0, 1, 2]))
    with pytest.raises(ValueError, match="different test sets"):
        compare_predictions(evaluation([0, 1], [0, 1]), evaluation([0, 1], [0, 2]))


def test_compare_predictions_refuses_one_network_twice():
    one = evaluation([0, 1], [0, 1])
    with pytest.raises(ValueError, match="the same network twice"):
        compare_predictions(one, Evaluation(one.logits.clone(), one.labels.clone()))


# Several networks --------------------------------------------------------------------------------


@pytest.mark.slow
def test_holm_matches_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    p_values = np.random.default_rng(0).random(20) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_compare_to_reference_corrects_p_values():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=2000)
    some = [
        evaluation(np.where(rng.random(2000) < share, labels, (labels + 1) % 3), labels)
        for share in (0.8, 0.9, 0.81)
    ]
    first, others = some[0], {"better": some[1], "same": some[2]}
    table = compare_to_reference(first, others | {"copy": some[0]})
    assert list(table.index) == ["better", "same"]
    plain = compare_predictions(some[1], first)
    assert table.loc["better", "difference"] == plain.difference > 0.05
    assert (table.loc["better", "low"], table.loc["better", "high"]) == plain.interval
    assert table["significant"].tolist() == [True, False]
    assert table.loc["better", "p"] == 2 * plain.p_value < 0.05 < table.loc["same", "p"]


@pytest.mark.parametrize("table", [(9700, 6, 0, 294), (9700, 0, 6, 294)])
def test_verdict_gives_an_interval_that_reaches_zero_as_it_is(table):
    """Of few images the exact test is less conservative than the interval."""
    result = Comparison(*table)
    low, high = result.interval
    assert result.distinguishable and low < 0 < high
    assert "by 0.06 points (95 % interval 0.00 to 0.1" in result.verdict


# Recipes -----------------------------------------------------------------------------------------


def test_compare_seeds_gives_welchs_interval():
    result = compare_seeds([0.80, 0.81, 0.82], [0.83, 0.84, 0.85], ("A", "B"))
    # both standard deviations are 0.01, so 4 degrees of freedom, for which t is 2.776
    half = 2.776 * 0.01 * (2 / 3) ** 0.5
    assert result.interval == pytest.approx((-0.03 - half, -0.03 + half), abs=1e-5)
    assert result.verdict.splitlines() == [
        "The recipe B is better than A over these seeds by 3.00 points "
        "(95 % interval 0.73 to 5.27; Welch p = 0.021).",
        "A: 81.00 ± 1.00 % (n = 3)",
        "B: 84.00 ± 1.00 % (n = 3)",
    ]


def test_compare_seeds_allows_unequal_spreads():
    result = compare_seeds([0.80, 0.82, 0.84, 0.86], [0.90, 0.901])
    # Welch and Satterthwaite: standard error and degrees of freedom from both variances
    parts = np.array(
        [np.var([0.80, 0.82, 0.84, 0.86], ddof=1) / 4, np.var([0.9, 0.901], ddof=1) / 2]
    )
    freedom = parts.sum() ** 2 / (parts**2 / [3, 1]).sum()
    half = stats.t.ppf(0.975, freedom) * parts.sum() ** 0.5
    assert result.interval == pytest.approx((-0.0705 - half, -0.0705 + half))


def test_compare_seeds_of_overlapping_recipes():
    result = compare_seeds([0.80, 0.82], [0.81, 0.83]).verdict
    assert result.startswith("The recipes are not distinguishable over these seeds")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([0.8], [0.9, 0.91], "only one seed of A."),
        ([0.8], [0.9], "only one seed of A and of B."),
        ([0.8, 0.8], [0.9, 0.9], "zero spread."),
    ],
)
def test_compare_seeds_without_a_spread(first, second, reason):
    result = compare_seeds(first, second, ("A", "B"))
    assert (result.interval, result.p_value) == (None, None)
    assert result.verdict.splitlines()[0] == f"The recipes cannot be compared: {reason}"


def test_equal_accuracies_have_no_spread():
    """Of these three, numpy's standard deviation is 1e-16."""
    statistics = SeedStatistics((0.667,) * 3, sampling_sd=0.0)
    assert (statistics.sd, statistics.interval, statistics.excess_sd) == (0, None, 0)


def test_equal_accuracies_of_one_recipe_are_compared_without_a_warning(recwarn):
    assert compare_seeds([0.98, 0.98], [0.96, 0.97]).p_value == pytest.approx(0.205, abs=1e-3)
    assert not recwarn.list


def test_interval_narrows_with_more_seeds():
    widths = [np.ptp(compare_seeds([0.80, 0.82] * n, [0.81, 0.83] * n).interval) for n in (1, 2, 8)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


def test_compare_seeds_is_that_of_statsmodels():
    first, second = [0.80, 0.82, 0.84, 0.86], [0.90, 0.901, 0.93]
    result = compare_seeds(first, second)
    means = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    assert result.p_value == pytest.approx(means.ttest_ind(usevar="unequal")[1])
    assert result.interval == pytest.approx(means.tconfint_diff(usevar="unequal"))


@pytest.mark.parametrize("shift", [0.002, 0.005, 0.01, 0.03])
def test_seeds_to_settle_have_80_per_cent_power(shift):
    first = np.array([0.80, 0.81, 0.82])
    expected = TTestIndPower().solve_power(shift / 0.01, alpha=0.05, power=0.8)
    result = compare_seeds(first, first + shift, ("A", "B"))
    assert result.seeds_to_settle == np.ceil(expected)
    if not result.distinguishable:
        more = int(np.ceil(expected)) - 3
        assert f"a difference of this size: {more} of A and {more} of B." in result.verdict


def test_seeds_to_settle_of_unequal_spreads():
    """In simulated comparisons with that many seeds the test finds the difference in 80 %."""
    first, second = np.array([0.80, 0.81, 0.82]), np.array([0.815, 0.817])
    seeds = compare_seeds(first, second).seeds_to_settle
    rng = np.random.default_rng(0)
    samples = [
        rng.normal(values.mean(), values.std(ddof=1), (4000, seeds)) for values in (first, second)
    ]
    found = stats.ttest_ind(*samples, axis=1, equal_var=False).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_seeds_to_settle_of_a_difference_far_beyond_the_spread():
    """scipy's other tail is not a number there."""
    result = compare_seeds([0.9009, 0.8945], [0.9298, 0.9297, 0.9291], ("lite", "laptop"))
    assert result.seeds_to_settle == 3
    assert "a difference of this size: 1 of lite and 0 of laptop.\n" in result.verdict


def test_seeds_to_settle_of_equal_means_are_too_many():
    result = compare_seeds([0.80, 0.82], [0.80, 0.82])
    assert result.seeds_to_settle is None
    assert result.verdict.partition("\n")[0].endswith("of this size: more than 998 of each.")
    assert compare_seeds([0.80], [0.80, 0.82]).seeds_to_settle is None
    assert compare_seeds([0.80, 0.81], [0.90, 0.91]).more_seeds == ""


def test_seeds_that_did_not_settle_a_difference_are_too_few():
    """Two seeds against ten: `seeds_to_settle` counts on as many of each."""
    more = [0.9057, 0.9058, 0.906, 0.9062, 0.9063, 0.9065, 0.9066, 0.9068, 0.907, 0.9071]
    result = compare_seeds([0.8993, 0.9007], more, ("A", "B"))
    assert not result.distinguishable and result.seeds_to_settle == 2
    assert result.more_seeds == "1 of A and 0 of B"


# One recipe, many seeds --------------------------------------------------------------------------


def test_seed_statistics_have_students_interval():
    accuracies = (0.80, 0.82, 0.84, 0.87)
    seeds = SeedStatistics(accuracies)
    assert seeds.interval == pytest.approx(DescrStatsW(accuracies).tconfint_mean())
    assert (seeds.mean, seeds.sd) == pytest.approx((np.mean(accuracies), stats.tstd(accuracies)))
    single = SeedStatistics((0.8,))
    assert (single.mean, single.sd, single.interval, single.spread) == (0.8, None, None, "")
    assert SeedStatistics((0.8, 0.8)).interval is None  # chance: its width would be 0


def test_sampling_sd_is_the_spread_of_independent_predictions():
    """Images differ in difficulty; the standard deviation over many seeds is estimated from 5."""
    rng = np.random.default_rng(0)
    shares = rng.beta(4, 1, size=2000)
    true = np.sqrt((shares * (1 - shares)).sum()) / 2000
    accuracies = (rng.random((2000, 2000)) < shares).mean(1)
    assert accuracies.std() == pytest.approx(true, rel=0.05)
    assert sampling_sd(rng.random((5, 2000)) < shares) == pytest.approx(true, rel=0.05)
    assert sampling_sd(rng.random((1, 2000)) < shares) is None
    assert sampling_sd(np.ones((3, 10))) == 0


def test_sampling_sd_follows_the_formula():
    correct = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1]], dtype=bool)
    # pᵢ are 1, 1/3, 0, 2/3; n/(n - 1) is 3/2
    assert sampling_sd(correct) == pytest.approx((2 * (2 / 9) * 1.5) ** 0.5 / 4)


def test_spread_is_split_into_noise_and_real_differences():
    seeds = SeedStatistics((0.79, 0.80, 0.81, 0.82, 0.83), sampling_sd=0.006)
    assert seeds.excess_sd == pytest.approx((0.00025 - 0.006**2) ** 0.5)
    assert "over seeds 1.58 points: sampling noise of single predictions 0.60, real" in seeds.spread
    assert "1.46 (squares add)" in seeds.spread
    noisy = SeedStatistics((0.80, 0.81, 0.82), sampling_sd=0.006)  # χ² of 5.6, below 5.99
    assert noisy.excess_sd == 0
    assert "not distinguishable from the sampling noise" in noisy.spread


def test_chance_in_single_predictions_is_rarely_called_a_real_difference():
    """Of seeds that are equally good, in 5 % of samples."""
    rng = np.random.default_rng(0)
    found = []
    for n in (2, 3, 10) * 150:
        correct = rng.random((n, 4000)) < rng.beta(4, 1, size=4000)
        accuracies = tuple(correct.mean(1).tolist())
        found.append(SeedStatistics(accuracies, sampling_sd(correct)).excess_sd > 0)
    assert 0.02 < np.mean(found) < 0.08


# Many recipes against one ------------------------------------------------------------------------


def test_compare_recipes_is_dunnetts_test():
    """Dunnett 1955, breaking strength of cloth: three chemical treatments and a control."""
    control, others = [55, 47, 48], {"a": [55, 64, 64], "b": [55, 49, 52], "c": [50, 44, 41]}
    table = compare_recipes(control, others)
    assert table["difference"].tolist() == pytest.approx([11, 2, -5])
    # His table has 2.88 for three treatments and 8 degrees of freedom; the variance is 152/8.
    half = 2.88 * (19 * 2 / 3) ** 0.5
    for side in (table["high"] - table["difference"], table["difference"] - table["low"]):
        assert side.tolist() == pytest.approx([half] * 3, rel=0.002)
    assert table["significant"].tolist() == [True, False, False]
    result = stats.dunnett(*others.values(), control=control, random_state=1)
    assert table["p"].to_numpy() == pytest.approx(result.pvalue, abs=0.002)
    assert compare_recipes(control, others).equals(table)


@pytest.mark.parametrize(("sizes", "baseline"), [((3, 5, 8), 3), ((12,) * 5, 2), ((2,) * 12, 9)])
def test_dunnetts_p_values_are_scipys(sizes, baseline):
    """But for its random points."""
    random = np.random.default_rng(len(sizes))
    control, *groups = (random.normal(0.9, 0.01, count) for count in (baseline, *sizes))
    table = compare_recipes(control, {str(number): group for number, group in enumerate(groups)})
    expected = stats.dunnett(*groups, control=control, random_state=1).pvalue
    assert table["p"].tolist() == pytest.approx(expected.tolist(), abs=2e-3)


def test_recipes_with_equal_accuracies_have_equal_p():
    same = [0.915, 0.916, 0.917]
    table = compare_recipes([0.9100, 0.9101], {"a": same, "b": same})
    assert table.loc["a"].equals(table.loc["b"])
    assert table.loc["a", "p"] == pytest.approx(0.0013, abs=3e-4)


def test_compare_recipes_of_one_recipe_is_students_test():
    first, second = [0.80, 0.82, 0.84], [0.84, 0.85, 0.87, 0.86]
    table = compare_recipes(first, {"other": second})
    expected = stats.ttest_ind(second, first)
    assert table.loc["other", "p"] == pytest.approx(expected.pvalue, rel=1e-9)
    interval = tuple(expected.confidence_interval())
    assert tuple(table.loc["other", ["low", "high"]]) == pytest.approx(interval, rel=1e-9)


@pytest.mark.slow
def test_compare_networks_is_welchs_test_with_holms_correction():
    baseline = [0.80, 0.81, 0.82]
    others = {"a": [0.83, 0.86], "b": [0.90, 0.901, 0.902], "c": [0.80, 0.82], "single": [0.9]}
    table = compare_networks(baseline, others)
    assert list(table.index) == ["a", "b", "c"]
    tests = [stats.ttest_ind(others[name], baseline, equal_var=False) for name in table.index]
    assert table["p"].tolist() == pytest.approx(
        multipletests([test.pvalue for test in tests], method="holm")[1]
    )
    interval = tuple(tests[0].confidence_interval())
    assert tuple(table.loc["a", ["low", "high"]]) == pytest.approx(interval)
    assert table["significant"].tolist() == [False, True, False]


def test_dunnetts_intervals_follow_the_numbers_of_seeds():
    """A small baseline correlates the differences: scipy's intervals, which are drawn at random."""
    random = np.random.default_rng(0)
    control, *groups = (random.normal(0.9, 0.01, count) for count in (3, 12, 12, 12, 12))
    others = {str(number): values for number, values in enumerate(groups)}
    table = compare_recipes(control, others)
    expected = stats.dunnett(*groups, control=control, random_state=1).confidence_interval()
    assert table["low"].tolist() == pytest.approx(expected.low.tolist(), abs=3e-4)
    assert table["high"].tolist() == pytest.approx(expected.high.tolist(), abs=3e-4)


def test_accuracy_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a finite number"):
        compare_seeds([0.9, float("nan")], [0.91, 0.92])


@pytest.mark.parametrize("compare", [compare_recipes, compare_networks])
def test_comparison_with_a_baseline_needs_a_spread(compare):
    columns = ["difference", "low", "high", "p", "significant"]
    for baseline, others in (
        ([0.8], {"a": [0.8, 0.9]}),
        ([0.8, 0.9], {"a": [0.8]}),
        ([0.8, 0.8], {"a": [0.9, 0.9]}),
        ([0.8, 0.9], {}),
    ):
        table = compare(baseline, others)
        assert list(table.columns) == columns
        assert table.empty


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "< 0.001"),
        (0.0496, "0.0496"),
        (0.04998, "0.04998"),
        (0.05, "0.050"),
        (0.2, "0.200"),
    ],
)
def test_p_value_shows_whether_it_is_significant(value, text):
    assert format_p_value(value) == text


def test_points_have_a_sign_except_for_zero():
    points = [format_points(value) for value in (-0.0066, 0.0123, -1e-17)]
    assert points == ["−0.66", "+1.23", "+0.00"]
