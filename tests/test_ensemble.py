"""Several teachers speak as one: the weighted geometric mean of their probabilities."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from conftest import refused
from scipy.special import softmax

from kd_trainer.arguments import StudentArguments, TeacherArguments
from kd_trainer.data import TextData, encode_answers
from kd_trainer.distill import load_teachers, sources_digest
from kd_trainer.ensemble import ColumnTeacher, Ensemble, check_weights
from kd_trainer.files import Rows, read_rows

LABELS = ["体育", "财经"]
ANSWERS = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) * 3 for seed in range(3)]


class Says:
    def __init__(self, answer):
        self.answer = answer

    def logits(self, split, run, half=False):
        return self.answer


def ensemble(answers, weights=None):
    return Ensemble([Says(answer) for answer in answers], check_weights(weights, len(answers)), SimpleNamespace())


def test_one_teacher_says_its_own_logits():
    assert ensemble(ANSWERS[:1]).logits(None, None) is ANSWERS[0]


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.2, 0.5, 3], [0, 0, 2.0]])
def test_several_say_the_geometric_mean_of_their_probabilities(weights):
    found = ensemble(ANSWERS, weights).logits(None, None)
    shares = np.ones(3) / 3 if weights is None else np.array(weights) / np.sum(weights)
    product = np.prod([softmax(a, axis=-1) ** share for a, share in zip(ANSWERS, shares, strict=True)], axis=0)
    np.testing.assert_allclose(softmax(found, axis=-1), product / product.sum(axis=-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-5)


def test_a_teacher_twice_has_its_own_logits():
    # Not its log-probabilities: `--kd_loss mse` compares logits as they are.
    logits = np.array([[4.0, -4.0], [-0.5, 0.5]], dtype=np.float32)
    for weights in ([1, 1], [1, 3]):
        np.testing.assert_allclose(ensemble([logits, logits], weights).logits(None, None), logits, atol=1e-6)


def test_a_constant_added_to_a_teachers_logits_changes_nothing():
    moved = [ANSWERS[0] + 1e4, ANSWERS[1] - 50]
    expected = ensemble(ANSWERS[:2]).logits(None, None)
    np.testing.assert_allclose(ensemble(moved).logits(None, None), expected, atol=5e-3)


@pytest.mark.parametrize("size", [1e308, 1e-320])
def test_of_weights_only_the_ratios_matter(size):
    expected = ensemble(ANSWERS[:2], check_weights([1, 1], 2)).logits(None, None)
    found = ensemble(ANSWERS[:2], check_weights([size, size], 2)).logits(None, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_that_make_no_mean_are_refused():
    for weights, words in (([1], "for 2 teachers"), ([1, -1], "not negative"), ([0, 0], "all 0")):
        with refused("--teacher_weights", words):
            check_weights(weights, 2)


def test_without_an_answer_of_all_there_is_none():
    split = datasets.Dataset.from_dict({"text": ["a"]})
    together = Ensemble([Says(ANSWERS[0]), ColumnTeacher()], [1, 1], SimpleNamespace())
    assert together.logits(split, None) is None


def rows_of(cells):
    return Rows("train.jsonl", [""] * len(cells), [None] * len(cells), list(range(1, len(cells) + 1)), list(cells))


def test_answers_are_lists_objects_or_json():
    expected = np.array([[-1, 1]] * 3) * np.log(3) / 2
    cells = [[0.25, 0.75], {"财经": 0.75, "体育": 0.25}, "[0.25, 0.75]"]
    np.testing.assert_allclose(encode_answers(rows_of(cells), LABELS), expected, rtol=1e-5)


def test_what_does_not_sum_to_one_is_logits():
    cells = [[0.25, 0.75], [2.0, -1.0]]
    np.testing.assert_allclose(encode_answers(rows_of(cells), LABELS), cells)
    found = encode_answers(rows_of([[1.0, 0.0]]), LABELS)
    assert np.isfinite(found).all() and found[0, 1] == -found[0, 0] < 0


def test_an_answer_that_is_none_among_probabilities_is_named_by_its_line():
    with refused("train.jsonl line 2", "sums to 0.95", "2 of 3 rows"):
        encode_answers(rows_of([[0.25, 0.75], [0.2, 0.75], [1.0, 0.0]]), LABELS)


@pytest.mark.parametrize(
    "cell",
    [None, "", "x", "[1", [1.0], [1.0, 2.0, 3.0], [1.0, "a"], [float("nan"), 1.0], {"体育": 1.0}, 3, [[1, 2], [3, 4]],
     {"体育": 1.0, "财经": 0.0, "其他": 0.0}, "3", True],
)  # fmt: skip
def test_a_bad_answer_is_named_by_its_line(cell):
    with refused("train.jsonl line 2", "2 finite numbers", "--teacher_column"):
        encode_answers(rows_of([[0.5, 0.5], cell]), LABELS)


def test_answers_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "体育", "llm": [0.1, 0.9]}\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tlabel\tllm\nx\t体育\t[0.1, 0.9]\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text('text,label,llm\nx,体育,"[0.1, 0.9]"\n', encoding="utf-8")
    datasets.Dataset.from_dict({"text": ["x"], "label": ["体育"], "llm": [[0.1, 0.9]]}).to_parquet(
        tmp_path / "a.parquet"
    )
    for suffix in ("jsonl", "tsv", "csv", "parquet"):
        rows = read_rows(tmp_path / f"a.{suffix}", answer_column="llm")
        np.testing.assert_allclose(softmax(encode_answers(rows, LABELS), axis=-1), [[0.1, 0.9]], rtol=1e-5)
        assert read_rows(tmp_path / f"a.{suffix}").answers is None
        assert read_rows(tmp_path / f"a.{suffix}", answer_column="other").answers is None


def text_data(names=("体育", "财经"), **splits):
    rows = {name: {"text": texts, "labels": [0] * len(texts)} for name, texts in splits.items()}
    return TextData(
        datasets.DatasetDict({name: datasets.Dataset.from_dict(row) for name, row in rows.items()}), list(names)
    )


def test_what_a_student_is_made_of_has_a_name(tmp_path):
    def digest(teachers=("a",), more="x", vectors="y", kinds=None, **splits):
        for name, content in (("more.txt", more), ("vectors.txt", vectors)):
            (tmp_path / name).write_text(content)
        args = SimpleNamespace(unlabeled_file=[str(tmp_path / "more.txt")] if more else None, augment=kinds)
        teacher = SimpleNamespace(models=[SimpleNamespace(digest=one) for one in teachers], args=args)
        student_args = SimpleNamespace(embedding_init=str(tmp_path / "vectors.txt"))
        return sources_digest(teacher, student_args, text_data(**{"train": ["一"], **splits}))

    others = [
        digest(), digest(teachers=["b"]), digest(teachers=["a", "b"]), digest(more="z"), digest(vectors="z"),
        digest(test=["二"]), digest(test=["三"]), digest(train=["二"]),
    ]  # fmt: skip
    assert len(set(others)) == len(others) and digest() == others[0]
    # The data's own name comes first; the test split is of it only where a transfer set leaves its texts out.
    assert {one.split()[0] for one in others[:-1]} == {text_data(train=["一"]).digest()}
    assert digest(more="") == digest(more="", test=["二"]) != digest(more="", test=["二"], kinds=["drop"])


def test_a_label_map_serves_several_teachers(make_teacher, teacher_tokenizer, tmp_path):
    for name, labels in (("own", ["体育", "财经"]), ("english", ["finance", "sports"])):
        make_teacher(label_names=labels).save_pretrained(tmp_path / name)
        teacher_tokenizer.save_pretrained(tmp_path / name)
    names, data = [str(tmp_path / "own"), str(tmp_path / "english")], text_data(train=["一"])

    def load(label_map):
        return load_teachers(names, TeacherArguments(label_map=label_map), StudentArguments(), data, 16)

    assert [member.order for member in load("sports=体育,finance=财经").members] == [[0, 1], [1, 0]]
    with refused("--label_map names ['politics'], which no teacher has", "'sports'"):
        load("sports=体育,finance=财经,politics=财经")
