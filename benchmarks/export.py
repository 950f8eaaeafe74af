#!/usr/bin/env python
"""
What an export is worth: a student and a BERT-base-size teacher in torch, ONNX and ONNX int8, side by side on one
thread.

    python benchmarks/export.py
    python benchmarks/export.py --seconds 20 --rounds 5

The models have random weights, a vocabulary of 5,000 and texts of 24 tokens, from text to logits. Every number is the
median over rounds in which the models take turns, so that what else the machine does falls on all of them. Beside it
stands the processor time that a call takes: on a quiet machine they are equal, on a busy one time is waiting, too. The
goals stand below the table, with what is measured.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

# Before anything brings up a thread pool.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from kd_trainer import BiLSTMConfig, BiLSTMForSequenceClassification, build_tokenizer
from kd_trainer.classify import Classifier
from kd_trainer.inference import pad_texts
from kd_trainer.onnx_folder import FILES, write_folder
from kd_trainer.report import describe_model, versions, write_json

VOCABULARY, TOKENS, NUM_LABELS = 5000, 24, 10
SINGLE, BATCH = 1, 32


def make_texts(size, bert_style):
    """Random texts of exactly `TOKENS` tokens, those that a BERT adds among them."""
    generator = np.random.default_rng(0)
    length = TOKENS - 2 * bert_style
    return ["".join(chr(0x4E00 + index) for index in generator.integers(4990, size=length)) for _ in range(size)]


def make_calls(folder):
    """
    The contestants: `dict[str, tuple]` by name of a function of a list of texts, of whether it is the teacher, and of
    the megabytes of its file.
    """
    torch.manual_seed(0)
    characters = [chr(0x4E00 + index) for index in range(4990)]
    calls = {}
    for name in ("student", "teacher"):
        bert_style = name == "teacher"
        tokenizer = build_tokenizer(characters, vocab_size=VOCABULARY, max_length=512, bert_style=bert_style)
        sizes = {"vocab_size": VOCABULARY, "num_labels": NUM_LABELS}
        if bert_style:
            model = BertForSequenceClassification(BertConfig(**sizes))
        else:
            model = BiLSTMForSequenceClassification(BiLSTMConfig(**sizes, embedding_size=300, hidden_size=384))
        model.eval()
        target = folder / name
        target.mkdir()
        write_folder(target, model, tokenizer, 512, list(FILES), [["text"]])

        def in_torch(batch, model=model, tokenizer=tokenizer):
            with torch.no_grad():
                return model(**pad_texts(tokenizer, batch, 512)).logits

        calls[f"{name}, torch"] = (in_torch, bert_style, describe_model(model)["size_mb"])
        for label, file in FILES.items():
            size = (target / file).stat().st_size / 1e6
            calls[f"{name}, {label}"] = (Classifier(target, file, threads=1).logits, bert_style, size)
    return calls


def measure(calls, seconds, rounds):
    """
    Milliseconds of a call by contestant and batch size, and those of the processor: of each round a pair of medians,
    `dict[tuple[str, int], list[tuple[float, float]]]`.
    """
    texts = {bert_style: make_texts(256, bert_style) for bert_style in (False, True)}
    taken = {(name, size): [] for name in calls for size in (SINGLE, BATCH)}
    share = seconds / rounds
    for _ in range(rounds):
        for name, (call, bert_style, _) in calls.items():
            for size in (SINGLE, BATCH):
                times, deadline = [], time.perf_counter() + share
                while len(times) < 3 or time.perf_counter() < deadline:
                    first = len(times) * size % (256 - size)
                    start, start_cpu = time.perf_counter(), time.process_time()
                    call(texts[bert_style][first : first + size])
                    times.append((time.perf_counter() - start, time.process_time() - start_cpu))
                # The first call of a round finds other models' weights in the caches.
                taken[name, size].append([1000 * statistics.median(kind) for kind in zip(*times[1:], strict=True)])
    return taken


def main():
    """Measures, prints a Markdown table and the goals, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="For each number, over all rounds.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="outputs/benchmarks/export.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calls = make_calls(Path(folder))
        taken = measure(calls, args.seconds, args.rounds)
    results = []
    print("| model | MB | ms, batch 1 | of the CPU | ms, batch 32 | of the CPU | texts/s, batch 32 |")
    print("|---|---|---|---|---|---|---|")
    for name, (*_, size_mb) in calls.items():
        row = {"model": name, "size_mb": size_mb}
        for size in (SINGLE, BATCH):
            both = zip(*taken[name, size], strict=True)
            row[f"ms_{size}"], row[f"cpu_ms_{size}"] = map(statistics.median, both)
        row["texts_per_s"] = 1000 * BATCH / row[f"ms_{BATCH}"]
        results.append(row)
        print(f"| {name} | {size_mb:.2f} | {row['ms_1']:.2f} | {row['cpu_ms_1']:.2f} | {row['ms_32']:.1f} | "
              f"{row['cpu_ms_32']:.1f} | {row['texts_per_s']:,.0f} |")  # fmt: skip
    by_name = {row["model"]: row for row in results}
    student = by_name["student, onnx-int8"]
    goals = {
        "batch 1 in at most 0.5 ms": (student["ms_1"], student["ms_1"] <= 0.5),
        "a file of at most 4 MB": (student["size_mb"], student["size_mb"] <= 4),
    }
    for name, least in (("teacher, torch", 50), ("teacher, onnx-int8", 20)):
        times = student["texts_per_s"] / by_name[name]["texts_per_s"]
        goals[f"at least {least} times the texts/s of {name}"] = (times, times >= least)
    print("\nstudent, onnx-int8:")
    for goal, (value, is_met) in goals.items():
        print(f"- {goal}: {value:.2f}, {'met' if is_met else 'MISSED'}")
    write_json(args.output, {"arguments": vars(args), "results": results, "goals": goals, "versions": versions()})


if __name__ == "__main__":
    main()
