"""What the page of [`demo`] asks of a student and its teacher: one text, or a file of them."""

import itertools
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .arguments import DataArguments, check_size
from .attribution import Span, attribute, has_ngrams
from .demo_words import Refusal, refusal_of
from .errors import InputError
from .inference import predict_logits
from .loading import (
    STUDENT_TYPES,
    check_pairs,
    first_given,
    fit_length,
    label_list,
    load_classifier,
    load_tokenizer,
)
from .output_folder import RECIPE, saved_settings
from .pairs import sides
from .report import prediction_rows, softmax, write_predictions
from .teacher import align_labels
from .text_stream import iterate_texts

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 20_000  # of a text: more than any of these models reads
MOST_BYTES, MOST_ROWS = 20 * 2**20, 100_000  # of a file
PIECE_ROWS = 1024  # labelled at a time: memory does not grow with a file


@dataclass
class Answer:
    """
    What one model says of one text.

    Args:
        role (`str`): `"student"` or `"teacher"`.
        probabilities (`list[float]`): In the order of the page's labels.
        milliseconds (`float`): From text to logits.
        limit (`int`): Tokens that the model reads at most.
        spans (`list[list[Span]]`, *optional*): Of each text; None where the model cannot be explained.
        cut (`bool`): Whether it has not read all of the text.
    """

    role: str
    probabilities: list[float]
    milliseconds: float
    limit: int
    spans: list[list[Span]] | None = None
    cut: bool = False

    @property
    def label(self):
        """Index of the label that the model gives."""
        return int(np.argmax(self.probabilities))


@dataclass
class DemoModel:
    """
    A model as the page uses it, by one visitor at a time.

    Args:
        role (`str`): `"student"` or `"teacher"`.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The classifier.
        max_length (`int`): In tokens.
        order (`list[int]`): Its label for every label of the page.
    """

    role: str
    model: object
    tokenizer: object
    max_length: int
    order: list[int]
    # A hook that explains one text must not meet another one.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_ngrams(self):
        """Whether it is a student with a branch of n-grams."""
        return has_ngrams(self.model)

    def logits(self, texts):
        """Logits of texts in the order of the page's labels, `(len(texts), num_labels)`."""
        with self.lock:
            try:
                found = predict_logits(self.model, self.tokenizer, texts, self.max_length, description=None)
            except InputError:  # not finite
                raise Refusal("not_finite", model=self.role) from None
        return found[:, self.order]

    def answer(self, text):
        """The [`Answer`] to a text, or to a pair of texts."""
        start = time.perf_counter()
        logits = self.logits([text])
        taken = 1000 * (time.perf_counter() - start)
        answer = Answer(self.role, softmax(logits)[0].tolist(), taken, self.max_length)
        try:
            with self.lock:
                found = attribute(self.model, self.tokenizer, text, self.max_length)
        except InputError as error:
            logger.warning(f"the {self.role} cannot be explained: {error}")
        else:
            answer.spans, answer.cut = found.spans, found.cut
        return answer


@dataclass
class Demo:
    """
    What the page shows.

    Args:
        label_names (`list[str]`): The student's.
        student ([`DemoModel`]), teacher ([`DemoModel`], *optional*): The models.
        reads_pairs (`bool`): Whether a row is two texts.
        text_column (`str`, *optional*): Of a csv; the usual names are found without.
        text_pair_column (`str`, *optional*): Of a csv of pairs.
    """

    label_names: list[str]
    student: DemoModel
    teacher: DemoModel | None = None
    reads_pairs: bool = False
    text_column: str | None = None
    text_pair_column: str | None = None

    def check(self, texts):
        """
        The text, or the pair of texts, that the models are given.

        Args:
            texts (`list[str]`): As they were typed.

        Raises:
            [`Refusal`]: For an empty or too long one, or half a character in it.
        """
        texts = [text or "" for text in texts]
        for text in texts:
            if len(text) > MOST_CHARACTERS:
                raise Refusal("too_long", length=f"{len(text):,}", most=f"{MOST_CHARACTERS:,}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Refusal("surrogate", place=error.start + 1) from None
        if not all(text.strip() for text in texts):
            raise Refusal("empty_side" if self.reads_pairs and any(text.strip() for text in texts) else "empty")
        return tuple(texts) if self.reads_pairs else texts[0]

    def answers(self, texts):
        """
        What each model says.

        Args:
            texts (`list[str]`): One, or two of a pair, as they were typed.

        Returns:
            `tuple`: The text, as [`check`] gives it, and `list[Answer]`, the student's first.
        """
        text = self.check(texts)
        return text, [model.answer(text) for model in (self.student, self.teacher) if model is not None]

    def label_file(self, source, target):
        """
        Labels a csv with the student, a piece at a time.

        Args:
            source (`Path`): The csv.
            target (`Path`): What is written, see `report.write_predictions`.

        Returns:
            `collections.Counter`: Rows by label.

        Raises:
            [`Refusal`]: For a file that cannot be read, or is too large.
        """
        if source.suffix.lower() != ".csv":
            raise Refusal("file_kind", name=source.name)
        size = source.stat().st_size
        if size > MOST_BYTES:
            raise Refusal("file_large", megabytes=f"{size / 2**20:.1f}", most=MOST_BYTES // 2**20)
        counts = Counter()
        try:
            write_predictions(target, self.labelled_rows(source, counts), self.label_names)
        except InputError as error:
            raise refusal_of(error, source) from None
        return counts

    def labelled_rows(self, source, counts):
        """Rows of a csv as `report.prediction_rows` gives them."""
        names = (self.text_column, self.text_pair_column) if self.reads_pairs else (self.text_column,)
        texts = iterate_texts(source, *names)
        found_text = False
        # Not before the end is it known that no row has a text; what was written by then is not kept.
        while piece := list(itertools.islice(texts, PIECE_ROWS)):
            if counts.total() + len(piece) > MOST_ROWS:
                raise Refusal("file_rows", most=f"{MOST_ROWS:,}")
            found_text = found_text or any(side.strip() for text in piece for side in sides(text))
            for row in prediction_rows(piece, self.student.logits([shorten(text) for text in piece]), self.label_names):
                counts[row["label"]] += 1
                yield row
        if not counts:
            raise Refusal("file_no_rows")
        if not found_text:
            raise Refusal("file_no_texts", rows=counts.total())


def shorten(text):
    """What the models are given of a text of a file."""
    cut = tuple(side[:MOST_CHARACTERS] for side in sides(text))
    return cut if isinstance(text, tuple) else cut[0]


def read_settings(name):
    """The settings of the run that has written a model's folder, `dict`; empty for a model that says nothing of it."""
    if not (Path(name) / RECIPE).exists():
        return {}
    settings = saved_settings(Path(name), "copy the model's folder again, or remove the file")
    for length in ("max_seq_length", "teacher_max_seq_length"):
        if settings.get(length) is not None:
            check_size(f"{Path(name) / RECIPE}: {length}", settings[length])
    return settings


def load_demo(student, teacher, args, label_map=None, max_length=None, reads_pairs=False, columns=(None, None)):
    """
    Loads the models, whose weights are safetensors, and asks each a first time.

    Args:
        student (`str`), teacher (`str`, *optional*): Folders, or names on the hub.
        args ([`ModelArguments`]): How models are loaded.
        label_map (`dict[str, str]`, *optional*): The teacher's labels in the student's words.
        max_length (`int`, *optional*): In tokens; as the student was trained when not given.
        reads_pairs (`bool`, *optional*): Whether a row is two texts, where the models do not say so.
        columns (`tuple[str, str]`, *optional*): Of the texts and of the second texts in a csv.

    Returns:
        [`Demo`].

    Raises:
        `InputError`: For models that cannot be loaded, or do not go together.
    """
    settings = read_settings(student)
    wanted = first_given(max_length, settings.get("max_seq_length"), DataArguments.max_seq_length)
    model, tokenizer = load_classifier(student, args, what="student"), load_tokenizer(student, args)
    names = label_list(model.config)
    is_student = model.config.model_type in STUDENT_TYPES
    says_pairs = model.config.to_dict().get("text_pairs") if is_student else settings.get("text_pair_column")
    pairs = reads_pairs or bool(says_pairs)
    if is_student and pairs and not says_pairs:
        raise InputError(f"--text_pairs: student {student} reads single texts: leave it out")
    check_pairs(model, tokenizer, pairs)
    length = fit_length(wanted, tokenizer, model.config)
    demo = Demo(names, DemoModel("student", model.eval(), tokenizer, length, list(range(len(names)))), None, pairs)
    demo.text_column = columns[0]
    demo.text_pair_column = (columns[1] or "text_pair") if pairs else None
    if teacher is not None:
        teaching = settings if max_length is None else {}
        demo.teacher = load_teacher(
            teacher, args, names, label_map, first_given(teaching.get("teacher_max_seq_length"), wanted)
        )
        reads = read_settings(teacher).get("text_pair_column") is not None
        if reads and not pairs:
            raise InputError(f"teacher {teacher} reads pairs of texts, student {student} single ones: give another")
        check_pairs(demo.teacher.model, demo.teacher.tokenizer, pairs)
    # The first forward is slow: it is not a visitor's.
    demo.answers(["1", "1"] if pairs else ["1"])
    return demo


def load_teacher(name, args, label_names, label_map, max_length):
    """The teacher's [`DemoModel`], its labels matched with the student's by name."""
    model, tokenizer = load_classifier(name, args, what="teacher"), load_tokenizer(name, args)
    order = align_labels(label_list(model.config), label_names, label_map)
    length = fit_length(max_length, tokenizer, model.config, "the teacher's max_seq_length")
    return DemoModel("teacher", model.eval(), tokenizer, length, order)
