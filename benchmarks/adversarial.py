#!/usr/bin/env python
"""
What adversarial training costs: the time of a whole training step (forwards, backward, clipping, optimizer) with FGM,
PGD and FreeLB against a plain one, for the student and for a teacher of `transformers`.

    python benchmarks/adversarial.py
"""

import argparse
import statistics
import time

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from kd_trainer import AdversarialTrainer, AdversarialTrainingArguments, BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.report import write_json

METHODS = ("none", "fgm", "pgd", "freelb")


def bilstm(embedding_size, hidden_size):
    """A student with 5,000 tokens and 10 labels."""
    return BiLSTMForSequenceClassification(
        BiLSTMConfig(embedding_size=embedding_size, hidden_size=hidden_size, num_labels=10)
    )


def bert(num_layers, hidden_size):
    """A BERT with 5,000 tokens and 10 labels."""
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": num_layers, "intermediate_size": 4 * hidden_size}
    return BertForSequenceClassification(BertConfig(vocab_size=5000, num_attention_heads=4, num_labels=10, **sizes))


def make_step(model, method, steps, bf16, use_cpu, batch):
    """A function that takes one optimizer step on `batch`, with everything that the Trainer does in it."""
    args = AdversarialTrainingArguments(
        "outputs/benchmarks/run", adversarial=method, adversarial_steps=steps, bf16=bf16, use_cpu=use_cpu,
        per_device_train_batch_size=len(batch["labels"]), report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = AdversarialTrainer(model, args, train_dataset=Dataset.from_dict({"input_ids": [[1]]}))
    trainer.create_optimizer_and_scheduler(10000)
    wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 10000, 1

    def step():
        trainer.training_step(wrapped, dict(batch))
        trainer.accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
        trainer.optimizer.step()
        wrapped.zero_grad()
        if args.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main():
    """Measures all methods in turn, so that what else the machine does falls on all, and writes Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="Of PGD and FreeLB.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--use_cpu", action="store_true", help="Even where there is a GPU.")
    parser.add_argument("--output", default="outputs/benchmarks/adversarial.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ids = torch.randint(1, 5000, (args.batch_size, args.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 10}
    on_gpu = torch.cuda.is_available() and not args.use_cpu
    models = {"BiLSTM 128/128": (bilstm, 128, 128), "BiLSTM 300/384": (bilstm, 300, 384)}
    models |= {"BERT 2 x 128": (bert, 2, 128), "BERT 4 x 256": (bert, 4, 256)}
    results = []
    for name, (build, *sizes) in models.items():
        for bf16 in (False, True):
            # On a CPU, bf16 wants to be told so.
            steps = {
                method: make_step(build(*sizes), method, args.steps, bf16, not on_gpu, batch) for method in METHODS
            }
            taken = {method: [] for method in METHODS}
            for _ in range(args.repeats + 3):
                for method, step in steps.items():
                    start = time.perf_counter()
                    step()
                    taken[method].append(time.perf_counter() - start)
            medians = {method: statistics.median(times[3:]) for method, times in taken.items()}
            results.append({"model": name, "precision": "bf16" if bf16 else "fp32", "seconds": medians})
    device = torch.cuda.get_device_name() if on_gpu else f"{args.threads} CPU threads"
    print(f"batch {args.batch_size} x {args.tokens} tokens, {args.steps} steps of PGD and FreeLB, {device}\n")
    print("| model | precision | plain step, ms | FGM | PGD | FreeLB |\n|---|---|---|---|---|---|")
    for result in results:
        seconds = result["seconds"]
        ratios = " | ".join(f"{seconds[method] / seconds['none']:.2f}" for method in METHODS[1:])
        print(f"| {result['model']} | {result['precision']} | {1000 * seconds['none']:.1f} | {ratios} |")
    write_json(args.output, {"settings": vars(args), "device": device, "torch": torch.__version__, "results": results})


if __name__ == "__main__":
    main()
