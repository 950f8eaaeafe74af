"""A student's first token embeddings: those of its teacher, or those of a file of word vectors."""

import gzip
import logging
import re
import zlib

import numpy as np
import torch
from sklearn.decomposition import PCA

from .errors import InputError
from .tokenization import UNSPACED

logger = logging.getLogger(__name__)


def read_vectors(path, wanted):
    """
    The vectors of the `wanted` tokens in a text file as word2vec, GloVe and fastText write it: a token and its numbers
    on each line, separated by blanks; a first line `count width` may stand before them. Read line by line: the file may
    be larger than the memory.

    Args:
        path (`str`): Plain or, by its name, `.gz`.
        wanted (`set[str]`): Tokens to look for.

    Returns:
        `dict[str, np.ndarray]`: Of the tokens found, `(width,)` float32 each; of a token that stands twice the first.

    Raises:
        `InputError`: For a file that cannot be read or is none of this kind.
    """
    vectors, width, promised, number = {}, None, 0, 0
    cure = "pass a text file of word2vec, GloVe or fastText, plain or .gz"
    try:
        # A vocabulary counted in the wild may hold half a character: such a token is nobody's.
        opened = gzip.open if str(path).endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                token, _, rest = line.rstrip("\r\n ").partition(" ")
                if number == 1 and token.isdigit() and rest.isdigit():
                    promised, width = int(token) + 1, int(rest)
                    continue
                if width is not None and (token not in wanted or token in vectors):
                    continue
                cells = rest.split(" ")
                if width is None:
                    width = len(cells)
                if len(cells) > width:
                    continue  # a token of several words
                try:
                    vector = np.array(cells, dtype=np.float32)
                except ValueError:
                    vector = np.array([np.nan])
                if len(cells) < width or not np.isfinite(vector).all():
                    raise InputError(
                        f"{path} line {number}: {line[:40].strip()!r} is not a token with {width} numbers: {cure}"
                    )
                if token in wanted:
                    vectors[token] = vector
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}: {cure}") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}): fetch it again") from None
    if number < promised:
        raise InputError(f"{path} has {number} lines where its first one promises {promised}: fetch it again")
    if width is None:
        raise InputError(f"{path}: no vector in the file: {cure}")
    return vectors


def token_texts(tokenizer):
    """
    What each token of a vocabulary looks like in a text, `dict[str, str]`: without the sign of a piece that goes on
    ("##ing") or begins a word ("▁the", "Ġthe"). Special tokens and parts of a character are left out.
    """
    special = set(tokenizer.all_special_tokens)
    texts = {}
    for token in tokenizer.get_vocab():
        if token not in special:
            text = token[2:] if token.startswith("##") and len(token) > 2 else token
            text = tokenizer.convert_tokens_to_string([text]).strip() or text
            if "\ufffd" not in text:
                texts[token] = text
    return texts


def teacher_vectors(teacher, teacher_tokenizer, tokenizer):
    """
    What a teacher's embedding table says of a student's tokens. With one tokenizer for both they are its rows; else a
    token is composed of the teacher's pieces of it, by their mean.

    Args:
        teacher (`PreTrainedModel`): With `get_input_embeddings()`.
        teacher_tokenizer, tokenizer (`PreTrainedTokenizerBase`): The teacher's and the student's.

    Returns:
        `dict[str, np.ndarray]`: Of `(teacher's width,)` float32 each; a token of which the teacher does not know a
        piece is not in it.
    """
    table = teacher.get_input_embeddings().weight.detach().float().cpu().numpy()
    vocabulary = tokenizer.get_vocab()
    if vocabulary == teacher_tokenizer.get_vocab():
        return {token: table[index] for token, index in vocabulary.items()}
    texts = token_texts(tokenizer)
    if not texts:
        return {}
    # In a text most words stand behind a blank, which some tokenizers take for a part of them ("Ġthe").
    words = [
        text if token.startswith("##") or re.match(f"[{UNSPACED}]", text) else f" {text}"
        for token, text in texts.items()
    ]
    pieces = teacher_tokenizer(words, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    unknown = teacher_tokenizer.unk_token_id
    return {
        token: table[ids].mean(axis=0) for token, ids in zip(texts, pieces, strict=True) if ids and unknown not in ids
    }


def fit_width(vectors, width, source):
    """
    Vectors of `width` numbers: as they are, or the first principal components of wider ones.

    Args:
        vectors (`np.ndarray` of shape `(num_tokens, any_width)`): At least one.
        width (`int`): Of the student's embeddings.
        source (`str`): For messages.

    Returns:
        `np.ndarray` of shape `(num_tokens, width)`.

    Raises:
        `InputError`: For vectors that are narrower, or too few for so many components.
    """
    if vectors.shape[1] == width:
        return vectors
    if vectors.shape[1] < width:
        raise InputError(
            f"--embedding_size {width}: the vectors of {source} have {vectors.shape[1]} numbers: set it to as many or "
            "fewer"
        )
    if len(vectors) < width:
        raise InputError(
            f"{source} covers {len(vectors)} tokens, too few to reduce their {vectors.shape[1]} numbers to "
            f"--embedding_size {width}: set it to {vectors.shape[1]}"
        )
    return PCA(width, svd_solver="covariance_eigh").fit_transform(vectors.astype(np.float64))


@torch.no_grad()
def init_embeddings(student, tokenizer, source, teacher=None, teacher_tokenizer=None):
    """
    Puts vectors into the student's embedding table. The tokens without one keep their random embeddings, which are
    brought to the same standard deviation; the one of padding stays zero.

    Args:
        student (`PreTrainedModel`): Changed in place.
        tokenizer (`PreTrainedTokenizerBase`): The student's.
        source (`str`): `"teacher"`, or a file for [`read_vectors`].
        teacher (`PreTrainedModel`), teacher_tokenizer (`PreTrainedTokenizerBase`): For `"teacher"`.

    Returns:
        `int`: How many of the student's tokens are covered; their share is logged.

    Raises:
        `InputError`: Without a teacher, for a file that cannot be used, when no token is covered, or when the widths
            do not fit.
    """
    if source != "teacher":
        texts = token_texts(tokenizer)
        found = read_vectors(source, set(texts.values()))
        vectors = {token: found[text] for token, text in texts.items() if text in found}
    elif teacher is None:
        raise InputError("--embedding_init teacher needs a model as teacher: run_distill.py --teacher_name_or_path")
    else:
        vectors, source = teacher_vectors(teacher, teacher_tokenizer, tokenizer), "the teacher"
    table = student.get_input_embeddings()
    ids = {token: index for token, index in tokenizer.get_vocab().items() if index != table.padding_idx}
    covered = [token for token in ids if token in vectors]
    if not covered:
        raise InputError(f"--embedding_init: {source} has none of the student's {len(ids)} tokens: pass another")
    values = torch.from_numpy(fit_width(np.stack([vectors[token] for token in covered]), table.embedding_dim, source))
    values = values.to(table.weight)
    deviation = float(values.std(correction=0))
    if not 0 < deviation < 1e3:  # those of trained models are around 0.05 to 1
        raise InputError(f"--embedding_init: the vectors of {source} are all alike or too large: pass others")
    table.weight.mul_(deviation / student.config.initializer_range)
    table.weight[[ids[token] for token in covered]] = values
    logger.info(
        f"embeddings of {source}: {len(covered)} of {len(ids)} tokens covered ({100 * len(covered) / len(ids):.1f} %)"
    )
    return len(covered)
