"""What is said of a run's origin means the same on another machine, and gives nothing of this one away."""

import json

import pytest

from kd_trainer.sources import file_name, find_sources, hub_name, public_settings


def test_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "teacher").mkdir(parents=True)
    assert hub_name("outputs/teacher") is None and hub_name("outputs/other") == "outputs/other"
    assert hub_name("google-bert/bert-base-chinese") == "google-bert/bert-base-chinese" and hub_name("gpt2") == "gpt2"
    for name in (None, "/data/teacher", "./teacher", "~/teacher", "a/b/c", "C:\\models\\teacher", "", "..", "a b"):
        assert hub_name(name) is None, name


@pytest.fixture
def teacher(tmp_path):
    """A folder as a finished run of a teacher leaves it."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    (folder / "report.json").write_text(json.dumps({"sources": {"start": "google-bert/bert-base-chinese"}}))
    return folder


def test_teachers_are_named_by_what_they_are(teacher, tmp_path):
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(f"output_dir: {teacher}\n")
    own = {
        "name": None,
        "fine_tuned_from": "google-bert/bert-base-chinese",
        "architecture": "BertForSequenceClassification",
    }
    hub = {"name": "user/teacher", "fine_tuned_from": None, "architecture": None}
    both = {"teacher_name_or_path": [str(teacher), "user/teacher"], "dataset_name": "clue/tnews"}
    assert find_sources(both) == {"start": None, "dataset": "clue/tnews", "teachers": [own, hub]}
    assert find_sources({"teacher_recipe": str(recipe)})["teachers"] == [own]
    assert find_sources({"teacher_recipe": "gone.yaml", "model_name_or_path": "user/student"}) == {
        "start": "user/student",
        "dataset": None,
        "teachers": [],
    }
    for damaged in ("", "[]", "{", '{"sources": 3}'):
        (teacher / "report.json").write_text(damaged)
        assert find_sources(both)["teachers"][0]["fine_tuned_from"] is None


def test_settings_lose_their_paths_and_secrets_but_keep_names_of_the_hub():
    settings = {
        "train_file": "/home/me/private/train.tsv",
        "unlabeled_file": ["/home/me/a.txt", "C:\\Users\\me\\b.txt"],
        "teacher_name_or_path": ["user/teacher", "outputs/private/teacher/"],
        "output_dir": "/home/me/out",
        "hub_token": "hf_secret",
        "predict_text": "a private text",
        "learning_rate": 2e-3,
        "deepspeed": {"/home/me/key": ["/home/me/value"]},
    }
    sources = {"start": None, "dataset": None, "teachers": [{"name": "user/teacher"}, {"name": None}]}
    assert public_settings(settings, sources) == {
        "train_file": "train.tsv",
        "unlabeled_file": ["a.txt", "b.txt"],
        "teacher_name_or_path": ["user/teacher", "teacher"],
        "learning_rate": 2e-3,
        "deepspeed": {"key": ["value"]},
    }
    assert file_name("a.tsv") == "a.tsv"
