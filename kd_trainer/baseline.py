"""The row of a linear model in a run's table: what a student must beat to be of use."""

from .answers import teacher_answers
from .linear import fit_linear_to
from .metrics import agreement, score_logits
from .report import COLUMNS, time_calls


def linear_baseline(run, data):
    """
    Fits the linear model of `--compare_linear` to the training split and scores it. Called before anything is trained,
    so that a split on which it cannot be fitted is said at once.

    Args:
        run ([`Run`]): Whether it is asked for, and which splits are answered.
        data ([`TextData`] or None): The splits.

    Returns:
        `tuple[dict, dict]`: The table's rows and the logits by row and split, both under the name `linear`; empty where
        it is not asked for, and in all processes but the first.

    Raises:
        `InputError`: See [`fit_linear_to`].
    """
    if data is None or not run.run_args.compare_linear or run.args.process_index != 0:
        return {}, {}
    model, seconds = fit_linear_to(data, "--compare_linear")
    answers = {
        split: teacher_answers(model, data.splits[split]["text"][:], data.label_names)
        for split in run.answered_splits(data)
    }
    split = data.splits[run.scored_split]
    row = {
        **dict.fromkeys(COLUMNS),
        **score_logits(answers[run.scored_split], split["labels"][:]),
        **describe_linear(model),
        **time_calls(model.predict_proba, split["text"][:]),
        "train_seconds": seconds,
    }
    return {"linear": row}, {"linear": answers}


def add_agreement(rows, logits, split):
    """Gives the linear row its agreement with the teacher, where both have answered `split` (`str`)."""
    if "linear" in rows and split in logits.get("teacher", {}):
        rows["linear"]["agreement"] = agreement(logits["linear"][split], logits["teacher"][split])


def describe_linear(model):
    """
    `parameters` and `size_mb` of a [`fit_linear`] pipeline: weights of the n-grams, of the hyperplanes and of the
    sigmoids. As with other models, the vocabulary is not counted.
    """
    vectorizer, classifier = model[0], model[-1]
    arrays = [vectorizer.idf_]
    for calibrated in classifier.calibrated_classifiers_:
        arrays += [calibrated.estimator.coef_, calibrated.estimator.intercept_]
        sigmoids = 2 * len(calibrated.calibrators)
    return {
        "parameters": sum(array.size for array in arrays) + sigmoids,
        "size_mb": (sum(array.nbytes for array in arrays) + 8 * sigmoids) / 1e6,
    }
