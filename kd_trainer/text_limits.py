"""How much of a text a classifier is given: what its longest input can need, whatever is sent."""

import logging

from .errors import InputError
from .pairs import sides

logger = logging.getLogger(__name__)

# Where a text ends decides the tokens of its last word alone, of which WordPiece makes at most 100.
SPARE_TOKENS = 128
# Characters for each token, tried one after the other. Natural text has one to six; the last bounds time and memory.
WIDTHS = (16, 128, 1024)


def fills(tokenizer, text, tokens):
    """Whether a text (`str`) has at least so many tokens (`int`)."""
    encoded = tokenizer(text, truncation=True, max_length=tokens, add_special_tokens=False)
    return len(encoded["input_ids"]) >= tokens


def longest_part(tokenizer, max_length):
    """The most that is ever read of a text, as `[start, stop]` of a slice: see [`limit_text`]."""
    size = WIDTHS[-1] * (max_length + SPARE_TOKENS)
    return [-size, None] if tokenizer.truncation_side == "left" else [None, size]


def limit_text(tokenizer, text, max_length):
    """
    The text, or, where it is much longer than `max_length` tokens, a beginning of it that has the same first tokens: a
    tokenizer goes through all of a text, and keeps ten times its size in memory, before it cuts it off.

    A beginning counts as enough when it has 128 tokens more than are read. One of 1,024 characters for each of these
    that still has not, such as a million spaces, is all that is read: this is logged.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): One that cuts off the beginning instead is given an end.
        text (`str`): Of any length.
        max_length (`int`): In tokens.

    Returns:
        `str`.
    """
    wanted = max_length + SPARE_TOKENS
    for width in WIDTHS:
        size = width * wanted
        if len(text) <= size:
            return text
        part = text[-size:] if tokenizer.truncation_side == "left" else text[:size]
        if fills(tokenizer, part, wanted):
            return part
    logger.warning(f"a text of {len(text):,} characters has hardly a token in its first {size:,}: read no further")
    return part


def check_texts(texts):
    """
    Refuses what no tokenizer reads, wherever it stands in a list.

    Args:
        texts (`list[str]` or `list[tuple[str, str]]`): Texts, or pairs of texts.

    Raises:
        `InputError` (a `ValueError`): For what is not a text, half a surrogate pair in one, texts and pairs together.
    """
    for number, text in enumerate(texts, start=1):
        if len(sides(text)) != len(sides(texts[0])) or len(sides(text)) > 2:
            raise InputError(f"text {number}: texts and pairs of texts in one list: give strings, or tuples of two")
        for side in sides(text):
            if not isinstance(side, str):
                raise InputError(f"text {number}: {str(side)[:40]!r} is a {type(side).__name__}: give strings")
            try:
                side.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"text {number}: half a surrogate pair (\\u{ord(side[error.start]):x}): it is no character, leave "
                    "it out"
                ) from None
