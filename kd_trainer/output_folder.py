"""An output folder belongs to one run: found finished, taken up where it was killed, or made this run's own."""

import contextlib
import fnmatch
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path

import yaml
from transformers import TrainerCallback

from .card_file import CARD, is_unchanged
from .errors import InputError
from .json_file import read_json
from .whole import written_whole

try:
    import fcntl
except ImportError:  # Windows has no such locks: two runs in one folder are then not noticed
    fcntl = None

logger = logging.getLogger(__name__)

# Files whose locks this process holds: closing one would let go of it.
locked = {}

REPORT, RECIPE, CLOCK = "report.json", "recipe.yaml", "clock.json"
PLOTS, ONNX = "plots", "onnx"  # folders of plots, and of --export
# What is written into them; whatever else lies there is somebody's own: never removed, never pushed.
WRITTEN = {
    ONNX: ("model.onnx", "model_int8.onnx", "tokenizer.json", "config.json", "classify.py"),
    PLOTS: ("accuracy_latency.png", "confusion.png", "reliability.png", "training.png", "cascade.png"),
}
SEARCH, SEARCH_TABLE, BEST = "tune.db", "tune.json", "best.yaml"  # of --tune
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
CHECKPOINT = re.compile(r"checkpoint-\d+")
LEFT_BEHIND = re.compile(r"_push-checkpoint-\d+|\..+\.[0-9a-f]{8}\.partial")  # by a kill
# A leading _ keeps them off the hub.
DIGEST, LOCK, SCORED, VALIDATION = "_data.sha256", "_lock", "_scored.safetensors", "_validation.safetensors"
# What a run would write over, were it a model of somebody's own.
MODEL = re.compile(
    rf"config\.json|tokenizer(_config)?\.json|modeling_\w+\.py|trainer_state\.json|training_args\.bin|"
    rf"(all|train)_results\.json|{WEIGHTS.pattern}|{CHECKPOINT.pattern}"
)
# Those that the tokenizers of `transformers` write.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "dict.txt", "*.spm", "*.bpe.model", "spiece.model",
    "spm*.model", "tokenizer.model", "sentencepiece.model", "prophetnet.tokenizer", "vocab-src.json", "vocab-tgt.json",
    "target_vocab.json", "entity_vocab.json", "word_shape.json", "word_pronunciation.json", "byte_maps.json",
    "normalizer.json", "emoji.json",
)  # fmt: skip
CHECKPOINT_STATE = "trainer_state.json"  # what the Trainer writes into a checkpoint last of all
# Not kept: secrets, and what only makes sense once.
UNKEPT_SETTINGS = {
    "hub_token", "overwrite_output_dir", "resume_from_checkpoint", "predict_text", "predict_text_pair",
}  # fmt: skip
# Settings that may change when a killed run is taken up again: they do not change what it computes.
FREE_SETTINGS = {
    "output_dir", "disable_tqdm", "log_level", "logging_steps",
    "report_to", "predict_file", "predict_text", "predict_text_pair", "predict_output", "cascade_teacher", "do_eval",
    "do_predict",
    "teacher_cache_dir", "teacher_batch_size", "compare_student", "eval_robustness", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push", "use_cpu", "tune_trials",
    "compare_linear", "card_examples", "export",
}  # fmt: skip


def plain(settings):
    """Settings as YAML and JSON can hold them, without those that are not to be kept."""
    public = {name: value for name, value in settings.items() if name not in UNKEPT_SETTINGS}
    return json.loads(json.dumps(public, default=str))


def saved_settings(folder, cure):
    """
    What the run in `folder` was given, `dict[str, Any]`.

    Raises:
        `InputError`: With the `cure` (`str`), when that cannot be read.
    """
    try:
        settings = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise InputError(f"{folder / RECIPE} is damaged: {cure}")
    return settings


def differing_settings(folder, settings, ignored=frozenset()):
    """
    In which settings, other than those `ignored`, the run in `folder` differs from `settings`, in one line; empty when
    in none that matters.
    """
    saved, settings = saved_settings(folder, "choose another folder, or remove that one"), plain(settings)
    names = sorted((saved.keys() | settings.keys()) - FREE_SETTINGS - ignored)
    changes = [(name, saved.get(name), settings.get(name)) for name in names]
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, old, new in changes if old != new)


def check_writable(folder, flag, cure="choose another"):
    """
    Refuses a folder that cannot be made or written, and leaves nothing behind. For the first process of a run alone: a
    second one would have the folder removed under its hands.

    Args:
        folder (`Path`): It need not exist.
        flag (`str`): Of the command line, for the message.
        cure (`str`, *optional*): For the message.
    """
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{flag} {str(folder)!r} cannot be written ({reason}): {cure}") from None
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not made, or another run has begun to use it
                path.rmdir()


def check_places(folder):
    """
    Refuses what stands where a run writes its model, its report, its card and its plots, and can neither be written nor
    replaced: a folder or a dangling link in place of a file, a file in place of the folder of the plots.

    Args:
        folder (`Path`): The output folder; it need not exist.
    """
    own = {REPORT, RECIPE, DIGEST, SCORED, VALIDATION, CARD}
    files = [path for path in folder.glob("*") if is_of_model(path.name) or path.name in own]
    files = [path for path in files if not CHECKPOINT.fullmatch(path.name)]
    for path in (*files, *(folder / PLOTS / name for name in WRITTEN[PLOTS])):
        if path.is_dir():
            raise InputError(f"{path} is a folder, and a run writes a file of that name: move it away")
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link that leads nowhere: remove it")
    plots = folder / PLOTS
    if os.path.lexists(plots) and not plots.is_dir():
        raise InputError(f"{plots} is no folder, and a run writes its plots into one of that name: move it away")


def check_export_folder(folder):
    """
    Refuses a folder that an export may not replace, as it holds what neither an export nor a desktop has written.

    Args:
        folder (`Path`): It need not exist.
    """
    cure = "move it away, or export elsewhere"
    if folder.is_symlink():
        raise InputError(f"{folder} is a link: {cure}")
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir() if not is_of_desktop(path)} if folder.is_dir() else set()
    foreign = sorted(name for name in names if not is_of_export(folder / name))
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which no export has written: {cure}")
    if not folder.is_dir() or names and not is_export(folder):
        raise InputError(f"{folder} is there and no export: {cure}")


def is_export(folder):
    """Whether an export has written `folder`, to its end."""
    return all((folder / name).is_file() for name in ("classify.py", "config.json", "tokenizer.json"))


def is_of_export(path):
    """Whether a file in a folder of an export is one that the export has written, or what Python made of it."""
    if path.name == "__pycache__" and path.is_dir():
        return all(name.startswith("classify.") for name in os.listdir(path))
    return path.is_file() and path.name in WRITTEN[ONNX]


def is_of_desktop(path):
    """Whether a file is one of those that a desktop leaves in any folder that somebody has looked into."""
    return path.is_file() and path.name in (".DS_Store", "Thumbs.db", "desktop.ini")


def remove_written(folder, name):
    """Removes what a run has written into the folder `name`, of `WRITTEN`, of `folder`, and it if it is empty then."""
    if (folder / name).is_symlink():
        return  # what it leads to is somebody's own
    for file in WRITTEN[name]:
        (folder / name / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or something of somebody's own is in it
        (folder / name).rmdir()


def has_run(folder):
    """Whether a run has made `folder` its own: its settings and the digest of its data lie there, neither as a link."""
    return all((folder / name).is_file() and not (folder / name).is_symlink() for name in (RECIPE, DIGEST))


def has_report(folder):
    """Whether a run has reported in `folder`; what came back from the hub has its report and no digest."""
    return "texts_sha256" in read_json(folder / REPORT)


def is_copy(folder, settings):
    """Whether `folder` has the checkpoint of a run of these settings without its digest, as it comes from the hub."""
    if last_checkpoint(folder) is None or (folder / RECIPE).is_symlink():
        return False
    with contextlib.suppress(InputError):  # a recipe that is none
        return not differing_settings(folder, settings)
    return False


def is_of_model(name):
    """Whether a file's name is one that a run writes its model, or what the Trainer keeps with it, into."""
    return MODEL.fullmatch(name) is not None or matches(name, TOKENIZER_FILES)


def matches(name, patterns):
    """Whether a file's name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def find_foreign(folder):
    """
    What in a folder that no run has made its own a run would write over.

    Returns:
        `str` or None: In words.
    """
    names = sorted(path.name for path in folder.glob("*"))
    if SEARCH in names:
        return "a search"
    model = next((name for name in names if is_of_model(name)), None)
    if model is not None:
        return f"a model ({model})"
    own = [name for name in (SCORED, VALIDATION, SEARCH_TABLE, BEST) if name in names]
    if (folder / DIGEST).is_symlink():  # a kill may leave it, as a file, before there is a recipe
        own.append(DIGEST)
    plots = [f"{PLOTS}/{name}" for name in WRITTEN[PLOTS] if os.path.lexists(folder / PLOTS / name)]
    return next(iter([*own, *plots]), None)


def check_sources(folder, sources):
    """
    Refuses an output folder in which a model stands that the run is to read.

    Args:
        folder (`Path`): The output folder.
        sources (`list[str | None]`): Names or folders of models and tokenizers.
    """
    for source in sources:
        if source is not None:
            path = Path(source).resolve()
            if folder.resolve() in (path, *path.parents):
                raise InputError(
                    f"--output_dir {folder} holds {source}, which this run reads: choose another --output_dir"
                )


def check_data(folder, files):
    """
    Refuses data in a checkpoint of the output folder, which a run removes.

    Args:
        folder (`Path`): The output folder.
        files (`list[str]`): That the run reads.
    """
    for file in files:
        parents = Path(file).resolve().parents
        if any(CHECKPOINT.fullmatch(path.name) and path.parent == folder.resolve() for path in parents):
            raise InputError(f"{file} lies in a checkpoint of --output_dir {folder}, which is removed: move it away")


def last_checkpoint(folder):
    """The last checkpoint in `folder` that was written to its end, as `str`, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{CHECKPOINT_STATE}") if path.stat().st_size]
    whole = [path for path in found if CHECKPOINT.fullmatch(path.name)]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def check_checkpoint(folder):
    """
    Refuses a checkpoint whose weights are pickled. Of the pickles that the Trainer writes into one (optimizer.pt,
    scheduler.pt, rng_state.pth) it reads numbers alone, with `torch.load(weights_only=True)`.

    Raises:
        `InputError`
    """
    if (Path(folder) / "pytorch_model.bin").exists() and not any(Path(folder).glob("model*.safetensors")):
        raise InputError(f"{folder}: its weights are pickled (pytorch_model.bin), which are not read: remove it")


def find_checkpoint(folder, settings, args, overwrite):
    """
    Looks into an output folder, without touching it: may this run use it, and did a killed run of the same settings
    leave a checkpoint there?

    Args:
        folder (`Path`): The output folder.
        settings (`dict[str, Any]`): Compared with those in its `recipe.yaml`.
        args (`TrainingArguments`): Its `resume_from_checkpoint` wins over the last checkpoint.
        overwrite (`bool`): Whether another run in the folder may be replaced.

    Returns:
        `str` or None: The checkpoint to continue from.

    Raises:
        `InputError`: When the folder cannot be written, holds a finished run, another unfinished one, or a model of
            unknown origin; and for a checkpoint of another folder.
    """
    cure = "choose another --output_dir, or replace it with --overwrite_output_dir"
    if args.process_index == 0:
        check_writable(folder, "--output_dir")
    wanted = args.resume_from_checkpoint
    if wanted is not None:
        if not (Path(wanted) / CHECKPOINT_STATE).is_file() or folder.resolve() not in Path(wanted).resolve().parents:
            raise InputError(
                f"--resume_from_checkpoint {wanted}: no checkpoint of a run in {folder}: give one of its own"
            )
        check_checkpoint(wanted)
    for path in sorted(folder.glob("checkpoint-*")):
        if path.is_symlink() or not CHECKPOINT.fullmatch(path.name):
            raise InputError(f"--output_dir {folder} holds {path.name}, which the Trainer may remove: move it away")
    check_places(folder)
    if not folder.exists():
        return wanted
    is_stray = os.path.lexists(folder / RECIPE) and not has_run(folder) and not has_report(folder)
    stray = f"--output_dir {folder} holds {RECIPE}, which no run has written: move it away, or choose another"
    if overwrite:
        if is_stray:
            raise InputError(stray)
        return wanted
    if (folder / REPORT).exists():
        lacks = {"export": bool(settings.get("export")) and not (folder / ONNX).exists()}
        lacks["card"] = args.do_train and not (folder / CARD).exists()
        lacking = [f"python -m kd_trainer.{name} {shlex.quote(str(folder))}" for name in lacks if lacks[name]]
        if lacking and (folder / "config.json").exists():  # it was killed after its report
            cure = f"what it lacks is made by {' and '.join(lacking)}; or {cure}"
        raise InputError(f"--output_dir {folder} holds a finished run ({REPORT}): {cure}")
    last = last_checkpoint(folder)
    searched = (folder / SEARCH).exists()
    if not has_run(folder) and not is_copy(folder, settings):
        foreign = find_foreign(folder)
        if foreign is not None:
            raise InputError(f"--output_dir {folder} holds {foreign} that this run did not make: {cure}")
        if is_stray:
            raise InputError(stray)
        return wanted
    has_weights = any(WEIGHTS.fullmatch(path.name) for path in folder.glob("*"))
    differing = differing_settings(folder, settings) if last is not None or searched or has_weights else ""
    if differing:
        what = "a search" if searched else "an unfinished run"
        raise InputError(f"--output_dir {folder} holds {what} of other settings ({differing}): {cure}")
    if wanted is None and last is not None:
        check_checkpoint(last)
    return wanted or last


def claim_output_dir(settings, args, checkpoint, data_digest):
    """
    Makes the output folder this run's own until the process ends: its settings go into `recipe.yaml`, and unless it
    continues from a `checkpoint`, what another run left there goes.

    Args:
        settings (`dict[str, Any]`): What recipe and command line set.
        args (`TrainingArguments`): Name the folder.
        checkpoint (`str` or None): See [`find_checkpoint`].
        data_digest (`str`): Of the rows and label names, behind a blank of whatever else the run is made of: it does
            not continue on others.

    Raises:
        `InputError`: When another process writes into the folder, or the data has changed since the run was killed.
    """
    folder = Path(args.output_dir)
    if args.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock(folder)
        digest = folder / DIGEST
        if checkpoint is not None and digest.exists() and digest.read_text() != data_digest:
            raise InputError(
                f"--output_dir {folder} holds an unfinished run on other data, transfer texts or teachers: give it the "
                "old ones, choose another --output_dir, or replace it with --overwrite_output_dir"
            )
        if checkpoint is None:
            if has_run(folder) or has_report(folder):  # else nobody knows who wrote them
                for name in WRITTEN:
                    remove_written(folder, name)
            # Its old weights too: a kill would leave them beside the new settings. Nothing is written through a link.
            for old in folder.iterdir():
                is_old = old.name in (REPORT, SCORED, VALIDATION) or WEIGHTS.fullmatch(old.name)
                if is_old or old.is_symlink() and (is_of_model(old.name) or old.name in (RECIPE, DIGEST)):
                    old.unlink()
            if is_unchanged(folder / CARD):
                (folder / CARD).unlink()
            if (folder / SEARCH).exists():
                for name in (SEARCH_TABLE, BEST, SEARCH):
                    (folder / name).unlink(missing_ok=True)
        for name in ("all_results.json", "train_results.json"):  # the Trainer reads them before it writes
            (folder / name).unlink(missing_ok=True)
        for old in folder.iterdir():
            if CHECKPOINT.fullmatch(old.name):
                is_left = checkpoint is None or not (old / CHECKPOINT_STATE).exists()
            else:
                is_left = LEFT_BEHIND.fullmatch(old.name) is not None
            if is_left and not old.is_symlink():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        with written_whole(digest) as partial:
            partial.write_text(data_digest)
        with written_whole(folder / RECIPE) as partial:
            partial.write_text(yaml.safe_dump(plain(settings), allow_unicode=True), encoding="utf-8")
    args.distributed_state.wait_for_everyone()
    if checkpoint is not None:
        logger.warning(f"continuing the run in {args.output_dir} from {checkpoint}")


def lock(folder):
    """Keeps a second process out of `folder` as long as this one lives; the system lets go of it even after a kill."""
    if fcntl is None or folder.resolve() in locked:
        return
    try:
        file = (folder / LOCK).open("a")  # what is in it stays, were it somebody's
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): give yourself the right to, or copy it"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: another run writes into it: wait for it, or choose another folder") from None
    locked[folder.resolve()] = file


def is_locked(folder):
    """Whether another process writes into `folder`."""
    if fcntl is None or not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class TrainingClock(TrainerCallback):
    """Seconds of training, those before a resumed checkpoint included."""

    def __init__(self, checkpoint=None):
        self.before = 0.0
        if checkpoint is not None and (Path(checkpoint) / CLOCK).exists():
            # Empty when the run was killed just then.
            self.before = json.loads((Path(checkpoint) / CLOCK).read_text() or '{"seconds": 0}')["seconds"]
        self.start = None
        self.seconds = self.before

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            seconds = self.before + time.perf_counter() - self.start
            (folder / CLOCK).write_text(json.dumps({"seconds": seconds}))

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = self.before + time.perf_counter() - self.start
