"""A teacher's labels in the data's order, its cached logits, the warning about a teacher that knows nothing."""

import copy
import itertools
import logging
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import refused
from datasets import Dataset
from safetensors.numpy import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_trainer.errors import InputError
from kd_trainer.inference import predict_logits
from kd_trainer.teacher import (
    add_logits,
    align_labels,
    cached_logits,
    choose_dtype,
    label_piece,
    parse_label_map,
    warn_at_chance,
)
from kd_trainer.tokenization import build_tokenizer

MAX_LENGTH = 16


@pytest.fixture
def teacher(make_teacher):
    return make_teacher()


@pytest.fixture
def label(teacher, teacher_tokenizer, rows, tmp_path):
    """`cached_logits` of all that it takes by default, with changes; its result and whether the teacher ran."""
    defaults = {"teacher": teacher, "tokenizer": teacher_tokenizer, "texts": rows[0], "max_length": MAX_LENGTH}

    def run(**changes):
        arguments = {**defaults, "cache_dir": tmp_path / "cache", **changes}
        calls = []
        handle = arguments["teacher"].register_forward_hook(lambda *args: calls.append(args))
        logits = cached_logits(**arguments)
        handle.remove()
        return logits, bool(calls)

    return run


# Labels


@pytest.mark.parametrize("names", [*itertools.permutations(["体育", "财经", "科技"])])
def test_aligned_logits_stand_under_the_datas_names(names):
    label_names = ["体育", "财经", "科技"]
    logits = np.random.default_rng(0).normal(size=(5, 3))
    expected = np.empty_like(logits)
    for row, column in itertools.product(range(5), range(3)):
        expected[row, label_names.index(names[column])] = logits[row, column]
    np.testing.assert_array_equal(logits[:, align_labels(list(names), label_names)], expected)


@pytest.mark.parametrize(
    "teacher_names, label_names, label_map, order",
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"], None, [0, 1, 2]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["2", "0", "1"], None, [2, 0, 1]),
        ([f"LABEL_{i}" for i in range(11)], [str(i) for i in range(11)], None, list(range(11))),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], {"LABEL_0": "good", "LABEL_1": "bad"}, [1, 0]),
        (["neg", "pos", "neutral"], ["neutral", "positive", "neg"], {"pos": "positive"}, [2, 1, 0]),
        (["a", "b"], ["a", "b"], {"a": "b", "b": "a"}, [1, 0]),
    ],
)
def test_align_labels(teacher_names, label_names, label_map, order):
    assert align_labels(teacher_names, label_names, label_map) == order


@pytest.mark.parametrize(
    "teacher_names, label_names, label_map",
    [
        (["a", "b"], ["a", "c"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a", "b"], ["a", "b", "c"], None),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], None),
        (["LABEL_1", "LABEL_2"], ["0", "1"], None),
        (["a", "b"], ["a", "b"], {"c": "a"}),
        (["a", "b"], ["a", "b"], {"a": "b"}),
        (["LABEL_0", "0"], ["0", "1"], None),
    ],
)
def test_other_labels_are_refused_in_one_line(teacher_names, label_names, label_map):
    with pytest.raises(InputError, match="label") as error:
        align_labels(teacher_names, label_names, label_map)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "label_map, expected",
    [
        (None, {}),
        ("", {}),
        ("neg=negative,pos=positive", {"neg": "negative", "pos": "positive"}),
        (" neg = negative , 正 = 积极 ", {"neg": "negative", "正": "积极"}),
        ('{"neg": "negative", "a=b": "c,d"}', {"neg": "negative", "a=b": "c,d"}),
        (' {"LABEL_0": 0}', {"LABEL_0": "0"}),
    ],
)
def test_label_map_has_two_syntaxes(label_map, expected):
    assert parse_label_map(label_map) == expected


@pytest.mark.parametrize(
    "label_map", ["neg", "neg=negative,", "a=b=c", "neg=negative;pos=positive", '{"a": ', "{a: b}"]
)
def test_wrong_label_map_is_refused_in_one_line(label_map):
    with pytest.raises(InputError, match="old=new") as error:
        parse_label_map(label_map)
    assert "\n" not in str(error.value)


# The cache


def test_hit_equals_recomputation_bit_for_bit(label, teacher, teacher_tokenizer, rows):
    (first, ran), (second, ran_again) = label(), label()
    assert ran and not ran_again
    again = predict_logits(teacher, teacher_tokenizer, rows[0], MAX_LENGTH)
    assert first.dtype == second.dtype == np.float32 and first.shape == (96, 3)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(second, again)
    with torch.no_grad():  # one text at a time: nothing padded, nothing sorted
        texts = [teacher_tokenizer(text, return_tensors="pt", truncation=True, max_length=16) for text in rows[0]]
        single = torch.cat([teacher(**text).logits for text in texts])
    np.testing.assert_allclose(second, single.numpy(), rtol=1e-4, atol=1e-5)


def changed_weights(teacher):
    teacher = copy.deepcopy(teacher)
    with torch.no_grad():
        teacher.bert.encoder.layer[0].attention.self.query.weight[0, 0] += 1e-3
    return {"teacher": teacher}


def changed_config(teacher):
    teacher = copy.deepcopy(teacher)
    teacher.config.layer_norm_eps = 1e-3
    return {"teacher": teacher}


def with_attributes(tokenizer, **attributes):
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return {"tokenizer": tokenizer}


@pytest.mark.parametrize(
    "change",
    [
        lambda teacher, tokenizer, texts: changed_weights(teacher),
        lambda teacher, tokenizer, texts: changed_config(teacher),
        lambda teacher, tokenizer, texts: {"teacher": copy.deepcopy(teacher).to(torch.bfloat16)},
        lambda teacher, tokenizer, texts: {"tokenizer": build_tokenizer(texts[3:], bert_style=True, vocab_size=20)},
        lambda teacher, tokenizer, texts: with_attributes(tokenizer, truncation_side="left"),
        lambda teacher, tokenizer, texts: with_attributes(tokenizer, padding_side="left"),
        lambda teacher, tokenizer, texts: with_attributes(tokenizer, split_special_tokens=False),
        lambda teacher, tokenizer, texts: with_attributes(tokenizer, model_input_names=["input_ids"]),
        lambda teacher, tokenizer, texts: {"max_length": 8},
        lambda teacher, tokenizer, texts: {"texts": [*texts[:-1], texts[-1] + "新"]},
        lambda teacher, tokenizer, texts: {"texts": texts[:-1]},
        lambda teacher, tokenizer, texts: {"texts": [texts[1], texts[0], *texts[2:]]},
        lambda teacher, tokenizer, texts: {"texts": [texts[0] + texts[1][:1], texts[1][1:], *texts[2:]]},
    ],
    ids=[
        "weights", "config", "dtype", "tokenizer", "truncation_side", "padding_side", "split_special_tokens",
        "model_input_names", "max_length", "text", "fewer", "order", "boundary",
    ],
)  # fmt: skip
def test_whatever_decides_the_logits_changes_the_key(label, teacher, teacher_tokenizer, rows, change):
    label()
    changes = change(teacher, teacher_tokenizer, rows[0])
    logits, ran = label(**changes)
    assert ran
    assert label(**changes)[1] is False and label()[1] is False
    arguments = {"teacher": teacher, "tokenizer": teacher_tokenizer, "texts": rows[0], "max_length": 16, **changes}
    np.testing.assert_array_equal(logits, predict_logits(arguments.pop("teacher"), **arguments))


def test_empty_and_odd_texts_have_keys(label, rows):
    texts = ["", "\x00", "\n", "\u2028", "a", "b", *rows[0]]
    assert label(texts=texts)[1] and not label(texts=texts)[1]
    assert label(texts=[*texts[:4], "ab", "", *rows[0]])[1]


def test_saving_and_reloading_keeps_the_key(label, teacher, teacher_tokenizer, rows, tmp_path):
    expected, _ = label()
    teacher.save_pretrained(tmp_path / "saved")
    teacher_tokenizer.save_pretrained(tmp_path / "saved")
    assert not label()[1], "saving changed the key of the model that was saved"
    reloaded = {
        "teacher": AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval(),
        "tokenizer": AutoTokenizer.from_pretrained(tmp_path / "saved"),
    }
    logits, ran = label(**reloaded)
    assert not ran
    np.testing.assert_array_equal(logits, expected)
    again = predict_logits(reloaded["teacher"], reloaded["tokenizer"], rows[0], MAX_LENGTH)
    np.testing.assert_array_equal(again, expected)


def test_earlier_calls_of_the_tokenizer_keep_the_key(label, teacher_tokenizer):
    label()
    teacher_tokenizer(["一二三", "一"], padding="max_length", truncation=True, max_length=3)
    assert not label()[1]
    teacher_tokenizer(["一二三", "一"], padding=True, pad_to_multiple_of=8)
    assert not label()[1]


def test_mode_of_the_teacher_neither_changes_nor_matters(label, teacher):
    expected, _ = label()
    teacher.train()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    assert not label()[1]
    logits, _ = label(max_length=15)
    assert teacher.training and np.isfinite(logits).all()


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "shape", "name", "labels"])
def test_damaged_file_is_computed_again(label, tmp_path, damage, caplog):
    expected = label()[0].copy()  # not the mapped file, which is cut under it
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    if damage in ("empty", "cut", "noise"):
        path.write_bytes({"empty": b"", "cut": content[:-40], "noise": b"noise" * 50}[damage])
    else:
        wrong = {"shape": {"logits": expected[:-1]}, "name": {"other": expected}, "labels": {"logits": expected[:, :2]}}
        save_file({name: np.ascontiguousarray(array) for name, array in wrong[damage].items()}, path)
    logits, ran = label()
    assert ran and str(path) in caplog.text
    np.testing.assert_array_equal(logits, expected)
    assert path.read_bytes() == content and not label()[1]


def test_a_killed_run_goes_on_with_the_piece_that_it_was_at(label, teacher, rows, tmp_path, monkeypatch):
    expected, _ = label(cache_dir=tmp_path / "whole")
    monkeypatch.setattr("kd_trainer.teacher.PIECE_ROWS", 20)
    labelled = []

    def predict(teacher, tokenizer, texts, *args):
        if len(labelled) == 40:
            raise KeyboardInterrupt
        labelled.extend(texts)
        return predict_logits(teacher, tokenizer, texts, *args)

    monkeypatch.setattr("kd_trainer.teacher.predict_logits", predict)
    with pytest.raises(KeyboardInterrupt):
        label()
    # What a killed process leaves is not taken for logits.
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".partial"]
    labelled.append("")  # past 40: from here on nothing stops it
    logits, ran = label()
    assert ran and labelled[:40] + labelled[41:] == rows[0]  # every text once
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"] and not label()[1]


class Process:
    """What `cached_logits` asks of `accelerate.PartialState`, for one of two threads."""

    num_processes = 2

    def __init__(self, index, barrier):
        self.process_index = index
        self.wait_for_everyone = barrier.wait


def test_two_processes_share_the_texts(label, teacher, teacher_tokenizer, rows, tmp_path, monkeypatch):
    expected = label(cache_dir=tmp_path / "one")[0]
    monkeypatch.setattr("kd_trainer.teacher.PIECE_ROWS", 20)
    sent, barrier = [], threading.Barrier(2, timeout=60)

    def broadcast(objects):
        if objects != [None]:  # the first process's
            sent.append(objects)
        barrier.wait()
        return sent[0]

    monkeypatch.setattr("kd_trainer.teacher.broadcast_object_list", broadcast)
    monkeypatch.setattr("kd_trainer.teacher.gather_object", lambda objects: objects)
    labelled, lock = {}, threading.Lock()

    def predict(model, tokenizer, texts, *args):
        with lock:  # a tokenizer is not made for two threads
            labelled.setdefault(threading.get_ident(), []).extend(texts)
            return predict_logits(model, tokenizer, texts, *args)

    monkeypatch.setattr("kd_trainer.teacher.predict_logits", predict)

    def run(index):
        state = Process(index, barrier)
        digest = "d" * 64  # hashing the tokenizer is no work for two threads either
        arguments = (teacher, teacher_tokenizer, rows[0], MAX_LENGTH, 8, tmp_path / "two")
        return cached_logits(*arguments, state=state, digest=digest)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    for logits in results:
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    one, other = labelled.values()
    assert sorted(one + other) == sorted(rows[0]) and min(len(one), len(other)) >= 36  # pieces 0, 2, 4 and 1, 3
    assert len(list((tmp_path / "two").iterdir())) == 1


def test_texts_may_be_a_column_that_is_not_in_memory(label, rows):
    expected, _ = label()
    column = Dataset.from_dict({"text": rows[0]})["text"]
    logits, ran = label(texts=column)
    assert not ran and np.array_equal(logits, expected)


@pytest.mark.parametrize("agrees, faster, chosen", [(True, True, True), (False, True, False), (True, False, False)])
def test_half_precision_is_chosen_where_it_is_faster_and_agrees(
    teacher, teacher_tokenizer, monkeypatch, agrees, faster, chosen
):
    monkeypatch.setattr("kd_trainer.teacher.half_dtype", lambda device: torch.bfloat16)
    now = [0.0]
    monkeypatch.setattr("kd_trainer.teacher.time.perf_counter", lambda: now[0])

    def predict(teacher, tokenizer, texts, max_length, batch_size, description, dtype):
        now[0] += 1.0 if (dtype is not None) == faster else 2.0
        logits = np.eye(3, dtype=np.float32)[np.arange(len(texts)) % 3]
        if dtype is not None and not agrees:
            logits[:2] = logits[:2, [1, 2, 0]]  # 2 of 1,000: 99.8 %
        return logits

    monkeypatch.setattr("kd_trainer.teacher.predict_logits", predict)
    dtype = choose_dtype(teacher, teacher_tokenizer, ["今"] * 10_000, MAX_LENGTH)
    assert dtype == (torch.bfloat16 if chosen else None)
    # So few texts that a sample would cost more than it saves.
    assert choose_dtype(teacher, teacher_tokenizer, ["今"] * 9_999, MAX_LENGTH) is None


@pytest.mark.parametrize("size, batch_size", [(96, 32), (96, 7), (1, 64), (0, 8)])
def test_teacher_runs_once_per_batch_and_never_again(teacher, teacher_tokenizer, rows, tmp_path, size, batch_size):
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(args))
    for expected in (math.ceil(size / batch_size), 0):
        calls.clear()
        logits = cached_logits(teacher, teacher_tokenizer, rows[0][:size], MAX_LENGTH, batch_size, tmp_path)
        assert len(calls) == expected and logits.shape == (size, 3)


@pytest.mark.parametrize("seed", range(4))
def test_batches_of_similar_length_pad_no_more_than_the_given_order(teacher, teacher_tokenizer, seed):
    lengths = np.random.default_rng(seed).integers(0, 20, size=48)
    texts = ["今" * length for length in lengths]
    padding = []

    def count(module, args, kwargs):
        padding.append(int((kwargs["attention_mask"] == 0).sum()))

    handle = teacher.register_forward_pre_hook(count, with_kwargs=True)
    logits = predict_logits(teacher, teacher_tokenizer, texts, MAX_LENGTH, batch_size=8)
    handle.remove()
    tokens = np.minimum(lengths + 2, MAX_LENGTH).reshape(6, 8)
    assert sum(padding) <= (tokens.max(axis=1, keepdims=True) - tokens).sum()
    for length in set(lengths.tolist()):  # each text got its own logits back
        expected = predict_logits(teacher, teacher_tokenizer, ["今" * length], MAX_LENGTH)
        np.testing.assert_allclose(logits[lengths == length] - expected, 0, atol=1e-5)


def test_add_logits_keeps_columns_and_rows():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    columns = {"text": list("abcde"), "labels": [0, -100, 2, 1, 0], "note": [None, "x", "", "y", "z"]}
    dataset = Dataset.from_dict(columns).select([4, 2, 0, 1, 3])
    added = add_logits(dataset, logits)
    assert added.column_names == ["text", "labels", "note", "teacher_logits"] and len(added) == 5
    assert {name: added[name][:] for name in columns} == {name: dataset[name][:] for name in columns}
    np.testing.assert_array_equal(np.array(added["teacher_logits"][:], dtype=np.float32), logits.astype(np.float32))
    assert dataset.column_names == list(columns)


# A teacher at chance


@pytest.mark.parametrize("size", [60, 5000])
@pytest.mark.parametrize(
    "kind, warned", [("random", True), ("permuted", True), ("constant", True), ("good", False), ("fair", False)]
)
@pytest.mark.parametrize("unlabelled", [False, True])
def test_warning_about_a_teacher_at_chance(kind, warned, size, unlabelled, caplog):
    generator = np.random.default_rng(0)
    labels = np.arange(size) % 3
    noise = generator.normal(size=(size, 3))
    one_hot = np.eye(3)[labels]
    logits = {
        "random": noise,
        "permuted": 9 * one_hot[:, [1, 2, 0]] + noise,
        "constant": np.tile([1.0, 0.0, 0.0], (size, 1)),
        "good": 9 * one_hot + noise,
        "fair": 1.5 * one_hot + noise,
    }[kind]
    if unlabelled:  # what a teacher says of unlabelled rows does not count
        labels = np.where(np.arange(size) % 2, -100, labels)
    with caplog.at_level(logging.WARNING):
        assert bool(warn_at_chance(logits, labels)) == warned
    assert ("AT CHANCE" in caplog.text) == warned


@pytest.mark.parametrize("labels", [[], [-100] * 4])
def test_without_labelled_rows_there_is_nothing_to_warn_of(labels, caplog):
    assert not warn_at_chance(np.zeros((len(labels), 3)), np.array(labels, dtype=int))
    assert not caplog.records


def test_a_text_beyond_the_range_of_half_precision_is_labelled_in_full(teacher, teacher_tokenizer, monkeypatch):
    asked = []

    def predict(teacher, tokenizer, texts, max_length, batch_size, description, dtype):
        asked.append(dtype)
        if dtype is not None:
            raise InputError("not finite")
        return np.ones((len(texts), 3), dtype=np.float32)

    monkeypatch.setattr("kd_trainer.teacher.predict_logits", predict)
    monkeypatch.setattr("kd_trainer.teacher.half_dtype", lambda device: torch.float16)
    assert label_piece(teacher, teacher_tokenizer, ["今"], MAX_LENGTH, 8, torch.float16).tolist() == [[1, 1, 1]]
    assert asked == [torch.float16, None]
    assert choose_dtype(teacher, teacher_tokenizer, ["今"] * 10_000, MAX_LENGTH) is None


def test_logits_that_are_no_numbers_are_not_taken_from_the_disk(label, tmp_path):
    label(cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start : start + 4] = np.float32("nan").tobytes()
    file.write_bytes(bytes(content))
    with refused(file.name, "damaged", "remove it"):
        label(cache_dir=tmp_path)


def test_few_texts_are_labelled_once_with_and_without_half_precision(label, tmp_path):
    label(cache_dir=tmp_path)
    label(cache_dir=tmp_path, half=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("what", ["write", "finish", "folder"])
def test_a_disk_that_fails_costs_the_cache_and_not_the_logits(label, tmp_path, monkeypatch, caplog, what):
    expected = label(cache_dir=tmp_path / "whole")[0]

    def fail(*args):
        raise OSError(28, "No space left on device")

    if what == "folder":
        (path,) = (tmp_path / "whole").iterdir()
        (tmp_path / "cache" / path.name).mkdir(parents=True)
    else:
        monkeypatch.setattr(f"kd_trainer.teacher.LogitFile.{what}", fail)
    np.testing.assert_allclose(label()[0], expected, atol=1e-6)
    assert "the next run computes them again" in caplog.text
