"""
A student that asks its teacher where it is not sure.

    python -m kd_trainer.cascade STUDENT --teacher TEACHER --validation_file dev.tsv --test_file test.tsv

chooses the confidence below which a text is left to the teacher, on the validation split, so that both together are at
least as accurate as the teacher; keeps it in the student's config.json, and says what it gives on the test split.
"""

import dataclasses
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser, PreTrainedModel

from .answers import teacher_answers
from .arguments import DataArguments, ModelArguments, check_size, is_number
from .card import check_rewritable, has_own_card, read_run, rewrite
from .console import OneLineErrors, log_to_terminal, run_console
from .data import load_data
from .deferral import MARGIN, choose_cascade, confidences, coverage_curve, format_cascade
from .errors import InputError
from .inference import predict_logits
from .loading import check_pairs, first_given, fit_length, label_list, load_classifier, load_tokenizer
from .output_folder import PLOTS, REPORT
from .pairs import digest_texts, texts_of
from .plots import STYLE, new_figure, save
from .report import measure_speed, prediction_rows, read_report, write_json
from .teacher import align_labels, parse_label_map

logger = logging.getLogger(__name__)

PLOT = Path(PLOTS) / "cascade.png"
OTHER_TEXTS = "a threshold is judged on other texts than those that it was chosen on, give such"


def load(model, args, what):
    """`(model, tokenizer)` of a folder or a name on the hub; what is a tuple already is given back."""
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)) and hasattr(model[0], "config"):
        return model
    if not isinstance(model, (str, Path)):
        raise InputError(f"{what}: {type(model).__name__} is none: give a folder, a name, or (model, tokenizer)")
    return load_classifier(str(model), args, what=what), load_tokenizer(str(model), args, f"{what}'s tokenizer")


def check_other(student, teacher):
    """Refuses a teacher that is the student itself, of folders or names; what else they may be is another."""
    if not isinstance(student, str | Path) or not isinstance(teacher, str | Path):
        return
    are_there = os.path.exists(student) and os.path.exists(teacher)
    if str(student) == str(teacher) or are_there and os.path.samefile(student, teacher):
        raise InputError(f"teacher {teacher} is the student itself: give the model that it is to ask")


def cascade_settings(config):
    """
    What a student's configuration says of its cascade, `dict`; empty where it says nothing.

    Raises:
        `InputError`: For a value that makes no cascade.
    """
    settings = config.to_dict().get("cascade")
    try:
        if not isinstance(settings, dict | None):
            raise InputError(f"cascade is {settings!r:.60}: it must be an object")
        settings = {name: value for name, value in (settings or {}).items() if value is not None}
        check_threshold(settings.get("threshold", 0))
        for name in {"max_seq_length", "teacher_max_seq_length"} & settings.keys():
            check_size(name, settings[name])
        for name in {"teacher", "label_map"} & settings.keys():
            if not isinstance(settings[name], str):
                raise InputError(f"{name} is {settings[name]!r:.60}: it must be a text")
    except InputError as error:
        raise InputError(f"config.json, cascade: {error}; choose it again, python -m kd_trainer.cascade") from None
    return settings


def check_threshold(threshold):
    """Refuses what is not a number in 0..1."""
    if not is_number(threshold, 0, 1):
        raise InputError(f"threshold is {threshold!r:.60}: it must be a number in 0..1")


class CascadeClassifier:
    """
    A student that answers the texts of which it is sure, and leaves the others to its teacher.

    Args:
        student (`str` or `tuple[PreTrainedModel, PreTrainedTokenizerBase]`): Folder or name on the hub, safetensors
            weights only; or the model with its tokenizer, on the device it is to run on.
        teacher (`str`, such a tuple, scikit-learn classifier or `Callable`, *optional*): The same; or whatever
            [`teacher_answers`] takes. Default: the name on the hub in the student's configuration.
        threshold (`float`, *optional*): The student answers where its largest probability is above. Default: that in
            its configuration, where `run_distill.py` and `python -m kd_trainer.cascade` keep it.
        max_seq_length, teacher_max_seq_length (`int`, *optional*): In tokens. Default: those in the configuration, or
            128, or what the model takes.
        label_map (`str`, *optional*): The teacher's labels in the student's words, `"old=new,…"`.
        batch_size (`int`, *optional*, defaults to 64): Texts per forward.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with a model may run.

    Raises:
        `InputError` (a `ValueError`): When a model cannot be loaded, their labels differ, no threshold is known, or
            a value is none of its kind.

    Example:

    ```python
    classify = CascadeClassifier("outputs/student", "outputs/teacher")
    classify("股市大涨")  # {"label": "stocks", "answered_by": "student", "probabilities": {"stocks": 0.98, …}}
    ```
    """

    def __init__(
        self,
        student,
        teacher=None,
        threshold=None,
        max_seq_length=None,
        teacher_max_seq_length=None,
        label_map=None,
        batch_size=64,
        trust_remote_code=False,
    ):
        check_size("batch_size", batch_size)
        args = ModelArguments(trust_remote_code=trust_remote_code)
        self.student, self.tokenizer = load(student, args, "student")
        self.label_names, self.batch_size = label_list(self.student.config), batch_size
        settings = cascade_settings(self.student.config)
        threshold = settings.get("threshold") if threshold is None else threshold
        if threshold is None:
            raise InputError(
                "this student has no threshold: choose one with python -m kd_trainer.cascade STUDENT --teacher TEACHER "
                "--validation_file … --test_file …, or pass threshold=…"
            )
        check_threshold(threshold)
        self.threshold = float(threshold)
        max_seq_length = first_given(max_seq_length, settings.get("max_seq_length"), DataArguments.max_seq_length)
        self.max_length = fit_length(max_seq_length, self.tokenizer, self.student.config, "max_seq_length")
        teacher = settings.get("teacher") if teacher is None else teacher
        check_other(student, teacher)
        if teacher is None:
            raise InputError("no teacher: give its folder or its name on the hub")
        self.teacher, self.teacher_tokenizer = teacher, None
        is_other = callable(teacher) or hasattr(teacher, "classes_")
        if isinstance(teacher, PreTrainedModel) or not is_other:
            self.teacher, self.teacher_tokenizer = load(teacher, args, "teacher")
            wanted = first_given(teacher_max_seq_length, settings.get("teacher_max_seq_length"), max_seq_length)
            config = self.teacher.config
            self.teacher_max_length = fit_length(wanted, self.teacher_tokenizer, config, "teacher_max_seq_length")
            label_map = parse_label_map(settings.get("label_map") if label_map is None else label_map)
            self.order = align_labels(label_list(config), self.label_names, label_map)

    def teacher_logits(self, texts):
        """The teacher's logits of all `texts`, `(len(texts), num_labels)`, in the student's label order."""
        if self.teacher_tokenizer is None:
            return teacher_answers(self.teacher, texts, self.label_names)
        check_pairs(self.teacher, self.teacher_tokenizer, isinstance(texts[0], tuple))
        logits = predict_logits(
            self.teacher, self.teacher_tokenizer, texts, self.teacher_max_length, self.batch_size, None
        )
        return logits[:, self.order]

    def student_logits(self, texts):
        """The student's logits of all `texts`, `(len(texts), num_labels)`."""
        if texts:
            check_pairs(self.student, self.tokenizer, isinstance(texts[0], tuple))
        return predict_logits(self.student, self.tokenizer, texts, self.max_length, self.batch_size, None)

    def answer(self, texts):
        """
        All texts through the student, those of which it is not sure through the teacher, at once.

        Args:
            texts (`list[str]` or `list[tuple[str, str]]`): Any number.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: Logits `(len(texts), num_labels)`, float32; which texts the teacher has
            answered, `(len(texts),)`, bool.

        Raises:
            `InputError` (a `ValueError`): As [`predict_logits`]; for pairs and a student of single texts.
        """
        logits = self.student_logits(texts)
        asked = confidences(logits) <= self.threshold
        if asked.any():
            logits[asked] = self.teacher_logits([texts[row] for row in np.flatnonzero(asked)])
        return logits, asked

    def __call__(self, texts):
        """
        Args:
            texts (`str`, `tuple[str, str]` or a `list` of either): A text, a pair of texts, or several.

        Returns:
            `dict` or `list[dict]`: `label`, `answered_by` (`"student"` or `"teacher"`), `probabilities` by label name.
        """
        given = texts if isinstance(texts, list) else [texts]
        logits, asked = self.answer(given)
        rows = prediction_rows(given, logits, self.label_names, asked)
        answers = [{name: row[name] for name in ("label", "answered_by", "probabilities")} for row in rows]
        return answers if isinstance(texts, list) else answers[0]


def teacher_settings(name, max_length, label_map):
    """What a student's configuration keeps of its teacher, `dict`."""
    settings = {"teacher_max_seq_length": max_length, "teacher": name, "label_map": label_map}
    if Path(name).exists():  # a folder here is none elsewhere
        settings["teacher"] = None
    return {key: value for key, value in settings.items() if value is not None}


def save_cascade(folder, settings, *configs):
    """
    Keeps a cascade in a saved student's `config.json`, which is replaced whole, and touches nothing else.

    Args:
        folder (`Path`): The student's.
        settings (`dict`): `threshold` and what [`CascadeClassifier`] else finds there.
        configs (`PreTrainedConfig`): The same student's in memory: what saves them again keeps it too.
    """
    path = Path(folder) / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, dict(sorted({**content, "cascade": settings}.items())))
    for config in configs:
        config.cascade = settings


def draw(curve, found, path):
    """
    A PNG: accuracy against the share of the texts that the student answers.

    Args:
        curve (`dict[str, np.ndarray]`): [`coverage_curve`] of the split reported.
        found (`dict`): [`choose_cascade`].
        path (`Path`): Its folder is made.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure((6.4, 4))
        axes.plot(100 * curve["coverage"], 100 * curve["accuracy"], color="C0", label="student, teacher for the rest")
        for name, style in (("teacher", "--"), ("student", ":")):
            axes.axhline(
                100 * found[f"{name}_accuracy"], color="0.4", linestyle=style, linewidth=1, label=f"{name} alone"
            )
        axes.plot(
            100 * found["coverage"],
            100 * found["accuracy"],
            "o",
            color="C3",
            label=f"threshold {found['threshold']:.4f}",
        )
        axes.set_xlabel("answered by the student, % of the texts")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{found['rows']:,} texts; the threshold was chosen on others", loc="left", fontsize=9)
        axes.legend(frameon=False, fontsize=8)
        save(figure, path)


def draw_if_possible(reported, found, path):
    """[`draw`] of the split reported, where matplotlib is installed."""
    try:
        draw(coverage_curve(*reported), found, path)
    except ImportError:
        logger.info("no plot of the cascade: it needs matplotlib, pip install 'kd_trainer[plot]'")


def cascade_of_run(run, rows, data, logits, teacher, student, max_length):
    """
    The cascade of a distilled student with its teacher, chosen on the validation split and kept in the output folder.

    Args:
        run ([`Run`]), data ([`TextData`]): What was done, on what.
        rows (`dict[str, dict]`), logits (`dict[str, dict[str, np.ndarray]]`): As [`finish_report`].
        teacher ([`Ensemble`]): That has taught.
        student (`PreTrainedModel`): As it is scored.
        max_length (`int`): The student's longest text, in tokens.

    Returns:
        `dict` or None: See [`choose_cascade`]; None where one of the two splits is not there, or is too small.
    """
    splits = ("validation", run.scored_split)
    answers = [logits.get(name) or {} for name in ("distilled", "teacher")]
    if splits[0] == splits[1] or not all(split in answer for answer in answers for split in splits):
        return None
    validation, reported = (
        (*(answer[split] for answer in answers), np.asarray(data.splits[split]["labels"][:])) for split in splits
    )
    try:
        found = choose_cascade(validation, reported, [rows[name]["latency_ms"] for name in ("distilled", "teacher")])
    except InputError as error:
        logger.warning(f"no cascade of student and teacher: {error}")
        return None
    if run.args.do_train:
        settings = {"threshold": found["threshold"], "max_seq_length": max_length}
        if len(teacher.members) == len(teacher.models) == 1:
            one = teacher.models[0]
            settings |= teacher_settings(one.name, one.max_length, teacher.args.label_map)
        save_cascade(run.output_dir, settings, student.config)
    draw_if_possible(reported, found, run.output_dir / PLOT)
    return found


class CascadeParser(OneLineErrors, HfArgumentParser):
    """The flags of the data are those of the scripts."""


def make_parser():
    """The command line of this module."""
    parser = CascadeParser(
        (DataArguments,), prog="python -m kd_trainer.cascade", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("student", help="Folder of a saved student; its config.json is given the threshold.")
    parser.add_argument("--teacher", required=True, help="Folder or name on the hub.")
    parser.add_argument("--teacher_max_seq_length", type=int, help="Its longest text, in its tokens (the student's).")
    parser.add_argument("--label_map", help="The teacher's labels in the student's words, old=new,old=new.")
    parser.add_argument("--margin", type=float, default=MARGIN, help=f"See pick_threshold ({MARGIN}); more is safer.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code run that comes with a model.")
    return parser


def main(argv):
    """Chooses, keeps and reports a cascade as the command line `argv` (`list[str]`) says."""
    log_to_terminal("%(levelname)s %(name)s: %(message)s")
    flags = vars(make_parser().parse_args(argv))
    data_args = DataArguments(**{field.name: flags[field.name] for field in dataclasses.fields(DataArguments)})
    folder = Path(flags["student"])
    if data_args.validation_file is None or data_args.test_file is None:
        raise InputError("give --validation_file, where the threshold is chosen, and --test_file, where it is judged")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give that of a saved student")
    if not 0 <= flags["margin"] < math.inf:
        raise InputError(f"--margin is {flags['margin']}: it must be a number from 0")
    check_other(folder, flags["teacher"])
    if Path(data_args.validation_file).resolve() == Path(data_args.test_file).resolve():
        raise InputError(f"--validation_file and --test_file are both {data_args.test_file}: {OTHER_TEXTS}")
    # What is to be written at the end.
    check_rewritable(folder, "student")
    report = read_report(folder, "mend or remove it") if (folder / REPORT).exists() else {}
    is_described = has_own_card(folder)
    if is_described:
        read_run(folder)
    model_args = ModelArguments(trust_remote_code=flags["trust_remote_code"])
    student = load(str(folder), model_args, "student")
    vars(student[0].config).pop("cascade", None)  # of the last time
    lengths = (data_args.max_seq_length, flags["teacher_max_seq_length"])
    models = CascadeClassifier(
        student, flags["teacher"], 0.0, *lengths, flags["label_map"], trust_remote_code=flags["trust_remote_code"]
    )
    data = load_data(data_args, ("validation", "test"), models.label_names)
    if data.label_names != models.label_names:
        raise InputError(f"the student has labels {models.label_names}, data has {data.label_names}: rename")
    digests = {name: digest_texts(data.splits[name]) for name in ("validation", "test")}
    if digests["validation"] == digests["test"]:
        raise InputError(f"--validation_file and --test_file hold the same texts: {OTHER_TEXTS}")
    splits = {}
    for name in ("validation", "test"):
        texts = texts_of(data.splits[name])[:]
        labels = np.asarray(data.splits[name]["labels"][:])
        splits[name] = (models.student_logits(texts), models.teacher_logits(texts), labels)
    pairs = (
        (models.student, models.tokenizer, models.max_length),
        (models.teacher, models.teacher_tokenizer, models.teacher_max_length),
    )
    latencies = [measure_speed(*one[:2], texts, one[2])["latency_ms"] for one in pairs]
    found = choose_cascade(splits["validation"], splits["test"], latencies, flags["margin"])
    settings = {"threshold": found["threshold"], "max_seq_length": models.max_length}
    save_cascade(folder, settings | teacher_settings(flags["teacher"], models.teacher_max_length, flags["label_map"]))
    draw_if_possible(splits["test"], found, folder / PLOT)
    if report.get("texts_sha256") == digests["test"]:
        write_json(folder / REPORT, {**report, "cascade": found})
    elif report.pop("cascade", None) is not None:  # of another threshold than the student now has
        write_json(folder / REPORT, report)
    if is_described:
        rewrite(folder)
    print(format_cascade(found), flush=True)


def console():
    """Entry point of `kd-cascade`."""
    run_console(main)


if __name__ == "__main__":
    console()
