"""A linear model of n-grams: a teacher that is fitted in seconds, and that a student must beat to be of use."""

import logging
import re
import time
import warnings
from collections import Counter

from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from .batches import NO_LABEL
from .errors import InputError
from .tokenization import UNSPACED

logger = logging.getLogger(__name__)

FOLDS = 5


def fit_linear_to(data, flag):
    """
    [`fit_linear`] on the labelled rows of the training split.

    Args:
        data ([`TextData`]): Its splits.
        flag (`str`): That asks for it, for the messages.

    Returns:
        `tuple[sklearn.pipeline.Pipeline, float]`: The model and the seconds it took.

    Raises:
        `InputError`: As [`fit_linear`]; for pairs of texts, and for a label without a row.
    """
    if "train" not in data.splits:
        raise InputError(f"{flag} is fitted on the training split: give --do_train")
    if data.has_pairs:
        raise InputError(f"{flag} counts n-grams, which do not compare the texts of a pair: leave it out")
    train = data.splits["train"].filter(lambda label: label != NO_LABEL, input_columns="labels")
    labels = [data.label_names[label] for label in train["labels"][:]]
    missing = sorted(set(data.label_names) - set(labels))
    if missing:
        raise InputError(f"{flag}: no training row has the label {missing[0]!r}: leave it out")
    start = time.perf_counter()
    model = fit_linear(train["text"][:], labels, flag)
    seconds = time.perf_counter() - start
    logger.info(f"linear model of {model[0].analyzer} n-grams fitted on {len(train)} rows in {seconds:.1f} s")
    return model, seconds


def fit_linear(texts, labels, flag="--linear_teacher"):
    """
    TF-IDF of 1- and 2-grams under a linear SVM, whose margins are made probabilities by cross-validation. The n-grams
    are of characters where most are of a script that is written without spaces, else of words.

    Args:
        texts (`list[str]`), labels (`list[str]`): Labelled rows, labels by their names.
        flag (`str`, *optional*): That asks for it, for the message.

    Returns:
        `sklearn.pipeline.Pipeline` with `predict_proba`; its `classes_` are the labels that occur.

    Raises:
        `InputError`: For a label with fewer than five rows, or texts without a word.

    Source: Platt 1999 (the probabilities); Wang and Manning 2012, https://aclanthology.org/P12-2018 (linear models of
    n-grams as a baseline of short texts).
    """
    least = min(Counter(labels).values())
    if least < FOLDS:
        raise InputError(f"{flag} needs {FOLDS} training rows of every label, one has {least}: leave it out")
    joined = "".join(texts[:10_000])
    analyzer = "char" if 2 * len(re.findall(f"[{UNSPACED}]", joined)) > len(joined) else "word"
    model = make_pipeline(
        TfidfVectorizer(analyzer=analyzer, ngram_range=(1, 2), sublinear_tf=True),
        CalibratedClassifierCV(LinearSVC(random_state=0), cv=FOLDS, ensemble=False),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(texts, labels)
    except ValueError as error:  # an empty vocabulary
        raise InputError(f"{flag}: {' '.join(str(error).split())}: leave it out") from error
