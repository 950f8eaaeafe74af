"""Every recipe that ships says what its script understands, and points to what is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import run_distill
import run_student
import run_teacher
from kd_trainer.files import read_rows

PROJECT = Path(__file__).parent.parent
RECIPES = sorted((PROJECT / "recipes").rglob("*.yaml"))
SCRIPTS = {"run_teacher.py": run_teacher, "run_student.py": run_student, "run_distill.py": run_distill}


def read(name):
    return yaml.safe_load((PROJECT / "recipes" / name).read_text(encoding="utf-8"))


def script_of(recipe):
    """The script that the recipe's comment tells a reader to run it with."""
    line = recipe.read_text(encoding="utf-8").splitlines()[1]
    python, script, path = line.removeprefix("# ").split()
    assert python == "python" and PROJECT / path == recipe, line
    return script


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_parses(recipe):
    *_, args, settings, given = SCRIPTS[script_of(recipe)].make_parser().parse([str(recipe), "--use_cpu"])
    recipe_keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert set(recipe_keys) | {"use_cpu"} == set(settings) and set(given) == {"use_cpu"}
    # A folder of its own, under the name of the recipe's.
    folder = recipe.parent.relative_to(PROJECT / "recipes")
    assert args.do_train and args.output_dir.startswith(f"outputs/{folder}/")
    if "teacher_recipe" in recipe_keys:
        assert script_of(PROJECT / recipe_keys["teacher_recipe"]) == "run_teacher.py"


@pytest.mark.parametrize("recipe", sorted((PROJECT / "recipes" / "demo").glob("*.yaml")), ids=lambda path: path.stem)
def test_demo_recipes_name_data_that_ships(recipe):
    for split in ("train", "validation", "test"):
        assert len(read_rows(PROJECT / read(recipe)[f"{split}_file"]).texts) >= 500


def test_recipes_that_are_compared_differ_in_what_is_compared_alone():
    temperatures = [read(f"thucnews/distill_t{temperature}.yaml") for temperature in (1, 5, 10, 20)]
    assert [recipe.pop("temperature") for recipe in temperatures] == [1, 5, 10, 20]
    for recipe in temperatures:
        recipe.pop("output_dir")
        assert recipe == temperatures[0]
    for student, distilled in (
        (read("thucnews/bilstm.yaml"), temperatures[0]),
        (read("demo/student.yaml"), read("demo/distill.yaml")),
    ):
        taught = distilled.keys() - student.keys()
        assert taught <= {"teacher_recipe", "compare_student", "alpha", "temperature"}
        assert all(distilled[key] == value for key, value in student.items() if key != "output_dir")


def test_recipes_write_into_different_folders():
    folders = [yaml.safe_load(recipe.read_text(encoding="utf-8"))["output_dir"] for recipe in RECIPES]
    assert len(set(folders)) == len(folders)


def test_shipped_headlines_are_what_their_generator_writes(tmp_path):
    generator = PROJECT / "recipes" / "demo" / "headlines.py"
    subprocess.run([sys.executable, generator, "--output_dir", tmp_path], check=True, capture_output=True)
    for name in ("train.tsv", "validation.tsv", "test.tsv"):
        assert (tmp_path / name).read_bytes() == (PROJECT / "recipes" / "demo" / name).read_bytes()


def test_shipped_headlines_are_hard_but_not_too_hard_for_a_linear_model():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    splits = {}
    for name in ("train", "test"):
        lines = (PROJECT / "recipes" / "demo" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        splits[name] = list(zip(*(line.split("\t") for line in lines), strict=True))
    model = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    labels, texts = splits["train"]
    assert not set(texts) & set(splits["test"][1])
    accuracy = model.fit(texts, labels).score(splits["test"][1], splits["test"][0])
    assert 0.80 <= accuracy <= 0.95
