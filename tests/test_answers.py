"""Any classifier teaches: its answers become logits in the order of the data's labels."""

import numpy as np
import pytest
from conftest import LABEL_NAMES, make_rows, refused
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC

from kd_trainer.answers import BATCH_ROWS, teacher_answers
from kd_trainer.linear import fit_linear

TEXTS, LABELS = make_rows(120)
NAMES = [LABEL_NAMES[label] for label in LABELS]


def fitted(classifier, labels=NAMES, texts=TEXTS):
    return make_pipeline(TfidfVectorizer(analyzer="char"), classifier).fit(texts, labels)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_classifier_is_asked_by_the_names_of_its_labels(order):
    pipeline, names = fitted(LogisticRegression()), [LABEL_NAMES[index] for index in order]
    found = teacher_answers(pipeline, TEXTS, names)
    assert [names[index] for index in found.argmax(axis=1)] == pipeline.predict(TEXTS).tolist()
    expected = pipeline.predict_proba(TEXTS)[:, [pipeline.classes_.tolist().index(name) for name in names]]
    np.testing.assert_allclose(softmax(found, axis=1), expected, rtol=1e-4)


def test_label_ids_are_positions():
    found = teacher_answers(fitted(LogisticRegression(), LABELS), TEXTS, LABEL_NAMES)
    np.testing.assert_array_equal(found.argmax(axis=1), fitted(LogisticRegression(), LABELS).predict(TEXTS))


def test_margins_are_logits_and_those_of_two_labels_their_difference():
    pipeline = fitted(LinearSVC())
    np.testing.assert_allclose(
        teacher_answers(pipeline, TEXTS, pipeline.classes_.tolist()), pipeline.decision_function(TEXTS), rtol=1e-5
    )
    two = [row for row, label in enumerate(LABELS) if label < 2]
    pipeline = fitted(LinearSVC(), [NAMES[row] for row in two], [TEXTS[row] for row in two])
    found = teacher_answers(pipeline, TEXTS, LABEL_NAMES[:2])
    margins = pipeline.decision_function(TEXTS) * (1 if pipeline.classes_.tolist() == LABEL_NAMES[:2] else -1)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], margins, rtol=1e-5)


def test_a_function_is_asked_in_batches_and_may_give_probabilities():
    sizes, texts = [], [str(number) for number in range(2 * BATCH_ROWS + 7)]

    def answer(batch):
        sizes.append(len(batch))
        return [[int(text) % 3, -1.5] for text in batch]

    found = teacher_answers(answer, texts, ["a", "b"])
    np.testing.assert_array_equal(found, [[number % 3, -1.5] for number in range(len(texts))])
    assert sizes == [BATCH_ROWS, BATCH_ROWS, 7]
    sure = teacher_answers(lambda batch: [[1.0, 0.0]] * len(batch), ["x"], ["a", "b"])
    assert np.isfinite(sure).all() and log_softmax(sure, axis=1)[0, 0] == pytest.approx(0, abs=1e-4)


def test_a_margin_for_each_pair_of_labels_is_refused():
    texts, labels = make_rows(60)
    four = [str(label) if row % 2 else "3" for row, label in enumerate(labels)]
    pipeline = fitted(SVC(decision_function_shape="ovo"), four, texts)
    with refused("6 margins", "4 labels"):
        teacher_answers(pipeline, texts, ["0", "1", "2", "3"])


def test_answers_that_do_not_fit_are_refused():
    for answer in ([[1.0]], [[1.0, 2.0, 3.0]], [[np.nan, 1.0]], [1.0, 2.0], [[1, 2], [3, 4]]):
        with refused("1 texts", "2 labels"):
            teacher_answers(lambda batch, answer=answer: answer, ["x"], ["a", "b"])
    with refused("体育", "['a', 'b', 'c']"):
        teacher_answers(fitted(LogisticRegression()), TEXTS, ["a", "b", "c"])


def test_the_linear_teacher_is_scikit_learns_pipeline():
    model = fit_linear(TEXTS, LABELS)
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    features = vectors.fit_transform(TEXTS)
    expected = CalibratedClassifierCV(LinearSVC(random_state=0), cv=5, ensemble=False).fit(features, LABELS)
    held_out, labels = make_rows(60, seed=5)
    np.testing.assert_allclose(model.predict_proba(held_out), expected.predict_proba(vectors.transform(held_out)))
    assert (model.predict(held_out) == labels).mean() > 0.9


def test_a_spaced_script_is_cut_into_words():
    texts = ["good film", "bad film", "very good", "very bad", "good one"] * 4
    model = fit_linear(texts, [0, 1, 0, 1, 0] * 4)
    assert "very good" in model[0].vocabulary_ and model.predict(["a good thing"])[0] == 0
    assert fit_linear(TEXTS, LABELS)[0].analyzer == "char"


def test_texts_that_no_linear_model_can_be_fitted_on_are_refused():
    with refused("--linear_teacher", "5 training rows", "has 4"):
        fit_linear(TEXTS[:14], NAMES[:14])
    with refused("--linear_teacher", "vocabulary"):
        fit_linear(["!"] * 20, [0, 1] * 10)
