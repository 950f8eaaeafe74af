"""Whatever text is sent gets an answer or one clear line, in bounded memory; a long one the answer of its beginning."""

import csv
import json
import logging
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import LABEL_NAMES, make_rows, refused
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import run_student
from kd_trainer import CascadeClassifier
from kd_trainer.arguments import DataArguments
from kd_trainer.data import load_texts
from kd_trainer.files import read_rows
from kd_trainer.inference import predict_logits
from kd_trainer.report import softmax
from kd_trainer.text_limits import SPARE_TOKENS, WIDTHS, limit_text
from kd_trainer.tokenization import build_tokenizer

HOSTILE = {
    "empty": "",
    "white space": " \t\r\n\u3000\u00a0",
    "nul": "球\x00队\x00",
    "right to left": "\u202eشوت\u202c مباراة",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 5,
    "combining": "e" + "\u0301" * 300,
    "special tokens": "[PAD] [CLS] [SEP] [UNK] [MASK] <s> </s>",
    "private and unassigned": "\ue000\U0010ffff\ufffe\u0378",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u200b\ufeff",
    "one character": "胜" * 5000,
    "spaces": " " * 5000,
}


def sentences(size=400, seed=0):
    """English and Chinese words with rare long ones, numbers, punctuation and runs of white space in between."""
    generator = np.random.default_rng(seed)
    words = [
        "the",
        "unbelievable",
        "film",
        "was",
        "anti-establishment",
        "naïve",
        "球队",
        "股市大涨",
        "12,345.67",
        "…",
        "😀",
    ]
    words += ["x" * 40, "https://a.example/path?q=1&r=2", "\n\n", "   ", "ﬁne", "e\u0301te\u0301"]
    return " ".join(generator.choice(words, size=size))


def train(model, trainer, normalizer, pre_tokenizer):
    """A fast tokenizer whose vocabulary is learnt from [`sentences`]."""
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.train_from_iterator([sentences(seed=seed) for seed in range(20)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


SPECIAL = ["[PAD]", "[UNK]"]
TOKENIZERS = {
    "char": lambda: build_tokenizer([sentences()]),
    "word": lambda: build_tokenizer([sentences()], kind="word"),
    "wordpiece": lambda: train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    ),
    "byte-level bpe": lambda: train(
        models.BPE(unk_token="[UNK]"),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "unigram": lambda: train(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]"),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
    ),
}
LONG = {
    "prose": "".join(sentences(seed=seed) for seed in range(8)),
    "no space": "".join(sentences(seed=seed).replace(" ", "") for seed in range(8)),
    "spaces first": " " * 9000 + "".join(sentences(seed=seed) for seed in range(4)),
    "one long word first": "z" * 9000 + " " + "".join(sentences(seed=seed) for seed in range(4)),
    "few spaces": ("ab" * 3000 + " ") * 30,
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def any_tokenizer(request):
    """Of every kind that decides differently where a token ends."""
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_that_is_cut_has_the_tokens_of_the_whole(any_tokenizer, text, side):
    any_tokenizer.truncation_side = side
    try:
        for max_length in (1, 16, 100):
            cut = limit_text(any_tokenizer, text, max_length)
            kept = [any_tokenizer(one, truncation=True, max_length=max_length)["input_ids"] for one in (cut, text)]
            assert kept[0] == kept[1], max_length
            assert len(cut) <= len(text) and (text.endswith(cut) if side == "left" else text.startswith(cut))
    finally:
        any_tokenizer.truncation_side = "right"


def test_prose_is_cut_and_what_fits_is_not_touched(any_tokenizer):
    size = WIDTHS[0] * (16 + SPARE_TOKENS)
    assert len(LONG["prose"]) > size
    assert len(limit_text(any_tokenizer, LONG["prose"], 16)) == size
    for text in (*HOSTILE.values(), LONG["prose"][:size]):
        if len(text) <= size:
            assert limit_text(any_tokenizer, text, 16) is text


def test_a_text_without_tokens_is_read_up_to_a_limit_which_is_said(caplog):
    tokenizer = build_tokenizer(["one two"], kind="word")
    limit = WIDTHS[-1] * (8 + SPARE_TOKENS)
    with caplog.at_level(logging.WARNING, "kd_trainer"):
        assert len(limit_text(tokenizer, " " * limit, 8)) == limit and not caplog.records
        assert len(limit_text(tokenizer, " " * (limit + 1), 8)) == limit
    assert len(caplog.records) == 1 and f"{limit:,}" in caplog.text


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.truncation_side, self.characters = tokenizer, tokenizer.truncation_side, 0

    def __call__(self, *texts, **kwargs):
        for given in texts:
            self.characters += len(given) if isinstance(given, str) else sum(map(len, given))
        return self.tokenizer(*texts, **kwargs)


@pytest.mark.parametrize("kind", ["char", "word"])
@pytest.mark.parametrize("unit", ["胜", "一 二 ", " ", "\u0301"])
def test_ten_megabytes_cost_no_more_than_the_limit(make_student, kind, unit):
    tokenizer = Counting(build_tokenizer(["一二胜"], kind=kind))
    text = unit * (10_000_000 // len(unit))
    predict_logits(make_student(vocab_size=10), tokenizer, [text, "胜"], 16)
    # Each width is tried once, and what is kept is tokenized once more.
    assert tokenizer.characters <= (sum(WIDTHS) + WIDTHS[-1]) * (16 + SPARE_TOKENS) + 1


@pytest.fixture(params=["student", "teacher", "cascade"])
def answer(request, make_student, make_teacher, tokenizer, teacher_tokenizer):
    """A function from texts to logits, of each thing that answers texts."""
    student, teacher = (make_student(initializer_range=1.0).eval(), tokenizer), (make_teacher(), teacher_tokenizer)
    if request.param == "cascade":
        return lambda texts: CascadeClassifier(student, teacher, threshold=0.45, max_seq_length=16).answer(texts)[0]
    return lambda texts: predict_logits(*(student if request.param == "student" else teacher), texts, 16)


def test_hostile_texts_are_answered_and_disturb_no_other(answer, rows):
    plain = rows[0][:8]
    mixed = answer([*HOSTILE.values(), *plain])
    assert mixed.shape == (len(HOSTILE) + 8, 3) and np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed[-8:], answer(plain), atol=1e-5, rtol=0)
    alone = np.concatenate([answer([text]) for text in HOSTILE.values()])
    np.testing.assert_allclose(mixed[:-8], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["char", "word"])
def test_the_name_of_a_special_token_is_text(kind):
    tokenizer = build_tokenizer(["[PAD] 球 [UNK] CLS"], kind=kind)
    ids = tokenizer("[PAD]")["input_ids"]
    assert tokenizer.pad_token_id not in ids and len(ids) > 1


@pytest.mark.parametrize(
    "texts, found",
    [
        (["球队", "a\ud83d"], ("text 2", "\\ud83d")),
        (["\udcff"], ("text 1", "\\udcff")),
        ([("球队", "\udc00")], ("text 1", "\\udc00")),
        (["球队", None], ("text 2", "NoneType")),
        (["球队", b"x"], ("text 2", "bytes")),
        (["球队", ["a", "b"]], ("text 2", "list")),
        (["球队", ("a", "b")], ("text 2", "pairs")),
        ([("a", "b"), "球队"], ("text 2", "pairs")),
        ([("a", "b", "c")], ("text 1", "pairs")),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(make_student, tokenizer, texts, found):
    with refused(*found):
        predict_logits(make_student(), tokenizer, texts, 16)


@pytest.fixture
def saved(make_student, tokenizer, tmp_path):
    """Folder of a saved student."""
    make_student(initializer_range=1.0).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def predict_file(saved, path, output, *flags):
    run_student.main(
        [
            f"--model_name_or_path={saved}",
            f"--predict_file={path}",
            f"--predict_output={output}",
            "--use_cpu",
            "--max_seq_length=16",
            "--disable_tqdm=true",
            *flags,
        ]
    )


def test_half_a_character_of_the_command_line_is_one_line(saved):
    with refused("\\udcff"):
        run_student.main(
            [f"--model_name_or_path={saved}", "--predict_text=a\udcff", "--use_cpu", "--max_seq_length=16"]
        )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_file_is_labelled_piece_by_piece_as_in_one_call(
    saved, tmp_path, make_student, tokenizer, monkeypatch, suffix
):
    texts = [*HOSTILE.values(), *make_rows(50)[0], 'a "quoted", cell\r\nof three\nlines']
    path, output = tmp_path / "texts.csv", tmp_path / f"labels{suffix}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a byte-order mark
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    monkeypatch.setattr("kd_trainer.text_stream.TextFile.pieces.__defaults__", (7, 2**24))
    predict_file(saved, path, output)
    # The end of a line within a cell is read as \n, however it is written; nothing else changes.
    read = list(load_texts(path, DataArguments(), LABEL_NAMES))
    assert read == [text.replace("\r\n", "\n") for text in texts]
    expected = softmax(predict_logits(make_student(initializer_range=1.0), tokenizer, read, 16))
    with output.open(encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            header, *rows = csv.reader(file)
            assert header == ["text", "label", *(f"probability_{name}" for name in LABEL_NAMES)]
            rows = [(text, label, [*map(float, values)]) for text, label, *values in rows]
        else:
            rows = json.load(file) if suffix == ".json" else [json.loads(line) for line in file]
            rows = [(row["text"], row["label"], [*row["probabilities"].values()]) for row in rows]
    assert [text for text, _, _ in rows] == read
    assert [label for _, label, _ in rows] == [LABEL_NAMES[index] for index in expected.argmax(1)]
    np.testing.assert_allclose([values for _, _, values in rows], expected, atol=2e-6)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("bad, found", [(b'"open\n', "line 41"), (b"\xff\n", "line 41"), (b"a,b,c\n", "line 41")])
def test_a_mistake_at_the_end_of_a_file_is_said_before_anything_is_labelled(saved, tmp_path, monkeypatch, bad, found):
    path = tmp_path / "texts.csv"
    path.write_bytes(b"text\n" + "球队\n".encode() * 39 + bad)

    def never(*args, **kwargs):
        raise AssertionError("labelled")

    monkeypatch.setattr("kd_trainer.workflow.predict_logits", never)
    with refused(path, found):
        predict_file(saved, path, tmp_path / "labels.csv")
    assert not list(tmp_path.glob("labels*"))


@pytest.mark.parametrize("content, found", [("text\n", "no row"), ("text\n \n\t\n", "texts are empty"), ("", "empty")])
def test_a_file_without_a_text_is_refused(saved, tmp_path, content, found):
    (tmp_path / "texts.csv").write_text(content)
    with refused(tmp_path / "texts.csv", found):
        predict_file(saved, tmp_path / "texts.csv", tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "one\n\ntwo\n", ["one", "", "two"]),
        ("b.txt", "a\tone\n\nb\ttwo\n", ["one", "two"]),
        ("c.txt", "one\t0\ntwo\t1\n", ["one", "two"]),
        ("d.tsv", "a\tone\nb\ttwo\n", ["one", "two"]),
        ("e.tsv", "one\ntwo\n\n", ["one", "two", ""]),
        ("f.tsv", "label\ttext\na\tone\n", ["one"]),
        ("g.txt", "a\tone\nb\ttwo\tthree\n", "line 2: 2 tabs"),
        ("h.txt", "one\na\ttwo\nthree\n", "line 1: no tab"),
        ("i.txt", "x\tone\ny\ttwo\n", "cannot tell text from label"),
        ("j.txt", "a\tb\tc\n", "3 columns"),
        ("k.txt", "\n\n", "all 2 texts are empty"),
        ("l.tsv", "\n\n", "no row in the file"),
        ("m.csv", '\ufeffsentence,label\n"one\ntwo",a\n,b\n', ["one\ntwo", ""]),
        ("n.jsonl", '{"text": "one"}\n\n{"text": null, "more": 1}\n', ["one", ""]),
        ("o.json", '[{"text": "one"}, {"text": 2}]', ["one", "2"]),
        ("p.xyz", "one", "unknown kind of file"),
    ],
)
def test_the_texts_of_a_file_come_one_by_one_or_it_is_said_why_not(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    if isinstance(expected, str):
        with refused(name, expected):
            load_texts(tmp_path / name, DataArguments(), ["a", "b"])
    else:
        assert list(load_texts(tmp_path / name, DataArguments(), ["a", "b"])) == expected
        if "label" in content or "\t" in content:
            assert read_rows(tmp_path / name, known_labels=["a", "b", "0", "1"]).texts == expected


def test_a_text_file_is_read_anew_in_pieces_of_rows_and_of_characters(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(10)))
    texts = load_texts(tmp_path / "a.txt", DataArguments(), ["a", "b"])
    assert len(texts) == 10 and list(texts) == list(texts) == [str(number) for number in range(10)]
    assert [len(piece) for piece in texts.pieces(4)] == [4, 4, 2] and [len(piece) for piece in texts.pieces(5)] == [
        5,
        5,
    ]
    assert [text for piece in texts.pieces(4, 3) for text in piece] == list(texts)
    assert max(map(len, texts.pieces(4, 3))) == 3


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path, suffix):
    import pandas as pd

    peaks = []
    for rows in (10_000, 40_000):
        path = tmp_path / f"{rows}.{suffix}"
        frame = pd.DataFrame({"text": [f"{number} " + "x" * 200 for number in range(rows)]})
        if suffix == "parquet":
            frame.to_parquet(path, row_group_size=1000)
        elif suffix == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, sep="\t" if suffix == "tsv" else ",", index=False, header=suffix != "txt")
        texts = load_texts(path, DataArguments(), ["a", "b"])
        tracemalloc.start()
        assert sum(map(len, texts.pieces(500))) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < 40_000 * 200 / 2


def test_only_pickled_weights_are_refused_and_never_read(saved, tmp_path):
    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (saved / "model.safetensors").unlink()
    torch.save(Boom(), saved / "pytorch_model.bin")
    with refused(saved, "safetensors"):
        run_student.main([f"--model_name_or_path={saved}", "--predict_text=球队", "--use_cpu"])
    assert not (tmp_path / "executed").exists()
