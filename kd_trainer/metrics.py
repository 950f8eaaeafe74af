"""Scores of a classifier against the labels, against chance, against its teacher."""

import math

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, classification_report, precision_recall_fscore_support


class ClassificationMetrics(evaluate.Metric):
    """
    Accuracy with macro-averaged precision, recall and F1, as an `evaluate.Metric` that needs no download.

    The macro average runs over the labels that occur in the references or the predictions; a label that is never
    predicted has precision 0.

    Example:

    ```python
    >>> scores = ClassificationMetrics().compute(predictions=[0, 1, 1], references=[0, 1, 0])
    >>> round(scores["accuracy"], 4), round(scores["f1"], 4)
    (0.6667, 0.6667)

    ```
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, macro precision, macro recall, macro F1.",
            citation="",
            inputs_description="predictions and references: label ids",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(self, predictions, references):
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="macro", zero_division=0
        )
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }


def score_logits(logits, labels):
    """
    [`ClassificationMetrics`] of the most likely labels; rows with label −100 do not count.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids.

    Returns:
        `dict[str, float]` with `accuracy`, `precision`, `recall`, `f1`, each in [0, 1]; empty without a labelled row.
    """
    labels = np.asarray(labels)
    labelled = labels != -100
    if not labelled.any():
        return {}
    # In memory: metrics on disk would share one lock file between processes.
    metric = ClassificationMetrics(keep_in_memory=True)
    return metric.compute(predictions=np.asarray(logits)[labelled].argmax(-1), references=labels[labelled])


def compute_metrics(eval_prediction):
    """`Trainer(compute_metrics=...)`: [`score_logits`] of a `transformers.EvalPrediction`."""
    return score_logits(first_output(eval_prediction.predictions), eval_prediction.label_ids)


def first_output(predictions):
    """The logits in a Trainer's predictions, of models that have more outputs too."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def agreement(student_logits, teacher_logits):
    """
    Share of rows for which student and teacher name the same label, in [0, 1].

    Example:

    ```python
    >>> agreement(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]]))
    0.5

    ```
    """
    return float((np.asarray(student_logits).argmax(-1) == np.asarray(teacher_logits).argmax(-1)).mean())


def is_at_chance(logits, labels):
    """
    Whether a classifier is not distinguishably better than one that ignores its input and names each label as often:
    balanced accuracy (the mean recall of the labels that occur, chance level 1 / their number) at most three standard
    errors above chance.

    Balanced, because a teacher whose label order is scrambled can still be right more often than 1 / num_labels when
    one label is frequent.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; −100 rows do not count.

    Returns:
        `tuple[bool, float, float]`: The verdict, the balanced accuracy, the chance level.
    """
    labels = np.asarray(labels)
    labelled = labels != -100
    labels, predictions = labels[labelled], np.asarray(logits).argmax(-1)[labelled]
    classes, counts = np.unique(labels, return_counts=True)
    balanced = float(np.mean([(predictions[labels == label] == label).mean() for label in classes]))
    chance = 1 / len(classes)
    rates = np.array([(predictions == label).mean() for label in classes])
    standard_error = math.sqrt((rates * (1 - rates) / counts).sum()) / len(classes)
    # The small number: a mean of exact zeros and ones may round to just above chance.
    return balanced <= chance + 3 * standard_error + 1e-9, balanced, chance


def per_class_report(logits, labels, label_names):
    """
    Precision, recall, F1 and support of every label.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Unscaled.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids; −100 rows do not count.
        label_names (`list[str]`): Name of every label id.

    Returns:
        `dict[str, dict[str, float]]`: scikit-learn's report, keyed by label name.
    """
    labels = np.asarray(labels)
    labelled = labels != -100
    return classification_report(
        labels[labelled],
        np.asarray(logits)[labelled].argmax(-1),
        labels=range(len(label_names)),
        target_names=label_names,
        output_dict=True,
        zero_division=0,
    )
