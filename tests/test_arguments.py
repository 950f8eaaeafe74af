"""Recipe and command line become the flags of the scripts, and every mistake in them is said in one line."""

import dataclasses
import importlib
from types import SimpleNamespace

import pytest
from conftest import refused

from kd_trainer.arguments import (
    DataArguments,
    DistillationTrainingArguments,
    RunArguments,
    StudentArguments,
    TeacherArguments,
    check_arguments,
)
from kd_trainer.errors import InputError
from kd_trainer.recipes import SCRIPT_DEFAULTS, STUDENT_DEFAULTS, ScriptParser, read_recipe

DISTILL = (StudentArguments, TeacherArguments, DataArguments, RunArguments, DistillationTrainingArguments)


def parse(*argv):
    """All flags of `run_distill.py` in one namespace, the objects themselves, `settings` and `given` among them."""
    *objects, settings, given = ScriptParser(DISTILL, STUDENT_DEFAULTS).parse([*map(str, argv)])
    values = {name: value for item in objects for name, value in vars(item).items()}
    return SimpleNamespace(**values, objects=objects, settings=settings, given=given)


def check(*argv):
    """[`check_arguments`] of a command line."""
    flags = parse(*argv)
    check_arguments(flags.settings, flags.objects[4], flags.objects[2], flags.objects[3])


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe and returns its path."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(params=["run_teacher", "run_student", "run_distill"])
def script_parser(request, monkeypatch):
    """The parser of every script, as the script itself builds it."""
    parsers = []

    def keep(parser, argv):
        parsers.append(parser)
        raise InputError("built")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="built"):
        patch.setattr(ScriptParser, "parse", keep)
        importlib.import_module(request.param).main([])
    return parsers[0]


# Precedence


def test_command_line_wins_over_recipe_and_recipe_over_defaults(recipe):
    path = recipe("alpha: 0.5\nlearning_rate: 1.0e-3\nhidden_size: 64\n")
    flags = parse(path, "--alpha", "0.7", "--seed=3")
    assert (flags.alpha, flags.learning_rate, flags.hidden_size, flags.seed) == (0.7, 1e-3, 64, 3)
    assert flags.temperature == 4.0 and flags.weight_decay == SCRIPT_DEFAULTS["weight_decay"]
    assert parse().learning_rate == STUDENT_DEFAULTS["learning_rate"]


def test_settings_are_what_was_set_and_nothing_else(recipe):
    path = recipe("alpha: 0.5\nsave_strategy: no\ntrain_file: a.tsv\ncache_dir:\nlabel_names: [labels]\n")
    flags = parse(path, "--alpha", "0.7", "--do_train", "--load_best_model_at_end", "false")
    assert flags.given == {"alpha": 0.7, "do_train": True, "load_best_model_at_end": False}
    assert flags.settings == {"save_strategy": "no", "train_file": "a.tsv", "label_names": ["labels"], **flags.given}


def test_a_default_that_is_set_is_a_setting():
    assert parse("--seed", "42", "--no_dataloader_pin_memory").settings == {"seed": 42, "dataloader_pin_memory": False}
    assert parse().settings == parse().given == {}


@pytest.mark.parametrize("place", [0, 2, 4])
def test_recipe_may_stand_anywhere(recipe, place):
    argv = ["--alpha", "0.7", "--seed", "3"]
    flags = parse(*argv[:place], recipe("temperature: 2"), *argv[place:])
    assert (flags.alpha, flags.seed, flags.temperature) == (0.7, 3, 2.0)


# The defaults shown are the defaults used


def test_defaults_shown_are_the_defaults_used(script_parser):
    *objects, settings, _ = script_parser.parse(["--do_train"])
    assert settings == {"do_train": True}
    for item in objects:
        names = [field.name for field in dataclasses.fields(item) if field.init]
        # Built from what --help shows: __post_init__ turns both in the same way.
        shown = {name: script_parser.get_default(name) for name in names}
        expected = type(item)(**{**shown, **({"do_train": True} if "do_train" in shown else {})})
        for name in names:
            # The folder of logs has the minute in its name.
            if name != "logging_dir":
                assert getattr(item, name) == getattr(expected, name), name


def test_help_can_be_shown_and_describes_every_flag_of_the_package(script_parser):
    shown = " ".join(script_parser.format_help().split())
    for dataclass_type in script_parser.dataclass_types:
        for field in dataclasses.fields(dataclass_type):
            if dataclass_type.__module__.startswith("kd_trainer") and field.metadata:
                assert f"--{field.name}" in shown and field.metadata["help"]
    assert f"(default: {script_parser.get_default('learning_rate')})" in shown


# Values


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("learning_rate: 2e-5", "learning_rate", 2e-5),  # to YAML 1.1 this is a string
        ("learning_rate: 2.0e-5", "learning_rate", 2e-5),
        ("num_train_epochs: 3", "num_train_epochs", 3.0),
        ("warmup_steps: 0.1", "warmup_steps", 0.1),
        ("train_file: 'a b=c.tsv'", "train_file", "a b=c.tsv"),
        ("train_file: -a.tsv", "train_file", "-a.tsv"),
        ("predict_text: --alpha", "predict_text", "--alpha"),
        ("predict_text: ''", "predict_text", ""),
        ("run_name: 2024", "run_name", "2024"),
        ("label_map: neg=negative,pos=positive", "label_map", "neg=negative,pos=positive"),
        ("cache_dir: null", "cache_dir", None),
        ("cache_dir:", "cache_dir", None),
        ("save_strategy: no", "save_strategy", "no"),
        ("save_strategy: 'no'", "save_strategy", "no"),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("trust_remote_code: yes", "trust_remote_code", True),
        ("trust_remote_code: off", "trust_remote_code", False),
        ("gradient_checkpointing: true", "gradient_checkpointing", True),
        ("gradient_checkpointing: no", "gradient_checkpointing", False),
        ("dataloader_pin_memory: false", "dataloader_pin_memory", False),
        ("label_names: [a, b]", "label_names", ["a", "b"]),
        ("label_names: a", "label_names", ["a"]),
        (
            "lr_scheduler_kwargs: {num_cycles: 2, x: [1, null]}",
            "lr_scheduler_kwargs",
            {"num_cycles": 2, "x": [1, None]},
        ),
        ("pooling: attention", "pooling", "attention"),
        ("\ufeffalpha: 1", "alpha", 1.0),
        ("alpha: 0 # a comment\r\n", "alpha", 0.0),
    ],
)
def test_recipe_values(recipe, line, name, value):
    found = getattr(parse(recipe(line)), name)
    assert found == value and (not isinstance(value, bool) or found is value)


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--compare_student"], "compare_student", True),
        (["--compare_student", "true"], "compare_student", True),
        (["--compare_student", "false"], "compare_student", False),
        (["--compare-student=0"], "compare_student", False),
        (["--no_dataloader_pin_memory"], "dataloader_pin_memory", False),
        (["--dataloader_pin_memory", "no"], "dataloader_pin_memory", False),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--learning_rate", "2e-5"], "learning_rate", 2e-5),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
        (["--label_names", "a", "b"], "label_names", ["a", "b"]),
        (["--alpha", "0.1", "--alpha", "0.2"], "alpha", 0.2),
        (["--predict_text=-5"], "predict_text", "-5"),
    ],
)
def test_command_line_values(argv, name, value):
    found = getattr(parse(*argv), name)
    assert found == value and (not isinstance(value, bool) or found is value)


def test_no_saving_can_be_trained_with(recipe):
    flags = parse(recipe("do_train: true\nsave_strategy: no\n"))
    assert flags.save_strategy == "no" and flags.eval_strategy == "epoch" and not flags.load_best_model_at_end


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy"])
@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_a_strategy_that_is_set_is_kept(name, strategy):
    other = {"eval_strategy": "save_strategy", "save_strategy": "eval_strategy"}[name]
    both = [f"--{name}={strategy}", f"--{other}={strategy}"]
    assert getattr(parse("--do_train", *both), name) == strategy
    if name == "eval_strategy" or strategy != "steps":
        assert getattr(parse("--do_train", both[0]), name) == strategy


@pytest.mark.parametrize("extra", [[], ["--do_predict"], ["--eval_strategy", "epoch"], ["--do_train", "false"]])
def test_without_training_nothing_evaluates(extra):
    flags = parse("--output_dir", "x", *extra)
    assert flags.eval_strategy == "no" and not flags.load_best_model_at_end and not flags.do_eval


def test_training_validates_every_epoch_and_keeps_the_best():
    flags = parse("--do_train")
    assert flags.eval_strategy == flags.save_strategy == "epoch" and flags.do_eval
    assert flags.load_best_model_at_end and flags.metric_for_best_model == "f1" and flags.greater_is_better


# Mistakes in a recipe


@pytest.mark.parametrize(
    "text, found",
    [
        ("learning_rat: 1\n", ["'learning_rat'", "did you mean 'learning_rate'"]),
        ("learning-rate: 1\n", ["'learning-rate'", "did you mean 'learning_rate'"]),
        ("qqqqqqqq: 1\n", ["'qqqqqqqq'", "--help"]),
        ("recipe: other.yaml\n", ["'recipe'"]),
        ("help: true\n", ["'help'"]),
        ("learning_rate: fast\n", ["learning_rate", "'fast'"]),
        ("seed: 1.5\n", ["seed", "'1.5'"]),
        ("seed: {a: 1}\n", ["seed", '"a"']),
        ("do_train: maybe\n", ["do_train", "maybe"]),
        ("learning_rate: [1, 2]\n", ["learning_rate", "list", "one value"]),
        ("train_file: [a, b]\n", ["train_file", "list", "one value"]),
        ("label_names: []\n", ["label_names"]),
        ("pooling: sum\n", ["pooling", "'sum'", "'max'"]),
        ("alpha: 0.1\nalpha: 0.2\n", ["'alpha'", "twice", "line 1"]),
        ("lr_scheduler_kwargs: {a: 1, a: 2}\n", ["'a'", "twice"]),
        ("- alpha: 1\n- seed: 2\n", ["list"]),
        ("alpha\n", ["str"]),
        ("1: 2\n", ["flag: value"]),
        ("", ["NoneType"]),
        ("# only a comment\n", ["flag: value"]),
        ("alpha: [1\nseed: 2\n", ["not valid YAML"]),
        ("alpha: 1\n\tseed: 2\n", ["not valid YAML", "line 2"]),
        ("alpha: 1\nseed 2\n", ["not valid YAML"]),
        ("alpha: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
        ("alpha: 1\n--- \nalpha: 2\n", ["not valid YAML"]),
        ("? [a, b]\n: 1\n", ["not valid YAML"]),
        ("alpha: \x00\n", ["not valid YAML"]),
        ("train_file: 新闻\n".encode("gbk"), ["UTF-8"]),
        ("alpha: 1\n".encode("utf-16"), ["UTF-8"]),
    ],
)
def test_mistakes_in_a_recipe_name_it(recipe, text, found):
    path = recipe(text)
    with refused(path, *found):
        parse(path)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "recipe.yaml/inside.yaml", "a" * 300 + ".yaml"])
def test_a_recipe_that_cannot_be_opened(tmp_path, recipe, name):
    recipe("alpha: 1\n")
    with refused(tmp_path / name):
        parse(tmp_path / name)


def test_read_recipe_returns_the_mapping(recipe):
    assert read_recipe(recipe("a: 1\nb: [x, 2.5, no]\n")) == {"a": 1, "b": ["x", 2.5, False]}


# Mistakes on the command line


@pytest.mark.parametrize(
    "argv, found",
    [
        (["--learning_rat", "1"], ["--learning_rat", "did you mean '--learning_rate'"]),
        (["--learning_rat=1"], ["--learning_rat", "did you mean '--learning_rate'"]),
        (["--learning-rat", "1"], ["did you mean '--learning_rate'"]),
        (["--temp", "1"], ["--temp"]),  # no abbreviations: a new flag would change what they mean
        (["--qqqqqqqqq"], ["--qqqqqqqqq", "--help"]),
        (["--learning_rate", "fast"], ["learning_rate", "'fast'"]),
        (["--learning_rate"], ["learning_rate", "expected one argument"]),
        (["--seed", "1.5"], ["seed", "'1.5'"]),
        (["--do_train", "maybe"], ["do_train", "maybe"]),
        (["--do_train", "recipe.yaml"], ["do_train", "recipe.yaml"]),
        (["--kd_loss", "cosine"], ["kd_loss", "'cosine'", "'kl'"]),
        (["--teacher_mode", "offline"], ["teacher_mode", "'cached'"]),
        (["--lr_scheduler_type", "steep"], ["lr_scheduler_type", "'steep'", "'linear'"]),
        (["--optim", "sgdd"], ["sgdd"]),
        (["--temperature", "0"], ["--temperature is 0.0", "0.001..1000"]),
        (["--temperature=-1"], ["--temperature is -1.0", "0.001..1000"]),
        (["--temperature", "nan"], ["--temperature is nan"]),
        (["--temperature", "inf"], ["--temperature is inf"]),
        (["--alpha", "1.01"], ["--alpha is 1.01", "0..1"]),
        (["--alpha=-0.1"], ["--alpha is -0.1", "0..1"]),
        (["--alpha", "nan"], ["--alpha is nan"]),
        (["--max_seq_length", "0"], ["--max_seq_length is 0", "at least 1"]),
        (["--max_train_samples", "0"], ["--max_train_samples is 0", "at least 1"]),
        (["--max_eval_samples=-1"], ["--max_eval_samples is -1", "at least 1"]),
        (["--max_predict_samples", "0"], ["--max_predict_samples is 0", "at least 1"]),
        (["--teacher_max_seq_length", "0"], ["--teacher_max_seq_length is 0", "at least 1"]),
        (["--teacher_batch_size", "0"], ["--teacher_batch_size is 0", "at least 1"]),
        (["--vocab_size", "0"], ["--vocab_size is 0", "at least 1"]),
        (["--validation_split", "1"], ["--validation_split is 1.0", "[0, 1)"]),
        (["--validation_split=-0.1"], ["--validation_split is -0.1", "[0, 1)"]),
        (["--validation_split", "nan"], ["--validation_split is nan"]),
        (["--split_seed=-1"], ["--split_seed is -1", "at least 0"]),
        (["--lr_scheduler_kwargs", "{broken"], []),
        (["a.yaml", "b.yaml"], ["b.yaml"]),
    ],
)
def test_mistakes_on_the_command_line(argv, found):
    with refused(*found):
        parse(*argv)


@pytest.mark.parametrize("name, value", [("max_seq_length", 1), ("validation_split", 0), ("alpha", 0), ("alpha", 1)])
def test_the_ends_of_the_ranges_are_allowed(name, value):
    assert getattr(parse(f"--{name}={value}"), name) == value


@pytest.mark.parametrize(
    "name, value",
    [
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("seed", -1),
    ],
)
def test_numbers_that_would_only_fail_in_training_are_refused_before(name, value):
    with refused(f"--{name} is {value}", "at least"):
        check("--output_dir", "x", "--do_train", "--use_cpu", f"--{name}={value}")


def test_training_arguments_refuse_bad_values_without_a_parser(tmp_path):
    for wrong in ({"alpha": 2}, {"temperature": 0}, {"kd_loss": "cosine"}):
        with refused(*wrong):
            DistillationTrainingArguments(output_dir=str(tmp_path), **wrong)


# What only all the flags together show


@pytest.mark.parametrize(
    "argv, found",
    [
        (["--do_train"], ["--output_dir"]),
        (["--do_eval"], ["--output_dir"]),
        (["--predict_file", "a.txt"], ["--output_dir"]),
        (["--output_dir", "x"], ["nothing to do", "--do_train"]),
        (["--output_dir", "x", "--do_train", "false"], ["nothing to do"]),
        (["--output_dir", "x", "--do_predict"], ["--do_predict", "--test_file"]),
        (["--predict_text", "x", "--predict_file", "a.txt", "--predict_output", "b.csv"], ["--predict_text", "one"]),
        (["--output_dir", "x", "--do_train", "--fp16", "--use_cpu"], ["fp16", "GPU"]),
    ],
)
def test_flags_that_do_not_go_together(argv, found):
    with refused(*found):
        check(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--output_dir", "x", "--do_train", "--use_cpu"],
        ["--output_dir", "x", "--do_predict", "--test_file", "a.tsv"],
        ["--output_dir", "x", "--do_predict", "--dataset_name", "a"],
        ["--output_dir", "x", "--predict_file", "a.txt"],
        ["--predict_file", "a.txt", "--predict_output", "b.csv"],
        ["--predict_text", ""],
    ],
)
def test_flags_that_go_together(argv):
    check(*argv)


@pytest.mark.parametrize(
    "argv, bf16",
    [
        (["--do_train"], True),
        (["--do_train", "--use_cpu"], True),
        (["--do_train", "--bf16=false"], False),
        (["--do_train", "--bf16=true", "--use_cpu"], True),
        (["--do_eval"], False),
    ],
)
@pytest.mark.parametrize("processor_has_it", [True, False])
def test_bf16_is_the_default_where_the_processor_has_it(monkeypatch, argv, bf16, processor_has_it):
    monkeypatch.setattr("kd_trainer.recipes.cpu_has_bf16", lambda: processor_has_it)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    flags = parse("--output_dir=x", *argv)
    assert flags.bf16 == (bf16 and (processor_has_it or "--bf16=true" in argv))
    assert flags.use_cpu or not flags.bf16
    # What a machine decides is no setting: another may continue the run.
    assert set(flags.settings) == {"output_dir", *(word.lstrip("-").split("=")[0] for word in argv)}


def test_bf16_is_no_default_beside_a_gpu(monkeypatch):
    monkeypatch.setattr("kd_trainer.recipes.cpu_has_bf16", lambda: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert not parse("--output_dir=x", "--do_train").bf16
    assert parse("--output_dir=x", "--do_train", "--use_cpu").bf16
