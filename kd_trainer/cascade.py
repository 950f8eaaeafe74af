"""
A student that asks its teacher where it is not sure.

    python -m kd_trainer.cascade outputs/student --teacher outputs/teacher --validation_file dev.tsv --test_file test.tsv

chooses the confidence below which a text is left to the teacher, on the validation split, so that both together are at
least as accurate as the teacher; keeps it in the student's config.json, and says what it gives on the test split.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from .answers import teacher_answers
from .arguments import DataArguments, ModelArguments
from .console import run_console
from .data import load_data
from .deferral import MARGIN, cascade_scores, confidences, coverage_curve, pick_threshold
from .errors import InputError
from .inference import predict_logits
from .loading import check_pairs, fit_length, label_list, load_classifier, load_tokenizer
from .pairs import texts_of
from .report import measure_speed, prediction_rows, write_json
from .teacher import align_labels, parse_label_map

logger = logging.getLogger(__name__)

PLOT = Path("plots") / "cascade.png"
CURVE_POINTS = 11  # in the report: every tenth of the texts


def load(model, args, what):
    """`(model, tokenizer)` of a folder or a name on the hub; what is a tuple already is given back."""
    if isinstance(model, tuple) and len(model) == 2:
        return model
    if not isinstance(model, (str, Path)):
        raise InputError(f"{what}: {type(model).__name__} is none: give a folder, a name, or (model, tokenizer)")
    return load_classifier(str(model), args, what=what), load_tokenizer(str(model), args, f"{what}'s tokenizer")


def cascade_settings(config):
    """What a student's configuration says of its cascade, `dict`; empty where it says nothing."""
    settings = config.to_dict().get("cascade") or {}
    if not isinstance(settings, dict):
        raise InputError(f"config.json has cascade {str(settings)[:40]!r}: choose it again, python -m kd_trainer.cascade")
    return settings


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
        `InputError` (a `ValueError`): When a model cannot be loaded, their labels differ, or no threshold is known.

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
        args = ModelArguments(trust_remote_code=trust_remote_code)
        self.student, self.tokenizer = load(student, args, "student")
        self.label_names, self.batch_size = label_list(self.student.config), batch_size
        settings = cascade_settings(self.student.config)
        self.threshold = settings.get("threshold") if threshold is None else threshold
        if self.threshold is None:
            raise InputError("this student has no threshold: choose one, python -m kd_trainer.cascade, or give it")
        if isinstance(self.threshold, bool) or not (
            isinstance(self.threshold, (int, float)) and 0 <= self.threshold <= 1
        ):
            raise InputError(f"threshold {self.threshold!r}: it must be a number in 0..1")
        max_seq_length = max_seq_length or settings.get("max_seq_length") or 128
        self.max_length = fit_length(max_seq_length, self.tokenizer, self.student.config, "max_seq_length")
        teacher = settings.get("teacher") if teacher is None else teacher
        if teacher is None:
            raise InputError("no teacher: give its folder or its name on the hub")
        self.teacher, self.teacher_tokenizer = teacher, None
        if not callable(teacher) and not hasattr(teacher, "classes_"):
            self.teacher, self.teacher_tokenizer = load(teacher, args, "teacher")
            wanted = teacher_max_seq_length or settings.get("teacher_max_seq_length") or max_seq_length
            config = self.teacher.config
            self.teacher_max_length = fit_length(wanted, self.teacher_tokenizer, config, "teacher_max_seq_length")
            label_map = parse_label_map(label_map or settings.get("label_map"))
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
        rows = prediction_rows(given, *self.answer(given)[:1], self.label_names, self.answer(given)[1])
        answers = [{name: row[name] for name in ("label", "answered_by", "probabilities")} for row in rows]
        return answers if isinstance(texts, list) else answers[0]


def choose_cascade(validation, reported, latencies=(None, None), margin=MARGIN):
    """
    The threshold from one split, and what it gives on another.

    Args:
        validation, reported (`tuple` of three `np.ndarray`): The student's logits, the teacher's, the labels, see
            [`pick_threshold`].
        latencies (`tuple[float | None, float | None]`): Milliseconds a text, of student and teacher.
        margin (`float`): See [`pick_threshold`].

    Returns:
        `dict`: `threshold`, `margin`, and the keys of [`cascade_scores`] and `latency_ms` (the student's, and the
        teacher's for the share that it is asked; None when unknown) on the split reported; `validation`, the same keys
        on the other; `curve`, threshold, coverage and accuracy at every tenth of the reported split.

    Raises:
        `InputError`: As [`pick_threshold`].
    """
    threshold = pick_threshold(*validation, margin=margin)
    scores = cascade_scores(*reported, threshold)
    latency = None if None in latencies else latencies[0] + (1 - scores["coverage"]) * latencies[1]
    curve = coverage_curve(*reported)
    points = np.unique(np.searchsorted(curve["coverage"], np.linspace(0, 1, CURVE_POINTS) - 1e-9))
    shown = ("threshold", "coverage", "accuracy")
    return {
        "threshold": threshold,
        "margin": margin,
        **scores,
        "latency_ms": latency,
        "validation": cascade_scores(*validation, threshold),
        "curve": [{name: float(curve[name][point]) for name in shown} for point in points],
    }


def format_cascade(found):
    """What [`choose_cascade`] has found, as a line of text."""
    latency = "" if found["latency_ms"] is None else f", {found['latency_ms']:.2f} ms a text on average"
    return (
        f"cascade: the student answers where it is more than {100 * found['threshold']:.2f} % sure, which are "
        f"{100 * found['coverage']:.1f} % of the texts, the teacher the others: accuracy {found['accuracy']:.4f} "
        f"(teacher alone {found['teacher_accuracy']:.4f}, student alone {found['student_accuracy']:.4f}){latency}"
    )


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

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    axes.plot(100 * curve["coverage"], 100 * curve["accuracy"], color="C0", label="student, teacher for the rest")
    for name, style in (("teacher", "--"), ("student", ":")):
        axes.axhline(100 * found[f"{name}_accuracy"], color="0.4", linestyle=style, linewidth=1, label=f"{name} alone")
    axes.plot(
        100 * found["coverage"], 100 * found["accuracy"], "o", color="C3", label=f"threshold {found['threshold']:.4f}"
    )
    axes.set_xlabel("answered by the student, % of the texts")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{found['rows']:,} texts; the threshold was chosen on others", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_if_possible(reported, found, path):
    """[`draw`] of the split reported, where matplotlib is installed."""
    try:
        draw(coverage_curve(*reported), found, path)
    except ImportError:
        logger.info("no plot of the cascade: it needs matplotlib, pip install 'kd_trainer[plot]'")
