"""Whether a classifier is as often right as it is sure, and the one temperature that makes it so."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

BINS = 15
LIMITS = (0.01, 100.0)  # between which a temperature is looked for


def reliability_bins(logits, labels, temperature=1.0, bins=BINS):
    """
    Rows by how sure the model is of them: the probability of the most likely label, in bins of equal width, (0, 1 /
    bins] the first.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; −100 rows do not count.
        temperature (`float`, *optional*, defaults to 1.0): The logits are divided by it.
        bins (`int`, *optional*, defaults to 15): As in the source.

    Returns:
        `tuple` of three `np.ndarray` of shape `(bins,)`: the number of rows, their mean confidence and their accuracy;
        the last two are nan where a bin is empty.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2
    """
    logits, labels = labelled_rows(logits, labels)
    confidence = softmax(logits / temperature, axis=-1).max(axis=-1)
    # Bins closed above; a hair's breadth over 1 by rounding is still 1.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_of, confidence, bins) / rows
        accuracy = np.bincount(bin_of, logits.argmax(axis=-1) == labels, bins) / rows
    return rows, mean_confidence, accuracy


def expected_calibration_error(logits, labels, temperature=1.0, bins=BINS):
    """
    Mean distance between confidence and accuracy, Σ n_b / n · |accuracy_b − confidence_b| over [`reliability_bins`].

    Args:
        As [`reliability_bins`].

    Returns:
        `float` in [0, 1].

    Raises:
        `ValueError`: Without a labelled row.

    Example:

    ```python
    >>> logits = np.log([[0.8, 0.2]] * 4)  # 80 % sure, and right in half of the rows
    >>> round(expected_calibration_error(logits, np.array([0, 0, 1, 1])), 6)
    0.3

    ```

    Source: Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602; Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, equation 3
    """
    rows, confidence, accuracy = reliability_bins(logits, labels, temperature, bins)
    if not rows.any():
        raise ValueError("no labelled row: there is nothing to be right about")
    filled = rows > 0
    return float((rows[filled] * np.abs(accuracy - confidence)[filled]).sum() / rows.sum())


def fit_temperature(logits, labels):
    """
    The T that minimises the cross-entropy of softmax(logits / T). It changes no label, only how sure the model is.

    The cross-entropy is convex in 1 / T: its derivative, the mean over rows of E[z] − z_label under softmax(z / T), has
    one root, or none where a limit of T is best: T → 0 when every row is right, T → ∞ when none is better than chance.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled, of rows that are not those it is judged on.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; −100 rows do not count.

    Returns:
        `float` or None: T, unitless, between 0.01 and 100; None where there is no best one in between.

    Raises:
        `ValueError`: Without a labelled row.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2
    """
    logits, labels = labelled_rows(logits, labels)
    if not len(labels):
        raise ValueError("no labelled row: a temperature is fitted to labels")
    of_label = logits[np.arange(len(labels)), labels].mean()

    def slope(log_temperature):
        probabilities = softmax(logits / np.exp(log_temperature), axis=-1)
        return (probabilities * logits).sum(axis=-1).mean() - of_label

    low, high = np.log(LIMITS)
    if slope(low) <= 0 or slope(high) >= 0:
        return None
    return float(np.exp(brentq(slope, low, high, xtol=1e-9)))


def cross_entropy(logits, labels, temperature=1.0):
    """Mean of −log softmax(logits / T)[label] over the labelled rows, in nats: what [`fit_temperature`] minimises."""
    logits, labels = labelled_rows(logits, labels)
    return float(-log_softmax(logits / temperature, axis=-1)[np.arange(len(labels)), labels].mean())


def labelled_rows(logits, labels):
    """The rows whose label is not −100, logits in float64."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits and {len(labels)} labels: give those of the same split")
    return logits[labels != -100], labels[labels != -100]
