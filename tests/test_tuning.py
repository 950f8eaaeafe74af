"""The search of `run_distill.py --tune`: what its trials are, that it goes on after a kill, what it leaves."""

import json
import math
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from conftest import LABEL_NAMES, make_rows, refused
from scipy.stats import norm

import run_distill
import run_teacher
from kd_trainer import trainer as trainer_module
from kd_trainer.compare import make_experiment
from kd_trainer.trials import format_trials, table_of, verdict
from kd_trainer.tuning import FACTOR, TrialTrainer, finished_trials, open_study, run_trials, suggest

TINY_BERT = (
    "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,"
    "hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0"
)
TRAINING = ["--use_cpu", "--bf16=false", "--do_train", "--learning_rate=1e-2", "--disable_tqdm=true"]
SEARCHED = ("learning_rate", "alpha", "temperature", "num_augmented")


class Killed(BaseException):
    """Ends a search as a kill does: Optuna notes failures, not this."""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small distillation without an output folder, with a trained teacher. The test split is not there."""
    folder = tmp_path_factory.mktemp("data")
    data = ["--max_seq_length=16", f"--test_file={folder / 'test.tsv'}"]
    for seed, (name, size) in enumerate({"train": 96, "validation": 48}.items()):
        lines = [f"{LABEL_NAMES[label]}\t{text}\n" for text, label in zip(*make_rows(size, seed), strict=True)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        data.append(f"--{name}_file={folder / name}.tsv")
    teacher = ["--config_name=bert", f"--config_overrides={TINY_BERT}", "--num_train_epochs=12"]
    run_teacher.main([*data, *TRAINING, *teacher, f"--output_dir={folder / 'teacher'}"])
    student = ["--embedding_size=12", "--hidden_size=8", "--dropout=0.3", "--num_train_epochs=2"]
    return [
        *data,
        *TRAINING,
        *student,
        f"--teacher_name_or_path={folder / 'teacher'}",
        f"--teacher_cache_dir={folder / 'cache'}",
    ]


@pytest.fixture(scope="module")
def search(flags):
    """Flags of a search of 3 trials, without an output folder."""
    return [*flags, "--tune", "--tune_trials=3", "--do_predict", "--augment", "mask", "drop", "--num_augmented=2"]


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    """Folder of a search that nobody stopped, the rows that the losses saw by their temperature, and those that the
    teacher labelled by the number of temperatures that there had been."""
    folder = tmp_path_factory.mktemp("whole") / "search"
    from transformers import BertForSequenceClassification

    taught, labelled, forward, kl = {}, {}, BertForSequenceClassification.forward, trainer_module.KD_LOSSES["kl"]

    def counted(self, input_ids, **kwargs):
        labelled[len(taught)] = labelled.get(len(taught), 0) + len(input_ids)
        return forward(self, input_ids, **kwargs)

    def recorded(student_logits, teacher_logits, temperature):
        taught[temperature] = taught.get(temperature, 0) + len(student_logits)
        return kl(student_logits, teacher_logits, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_trainer.recipes.cpu_has_bf16", lambda: False)
        patch.setattr(BertForSequenceClassification, "forward", counted)
        patch.setitem(trainer_module.KD_LOSSES, "kl", recorded)
        run_distill.main([*search, f"--output_dir={folder}"])
    return SimpleNamespace(folder=folder, taught=taught, labelled=labelled)


def read_trials(folder):
    """The rows of `tune.json`, without what a clock says."""
    rows = json.loads((folder / "tune.json").read_text(encoding="utf-8"))["trials"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def count_trials(monkeypatch, kill_at=None, by=Killed):
    """A list that grows by one with every trial that begins; `kill_at` is the one that is killed in its training."""
    begun, begin, evaluate = [], TrialTrainer.begin, TrialTrainer.evaluate

    def counted(self, trial):
        begun.append(trial.number)
        return begin(self, trial)

    def killed(self, *args, **kwargs):
        if len(begun) == kill_at:
            raise by
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(TrialTrainer, "begin", counted)
    monkeypatch.setattr(TrialTrainer, "evaluate", killed)
    return begun


def test_a_search_leaves_its_trials_and_a_recipe_but_no_model(whole, search):
    assert {path.name for path in whole.folder.iterdir()} == {
        "tune.db", "tune.json", "best.yaml", "recipe.yaml", "_data.sha256", "_lock",
    }  # fmt: skip
    result = json.loads((whole.folder / "tune.json").read_text(encoding="utf-8"))
    rows = result["trials"]
    assert [row["trial"] for row in rows] == [1, 2, 3] and result["data"]["rows"] == {"train": 96, "validation": 48}
    assert [rows[0][name] for name in SEARCHED] == [1e-2, 0.2, 4.0, 2]  # the flags as given, and the defaults
    assert len({row["learning_rate"] for row in rows}) == len({row["temperature"] for row in rows}) == 3
    for row in rows:
        assert 1e-2 / FACTOR <= row["learning_rate"] <= 1e-2 * FACTOR and 4 / FACTOR <= row["temperature"] <= 4 * FACTOR
        assert 0 <= row["alpha"] <= 1 and row["num_augmented"] in (0, 1, 2)
    assert rows[result["best"] - 1]["f1"] == max(row["f1"] for row in rows)
    # Every trial's temperature is the one of its losses, in its turn; 2 epochs of training and validation rows.
    assert list(whole.taught) == [row["temperature"] for row in rows]
    trained = [count // 2 - 48 for count in whole.taught.values()]
    assert all((count == 96) == (row["num_augmented"] == 0) for row, count in zip(rows, trained, strict=True))
    # The teacher had labelled every text, each once, before the first student was trained.
    assert whole.labelled == {0: trained[0] + 48}
    assert not Path(search[1].partition("=")[2]).exists()  # a test split that is not there was not missed


def test_fewer_variants_may_be_none(search, tmp_path, monkeypatch):
    def only_of_many(texts, kinds, variants, mask, seed):
        return iter(["新的文本"] if variants == 9 else [])

    monkeypatch.setattr("kd_trainer.transfer.augment", only_of_many)
    run_distill.main([*search, "--num_augmented=9", f"--output_dir={tmp_path / 'search'}"])
    numbers = [row["num_augmented"] for row in read_trials(tmp_path / "search")]
    assert len(numbers) == 3 and set(numbers) & set(range(1, 9))


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_a_trials_score_is_that_of_a_run_of_its_settings(whole, flags, tmp_path, trial):
    row = read_trials(whole.folder)[trial]
    settings = [f"--{name}={row[name]}" for name in SEARCHED if name != "num_augmented"]
    if row["num_augmented"]:
        settings += ["--augment", "mask", "drop", f"--num_augmented={row['num_augmented']}"]
    run_distill.main([*flags, *settings, f"--output_dir={tmp_path / 'run'}"])
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["split"] == "validation"
    for name in ("accuracy", "precision", "recall", "f1"):
        assert report["distilled"][name] == pytest.approx(row[name], abs=1e-12), name


def test_the_recipe_trains_the_best(whole, tmp_path):
    rows = read_trials(whole.folder)
    best = max(rows, key=lambda row: row["f1"])
    lines = (whole.folder / "best.yaml").read_text(encoding="utf-8").splitlines()
    assert f"{best['f1']:.4f}" in lines[0] and lines[1] == f"# python run_distill.py {whole.folder / 'best.yaml'}"
    recipe = yaml.safe_load("\n".join(lines))
    assert recipe["do_predict"] and not recipe.keys() & {"tune", "tune_trials"}
    assert recipe["output_dir"] == f"{whole.folder}-best"
    assert [recipe.get(name, 0) for name in SEARCHED] == [best[name] for name in SEARCHED]
    assert ("augment" in recipe) == (best["num_augmented"] > 0)
    run_distill.main([str(whole.folder / "best.yaml"), "--do_predict=false", f"--output_dir={tmp_path / 'best'}"])
    report = json.loads((tmp_path / "best" / "report.json").read_text(encoding="utf-8"))
    assert report["distilled"]["f1"] == pytest.approx(best["f1"], abs=1e-12)


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_search_that_was_killed_ends_as_one_that_was_not(whole, search, tmp_path, monkeypatch, kill_at):
    command = [*search, f"--output_dir={tmp_path / 'search'}"]
    with monkeypatch.context() as patch:
        count_trials(patch, kill_at)
        with pytest.raises(Killed):
            run_distill.main(command)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{tmp_path}/search/tune.db")
    assert study.trials[-1].state == optuna.trial.TrialState.RUNNING and len(study.trials) == kill_at
    begun = count_trials(monkeypatch)
    run_distill.main(command)
    assert len(begun) == 3 - (kill_at - 1)
    assert read_trials(tmp_path / "search") == read_trials(whole.folder)


def test_a_search_that_is_interrupted_says_what_it_keeps(search, tmp_path, monkeypatch):
    count_trials(monkeypatch, kill_at=2, by=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt, match="tune.db keeps: 1"):
        run_distill.main([*search, f"--output_dir={tmp_path / 'search'}"])


class Quadratic:
    """Stands for a trainer: a trial costs nothing, and its score is a function of its values."""

    args = SimpleNamespace(metric_for_best_model="f1")

    def begin(self, trial):
        values = suggest(trial, {"learning_rate": 0.01, "alpha": 0.2, "temperature": 4.0})
        trial.set_user_attr("values", values)
        return values

    def best_score(self, values):
        return -((values["alpha"] - 0.7) ** 2) - math.log(values["temperature"] / 2) ** 2

    def hyperparameter_search(self, hp_space, compute_objective, n_trials, backend, **kwargs):
        optuna.create_study(**kwargs).optimize(lambda trial: compute_objective(hp_space(trial)), n_trials)


def test_proposals_depend_on_the_seed_and_the_finished_trials_alone(tmp_path):
    # 16: after 10 random ones they are drawn from what the others have shown.
    given, values = {"learning_rate": 0.01, "alpha": 0.2, "temperature": 4.0}, {}
    for name, seed, stops in (("whole", 42, []), ("stopped", 42, [1, 4, 12]), ("other", 43, [])):
        (tmp_path / name).mkdir()
        for trials in (*stops, 16):
            study, storage = open_study(tmp_path / name, given)
            run_trials(SimpleNamespace(args=SimpleNamespace(seed=seed)), study, storage, trials, Quadratic())
            study.ask().suggest_float("alpha", 0.0, 1.0)  # a kill leaves one that has begun
        values[name] = [trial.user_attrs["values"] for trial in finished_trials(study)]
    assert len(values["whole"]) == 16 and values["stopped"] == values["whole"]
    assert values["whole"][0] == values["other"][0] == given
    alphas = {name: {row["alpha"] for row in rows[1:]} for name, rows in values.items()}
    assert len(alphas["whole"]) == 15 and not alphas["whole"] & alphas["other"]


def test_more_trials_can_be_asked_for_and_finished_ones_are_not_repeated(whole, search, tmp_path, monkeypatch, capsys):
    command = [*search, f"--output_dir={tmp_path / 'search'}"]
    begun = count_trials(monkeypatch)
    run_distill.main([*command, "--tune_trials=1"])
    assert "None of 1 trials" in capsys.readouterr().out
    run_distill.main(command)
    assert len(begun) == 3 and read_trials(tmp_path / "search") == read_trials(whole.folder)
    capsys.readouterr()
    run_distill.main(command)
    assert len(begun) == 3 and "| 3" in capsys.readouterr().out


def test_a_folder_belongs_to_one_search(flags, search, tmp_path):
    folder = tmp_path / "search"
    command = [*search, "--tune_trials=1", f"--output_dir={folder}"]
    run_distill.main(command)
    for other, parts in (
        ([*command, "--kd_loss=mse"], ("a search of other settings", "kd_loss None -> 'mse'")),
        ([*flags, f"--output_dir={folder}"], ("a search of other settings", "tune True -> None")),
    ):
        with refused("--output_dir", *parts):
            run_distill.main(other)
    (folder / "_data.sha256").write_text("of other rows")
    with refused("unfinished run on other data"):
        run_distill.main(command)
    run_distill.main([*command, "--overwrite_output_dir"])
    assert len(read_trials(folder)) == 1
    (folder / "tune.db").write_bytes(b"no database")
    with refused("tune.db cannot be read", "remove it"):
        run_distill.main(command)
    (folder / "tune.db").unlink()
    with sqlite3.connect(folder / "tune.db") as other:
        other.execute("create table studies (something_else int)")
    with refused("tune.db cannot be read", "remove it"):
        run_distill.main(command)
    (folder / "recipe.yaml").unlink()
    with refused("holds a search that this run did not make"):
        run_distill.main(command)
    run_distill.main([*flags, f"--output_dir={folder}", "--overwrite_output_dir"])
    assert not {path.name for path in folder.iterdir()} & {"tune.db", "tune.json", "best.yaml"}


def test_a_training_that_diverged_is_right_nowhere(flags, tmp_path):
    command = [*flags, "--learning_rate=1e30", "--max_grad_norm=0", "--tune", "--tune_trials=1"]
    run_distill.main([*command, f"--output_dir={tmp_path}/lost"])
    assert [row["accuracy"] for row in read_trials(tmp_path / "lost")] == [0.0]


def test_a_loss_without_a_temperature_has_none_searched(flags, tmp_path):
    ngrams = ["--student_type=bag", "--ngram_buckets=64", "--ngram_size=4"]  # with gradients that are sparse
    command = [*flags, *ngrams, "--kd_loss=mse", "--tune", "--tune_trials=2", f"--output_dir={tmp_path}/mse"]
    run_distill.main(command)
    for row in read_trials(tmp_path / "mse"):
        assert row.keys() & {*SEARCHED} == {"learning_rate", "alpha"}
    assert "temperature" not in yaml.safe_load((tmp_path / "mse" / "best.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--tune=false"], ("--tune_trials", "--tune")),
        (["--tune_trials=0"], ("--tune_trials is 0", "at least 1")),
        (["--do_train=false", "--do_eval"], ("--tune", "--do_train")),
        (["--teacher_mode=online"], ("cached logits", "--teacher_mode online")),
        (["--hidden_loss_weight=1"], ("cached logits", "leave out --hidden_loss_weight")),
        (["--learning_rate=0"], ("--learning_rate above 0",)),
        (["--learning_rate=1e308"], ("by 4", "smaller")),
        (["--metric_for_best_model=loss"], ("--metric_for_best_model accuracy",)),
        (["--eval_strategy=no"], ("leave out --eval_strategy",)),
        (["--load_best_model_at_end=false"], ("--load_best_model_at_end",)),
        (["--eval_strategy=steps", "--eval_steps=2", "--save_steps=4"], ("--eval_steps and --save_steps the same",)),
        (["--resume_from_checkpoint=nowhere"], ("--resume_from_checkpoint nowhere",)),
    ],
)
def test_flags_that_a_search_cannot_follow_are_refused(flags, tmp_path, more, parts):
    with refused(*parts):
        run_distill.main([*flags, "--tune", "--tune_trials=2", f"--output_dir={tmp_path / 'search'}", *more])
    assert not (tmp_path / "search").exists()


def test_without_optuna_it_says_what_to_install(flags, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with refused("--tune", "pip install"):
        run_distill.main([*flags, "--tune", f"--output_dir={tmp_path / 'search'}"])
    assert not (tmp_path / "search").exists()


def test_a_search_is_no_run_to_compare(flags, tmp_path):
    recipe = tmp_path / "search.yaml"
    recipe.write_text(f"# a\n# python run_distill.py {recipe}\ntune: true\ndo_train: true\ndo_predict: true\n")
    with refused(recipe, "--tune", "best.yaml"):
        make_experiment(recipe, [*flags, f"--output_dir={tmp_path}"], tmp_path)
    with refused("--ablation and --tune"):
        run_distill.main([*flags, "--ablation", "--tune", f"--output_dir={tmp_path / 'run'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]


def test_values_as_given_stay_as_they_are_and_others_are_short():
    given = {"learning_rate": 0.00123456789, "alpha": 0.123456789, "temperature": 4.0, "num_augmented": 3}
    assert suggest(optuna.trial.FixedTrial(given), given) == given
    drawn = {"learning_rate": 0.00234567, "alpha": 0.98765, "temperature": 3.14159, "num_augmented": 0}
    short = {"learning_rate": 0.00235, "alpha": 0.988, "temperature": 3.14, "num_augmented": 0}
    assert suggest(optuna.trial.FixedTrial(drawn), given) == short


def fake_trial(correct, f1):
    values = {"learning_rate": 0.01, "alpha": 0.2}
    scores = {"accuracy": float(np.mean(correct)), "precision": f1, "recall": f1, "f1": f1}
    attributes = {"values": values, "scores": scores, "epoch": 2.0, "correct": "".join("01"[int(x)] for x in correct)}
    return SimpleNamespace(user_attrs=attributes, duration=SimpleNamespace(total_seconds=lambda: 3.0))


def make_trials(gains):
    """The first has half of 2,000 rows right; another has `gain` rows more right and 20 rows less."""
    first = np.arange(2000) < 1000
    trials = [fake_trial(first, 0.5)]
    for gain in gains:
        correct = first.copy()
        correct[1000 : 1000 + gain] = True
        correct[:20] = False
        trials.append(fake_trial(correct, correct.mean()))
    return trials


def test_trials_are_compared_with_the_first_by_mcnemars_test_and_holms_correction():
    gains = (25, 45, 80)
    rows = table_of(make_trials(gains))
    p_values = []
    for gain in gains:  # McNemar's χ² is about a variance around 0, the test's t around the mean
        chi2 = (gain - 20) ** 2 / (gain + 20)
        p_values.append(2 * norm.sf(math.sqrt(chi2 * 1999 / (2000 - chi2))))
    assert rows[0]["p"] is None and rows[0]["difference"] is None
    found, expected = [row["p"] for row in rows[1:]], [p_values[0], 2 * p_values[1], 3 * p_values[2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose([row["difference"] for row in rows[1:]], [(gain - 20) / 2000 for gain in gains])


@pytest.mark.parametrize(
    ("gains", "parts"),
    [
        ((5, 10), ("None of 3 trials has a better f1 than the first",)),
        ((24, 26), ("Trial 3 is the best: f1 0.5030, +0.30 points", "+0.30 points: within noise", "flattered")),
        (
            (90, 26),
            ("Trial 2 is the best: f1 0.5350, +3.50 points", "+3.50 points: more than noise", "flattered"),
        ),
    ],
)
def test_the_verdict_says_whether_the_difference_is_within_noise(gains, parts):
    rows = table_of(make_trials(gains))
    best = max(rows, key=lambda row: row["f1"])
    said = verdict(rows, best, "f1")
    assert all(part in said for part in parts), said
    table = format_trials(rows, ["learning_rate", "alpha"], "f1", best).splitlines()
    assert len({len(line) for line in table}) == 1 and f"| {best['trial']} * " in "\n".join(table)
