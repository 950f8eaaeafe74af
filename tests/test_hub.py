"""What a push carries, when it can fail, and what is loaded from a hub, against a local one."""

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import LABEL_NAMES, make_rows, refused
from hub_server import HubServer
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer

import run_student
from kd_trainer import hub as command
from kd_trainer import loading
from kd_trainer.arguments import ModelArguments
from kd_trainer.base_trainer import ClassificationTrainer
from kd_trainer.building import STUDENTS
from kd_trainer.console import run_console
from kd_trainer.errors import HubError, InputError
from kd_trainer.loading import describe_labels, load_classifier, load_tokenizer
from kd_trainer.output_folder import locked
from kd_trainer.tokenization import build_tokenizer
from kd_trainer.upload import is_published, prepare_repo, push_folder

PROJECT = Path(__file__).parent.parent
PUSH = ["--push_to_hub", "--hub_model_id=user/student"]
ARGS = ModelArguments()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub to which this process pushes."""
    with HubServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which remembers the hub that it was made for
        loading.hub_is_missed.cache_clear()
        yield server
    loading.hub_is_missed.cache_clear()


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a tiny student's training, without its folder."""
    folder = tmp_path_factory.mktemp("data")
    flags = ["--max_seq_length=16", "--embedding_size=8", "--hidden_size=4", "--use_cpu", "--bf16=false", "--do_train"]
    flags += ["--do_predict", "--num_train_epochs=2", "--learning_rate=1e-2", "--disable_tqdm=true"]
    for seed, (name, size) in enumerate({"train": 64, "validation": 32, "test": 32}.items()):
        lines = [f"{LABEL_NAMES[label]}\t{text}" for text, label in zip(*make_rows(size, seed), strict=True)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags.append(f"--{name}_file={folder / name}.tsv")
    return flags


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Speeds are none of these tests' business; locks of folders are let go as at the end of a process."""
    monkeypatch.setattr("kd_trainer.report.measure_speed", lambda *args: {"latency_ms": 1.0, "texts_per_s": 1.0})
    yield
    while locked:
        locked.popitem()[1].close()


@pytest.fixture
def never_trains(monkeypatch):
    """Any training fails the test."""

    def train(*args, **kwargs):
        raise AssertionError("it is trained again")

    monkeypatch.setattr(ClassificationTrainer, "train", train)


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """Folder of a finished run; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_student.main([*flags, f"--output_dir={folder}"])
    shutil.rmtree(folder / "plots")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run's folder, with what others put beside a model."""
    copy = shutil.copytree(finished, tmp_path / "student")
    for name in (
        "onnx/model.onnx",
        "onnx/classify.py",
        "onnx/tokenizer.json",
        "onnx/config.json",
        "onnx/_cache",
        "onnx/labels.csv",
        "plots/notes.png",
        "plots/confusion.png",
        "README.md",
        "predictions.csv",
        "_note",
        "run.log",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text({".json": "{}", ".py": "1\n"}.get(Path(name).suffix, f"content of {name}"))
    (copy / "README.md").write_text("---\nlicense: mit\n---\n# A card\n![errors](plots/confusion.png)\n")
    return copy


CARRIED = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modeling_bilstm.py",
    "modeling_student.py", "recipe.yaml", "report.json",
}  # fmt: skip
BESIDE = {
    "README.md", "plots/confusion.png",
    "onnx/model.onnx", "onnx/classify.py", "onnx/tokenizer.json", "onnx/config.json",
}  # fmt: skip


def commits(server, repo_id="user/student", revision="main"):
    """The commits of a branch after the one that the hub itself makes."""
    return server.commits(repo_id, revision)[1:]


def own(files):
    """Names (`set[str]`) without the file that the hub itself makes."""
    return set(files) - {".gitattributes"}


# What is pushed


@pytest.mark.parametrize("lfs", [False, True])
def test_a_push_carries_the_model_and_what_describes_it_and_nothing_else(hub, folder, lfs):
    hub.takes_lfs = lfs
    command.main([str(folder), "--hub_model_id=user/student"])
    files = hub.files("user/student")
    assert own(files) == CARRIED | BESIDE and len(commits(hub)) == 1
    assert all(files[name] == (folder / name).read_bytes() for name in own(files))
    assert len(hub.lfs) == lfs and not hub.repos["user/student"].private


@pytest.mark.parametrize(
    "name, is_so",
    [
        ("model-00001-of-00002.safetensors", True), ("model-mine.safetensors", False),
        ("vocab.txt", True), ("configuration_x.py", True),
        ("onnx/classify.py", True), ("onnx/labels.csv", False), ("onnx/sub/config.json", False),
        ("plots/config.json", False), ("plots", False),
        ("model.safetensors.partial", False), ("_scored.safetensors", False),
        ("training_args.bin", False), ("pytorch_model.bin", False), ("onnx/x.pkl", False), ("plots/.x", False),
        ("checkpoint-4/model.safetensors", False), ("predictions.json", False), ("trainer_state.json", False),
        ("run_student.py", False), ("tune.db", False), ("other/config.json", False), ("texts.txt", False),
    ],
)  # fmt: skip
def test_what_is_published_is_named(name, is_so):
    assert is_published(name) == is_so


def test_what_only_has_the_name_of_a_part_of_the_model_stays(hub, folder):
    names = ["vocab.txt", "merges.txt", "dict.txt", "x.spm", "bpe.codes", "model-00001-of-00002.safetensors",
             "model.safetensors.index.json", "plots/cascade.png"]  # fmt: skip
    for name in names:
        (folder / name).write_text("mine")
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED | BESIDE


def test_weights_in_several_files_are_pushed_as_their_index_says(hub, folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    (folder / "model-00009-of-00009.safetensors").write_bytes((folder / min(shards)).read_bytes())
    command.main([str(folder), "--hub_model_id=user/student"])
    expected = CARRIED - {"model.safetensors"} | BESIDE | shards | {"model.safetensors.index.json"}
    assert len(shards) > 1 and own(hub.files("user/student")) == expected


@pytest.mark.parametrize("name", ["PhobertTokenizer", "TokenizersBackend", "MineTokenizer", None])
@pytest.mark.parametrize("has_fast", [True, False])
def test_a_vocabulary_is_pushed_where_the_tokenizers_class_reads_it(hub, folder, name, has_fast):
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": name}))
    vocabularies = ["vocab.txt", "bpe.codes", "tokenizer.model"]
    for file in vocabularies:
        (folder / file).write_text("mine")
    if not has_fast:
        (folder / "tokenizer.json").unlink()
    read = {  # whether it has a tokenizer.json or not
        "PhobertTokenizer": ({"vocab.txt", "bpe.codes"}, {"vocab.txt", "bpe.codes"}),
        "TokenizersBackend": ({"tokenizer.json"}, {"tokenizer.model"}),
    }.get(name, ({"tokenizer.json", *vocabularies}, {*vocabularies}))[not has_fast]
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED - {"tokenizer.json"} | BESIDE | read


def test_a_folder_of_onnx_files_that_is_no_export_stays(hub, folder):
    (folder / "onnx" / "classify.py").unlink()
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED | {"README.md", "plots/confusion.png"}


def test_a_recipe_of_another_tool_is_not_pushed_and_makes_no_unfinished_run(hub, folder):
    for name in ("report.json", "_data.sha256"):
        (folder / name).unlink()
    (folder / "recipe.yaml").write_text("steps: [bake]\n")
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED - {"recipe.yaml", "report.json"} | BESIDE


def test_a_second_push_takes_off_what_stood_for_the_first_and_leaves_what_is_not_ours(hub, folder, caplog):
    push = [str(folder), "--hub_model_id=user/student"]
    command.main(push)
    branch = hub.repos["user/student"].branches["main"]
    # By hand, and by a version that pushed more.
    branch[-1].files.update({"LICENSE": b"mine", "training_args.bin": b"old", "checkpoint-1/optimizer.pt": b"old"})
    shutil.rmtree(folder / "onnx")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
    command.main(push)
    files = hub.files("user/student")
    assert own(files) == CARRIED | {"plots/confusion.png", "README.md", "LICENSE"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes() != weights
    # A card may be a person's own: it stays where there is no other, and that is said.
    (folder / "README.md").unlink()
    command.main(push)
    assert "README.md" in hub.files("user/student") and "keeps its model card" in caplog.text
    before = len(commits(hub))
    command.main(push)
    assert len(commits(hub)) == before  # nothing new, no commit


def test_private_branch_and_token_are_as_asked_and_the_token_is_written_nowhere(hub, folder, monkeypatch, caplog):
    hub.tokens = {"hf_given"}
    push = [str(folder), "--hub_model_id=user/student", "--hub_private_repo", "--hub_revision=v2"]
    with refused("401"):
        command.main(push)
    command.main([*push, "--hub_token=hf_given"])
    assert hub.repos["user/student"].private and own(hub.files("user/student", "v2")) == CARRIED | BESIDE
    assert not own(hub.files("user/student"))
    assert not any(b"hf_given" in content for content in hub.files("user/student", "v2").values())
    assert "hf_given" not in caplog.text


def test_code_and_links_that_are_not_the_models_stay_at_home(hub, folder, tmp_path):
    for name in ("modeling_mine.py", "tokenization_mine.py", "configuration_mine.py", "model-mine.safetensors"):
        (folder / name).write_text("mine")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "training.png").write_text("secret")
    for name in ("vocab.txt", "README.md", "onnx/model_int8.onnx"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret" / "training.png")
    shutil.rmtree(folder / "plots")
    (folder / "plots").symlink_to(tmp_path / "secret")
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED | {name for name in BESIDE if name.startswith("onnx/")}


def test_all_code_of_the_model_goes_with_it(hub, folder):
    code = folder / "modeling_student.py"
    code.write_text("from .helpers import x\n" + code.read_text(encoding="utf-8"), encoding="utf-8")
    with refused("helpers.py"):
        command.main([str(folder), "--hub_model_id=user/student"])
    (folder / "helpers.py").write_text("x = 1\n")
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student")) == CARRIED | BESIDE | {"helpers.py"}


def damage(name, content):
    """A function that replaces a file of a folder."""
    return lambda folder: (folder / name).write_bytes(content)


def cut_off(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def sharded(content):
    """Weights in several files, whose index says `content`."""

    def spoil(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(content)

    return spoil


@pytest.mark.parametrize(
    "spoil, found",
    [
        (cut_off, "model.safetensors is damaged"),
        (damage("model.safetensors", b""), "model.safetensors is damaged"),
        (damage("report.json", b'{"split": '), "report.json is damaged"),
        (damage("report.json", b"[]"), "report.json is missing or damaged"),
        (damage("report.json", b'{"disagreements": 7}'), "report.json is damaged"),
        (damage("tokenizer.json", b"{"), "tokenizer.json is damaged"),
        (damage("config.json", b"7"), "config.json is missing or damaged"),
        (damage("config.json", b'{"auto_map": {"AutoConfig": ["a.B"]}}'), "config.json is damaged"),
        (damage("config.json", b'{"auto_map": 3}'), "config.json is damaged"),
        (damage("recipe.yaml", b"a: [b"), "recipe.yaml is damaged"),
        (damage("README.md", b"\xff\xfe"), "README.md is damaged"),
        (damage("modeling_bilstm.py", b"def f("), "modeling_bilstm.py is damaged"),
        (damage("tokenizer_config.json", b"[1]"), "tokenizer_config.json"),
        (sharded(b'{"weight_map": [1]}'), "index.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (damage("report.json", b'{"seed": NaN}'), "report.json is missing or damaged"),
        (sharded(b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x"}}'), "index.json names x"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: (folder / "modeling_student.py").unlink(), "modeling_student.py"),
    ],
)
def test_what_is_damaged_is_not_pushed(hub, folder, spoil, found):
    spoil(folder)
    with refused(found):
        command.main([str(folder), "--hub_model_id=user/student"])
    assert not hub.requests


def test_a_run_that_is_pushed_later_is_pushed_whole(hub, flags, finished, tmp_path, never_trains):
    folder = shutil.copytree(finished, tmp_path / "run")
    cut_off(folder)
    with refused("model.safetensors is damaged"):
        run_student.main([*flags, *PUSH, f"--output_dir={folder}"])
    assert not hub.requests


@pytest.mark.parametrize("token", ["hf_a\n", "hf_a b", "hf_\u4e00"])
def test_a_token_that_is_none_is_not_printed(hub, folder, token):
    with pytest.raises(InputError, match="token") as caught:
        command.main([str(folder), "--hub_model_id=user/student", f"--hub_token={token}"])
    assert token.strip() not in str(caught.value) and not hub.requests


def test_a_branch_may_be_called_by_a_number(hub, folder):
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**settings, "hub_revision": 5}), encoding="utf-8")
    command.main([str(folder), "--hub_model_id=user/student"])
    assert own(hub.files("user/student", "5")) == CARRIED | BESIDE


@pytest.mark.parametrize("endpoint", ["hub", "ftp://hub", "https://"])
def test_an_address_of_the_hub_that_is_none_is_said(hub, folder, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with refused(f"HF_ENDPOINT {endpoint}"):
        command.main([str(folder), "--hub_model_id=user/student"])


# Pushes of the scripts


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_push_of_a_run_is_a_whole_model_of_one_step(hub, flags, tmp_path, strategy):
    output = tmp_path / "run"
    more = [f"--hub_strategy={strategy}", "--hub_always_push=true", f"--output_dir={output}", "--save_total_limit=9"]
    run_student.main([*flags, *PUSH, *more])
    pushed = commits(hub)
    assert len(pushed) == (1 if strategy == "end" else 3)
    names = {"checkpoint": ["last-checkpoint"] * 2, "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}.get(strategy)
    for number, commit in enumerate(pushed[:-1]):
        checkpoint = output / f"checkpoint-{2 * number + 2}"
        kept = {path for path in own(commit.files) if "/" not in path}
        assert kept == CARRIED - {"report.json"} | {"README.md"}
        assert b"in progress" in commit.files["README.md"]
        assert all(
            commit.files[name] == (checkpoint / name).read_bytes() for name in kept - {"recipe.yaml", "README.md"}
        )
        if names is not None:
            # The seconds that it took so far are written after the Trainer's own files.
            state = {path.name for path in checkpoint.iterdir()} - {"training_args.bin", "clock.json"}
            there = {path for path in commit.files if path.startswith(f"{names[number]}/")}
            assert there == {f"{names[number]}/{name}" for name in state} and f"{names[number]}/optimizer.pt" in there
    last = {path: content for path, content in hub.files("user/student").items() if "/" not in path}
    assert own(last) - {"README.md"} == CARRIED
    assert all(last[name] == (output / name).read_bytes() for name in CARRIED)
    folders = {path.split("/")[0] for path in hub.files("user/student") if "/" in path}
    assert folders == set(names or ())
    assert not list(output.glob("_push-*"))
    # Another run into the same place: what the first one's training is taken up from goes.
    if strategy == "all_checkpoints":
        other = [f"--output_dir={tmp_path / 'other'}", "--hub_strategy=every_save", "--seed=1"]
        run_student.main([*flags, *PUSH, *other])
        assert {path for path in hub.files("user/student") if "/" in path} == set()


def test_a_push_that_fails_in_training_is_a_warning(hub, flags, tmp_path, caplog, monkeypatch):
    output = tmp_path / "run"
    hub.broken = {"commit": 500}

    def mended(run):
        hub.broken = {}
        return push_run(run)

    from kd_trainer.workflow import push_run

    monkeypatch.setattr("kd_trainer.workflow.push_run", mended)
    run_student.main([*flags, *PUSH, f"--output_dir={output}"])
    assert [record.message for record in caplog.records if "epoch 1 was not pushed" in record.message]
    assert own(hub.files("user/student")) - {"README.md"} == CARRIED


def test_a_failed_upload_loses_nothing_and_the_same_command_pushes(hub, flags, tmp_path, request, monkeypatch):
    output = tmp_path / "run"
    run = [*flags, *PUSH, "--hub_strategy=end", f"--output_dir={output}", "--hub_private_repo"]
    texts = tmp_path / "texts.txt"
    texts.write_text("球队\n", encoding="utf-8")
    run.append(f"--predict_file={texts}")
    hub.broken = {"commit": 500}
    with pytest.raises(HubError) as caught:
        run_student.main([*run, "--hub_token=hf_secret"])
    assert "\n" not in str(caught.value) and "500" in str(caught.value) and "hf_secret" not in str(caught.value)
    assert (output / "report.json").exists() and (output / "predictions.csv").exists()
    assert not commits(hub)
    request.getfixturevalue("never_trains")
    for broken in ({"preupload": 403}, {"commit": 413}, {"commit": 401}):
        hub.broken = broken
        with pytest.raises(HubError, match=str(next(iter(broken.values())))):
            run_student.main(run)
    hub.broken, hub.loses = {}, "commit"
    with pytest.raises(HubError):
        run_student.main(run)
    hub.loses = None
    run_student.main(run)
    # What was taken when its answer was lost is not taken twice.
    assert len(commits(hub)) == 1 and own(hub.files("user/student")) >= CARRIED
    # The command that the error names does it too.
    hub.repos.clear()
    words = re.search(r"python -m kd_trainer.hub (.*)$", str(caught.value))[1].split()
    locked.popitem()[1].close()
    command.main(words)
    assert hub.repos["user/student"].private and own(hub.files("user/student")) >= CARRIED
    # Other settings are another run.
    with refused("holds a finished run of other settings", "seed", "kd_trainer.hub"):
        run_student.main([*run, "--seed=7"])
    with refused("holds a finished run"):
        run_student.main([flag for flag in run if flag != "--push_to_hub" and not flag.startswith("--predict_file")])


def test_an_upload_apart_from_its_commit_may_fail_too(hub, folder):
    hub.takes_lfs, hub.broken = True, {"lfs_put": 403}
    with pytest.raises(HubError, match="403"):
        push_folder(folder, prepare_repo("user/student"))
    assert not commits(hub)
    hub.broken = {}
    push_folder(folder, "user/student")
    assert own(hub.files("user/student")) == CARRIED | BESIDE


def test_only_the_first_process_pushes(hub, folder, flags, monkeypatch):
    monkeypatch.setattr("kd_trainer.workflow.TrainingArguments.process_index", property(lambda self: 1))
    run_student.main([*flags, *PUSH, f"--output_dir={folder}"])
    assert not hub.requests


# Said before hours of training


@pytest.mark.parametrize(
    "name, parts",
    [
        ("user/a--b", ["--hub_model_id user/a--b"]),
        ("a/b/c", ["--hub_model_id a/b/c"]),
        ("学生", ["--hub_model_id 学生"]),
        ("others/student", ["403", "others/student"]),
    ],
)
def test_a_name_that_cannot_be_pushed_to_is_said_before_the_data_is_read(hub, flags, tmp_path, name, parts):
    run = [*flags, "--push_to_hub", f"--hub_model_id={name}", f"--output_dir={tmp_path / 'run'}"]
    with refused(*parts):
        run_student.main([*run, "--train_file=missing.tsv"])


def test_what_else_stops_a_push_is_said_before_the_data_is_read(hub, flags, tmp_path, monkeypatch, never_trains):
    run = [*flags, *PUSH, f"--output_dir={tmp_path / 'run'}", "--train_file=missing.tsv"]
    with refused("missing.tsv"):
        run_student.main(run)
    with refused("is a commit", "branch"):
        run_student.main([*run, f"--hub_revision={'0' * 40}"])
    with refused("public", "user/student"):
        run_student.main([*run, "--hub_private_repo"])
    hub.tokens = {"another"}
    with refused("401", "hf auth login"):
        run_student.main(run)
    hub.tokens = None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name)
    with refused("needs a token"):
        run_student.main(run)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refused("HF_HUB_OFFLINE"):
        run_student.main(run)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.broken = {"create_repo": 503}
    with pytest.raises(HubError, match="503"):
        run_student.main(run)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        run_student.main(run)
    with refused("--push_to_hub", "--do_train"):
        run_student.main([*PUSH, "--predict_text=球", f"--model_name_or_path={tmp_path}", "--use_cpu"])
    assert not (tmp_path / "run").exists()


def test_a_hub_that_fails_has_an_exit_code_of_its_own(capsys):
    def fail(argv):
        raise HubError("the hub sleeps")

    with pytest.raises(SystemExit) as stopped:
        run_console(fail)
    assert stopped.value.code == 3 and capsys.readouterr().err.endswith("error: the hub sleeps\n")


def test_the_command_refuses_what_is_no_finished_model(hub, folder, tmp_path):
    with refused("no such folder"):
        command.main([str(tmp_path / "missing")])
    with refused("no model"):
        command.main([str(tmp_path)])
    (folder / "modeling_student.py").rename(tmp_path / "kept")
    (folder / "modeling_bilstm.py").unlink()
    with refused("modeling_bilstm.py", "would not load"):
        command.main([str(folder)])
    (folder / "report.json").unlink()
    with refused("unfinished"):
        command.main([str(folder)])
    with refused("--nothing"):
        command.main([str(folder), "--nothing"])
    assert not hub.requests


# What is loaded

LOAD = """
import json, sys
sys.modules["kd_trainer"] = None  # as on a machine that has transformers alone
import torch
torch.set_num_threads(1)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
for repo_id, revision, texts in json.loads(sys.argv[1]):
    where = {"revision": revision, "trust_remote_code": True}
    model = AutoModelForSequenceClassification.from_pretrained(repo_id, **where).eval()
    tokenizer = AutoTokenizer.from_pretrained(repo_id, **where)
    print(json.dumps(model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits.tolist()))
    classify = pipeline("text-classification", model=repo_id, **where)
    given = [{"text": a, "text_pair": b} for a, b in zip(*texts)] if len(texts) == 2 else texts[0]
    print(json.dumps([answer["label"] for answer in classify(given)]))
"""


def load_elsewhere(models, environment):
    """The lines that `LOAD` prints in a process that cannot import the package."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(models)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def save_students(folder, texts):
    """Saves one student of each kind; returns their folders by name."""
    kinds = {
        "bilstm": {}, "cnn": {}, "bag": {}, "ngrams": {"ngram_buckets": 64, "ngram_size": 4},
        "pairs": {"text_pairs": True},
    }  # fmt: skip
    for name, config in kinds.items():
        tokenizer = build_tokenizer(texts, max_length=16, text_pairs=name == "pairs")
        student_class = STUDENTS.get(name, STUDENTS["bilstm"])
        labels = {"problem_type": "single_label_classification", **describe_labels(LABEL_NAMES)}
        torch.manual_seed(1)
        config = student_class.config_class(vocab_size=len(tokenizer), **config, **labels)
        student_class(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


def test_every_student_loads_where_the_package_is_not_installed_also_in_training_and_offline(
    hub, flags, tmp_path, monkeypatch
):
    texts = [make_rows(4)[0][:2] + [""], ["股市", "", "网络"]]
    folders = save_students(tmp_path / "models", make_rows(96)[0])
    models = []
    for name, saved in folders.items():
        push_folder(saved, prepare_repo(f"user/{name}"))
        models.append([f"user/{name}", "main", texts if name == "pairs" else texts[:1]])
    # One that is pushed in training.
    run = tmp_path / "run"
    run_student.main([*flags, *PUSH, f"--output_dir={run}", "--hub_always_push=true"])
    models.append(["user/student", commits(hub)[0].oid, texts[:1]])
    folders["student"] = run / "checkpoint-2"
    environment = hub.environment(tmp_path / "elsewhere")
    loaded = load_elsewhere(models, environment)
    asked = len(hub.requests)
    assert load_elsewhere(models, {**environment, "HF_HUB_OFFLINE": "1"}) == loaded and len(hub.requests) == asked
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of threads rounds sums otherwise
    for (repo_id, _, given), logits, labels in zip(models, loaded[::2], loaded[1::2], strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(folders[repo_id.removeprefix("user/")]).eval()
        tokenizer = AutoTokenizer.from_pretrained(folders[repo_id.removeprefix("user/")])
        expected = model(**tokenizer(*given, padding=True, return_tensors="pt")).logits
        assert logits == expected.tolist(), repo_id
        assert labels == [model.config.id2label[int(label)] for label in expected.argmax(-1)], repo_id
    torch.set_num_threads(threads)


def plant(marker):
    """Python code that leaves a file behind where it is run."""
    return f"from pathlib import Path\nPath({str(marker)!r}).write_text('was here')\n"


class Planted:
    """Its pickle leaves a file behind where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (plant(self.marker),)


def test_code_on_the_hub_runs_only_when_it_is_trusted(hub, folder, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    code = folder / "modeling_bilstm.py"
    code.write_text(plant(marker) + code.read_text(encoding="utf-8"), encoding="utf-8")
    push_folder(folder, prepare_repo("user/student"))
    cache = {"cache_dir": str(tmp_path / "cache")}
    args = ModelArguments(**cache)
    for name in (str(folder), "user/student"):
        for trust in ({}, {"trust_remote_code": False}):
            AutoModelForSequenceClassification.from_pretrained(name, **trust, **cache)
            AutoTokenizer.from_pretrained(name, **trust, **cache)
        load_classifier(name, args), load_tokenizer(name, args)
    assert not marker.exists()
    # Of a kind that nobody here knows it is refused.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "kd_unknown"}))
    with refused("trust_remote_code"):
        load_classifier(str(folder), args)
    assert not marker.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for mapping in (CONFIG_MAPPING, AutoModelForSequenceClassification._model_mapping):
        # It registers its own classes, which must not outlive this test.
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    with contextlib.suppress(Exception):  # whether it loads is not the question
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()  # it would have been seen


def test_pickled_weights_are_not_read_from_a_folder_or_the_hub(hub, folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    pickled = pickle.dumps(Planted(marker))
    (folder / "pytorch_model.bin").write_bytes(pickled)
    with refused("pytorch_model.bin", "safetensors"):
        load_classifier(str(folder), ARGS)
    with refused("no model"):
        command.main([str(folder), "--hub_model_id=user/student"])
    prepare_repo("user/student")
    names = ("config.json", "pytorch_model.bin")
    hub.repos["user/student"].at("main").files.update({name: (folder / name).read_bytes() for name in names})
    with refused("safetensors"):
        load_classifier("user/student", ModelArguments(cache_dir=str(tmp_path / "cache")))
    assert not any("pytorch_model.bin" in request for request in hub.requests) and not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()  # it would have been seen


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_checkpoint_is_not_unpickled(folder, flags, tmp_path, name):
    marker = tmp_path / "marker"
    (folder / "report.json").unlink()  # as if it had been killed
    shutil.rmtree(folder / "checkpoint-4")
    checkpoint = folder / "checkpoint-2"
    torch.save(Planted(marker), checkpoint / name)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    with refused(str(checkpoint), "pickled"):
        run_student.main([*flags, f"--output_dir={folder}"])
    assert not marker.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert marker.exists()


def test_a_hub_that_is_not_there_is_not_asked_again_and_again(hub, folder, tmp_path, monkeypatch, caplog):
    push_folder(folder, prepare_repo("user/student"))
    args = ModelArguments(cache_dir=str(tmp_path / "cache"))
    before = load_classifier("user/student", args), load_tokenizer("user/student", args)

    def sleep(seconds):
        raise AssertionError("it waits to try again")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", sleep)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    loading.hub_is_missed.cache_clear()
    with refused("user/other", "127.0.0.1:9", "cannot be reached"):
        load_classifier("user/other", args)
    with refused("user/other", "cannot be reached"):
        load_tokenizer("user/other", args)
    # What was downloaded is there.
    again = load_classifier("user/student", args), load_tokenizer("user/student", args)
    assert all(torch.equal(weight, again[0].state_dict()[key]) for key, weight in before[0].state_dict().items())
    assert again[1].get_vocab() == before[1].get_vocab()
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1


# The trainer in a project of one's own


def test_the_trainers_own_card_does_not_overwrite_one_that_is_there(hub, make_student, tokenizer, tmp_path):
    from transformers import TrainingArguments

    args = TrainingArguments(tmp_path / "out", push_to_hub=True, hub_model_id="user/student", use_cpu=True)
    trainer = ClassificationTrainer(make_student(), args, processing_class=tokenizer)
    trainer.push_to_hub()
    assert "generated automatically" in hub.files("user/student")["README.md"].decode()
    assert own(hub.files("user/student")) == CARRIED - {"report.json", "recipe.yaml"} | {"README.md"}
    trainer.create_model_card(tags="first")  # its own draft is replaced
    assert "first" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    trainer.push_to_hub(blocking=False).result()
    assert hub.files("user/student")["README.md"].decode().endswith("mine\n")


def test_a_new_run_in_the_folder_of_another_removes_what_described_that(folder, flags):
    (folder / "_push-checkpoint-4").mkdir()
    other = [*flags, "--seed=5", f"--output_dir={folder}", "--overwrite_output_dir"]
    run_student.main(other)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] == 5
    assert not (folder / "onnx" / "model.onnx").exists() and not (folder / "plots" / "loss.png").exists()
    assert "A card" in (folder / "README.md").read_text()  # a person's own
    assert not (folder / "_push-checkpoint-4").exists() and (folder / "predictions.csv").exists()
    assert load_file(folder / "model.safetensors")


def test_a_finished_run_quotes_no_more_texts_than_a_push_is_to(hub, flags, tmp_path):
    output = tmp_path / "run"
    run = [*flags, f"--output_dir={output}"]
    run_student.main(run)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    quoted = [{"text": text, "label": "体育", "subject": ["体育", 0.9], "teacher": ["财经", 0.8]} for text in "甲乙"]
    (output / "report.json").write_text(json.dumps({**report, "disagreements": quoted}), encoding="utf-8")
    run_student.main([*run, *PUSH, "--hub_strategy=end"])
    assert json.loads(hub.files("user/student")["report.json"])["disagreements"] == []
    assert 'model="user/student"' not in (output / "README.md").read_text(encoding="utf-8")


def test_what_fails_after_the_report_does_not_keep_the_rest_from_its_work(hub, flags, tmp_path, monkeypatch):
    def fails(*args):
        raise InputError("the export failed")

    monkeypatch.setattr("kd_trainer.workflow.export_model", fails)
    texts = tmp_path / "texts.csv"
    texts.write_text("no such column\n1\n", encoding="utf-8")
    output = tmp_path / "run"
    more = ["--export=onnx", f"--predict_file={texts}", "--hub_strategy=end"]
    with refused("the export failed"):
        run_student.main([*flags, *PUSH, *more, f"--output_dir={output}"])
    files = hub.files("user/student")
    assert own(files) >= CARRIED and b"How to use it" in files["README.md"] and b"user/student" in files["README.md"]


def test_a_model_that_is_not_trained_is_not_reported_in_the_folder_of_another(folder, flags, finished):
    scored = [flag for flag in flags if flag != "--do_train" and not flag.startswith("--train_file")]
    before = (folder / "report.json").read_bytes()
    with refused("holds a model that is not trained here"):
        run_student.main(
            [*scored, f"--model_name_or_path={finished}", f"--output_dir={folder}", "--overwrite_output_dir"]
        )
    assert (folder / "report.json").read_bytes() == before


def test_texts_that_would_be_public_are_told_of(hub, folder, caplog):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps({**report, "disagreements": [{"text": "甲"}, {"text": "乙"}]}))
    push = [str(folder), "--hub_model_id=user/student"]
    command.main(push)
    assert "2 texts of the data are quoted" in caplog.text
    caplog.clear()
    (folder / "report.json").write_text(json.dumps({**report, "disagreements": []}))
    command.main(push)
    assert "quoted" not in caplog.text
