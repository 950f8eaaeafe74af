"""Labelled files become checked splits whose ids, samples and batches depend on nothing but what was asked for."""

import random

import datasets
import numpy as np
import pytest
import torch
from conftest import LABEL_NAMES, make_rows, refused

from kd_trainer.arguments import DataArguments
from kd_trainer.batches import NO_LABEL, DistillationCollator, tokenize
from kd_trainer.data import load_data, load_texts, read_class_file
from kd_trainer.loading import describe_labels
from kd_trainer.tokenization import build_tokenizer

ALL = ("train", "validation", "test")


@pytest.fixture
def write(tmp_path):
    """A function that writes `(text, label)` rows into a file with a header and returns its path as `str`."""

    def write(name, rows):
        lines = ["text\tlabel", *(f"{text}\t{'' if label is None else label}" for text, label in rows)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def write_lines(tmp_path):
    """A function that writes lines into a file and returns its path as `str`."""

    def write(name, *lines):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


def numbered(size, labels=("a", "b")):
    """Rows of different texts whose labels take turns."""
    return [(f"text {row}", labels[row % len(labels)]) for row in range(size)]


def pairs(data, split):
    """`(text, label name)` of a split's rows; None for a row without a label."""
    names = {NO_LABEL: None, **dict(enumerate(data.label_names))}
    return [(row["text"], names[row["labels"]]) for row in data.splits[split]]


# Label names


@pytest.mark.parametrize(
    "labels, names",
    [
        (["10", "9", "2", "0"], ["0", "2", "9", "10"]),
        (["1", "-1", "0"], ["-1", "0", "1"]),
        (["b", "a", "C"], ["C", "a", "b"]),
        (["财经", "体育", "科技"], sorted(["财经", "体育", "科技"])),
        (["b", "10", "9"], ["9", "10", "b"]),
        (["²", "1"], ["1", "²"]),
        (["1.0", "0.0"], ["0.0", "1.0"]),
    ],
)
def test_labels_are_named_by_value_or_by_alphabet_whatever_their_order(write, labels, names):
    for order in (labels, labels[::-1]):
        rows = [(f"text {row}", label) for row, label in enumerate(order * 3)]
        data = load_data(DataArguments(train_file=write("train.tsv", rows)), ["train"])
        assert data.label_names == names and pairs(data, "train") == rows


def test_class_file_gives_the_order_and_may_name_more(write, write_lines):
    rows = numbered(6, ["科技", "体育"])
    classes = write_lines("class.txt", "科技", " 财经 ", "体育", "", "")
    data = load_data(DataArguments(train_file=write("train.tsv", rows), class_file=classes), ["train"])
    assert data.label_names == ["科技", "财经", "体育"]
    assert data.splits["train"]["labels"][:] == [0, 2] * 3


def test_class_file_gives_ids_their_names(write, write_lines):
    args = DataArguments(
        train_file=write("train.tsv", numbered(6, ["2", "0", "财经"])),
        validation_file=write("validation.tsv", [("x", "1"), ("y", "科技")]),
        class_file=write_lines("class.txt", "科技", "财经", "体育"),
    )
    data = load_data(args)
    assert data.label_names == ["科技", "财经", "体育"]
    assert data.splits["train"]["labels"][:] == [2, 0, 1] * 2
    assert data.splits["validation"]["labels"][:] == [1, 0]


def test_a_class_name_wins_over_an_id(write, write_lines):
    args = DataArguments(train_file=write("a.tsv", numbered(4, ["1", "2"])), class_file=write_lines("c.txt", "2", "1"))
    data = load_data(args, ["train"])
    assert data.label_names == ["2", "1"] and data.splits["train"]["labels"][:] == [1, 0] * 2


def test_text_before_label_id_is_understood_with_a_class_file(write_lines):
    lines = [f"{LABEL_NAMES[label]}新闻\t{label}" for label in (2, 0, 1, 1)]
    args = DataArguments(train_file=write_lines("a.txt", *lines), class_file=write_lines("class.txt", *LABEL_NAMES))
    data = load_data(args, ["train"])
    assert data.label_names == LABEL_NAMES and data.splits["train"]["labels"][:] == [2, 0, 1, 1]


def test_a_models_order_is_kept_when_it_covers_the_data(write):
    args = DataArguments(train_file=write("train.tsv", numbered(6, ["a", "b"])))
    assert load_data(args, ["train"], model_labels=["b", "c", "a"]).label_names == ["b", "c", "a"]
    assert load_data(args, ["train"], model_labels=["b", "c"]).label_names == ["a", "b"]


def test_a_models_order_wins_over_the_class_files(write, write_lines):
    args = DataArguments(train_file=write("t.tsv", numbered(6, ["0", "1"])), class_file=write_lines("c.txt", "a", "b"))
    data = load_data(args, ["train"], model_labels=["b", "a"])
    assert data.label_names == ["b", "a"] and data.splits["train"]["labels"][:] == [1, 0] * 3


@pytest.mark.parametrize(
    "lines, found",
    [
        (["a", "", "b"], ["line 2", "empty"]),
        (["a", "b", " a "], ["line 3", "'a' stands twice"]),
        (["", ""], ["class.txt"]),
    ],
)
def test_class_file_mistakes_are_named(write_lines, lines, found):
    path = write_lines("class.txt", *lines)
    with refused(path, *found):
        read_class_file(path)


def test_class_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gbk.txt").write_bytes("a\n体育\n".encode("gbk"))
    for name, found in {"missing.txt": "no such file", "empty.txt": "empty", "gbk.txt": "line 2", ".": "not a"}.items():
        with refused(tmp_path / name, found):
            read_class_file(tmp_path / name)


# Labels that are wrong


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_unknown_to_training_is_named_by_its_line(write, split):
    files = {name: write(f"{name}.tsv", numbered(6)) for name in ALL}
    files[split] = write(f"{split}.tsv", [*numbered(3), ("new", "c"), ("newer", "d")])
    with refused(f"{split}.tsv line 5:", "'c' is unknown", "a, b"):
        load_data(DataArguments(**{f"{name}_file": path for name, path in files.items()}), ALL)


def test_a_label_that_is_not_in_the_class_file_is_named_by_its_line(write, write_lines):
    classes = write_lines("class.txt", "a", "b")
    for wrong in ("2", "-1", "c"):
        path = write("train.tsv", [*numbered(3), ("new", wrong)])
        with refused("train.tsv line 5:", repr(wrong), "--class_file"):
            load_data(DataArguments(train_file=path, class_file=classes), ["train"])


@pytest.mark.parametrize(
    "labels, found", [(["a"], "only one class, 'a'"), ([None], "not a single label"), (["a", None], "only one class")]
)
def test_training_needs_two_classes(write, labels, found):
    with refused("train.tsv", found):
        load_data(DataArguments(train_file=write("train.tsv", numbered(6, labels))), unlabelled_allowed=True)


def test_no_training_data_is_refused():
    with refused("--train_file"):
        load_data(DataArguments())


# Rows without a label

UNLABELLED = [(text, None if row % 3 == 2 else label) for row, (text, label) in enumerate(numbered(60))]


def test_unlabelled_rows_are_refused_without_a_teacher(write):
    with refused("train.tsv line 4:", "no label", "20", "run_distill.py"):
        load_data(DataArguments(train_file=write("train.tsv", UNLABELLED)))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unlabelled_rows_are_refused_in_other_splits(write, split):
    files = {f"{name}_file": write(f"{name}.tsv", numbered(6)) for name in ALL}
    files[f"{split}_file"] = write(f"{split}.tsv", UNLABELLED)
    with refused(f"{split}.tsv line 4:", "no label", split):
        load_data(DataArguments(**files), ALL, unlabelled_allowed=True)


def test_unlabelled_rows_are_kept_for_a_teacher_and_never_validated(write):
    args = DataArguments(train_file=write("train.tsv", UNLABELLED), validation_split=0.5)
    data = load_data(args, unlabelled_allowed=True)
    assert data.facts["unlabelled"] == 20 and data.facts["rows"] == {"train": 40, "validation": 20}
    assert sorted(pairs(data, "train") + pairs(data, "validation"), key=str) == sorted(UNLABELLED, key=str)
    assert NO_LABEL not in data.splits["validation"]["labels"][:]
    assert data.splits["train"]["labels"][:].count(NO_LABEL) == 20


# The validation split


def split_args(write, **changes):
    return DataArguments(**{"train_file": write("train.tsv", numbered(100)), **changes})


def test_validation_is_disjoint_in_order_and_of_the_right_size(write):
    data = load_data(split_args(write, validation_split=0.13))
    train, validation = pairs(data, "train"), pairs(data, "validation")
    assert len(validation) == 13 and sorted(train + validation) == sorted(numbered(100))
    rows = numbered(100)
    assert train == sorted(train, key=rows.index) and validation == sorted(validation, key=rows.index)
    assert validation != rows[:13] and validation != rows[-13:]


def test_validation_depends_on_the_split_seed_alone(write):
    expected = pairs(load_data(split_args(write)), "validation")
    test_file = write("test.tsv", numbered(5))
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        for changes, wanted in [
            ({}, ("train", "validation")),
            ({}, ("validation",)),
            ({"max_train_samples": 10, "max_seq_length": 5}, ("train", "validation")),
            ({"test_file": test_file}, ALL),
        ]:
            assert pairs(load_data(split_args(write, **changes), wanted), "validation") == expected
    assert pairs(load_data(split_args(write), model_labels=["b", "a"]), "validation") == expected
    assert pairs(load_data(split_args(write, split_seed=1)), "validation") != expected


def test_loading_leaves_the_global_seeds_alone(write):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    load_data(split_args(write, max_train_samples=10))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_a_validation_file_is_taken_as_it_is(write):
    path = write("validation.tsv", numbered(7))
    data = load_data(split_args(write, validation_file=path, validation_split=0.5))
    assert pairs(data, "validation") == numbered(7) and pairs(data, "train") == numbered(100)


def test_a_share_of_zero_leaves_no_validation_split(write):
    assert list(load_data(split_args(write, validation_split=0)).splits) == ["train"]


def test_validation_has_at_least_one_row_and_leaves_some(write):
    assert load_data(split_args(write, validation_split=1e-9)).facts["rows"]["validation"] == 1
    with refused("2 labelled rows", "--validation_file"):
        load_data(DataArguments(train_file=write("two.tsv", numbered(2)), validation_split=0.99))


# Samples, overlap, what is read


def test_samples_are_seeded_and_in_order(write):
    files = {f"{name}_file": write(f"{name}.tsv", numbered(100)) for name in ALL}
    sizes = {"max_train_samples": 30, "max_eval_samples": 20, "max_predict_samples": 10}
    data = load_data(DataArguments(**files, **sizes), ALL)
    assert data.facts["rows"] == {"train": 30, "validation": 20, "test": 10}
    rows = numbered(100)
    for name, size in zip(ALL, (30, 20, 10), strict=True):
        found = pairs(data, name)
        assert len(set(found)) == size and found == sorted(found, key=rows.index) and found != rows[:size]
    again, other = (load_data(DataArguments(**files, **sizes, split_seed=seed), ALL) for seed in (42, 43))
    assert pairs(again, "train") == pairs(data, "train") != pairs(other, "train")


def test_a_sample_larger_than_the_split_is_the_split(write):
    data = load_data(split_args(write, validation_split=0, max_train_samples=1000))
    assert pairs(data, "train") == numbered(100)


def test_a_sample_of_one_class_is_refused(write):
    with refused("--max_train_samples"):
        load_data(split_args(write, max_train_samples=1))


def test_overlap_with_training_is_counted(write):
    args = DataArguments(
        train_file=write("train.tsv", numbered(20)),
        validation_file=write("validation.tsv", [("text 3", "a"), (" text 4 ", "a"), ("text 4", "b"), ("new", "b")]),
        test_file=write("test.tsv", [("Text 3", "a"), ("text", "b")]),
    )
    assert load_data(args, ALL).facts["overlap_with_train"] == {"validation": 3, "test": 0}
    assert load_data(split_args(write)).facts["overlap_with_train"] == {"validation": 0}


def test_nothing_but_the_wanted_splits_is_read(write):
    files = {f"{name}_file": f"missing {name}.tsv" for name in ALL}
    train = write("train.tsv", numbered(20))
    data = load_data(DataArguments(**{**files, "train_file": train, "validation_file": None}))
    assert list(data.splits) == ["train", "validation"]
    test = write("test.tsv", numbered(4))
    data = load_data(DataArguments(**{**files, "test_file": test}), ["test"], model_labels=["b", "a"])
    assert list(data.splits) == ["test"] and data.label_names == ["b", "a"] and pairs(data, "test") == numbered(4)
    for wanted in ALL:
        with refused(f"missing {wanted}.tsv", "no such file"):
            load_data(DataArguments(**files), [wanted], model_labels=["a", "b"])


def test_validation_file_labels_come_from_training(write_lines):
    # In the validation file alone texts and labels could not be told apart.
    args = DataArguments(
        train_file=write_lines(
            "train.txt", *(f"{label}\t{label}新闻{row}" for row in range(3) for label in LABEL_NAMES)
        ),
        validation_file=write_lines("validation.txt", "体育\t篮球", "财经\t股票"),
    )
    assert load_data(args).splits["validation"]["text"][:] == ["篮球", "股票"]


def test_columns_have_the_same_types_whatever_the_split(write):
    data = load_data(DataArguments(train_file=write("train.tsv", UNLABELLED)), unlabelled_allowed=True)
    features = {"text": datasets.Value("string"), "labels": datasets.Value("int64")}
    assert all(split.features == features for split in data.splits.values())


def test_texts_to_be_labelled_need_no_label(write, write_lines):
    args = DataArguments(label_column="absent")
    assert list(load_texts(write("a.tsv", [("x", "?"), ("", "a")]), args, ["a", "b"])) == ["x", ""]
    assert list(load_texts(write_lines("a.txt", "one", "two"), args, ["a", "b"])) == ["one", "two"]
    assert list(load_texts(write_lines("b.txt", "a\tone", "b\ttwo"), args, ["a", "b"])) == ["one", "two"]
    assert list(load_texts(write_lines("c.txt", "one\t0", "two\t1"), args, ["a", "b"])) == ["one", "two"]


def test_describe_labels_goes_both_ways():
    assert describe_labels(["甲", "乙"]) == {"id2label": {0: "甲", 1: "乙"}, "label2id": {"甲": 0, "乙": 1}}


# Data sets by name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to write a data set into; what `datasets` caches goes beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "dataset").mkdir()
    return tmp_path / "dataset"


def write_parquet(folder, splits, names):
    """Splits of `(text, label name)` rows as parquet files whose label is a `ClassLabel`."""
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    for split, rows in splits.items():
        texts, labels = zip(*rows, strict=True)
        ids = [-1 if label is None else names.index(label) for label in labels]
        columns = {"sentence": texts, "label": ids}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def test_a_folder_of_csv_files_is_a_data_set(folder):
    for split, size in {"train": 12, "validation": 4, "test": 6}.items():
        lines = ["text,label", *(f"{text},{label}" for text, label in numbered(size, ["1", "0"]))]
        (folder / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    data = load_data(DataArguments(dataset_name=str(folder)), ALL)
    assert data.label_names == ["0", "1"] and data.facts["rows"] == {"train": 12, "validation": 4, "test": 6}
    assert pairs(data, "test") == numbered(6, ["1", "0"])


def test_class_labels_of_a_data_set_keep_their_names(folder):
    write_parquet(
        folder, {"train": numbered(20, ["neg", "pos", None]), "test": numbered(4, ["pos", "neg"])}, ["pos", "neg"]
    )
    args = DataArguments(dataset_name=str(folder))
    data = load_data(args, ALL, unlabelled_allowed=True)
    assert set(data.label_names) == {"neg", "pos"} and pairs(data, "test") == numbered(4, ["pos", "neg"])
    assert len(data.splits["validation"]) == 1 and data.facts["unlabelled"] == 6


def test_a_data_set_without_validation_is_split_the_same_when_only_validating(folder):
    write_parquet(folder, {"train": numbered(40)}, ["a", "b"])
    args = DataArguments(dataset_name=str(folder))
    expected = pairs(load_data(args), "validation")
    assert pairs(load_data(args, ["validation"], model_labels=["a", "b"]), "validation") == expected


def test_what_a_data_set_lacks_is_named(folder):
    write_parquet(folder, {"train": numbered(20)}, ["a", "b"])
    with refused("no split 'test'", "train"):
        load_data(DataArguments(dataset_name=str(folder)), ALL)
    with refused("no column 'body'", "'sentence', 'label'", "--text_column"):
        load_data(DataArguments(dataset_name=str(folder), text_column="body"))
    with refused("--dataset_name", folder / "missing", "cannot be loaded"):
        load_data(DataArguments(dataset_name=str(folder / "missing")))


# Dual tokenization


@pytest.mark.parametrize("max_length, teacher_max_length", [(16, 16), (4, 7)])
def test_columns_equal_each_tokenizer_called_alone(rows, tokenizer, teacher_tokenizer, max_length, teacher_max_length):
    texts, labels = [*rows[0][:10], "", "未登录的字 " * 10], [*rows[1][:10], 0, NO_LABEL]
    dataset = datasets.Dataset.from_dict({"text": texts, "labels": labels})
    found = tokenize(dataset, tokenizer, max_length, teacher_tokenizer, teacher_max_length)
    expected = {"labels": labels}
    for prefix, alone, longest in [("", tokenizer, max_length), ("teacher_", teacher_tokenizer, teacher_max_length)]:
        columns = alone(texts, truncation=True, max_length=longest)
        expected.update({f"{prefix}{name}": column for name, column in columns.items()})
    assert found.to_dict() == expected
    assert max(map(len, found["input_ids"])) == max_length
    assert max(map(len, found["teacher_input_ids"])) == teacher_max_length
    student_alone = tokenize(dataset, tokenizer, max_length)
    assert student_alone.to_dict() == {key: expected[key] for key in expected if not key.startswith("teacher_")}


# Collator


@pytest.fixture
def odd_tokenizer(write_lines):
    """A tokenizer whose padding token is not 0."""
    return build_tokenizer(vocab_file=write_lines("vocab.txt", *"体育财经", "<PAD>", "<UNK>"), max_length=16)


@pytest.mark.parametrize("multiple", [None, 8])
def test_each_side_is_padded_with_its_own_id_to_its_own_longest(tokenizer, odd_tokenizer, multiple):
    assert tokenizer.pad_token_id == 0 and odd_tokenizer.pad_token_id == 4
    rows = [
        {"input_ids": [2, 3, 5], "attention_mask": [1] * 3, "teacher_input_ids": [1], "teacher_attention_mask": [1]},
        {"input_ids": [7], "attention_mask": [1], "teacher_input_ids": [1, 2], "teacher_attention_mask": [1, 1]},
    ]
    batch = DistillationCollator(tokenizer, odd_tokenizer, multiple)(rows)
    student, teacher = (8, 8) if multiple else (3, 2)

    def pad(row, size, value):
        return row + [value] * (size - len(row))

    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [pad([2, 3, 5], student, 0), pad([7], student, 0)],
        "attention_mask": [pad([1] * 3, student, 0), pad([1], student, 0)],
        "teacher_input_ids": [pad([1], teacher, 4), pad([1, 2], teacher, 4)],
        "teacher_attention_mask": [pad([1], teacher, 0), pad([1, 1], teacher, 0)],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
def test_missing_labels_become_minus_100(tokenizer, name):
    collate = DistillationCollator(tokenizer)
    rows = [
        {"input_ids": [2], name: 1},
        {"input_ids": [2], name: None},
        {"input_ids": [2]},
        {"input_ids": [2], name: 0},
    ]
    labels = collate(rows)["labels"]
    assert labels.tolist() == [1, NO_LABEL, NO_LABEL, 0] and labels.dtype == torch.int64
    assert collate([{"input_ids": [2], name: NO_LABEL}])["labels"].tolist() == [NO_LABEL]
    assert "labels" not in collate(rows[1:3])


def test_teacher_logits_are_float32_and_unpadded(tokenizer):
    logits = [[0.1, -2.0, 3.5], [1e-8, 1e8, 0.0]]
    batch = DistillationCollator(tokenizer)(
        [{"input_ids": [2] * (row + 1), "teacher_logits": logits[row]} for row in (0, 1)]
    )
    assert batch["teacher_logits"].dtype == torch.float32
    assert torch.equal(batch["teacher_logits"], torch.tensor(logits))


def test_teacher_columns_need_the_teachers_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="teacher_tokenizer"):
        DistillationCollator(tokenizer)([{"input_ids": [2], "teacher_input_ids": [2]}])


def test_collating_leaves_the_rows_alone(tokenizer, teacher_tokenizer):
    texts, labels = make_rows(4)
    dataset = tokenize(
        datasets.Dataset.from_dict({"text": texts, "labels": labels}), tokenizer, 16, teacher_tokenizer, 16
    )
    rows, again = list(dataset), list(dataset)
    DistillationCollator(tokenizer, teacher_tokenizer)(rows)
    assert rows == again
