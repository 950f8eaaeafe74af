"""The transfer set: variants by their kind, no text of an evaluation split, the same for the same seed."""

import json
import random
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from conftest import refused

from kd_trainer.data import TextData
from kd_trainer.distill import choose_mask
from kd_trainer.text_stream import iterate_texts
from kd_trainer.tokenization import build_tokenizer
from kd_trainer.transfer import AUGMENTATIONS, WORD, EmptyTransferSet, augment, check_transfer, transfer_set, vary

TEXTS = ["股市今日大涨", "a fine , moving film", "球队 win 3:0", "短"]


def words_of(text):
    return [word.strip() for word in WORD.findall(text)]


def test_words_are_characters_or_what_white_space_parts():
    assert words_of("股市 大涨abc, ok!") == ["股", "市", "大", "涨", "abc,", "ok!"]
    assert words_of("ข่าว𠀀a") == ["ข", "่", "า", "ว", "𠀀", "a"]
    for text in TEXTS:
        assert "".join(WORD.findall(text)) == text


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_each_kind_does_what_it_says(kind):
    texts = [" ".join(f"w{row}_{place}" for place in range(12)) for row in range(200)]  # no word twice
    variants = list(augment(texts, [kind], 1, "[M]", seed=3))
    own = {text.split()[0].split("_")[0]: text.split() for text in texts}
    lengths, kept = [], []
    for variant in variants:
        words = variant.split()
        lengths.append(len(words))
        row = next((word.split("_")[0] for word in words if word != "[M]"), None)
        original = own.get(row, [])
        if kind == "mask":
            kept.append(len(words) == 12 and all(w in ("[M]", o) for w, o in zip(words, original, strict=True)))
        elif kind == "drop":
            kept.append(words == [o for o in original if o in words] and len(words) < 12)
        elif kind == "replace":
            kept.append(len(words) == 12 and sum(w == o for w, o in zip(words, original, strict=True)) < 12)
        elif kind == "ngram":
            start = original.index(words[0])
            kept.append(original[start : start + len(words)] == words)
        else:
            rows = [word.split("_")[0] for word in words]
            places = [int(word.split("_")[1]) for word in words]
            change = next((place for place in range(1, len(rows)) if rows[place] != rows[0]), len(rows))
            kept.append(places[:change] == list(range(change)) and places[-1] == 11)
    # "replace" may draw words of the text's first word's kind; its row is read from the first word.
    assert sum(kept) >= (0.85 if kind == "replace" else 1.0) * len(kept) and len(kept) > 20
    if kind in ("mask", "drop", "replace"):
        # 1 − 0.9¹² of the texts are changed at all.
        assert abs(len(variants) / 200 - (1 - 0.9**12)) < 0.12
    else:
        assert abs(len(variants) / 200 - 0.25) < 0.12


def test_variants_obey_the_seed_and_are_as_many_as_asked():
    kinds = ["mask", "replace", "ngram"]
    one = list(augment(TEXTS * 20, kinds, 2, "□", seed=1))
    assert one == list(augment(TEXTS * 20, kinds, 2, "□", seed=1))
    assert one != list(augment(TEXTS * 20, kinds, 2, "□", seed=2))
    assert 80 < len(one) <= 160 and all(text and text == text.strip() for text in one)


def test_fewer_variants_are_the_first_of_more():
    texts = ["股市今日大涨", "a spaced text", "球队"]
    more = list(augment(texts, AUGMENTATIONS, 5, "□", seed=3))
    for variants in range(5):
        fewer = list(augment(texts, AUGMENTATIONS, variants, "□", seed=3))
        assert fewer == more[: len(fewer)] and len(fewer) <= 3 * variants


def test_a_text_of_one_word_or_none_is_never_emptied():
    generator = random.Random(0)
    for _ in range(200):
        assert vary(["短"], AUGMENTATIONS, "□", ["长"], [], generator)
    assert list(augment(["", "  "], AUGMENTATIONS, 3, "□")) == []


@pytest.fixture
def data():
    def split(texts):
        return datasets.Dataset.from_dict({"text": texts, "labels": [0] * len(texts)})

    return TextData(
        datasets.DatasetDict(train=split(TEXTS), validation=split(["验证"]), test=split(["测试 "])), ["a", "b"]
    )


def arguments(files=None, kinds=None, variants=1):
    return SimpleNamespace(unlabeled_file=files, augment=kinds, num_augmented=variants)


def write(path, texts):
    if path.suffix == ".txt":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame({"text": texts}).to_parquet(path)
    else:
        pd.DataFrame({"id": range(len(texts)), "text": texts}).to_csv(
            path, index=False, sep="," if path.suffix == ".csv" else "\t"
        )
    return str(path)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "parquet", "csv", "tsv"])
def test_files_of_all_kinds_are_read_text_by_text(tmp_path, suffix):
    texts = ["新闻一", "news, two", "三"]
    assert list(iterate_texts(write(tmp_path / f"more.{suffix}", texts))) == texts


def test_no_text_of_any_split_is_in_it(data, tmp_path):
    more = ["新闻一", "验证", " 测试", TEXTS[0], "", "  ", "新闻二"]
    files = [write(tmp_path / "one.txt", more), write(tmp_path / "two.jsonl", ["三"])]
    files.insert(1, write(tmp_path / "known.txt", TEXTS))
    parts = transfer_set(data, arguments(files, kinds=["drop"], variants=9), None, "□", 0)
    assert [part["text"][:] for part in parts[:-1]] == [["新闻一", "新闻二"], ["三"]]
    (variants,) = transfer_set(data, arguments(kinds=["drop"], variants=9), None, "□", 0)
    assert parts[-1]["text"][:] == variants["text"][:]
    for part in parts:
        assert set(part["labels"][:]) == {-100} and part.cache_files  # on disk


def test_labels_beside_the_texts_are_not_read(data, tmp_path):
    file = write(tmp_path / "more.txt", ["a\t新闻", "b\t测试"])
    (part,) = transfer_set(data, arguments([file]), None, "□", 0)
    assert part["text"][:] == ["新闻"]


def test_a_mask_is_one_that_every_tokenizer_reads_as_one(tokenizer, teacher_tokenizer):
    bert = build_tokenizer(TEXTS, kind="word", bert_style=True)
    assert bert.tokenize(bert.mask_token) != [bert.mask_token]  # text that looks like a token is text to it
    assert choose_mask([bert]) == choose_mask([tokenizer]) == "□"
    bert.split_special_tokens = False
    assert choose_mask([bert, bert]) == bert.mask_token
    assert choose_mask([bert, tokenizer]) == "□"


def test_words_replace_others_as_often_as_they_occur():
    rare = [" ".join(f"w{row}_{place}" for place in range(10)) for row in range(100)]
    variants = list(augment(["usual " * 20] * 100 + rare, ["replace"], 1, "□", seed=0))[-80:]
    drawn = [word for text in variants for word in text.split() if text.split().count(word) > 1 or word == "usual"]
    usual = sum(word == "usual" for word in drawn)
    assert usual > 40


def test_variants_are_of_the_training_texts_alone(data):
    (dataset,) = transfer_set(data, arguments(kinds=["drop"], variants=50), None, "□", 0)
    letters = set("".join(TEXTS))
    assert len(dataset) > 50 and all(set(text) <= letters for text in dataset["text"][:])
    assert not set(dataset["text"][:]) & set(TEXTS)


def test_nothing_asked_gives_nothing(data):
    assert transfer_set(data, arguments(), None, "□", 0) == []


def test_mistakes_are_named(data, tmp_path):
    with refused("--augment", "shuffle", "mask"):
        transfer_set(data, arguments(kinds=["shuffle"]), None, "□", 0)
    with refused("missing.txt", "no such file"):
        transfer_set(data, arguments([str(tmp_path / "missing.txt")]), None, "□", 0)
    with pytest.raises(EmptyTransferSet, match="no text .* leave them out"):
        transfer_set(data, arguments([write(tmp_path / "known.txt", TEXTS)]), None, "□", 0)
    (tmp_path / "empty.txt").touch()
    for check in (lambda *given: transfer_set(data, *given, "□", 0), check_transfer):
        with refused("more.csv", "no column", "'body'"):
            check(arguments([write(tmp_path / "more.csv", ["x"])]), "body")
        for name, words in (("more.xlsx", "unknown kind"), ("missing.txt", "no such file"), ("empty.txt", "empty")):
            with refused(name, words):
                check(arguments([write(tmp_path / "good.txt", ["x"]), str(tmp_path / name)]), None)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"other": 1}\n')
    with refused("bad.jsonl line 2", "'text'"):
        transfer_set(data, arguments([str(tmp_path / "bad.jsonl")]), None, "□", 0)
