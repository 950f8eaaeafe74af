"""What is said of a run's answers against scikit-learn, scipy and the answers themselves."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import classification_report

from kd_trainer.analysis import analyse, find_disagreements
from kd_trainer.calibration import expected_calibration_error, fit_temperature
from kd_trainer.significance import kept_share, paired_test

NAMES = ["accuracy", "macro avg", "体育", "rows"]  # which no key of the report must be mixed up with


def make_logits(labels, seed, noise):
    generator = np.random.default_rng(seed)
    return (3 * np.eye(len(NAMES))[labels] + generator.normal(0, noise, (len(labels), len(NAMES)))).astype(np.float32)


@pytest.fixture
def answers():
    """Labels and logits of a teacher, a student, a distilled student and a linear model."""
    labels = np.random.default_rng(0).integers(len(NAMES), size=300)
    rows = {"linear": 3.0, "teacher": 1.0, "student": 2.0, "distilled": 1.5}
    return labels, {name: make_logits(labels, seed, noise) for seed, (name, noise) in enumerate(rows.items())}


def test_every_number_is_what_its_own_function_says(answers):
    labels, logits = answers
    validation = (labels[:100], {name: 2 * array[:100] for name, array in logits.items()})
    found = analyse(NAMES, labels, logits, validation)
    assert json.loads(json.dumps(found)) == found
    right = {name: array.argmax(1) == labels for name, array in logits.items()}
    for name, array in logits.items():
        interval = binomtest(int(right[name].sum()), 300).proportion_ci(method="wilson")
        assert found["accuracy_interval"][name] == [interval.low, interval.high]
        calibration = found["calibration"][name]
        temperature = fit_temperature(*(validation[1][name], validation[0]))
        assert calibration == {
            "ece": expected_calibration_error(array, labels),
            "temperature": temperature,
            "scaled_ece": expected_calibration_error(array, labels, temperature),
        }
        report = classification_report(labels, array.argmax(1), output_dict=True)
        for label, scores in found["label_f1"].items():
            expected = report[str(NAMES.index(label))]
            assert scores[name] == pytest.approx(expected["f1-score"]) and scores["rows"] == expected["support"]
    comparison = found["comparison"]
    assert comparison["of"] == "distilled" and comparison["against"].keys() == {"teacher", "student", "linear"}
    for name, test in comparison["against"].items():
        assert (test["difference"], test["p"]) == paired_test(right["distilled"], right[name])
    assert tuple(comparison["kept_share"].values()) == kept_share(right["distilled"], right["teacher"])


def test_no_temperature_is_chosen_on_the_split_that_is_reported(answers):
    for row in analyse(NAMES, *answers)["calibration"].values():
        assert row["temperature"] is None and row["scaled_ece"] is None and row["ece"] > 0


@pytest.mark.parametrize("rows", [["teacher"], ["student"], ["linear", "student"], ["distilled"]])
def test_a_run_without_a_teacher_keeps_no_share(answers, rows):
    labels, logits = answers
    comparison = analyse(NAMES, labels, {name: logits[name] for name in rows})["comparison"]
    assert comparison["of"] == rows[-1] and "kept_share" not in comparison
    assert list(comparison["against"]) == rows[:-1]


def test_rows_without_a_label_do_not_count(answers):
    labels, logits = answers
    more = {name: np.concatenate([array, -array]) for name, array in logits.items()}
    assert analyse(NAMES, np.concatenate([labels, np.full(300, -100)]), more) == analyse(NAMES, labels, logits)
    assert analyse(NAMES, np.full(300, -100), logits) == {}


def test_disagreements_are_the_furthest_rows_of_other_labels(answers):
    labels, logits = answers
    texts = [f"text {row}" for row in range(300)]
    found = find_disagreements(texts, labels, logits, NAMES, 7)
    teacher, student = softmax(logits["teacher"], axis=1), softmax(logits["distilled"], axis=1)
    distance = np.maximum(teacher - student, 0).sum(axis=1)  # what has to move from some labels to the others
    other = np.flatnonzero(teacher.argmax(1) != student.argmax(1))
    assert len(found) == 7 and len(other) > 7
    assert [one["row"] for one in found] == sorted(other, key=lambda row: -distance[row])[:7]
    for one in found:
        row = one["row"]
        assert one["text"] == f"text {row}" and one["label"] == NAMES[labels[row]]
        assert one["distance"] == pytest.approx(distance[row], abs=1e-5)
        for name, shares in (("teacher", teacher), ("distilled", student)):
            assert one[name]["label"] == NAMES[shares[row].argmax()]
            assert one[name]["probability"] == pytest.approx(shares[row].max(), abs=1e-5)
    assert json.loads(json.dumps(found)) == found
    assert len(find_disagreements(texts, labels, logits, NAMES, 1000)) == len(other)


def test_disagreements_of_pairs_long_texts_and_unknown_labels(answers):
    labels, logits = answers
    texts = [(f"{row} " + "长" * 500, "short") for row in range(300)]
    one = find_disagreements(texts, np.full(300, -100), logits, NAMES, 1)[0]
    assert len(one["text"]) == 200 and one["text"].endswith("…") and one["text_pair"] == "short"
    assert one["label"] is None


def test_no_text_is_quoted_unless_asked_for_or_without_a_teacher(answers):
    labels, logits = answers
    texts = ["text"] * 300
    assert find_disagreements(texts, labels, logits, NAMES, 0) == []
    for rows in (["teacher"], ["student"], ["linear", "student"]):
        assert find_disagreements(texts, labels, {name: logits[name] for name in rows}, NAMES, 5) == []
    same = {"teacher": logits["teacher"], "distilled": logits["teacher"]}
    assert find_disagreements(texts, labels, same, NAMES, 5) == []
