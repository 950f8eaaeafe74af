#!/usr/bin/env python
"""
The share of the machine's limit that the student's training step reaches: its floating-point operations a second
against those of its matrix products alone, in the same shapes.

    python benchmarks/limit.py
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from kd_trainer import BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.report import write_json


def main():
    """Measures both in turn and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--embedding_size", type=int, default=300)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", default="outputs/benchmarks/limit.json")
    args = parser.parse_args()
    batch, tokens, inputs, hidden = args.batch_size, args.tokens, args.embedding_size, args.hidden_size
    # A product of (m, k) and (k, n) is 2·m·k·n operations; two directions, and backward has two products for each.
    operations = 3 * 2 * 2 * batch * tokens * (inputs + hidden) * 4 * hidden
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = BiLSTMConfig(embedding_size=inputs, hidden_size=hidden, num_labels=10)
        model = BiLSTMForSequenceClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids, labels = torch.randint(1, 5000, (batch, tokens)), torch.randint(0, 10, (batch,))
        all_tokens, wide = torch.randn(batch * tokens, inputs), torch.randn(inputs, 4 * hidden)
        state, square = torch.randn(batch, hidden), torch.randn(hidden, 4 * hidden)

        def forward_backward(model=model, ids=ids, labels=labels):
            F.cross_entropy(model(input_ids=ids).logits, labels).backward()

        def step(model=model, optimizer=optimizer, forward_backward=forward_backward):
            forward_backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def products(all_tokens=all_tokens, wide=wide, state=state, square=square):
            for _ in range(3 * 2):
                all_tokens @ wide
                for _ in range(tokens):
                    state @ square

        ways = {"matrix products alone": products, "forward and backward": forward_backward, "training step": step}
        taken = {name: [] for name in ways}
        for _ in range(args.repeats + 3):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - start)
        for name, times in taken.items():
            seconds = statistics.median(times[3:])
            results.append({"threads": threads, "what": name, "seconds": seconds, "gflops": operations / seconds / 1e9})
    print(f"BiLSTM {inputs}/{hidden}, batch {batch} x {tokens} tokens, fp32, torch {torch.__version__}\n")
    print("| threads | what | ms | GFLOP/s | share of the limit |\n|---|---|---|---|---|")
    for row in results:
        limit = next(other["gflops"] for other in results if other["threads"] == row["threads"])
        print(f"| {row['threads']} | {row['what']} | {1000 * row['seconds']:.1f} | {row['gflops']:.0f} | "
              f"{100 * row['gflops'] / limit:.0f} % |")  # fmt: skip
    write_json(args.output, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()
