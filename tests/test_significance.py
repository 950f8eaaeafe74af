"""Paired tests against McNemar's table, formulas written out, all subsets (Holm), and simulations of equal models."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import chi2, norm, ttest_rel
from scipy.stats import t as student_t

from kd_trainer.significance import SeedVariance, holm, kept_share, paired_test


def make_answers(runs, texts, seed, rate=0.8):
    """Random answers, `(runs, texts)`: whether a run has a text right."""
    return np.random.default_rng(seed).random((runs, texts)) < rate


def known(variance):
    """A variance over seeds that is known, and has no chance of the texts in it."""
    return SeedVariance(variance, variance, 10**9)


def z_squared(p):
    return norm.isf(p / 2) ** 2


@pytest.mark.parametrize("seed", range(8))
def test_one_run_of_each_is_mc_nemars_test_without_continuity_correction(seed):
    texts = 200 + 100 * seed
    one, two = make_answers(1, texts, seed, 0.8), make_answers(1, texts, 100 + seed, 0.74)
    better, worse = int((one & ~two).sum()), int((~one & two).sum())
    statistic = (better - worse) ** 2 / (better + worse)
    difference, p = paired_test(one, two)
    assert difference == pytest.approx((better - worse) / texts)
    # McNemar takes the variance about 0, as under the hypothesis, and this one about the mean, over n - 1: z² is
    # χ² (n - 1) / (n - χ²), which many texts make χ² of.
    assert z_squared(p) == pytest.approx(statistic * (texts - 1) / (texts - statistic), rel=1e-6)
    assert p == pytest.approx(chi2.sf(statistic, 1), rel=0.1, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_without_seed_variance_it_is_a_paired_t_test_on_the_shares(seed):
    one, two = make_answers(3, 400, seed), make_answers(2, 400, 50 + seed, 0.77)
    difference, p = paired_test(one, two)
    expected = ttest_rel(one.mean(axis=0), two.mean(axis=0))
    assert z_squared(p) == pytest.approx(expected.statistic**2, rel=1e-6)
    assert math.copysign(1, difference) == math.copysign(1, expected.statistic)


@pytest.mark.parametrize("runs", [(1, 1), (3, 3), (5, 2), (1, 4)])
@pytest.mark.parametrize("seed_variance", [0.0, 1e-5, 4e-4])
def test_it_equals_the_formula_written_out(runs, seed_variance):
    one, two = make_answers(runs[0], 250, 3), make_answers(runs[1], 250, 4, 0.75)
    shares = [
        sum(map(int, one[:, text])) / runs[0] - sum(map(int, two[:, text])) / runs[1] for text in range(one.shape[1])
    ]
    mean = math.fsum(shares) / 250
    variance = math.fsum((share - mean) ** 2 for share in shares) / 249 / 250
    variance += seed_variance / runs[0] + seed_variance / runs[1]
    difference, p = paired_test(one, two, known(seed_variance))
    assert difference == pytest.approx(mean) == pytest.approx(one.mean() - two.mean())
    assert p == pytest.approx(math.erfc(abs(mean) / math.sqrt(2 * variance)), rel=1e-6)
    assert isinstance(difference, float) and isinstance(p, float) and 0 <= p <= 1


def test_exchanging_the_two_changes_the_sign_alone():
    one, two = make_answers(3, 300, 1), make_answers(2, 300, 2)
    for variance in (0.0, 1e-4):
        difference, p = paired_test(one, two, known(variance))
        assert difference != 0 and paired_test(two, one, known(variance)) == (-difference, p)


def test_the_order_of_texts_and_of_runs_does_not_matter():
    one, two = make_answers(3, 300, 1), make_answers(2, 300, 2)
    order = np.random.default_rng(0).permutation(300)
    expected = pytest.approx(paired_test(one, two, known(1e-4)), rel=1e-9)
    assert paired_test(one[:, order], two[:, order], known(1e-4)) == expected
    assert paired_test(one[::-1], two[::-1], known(1e-4)) == expected
    # It is paired: another order on one side alone does matter.
    similar = one[:2] ^ make_answers(2, 300, 5, 0.03)
    assert paired_test(one, similar)[1] != pytest.approx(paired_test(one, similar[:, order])[1], rel=0.01)


@pytest.mark.parametrize("seed_variance", [0.0, 1e-3])
def test_the_same_answers_are_no_difference(seed_variance):
    answers = make_answers(3, 100, 0)
    assert paired_test(answers, answers, known(seed_variance)) == (0.0, 1.0)
    assert paired_test(answers[0], answers[:1], known(seed_variance)) == (0.0, 1.0)


def test_a_difference_on_every_text_is_as_likely_as_that_many_coins():
    for texts in (1, 2, 5, 50):  # two-sided: all heads or all tails
        difference, p = paired_test(np.ones((1, texts), bool), np.zeros((1, texts), bool))
        assert difference == 1.0 and p == pytest.approx(2 * 0.5**texts, rel=1e-12)
    assert 0 < paired_test(np.ones((1, 50), bool), np.zeros((1, 50), bool), known(0.1))[1] < 1


def test_the_more_seeds_differ_the_less_is_a_difference_worth():
    one, two = make_answers(2, 500, 7, 0.85), make_answers(2, 500, 8, 0.8)
    p_values = [paired_test(one, two, known(variance))[1] for variance in (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
    assert p_values == sorted(p_values) and len(set(p_values)) == len(p_values)
    assert {paired_test(one, two, known(variance))[0] for variance in (0, 1e-3)} == {paired_test(one, two)[0]}


@pytest.mark.parametrize("shapes", [((1, 10), (1, 11)), ((3, 10), (3, 9)), ((10,), (5,)), ((2, 10), (10, 2))])
def test_different_numbers_of_texts_are_refused(shapes):
    with pytest.raises(ValueError, match="texts: score both on the same ones") as caught:
        paired_test(*(np.ones(shape, bool) for shape in shapes))
    assert "\n" not in str(caught.value)


def simulate(generator, repeats=600, texts=400, runs=3, seed_spread=0.0, gap=0.0):
    """
    Yields `(answers, baseline_answers)` of two models that are equally good, but for `gap`: a text is as hard for both,
    and a run is as good as its seed makes it.
    """
    for _ in range(repeats):
        hardness = generator.beta(4, 1.2, texts)
        models = []
        for better in (gap, 0.0):
            luck = generator.normal(0, seed_spread, (runs, 1)) + better
            models.append(generator.random((runs, texts)) < np.clip(hardness + luck, 0, 1))
        yield models


def test_equal_models_are_told_apart_as_often_as_the_level_says():
    found = [paired_test(*models)[1] for models in simulate(np.random.default_rng(0), 1000, runs=1)]
    for level in (0.05, 0.2):
        assert abs(np.mean(np.array(found) < level) - level) < 4 * math.sqrt(level * (1 - level) / len(found))


def test_with_the_variance_of_seeds_lucky_seeds_are_no_finding():
    spread = 0.03
    without, given, pooled = [], [], []
    for models in simulate(np.random.default_rng(1), seed_spread=spread):
        without.append(paired_test(*models)[1] < 0.05)
        # Clipping takes a little off what a run's luck does to its accuracy.
        given.append(paired_test(*models, known((0.85 * spread) ** 2))[1] < 0.05)
        pooled.append(paired_test(*models, SeedVariance.pooled(models))[1] < 0.05)
    assert np.mean(without) > 0.12  # texts alone: seeds pass for the model
    assert 0.02 < np.mean(given) < 0.08
    # Four degrees of freedom are few: a normal distribution would find 9 % and more.
    assert np.mean(pooled) < 0.08


def test_few_degrees_of_freedom_are_satterthwaites():
    one, two = make_answers(3, 300, 1, 0.85), make_answers(2, 300, 2, 0.8)
    seeds, runs = SeedVariance(observed=3e-4, own=2e-4, freedom=3), 1 / 3 + 1 / 2
    texts = (one.mean(axis=0) - two.mean(axis=0)).var(ddof=1) / 300
    # The variance is a sum of 3e-4 * runs, known to 3 degrees of freedom, and of what is known exactly.
    variance = texts + 2e-4 * runs
    freedom = variance**2 / ((3e-4 * runs) ** 2 / 3)
    difference, p = paired_test(one, two, seeds)
    assert p == pytest.approx(2 * student_t.sf(abs(difference) / math.sqrt(variance), freedom))
    assert p > paired_test(one, two, known(2e-4))[1]


def test_a_real_difference_is_found():
    found = []
    for models in simulate(np.random.default_rng(2), 200, texts=2000, seed_spread=0.003, gap=0.05):
        difference, p = paired_test(*models, SeedVariance.pooled(models))
        found.append(p < 0.05 and difference > 0)
    assert np.mean(found) > 0.9


def test_pooled_variance_is_that_of_the_accuracies_less_the_chance_of_the_texts():
    rng = np.random.default_rng(3)
    # A row's seeds have accuracies of their own; whether a text is answered is chance besides.
    rows = [rng.random((seeds, 400)) < rng.normal(0.8, 0.05, (seeds, 1)) for seeds in (2, 5, 3)]
    freedom = 1 + 4 + 2
    between = sum(((row.mean(axis=1) - row.mean()) ** 2).sum() for row in rows) / freedom
    within = sum(((row - row.mean(axis=0)) ** 2).mean(axis=1).sum() for row in rows) / freedom
    found = SeedVariance.pooled(rows)
    assert found.own == pytest.approx(between - within / 400)
    assert found.observed == pytest.approx(between) and found.freedom == freedom
    single = rng.random((1, 400)) < 0.5
    assert SeedVariance.pooled([*rows, single]) == SeedVariance.pooled(rows)  # one seed says nothing


def test_pooled_variance_finds_the_spread_of_the_seeds_and_not_that_of_the_texts():
    rng = np.random.default_rng(4)
    for spread in (0.0, 0.02, 0.05):
        found = []
        for _ in range(300):
            texts = rng.random(500) * 0.4 + 0.5  # some texts are harder, for every seed
            rows = [rng.random((3, 500)) < texts + rng.normal(0, spread, (3, 1)) for _ in range(5)]
            found.append(SeedVariance.pooled(rows).own)
        # Never below 0, so that without any spread the mean is a little above it.
        assert np.mean(found) == pytest.approx(spread**2, rel=0.2, abs=6e-5)


@pytest.mark.parametrize("seeds", [[], [1], [1, 1, 1]])
def test_of_one_seed_each_nothing_is_known(seeds):
    assert SeedVariance.pooled([make_answers(runs, 50, 0) for runs in seeds]) == SeedVariance(0.0, 0.0, 0)


def closed_testing(p_values):
    """
    Holm's adjustment by its definition: a hypothesis falls when Bonferroni rejects every set of hypotheses that it
    belongs to.
    """
    adjusted = []
    for index in range(len(p_values)):
        sets = (
            subset
            for size in range(1, len(p_values) + 1)
            for subset in itertools.combinations(range(len(p_values)), size)
            if index in subset
        )
        adjusted.append(max(min(1.0, len(subset) * min(p_values[i] for i in subset)) for subset in sets))
    return adjusted


@pytest.mark.parametrize("size", range(8))
@pytest.mark.parametrize("largest", [1.0, 0.1])
def test_holm_equals_closed_testing(size, largest):
    generator = np.random.default_rng(size)
    for _ in range(5):
        p_values = (largest * generator.random(size)).round(2 if largest == 1.0 else 6).tolist()  # some are tied
        adjusted = holm(p_values)
        assert adjusted == pytest.approx(closed_testing(p_values))
        order = generator.permutation(size)
        assert holm([p_values[index] for index in order]) == pytest.approx([adjusted[index] for index in order])
        assert all(p <= other <= 1 for p, other in zip(p_values, adjusted, strict=True))
        by_size = [adjusted[index] for index in np.argsort(p_values, kind="stable")]
        assert by_size == sorted(by_size)


def test_holm_of_none_one_and_certain_ones():
    assert holm([]) == [] and holm([0.03]) == [0.03] and holm([1.0, 1.0]) == [1.0, 1.0]
    assert holm([0.0, 0.5, 0.0]) == [0.0, 0.5, 0.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]


def test_share_kept_is_the_ratio_of_the_accuracies_and_a_bootstrap_over_texts():
    one, two = make_answers(1, 600, 1, 0.8)[0], make_answers(1, 600, 2, 0.9)[0]
    share, low, high = kept_share(one, two)
    assert share == pytest.approx(one.mean() / two.mean())
    # Text by text instead of one draw of the four kinds of text.
    generator = np.random.default_rng(3)
    drawn = [generator.integers(600, size=600) for _ in range(4000)]
    expected = np.quantile([one[texts].mean() / two[texts].mean() for texts in drawn], [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.004)


def test_share_kept_is_paired():
    right = make_answers(1, 500, 0)[0]
    assert kept_share(right, right) == (1.0, 1.0, 1.0)  # whatever texts are drawn, both have the same ones right
    shuffled = np.random.default_rng(0).permutation(right)
    _, low, high = kept_share(right, shuffled)
    assert low < 0.95 and high > 1.05


def test_the_interval_of_the_share_covers_the_true_one():
    # Students that have nine of ten of the teacher's texts right, and one of ten of the others.
    true, covered = (0.9 * 0.8 + 0.1 * 0.2) / 0.8, 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        teacher = generator.random(400) < 0.8
        student = np.where(teacher, generator.random(400) < 0.9, generator.random(400) < 0.1)
        _, low, high = kept_share(student, teacher, draws=1000)
        covered += low <= true <= high
    assert 0.91 <= covered / 300 <= 0.985  # three standard errors about 0.95


def test_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to keep"):
        kept_share(np.ones(3, bool), np.zeros(3, bool))
    with pytest.raises(ValueError, match="3 and 4 texts"):
        kept_share(np.ones(3, bool), np.ones(4, bool))
    share, low, high = kept_share(np.zeros(3, bool), np.array([True, False, False]))
    assert share == low == high == 0
