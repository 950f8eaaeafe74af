"""A curve over temperatures is drawn of runs that differ in nothing else, and has their numbers."""

import json
import warnings

import pytest
import yaml
from conftest import refused
from PIL import Image

from kd_trainer import sweep

SETTINGS = {"learning_rate": 2e-3, "kd_loss": "kl", "train_file": "train.tsv"}


@pytest.fixture
def make_run(tmp_path):
    """A function that leaves a folder as a finished distillation of a temperature does."""

    def make(name, temperature=None, seed=1, accuracy=0.9, texts="a", rows=("teacher", "student"), **settings):
        folder = tmp_path / name
        folder.mkdir()
        settings = {**SETTINGS, **settings, "output_dir": str(folder), "seed": seed}
        if temperature is not None:
            settings["temperature"] = temperature
        report = {row: {"accuracy": 0.95 if row == "teacher" else 0.85} for row in rows}
        report["distilled"] = {"accuracy": accuracy, "agreement": accuracy and accuracy + 0.02}
        report["accuracy_interval"] = {"distilled": [0.7, 0.99]}
        report |= {"split": "test", "texts_sha256": texts, "seed": seed, "settings": settings}
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return make


def test_the_points_are_the_runs_and_the_line_their_means(make_run):
    folders = [make_run("t8", 8.0, accuracy=0.92), make_run("t1", 1.0, accuracy=0.88), make_run("other", 1.0, 2, 0.9)]
    folders.append(make_run("default", accuracy=0.91))  # whose temperature is the flag's default, 4
    runs = sweep.read_runs(folders)
    assert [(run["temperature"], run["seed"], run["accuracy"]) for run in runs] == [
        (1.0, 1, 0.88),
        (1.0, 2, 0.9),
        (4.0, 1, 0.91),
        (8.0, 1, 0.92),
    ]
    accuracy, agreement = sweep.draw(runs).axes
    assert accuracy.lines[0].get_xydata().round(6).tolist() == [[1, 89], [4, 91], [8, 92]]
    assert agreement.lines[0].get_xydata().round(6).tolist() == [[1, 91], [4, 93], [8, 94]]
    points = sorted(tuple(bar[0].get_xydata()[0].round(6)) for bar in accuracy.containers)
    assert points == [(1, 88), (1, 90), (4, 91), (8, 92)]
    assert {text.get_text() for text in accuracy.get_legend().get_texts()} == {"teacher", "student alone"}
    assert [tick.get_text() for tick in accuracy.get_xticklabels()] == ["1", "4", "8"]


def test_the_command_writes_plot_and_numbers_and_prints_the_table(make_run, tmp_path, capsys):
    runs = [str(make_run(f"t{t}", t, rows=())) for t in (0.5, 3.0)]
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep.main([*runs, f"--output_dir={out}"])
    assert sorted(path.name for path in out.iterdir()) == ["temperature.json", "temperature.png"]
    Image.open(out / "temperature.png").verify()
    assert [run["temperature"] for run in json.loads((out / "temperature.json").read_text())] == [0.5, 3.0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| 0.5 ") and "0.9000" in lines[2] and "t0.5" in lines[2]
    with refused(out, "--overwrite"):
        sweep.main([*runs, f"--output_dir={out}"])
    sweep.main([*runs, f"--output_dir={out}", "--overwrite"])


@pytest.mark.parametrize(
    "others, parts",
    [
        ([{"temperature": 1.0, "seed": 2}], ["temperature 1", "differ in it"]),
        ([{"temperature": 2.0, "texts": "b"}], ["different texts"]),
        ([{"temperature": 2.0, "learning_rate": 1e-3}], ["learning_rate 0.001 -> 0.002"]),
        ([{"temperature": 2.0, "kd_loss": "mse"}], ["mse has no temperature"]),
        ([{"temperature": 2.0, "final_temperature": 1.0}], ["final_temperature"]),
        ([{"temperature": 2.0, "accuracy": None}], ["no labels"]),
    ],
)
def test_runs_that_make_no_curve_are_refused(make_run, tmp_path, others, parts):
    folders = [make_run("first", 1.0), *(make_run(f"other {i}", **other) for i, other in enumerate(others))]
    with refused(*parts):
        sweep.main([*map(str, folders), f"--output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out" / "temperature.png").exists()


def test_a_run_that_is_named_twice_is_refused(make_run, tmp_path):
    one, other = make_run("t1", 1.0), make_run("t2", 2.0)
    (tmp_path / "link").symlink_to(one)
    for again in (one, tmp_path / "t2" / ".." / "t1", tmp_path / "link"):
        with refused("named twice"):
            sweep.read_runs([one, other, again])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in ("2", "x", [2.0], {}, 0, -1.0, True, float("nan"), float("inf"))),
        *({"accuracy": value} for value in (-0.1, True, float("nan"), float("inf"))),
        *({"seed": value} for value in ("1", None, [1])),
        *({"texts": value} for value in ([], {}, None)),
    ],
)
def test_a_report_of_values_that_are_none_is_refused(make_run, tmp_path, wrong):
    folders = [make_run("t1", 1.0), make_run("t2", **{"temperature": 2.0, **wrong})]
    with refused(folders[1], "no finished distillation"):
        sweep.main([*map(str, folders), f"--output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("accuracy_interval", {"distilled": 5}),
        ("accuracy_interval", {"distilled": ["a", "b"]}),
        ("accuracy_interval", {"distilled": [0.5]}),
        ("accuracy_interval", []),
        ("teacher", {"accuracy": "x"}),
        ("student", "x"),
        ("distilled", {"accuracy": "0.9", "agreement": 0.9}),
        ("distilled", {"accuracy": [0.9], "agreement": 0.9}),
        ("distilled", {"accuracy": 0.9, "agreement": "x"}),
        ("settings", []),
        ("split", 5),
    ],
)
def test_a_report_with_a_part_of_another_type_is_refused(make_run, key, value):
    folders = [make_run("t1", 1.0), make_run("t2", 2.0)]
    report = json.loads((folders[1] / "report.json").read_text())
    (folders[1] / "report.json").write_text(json.dumps({**report, key: value}))
    with refused(folders[1], "no finished distillation"):
        sweep.read_runs(folders)


@pytest.mark.parametrize("content", ["[]", "[[1, 2]]", "{1: 2}", "5", "", "{"])
def test_a_damaged_recipe_is_one_line(make_run, content):
    folders = [make_run("t1", 1.0), make_run("t2", 2.0)]
    (folders[1] / "recipe.yaml").write_text(content)
    with refused(folders[1] / "recipe.yaml", "damaged"):
        sweep.read_runs(folders)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"student": {}}', '{"distilled": []}'])
def test_a_folder_without_a_distillation_is_refused(make_run, tmp_path, content):
    folder = make_run("t1", 1.0)
    (tmp_path / "other").mkdir()
    if content is not None:
        (tmp_path / "other" / "report.json").write_text(content)
    with refused(tmp_path / "other", "no finished distillation"):
        sweep.read_runs([folder, tmp_path / "other"])
    with refused("--output_dir"):
        sweep.main([str(folder)])
