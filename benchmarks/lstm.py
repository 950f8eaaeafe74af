#!/usr/bin/env python
"""
The student's LSTM layer against torch's own bidirectional LSTM on packed sequences: same result, which is faster?

    python benchmarks/lstm.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kd_trainer.modeling_bilstm import BiLSTMLayer, reversal


def packed(lstm, states, lengths):
    """`nn.LSTM(bidirectional=True)` on a packed sequence."""
    sequence = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(sequence)[0], batch_first=True)[0]


def median_seconds(step, repeats):
    """Median of `repeats` calls after three to warm up."""
    taken = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


def main():
    """Measures both paths and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="Longest text; lengths are uniform from half of it.")
    parser.add_argument("--embedding_size", type=int, default=300)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", default="outputs/benchmarks/lstm.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lengths = torch.randint(args.tokens // 2, args.tokens + 1, (args.batch_size,))
    lengths[0] = args.tokens
    states = torch.randn(args.batch_size, args.tokens, args.embedding_size)
    order = reversal(lengths, args.tokens)
    ours = BiLSTMLayer(args.embedding_size, args.hidden_size)
    theirs = nn.LSTM(args.embedding_size, args.hidden_size, batch_first=True, bidirectional=True)
    paths = {"packed": lambda: packed(theirs, states, lengths), "gather": lambda: ours(states, order)}

    def train(path):
        path().float().sum().backward()

    def infer(path):
        with torch.no_grad():
            path()

    rows = []
    for mode, step in {"train": train, "inference": infer}.items():
        for precision in ("fp32", "bf16"):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                speeds = {
                    name: args.batch_size / median_seconds(lambda path=path, step=step: step(path), args.repeats)
                    for name, path in paths.items()
                }
            rows.append({"mode": mode, "precision": precision, **speeds, "ratio": speeds["gather"] / speeds["packed"]})
    print(
        f"texts/s, batch {args.batch_size}, {args.tokens} tokens, {args.threads} threads, torch {torch.__version__}\n"
    )
    print("| mode | precision | packed | gather | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print("| {mode} | {precision} | {packed:,.0f} | {gather:,.0f} | {ratio:.2f} |".format(**row))
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"arguments": vars(args), "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
