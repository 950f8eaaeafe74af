#!/usr/bin/env python
"""
What a training step of a student with a teacher's vocabulary costs, with dense and with sparse token embeddings.

    OMP_NUM_THREADS=1 python benchmarks/sparse.py
    OMP_NUM_THREADS=1 python benchmarks/sparse.py --vocab_size 5000 --embedding_size 300
"""

import argparse
import statistics
import time

import torch

from kd_trainer import BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.precision import cpu_has_bf16
from kd_trainer.report import write_json
from kd_trainer.sparse import LazyAdamW, clip_grad_norm


def measure(sparse, args):
    """Median milliseconds of forward and backward, of clipping, of the optimizer: `dict[str, float]`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": args.vocab_size, "embedding_size": args.embedding_size, "hidden_size": args.hidden_size}
    model = BiLSTMForSequenceClassification(BiLSTMConfig(**sizes, sparse_embeddings=sparse, num_labels=2)).train()
    optimizer = LazyAdamW(model.parameters(), lr=1e-3)
    parts = {"forward, backward": [], "clipping": [], "optimizer": []}
    for _ in range(args.steps):
        ids = torch.randint(1, args.vocab_size, (args.batch_size, args.tokens))
        labels = torch.randint(2, (args.batch_size,))
        times = [time.perf_counter()]
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        times.append(time.perf_counter())
        clip_grad_norm(model.parameters(), 1.0)
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        optimizer.zero_grad()
        for part, start, end in zip(parts.values(), times, times[1:], strict=False):
            part.append(1000 * (end - start))
    return {name: statistics.median(values[5:]) for name, values in parts.items()}


def main():
    """Measures both and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--embedding_size", type=int, default=384)
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=13, help="Of each text; random ones.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", default="outputs/benchmarks/sparse.json")
    args = parser.parse_args()
    results = {"dense": measure(False, args), "sparse": measure(True, args)}
    print("| embeddings | forward, backward, ms | clipping, ms | optimizer, ms | step, ms |\n|---|---|---|---|---|")
    for name, row in results.items():
        cells = [f"{value:.1f}" for value in (*row.values(), sum(row.values()))]
        print(f"| {name} | {' | '.join(cells)} |")
    write_json(args.output, {"arguments": vars(args), "bf16": cpu_has_bf16(), "results": results})


if __name__ == "__main__":
    main()
