"""A text may be a pair of texts: wherever the package takes a list of texts, its items are `str` or `(str, str)`."""

import hashlib
import json
from collections.abc import Sequence


class TextPairs(Sequence):
    """
    Two columns of texts as one sequence of pairs. Slices are lists; nothing else is read.

    Args:
        firsts, seconds (sequence of `str`): Of equal length, columns on disk for instance.

    Example:

    ```python
    >>> TextPairs(["a", "b"], ["c", "d"])[:]
    [('a', 'c'), ('b', 'd')]

    ```
    """

    def __init__(self, firsts, seconds):
        self.firsts, self.seconds = firsts, seconds

    def __len__(self):
        return len(self.firsts)

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            return list(zip(self.firsts[rows], self.seconds[rows], strict=True))
        return self.firsts[rows], self.seconds[rows]


def texts_of(split):
    """
    The texts of a split as a sequence of `str`, or of pairs where it has a column `text_pair`.

    Args:
        split (`datasets.Dataset`): With a column `text`.
    """
    if "text_pair" in split.column_names:
        return TextPairs(split["text"], split["text_pair"])
    return split["text"]


def columns_of(texts, pairs):
    """`{"text": …}`, or with `"text_pair"` where `pairs`: what [`texts_of`] makes texts of, `dict[str, list[str]]`."""
    if not pairs:
        return {"text": texts}
    return {"text": [first for first, _ in texts], "text_pair": [second for _, second in texts]}


def sides(text):
    """The texts of an item: `(text,)`, or the pair."""
    return text if isinstance(text, tuple) else (text,)


def stripped(text):
    """The text, or both of a pair, without white space at the ends; hashable."""
    return tuple(side.strip() for side in text) if isinstance(text, tuple) else text.strip()


def tokenizer_arguments(texts):
    """
    What a tokenizer is called with for a list of texts: the list, or that of the first texts and that of the second.

    Example:

    ```python
    >>> tokenizer_arguments(["a", "b"]), tokenizer_arguments([("a", "c"), ("b", "d")])
    ((['a', 'b'],), (['a', 'b'], ['c', 'd']))

    ```
    """
    if texts and isinstance(texts[0], tuple):
        return tuple(list(column) for column in zip(*texts, strict=True))
    return (list(texts),)


def digest_texts(split):
    """Names the texts of a split (`datasets.Dataset`) in a report: `str` of 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(texts_of(split)[:]).encode()).hexdigest()
