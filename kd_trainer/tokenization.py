"""Build a fast tokenizer from texts: its vocabulary is counted, nothing is downloaded, `AutoTokenizer` loads it."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .errors import InputError

PAD_TOKEN, UNK_TOKEN = "[PAD]", "[UNK]"
BERT_TOKENS = ("[CLS]", "[SEP]", "[MASK]")
# Characters of the scripts that are written without spaces, for a regular expression's brackets: Chinese and Japanese;
# Thai and Lao, Burmese, Khmer.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


def char_splitter():
    """No normalizer, and a pre-tokenizer that makes every character, white space included, a token of its own."""
    return None, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


def word_splitter():
    """Lower case, then words at white space and punctuation; a Chinese character is a word, as in BERT."""
    return normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()


SPLITTERS = {"char": char_splitter, "word": word_splitter}


def char_ids(tokenizer):
    """
    The id of every character for a tokenizer that [`build_tokenizer`] has made of characters, as a table to look up.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any.

    Returns:
        `np.ndarray` of shape `(1114112,)`, int32, by code point; None for a tokenizer that does anything else with a
        text than to look its characters up.
    """
    if not tokenizer.is_fast or not tokenizer.split_special_tokens:
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    around = backend["post_processor"]
    if (
        backend["normalizer"] is not None
        or backend["pre_tokenizer"] != json.loads(char_splitter()[1].__getstate__())
        or not (around is None or around.get("single") == [{"Sequence": {"id": "A", "type_id": 0}}])
        or backend["model"]["type"] != "WordLevel"
        or not all(token["special"] for token in backend["added_tokens"])
        or tokenizer.truncation_side != "right"
    ):
        return None
    vocabulary = backend["model"]["vocab"]
    table = np.full(sys.maxunicode + 1, vocabulary[backend["model"]["unk_token"]], dtype=np.int32)
    for token, index in vocabulary.items():
        if len(token) == 1:
            table[ord(token)] = index
    return table


def count_tokens(texts, kind):
    """
    How often each token occurs in `texts` when split by `kind`, as a `collections.Counter`.

    Example:

    ```python
    >>> count_tokens(["Good, good!"], "word").most_common(1)
    [('good', 2)]

    ```
    """
    counts = Counter()
    if kind == "char":  # what the splitter does, without its offsets
        for text in texts:
            counts.update(text)
        return counts
    normalizer, pre_tokenizer = SPLITTERS[kind]()
    for text in texts:
        counts.update(token for token, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    return counts


def read_vocabulary(path):
    """
    A vocabulary file in the style of `cnews.vocab.txt`: one token a line, its id is its line, UTF-8. `<PAD>` and
    `<UNK>` (or `[PAD]`, `[UNK]`) may stand anywhere; those missing are put first and last.

    Returns:
        `tuple`: The tokens (`list[str]`), the padding token and the unknown token among them.

    Raises:
        `InputError`: For a file that is missing, not UTF-8, empty or names a token twice.
    """
    path = Path(path)
    try:
        # Not splitlines(): U+2028 and its like are characters that a vocabulary may hold.
        tokens = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise InputError(f"{path}: no such vocabulary file: pass another --vocab_file or leave it out") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: pass a readable vocabulary file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: convert the file to UTF-8") from None
    while tokens and not tokens[-1]:
        tokens.pop()
    first_line = {}
    for number, token in enumerate(tokens, start=1):
        if not token:
            raise InputError(f"{path} line {number}: empty token: remove the line")
        if token in first_line:
            raise InputError(
                f"{path} line {number}: token {token!r} stands on line {first_line[token]} already: remove one of them"
            )
        first_line[token] = number
    if not tokens:
        raise InputError(f"{path}: empty vocabulary file: put one token on each line")
    pad = next((token for token in ("<PAD>", PAD_TOKEN) if token in first_line), None)
    unk = next((token for token in ("<UNK>", UNK_TOKEN) if token in first_line), None)
    if pad is None:
        pad = PAD_TOKEN
        tokens.insert(0, pad)
    if unk is None:
        unk = UNK_TOKEN
        tokens.append(unk)
    return tokens, pad, unk


def build_tokenizer(
    texts=(), kind="char", vocab_size=5000, vocab_file=None, max_length=None, bert_style=False, text_pairs=False
):
    """
    A fast tokenizer with the `vocab_size` most frequent tokens of `texts`, or with the tokens of `vocab_file`.

    Args:
        texts (iterable of `str`): The **training** texts; not read when `vocab_file` is given.
        kind (`str`, *optional*, defaults to `"char"`): `"char"`: every character a token, as it is written.
            `"word"`: lower case, words at white space and punctuation, Chinese by character.
        vocab_size (`int`, *optional*, defaults to 5000): Special tokens included.
        vocab_file (`str`, *optional*): See [`read_vocabulary`].
        max_length (`int`, *optional*): Stored as `model_max_length`, in tokens.
        bert_style (`bool`, *optional*, defaults to `False`): Adds `[CLS]`, `[SEP]` around every text and `[MASK]` to
            the vocabulary, for a BERT that is trained from scratch.
        text_pairs (`bool`, *optional*, defaults to `False`): Gives `token_type_ids`, 0 for the first text of a pair and
            1 for the second, as `bert_style` does anyway.

    Returns:
        `PreTrainedTokenizerFast` whose padding token has id 0 and unknown token id 1, unless `vocab_file` says else.

    Raises:
        `InputError`: For a vocabulary file that cannot be used, or texts without a single token.

    Example:

    ```python
    >>> tokenizer = build_tokenizer(["股市大涨", "股市大跌"], vocab_size=5)
    >>> tokenizer("大跌了")["input_ids"]
    [2, 1, 1]

    ```
    """
    specials = BERT_TOKENS if bert_style else ()
    if vocab_file is not None:
        tokens, pad, unk = read_vocabulary(vocab_file)
        tokens += [token for token in specials if token not in tokens]
    else:
        pad, unk = PAD_TOKEN, UNK_TOKEN
        counts = count_tokens(texts, kind)
        for token in (pad, unk, *specials):
            counts.pop(token, None)
        if not counts:
            raise InputError(
                "the training texts hold no token to build a vocabulary from: give texts or a --vocab_file"
            )
        # By frequency, then by the token itself: the same texts in any order give the same ids.
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        tokens = [pad, unk, *specials, *ranked[: max(1, vocab_size - 2 - len(specials))]]
    ids = {token: index for index, token in enumerate(tokens)}

    backend = Tokenizer(models.WordLevel(ids, unk_token=unk))
    normalizer, backend.pre_tokenizer = SPLITTERS[kind]()
    if normalizer is not None:
        backend.normalizer = normalizer
    if bert_style:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
        )
    elif text_pairs:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"} if bert_style else {}
    model_inputs = ["input_ids", *(["token_type_ids"] if bert_style or text_pairs else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        model_input_names=model_inputs,
        # A text that says "[PAD]" is text.
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **({} if max_length is None else {"model_max_length": max_length}),
        **names,
    )
