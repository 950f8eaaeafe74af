#!/usr/bin/env python
"""
A training step of this project against five other ways to distil the same teacher into the same BiLSTM, in one run.

    python benchmarks/training.py
    python benchmarks/training.py --train_file train.txt --class_file class.txt

(a) a loop as the project that this one follows has it: everything padded to 256 tokens, the teacher in every step,
packed LSTM; (b) the same, each batch padded to its longest text; (c) a `Trainer` with the teacher in `compute_loss`, as
the documentation of transformers has it, on (b)'s model; (d) TextBrewer with its logits cache, on (b)'s model, where it
is installed (`pip install textbrewer tensorboardX`); (e) a bare loop over batches that are tensors already, with this
project's model and loss: the limit. The models have random weights: times do not depend on them.
"""

import argparse
import statistics
import tempfile
import time

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LengthGroupedSampler

from kd_trainer import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    add_logits,
    build_tokenizer,
    kl_distillation_loss,
    predict_logits,
    tokenize,
)
from kd_trainer.arguments import DataArguments
from kd_trainer.batches import token_lengths
from kd_trainer.data import load_data
from kd_trainer.report import write_json

TEMPERATURE, ALPHA, LEARNING_RATE, MAX_NORM = 4.0, 0.2, 2e-3, 1.0
# A megabatch of the length-grouped sampler: with fewer steps only its longest batches would be measured.
STEPS = 50


class PackedBiLSTM(nn.Module):
    """The usual way to write the student: `nn.LSTM(bidirectional=True)` on a packed sequence, max-pooling."""

    def __init__(self, vocab_size, embedding_size, hidden_size, num_labels):
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, embedding_size, padding_idx=0)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(2 * hidden_size, num_labels)

    def forward(self, input_ids, attention_mask, token_type_ids=None, labels=None):
        lengths = attention_mask.sum(dim=1).clamp(min=1).cpu()
        states = self.dropout(self.embeddings(input_ids))
        packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-1e4)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(states.amax(dim=1))))


def loss_of(student_logits, teacher_logits, labels):
    """The loss of all of them: cross-entropy and KL divergence."""
    soft = kl_distillation_loss(student_logits, teacher_logits, TEMPERATURE).mean()
    return ALPHA * F.cross_entropy(student_logits, labels) + (1 - ALPHA) * soft


class StepTimes(TrainerCallback):
    """When every step of a `Trainer` ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def optimize(student, optimizer, loss):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()


def loop(lab, steps, max_length=None):
    """(a) with `max_length`, (b) without: seconds of a step."""
    student = lab.packed()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    padding = {"padding": True} if max_length is None else {"padding": "max_length", "max_length": max_length}
    ends = []
    for batch in DataLoader(lab.teacher_rows, lab.batch_size, shuffle=True, collate_fn=list):
        batch = {name: [row[name] for row in batch] for name in batch[0]}
        labels = torch.tensor(batch.pop("labels"))
        inputs = lab.teacher_tokenizer.pad(batch, return_tensors="pt", **padding)
        with torch.no_grad():
            teacher_logits = lab.teacher(**inputs).logits
        optimize(student, optimizer, loss_of(student(**inputs).logits, teacher_logits, labels))
        ends.append(time.perf_counter())
        if len(ends) > steps:
            return (ends[-1] - ends[0]) / steps


def settings(lab, steps, folder):
    return {
        "output_dir": folder, "max_steps": steps + 1, "per_device_train_batch_size": lab.batch_size, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "learning_rate": LEARNING_RATE, "dataloader_pin_memory": False,
    }  # fmt: skip


class OnlineTrainer(Trainer):
    """Distillation as the documentation of transformers has it."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        outputs = model(**inputs)
        loss = loss_of(outputs.logits, teacher_logits, labels)
        return (loss, outputs) if return_outputs else loss


def online_trainer(lab, steps):
    """(c): seconds of a step."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        OnlineTrainer(
            lab.packed(), TrainingArguments(**settings(lab, steps, folder)), train_dataset=lab.teacher_rows,
            processing_class=lab.teacher_tokenizer, callbacks=[times], teacher=lab.teacher,
        ).train()  # fmt: skip
    return (times.ends[-1] - times.ends[0]) / steps


def textbrewer(lab, steps):
    """(d): seconds of a step, or None where it is not installed; its pass over the teacher is not counted."""
    try:
        from textbrewer import DistillationConfig, TrainingConfig
        from textbrewer.distiller_basic import BasicDistiller
    except ImportError:
        return None
    starts = []

    class Timed(BasicDistiller):
        def train_on_batch(self, batch, args):
            starts.append(time.perf_counter())
            return super().train_on_batch(batch, args)

    def adaptor(batch, outputs):
        return {"logits": outputs.logits, "losses": F.cross_entropy(outputs.logits, batch["labels"])}

    # Its cache is one of whole batches; the teacher's pass is replaced by its result, which is not what is measured.
    class Labelled(nn.Module):
        def forward(self, input_ids, **kwargs):
            return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), lab.num_labels))

    student = lab.packed()
    with tempfile.TemporaryDirectory() as folder:
        distiller = Timed(
            TrainingConfig(device="cpu", log_dir=None, output_dir=folder),
            DistillationConfig(temperature=TEMPERATURE, hard_label_weight=ALPHA, is_caching_logits=True),
            Labelled(), student, adaptor, adaptor,
        )  # fmt: skip
        rows = lab.teacher_rows.select(range(lab.batch_size * (steps + 1)))
        loader = DataLoader(rows, lab.batch_size, shuffle=True, collate_fn=DistillationCollator(lab.teacher_tokenizer))
        optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
        with distiller:
            distiller.train(optimizer, loader, num_epochs=1, max_grad_norm=MAX_NORM)
    return (starts[-1] - starts[0]) / (len(starts) - 1)


def limit(lab, steps):
    """(e): seconds of a step of a bare loop."""
    student = lab.student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    collator = DistillationCollator(lab.tokenizer)
    sampler = LengthGroupedSampler(lab.batch_size, lengths=token_lengths(lab.student_rows))
    batches = DataLoader(lab.student_rows, lab.batch_size, sampler=sampler, collate_fn=collator)
    batches = [batch for batch, _ in zip(batches, range(steps + 1), strict=False)]
    ends = []
    for batch in batches:
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        optimize(student, optimizer, loss_of(logits, batch["teacher_logits"], batch["labels"]))
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / steps


def ours(lab, steps):
    """This project: seconds of a step."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            **settings(lab, steps, folder), temperature=TEMPERATURE, alpha=ALPHA,
            train_sampling_strategy="group_by_length",
        )  # fmt: skip
        DistillationTrainer(
            lab.student(), args, train_dataset=lab.student_rows, processing_class=lab.tokenizer, callbacks=[times]
        ).train()
    return (times.ends[-1] - times.ends[0]) / steps


class Lab:
    """Data and models of one teacher size."""

    def __init__(self, args, layers, width):
        self.batch_size = args.batch_size
        self.sizes = (args.embedding_size, args.hidden_size)
        data = load_data(
            DataArguments(train_file=args.train_file, class_file=args.class_file, validation_split=0), wanted=("train",)
        )
        split = data.splits["train"]
        self.texts, self.num_labels = split["text"][:], len(data.label_names)
        self.tokenizer = build_tokenizer(self.texts, max_length=256)
        self.teacher_tokenizer = build_tokenizer(self.texts, max_length=256, bert_style=True)
        config = BertConfig(
            vocab_size=len(self.teacher_tokenizer), hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=width // 64 or 1, intermediate_size=4 * width, num_labels=self.num_labels,
        )  # fmt: skip
        self.teacher = BertForSequenceClassification(config).eval()
        self.teacher_rows = tokenize(split, self.teacher_tokenizer, 256)
        self.student_rows = add_logits(
            tokenize(split, self.tokenizer, 256), torch.randn(len(split), self.num_labels).numpy()
        )

    def student(self):
        config = BiLSTMConfig(
            vocab_size=len(self.tokenizer), embedding_size=self.sizes[0], hidden_size=self.sizes[1],
            num_labels=self.num_labels,
        )  # fmt: skip
        return BiLSTMForSequenceClassification(config)

    def packed(self):
        return PackedBiLSTM(len(self.teacher_tokenizer), *self.sizes, self.num_labels)

    def labelling(self, rows):
        """Texts a second that the teacher labels."""
        texts = self.texts[:rows]
        predict_logits(self.teacher, self.teacher_tokenizer, texts[:64], 256)
        start = time.perf_counter()
        predict_logits(self.teacher, self.teacher_tokenizer, texts, 256)
        return len(texts) / (time.perf_counter() - start)


def main():
    """Measures all ways in turn and writes a Markdown table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default="recipes/demo/train.tsv")
    parser.add_argument("--class_file")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--embedding_size", type=int, default=300)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--teachers", nargs="+", default=["12x768", "6x384"], help="Layers x width.")
    parser.add_argument("--slow_steps", type=int, default=3, help="Measured steps of the ways that run the teacher.")
    parser.add_argument("--repeats", type=int, default=3, help="Of the fast ways, in turn; their median counts.")
    parser.add_argument("--epochs", type=int, default=10, help="Of the totals, which are computed from the steps.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default="outputs/benchmarks/training.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    datasets.disable_progress_bars()
    results = []
    for size in args.teachers:
        lab = Lab(args, *map(int, size.split("x")))
        seconds = {
            "a: padded to 256, teacher in every step": loop(lab, args.slow_steps, 256),
            "b: the same, dynamic padding": loop(lab, 2 * args.slow_steps),
            "c: Trainer with the teacher in compute_loss": online_trainer(lab, 2 * args.slow_steps),
        }
        fast = {"d: TextBrewer, logits cached": textbrewer, "e: bare loop, the limit": limit, "kd_trainer": ours}
        taken = {name: [] for name in fast}
        for _ in range(args.repeats):
            for name, measure in fast.items():
                taken[name].append(measure(lab, STEPS))
        seconds |= {name: None if None in times else statistics.median(times) for name, times in taken.items()}
        rate = lab.labelling(256)
        steps = args.epochs * len(lab.texts) / args.batch_size
        labels_once = ("d", "e", "k")
        totals = {
            name: None if step is None else step * steps + (len(lab.texts) / rate if name[0] in labels_once else 0)
            for name, step in seconds.items()
        }
        result = {"teacher": size, "rows": len(lab.texts), "texts_per_s": rate, "step": seconds, "total": totals}
        results.append({**result, "repeats": taken})
        print(
            f"\nteacher {size}, {len(lab.texts)} texts, batch {args.batch_size}, BiLSTM {lab.sizes[0]}/{lab.sizes[1]}"
        )
        print(f"{args.threads} CPU threads, torch {torch.__version__}; the teacher labels {rate:.0f} texts/s\n")
        print(f"| way | s/step | kd_trainer is faster by | hours, {args.epochs} epochs | faster by |")
        print("|---|---|---|---|---|")
        for name, step in seconds.items():
            if step is None:
                print(f"| {name} | not installed | | | |")
                continue
            total = totals[name]
            print(f"| {name} | {step:.3f} | {step / seconds['kd_trainer']:.2f} | {total / 3600:.2f} | "
                  f"{total / totals['kd_trainer']:.2f} |", flush=True)  # fmt: skip
    write_json(args.output, {"arguments": vars(args), "torch": torch.__version__, "results": results})


if __name__ == "__main__":
    main()
