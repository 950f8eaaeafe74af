#!/usr/bin/env python
"""
The baseline that a student must beat to be of use: TF-IDF of character 1-2-grams and a linear SVM, no teacher, no GPU.

    python benchmarks/linear.py
    python benchmarks/linear.py --train_file train.txt --test_file dev.txt --class_file class.txt
"""

import argparse
import statistics
import time

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from kd_trainer.arguments import DataArguments
from kd_trainer.data import load_data
from kd_trainer.metrics import ClassificationMetrics
from kd_trainer.report import write_json


def main():
    """Fits on the training split, scores the test split, writes a Markdown row and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default="recipes/demo/train.tsv")
    parser.add_argument("--test_file", default="recipes/demo/test.tsv")
    parser.add_argument("--class_file")
    parser.add_argument("--output", default="outputs/benchmarks/linear.json")
    args = parser.parse_args()
    flags = DataArguments(
        train_file=args.train_file, test_file=args.test_file, class_file=args.class_file, validation_split=0
    )
    splits = load_data(flags, wanted=("train", "test")).splits
    model = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    start = time.perf_counter()
    model.fit(splits["train"]["text"][:], splits["train"]["labels"][:])
    seconds = time.perf_counter() - start
    texts = splits["test"]["text"][:]
    predicted = model.predict(texts)
    scores = ClassificationMetrics(keep_in_memory=True).compute(
        predictions=predicted, references=splits["test"]["labels"][:]
    )
    taken = []
    for text in texts[:200]:
        start = time.perf_counter()
        model.predict([text])
        taken.append(time.perf_counter() - start)
    start = time.perf_counter()
    model.predict(texts)
    row = {
        **scores,
        "latency_ms": 1000 * statistics.median(taken),
        "texts_per_s": len(texts) / (time.perf_counter() - start),
        "train_seconds": seconds,
    }
    print(
        "| model | accuracy | f1 | latency_ms | texts_per_s (all at once) | train_seconds |\n|---|---|---|---|---|---|"
    )
    print(
        "| TF-IDF + LinearSVC | {accuracy:.4f} | {f1:.4f} | {latency_ms:.2f} | {texts_per_s:,.0f} | "
        "{train_seconds:.1f} |".format(**row)
    )
    write_json(args.output, {"arguments": vars(args), **row})


if __name__ == "__main__":
    main()
