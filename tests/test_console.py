"""A script's help is kept between calls, and never that of another source, width or version."""

import os
import subprocess
import sys

import pytest

import run_distill
import run_student
import run_teacher
from kd_trainer import console

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
