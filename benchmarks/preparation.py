#!/usr/bin/env python
"""
What passes before the first step: tokenizing, `--help`, and from the command to the first training step.

    python benchmarks/preparation.py
    python benchmarks/preparation.py --train_file train.txt --class_file class.txt
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # speeds are per core

import datasets

from kd_trainer import build_tokenizer, tokenize
from kd_trainer.arguments import DataArguments
from kd_trainer.data import load_data
from kd_trainer.report import write_json

PROJECT = Path(__file__).parent.parent


def seconds_of(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def first_step(flags):
    """Seconds from the start of `run_student.py` to the log of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "run_student.py",
            "--do_train",
            *flags,
            f"--output_dir={folder}/run",
            "--max_steps=1",
        ]
        command += ["--eval_strategy=no", "--save_strategy=no", "--logging_steps=1", "--disable_tqdm=true"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            if "'loss'" in line:
                taken = time.perf_counter() - start
                process.kill()
                process.wait()
                return taken
    raise RuntimeError(f"{' '.join(command)} took no step")


def main():
    """Measures all of it and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default="recipes/demo/train.tsv")
    parser.add_argument("--class_file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="outputs/benchmarks/preparation.json")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    flags = DataArguments(train_file=args.train_file, class_file=args.class_file, validation_split=0)
    split = load_data(flags, wanted=("train",)).splits["train"]
    texts = split["text"][:]
    tokenizers = {
        "characters": build_tokenizer(texts),
        "words": build_tokenizer(texts, kind="word"),
        "characters with [CLS] and [SEP]": build_tokenizer(texts, bert_style=True),
    }
    results = {}
    for name, tokenizer in tokenizers.items():
        times = [seconds_of(lambda tokenizer=tokenizer: tokenize(split, tokenizer, 64)) for _ in range(args.repeats)]
        results[f"tokenizing, {name}, texts/s"] = len(texts) / statistics.median(times)
    times = [seconds_of(lambda: tokenizers["characters"](texts)) for _ in range(args.repeats)]
    results["the call of transformers, characters, texts/s"] = len(texts) / statistics.median(times)

    def run(*words, **environment):
        command, environment = [sys.executable, *words], {**os.environ, **environment}
        subprocess.run(command, check=True, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)

    def first_help():
        with tempfile.TemporaryDirectory() as home:
            return seconds_of(lambda: run("run_distill.py", "--help", HF_HOME=home))

    commands = {
        "import torch, s": ("-c", "import torch"),
        "import transformers.TrainingArguments, s": ("-c", "from transformers import TrainingArguments"),
        "run_distill.py --help, s": ("run_distill.py", "--help"),
    }
    name = "run_distill.py --help, the first time after an installation or a change, s"
    results[name] = statistics.median(first_help() for _ in range(args.repeats))
    for name, command in commands.items():
        times = [seconds_of(lambda command=command: run(*command)) for _ in range(args.repeats)]
        results[name] = statistics.median(times)
    given = [f"--train_file={Path(args.train_file).resolve()}"]
    given += [f"--class_file={Path(args.class_file).resolve()}"] if args.class_file else []
    name = f"run_student.py to its first step, {len(texts)} texts, s"
    results[name] = statistics.median(first_step(given) for _ in range(args.repeats))
    print(f"\n{len(texts)} texts, one core for the tokenizers\n\n| what | median of {args.repeats} |\n|---|---|")
    for name, value in results.items():
        print(f"| {name} | {value:,.0f} |" if value > 100 else f"| {name} | {value:.1f} |")
    write_json(args.output, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()
