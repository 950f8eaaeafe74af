"""The page to try a student: what stands behind it, its words, and the Space that it is packed into."""

import csv
import os
import re
import shutil
import string
import subprocess
import sys
import urllib.request
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LABEL_NAMES, WORDS, refused
from hub_server import HubServer
from test_scripts import launch

from kd_trainer import demo as console
from kd_trainer import demo_words
from kd_trainer.arguments import ModelArguments
from kd_trainer.attribution import attribute
from kd_trainer.demo_html import escape, percent, render_answers, render_counts, render_refusal
from kd_trainer.demo_models import MOST_CHARACTERS, load_demo
from kd_trainer.demo_words import LANGUAGES, Refusal, preferred_language, say
from kd_trainer.inference import predict_logits
from kd_trainer.report import prediction_rows, write_predictions
from kd_trainer.tokenization import build_tokenizer

PROJECT = Path(__file__).parent.parent
TEXT = "球队进银行"
HOSTILE = [
    "<script>alert(1)</script>&lt;",
    'a"onmouseover="x" \'',
    "股\x00市\x1b[31m",
    "\u202eabc\u2066\u200f股市\ufeff",
    "🀄👨‍👩‍👧\U000e0041",
    "\n\n股 \t市\r\n",
    "</section></p></mark>",
]


class Seen(HTMLParser):
    """What a browser would show, and which tags it would make of it."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.open, self.text, self.attributes = [], [], "", []
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "sup" not in self.open:
            self.text += data


def named(text):
    """A text as it is to be seen: what has no shape is named by its code point."""
    hidden = re.compile(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0001-\U000e007f]"
    )
    return hidden.sub(lambda found: f"U+{ord(found.group()):04X}", text)


@pytest.fixture
def folders(make_student, tokenizer, make_teacher, teacher_tokenizer, tmp_path):
    """Folders of a student and of a teacher whose labels stand in another order."""
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    make_student(ngram_buckets=64).save_pretrained(student)
    tokenizer.save_pretrained(student)
    make_teacher(label_names=LABEL_NAMES[::-1]).save_pretrained(teacher)
    teacher_tokenizer.save_pretrained(teacher)
    return student, teacher


@pytest.fixture
def demo(folders):
    return load_demo(*folders, ModelArguments())


@pytest.fixture
def write_csv(tmp_path):
    def write(content, name="texts.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def pair_demo(make_student, tmp_path):
    tokenizer = build_tokenizer(list(WORDS.values()), max_length=16, text_pairs=True)
    make_student(text_pairs=True, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "pairs")
    tokenizer.save_pretrained(tmp_path / "pairs")
    return load_demo(str(tmp_path / "pairs"), None, ModelArguments())


# Words.


def test_every_sentence_is_there_in_every_language_with_the_same_braces():
    for key, sentences in demo_words.WORDS.items():
        assert set(sentences) == set(LANGUAGES), key
        fields = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in sentences.values()]
        assert fields[0] == fields[1], key
        assert re.search("[\u3000-\u9fff]", sentences["zh"]) or "{" in sentences["zh"], key
        assert not re.search("[\u3000-\u9fff]", sentences["en"]), key


def test_every_sentence_is_said_somewhere():
    sources = "".join((PROJECT / "kd_trainer" / f"demo_{name}.py").read_text() for name in ("html", "models", "page"))
    sources += "".join(key for _, key in demo_words.FILE_ERRORS) + str(demo_words.refusal_of.__code__.co_consts)
    assert not [key for key in demo_words.WORDS if key not in sources]


@pytest.mark.parametrize(
    "header, expected",
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("fr,zh;q=0.2", "zh"),
        ("de", "en"),
        ("", "en"),
        (None, "en"),
        ("zh;q=x,en;q=0.1", "en"),
        (";;q=,,", "en"),
    ],
)
def test_the_language_is_the_browsers(header, expected):
    assert preferred_language(header) == expected


# Models.


def test_probabilities_are_the_models_and_labels_are_matched_by_name(
    demo, make_student, make_teacher, tokenizer, teacher_tokenizer
):
    text, (student, teacher) = demo.answers([TEXT])
    assert text == TEXT and demo.label_names == LABEL_NAMES
    for answer, model, model_tokenizer, names in (
        (student, demo.student.model, tokenizer, LABEL_NAMES),
        (teacher, make_teacher(label_names=LABEL_NAMES[::-1]), teacher_tokenizer, LABEL_NAMES[::-1]),
    ):
        expected = torch.tensor(predict_logits(model, model_tokenizer, [TEXT], 16)).softmax(dim=1)[0].tolist()
        by_name = dict(zip(names, expected, strict=True))
        np.testing.assert_allclose(answer.probabilities, [by_name[name] for name in LABEL_NAMES], rtol=1e-5)
        assert answer.milliseconds > 0 and answer.limit == 16 and not answer.cut
    assert student.spans == attribute(demo.student.model, tokenizer, TEXT, 16).spans


def test_a_text_beyond_the_limit_is_cut_and_said_to_be(demo):
    text, answers = demo.answers(["球" * 40])
    assert [answer.cut for answer in answers] == [True, True]
    assert [answer.spans[0][-1].end for answer in answers] == [16, 14]
    shown = Seen(render_answers(text, answers, demo.label_names, "en")).text
    assert "16 of 40 characters" in shown and "14 of 40 characters" in shown and "not read: 24 characters" in shown


def test_length_columns_and_pairs_are_as_the_folder_was_trained(folders):
    student, teacher = folders
    (Path(student) / "recipe.yaml").write_text(yaml.safe_dump({"max_seq_length": 9, "teacher_max_seq_length": 7}))
    demo = load_demo(student, teacher, ModelArguments())
    assert (demo.student.max_length, demo.teacher.max_length) == (9, 7)
    demo = load_demo(student, teacher, ModelArguments(), max_length=5)
    assert (demo.student.max_length, demo.teacher.max_length) == (5, 5)
    (Path(student) / "recipe.yaml").write_text("[")
    with refused("recipe.yaml", "damaged"):
        load_demo(student, None, ModelArguments())


@pytest.mark.parametrize("name", ["max_seq_length", "teacher_max_seq_length"])
@pytest.mark.parametrize("value", ["x", "9", -1, 0, 2.5, [9], {}, True, 2**31])
def test_a_length_in_the_recipe_that_is_none_is_refused(folders, name, value):
    recipe = Path(folders[0]) / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({name: value}))
    with refused(recipe, name):
        load_demo(*folders, ModelArguments())


def test_a_teacher_of_other_labels_is_refused(folders, make_teacher, teacher_tokenizer, tmp_path):
    make_teacher(label_names=["a", "b", "c"]).save_pretrained(tmp_path / "other")
    teacher_tokenizer.save_pretrained(tmp_path / "other")
    with refused("teacher has labels", "--label_map"):
        load_demo(folders[0], str(tmp_path / "other"), ModelArguments())
    renamed = dict(zip("abc", LABEL_NAMES, strict=True))
    assert load_demo(folders[0], str(tmp_path / "other"), ModelArguments(), renamed).teacher.order == [0, 1, 2]


def test_a_pickle_is_not_loaded(folders):
    student = Path(folders[0])
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    with refused("pickled"):
        load_demo(str(student), None, ModelArguments())


def test_the_code_of_a_folder_is_not_run(folders, tmp_path, monkeypatch):
    """Of a kind of model that the package does not know, too."""
    student = Path(folders[0])
    (student / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = (student / "config.json").read_text(encoding="utf-8")
    evil = config.replace("modeling_bilstm.BiLSTM", "modeling_evil.BiLSTM").replace("kd_bilstm", "evil")
    (student / "config.json").write_text(evil, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", None)
    with refused("code of its own"):
        load_demo(str(student), None, ModelArguments())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text, key",
    [
        ("", "empty"),
        (None, "empty"),
        (" \n\t\u3000", "empty"),
        ("球" * (MOST_CHARACTERS + 1), "too_long"),
        ("a" * 1_000_000, "too_long"),
        ("股\ud800", "surrogate"),
        ("\udfff", "surrogate"),
    ],
)
def test_texts_that_are_refused(demo, text, key):
    with pytest.raises(Refusal) as caught:
        demo.answers([text])
    assert caught.value.key == key
    for language in LANGUAGES:
        assert Seen(render_refusal(caught.value, language)).text == say(key, language, **caught.value.values)


@pytest.mark.parametrize("text", [*HOSTILE, "球" * MOST_CHARACTERS, "א ב ג العربية"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_texts_are_answered_and_escaped(demo, text, language):
    plain = render_answers(*demo.answers([TEXT]), demo.label_names, language)
    found = render_answers(*demo.answers([text]), demo.label_names, language)
    seen = Seen(found)
    assert set(seen.tags) <= {*Seen(plain).tags, "span"} and not [name for name in seen.attributes if name[:2] == "on"]
    assert not re.search("[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]", found)
    if len(text) <= 14:
        assert seen.text.count(named(text)) >= 2


@pytest.mark.parametrize("text", HOSTILE)
def test_an_escaped_text_is_the_text(text):
    assert Seen(f"<p>{escape(text)}</p>").text == named(text)


def test_labels_and_file_names_are_escaped_too(demo):
    demo.label_names = ["<i>", "&amp;", "</td>"]
    shown = render_answers(*demo.answers([TEXT]), demo.label_names, "en")
    assert all(name in Seen(shown).text for name in demo.label_names) and "i" not in Seen(shown).tags
    seen = Seen(render_counts("<b>.csv", Counter({"<i>": 2}), demo.label_names, 1.0, "zh"))
    assert "<b>.csv" in seen.text and "<i>" in seen.text


def test_what_mattered_is_numbered_by_size_without_colour(demo):
    text, answers = demo.answers([TEXT])
    shown = render_answers(text, answers[:1], demo.label_names, "en")
    spans = sorted(answers[0].spans[0], key=lambda span: -abs(span.contribution))
    items = re.findall(r"<li><bdi>“(.)”</bdi> ([+−])(.+?)</li>", shown)
    expected = [(text[s.start], "+" if s.contribution > 0 else "−", abs(s.contribution)) for s in spans]
    assert [item[:2] for item in items] == [item[:2] for item in expected[:5]]
    np.testing.assert_allclose([float(item[2]) for item in items], [item[2] for item in expected[:5]], rtol=0.5)
    places = re.findall(r"<u>(.)</u><sup>\u2060(\d)([+−])</sup>", shown)
    assert sorted(places, key=lambda place: place[1]) == [
        (character, str(number), sign) for number, (character, sign, _) in enumerate(expected, start=1)
    ]


def test_agreement_is_said(demo):
    text, (student, teacher) = demo.answers([TEXT])
    teacher.probabilities = student.probabilities
    assert say("agree", "zh") in render_answers(text, [student, teacher], demo.label_names, "zh")
    teacher.probabilities = student.probabilities[1:] + student.probabilities[:1]
    assert say("differ", "zh") in render_answers(text, [student, teacher], demo.label_names, "zh")
    assert "data-agree" not in render_answers(text, [student], demo.label_names, "zh")


def test_a_teachers_label_is_shown_however_many_there_are(demo):
    text, answers = demo.answers([TEXT])
    names = [f"label {number}" for number in range(30)]
    answers[0].probabilities = [2 / 31 - number / 465 for number in range(30)]
    answers[1].probabilities = [0.0] * 29 + [1.0]
    seen = Seen(render_answers(text, answers, names, "en")).text
    assert "label 9" in seen and "label 10" not in seen and "label 29" in seen and "and 19 labels" in seen


def test_percentages_are_never_rounded_to_certainty():
    for share in [*np.linspace(0, 1, 997).tolist(), 1e-9, 1 - 1e-9]:
        number = float(re.search(r"[\d.]+", percent(share)).group())
        assert abs(number - 100 * share) <= 0.1 and (0 < number < 100 or share in (0, 1))


def test_a_model_that_cannot_be_explained_is_answered(demo, monkeypatch):
    monkeypatch.setattr(type(demo.student.tokenizer), "is_fast", False)
    text, answers = demo.answers([TEXT])
    assert answers[0].spans is None and sum(answers[0].probabilities) == pytest.approx(1)
    assert "cannot be shown for the student" in render_answers(text, answers, demo.label_names, "en")


def test_pairs(pair_demo):
    text, (answer,) = pair_demo.answers(["球队", "股市涨"])
    assert text == ("球队", "股市涨") and [len(spans) for spans in answer.spans] == [2, 3]
    logits = predict_logits(pair_demo.student.model, pair_demo.student.tokenizer, [text], 16)
    np.testing.assert_allclose(answer.probabilities, torch.tensor(logits).softmax(dim=1)[0], rtol=1e-5)
    with pytest.raises(Refusal) as caught:
        pair_demo.answers(["球队", " "])
    assert caught.value.key == "empty_side"
    text, answers = pair_demo.answers(["球" * 20, "股" * 20])
    assert "of both together" in render_answers(text, answers, LABEL_NAMES, "en")


def test_pairs_and_single_texts_do_not_go_together(folders, pair_demo, tmp_path):
    with refused("--text_pairs", "single texts"):
        load_demo(folders[0], None, ModelArguments(), reads_pairs=True)
    with refused("reads pairs of texts"):
        (Path(folders[1]) / "recipe.yaml").write_text("text_pair_column: b\n")
        load_demo(*folders, ModelArguments())


# Files.


def test_a_file_comes_back_as_predictions_are_written(demo, write_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("kd_trainer.demo_models.PIECE_ROWS", 3)
    texts = ["球队", '股市，a"b', "", "芯片\n手机", "<b>", "银行", "网络"]
    source = tmp_path / "a.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "headline"], *enumerate(texts)])
    counts = demo.label_file(source, tmp_path / "out.csv")
    logits = predict_logits(demo.student.model, demo.student.tokenizer, texts, 16)
    write_predictions(tmp_path / "expected.csv", prediction_rows(texts, logits, LABEL_NAMES), LABEL_NAMES)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert counts.total() == 7 and counts[LABEL_NAMES[0]] == int((logits.argmax(axis=1) == 0).sum())


def test_a_file_of_pairs(pair_demo, write_csv, tmp_path):
    source = write_csv("text,text_pair\n球队,股市\n芯片,手机\n")
    assert pair_demo.label_file(source, tmp_path / "out.csv").total() == 2
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").startswith("text,text_pair,label,probability_体育")
    with pytest.raises(Refusal) as caught:
        pair_demo.label_file(write_csv("text,text_pair\n球队,\n"), tmp_path / "out2.csv")
    assert caught.value.key == "file_pair" and caught.value.values == {"line": "2"}


BAD_FILES = [
    (b"", "file_empty", {}),
    (b"id,text\n1,a\n2," + "股市".encode("gbk") + b"\n", "file_encoding", {"line": "3"}),
    ("text\n股市".encode("utf-16"), "file_encoding", {"line": "1"}),
    (b"id,words\n1,a\n", "file_column", {"found": "'id', 'words'"}),
    (b"text,text\n1,a\n", "file_twice", {"name": "'text'"}),
    (b"id,text\n1,a,b\n", "file_cells", {"line": "2", "cells": "3", "columns": "2"}),
    (b'text\n"a"b\n', "file_quotes", {"line": "2"}),
    (b"text\n", "file_no_rows", {}),
    (b'text\n""\n" "\n', "file_no_texts", {"rows": 2}),
    (b"\x00", "file_column", {}),
]


@pytest.mark.parametrize("content, key, values", BAD_FILES)
def test_a_bad_file_is_refused_in_words_without_its_place_on_the_server(
    demo, write_csv, tmp_path, content, key, values
):
    with pytest.raises(Refusal) as caught:
        demo.label_file(write_csv(content), tmp_path / "out.csv")
    assert caught.value.key == key and values.items() <= caught.value.values.items()
    assert not (tmp_path / "out.csv").exists()
    for language in LANGUAGES:
        shown = Seen(render_refusal(caught.value, language)).text
        assert str(tmp_path) not in shown and "--" not in shown


def test_a_file_that_is_too_large_or_of_another_kind_is_refused(demo, write_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("kd_trainer.demo_models.MOST_ROWS", 3)
    monkeypatch.setattr("kd_trainer.demo_models.PIECE_ROWS", 2)
    for content, name, key in (
        ("text\n" + "a\n" * 4, "a.csv", "file_rows"),
        ("text\na\n", "a.xlsx", "file_kind"),
    ):
        with pytest.raises(Refusal) as caught:
            demo.label_file(write_csv(content, name), tmp_path / "out.csv")
        assert caught.value.key == key and not (tmp_path / "out.csv").exists()
    assert demo.label_file(write_csv("text\n" + "a\n" * 3), tmp_path / "out.csv").total() == 3
    monkeypatch.setattr("kd_trainer.demo_models.MOST_BYTES", 9)
    with pytest.raises(Refusal) as caught:
        demo.label_file(write_csv("text\nabcde\n"), tmp_path / "out2.csv")
    assert caught.value.key == "file_large"


def test_a_cell_of_a_million_characters_is_labelled_by_its_beginning(demo, write_csv, tmp_path):
    demo.label_file(write_csv(f"text\n{'球' * 1_000_000}\n"), tmp_path / "long.csv")
    demo.label_file(write_csv(f"text\n{'球' * 16}\n"), tmp_path / "short.csv")
    long, short = ((tmp_path / name).read_text(encoding="utf-8").splitlines()[1] for name in ("long.csv", "short.csv"))
    assert long == short.replace("球" * 16, "球" * 1_000_000)


# The console.


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["no/such/folder"], ["student no/such/folder", "no such folder"]),
        (["STUDENT", "--port=70000"], ["--port is 70000"]),
        (["STUDENT", "--max_seq_length=0"], ["--max_seq_length is 0"]),
        (["STUDENT", "--label_map=a=b"], ["--label_map", "--teacher"]),
        (["STUDENT", "--teacher=./gone"], ["teacher ./gone"]),
        (["STUDENT", "--examples=gone.txt"], ["gone.txt", "no such file"]),
        (["STUDENT", "--text_pair_column=b"], ["--text_pair_column", "single texts"]),
        (["STUDENT", "--nonsense"], ["--nonsense", "--help"]),
        (["STUDENT", "--space=new"], ["a Space loads its models from the hub"]),
        (["you/student", "--space=."], ["is there already"]),
        (["you/student", "--space=new", "--share"], ["--share"]),
        ([], ["student"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(folders, flags, parts, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    with refused(*parts):
        console.main([folders[0] if flag == "STUDENT" else flag for flag in flags])
    assert not Path("new").exists()


def test_examples_are_the_first_texts_of_a_file(write_csv):
    path = write_csv("\n球队\n\n股市\n" + "芯片\n" * 20, "a.txt")
    assert console.read_examples(path, None, None) == ["球队", "股市", *["芯片"] * 6]
    with refused("no text"):
        console.read_examples(write_csv("\n \n", "b.txt"), None, None)
    with refused(MOST_CHARACTERS):
        console.read_examples(write_csv("a" * (MOST_CHARACTERS + 1), "c.txt"), None, None)


# The page.


@pytest.fixture
def page(demo):
    pytest.importorskip("gradio")
    from kd_trainer.demo_page import Page

    return Page(demo, ("a/student", "a/teacher"), ["球队", "股市"])


def test_an_answer_is_kept_and_said_in_the_other_language(page):
    found, shown = page.answer("en", TEXT)
    assert shown == page.render_answer(found, "en") and say("probabilities", "en") in shown
    assert say("probabilities", "zh") in page.render_answer(found, "zh")
    found, shown = page.answer("zh", "")
    assert say("empty", "zh") in shown and say("empty", "en") in page.render_answer(found, "en")


def test_an_uploaded_file_is_labelled_and_not_kept(page, write_csv, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    source = write_csv("text\n球队\n", "新闻.csv")
    _, shown, button = page.label("en", str(source))
    written = Path(button.value["path"])
    assert not source.exists() and written.name == "新闻-labelled.csv" and button.visible
    assert "1 rows of 新闻.csv" in Seen(shown).text and "球队" in written.read_text(encoding="utf-8")
    before = set(tmp_path.iterdir())
    _, shown, button = page.label("zh", str(write_csv(b"")))
    assert say("file_empty", "zh") in shown and not button.visible and set(tmp_path.iterdir()) == before
    assert say("no_file", "zh") in page.label("zh", None)[1]


def test_an_error_of_ours_is_said_to_be_one(page, monkeypatch, caplog):
    monkeypatch.setattr(page.demo, "answers", lambda texts: 1 / 0)
    assert say("failed", "zh") in page.answer("zh", TEXT)[1] and "ZeroDivisionError" in caplog.text


def test_the_page_is_served_with_nothing_from_elsewhere(page):
    from kd_trainer.demo_page import serve

    blocks, address = serve(page, "127.0.0.1", None)
    try:
        with urllib.request.urlopen(address) as answer:
            policy, markup = answer.headers["content-security-policy"], answer.read().decode()
        assert policy.startswith("default-src 'self'") and "http" not in policy
        assert not re.findall(r"<(?:script|link)[^>]*(?:src|href)=.https?://(?!127)[^>]*", markup)
        assert blocks.share_url is None and not blocks.analytics_enabled
        with urllib.request.urlopen(f"{address}gradio_api/info") as answer:
            assert answer.read() == b'{"named_endpoints":{},"unnamed_endpoints":{}}'
    finally:
        blocks.close()


# The Space.


def test_a_space_shows_a_model_of_the_hub(folders, write_csv, tmp_path):
    pytest.importorskip("gradio")
    examples = write_csv("球队\n股市\n", "picks.txt")
    flags = ["--teacher", "user/teacher", "--examples", str(examples), "--max_seq_length", "9"]
    console.main(["user/student", *flags, "--space", str(tmp_path / "space")])
    space = tmp_path / "space"
    assert {path.name for path in space.iterdir()} == {
        "app.py", "requirements.txt", "README.md", "LICENSE", "kd_trainer", "examples.txt",
    }  # fmt: skip
    card = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", ["user/student", "user/teacher"])
    assert "torch==" in (space / "requirements.txt").read_text() and "+" not in (space / "requirements.txt").read_text()
    # Started as the hub would, but on a port that is free, and ended when the page is there.
    app = (space / "app.py").read_text(encoding="utf-8").replace('"--port", "7860"', '"--port", "PORT"')
    assert "PORT" in app
    (space / "app.py").write_text(
        "import socket, threading, urllib.request, os, time, sys\n"
        "free = socket.create_server(('127.0.0.1', 0)); port = free.getsockname()[1]; free.close()\n"
        "def ask():\n"
        "    while True:\n"
        "        try:\n"
        "            page = urllib.request.urlopen(f'http://127.0.0.1:{port}/').read().decode()\n"
        "        except OSError:\n"
        "            time.sleep(0.1)\n"
        "            continue\n"
        "        import kd_trainer\n"
        "        print(kd_trainer.__file__, 'user/student' in page, 'user/teacher' in page, '球队' in page)\n"
        "        sys.stdout.flush(); os._exit(0)\n"
        "threading.Thread(target=ask, daemon=True).start()\n" + app.replace('"PORT"', "str(port)"),
        encoding="utf-8",
    )
    with HubServer() as hub:
        push = "import sys; from huggingface_hub import HfApi\n"
        push += "for name, folder in zip(('user/student', 'user/teacher'), sys.argv[1:]):\n"
        push += "    HfApi().create_repo(name); HfApi().upload_folder(repo_id=name, folder_path=folder)"
        done = launch([sys.executable, "-c", push, *folders], env=hub.environment(tmp_path / "home"))
        assert done.returncode == 0, done.stderr[-3000:]
        env = {**hub.environment(tmp_path / "other"), "SPACE_ID": "user/space", "TMPDIR": str(tmp_path)}
        env = {name: value for name, value in {**os.environ, **env}.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "app.py"], cwd=space, env=env, capture_output=True, text=True, timeout=120
        )
    assert done.stdout.splitlines()[-1:] == [f"{space}/kd_trainer/__init__.py True True True"], done.stderr[-3000:]
    shutil.rmtree(tmp_path / "other")
