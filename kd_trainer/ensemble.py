"""Whoever teaches: models, classifiers of other kinds, answers that stand in the data, several as one teacher."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .answers import centred, teacher_answers
from .arguments import TeacherArguments
from .errors import InputError
from .metrics import agreement, score_logits
from .pairs import texts_of
from .report import COLUMNS, result_row
from .robustness import measure_robustness
from .teacher import cached_logits

logger = logging.getLogger(__name__)


@dataclass
class Teacher:
    """
    A trained teacher, ready to label.

    Args:
        name (`str`): Its folder, or its name on the hub.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): In fp32, with its own tokenizer.
        order (`list[int]`): For every label of the data the teacher's index.
        max_length (`int`): In its tokens.
        args ([`TeacherArguments`]): Batch size, cache, mode.
        train_seconds (`float`, *optional*): From its report, where it has one.
        digest (`str`): See [`teacher_digest`].
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: list[int]
    max_length: int
    args: TeacherArguments
    train_seconds: float | None
    digest: str

    def logits(self, split, run, half=False):
        """Logits of a split's texts in the data's label order, cached on disk. All processes of the run call this."""
        logits = cached_logits(
            self.model,
            self.tokenizer,
            texts_of(split),
            self.max_length,
            batch_size=self.args.teacher_batch_size or (1024 if self.model.device.type == "cuda" else 64),
            cache_dir=self.args.teacher_cache_dir,
            half=half,
            state=run.args.distributed_state if run.args.world_size > 1 else None,
            digest=self.digest,
        )
        return logits[:, self.order]

    def row(self, texts, labels, logits):
        """Its row of the table, see [`result_row`]."""
        return result_row(
            self.model, self.tokenizer, texts, logits, labels, self.max_length, train_seconds=self.train_seconds
        )


class ColumnTeacher:
    """Answers that stand in the data, whoever gave them: an API, a large language model, a model of another kind."""

    def logits(self, split, run, half=False):
        """The column `teacher_answers` of the split, `(len(split), num_labels)`; None where the split lacks it."""
        if "teacher_answers" not in split.column_names:
            return None
        return np.asarray(split.with_format("numpy")["teacher_answers"][:], dtype=np.float32)

    def row(self, texts, labels, logits):
        """Its scores; nobody knows its size."""
        return {**dict.fromkeys(COLUMNS), **score_logits(logits, labels)}


@dataclass
class ClassifierTeacher:
    """
    A classifier of another kind, see [`teacher_answers`].

    Args:
        classifier (scikit-learn classifier or `Callable`): Fitted.
        label_names (`list[str]`): The data's.
        train_seconds (`float`, *optional*): None when unknown.
    """

    classifier: Any
    label_names: list[str]
    train_seconds: float | None = None

    def logits(self, split, run, half=False):
        """Logits of a split's texts in the data's label order."""
        return teacher_answers(self.classifier, split["text"], self.label_names)

    def row(self, texts, labels, logits):
        """Its scores; its size and speed are not those of a model of torch."""
        return {**dict.fromkeys(COLUMNS), **score_logits(logits, labels), "train_seconds": self.train_seconds}


@dataclass
class Ensemble:
    """
    Several teachers as one, who says the weighted mean of their log-probabilities, less each row's own mean
    ([`centred`]); a single one says its own logits.

    Args:
        members (`list[Teacher | ClassifierTeacher | ColumnTeacher]`): At least one.
        weights (`list[float]`): Theirs; only the ratios matter.
        args ([`TeacherArguments`]): All flags.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 1 ("arithmetic or geometric mean"); the
    geometric mean is that of log-probabilities.
    """

    members: list
    weights: list[float]
    args: TeacherArguments

    @property
    def models(self):
        """Those of the members that are models, `list[Teacher]`."""
        return [member for member in self.members if isinstance(member, Teacher)]

    @property
    def tokenizer(self):
        """The tokenizer of the first model, or None."""
        return self.models[0].tokenizer if self.models else None

    def to(self, device):
        """Moves the models."""
        for teacher in self.models:
            teacher.model.to(device)

    def answers(self, split, run, half=False):
        """Every member's logits of a split, `list[np.ndarray]`; None where one has no answer."""
        answers = [member.logits(split, run, half) for member in self.members]
        return None if any(answer is None for answer in answers) else answers

    def combine(self, answers):
        """One array of the members' logits, `(num_rows, num_labels)`."""
        if len(answers) == 1:
            return answers[0]
        weights = np.asarray(self.weights) / sum(self.weights)
        log_probs = (log_softmax(answer.astype(np.float64), axis=-1) for answer in answers)
        return centred(sum(weight * one for weight, one in zip(weights, log_probs, strict=True))).astype(np.float32)

    def logits(self, split, run, half=False):
        """
        What the teachers say of the texts of a split (`datasets.Dataset` with a column `text`), `(len(split),
        num_labels)`, or None where a member has no answer to it.
        """
        answers = self.answers(split, run, half)
        return None if answers is None else self.combine(answers)

    def result(self, data, run):
        """
        The row of the table, on the split that is reported, and the logits by split ([`Run.answered_splits`]),
        `tuple[dict, dict[str, np.ndarray]]`: of several models sizes and times are added. `({}, logits)` in all
        processes but the first; `(None, {})` without an answer to the split that is reported.
        """
        # The other split as the training will ask for it: it is labelled once.
        answers = {
            name: self.answers(data.splits[name], run, half=name != run.scored_split)
            for name in run.answered_splits(data)
        }
        found = {name: self.combine(given) for name, given in answers.items() if given is not None}
        answers, split = answers[run.scored_split], data.splits[run.scored_split]
        if answers is None:
            logger.warning(f"the {run.scored_split} split has no answers of the teacher: no row of the table for it")
            return None, {}
        logits = found[run.scored_split]
        if run.args.process_index != 0:
            return {}, found
        texts, labels = texts_of(split)[:], split["labels"][:]
        rows = [member.row(texts, labels, answer) for member, answer in zip(self.members, answers, strict=True)]
        row = {**rows[0], **score_logits(logits, labels)}
        if run.run_args.eval_robustness and len(self.members) == len(self.models) == 1:
            teacher, batch_size = self.models[0], run.args.per_device_eval_batch_size
            row["robustness"] = measure_robustness(
                teacher.model, teacher.tokenizer, texts, labels, teacher.max_length, batch_size
            )
        for name in ("parameters", "size_mb", "latency_ms", "train_seconds"):
            values = [one[name] for one in rows]
            row[name] = None if None in values else sum(values)
        speeds = [one["texts_per_s"] for one in rows]
        row["texts_per_s"] = None if None in speeds else 1 / sum(1 / speed for speed in speeds)
        if len(rows) > 1:
            row["members"] = [
                {**one, "agreement": agreement(answer, logits)} for one, answer in zip(rows, answers, strict=True)
            ]
        return row, found


def check_weights(weights, count):
    """`list[float]`: The weights of `count` teachers, all 1 where none are given."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise InputError(f"--teacher_weights has {len(weights)} numbers for {count} teachers: give one for each")
    if not np.isfinite(weights).all() or min(weights) < 0 or max(weights) == 0:
        raise InputError(f"--teacher_weights {weights}: they must be finite, not negative, not all 0")
    return [weight / max(weights) for weight in weights]  # of huge ones the sum would be infinite
