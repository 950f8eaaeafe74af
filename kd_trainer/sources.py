"""Where a run's models and data come from, in names that mean the same on another machine."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from .errors import InputError
from .json_file import read_json
from .output_folder import REPORT
from .recipes import read_recipe

# Settings that say where something lies, what was asked besides, or how it was shown: not how a model was made.
PRIVATE_SETTINGS = {
    "output_dir", "cache_dir", "teacher_cache_dir", "logging_dir", "predict_file", "predict_text", "predict_text_pair",
    "predict_output", "resume_from_checkpoint", "overwrite_output_dir", "hub_token", "hub_model_id", "push_to_hub",
    "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision", "run_name", "report_to", "disable_tqdm",
    "log_level", "logging_steps", "do_train", "do_eval", "do_predict", "card_examples", "ddp_timeout",
}  # fmt: skip


def hub_name(name):
    """`name` if it is one on the hub, None if it is a folder here, or no name that the hub could know."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def find_sources(settings):
    """
    Asked while the run's own folders are there: `a/b` may be a folder or a name on the hub.

    Args:
        settings (`dict[str, Any]`): What recipe and command line set.

    Returns:
        `dict`: `start`, the checkpoint that was trained further; `dataset`; `teachers`, for each of those that are
        models `name`, `fine_tuned_from` and `architecture`. Names are those on the hub, else None.
    """
    names = settings.get("teacher_name_or_path") or []
    recipe = settings.get("teacher_recipe")
    if not names and recipe is not None:
        try:
            names = [read_recipe(recipe).get("output_dir")]
        except InputError:  # a run that is scored again may have lost it
            names = []
    return {
        "start": hub_name(settings.get("model_name_or_path")),
        "dataset": hub_name(settings.get("dataset_name")),
        "teachers": [describe_teacher(name) for name in names if name is not None],
    }


def describe_teacher(name):
    """What is known of a teacher, see [`find_sources`]."""
    folder = Path(name)
    report, config = read_json(folder / REPORT), read_json(folder / "config.json")
    architectures = config.get("architectures") or [None]
    start = report.get("sources")
    return {
        "name": hub_name(name),
        "fine_tuned_from": start.get("start") if isinstance(start, dict) else None,
        "architecture": architectures[0],
    }


def file_name(path):
    """The last part of a path, of whatever system."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def public_settings(settings, sources):
    """
    Settings as others may see them: without those of this machine and this launch, of a path its last part alone.

    Args:
        settings (`dict[str, Any]`): As in `report.json`.
        sources (`dict`): See [`find_sources`]; names on the hub stay whole.
    """
    whole = {sources.get("start"), sources.get("dataset"), *(one["name"] for one in sources.get("teachers", []))}

    def show(value):
        if isinstance(value, dict):
            return {show(key): show(item) for key, item in value.items()}
        if isinstance(value, list):
            return [show(item) for item in value]
        if not isinstance(value, str) or value in whole:
            return value
        return file_name(value)

    return {name: show(value) for name, value in settings.items() if name not in PRIVATE_SETTINGS}
