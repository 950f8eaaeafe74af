"""Distillation as `run_distill.py` does it: find or train a teacher, label the data, train the student, report."""

import copy
import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import datasets
import numpy as np
from accelerate.state import AcceleratorState
from transformers import set_seed

from .arguments import AdversarialTrainingArguments, DataArguments, DistillationTrainingArguments, TeacherArguments
from .baseline import add_agreement, linear_baseline
from .batches import NO_LABEL, TEACHER_PREFIX, DistillationCollator, tokenize
from .building import get_student
from .cascade import cascade_of_run
from .ensemble import ClassifierTeacher, ColumnTeacher, Ensemble, Teacher, check_weights
from .errors import InputError
from .linear import fit_linear_to
from .loading import check_pairs, fit_length, label_list, load_classifier, load_tokenizer
from .metrics import compute_metrics
from .output_folder import (
    RECIPE,
    REPORT,
    check_sources,
    check_writable,
    claim_output_dir,
    differing_settings,
    find_checkpoint,
)
from .pairs import digest_texts
from .recipes import read_recipe
from .teacher import add_logits, align_labels, parse_label_map, teacher_digest, warn_at_chance
from .trainer import DistillationTrainer
from .transfer import HOLE, transfer_set
from .workflow import (
    build_trainer,
    check_model,
    conclude,
    finish_report,
    fit_alone,
    saved_model,
    score_model,
    train_model,
)

logger = logging.getLogger(__name__)

# Settings of a distillation that do not concern the same student trained alone.
DISTILLATION_SETTINGS = {
    *(field.name for field in dataclasses.fields(TeacherArguments)),
    *(field.name for field in dataclasses.fields(DistillationTrainingArguments)),
} - {field.name for field in dataclasses.fields(AdversarialTrainingArguments)} | {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "predict_file", "predict_output",
}  # fmt: skip
# Settings of the command line that also hold for a teacher that is trained first: the data, where to run, what to show.
SHARED_SETTINGS = {field.name for field in dataclasses.fields(DataArguments)} - {"max_seq_length"} | {
    "use_cpu",
    "disable_tqdm",
}


def compares_states(args):
    """The flag that asks for the states of student and teacher to be compared; None where none does."""
    return next((f"--{name}_weight" for name in args.state_weights), None)


def check_states(args, teacher_args, student_args):
    """
    Refuses to compare states, as far as the flags show it, where student and teacher do not run together on the same
    tokens.

    Raises:
        `InputError`
    """
    flag = compares_states(args)
    if flag is None or not args.do_train:
        return
    several = len(teacher_args.teacher_name_or_path or []) > 1
    loaded = student_args.tokenizer_name or student_args.model_name_or_path
    refused = {
        "several teachers": several,
        "--linear_teacher": teacher_args.linear_teacher,
        "--teacher_column": teacher_args.teacher_column is not None,
        "--teacher_mode cached": teacher_args.teacher_mode != "online",
        f"--tokenizer_type {student_args.tokenizer_type}": not loaded and student_args.tokenizer_type != "teacher",
    }
    for what, is_so in refused.items():
        if is_so:
            raise InputError(
                f"{flag} cannot work with {what}: give one model as teacher, --teacher_mode online --tokenizer_type "
                "teacher"
            )


def without_second_tokens(split, flag):
    """
    A tokenized split without the teacher's columns, which say the student's over again.

    Raises:
        `InputError`: Where they do not.
    """
    names = [name for name in split.column_names if name.startswith(TEACHER_PREFIX)]
    table = split.with_format("arrow")[:]
    for name in names:
        own = name.removeprefix(TEACHER_PREFIX)
        if own not in table.column_names or not table[own].equals(table[name]):
            raise InputError(
                f"{flag} compares student and teacher token by token, and their {own} differ: give --tokenizer_type "
                "teacher, and leave out --teacher_max_seq_length"
            )
    return split.remove_columns(names)


def is_trained(folder):
    """Whether a folder holds a model that is not the leftover of a run that was stopped."""
    folder = Path(folder)
    has_model = (folder / "config.json").exists() and any(folder.glob("model*.safetensors"))
    return has_model and ((folder / REPORT).exists() or not (folder / RECIPE).exists())


def find_teachers(run, teacher_args, given, parser, train_teacher):
    """
    Where the teachers are; one that has a recipe is trained first when it is not there yet.

    Args:
        run ([`Run`]): Its output folders must not be a teacher's.
        teacher_args ([`TeacherArguments`]): Names, recipe.
        given (`dict[str, Any]`): Settings of the command line; those about the data also hold for the teacher.
        parser ([`ScriptParser`]), train_teacher (`Callable`): Parser and `main` of `run_teacher.py`.

    Returns:
        `list[str]`: Folders or names on the hub; none where only others teach.

    Raises:
        `InputError`: When nobody is named who teaches, or the teacher cannot be trained.
    """
    names, recipe = teacher_args.teacher_name_or_path or [], teacher_args.teacher_recipe
    if not names and recipe is None:
        if teacher_args.teacher_column is None and not teacher_args.linear_teacher:
            raise InputError(
                "no teacher: give --teacher_name_or_path, --teacher_recipe, --teacher_column or --linear_teacher"
            )
        return []
    others = teacher_args.linear_teacher + (teacher_args.teacher_column is not None)
    check_weights(teacher_args.teacher_weights, max(len(names), recipe is not None) + others)
    if recipe is not None and len(names) > 1:
        raise InputError("--teacher_recipe trains one teacher: train the others with run_teacher.py and name them all")
    names = names or [read_recipe(recipe).get("output_dir")]
    if names[0] is None:
        raise InputError(f"{recipe} names no output_dir: add it, or give --teacher_name_or_path")
    for folder in (run.output_dir, alone_dir(run)):
        check_sources(folder, names)
    if teacher_args.teacher_cache_dir is not None and run.args.process_index == 0:
        check_writable(Path(teacher_args.teacher_cache_dir), "--teacher_cache_dir")
    if recipe is not None:
        follow_recipe(recipe, names[0], given, parser, train_teacher)
    return names


def follow_recipe(recipe, name, given, parser, train_teacher):
    """Trains a teacher into folder `name` unless it is there; says when that was trained otherwise."""
    flags = [f"--{key}={value}" for key, value in given.items() if key in SHARED_SETTINGS]
    command = [str(recipe), f"--output_dir={name}", *flags]
    *_, wanted, _ = parser.parse(command)
    if not is_trained(name):
        logger.warning(f"no trained teacher in {name}: training it first, as {recipe} says")
        try:
            train_teacher(command)
        except InputError as error:
            raise InputError(f"the teacher, run_teacher.py {' '.join(command)}: {error}") from error
        # Its precision, which accelerate keeps for the whole process, need not be the student's (the Trainer does the
        # same between two searches).
        AcceleratorState._reset_state()
    elif (Path(name) / RECIPE).exists():
        differing = differing_settings(Path(name), wanted, {"max_predict_samples"})
        if differing:
            logger.warning(f"THE TEACHER in {name} was trained otherwise ({differing}): remove it to train anew")


def load_teachers(names, teacher_args, student_args, data, max_seq_length):
    """
    The teachers: the models, their labels matched to the data's by name; a linear model, fitted here; whoever gave the
    answers that stand in the data.

    Args:
        names (`list[str]`): Folders or names on the hub.
        teacher_args ([`TeacherArguments`]): Label map, longest text, weights.
        student_args ([`StudentArguments`]): Cache folder and remote code of the hub.
        data ([`TextData`]): With the label names.
        max_seq_length (`int`): The student's, unless the teacher has its own.

    Returns:
        [`Ensemble`].

    Raises:
        `InputError`: When one cannot be loaded or its labels are others.
    """
    check_answers(teacher_args)
    label_map = parse_label_map(teacher_args.label_map)
    members = [load_teacher(name, label_map, teacher_args, student_args, data, max_seq_length) for name in names]
    known = {label for member in members for label in label_list(member.model.config)}
    if members and not label_map.keys() <= known:
        raise InputError(
            f"--label_map names {sorted(label_map.keys() - known)}, which no teacher has: their labels are "
            f"{sorted(known)}"
        )
    if teacher_args.linear_teacher:
        members.append(fit_linear_teacher(data))
    if data.has_answers:
        members.append(ColumnTeacher())
    if teacher_args.teacher_mode == "online" and (len(members) > 1 or not names):
        raise InputError("--teacher_mode online is for one model: use 'cached' for several or for others")
    return Ensemble(members, check_weights(teacher_args.teacher_weights, len(members)), teacher_args)


def check_answers(teacher_args):
    """Refuses texts to which a column of answers has none."""
    if teacher_args.teacher_column is not None and (teacher_args.unlabeled_file or teacher_args.augment):
        raise InputError(
            f"--teacher_column {teacher_args.teacher_column} has no answers for --augment and --unlabeled_file: leave "
            "them out, or give a model as teacher instead"
        )


def fit_linear_teacher(data):
    """The [`ClassifierTeacher`] of `--linear_teacher`, fitted on the labelled rows of the training split."""
    model, seconds = fit_linear_to(data, "--linear_teacher")
    return ClassifierTeacher(model, data.label_names, seconds)


def load_teacher(name, label_map, teacher_args, student_args, data, max_seq_length):
    """One [`Teacher`], as [`load_teachers`]; of the `label_map` what concerns it."""
    hub = dataclasses.replace(student_args, model_revision="main")
    model = load_classifier(name, hub, what="teacher")
    tokenizer = load_tokenizer(name, hub, "teacher's tokenizer")
    check_pairs(model, tokenizer, data.has_pairs)
    names = label_list(model.config)
    own = {old: new for old, new in label_map.items() if old in names}
    order = align_labels(names, data.label_names, own)
    if order != sorted(order):
        logger.warning(f"the teacher's labels {names} are re-ordered to the data's {data.label_names}")
    wanted = teacher_args.teacher_max_seq_length or max_seq_length
    max_length = fit_length(wanted, tokenizer, model.config, "the teacher's max_seq_length")
    digest = teacher_digest(model, tokenizer, max_length)
    return Teacher(name, model, tokenizer, order, max_length, teacher_args, reported_seconds(name), digest)


def reported_seconds(name):
    """How long the teacher in folder `name` trained, as its report says; None where there is none, or another's."""
    try:
        return float(json.loads((Path(name) / REPORT).read_text(encoding="utf-8"))["teacher"]["train_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_student(run, student_args, data, teacher=None, taught=False):
    """
    The student and its tokenizer; the same seed gives the same first weights with and without a teacher. A student that
    is not `taught` has no embeddings of the teacher ([`Ensemble`]) either, but may share its tokenizer.
    """
    set_seed(run.args.seed)
    max_length = run.data_args.max_seq_length
    if student_args.embedding_init == "teacher" and not taught:
        student_args = dataclasses.replace(student_args, embedding_init=None)
    first = (teacher.models[0].model, teacher.models[0].tokenizer) if teacher is not None and teacher.models else ()
    student, tokenizer = get_student(student_args, data, max_length, run.args.do_train, *first)
    check_pairs(student, tokenizer, run.reads_pairs)
    return student, tokenizer


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


def sources_digest(teacher, student_args, data):
    """
    Names everything that a student is made of and that settings only point to: the data, by its own digest, and behind
    a blank the teachers, other files, the texts that are left out of the transfer set.
    """
    digest = hashlib.sha256()
    for member in teacher.models:
        digest.update(member.digest.encode())
    for path in [*(teacher.args.unlabeled_file or []), student_args.embedding_init]:
        if path is not None and Path(path).is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    if (teacher.args.unlabeled_file or teacher.args.augment) and "test" in data.splits:
        digest.update(digest_texts(data.splits["test"]).encode())
    return f"{data.digest()} {digest.hexdigest()}"


def choose_mask(tokenizers):
    """What stands for a masked word in all models' texts: the first one's mask, where each reads it as one token."""
    mask = tokenizers[0].mask_token
    return mask if mask and all(tokenizer.tokenize(mask) == [mask] for tokenizer in tokenizers) else HOLE


def build_transfer_set(run, teacher, student_tokenizer, data, **changes):
    """[`transfer_set`] as the flags of the run say, but for `changes` of those about the teacher."""
    teacher_args, columns = dataclasses.replace(teacher.args, **changes), run.data_args
    mask = choose_mask([student_tokenizer, *(member.tokenizer for member in teacher.models)])
    return transfer_set(data, teacher_args, columns.text_column, mask, run.args.seed, columns.text_pair_column)


def teacher_columns(run, teacher, student_tokenizer, data, max_length):
    """
    The training and validation splits with what the trainer needs of the teacher: its logits, or its token columns.
    The transfer set, if any, is part of the training split. Warns of a teacher that is at chance level.

    Returns:
        `dict[str, datasets.Dataset]`.
    """
    online = teacher.args.teacher_mode == "online"
    its_tokens = (teacher.models[0].tokenizer, teacher.models[0].max_length) if online else ()
    texts = {name: data.splits[name] for name in ("train", "validation") if name in data.splits}
    parts = build_transfer_set(run, teacher, student_tokenizer, data)
    test_file = run.data_args.test_file
    if parts and test_file is not None and "test" not in data.splits:
        logger.warning(f"{test_file} is not read without --do_predict: its texts are not left out of the transfer set")
    more = {f"transfer {number}": part for number, part in enumerate(parts)}
    texts |= more
    with run.args.main_process_first(desc="tokenizing"):
        splits = {name: tokenize(split, student_tokenizer, max_length, *its_tokens) for name, split in texts.items()}
    if flag := compares_states(run.args):
        splits = {name: without_second_tokens(split, flag) for name, split in splits.items()}
    train = data.splits["train"]
    if online:
        labelled = np.flatnonzero(np.array(train["labels"][:]) != NO_LABEL)
        sample = train.select(np.random.default_rng(0).permutation(labelled)[:1000])
        warn_at_chance(teacher.logits(sample, run), sample["labels"][:])
    else:
        for name, split in texts.items():
            logits = teacher.logits(split, run, half=True)
            if logits is None and name == "validation":
                logger.warning("the validation split has no answers of the teacher: its loss is the labels' alone")
                continue
            if name == "train":
                warn_at_chance(logits, train["labels"][:])
            splits[name] = add_logits(splits[name], logits)
    taught = [splits.pop(name) for name in ("train", *more)]
    return {"train": datasets.concatenate_datasets(taught), **splits}


def warn_of_idle_settings(run, teacher_args):
    """Says which settings of the distillation were given in vain."""
    idle = {"num_augmented": None if teacher_args.augment else "without --augment"}
    if run.args.kd_loss == "mse":
        idle |= dict.fromkeys(("temperature", "final_temperature"), "--kd_loss mse has no temperature")
    for name, why in idle.items():
        if why and name in run.settings:
            logger.warning(f"--{name}: no effect, {why}")


def fit_distilled(run, student_args, student, tokenizer, teacher, data, max_length):
    """Trains the student with the teacher; returns the seconds it took."""
    check_model(run, student, tokenizer, max_length)
    warn_of_idle_settings(run, teacher.args)
    splits = teacher_columns(run, teacher, tokenizer, data, max_length)
    online = teacher.args.teacher_mode == "online"
    if not online:
        teacher.to("cpu")  # its work is done: the student has the device to itself
    trainer = build_trainer(
        DistillationTrainer,
        model=student,
        args=run.args,
        teacher=teacher.models[0].model if online else None,
        teacher_order=teacher.models[0].order if online else None,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer, teacher.tokenizer),
        compute_metrics=compute_metrics,
    )
    return train_model(run, trainer, sources_digest(teacher, student_args, data))


def fit_and_score(run, student_args, data, teacher, teacher_logits, taught):
    """
    A student from its first weights, or as it is loaded, to its row of the table.

    Args:
        run ([`Run`]), student_args ([`StudentArguments`]), data ([`TextData`]): What to do.
        teacher ([`Ensemble`]), teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)` or None): Of the split
            that is reported.
        taught (`bool`): Whether the teacher teaches it.

    Returns:
        `tuple`: The row, the logits by split, the student, its tokenizer.
    """
    student, tokenizer = new_student(run, student_args, data, teacher, taught)
    max_length = fit_length(run.data_args.max_seq_length, tokenizer, student.config)
    seconds = None
    if run.args.do_train:
        if taught:
            seconds = fit_distilled(run, student_args, student, tokenizer, teacher, data, max_length)
        else:
            seconds = fit_alone(run, student, tokenizer, data, max_length)
        student = saved_model(run, student_args)
    else:
        claim_output_dir(run.settings, run.args, None, data.digest())
    student.to(run.args.device)
    row, logits = score_model(run, student, tokenizer, data, max_length, teacher_logits, seconds)
    return row, logits, student, tokenizer


def distil(run, alone, teacher, student_args, data):
    """
    Everything that `run_distill.py` does once teacher and data are there: train, score, report, push, predict.

    Args:
        run ([`Run`]): What to do.
        alone ([`Run`] or None): The same without the teacher, when it is to be compared with.
        teacher ([`Ensemble`]): Loaded.
        student_args ([`StudentArguments`]): The student to build or to continue with.
        data ([`TextData`]): Its splits.
    """
    teacher.to(run.args.device)
    rows, logits = linear_baseline(run, data)
    row, answers = teacher.result(data, run)
    teacher_logits = answers.get(run.scored_split)
    if row is not None:
        rows["teacher"], logits["teacher"] = row, answers
    if alone is not None:
        rows["student"], logits["student"], *_ = fit_and_score(
            alone, student_args, data, teacher, teacher_logits, taught=False
        )
    rows["distilled"], logits["distilled"], student, tokenizer = fit_and_score(
        run, student_args, data, teacher, teacher_logits, taught=True
    )
    add_agreement(rows, logits, run.scored_split)
    max_length = fit_length(run.data_args.max_seq_length, tokenizer, student.config)
    cascade = None
    if run.args.process_index == 0:
        cascade = cascade_of_run(run, rows, data, logits, teacher, student, max_length)
    finish_report(run, rows, data, logits, cascade)
    conclude(run, student, tokenizer, max_length, data)
