"""Flags from a YAML recipe overruled by the command line, read by one parser that explains what is wrong."""

import argparse
import dataclasses
import difflib
import json
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .console import OneLineErrors
from .errors import InputError
from .precision import cpu_has_bf16

# What the scripts do that a bare Trainer leaves off: validate every epoch, end with the best epoch's weights.
SCRIPT_DEFAULTS = {
    "output_dir": None,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "f1",
    "save_total_limit": 2,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "weight_decay": 0.01,
    "logging_steps": 100,
    "report_to": "none",
    "ddp_timeout": 86400,  # the other processes wait while the first one runs the teacher
}

# A BiLSTM starts from random weights: at the Trainer's 5e-5 it would hardly learn.
STUDENT_DEFAULTS = {"learning_rate": 2e-3}


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; PyYAML would silently take the second."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's own example commands as they stand."""


class ScriptParser(OneLineErrors, HfArgumentParser):
    """`HfArgumentParser` that also takes a recipe and says in one line what is wrong."""

    def __init__(self, dataclass_types, defaults=None, **kwargs):
        super().__init__(
            dataclass_types,
            allow_abbrev=False,
            usage="%(prog)s [recipe.yaml] [--flag value ...]",
            formatter_class=HelpFormatter,
            **kwargs,
        )
        self.add_argument("recipe", nargs="?", help="YAML file of flags without their dashes; flags given here win.")
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:
                # One of no default, as --hub_private_repo, would need a word behind it.
                action.nargs, action.const = "?", True
        self.script_defaults = {**SCRIPT_DEFAULTS, **(defaults or {})}
        self.set_defaults(**self.script_defaults)

    def flags(self):
        """`dict[str, argparse.Action]`: every flag's action by its name."""
        # The first action of a name: the second, if any, is its --no_ twin.
        actions = {}
        for action in self._actions:
            actions.setdefault(action.dest, action)
        return {name: action for name, action in actions.items() if name not in ("help", "recipe")}

    def nearest(self, name, dashes=""):
        """`"; did you mean …?"` for a misspelt flag, or nothing."""
        close = difflib.get_close_matches(name, self.flags(), n=1)
        return f": did you mean {dashes + close[0]!r}?" if close else ": --help lists the flags"

    def recipe_arguments(self, path):
        """A recipe as command-line arguments, so that one parser checks both."""
        flags = self.flags()
        arguments = []
        for key, value in read_recipe(path).items():
            if key not in flags:
                raise InputError(f"{path}: unknown key {key!r}{self.nearest(str(key))}")
            takes_several = flags[key].nargs == "+"
            if value is None:
                continue
            if isinstance(value, list):
                if not takes_several:
                    raise InputError(f"{path}: {key} is a list, {value}: give one value")
                arguments += [f"--{key}", *map(str, value)]
            elif takes_several:
                arguments += [f"--{key}", str(value)]
            elif isinstance(value, dict):
                try:
                    arguments.append(f"--{key}={json.dumps(value)}")
                except (ValueError, TypeError) as error:
                    raise InputError(f"{path}: {key}: {error}: write plain values") from None
            elif isinstance(value, bool):
                # YAML reads a bare no as false: `eval_strategy: no` means the word.
                is_flag = flags[key].nargs == "?"
                word = str(value).lower() if is_flag else {True: "yes", False: "no"}[value]
                arguments.append(f"--{key}={word}")
            else:
                arguments.append(f"--{key}={value}")
        return arguments

    def read_settings(self, arguments, source=""):
        """The flags that `arguments` set, `dict[str, Any]`, and the recipe named among them or None."""
        unset = object()
        names = [*self.flags(), "recipe"]
        try:
            namespace, unknown = self.parse_known_args(arguments, argparse.Namespace(**dict.fromkeys(names, unset)))
        except InputError as error:
            raise InputError(f"{source}{error}") from None
        if unknown:
            word = unknown[0].split("=")[0]
            raise InputError(f"{source}unknown flag {word!r}{self.nearest(word.lstrip('-').replace('-', '_'), '--')}")
        # A positional argument that is not given has its default, unlike a flag.
        recipe = None if namespace.recipe in (unset, None) else namespace.recipe
        settings = {name: getattr(namespace, name) for name in names[:-1] if getattr(namespace, name) is not unset}
        return settings, recipe

    def parse(self, argv):
        """
        Args:
            argv (`list[str]`): Arguments of the command line, the recipe among them.

        Returns:
            `tuple`: One object of each dataclass, then the settings (`dict[str, Any]`) that recipe and command line
            made, then those that the command line alone made.

        Raises:
            `InputError`: For an unknown flag or key, a value of another type or out of its range.
        """
        given, recipe = self.read_settings(argv)
        settings = dict(given)
        if recipe is not None:
            from_recipe, _ = self.read_settings(self.recipe_arguments(recipe), source=f"{recipe}: ")
            settings = {**from_recipe, **given}
        values = {**self.script_defaults, **schedule_defaults(settings), **machine_defaults(settings), **settings}
        if not values.get("do_train"):
            # Otherwise TrainingArguments would switch do_eval on.
            values = {**values, "eval_strategy": "no", "load_best_model_at_end": False}
        objects = []
        for dataclass_type in self.dataclass_types:
            names = {item.name for item in dataclasses.fields(dataclass_type) if item.init}
            try:
                objects.append(dataclass_type(**{name: values[name] for name in names & values.keys()}))
            except (ValueError, ImportError, TypeError) as error:
                raise InputError(" ".join(str(error).split())) from error
        return (*objects, settings, given)


def schedule_defaults(settings):
    """Defaults that follow from the settings: only a checkpoint that is saved when it is scored can be the best."""
    followed = {}
    if settings.get("eval_strategy", "no") != "no":
        followed["save_strategy"] = settings["eval_strategy"]
    if "eval_steps" in settings:
        followed["save_steps"] = settings["eval_steps"]
    if "no" in (settings.get("eval_strategy"), settings.get("save_strategy")):
        followed["load_best_model_at_end"] = False
    return followed


def machine_defaults(settings):
    """Defaults that follow from the machine: without a GPU, bf16 where the processor has it, unless that is decided."""
    decided = settings.keys() & {"bf16", "fp16", "bf16_full_eval", "fp16_full_eval"}
    on_gpu = torch.accelerator.is_available() and not settings.get("use_cpu")
    if decided or on_gpu or not settings.get("do_train") or not cpu_has_bf16():
        return {}
    return {"bf16": True, "use_cpu": True}


def read_recipe(path):
    """
    A recipe file as `dict[str, Any]`.

    Raises:
        `InputError`: For a file that is missing, not YAML, names a key twice or is not a flat mapping.
    """
    path = Path(path)
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 file ({error}): give the path of a YAML file") from None
    except (yaml.YAMLError, RecursionError) as error:  # lists a thousand deep
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}: mend the line named") from None
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise InputError(f"{path}: a recipe is lines of 'flag: value', found {type(recipe).__name__}")
    return recipe
