"""What comes out of a run can be read back: the table, `report.json`, the files of predictions."""

import csv
import json

import numpy as np
import pytest
from conftest import refused
from transformers import BartConfig, BartForSequenceClassification

from kd_trainer.errors import InputError
from kd_trainer.report import (
    COLUMNS,
    check_prediction_file,
    describe_model,
    format_robustness,
    format_table,
    prediction_rows,
    read_scored,
    result_row,
    softmax,
    versions,
    write_json,
    write_predictions,
    write_scored,
)

LABEL_NAMES = ["体育", "财经, 股市", 'sci"ence']
TEXTS = [
    "plain",
    'he said "hi", twice',
    "two\nlines",
    "\r\nwindows\r",
    "",
    "  spaces\t",
    "NA",
    "😀\u2028全角",
    "a\x00b",
]
LOGITS = np.random.default_rng(0).normal(0, 30, (len(TEXTS), len(LABEL_NAMES))).astype(np.float32)
FULL_ROW = {name: 12345.6 for name in COLUMNS}


def table_cells(table):
    """The cells of a Markdown table, its ruler left out."""
    lines = table.split("\n")
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    assert set(lines[1]) == {"|", "-"}
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2} and len({*map(len, lines)}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


@pytest.mark.parametrize(
    "rows",
    [
        {"teacher": FULL_ROW},
        {"teacher": {}, "student": FULL_ROW, "distilled": {"accuracy": 0.5}},
        {"a very long name of a model": {"accuracy": float("nan"), "parameters": 10**12}},
    ],
)
def test_table_is_markdown_with_a_cell_for_every_column(rows):
    header, *lines = table_cells(format_table(rows))
    assert header == ["model", *COLUMNS]
    assert [line[0] for line in lines] == list(rows)
    for line, row in zip(lines, rows.values(), strict=True):
        assert [cell != "–" for cell in line[1:]] == [row.get(column) is not None for column in COLUMNS]


def test_table_shows_the_numbers():
    _, line = table_cells(format_table({"teacher": {"accuracy": 0.91236, "parameters": 1234567, "size_mb": 4.938}}))
    assert line == ["teacher", "0.9124", "–", "–", "–", "–", "1,234,567", "4.94", "–", "–", "–"]


def test_zero_is_a_number_not_a_dash():
    _, line = table_cells(format_table({"teacher": dict.fromkeys(COLUMNS, 0)}))
    assert "–" not in line


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_predictions_are_read_back_as_they_were_written(tmp_path, suffix):
    path = tmp_path / "new" / f"predictions{suffix}"
    write_predictions(path, prediction_rows(TEXTS, LOGITS, LABEL_NAMES), LABEL_NAMES)
    with path.open(encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            header, *rows = csv.reader(file, strict=True)
            assert header == ["text", "label", *(f"probability_{name}" for name in LABEL_NAMES)]
            rows = [(text, label, [*map(float, values)]) for text, label, *values in rows]
        else:
            rows = json.load(file) if suffix == ".json" else [json.loads(line) for line in file]
            assert all(list(row["probabilities"]) == LABEL_NAMES for row in rows)
            rows = [(row["text"], row["label"], [*row["probabilities"].values()]) for row in rows]
    assert [text for text, _, _ in rows] == TEXTS
    assert [label for _, label, _ in rows] == [LABEL_NAMES[index] for index in LOGITS.argmax(1)]
    np.testing.assert_allclose([values for _, _, values in rows], softmax(LOGITS), atol=1e-6)
    np.testing.assert_allclose([sum(values) for _, _, values in rows], 1, atol=1e-5)
    assert [*path.parent.iterdir()] == [path]


def test_softmax_equals_the_definition_and_never_overflows():
    logits = np.array([[0.5, -1.0, 2.0]])
    np.testing.assert_allclose(softmax(logits), np.exp(logits) / np.exp(logits).sum(), rtol=1e-12)
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])), [[1, 0], [0.5, 0.5]])


def test_a_failing_prediction_leaves_no_file_under_the_name(tmp_path):
    def broken():
        yield from prediction_rows(TEXTS[:1], LOGITS[:1], LABEL_NAMES)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_predictions(tmp_path / "predictions.csv", broken(), LABEL_NAMES)
    assert not (tmp_path / "predictions.csv").exists()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_json(path, {"标签": [1, None, 0.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"标签": [1, None, 0.5]}
    assert "标签" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"not JSON": object()})
    assert [*path.parent.iterdir()] == [path] and "标签" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, found",
    [("old.csv", "is there"), ("new.xlsx", "unknown kind"), ("new", "unknown kind"), ("old.csv/new.csv", "old.csv")],
)
def test_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, found):
    (tmp_path / "old.csv").write_text("old")
    with pytest.raises(InputError, match=found) as caught:
        check_prediction_file(tmp_path / name, overwrite=False, sources=[])
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert (tmp_path / "old.csv").read_text() == "old" and len([*tmp_path.iterdir()]) == 1


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="folder.csv"):
        check_prediction_file(tmp_path / "folder.csv", overwrite=True, sources=[])


def test_overwriting_and_new_names_are_allowed(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    check_prediction_file(tmp_path / "old.csv", overwrite=True, sources=["other.csv"])
    (tmp_path / "link.csv").symlink_to(tmp_path / "old.csv")
    for name in ("old.csv", "link.csv", "sub/../old.csv"):
        with refused("is read"):
            check_prediction_file(tmp_path / name, overwrite=True, sources=["other.csv", str(tmp_path / "old.csv")])
    (tmp_path / "link.csv").unlink()
    for suffix in (".csv", ".json", ".jsonl"):
        check_prediction_file(tmp_path / "no folder yet" / f"new{suffix}", overwrite=False, sources=[])
    assert [*tmp_path.iterdir()] == [tmp_path / "old.csv"]


def make_bart():
    """A classifier whose embeddings are shared by encoder and decoder, hence saved once."""
    config = BartConfig(
        vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    return BartForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["bilstm", "bert", "bert in half precision", "bart"])
def test_size_is_what_is_saved(tmp_path, make_student, make_teacher, kind):
    makers = {"bilstm": make_student, "bert": make_teacher, "bart": make_bart}
    model = makers[kind.split()[0]]()
    model = model.half() if "half" in kind else model
    model.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    described = describe_model(model)
    assert described["size_mb"] * 1e6 == pytest.approx(len(content) - header, abs=1)
    assert described["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("has_teacher", [False, True])
def test_row_has_every_column_and_leaves_the_model_alone(make_student, tokenizer, rows, has_teacher):
    texts, labels = rows
    model = make_student().train()
    logits = np.eye(3, dtype=np.float32)[labels]
    teacher_logits = -logits if has_teacher else None
    row = result_row(model, tokenizer, texts, logits, np.array(labels), 16, teacher_logits, 3.5)
    assert list(row) == list(COLUMNS)
    assert row["accuracy"] == row["f1"] == 1 and row["train_seconds"] == 3.5
    assert row["agreement"] == (0 if has_teacher else None)
    assert row["latency_ms"] > 0 and row["texts_per_s"] > 0 and model.training
    assert json.loads(json.dumps(row)) == row, "the report is JSON"


def test_versions_name_python_and_the_packages():
    assert {"python", "torch", "transformers"} <= versions().keys() and all(versions().values())


ROBUST = {"clean": 0.91236, "fgm": 0.5, "pgd": 0.0, "noise_5": 1.0, "noise_10": 0.87654}


def test_robustness_is_a_markdown_table_of_every_rows_accuracies():
    table = format_robustness({"teacher": {"robustness": {"rows": 7, **ROBUST}}, "student": {"robustness": ROBUST}})
    lines = table.split("\n")
    assert all(line.startswith("|") and line.endswith("|") for line in lines) and set(lines[1]) == {"|", "-"}
    assert {line.count("|") for line in lines} == {7}
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]
    assert header == ["model", *ROBUST]
    assert rows == [[name, "0.9124", "0.5000", "0.0000", "1.0000", "0.8765"] for name in ("teacher", "student")]


def test_what_was_scored_is_read_back_bit_by_bit(tmp_path):
    labels = np.arange(len(TEXTS)) % 3
    logits = {
        "teacher": LOGITS,
        "distilled": np.asfortranarray(-LOGITS),  # of a matrix that is not row by row safetensors would mix the rows up
        "a row. of 另一个": LOGITS[:, ::-1],
    }
    write_scored(tmp_path, labels, logits)
    its_labels, its_logits = read_scored(tmp_path)
    assert its_labels.dtype == labels.dtype and np.array_equal(its_labels, labels)
    assert its_logits.keys() == logits.keys()
    for name, array in logits.items():
        assert its_logits[name].dtype == np.float32 and np.array_equal(its_logits[name], array)
    # Underscored, so that it stays off the hub; nothing else is left.
    assert [path.name for path in tmp_path.iterdir()] == ["_scored.safetensors"]


def test_the_validation_split_is_kept_apart(tmp_path):
    write_scored(tmp_path, np.zeros(len(TEXTS)), {"student": LOGITS})
    write_scored(tmp_path, np.ones(3), {"student": -LOGITS[:3]}, is_reported=False)
    labels, logits = read_scored(tmp_path, is_reported=False)
    assert np.array_equal(labels, np.ones(3)) and np.array_equal(logits["student"], -LOGITS[:3])
    assert np.array_equal(read_scored(tmp_path)[1]["student"], LOGITS)


def test_scored_answers_are_replaced_whole_or_not_at_all(tmp_path):
    labels = np.arange(len(TEXTS)) % 3
    write_scored(tmp_path, labels, {"student": LOGITS})
    with pytest.raises(Exception, match="object"):
        write_scored(tmp_path, labels, {"student": LOGITS.astype(object)})
    assert np.array_equal(read_scored(tmp_path)[1]["student"], LOGITS)
    write_scored(tmp_path, labels, {"student": 2 * LOGITS})
    assert np.array_equal(read_scored(tmp_path)[1]["student"], 2 * LOGITS)
