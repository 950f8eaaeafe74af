"""All kinds of students: padding never matters, n-grams are what a second reckoning says they are."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, set_seed

from kd_trainer.building import STUDENTS
from kd_trainer.losses import kl_distillation_loss
from kd_trainer.modeling_student import hash_ngrams

SIZES = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 5, "num_labels": 3, "dropout": 0.0}
TEXTS = [[5, 7, 2, 9, 9], [3], [], [8, 4]]
WAYS = [(kind, buckets) for kind in STUDENTS for buckets in (0, 64)]


def make(kind, seed=0, **config):
    set_seed(seed)
    student = STUDENTS[kind]
    model = student(student.config_class(**{**SIZES, **config}))
    if model.ngrams is not None:  # a trained table: it starts at zero
        torch.nn.init.normal_(model.ngrams.table.weight)
        model.ngrams.table.weight.data[0] = 0
    return model.eval()


def pad(texts, side="right", width=None):
    width = max(map(len, texts)) if width is None else width
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        if text:
            (row[width - len(text) :] if side == "left" else row[: len(text)]).copy_(torch.tensor(text))
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_padding_and_neighbours_never_change_logits(kind, buckets):
    model = make(kind, ngram_buckets=buckets)
    expected = model(**pad(TEXTS)).logits
    for batch in (pad(TEXTS, "left"), pad(TEXTS, width=11), pad(TEXTS, "left", 11)):
        torch.testing.assert_close(model(**batch).logits, expected)
    for text, logits in zip(TEXTS, expected, strict=True):
        torch.testing.assert_close(model(**pad([text])).logits[0], logits)
    assert expected.isfinite().all() and not torch.allclose(expected[0], expected[3])


def test_a_bag_leaves_out_parts_of_every_layers_input():
    model, seen = make("bag", dropout=0.5, embedding_size=400, hidden_size=400, num_hidden_layers=2).train(), []
    for layer in model.layers:
        torch.nn.init.ones_(layer.bias)  # no zeros but those of the dropout
        torch.nn.init.zeros_(layer.weight)
        layer.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0] == 0).float().mean().item()))
    model(torch.tensor([[5, 7, 2]] * 8))
    assert len(seen) == 2 and all(0.4 < share < 0.6 for share in seen)
    model.eval()(torch.tensor([[5, 7, 2]] * 8))
    assert seen[2:] == [0, 0]


def test_the_bag_is_a_mean_and_knows_no_order():
    model = make("bag")
    ids = torch.tensor([[5, 7, 2]])
    state = model.embeddings(ids).mean(dim=1)
    expected = model.classifier(F.relu(model.layers[0](state)))
    torch.testing.assert_close(model(ids).logits, expected)
    torch.testing.assert_close(model(ids.flip(1)).logits, expected)
    with_ngrams = make("bag", ngram_buckets=4096)
    assert not torch.allclose(with_ngrams(ids).logits, with_ngrams(ids.flip(1)).logits)


def test_the_cnn_takes_the_best_window_of_the_text_and_of_its_edges():
    model = make("cnn", kernel_sizes=[3])
    weight, bias = model.convolutions[0].weight, model.convolutions[0].bias
    states = model.embeddings(torch.tensor([5, 7]))
    rows = torch.cat([torch.zeros(2, 6), states, torch.zeros(2, 6)])
    windows = torch.stack([(weight * rows[start : start + 3].T).sum(dim=(1, 2)) + bias for start in range(4)])
    expected = model.classifier(windows.amax(dim=0).relu())
    torch.testing.assert_close(model(**pad([[5, 7], [1, 2, 3, 4]])).logits[0], expected)


# Hidden states


def put_at(text, start, width):
    """One text as `pad`, with `start` paddings before it."""
    return {name: F.pad(x, (start, width - start - len(text))) for name, x in pad([text]).items()}


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_hidden_states_stand_where_their_tokens_stand(kind, buckets):
    model = make(kind, ngram_buckets=buckets)
    logits = model(**pad(TEXTS)).logits
    for side in ("right", "left"):
        batch = pad(TEXTS, side, width=8)
        output = model(**batch, output_hidden_states=True)
        torch.testing.assert_close(output.logits, logits)
        mask = batch["attention_mask"] != 0
        torch.testing.assert_close(output.hidden_states[0][mask], model.embeddings(batch["input_ids"])[mask])
        for layer, states in enumerate(output.hidden_states):
            assert states.shape[:2] == (4, 8) and not states[~mask].any()
            for text, row, real in zip(TEXTS, states, mask, strict=True):
                alone = model(**pad([text]), output_hidden_states=True).hidden_states[layer][0]
                torch.testing.assert_close(row[real], alone)
    middle = model(**put_at(TEXTS[0], 2, 9), output_hidden_states=True).hidden_states
    ends = model(**pad(TEXTS[:1]), output_hidden_states=True).hidden_states
    for one, other in zip(middle, ends, strict=True):
        torch.testing.assert_close(one[:, 2:7], other)


def test_hidden_states_are_those_that_make_the_text():
    batch = pad(TEXTS[:1])
    for kind in STUDENTS:
        model = make(kind, **({"num_hidden_layers": 2} if kind == "bilstm" else {}))
        states = model(**batch, output_hidden_states=True).hidden_states
        assert len(states) == {"bilstm": 3, "cnn": 2, "bag": 1}[kind]
        if kind == "bilstm":
            text = states[-1].amax(dim=1)
        elif kind == "bag":
            text = model.layers[0](states[-1].mean(dim=1)).relu()
        else:  # but for the windows that reach beyond the text
            around = F.pad(states[0], (0, 0, 1, 1)).unfold(1, 3, 1)  # (1, token, width, 3)
            found = torch.einsum("btwk,fwk->btf", around, model.convolutions[1].weight) + model.convolutions[1].bias
            torch.testing.assert_close(states[1][..., 5:10], found.relu())
            continue
        torch.testing.assert_close(model(**batch).logits, model.classifier(text))


@pytest.mark.parametrize("kind", STUDENTS)
def test_hidden_states_are_given_only_to_who_asks(kind):
    model, batch = make(kind), pad(TEXTS)
    assert model(**batch).hidden_states is None
    with_loss = model(**batch, labels=torch.tensor([0, 2, 1, 1]), output_hidden_states=True, return_dict=False)
    assert len(with_loss) == 3 and isinstance(with_loss[2], tuple)
    model.config.output_hidden_states = True
    assert model(**batch).hidden_states is not None
    assert model(**batch, output_hidden_states=False).hidden_states is None
    nothing = model(**pad([[], []], width=0)).hidden_states
    assert all(states.shape[:2] == (2, 0) for states in nothing)


def hash_by_hand(text, order, buckets):
    """Python's whole numbers, which know no overflow."""
    found = []
    for n in range(1, order + 1):
        for start in range(len(text) - n + 1):
            value = 0
            for token in text[start : start + n]:
                value = (value * 1_000_003 + token + 1) % (2**31 - 1)
            spread = (value * 1_597_334_677 + n - 1) % (2**31 - 1)
            found.append(spread * spread % (2**31 - 1) % (buckets - 1) + 1)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_hashes_are_those_of_unbounded_integers(order):
    texts = [[4, 250_001, 3, 250_001, 77], [9], [], [1, 2]]
    ids, lengths = pad(texts)["input_ids"], torch.tensor(list(map(len, texts)))
    found = hash_ngrams(ids, lengths, order, 1000)
    assert found.shape == (4, order * 5)
    for row, text in zip(found.tolist(), texts, strict=True):
        assert [bucket for bucket in row if bucket] == hash_by_hand(text, order, 1000)


def test_hashes_spread_over_the_buckets():
    pairs = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    buckets = hash_ngrams(pairs, torch.full((10_000,), 2), 2, 2**14)[:, 2]
    # Balls into bins: 2^14 · (1 − exp(−10,000 / 2^14)) are expected to be hit.
    assert abs(len(buckets.unique()) / (2**14 * (1 - np.exp(-10_000 / 2**14))) - 1) < 0.02


@pytest.mark.parametrize("kind", STUDENTS)
def test_ngram_logits_are_the_mean_of_the_table_and_are_added(kind):
    model = make(kind, ngram_buckets=64)
    text = [5, 7, 2]
    mean = model.ngrams.table.weight[hash_by_hand(text, 3, 64)].mean(dim=0)
    ngrams = model.ngrams.classifier(mean)
    alone = make(kind)
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("ngrams.")})
    batch = pad([text, [3, 4, 5, 6]])
    torch.testing.assert_close(model(**batch).logits[0], alone(**batch).logits[0] + ngrams)


def test_an_ngram_that_was_never_met_says_nothing():
    student = STUDENTS["bag"]
    model = student(student.config_class(**SIZES, ngram_buckets=64))
    assert not model.ngrams.table.weight.any()


def test_ngrams_are_left_out_in_training_alone():
    model = make("bag", ngram_buckets=512, ngram_dropout=0.5)
    batch = pad([[5, 7, 2, 9] * 5] * 50)
    assert torch.equal(model(**batch).logits[0], model(**batch).logits[1])
    answers = model.train()(**batch).ngram_logits
    assert len(answers.unique(dim=0)) > 40


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_loss_in_training_is_that_of_both(kind):
    model = make(kind, ngram_buckets=64, ngram_dropout=0.0, ngram_loss_weight=0.25)
    batch, labels = pad(TEXTS), torch.tensor([0, 2, 1, 1])
    logits = model(**batch).logits
    assert model(**batch, labels=labels).loss == F.cross_entropy(logits, labels)
    assert model(**batch).ngram_logits is None
    output = model.train()(**batch, labels=labels)
    torch.testing.assert_close(
        output.loss, F.cross_entropy(logits, labels) + 0.25 * F.cross_entropy(output.ngram_logits, labels)
    )
    assert len(model(**batch, labels=labels, return_dict=False)) == 2


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_gradient_of_the_table_is_that_of_its_ngrams(kind):
    model = make(kind, ngram_buckets=2**12, ngram_dropout=0.0).train()
    model(**pad(TEXTS), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    gradient = model.ngrams.table.weight.grad
    assert gradient.is_sparse
    met = {bucket for text in TEXTS for bucket in hash_by_hand(text, 3, 2**12)}
    assert set(gradient.coalesce().indices()[0].tolist()) == met
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name


@pytest.mark.parametrize("kind", STUDENTS)
def test_sparse_embeddings_have_the_gradient_of_dense_ones(kind):
    dense, sparse = make(kind).train(), make(kind, sparse_embeddings=True).train()
    sparse.load_state_dict(dense.state_dict())
    batch = {**pad(TEXTS), "labels": torch.tensor([0, 2, 1, 1])}
    for model in (dense, sparse):
        torch.manual_seed(0)
        model(**batch).loss.backward()
    gradient = sparse.embeddings.weight.grad
    assert gradient.is_sparse
    torch.testing.assert_close(gradient.to_dense(), dense.embeddings.weight.grad)


def test_inputs_embeds_are_refused_where_ngrams_need_ids():
    model = make("bag", ngram_buckets=64)
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 6))


@pytest.mark.parametrize(
    "kind, wrong",
    [
        ("bag", {"ngram_buckets": 1}),
        ("bag", {"ngram_buckets": -1}),
        ("bag", {"ngram_dropout": 1.0}),
        ("bag", {"ngram_loss_weight": -0.1}),
        ("bag", {"ngram_order": 0}),
        ("bag", {"num_hidden_layers": -1}),
        ("cnn", {"kernel_sizes": []}),
        ("cnn", {"kernel_sizes": [0]}),
        ("cnn", {"hidden_size": 0}),
    ],
)
def test_a_bad_config_is_refused_by_name(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        STUDENTS[kind].config_class(**wrong)


WITHOUT_PACKAGE = """
import json, sys
sys.modules["kd_trainer"] = None  # an import raises
import torch
from transformers import AutoModelForSequenceClassification
answers = []
for folder in json.loads(sys.argv[1]):
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        answers.append(model(**{name: torch.tensor(x) for name, x in json.loads(sys.argv[2]).items()}).logits.tolist())
print(json.dumps(answers))
"""


def test_saved_students_run_where_this_package_is_not(tmp_path):
    batch, expected = pad(TEXTS), {}
    for kind, buckets in WAYS:
        folder = tmp_path / f"{kind}_{buckets}"
        model = make(kind, ngram_buckets=buckets)
        model.save_pretrained(folder)
        with torch.no_grad():
            expected[str(folder)] = model(**batch).logits
            again = AutoModelForSequenceClassification.from_pretrained(folder)
            assert torch.equal(again(**batch).logits, expected[str(folder)])
    arguments = [json.dumps(list(expected)), json.dumps({name: x.tolist() for name, x in batch.items()})]
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *arguments],
        cwd=tmp_path,
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for answer, logits in zip(json.loads(done.stdout.splitlines()[-1]), expected.values(), strict=True):
        torch.testing.assert_close(torch.tensor(answer), logits)


def test_the_distillation_trainer_teaches_the_ngrams_too(tmp_path, rows, tokenizer, make_teacher):
    from datasets import Dataset

    from kd_trainer import DistillationCollator, DistillationTrainer, DistillationTrainingArguments

    model = make("cnn", vocab_size=len(tokenizer), ngram_buckets=64, ngram_dropout=0.0, ngram_loss_weight=0.25).train()
    columns = dict(tokenizer(rows[0][:8]))
    teacher_logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    dataset = Dataset.from_dict({**columns, "labels": rows[1][:8], "teacher_logits": teacher_logits.tolist()})
    trainer = DistillationTrainer(
        model=model,
        args=DistillationTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", alpha=0.3, temperature=2.0),
        train_dataset=dataset,
        data_collator=DistillationCollator(tokenizer),
    )
    batch = DistillationCollator(tokenizer)([dataset[row] for row in range(8)])
    labels = batch["labels"]
    loss = trainer.compute_loss(model, dict(batch))
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def both(logits):
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * kl_distillation_loss(logits, teacher_logits, 2.0).mean()

    torch.testing.assert_close(loss, both(output.logits) + 0.25 * both(output.ngram_logits))
