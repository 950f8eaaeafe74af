"""The card of every kind of run says what its report says, parses on the hub's side, and gives no path away."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import LABEL_NAMES, make_rows, refused
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from test_card_file import HOSTILE, Shown
from test_scripts import STUDENT, TEACHER, TRAINING

import run_distill
import run_student
import run_teacher
from kd_trainer import card
from kd_trainer.card_file import is_unchanged
from kd_trainer.card_sections import PICTURES, card_text
from kd_trainer.output_folder import PLOTS, WRITTEN
from kd_trainer.report import read_scored, table_rows, write_scored

PROJECT = Path(__file__).parent.parent
SIZES = {"train": 192, "validation": 48, "test": 60}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Output folders of a teacher, a student alone, and a distillation with all rows of the table."""
    root = tmp_path_factory.mktemp("runs of somebody")
    flags = ["--max_seq_length=16", *TRAINING, "--compare_linear"]
    for seed, (name, size) in enumerate(SIZES.items()):
        lines = [f"{LABEL_NAMES[label]}\t{text}" for text, label in zip(*make_rows(size, seed), strict=True)]
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags.append(f"--{name}_file={root / name}.tsv")
    run_teacher.main([*TEACHER, *flags, "--num_train_epochs=4", f"--output_dir={root / 'teacher'}"])
    run_student.main([*STUDENT, *flags, "--num_train_epochs=1", f"--output_dir={root / 'student'}"])
    taught = [
        f"--teacher_name_or_path={root / 'teacher'}",
        f"--teacher_cache_dir={root / 'cache'}",
        "--compare_student",
    ]
    run_distill.main([*STUDENT, *flags, *taught, "--num_train_epochs=2", f"--output_dir={root / 'distilled'}"])
    return {name: root / name for name in ("teacher", "student", "distilled")}


@pytest.fixture
def copy_of(folders, tmp_path):
    """A function that copies a run's folder, so that a test may change it."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


def read_report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["teacher", "student", "distilled"])
def test_the_metadata_are_the_reports_numbers_and_scikit_learns(folders, name):
    folder = folders[name]
    data = ModelCard.load(folder / "README.md").data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification"
    assert data.base_model is None and data.datasets is None and data.language is None, "of this nothing is known"
    assert data.model_name == name and ("knowledge-distillation" in data.tags) == (name == "distilled")
    row = read_report(folder)[name]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {metric: row[metric] for metric in ("accuracy", "f1", "precision", "recall")}
    assert {(result.dataset_name, result.dataset_split) for result in data.eval_results} == {("test.tsv", "test")}
    labels, logits = read_scored(folder)
    assert found["accuracy"] == accuracy_score(labels, logits[name].argmax(1))
    assert found["f1"] == pytest.approx(f1_score(labels, logits[name].argmax(1), average="macro"))
    # As the hub reads it, from the YAML alone.
    (index,) = metadata_load(folder / "README.md")["model-index"]
    assert index["results"][0]["task"]["type"] == "text-classification" and len(index["results"]) == 1


@pytest.mark.parametrize("name", ["teacher", "student", "distilled"])
def test_no_path_of_this_machine_is_in_the_card(folders, name):
    text = (folders[name] / "README.md").read_text(encoding="utf-8")
    for part in (str(folders[name].parent), folders[name].parent.name, str(Path.home()), "cache", str(PROJECT)):
        assert part not in text, part


@pytest.mark.parametrize("name", ["teacher", "student", "distilled"])
def test_the_text_has_the_numbers_of_the_report(folders, name):
    report, text = read_report(folders[name]), (folders[name] / "README.md").read_text(encoding="utf-8")
    rows = {"teacher": ["linear", "teacher"], "student": ["linear", "student"]}
    for row in rows.get(name, ["linear", "teacher", "student", "distilled"]):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} ") and len(line) > 100]
        assert f"{report[row]['accuracy']:.4f}" in line and f"{report[row]['parameters']:,}" in line
        ece = report["calibration"][row]["ece"]
        assert any(line.startswith(f"| {row} ") and f"| {ece:.4f} |" in line for line in text.splitlines())
    assert ("of its teacher's accuracy" in text) == (name == "distilled")
    if name == "distilled":
        kept = report["comparison"]["kept_share"]
        assert all(f"{100 * kept[key]:.1f} %" in text for key in ("share", "low", "high"))
        assert kept["share"] == pytest.approx(report["distilled"]["accuracy"] / report["teacher"]["accuracy"])
        for one in report["disagreements"]:
            assert one["text"] in text  # Chinese: nothing is escaped
        assert "BertForSequenceClassification" in text
    for label, scores in report["label_f1"].items():
        assert any(line.startswith(f"| {label} ") and f"{scores[name]:.4f}" in line for line in text.splitlines())
    assert ("trust_remote_code=True" in text) == (name != "teacher")


def test_calibration_in_the_report_is_that_of_the_answers(folders):
    labels, logits = read_scored(folders["distilled"])
    its_labels, its_logits = read_scored(folders["distilled"], is_reported=False)
    assert len(its_labels) == SIZES["validation"] and its_logits.keys() == logits.keys() >= {"linear", "distilled"}
    report = read_report(folders["distilled"])
    expected = card.analyse(report["labels"], labels, logits, (its_labels, its_logits))
    assert {key: report[key] for key in expected} == expected


def test_linear_row_is_of_the_model_that_scikit_learn_fits(folders):
    from kd_trainer.linear import fit_linear

    texts, labels = make_rows(SIZES["train"], 0)
    model = fit_linear(texts, [LABEL_NAMES[label] for label in labels])
    texts, labels = make_rows(SIZES["test"], 2)
    row = read_report(folders["student"])["linear"]
    assert row["accuracy"] == accuracy_score([LABEL_NAMES[label] for label in labels], model.predict(texts))
    coefficients = model[-1].calibrated_classifiers_[0].estimator.coef_
    assert row["parameters"] == coefficients.size + len(LABEL_NAMES) + coefficients.shape[1] + 2 * len(LABEL_NAMES)
    assert row["latency_ms"] > 0 and row["texts_per_s"] > 0 and row["agreement"] is None
    _, logits = read_scored(folders["distilled"])
    agreement = (logits["linear"].argmax(1) == logits["teacher"].argmax(1)).mean()
    assert read_report(folders["distilled"])["linear"]["agreement"] == agreement


def test_hostile_texts_and_label_names_are_shown_as_they_are(copy_of):
    folder = copy_of("distilled")
    report = read_report(folder)
    names = dict(zip(LABEL_NAMES, ("<b>|`x`", "[a](http://b.example)", "---\n$y$"), strict=True))
    text = json.dumps(report, ensure_ascii=False)
    for name, hostile in names.items():
        text = text.replace(f'"{name}"', json.dumps(hostile))
    report = json.loads(text)
    answer = {"label": names["体育"], "probability": 0.9}
    report["disagreements"] = [
        {"text": hostile, "text_pair": "", "label": names["财经"], "teacher": answer, "distilled": answer}
        for hostile in HOSTILE
    ]
    report["settings"]["train_file"] = "a/`x`<i>.tsv"
    report["settings"]["label_map"] = "```\n<script>"
    shown = Shown(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(card_text(folder, report)))
    assert not {"b", "i", "script", "blockquote", "hr"} & shown.tags
    plain = " ".join(shown.text.split())
    for hostile in (*HOSTILE, *names.values(), "`x`<i>.tsv"):
        assert " ".join(hostile.split()) in plain, hostile
    sections = ("Results", "Labels", "Calibration", "Largest disagreements", "How to use it", "Training", "Versions")
    assert all(f"## {section}" in card_text(folder, report) for section in sections)


def test_names_of_the_hub_are_linked_and_in_the_metadata(copy_of):
    folder = copy_of("distilled")
    report = read_report(folder)
    teachers = [{"name": "user/teacher", "fine_tuned_from": None, "architecture": None}]
    report["sources"] = {"start": "user/start", "dataset": "clue/tnews", "teachers": teachers}
    report["settings"]["hub_model_id"] = "me/student"
    data = card.card_data(folder, report)
    assert data.base_model == "user/teacher" and data.datasets == ["clue/tnews"] and data.model_name == "student"
    assert {result.dataset_type for result in data.eval_results} == {"clue/tnews"}
    for name in (data.base_model, *data.datasets):
        validate_repo_id(name)
    text = card_text(folder, report)
    assert "(https://huggingface.co/user/teacher)" in text and "(https://huggingface.co/datasets/clue/tnews)" in text
    assert 'model="me/student"' in text
    report["sources"]["teachers"] = []
    assert card.card_data(folder, report).base_model == "user/start"


def test_every_picture_of_a_card_is_a_file_that_a_push_takes_and_a_new_run_removes():
    assert {f"{name}.png" for name in PICTURES} == set(WRITTEN[PLOTS])


def test_an_export_is_told_of(copy_of):
    folder = copy_of("student")
    report = read_report(folder)
    assert "onnx" not in card_text(folder, report)
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model_int8.onnx", "config.json", "tokenizer.json"):
        (folder / "onnx" / name).touch()
    assert "exported to ONNX" not in card_text(folder, report), "somebody's own"
    (folder / "onnx" / "classify.py").touch()
    row = {**report["student"], "accuracy": 0.1234}
    text = card_text(folder, {"student": report["student"], "onnx-int8": row, **report})
    assert text.count("exported to ONNX") == 1 and "python onnx/classify.py" in text
    assert "| onnx-int8 " in text and "0.1234" in text, "its row is in the table"


def test_a_cascade_is_no_row_and_has_its_own_words(copy_of):
    folder = copy_of("distilled")
    report = read_report(folder)
    scores = {"accuracy": 0.4321, "student_accuracy": 0.4, "teacher_accuracy": 0.43, "coverage": 0.625}
    report["cascade"] = {"threshold": 0.75, "latency_ms": 1.25, "rows": 60, **scores}
    text = card_text(folder, report)
    assert "cascade" not in table_rows(report)
    assert "62.5 % of the texts" in text and "more than 75.00 % sure" in text and "0.4321" in text
    report["cascade"] |= {"threshold": 0.0, "coverage": 1.0}
    assert "The student answers all texts" in card_text(folder, report)


def test_the_command_writes_the_same_card_and_the_plots(copy_of, plots):
    folder = copy_of("distilled")
    before, report = (folder / "README.md").read_text(), read_report(folder)
    (folder / "README.md").unlink()
    shutil.rmtree(folder / "plots", ignore_errors=True)
    card.main([str(folder)])
    after = (folder / "README.md").read_text()
    drawn = sorted((folder / "plots").glob("*.png"))
    assert [path.stem for path in drawn] == ["accuracy_latency", "confusion", "reliability", "training"]
    assert all(f"](plots/{path.name})" in after for path in drawn)
    for path in drawn:
        Image.open(path).verify()
    lines = [line for line in after.splitlines() if "](plots/" not in line and "<!--" not in line and line]
    assert set(lines) - set(before.splitlines()) <= {line for line in lines if line.startswith("Labels of the picture")}
    assert read_report(folder) == report


def test_the_report_of_an_older_run_gets_what_it_lacks(copy_of):
    folder = copy_of("distilled")
    report = read_report(folder)
    newer = ("accuracy_interval", "calibration", "comparison", "label_f1", "disagreements", "sources")
    older = {key: value for key, value in report.items() if key not in newer}
    (folder / "report.json").write_text(json.dumps(older))
    (folder / "_validation.safetensors").unlink()
    card.main([str(folder)])
    found = read_report(folder)
    assert found["comparison"] == report["comparison"] and found["disagreements"] == []
    assert found["calibration"]["distilled"]["temperature"] is None, "the validation split was not kept"
    text = (folder / "README.md").read_text()
    assert "Largest disagreements" not in text and "no answers to a validation split" in text


def test_texts_can_be_taken_out_afterwards(copy_of):
    folder = copy_of("distilled")
    quoted = [one["text"] for one in read_report(folder)["disagreements"]]
    assert quoted and all(text in (folder / "README.md").read_text() for text in quoted)
    card.main([str(folder), "--card_examples=0"])
    for name in ("README.md", "report.json"):
        assert not any(text in (folder / name).read_text() for text in quoted)


def test_what_is_pushed_quotes_no_text_unless_told_to(folders, tmp_path, monkeypatch):
    from kd_trainer import workflow

    class Run:
        class args:
            push_to_hub = True

        class run_args:
            card_examples = None

    assert workflow.number_of_examples(Run) == 0
    Run.run_args.card_examples = 3
    assert workflow.number_of_examples(Run) == 3
    Run.run_args.card_examples, Run.args.push_to_hub = None, False
    assert workflow.number_of_examples(Run) == 5


def test_the_command_refuses_in_one_line(copy_of, tmp_path, monkeypatch, capsys):
    with refused(tmp_path, "report.json"):
        card.main([str(tmp_path)])
    folder = copy_of("distilled")
    path = folder / "README.md"
    path.write_text(path.read_text() + "my own words")
    with refused(path, "--overwrite"):
        card.main([str(folder)])
    card.main([str(folder), "--overwrite"])
    assert is_unchanged(path)
    (folder / "_scored.safetensors").write_bytes(b"damaged")
    with refused(folder, "_scored.safetensors"):
        card.main([str(folder)])
    (folder / "report.json").write_text('{"labels": []}')
    with refused(folder, "report.json"):
        card.main([str(folder)])
    with refused("--card_examples"):
        card.main([str(folder), "--card_examples=-1"])
    monkeypatch.setattr(sys, "argv", ["card", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        card.console()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith("card: error: ")


def content_of(folder):
    """Every file of a folder, `dict[Path, bytes]`."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refused_untouched(folder, *parts):
    """The block is refused as by `refused`, and no file of the folder is another, or new."""
    before = content_of(folder)
    with refused(folder, *parts):
        yield
    assert content_of(folder) == before


@pytest.mark.parametrize("content", ["[]", "5", "null", '"x"', "{", "", "[" * 100_000, "{}", b"\xff"])
@pytest.mark.parametrize("name", ["report.json", "config.json"])
def test_a_damaged_file_is_one_line_and_nothing_is_changed(copy_of, name, content):
    folder = copy_of("student")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused_untouched(folder, name):
        card.main([str(folder)])


WRONG = ["x", 5, -1, [], [1], {}, {"a": 1}, None, float("nan"), float("inf"), "0.9", True]


@pytest.mark.parametrize("key", ["labels", "split", "data", "student", "settings", "measured", "versions"])
def test_a_report_without_one_of_its_parts_is_refused(copy_of, key):
    folder = copy_of("student")
    report = read_report(folder)
    del report[key]
    (folder / "report.json").write_text(json.dumps(report))
    with refused_untouched(folder, "report.json"):
        card.main([str(folder)])


@pytest.mark.parametrize("key", ["labels", "split", "data", "student", "settings", "versions", "sources", "cascade"])
def test_a_report_with_a_part_of_another_type_is_refused(copy_of, key):
    folder = copy_of("student")
    report = read_report(folder)
    allowed = {
        "settings": [{}, {"a": 1}],
        "versions": [{}, {"a": 1}],
        "sources": [{}, {"a": 1}],
        "cascade": [None, [], {}],
    }
    for wrong in (value for value in WRONG if value not in allowed.get(key, [])):
        (folder / "report.json").write_text(json.dumps({**report, key: wrong}))
        with refused_untouched(folder, "report.json"):
            card.main([str(folder)])


@pytest.mark.parametrize("key", ["accuracy", "f1", "size_mb", "parameters", "latency_ms", "train_seconds"])
def test_a_row_with_a_number_that_is_none_is_refused(copy_of, key):
    folder = copy_of("student")
    report = read_report(folder)
    for wrong in (value for value in WRONG if value is not None and value != 5):
        (folder / "report.json").write_text(json.dumps({**report, "student": {**report["student"], key: wrong}}))
        with refused_untouched(folder, "report.json"):
            card.main([str(folder)])


def test_labels_of_another_model_and_rows_of_another_report_are_refused(copy_of):
    folder = copy_of("student")
    report, config = read_report(folder), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for names in (LABEL_NAMES[:2], LABEL_NAMES[::-1], [*LABEL_NAMES, "x"]):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))
        with refused_untouched(folder, "config.json", "labels"):
            card.main([str(folder)])
    (folder / "config.json").write_text(json.dumps(config))
    report["data"]["rows"]["test"] += 1
    (folder / "report.json").write_text(json.dumps(report))
    with refused_untouched(folder, "61 rows"):
        card.main([str(folder)])


@pytest.mark.parametrize("file", ["_scored.safetensors", "_validation.safetensors"])
@pytest.mark.parametrize("what", ["label", "negative", "length", "nan", "width", "two widths", "flat", "none"])
def test_answers_that_are_none_are_refused(copy_of, file, what):
    folder = copy_of("distilled")
    labels, logits = read_scored(folder, is_reported=file == "_scored.safetensors")
    names = list(logits)
    if what in ("label", "negative"):
        labels[3] = 3 if what == "label" else -1
    elif what == "length":
        labels = labels[1:]
    elif what == "nan":
        logits[names[0]][2, 1] = np.nan
    elif what == "none":
        logits = {}
    else:
        changed = names if what == "width" else names[:1]
        logits |= {
            name: logits[name].ravel() if what == "flat" else np.pad(logits[name], ((0, 0), (0, 1))) for name in changed
        }
    write_scored(folder, labels, logits, is_reported=file == "_scored.safetensors")
    with refused_untouched(folder, *([] if what == "width" else [file])):
        card.main([str(folder)])


def test_a_log_that_cannot_be_drawn_is_one_line_and_no_plot_is_replaced(copy_of, plots):
    folder = copy_of("student")
    for history in ([5], {"a": 1}, [{"loss": "x", "epoch": 1}], [{"loss": 1.0}]):
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        with refused_untouched(folder):
            card.main([str(folder)])


def test_a_folder_that_cannot_be_written_is_one_line(copy_of, monkeypatch):
    folder = copy_of("student")
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / "plots").write_text("mine")
    with refused_untouched(folder, "plots", "move it away"):
        card.main([str(folder)])
    (folder / "plots").unlink()

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kd_trainer.output_folder.tempfile.TemporaryFile", deny)
    with refused_untouched(folder, "Permission denied"):
        card.main([str(folder)])


def test_a_card_that_somebody_has_put_there_outlives_the_run(folders, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("my own words")
    data = [f"--{name}_file={folders['student'].parent / name}.tsv" for name in SIZES]
    flags = [*STUDENT, *TRAINING, *data, "--max_steps=1", f"--output_dir={tmp_path / 'out'}"]
    run_student.main(flags)
    assert (tmp_path / "out" / "README.md").read_text() == "my own words"
    assert "stays" in caplog.text and (tmp_path / "out" / "report.json").exists()
    run_student.main([*flags, "--overwrite_output_dir"])
    assert (tmp_path / "out" / "README.md").read_text() == "my own words"
    (tmp_path / "out" / "README.md").unlink()
    for _ in range(2):  # its own it does replace
        run_student.main([*flags, "--overwrite_output_dir"])
        assert is_unchanged(tmp_path / "out" / "README.md")


def test_the_trainers_own_draft_does_not_replace_the_card(copy_of, make_student, tokenizer):
    from transformers import TrainingArguments

    from kd_trainer import ClassificationTrainer

    folder = copy_of("distilled")
    card_before = (folder / "README.md").read_text()
    trainer = ClassificationTrainer(make_student(), TrainingArguments(str(folder), use_cpu=True))
    trainer.create_model_card(model_name="x")
    assert (folder / "README.md").read_text() == card_before
    (folder / "README.md").unlink()
    for name in ("first", "second"):  # its own it does replace
        trainer.create_model_card(model_name=name)
        assert f"# {name}" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--compare_linear", "--max_train_samples=12"], ["--compare_linear", "5 training rows"]),
        (["--card_examples=-1"], []),
    ],
)
def test_flags_that_cannot_work_are_refused_before_the_training(folders, tmp_path, flags, parts):
    data = [f"--{name}_file={folders['student'].parent / name}.tsv" for name in SIZES]
    with refused(*parts):
        run_student.main([*STUDENT, *TRAINING, *data, *flags, f"--output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_linear_model_is_fitted_to_a_training_split(folders, tmp_path):
    model = [f"--model_name_or_path={folders['student']}", f"--test_file={folders['student'].parent / 'test.tsv'}"]
    flags = [*model, "--use_cpu", "--do_predict", "--disable_tqdm=true"]
    with refused("--compare_linear", "--do_train"):
        run_student.main([*flags, "--compare_linear", f"--output_dir={tmp_path / 'scored'}"])
    run_student.main([*flags, f"--output_dir={tmp_path / 'scored'}"])
    # No model lies there that a card could be about; the report knows all the same.
    assert not (tmp_path / "scored" / "README.md").exists()
    report = read_report(tmp_path / "scored")
    assert np.isclose(
        report["calibration"]["student"]["ece"], read_report(folders["student"])["calibration"]["student"]["ece"]
    )
