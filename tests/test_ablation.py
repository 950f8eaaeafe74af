"""The stages of a distillation: each has one part more than the one before, and is compared with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import LABEL_NAMES, make_rows, refused
from scipy.stats import norm
from test_compare import Inside, Pretended, table_cells

import run_distill
from kd_trainer import compare, report
from kd_trainer.ablation import PARTS, check_parts, make_stages
from kd_trainer.report import read_scored
from kd_trainer.significance import bootstrap_interval, paired_test

WHOLE = {
    "do_train": True, "do_predict": True, "linear_teacher": True, "temperature": 2.0, "hidden_size": 8,
    "embedding_size": 3, "embedding_init": "vectors.txt", "ngram_buckets": 64, "ngram_size": 4, "augment": ["drop"],
    "num_augmented": 2, "unlabeled_file": ["more.txt"], "max_steps": 4, "eval_strategy": "no",
}  # fmt: skip


@pytest.fixture
def flags(tmp_path):
    """A distillation with every part, its small data beside it."""
    whole = {**WHOLE, "output_dir": str(tmp_path / "out"), "teacher_cache_dir": str(tmp_path / "cache")}
    for seed, (name, size) in enumerate({"train": 96, "validation": 24, "test": 60}.items()):
        path = tmp_path / f"{name}.tsv"
        rows = zip(*make_rows(size, seed), strict=True)
        path.write_text("".join(f"{LABEL_NAMES[label]}\t{text}\n" for text, label in rows), encoding="utf-8")
        whole[f"{name}_file"] = str(path)
    (tmp_path / "vectors.txt").write_text("股 1 2 3\n球 3 2 1\n", encoding="utf-8")
    (tmp_path / "more.txt").write_text("\n".join(make_rows(30, 9)[0]) + "\n", encoding="utf-8")
    whole.update(embedding_init=str(tmp_path / "vectors.txt"), unlabeled_file=[str(tmp_path / "more.txt")])
    recipe = tmp_path / "whole.yaml"
    recipe.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return [str(recipe), "--use_cpu", "--ablation"]


def test_every_stage_has_one_part_more_and_the_last_is_the_whole():
    stages = make_stages({**WHOLE, "seed": 3, "output_dir": "out", "ablation": True})
    assert list(stages) == ["student", "+teacher", "+embeddings", "+ngrams", "+augmentation", "+unlabeled"]
    assert [script for script, _ in stages.values()] == ["run_student"] + 5 * ["run_distill"]
    settings = [settings for _, settings in stages.values()]
    assert settings[-1] == {**WHOLE, "bf16": False}
    for before, after, part in zip(settings[1:-1], settings[2:], PARTS, strict=True):
        assert before.items() <= after.items() and set(after) - set(before) == set(PARTS[part]) & WHOLE.keys()
    # The student alone knows nothing of a teacher, and all else of the first taught one.
    assert settings[0].pop("skip_unlabeled")
    assert settings[0].items() <= settings[1].items()
    assert set(settings[1]) - set(settings[0]) == {"linear_teacher", "temperature"}


def test_parts_that_are_not_wanted_are_no_stages():
    assert list(make_stages({"linear_teacher": True})) == ["student", "+teacher"]
    assert list(make_stages({"linear_teacher": True, "ngram_size": 3, "augment": ["mask"]}))[2:] == ["+augmentation"]


def test_the_student_alone_reads_the_teachers_tokens_too():
    stages = make_stages({"teacher_name_or_path": ["a", "b"], "tokenizer_type": "teacher"})
    script, settings = stages["student"]
    assert script == "run_student" and settings == {"tokenizer_name": "a", "skip_unlabeled": True, "bf16": False}


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"model_name_or_path": "student"}, ("--ablation", "--model_name_or_path")),
        ({"tokenizer_type": "teacher"}, ("--tokenizer_type teacher", "--teacher_name_or_path")),
        ({"embedding_init": "teacher"}, ("--embedding_init teacher", "--teacher_name_or_path")),
        ({"augment": ["mask"], "teacher_column": "llm"}, ("--teacher_column", "--augment")),
        ({"overwrite_output_dir": True}, ("--overwrite_output_dir",)),
        ({"embedding_init": "nope.vec"}, ("--embedding_init nope.vec", "no such file")),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_first(settings, parts):
    with refused(*parts):
        check_parts({"linear_teacher": True, **settings})


@pytest.mark.parametrize(
    "given, parts",
    [
        (["--augment", "msk"], ("--augment msk",)),
        (["--unlabeled_file", "nope.txt"], ("nope.txt", "no such file")),
        (["--unlabeled_file", "EMPTY"], ("empty.txt", "empty")),
    ],
)
def test_texts_that_the_last_stage_would_refuse_are_refused_first(flags, tmp_path, given, parts):
    (tmp_path / "empty.txt").touch()
    with refused(*parts):
        run_distill.main([*flags, *(flag.replace("EMPTY", str(tmp_path / "empty.txt")) for flag in given)])
    assert not (tmp_path / "out-ablation").exists()


@pytest.mark.parametrize("name, content", [("table.json", '{"mine": 1}'), ("table.png", ""), ("table.md", "x")])
def test_a_table_of_somebody_elses_is_not_written_over(flags, tmp_path, name, content):
    folder = tmp_path / "out-ablation"
    folder.mkdir()
    (folder / name).write_text(content)
    with refused(name, "is not of an ablation"):
        run_distill.main(flags)
    assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == content


def test_a_stage_that_is_no_text_is_named(flags, tmp_path):
    folder = tmp_path / "out-ablation"
    folder.mkdir()
    (folder / "student.yaml").write_bytes(b"caf\xe9")
    with refused("student.yaml", "says something else"):
        run_distill.main(flags)


def test_a_column_teaches_and_rows_without_a_label_are_for_the_taught_alone(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
    monkeypatch.setattr(compare, "subprocess", Inside())
    path = tmp_path / "train.jsonl"
    rows = [(text, LABEL_NAMES[label], np.eye(3)[label].tolist()) for text, label in zip(*make_rows(96), strict=True)]
    rows += [(text, None, [0.5, 0.25, 0.25]) for text in make_rows(20, 9)[0]]
    lines = [json.dumps(dict(zip(("text", "label", "llm"), row, strict=True)), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe, *more = flags
    settings = yaml.safe_load((tmp_path / "whole.yaml").read_text(encoding="utf-8"))
    for name in ("augment", "num_augmented", "unlabeled_file", "linear_teacher", "embedding_init", "ngram_size"):
        del settings[name]
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({**settings, "teacher_column": "llm"}), encoding="utf-8")
    run_distill.main([recipe, *more, f"--train_file={path}", "--ablation_seeds", "5"])
    cells = table_cells((tmp_path / "out-ablation" / "table.md").read_text(encoding="utf-8"))
    # The test split has no such column: no row for the teacher.
    assert [cell["stage"] for cell in cells] == ["student", "+teacher", "+ngrams"]
    # A stage can be run by itself, and gives what it gave.
    stage = tmp_path / "out-ablation" / "+teacher.yaml"
    run_distill.main([str(stage), "--use_cpu", "--seed=5"])
    again = json.loads((tmp_path / "out-ablation" / "+teacher" / "again" / "report.json").read_text(encoding="utf-8"))
    assert cells[1]["accuracy"] == f"{100 * again['distilled']['accuracy']:.2f}"


def test_every_stage_is_run_and_compared_with_the_one_before(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
    monkeypatch.setattr(compare, "subprocess", Inside())
    # The whole's own folder is nobody's: a finished run in it stays.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    run_distill.main([*flags, "--ablation_seeds", "5"])
    folder = tmp_path / "out-ablation"
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith(table)
    cells = table_cells(table)
    assert [cell["stage"] for cell in cells] == [
        "student", "+teacher", "+embeddings", "+ngrams", "+augmentation", "+unlabeled", "teacher",
    ]  # fmt: skip
    accuracies = []
    for cell in cells[:-1]:
        role = "student" if cell["stage"] == "student" else "distilled"
        found = json.loads((folder / cell["stage"] / "seed_5" / "report.json").read_text(encoding="utf-8"))
        assert found["seed"] == 5 and cell["accuracy"] == f"{100 * found[role]['accuracy']:.2f}"
        accuracies.append(found[role]["accuracy"])
    assert cells[-1]["accuracy"] == f"{100 * found['teacher']['accuracy']:.2f}"
    assert cells[0]["gain"] == "–" and [float(cell["gain"]) for cell in cells[1:-1]] == pytest.approx(
        100 * np.diff(accuracies), abs=0.006
    )
    whole = json.loads((folder / "table.json").read_text(encoding="utf-8"))["whole"]
    labels, last = read_scored(folder / "+unlabeled" / "seed_5")
    first = read_scored(folder / "student" / "seed_5")[1]["student"].argmax(axis=-1) == labels
    last = last["distilled"].argmax(axis=-1) == labels
    assert whole["difference"] == pytest.approx(last.mean() - first.mean())
    # McNemar's, of one run each, its variance about the mean.
    gained, lost, n = (last & ~first).sum(), (first & ~last).sum(), len(labels)
    if gained != lost:
        chi2 = (gained - lost) ** 2 / (gained + lost)
        assert whole["p"] == pytest.approx(2 * norm.sf(np.sqrt(chi2 * (n - 1) / (n - chi2))))
    assert f"+unlabeled over student: {100 * whole['difference']:+.2f} points" in table
    from matplotlib import image

    assert min(image.imread(folder / "table.png").shape[:2]) > 100
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["{}"]


def test_gains_and_intervals_are_those_of_the_runs_and_nothing_is_run_twice(flags, tmp_path, monkeypatch):
    runs = Pretended()
    monkeypatch.setattr(compare, "subprocess", runs)
    flags = [*flags, "--ablation_seeds", "1", "2"]
    run_distill.main(flags)
    assert len(runs.runs) == len(set(runs.runs)) == 12
    rows = json.loads((tmp_path / "out-ablation" / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["p"] is None for row in rows] == [True] + 5 * [False]
    for before, row in zip(rows, rows[1:], strict=False):
        assert row["difference"] == pytest.approx(np.mean(row["accuracy"]) - np.mean(before["accuracy"]))
    for row in rows:
        assert row["interval"][0] <= np.mean(row["accuracy"]) <= row["interval"][1]
    run_distill.main(flags)
    assert len(runs.runs) == 12
    with refused("out-ablation", "says something else"):
        run_distill.main([*flags, "--temperature=3"])
    assert len(runs.runs) == 12


def test_a_stage_that_fails_leaves_a_table_without_it(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "subprocess", Pretended(codes={"+ngrams": 2}))
    with refused("1 of the runs failed", "+ngrams"):
        run_distill.main([*flags, "--ablation_seeds", "1"])
    cells = table_cells((tmp_path / "out-ablation" / "table.md").read_text(encoding="utf-8"))
    assert [cell["stage"] for cell in cells][2:4] == ["+embeddings", "+augmentation"]


@pytest.mark.parametrize(
    "more, parts",
    [
        (["--ablation_seeds", "1", "1"], ("--ablation_seeds", "each once")),
        (["--ablation_jobs=0"], ("--ablation_jobs",)),
        (["--do_predict=false"], ("do_predict",)),
        (["--linear_teacher=false"], ("no teacher",)),
        (["--output_dir="], ("--output_dir",)),
        (["--ablation=false", "--ablation_seeds", "1"], ("--ablation_seeds", "--ablation too")),
        (["--test_file=none.tsv"], ("none.tsv",)),
    ],
)
def test_what_would_fail_later_is_refused_first(flags, monkeypatch, more, parts):
    runs = Pretended()
    monkeypatch.setattr(compare, "subprocess", runs)
    with refused(*parts):
        run_distill.main([*flags, *more])
    assert not runs.runs and not (Path(flags[0]).parent / "out-ablation").exists()


def test_a_table_of_somebody_else_is_left_alone(flags, tmp_path):
    (tmp_path / "out-ablation").mkdir()
    (tmp_path / "out-ablation" / "table.md").write_text("mine")
    with refused("table.md", "not of an ablation"):
        run_distill.main(flags)
    assert (tmp_path / "out-ablation" / "table.md").read_text() == "mine"


def test_two_at_once_do_not_share_a_folder(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "subprocess", Pretended())
    run_distill.main([*flags, "--ablation_seeds", "1"])
    # This process still holds the folder: another one is kept out.
    code = "import sys, run_distill\nfrom kd_trainer.errors import InputError\n"
    code += "try: run_distill.main(sys.argv[1:])\nexcept InputError as error: print(error)"
    command = [sys.executable, "-c", code, *flags, "--ablation_seeds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(run_distill.__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "another run writes into it" in done.stdout, done.stderr


def test_an_interval_holds_the_mean_as_often_as_it_says():
    generator, inside = np.random.default_rng(0), 0
    for trial in range(200):
        correct = generator.random((1, 300)) < 0.8
        low, high = bootstrap_interval(correct, draws=300, seed=trial)
        inside += low <= 0.8 <= high
    assert 180 <= inside <= 199


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile(np.arange(1000) % 5 != 0, (3, 1))
    differing = np.stack([np.arange(1000) % n != 0 for n in (3, 5, 100)])
    width = [np.diff(bootstrap_interval(correct))[0] for correct in (alike, differing)]
    # One run's texts alone: the standard error of a share.
    assert width[0] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 1000), rel=0.1)
    assert width[1] > 3 * width[0]
    assert paired_test(alike, alike)[1] == 1.0
