"""Every recipe that ships runs, and a report is about the weights that its own run has trained."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import make_rows, refused
from safetensors.torch import load_file
from test_recipes import PROJECT, RECIPES, SCRIPTS, script_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import run_student
import run_teacher
from kd_trainer import report
from kd_trainer.output_folder import last_checkpoint

CLASSES = [
    "finance",
    "realty",
    "stocks",
    "education",
    "science",
    "society",
    "politics",
    "sports",
    "game",
    "entertainment",
]
STRATEGIES = sorted((PROJECT / "recipes" / "strategies").rglob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def no_benchmark():
    """How fast a model is takes seconds to measure and is not the matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that put small files, in the form of THUCNews, in the place of a recipe's."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "class.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    flags = [f"--class_file={folder / 'class.txt'}"]
    for seed, name in enumerate(("train", "validation", "test")):
        # Every class has rows; what they are is nothing to learn in two steps.
        rows = [(text, row % len(CLASSES)) for row, text in enumerate(make_rows(60, seed)[0])]
        lines = [f"{text}\t{label}" for text, label in rows]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        answers = [
            {"text": text, "label": label, "words": np.eye(len(CLASSES))[label].tolist()} for text, label in rows
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in answers]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags.append(f"--{name}_file={folder / name}.txt")
    return flags


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Folder of a tiny BERT of the data's labels."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    config = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
    flags = ["--config_name=bert", f"--config_overrides={config}", "--do_train", "--max_steps=2", "--use_cpu"]
    run_teacher.main([*flags, *data, "--eval_strategy=no", "--disable_tqdm=true", f"--output_dir={folder}"])
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_runs_for_two_steps(recipe, data, teacher, tmp_path):
    script, settings = script_of(recipe), yaml.safe_load(recipe.read_text(encoding="utf-8"))
    flags = [*data, "--max_steps=2", "--eval_strategy=steps", "--eval_steps=1", "--per_device_train_batch_size=4"]
    flags += ["--use_cpu", "--disable_tqdm=true", f"--output_dir={tmp_path / 'run'}"]
    if script == "run_distill.py":
        named = settings.get("teacher_name_or_path")
        count = len(named) if isinstance(named, list) else 1
        flags += ["--teacher_name_or_path", *[str(teacher)] * count, f"--teacher_cache_dir={tmp_path / 'cache'}"]
    if "teacher_column" in settings:
        flags += [flag.replace(".txt", ".jsonl") for flag in data if not flag.startswith("--class_file")]
    if "unlabeled_file" in settings:
        (tmp_path / "more.txt").write_text("\n".join(make_rows(20, seed=9)[0]) + "\n", encoding="utf-8")
        flags += [f"--unlabeled_file={tmp_path / 'more.txt'}"]
    if settings.get("embedding_init") == "teacher":
        flags += ["--embedding_size=16"]
    if "model_name_or_path" in settings:  # a model of the hub
        flags += [f"--model_name_or_path={teacher}"]
    if settings.get("fp16"):  # wants CUDA
        flags += ["--fp16=false", "--bf16"]
    SCRIPTS[script].main([str(recipe), *flags])
    row = list(report.read_scored(tmp_path / "run")[1])
    assert row[-1] in ("teacher", "student", "distilled")
    steps = yaml.safe_load((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    assert steps["global_step"] == 2
    logged = {name for entry in steps["log_history"] for name in entry}
    assert ("adversarial_loss" in logged) <= ("adversarial" in settings)


@pytest.mark.parametrize("kind", ["teachers", "students"])
def test_strategies_differ_from_the_plain_recipe_in_the_strategy_alone(kind):
    recipes = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in STRATEGIES if path.parent.name == kind
    }
    plain = recipes.pop("plain")
    # A BERT from scratch is perturbed only when it has learnt something.
    start = {"adversarial_start"} if kind == "teachers" else set()
    allowed = {
        "accumulation": {"gradient_accumulation_steps", "learning_rate"},
        "fp16": {"fp16"},
        "fgm": {"adversarial", "adversarial_epsilon"} | start,
        "pgd": {"adversarial", "adversarial_epsilon", "adversarial_alpha", "adversarial_steps"} | start,
        "freelb": {"adversarial", "adversarial_epsilon", "adversarial_alpha", "adversarial_steps"} | start,
        "distill": {"teacher_recipe", "alpha", "temperature"},
    }
    for name, recipe in recipes.items():
        parts = [part for part in name.split("_") if not part.startswith("t")]
        changed = {key for key in recipe.keys() | plain.keys() if recipe.get(key) != plain.get(key)} - {"output_dir"}
        assert changed == set().union(*(allowed[part] for part in parts)), name
        if "accumulation" in parts:
            assert recipe["learning_rate"] == 4 * plain["learning_rate"] and recipe["gradient_accumulation_steps"] == 4


def train_without_evaluation(data, folder, *flags):
    """A student trained with evaluation switched off, from the same first weights; returns what it answers."""
    run_student.main(
        [
            *data, "--do_train", "--do_predict", "--num_train_epochs=2", "--embedding_size=12", "--hidden_size=8",
            "--learning_rate=1e-2", "--dropout=0", "--eval_strategy=no", "--use_cpu", "--disable_tqdm=true",
            f"--output_dir={folder}", "--overwrite_output_dir", *flags,
        ]
    )  # fmt: skip
    return report.read_scored(folder)[1]["student"]


def test_strategies_score_their_own_weights_where_evaluation_is_off(data, tmp_path):
    """
    The reference's trap: with evaluation switched off its best checkpoint was never rewritten, the test run loaded an
    older file, and FGM, PGD and plain training got the same score. Here all three write into one folder, in which the
    weights and checkpoints of the run before lie ready to be mistaken for their own.
    """
    folder = tmp_path / "run"
    answers, weights = {}, {}
    for name in ("none", "fgm", "pgd"):
        answers[name] = train_without_evaluation(data, folder, f"--adversarial={name}", "--save_strategy=epoch")
        weights[name] = load_file(folder / "model.safetensors")
        shutil.copytree(folder, tmp_path / name)
    for one, other in (("none", "fgm"), ("none", "pgd"), ("fgm", "pgd")):
        assert not np.allclose(answers[one], answers[other], atol=1e-4)
        assert any(not torch.equal(weights[one][key], weights[other][key]) for key in weights[one])
    texts, _ = make_rows(60, 2)
    for name, logits in answers.items():
        # What is reported is what somebody gets who loads the folder, and what the last step has left.
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        batch = AutoTokenizer.from_pretrained(tmp_path / name)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            np.testing.assert_allclose(model(**batch).logits.numpy(), logits, atol=1e-5)
        last = load_file(f"{last_checkpoint(tmp_path / name)}/model.safetensors")
        assert all(torch.equal(last[key], weights[name][key]) for key in last)


@pytest.mark.parametrize("flag", ["--eval_robustness", "--adversarial=fgm"])
def test_a_model_that_cannot_be_attacked_is_refused_before_it_is_trained(data, tmp_path, flag):
    """An XLNet turns its input around before it embeds it."""
    flags = [*data, "--config_name=xlnet", "--config_overrides=d_model=16,n_layer=1,n_head=2,d_head=8,d_inner=16"]
    flags += ["--do_train", "--do_predict", "--max_steps=1", "--eval_strategy=no", "--save_strategy=steps"]
    flags += ["--save_steps=1", "--use_cpu", "--disable_tqdm=true"]
    with refused("embeds something else than its input_ids"):
        run_student.main([*flags, flag, f"--output_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
    # Nothing else is wrong with it.
    run_student.main([*flags, f"--output_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "report.json").exists() and last_checkpoint(tmp_path / "run")


def test_scoring_needs_a_model_that_was_named_or_trained(data, tmp_path):
    """Nothing is looked up in an output folder: what is there is another run's."""
    train_without_evaluation(data, tmp_path / "run")
    named = ["--model_name_or_path", str(tmp_path / "run"), "--do_predict", "--use_cpu", "--disable_tqdm=true"]
    run_student.main([*named, *data, f"--output_dir={tmp_path / 'scored'}"])
    one, other = (report.read_scored(tmp_path / name)[1]["student"] for name in ("run", "scored"))
    np.testing.assert_array_equal(one, other)
