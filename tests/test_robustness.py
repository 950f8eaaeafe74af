"""Attacks against ones written out by hand with `inputs_embeds`, and that a measured model is left as it was."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LABEL_NAMES, make_rows, refused
from test_adversarial import MISLED, encoder_decoder, misled, xlnet

from kd_trainer import robustness
from kd_trainer.adversarial import Attack
from kd_trainer.inference import predict_logits
from kd_trainer.robustness import ATTACK_SIZE, ATTACKS, attacked_logits, check_attackable, measure_robustness

KINDS = ("bilstm", "bert")
TEXTS = ["球队胜负", "股市", "芯片手机网络今日", "银", "今日新闻球队进赛", "涨跌银行"]
LABELS = [0, 1, 2, 1, 0, 1]


@pytest.fixture
def make_trained(make_student, make_teacher, tokenizer, teacher_tokenizer, rows):
    """A function that trains a tiny model on `rows` until it knows them fairly well: `(model, tokenizer)`."""

    def make(kind, seed=0, steps=25):
        if kind == "bilstm":
            model, its_tokenizer = make_student(seed=seed, pooling="mean"), tokenizer
        else:
            # Ordinary weights: of conftest's large ones the embeddings would hardly matter.
            config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
            model, its_tokenizer = make_teacher(seed=seed + 1, **config), teacher_tokenizer
        batch = its_tokenizer(rows[0], padding=True, return_tensors="pt")
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(**batch).logits, torch.tensor(rows[1])).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model.eval(), its_tokenizer

    return make


def cross_entropy(logits, labels):
    """Mean loss, by NumPy."""
    logits = np.asarray(logits, dtype=np.float64)
    chosen = logits[np.arange(len(labels)), labels]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())


def by_hand(model, tokenizer, text, label, attack, size):
    """Logits of one text under an attack: `inputs_embeds`, every step in NumPy's float64."""
    inputs = tokenizer([text], return_tensors="pt")
    clean = model.get_input_embeddings().weight[inputs.pop("input_ids")].detach()
    radius = size * np.sqrt((clean.numpy().astype(np.float64) ** 2).sum())
    ascents, step = {"fgm": (1, radius), "pgd": (attack.steps, attack.alpha / attack.epsilon * radius)}[attack.method]
    delta = np.zeros(clean.shape)
    for _ in range(ascents):
        embeds = (clean + torch.tensor(delta, dtype=torch.float32)).requires_grad_()
        loss = F.cross_entropy(model(inputs_embeds=embeds, **inputs).logits, torch.tensor([label]))
        ascent = torch.autograd.grad(loss, embeds)[0].numpy().astype(np.float64)
        delta += step * ascent / np.sqrt((ascent**2).sum())
        delta *= min(1.0, radius / np.sqrt((delta**2).sum()))
    with torch.no_grad():
        return model(inputs_embeds=clean + torch.tensor(delta, dtype=torch.float32), **inputs).logits[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "attack",
    [*ATTACKS.values(), Attack("pgd", epsilon=1.0, alpha=0.25, steps=2)],
    ids=["fgm", "pgd", "pgd with another epsilon"],
)
def test_attacks_equal_those_written_out_by_hand(make_trained, kind, attack):
    model, tokenizer = make_trained(kind)
    got = attacked_logits(model, tokenizer, TEXTS, LABELS, 16, attack, size=0.2)
    assert got.dtype == np.float32 and got.shape == (len(TEXTS), len(LABEL_NAMES))
    expected = [by_hand(model, tokenizer, text, label, attack, 0.2) for text, label in zip(TEXTS, LABELS, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(got - predict_logits(model, tokenizer, TEXTS, 16)).max() > 0.05  # it did something


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_perturbation_is_as_large_as_the_size_says_and_spares_padding(make_trained, kind, size, name):
    model, tokenizer = make_trained(kind)
    seen = []
    # What comes first after the embeddings sees whatever was added to them, in every forward.
    module, per_forward = (model.dropout, 2) if kind == "bilstm" else (model.bert.embeddings.LayerNorm, 1)
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    attacked_logits(model, tokenizer, TEXTS, LABELS, 16, ATTACKS[name], size)
    handle.remove()
    seen = seen[::per_forward]
    assert len(seen) == 1 + ATTACKS[name].ascents
    order = sorted(range(len(TEXTS)), key=lambda row: -len(TEXTS[row]))
    change = (seen[-1] - seen[0]).numpy().astype(np.float64)
    for row, added in zip(order, change, strict=True):
        ids = tokenizer(TEXTS[row])["input_ids"]
        embeddings = model.get_input_embeddings().weight.detach().numpy().astype(np.float64)[ids]
        assert not added[len(ids) :].any()
        norm, radius = np.sqrt((added**2).sum()), size * np.sqrt((embeddings**2).sum())
        assert norm <= radius * (1 + 1e-4)
        if name == "fgm":
            assert norm == pytest.approx(radius, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_next_to_no_perturbation_leaves_the_logits(make_trained, kind, name):
    model, tokenizer = make_trained(kind)
    clean = predict_logits(model, tokenizer, TEXTS, 16)
    for size in (0.0, 1e-7):
        got = attacked_logits(model, tokenizer, TEXTS, LABELS, 16, ATTACKS[name], size)
        np.testing.assert_allclose(got, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_cost_accuracy_and_pgd_is_no_weaker_than_fgm(make_trained, kind):
    model, tokenizer = make_trained(kind)
    texts, labels = make_rows(150, seed=5)
    clean = predict_logits(model, tokenizer, texts, 16)
    for size in (0.05, 0.1, 0.2, 0.4):
        fgm, pgd = (attacked_logits(model, tokenizer, texts, labels, 16, ATTACKS[name], size) for name in ATTACKS)
        assert cross_entropy(clean, labels) < cross_entropy(fgm, labels) <= cross_entropy(pgd, labels) + 1e-3
        accuracies = [(logits.argmax(axis=1) == labels).mean() for logits in (clean, fgm, pgd)]
        assert accuracies[0] >= accuracies[1] >= accuracies[2]
    assert accuracies[0] > 0.8 and accuracies[1] < accuracies[0] - 0.1  # there was something to lose


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_neither_order_nor_batches_nor_long_texts_decide(make_trained, rows, kind, name):
    model, tokenizer = make_trained(kind)
    texts, labels = [*rows[0][:30], "球" * 40, "股"], [*rows[1][:30], 1, 2]
    expected = attacked_logits(model, tokenizer, texts, labels, 16, ATTACKS[name])
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = attacked_logits(
        model, tokenizer, [texts[row] for row in order], np.array(labels)[order], 16, ATTACKS[name], batch_size=7
    )
    np.testing.assert_allclose(shuffled, expected[order], rtol=1e-3, atol=1e-3)
    assert len(np.unique(expected.round(4), axis=0)) > 20  # a mixed-up order would show
    cut = attacked_logits(model, tokenizer, ["球" * 16], [1], 16, ATTACKS[name])
    if kind == "bilstm":  # a BERT's [SEP] stands at the cut
        np.testing.assert_allclose(expected[30], cut[0], rtol=1e-3, atol=1e-3)


def state_of(model):
    """All that a measurement might leave behind in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "torch": (torch.is_grad_enabled(), torch.backends.cudnn.enabled, torch.get_rng_state().tolist()),
    }


def assert_same(before, after):
    for key in ("weights", "gradients"):
        assert before[key].keys() == after[key].keys()
        for name, tensor in before[key].items():
            other = after[key][name]
            assert (tensor is None and other is None) or torch.equal(tensor, other), name
    for key in ("wanted", "modes", "hooks", "torch"):
        assert before[key] == after[key], key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_nothing_of_the_model_changes(make_trained, rows, kind, training, frozen, has_gradients):
    model, tokenizer = make_trained(kind, steps=2)
    model.train(training).requires_grad_(not frozen)
    if has_gradients:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
    before = state_of(model)
    measured = measure_robustness(model, tokenizer, *rows, 16)
    assert_same(before, state_of(model))
    model.eval().requires_grad_(True)
    assert measure_robustness(model, tokenizer, *rows, 16) == measured  # dropout is off, whatever the mode


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_who_wants_no_gradients_gets_the_same(make_trained, rows, kind):
    model, tokenizer = make_trained(kind)
    expected = measure_robustness(model, tokenizer, *rows, 16)
    with torch.no_grad():
        assert measure_robustness(model, tokenizer, *rows, 16) == expected
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_a_failing_attack_leaves_the_model_as_it_was(make_trained, monkeypatch):
    model, tokenizer = make_trained("bilstm", steps=1)
    before = state_of(model.train())
    monkeypatch.setattr(Attack, "ascend", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attacked_logits(model, tokenizer, TEXTS, LABELS, 16, ATTACKS["fgm"])
    assert_same(before, state_of(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [["", ""], ["", "球队", ""]])
def test_empty_texts_are_attacked_like_any_other(make_trained, kind, texts):
    model, tokenizer = make_trained(kind)
    labels = [0, 1, 2][: len(texts)]
    clean = predict_logits(model, tokenizer, texts, 16)
    for name, attack in ATTACKS.items():
        logits = attacked_logits(model, tokenizer, texts, labels, 16, attack)
        assert np.isfinite(logits).all()
        if kind == "bilstm":
            # No token, nothing to perturb; a BERT has [CLS] and [SEP].
            empty = [row for row, text in enumerate(texts) if not text]
            np.testing.assert_allclose(logits[empty], clean[empty], atol=1e-6, err_msg=name)
    results = measure_robustness(model, tokenizer, texts, labels, 16)
    assert results["rows"] == len(texts) and all(0 <= results[name] <= 1 for name in (*ATTACKS, "noise_10"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "bart"])
def test_a_model_that_can_be_attacked_passes_the_check_and_stays_as_it_is(
    make_student, make_teacher, tokenizer, teacher_tokenizer, kind, training
):
    if kind == "bilstm":
        model, its_tokenizer = make_student(dropout=0.3), tokenizer
    else:
        model = make_teacher() if kind == "bert" else encoder_decoder(kind, len(teacher_tokenizer), 3)
        its_tokenizer = teacher_tokenizer
    assert kind != "bart" or teacher_tokenizer.sep_token_id == 3
    before = state_of(model.train(training))
    check_attackable(model, its_tokenizer, 16)
    assert_same(before, state_of(model))


@pytest.mark.parametrize("how", [*MISLED, "xlnet"])
def test_a_model_that_cannot_be_attacked_is_refused_and_stays_as_it_was(make_teacher, teacher_tokenizer, how):
    model = xlnet(len(teacher_tokenizer)) if how == "xlnet" else misled(make_teacher(), how)
    before = state_of(model.train())
    with refused(MISLED.get(how, "embeds something else than its input_ids")):
        check_attackable(model, teacher_tokenizer, 16)
    assert_same(before, state_of(model))


def test_rows_without_a_label_do_not_count(make_trained, rows):
    model, tokenizer = make_trained("bilstm")
    expected = measure_robustness(model, tokenizer, *rows, 16)
    texts, labels = [*rows[0], *make_rows(30, seed=9)[0]], [*rows[1], *[-100] * 30]
    got = measure_robustness(model, tokenizer, texts, labels, 16)
    assert got == expected and got["rows"] == len(rows[0])
    assert json.loads(json.dumps(got)) == got  # the report is JSON
    assert list(got) == ["rows", "clean", "fgm", "pgd", "noise_5", "noise_10"]


def test_every_accuracy_equals_the_one_counted_by_hand(make_trained, monkeypatch):
    model, tokenizer = make_trained("bilstm")
    texts, labels = make_rows(100, seed=4, length=(6, 12))  # long enough to be all different
    assert len(set(texts)) == len(texts)
    label_of = dict(zip(texts, labels, strict=True))
    noises, add_noise = [], robustness.add_noise

    def watched(texts, rate):
        noises.append((texts, rate, add_noise(texts, rate)))
        return noises[-1][2]

    monkeypatch.setattr(robustness, "add_noise", watched)
    got = measure_robustness(model, tokenizer, texts, labels, 16)

    @torch.no_grad()
    def accuracy(texts, true_labels):
        # One text at a time: no padding, no order.
        predicted = [int(model(**tokenizer([text], return_tensors="pt")).logits.argmax()) for text in texts]
        return pytest.approx(np.mean(np.array(predicted) == true_labels))

    assert [rate for _, rate, _ in noises] == [0.05, 0.10]
    for name, (clean, rate, noisy) in zip(("noise_5", "noise_10"), noises, strict=True):
        assert sorted(clean) == sorted(texts) and noisy == add_noise(clean, rate) != clean
        assert got[name] == accuracy(noisy, [label_of[text] for text in clean])
    assert got["clean"] == accuracy(texts, labels)
    for name, attack in ATTACKS.items():
        hits = [
            by_hand(model, tokenizer, text, label, attack, ATTACK_SIZE).argmax() == label
            for text, label in label_of.items()
        ]
        assert got[name] == pytest.approx(np.mean(hits), abs=0.011)  # one text may lie on the border


def test_of_many_texts_a_sample_is_measured_and_the_same_for_every_model(monkeypatch):
    texts = [f"第{row}条" for row in range(2600)]
    labels = np.arange(2600) % 3
    labels[::13] = -100
    asked = []

    def predict(model, tokenizer, texts, *rest):
        asked.append((model, "predict", texts))
        return np.eye(3)[[0] * len(texts)]

    def attacked(model, tokenizer, texts, labels, *rest, **kwargs):
        asked.append((model, "attack", texts))
        assert [int(text[1:-1]) % 3 for text in texts] == list(labels)  # each beside its own label
        return np.eye(3)[[0] * len(texts)]

    monkeypatch.setattr(robustness, "predict_logits", predict)
    monkeypatch.setattr(robustness, "attacked_logits", attacked)
    results = [measure_robustness(model, None, texts, list(labels), 16) for model in ("one", "two")]
    assert results[0] == results[1] and results[0]["rows"] == 2000
    one, two = ([(what, texts) for model, what, texts in asked if model == name] for name in ("one", "two"))
    assert one == two and [what for what, _ in one] == ["predict", "attack", "attack", "predict", "predict"]
    sample = one[0][1]
    assert len(set(sample)) == 2000 and sample == one[1][1] == one[2][1] != one[3][1]
    rows = [int(text[1:-1]) for text in sample]
    assert not any(row % 13 == 0 for row in rows)
    # Of all the texts, not of the first or last ones, as often as they are there.
    assert abs(np.mean(rows) - 1300) < 60 and abs(np.mean(np.array(rows) % 3 == 0) - results[0]["clean"]) < 1e-9
