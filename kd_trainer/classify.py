"""
Label texts with the model in this folder. Needs onnxruntime, tokenizers and numpy, nothing else.

    python classify.py "a text"                two texts for a model of pairs
    python classify.py texts.csv labels.csv    a file of any length, in constant memory

The text of a file is the column text, sentence, content, headline, title or review, or that of the training; the
columns predicted and probability are added. Exit code 2 says that something given is wrong.
"""

import contextlib
import csv
import itertools
import json
import os
import secrets
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

ADDED = ("predicted", "probability")  # columns
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Classifier:
    """The model in `folder`, int8 if there are both; `threads=0` is all cores. A text may be a pair, `(str, str)`."""

    def __init__(self, folder=Path(__file__).parent, file=None, threads=0):
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))  # cuts texts off and pads, too
        self.tokenizer.encode_special_tokens = self.config["split_special_tokens"]  # a text that says "[PAD]" is text
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(Path(folder) / (file or self.config["files"][-1]))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [node.name for node in self.session.get_inputs()]

    def logits(self, texts):
        """Of one batch, float32 of shape `(len(texts), num_labels)`."""
        part = slice(*self.config["part"])  # what is beyond it would be tokenized and cut off
        texts = [text[part] if isinstance(text, str) else tuple(side[part] for side in text) for text in texts]
        encodings = self.tokenizer.encode_batch(texts)
        inputs = {name: np.array([getattr(e, FIELDS[name]) for e in encodings], np.int64) for name in self.inputs}
        if not encodings[0].ids:  # nothing but empty texts: a token that the mask hides stands for each
            inputs = {name: np.zeros((len(texts), 1), np.int64) for name in self.inputs}
        return self.session.run(None, inputs)[0]

    def label(self, texts, batch_size=32):
        """The label of every text and its probability, `list[tuple[str, float]]`."""
        labels = [None] * len(texts)
        rows = sorted(range(len(texts)), key=lambda row: len("".join(texts[row])))  # like lengths need little padding
        for batch in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size)):
            for row, logits in zip(batch, self.logits([texts[row] for row in batch]), strict=True):
                probability = 1 / np.exp(logits - logits.max()).sum()
                labels[row] = (self.config["labels"][logits.argmax()], round(float(probability), 6))
        return labels


def read_rows(source):
    """The lines of a csv file, `list[str]` each, the header first; `ValueError` names the file and the line."""
    csv.field_size_limit(sys.maxsize)
    end = 0
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader, header = csv.reader(file, strict=True), None
            for row in filter(None, reader):
                header = header or row
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} cells where the header has {len(header)}")
                yield row
                end = reader.line_num
    except OSError as error:
        raise ValueError(f"{source} cannot be read ({error.strerror}): check the path") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{source} behind line {end}: {error}: mend it (UTF-8, quotes closed)") from None


def check_new(target):
    """Refuses a file that is there."""
    if not target or os.path.lexists(target):
        raise ValueError(f"{target or 'an empty name'} is there already: name another file")


def label_file(classifier, source, target, window=1024):
    """Copies a csv file, each row with its label and probability behind it; `window` rows are held at a time."""
    check_new(target)
    rows = read_rows(source)
    header = next(rows, [])
    names = [[name for name in names if name in header][:1] for names in classifier.config["columns"]]
    if [] in names or any(header.count(name) > 1 for (name,) in names):
        raise ValueError(f"{source}: its columns are {header}, needed is one of each {classifier.config['columns']}")
    if not set(ADDED).isdisjoint(header):
        raise ValueError(f"{source}: its columns are {header}, {' and '.join(ADDED)} are added: rename its own")
    partial = f"{target}.{secrets.token_hex(4)}.partial"
    try:
        with open(partial, "x", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow([*header, *ADDED])
            while piece := list(itertools.islice(rows, window)):
                texts = [tuple(row[header.index(name)] for (name,) in names) for row in piece]
                labels = classifier.label([text if len(text) > 1 else text[0] for text in texts])
                writer.writerows((*row, *label) for row, label in zip(piece, labels, strict=True))
        check_new(target)
        os.replace(partial, target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}): name another file") from None
    finally:
        with contextlib.suppress(OSError):  # there is none
            os.remove(partial)


def load():
    """The classifier in this folder, once it has answered something."""
    try:
        classifier = Classifier()
        names = classifier.config["columns"]  # of each text, those that it may have
        columns = len(names)
        is_whole = all(isinstance(of_text, list) and of_text and all(map(str.strip, of_text)) for of_text in names)
        if columns not in (1, 2) or not is_whole:
            raise ValueError(f"columns: {names}")
        (logits,) = classifier.logits(["a" if columns == 1 else ("a", "b")])
        if len(logits) != len(classifier.config["labels"]):
            raise ValueError(f"{len(classifier.config['labels'])} labels for {len(logits)} answers")
    except Exception as error:  # tokenizers and onnxruntime have exceptions of their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{Path(__file__).parent} is damaged ({reason}): export the model again") from None
    return classifier, columns


def main(given):
    """Does what the command line `given` (`list[str]`) says."""
    if given in (["-h"], ["--help"]):
        return print(__doc__.strip())
    try:
        given = [os.fsencode(word).decode("utf-8") for word in given]  # whatever the terminal's language
    except UnicodeDecodeError as error:
        raise ValueError(f"the command line is no UTF-8 ({error.reason}): put the text into a csv file") from None
    classifier, columns = load()
    if len(given) == 2 and given[0].lower().endswith(".csv") and not given[1].startswith("--"):
        return label_file(classifier, *given)
    # A text may speak of a file, and stand beside a folder of its name.
    endings = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")
    is_word = [word for word in given if len(word.split()) == 1 or os.path.isfile(word)]
    files = [word for word in is_word if word.startswith("--") or word.lower().endswith(endings)]
    if len(given) != columns or files:
        wanted = "one text" if columns == 1 else "two texts"
        raise ValueError(f"found {given}, wanted is {wanted}, or texts.csv labels.csv: --help shows how")
    label, probability = classifier.label([given[0] if columns == 1 else tuple(given)])[0]
    sys.stdout.reconfigure(encoding="utf-8")
    print(label, probability)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"classify.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
