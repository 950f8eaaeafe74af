"""Tiny models, tokenizers and data that every test may use; nothing is downloaded."""

import importlib.util
import os
import subprocess
import sys

# Before transformers is imported: no test may ask the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

from kd_trainer.errors import InputError
from kd_trainer.loading import describe_labels
from kd_trainer.modeling_bilstm import BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.tokenization import build_tokenizer

datasets.disable_progress_bars()
torch.set_num_threads(1)  # on a busy machine two wait for each other far longer than tiny tensors take

LABEL_NAMES = ["体育", "财经", "科技"]
# Each label has words of its own, and some are shared: a tiny model learns them in a few steps.
WORDS = {"体育": "球队胜负进赛", "财经": "股市涨跌银行", "科技": "芯片手机网络"}


@contextmanager
def refused(*parts):
    """The block raises an `InputError` of one line that contains all `parts`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert message and "\n" not in message
    assert all(str(part) in message for part in parts), message


@contextmanager
def held(folder):
    """Another process writes into `folder`, until it is killed at the end of the block."""
    hold = "import sys; from pathlib import Path; from kd_trainer.output_folder import lock; lock(Path(sys.argv[1]));"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); input()", folder],
        cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


def load_recipe_script(name):
    """The module of a script under `recipes/`, which is no package."""
    path = Path(__file__).parent.parent / "recipes" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_rows(size, seed=0, length=(3, 9)):
    """`(texts, labels)`: random headlines made of their label's characters and of noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit):
        return int(torch.randint(limit, (1,), generator=generator))

    texts, labels = [], []
    for row in range(size):
        label = row % len(LABEL_NAMES)
        words = WORDS[LABEL_NAMES[label]] + "今日新闻"
        texts.append("".join(words[draw(len(words))] for _ in range(length[0] + draw(length[1] - length[0]))))
        labels.append(label)
    return texts, labels


@pytest.fixture(autouse=True)
def fp32(monkeypatch):
    """Tests compare in fp32, on a processor with bf16 as on others; those of bf16 ask for it."""
    monkeypatch.setattr("kd_trainer.recipes.cpu_has_bf16", lambda: False)


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    """Runs draw nothing, which takes seconds, but in tests that ask for `plots`."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("kd_trainer.card.draw_plots", lambda *args: [])


@pytest.fixture
def plots():
    """Asks for what [`no_plots`] leaves out."""


@pytest.fixture
def rows():
    """96 texts (`list[str]`) with their label ids (`list[int]`)."""
    return make_rows(96)


@pytest.fixture
def tokenizer(rows):
    """The student's character tokenizer."""
    return build_tokenizer(rows[0], max_length=16)


@pytest.fixture
def teacher_tokenizer(rows):
    """A BERT-style tokenizer: other ids than the student's, `[CLS]` and `[SEP]`."""
    return build_tokenizer(rows[0], max_length=16, bert_style=True)


@pytest.fixture
def make_student(tokenizer):
    """A function that builds a tiny BiLSTM; the same seed gives the same weights."""

    def make(seed=0, **config):
        set_seed(seed)
        sizes = {"vocab_size": len(tokenizer), "embedding_size": 12, "hidden_size": 8, "dropout": 0.0}
        labels = {"problem_type": "single_label_classification", **describe_labels(LABEL_NAMES)}
        return BiLSTMForSequenceClassification(BiLSTMConfig(**{**sizes, **labels, **config}))

    return make


@pytest.fixture
def make_teacher(teacher_tokenizer):
    """A function that builds a tiny BERT with random weights."""

    def make(seed=1, label_names=LABEL_NAMES, **config):
        set_seed(seed)
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 32,
            # Random weights of the usual 0.02 would give logits that hardly differ.
            "initializer_range": 0.5,
        }
        labels = {"problem_type": "single_label_classification", **describe_labels(label_names)}
        config = BertConfig(vocab_size=len(teacher_tokenizer), **{**sizes, **labels, **config})
        return BertForSequenceClassification(config).eval()

    return make


@pytest.fixture
def write_tsv(tmp_path):
    """A function that writes `label<TAB>text` lines into a file of the test's folder and returns its path."""

    def write(name, texts, labels, names=LABEL_NAMES):
        path = tmp_path / name
        lines = [f"{names[label]}\t{text}\n" for text, label in zip(texts, labels, strict=True)]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write
