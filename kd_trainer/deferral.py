"""Which texts a student leaves to its teacher: those that it is not sure enough of."""

import numpy as np

from .errors import InputError

NO_LABEL = -100
# One-sided 95 % of a normal distribution. Without a margin the largest coverage that looks good on a validation split
# is one whose students' luck it was: on THUCNews a threshold from 1,000 rows then lost 0.25 points on other rows, and
# 0.04 with it, for 7 % of the texts more to the teacher.
MARGIN = 1.645
# A loss of one point would leave no trace in fewer rows more often than one time in twenty: 0.99 ** 299 is 0.05.
LEAST_ROWS = 300
CURVE_POINTS = 11  # of a report: every tenth of the texts


def confidences(logits):
    """
    The largest probability of every row, `(num_rows,)`, float64.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled.

    Raises:
        `InputError` (a `ValueError`): For logits that are not finite numbers.

    Example:

    ```python
    >>> confidences(np.array([[0.0, 0.0], [0.0, np.log(3.0)]])).round(2).tolist()
    [0.5, 0.75]

    ```
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise InputError(f"logits of shape {logits.shape} must be finite numbers, a row for each text: score it again")
    # Sorted: sums of the same numbers in another order differ in the last digit, and would be no ties.
    return 1 / np.sort(np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf)), axis=1).sum(axis=1)


def labelled_outcomes(student_logits, teacher_logits, labels):
    """
    Of the rows that have a label: the student's confidence, whether the student and whether the teacher is right.

    Returns:
        `tuple` of three `np.ndarray` of shape `(num_labelled,)`: float64, bool, bool.
    """
    student_logits, teacher_logits, labels = map(np.asarray, (student_logits, teacher_logits, labels))
    if student_logits.shape != teacher_logits.shape or labels.shape != student_logits.shape[:1]:
        raise InputError(
            f"logits of shapes {student_logits.shape} and {teacher_logits.shape} for {labels.shape} labels: score "
            "student and teacher on the same rows"
        )
    confidence, _ = confidences(student_logits), confidences(teacher_logits)
    kept = labels != NO_LABEL
    right = [logits.argmax(axis=1)[kept] == labels[kept] for logits in (student_logits, teacher_logits)]
    return confidence[kept], *right


def coverage_curve(student_logits, teacher_logits, labels):
    """
    What every threshold gives. The student answers a text where its confidence is **above** the threshold, the teacher
    all others: at 1 the teacher answers all of them, at 0 the student does.

    Args:
        student_logits, teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)`): In the same label order.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; rows without one (−100) do not count.

    Returns:
        `dict[str, np.ndarray]` of arrays of one length, from threshold 1 to threshold 0: `threshold`, halfway between
        two confidences that differ, so that equal ones stay together; `coverage`, the share that the student answers;
        `accuracy` of both together; `gain` and `disagreements`, among the rows that the student answers how many more
        it has right than the teacher would, and how many just one of them has right.

    Raises:
        `InputError` (a `ValueError`): For shapes that do not fit, logits that are not finite, no labelled row.
    """
    confidence, student_right, teacher_right = labelled_outcomes(student_logits, teacher_logits, labels)
    rows = len(confidence)
    if rows == 0:
        raise InputError("no row has a label: a cascade is judged on labelled rows")
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    differences = student_right[order].astype(int) - teacher_right[order].astype(int)
    # Number of rows in front of each place where the confidence changes, and at both ends.
    counts = np.concatenate([[0], np.flatnonzero(np.diff(descending)) + 1, [rows]])
    above, below = descending[counts[1:-1] - 1], descending[counts[1:-1]]
    halfway = (above + below) / 2
    # Between neighbouring floats there is nothing: the lower one, which is not above itself.
    inner = np.where(halfway < above, halfway, below)
    gain = np.concatenate([[0], np.cumsum(differences)])[counts]
    return {
        "threshold": np.concatenate([[1.0], inner, [0.0]]),
        "coverage": counts / rows,
        "accuracy": (teacher_right.sum() + gain) / rows,
        "gain": gain,
        "disagreements": np.concatenate([[0], np.cumsum(np.abs(differences))])[counts],
    }


def pick_threshold(student_logits, teacher_logits, labels, margin=MARGIN, least_rows=LEAST_ROWS):
    """
    The smallest threshold at which the student is better than the teacher, by more than chance, where it answers: among
    the rows that the student answers, b that it alone has right and c that the teacher alone has right,

        b − c ≥ margin · √(b + c),

    the one-sided bound of McNemar's test on the paired difference; it also holds where the two never differ.

    Args:
        student_logits, teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)`): In the same label order, of a
            split that neither has learnt from.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; rows without one (−100) do not count.
        margin (`float`, *optional*, defaults to 1.645): In standard errors. With 0 it is the smallest threshold that
            is good enough on these rows, and on others it is not.
        least_rows (`int`, *optional*, defaults to 300): Fewer labelled rows are refused.

    Returns:
        `float` in [0, 1]: 0 where the student needs no teacher, 1 where the teacher is to answer everything. See
        [`coverage_curve`].

    Raises:
        `InputError` (a `ValueError`): As [`coverage_curve`]; for too few rows.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996
    """
    rows = int((np.asarray(labels) != NO_LABEL).sum())
    if rows < least_rows:
        raise InputError(
            f"{rows} labelled rows are too few to choose a cascade's threshold: give a validation split of {least_rows}"
        )
    curve = coverage_curve(student_logits, teacher_logits, labels)
    good = curve["gain"] >= margin * np.sqrt(curve["disagreements"])
    return float(curve["threshold"][np.flatnonzero(good)[-1]])  # the first, without any student, always is


def cascade_scores(student_logits, teacher_logits, labels, threshold):
    """
    What a threshold gives on a split.

    Args:
        student_logits, teacher_logits, labels: As [`coverage_curve`].
        threshold (`float`): The student answers where its confidence is above.

    Returns:
        `dict[str, float]`: `coverage`, the share that the student answers; `accuracy` of both together;
        `student_accuracy` and `teacher_accuracy`, each alone; `rows`, how many have a label.
    """
    confidence, student_right, teacher_right = labelled_outcomes(student_logits, teacher_logits, labels)
    if len(confidence) == 0:
        raise InputError("no row has a label: a cascade is judged on labelled rows")
    answers = confidence > threshold
    return {
        "coverage": float(answers.mean()),
        "accuracy": float(np.where(answers, student_right, teacher_right).mean()),
        "student_accuracy": float(student_right.mean()),
        "teacher_accuracy": float(teacher_right.mean()),
        "rows": len(confidence),
    }


def choose_cascade(validation, reported, latencies=(None, None), margin=MARGIN):
    """
    The threshold from one split, and what it gives on another.

    Args:
        validation, reported (`tuple` of three `np.ndarray`): The student's logits, the teacher's, the labels, see
            [`pick_threshold`].
        latencies (`tuple[float | None, float | None]`): Milliseconds a text, of student and teacher.
        margin (`float`): See [`pick_threshold`].

    Returns:
        `dict`: `threshold`, `margin`, and the keys of [`cascade_scores`] and `latency_ms` (the student's, and the
        teacher's for the share that it is asked; None when unknown) on the split reported; `validation`, the same keys
        on the other; `curve`, threshold, coverage and accuracy at every tenth of the reported split.

    Raises:
        `InputError`: As [`pick_threshold`].
    """
    threshold = pick_threshold(*validation, margin=margin)
    scores = cascade_scores(*reported, threshold)
    latency = None if None in latencies else latencies[0] + (1 - scores["coverage"]) * latencies[1]
    curve = coverage_curve(*reported)
    points = np.unique(np.searchsorted(curve["coverage"], np.linspace(0, 1, CURVE_POINTS) - 1e-9))
    shown = ("threshold", "coverage", "accuracy")
    return {
        "threshold": threshold,
        "margin": margin,
        **scores,
        "latency_ms": latency,
        "validation": cascade_scores(*validation, threshold),
        "curve": [{name: float(curve[name][point]) for name in shown} for point in points],
    }


def format_cascade(found):
    """What [`choose_cascade`] has found, as a line of text."""
    if found["coverage"] == 1:
        who = "the student answers all texts"
    elif found["coverage"] == 0:
        who = "the teacher answers all texts, as no confidence of the student was good enough on the validation split"
    else:
        who = (
            f"the student answers where it is more than {100 * found['threshold']:.2f} % sure, which are "
            f"{100 * found['coverage']:.1f} % of the texts, the teacher the others"
        )
    latency = "" if found["latency_ms"] is None else f", {found['latency_ms']:.2f} ms a text on average"
    return (
        f"cascade: {who}: accuracy {found['accuracy']:.4f} (teacher alone {found['teacher_accuracy']:.4f}, student "
        f"alone {found['student_accuracy']:.4f}){latency}"
    )
