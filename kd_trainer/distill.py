"""Distillation as `run_distill.py` does it: find or train a teacher, label the data, train the student, report."""

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .arguments import DataArguments, TeacherArguments, read_recipe
from .data import DistillationCollator
from .errors import InputError
from .loading import check_folder, fit_length, load_classifier, load_tokenizer
from .metrics import compute_metrics
from .teacher import add_logits, align_labels, cached_logits, parse_label_map, warn_at_chance
from .trainer import DistillationTrainer
from .workflow import (
    REPORT,
    check_validation,
    find_checkpoint,
    finish_report,
    fit_alone,
    get_student,
    get_tokenizer,
    predict,
    saved_model,
    score_model,
    sequence_length,
    tokenized,
    train_model,
    training_texts,
)

logger = logging.getLogger(__name__)

# Settings of a distillation that do not concern the same student trained alone.
DISTILLATION_SETTINGS = {
    *(field.name for field in dataclasses.fields(TeacherArguments)), "alpha", "temperature", "kd_loss", "output_dir",
    "overwrite_output_dir", "resume_from_checkpoint", "predict_file", "predict_output",
}  # fmt: skip


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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: list[int]
    max_length: int
    args: TeacherArguments
    train_seconds: float | None

    def logits(self, texts):
        """Logits of `texts` in the data's label order, `(len(texts), num_labels)`, cached on disk."""
        args = self.args
        logits = cached_logits(
            self.model, self.tokenizer, texts, self.max_length, args.teacher_batch_size, args.teacher_cache_dir
        )
        return logits[:, self.order]


def is_trained(folder):
    """Whether a folder holds a model that is not the leftover of a run that was stopped."""
    folder = Path(folder)
    has_model = (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
    return has_model and ((folder / REPORT).exists() or not (folder / "recipe.yaml").exists())


def find_teacher(teacher_args, given, train_teacher):
    """
    Where the teacher is, trained by its recipe first when it is not there yet.

    Args:
        teacher_args ([`TeacherArguments`]): Name, recipe.
        given (`dict[str, Any]`): Settings of the command line; those about the data also hold for the teacher.
        train_teacher (`Callable`): `main` of `run_teacher.py`.

    Returns:
        `str`: Folder or name on the hub.

    Raises:
        `InputError`: When neither a name nor a recipe is given.
    """
    name, recipe = teacher_args.teacher_name_or_path, teacher_args.teacher_recipe
    if recipe is None:
        if name is None:
            raise InputError("no teacher: give --teacher_name_or_path or --teacher_recipe")
        return name
    name = name or read_recipe(recipe).get("output_dir")
    if name is None:
        raise InputError(f"{recipe} names no output_dir: add it, or give --teacher_name_or_path")
    if not is_trained(name):
        logger.warning(f"no trained teacher in {name}: training it first, as {recipe} says")
        shared = {field.name for field in dataclasses.fields(DataArguments)} - {"max_seq_length"} | {"use_cpu"}
        flags = [f"--{key}={value}" for key, value in given.items() if key in shared]
        train_teacher([str(recipe), f"--output_dir={name}", *flags])
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
    check_folder(name, "teacher")
    model = load_classifier(name, hub, what="teacher")
    tokenizer = load_tokenizer(name, hub, "teacher's tokenizer")
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    order = align_labels(names, data.label_names, parse_label_map(teacher_args.label_map))
    if order != sorted(order):
        logger.warning(f"the teacher's labels {names} are re-ordered to the data's {data.label_names}")
    wanted = teacher_args.teacher_max_seq_length or max_seq_length
    max_length = fit_length(wanted, tokenizer, model.config, "the teacher's max_seq_length")
    report = Path(name) / REPORT
    seconds = None
    if report.is_file():
        seconds = json.loads(report.read_text(encoding="utf-8")).get("teacher", {}).get("train_seconds")
    return Teacher(model, tokenizer, order, max_length, teacher_args, seconds)


def prepare_student(run, student_args, teacher, data):
    """The student and its tokenizer; the same seed gives the same first weights with and without a teacher."""
    set_seed(run.args.seed)
    if student_args.tokenizer_type == "teacher" and student_args.model_name_or_path is None:
        tokenizer = teacher.tokenizer
    else:
        bert_style = student_args.config_name is not None
        tokenizer = get_tokenizer(student_args, training_texts(data), run.data_args.max_seq_length, bert_style)
    return get_student(student_args, tokenizer, data.label_names, training=run.args.do_train), tokenizer


def teacher_columns(run, teacher, student_tokenizer, data, max_length):
    """
    The training and validation splits with what the trainer needs of the teacher: its logits, or its token columns.

    Returns:
        `dict[str, datasets.Dataset]`.
    """
    online = teacher.args.teacher_mode == "online"
    its_tokens = (teacher.tokenizer, teacher.max_length) if online else ()
    splits = {}
    for name in ("train", "validation"):
        if name in data.splits:
            splits[name] = tokenized(data, name, student_tokenizer, max_length, *its_tokens)
            if not online:
                splits[name] = add_logits(splits[name], teacher.logits(data.splits[name]["text"][:]))
    train = data.splits["train"]
    if online:
        rows = np.random.default_rng(0).permutation(len(train))[:1000]
        warn_at_chance(teacher.logits([train[int(row)]["text"] for row in rows]), np.array(train["labels"])[rows])
    else:
        warn_at_chance(np.array(splits["train"].with_format("numpy")["teacher_logits"][:]), np.array(train["labels"]))
    return splits


def fit_distilled(run, student, tokenizer, teacher, data, max_length):
    """Trains the student with the teacher; returns the seconds it took."""
    check_validation(run, data)
    with run.args.main_process_first(desc="teacher's logits"):
        splits = teacher_columns(run, teacher, tokenizer, data, max_length)
    trainer = DistillationTrainer(
        model=student,
        args=run.args,
        teacher=teacher.model if teacher.args.teacher_mode == "online" else None,
        teacher_order=teacher.order,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer, teacher.tokenizer),
        compute_metrics=compute_metrics,
    )
    return train_model(run, trainer)


def alone_row(run, student_args, teacher, data, teacher_logits):
    """
    The same student trained without the teacher, in `OUTPUT_DIR-alone`.

    Returns:
        `dict`: Its row of the table.
    """
    folder = run.output_dir.with_name(f"{run.output_dir.name}-alone")
    settings = {name: value for name, value in run.settings.items() if name not in DISTILLATION_SETTINGS}
    args = copy.deepcopy(run.args)
    args.output_dir, args.push_to_hub, args.resume_from_checkpoint = str(folder), False, None
    checkpoint = find_checkpoint(folder, settings, args, run.run_args.overwrite_output_dir)
    alone = dataclasses.replace(run, settings=settings, args=args, checkpoint=checkpoint)
    student, tokenizer = prepare_student(run, student_args, teacher, data)
    max_length = sequence_length(run, tokenizer, student)
    seconds = fit_alone(alone, student, tokenizer, data, max_length)
    student = saved_model(folder, student_args).to(run.args.device)
    row, _ = score_model(run, student, tokenizer, data, max_length, None, teacher_logits, seconds)
    return row


def distil(run, teacher, student_args, data):
    """
    Everything that `run_distill.py` does once teacher and data are there: train, push, score, report, predict.

    Args:
        run ([`Run`]): What to do.
        teacher ([`Teacher`]): Loaded.
        student_args ([`StudentArguments`]): The student to build or to continue with.
        data ([`TextData`]): Its splits.
    """
    teacher.model.to(run.args.device)
    with run.args.main_process_first(desc="teacher's logits"):
        teacher_logits = teacher.logits(data.splits[run.scored_split]["text"][:])
    rows = {}
    rows["teacher"], _ = score_model(
        run, teacher.model, teacher.tokenizer, data, teacher.max_length, teacher_logits, None, teacher.train_seconds
    )
    if run.args.do_train and teacher.args.compare_student:
        rows["student"] = alone_row(run, student_args, teacher, data, teacher_logits)
    student, tokenizer = prepare_student(run, student_args, teacher, data)
    max_length = sequence_length(run, tokenizer, student)
    seconds = None
    if run.args.do_train:
        seconds = fit_distilled(run, student, tokenizer, teacher, data, max_length)
        student = saved_model(run.output_dir, student_args)
    student.to(run.args.device)
    rows["distilled"], logits = score_model(run, student, tokenizer, data, max_length, None, teacher_logits, seconds)
    finish_report(run, rows, data, logits)
    predict(run, student, tokenizer, max_length)
