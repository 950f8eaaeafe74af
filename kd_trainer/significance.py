"""Is one model better than another? Paired tests on the texts that both have answered."""

import math

import numpy as np
from scipy.stats import norm


def paired_test(correct, baseline_correct, seed_variance=0.0):
    """
    Difference of two mean accuracies and its two-sided p-value, paired by text: z = mean(d) / sqrt(var(d) / n + v / s),
    where d is, for every text, the difference of the shares of runs that have it right. With one run of each and
    `seed_variance=0` it is McNemar's test without continuity correction but for the variance, which is taken about the
    mean and not about 0: z² = χ² (n − 1) / (n − χ²).

    Args:
        correct (`np.ndarray` of shape `(num_runs, num_texts)`): Whether a run has a text right.
        baseline_correct (`np.ndarray` of shape `(num_baseline_runs, num_texts)`): The same texts.
        seed_variance (`float`, *optional*, defaults to 0.0): Variance of a run's accuracy over seeds, see
            [`pooled_seed_variance`]; texts alone do not tell how another seed would have done.

    Returns:
        `tuple[float, float]`: Difference of the accuracies, and p; 1.0 when they answer alike.

    Raises:
        `ValueError`: For different numbers of texts.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996; Dietterich 1998, https://doi.org/10.1162/089976698300017197
    """
    correct, baseline_correct = np.atleast_2d(correct), np.atleast_2d(baseline_correct)
    if correct.shape[1] != baseline_correct.shape[1]:
        raise ValueError(f"{correct.shape[1]} and {baseline_correct.shape[1]} texts: score both on the same ones")
    differences = correct.mean(axis=0) - baseline_correct.mean(axis=0)
    difference = float(differences.mean())
    variance = differences.var(ddof=1) / len(differences)
    variance += seed_variance * (1 / len(correct) + 1 / len(baseline_correct))
    if variance == 0:
        return difference, 1.0 if difference == 0 else 0.0
    return difference, float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def pooled_seed_variance(correct):
    """
    Variance of a model's accuracy over seeds, pooled over rows of which each has few seeds: that of the observed
    accuracies, less what the finite number of texts adds to it, which [`paired_test`] counts already.

    Args:
        correct (`list[np.ndarray]` of shape `(num_runs, num_texts)`): Of every row, whether a run has a text right.

    Returns:
        `float`; 0.0 when no row has two seeds: then nothing is known of it.
    """
    rows = [np.asarray(row, dtype=float) for row in correct if len(row) > 1]
    freedom = sum(len(row) - 1 for row in rows)
    if not freedom:
        return 0.0
    between = sum((len(row) - 1) * row.mean(axis=1).var(ddof=1) for row in rows) / freedom
    within = sum((len(row) - 1) * row.var(axis=0, ddof=1).mean() for row in rows) / freedom
    return max(0.0, float(between - within / rows[0].shape[1]))


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
