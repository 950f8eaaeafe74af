#!/usr/bin/env python
"""
The student's LSTM layer against torch's own bidirectional LSTM on packed sequences: same result, which is faster?

    python benchmarks/lstm.py
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kd_trainer.modeling_bilstm import BiLSTMLayer, reversal
from kd_trainer.precision import half_dtype
from kd_trainer.report import write_json


def packed(lstm, states, lengths):
    """`nn.LSTM(bidirectional=True)` on a packed sequence."""
    sequence = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(sequence)[0], batch_first=True)[0]


def median_seconds(step, repeats):
    """Median of `repeats` calls after three to warm up."""
    taken = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
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
    parser.add_argument("--use_cpu", action="store_true", help="Even where there is a GPU.")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", default="outputs/benchmarks/lstm.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lengths = torch.randint(args.tokens // 2, args.tokens + 1, (args.batch_size,))
    lengths[0] = args.tokens
    device = torch.device("cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu")
    states = torch.randn(args.batch_size, args.tokens, args.embedding_size, device=device)
    order = reversal(lengths.to(device), args.tokens)
    ours = BiLSTMLayer(args.embedding_size, args.hidden_size).to(device)
    theirs = nn.LSTM(args.embedding_size, args.hidden_size, batch_first=True, bidirectional=True).to(device)
    paths = {"packed": lambda: packed(theirs, states, lengths), "gather": lambda: ours(states, order)}

    def train(path):
        path().float().sum().backward()

    def infer(path):
        with torch.no_grad():
            path()

    rows = []
    for mode, step in {"train": train, "inference": infer}.items():
        # Half precision where the device has it: on other processors torch's LSTM takes no bf16.
        for precision in dict.fromkeys((None, half_dtype(device))):
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                speeds = {
                    name: args.batch_size / median_seconds(lambda path=path, step=step: step(path), args.repeats)
                    for name, path in paths.items()
                }
            row = {"mode": mode, "precision": str(precision or torch.float32).removeprefix("torch."), **speeds}
            rows.append({**row, "ratio": speeds["gather"] / speeds["packed"]})
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} CPU threads"
    print(f"texts/s, batch {args.batch_size}, {args.tokens} tokens, {where}, torch {torch.__version__}\n")
    print("| mode | precision | packed | gather | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print("| {mode} | {precision} | {packed:,.0f} | {gather:,.0f} | {ratio:.2f} |".format(**row))
    write_json(args.output, {"arguments": vars(args), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
