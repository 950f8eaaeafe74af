"""What classifiers of other kinds say of texts, as logits in the order of the data's labels."""

import numpy as np

from .errors import InputError

LEAST_PROBABILITY = 1e-5  # of an answer that rules a label out: its logarithm must be a number
BATCH_ROWS = 4096  # asked at a time: a sparse matrix of n-grams of all texts may not fit into memory


def are_probabilities(answers):
    """Which of `(num_rows, num_labels)` rows are probabilities, `(num_rows,)`: not negative, with a sum of 1."""
    return (answers >= 0).all(axis=1) & (np.abs(answers.sum(axis=1) - 1) < 0.01)


def centred(logits):
    """
    `(num_rows, num_labels)` logits with a mean of 0 in each row, as a model's are, nearly. Log-probabilities are far
    from it: no softmax sees that, but a student that is to have the same logits would learn it first.
    """
    return logits - logits.mean(axis=-1, keepdims=True)


def to_logits(answers):
    """`(num_rows, num_labels)` logits as they are; of probabilities, clipped to 1e-5, the logarithms, [`centred`]."""
    return centred(np.log(answers.clip(min=LEAST_PROBABILITY))) if are_probabilities(answers).all() else answers


def ask_estimator(estimator, texts, label_names):
    """`(len(texts), num_labels)` of a fitted scikit-learn classifier, its `classes_` matched to the labels by name."""
    names = [str(name) for name in estimator.classes_]
    if set(names) == set(label_names):
        order = [names.index(name) for name in label_names]
    elif list(estimator.classes_) == list(range(len(label_names))):  # fitted on label ids
        order = list(range(len(label_names)))
    else:
        raise InputError(f"the classifier has labels {names}, data has {list(label_names)}: fit it on the same ones")
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(texts))[:, order]
    margins = np.asarray(estimator.decision_function(texts))
    if margins.ndim == 1:  # of two labels: how far the second is ahead
        margins = np.stack([-margins / 2, margins / 2], axis=1)
    if margins.shape[1] != len(names):  # one for each pair of labels
        raise InputError(
            f"the classifier gives {margins.shape[1]} margins for {len(names)} labels: let it give one each"
        )
    return margins[:, order]


def teacher_answers(teacher, texts, label_names):
    """
    Logits of any classifier, for [`add_logits`]: with them it teaches as a transformer does.

    Args:
        teacher (scikit-learn classifier or `Callable`): A fitted classifier or pipeline that takes texts, with
            `predict_proba` or `decision_function`; or a function from a list of texts to logits or probabilities of
            shape `(len(texts), num_labels)`, in the order of `label_names`.
        texts (sequence of `str`): Asked in batches of 4,096.
        label_names (`list[str]`): The data's labels in the order of their ids.

    Returns:
        `np.ndarray` of shape `(len(texts), num_labels)`, float32.

    Raises:
        `InputError` (a `ValueError`): For other labels, or for answers that are not a finite number for each text and
            label.

    Example:

    ```python
    >>> teacher_answers(lambda texts: [[0.0, len(text)] for text in texts], ["a", "abc"], ["short", "long"])
    array([[0., 1.],
           [0., 3.]], dtype=float32)

    ```
    """
    answers = np.empty((len(texts), len(label_names)), dtype=np.float32)
    for start in range(0, len(texts), BATCH_ROWS):
        batch = list(texts[start : start + BATCH_ROWS])
        estimated = hasattr(teacher, "classes_")
        found = np.asarray(ask_estimator(teacher, batch, label_names) if estimated else teacher(batch))
        if found.dtype.kind not in "biuf":
            raise InputError(f"the teacher's answer is of type {found.dtype}: it must be a number for each label")
        if found.shape != (len(batch), len(label_names)) or not np.isfinite(found).all():
            raise InputError(
                f"the teacher's answer to {len(batch)} texts has shape {found.shape}: it must be a finite number for "
                f"each text and each of {len(label_names)} labels"
            )
        answers[start : start + len(batch)] = found
    return to_logits(answers)
