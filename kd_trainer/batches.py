"""Texts as the columns of a student, its teacher beside it, padded batch by batch."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.table import InMemoryTable

from .pairs import tokenizer_arguments
from .tokenization import char_ids

NO_LABEL = -100
TEACHER_PREFIX = "teacher_"


def tokenize(dataset, tokenizer, max_length, teacher_tokenizer=None, teacher_max_length=None):
    """
    Dual tokenization: the student's columns and, when a teacher's tokenizer is given, the teacher's beside them.

    Args:
        dataset (`datasets.Dataset`): With a column `text`, and `text_pair` where a row is a pair of texts; these are
            removed, other columns stay.
        tokenizer (`PreTrainedTokenizerBase`): The student's: `input_ids`, `attention_mask`, …
        max_length (`int`): Longest text, or pair of texts, in the student's tokens.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): The teacher's: `teacher_input_ids`, …
        teacher_max_length (`int`, *optional*): The same in the teacher's tokens.

    Returns:
        `datasets.Dataset`, not padded.
    """

    columns = [name for name in ("text", "text_pair") if name in dataset.column_names]
    pairs = len(columns) > 1
    encoders = {"": make_encoder(tokenizer, max_length, pairs)}
    if teacher_tokenizer is not None:
        encoders[TEACHER_PREFIX] = make_encoder(teacher_tokenizer, teacher_max_length, pairs)

    def encode(table):
        texts = table["text"].to_pylist()
        if pairs:
            texts = list(zip(texts, table["text_pair"].to_pylist(), strict=True))
        for prefix, encoder in encoders.items():
            for name, column in encoder(texts).items():
                name = f"{prefix}{name}"
                if name in table.column_names:
                    table = table.drop_columns(name)
                table = table.append_column(name, column)
        return table.drop_columns(columns)

    if len(dataset) == 0:  # map would leave it as it is
        return datasets.Dataset(InMemoryTable(encode(dataset.with_format("arrow")[:])))
    kind, settings = dataset.format["type"], dataset.format["format_kwargs"]
    tokenized = dataset.with_format("arrow").map(encode, batched=True, batch_size=10_000, desc="Tokenizing")
    return tokenized.with_format(kind, **settings)


def make_encoder(tokenizer, max_length, pairs=False):
    """
    A function of `list[str]`, or of pairs, that returns the tokenizer's columns, `dict[str, pyarrow.Array]`. Characters
    are looked up in a table, hundreds of thousands of texts a second; everything else is the tokenizer's own call.
    """
    table = char_ids(tokenizer)

    def look_up(texts):
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        ends = np.cumsum(lengths)
        if len(codes) and lengths.max() > max_length:
            position = np.arange(len(codes)) - np.repeat(ends - lengths, lengths)
            codes = codes[position < max_length]
            ends = np.cumsum(np.minimum(lengths, max_length))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        columns = {"input_ids": table[codes], "attention_mask": np.ones(len(codes), dtype=np.int8)}
        return {
            name: pa.ListArray.from_arrays(offsets, pa.array(columns[name])) for name in tokenizer.model_input_names
        }

    def call(texts):
        columns = tokenizer(*tokenizer_arguments(texts), truncation=True, max_length=max_length)
        small = {"attention_mask": pa.int8(), "token_type_ids": pa.int8()}  # as `datasets` itself has them
        return {name: pa.array(column, type=pa.list_(small.get(name, pa.int32()))) for name, column in columns.items()}

    usual = set(tokenizer.model_input_names) <= {"input_ids", "attention_mask"}
    return call if table is None or not usual or pairs else look_up


def token_lengths(dataset):
    """
    Tokens of every row, read from the column at once: row by row it would take seconds.

    Args:
        dataset (`datasets.Dataset`): With a column `input_ids`.

    Returns:
        `list[int]`.
    """
    column = dataset.select_columns("input_ids").with_format("arrow")[:]["input_ids"]
    return pc.list_value_length(column).to_pylist()


class DistillationCollator:
    """
    Pads a batch to its longest text, each side with its own tokenizer.

    Columns that start with `teacher_` and come from a tokenizer are padded by `teacher_tokenizer`; `teacher_logits`
    becomes a float tensor; a row without `labels` gets −100 when another row of the batch has one.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The student's.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): The teacher's, for online teaching.
        pad_to_multiple_of (`int`, *optional*): For tensor cores.

    Example:

    ```python
    >>> from kd_trainer.tokenization import build_tokenizer
    >>> collator = DistillationCollator(build_tokenizer(["天地"]))
    >>> batch = collator([{"input_ids": [2, 3], "labels": 1}, {"input_ids": [2], "labels": None}])
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[2, 3], [2, 0]], [1, -100])

    ```
    """

    def __init__(self, tokenizer, teacher_tokenizer=None, pad_to_multiple_of=None):
        self.tokenizer = tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows):
        """`list[dict]` of rows to `dict[str, torch.Tensor]`, each of `(batch_size, …)`."""
        student_rows, teacher_rows, batch = [], [], {}
        for row in rows:
            student_rows.append({})
            teacher_rows.append({})
            for name, value in row.items():
                if name in ("labels", "label", "label_ids", "teacher_logits"):
                    continue
                if name.startswith(TEACHER_PREFIX):
                    teacher_rows[-1][name.removeprefix(TEACHER_PREFIX)] = value
                else:
                    student_rows[-1][name] = value
        batch.update(self.pad(self.tokenizer, student_rows))
        if teacher_rows[0]:
            if self.teacher_tokenizer is None:
                raise ValueError("the rows have teacher_ columns: give DistillationCollator the teacher_tokenizer")
            padded = self.pad(self.teacher_tokenizer, teacher_rows)
            batch.update({f"{TEACHER_PREFIX}{name}": tensor for name, tensor in padded.items()})
        if "teacher_logits" in rows[0]:
            logits = np.asarray([row["teacher_logits"] for row in rows], dtype=np.float32)
            batch["teacher_logits"] = torch.from_numpy(logits)
        labels = [next((row[name] for name in ("labels", "label", "label_ids") if name in row), None) for row in rows]
        present = [label for label in labels if label is not None]
        if present:
            # Several labels to a row: a row without any is −100 throughout, and the losses want floats.
            several = isinstance(present[0], (list, tuple))
            missing = [NO_LABEL] * len(present[0]) if several else NO_LABEL
            filled = [missing if label is None else label for label in labels]
            batch["labels"] = torch.tensor(filled, dtype=torch.float32) if several else torch.tensor(filled)
        return batch

    def pad(self, tokenizer, rows):
        """Rows of token columns to tensors as long as the longest row."""
        fills = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "attention_mask": 0,
        }
        names = [name for name in fills if name in rows[0]]
        if len(names) < len(rows[0]) or "attention_mask" not in names or fills["input_ids"] is None:
            return dict(tokenizer.pad(rows, return_tensors="pt", pad_to_multiple_of=self.pad_to_multiple_of))
        # As tokenizer.pad does, which takes ten times as long: a quarter of a small student's step.
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)
        if self.pad_to_multiple_of:
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        right = tokenizer.padding_side == "right"
        batch = {}
        for name in names:
            padded = np.full((len(rows), longest), fills[name], dtype=np.int64)
            for row, length in enumerate(lengths):
                place = slice(0, length) if right else slice(longest - length, longest)
                padded[row, place] = rows[row][name]
            batch[name] = torch.from_numpy(padded)
        return batch
