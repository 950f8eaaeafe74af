"""Students of pairs: each text is read by itself, and the classifier sees both, their difference and their product."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline, set_seed

from kd_trainer.building import STUDENTS
from kd_trainer.loading import describe_labels
from kd_trainer.tokenization import build_tokenizer

SIZES = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 5, "num_labels": 3, "dropout": 0.0}
PAIRS = [([5, 7, 2, 9], [9, 9]), ([3], [4, 8, 8, 2, 7]), ([], [6, 5]), ([8, 4], []), ([], []), ([5, 3], [5, 3])]
WAYS = [(kind, buckets) for kind in STUDENTS for buckets in (0, 64)]
ALL_WAYS = pytest.mark.parametrize("kind, buckets", WAYS)


def make(kind, seed=0, **config):
    """A tiny student of pairs in eval mode; every weight is random, those that start at zero too."""
    set_seed(seed)
    student = STUDENTS[kind]
    model = student(student.config_class(**{**SIZES, "text_pairs": True, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        for table in (model.embeddings, *([] if model.ngrams is None else [model.ngrams.table])):
            table.weight[0] = 0
    return model


def pad(pairs, side="right", width=None):
    """A batch of token ids, mask and types of `(first, second)` pairs, padded as the collator does."""
    width = width or max(len(first) + len(second) for first, second in pairs)
    batch = {
        name: torch.zeros(len(pairs), width, dtype=torch.long)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, (first, second) in enumerate(pairs):
        length = len(first) + len(second)
        place = slice(width - length, width) if side == "left" else slice(0, length)
        batch["input_ids"][row, place] = torch.tensor([*first, *second], dtype=torch.long)
        batch["attention_mask"][row, place] = 1
        batch["token_type_ids"][row, place] = torch.tensor([0] * len(first) + [1] * len(second), dtype=torch.long)
    return batch


def text_vectors(model, texts):
    """What a student of single texts with the same weights hands to its classifier, and the means of its n-grams."""
    single = type(model)(type(model.config)(**{**model.config.to_dict(), "text_pairs": False})).eval()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "classifier" not in name}
    assert {name.split(".")[-2] for name in single.load_state_dict(weights, strict=False)[0]} == {"classifier"}
    vectors, means = [], []
    single.classifier.register_forward_pre_hook(lambda module, inputs: vectors.append(inputs[0]))
    if single.ngrams is not None:
        single.ngrams.classifier.register_forward_pre_hook(lambda module, inputs: means.append(inputs[0]))
    for text in texts:
        single(torch.tensor([text], dtype=torch.long))
    return torch.cat(vectors), torch.cat(means) if means else None


@ALL_WAYS
@pytest.mark.parametrize("side", ["right", "left"])
def test_hidden_states_of_a_pair_are_those_of_its_texts(kind, buckets, side):
    model = make(kind, ngram_buckets=buckets)
    batch = pad(PAIRS, side, 9)
    output = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(output.logits, model(**batch).logits)
    for layer, states in enumerate(output.hidden_states):
        assert states.shape[:2] == (len(PAIRS), 9) and not states[batch["attention_mask"] == 0].any()
        for row, mask, texts in zip(states, batch["attention_mask"], PAIRS, strict=True):
            alone = [
                model(**pad([(text, [])]), output_hidden_states=True).hidden_states[layer][0] for text in texts if text
            ]
            if alone:
                torch.testing.assert_close(row[mask != 0], torch.cat(alone))


def combine(u, v):
    return torch.cat([u, v, torch.maximum(u, v) - torch.minimum(u, v), u * v], dim=1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients_equal_a_siamese_lstm_of_torch(side):
    model = make("bilstm")
    lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
    names = {}
    for direction, suffix in (("forward", ""), ("backward", "_reverse")):
        for weight in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            names[f"layers.0.{direction}_lstm.{weight}"] = f"{weight}{suffix}"
            lstm.get_parameter(f"{weight}{suffix}").data.copy_(
                model.get_parameter(f"layers.0.{direction}_lstm.{weight}")
            )
    pairs = [pair for pair in PAIRS if all(pair)]

    def encode(text):
        states, _ = lstm(F.embedding(torch.tensor([text]), model.embeddings.weight))
        return states.max(dim=1).values

    expected = torch.cat([model.classifier(combine(encode(first), encode(second))) for first, second in pairs])
    logits = model(**pad(pairs, side, 13)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for name, other in names.items():
        ours, theirs = model.get_parameter(name), lstm.get_parameter(other)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), ours, retain_graph=True)
        (reference,) = torch.autograd.grad(expected[:, 0].sum(), theirs, retain_graph=True)
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=0)


@ALL_WAYS
def test_each_text_is_read_as_a_student_of_single_texts_reads_it(kind, buckets):
    model = make(kind, ngram_buckets=buckets)
    (u, u_ngrams), (v, v_ngrams) = (text_vectors(model, texts) for texts in zip(*PAIRS, strict=True))
    expected = model.classifier(combine(u, v))
    if buckets:
        expected = expected + model.ngrams.classifier(combine(u_ngrams, v_ngrams))
    logits = model(**pad(PAIRS)).logits
    torch.testing.assert_close(logits, expected)
    assert len(logits.round(decimals=4).unique(dim=0)) == len(PAIRS)


@ALL_WAYS
def test_padding_and_neighbours_never_change_logits(kind, buckets):
    model = make(kind, ngram_buckets=buckets)
    expected = model(**pad(PAIRS)).logits
    for batch in (pad(PAIRS, "left"), pad(PAIRS, width=19), pad(PAIRS, "left", 19)):
        batch["input_ids"][batch["attention_mask"] == 0] = 7  # what stands in the padding does not matter
        torch.testing.assert_close(model(**batch).logits, expected)
    for pair, logits in zip(PAIRS, expected, strict=True):
        torch.testing.assert_close(model(**pad([pair])).logits[0], logits)


@ALL_WAYS
def test_swapped_texts_are_those_of_a_classifier_with_swapped_columns(kind, buckets):
    model, swapped = make(kind, ngram_buckets=buckets), make(kind, ngram_buckets=buckets)
    for classifier in (swapped.classifier, *([swapped.ngrams.classifier] if buckets else [])):
        u, v, difference, product = classifier.weight.data.chunk(4, dim=1)
        classifier.weight.data = torch.cat([v, u, difference, product], dim=1)
    mirrored = [(second, first) for first, second in PAIRS]
    torch.testing.assert_close(model(**pad(mirrored)).logits, swapped(**pad(PAIRS)).logits)
    assert not torch.allclose(model(**pad(mirrored)).logits[0], model(**pad(PAIRS)).logits[0])


@ALL_WAYS
def test_training_reaches_every_weight(kind, buckets):
    model = make(kind, ngram_buckets=buckets, ngram_dropout=0.0).train()
    output = model(**pad(PAIRS), labels=torch.tensor([0, 2, 1, 1, 0, 2]))
    output.loss.backward()
    assert (output.ngram_logits is not None) == bool(buckets)
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.to_dense().abs().max() > 0, name


@pytest.mark.parametrize("kind", STUDENTS)
def test_embeddings_in_place_of_ids_are_split_too(kind):
    model, batch = make(kind), pad(PAIRS)
    expected = model(**batch).logits
    embeds = model.embeddings(batch.pop("input_ids"))
    torch.testing.assert_close(model(inputs_embeds=embeds, **batch).logits, expected)


class Logits(nn.Module):
    """The logits alone, of tensors by their place."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids, attention_mask, token_type_ids, return_dict=False)[0]


@pytest.mark.parametrize("kind", ["cnn", "bag"])
def test_an_exported_graph_reads_longer_texts_than_it_was_made_with(kind):
    model = make(kind).requires_grad_(False)
    names = ("input_ids", "attention_mask", "token_type_ids")
    short, long = ([batch[name] for name in names] for batch in (pad([([1, 2], [3]), ([4], [5])]), pad(PAIRS)))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    graph = torch.export.export(Logits(model), tuple(short), dynamic_shapes=(sizes,) * 3).module()
    torch.testing.assert_close(graph(*long), model(*long).logits)


@ALL_WAYS
def test_pairs_without_types_are_refused(kind, buckets):
    model, batch = make(kind, ngram_buckets=buckets), pad(PAIRS)
    del batch["token_type_ids"]
    with pytest.raises(ValueError, match="token_type_ids"):
        model(**batch)


def test_a_batch_of_no_token_at_all():
    model = make("bilstm", ngram_buckets=64)
    empty = torch.zeros(2, 0, dtype=torch.long)
    logits = model(input_ids=empty, token_type_ids=empty).logits
    torch.testing.assert_close(logits, model(**pad(PAIRS[4:5] * 2, width=3)).logits)


# As it is saved


WITHOUT_PACKAGE = """
import json, sys
sys.modules["kd_trainer"] = None  # an import raises
import torch
torch.set_num_threads(1)
from transformers import pipeline
answers = []
for folder in json.loads(sys.argv[1]):
    classify = pipeline("text-classification", model=folder, trust_remote_code=True, device="cpu")
    answers.append(classify(json.loads(sys.argv[2]), top_k=None))
print(json.dumps(answers))
"""


def test_saved_students_classify_pairs_where_this_package_is_not(tmp_path):
    texts = [("球队胜", "股市"), ("涨", "涨跌互现，今日"), ("今日", "今日")]
    tokenizer = build_tokenizer([text for pair in texts for text in pair], text_pairs=True)
    names, expected = ["是", "否"], {}
    for kind, buckets in WAYS:
        folder = tmp_path / f"{kind}_{buckets}"
        labels = {**describe_labels(names), "problem_type": "single_label_classification"}
        model = make(kind, vocab_size=len(tokenizer), ngram_buckets=buckets, num_labels=2, **labels)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again, reloaded = (
            AutoModelForSequenceClassification.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
        probabilities = []
        with torch.no_grad():
            for pair in texts:
                logits = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
                assert torch.equal(again(**reloaded(*pair, return_tensors="pt")).logits[0], logits)
                probabilities.append(dict(zip(names, logits.softmax(-1).tolist(), strict=True)))
        expected[str(folder)] = probabilities
    inputs = [{"text": first, "text_pair": second} for first, second in texts]
    here = pipeline("text-classification", model=next(iter(expected)), device="cpu")(inputs, top_k=None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, json.dumps(list(expected)), json.dumps(inputs)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for rows, probabilities in zip([here, *answers], [*list(expected.values())[:1], *expected.values()], strict=True):
        for row, wanted in zip(rows, probabilities, strict=True):
            assert {one["label"]: one["score"] for one in row} == pytest.approx(wanted, abs=1e-6)
