"""Distillation as `run_distill.py` does it: find or train a teacher, label the data, train the student, report."""

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .arguments import DataArguments, TeacherArguments
from .batches import NO_LABEL, DistillationCollator, tokenize
from .building import get_student
from .errors import InputError
from .loading import fit_length, label_list, load_classifier, load_tokenizer
from .metrics import compute_metrics
from .output_folder import RECIPE, REPORT, check_sources, check_writable, differing_settings, find_checkpoint
from .recipes import read_recipe
from .teacher import add_logits, align_labels, cached_logits, parse_label_map, teacher_digest, warn_at_chance
from .trainer import DistillationTrainer
from .workflow import (
    build_trainer,
    check_model,
    finish_report,
    fit_alone,
    predict,
    saved_model,
    score_model,
    train_model,
)

logger = logging.getLogger(__name__)

# Settings of a distillation that do not concern the same student trained alone.
DISTILLATION_SETTINGS = {
    *(field.name for field in dataclasses.fields(TeacherArguments)), "alpha", "temperature", "kd_loss", "output_dir",
    "overwrite_output_dir", "resume_from_checkpoint", "predict_file", "predict_output",
}  # fmt: skip
# Settings of the command line that also hold for a teacher that is trained first: the data, where to run, what to show.
SHARED_SETTINGS = {field.name for field in dataclasses.fields(DataArguments)} - {"max_seq_length"} | {
    "use_cpu",
    "disable_tqdm",
}


@dataclass
class Teacher:
    """
    A trained teacher, ready to label.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): In fp32, with its own tokenizer.
        order (`list[int]`): For every label of the data the teacher's index.
        max_length (`int`): In its tokens.
        args ([`TeacherArguments`]): Batch size, cache, mode.
        train_seconds (`float`, *optional*): From its report, where it has one.
        digest (`str`): See [`teacher_digest`].
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: list[int]
    max_length: int
    args: TeacherArguments
    train_seconds: float | None
    digest: str

    def logits(self, texts, run, half=False):
        """
        Logits of `texts` in the data's label order, `(len(texts), num_labels)`, cached on disk. All processes of the
        run must call this.
        """
        logits = cached_logits(
            self.model,
            self.tokenizer,
            texts,
            self.max_length,
            batch_size=self.args.teacher_batch_size or (1024 if self.model.device.type == "cuda" else 64),
            cache_dir=self.args.teacher_cache_dir,
            half=half,
            state=run.args.distributed_state if run.args.world_size > 1 else None,
            digest=self.digest,
        )
        return logits[:, self.order]


def is_trained(folder):
    """Whether a folder holds a model that is not the leftover of a run that was stopped."""
    folder = Path(folder)
    has_model = (folder / "config.json").exists() and any(folder.glob("model*.safetensors"))
    return has_model and ((folder / REPORT).exists() or not (folder / RECIPE).exists())


def find_teacher(run, teacher_args, given, parser, train_teacher):
    """
    Where the teacher is, trained by its recipe first when it is not there yet.

    Args:
        run ([`Run`]): Its output folders must not be the teacher's.
        teacher_args ([`TeacherArguments`]): Name, recipe.
        given (`dict[str, Any]`): Settings of the command line; those about the data also hold for the teacher.
        parser ([`ScriptParser`]), train_teacher (`Callable`): Parser and `main` of `run_teacher.py`.

    Returns:
        `str`: Folder or name on the hub.

    Raises:
        `InputError`: When neither a name nor a recipe is given, or the teacher cannot be trained.
    """
    name, recipe = teacher_args.teacher_name_or_path, teacher_args.teacher_recipe
    if name is None and recipe is None:
        raise InputError("no teacher: give --teacher_name_or_path or --teacher_recipe")
    name = name or read_recipe(recipe).get("output_dir")
    if name is None:
        raise InputError(f"{recipe} names no output_dir: add it, or give --teacher_name_or_path")
    for folder in (run.output_dir, alone_dir(run)):
        check_sources(folder, [name])
    if teacher_args.teacher_cache_dir is not None and run.args.process_index == 0:
        check_writable(Path(teacher_args.teacher_cache_dir), "--teacher_cache_dir")
    if recipe is None:
        return name
    flags = [f"--{key}={value}" for key, value in given.items() if key in SHARED_SETTINGS]
    command = [str(recipe), f"--output_dir={name}", *flags]
    *_, wanted, _ = parser.parse(command)
    if not is_trained(name):
        logger.warning(f"no trained teacher in {name}: training it first, as {recipe} says")
        try:
            train_teacher(command)
        except InputError as error:
            raise InputError(f"the teacher, run_teacher.py {' '.join(command)}: {error}") from error
    elif (Path(name) / RECIPE).exists():
        differing = differing_settings(Path(name), wanted, {"max_predict_samples"})
        if differing:
            logger.warning(f"THE TEACHER in {name} was trained otherwise ({differing}): remove it to train anew")
    return name


def load_teacher(name, teacher_args, student_args, data, max_seq_length):
    """
    The teacher with its labels matched to the data's by name.

    Args:
        name (`str`): Folder or name on the hub.
        teacher_args ([`TeacherArguments`]): Label map, longest text.
        student_args ([`StudentArguments`]): Cache folder and remote code of the hub.
        data ([`TextData`]): With the label names.
        max_seq_length (`int`): The student's, unless the teacher has its own.

    Returns:
        [`Teacher`].

    Raises:
        `InputError`: When it cannot be loaded or its labels are others.
    """
    hub = dataclasses.replace(student_args, model_revision="main")
    model = load_classifier(name, hub, what="teacher")
    tokenizer = load_tokenizer(name, hub, "teacher's tokenizer")
    names = label_list(model.config)
    order = align_labels(names, data.label_names, parse_label_map(teacher_args.label_map))
    if order != sorted(order):
        logger.warning(f"the teacher's labels {names} are re-ordered to the data's {data.label_names}")
    wanted = teacher_args.teacher_max_seq_length or max_seq_length
    max_length = fit_length(wanted, tokenizer, model.config, "the teacher's max_seq_length")
    digest = teacher_digest(model, tokenizer, max_length)
    return Teacher(model, tokenizer, order, max_length, teacher_args, reported_seconds(name), digest)


def reported_seconds(name):
    """How long the teacher in folder `name` trained, as its report says; None where there is none, or another's."""
    try:
        return float(json.loads((Path(name) / REPORT).read_text(encoding="utf-8"))["teacher"]["train_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_student(run, student_args, data, teacher_tokenizer=None):
    """The student and its tokenizer; the same seed gives the same first weights with and without a teacher."""
    set_seed(run.args.seed)
    return get_student(student_args, data, run.data_args.max_seq_length, run.args.do_train, teacher_tokenizer)


def alone_dir(run):
    """Where the same student without the teacher is saved: `OUTPUT_DIR-alone`."""
    return run.output_dir.with_name(f"{run.output_dir.name}-alone")


def plan_alone(run):
    """The [`Run`] of the same student without the teacher; refuses a folder of another run."""
    folder = alone_dir(run)
    settings = {name: value for name, value in run.settings.items() if name not in DISTILLATION_SETTINGS}
    args = copy.deepcopy(run.args)
    args.output_dir, args.push_to_hub, args.resume_from_checkpoint = str(folder), False, None
    checkpoint = find_checkpoint(folder, settings, args, run.run_args.overwrite_output_dir)
    return dataclasses.replace(run, settings=settings, args=args, checkpoint=checkpoint)


def teacher_columns(run, teacher, student_tokenizer, data, max_length):
    """
    The training and validation splits with what the trainer needs of the teacher: its logits, or its token columns.
    Warns of a teacher that is at chance level.

    Returns:
        `dict[str, datasets.Dataset]`.
    """
    online = teacher.args.teacher_mode == "online"
    its_tokens = (teacher.tokenizer, teacher.max_length) if online else ()
    with run.args.main_process_first(desc="tokenizing"):
        splits = {
            name: tokenize(data.splits[name], student_tokenizer, max_length, *its_tokens)
            for name in ("train", "validation")
            if name in data.splits
        }
    train = data.splits["train"]
    if online:
        labelled = np.flatnonzero(np.array(train["labels"][:]) != NO_LABEL)
        sample = train.select(np.random.default_rng(0).permutation(labelled)[:1000])
        warn_at_chance(teacher.logits(sample["text"][:], run), sample["labels"][:])
        return splits
    for name in splits:
        logits = teacher.logits(data.splits[name]["text"][:], run, half=True)
        splits[name] = add_logits(splits[name], logits)
        if name == "train":
            warn_at_chance(logits, train["labels"][:])
    return splits


def fit_distilled(run, student, tokenizer, teacher, data, max_length):
    """Trains the student with the teacher; returns the trainer and the seconds it took."""
    check_model(run, student, tokenizer, max_length)
    splits = teacher_columns(run, teacher, tokenizer, data, max_length)
    online = teacher.args.teacher_mode == "online"
    if not online:
        teacher.model.to("cpu")  # its work is done: the student has the device to itself
    trainer = build_trainer(
        DistillationTrainer,
        model=student,
        args=run.args,
        teacher=teacher.model if online else None,
        teacher_order=teacher.order,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer, teacher.tokenizer),
        compute_metrics=compute_metrics,
    )
    return trainer, train_model(run, trainer, data)


def fit_and_score(run, student_args, data, teacher, teacher_logits, taught):
    """
    A student from its first weights, or as it is loaded, to its row of the table.

    Args:
        run ([`Run`]), student_args ([`StudentArguments`]), data ([`TextData`]): What to do.
        teacher ([`Teacher`]), teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)`): Of the split reported.
        taught (`bool`): Whether the teacher teaches it.

    Returns:
        `tuple`: The row, the logits on the split reported, the trainer (None where there was nothing to train), the
        student, its tokenizer.
    """
    student, tokenizer = new_student(run, student_args, data, teacher.tokenizer)
    max_length = fit_length(run.data_args.max_seq_length, tokenizer, student.config)
    trainer, seconds = None, None
    if run.args.do_train:
        if taught:
            trainer, seconds = fit_distilled(run, student, tokenizer, teacher, data, max_length)
        else:
            trainer, seconds = fit_alone(run, student, tokenizer, data, max_length)
        student = saved_model(run, student_args)
    student.to(run.args.device)
    row, logits = score_model(run, student, tokenizer, data, max_length, None, teacher_logits, seconds)
    return row, logits, trainer, student, tokenizer


def distil(run, alone, teacher, student_args, data):
    """
    Everything that `run_distill.py` does once teacher and data are there: train, score, report, push, predict.

    Args:
        run ([`Run`]): What to do.
        alone ([`Run`] or None): The same without the teacher, when it is to be compared with.
        teacher ([`Teacher`]): Loaded.
        student_args ([`StudentArguments`]): The student to build or to continue with.
        data ([`TextData`]): Its splits.
    """
    teacher.model.to(run.args.device)
    teacher_logits = teacher.logits(data.splits[run.scored_split]["text"][:], run)
    rows, logits = {}, {}
    rows["teacher"], logits["teacher"] = score_model(
        run, teacher.model, teacher.tokenizer, data, teacher.max_length, teacher_logits, None, teacher.train_seconds
    )
    if alone is not None:
        rows["student"], logits["student"], *_ = fit_and_score(
            alone, student_args, data, teacher, teacher_logits, taught=False
        )
    rows["distilled"], logits["distilled"], trainer, student, tokenizer = fit_and_score(
        run, student_args, data, teacher, teacher_logits, taught=True
    )
    finish_report(run, rows, data, logits, trainer)
    predict(run, student, tokenizer, fit_length(run.data_args.max_seq_length, tokenizer, student.config))
