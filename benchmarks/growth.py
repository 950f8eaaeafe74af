#!/usr/bin/env python
"""
Time and peak memory against the number of texts: does labelling grow linearly, and its memory not at all?

    python benchmarks/growth.py

Generated texts lie in a memory-mapped file; a small classifier stands for the teacher; every size has a process of its
own. The memory is what the labelling adds to that of the process before it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def generate(path, rows):
    """`rows` texts of 10 to 28 characters, written piece by piece as an Arrow file."""
    import numpy as np
    from datasets.arrow_writer import ArrowWriter

    generator = np.random.default_rng(0)
    characters = np.array([chr(code) for code in range(0x4E00, 0x4E00 + 2000)])
    with ArrowWriter(path=path) as writer:
        for start in range(0, rows, 10_000):
            size = min(10_000, rows - start)
            drawn = generator.choice(characters, size=(size, 28))
            lengths = generator.integers(10, 29, size=size)
            texts = ["".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
            writer.write_batch({"text": texts})
        writer.finalize()


def measure(path, folder):
    """Labels the texts of an Arrow file; `dict` of seconds and megabytes."""
    import torch
    from datasets import Dataset

    from kd_trainer import BiLSTMConfig, BiLSTMForSequenceClassification, build_tokenizer, cached_logits

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    dataset = Dataset.from_file(path)
    tokenizer = build_tokenizer(dataset[:1000]["text"], max_length=64)
    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "hidden_size": 32, "num_labels": 10}
    model = BiLSTMForSequenceClassification(BiLSTMConfig(vocab_size=len(tokenizer), **sizes))
    # The first call loads what every size needs.
    cached_logits(model, tokenizer, dataset[:500]["text"], 64, cache_dir=f"{folder}/warm", batch_size=256)
    before = peak()
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        logits = cached_logits(model, tokenizer, dataset["text"], 64, cache_dir=folder, batch_size=256)
        taken.append(time.perf_counter() - start)
    assert len(logits) == len(dataset)
    return {"label_seconds": taken[0], "read_seconds": taken[1], "before_mb": before, "added_mb": peak() - before}


def main():
    """Measures all sizes and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="outputs/benchmarks/growth.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    results = []
    print("| texts | labelling, s | texts/s | reading it back, s | memory before, MB | added, MB |")
    print("|---|---|---|---|---|---|")
    for rows in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/texts.arrow"
            generate(path, rows)
            command = [sys.executable, __file__, "--one", path, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        row = {"texts": rows, **json.loads(done.stdout.splitlines()[-1])}
        results.append(row)
        seconds = f"{row['label_seconds']:.1f} | {rows / row['label_seconds']:,.0f} | {row['read_seconds']:.2f}"
        print(f"| {rows:,} | {seconds} | {row['before_mb']:.0f} | {row['added_mb']:.0f} |", flush=True)
    from kd_trainer.report import write_json  # here: the processes that measure their memory need it not

    write_json(args.output, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()
