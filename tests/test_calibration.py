"""Calibration against cases worked out by hand, a loop in plain Python, and scipy's own minimiser."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from kd_trainer.calibration import cross_entropy, expected_calibration_error, fit_temperature, reliability_bins


def draw(rows=400, labels=4, scale=2.0, seed=0):
    """Random logits, and labels drawn from their softmax: calibrated by construction."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (rows, labels))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, np.array([generator.choice(labels, p=share) for share in shares])


def by_hand(logits, labels, bins):
    """The error as the definition says it, row by row."""
    boxes = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels, strict=True):
        shares = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        sure = max(shares)
        box = next(box for box in range(bins) if sure <= (box + 1) / bins + 1e-12)
        boxes[box].append((sure, shares.index(sure) == label))
    return sum(abs(sum(sure for sure, _ in box) - sum(right for _, right in box)) / len(labels) for box in boxes if box)


def test_known_error():
    # Four rows 90 % sure, of which two are right; six rows 60 % sure, of which all are: 0.4 · 0.4 + 0.6 · 0.4.
    logits = np.log([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 6)
    labels = np.array([0, 0, 1, 1] + [1] * 6)
    assert expected_calibration_error(logits, labels) == pytest.approx(0.4 * 0.4 + 0.6 * 0.4)
    rows, confidence, accuracy = reliability_bins(logits, labels, bins=10)
    assert rows.tolist() == [0, 0, 0, 0, 0, 6, 0, 0, 4, 0]  # bins are closed above: 0.6 is in (0.5, 0.6]
    assert confidence[[5, 8]] == pytest.approx([0.6, 0.9]) and accuracy[[5, 8]].tolist() == [1.0, 0.5]


def test_errors_of_two_kinds_in_one_bin_cancel_as_the_definition_says():
    logits = np.log([[0.95, 0.05]] * 19 + [[0.95, 0.05]])
    assert expected_calibration_error(logits, np.array([0] * 19 + [1])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_definition(bins, seed):
    logits, labels = draw(labels=2 + seed, seed=seed)
    assert expected_calibration_error(logits, labels, bins=bins) == pytest.approx(by_hand(logits, labels, bins))
    assert expected_calibration_error(logits, labels, 2.5, bins) == pytest.approx(by_hand(logits / 2.5, labels, bins))


def test_every_row_is_in_a_bin_even_the_surest():
    logits = np.array([[1e4, 0.0], [0.0, 0.0], [-1e4, 1e4]])
    rows, _, _ = reliability_bins(logits, np.array([0, 0, 1]))
    assert rows.sum() == 3 and rows[-1] == 2 and rows[7] == 1


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_the_factor_of_the_logits_is_found(factor):
    logits, labels = draw(rows=20_000)
    # float32, as they are kept. The labels were drawn from the logits themselves: T = 1, within three standard errors.
    temperature = fit_temperature((factor * logits).astype(np.float32), labels)
    assert temperature == pytest.approx(factor, rel=0.029)
    assert temperature == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_temperature_has_a_lower_cross_entropy(seed):
    logits, labels = draw(seed=seed)
    temperature = fit_temperature(3 * logits, labels)
    best = minimize_scalar(lambda t: cross_entropy(3 * logits, labels, t), bounds=(0.1, 50), options={"xatol": 1e-9})
    assert temperature == pytest.approx(best.x, rel=1e-4)
    # And that is the mean of −log softmax.
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert cross_entropy(3 * logits, labels, 3.0) == pytest.approx(-np.log(shares[range(len(labels)), labels]).mean())


def test_scaling_mends_an_overconfident_model_on_other_rows():
    logits, labels = draw(rows=8000)
    temperature = fit_temperature(4 * logits[:4000], labels[:4000])
    before = expected_calibration_error(4 * logits[4000:], labels[4000:])
    after = expected_calibration_error(4 * logits[4000:], labels[4000:], temperature)
    assert before > 0.1 and after < 0.03


def test_there_is_no_best_temperature_where_a_limit_is_best():
    logits = np.array([[2.0, 0.0], [0.0, 3.0]])
    assert fit_temperature(logits, np.array([0, 1])) is None  # all right: the colder the better
    assert fit_temperature(logits, np.array([1, 0])) is None  # all wrong: the hotter the better


def test_unlabelled_rows_do_not_count():
    logits, labels = draw()
    more = np.concatenate([logits, 100 * np.ones((50, 4)) * np.arange(4)])
    kept = np.concatenate([labels, np.full(50, -100)])
    assert fit_temperature(more, kept) == fit_temperature(logits, labels)
    assert expected_calibration_error(more, kept) == expected_calibration_error(logits, labels)
    for function in (fit_temperature, expected_calibration_error):
        with pytest.raises(ValueError, match="no labelled row"):
            function(logits, np.full(len(logits), -100))
        with pytest.raises(ValueError, match="rows of logits"):
            function(logits, labels[:-1])
