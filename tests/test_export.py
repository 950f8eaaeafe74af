"""What is exported answers as the model does, without torch; what would not is refused and leaves nothing."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import LABEL_NAMES, make_rows, refused
from transformers import set_seed

import run_student
from kd_trainer import classify, export, onnx_folder
from kd_trainer.arguments import EXPORT_FORMATS, RunArguments, split_formats
from kd_trainer.card_sections import ONNX_EXAMPLE
from kd_trainer.classify import Classifier, label_file
from kd_trainer.errors import InputError
from kd_trainer.inference import predict_logits
from kd_trainer.loading import describe_labels
from kd_trainer.modeling_bag import BagConfig, BagForSequenceClassification
from kd_trainer.modeling_cnn import CNNConfig, CNNForSequenceClassification
from kd_trainer.onnx_folder import FILES, check_parity, export_model
from kd_trainer.onnx_graph import write_graph
from kd_trainer.report import read_scored, write_scored
from kd_trainer.tokenization import build_tokenizer

PROJECT = Path(__file__).parent.parent
VOCABULARY = 40
TEXTS = [
    "股市大涨", "", "球", "芯片手机网络" * 5, "[PAD]股市[CLS]", "[UNK]", "a [SEP] b", " \n\t", "未见字😀", "a\x00b",
    "股市\u2028涨", "[MASK][PAD]", "", "胜" * 40,
]  # fmt: skip
STUDENTS = {
    **{f"bilstm {pooling}": {"pooling": pooling} for pooling in ("max", "mean", "last", "attention")},
    "bilstm of three layers": {"num_hidden_layers": 3, "pooling": "last"},
    "bilstm with n-grams": {"ngram_buckets": 50, "ngram_size": 4},
    "cnn": {},
    "cnn with n-grams": {"ngram_buckets": 50, "ngram_size": 4, "kernel_sizes": [1, 5]},
    "bag": {"num_hidden_layers": 2},
    "bag with n-grams alone": {"num_hidden_layers": 0, "ngram_buckets": 2**18, "ngram_size": 3, "ngram_order": 5},
}


@pytest.fixture
def make_any(make_student):
    """A function that builds a student of `STUDENTS`, none of whose weights is zero, in evaluation mode."""
    sizes = {"embedding_size": 12, "hidden_size": 8, **describe_labels(LABEL_NAMES)}
    classes = {"cnn": (CNNForSequenceClassification, CNNConfig), "bag": (BagForSequenceClassification, BagConfig)}

    def make(name, **more):
        settings, kind = {"vocab_size": VOCABULARY, **STUDENTS[name], **more}, name.split()[0]
        set_seed(0)
        model = make_student(**settings) if kind == "bilstm" else classes[kind][0](classes[kind][1](**sizes | settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
            # But for what stands for padding, as in every student.
            for table in [model.embeddings, *([model.ngrams.table] if model.ngrams is not None else [])]:
                table.weight[0] = 0
        return model.eval()

    return make


def run_graph(path, inputs):
    """The graph's logits, by onnxruntime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def draw_batch(generator, batch_size, length, pairs, least=0):
    """Random token ids, padded on the right; the longest row has `length` tokens."""
    lengths = torch.randint(least, length + 1, (batch_size,), generator=generator)
    lengths[-1] = length
    mask = (torch.arange(max(1, length)) < lengths[:, None]).long()
    # Behind the mask stands what must not matter.
    batch = {"input_ids": torch.randint(0, VOCABULARY, mask.shape, generator=generator), "attention_mask": mask}
    if pairs:
        firsts = (torch.rand(batch_size, generator=generator) * (lengths + 1)).long()
        batch["token_type_ids"] = (torch.arange(mask.shape[1]) >= firsts[:, None]).long() * mask
    return batch


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_graph_gives_torchs_logits_at_any_batch_and_length(make_any, tmp_path, name, pairs):
    model = make_any(name, text_pairs=pairs)
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if pairs else []))
    write_graph(model, names, tmp_path / "model.onnx")
    generator = torch.Generator().manual_seed(0)
    for batch_size, length in [(1, 1), (1, 19), (2, 0), (7, 2), (32, 5), (5, 33)]:
        batch = draw_batch(generator, batch_size, length, pairs)
        with torch.no_grad():
            expected = model(**batch).logits.numpy()
        np.testing.assert_allclose(run_graph(tmp_path / "model.onnx", batch), expected, atol=1e-5, rtol=1e-5)


def test_the_hash_of_ngrams_is_exact_where_products_need_63_bits(make_any, tmp_path):
    # One row of the table apart, and the logits are others.
    model = make_any("bag with n-grams alone", vocab_size=250_000)
    write_graph(model, ("input_ids", "attention_mask"), tmp_path / "model.onnx")
    ids = torch.randint(0, 250_000, (64, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(run_graph(tmp_path / "model.onnx", batch), expected, atol=1e-5, rtol=0)


@pytest.fixture(params=["bilstm with n-grams", "cnn", "bert"])
def classifier(request, make_any, make_teacher, tokenizer, teacher_tokenizer):
    """A model with its tokenizer."""
    if request.param == "bert":
        return make_teacher(), teacher_tokenizer
    return make_any(request.param, vocab_size=len(tokenizer)), tokenizer


@pytest.fixture
def labels():
    return np.arange(len(TEXTS)) % len(LABEL_NAMES)


def test_the_folder_reads_any_text_as_torch_does(classifier, labels, tmp_path):
    model, tokenizer = classifier
    rows = export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], TEXTS, labels)
    expected = predict_logits(model, tokenizer, TEXTS, 16, 1)
    assert np.abs(expected).max() > 0.1 and len(np.unique(expected.round(3), axis=0)) > 6, "texts that differ"
    exported = Classifier(tmp_path / "onnx")
    for batch_size in (1, 3, len(TEXTS)):
        answers = np.concatenate(
            [exported.logits(TEXTS[start : start + batch_size]) for start in range(0, len(TEXTS), batch_size)]
        )
        np.testing.assert_allclose(answers, expected, atol=1e-4, rtol=0)
    probabilities = torch.tensor(expected).softmax(-1).max(-1).values
    for batch_size in (2, 32):
        named = exported.label(TEXTS, batch_size)
        assert [label for label, _ in named] == [LABEL_NAMES[index] for index in expected.argmax(-1)]
        np.testing.assert_allclose([probability for _, probability in named], probabilities, atol=1e-4)
    assert rows["onnx"]["accuracy"] == (expected.argmax(-1) == labels).mean()
    assert rows["onnx"]["parameters"] == model.num_parameters() and rows["onnx"]["agreement"] is None
    assert rows["onnx"]["size_mb"] == (tmp_path / "onnx" / "model.onnx").stat().st_size / 1e6


def test_the_folder_tokenizes_no_more_of_a_text_than_can_be_read(make_any, tokenizer, labels, tmp_path):
    model = make_any("cnn", vocab_size=len(tokenizer))
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], TEXTS, labels)
    exported, sizes = Classifier(tmp_path / "onnx"), []
    tokenize = exported.tokenizer.encode_batch
    exported.tokenizer = SimpleNamespace(
        encode_batch=lambda texts: [sizes.append(len(text)) for text in texts] and tokenize(texts)
    )
    long = "球队胜" * 1_000_000
    assert np.array_equal(exported.logits([long]), exported.logits([long[:16]]))
    assert sizes == [1024 * (16 + 128), 16]


@pytest.mark.parametrize("kind", ["char", "word"])
def test_special_tokens_in_a_text_are_text(make_any, labels, tmp_path, kind):
    texts, more = make_rows(32)
    tokenizer = build_tokenizer([*texts, "[ PAD ] pad", "[PAD]"], kind, max_length=16)
    model = make_any("bilstm max", vocab_size=len(tokenizer))
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, more)
    exported = Classifier(tmp_path / "onnx").tokenizer
    for text in TEXTS:
        assert exported.encode(text).ids == tokenizer(text, truncation=True, max_length=16)["input_ids"]
    assert len(exported.encode("[PAD]").ids) > 1


def test_pairs_are_read_as_pairs(make_any, tmp_path):
    texts, labels = make_rows(33)
    tokenizer = build_tokenizer(texts, max_length=16, text_pairs=True)
    model = make_any("bilstm with n-grams", vocab_size=len(tokenizer), text_pairs=True)
    pairs = list(zip(texts, ["", "[PAD]" * 4, *reversed(texts[2:])], strict=True))
    columns = [None, "other"]
    export_model(tmp_path / "onnx", model, tokenizer, 10, list(EXPORT_FORMATS), pairs, labels, columns)
    exported = Classifier(tmp_path / "onnx", "model.onnx")
    np.testing.assert_allclose(exported.logits(pairs), predict_logits(model, tokenizer, pairs, 10, 32), atol=1e-4)
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("other", "text"), *((second, first) for first, second in pairs)])
    label_file(exported, tmp_path / "pairs.csv", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == [label for label, _ in exported.label(pairs)]


def run_alone(folder, *arguments):
    """`classify.py` in a process that has neither torch nor transformers, nor this package."""
    absent = ("torch", "transformers", "datasets", "kd_trainer")
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent})); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, folder / "classify.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder.parent)


def test_the_folder_labels_files_where_torch_is_not_installed(make_any, tokenizer, labels, tmp_path):
    model = make_any("bilstm with n-grams", vocab_size=len(tokenizer))
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], TEXTS, labels)
    shutil.copytree(tmp_path / "onnx", tmp_path / "elsewhere" / "moved")
    folder = tmp_path / "elsewhere" / "moved"
    rows = [*zip(map(str, range(len(TEXTS))), TEXTS, strict=True), ("x", 'he said "hi",\nand left')]
    with (tmp_path / "texts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("id", "headline"), *rows])
    done = run_alone(folder, tmp_path / "texts.csv", tmp_path / "labels.csv")
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stderr
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        header, *written = csv.reader(file, strict=True)
    expected = predict_logits(model, tokenizer, [text for _, text in rows], 16, 1)
    assert header == ["id", "headline", "predicted", "probability"]
    assert [tuple(row[:2]) for row in written] == rows
    assert [row[2] for row in written] == [LABEL_NAMES[index] for index in expected.argmax(-1)]
    done = run_alone(folder, "股市大涨")
    label, probability = done.stdout.split()
    one = torch.tensor(predict_logits(model, tokenizer, ["股市大涨"], 16)[0]).softmax(-1)
    assert label == LABEL_NAMES[int(one.argmax())] and float(probability) == pytest.approx(float(one.max()), abs=1e-4)

    (tmp_path / "other.csv").write_text("id,name\n1,a\n", encoding="utf-8")
    (tmp_path / "ragged.csv").write_text("id,text\n1,a\n2\n", encoding="utf-8")
    (tmp_path / "latin.csv").write_bytes("id,text\n1,é\n".encode("latin-1"))
    for name, found in {
        "texts": "is there",
        "no": "no.csv",
        "other": "name",
        "ragged": "behind line 2: 1 cells",
        "latin": "utf-8",
    }.items():
        target = tmp_path / ("labels.csv" if name == "texts" else "new.csv")
        done = run_alone(folder, tmp_path / f"{name}.csv", target)
        assert done.returncode == 2 and found in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert f"{name}.csv" in done.stderr or name == "texts"
        assert not list(tmp_path.glob("new.csv*"))
    # A file without another to write to is no text.
    for arguments in ([], [tmp_path / "texts.csv"], ["missing.CSV"], ["--verbose"], ["a", "b", "c"]):
        done = run_alone(folder, *arguments)
        assert done.returncode == 2 and "--help" in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    for text in ("-5 degrees", "moved", "I opened notes.txt", str(tmp_path)):  # moved is a folder here
        assert run_alone(folder, text).returncode == 0, text
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spoilt = [{**config, "labels": config["labels"][:-1]}, {**config, "labels": None}, {**config, "part": 3}, {}]
    changes = [("config.json", json.dumps(one).encode()) for one in spoilt]
    changes += [(name, (folder / name).read_bytes()[:900]) for name in ("model.onnx", "tokenizer.json")]
    for name, damaged in changes:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(damaged)
        done = run_alone(folder, "股市")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{folder} is damaged" in done.stderr
        (folder / name).write_bytes(content)


class Stub:
    """A classifier that says "label" of every text."""

    config = {"columns": [["text"]]}

    def label(self, texts):
        return [("label", 1.0) for _ in texts]


def test_a_column_that_stands_twice_is_none(tmp_path):
    for header in ("text,text", "text,predicted", "probability,text"):
        (tmp_path / "twice.csv").write_text(f"{header}\na,b\n", encoding="utf-8")
        with pytest.raises(ValueError, match="twice.csv"):
            label_file(Stub(), tmp_path / "twice.csv", tmp_path / "labels.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["twice.csv"]


def test_two_that_label_into_one_file_do_not_mix_their_rows(tmp_path):
    (tmp_path / "texts.csv").write_text("text\n" + "a\n" * 5, encoding="utf-8")
    target = tmp_path / "labels.csv"

    class Second(Stub):
        """While it labels, another one begins and ends."""

        def label(self, texts):
            if not target.exists():
                label_file(Stub(), tmp_path / "texts.csv", target)
            return [("other", 0.5) for _ in texts]

    with pytest.raises(ValueError, match="there already"):
        label_file(Second(), tmp_path / "texts.csv", target)
    assert target.read_text(encoding="utf-8").splitlines() == ["text,predicted,probability", *["a,label,1.0"] * 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "texts.csv"]


def test_a_file_is_read_a_window_at_a_time(tmp_path, monkeypatch):
    read, labelled, held = 0, 0, []

    class Watched(Stub):
        def label(self, texts):
            nonlocal labelled
            held.append(read - labelled)
            assert len(texts) == held[-1], "no row is read ahead"
            labelled += len(texts)
            return [(text.upper(), 1.0) for text in texts]

    class Counting:
        def __init__(self, file, **kwargs):
            self.reader, self.line_num = csv.reader(file, **kwargs), 0

        def __iter__(self):
            nonlocal read
            for number, row in enumerate(self.reader):
                read += number > 0
                yield row

    texts = [f"text {number}" for number in range(1000)]
    (tmp_path / "texts.csv").write_text("\n".join(["text", *texts]), encoding="utf-8")
    monkeypatch.setattr(classify, "csv", type("module", (), {**vars(csv), "reader": Counting}))
    label_file(Watched(), tmp_path / "texts.csv", tmp_path / "labels.csv", window=64)
    assert max(held) == 64 and len(held) == 16 and labelled == 1000
    written = (tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert written == ["text,predicted,probability", *(f"{text},{text.upper()},1.0" for text in texts)]


@pytest.fixture
def trained(make_student, tokenizer):
    """A student that has learned its rows, whose answers thus survive 8 bits; texts, labels."""
    texts, labels = make_rows(300)
    model = make_student(embedding_size=64, hidden_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for _ in range(25):
        model(**batch, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert (predict_logits(model, tokenizer, texts, 16).argmax(-1) == labels).mean() > 0.9
    return model, tokenizer, texts, labels


def test_eight_bits_are_smaller_and_answer_the_same(trained, tmp_path):
    model, tokenizer, texts, labels = trained
    teacher_logits = predict_logits(model, tokenizer, texts, 16)
    both = export_model(
        tmp_path / "onnx", model, tokenizer, 16, ["onnx-int8", "onnx"], texts, labels, teacher_logits=teacher_logits
    )
    assert list(both) == ["onnx", "onnx-int8"]
    # Of four bytes one; the graph itself takes its share of a model this small.
    graph = 20_000
    assert both["onnx-int8"]["size_mb"] * 1e6 < both["onnx"]["size_mb"] * 1e6 / 4 + graph
    assert both["onnx"]["agreement"] == 1 and both["onnx-int8"]["agreement"] > 0.98
    assert both["onnx"]["accuracy"] - both["onnx-int8"]["accuracy"] <= 0.002 + 1 / len(texts)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        "classify.py", "config.json", "tokenizer.json", *FILES.values()
    }  # fmt: skip
    # The smaller one is what a user gets, and the only one where only that is asked for.
    assert Classifier(tmp_path / "onnx").config["files"][-1] == "model_int8.onnx"
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx-int8"], texts, labels)
    assert not (tmp_path / "onnx" / "model.onnx").exists() and Classifier(tmp_path / "onnx").label(texts[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize("name", FILES)
def test_an_export_that_answers_otherwise_is_refused_and_leaves_the_old_one(
    trained, make_student, tmp_path, monkeypatch, name
):
    model, tokenizer, texts, labels = trained
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, labels)
    before = {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()}

    def write_another(model, names, path):
        return write_graph(make_student(seed=5, embedding_size=64, hidden_size=32).eval(), names, path)

    monkeypatch.setattr(onnx_folder, "write_graph", write_another)
    for folder in ("onnx", "new/folder"):
        with refused(f"{name}: at batch size 1"):
            export_model(tmp_path / folder, model, tokenizer, 16, [name], texts, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()} == before


@pytest.mark.parametrize("kept", ["mine.txt", "model.safetensors", "sub/x", "__pycache__/x", "model_int8.onnx/x"])
def test_no_export_replaces_what_it_has_not_written(trained, tmp_path, kept):
    model, tokenizer, texts, labels = trained
    folder = tmp_path / "onnx"
    export_model(folder, model, tokenizer, 16, ["onnx"], texts, labels)
    (folder / kept).parent.mkdir(exist_ok=True)
    (folder / kept).write_text("mine")
    (tmp_path / "onnx.partial").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with refused(f"{folder} holds {kept.split('/')[0]}"):
        export_model(folder, model, tokenizer, 16, ["onnx"], texts, labels)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with refused("no export"):
        export_model(tmp_path / "onnx.partial" / "..", model, tokenizer, 16, ["onnx"], texts, labels)
    shutil.copytree(folder, tmp_path / "other", ignore=lambda *_: [kept.split("/")[0], "classify.py"])
    with refused("no export"):
        export_model(tmp_path / "other", model, tokenizer, 16, ["onnx"], texts, labels)


def test_what_desktops_leave_in_a_folder_is_nobodys_file(trained, tmp_path):
    model, tokenizer, texts, labels = trained
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, labels)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "onnx" / name).write_bytes(b"x")
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx-int8"], texts, labels)
    assert "model_int8.onnx" in os.listdir(tmp_path / "onnx") and ".DS_Store" not in os.listdir(tmp_path / "onnx")
    (tmp_path / "onnx" / ".DS_Store").mkdir()
    with refused("holds .DS_Store"):
        export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, labels)


def test_a_folder_of_a_desktops_files_alone_is_an_empty_one(trained, tmp_path):
    model, tokenizer, texts, labels = trained
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / ".DS_Store").write_bytes(b"x")
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, labels)
    assert "model.onnx" in os.listdir(tmp_path / "onnx")


def test_two_exports_into_one_folder_leave_a_whole_one(trained, tmp_path, monkeypatch):
    model, tokenizer, texts, labels = trained
    write, arguments = onnx_folder.write_folder, (model, tokenizer, 16, ["onnx"], texts, labels)

    def write_meanwhile(*given):
        monkeypatch.setattr(onnx_folder, "write_folder", write)
        export_model(tmp_path / "onnx", *arguments)
        write(*given)

    monkeypatch.setattr(onnx_folder, "write_folder", write_meanwhile)
    with refused("meanwhile"):
        export_model(tmp_path / "onnx", *arguments)
    monkeypatch.setattr(onnx_folder, "write_folder", write_meanwhile)
    export_model(tmp_path / "onnx", *arguments)  # both replace an old one
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"] and Classifier(tmp_path / "onnx").label(texts[:1])


def test_parity_of_fp32_is_about_every_logit():
    logits = np.random.default_rng(0).normal(0, 5, (20, 3)).astype(np.float32)
    labels = np.zeros(20)
    for error, allowed in [(0.9e-4, True), (1.3e-4, False), (np.nan, False), (np.inf, False)]:
        other = logits.copy()
        other[7, 2] += error
        if allowed:
            check_parity("onnx", other, logits, labels, 1)
        else:
            with refused("onnx", "torch"):
                check_parity("onnx", other, logits, labels, 1)
    # Where seven digits do not reach that far.
    check_parity("onnx", 1e4 * logits * np.float32(1 + 5e-7), 1e4 * logits, labels, 1)


@pytest.mark.parametrize("size, allowed", [(1, 1), (60, 1), (500, 1), (501, 2), (1000, 2), (10_000, 20)])
def test_parity_of_int8_is_a_fifth_of_a_point_to_a_whole_row(size, allowed):
    labels = np.arange(size) % 3
    right = np.eye(3, dtype=np.float32)[labels]
    for lost in (0, allowed, allowed + 1):
        answers = right.copy()
        answers[:lost] = np.roll(right[:lost], 1, axis=1)
        if lost <= allowed:
            check_parity("onnx-int8", answers, right, labels, 7)
        elif lost <= size:
            with refused(f"{size - lost} of {size}", "batch size 7"):
                check_parity("onnx-int8", answers, right, labels, 7)
    check_parity("onnx-int8", right, np.roll(right, 1, axis=1), labels, 7)  # better is no error
    with refused("onnx-int8"):
        check_parity("onnx-int8", np.full_like(right, np.nan), right, labels, 7)


def test_formats_may_be_separated_by_commas():
    for given in (["onnx", "onnx-int8"], ["onnx,onnx-int8"], ["onnx,onnx-int8", "onnx"]):
        assert split_formats(given) == ["onnx", "onnx-int8"] == RunArguments(export=given).export
    assert split_formats(None) is None
    for given in (["onnx,"], ["int8"], [""]):
        with refused("--export", "onnx-int8"):
            split_formats(given)


@pytest.fixture
def student(tmp_path, write_tsv):
    """A function that trains a tiny student with more flags; its folder."""
    files = {name: write_tsv(f"{name}.tsv", *make_rows(size, seed)) for seed, (name, size) in enumerate(
        {"train": 192, "validation": 48, "test": 60}.items())}  # fmt: skip
    flags = [f"--{name}_file={path}" for name, path in files.items()]
    flags += ["--use_cpu", "--bf16=false", "--do_train", "--do_predict", "--learning_rate=1e-2", "--disable_tqdm=true"]
    flags += ["--num_train_epochs=3", "--embedding_size=64", "--hidden_size=32", "--max_seq_length=16"]

    def train(*more):
        run_student.main([*flags, f"--output_dir={tmp_path / 'student'}", *more])
        return tmp_path / "student"

    return train


def read_report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_run_exports_what_it_has_scored(student, capsys):
    folder = student("--export=onnx,onnx-int8")
    report = read_report(folder)
    assert list(report)[:3] == ["student", "onnx", "onnx-int8"] and report["split"] == "test"
    assert report["onnx"]["accuracy"] == report["student"]["accuracy"] and report["onnx"]["train_seconds"] is None
    assert report["onnx"].keys() == report["student"].keys()
    assert report["onnx-int8"]["size_mb"] < report["onnx"]["size_mb"] and "| onnx-int8" in capsys.readouterr().out
    assert Classifier(folder / "onnx").config["labels"] == report["labels"]
    assert Classifier(folder / "onnx").config["max_length"] == 16
    # A new run in the folder takes the old export away: it is not of its model. What it has not written stays.
    (folder / "onnx" / "labels.csv").write_text("mine")
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "plots" / "mine.png").write_text("mine")
    (folder / "confusion.png").write_text("mine")
    with refused("onnx holds labels.csv"):
        student("--overwrite_output_dir", "--export=onnx", "--train_file=missing.tsv")
    assert read_report(folder) == report
    student("--overwrite_output_dir")
    assert [path.name for path in (folder / "onnx").iterdir()] == ["labels.csv"] and "onnx" not in read_report(folder)
    (folder / "onnx").rename(folder / "mine")
    (folder / "mine" / "config.json").write_text("mine")
    (folder / "onnx").symlink_to(folder / "mine")
    student("--overwrite_output_dir")
    assert (folder / "mine" / "config.json").read_text() == "mine"
    assert (folder / "plots" / "mine.png").exists() and (folder / "confusion.png").exists()


@pytest.mark.parametrize("content", ["{}", "[]", '{"split": 3}', '{"split": "train"}', '{"student": 4}', "{"])
def test_a_damaged_report_stops_an_export_before_it_begins(student, content):
    folder = student()
    (folder / "report.json").write_text(content)
    with refused("report.json"):
        export.main([str(folder)])
    assert not (folder / "onnx").exists() and (folder / "report.json").read_text() == content


def test_half_of_the_answers_stops_an_export_before_it_begins(student):
    folder = student()
    scored = folder / "_scored.safetensors"
    scored.write_bytes(scored.read_bytes()[:-9])
    with refused("_scored.safetensors"):
        export.main([str(folder)])
    assert not (folder / "onnx").exists()


def test_a_run_killed_behind_its_report_says_what_makes_the_rest(student, monkeypatch):
    def kill(run):
        raise KeyboardInterrupt

    monkeypatch.setattr("kd_trainer.workflow.export_scored", lambda run, *_: kill(run))
    with pytest.raises(KeyboardInterrupt):
        student("--export=onnx")
    with refused("holds a finished run", "python -m kd_trainer.export", "python -m kd_trainer.card"):
        student("--export=onnx")


@pytest.mark.parametrize("formats", ["onnx", "onnx,onnx-int8"])
def test_the_example_of_the_card_and_of_the_readme_needs_no_code_of_this_package(student, formats):
    folder = student(f"--export={formats}")
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall("```python\n(.*?)```", card, re.DOTALL) if "onnxruntime" in block]
    texts = ["球队大胜", "a", "股市" * 40]
    assert '["a text", "another"]' in code and len(code.splitlines()) <= 20
    code = code.replace('["a text", "another"]', str(texts))
    absent = ("torch", "transformers", "datasets", "kd_trainer")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=folder)
    assert done.stdout.split() == [label for label, _ in Classifier(folder / "onnx").label(texts)], done.stderr
    for readme in ("README.md", "README.zh.md"):
        shown = (PROJECT / readme).read_text(encoding="utf-8")
        blocks = [block for block in re.findall("```python\n(.*?)```", shown, re.DOTALL) if "onnxruntime" in block]
        where = {"folder": '"outputs/demo/distilled/onnx"', "file": "model_int8.onnx"}
        assert blocks == [ONNX_EXAMPLE.format(**where, texts='["股市大涨，银行股领跑", "主队加时绝杀"]')]


def test_a_saved_student_is_exported_on_the_data_of_its_run(student, write_tsv, capsys, tmp_path):
    folder = student()
    before = read_report(folder)
    export.main([str(folder)])
    after = read_report(folder)
    assert after["onnx"]["accuracy"] == before["student"]["accuracy"]
    assert {name: value for name, value in after.items() if name not in FILES} == before
    assert "test split, 60 rows" in capsys.readouterr().out
    with refused(f"{folder / 'onnx'} is there already"):
        export.main([str(folder)])
    export.main([str(folder), "--overwrite_output_dir", "--export", "onnx"])
    assert not (folder / "onnx" / "model_int8.onnx").exists()
    # On other data nothing is added to a report that is not about them.
    other, after = write_tsv("other.tsv", *make_rows(30, 9)), read_report(folder)
    assert "onnx-int8" not in after, "whose file is gone"
    export.main([str(folder), f"--test_file={other}", f"--output_dir={tmp_path / 'new' / 'served'}"])
    assert Classifier(tmp_path / "new" / "served").label(["股市"]) and read_report(folder) == after


def test_bad_input_is_said_in_one_line_and_leaves_nothing(student, write_tsv, tmp_path, monkeypatch):
    folder = student()
    kept = sorted(folder.rglob("*"))
    other = write_tsv("other.tsv", *make_rows(30, 9), names=["a", "b", "c"])
    (tmp_path / "empty").mkdir()
    for flags, found in [
        ([], "no model"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path / "empty")], "no data"),
        ([str(tmp_path / "empty"), f"--test_file={other}"], "no config.json"),
        ([str(folder), "--export", "int9"], "int9"),
        ([str(folder), "--tset_file=x"], "--test_file"),
        ([str(folder), f"--test_file={other}"], "label 'a' is unknown"),
        ([str(folder), f"--test_file={tmp_path / 'none.tsv'}"], "no such file"),
        ([str(folder), f"--output_dir={folder}", "--overwrite_output_dir"], "no export"),
        ([str(folder), f"--output_dir={folder}"], "is there already"),
    ]:
        with refused(found):
            export.main(flags)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with refused("needs onnxruntime", "kd_trainer[export]"):
        export.main([str(folder)])
    with refused("needs onnxruntime"):
        student("--export=onnx", f"--output_dir={tmp_path / 'another'}")
    assert sorted(folder.rglob("*")) == kept and not (tmp_path / "another").exists()
    with refused("--export", "--do_predict"):
        run_student.main([f"--model_name_or_path={folder}", "--predict_text=股市", "--export=onnx", "--use_cpu"])


def test_a_refused_export_leaves_the_report_of_the_run(student, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_folder, "TOLERANCE", -1.0)
    monkeypatch.setattr(onnx_folder, "RELATIVE_TOLERANCE", -1.0)
    with refused("onnx: at batch size 1"):
        student("--export=onnx")
    report = read_report(tmp_path / "student")
    assert report["student"]["accuracy"] > 0.5 and "onnx" not in report
    assert not [path for path in (tmp_path / "student").iterdir() if path.name.startswith("onnx")]


def test_a_slow_tokenizer_is_refused(make_student, tokenizer, labels, tmp_path):
    @dataclasses.dataclass
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow has no tokenizer.json"):
        export_model(tmp_path / "onnx", make_student(), Slow(), 16, ["onnx"], TEXTS, labels)
    assert not [*tmp_path.iterdir()]


def spoil_log(folder):
    (folder / "trainer_state.json").write_text('{"log_history": [1]}')


def spoil_plot(folder):
    (folder / "plots" / "confusion.png").unlink(missing_ok=True)
    (folder / "plots" / "confusion.png").mkdir(parents=True)


def spoil_card(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text.replace("---\n", "---\nto_dict: 3\n", 1), encoding="utf-8")


def spoil_answers(folder):
    labels, logits = read_scored(folder)
    write_scored(folder, labels[:20], {name: array[:20] for name, array in logits.items()})


def spoil_recipe(folder):
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**settings, "max_seq_length": "abc"}), encoding="utf-8")


def spoil_file_name(folder):
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**settings, "test_file": ["a", "b"]}), encoding="utf-8")


def spoil_depth(folder):
    (folder / "recipe.yaml").write_text("[" * 5000)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (spoil_log, "trainer_state.json"), (spoil_plot, "confusion.png"), (spoil_card, "to_dict"),
        (spoil_answers, "(20, "), (spoil_recipe, "recipe.yaml"), (spoil_file_name, "recipe.yaml"),
        (spoil_depth, "recipe.yaml"),
    ],
)  # fmt: skip
def test_an_export_that_cannot_be_reported_replaces_nothing(student, spoil, found):
    folder = student("--export=onnx")
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with refused(found):
        export.main([str(folder), "--export=onnx-int8", "--overwrite_output_dir"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_answers_of_other_rows_are_refused_where_the_card_is_somebodys(student):
    folder = student("--export=onnx", "--compare_linear")
    (folder / "README.md").write_text("mine")
    labels, logits = read_scored(folder)
    write_scored(folder, labels[:20], {"teacher": logits["student"][:20]})
    with refused("_scored.safetensors"):
        export.main([str(folder), "--export=onnx-int8", "--overwrite_output_dir"])


@pytest.mark.parametrize("columns", [[], {}, "", [1], [None], [0, 0], [[]], [[""]], [[1]], [["a"], ["b"], ["c"]], 5])
def test_columns_that_are_none_are_a_damaged_export(trained, tmp_path, columns):
    model, tokenizer, texts, labels = trained
    export_model(tmp_path / "onnx", model, tokenizer, 16, ["onnx"], texts, labels)
    config = json.loads((tmp_path / "onnx" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "onnx" / "config.json").write_text(json.dumps({**config, "columns": columns}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "onnx" / "classify.py", "a text"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "export the model again" in done.stderr
