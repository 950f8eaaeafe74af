"""The three scripts as a person launches them: what they write, what they refuse, that they can be killed."""

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LABEL_NAMES, held, make_rows, refused
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import run_distill
import run_student
import run_teacher
from kd_trainer.errors import InputError
from kd_trainer.output_folder import lock
from kd_trainer.report import read_scored

PROJECT = Path(__file__).parent.parent
STUDENT = ["--embedding_size=12", "--hidden_size=8", "--dropout=0"]
TEACHER = [
    "--config_name=bert",
    "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,"
    "hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0",
]
TRAINING = ["--use_cpu", "--bf16=false", "--do_train", "--do_predict", "--learning_rate=1e-2", "--disable_tqdm=true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name a tiny training, validation and test split."""
    folder = tmp_path_factory.mktemp("data")
    flags = ["--max_seq_length=16"]
    for seed, (name, size) in enumerate({"train": 192, "validation": 48, "test": 60}.items()):
        lines = [f"{LABEL_NAMES[label]}\t{text}" for text, label in zip(*make_rows(size, seed), strict=True)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags.append(f"--{name}_file={folder / name}.tsv")
    return flags


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Folder of a trained teacher."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    run_teacher.main([*TEACHER, *data, *TRAINING, "--num_train_epochs=6", f"--output_dir={folder}"])
    return folder


@pytest.fixture
def distil_flags(data, teacher, tmp_path):
    """Flags of a small distillation into `tmp_path / "distilled"`, with a cache of its own."""
    return [
        *data,
        *TRAINING,
        *STUDENT,
        "--num_train_epochs=2",
        f"--teacher_name_or_path={teacher}",
        f"--teacher_cache_dir={tmp_path / 'cache'}",
        f"--output_dir={tmp_path / 'distilled'}",
    ]


def read_report(folder):
    return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))


def launch(arguments, **kwargs):
    """Runs a command in the project's folder; its output is text."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **kwargs.pop("env", {})}
    return subprocess.run(
        list(map(str, arguments)), cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, **kwargs
    )


def count_forwards(monkeypatch):
    """A list that grows by one at every forward of a BERT classifier."""
    from transformers import BertForSequenceClassification

    forwards, forward = [], BertForSequenceClassification.forward

    def counted(self, *args, **kwargs):
        forwards.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", counted)
    return forwards


def test_teacher_report_says_what_scikit_learn_says(teacher, data):
    report = read_report(teacher)
    assert report["split"] == "test" and report["labels"] == sorted(LABEL_NAMES)
    assert report["teacher"]["accuracy"] > 0.6  # it has learnt something of the tiny task
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts, labels = make_rows(60, 2)
    with torch.no_grad():
        predicted = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1)
    names = [model.config.id2label[int(label)] for label in predicted]
    accuracy = np.mean([name == LABEL_NAMES[label] for name, label in zip(names, labels, strict=True)])
    assert report["teacher"]["accuracy"] == pytest.approx(accuracy)
    assert set(report["per_class"]) >= set(LABEL_NAMES)


def test_distillation_writes_the_whole_report_and_a_model_that_loads(distil_flags, tmp_path):
    run_distill.main([*distil_flags, "--compare_student"])
    report = read_report(tmp_path / "distilled")
    for name in ("teacher", "student", "distilled"):
        for key in ("accuracy", "precision", "recall", "f1", "parameters", "size_mb", "latency_ms", "texts_per_s"):
            assert report[name][key] is not None and np.isfinite(report[name][key]), (name, key)
        assert report[name]["train_seconds"] > 0
    assert report["teacher"]["agreement"] is None
    assert 0 <= report["distilled"]["agreement"] <= 1
    assert report["data"]["rows"] == {"train": 192, "validation": 48, "test": 60}
    assert report["seed"] == 42 and report["versions"]["torch"] == torch.__version__
    # What is chosen after the training is chosen on the validation split: every row has answered that too.
    for is_reported, size in ((True, 60), (False, 48)):
        labels, logits = read_scored(tmp_path / "distilled", is_reported)
        assert len(labels) == size and sorted(logits) == ["distilled", "student", "teacher"]
        assert all(array.shape == (size, 3) for array in logits.values())
        if is_reported:
            found = (logits["distilled"].argmax(-1) == labels).mean()
            assert found == pytest.approx(report["distilled"]["accuracy"])
    weights = load_file(tmp_path / "distilled" / "model.safetensors")
    alone = load_file(tmp_path / "distilled-alone" / "model.safetensors")
    assert any(not torch.equal(weights[name], alone[name]) for name in weights)
    flags = [flag for flag in distil_flags if not flag.startswith(("--teacher", "--output_dir"))]
    run_student.main([*flags, f"--output_dir={tmp_path / 'student'}"])
    student = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(alone[name], weight) for name, weight in student.items())


def test_teacher_in_another_label_order_teaches_the_same(distil_flags, data, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["科技", "体育", "财经"]), encoding="utf-8")
    flags = [
        *TEACHER,
        *data,
        *TRAINING,
        "--num_train_epochs=6",
        f"--class_file={classes}",
        f"--output_dir={tmp_path}/t",
    ]
    run_teacher.main(flags)
    teacher = read_report(tmp_path / "t")
    assert teacher["labels"] == ["科技", "体育", "财经"] and teacher["teacher"]["accuracy"] > 0.6
    for mode in ("cached", "online"):
        output = tmp_path / mode
        flags = [
            f"--teacher_name_or_path={tmp_path}/t",
            f"--teacher_mode={mode}",
            "--alpha=0",
            f"--output_dir={output}",
        ]
        run_distill.main([*distil_flags, *flags, "--num_train_epochs=8", "--temperature=1"])
        report = read_report(output)
        assert report["labels"] == sorted(LABEL_NAMES)
        assert report["teacher"]["accuracy"] == teacher["teacher"]["accuracy"]
        # alpha 0: the student knows of the labels only what the teacher says.
        assert report["distilled"]["agreement"] > 0.6 and report["distilled"]["accuracy"] > 0.5


def test_distillation_that_only_predicts_asks_no_teacher(distil_flags, tmp_path, capsys, monkeypatch):
    run_distill.main(distil_flags)
    forwards = count_forwards(monkeypatch)
    capsys.readouterr()
    run_distill.main([f"--model_name_or_path={tmp_path / 'distilled'}", "--predict_text=球队胜", "--use_cpu"])
    assert json.loads(capsys.readouterr().out)["label"] in LABEL_NAMES and not forwards


def test_hub_token_is_written_nowhere(distil_flags, data, tmp_path):
    run_student.main([*data, *STUDENT, *TRAINING, "--hub_token=hf_secret", f"--output_dir={tmp_path / 'out'}"])
    os.environ.pop("HF_TOKEN")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_another_temperature_does_not_run_the_teacher(distil_flags, tmp_path, monkeypatch):
    forwards = count_forwards(monkeypatch)
    run_distill.main(distil_flags)
    # 192 training, 48 validation and 60 test texts in batches of 64; the rest are calls of the speed measurement.
    first = len(forwards)
    assert first >= 3 + 1 + 1
    monkeypatch.setattr("kd_trainer.report.measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
    del forwards[:]
    run_distill.main([*distil_flags, "--temperature=9", f"--output_dir={tmp_path / 't9'}"])
    assert not forwards
    run_distill.main([*distil_flags, "--teacher_max_seq_length=5", f"--output_dir={tmp_path / 'short'}"])
    assert len(forwards) == 3 + 1 + 1
    assert read_report(tmp_path / "t9")["settings"]["temperature"] == 9


def test_online_teacher_gives_the_weights_that_cached_logits_give(distil_flags, tmp_path):
    run_distill.main(distil_flags)
    run_distill.main([*distil_flags, "--teacher_mode=online", f"--output_dir={tmp_path / 'online'}"])
    cached, online = (load_file(tmp_path / name / "model.safetensors") for name in ("distilled", "online"))
    for name, weight in cached.items():
        torch.testing.assert_close(online[name], weight, rtol=1e-3, atol=1e-4)


def test_recipe_alone_trains_the_teacher_first(data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in [*data, *TEACHER])
    common = {**flags, "do_train": True, "use_cpu": True, "learning_rate": 0.01, "num_train_epochs": 1}
    Path("teacher.yaml").write_text(json.dumps({**common, "output_dir": "out/teacher"}))
    student = {key: value for key, value in common.items() if not key.startswith("config")}
    student = {**student, "hidden_size": 8, "embedding_size": 8, "output_dir": "out/student"}
    Path("distil.yaml").write_text(json.dumps({**student, "teacher_recipe": "teacher.yaml"}))
    run_distill.main(["distil.yaml", "--max_train_samples=64", "--teacher_cache_dir=cache"])
    assert read_report("out/teacher")["data"]["rows"]["train"] == 64  # what the command line says of the data holds
    trained = (Path("out/teacher") / "model.safetensors").stat().st_mtime_ns
    assert read_report("out/student")["distilled"]["accuracy"] is not None
    caplog.clear()
    run_distill.main(["distil.yaml", "--output_dir=out/second", "--teacher_cache_dir=cache"])
    assert (Path("out/teacher") / "model.safetensors").stat().st_mtime_ns == trained
    # It was trained on a sample, and this run is not: used, but said.
    assert "trained otherwise (max_train_samples 64 -> None)" in caplog.text


def test_a_teacher_trained_first_may_have_another_precision(data, tmp_path):
    flags = [*data, "--do_train", "--use_cpu", "--max_steps=2", "--eval_strategy=no", "--save_strategy=no"]
    recipe = dict(flag.removeprefix("--").split("=", 1) for flag in TEACHER)
    recipe = {**recipe, "bf16": True, "do_train": True, "max_steps": 2, "output_dir": str(tmp_path / "teacher")}
    (tmp_path / "teacher.yaml").write_text(json.dumps(recipe))
    student = [f"--teacher_recipe={tmp_path / 'teacher.yaml'}", f"--teacher_cache_dir={tmp_path / 'cache'}"]
    run_distill.main([*flags, *student, "--bf16=false", "--hidden_size=8", f"--output_dir={tmp_path / 'student'}"])
    assert read_report(tmp_path / "teacher")["precision"] == "bf16"
    assert read_report(tmp_path / "student")["precision"] == "fp32"


def test_finished_run_is_not_overwritten(distil_flags, tmp_path):
    run_distill.main(distil_flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "distilled").rglob("*")}
    with pytest.raises(InputError, match="holds a finished run"):
        run_distill.main([*distil_flags, "--temperature=2"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "distilled").rglob("*")} == before
    for flags, found in [
        (["--optim=lomo"], "--optim lomo"),  # its package is not installed
        (["--lr_scheduler_type=polynomial", '--lr_scheduler_kwargs={"lr_end": 9}'], "--lr_scheduler_type polynomial"),
        (["--lr_scheduler_type=cosine", '--lr_scheduler_kwargs={"no": 1}'], "--lr_scheduler_type cosine"),
        (["--lr_scheduler_type=cosine", '--lr_scheduler_kwargs={"num_cycles": "a"}'], "--lr_scheduler_type cosine"),
        (
            [
                "--lr_scheduler_type=reduce_lr_on_plateau",
                '--lr_scheduler_kwargs={"threshold": "x"}',
                "--eval_strategy=epoch",
            ],
            "plateau",
        ),
        (["--optim=adagrad", "--optim_args=lr_decay=-1"], "--optim adagrad"),
    ]:
        with refused(found):
            run_distill.main([*distil_flags, "--overwrite_output_dir", *flags])
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "distilled").rglob("*") if path.is_file()}
        assert kept == {path: time for path, time in before.items() if path.is_file()}
    plateau = ["--lr_scheduler_type=reduce_lr_on_plateau", '--lr_scheduler_kwargs={"patience": 1}']
    run_distill.main([*distil_flags, "--temperature=2", "--overwrite_output_dir", "--optim=adamw_torch", *plateau])
    assert read_report(tmp_path / "distilled")["settings"]["temperature"] == 2


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "modeling_bilstm.py",
     "checkpoint-7", "trainer_state.json", "all_results.json"],
)  # fmt: skip
def test_a_model_of_somebody_is_not_written_over(distil_flags, tmp_path, name):
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / name).write_text("mine")
    with refused("holds a model", name):
        run_distill.main(distil_flags)
    assert [(path.name, path.read_text()) for path in (tmp_path / "distilled").iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "mine"), ("plots/confusion.png", "mine"), ("checkpoint-5/notes.txt", "mine"),
        ("all_results.json", "mine"), ("_scored.safetensors", "mine"), ("vocab.txt", "mine"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["steps: [bake]\n", b"\xff\0", None])
def test_a_recipe_of_another_tool_makes_no_folder_a_runs(distil_flags, tmp_path, name, content, recipe):
    folder = tmp_path / "distilled"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(content)
    if recipe is not None:
        (folder / "recipe.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with refused(folder, "that this run did not make"):
        run_distill.main(distil_flags)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_recipe_of_somebodys_stays_even_where_a_run_is_replaced(distil_flags, tmp_path):
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "recipe.yaml").write_text("# mine\nseed: 1\n")
    with refused("holds recipe.yaml, which no run has written"):
        run_distill.main([*distil_flags, "--overwrite_output_dir"])
    assert (tmp_path / "distilled" / "recipe.yaml").read_text() == "# mine\nseed: 1\n"


def test_what_is_replaced_is_not_written_through_links(distil_flags, tmp_path):
    folder = tmp_path / "distilled"
    run_distill.main([*distil_flags, "--max_steps=1"])
    linked = ["config.json", "report.json", "recipe.yaml", "_data.sha256", "model.safetensors", "trainer_state.json"]
    for name in linked:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in linked}
    run_distill.main([*distil_flags, "--max_steps=2", "--overwrite_output_dir"])
    assert {name: (tmp_path / name).read_bytes() for name in linked} == before
    assert not any((folder / name).is_symlink() for name in linked)


def test_a_run_that_came_back_from_the_hub_goes_on_from_its_checkpoint(distil_flags, tmp_path, caplog):
    flags = [*distil_flags, "--max_steps=4", "--eval_strategy=steps", "--eval_steps=2"]
    run_distill.main(flags)
    expected = load_file(tmp_path / "distilled" / "model.safetensors")
    for name in ("report.json", "model.safetensors", "_data.sha256", "_scored.safetensors"):
        (tmp_path / "distilled" / name).unlink()
    shutil.rmtree(tmp_path / "distilled" / "checkpoint-4")
    with refused("that this run did not make"):
        run_distill.main([*flags, "--temperature=7"])
    run_distill.main(flags)
    assert "continuing the run" in caplog.text and "checkpoint-2" in caplog.text
    assert all(
        torch.equal(tensor, expected[name])
        for name, tensor in load_file(tmp_path / "distilled" / "model.safetensors").items()
    )


def test_a_killed_evaluation_begins_anew(distil_flags, tmp_path, monkeypatch):
    run_distill.main([*distil_flags, "--max_steps=1"])
    score = [flag for flag in distil_flags if flag != "--do_train" and not flag.startswith("--output_dir")]
    score += [f"--model_name_or_path={tmp_path / 'distilled'}", f"--output_dir={tmp_path / 'scored'}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kd_trainer.workflow.find_disagreements", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        run_distill.main(score)
    assert (tmp_path / "scored" / "_scored.safetensors").exists()
    run_distill.main(score)
    assert read_report(tmp_path / "scored")["distilled"]["accuracy"] >= 0


@pytest.mark.parametrize("name", ["recipe.yaml", "_data.sha256", "_scored.safetensors", "best.yaml"])
def test_nothing_is_written_through_a_link_of_somebodys(distil_flags, tmp_path, name):
    (tmp_path / "distilled").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "distilled" / name).symlink_to(tmp_path / "mine")
    whose = ", which no run has written" if name == "recipe.yaml" else " that this run did not make"
    with refused(f"holds {name}{whose}"):
        run_distill.main(distil_flags)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_run_that_was_killed_before_it_wrote_its_settings_begins_anew(distil_flags, tmp_path):
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "_data.sha256").write_text("0" * 64)
    (tmp_path / "distilled" / "_lock").write_text("my notes")
    run_distill.main([*distil_flags, "--max_steps=1"])
    assert (tmp_path / "distilled" / "report.json").exists()
    assert (tmp_path / "distilled" / "_lock").read_text() == "my notes"


@pytest.mark.parametrize("name", ["config.json", "plots/training.png", "all_results.json", "README.md", "plots"])
def test_what_cannot_be_written_is_said_before_anything_is_removed(distil_flags, tmp_path, name):
    folder = tmp_path / "distilled"
    run_distill.main([*distil_flags, "--max_steps=1"])
    place = folder / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    if name == "plots":
        place.symlink_to("nowhere")
    else:
        place.mkdir(parents=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with refused(place):
        run_distill.main([*distil_flags, "--max_steps=1", "--overwrite_output_dir"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_plots_of_somebody_are_not_written_over(distil_flags, tmp_path):
    plot = tmp_path / "distilled" / "plots" / "confusion.png"
    plot.parent.mkdir(parents=True)
    (tmp_path / "there").write_text("mine")
    for target in (None, "there", "nowhere"):
        plot.write_text("mine") if target is None else plot.symlink_to(tmp_path / target)
        with refused("plots/confusion.png"):
            run_distill.main(distil_flags)
        assert [*(tmp_path / "distilled").rglob("*")] == [plot.parent, plot]
        plot.unlink()


@pytest.mark.parametrize("recipe", ["# mine\n", "task: x\n"])
def test_a_model_beside_a_recipe_of_somebody_is_not_written_over(distil_flags, tmp_path, recipe):
    (tmp_path / "distilled").mkdir()
    for name, content in {"recipe.yaml": recipe, "model.safetensors": "mine", "config.json": "{}"}.items():
        (tmp_path / "distilled" / name).write_text(content)
    with refused("distilled"):
        run_distill.main(distil_flags)
    assert (tmp_path / "distilled" / "model.safetensors").read_text() == "mine"
    assert (tmp_path / "distilled" / "recipe.yaml").read_text() == recipe


def test_data_in_a_checkpoint_is_not_removed(distil_flags, tmp_path):
    texts = tmp_path / "distilled" / "checkpoint-1" / "sub" / "texts.txt"
    texts.parent.mkdir(parents=True)
    texts.write_text("a\n")
    with refused("lies in a checkpoint", texts):
        run_distill.main([*distil_flags, f"--unlabeled_file={texts}", "--overwrite_output_dir"])
    assert texts.exists()


def test_what_no_run_has_left_stays(distil_flags, tmp_path):
    folder = tmp_path / "distilled"
    names = ["_push-me/x", "model-old.safetensors", ".notes.partial", "notes/checkpoint-3"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "checkpoint-best").mkdir()  # the Trainer itself would remove it
    with refused("checkpoint-best", "move it away"):
        run_distill.main([*distil_flags, "--overwrite_output_dir"])
    (folder / "checkpoint-best").rmdir()
    (folder / "checkpoint-9").symlink_to(folder / "notes")
    with refused("checkpoint-9", "move it away"):
        run_distill.main([*distil_flags, "--overwrite_output_dir"])
    (folder / "checkpoint-9").unlink()
    for more in ([], ["--overwrite_output_dir", "--seed=8"]):
        run_distill.main([*distil_flags, *more])
        assert all((folder / name).read_text() == "mine" for name in names)


def test_predictions_replace_no_file_of_a_model(distil_flags, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("球队\n", encoding="utf-8")
    for name in ("config.json", "report.json", "onnx/config.json", "all_results.json", "emoji.json", "x.index.json"):
        output = f"--predict_output={tmp_path / 'distilled' / name}"
        with refused(name, "--predict_output"):
            run_distill.main([*distil_flags, f"--predict_file={texts}", output, "--overwrite_output_dir"])
    assert not (tmp_path / "distilled").exists()


def test_a_text_that_was_asked_about_is_kept_nowhere(distil_flags, tmp_path, capsys):
    run_distill.main([*distil_flags, "--predict_text=我的秘密"])
    assert "我的秘密" in capsys.readouterr().out
    for path in (tmp_path / "distilled").rglob("*"):
        assert not path.is_file() or "我的秘密".encode() not in path.read_bytes(), path


def test_unlabelled_rows_are_counted_and_distilled_but_refused_without_a_teacher(distil_flags, data, tmp_path):
    texts, labels = make_rows(90)
    lines = [
        f"{LABEL_NAMES[label] if row % 4 else ''}\t{text}"
        for row, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    train = tmp_path / "train.tsv"
    train.write_text("label\ttext\n" + "\n".join(lines), encoding="utf-8")
    run_distill.main([*distil_flags, f"--train_file={train}"])
    assert read_report(tmp_path / "distilled")["data"]["unlabelled"] == 23
    with pytest.raises(InputError, match="line 2: no label .23 such rows"):
        run_student.main([*data, *STUDENT, *TRAINING, f"--train_file={train}", f"--output_dir={tmp_path / 'alone'}"])
    assert not (tmp_path / "alone").exists()


def test_small_transformer_and_teacher_tokenizer_as_student(distil_flags, teacher, tmp_path):
    run_distill.main([*distil_flags, f"--model_name_or_path={teacher}", "--num_train_epochs=1"])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "distilled").config.model_type == "bert"
    run_distill.main([*distil_flags, "--tokenizer_type=teacher", f"--output_dir={tmp_path / 'same'}"])
    saved = AutoTokenizer.from_pretrained(tmp_path / "same")
    assert saved.get_vocab() == AutoTokenizer.from_pretrained(teacher).get_vocab()


def test_trained_student_is_scored_and_predicts(distil_flags, data, tmp_path, capsys):
    run_distill.main(distil_flags)
    student = tmp_path / "distilled"
    scored = read_report(student)["distilled"]
    run_student.main(
        [*data, "--use_cpu", f"--model_name_or_path={student}", "--do_predict", f"--output_dir={tmp_path}/e"]
    )
    assert read_report(tmp_path / "e")["student"]["accuracy"] == scored["accuracy"]
    capsys.readouterr()
    run_student.main([f"--model_name_or_path={student}", "--predict_text=球队胜", "--use_cpu"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] in LABEL_NAMES and sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    texts = tmp_path / "texts.txt"
    texts.write_text("球队胜\n\n股市\n", encoding="utf-8")
    for suffix in ("csv", "jsonl"):
        flags = [f"--predict_file={texts}", f"--predict_output={tmp_path}/p.{suffix}", "--use_cpu"]
        run_student.main([f"--model_name_or_path={student}", *flags])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["球队胜", "", "股市"]  # as many rows as lines
    assert rows[0]["label"] == answer["label"]
    with pytest.raises(InputError, match="is there already"):
        run_student.main([f"--model_name_or_path={student}", *flags])


def test_teacher_with_other_labels_is_refused_before_training(distil_flags, data, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text("".join(f"{'甲乙'[row % 2]}\t第{row}条\n" for row in range(40)), encoding="utf-8")
    with pytest.raises(InputError, match="teacher has labels .* data has .*label_map"):
        flags = [f"--train_file={other}", f"--validation_file={other}", f"--test_file={other}"]
        run_distill.main([*distil_flags, *flags])
    assert not (tmp_path / "distilled").exists()


def test_console_says_a_mistake_in_one_line_with_exit_code_2(tmp_path):
    done = launch(
        [sys.executable, "run_student.py", "--train_file=nowhere.tsv", "--do_train", "--output_dir", tmp_path]
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["run_student.py: error: nowhere.tsv: no such file: check the path"]
    assert not list(tmp_path.iterdir())


def test_models_that_a_run_reads_are_never_its_output(distil_flags, teacher, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in teacher.rglob("*")}
    for output in (teacher, teacher.parent):
        with pytest.raises(InputError, match="which this run reads"):
            run_distill.main([*distil_flags, f"--output_dir={output}", "--overwrite_output_dir"])
    copy = tmp_path / "z-alone"
    shutil.copytree(teacher, copy)
    with pytest.raises(InputError, match="which this run reads"):
        flags = [f"--teacher_name_or_path={copy}", f"--output_dir={tmp_path / 'z'}", "--overwrite_output_dir"]
        run_distill.main([*distil_flags, "--compare_student", *flags])
    assert {path: path.stat().st_mtime_ns for path in teacher.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--num_train_epochs=0"], "--num_train_epochs is 0"),
        (["--output_dir=/proc/x"], "/proc/x.* cannot be written"),
        (["--validation_file="], "unknown kind of file"),
        (["--learning_rate=1e30"], "not finite"),
        (["--metric_for_best_model=foo"], "--metric_for_best_model foo"),
        (["--resume_from_checkpoint=nowhere"], "--resume_from_checkpoint nowhere"),
        (["--report_to=foo"], "foo"),
        (["--hidden_size=0"], "--hidden_size is 0"),
    ],
)
def test_flags_that_would_fail_late_or_silently_are_refused(data, tmp_path, flags, found):
    with pytest.raises(InputError, match=found) as caught:
        run_student.main([*data, *STUDENT, *TRAINING, f"--output_dir={tmp_path / 'out'}", *flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "report.json").exists()


def test_killed_run_does_not_continue_on_other_data(data, tmp_path):
    train = tmp_path / "train.tsv"
    train.write_bytes(Path(data[1].partition("=")[2]).read_bytes())
    folder = tmp_path / "out"
    flags = [*data, *STUDENT, *TRAINING, f"--train_file={train}", f"--output_dir={folder}", "--num_train_epochs=2"]
    run_student.main(flags)
    (folder / "report.json").unlink()  # as a kill before the end leaves it
    train.write_text(train.read_text(encoding="utf-8").replace("体育", "运动"), encoding="utf-8")
    for name in ("validation", "test"):
        path = tmp_path / f"{name}.tsv"
        path.write_text(train.read_text(encoding="utf-8"), encoding="utf-8")
        flags.append(f"--{name}_file={path}")
    # Other label names under the same flags but for the files that had to be named anew.
    recipe = folder / "recipe.yaml"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    settings.update({f"{name}_file": str(tmp_path / f"{name}.tsv") for name in ("validation", "test")})
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(InputError, match="unfinished run on other data"):
        run_student.main(flags)


def test_killed_distillation_does_not_continue_on_other_texts(data, tmp_path):
    more, folder = tmp_path / "more.txt", tmp_path / "out"
    more.write_text("新的文本一\n新的文本二\n", encoding="utf-8")
    flags = [*data, *STUDENT, *TRAINING, "--linear_teacher", f"--unlabeled_file={more}", f"--output_dir={folder}"]
    run_distill.main(flags)
    (folder / "report.json").unlink()
    run_distill.main(flags)
    (folder / "report.json").unlink()
    more.write_text("新的文本三\n", encoding="utf-8")
    with refused("unfinished run on other data, transfer texts or teachers"):
        run_distill.main(flags)


@pytest.mark.parametrize(
    "flags, found",
    [
        (["--augment", "mask", "masks"], ("--augment masks", "splice")),
        (["--unlabeled_file", "none.txt"], ("none.txt", "no such file")),
        (["--teacher_weights", "1", "2"], ("--teacher_weights", "for 1 teachers")),
        (["--teacher_column", "gpt", "--augment", "drop"], ("gpt",)),
    ],
)
def test_mistakes_about_texts_and_teachers_are_named_before_anything_is_trained(data, tmp_path, flags, found):
    command = [*data, *STUDENT, *TRAINING, "--linear_teacher", "--compare_student", f"--output_dir={tmp_path / 'out'}"]
    with refused(*found):
        run_distill.main([*command, *flags])
    assert not (tmp_path / "out-alone").exists() and not (tmp_path / "out").exists()


def test_flags_of_a_distillation_that_do_nothing_are_named(data, tmp_path, caplog):
    flags = ["--linear_teacher", "--kd_loss=mse", "--temperature=3", "--num_augmented=2", "--ngram_order=2"]
    with caplog.at_level(logging.WARNING):
        run_distill.main([*data, *STUDENT, *TRAINING, *flags, f"--output_dir={tmp_path / 'out'}"])
    for name in ("temperature", "num_augmented", "ngram_order"):
        assert f"--{name}: no effect" in caplog.text
    assert "final_temperature" not in caplog.text


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with held(tmp_path), pytest.raises(InputError, match="another run writes into it"):
        lock(tmp_path)
    lock(tmp_path)  # a kill lets go


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_give_the_metrics_of_one(distil_flags, tmp_path):
    # The same 32 rows in every step: one process x 32, two processes x 16.
    run_distill.main([*distil_flags, "--per_device_train_batch_size=32"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    flags = [
        "--per_device_train_batch_size=16",
        f"--output_dir={tmp_path / 'two'}",
        f"--teacher_cache_dir={tmp_path}/c2",
    ]
    done = launch([*torchrun, "run_distill.py", *distil_flags, *flags], env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "world size 2" in done.stderr
    one, two = read_report(tmp_path / "distilled")["distilled"], read_report(tmp_path / "two")["distilled"]
    for key in ("accuracy", "precision", "recall", "f1", "agreement"):
        assert two[key] == pytest.approx(one[key], abs=1e-6), key
    weights, other = (load_file(tmp_path / name / "model.safetensors") for name in ("distilled", "two"))
    for name, weight in weights.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)


def test_killed_run_continues_to_the_weights_of_one_that_was_not_killed(distil_flags, tmp_path):
    # Dropout on: the random state must come back too.
    flags = [*distil_flags, "--dropout=0.3", "--num_train_epochs=16", "--save_strategy=steps", "--save_steps=24"]
    flags += ["--eval_strategy=steps", "--eval_steps=24"]
    command = [sys.executable, "run_distill.py", *flags]
    whole = launch([*command, f"--output_dir={tmp_path / 'whole'}"])
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = subprocess.Popen(
        [*map(str, command)], cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    folder = tmp_path / "distilled"
    deadline = time.time() + 120
    while not (folder / "checkpoint-48" / "trainer_state.json").exists():
        assert killed.poll() is None and time.time() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (folder / "report.json").exists()
    refused = launch([*command, "--temperature=2"])
    assert refused.returncode == 2 and "temperature None -> 2.0" in refused.stderr
    # A mark in the checkpoint's history shows that the run went on from there: from the start the weights would be
    # equal too. And a kill while a checkpoint is written leaves one that is not whole.
    state = folder / "checkpoint-48" / "trainer_state.json"
    history = json.loads(state.read_text())
    state.write_text(json.dumps({**history, "log_history": [{"mark": 1}, *history["log_history"]]}))
    (folder / "checkpoint-9999").mkdir()
    resumed = launch(command)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "continuing the run" in resumed.stderr
    assert json.loads((folder / "trainer_state.json").read_text())["log_history"][0] == {"mark": 1}
    assert not (folder / "checkpoint-9999").exists()
    expected, got = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())


def test_two_teachers_a_column_and_a_transfer_set_in_one_run(distil_flags, data, teacher, tmp_path, monkeypatch):
    second = tmp_path / "second"
    run_teacher.main([*TEACHER, *data, *TRAINING, "--num_train_epochs=1", "--seed=3", f"--output_dir={second}"])
    answers = {}
    for seed, (name, size) in enumerate({"train": 192, "validation": 48, "test": 60}.items()):
        answers[name] = tmp_path / f"{name}.jsonl"
        rows = zip(*make_rows(size, seed), strict=True)
        sure = [{name: float(name == label) for name in LABEL_NAMES} for label in LABEL_NAMES]
        lines = [{"text": text, "label": LABEL_NAMES[label], "llm": sure[label]} for text, label in rows]
        answers[name].write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    more, _ = make_rows(40, 9)
    (tmp_path / "more.txt").write_text("\n".join(more) + "\n", encoding="utf-8")
    files = [f"--{name}_file={path}" for name, path in answers.items()]
    flags = [*distil_flags, *files, "--teacher_name_or_path", str(teacher), str(second)]
    forwards = count_forwards(monkeypatch)
    taught = ["--unlabeled_file", str(tmp_path / "more.txt"), "--augment", "mask", "drop", "--num_augmented=2"]
    run_distill.main([*flags, *taught])
    report = read_report(tmp_path / "distilled")
    assert len(report["teacher"]["members"]) == 2 and report["teacher"]["accuracy"] > 0.6
    assert report["teacher"]["parameters"] == sum(one["parameters"] for one in report["teacher"]["members"])
    state = json.loads((tmp_path / "distilled" / "trainer_state.json").read_text())
    assert state["max_steps"] > 2 * math.ceil(192 / 32)  # more rows than the labelled ones

    # With the column as a third, who is always right, the teachers are right more often.
    column = [*flags, "--teacher_column=llm", f"--output_dir={tmp_path / 'column'}"]
    run_distill.main([*column, "--teacher_weights", "1", "1", "50"])
    assert read_report(tmp_path / "column")["teacher"]["accuracy"] == 1.0
    done = len(forwards)
    # The column alone: no model is asked.
    alone = [flag for flag in distil_flags if not flag.startswith("--teacher_name")]
    run_distill.main([*alone, *files, "--teacher_column=llm", f"--output_dir={tmp_path / 'alone'}"])
    report = read_report(tmp_path / "alone")
    assert len(forwards) == done and report["teacher"]["parameters"] is None and report["teacher"]["accuracy"] == 1.0
    # A test split without the column: no row for the teacher, the student is scored all the same.
    test = [flag for flag in data if flag.startswith("--test_file")]
    run_distill.main([*alone, *files, *test, "--teacher_column=llm", f"--output_dir={tmp_path / 'without'}"])
    report = read_report(tmp_path / "without")
    assert "teacher" not in report and report["distilled"]["agreement"] is None


def test_of_files_without_labels_the_added_one_is_labelled(distil_flags, tmp_path):
    paths, cache = [str(tmp_path / f"{name}.txt") for name in ("first", "added", "last")], tmp_path / "cache"
    for seed, path in enumerate(paths):
        texts, _ = make_rows(30 + seed, 9 + seed)
        Path(path).write_text("\n".join(texts) + "\n", encoding="utf-8")
    flags = [*distil_flags, f"--teacher_cache_dir={cache}", "--max_steps=1", "--overwrite_output_dir"]
    run_distill.main([*flags, "--unlabeled_file", paths[0], paths[2]])
    known = set(cache.iterdir())
    run_distill.main([*flags, "--unlabeled_file", *paths])
    (new,) = set(cache.iterdir()) - known
    assert len(load_file(new)["logits"]) == 31


def test_a_linear_model_teaches_alone_and_with_others(distil_flags, tmp_path):
    model = ["--linear_teacher", "--augment", "drop", "--num_augmented=2", "--compare_student"]
    run_distill.main([*distil_flags, *model, "--teacher_weights", "1", "2"])
    members = read_report(tmp_path / "distilled")["teacher"]["members"]
    assert members[0]["parameters"] and members[1]["parameters"] is None
    alone = [flag for flag in distil_flags if not flag.startswith("--teacher_name")]
    run_distill.main([*alone, *model, f"--output_dir={tmp_path / 'alone'}"])
    report = read_report(tmp_path / "alone")
    assert report["teacher"]["accuracy"] == members[1]["accuracy"] > 0.9
    assert report["distilled"]["accuracy"] > 0.8 and report["teacher"]["latency_ms"] is None
    for flags, parts in (
        (["--teacher_mode=online"], ("--teacher_mode online",)),
        (["--max_train_samples=12"], ("--linear_teacher", "5 training rows")),
        (["--embedding_init=teacher"], ("--embedding_init teacher", "needs a model")),
    ):
        with refused(*parts):
            run_distill.main([*alone, *model, *flags, f"--output_dir={tmp_path / 'refused'}"])


def test_teachers_that_cannot_teach_together_are_refused(distil_flags, teacher, tmp_path):
    both = [*distil_flags, "--teacher_name_or_path", str(teacher), str(teacher)]
    for flags, parts in (
        (["--teacher_mode=online"], ("--teacher_mode online", "one model")),
        (["--teacher_weights", "1"], ("--teacher_weights", "2 teachers")),
        (["--teacher_recipe=recipes/demo/teacher.yaml"], ("--teacher_recipe", "one teacher")),
        (["--teacher_column=llm"], ("train.tsv", "'llm'")),
        (["--augment", "shuffle"], ("--augment", "shuffle")),
    ):
        with refused(*parts):
            run_distill.main([*both, *flags])
    assert not (tmp_path / "distilled").exists() or not (tmp_path / "distilled" / "report.json").exists()


@pytest.mark.parametrize("kind", ["cnn", "bag"])
def test_every_kind_of_student_is_distilled_with_ngrams(distil_flags, tmp_path, kind):
    flags = [f"--student_type={kind}", "--ngram_buckets=512", "--ngram_size=8", "--compare_student"]
    run_distill.main([*distil_flags, *flags])
    report = read_report(tmp_path / "distilled")
    assert report["distilled"]["accuracy"] > 0.5 and report["student"]["accuracy"] > 0.4
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "distilled")
    assert model.config.model_type == f"kd_{kind}" and model.ngrams.table.weight.shape == (512, 8)
    assert model.ngrams.table.weight.any() and not model.ngrams.table.weight[0].any()


def test_the_teachers_embeddings_are_for_the_student_that_it_teaches(distil_flags, tmp_path, caplog):
    flags = ["--tokenizer_type=teacher", "--embedding_init=teacher", "--embedding_size=16", "--compare_student"]
    run_distill.main([*distil_flags, *flags])
    assert caplog.text.count("embeddings of the teacher: ") == 1
    # A rate of almost nothing leaves the first embeddings as they are.
    run_distill.main([*distil_flags, *flags, "--learning_rate=1e-12", f"--output_dir={tmp_path / 'still'}"])
    weights = [
        load_file(tmp_path / name / "model.safetensors")["embeddings.weight"] for name in ("still", "still-alone")
    ]
    teacher = distil_flags[[flag.startswith("--teacher_name") for flag in distil_flags].index(True)].split("=")[1]
    table = load_file(Path(teacher) / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(weights[0][1:], table[1:], atol=1e-6, rtol=0)
    assert not torch.allclose(weights[1][1:], table[1:], atol=0.01)


def test_an_online_teacher_teaches_variants_too(distil_flags, tmp_path):
    run_distill.main([*distil_flags, "--teacher_mode=online", "--augment", "drop", "--num_augmented=3"])
    state = json.loads((tmp_path / "distilled" / "trainer_state.json").read_text())
    assert state["max_steps"] > 2 * 2 * math.ceil(192 / 32)
    assert all("kd_loss" in logs for logs in state["log_history"] if "loss" in logs)


def test_states_are_compared_where_teacher_and_student_share_the_tokens(distil_flags, teacher, tmp_path, monkeypatch):
    shared = ["--teacher_mode=online", "--tokenizer_type=teacher", "--hidden_loss_weight=1"]
    run_distill.main([*distil_flags, *shared, "--compare_student", "--augment", "drop"])
    state = json.loads((tmp_path / "distilled" / "trainer_state.json").read_text())
    losses = [logs["eval_hidden_loss"] for logs in state["log_history"] if "eval_hidden_loss" in logs]
    assert len(losses) == 2 and losses[1] < losses[0] and read_report(tmp_path / "distilled")["student"]
    flags = [flag for flag in distil_flags if not flag.startswith("--output_dir")] + [f"--output_dir={tmp_path}/no"]
    monkeypatch.setattr("kd_trainer.distill.load_classifier", lambda *args, **kwargs: pytest.fail("too late"))
    for wrong, part in (
        (["--teacher_mode=cached"], "--teacher_mode cached"),
        (["--tokenizer_type=char"], "--tokenizer_type char"),
        (["--linear_teacher"], "--linear_teacher"),
        (["--teacher_column=llm"], "--teacher_column"),
        (["--teacher_name_or_path", str(teacher), str(teacher)], "several teachers"),
    ):
        with refused("--hidden_loss_weight", part, "--teacher_mode online --tokenizer_type teacher"):
            run_distill.main([*flags, *shared, *wrong])
    assert not (tmp_path / "no").exists()
    monkeypatch.undo()
    # The same vocabulary is not enough: shorter texts are other positions.
    with refused("--hidden_loss_weight", "input_ids differ", "--teacher_max_seq_length"):
        run_distill.main([*flags, *shared, "--teacher_max_seq_length=5"])
    for wrong in ("-1", "inf", "nan"):
        with refused(f"--embedding_loss_weight is {float(wrong)}", "from 0"):
            run_distill.main([*flags, f"--embedding_loss_weight={wrong}"])


def test_a_student_that_is_too_large_or_an_optimizer_that_knows_no_tables_is_refused(distil_flags):
    student = [flag for flag in distil_flags if not flag.startswith("--teacher")]
    for flags, parts in (
        (["--ngram_buckets=99999999999"], ("memory", "smaller")),
        (["--ngram_buckets=1"], ("--ngram_buckets is 1",)),
        (["--ngram_buckets=64", "--optim=sgd"], ("--optim sgd", "adamw_torch")),
    ):
        with refused(*parts):
            run_student.main([*student, *flags])
