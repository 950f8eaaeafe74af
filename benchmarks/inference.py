#!/usr/bin/env python
"""
From text to label on a CPU: a BERT-base-size teacher, the student, and TF-IDF with a linear SVM.

    python benchmarks/inference.py
    python benchmarks/inference.py --train_file train.txt --class_file class.txt

Every model runs in a process of its own, so that its peak memory is its own. The networks have random weights.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MODELS = ("teacher 12x768", "teacher 6x384", "student 300/384", "TF-IDF + LinearSVC")


def build(name, args):
    """A function of `list[str]` that labels them, and the texts."""
    import numpy as np
    import torch

    from kd_trainer import build_tokenizer
    from kd_trainer.arguments import DataArguments
    from kd_trainer.data import load_data

    torch.set_num_threads(args.threads)
    flags = DataArguments(train_file=args.train_file, class_file=args.class_file, validation_split=0)
    data = load_data(flags, wanted=("train",))
    texts, num_labels = data.splits["train"]["text"][:], len(data.label_names)
    if name.startswith("TF-IDF"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        model = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
        return model.fit(texts, data.splits["train"]["labels"][:]).predict, texts
    if name.startswith("student"):
        from kd_trainer import BiLSTMConfig, BiLSTMForSequenceClassification

        embedding_size, hidden_size = map(int, name.split()[1].split("/"))
        tokenizer = build_tokenizer(texts)
        config = BiLSTMConfig(vocab_size=len(tokenizer), embedding_size=embedding_size, hidden_size=hidden_size,
                              num_labels=num_labels)  # fmt: skip
        model = BiLSTMForSequenceClassification(config)
    else:
        from transformers import BertConfig, BertForSequenceClassification

        layers, width = map(int, name.split()[1].split("x"))
        tokenizer = build_tokenizer(texts, bert_style=True)
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
        config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=width // 64, num_labels=num_labels, **sizes)
        model = BertForSequenceClassification(config)
    model.eval()

    @torch.no_grad()
    def label(batch):
        inputs = tokenizer(batch, truncation=True, max_length=256, padding=True, return_tensors="pt")
        return np.argmax(model(**inputs).logits.numpy(), axis=-1)

    return label, texts


def measure(name, args):
    """One model at one number of threads: `dict` of milliseconds at batch 1, texts/s at 1 and 32, peak megabytes."""
    label, texts = build(name, args)
    result = {"model": name, "threads": args.threads}
    for batch_size in (1, 32):
        taken = []
        deadline = time.perf_counter() + args.seconds
        for repeat in range(403):
            first = repeat * batch_size % (len(texts) - batch_size)
            start = time.perf_counter()
            label(texts[first : first + batch_size])
            taken.append(time.perf_counter() - start)
            if len(taken) > 8 and time.perf_counter() > deadline:
                break
        median = statistics.median(taken[3:])
        result[f"ms_{batch_size}"], result[f"texts_per_s_{batch_size}"] = 1000 * median, batch_size / median
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return result


def main():
    """Measures all models and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default="recipes/demo/train.tsv")
    parser.add_argument("--class_file")
    parser.add_argument("--seconds", type=float, default=8.0, help="For each number, at most.")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="outputs/benchmarks/inference.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    results = []
    for threads in (1, 2):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        for name in MODELS:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--threads", str(threads)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print("| model | threads | ms, batch 1 | ms, batch 32 | texts/s, batch 32 | peak MB | x the teacher's texts/s |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        base = next(other for other in results if other["threads"] == row["threads"])
        ratio = row["texts_per_s_32"] / base["texts_per_s_32"]
        print(f"| {row['model']} | {row['threads']} | {row['ms_1']:.2f} | {row['ms_32']:.1f} | "
              f"{row['texts_per_s_32']:,.0f} | {row['peak_mb']:,.0f} | {ratio:.1f} |")  # fmt: skip
    from kd_trainer.report import write_json  # here: the processes that measure their memory need it not

    write_json(args.output, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()
