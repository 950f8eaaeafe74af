"""Every recipe that ships says what its script understands, and points to what is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kd_trainer.arguments import (
    STUDENT_DEFAULTS,
    ClassifierTrainingArguments,
    DataArguments,
    DistillationTrainingArguments,
    ModelArguments,
    RunArguments,
    ScriptParser,
    StudentArguments,
    TeacherArguments,
)

PROJECT = Path(__file__).parent.parent
RECIPES = sorted((PROJECT / "recipes").rglob("*.yaml"))
SCRIPTS = {
    "run_teacher.py": ((ModelArguments, DataArguments, RunArguments, ClassifierTrainingArguments), None),
    "run_student.py": ((StudentArguments, DataArguments, RunArguments, ClassifierTrainingArguments), STUDENT_DEFAULTS),
    "run_distill.py": (
        (StudentArguments, TeacherArguments, DataArguments, RunArguments, DistillationTrainingArguments),
        STUDENT_DEFAULTS,
    ),
}


def script_of(recipe):
    """The script that the recipe's comment tells a reader to run it with."""
    line = recipe.read_text(encoding="utf-8").splitlines()[1]
    python, script, path = line.removeprefix("# ").split()
    assert python == "python" and PROJECT / path == recipe, line
    return script


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_parses(recipe):
    dataclasses, defaults = SCRIPTS[script_of(recipe)]
    *_, args, settings, given = ScriptParser(dataclasses, defaults).parse([str(recipe), "--use_cpu"])
    recipe_keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert set(recipe_keys) | {"use_cpu"} == set(settings) and set(given) == {"use_cpu"}
    assert args.do_train and args.output_dir.startswith(f"outputs/{recipe.parent.name}/")
    if "teacher_recipe" in recipe_keys:
        assert script_of(PROJECT / recipe_keys["teacher_recipe"]) == "run_teacher.py"


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
