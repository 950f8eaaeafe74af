"""The scores against scikit-learn called directly, confusion matrices worked by hand and classifiers of known skill."""

import socket

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score
from transformers import EvalPrediction

from kd_trainer.metrics import (
    ClassificationMetrics,
    agreement,
    compute_metrics,
    is_at_chance,
    per_class_report,
    score_logits,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A metric that asks the network fails."""

    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def logits_for(predictions, num_labels, seed=0):
    """Random logits whose largest entry in each row is the predicted label."""
    logits = np.random.default_rng(seed).normal(size=(len(predictions), num_labels))
    logits[np.arange(len(predictions)), predictions] = logits.max(axis=1) + 1
    return logits


def draw_labels(counts, seed=0):
    """`counts[i]` labels `i`, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def from_confusion(matrix):
    """`(labels, predictions)` with `matrix[i][j]` rows of label i predicted as j."""
    pairs = [(i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)]
    return tuple(np.array(pairs).T)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_labels", [2, 7])
def test_scores_equal_scikit_learn(num_labels, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, 60)
    predictions = np.where(random.random(60) < 0.6, labels, random.integers(0, num_labels, 60))
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": accuracy_score(labels, predictions),
        "precision": precision_score(labels, predictions, **macro),
        "recall": recall_score(labels, predictions, **macro),
        "f1": f1_score(labels, predictions, **macro),
    }
    assert score_logits(logits_for(predictions, num_labels), labels) == pytest.approx(expected, abs=1e-12)
    assert ClassificationMetrics().compute(predictions=predictions, references=labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("matrix", "accuracy", "precision", "recall", "f1"),
    [
        ([[3, 0], [0, 2]], 1, 1, 1, 1),
        ([[0, 3], [2, 0]], 0, 0, 0, 0),
        # One of the labels is never predicted: precision 0, no warning.
        ([[4, 0], [1, 0]], 4 / 5, (4 / 5 + 0) / 2, (1 + 0) / 2, (8 / 9 + 0) / 2),
        (
            [[2, 1, 1], [0, 3, 0], [0, 2, 1]],
            6 / 10,
            (2 / 2 + 3 / 6 + 1 / 2) / 3,
            (2 / 4 + 3 / 3 + 1 / 3) / 3,
            (4 / 6 + 6 / 9 + 2 / 5) / 3,
        ),
        # A label that neither occurs nor is predicted does not enter the mean.
        ([[3, 1, 0], [0, 4, 0], [0, 0, 0]], 7 / 8, (1 + 4 / 5) / 2, (3 / 4 + 1) / 2, (6 / 7 + 8 / 9) / 2),
    ],
)
@pytest.mark.filterwarnings("error")
def test_scores_of_confusion_matrices_worked_by_hand(matrix, accuracy, precision, recall, f1):
    labels, predictions = from_confusion(matrix)
    expected = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    assert score_logits(logits_for(predictions, len(matrix)), labels) == pytest.approx(expected)


def test_rows_without_a_label_do_not_count():
    labels, predictions = from_confusion([[5, 2], [1, 4]])
    logits = logits_for(predictions, 2)
    more_logits = np.concatenate([logits_for([0, 1, 1], 2), logits])
    more_labels = np.concatenate([[-100] * 3, labels])
    assert score_logits(more_logits, more_labels) == score_logits(logits, labels)
    assert is_at_chance(more_logits, more_labels) == is_at_chance(logits, labels)
    assert per_class_report(more_logits, more_labels, ["a", "b"]) == per_class_report(logits, labels, ["a", "b"])
    assert score_logits(logits, np.full(len(labels), -100)) == {}


@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: (logits, np.zeros((1, 2)))])
def test_compute_metrics_reads_the_logits_of_a_model_with_more_outputs(wrap):
    labels, predictions = from_confusion([[5, 2], [1, 4]])
    logits = logits_for(predictions, 2)
    assert compute_metrics(EvalPrediction(wrap(logits), labels)) == score_logits(logits, labels)


def test_agreement_is_the_share_of_equal_predictions():
    random = np.random.default_rng(0)
    student, teacher = random.integers(0, 4, 200), random.integers(0, 4, 200)
    logits = logits_for(student, 4), logits_for(teacher, 4, seed=1)
    assert agreement(*logits) == agreement(*logits[::-1]) == accuracy_score(teacher, student)
    assert agreement(logits[0], 3 * logits[0] - 1) == 1


BALANCED, SKEWED, RARE = [100, 100, 100, 100], [900, 50, 30, 20], [998, 2]
COUNTS = pytest.mark.parametrize("counts", [BALANCED, SKEWED, RARE, [40, 0, 60]], ids=str)


@COUNTS
@pytest.mark.parametrize("seed", range(5))
def test_random_predictions_are_at_chance(counts, seed):
    labels = draw_labels(counts)
    verdict, balanced, chance = is_at_chance(
        np.random.default_rng(seed).normal(size=(len(labels), len(counts))), labels
    )
    assert verdict and chance == 1 / np.count_nonzero(counts)
    assert balanced < 1


@COUNTS
def test_constant_predictions_are_at_chance(counts):
    labels = draw_labels(counts)
    for label in range(len(counts)):
        assert is_at_chance(logits_for(np.full(len(labels), label), len(counts)), labels)[0]


@pytest.mark.parametrize("counts", [BALANCED, SKEWED], ids=str)
def test_scrambled_labels_are_at_chance_however_frequent_one_is(counts):
    labels = draw_labels(counts)
    scrambled = np.array([0, 2, 3, 1])[labels]  # right for the frequent label only
    assert is_at_chance(logits_for(scrambled, 4), labels)[0]


@COUNTS
def test_perfect_predictions_are_not_at_chance(counts):
    labels = draw_labels(counts)
    assert is_at_chance(logits_for(labels, len(counts)), labels)[:2] == (False, 1.0)


@pytest.mark.parametrize("counts", [BALANCED, SKEWED], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_useful_predictions_are_not_at_chance(counts, seed):
    random, labels = np.random.default_rng(seed), draw_labels(counts)
    predictions = np.where(random.random(len(labels)) < 0.7, labels, random.integers(0, 4, len(labels)))
    verdict, balanced, _ = is_at_chance(logits_for(predictions, 4), labels)
    assert not verdict and balanced == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_per_class_report_keeps_every_label_in_order():
    # The last label neither occurs nor is predicted.
    labels, predictions = from_confusion([[2, 1, 0, 0], [0, 3, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]])
    names = ["体育", "财经", "科技", "教育"]
    report = per_class_report(logits_for(predictions, 4), labels, names)
    assert list(report)[:4] == names
    expected = {
        "体育": (1, 2 / 3, 4 / 5, 3),
        "财经": (3 / 6, 1, 6 / 9, 3),
        "科技": (1, 1 / 3, 1 / 2, 3),
        "教育": (0, 0, 0, 0),
    }
    for name, scores in expected.items():
        assert tuple(report[name].values()) == pytest.approx(scores), name
    assert report["accuracy"] == pytest.approx(6 / 9)
