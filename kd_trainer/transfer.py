"""The transfer set: more texts for the teacher to label, from files without labels or made of the training texts."""

import atexit
import errno
import itertools
import logging
import random
import re
import shutil
import tempfile

import datasets
import pyarrow as pa

from .batches import NO_LABEL
from .errors import InputError
from .pairs import columns_of, sides, stripped, texts_of
from .text_stream import iterate_texts
from .tokenization import UNSPACED

logger = logging.getLogger(__name__)

# A word with the white space before it, or one character of a script that is written without spaces.
WORD = re.compile(rf"\s*(?:[{UNSPACED}]|[^\s{UNSPACED}]+)")

AUGMENTATIONS = ("mask", "drop", "replace", "ngram", "splice")
HOLE = "□"  # stands for a masked word where no tokenizer has a token for it
RATE = 0.1  # of masked, dropped and of replaced words each
CHANCE = 0.25  # of a text being cut to an n-gram, or spliced


class EmptyTransferSet(InputError):
    """No text is left."""


def check_transfer(teacher_args, text_column=None, text_pair_column=None):
    """
    Refuses what would fail once the teacher is there: an unknown augmentation, a file that begins with no text.

    Raises:
        `InputError`
    """
    check_augmentations(teacher_args.augment)
    for path in teacher_args.unlabeled_file or ():
        if next(iterate_texts(path, text_column, text_pair_column), None) is None:
            raise InputError(f"{path}: no row in the file: give one with a text on each line")


def check_augmentations(names):
    """Refuses a name that is none of `AUGMENTATIONS`."""
    for name in names or ():
        if name not in AUGMENTATIONS:
            raise InputError(f"--augment {name}: choose of {', '.join(AUGMENTATIONS)}")


def vary(words, kinds, mask, vocabulary, other, generator):
    """
    One variant of a text.

    Args:
        words (`list[str]`): The text's, each with the white space before it.
        kinds (collection of `str`): Of `AUGMENTATIONS`: `"mask"`, `"drop"` and `"replace"` each meet a tenth of the
            words; `"ngram"` keeps a run of the words, in a quarter of the texts; `"splice"` puts the end of another
            text behind the beginning of this one, in a quarter of the texts.
        mask (`str`): Stands for a masked word.
        vocabulary (`list[str]`): Words to replace others by, as often as they shall be drawn.
        other (`list[str]`): Words of another text.
        generator (`random.Random`): Draws.

    Returns:
        `str`, never empty unless the text is.
    """
    words = list(words)
    if "splice" in kinds and words and other and generator.random() < CHANCE:
        words, end = words[: generator.randint(1, len(words))], other[generator.randint(0, len(other) - 1) :]
        # The first word of a text has no space before it, which two words of a spaced script need between them.
        spaced = not re.search(rf"[{UNSPACED}]", words[-1][-1] + end[0][0]) and not end[0][0].isspace()
        words += [f" {end[0]}", *end[1:]] if spaced else end
    if "ngram" in kinds and words and generator.random() < CHANCE:
        length = generator.randint(1, len(words))
        start = generator.randint(0, len(words) - length)
        words = words[start : start + length]
    varied = []
    for word in words:
        space = word[: len(word) - len(word.lstrip())]
        drawn = generator.random()
        if "mask" in kinds and drawn < RATE:
            varied.append(space + mask)
        elif "drop" in kinds and RATE <= drawn < 2 * RATE:
            continue
        elif "replace" in kinds and 2 * RATE <= drawn < 3 * RATE:
            varied.append(space + generator.choice(vocabulary))
        else:
            varied.append(word)
    return "".join(varied or words).strip()


def augment(texts, kinds, variants, mask, seed=0):
    """
    Variants of every text, which change its meaning at times: a teacher labels them anew. Of a pair of texts one is
    varied, the first or the second by chance: the other one still says what it is compared with.

    Args:
        texts (`list[str]` or `list[tuple[str, str]]`): Those without a word have no variant.
        kinds (collection of `str`): Of `AUGMENTATIONS`, see [`vary`].
        variants (`int`): Of each text.
        mask (`str`): Stands for a masked word.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Yields:
        `str` or `tuple[str, str]`, those that are not the text itself.

    Source: Tang et al. 2019, https://arxiv.org/abs/1903.12136, section 3.2, for masking, replacing and n-grams (their
    replacement keeps the part of speech; this one does not).
    """
    generator = random.Random(seed)
    split = [[WORD.findall(side) for side in sides(text)] for text in texts]
    vocabulary = [word.strip() for row in split for words in row for word in words]
    for _ in range(variants):
        for text, row in zip(texts, split, strict=True):
            side = generator.randrange(2) if len(row) > 1 else 0
            if row[side]:
                other = split[generator.randrange(len(split))][side]
                variant = vary(row[side], kinds, mask, vocabulary, other, generator)
                if variant != sides(text)[side].strip():
                    yield variant if len(row) == 1 else (*text[:side], variant, *text[side + 1 :])


def transfer_set(data, teacher_args, text_column, mask, seed, text_pair_column=None):
    """
    The texts without labels that `--unlabeled_file` and `--augment` name, less those that also stand in a split of the
    data, whatever its name. They lie on disk: a file may be larger than the memory.

    Args:
        data ([`TextData`]): Its splits; variants are made of the labelled and unlabelled training texts.
        teacher_args ([`TeacherArguments`]): The flags.
        text_column (`str`, *optional*): Of the files.
        mask (`str`): Stands for a masked word in both models' texts.
        seed (`int`): Of the variants.
        text_pair_column (`str`, *optional*): Of the files, where the data's texts are pairs.

    Returns:
        `list[datasets.Dataset]`, of each file and of the variants one, with columns `text`, for pairs `text_pair`, and
        `labels` (all −100). Apart, so that the teacher labels what is new where a file is added.

    Raises:
        `InputError`: For a file that cannot be read, where no text is left ([`EmptyTransferSet`]), and without room on
            disk.
    """
    files, kinds = teacher_args.unlabeled_file or [], teacher_args.augment or []
    if not files and not kinds:
        return []
    check_augmentations(kinds)
    # Hashes, not texts: collisions lose a text in 2^40 or so.
    known = {hash(stripped(text)) for split in data.splits.values() for text in texts_of(split)[:]}
    # Their labels are not read: a text with its label is none of the texts of a split.
    labels = {*data.label_names, *map(str, range(len(data.label_names)))}
    sources = [(f"of {path}", iterate_texts(path, text_column, text_pair_column, labels)) for path in files]
    if kinds:
        texts = texts_of(data.splits["train"])[:]
        sources.append(("variants", augment(texts, kinds, teacher_args.num_augmented, mask, seed)))
    counts, left_out = [0] * len(sources), 0

    def generate():
        nonlocal left_out
        for number, (_, texts) in enumerate(sources):
            for text in texts:
                if hash(stripped(text)) in known:
                    left_out += 1
                elif "".join(sides(text)).strip():
                    counts[number] += 1
                    yield text

    folder = tempfile.mkdtemp(prefix="kd_trainer_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/texts.arrow"
    schema = pa.schema({name: pa.string() for name in columns_of([], data.has_pairs)} | {"labels": pa.int64()})
    texts = generate()
    try:
        with pa.OSFile(path, "wb") as file, pa.RecordBatchStreamWriter(file, schema) as writer:
            while batch := list(itertools.islice(texts, 10_000)):
                rows = [*columns_of(batch, data.has_pairs).values(), [NO_LABEL] * len(batch)]
                writer.write_batch(pa.record_batch(rows, schema=schema))
    except OSError as error:  # of pyarrow: without the name of the file
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(f"no room for the transfer set in {folder}: let TMPDIR name a larger folder") from error
    if not any(counts):
        raise EmptyTransferSet(
            "--unlabeled_file and --augment give no text that is not in the data already: leave them out"
        )
    found = [f"{count} {source}" for count, (source, _) in zip(counts, sources, strict=True)]
    logger.info(f"transfer set of {sum(counts)} texts: {left_out} left out, {', '.join(found)}")
    whole = datasets.Dataset.from_file(path)
    ends = list(itertools.accumulate(counts))
    return [whole.select(range(end - count, end)) for end, count in zip(ends, counts, strict=True) if count]
