"""Pairs of texts from the file to the report: read, tokenized, taught, varied, predicted as pairs."""

import csv
import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_rows, refused
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from test_transfer import arguments as transfer_arguments
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import run_distill
import run_student
import run_teacher
from kd_trainer import DistillationCollator, DistillationTrainer, DistillationTrainingArguments, cached_logits
from kd_trainer.arguments import DataArguments
from kd_trainer.batches import tokenize
from kd_trainer.building import STUDENTS
from kd_trainer.data import TextData, load_data, load_texts
from kd_trainer.files import read_rows
from kd_trainer.inference import predict_logits
from kd_trainer.loading import check_pairs, describe_labels
from kd_trainer.pairs import TextPairs, columns_of, texts_of
from kd_trainer.robustness import measure_robustness, noisy_texts
from kd_trainer.teacher import cache_key, teacher_digest
from kd_trainer.text_noise import add_noise
from kd_trainer.text_stream import iterate_texts
from kd_trainer.tokenization import build_tokenizer, char_ids
from kd_trainer.transfer import augment, transfer_set

PAIRS = [("球队胜", "股市大涨"), ("今日", "今日新闻，手机"), ("芯片网络", "银"), (" 涨跌 ", "涨 跌")]
NAMES = ["不同", "相同"]
TEXTS = [text for pair in PAIRS for text in pair]


def make_pairs(size, seed=0):
    """`(pairs, labels)`: 1 where both headlines are of one category."""
    texts, categories = make_rows(2 * size, seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(size)
    pairs, labels = [], []
    for row in range(size):
        # Rows i, i + 3, i + 6, … have one category.
        other = order[row] if row % 2 else (row + 3 * order[row]) % size
        pairs.append((texts[row], texts[size + other]))
        labels.append(int(categories[row] == categories[size + other]))
    return pairs, labels


def write_pairs(path, pairs, labels, names=("text", "text_pair")):
    """A file of pairs of any kind with a header; its path as `str`."""
    frame = pd.DataFrame({names[0]: [a for a, _ in pairs], names[1]: [b for _, b in pairs], "label": labels})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".json", ".jsonl"):
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl", force_ascii=False)
    else:
        frame.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t", quoting=csv.QUOTE_MINIMAL)
    return str(path)


# Read


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, suffix):
    path = write_pairs(tmp_path / f"a.{suffix}", PAIRS, NAMES * 2, ("premise", "hypothesis"))
    columns = {"text_column": "premise", "text_pair_column": "hypothesis"}
    rows = read_rows(path, **columns)
    assert rows.texts == PAIRS and rows.labels == NAMES * 2
    assert list(iterate_texts(path, **columns)) == PAIRS
    assert list(load_texts(path, DataArguments(**columns), NAMES)) == PAIRS
    data = load_data(DataArguments(train_file=path, **columns), ["train"])
    assert data.has_pairs and data.splits["train"].column_names == ["text", "text_pair", "labels"]
    assert texts_of(data.splits["train"])[:] == PAIRS
    # Without the flag the first texts alone.
    assert read_rows(path, "premise").texts == [first for first, _ in PAIRS]


def test_a_data_set_of_the_hub_gives_them_too(tmp_path):
    for split in ("train", "test"):
        write_pairs(tmp_path / f"{split}.csv", PAIRS, NAMES * 2)
    data = load_data(DataArguments(dataset_name=str(tmp_path), text_pair_column="text_pair"), ["train", "test"])
    assert all(texts_of(data.splits[split])[:] == PAIRS for split in ("train", "test"))


def test_samples_and_the_validation_split_keep_texts_and_labels_together(tmp_path):
    pairs, labels = make_pairs(60)
    path = write_pairs(tmp_path / "a.csv", pairs, labels)
    data = load_data(DataArguments(train_file=path, text_pair_column="text_pair", max_train_samples=30))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "validation": 6}
    for split in data.splits.values():
        assert set(zip(texts_of(split), split["labels"], strict=True)) <= set(zip(pairs, labels, strict=True))


def test_overlap_and_digest_are_of_pairs(tmp_path):
    train = write_pairs(tmp_path / "train.csv", PAIRS, NAMES * 2)
    swapped = [(second, first) for first, second in PAIRS]
    digests = set()
    for number, (pairs, overlap) in enumerate(
        [(PAIRS, 4), ([(f" {a}", f"{b} ") for a, b in PAIRS], 4), (swapped, 0), ([(a, "新") for a, _ in PAIRS], 0)]
    ):
        other = write_pairs(tmp_path / f"{number}.csv", pairs, NAMES * 2)
        args = DataArguments(train_file=train, validation_file=other, text_pair_column="text_pair")
        data = load_data(args)
        assert data.facts["overlap_with_train"] == {"validation": overlap}
        digests.add(data.digest())
    assert len(digests) == 4


def test_what_is_wrong_with_a_pair_is_named(tmp_path):
    good = write_pairs(tmp_path / "a.csv", PAIRS, NAMES * 2)
    with refused(good, "no column 'other'", "'text_pair'"):
        read_rows(good, text_pair_column="other")
    with refused(good, "'text'", "both texts", "--text_column"):
        read_rows(good, text_pair_column="text")
    (tmp_path / "a.txt").write_text("甲\t球队\n", encoding="utf-8")
    for read in (read_rows, lambda *args, **kwargs: list(iterate_texts(*args, **kwargs))):
        with refused("a.txt", "--text_pair_column", ".csv"):
            read(tmp_path / "a.txt", text_pair_column="text_pair")
        for place, which in ((0, "first"), (1, "second")):
            bad = [list(pair) for pair in PAIRS]
            bad[2][place] = " "
            for suffix, line in (("csv", 4), ("tsv", 4), ("jsonl", 3), ("parquet", 3)):
                path = write_pairs(tmp_path / f"bad.{suffix}", bad, NAMES * 2)
                with refused(path, f"line {line}", which, "empty"):
                    read(path, text_pair_column="text_pair")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "text_pair": "b", "label": "x"}\n{"text": "c", "label": "y"}\n')
    with refused("b.jsonl line 2", "'text_pair'"):
        read_rows(tmp_path / "b.jsonl", text_pair_column="text_pair")


def test_two_columns_are_one_sequence():
    split = datasets.Dataset.from_dict({**columns_of(PAIRS, True), "labels": [0, 1, 0, 1]})
    texts = texts_of(split)
    assert isinstance(texts, TextPairs) and len(texts) == 4 and list(texts) == texts[:] == PAIRS
    assert texts[1] == PAIRS[1] and texts[1:3] == PAIRS[1:3]
    assert texts_of(split.remove_columns("text_pair"))[:] == columns_of(texts_of(split)[:], True)["text"]


# Tokenized


def by_hand(tokenizer, pairs, max_length):
    """Each text by itself, without what is put around it; the longer one gives way, as `truncation=True` says."""
    rows = []
    for pair in pairs:
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
        shorter, longer = (b, a) if len(a) > len(b) else (a, b)
        while len(a) + len(b) > max_length:
            (longer if len(longer) > len(shorter) else shorter).pop()
        rows.append({"input_ids": a + b, "token_type_ids": [0] * len(a) + [1] * len(b)})
    return rows


@pytest.mark.parametrize("kind", ["char", "word"])
@pytest.mark.parametrize("max_length", [64, 5])
def test_a_tokenizer_for_pairs_gives_types_and_leaves_single_texts_as_they_were(tmp_path, kind, max_length):
    plain, tokenizer = (build_tokenizer(TEXTS, kind, text_pairs=pairs) for pairs in (False, True))
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        split = datasets.Dataset.from_dict({**columns_of(PAIRS, True), "labels": [0, 1, 0, 1]})
        columns = tokenize(split, one, max_length)
        assert columns.column_names == ["labels", "input_ids", "token_type_ids", "attention_mask"]
        for row, wanted in zip(columns, by_hand(plain, PAIRS, max_length), strict=True):
            assert {name: row[name] for name in wanted} == wanted and set(row["attention_mask"]) == {1}
        for text in TEXTS:
            assert one(text)["input_ids"] == plain(text)["input_ids"] and set(one(text)["token_type_ids"]) <= {0}
    assert "token_type_ids" not in plain("今日") and (char_ids(plain) is None) == (kind == "word")


def test_a_bert_reads_both_texts_between_its_own_tokens_beside_the_student(tokenizer, teacher_tokenizer):
    split = datasets.Dataset.from_dict({**columns_of(PAIRS, True), "labels": [0, 1, 0, 1]})
    columns = tokenize(split, tokenizer, 16, teacher_tokenizer, 12)
    cls, sep = teacher_tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    for row, plain in zip(columns, by_hand(teacher_tokenizer, PAIRS, 9), strict=True):
        length = plain["token_type_ids"].count(0)
        a, b = plain["input_ids"][:length], plain["input_ids"][length:]
        assert row["teacher_input_ids"] == [cls, *a, sep, *b, sep]
        assert row["teacher_token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    # A tokenizer of characters that is made for single texts is not looked up in their table.
    assert columns["input_ids"][:] == [row["input_ids"] for row in by_hand(tokenizer, PAIRS, 16)]


@pytest.fixture
def student():
    """A tiny siamese BiLSTM, its tokenizer."""
    tokenizer = build_tokenizer([text for pair in make_pairs(96)[0] for text in pair], text_pairs=True)
    torch.manual_seed(0)
    labels = {"problem_type": "single_label_classification", **describe_labels(NAMES)}
    sizes = {"vocab_size": len(tokenizer), "embedding_size": 12, "hidden_size": 8, "initializer_range": 1.0}
    student = STUDENTS["bilstm"]
    return student(student.config_class(text_pairs=True, **sizes, **labels)).eval(), tokenizer


def one_by_one(model, tokenizer, pairs):
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs]).numpy()


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_predictions_and_cached_logits_are_those_of_each_pair_alone(
    kind, student, make_teacher, teacher_tokenizer, tmp_path
):
    model, tokenizer = student if kind == "student" else (make_teacher(), teacher_tokenizer)
    pairs, _ = make_pairs(20)
    expected = one_by_one(model, tokenizer, pairs)
    np.testing.assert_allclose(predict_logits(model, tokenizer, pairs, 64, 7), expected, atol=1e-5)
    texts = TextPairs(*zip(*pairs, strict=True))
    for _ in range(2):
        logits = cached_logits(model, tokenizer, texts, 64, cache_dir=tmp_path)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    (path,) = tmp_path.glob("*.safetensors")
    assert path.stem == cache_key(f"{teacher_digest(model, tokenizer, 64)} False", pairs)


def test_pairs_have_a_cache_key_of_their_own():
    keys = [
        cache_key("t", texts)
        for texts in (
            [("a", "b"), ("c", "d")],
            [("b", "a"), ("c", "d")],
            [("ab", ""), ("c", "d")],
            ["a", "b", "c", "d"],
            ["ab", "cd"],
            [("a", "b"), ("c", "e")],
        )
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key("t", TextPairs(["a", "c"], ["b", "d"])) == keys[0]


# Varied


def test_a_variant_changes_one_text_of_a_pair():
    pairs = [
        (" ".join(f"a{row}x{i}" for i in range(12)), " ".join(f"b{row}x{i}" for i in range(12))) for row in range(99)
    ]
    variants = list(augment(pairs, ["mask"], 4, "[M]", seed=1))
    firsts, seconds = dict(pairs), {second: first for first, second in pairs}
    changed = {"first": 0, "second": 0}
    for first, second in variants:
        if second in seconds:
            changed["first"] += 1
            varied, original = first, seconds[second]
        else:
            changed["second"] += 1
            varied, original = second, firsts[first]
        words = zip(varied.split(), original.split(), strict=True)
        assert varied != original and all(word in (other, "[M]") for word, other in words)
    assert min(changed.values()) > 0.3 * len(variants) > 30
    assert variants == list(augment(pairs, ["mask"], 4, "[M]", seed=1))


def test_the_transfer_set_is_of_pairs_that_stand_in_no_split(tmp_path):
    splits = {
        name: datasets.Dataset.from_dict({**columns_of(pairs, True), "labels": [0] * len(pairs)})
        for name, pairs in {"train": PAIRS[:2], "test": PAIRS[2:]}.items()
    }
    data = TextData(datasets.DatasetDict(splits), NAMES)
    new = [("球队胜", "今日"), ("股市大涨", "球队胜")]
    path = write_pairs(tmp_path / "more.csv", [*PAIRS, *new], [None] * 6)
    (more,) = transfer_set(data, transfer_arguments([path]), None, "□", 0, "text_pair")
    assert texts_of(more)[:] == new and more.column_names == ["text", "text_pair", "labels"]
    (varied,) = transfer_set(data, transfer_arguments(kinds=["drop"], variants=60), None, "□", 0, "text_pair")
    assert len(varied) > 30 and not set(texts_of(varied)) & set(PAIRS)
    with refused("more.csv", "no column 'other'"):
        transfer_set(data, transfer_arguments([path]), None, "□", 0, "other")


def test_noise_falls_on_both_texts():
    pairs, _ = make_pairs(50)
    firsts, seconds = zip(*noisy_texts(pairs, 0.3), strict=True)
    assert list(firsts) == add_noise([first for first, _ in pairs], 0.3)
    assert sum(a != b for a, (_, b) in zip(seconds, pairs, strict=True)) > 25
    assert noisy_texts(pairs, 0.0) == pairs and noisy_texts(TEXTS, 0.3) == add_noise(TEXTS, 0.3)


def test_robustness_of_a_student_of_pairs(student):
    pairs, labels = make_pairs(40)
    results = measure_robustness(*student, pairs, labels, 64)
    assert results["clean"] == accuracy_score(labels, one_by_one(*student, pairs).argmax(-1))
    assert results["pgd"] <= results["fgm"] <= results["clean"] and results["rows"] == 40


# Taught


def test_the_trainer_teaches_pairs_as_cached_logits_and_online(student, make_teacher, teacher_tokenizer, tmp_path):
    model, tokenizer = student
    teacher = make_teacher(label_names=NAMES)
    pairs, labels = make_pairs(8)
    split = datasets.Dataset.from_dict({**columns_of(pairs, True), "labels": labels})
    dataset = tokenize(split, tokenizer, 64, teacher_tokenizer, 64)
    arguments = DistillationTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", alpha=0.0, kd_loss="mse")
    trainer = DistillationTrainer(
        model=model,
        teacher=teacher,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher_processing_class=teacher_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert {"token_type_ids", "teacher_token_type_ids"} <= batch.keys()
    rows = DistillationCollator(tokenizer, teacher_tokenizer)([dataset[row] for row in range(8)])
    loss = trainer.compute_loss(model, rows)
    gap = one_by_one(model, tokenizer, pairs) - one_by_one(teacher, teacher_tokenizer, pairs)
    assert loss.item() == pytest.approx((gap**2).mean(), rel=1e-4)


def test_students_get_the_texts_that_they_are_made_for(student, tokenizer, make_student, make_teacher):
    siamese, its_tokenizer = student
    check_pairs(siamese, its_tokenizer, True)
    check_pairs(make_student(), tokenizer, False)
    for pairs in (True, False):
        check_pairs(make_teacher(), tokenizer, pairs)
    with refused("reads single texts", "--text_pair_column"):
        check_pairs(make_student(), its_tokenizer, True)
    with refused("reads pairs", "--predict_text_pair"):
        check_pairs(siamese, its_tokenizer, False)
    with refused("token_type_ids", "--tokenizer_type"):
        check_pairs(siamese, tokenizer, True)  # made for single texts


# The scripts


STUDENT = ["--embedding_size=12", "--hidden_size=8", "--dropout=0"]
TEACHER = [
    "--config_name=bert",
    "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags that name a tiny training, validation and test split of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    flags = ["--text_column=a", "--text_pair_column=b", "--max_seq_length=32", "--use_cpu", "--bf16=false"]
    for seed, (name, size) in enumerate({"train": 192, "validation": 48, "test": 60}.items()):
        pairs, labels = make_pairs(size, seed)
        path = write_pairs(folder / f"{name}.tsv", pairs, [NAMES[label] for label in labels], ("a", "b"))
        flags.append(f"--{name}_file={path}")
    return [*flags, "--do_train", "--do_predict", "--learning_rate=1e-2", "--disable_tqdm=true"]


@pytest.fixture(scope="module")
def teacher(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "teacher"
    run_teacher.main([*flags, *TEACHER, "--num_train_epochs=1", f"--output_dir={folder}"])
    return folder


def read_report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_from_a_file_of_pairs_to_a_report_and_back(flags, teacher, tmp_path, capsys):
    more, _ = make_pairs(40, 9)
    unlabelled = write_pairs(tmp_path / "more.csv", more, [None] * len(more), ("a", "b"))
    taught = [f"--teacher_name_or_path={teacher}", f"--teacher_cache_dir={tmp_path / 'cache'}"]
    taught += [f"--unlabeled_file={unlabelled}", "--augment", "drop", "--compare_student", "--eval_robustness"]
    output = tmp_path / "distilled"
    run_distill.main(
        [*flags, *STUDENT, *taught, "--num_train_epochs=8", "--ngram_buckets=256", f"--output_dir={output}"]
    )
    report = read_report(output)
    assert {"teacher", "student", "distilled"} <= report.keys() and report["data"]["rows"]["test"] == 60
    assert set(report["distilled"]["robustness"]) == {"rows", "clean", "fgm", "pgd", "noise_5", "noise_10"}
    assert all(report[name]["texts_per_s"] > 0 for name in ("teacher", "student", "distilled"))

    pairs, labels = make_pairs(60, 2)
    model, tokenizer = (auto.from_pretrained(output) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    assert model.config.text_pairs and report["labels"] == NAMES
    predicted = one_by_one(model.eval(), tokenizer, pairs).argmax(-1)
    assert report["distilled"]["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    classify = pipeline("text-classification", model=str(output), device="cpu")
    answers = classify([{"text": first, "text_pair": second} for first, second in pairs])
    assert [answer["label"] for answer in answers] == [NAMES[label] for label in predicted]

    # The same pairs as a file and as flags.
    use = [f"--model_name_or_path={output}", "--use_cpu", "--disable_tqdm=true"]
    path = write_pairs(tmp_path / "new.csv", pairs, [None] * 60)
    for suffix in ("csv", "jsonl"):
        wanted = ["--text_pair_column=text_pair", f"--predict_file={path}", f"--predict_output={tmp_path}/p.{suffix}"]
        run_student.main([*use, *wanted])
    rows = pd.read_csv(tmp_path / "p.csv")
    assert list(rows.columns) == ["text", "text_pair", "label", *(f"probability_{name}" for name in NAMES)]
    assert list(zip(rows["text"], rows["text_pair"], strict=True)) == pairs
    assert list(rows["label"]) == [NAMES[label] for label in predicted]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["text"], line["text_pair"], line["label"]) for line in lines] == [
        (*pair, NAMES[label]) for pair, label in zip(pairs, predicted, strict=True)
    ]
    capsys.readouterr()
    run_student.main([*use, f"--predict_text={pairs[0][0]}", f"--predict_text_pair={pairs[0][1]}"])
    assert json.loads(capsys.readouterr().out) == lines[0]
    with refused("reads pairs", "--predict_text_pair"):
        run_student.main([*use, "--predict_text=球队"])


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_of_pairs_learns_alone(flags, tmp_path, kind):
    more = ["--num_train_epochs=20", f"--student_type={kind}", "--adversarial=fgm", "--adversarial_epsilon=0.1"]
    run_student.main([*flags, *STUDENT, *more, f"--output_dir={tmp_path / kind}"])
    report = read_report(tmp_path / kind)
    majority = max(make_pairs(60, 2)[1].count(label) for label in (0, 1)) / 60
    assert report["student"]["accuracy"] > majority + 0.1
    weights = load_file(tmp_path / kind / "model.safetensors")
    assert weights["classifier.weight"].shape[1] % 4 == 0


def test_the_teachers_own_tokenizer_and_an_online_teacher(flags, teacher, tmp_path):
    more = ["--tokenizer_type=teacher", "--num_train_epochs=1", f"--teacher_name_or_path={teacher}"]
    for mode in ("online", "cached"):
        run_distill.main([*flags, *STUDENT, *more, f"--teacher_mode={mode}", f"--output_dir={tmp_path / mode}"])
    online, cached = (load_file(tmp_path / mode / "model.safetensors") for mode in ("online", "cached"))
    for name, weight in online.items():
        torch.testing.assert_close(weight, cached[name], atol=1e-3, rtol=0)
    # A RoBERTa's tokenizer tells nobody which text is which.
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with refused("token_type_ids", "--tokenizer_type"):
        run_student.main(
            [*flags, *STUDENT, f"--tokenizer_name={tmp_path / 'tokenizer'}", f"--output_dir={tmp_path / 'r'}"]
        )
    assert not (tmp_path / "r" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "more, parts",
    [
        (["--predict_text=a"], ["--text_pair_column", "--predict_text_pair"]),
        (["--predict_text_pair=a"], ["--predict_text_pair", "--predict_text:"]),
        (["--text_pair_column=c"], ["train.tsv", "no column 'c'", "--text_pair_column"]),
        (["--text_pair_column=a"], ["train.tsv", "both texts"]),
        (["--test_file=a.txt"], ["a.txt", "--text_pair_column"]),
    ],
)
def test_flags_that_are_wrong_for_pairs_are_refused(flags, tmp_path, more, parts):
    with refused(*parts):
        run_student.main([*flags, *STUDENT, *more, f"--output_dir={tmp_path / 'out'}"])
