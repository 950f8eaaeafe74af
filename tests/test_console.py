"""A script's help is kept between calls, and never that of another source, width or version."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_scripts import STUDENT, TRAINING

import run_distill
import run_student
import run_teacher
from kd_trainer import console

PROJECT = Path(__file__).parent.parent
SCRIPTS = [run_teacher, run_student, run_distill]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "home"


def never():
    raise AssertionError("the parser was asked")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_kept_help_is_the_parsers(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    expected = script.make_parser().format_help()
    assert console.help_text(script.make_parser) == expected
    never.__code__ = never.__code__.replace(co_filename=script.make_parser.__code__.co_filename)
    assert console.help_text(never) == expected


def test_what_the_help_depends_on_makes_it_anew(monkeypatch, home):
    for columns in ("100", "70"):
        monkeypatch.setenv("COLUMNS", columns)
        text = console.help_text(run_teacher.make_parser)
        assert text == run_teacher.make_parser().format_help()
    for version in ("1.0", "1.1"):
        monkeypatch.setattr(console.importlib.metadata, "version", lambda name, version=version: version)
        console.help_text(run_teacher.make_parser)
    assert len(list(home.rglob("*.txt"))) == len(list(home.rglob("*.*"))) == 4


def test_a_home_that_cannot_be_written_to_still_gives_help(home):
    home.write_text("a file")
    assert console.help_text(run_teacher.make_parser) == run_teacher.make_parser().format_help()


def test_help_is_read_without_torch(tmp_path):
    command = [sys.executable, "-X", "importtime", run_distill.__file__, "--help"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout and "--temperature" in second.stdout
    modules = {line.split("|")[-1].strip() for line in second.stderr.splitlines()}
    assert "kd_trainer.console" in modules and not modules & {"torch", "transformers", "datasets", "evaluate"}


@pytest.mark.parametrize(
    "raised, said",
    [
        (KeyboardInterrupt(), "interrupted\n"),
        (KeyboardInterrupt("the same command goes on"), "interrupted: the same command goes on\n"),
    ],
)
def test_an_interrupt_promises_nothing_that_is_not_there(capsys, raised, said):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as ended:
        console.run_console(main)
    assert ended.value.code == 130 and capsys.readouterr().err == said


@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_training_names_the_checkpoint_that_is_there(write_tsv, rows, tmp_path, monkeypatch, step):
    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    out, file = tmp_path / "out", write_tsv("train.tsv", *rows)
    flags = [*STUDENT, *TRAINING, f"--train_file={file}", f"--test_file={file}", f"--output_dir={out}"]
    flags += ["--max_steps=4", "--eval_strategy=steps", "--eval_steps=2"]
    monkeypatch.setattr("kd_trainer.workflow.TrainingClock.on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_student.main(flags)
    if step == 1:
        assert caught.value.args == ()
        return
    assert caught.value.args == (f"the same command continues from {out / 'checkpoint-2'}",)
    # With the flag it would start anew.
    with pytest.raises(KeyboardInterrupt) as caught:
        run_student.main([*flags, "--overwrite_output_dir"])
    assert "without --overwrite_output_dir, continues from" in caught.value.args[0]
    monkeypatch.undo()
    monkeypatch.setattr(console, "HF_HOME", str(tmp_path / "home"))
    run_student.main(flags)
    assert (out / "report.json").exists()


def test_a_place_that_cannot_be_read_is_one_line(capsys):
    def main(argv):
        open("x" * 300)

    with pytest.raises(SystemExit) as caught:
        console.run_console(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

    def fail(argv):
        raise OSError("no file has a part in it")

    with pytest.raises(OSError, match="no part|no file"):
        console.run_console(fail)


def test_every_command_has_a_name_and_every_name_a_command():
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg", encoding="utf-8")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    found = {target.strip() for _, _, target in (line.partition("=") for line in lines if line)}
    sources = [*(PROJECT / "kd_trainer").glob("*.py"), *PROJECT.glob("run_*.py")]
    expected = {
        f"{path.relative_to(PROJECT).with_suffix('').as_posix().replace('/', '.')}:console"
        for path in sources
        if "\ndef console():" in path.read_text(encoding="utf-8")
    }
    assert found == expected and len(found) == 10
