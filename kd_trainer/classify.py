"""
Label texts with the model in this folder. Needs onnxruntime, tokenizers and numpy, nothing else.

    python classify.py "a text"                two texts for a model of pairs
    python classify.py texts.csv labels.csv    a file of any length, in constant memory

The text of a file is the column text, sentence, content, headline, title or review, or that of the training; the
columns predicted and probability are added.
"""

import csv
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

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


def label_file(classifier, source, target, window=1024):
    """Copies a csv file, each row with its label and probability behind it; `window` rows are held at a time."""
    if os.path.exists(target):
        raise ValueError(f"{target} is there already: name another file")
    csv.field_size_limit(sys.maxsize)
    partial = f"{target}.partial"
    with (
        open(source, encoding="utf-8-sig", newline="") as file,
        open(partial, "w", encoding="utf-8", newline="") as out,
    ):
        reader, writer = csv.reader(file, strict=True), csv.writer(out)
        header = next(reader, [])
        places = [next((header.index(n) for n in names if n in header), None) for names in classifier.config["columns"]]
        if None in places:
            raise ValueError(f"{source}: its columns are {header}, needed are {classifier.config['columns']}")
        writer.writerow([*header, "predicted", "probability"])
        while rows := list(itertools.islice(filter(None, reader), window)):
            if any(len(row) != len(header) for row in rows):
                raise ValueError(f"{source}: not {len(header)} cells in each of the rows up to line {reader.line_num}")
            texts = [row[places[0]] if len(places) == 1 else tuple(row[place] for place in places) for row in rows]
            labels = classifier.label(texts)
            writer.writerows((*row, *label) for row, label in zip(rows, labels, strict=True))
    os.replace(partial, target)


if __name__ == "__main__":
    given = sys.argv[1:]
    try:
        if given in (["-h"], ["--help"]):
            print(__doc__.strip())
        elif len(given) == 2 and given[0].endswith(".csv"):
            label_file(Classifier(), *given)
        elif len(given) == len(Classifier().config["columns"]):
            print(*Classifier().label([given[0] if len(given) == 1 else tuple(given)])[0])
        else:
            raise ValueError(__doc__.strip())
    except (OSError, ValueError, csv.Error) as error:
        sys.exit(f"classify.py: {error}")
