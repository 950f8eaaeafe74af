"""The BiLSTM against torch's own packed LSTM, and its saved copy in a process that does not have this package."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from kd_trainer.loading import describe_labels
from kd_trainer.modeling_bilstm import POOLINGS, BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.tokenization import build_tokenizer

VOCAB_SIZE = 30
ALL_POOLINGS = pytest.mark.parametrize("pooling", POOLINGS)


def make_model(seed=0, **config):
    """A tiny model in eval mode with every parameter random, biases included: empty texts have logits of their own."""
    set_seed(seed)
    sizes = {"vocab_size": VOCAB_SIZE, "embedding_size": 6, "hidden_size": 5, "num_labels": 3, "dropout": 0.0}
    model = BiLSTMForSequenceClassification(BiLSTMConfig(**{**sizes, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        model.embeddings.weight[0] = 0
    return model


def draw_sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def pad(sequences, side="right", width=None, filler=0):
    """`(input_ids, attention_mask)`; with `side="mixed"` some padding before and the rest after each text."""
    width = width or max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), filler)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        free = width - len(sequence)
        start = {"right": 0, "left": free, "mixed": (row * 7) % (free + 1)}[side]
        input_ids[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = 1
    return input_ids, mask


class PackedReference(nn.Module):
    """The same classifier with `nn.LSTM(bidirectional=True)` on packed sequences, pooled row by row."""

    def __init__(self, model):
        super().__init__()
        config = model.config
        self.pooling = config.pooling
        self.embeddings = copy.deepcopy(model.embeddings)
        self.classifier = copy.deepcopy(model.classifier)
        self.attention = copy.deepcopy(model.attention)
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            bidirectional=True,
            batch_first=True,
        )
        # Ours by torch's name.
        self.names = {}
        for index in range(config.num_hidden_layers):
            for direction, suffix in (("forward", ""), ("backward", "_reverse")):
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    ours = f"layers.{index}.{direction}_lstm.{kind}_l0"
                    self.names[f"lstm.{kind}_l{index}{suffix}"] = ours
                    parameter = self.lstm.get_parameter(f"{kind}_l{index}{suffix}")
                    parameter.data.copy_(model.get_parameter(ours))

    def forward(self, sequences):
        embedded = nn.utils.rnn.pad_sequence([self.embeddings(s) for s in sequences], batch_first=True)
        lengths = [len(sequence) for sequence in sequences]
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        packed_states, (last_states, _) = self.lstm(packed)
        padded_states, _ = nn.utils.rnn.pad_packed_sequence(packed_states, batch_first=True)
        vectors = []
        for row, length in enumerate(lengths):
            states = padded_states[row, :length]
            if self.pooling == "max":
                vectors.append(torch.stack([states[:, unit].max() for unit in range(states.shape[1])]))
            elif self.pooling == "mean":
                vectors.append(sum(states) / length)
            elif self.pooling == "last":
                vectors.append(torch.cat([last_states[-2, row], last_states[-1, row]]))
            else:
                weights = (states @ self.attention.weight[0]).exp()
                vectors.append(sum(w * state for w, state in zip(weights / weights.sum(), states, strict=True)))
        return self.classifier(torch.stack(vectors))


@ALL_POOLINGS
@pytest.mark.parametrize("num_hidden_layers", [1, 2])
@pytest.mark.parametrize("side", ["right", "left", "mixed"])
def test_logits_and_gradients_equal_torchs_packed_lstm(side, num_hidden_layers, pooling):
    model = make_model(pooling=pooling, num_hidden_layers=num_hidden_layers)
    reference = PackedReference(model)
    sequences = draw_sequences([3, 1, 7, 2, 6, 4, 5, 7])
    input_ids, mask = pad(sequences, side, width=9)
    logits, expected = model(input_ids=input_ids, attention_mask=mask).logits, reference(sequences)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    labels = torch.arange(len(sequences)) % 3
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        ours = gradients.pop(reference.names.get(name, name))
        assert ours.abs().max() > 0, name
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert not gradients


@ALL_POOLINGS
def test_padding_never_changes_logits(pooling):
    model = make_model(pooling=pooling, num_hidden_layers=2)
    sequences = draw_sequences([3, 1, 0, 5, 2])
    input_ids, mask = pad(sequences)
    expected = model(input_ids=input_ids, attention_mask=mask).logits
    for side in ("right", "left", "mixed"):
        for dtype in (torch.long, torch.bool, torch.float32):
            input_ids, mask = pad(sequences, side, width=11)
            logits = model(input_ids=input_ids, attention_mask=mask.to(dtype)).logits
            torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
        # Without a mask, padding is told by its id.
        torch.testing.assert_close(model(input_ids=input_ids).logits, expected, atol=1e-6, rtol=0)
    one_by_one = [model(input_ids=sequence[None]).logits[0] for sequence in sequences]
    torch.testing.assert_close(torch.stack(one_by_one), expected, atol=1e-6, rtol=0)


@ALL_POOLINGS
@pytest.mark.parametrize("length", [3, 0], ids=["text", "empty text"])
def test_ids_under_the_mask_do_not_matter(length, pooling):
    model = make_model(pooling=pooling)
    sequences = draw_sequences([4, length])
    for side in ("right", "left", "mixed"):
        expected, logits = (model(*pad(sequences, side, width=6, filler=filler)).logits for filler in (0, 9))
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_order_of_rows_in_a_batch_does_not_matter():
    model = make_model()
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5, 2, 0, 4]), "mixed")
    order = torch.randperm(len(input_ids), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    shuffled = model(input_ids=input_ids[order], attention_mask=mask[order]).logits
    torch.testing.assert_close(shuffled, logits[order], atol=1e-6, rtol=0)


@ALL_POOLINGS
def test_batch_of_only_empty_texts_equals_an_empty_text_among_others(pooling):
    model = make_model(pooling=pooling)
    expected = model(input_ids=pad(draw_sequences([4, 0, 2]))[0]).logits[1]
    nothing = torch.zeros(3, 0, dtype=torch.long)
    labels = torch.tensor([0, 1, 2])
    for inputs in ({}, {"attention_mask": nothing}):
        output = model(input_ids=nothing, labels=labels, **inputs)
        torch.testing.assert_close(output.logits, expected.expand(3, -1), atol=1e-6, rtol=0)
        output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (model.embeddings.weight.grad == 0).all()  # the padding's embedding stays zero


@pytest.mark.parametrize("side", ["right", "left", "mixed"])
def test_inputs_embeds_give_the_logits_of_input_ids(side):
    model = make_model()
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5]), side)
    embeds = model.get_input_embeddings()(input_ids)
    by_ids = model(input_ids=input_ids, attention_mask=mask).logits
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, by_ids)
    for wrong in ({}, {"input_ids": input_ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one"):
            model(**wrong)


@pytest.mark.parametrize("problem_type", [None, "named"])
@pytest.mark.parametrize(
    ("kind", "num_labels", "reference"),
    [
        ("single_label_classification", 3, F.cross_entropy),
        ("multi_label_classification", 3, F.binary_cross_entropy_with_logits),
        ("regression", 1, lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
    ],
)
def test_loss_equals_torchs(kind, num_labels, reference, problem_type):
    model = make_model(num_labels=num_labels, problem_type=problem_type and kind)
    labels = {
        "single_label_classification": torch.tensor([0, 2, 1, 1]),
        "multi_label_classification": torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).float(),
        "regression": torch.tensor([0.5, -1.0, 2.0, 0.0]),
    }[kind]
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5]))
    output = model(input_ids=input_ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.loss, reference(output.logits, labels))
    assert model(input_ids=input_ids, attention_mask=mask).loss is None


def test_tuples_hold_what_the_output_holds():
    model = make_model()
    inputs = {"input_ids": pad(draw_sequences([3, 1]))[0], "labels": torch.tensor([0, 2])}
    output = model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    model.config.return_dict = False
    for loss, logits in (as_tuple, model(**inputs)):
        assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert len(model(input_ids=inputs["input_ids"])) == 1
    assert torch.equal(model(**inputs, return_dict=True).logits, output.logits)


@ALL_POOLINGS
def test_train_step_changes_every_parameter(pooling):
    set_seed(0)
    config = BiLSTMConfig(
        vocab_size=VOCAB_SIZE, embedding_size=6, hidden_size=5, num_labels=3, num_hidden_layers=2, pooling=pooling
    )
    model = BiLSTMForSequenceClassification(config).train()
    before = copy.deepcopy(model.state_dict())
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5, 4, 6]))
    model(input_ids=input_ids, attention_mask=mask, labels=torch.arange(6) % 3).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert (after["embeddings.weight"][0] == 0).all()


def test_dropout_is_on_only_in_train_mode():
    model = make_model(dropout=0.5)
    input_ids, _ = pad(draw_sequences([3, 5]))
    assert torch.equal(model(input_ids=input_ids).logits, model(input_ids=input_ids).logits)
    model.train()
    assert not torch.equal(model(input_ids=input_ids).logits, model(input_ids=input_ids).logits)


@ALL_POOLINGS
def test_half_precision_gives_nearly_the_same_logits(pooling):
    model = make_model(pooling=pooling)
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5]), "mixed")
    expected = model(input_ids=input_ids, attention_mask=mask).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(input_ids=input_ids, attention_mask=mask).logits
    half = model.to(torch.bfloat16)(input_ids=input_ids, attention_mask=mask).logits
    for logits in (autocast, half):
        torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0)


def assert_forget_gates_are_open(layer):
    """Bias 1 for the second of an LSTM's four gates (input, forget, cell, output), 0 elsewhere."""
    for lstm in (layer.forward_lstm, layer.backward_lstm):
        gates = (lstm.bias_ih_l0 + lstm.bias_hh_l0).reshape(4, lstm.hidden_size)
        assert torch.equal(gates, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand_as(gates))


def test_forget_gates_start_open_and_the_weights_obey_the_seed():
    config = BiLSTMConfig(vocab_size=VOCAB_SIZE, embedding_size=40, hidden_size=5, num_hidden_layers=2, num_labels=3)
    models = []
    for seed in (0, 0, 1):
        set_seed(seed)
        models.append(BiLSTMForSequenceClassification(config))
    first, same, other = models
    for layer in first.layers:
        assert_forget_gates_are_open(layer)
    assert (first.embeddings.weight[0] == 0).all()
    assert first.embeddings.weight[1:].std().item() == pytest.approx(config.initializer_range, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@ALL_POOLINGS
def test_loading_does_not_initialise_again(tmp_path, pooling):
    model = make_model(pooling=pooling)
    model.save_pretrained(tmp_path)
    # Without trust_remote_code: this process has the class.
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is BiLSTMForSequenceClassification and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    input_ids, mask = pad(draw_sequences([3, 1, 0, 5]))
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_loading_initialises_only_what_the_checkpoint_lacks(tmp_path):
    model = make_model(num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    loaded = BiLSTMForSequenceClassification.from_pretrained(
        tmp_path, num_hidden_layers=2, num_labels=7, ignore_mismatched_sizes=True
    )
    for name in ("embeddings", "layers.0"):
        pairs = zip(model.get_submodule(name).parameters(), loaded.get_submodule(name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert_forget_gates_are_open(loaded.layers[1])
    assert loaded.classifier.weight.shape == (7, 10)
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_config_round_trip(tmp_path):
    changed = {
        "vocab_size": 11,
        "embedding_size": 3,
        "hidden_size": 2,
        "num_hidden_layers": 4,
        "dropout": 0.125,
        "pooling": "attention",
        "initializer_range": 0.5,
        "pad_token_id": 7,
        "problem_type": "multi_label_classification",
        **describe_labels(["体育", "财经"]),
    }
    config = BiLSTMConfig(**changed)
    config.save_pretrained(tmp_path)
    for loaded in (AutoConfig.from_pretrained(tmp_path), BiLSTMConfig(**config.to_dict())):
        assert type(loaded) is BiLSTMConfig
        assert {name: getattr(loaded, name) for name in changed} == changed
        assert loaded.num_labels == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"pooling": "sum"},
        {"pooling": None},
        {"vocab_size": 0},
        {"embedding_size": 0},
        {"hidden_size": -1},
        {"num_hidden_layers": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
    ],
    ids=str,
)
def test_bad_config_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is"):
        BiLSTMConfig(**wrong)


def test_padding_may_have_any_id():
    # As with a vocabulary file whose <PAD> stands elsewhere.
    model, moved = make_model(), make_model(pad_token_id=4)
    with torch.no_grad():
        swapped = torch.arange(VOCAB_SIZE)
        swapped[[0, 4]] = swapped[[4, 0]]
        moved.embeddings.weight.copy_(model.embeddings.weight[swapped])
    for sequences in (draw_sequences([3, 1, 0, 5]), draw_sequences([0, 0])):
        input_ids, _ = pad(sequences)
        torch.testing.assert_close(moved(input_ids=swapped[input_ids]).logits, model(input_ids=input_ids).logits)


PROCESS_WITHOUT_PACKAGE = """
import json
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kd_trainer":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Absent())

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(int(sys.argv[2]))
texts, folders = json.loads(sys.argv[1])
answers = {}
for folder in folders:
    # False: the tokenizer is no custom code. Left out, transformers asks on the terminal.
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        batches = [tokenizer(t, padding=True, return_tensors="pt") for t in (texts, [""], ["", ""])]
        answers[folder] = {"logits": torch.cat([model(**batch).logits for batch in batches]).tolist()}
    classify = pipeline("text-classification", model=folder, trust_remote_code=True)
    answers[folder]["alone"] = [classify(text) for text in texts]
    answers[folder]["together"] = classify(texts)
    answers[folder]["batched"] = classify(texts, batch_size=3)
try:
    import kd_trainer
except ModuleNotFoundError:
    print(json.dumps(answers))
"""


def test_saved_student_runs_in_a_process_without_this_package(tmp_path):
    names, texts = ["体育", "财经", "科技"], ["", "股市大涨", "新", "球队 [PAD]\n大胜😀"]
    tokenizer = build_tokenizer(texts, vocab_size=VOCAB_SIZE, max_length=16)
    expected = {}
    for pooling in POOLINGS:
        folder = str(tmp_path / pooling)
        model = make_model(
            pooling=pooling,
            problem_type="single_label_classification",
            vocab_size=len(tokenizer),
            **describe_labels(names),
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.no_grad():
            batches = [tokenizer(t, padding=True, return_tensors="pt") for t in (texts, [""], ["", ""])]
            expected[folder] = torch.cat([model(**batch).logits for batch in batches])

    # -I: neither PYTHONPATH nor the current folder is searched. The caches are new, so nothing comes from earlier runs.
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [json.dumps([texts, list(expected)]), str(torch.get_num_threads())]
    process = subprocess.run(
        [sys.executable, "-I", "-c", PROCESS_WITHOUT_PACKAGE, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])
    for folder, logits in expected.items():
        answer = answers[folder]
        assert torch.equal(torch.tensor(answer["logits"]), logits), Path(folder).name
        scores, labels = logits[: len(texts)].softmax(dim=-1).max(dim=-1)
        for predictions in ([one for (one,) in answer["alone"]], answer["together"], answer["batched"]):
            assert [prediction["label"] for prediction in predictions] == [names[label] for label in labels]
            assert [prediction["score"] for prediction in predictions] == pytest.approx(scores.tolist(), abs=1e-6)
