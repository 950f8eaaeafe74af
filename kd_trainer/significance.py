"""Is one model better than another? Paired tests on the texts that both have answered."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class SeedVariance:
    """
    What other seeds do to a model's accuracy, pooled over rows of which each has few seeds.

    Args:
        observed (`float`): Variance of a run's accuracy over seeds.
        own (`float`): The part of it that is the seeds' own, less what the finite number of texts adds, at least 0.
        freedom (`int`): Degrees of freedom of the estimate; 0 when no row has two seeds: nothing is known of it then.
    """

    observed: float = 0.0
    own: float = 0.0
    freedom: int = 0

    @classmethod
    def pooled(cls, correct):
        """From a list of `(num_runs, num_texts)` arrays, one per row: whether a run has a text right."""
        rows = [np.asarray(row, dtype=float) for row in correct if len(row) > 1]
        freedom = sum(len(row) - 1 for row in rows)
        if not freedom:
            return cls()
        observed = sum((len(row) - 1) * row.mean(axis=1).var(ddof=1) for row in rows) / freedom
        texts = sum((len(row) - 1) * row.var(axis=0, ddof=1).mean() for row in rows) / freedom / rows[0].shape[1]
        return cls(float(observed), max(0.0, float(observed - texts)), freedom)


def paired_test(correct, baseline_correct, seeds=None):
    """
    Difference of two mean accuracies and its two-sided p-value, paired by text: t = mean(d) / sqrt(var(d) / n + v / s),
    where d is, for every text, the difference of the shares of runs that have it right, v the seeds' own variance and
    1 / s the sum of 1 / number of runs of both. With one run of each and no `seeds` it is McNemar's test without
    continuity correction but for the variance, taken about the mean and not about 0: t² = χ² (n − 1) / (n − χ²).

    Args:
        correct (`np.ndarray` of shape `(num_runs, num_texts)`): Whether a run has a text right.
        baseline_correct (`np.ndarray` of shape `(num_baseline_runs, num_texts)`): The same texts.
        seeds ([`SeedVariance`], *optional*): Without it p is about these trained models on other texts, not about what
            trained them.

    Returns:
        `tuple[float, float]`: Difference of the accuracies, and p; 1.0 when they answer alike.

    Raises:
        `ValueError`: For different numbers of texts.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996; Satterthwaite 1946, https://doi.org/10.2307/3002019
    """
    seeds = seeds or SeedVariance()
    correct, baseline_correct = np.atleast_2d(correct), np.atleast_2d(baseline_correct)
    if correct.shape[1] != baseline_correct.shape[1]:
        raise ValueError(f"{correct.shape[1]} and {baseline_correct.shape[1]} texts: score both on the same ones")
    differences = correct.mean(axis=0) - baseline_correct.mean(axis=0)
    difference = float(differences.mean())
    runs = 1 / len(correct) + 1 / len(baseline_correct)
    if difference == 0 or len(differences) < 2:
        return difference, 1.0
    variance = differences.var(ddof=1) / len(differences) + seeds.own * runs
    if variance == 0:  # every text alike: as likely as that many coins
        return difference, 2.0 ** (1 - len(differences))
    # Few seeds leave their variance uncertain.
    freedom = seeds.freedom * (variance / (seeds.observed * runs)) ** 2 if seeds.observed else math.inf
    return difference, float(2 * t.sf(abs(difference) / math.sqrt(variance), freedom))


def bootstrap_interval(correct, level=0.95, draws=2000, seed=0):
    """
    Where the mean accuracy would lie with other seeds and other texts: percentiles of means over rows and columns drawn
    with replacement. Two or three seeds say little of all others: the interval is then too narrow rather than too wide.

    Args:
        correct (`np.ndarray` of shape `(num_runs, num_texts)`): Whether a run has a text right.
        level (`float`, *optional*, defaults to 0.95): Share of the means inside.
        draws (`int`, *optional*, defaults to 2000): Means.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `tuple[float, float]`: Its ends.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552
    """
    generator = np.random.default_rng(seed)
    correct = np.atleast_2d(correct).astype(np.float32)
    runs, texts = correct.shape
    means = np.empty(draws)
    for draw in range(draws):
        times_drawn = np.bincount(generator.integers(runs, size=runs), minlength=runs)
        means[draw] = (times_drawn @ correct)[generator.integers(texts, size=texts)].mean() / runs
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def kept_share(correct, teacher_correct, level=0.95, draws=10000, seed=0):
    """
    Share of the teacher's accuracy that a student has, with a bootstrap interval over the texts: both are scored on the
    same texts drawn with replacement, so that a hard text counts for both or for none.

    Drawing n texts is drawing how many of them both have right, one of them, or neither: one multinomial draw.

    Args:
        correct (`np.ndarray` of shape `(num_texts,)`): Whether the student has a text right.
        teacher_correct (`np.ndarray` of shape `(num_texts,)`): Whether the teacher has.
        level (`float`, *optional*, defaults to 0.95): Share of the drawn ratios inside.
        draws (`int`, *optional*, defaults to 10000): Ratios.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `tuple[float, float, float]`: The share, above 1 for a student that is better, and the ends of its interval. It
        is about these two trained models on other texts.

    Raises:
        `ValueError`: For different numbers of texts, or a teacher that has none right.

    Example:

    ```python
    >>> share, low, high = kept_share(np.arange(100) < 81, np.arange(100) < 90)
    >>> round(share, 2), low < share < high
    (0.9, True)

    ```

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552 (percentiles of the bootstrap)
    """
    correct, teacher_correct = np.asarray(correct, dtype=bool), np.asarray(teacher_correct, dtype=bool)
    if correct.shape != teacher_correct.shape:
        raise ValueError(f"{len(correct)} and {len(teacher_correct)} texts: score both on the same ones")
    if not teacher_correct.any():
        raise ValueError("the teacher has no text right: there is nothing to keep")
    texts = len(correct)
    cells = [correct & teacher_correct, correct & ~teacher_correct, ~correct & teacher_correct]
    shares = [cell.sum() / texts for cell in cells]
    drawn = np.random.default_rng(seed).multinomial(texts, [*shares, max(0.0, 1 - sum(shares))], size=draws)
    both, student_alone, teacher_alone, _ = drawn.T
    teacher_right = both + teacher_alone
    ratios = ((both + student_alone) / np.maximum(teacher_right, 1))[teacher_right > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(correct.sum() / teacher_correct.sum()), float(low), float(high)


def holm(p_values):
    """
    p-values adjusted for being many (Holm 1979): the chance of one false finding among them stays below the level.

    Args:
        p_values (`list[float]`): Unadjusted.

    Returns:
        `list[float]`, in the same order, at most 1.

    Example:

    ```python
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    ```
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted
