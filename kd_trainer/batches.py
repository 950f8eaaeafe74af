"""Texts as the columns of a student, its teacher beside it, padded batch by batch."""

import numpy as np
import torch

NO_LABEL = -100
TEACHER_PREFIX = "teacher_"


def tokenize(dataset, tokenizer, max_length, teacher_tokenizer=None, teacher_max_length=None):
    """
    Dual tokenization: the student's columns and, when a teacher's tokenizer is given, the teacher's beside them.

    Args:
        dataset (`datasets.Dataset`): With a column `text`, which is removed; other columns stay.
        tokenizer (`PreTrainedTokenizerBase`): The student's: `input_ids`, `attention_mask`, …
        max_length (`int`): Longest text in the student's tokens.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): The teacher's: `teacher_input_ids`, …
        teacher_max_length (`int`, *optional*): Longest text in the teacher's tokens.

    Returns:
        `datasets.Dataset`, not padded.
    """

    def encode(batch):
        columns = dict(tokenizer(batch["text"], truncation=True, max_length=max_length))
        if teacher_tokenizer is not None:
            encoded = teacher_tokenizer(batch["text"], truncation=True, max_length=teacher_max_length)
            columns.update({f"{TEACHER_PREFIX}{name}": column for name, column in encoded.items()})
        return columns

    return dataset.map(encode, batched=True, remove_columns=["text"], desc="Tokenizing")


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
        return dict(tokenizer.pad(rows, return_tensors="pt", pad_to_multiple_of=self.pad_to_multiple_of))
