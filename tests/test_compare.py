"""Comparing recipes: real runs once, then what is refused, resumed and reported, with runs that are only pretended."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import LABEL_NAMES, make_rows, refused
from scipy.special import betainc, erfc

from kd_trainer import compare, comparison, report
from kd_trainer.errors import InputError
from kd_trainer.output_folder import plain
from kd_trainer.report import read_scored, write_json, write_scored
from kd_trainer.robustness import MEASURES
from kd_trainer.significance import SeedVariance

PROJECT = Path(__file__).parent.parent
STUDENT = {"embedding_size": 12, "hidden_size": 8, "dropout": 0.1}
TEACHER = {
    "config_name": "bert",
    "config_overrides": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
}
TRAINING = {
    "do_train": True, "do_predict": True, "use_cpu": True, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2,
    "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_benchmark():
    """How fast a model is takes seconds to measure and is not the matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
        yield


def write_data(folder, size=60, seed=2, name="test"):
    """A tab-separated file of one split; its path."""
    path = folder / f"{name}.tsv"
    texts, labels = make_rows(size, seed)
    lines = [f"{LABEL_NAMES[label]}\t{text}\n" for text, label in zip(texts, labels, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_recipe(folder, name, settings, script="run_student.py"):
    """A recipe of these settings, its command in the second line; its path."""
    path = folder / f"{name}.yaml"
    path.write_text(f"# A test.\n# python {script} {path}\n\n{yaml.safe_dump(settings)}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings that name a tiny training, validation and test split."""
    folder = tmp_path_factory.mktemp("data")
    settings = {"max_seq_length": 16}
    for seed, (name, size) in enumerate({"train": 96, "validation": 24, "test": 60}.items()):
        settings[f"{name}_file"] = str(write_data(folder, size, seed, name))
    return settings


@pytest.fixture(scope="module")
def recipes(data, tmp_path_factory):
    """Two recipes of students, the plain one and one of another learning rate; their paths."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = {**data, **STUDENT, **TRAINING, "eval_robustness": True, "output_dir": str(folder / "never")}
    plain = write_recipe(folder, "plain", settings)
    return [str(plain), str(write_recipe(folder, "faster", {**settings, "learning_rate": 0.05}))]


class Inside:
    """Stands for the module `subprocess`: a run is as real as in its own process, without the seconds of an import."""

    STDOUT = subprocess.STDOUT

    def Popen(self, command, stdout, stderr, env):
        code = 0
        with contextlib.redirect_stdout(stdout):
            try:
                importlib.import_module(command[2]).main(command[3:])
            except InputError as error:
                print(error)
                code = 2
        return Ended(code)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int

    def wait(self):
        return self.code

    def terminate(self):
        """Too late."""


@pytest.fixture
def inside(monkeypatch):
    """Runs happen in this process, one at a time."""
    monkeypatch.setattr(compare, "subprocess", Inside())


@pytest.fixture(scope="module")
def real(recipes, tmp_path_factory):
    """Folder of a comparison of two recipes and two seeds that were really run, and what it printed."""
    folder = tmp_path_factory.mktemp("compared") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(compare, "subprocess", Inside())
        compare.main([*recipes, "--seeds", "1", "2", "--output_dir", str(folder)])
    return SimpleNamespace(folder=folder, printed=printed.getvalue())


def files_of(folder):
    """When every file below `folder` was written."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def report_of(folder, name, seed):
    return json.loads((folder / name / f"seed_{seed}" / "report.json").read_text(encoding="utf-8"))


def table_cells(table):
    """`list[dict]`: the rows of a Markdown table by their heads."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    heads, ruler, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {*ruler} == {"---"} and {len(row) for row in [ruler, *rows]} == {len(heads)}
    return [dict(zip(heads, row, strict=True)) for row in rows]


class Pretended:
    """
    Stands for the module `subprocess`: its processes train nothing and write at once what a run would.

    Args:
        codes (`dict[str, int]`): Exit codes of the runs of these recipes, which write nothing.
        labels (`dict[tuple[str, int], list[int]]`): By recipe and seed, where they are not the usual ones.
        seconds (`float`): How long a run takes that writes something.
        robust (`list[str]`): Names of recipes whose robustness is measured.
    """

    STDOUT = subprocess.STDOUT

    def __init__(self, codes=None, labels=None, seconds=0.0, robust=()):
        self.codes, self.labels, self.seconds, self.robust = codes or {}, labels or {}, seconds, robust
        self.commands, self.environments, self.events, self.lock = [], [], [], threading.Lock()

    def Popen(self, command, stdout, stderr, env):
        python, option, script, *arguments = command
        assert (python, option, stderr) == (sys.executable, "-m", subprocess.STDOUT)
        *_, args, settings, _ = importlib.import_module(script).make_parser().parse(arguments)
        folder = Path(args.output_dir)
        name, seed = folder.parent.name, args.seed
        with self.lock:
            self.commands.append(command)
            self.environments.append(env)
            self.events.append(("start", name, seed))
        code = self.codes.get(name, 0)
        time.sleep(0 if code else self.seconds)
        stdout.write(f"{name} {seed}\n")
        if not code:
            self.write(folder, name, seed, compare.ROWS[script], settings)
        with self.lock:
            self.events.append(("end", name, seed))
        return Ended(code)

    def write(self, folder, name, seed, role, settings):
        """The files of a finished run."""
        generator = np.random.default_rng([seed, *name.encode()])
        labels = np.array(self.labels.get((name, seed), np.arange(60) % 3))
        logits = generator.normal(size=(len(labels), 3)).astype(np.float32) + np.eye(3, dtype=np.float32)[labels]
        folder.mkdir(parents=True, exist_ok=True)
        accuracy = float((logits.argmax(1) == labels).mean())
        write_scored(folder, labels, {"teacher": -logits, role: logits} if role == "distilled" else {role: logits})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(plain(settings)), encoding="utf-8")
        row = {"accuracy": accuracy, "f1": accuracy - 0.01, "train_seconds": 10.0 + seed}
        if name in self.robust:
            row["robustness"] = {"rows": len(labels), **dict.fromkeys(MEASURES, accuracy / 2)}
        write_json(folder / "report.json", {role: row, "settings": plain(settings)})

    @property
    def runs(self):
        """`list[tuple[str, int]]`: recipe and seed of every run, in the order of their starts."""
        return [(name, seed) for what, name, seed in self.events if what == "start"]


@pytest.fixture
def pretended(monkeypatch):
    """A function that replaces the processes of the runs by a [`Pretended`]."""

    def replace(**kwargs):
        stand_in = Pretended(**kwargs)
        monkeypatch.setattr(compare, "subprocess", stand_in)
        return stand_in

    return replace


def test_table_is_printed_written_as_markdown_and_json_and_drawn(real, recipes):
    table = (real.folder / "table.md").read_text(encoding="utf-8")
    assert real.printed == table
    assert [row["recipe"] for row in table_cells(table)] == ["plain", "faster"]
    content = json.loads((real.folder / "table.json").read_text(encoding="utf-8"))
    assert content["baseline"] == "plain" and content["flags"] == [] and len(content["rows"]) == 2
    from matplotlib import image

    pixels = image.imread(real.folder / "table.png")
    assert min(pixels.shape[:2]) > 100 and len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    for name in ("plain", "faster"):
        for seed in (1, 2):
            assert "test split, 60 rows" in (real.folder / name / f"seed_{seed}.log").read_text(encoding="utf-8")
    # A recipe's own output folder is nobody's.
    assert not (Path(recipes[0]).parent / "never").exists()


def test_numbers_equal_numpys_over_the_reports(real):
    rows = json.loads((real.folder / "table.json").read_text(encoding="utf-8"))["rows"]
    cells = table_cells((real.folder / "table.md").read_text(encoding="utf-8"))
    for row, cell in zip(rows, cells, strict=True):
        reports = [report_of(real.folder, row["name"], seed) for seed in (1, 2)]
        assert [report["seed"] for report in reports] == row["seeds"] == [1, 2]
        for key, head in (("accuracy", "accuracy"), ("f1", "macro F1")):
            values = [report["student"][key] for report in reports]
            assert row[key] == values
            assert cell[head] == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
        for name in ("clean", "fgm", "pgd", "noise_5", "noise_10"):
            values = [report["student"]["robustness"][name] for report in reports]
            assert row["robustness"][name] == values
            assert cell[name.replace("_", " ")] == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
        assert row["train_seconds"] == [report["student"]["train_seconds"] for report in reports]
    assert reports[0]["student"]["accuracy"] != reports[1]["student"]["accuracy"]  # the seeds are really others


def two_sided(t, freedom):
    """Two-sided p of Student's t by the incomplete beta function; of a normal distribution for infinite freedom."""
    return erfc(abs(t) / np.sqrt(2)) if np.isinf(freedom) else betainc(freedom / 2, 0.5, freedom / (freedom + t**2))


def recomputed(folder, names, seeds, role="student"):
    """Differences and unadjusted p against the first of `names`, of the runs' own files, by sums over texts."""
    correct = {}
    for name in names:
        answers = [read_scored(folder / name / f"seed_{seed}") for seed in seeds]
        correct[name] = np.array([logits[role].argmax(axis=1) == labels for labels, logits in answers]).astype(float)
    between = own = 0.0
    if len(seeds) > 1:
        answers = np.array([correct[name] for name in names])
        between, within = answers.mean(axis=2).var(axis=1, ddof=1).mean(), answers.var(axis=1, ddof=1).mean()
        own = max(0.0, between - within / answers.shape[2])
    results = []
    for name in names[1:]:
        shares = correct[name].mean(axis=0) - correct[names[0]].mean(axis=0)
        variance = shares.var(ddof=1) / len(shares) + 2 * own / len(seeds)
        # Satterthwaite: the squared variance over the sum of the squared estimates, each over its freedom. That of the
        # seeds is 2 / number of seeds times a mean of squares; that of the texts counts as known.
        freedom = np.inf
        if between:
            freedom = variance**2 / ((2 * between / len(seeds)) ** 2 / (len(names) * (len(seeds) - 1)))
        results.append((shares.mean(), two_sided(shares.mean() / np.sqrt(variance), freedom) if shares.any() else 1.0))
    return results


def test_p_equals_one_recomputed_from_what_the_runs_answered(real):
    plain, faster = json.loads((real.folder / "table.json").read_text(encoding="utf-8"))["rows"]
    ((difference, p),) = recomputed(real.folder, ["plain", "faster"], [1, 2])
    assert plain["difference"] is plain["p"] is None
    assert faster["difference"] == pytest.approx(difference) and faster["p"] == pytest.approx(p)
    assert faster["difference"] == pytest.approx(np.mean(faster["accuracy"]) - np.mean(plain["accuracy"]))
    plain, faster = table_cells((real.folder / "table.md").read_text(encoding="utf-8"))
    assert plain["against plain"] == plain["p"] == "–"
    assert faster["against plain"].removesuffix(" *") == f"{100 * difference:+.2f}"


def test_a_second_call_runs_nothing(real, recipes, pretended, capsys):
    runs, before = pretended(), files_of(real.folder)
    compare.main([*recipes, "--seeds", "1", "2", "--output_dir", str(real.folder)])
    assert not runs.commands and capsys.readouterr().out == real.printed
    after = files_of(real.folder)
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= {"table.md", "table.json", "table.png"}


def test_only_what_is_missing_is_run_and_a_killed_run_goes_on(real, recipes, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(real.folder, folder)
    shutil.rmtree(folder / "plain" / "seed_2")
    # A kill before the end leaves checkpoints and no report; a mark shows from where it goes on.
    killed = folder / "faster" / "seed_1"
    (killed / "report.json").unlink()
    (killed / "_scored.safetensors").unlink()
    state = killed / "checkpoint-2" / "trainer_state.json"
    shutil.rmtree(killed / "checkpoint-4")
    history = json.loads(state.read_text())
    state.write_text(json.dumps({**history, "log_history": [{"mark": 1}, *history["log_history"]]}))
    before = files_of(folder)
    command = [sys.executable, "-m", "kd_trainer.compare", *recipes, "--seeds", "1", "2", "--output_dir", folder]
    done = subprocess.run(
        list(map(str, command)), cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["faster, seed 1", "plain, seed 2"]
    after = files_of(folder)
    for name, seed in (("plain", 1), ("faster", 2)):
        below = [path for path in before if path.is_relative_to(f"{name}/seed_{seed}")]
        assert below and all(after[path] == before[path] for path in below)
    log = (folder / "faster" / "seed_1.log").read_text(encoding="utf-8")
    assert log.count("test split, 60 rows") == 2 and "continuing the run" in log  # the log of the killed run is kept
    assert json.loads((killed / "trainer_state.json").read_text())["log_history"][0] == {"mark": 1}
    # The same seeds, the same table: but for the seconds.
    for row, old in zip(table_cells(done.stdout), table_cells(real.printed), strict=True):
        assert {**row, "train s": ""} == {**old, "train s": ""}


def test_distillations_that_share_a_missing_teacher_train_it_once(data, tmp_path):
    teacher = {**data, **TEACHER, **TRAINING, "max_steps": 2, "output_dir": str(tmp_path / "teacher")}
    recipe = write_recipe(tmp_path, "teacher", teacher, "run_teacher.py")
    settings = {
        **data, **STUDENT, **TRAINING, "max_steps": 2, "teacher_recipe": str(recipe),
        "teacher_cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    names = [
        str(write_recipe(tmp_path, f"t{value}", {**settings, "temperature": value}, "run_distill.py"))
        for value in (1, 2)
    ]
    compare.main([*names, "--jobs", "2", "--output_dir", str(tmp_path / "out")])
    logs = [(tmp_path / "out" / f"t{value}" / "seed_42.log").read_text(encoding="utf-8") for value in (1, 2)]
    assert ["training it first" in log for log in logs] == [True, False]
    rows = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        # The student's row, not its teacher's.
        report = report_of(tmp_path / "out", row["name"], 42)
        assert row["accuracy"] == [report["distilled"]["accuracy"]] and "teacher" in report
    ((difference, p),) = recomputed(tmp_path / "out", ["t1", "t2"], [42], "distilled")
    assert rows[1]["difference"] == pytest.approx(difference)
    assert rows[1]["p"] == pytest.approx(p)


def concurrent(events):
    """The pairs of runs that were under way at the same time."""
    under_way, pairs = [], set()
    for what, *run in events:
        if what == "end":
            under_way.remove(run)
        else:
            pairs |= {frozenset((tuple(run), tuple(other))) for other in under_way}
            under_way.append(run)
    return pairs


def write_teacher(folder, name, data):
    """The recipe of a teacher that is only pretended, as a string."""
    folder.mkdir(exist_ok=True)
    settings = {**data, **TEACHER, **TRAINING, "output_dir": str(folder / name)}
    return str(write_recipe(folder, name, settings, "run_teacher.py"))


@pytest.fixture
def many(data, tmp_path):
    """Recipes: a student, and two distillations by each of two teachers."""
    settings = {**data, **STUDENT, **TRAINING}
    paths = [write_recipe(tmp_path, "plain", settings)]
    for teacher in "ab":
        recipe = write_teacher(tmp_path, teacher, data)
        for temperature in (1, 2):
            taught = {**settings, "teacher_recipe": recipe, "temperature": temperature}
            paths.append(write_recipe(tmp_path, f"{teacher}{temperature}", taught, "run_distill.py"))
    return list(map(str, paths))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_run_is_run_once_and_as_many_at_a_time_as_asked(many, tmp_path, pretended, jobs):
    runs = pretended(seconds=0.02)
    compare.main([*many, "--jobs", str(jobs), "--seeds", "3", "4", "--output_dir", str(tmp_path / "out")])
    names = [Path(path).stem for path in many]
    assert sorted(runs.runs) == sorted((name, seed) for name in names for seed in (3, 4))
    together = concurrent(runs.events)
    assert bool(together) == (jobs > 1)
    if jobs > 1:
        # Whoever comes first with a teacher trains it: nobody else is to do the same meanwhile.
        first = {next(run for run in runs.runs if run[0][0] == teacher) for teacher in "ab"}
        assert not [pair for pair in together if pair & first]
        share = max(1, (os.cpu_count() or 1) // jobs)
        assert {environment["OMP_NUM_THREADS"] for environment in runs.environments} == {str(share)}
    else:
        assert all(environment == os.environ for environment in runs.environments)
    rows = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == names  # as they were named, whoever ended first


def test_a_teacher_named_after_the_dashes_is_trained_once_too(data, tmp_path, pretended):
    settings, teacher = {**data, **STUDENT, **TRAINING}, write_teacher(tmp_path, "teacher", data)
    paths = [str(write_recipe(tmp_path, name, settings, "run_distill.py")) for name in ("one", "two", "three")]
    runs = pretended(seconds=0.05)
    compare.main([*paths, "--jobs", "3", "--output_dir", str(tmp_path / "out"), "--", f"--teacher_recipe={teacher}"])
    assert not [pair for pair in concurrent(runs.events) if runs.runs[0] in pair]


@pytest.mark.parametrize("flags", [[], ["--max_train_samples=48"]])
def test_flags_give_distillations_a_teacher_of_their_own(data, tmp_path, inside, flags):
    usual, teachers = tmp_path / "usual", tmp_path / "out" / "teachers"
    teacher = {**data, **TEACHER, **TRAINING, "max_steps": 1, "eval_steps": 1, "output_dir": str(usual)}
    recipe = write_recipe(tmp_path, "teach", teacher, "run_teacher.py")
    settings = {**data, **STUDENT, **TRAINING, "max_steps": 1, "eval_steps": 1, "teacher_recipe": str(recipe)}
    taught = write_recipe(tmp_path, "taught", settings, "run_distill.py")
    compare.main([str(taught), "--output_dir", str(tmp_path / "out"), *(["--", *flags] if flags else [])])
    assert usual.exists() != teachers.exists() and usual.exists() == (not flags)
    (found,) = teachers.iterdir() if flags else [usual]
    rows = json.loads((found / "report.json").read_text(encoding="utf-8"))["data"]["rows"]
    assert rows["train"] == (48 if flags else 96)


def test_a_teacher_that_is_named_stays_the_one_that_is_named(data, tmp_path):
    settings = {**data, **STUDENT, **TRAINING, "teacher_recipe": write_teacher(tmp_path, "teacher", data)}
    for named, flags in ((None, ["--teacher_name_or_path=mine"]), ("mine", ["--max_train_samples=50"]), ("mine", [])):
        recipe = write_recipe(tmp_path, "one", {**settings, "teacher_name_or_path": named}, "run_distill.py")
        (experiment,) = compare.plan([str(recipe)], flags, [1], tmp_path / "out")
        *_, found, _ = importlib.import_module("run_distill").make_parser().parse(experiment.arguments(tmp_path, 1))
        assert found["teacher_name_or_path"] == ["mine"] and experiment.flags == (*flags, "--bf16=false")


def test_two_teachers_of_one_name_have_folders_of_their_own(data, tmp_path, pretended):
    settings, output = {**data, **STUDENT, **TRAINING}, tmp_path / "out"
    teachers = [write_teacher(tmp_path / name, "teacher", data) for name in ("first", "second")]
    paths = [
        write_recipe(tmp_path, name, {**settings, "teacher_recipe": teacher}, "run_distill.py")
        for name, teacher in zip(("one", "two"), teachers, strict=True)
    ]
    runs = pretended()
    compare.main([*map(str, paths), "--output_dir", str(output), "--", "--max_train_samples=50"])
    folders = {word for command in runs.commands for word in command if word.startswith("--teacher_name_or_path=")}
    assert len(folders) == 2 and all(f"={output / 'teachers'}/" in folder for folder in folders)


def test_what_stands_after_the_dashes_goes_to_every_run(recipes, tmp_path, pretended):
    runs = pretended()
    flags = ["--learning_rate", "0.02", "--max_train_samples=50"]
    compare.main([*recipes, "--seeds", "5", "--output_dir", str(tmp_path / "out"), "--", *flags])
    assert len(runs.commands) == 2
    for command, recipe in zip(runs.commands, recipes, strict=True):
        *_, args, settings, _ = importlib.import_module(command[2]).make_parser().parse(command[3:])
        assert recipe in command and args.learning_rate == 0.02 and settings["max_train_samples"] == 50
        assert args.seed == 5 and Path(args.output_dir) == tmp_path / "out" / Path(recipe).stem / "seed_5"
    assert json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["flags"] == flags


def test_more_seeds_and_recipes_may_be_added_later(many, tmp_path, pretended):
    runs = pretended()
    compare.main([*many[:2], "--output_dir", str(tmp_path / "out")])
    assert runs.runs == [("plain", 42), ("a1", 42)]
    compare.main([*many[:3], "--seeds", "7", "42", "--output_dir", str(tmp_path / "out")])
    assert sorted(runs.runs[2:]) == [("a1", 7), ("a2", 7), ("a2", 42), ("plain", 7)]


def test_baseline_is_the_first_recipe_or_the_one_that_is_named(many, tmp_path, pretended, capsys):
    pretended()
    arguments = [*many[:3], "--seeds", "1", "2", "3", "--output_dir", str(tmp_path / "out")]
    for baseline, flags in (("plain", []), ("a1", ["--baseline", "a1"])):
        compare.main([*arguments, *flags])
        content = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
        assert content["baseline"] == baseline
        assert [row["name"] for row in content["rows"] if row["p"] is None] == [baseline]
        plain = next(row for row in content["rows"] if row["name"] == baseline)
        others = [row for row in content["rows"] if row is not plain]
        for row in others:
            assert row["difference"] == pytest.approx(np.mean(row["accuracy"]) - np.mean(plain["accuracy"]))
        assert table_cells(capsys.readouterr().out)[0].keys() >= {f"against {baseline}"}


def test_p_is_adjusted_for_the_number_of_rows(data, tmp_path, pretended):
    pretended()
    settings = {**data, **STUDENT, **TRAINING}
    names = ["plain", "one", "two", "three"]
    paths = [str(write_recipe(tmp_path, name, settings)) for name in names]
    compare.main([*paths, "--seeds", "1", "2", "--output_dir", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    expected = [p for _, p in recomputed(tmp_path / "out", names, [1, 2])]
    order = sorted(range(3), key=expected.__getitem__)
    adjusted = np.minimum(1, np.maximum.accumulate([(3 - rank) * expected[row] for rank, row in enumerate(order)]))
    assert [rows[1 + row]["p"] for row in order] == pytest.approx(adjusted.tolist())
    assert rows[1 + order[0]]["p"] > expected[order[0]]


@pytest.mark.parametrize("failing", ["a1", "b2"])
def test_a_failing_run_is_named_with_its_log_and_the_others_are_in_the_table(
    many, tmp_path, pretended, capsys, failing
):
    runs = pretended(codes={failing: 2})
    output = tmp_path / "out"
    with refused("2 of the runs failed", *(f"{output / failing}/seed_{seed}.log" for seed in (1, 2))):
        compare.main([*many, "--seeds", "1", "2", "--output_dir", str(output)])
    names = [row["recipe"] for row in table_cells(capsys.readouterr().out)]
    assert names == [Path(path).stem for path in many if Path(path).stem != failing]
    assert len(runs.runs) == 10  # the others were not kept from running
    mended = pretended()
    compare.main([*many, "--seeds", "1", "2", "--output_dir", str(output)])
    assert sorted(mended.runs) == [(failing, 1), (failing, 2)]
    assert (output / failing / "seed_1.log").read_text(encoding="utf-8") == f"{failing} 1\n" * 2


def test_a_row_of_which_some_seeds_failed_is_of_the_others(many, tmp_path, pretended, capsys):
    output = tmp_path / "out"
    pretended()
    compare.main([*many[:2], "--seeds", "1", "2", "--output_dir", str(output)])
    pretended(codes={"a1": 2})
    with refused("1 of the runs failed", f"{output}/a1/seed_3.log"):
        compare.main([*many[:2], "--seeds", "1", "2", "3", "--output_dir", str(output)])
    rows = json.loads((output / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["seeds"] for row in rows] == [[1, 2, 3], [1, 2]] and len(rows[1]["accuracy"]) == 2


def test_without_its_baseline_there_is_no_table(many, tmp_path, pretended):
    pretended(codes={"plain": 2})
    with refused("the baseline plain has no finished run"):
        compare.main([*many[:2], "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "table.md").exists()


def test_failing_runs_end_with_exit_code_2(data, recipes, tmp_path, monkeypatch, capsys, inside):
    # Nothing is wrong with its flags: that the file is empty shows when the run starts.
    (tmp_path / "empty.tsv").write_text("")
    settings = {**data, **STUDENT, **TRAINING, "train_file": str(tmp_path / "empty.tsv")}
    broken = write_recipe(tmp_path, "broken", settings)
    monkeypatch.setattr(sys, "argv", ["compare.py", recipes[0], str(broken), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        compare.console()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.splitlines()[-1].startswith("compare.py: error: 1 of the runs failed")
    assert [row["recipe"] for row in table_cells(out)] == ["plain"]
    assert "empty.tsv" in (tmp_path / "out" / "broken" / "seed_42.log").read_text(encoding="utf-8")


STUB = """
import os, pathlib, time
if __name__ == "__main__":
    pathlib.Path("pids", str(os.getpid())).touch()
    time.sleep(100)
else:
    exec(pathlib.Path({path!r}).read_text(encoding="utf-8"))
"""


@pytest.mark.parametrize("stop, jobs", [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_takes_the_runs_down_and_starts_no_other(data, tmp_path, stop, jobs):
    # The script that is imported is the real one; the one that is run sleeps.
    (tmp_path / "run_student.py").write_text(STUB.format(path=str(PROJECT / "run_student.py")), encoding="utf-8")
    (tmp_path / "pids").mkdir()
    recipes = [str(write_recipe(tmp_path, name, {**data, **STUDENT, **TRAINING})) for name in ("one", "two", "three")]
    command = [sys.executable, "-m", "kd_trainer.compare", *recipes, "--jobs", str(jobs), "--output_dir", "out"]
    # A job in the background of a shell ignores Ctrl-C, and its children with it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        deadline = time.monotonic() + 90
        while len(pids := list((tmp_path / "pids").iterdir())) < jobs and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(stop)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and err.splitlines()[-1].startswith("interrupted: ") and "Traceback" not in err
    assert sorted((tmp_path / "pids").iterdir()) == sorted(pids) and len(pids) == jobs
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.name), 0)
    assert not (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("code", [-signal.SIGINT, 130])
def test_a_run_that_is_interrupted_stops_the_others(many, tmp_path, pretended, code, jobs):
    # Of the first round in which teachers are trained, then of all the others.
    for interrupted, done in (("a1", ["plain", "a1"] if jobs == 1 else ["a1"]), ("plain", ["plain"])):
        runs, output = pretended(codes={interrupted: code}, seconds=0.2), tmp_path / interrupted
        with pytest.raises(KeyboardInterrupt):
            compare.main([*many, "--jobs", str(jobs), "--seeds", "1", "2", "--output_dir", str(output)])
        names = [name for name, _ in runs.runs]
        assert interrupted in names and not (output / "table.md").exists()
        if jobs == 1 or interrupted == "a1":
            assert names == done
        else:  # one beside it may have begun; every teacher has been trained before
            assert names[:2] == ["a1", "b1"] and len(names) <= 4
    # Any other end stops nothing.
    runs = pretended(codes={"plain": -signal.SIGKILL})
    with refused("the baseline plain has no finished run"):
        compare.main([*many, "--jobs", str(jobs), "--output_dir", str(tmp_path / "out")])
    assert len(runs.runs) == 5


def test_a_run_that_starts_while_all_are_being_stopped_is_taken_down_too(many, tmp_path, monkeypatch):
    (experiment,) = compare.plan(many[:1], [], [1], tmp_path)
    runner, terminated = compare.Runner(tmp_path, 1), threading.Event()

    class Starting:
        STDOUT = subprocess.STDOUT

        def Popen(self, *args, **kwargs):
            # The signal comes while the process is being made: nobody could terminate it yet.
            runner.stopped.set()
            return self

        def wait(self):
            return -signal.SIGTERM if terminated.wait(5) else 0

        def terminate(self):
            terminated.set()

    monkeypatch.setattr(compare, "subprocess", Starting())
    assert runner.run(experiment, 1) == -signal.SIGTERM and terminated.is_set()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "report cut": ("report.json", truncate),
    "report empty": ("report.json", lambda path: path.write_text("")),
    "report of a teacher": ("report.json", lambda path: path.write_text('{"teacher": {}, "settings": {}}')),
    "report a list": ("report.json", lambda path: path.write_text("[]")),
    "answers cut": ("_scored.safetensors", truncate),
    "answers empty": ("_scored.safetensors", lambda path: path.write_bytes(b"")),
    "no answers": ("_scored.safetensors", lambda path: path.unlink()),
    "answers of a teacher": (
        "_scored.safetensors",
        lambda path: write_scored(path.parent, np.zeros(60, dtype=int), {"teacher": np.zeros((60, 3))}),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_finished_run_that_is_damaged_is_one_line(many, tmp_path, pretended, name):
    output, (file, damage) = tmp_path / "out", DAMAGES[name]
    pretended()
    compare.main([*many[:2], "--seeds", "1", "2", "--output_dir", str(output)])
    damage(output / "plain" / "seed_2" / file)
    with refused(output / "plain" / "seed_2", "is missing or damaged", "remove the folder"):
        compare.main([*many[:2], "--seeds", "1", "2", "--output_dir", str(output)])
    shutil.rmtree(output / "plain" / "seed_2")
    runs = pretended()
    compare.main([*many[:2], "--seeds", "1", "2", "--output_dir", str(output)])
    assert runs.runs == [("plain", 2)]


def test_a_table_of_one_seed_each_has_no_star_and_says_why(many, tmp_path, pretended, capsys):
    pretended()
    arguments = [*many[:2], "--output_dir", str(tmp_path / "out")]
    for seeds, known in ((["1"], False), (["1", "2"], True)):
        compare.main([*arguments, "--seeds", *seeds])
        table = capsys.readouterr().out
        assert ("One seed each" in table) == (not known) and ("`*`: p < 0.05" in table) == known
        assert known or "*" not in table


def test_a_row_whose_robustness_was_not_measured_has_dashes(many, tmp_path, pretended, capsys):
    pretended(robust=["plain", "a2"])
    compare.main([*many[:3], "--seeds", "1", "2", "--output_dir", str(tmp_path / "out")])
    plain, without, measured = table_cells(capsys.readouterr().out)
    heads = [name.replace("_", " ") for name in MEASURES]
    assert {without[head] for head in heads} == {"–"}
    for name, cells in (("plain", plain), ("a2", measured)):
        role = "student" if name == "plain" else "distilled"
        halves = [50 * report_of(tmp_path / "out", name, seed)[role]["accuracy"] for seed in (1, 2)]
        assert {cells[head] for head in heads} == {f"{np.mean(halves):.1f} ± {np.std(halves, ddof=1):.1f}"}


def test_runs_scored_on_other_labels_are_refused(many, tmp_path, pretended):
    for number, labels in enumerate([np.arange(60)[::-1] % 3, np.arange(59) % 3]):
        pretended(labels={("a1", 42): labels})
        with refused(tmp_path / f"{number}", "scored on different texts", "test_file"):
            compare.main([*many[:2], "--output_dir", str(tmp_path / f"{number}")])


def test_seeds_of_one_recipe_scored_on_more_texts_than_others_are_refused(many, tmp_path, pretended):
    for name in ("plain", "a1"):
        output = tmp_path / name
        pretended(labels={(name, 2): np.arange(59) % 3})
        with refused(output, "scored on different texts", "test_file"):
            compare.main([*many[:2], "--seeds", "1", "2", "--output_dir", str(output)])


def test_runs_scored_on_other_texts_with_the_same_labels_are_refused(data, recipes, tmp_path, inside):
    settings = {**data, **STUDENT, **TRAINING, "test_file": str(write_data(tmp_path, seed=77))}
    other = write_recipe(tmp_path, "other", settings)
    with refused(tmp_path / "out", "scored on different texts", "test_file"):
        compare.main([recipes[0], str(other), "--output_dir", str(tmp_path / "out")])


def test_fp16_is_run_in_bf16_where_there_is_no_cuda_and_the_row_says_so(
    data, recipes, tmp_path, inside, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    half = write_recipe(tmp_path, "half", {**data, **STUDENT, **TRAINING, "fp16": True})
    compare.main([recipes[0], str(half), "--output_dir", str(tmp_path / "out")])
    settings = report_of(tmp_path / "out", "half", 42)["settings"]
    assert settings["bf16"] is True and settings["fp16"] is False
    # Not what the processor would choose: the plain row is in fp32 wherever it is run.
    assert report_of(tmp_path / "out", "plain", 42)["settings"]["bf16"] is False
    names = [row["recipe"] for row in table_cells(capsys.readouterr().out)]
    assert names == ["plain", "half (in bf16, without CUDA)"]
    # What it was run with is what it is found finished with.
    compare.main([recipes[0], str(half), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("flags", [[], ["--", "--fp16"]], ids=["recipe", "flag"])
def test_a_run_in_fp16_counts_where_there_is_no_cuda_and_the_other_way_round(
    data, recipes, tmp_path, pretended, capsys, monkeypatch, flags
):
    """What the row says is decided by where its runs were made, not by where the table is."""
    half = str(write_recipe(tmp_path, "half", {**data, **STUDENT, **TRAINING, "fp16": None if flags else True}))
    command = [half, "--seeds", "1", "2", "--output_dir"]
    for cuda, note in ((True, ""), (False, " (in bf16, without CUDA)")):
        output = str(tmp_path / f"cuda {cuda}")
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        pretended()
        compare.main([*command, output, *flags])
        settings = report_of(Path(output), "half", 1)["settings"]
        assert bool(settings.get("fp16")) == cuda and bool(settings.get("bf16")) == (not cuda)
        table = capsys.readouterr().out
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: not cuda)
        runs = pretended()
        compare.main([*command, output, *flags])
        assert not runs.commands and capsys.readouterr().out == table
        assert table_cells(table)[0]["recipe"] == f"half{note}"
        # Of a row of both kinds it is said, too.
        shutil.rmtree(tmp_path / f"cuda {cuda}" / "half" / "seed_2")
        compare.main([*command, output, *flags])
        assert len(runs.commands) == 1
        assert table_cells(capsys.readouterr().out)[0]["recipe"] == "half (in bf16, without CUDA)"
        # Any other difference counts as ever.
        more = [*flags, "--max_steps=6"] if flags else ["--", "--max_steps=6"]
        with refused("max_steps 4 -> 6"):
            compare.main([*command, output, *more])
        assert len(runs.commands) == 1


@pytest.mark.parametrize("has_cuda", [True, False])
@pytest.mark.parametrize(
    ("recipe_says", "flags", "is_half"),
    [(True, [], True), (None, ["--fp16"], True), (None, ["--fp16=true"], True), (True, ["--fp16=false"], False)],
)
def test_fp16_of_the_command_line_counts_as_a_recipes(
    data, tmp_path, monkeypatch, has_cuda, recipe_says, flags, is_half
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    recipe = write_recipe(tmp_path, "half", {**data, **STUDENT, **TRAINING, "fp16": recipe_says})
    (experiment,) = compare.plan([str(recipe)], flags, [1], str(tmp_path / "out"))
    assert experiment.wants_fp16 == is_half
    script = importlib.import_module(experiment.script)
    *_, settings, _ = script.make_parser().parse(experiment.arguments(tmp_path, 1))
    assert bool(settings.get("fp16")) == (is_half and has_cuda)
    assert bool(settings.get("bf16")) == (is_half and not has_cuda)


def refuses(arguments, runs, output, *parts):
    """Asserts that `arguments` are refused in one line, before anything is run or written into `output`."""
    before = files_of(output) if output.exists() else None
    with refused(*parts):
        compare.main([*map(str, arguments)])
    assert not runs.commands and (files_of(output) if output.exists() else None) == before


def test_finished_runs_of_other_settings_are_refused_before_anything_runs(many, tmp_path, pretended):
    output = tmp_path / "out"
    pretended()
    compare.main([*many[:2], "--output_dir", str(output)])
    runs = pretended()
    again = [*many[:2], "--seeds", "41", "42", "--output_dir", output]
    first, second = (output / name / "seed_42" for name in ("plain", "a1"))
    refuses([*again, "--", "--max_steps=6"], runs, output, first, "max_steps 4 -> 6", "remove it")
    settings = yaml.safe_load(Path(many[1]).read_text(encoding="utf-8"))
    write_recipe(tmp_path, "a1", {**settings, "temperature": 9}, "run_distill.py")
    refuses(again, runs, output, second, "temperature 1.0 -> 9.0")
    # What changes nothing of the result may change.
    compare.main([many[0], "--output_dir", str(output), "--", "--logging_steps=7"])
    assert not runs.commands


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--jobs", "0"], ["--jobs is 0: it must be at least 1"]),
        (["--jobs", "-1"], ["--jobs is -1: it must be at least 1"]),
        (["--seeds", "1", "2", "1"], ["--seeds [1, 2, 1]", "each once"]),
        (["--seeds", "-1"], ["--seeds [-1]", "from 0"]),
        (["--seeds", "4294967296"], ["--seeds [4294967296]", "2^32 - 1"]),
        (["--", "--train_file=nowhere.tsv"], ["train_file nowhere.tsv: no such file"]),
        (["--", "--overwrite_output_dir"], ["--overwrite_output_dir", "leave it out"]),
        (["--seeds", "one"], ["--seeds", "'one'"]),
        (["--sedes", "1"], ["--sedes", "--help"]),
        (["--baseline", "teacher"], ["--baseline teacher", "none of the recipes"]),
        (["--", "--seed", "3"], ["--seed is set for every run", "--seeds"]),
        (["--", "--seed=3"], ["--seed is set for every run"]),
        (["--", "--output_dir=elsewhere"], ["--output_dir is set for every run"]),
        (["--", "--output-dir=elsewhere"], ["is set for every run"]),
        (["--", "--output-dir", "elsewhere"], ["is set for every run"]),
        (["--", "--temprature=3"], ["unknown flag '--temprature'"]),
        (["--", "--max_steps=many"], ["max_steps", "many"]),
        (["--", "--dropout=0.1", "another.yaml"], ["another.yaml"]),
        (["--", "--do_predict=false"], ["do_train and do_predict"]),
    ],
)
def test_a_command_line_that_is_wrong_is_refused_before_anything_runs(
    recipes, tmp_path, pretended, monkeypatch, flags, parts
):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    refuses([*recipes, "--output_dir", output, *flags], pretended(), output, *parts)


@pytest.mark.parametrize(
    ("second_line", "settings", "parts"),
    [
        ("# python run_student.py", {"learning_rat": 1}, ["unknown key 'learning_rat'", "did you mean"]),
        ("# python run_student.py", {"temperature": 4}, ["unknown key 'temperature'"]),
        ("# python run_student.py", {"dropout": "much"}, ["dropout", "much"]),
        ("# python run_student.py", {"do_predict": False}, ["do_train and do_predict"]),
        ("# python run_student.py", {"do_train": False}, ["do_train and do_predict"]),
        ("# python train.py", {}, ["second line must be its command", "# python run_student.py"]),
        ("# A recipe of run_student.py", {}, ["second line must be its command"]),
        ("# python", {}, ["second line must be its command"]),
        ("", {}, ["second line must be its command"]),
        ("dropout: 0.1", {}, ["second line must be its command"]),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_before_anything_runs(
    data, recipes, tmp_path, pretended, second_line, settings, parts
):
    settings = {**data, "hidden_size": 8, **TRAINING, **settings}
    path, output = tmp_path / "wrong.yaml", tmp_path / "out"
    path.write_text(f"# A test.\n{second_line}\n\n{yaml.safe_dump(settings)}", encoding="utf-8")
    refuses([*recipes, path, "--output_dir", output], pretended(), output, path, *parts)


def test_files_that_are_no_recipes_are_refused_before_anything_runs(recipes, tmp_path, pretended):
    output = tmp_path / "out"
    refuses([recipes[0], "nowhere.yaml", "--output_dir", output], pretended(), output, "nowhere.yaml: no such recipe")
    for content, found in (("", "found NoneType"), ("a", "found str"), ("a: [", "not valid YAML")):
        (tmp_path / "wrong.yaml").write_text(content)
        refuses([recipes[0], tmp_path / "wrong.yaml", "--output_dir", output], pretended(), output, "wrong.yaml", found)


def test_two_recipes_of_one_name_are_refused(recipes, tmp_path, pretended):
    output, folder = tmp_path / "out", tmp_path / "other"
    folder.mkdir()
    copied = shutil.copy(recipes[0], folder)
    refuses([*recipes, copied, "--output_dir", output], pretended(), output, "two recipes are called plain:")
    refuses([recipes[1], recipes[1], "--output_dir", output], pretended(), output, "two recipes are called faster:")


def test_without_matplotlib_it_says_so_before_anything_runs(recipes, tmp_path, pretended, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "out"
    refuses([*recipes, "--output_dir", output], pretended(), output, "matplotlib: pip install")


def test_a_folder_that_cannot_be_written_is_refused(recipes, tmp_path, pretended):
    (tmp_path / "file").write_text("")
    refuses([*recipes, "--output_dir", tmp_path / "file"], pretended(), tmp_path / "none", "cannot be written")


ROW = {
    "name": "plain",
    "note": "",
    "seeds": [1, 2],
    "accuracy": [0.9, 0.92],
    "f1": [0.8, 0.8],
    "train_seconds": [9, 12],
}
PLAIN = {**ROW, "difference": None, "p": None}
BETTER = {**ROW, "name": "better", "difference": 0.0123, "p": 0.0004}
SINGLE = {"seeds": [1], "accuracy": [0.9], "f1": [0.8], "train_seconds": [9.4]}


# Of rows with two seeds, and of rows with one.
KNOWN, UNKNOWN = SeedVariance(2e-4, 1e-4, 2), SeedVariance()


def format_rows(*rows, seeds=KNOWN):
    return comparison.format_comparison(list(rows), seeds, "plain")


@pytest.mark.parametrize(
    ("difference", "p", "cell", "shown"),
    [
        (0.0123, 0.0004, "+1.23 *", "< 0.001"),
        (-0.0123, 0.001, "-1.23 *", "0.001"),
        (0.01, 0.0499, "+1.00 *", "0.050"),
        (0.01, 0.05, "+1.00", "0.050"),
        (0.0, 1.0, "+0.00", "1.000"),
    ],
)
def test_stars_and_small_p_stand_in_the_table(difference, p, cell, shown):
    plain, better = table_cells(format_rows(PLAIN, {**BETTER, "difference": difference, "p": p}))
    assert (better["against plain"], better["p"]) == (cell, shown) and plain["p"] == "–"
    assert plain["accuracy"] == "91.00 ± 1.41" and plain["train s"].startswith("10 ± 2")
    assert plain["seeds"] == "2" and "fgm" not in plain


def test_robustness_is_shown_with_its_spread_and_a_row_without_it_has_dashes():
    measured = {"robustness": {name: [0.5, 0.6] for name in MEASURES}, "robustness_rows": 1234}
    single = {"seeds": [1], "robustness": {name: [0.5] for name in MEASURES}, "robustness_rows": 1234}
    heads = ["clean", "fgm", "pgd", "noise 5", "noise 10"]
    for other, expected in ((measured, "55.0 ± 7.1"), (single, "50.0"), ({}, "–")):
        table = format_rows({**PLAIN, **measured}, {**BETTER, **other})
        plain, better = table_cells(table)
        assert list(plain)[-5:] == heads and "sample of 1,234 texts" in table
        assert {plain[head] for head in heads} == {"55.0 ± 7.1"} and {better[head] for head in heads} == {expected}
        # Whichever comes first.
        better, plain = table_cells(format_rows({**BETTER, **other}, {**PLAIN, **measured}))
        assert {plain[head] for head in heads} == {"55.0 ± 7.1"} and {better[head] for head in heads} == {expected}
    without = format_rows(PLAIN, BETTER)
    assert not {*heads} & table_cells(without)[0].keys() and "fgm, pgd" not in without


def test_a_row_of_one_seed_has_no_deviation():
    row = table_cells(format_rows(PLAIN, {**BETTER, **SINGLE}))[1]
    assert (row["accuracy"], row["macro F1"], row["train s"], row["seeds"]) == ("90.00", "80.00", "9", "1")


def test_a_star_needs_one_row_with_two_seeds_and_the_caption_says_so():
    one_seed, two_seeds = "One seed each: p is about these trained models", "with the variance over seeds"
    table = format_rows({**PLAIN, **SINGLE}, {**BETTER, **SINGLE}, seeds=UNKNOWN)
    assert one_seed in table and two_seeds not in table and "*" not in table
    assert table_cells(table)[1]["against plain"] == "+1.23" and table_cells(table)[1]["p"] == "< 0.001"
    # The plain row's seeds say what others may do to the other.
    table = format_rows(PLAIN, {**BETTER, **SINGLE})
    assert table_cells(table)[1]["against plain"] == "+1.23 *"
    assert one_seed not in table and two_seeds in table and "`*`: p < 0.05" in table


@pytest.mark.parametrize("p, difference, seeds, color", [
    (0.01, 0.02, KNOWN, "C2"), (0.01, -0.02, KNOWN, "C3"), (0.05, 0.02, KNOWN, None), (0.01, 0.02, UNKNOWN, None),
])  # fmt: skip
def test_a_mean_is_coloured_where_the_table_has_a_star(tmp_path, p, difference, seeds, color):
    from matplotlib import image
    from matplotlib.colors import to_rgb

    comparison.draw([PLAIN, {**BETTER, "p": p, "difference": difference}], seeds, "plain", tmp_path / "table.png")
    pixels = image.imread(tmp_path / "table.png")[..., :3]
    shown = {name for name in ("C0", "C2", "C3") if (np.abs(pixels - to_rgb(name)).max(axis=-1) < 0.01).sum() > 20}
    assert shown == {"C0", color} - {None}


@pytest.mark.parametrize("size", [1, 15])
def test_any_number_of_rows_is_drawn(tmp_path, size):
    from matplotlib import image, pyplot

    rows = [PLAIN, *({**BETTER, "name": f"多{row}"} for row in range(size - 1))]
    with pytest.warns(UserWarning, match="missing from font") if size > 1 else contextlib.nullcontext():
        comparison.draw(rows, KNOWN, "plain", tmp_path / "table.png")
    assert image.imread(tmp_path / "table.png").shape[0] > 100 + 40 * size
    assert not pyplot.get_fignums()  # no figure is left in memory
