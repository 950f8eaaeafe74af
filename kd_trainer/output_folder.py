"""An output folder belongs to one run: found finished, taken up where it was killed, or made this run's own."""

import json
import logging
import shutil
import time
from pathlib import Path

import yaml
from transformers import TrainerCallback

from .errors import InputError

logger = logging.getLogger(__name__)

REPORT, RECIPE, CLOCK = "report.json", "recipe.yaml", "clock.json"
CHECKPOINT_STATE = "trainer_state.json"  # what the Trainer writes into a checkpoint last of all
SECRET_SETTINGS = {"hub_token"}
# Settings that may change when a killed run is taken up again: they do not change what it computes.
FREE_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "disable_tqdm", "log_level", "logging_steps",
    "report_to", "predict_file", "predict_text", "predict_output", "do_eval", "do_predict", "teacher_cache_dir",
    "teacher_batch_size", "compare_student", "push_to_hub", "hub_model_id", "hub_token",
}  # fmt: skip


def plain(settings):
    """Settings as YAML and JSON can hold them, without those that nobody else may read."""
    public = {name: value for name, value in settings.items() if name not in SECRET_SETTINGS}
    return json.loads(json.dumps(public, default=str))


def differing_settings(folder, settings):
    """In which settings the run in `folder` differs from `settings`, in one line; empty when in none that matters."""
    saved, settings = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")), plain(settings)
    names = sorted((saved.keys() | settings.keys()) - FREE_SETTINGS)
    changes = [(name, saved.get(name), settings.get(name)) for name in names]
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, old, new in changes if old != new)


def last_checkpoint(folder):
    """The last checkpoint in `folder` that was written to its end, as `str`, or None."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{CHECKPOINT_STATE}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


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
        `InputError`: When the folder holds a finished run, another unfinished one, or a model of unknown origin.
    """
    cure = "choose another --output_dir, or replace it with --overwrite_output_dir"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file: choose a folder")
    if args.resume_from_checkpoint is not None and not Path(args.resume_from_checkpoint).is_dir():
        raise InputError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: no such folder: give a checkpoint's")
    if overwrite or not folder.exists():
        return args.resume_from_checkpoint
    if (folder / REPORT).exists():
        raise InputError(f"--output_dir {folder} holds a finished run ({REPORT}): {cure}")
    last = last_checkpoint(folder)
    if not (folder / RECIPE).exists():
        if last is not None or (folder / "config.json").exists():
            raise InputError(f"--output_dir {folder} holds a model that this run did not make: {cure}")
        return args.resume_from_checkpoint
    differing = differing_settings(folder, settings)
    if last is not None and differing:
        raise InputError(f"--output_dir {folder} holds an unfinished run of other settings ({differing}): {cure}")
    return args.resume_from_checkpoint or last


def claim_output_dir(settings, args, checkpoint):
    """
    Makes the output folder this run's own: its settings go into `recipe.yaml`, and unless it continues from a
    `checkpoint`, what another run left there goes.
    """
    if args.process_index == 0:
        folder = Path(args.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if checkpoint is None:
                (folder / REPORT).unlink(missing_ok=True)
            for old in folder.glob("checkpoint-*"):
                if checkpoint is None or not (old / CHECKPOINT_STATE).exists():
                    shutil.rmtree(old)
            (folder / RECIPE).write_text(yaml.safe_dump(plain(settings), allow_unicode=True), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another") from None
    args.distributed_state.wait_for_everyone()
    if checkpoint is not None:
        logger.warning(f"continuing the run in {args.output_dir} from {checkpoint}")


class TrainingClock(TrainerCallback):
    """Seconds of training, those before a resumed checkpoint included."""

    def __init__(self, checkpoint=None):
        self.before = 0.0
        if checkpoint is not None and (Path(checkpoint) / CLOCK).exists():
            self.before = json.loads((Path(checkpoint) / CLOCK).read_text())["seconds"]
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
