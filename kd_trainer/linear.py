"""A linear model of n-grams: a teacher that is fitted in seconds, and that a student must beat to be of use."""

import re
import warnings
from collections import Counter

from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from .errors import InputError
from .tokenization import UNSPACED

FOLDS = 5


def fit_linear(texts, labels):
    """
    TF-IDF of 1- and 2-grams under a linear SVM, whose margins are made probabilities by cross-validation. The n-grams
    are of characters where most are of a script that is written without spaces, else of words.

    Args:
        texts (`list[str]`), labels (`list[str]`): Labelled rows, labels by their names.

    Returns:
        `sklearn.pipeline.Pipeline` with `predict_proba`; its `classes_` are the labels that occur.

    Raises:
        `InputError`: For a label with fewer than five rows, or texts without a word.

    Source: Platt 1999 (the probabilities); Wang and Manning 2012, https://aclanthology.org/P12-2018 (linear models of
    n-grams as a baseline of short texts).
    """
    least = min(Counter(labels).values())
    if least < FOLDS:
        raise InputError(f"--linear_teacher needs {FOLDS} training rows of every label, one has {least}: leave it out")
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
        raise InputError(f"--linear_teacher: {' '.join(str(error).split())}: leave it out") from error
