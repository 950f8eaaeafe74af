"""Tokenized columns and padded batches, against the tokenizer's own calls."""

import datasets
import numpy as np
import pytest
from conftest import make_rows
from transformers import PreTrainedTokenizerFast

from kd_trainer.batches import DistillationCollator, token_lengths, tokenize
from kd_trainer.tokenization import build_tokenizer, char_ids

ODD = ["", " ", "[PAD]", "股[UNK]市", "\u2028a\r\nb\t", "👍🏽e\u0301", "\x00股", "市" * 70, "ＡＢC", "𠀀𠀁"]
VOCABULARY = "<PAD>\n<UNK>\n股\n市\n大涨\n👍\n"


def char_tokenizers(tmp_path):
    """Tokenizers of characters, by what is odd about them."""
    path = tmp_path / "vocab.txt"
    path.write_text(VOCABULARY, encoding="utf-8")
    build_tokenizer(["股市大涨👍"]).save_pretrained(tmp_path / "saved")
    return {
        "counted": build_tokenizer(["股市大涨[PAD]👍 \u2028"]),
        "file": build_tokenizer(vocab_file=path),
        "reloaded": PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved"),
    }


@pytest.mark.parametrize("name", ["counted", "file", "reloaded"])
@pytest.mark.parametrize("max_length", [1, 5, 64])
def test_characters_looked_up_are_what_the_tokenizer_gives(tmp_path, name, max_length):
    tokenizer = char_tokenizers(tmp_path)[name]
    assert char_ids(tokenizer) is not None
    generator = np.random.default_rng(max_length)
    drawn = ["".join(generator.choice(list("股市大涨跌👍[]PAD "), size=size)) for size in range(80)]
    texts = [*ODD, *drawn]
    columns = tokenize(datasets.Dataset.from_dict({"text": texts, "labels": range(len(texts))}), tokenizer, max_length)
    expected = tokenizer(texts, truncation=True, max_length=max_length)
    assert {name: columns[name][:] for name in expected} == dict(expected)
    assert columns.column_names == ["labels", *expected] and columns["labels"][:] == list(range(len(texts)))


def test_no_texts_and_empty_texts_alone(tokenizer):
    for texts in ([], ["", ""]):
        features = datasets.Features({"text": datasets.Value("string")})
        columns = tokenize(datasets.Dataset.from_dict({"text": texts}, features=features), tokenizer, 8)
        assert columns.column_names == ["input_ids", "attention_mask"]
        assert token_lengths(columns) == [0] * len(texts) and all(
            row == {"input_ids": [], "attention_mask": []} for row in columns
        )


def test_other_tokenizers_are_called(teacher_tokenizer, tokenizer):
    assert char_ids(build_tokenizer(["one two"], kind="word")) is None
    assert char_ids(teacher_tokenizer) is None  # it adds [CLS] and [SEP]
    tokenizer.split_special_tokens = False  # "[PAD]" is then one token
    assert char_ids(tokenizer) is None
    texts, _ = make_rows(20)
    columns = tokenize(datasets.Dataset.from_dict({"text": texts}), teacher_tokenizer, 6)
    expected = teacher_tokenizer(texts, truncation=True, max_length=6)
    assert {name: columns[name][:] for name in expected} == dict(expected)


def test_a_character_student_is_tokenized_without_the_tokenizer(tokenizer, monkeypatch):
    """The guard of its speed: 10 times fewer texts a second pass through the tokenizer's call."""
    monkeypatch.setattr(type(tokenizer), "__call__", None)
    assert len(tokenize(datasets.Dataset.from_dict({"text": make_rows(50)[0]}), tokenizer, 8)) == 50


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_padding_is_the_tokenizers(request, side, multiple, kind):
    tokenizer = request.getfixturevalue("tokenizer" if kind == "student" else "teacher_tokenizer")
    tokenizer.padding_side = side
    rows = [dict(zip(("input_ids", "attention_mask"), ([4, 3, 2][:n], [1, 1, 1][:n]), strict=True)) for n in (2, 0, 3)]
    if kind == "teacher":
        rows = [{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in rows]
    batch = DistillationCollator(tokenizer, pad_to_multiple_of=multiple)(rows)
    expected = tokenizer.pad(rows, return_tensors="pt", pad_to_multiple_of=multiple)
    assert batch.keys() == expected.keys()
    assert all(batch[name].equal(expected[name]) and batch[name].dtype == expected[name].dtype for name in batch)


def test_lengths_are_those_of_the_rows_selected():
    dataset = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in (3, 0, 5, 1)], "labels": [0, 1, 2, 3]})
    assert token_lengths(dataset) == [3, 0, 5, 1]
    assert token_lengths(dataset.select([2, 1, 2])) == [5, 0, 5]
    assert token_lengths(dataset.filter(lambda row: row["labels"] > 1)) == [5, 1]


def test_columns_that_are_there_already_are_made_anew(tokenizer):
    dataset = datasets.Dataset.from_dict({"text": ["今日"], "input_ids": [[7]]})
    assert tokenize(dataset, tokenizer, 8)["input_ids"][:] == [tokenizer("今日")["input_ids"]]
