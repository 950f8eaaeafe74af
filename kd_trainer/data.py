"""Splits that can be trained on: read from files or the hub, checked, their labels named."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from .answers import are_probabilities, to_logits
from .batches import NO_LABEL
from .errors import InputError
from .files import Rows, decoded_lines, find_columns, read_rows
from .pairs import columns_of, sides, stripped, texts_of
from .text_stream import TextFile

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SAMPLE_SIZES = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}


@dataclass
class TextData:
    """
    The splits of a run.

    Args:
        splits (`datasets.DatasetDict`): Those of `train`, `validation`, `test` that are there, with columns `text`
            (string), `text_pair` (string) where a row is a pair of texts, `labels` (int64, −100 for a row without one),
            and `teacher_answers` (float32, logits in the order of the labels) where the data has them.
        label_names (`list[str]`): Name of every label id.
        facts (`dict[str, Any]`): Sizes, unlabelled rows and texts shared between splits, for the report.
    """

    splits: datasets.DatasetDict
    label_names: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def has_answers(self):
        """Whether a teacher's answers stand in the data."""
        return any("teacher_answers" in split.column_names for split in self.splits.values())

    @property
    def has_pairs(self):
        """Whether a row is a pair of texts."""
        return any("text_pair" in split.column_names for split in self.splits.values())

    def digest(self):
        """Names label names, texts and labels of the splits that training sees: `str` of 64 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for name in ("train", "validation"):
            if name in self.splits:
                texts = texts_of(self.splits[name])[:]
                digest.update(json.dumps([name, texts, self.splits[name]["labels"][:]]).encode())
                if "teacher_answers" in self.splits[name].column_names:
                    digest.update(np.asarray(self.splits[name]["teacher_answers"][:], dtype=np.float32).tobytes())
        return digest.hexdigest()


def read_class_file(path):
    """Label names, one a line, in the order of their ids."""
    names = [line.strip() for line in decoded_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: no label in the file: give one on each line")
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"label {name!r} stands twice" if name else "empty label name"
            raise InputError(f"{path} line {number}: {what}: give every label one line of its own")
    return names


def read_dataset(data_args, split_names, answer_column=None):
    """[`Rows`] of the hub data set's splits, `dict[str, Rows]`; a split that it lacks is left out."""
    try:
        loaded = datasets.load_dataset(data_args.dataset_name, data_args.dataset_config_name)
    except Exception as error:  # whatever the hub, the network or a loading script raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--dataset_name {data_args.dataset_name} cannot be loaded ({reason}): check the name and the network, or "
            "pass --train_file"
        ) from error
    splits = {}
    for name in split_names:
        if name not in loaded:
            continue
        split, source = loaded[name], f"{data_args.dataset_name} ({name})"
        wanted = (data_args.text_column, data_args.label_column, data_args.text_pair_column)
        texts, label = find_columns(split.column_names, *wanted, source, need_labels=True)
        rows = Rows(source)
        if answer_column in split.column_names:
            rows.answers = split[answer_column][:]
        labels = [None] * len(split) if label is None else split[label]
        if label is not None and isinstance(split.features[label], datasets.ClassLabel):
            names = split.features[label].names
            labels = [None if cell is None or cell < 0 else names[cell] for cell in labels]
        columns = [split[text] for text in texts]
        for number, (*cells, label_cell) in enumerate(zip(*columns, labels, strict=True), start=1):
            rows.add(number, cells, label_cell)
        splits[name] = rows
    for name in split_names:
        if name not in splits and name != "validation":
            raise InputError(f"{data_args.dataset_name} has no split {name!r}, only {', '.join(loaded)}: use files")
    return splits


def name_labels(rows, known_names=None):
    """
    The label names of a training split, in the order of their ids: `known_names` (a class file's or a model's) where
    they cover the labels found, else numbers by value and names by alphabet.

    Raises:
        `InputError`: When fewer than two different labels occur.
    """
    found = {label for label in rows.labels if label is not None}
    if len(found) < 2:
        what = f"only one class, {found.pop()!r}" if found else "not a single label"
        raise InputError(f"{rows.source}: {what}: a classifier needs rows of at least two labels")
    if known_names is not None and found <= set(known_names):
        return list(known_names)
    return sorted(found, key=lambda name: (0, int(name), name) if re.fullmatch(r"-?\d{1,18}", name) else (1, 0, name))


def name_ids(rows, class_names):
    """Replaces label ids in `rows` by the names that stand at their line of the class file."""
    names = dict(zip(map(str, range(len(class_names))), class_names, strict=True))
    # A name wins over an id: classes may be called "1" or "2".
    names.update({name: name for name in class_names})
    for row, (label, line) in enumerate(zip(rows.labels, rows.lines, strict=True)):
        if label is not None:
            if label not in names:
                raise InputError(
                    f"{rows.source} line {line}: label {label!r} is neither a name nor an id of the "
                    f"{len(class_names)} classes in --class_file: mend the row or the file"
                )
            rows.labels[row] = names[label]


def encode_labels(rows, label_names):
    """
    Label ids (`list[int]`) of the rows, −100 where there is none.

    Raises:
        `InputError`: For a label that is none of `label_names`.
    """
    ids = {name: index for index, name in enumerate(label_names)}
    for label, line in zip(rows.labels, rows.lines, strict=True):
        if label is not None and label not in ids:
            raise InputError(
                f"{rows.source} line {line}: label {label!r} is unknown, the labels are {', '.join(label_names)}: "
                "mend the row or add the label to the training split"
            )
    return [NO_LABEL if label is None else ids[label] for label in rows.labels]


def encode_answers(rows, label_names):
    """
    A teacher's answers to the rows as logits, `np.ndarray` of shape `(num_rows, num_labels)`, float32. Where all of
    them are probabilities, not negative with a sum of 1, they are taken for that, otherwise for logits.

    Raises:
        `InputError`: For a row without an answer, one that is not a number for each label, and one that is none among
            probabilities.
    """
    answers = np.empty((len(rows.answers), len(label_names)), dtype=np.float32)
    for row, (cell, line) in enumerate(zip(rows.answers, rows.lines, strict=True)):
        try:
            found = json.loads(cell) if isinstance(cell, str) else cell
            if isinstance(found, dict):
                found = [found[name] for name in label_names] + [
                    found[name] for name in found if name not in label_names
                ]
            answers[row] = np.reshape(np.asarray(found, dtype=np.float32), (len(label_names),))
            ok = np.ndim(found) == 1 and np.isfinite(answers[row]).all()
        except (ValueError, TypeError, KeyError, RecursionError):
            ok = False
        if not ok:
            raise InputError(
                f"{rows.source} line {line}: the teacher's answer {str(cell)[:60]!r} is not {len(label_names)} finite "
                f"numbers for {', '.join(label_names)[:80]}: mend the cell or --teacher_column"
            )
    sure = are_probabilities(answers)
    if len(sure) / 2 < sure.sum() < len(sure):
        odd = int(np.flatnonzero(~sure)[0])
        raise InputError(
            f"{rows.source} line {rows.lines[odd]}: the teacher's answer {str(rows.answers[odd])[:60]!r} sums to "
            f"{answers[odd].sum():.4g}, where {sure.sum()} of {len(sure)} rows are probabilities: mend the row"
        )
    kind = "probabilities" if sure.all() else "logits"
    logger.info(f"{rows.source}: the teacher's answers are {kind}")
    return to_logits(answers)


def check_labelled(rows, encoded, purpose):
    """Refuses rows without a label where `purpose` needs them all."""
    missing = [line for line, label in zip(rows.lines, encoded, strict=True) if label == NO_LABEL]
    if missing:
        raise InputError(
            f"{rows.source} line {missing[0]}: no label ({len(missing)} such rows): {purpose} needs all rows labelled; "
            "mend the rows, or distil: run_distill.py takes training rows without a label"
        )


def sample(dataset, size, seed):
    """A seeded sample of `size` rows in their old order; all of them when `size` is None or not smaller."""
    if size is None or size >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:size]))


def split_validation(train, share, seed):
    """A training split (`datasets.Dataset`) less a seeded share of its labelled rows, and those rows."""
    labelled = np.flatnonzero(np.array(train["labels"][:]) != NO_LABEL)
    size = max(1, round(len(labelled) * share))
    if size >= len(labelled):
        raise InputError(f"{len(labelled)} labelled rows cannot be split for validation: give --validation_file")
    kept = np.sort(np.random.default_rng(seed).permutation(labelled)[:size])
    return train.select(np.setdiff1d(np.arange(len(train)), kept)), train.select(kept)


def count_overlap(dataset, other):
    """How many texts, or pairs of texts, of `dataset` also stand in `other`, white space at the ends apart."""
    seen = set(map(stripped, texts_of(other)[:]))
    return sum(stripped(text) in seen for text in texts_of(dataset)[:])


def read_splits(data_args, wanted, class_names, answer_column=None):
    """The [`Rows`] of the `wanted` splits that are there, label ids replaced by the class file's names."""
    if data_args.dataset_name is not None:
        splits = read_dataset(data_args, wanted, answer_column)
        if "validation" in wanted and not splits.keys() & {"train", "validation"}:
            # The validation split will be cut from the training split, as in training.
            more = [name for name in SPLITS if name in wanted or name == "train"]
            splits = read_dataset(data_args, more, answer_column)
    else:
        splits = {}
        known = [] if class_names is None else [*class_names, *map(str, range(len(class_names)))]
        for name in wanted:
            path = getattr(data_args, f"{name}_file")
            if path is not None:
                columns = (data_args.text_column, data_args.label_column)
                more = {"answer_column": answer_column, "text_pair_column": data_args.text_pair_column}
                splits[name] = read_rows(path, *columns, known, **more)
                if name == "train":
                    name_labels(splits[name])  # too few labels: said before another file is read with them
                known = known or {label for label in splits[name].labels if label is not None}
    if class_names is not None:
        for rows in splits.values():
            name_ids(rows, class_names)
    return splits


def load_data(
    data_args, wanted=("train", "validation"), model_labels=None, unlabelled_allowed=False, answer_column=None
):
    """
    Reads and checks the splits that `data_args` names.

    Args:
        data_args ([`DataArguments`]): Files or a data set on the hub.
        wanted (sequence of `str`): Splits to read; what is not to be reported is not read. A validation split that is
            not there is cut from the training split.
        model_labels (`list[str]`, *optional*): Label names of the model to continue with: their order is kept when they
            cover the data's labels.
        unlabelled_allowed (`bool`): Whether a training row may lack its label; other splits never may.
        answer_column (`str`, *optional*): Column of a teacher's answers; the training split must have it.

    Returns:
        [`TextData`].

    Raises:
        `InputError`: For whatever is wrong with the data, in one line that names the place.
    """
    class_names = None if data_args.class_file is None else read_class_file(data_args.class_file)
    needs_train = "train" in wanted or (class_names or model_labels) is None
    if "validation" in wanted and data_args.dataset_name is None and data_args.validation_file is None:
        needs_train = True
    if needs_train and data_args.dataset_name is None and data_args.train_file is None:
        raise InputError("no training data: give --train_file or --dataset_name")
    to_read = [name for name in SPLITS if name in wanted or (name == "train" and needs_train)]
    rows = read_splits(data_args, to_read, class_names, answer_column)
    if answer_column is not None and "train" in rows and rows["train"].answers is None:
        raise InputError(f"{rows['train'].source}: no column {answer_column!r} with a teacher's answers: pass another")
    if "train" in rows:
        label_names = name_labels(rows["train"], model_labels or class_names)
        if class_names is not None and label_names != model_labels:
            label_names = class_names
    else:
        label_names = model_labels or class_names

    splits = {}
    for name, split in rows.items():
        encoded = encode_labels(split, label_names)
        if not (name == "train" and (unlabelled_allowed or data_args.skip_unlabeled)):
            check_labelled(split, encoded, "training without a teacher" if name == "train" else f"the {name} split")
        empty = sum(not "".join(sides(text)).strip() for text in split.texts)
        if empty:
            logger.warning(f"{split.source}: {empty} of {len(split.texts)} texts are empty; they are kept")
        columns = columns_of(split.texts, data_args.text_pair_column is not None)
        features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
        columns["labels"], features["labels"] = encoded, datasets.Value("int64")
        if split.answers is not None:
            columns["teacher_answers"] = encode_answers(split, label_names)
            features["teacher_answers"] = datasets.List(datasets.Value("float32"), length=len(label_names))
        splits[name] = datasets.Dataset.from_dict(columns, features=features)
    if "validation" in wanted and "validation" not in splits and data_args.validation_split:
        splits["train"], splits["validation"] = split_validation(
            splits["train"], data_args.validation_split, data_args.split_seed
        )
        logger.info(f"{len(splits['validation'])} training rows are kept for validation (seed {data_args.split_seed})")
    for name, size in SAMPLE_SIZES.items():
        if name in splits:
            splits[name] = sample(splits[name], getattr(data_args, size), data_args.split_seed)
    if "train" in splits and len(set(splits["train"]["labels"][:]) - {NO_LABEL}) < 2:
        raise InputError("the sampled training rows have fewer than two labels: raise --max_train_samples")
    return TextData(datasets.DatasetDict(splits), label_names, describe_splits(splits))


def describe_splits(splits):
    """Sizes, unlabelled rows and texts shared with the training split; what a reader must know is logged."""
    facts = {"rows": {name: len(split) for name, split in splits.items()}}
    if "train" in splits:
        facts["unlabelled"] = sum(label == NO_LABEL for label in splits["train"]["labels"][:])
        facts["overlap_with_train"] = {
            name: count_overlap(split, splits["train"]) for name, split in splits.items() if name != "train"
        }
        if facts["unlabelled"]:
            logger.warning(f"{facts['unlabelled']} training rows have no label: they learn from the teacher alone")
        for name, count in facts["overlap_with_train"].items():
            if count:
                logger.warning(f"{count} of {len(splits[name])} {name} texts also stand in the training split")
    return facts


def load_texts(path, data_args, label_names):
    """
    The texts of a file to be labelled, or pairs of them, as a [`TextFile`]; labels that it may hold are not read.

    Raises:
        `InputError`: As [`read_rows`].
    """
    known = {*label_names, *map(str, range(len(label_names)))}
    # --label_column may be missing here: only the usual names are looked for.
    return TextFile(path, data_args.text_column, data_args.text_pair_column, known)
