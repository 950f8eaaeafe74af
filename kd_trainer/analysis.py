"""What the answers of a run's models say of them, text by text, as plain numbers for `report.json`."""

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from .calibration import expected_calibration_error, fit_temperature, labelled_rows
from .pairs import sides
from .significance import kept_share, paired_test

LEVEL = 0.95  # of the intervals
SUBJECTS = ("distilled", "student", "teacher")
LONGEST = 200  # characters of a text that is quoted


def subject_of(rows):
    """Which row a run is about (`str`): the distilled student, else the student, else the teacher; None without any."""
    return next((name for name in SUBJECTS if name in rows), None)


def analyse(label_names, labels, logits, validation=None):
    """
    Intervals, calibration, comparisons and scores by label of every row of a table.

    Args:
        label_names (`list[str]`): Name of every label id.
        labels (`np.ndarray` of shape `(num_rows,)`): Of the split that is reported; −100 rows do not count.
        logits (`dict[str, np.ndarray]`): By row of the table, `(num_rows, num_labels)`.
        validation (`tuple[np.ndarray, dict[str, np.ndarray]]`, *optional*): Labels and logits of the validation split,
            where it is another: temperatures are chosen there.

    Returns:
        `dict[str, dict]`, empty without a labelled row: `accuracy_interval` (by row, two ends), `calibration` (by row:
        `ece` on the split reported; `temperature` of the validation split and `scaled_ece`, the error with it, both
        None where there is none), `comparison` (`of`, the row that the run is about; `kept_share` of the teacher with
        `low` and `high`, where there is one; `against` every other row, `difference` in accuracy and `p`), `label_f1`
        (by label its `rows` and every row's F1).
    """
    labels = np.asarray(labels)
    kept = labels != -100
    if not kept.any():
        return {}
    answers = {name: labelled_rows(array, labels)[0] for name, array in logits.items()}
    labels = labels[kept]
    correct = {name: array.argmax(axis=-1) == labels for name, array in answers.items()}
    return {
        "accuracy_interval": {name: accuracy_interval(right) for name, right in correct.items()},
        "calibration": {name: calibrate(name, array, labels, validation) for name, array in answers.items()},
        "comparison": compare(correct),
        "label_f1": label_scores(label_names, labels, answers),
    }


def accuracy_interval(correct):
    """
    The ends of the 95 % interval of an accuracy, `list[float]`, on other texts of the same kind.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(LEVEL, method="wilson")
    return [float(interval.low), float(interval.high)]


def calibrate(name, logits, labels, validation):
    """One row's `calibration`, see [`analyse`]."""
    temperature = None
    if validation is not None and name in validation[1] and (np.asarray(validation[0]) != -100).any():
        temperature = fit_temperature(validation[1][name], validation[0])
    return {
        "ece": expected_calibration_error(logits, labels),
        "temperature": temperature,
        "scaled_ece": None if temperature is None else expected_calibration_error(logits, labels, temperature),
    }


def compare(correct):
    """`comparison`, see [`analyse`], of `dict[str, np.ndarray]`: whether a row has a text right."""
    subject = subject_of(correct)
    if subject is None:
        return {}
    found = {"of": subject, "against": {}}
    if "teacher" in correct and subject != "teacher" and correct["teacher"].any():
        share, low, high = kept_share(correct[subject], correct["teacher"], LEVEL)
        found["kept_share"] = {"share": share, "low": low, "high": high}
    for name, right in correct.items():
        if name != subject:
            difference, p = paired_test(correct[subject], right)
            found["against"][name] = {"difference": difference, "p": p}
    return found


def label_scores(label_names, labels, logits):
    """`label_f1`, see [`analyse`]."""
    scores = {
        name: f1_score(labels, array.argmax(axis=-1), labels=range(len(label_names)), average=None, zero_division=0)
        for name, array in logits.items()
    }
    rows = np.bincount(labels, minlength=len(label_names))
    return {
        label: {"rows": int(rows[index]), **{name: float(score[index]) for name, score in scores.items()}}
        for index, label in enumerate(label_names)
    }


def find_disagreements(texts, labels, logits, label_names, count):
    """
    The texts on which a student is furthest from its teacher: those that they label otherwise, by the probability that
    would have to move from label to label (the total variation distance), the largest first.

    Args:
        texts (sequence of `str` or `tuple[str, str]`): Of the split that is reported.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids, −100 where unknown.
        logits (`dict[str, np.ndarray]`): By row of the table, `(num_rows, num_labels)`.
        label_names (`list[str]`): Name of every label id.
        count (`int`): At most so many.

    Returns:
        `list[dict]`: `row` in the split, `text` and, of a pair, `text_pair` (200 characters of each), `label` (None
        where unknown), `distance` in [0, 1], and of both models `label` and `probability` of it. Empty without a
        teacher.
    """
    subject = subject_of(logits)
    if not count or "teacher" not in logits or subject == "teacher":
        return []
    answers = {name: softmax(logits[name].astype(np.float64), axis=-1) for name in ("teacher", subject)}
    distance = np.abs(answers["teacher"] - answers[subject]).sum(axis=-1) / 2
    distance[answers["teacher"].argmax(axis=-1) == answers[subject].argmax(axis=-1)] = 0
    found = []
    for row in map(int, np.argsort(-distance, kind="stable")[:count]):
        if distance[row] == 0:
            break
        given = dict(zip(("text", "text_pair"), map(shorten, sides(texts[row])), strict=False))
        said = {
            name: {"label": label_names[int(one[row].argmax())], "probability": float(one[row].max())}
            for name, one in answers.items()
        }
        label = None if labels[row] == -100 else label_names[int(labels[row])]
        found.append({"row": row, **given, "label": label, "distance": float(distance[row]), **said})
    return found


def shorten(text):
    """The first characters of a long text."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
