"""Perturbed embeddings against attacks written out by hand, which write into weights or pass `inputs_embeds`."""

import copy
import functools

import numpy as np
import pytest
import torch
from conftest import refused
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
    set_seed,
)

from kd_trainer.adversarial import Attack, PerturbedEmbeddings, adversarial_losses, input_embeddings
from kd_trainer.arguments import AdversarialTrainingArguments

ATTACKS = {
    "fgm": Attack("fgm", epsilon=0.4),
    "pgd": Attack("pgd", epsilon=0.4, alpha=0.25, steps=3),
    "freelb": Attack("freelb", epsilon=0.4, alpha=0.25, steps=3),
}
KINDS = ("bilstm", "bert")
METHODS = tuple(ATTACKS)
PAD = 0


@pytest.fixture
def make_model(make_student, make_teacher):
    """A function that builds a tiny model without dropout, in training mode."""

    def make(kind, **config):
        if kind == "bilstm":
            return make_student(**config).train()
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return make_teacher(seed=5, **no_dropout, **config).train()

    return make


def make_batch(lengths=(5, 2, 6, 3), side="right", seed=3):
    """Padded texts of these many tokens, some tokens in several of them; `labels` too."""
    generator = torch.Generator().manual_seed(seed)
    size, width = len(lengths), max(lengths)
    positions = torch.arange(width).expand(size, -1)
    mask = positions < torch.tensor(lengths)[:, None]
    if side == "left":
        mask = mask.flip(1)
    input_ids = torch.randint(2, 9, (size, width), generator=generator) * mask
    return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": torch.arange(size) % 3}


class Run:
    """`adversarial_losses` of a batch, and all that it did to the output of the embeddings."""

    def __init__(self, attack, model, batch, scale=1.0, factor=1.0, fail_at=None, **kwargs):
        embedding = model.get_input_embeddings()
        self.changes, self.losses = [], []
        kwargs = {"attention_mask": batch.get("attention_mask"), "scope": attack.scope, **kwargs}

        def forward():
            if len(self.losses) == fail_at:
                raise RuntimeError("out of memory")
            loss = model(**batch).loss * factor
            self.losses.append(float(loss.detach()))
            return loss

        def watch(module, args, output):
            self.changes.append((output - module.weight[args[0]]).detach())

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with PerturbedEmbeddings(embedding, **kwargs) as self.perturbed:
            handle = embedding.register_forward_hook(watch)  # after the perturbation's, so that it sees its result
            try:
                result = adversarial_losses(attack, self.perturbed, forward, parameters, scale)
            finally:
                handle.remove()
        self.clean, self.adversarial, self.skipped = result


def by_hand(attack, model, batch, loss_of=None):
    """
    `(clean, adversarial)` losses by `inputs_embeds`, all passes in one graph, every step in NumPy's float64. It knows
    `scope="example"` alone.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("input_ids", "labels")}
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"][..., None].float()
    loss_of = loss_of or (lambda logits: torch.nn.functional.cross_entropy(logits, batch["labels"]))

    def loss_at(delta):
        return loss_of(model(inputs_embeds=embeds + delta * mask, **inputs).logits)

    delta = torch.zeros_like(embeds, requires_grad=True)
    losses = [loss_at(delta)]
    ascents, step = {
        "fgm": (1, attack.epsilon),
        "pgd": (attack.steps, attack.alpha),
        "freelb": (attack.steps - 1, attack.alpha),
    }[attack.method]
    for _ in range(ascents):
        (direction,) = torch.autograd.grad(losses[-1], delta, retain_graph=True)
        moved = delta.detach().numpy().astype(np.float64)
        for row, ascent in zip(moved, direction.numpy().astype(np.float64), strict=True):
            length = np.sqrt((ascent**2).sum())
            row += step * ascent / length if length > 0 else 0.0
            length = np.sqrt((row**2).sum())
            row *= attack.epsilon / length if length > attack.epsilon else 1.0
        delta = torch.tensor(moved, dtype=torch.float32, requires_grad=True)
        losses.append(loss_at(delta))
    adversarial = sum(losses[1:]) / ascents if attack.method == "freelb" else losses[-1]
    return losses[0], adversarial


def by_writing(attack, model, batch):
    """
    `(clean, adversarial, gradient of their sum)` with `scope="matrix"`, as one finds it on the web: the embedding
    matrix itself is moved and then put back.
    """
    weight = model.get_input_embeddings().weight
    kept, losses = weight.detach().clone(), [model(**batch).loss]
    ascents, step = {"fgm": (1, attack.epsilon), "pgd": (attack.steps, attack.alpha)}[attack.method]
    clean_gradient = torch.autograd.grad(losses[0], list(model.parameters()), retain_graph=True)
    for _ in range(ascents):
        (ascent,) = torch.autograd.grad(losses[-1], weight)
        assert not ascent[PAD].any()  # nn.Embedding's padding_idx
        with torch.no_grad():
            weight += step * ascent / ascent.norm()
            change = weight - kept
            weight.copy_(kept + change * min(1.0, attack.epsilon / float(change.norm())))
        losses.append(model(**batch).loss)
    adversarial_gradient = torch.autograd.grad(losses[-1], list(model.parameters()))
    with torch.no_grad():
        weight.copy_(kept)
    pairs = zip(clean_gradient, adversarial_gradient, strict=True)
    return losses[0], losses[-1], torch.cat([(clean + adversarial).flatten() for clean, adversarial in pairs])


def backward(loss, model):
    """Gradient of the trained parameters after one `backward`, zeros where there is none."""
    model.zero_grad()
    loss.backward()
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    model.zero_grad()
    return torch.cat(parts)


def assert_close(actual, expected, tolerance=1e-6):
    """Within `tolerance` of the largest entry, which is what float32 sums in another order allow."""
    atol = tolerance * max(float(expected.detach().abs().max()), 1e-30)
    torch.testing.assert_close(actual, expected, rtol=10 * tolerance, atol=atol)


def norms(change):
    """NumPy's norm of every example."""
    return np.sqrt((change.numpy().astype(np.float64) ** 2).sum((1, 2)))


# How the loss grows


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_perturbation_makes_the_loss_worse(make_model, kind, method, scope):
    attack = Attack(method, epsilon=0.02, alpha=0.01, scope=scope)
    run = Run(attack, make_model(kind), make_batch())
    assert run.adversarial > run.clean
    assert len(run.losses) == {"fgm": 2, "pgd": 4, "freelb": 3}[method]
    assert run.losses == sorted(run.losses)  # every step goes up
    assert run.clean.item() == run.losses[0]
    expected = np.mean(run.losses[1:]) if method == "freelb" else run.losses[-1]
    assert run.adversarial.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("kind", KINDS)
def test_to_first_order_the_loss_grows_by_epsilon_times_the_norm_of_its_gradient(make_model, kind, scope):
    model, batch, epsilon = make_model(kind).double(), make_batch(), 1e-5
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    loss = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    gradient = torch.autograd.grad(loss, embeds)[0] * batch["attention_mask"][..., None]
    if scope == "matrix":
        rows = torch.zeros(9, embeds.shape[-1], dtype=torch.float64)
        growth = rows.index_add(0, batch["input_ids"].flatten(), gradient.flatten(0, 1)).norm()
    else:
        growth = gradient.flatten(1).norm(dim=1).sum()
    run = Run(Attack("fgm", epsilon=epsilon, scope=scope), model, batch)
    difference = (run.adversarial - run.clean).item()
    assert difference == pytest.approx(epsilon * float(growth), rel=1e-3)


# The ball


@pytest.mark.parametrize("epsilon, alpha, steps", [(1.0, 0.3, 2), (1.0, 0.3, 6), (0.2, 5.0, 4), (1e-4, 1e-4, 3)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_example_is_moved_further_than_epsilon(make_model, kind, method, epsilon, alpha, steps):
    attack = Attack(method, epsilon, alpha, steps)
    run = Run(attack, make_model(kind), make_batch())
    assert not run.changes[0].any()
    for number, change in enumerate(run.changes[1:], 1):
        # What the embeddings add up to is rounded in their own units.
        rounding = 1e-6 * epsilon + 1e-6
        assert (norms(change) <= epsilon + rounding).all()
        if method == "fgm" or alpha > epsilon:  # one step goes to the sphere
            assert norms(change) == pytest.approx(np.full(4, epsilon), abs=rounding)
        else:
            assert (norms(change) <= number * alpha + rounding).all()
    assert (norms(run.perturbed.delta.detach()) <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize("epsilon, alpha, steps", [(1.0, 0.3, 6), (0.2, 5.0, 3)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_by_matrix_a_token_is_moved_alike_wherever_it_stands(make_model, kind, method, epsilon, alpha, steps):
    batch = make_batch()
    run = Run(Attack(method, epsilon, alpha, steps, "matrix"), make_model(kind), batch)
    assert run.perturbed.delta.dim() == 2 and run.skipped.shape == (1,)
    assert float(run.perturbed.delta.double().norm()) <= epsilon * (1 + 1e-6)
    for change in run.changes[1:]:
        total = 0.0
        for token in set(batch["input_ids"].flatten().tolist()) - {PAD}:
            moved = change[batch["input_ids"] == token].double()
            torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-6)
            total += float((moved[0] ** 2).sum())
        assert 0 < total**0.5 <= epsilon + 2e-6


def test_one_ascent_is_normalized_clipped_and_blind_to_the_scale_of_the_gradient():
    generator = torch.Generator().manual_seed(0)
    delta, gradient = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    for scope, axes in (("example", (1, 2)), ("matrix", (0, 1, 2))):
        attack = Attack("pgd", epsilon=2.0, alpha=0.7, scope=scope)
        start, ascent = delta.double().numpy() / 10, gradient.double().numpy()
        expected = start + 0.7 * ascent / np.sqrt((ascent**2).sum(axes, keepdims=True))
        length = np.sqrt((expected**2).sum(axes, keepdims=True))
        expected = expected * np.minimum(1.0, 2.0 / length)
        # Entries whose squares are no float32 any more, or overflow.
        for scale in (1.0, 1e-30, 1e30):
            actual, skipped = attack.ascend(delta / 10, gradient * scale)
            np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
            assert not skipped.any() and skipped.numel() == (3 if scope == "example" else 1)
            assert not actual.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_every_example_may_have_a_radius_of_its_own(method):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(4, 3, 5, generator=generator)
    radius = torch.tensor([0.0, 0.1, 1.0, 7.0])
    attack = Attack(method, epsilon=1.0, alpha=0.25)
    delta, _ = attack.ascend(torch.zeros_like(gradient), gradient, radius[:, None, None])
    share = 1.0 if method == "fgm" else 0.25  # alpha stays the same share of the radius
    np.testing.assert_allclose(norms(delta), radius.numpy() * share, rtol=1e-6)
    for _ in range(9):
        delta, _ = attack.ascend(delta, gradient, radius[:, None, None])
    np.testing.assert_allclose(norms(delta), radius.numpy(), rtol=1e-6)


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("kind", KINDS)
def test_pgd_in_one_step_of_epsilon_is_fgm(make_model, kind, scope):
    gradients, losses = [], []
    for attack in (Attack("fgm", 0.5, scope=scope), Attack("pgd", 0.5, 0.5, 1, scope)):
        model = make_model(kind)
        run = Run(attack, model, make_batch())
        losses.append(run.adversarial.item())
        gradients.append(backward(run.clean + run.adversarial, model))
    assert losses[0] == losses[1] and torch.equal(*gradients)


# The loss and the gradient against the attacks by hand


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_perturbed_inputs_embeds(make_model, method, side):
    model, batch = make_model("bilstm"), make_batch(side=side)
    run = Run(ATTACKS[method], model, batch)
    clean, adversarial = by_hand(ATTACKS[method], model, batch)
    assert_close(run.clean, clean)
    assert_close(run.adversarial, adversarial)


@pytest.mark.parametrize("method", ["fgm", "pgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_by_matrix_it_is_as_if_the_weights_had_been_written_to(make_model, kind, method):
    attack = Attack(method, 0.4, 0.25, 3, "matrix")
    model, batch = make_model(kind), make_batch()
    clean, adversarial, gradient = by_writing(attack, model, batch)
    run = Run(attack, model, batch)
    assert_close(run.clean, clean)
    assert_close(run.adversarial, adversarial)
    assert_close(backward(run.clean + run.adversarial, model), gradient, 5e-6)
    assert adversarial > clean + 0.01


def freeze(model, what):
    """Takes the embeddings, or all but the classifier, out of the training; `"unused"` adds a parameter nobody uses."""
    if what == "unused":
        model.unused = torch.nn.Parameter(torch.ones(3))
    for name, parameter in model.named_parameters():
        frozen = {"embeddings": "embeddings" in name, "body": "classifier" not in name}.get(what, False)
        parameter.requires_grad_(not frozen)


@pytest.mark.parametrize("scale", [1.0, 3.0, torch.tensor(65536.0)], ids=["1", "3", "65536"])
@pytest.mark.parametrize("what", ["all", "embeddings", "body", "unused"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_backward_of_the_sum_gives_the_gradient_of_one_graph_of_all_passes(make_model, kind, method, what, scale):
    model, batch = make_model(kind), make_batch()
    freeze(model, what)
    clean, adversarial = by_hand(ATTACKS[method], model, batch)
    expected = backward(clean + adversarial, model)
    assert expected.abs().max() > 0.01
    run = Run(ATTACKS[method], model, batch, scale)
    assert_close(run.clean + run.adversarial, clean + adversarial)
    actual = backward(run.clean + run.adversarial, model)
    assert_close(actual, expected, 5e-6)
    # Another loss after it, as a mean over micro-batches: what backward hands in is multiplied.
    again = Run(ATTACKS[method], model, batch, scale)
    assert_close(backward((again.clean + again.adversarial) * 0.25, model), expected * 0.25, 5e-6)
    model.zero_grad()
    again = Run(ATTACKS[method], model, batch, scale)
    (again.clean + again.adversarial).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - {"unused"}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_being_accumulated_neither_count_nor_change(make_model, method):
    model, batch = make_model("bilstm"), make_batch()
    expected = backward(sum(by_hand(ATTACKS[method], model, batch)), model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    run = Run(ATTACKS[method], model, batch)
    assert torch.equal(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), before)
    (run.clean + run.adversarial).backward()
    after = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(after - before, expected, rtol=1e-4, atol=1e-6)


# Nothing stays behind


@pytest.mark.parametrize("fail_at", [None, 0, 1, 2], ids=["no failure", "clean", "perturbed", "second step"])
@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_comes_back_as_it_was_even_from_a_failing_forward(make_model, kind, scope, fail_at):
    model, batch = make_model(kind), make_batch()
    state = copy.deepcopy(model.state_dict())
    expected = model(**batch).logits
    attack = Attack("pgd", 0.4, 0.2, 3, scope)
    if fail_at is None:
        Run(attack, model, batch)
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            Run(attack, model, batch, fail_at=fail_at)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(**batch).logits, expected)


# Padding


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("mask", ["mask", "bool mask", "pad id"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_moved(make_model, kind, side, mask, scope):
    # The last text is empty.
    batch = make_batch((5, 2, 6, 0), side)
    real = batch["attention_mask"] == 1
    kwargs = {}
    if mask == "pad id":
        # BERT then attends to its padding, which has a gradient.
        del batch["attention_mask"]
        kwargs = {"attention_mask": None, "pad_token_id": PAD}
    elif mask == "bool mask":
        kwargs = {"attention_mask": real}
    run = Run(Attack("pgd", 0.5, 0.2, 3, scope), make_model(kind), batch, **kwargs)
    for change in run.changes[1:]:
        assert not change[~real].any() and not change[3].any()
        assert change[real].any(-1).all()
    assert not run.skipped.any()


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_nothing_but_empty_texts_has_the_clean_loss_twice(make_model, method, scope, mask):
    model, ids = make_model("bilstm"), torch.zeros(2, 0, dtype=torch.long)
    batch = {"input_ids": ids, "labels": torch.tensor([0, 2])}
    batch |= {"attention_mask": ids.clone()} if mask else {}
    attack = Attack(method, scope=scope)
    run = Run(attack, model, batch, pad_token_id=PAD)
    assert run.clean.item() == run.adversarial.item() > 0
    assert not any(change.any() for change in run.changes) and not run.skipped.any()
    expected = backward(2 * model(**batch).loss, model)
    assert_close(backward(run.clean + run.adversarial, model), expected)


@pytest.mark.parametrize("scope", ["example", "matrix"])
def test_without_mask_and_padding_id_everything_is_a_token(make_model, scope):
    batch = make_batch((4, 4))
    del batch["attention_mask"]
    run = Run(Attack("fgm", 0.5, scope=scope), make_model("bert"), batch)
    assert run.changes[1].any(-1).all()


def test_a_mask_of_another_shape_is_refused(make_model):
    batch = make_batch()
    with pytest.raises(ValueError, match="attention_mask"):
        Run(ATTACKS["fgm"], make_model("bilstm"), batch, attention_mask=torch.ones(4, 1, 6, 6))


def test_a_loss_that_does_not_see_the_embeddings_is_refused(make_model):
    model, batch = make_model("bilstm"), make_batch()
    perturbed = PerturbedEmbeddings(model.get_input_embeddings(), batch["attention_mask"])
    parameters = list(model.parameters())
    embeds = torch.zeros(4, 6, 12)
    with perturbed, pytest.raises(ValueError, match="does not call its input embeddings"):
        adversarial_losses(ATTACKS["fgm"], perturbed, lambda: model(inputs_embeds=embeds).logits.sum(), parameters)

    def detached():
        model(**batch)
        return model(inputs_embeds=embeds).logits.sum()

    perturbed = PerturbedEmbeddings(model.get_input_embeddings(), batch["attention_mask"])
    with perturbed, pytest.raises(ValueError, match="does not depend on the input embeddings"):
        adversarial_losses(ATTACKS["fgm"], perturbed, detached, parameters)


# Models that do not call their embeddings once


def encoder_decoder(name, vocab_size, eos_token_id):
    """A tiny Bart or T5."""
    set_seed(0)
    tokens = {"pad_token_id": PAD, "eos_token_id": eos_token_id, "decoder_start_token_id": eos_token_id}
    if name == "bart":
        sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 40, "bos_token_id": 1}
        sizes |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes |= {"dropout": 0.0, "init_std": 0.5}
        return BartForSequenceClassification(
            BartConfig(vocab_size=vocab_size, d_model=16, num_labels=3, **tokens, **sizes)
        )
    sizes = {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0, "classifier_dropout": 0.0}
    return T5ForSequenceClassification(T5Config(vocab_size=vocab_size, d_model=16, num_labels=3, **tokens, **sizes))


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_of_an_encoder_decoder_the_encoders_embeddings_are_perturbed(name):
    model, batch, outputs = encoder_decoder(name, 10, eos_token_id=9).train(), make_batch((5, 3, 6, 4)), {}
    lengths = batch["attention_mask"].sum(1)
    batch["input_ids"][torch.arange(4), lengths - 1] = 9
    attack = Attack("fgm", epsilon=0.02)
    perturbed = PerturbedEmbeddings(input_embeddings(model), batch["attention_mask"], input_ids=batch["input_ids"])
    with perturbed:
        for side in ("encoder", "decoder"):
            kept = outputs[side] = []
            embedding = model.base_model.get_submodule(side).get_input_embeddings()
            embedding.register_forward_hook(lambda *args, kept=kept: kept.append(args[-1].detach().clone()))
        clean, adversarial, _ = adversarial_losses(
            attack, perturbed, lambda: model(**batch).loss, list(model.parameters())
        )
    assert clean < adversarial < clean + 0.5
    assert [len(kept) for kept in outputs.values()] == [2, 2]
    change = outputs["encoder"][1] - outputs["encoder"][0]
    assert norms(change) == pytest.approx(np.full(4, 0.02), rel=1e-3)
    assert not change[batch["attention_mask"] == 0].any()
    assert torch.equal(*outputs["decoder"])


def test_a_model_that_pads_by_itself_is_perturbed_where_the_text_is():
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"max_position_embeddings": 40, "initializer_range": 0.5, "hidden_dropout_prob": 0.0}
    config = LongformerConfig(
        vocab_size=10, num_labels=3, attention_window=8, attention_probs_dropout_prob=0.0, **sizes
    )
    model, batch, outputs = LongformerForSequenceClassification(config).train(), make_batch((5, 3, 6, 4)), []
    perturbed = PerturbedEmbeddings(input_embeddings(model), batch["attention_mask"], input_ids=batch["input_ids"])
    with perturbed:
        perturbed.embedding.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))
        clean, adversarial, _ = adversarial_losses(
            Attack("fgm", epsilon=0.02), perturbed, lambda: model(**batch).loss, list(model.parameters())
        )
    assert clean < adversarial < clean + 0.5
    change = outputs[1] - outputs[0]
    assert change.shape[1] == 8  # a whole window
    assert norms(change) == pytest.approx(np.full(4, 0.02), rel=1e-3)
    assert not change[:, 6:].any() and not change[:, :6][batch["attention_mask"] == 0].any()


def xlnet(vocab_size):
    """A tiny XLNet, which turns its input around before it is embedded: `(sequence_length, batch_size)`."""
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=vocab_size, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=3, pad_token_id=PAD)
    )


def misled(model, how):
    """The model with embeddings that cannot be perturbed, in one of the ways of `MISLED`."""
    if how == "tuple":
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: (output, None))
        return model
    forward = model.forward

    @functools.wraps(forward)
    def embeds_more(input_ids=None, **kwargs):
        embed = model.get_input_embeddings()
        if how == "other texts before":
            embed(input_ids[:, :1])
        outputs = forward(input_ids=input_ids, **kwargs)
        if how in ("twice", "other texts after"):
            embed(input_ids if how == "twice" else input_ids[:, :1])
        return outputs

    model.forward = embeds_more
    return model


MISLED = {
    "twice": "calls more than once in a forward",
    "other texts before": "embeds something else than its input_ids",
    "other texts after": "embeds other texts besides",
    "tuple": "return a tuple",
}


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("how", MISLED)
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_that_are_not_one_tensor_of_one_call_are_refused(make_model, kind, how, scope):
    with refused(MISLED[how]):
        batch = make_batch()
        Run(Attack("fgm", scope=scope), misled(make_model(kind), how), batch, input_ids=batch["input_ids"])


@pytest.mark.parametrize("size", [3, 4, 6], ids=["fewer rows than tokens", "as many", "more"])
def test_a_model_that_embeds_something_else_than_its_input_is_refused(size):
    batch = make_batch((4, 2, 3, 4, 4, 1)[:size])
    with refused("embeds something else than its input_ids"):
        Run(ATTACKS["fgm"], xlnet(10).train(), batch, input_ids=batch["input_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_clean_and_norms_are_those_of_the_embeddings_that_are_no_padding(dtype):
    set_seed(0)
    embedding, batch = torch.nn.Embedding(10, 7).to(dtype), make_batch((5, 2, 6, 0))  # its padding is not zero
    with PerturbedEmbeddings(embedding, batch["attention_mask"]) as perturbed:
        embedding(batch["input_ids"])
        perturbed.delta.data.fill_(3.0)
        embedding(batch["input_ids"])
    table, mask = embedding.weight.detach().double().numpy(), batch["attention_mask"].numpy()[..., None]
    expected = table[batch["input_ids"].numpy()]
    np.testing.assert_array_equal(perturbed.clean.double().numpy(), expected)
    assert not perturbed.clean.requires_grad
    assert perturbed.norms().shape == (4, 1, 1) and perturbed.norms().dtype == torch.float32
    np.testing.assert_allclose(perturbed.norms().flatten(), np.sqrt(((expected * mask) ** 2).sum((1, 2))), rtol=1e-6)
    assert perturbed.norms()[3] == 0


# Gradients that say nothing


@pytest.mark.parametrize("scope", ["example", "matrix"])
def test_a_tiny_gradient_has_a_direction_and_a_zero_gradient_has_none(make_model, scope):
    attack = Attack("fgm", 0.5, scope=scope)
    expected = Run(attack, make_model("bilstm"), make_batch()).changes[1]
    tiny = Run(attack, make_model("bilstm"), make_batch(), factor=1e-30)
    torch.testing.assert_close(tiny.changes[1], expected, rtol=1e-4, atol=1e-5)
    if scope == "example":
        assert norms(tiny.changes[1]) == pytest.approx(np.full(4, 0.5), rel=1e-5)
    zero = Run(attack, make_model("bilstm"), make_batch(), factor=0.0)
    assert not zero.changes[1].any() and not zero.skipped.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("method", METHODS)
def test_an_example_whose_gradient_is_not_finite_is_skipped_and_counted(make_model, method, scope, bad):
    attack = Attack(method, 0.4, 0.25, 3, scope)
    plain = Run(attack, make_model("bilstm"), make_batch())
    model = make_model("bilstm")
    index = torch.tensor([1])

    def spoil(module, args, output):
        output.register_hook(lambda gradient: gradient.index_fill(0, index, bad))

    model.classifier.register_forward_hook(spoil)
    run = Run(attack, model, make_batch())
    assert run.skipped.tolist() == ([False, True, False, False] if scope == "example" else [True])
    for change, expected in zip(run.changes, plain.changes, strict=True):
        if scope == "matrix":
            assert not change.any()
        else:
            others = [0, 2, 3]
            assert not change[1].any()
            torch.testing.assert_close(change[others], expected[others], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(run.adversarial) and torch.isfinite(run.clean)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_example_that_is_skipped_at_one_step_keeps_what_it_had_and_is_counted(make_model, at):
    model, passes = make_model("bilstm"), []

    def spoil(module, args, output):
        if len(passes) == at:
            output.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), float("nan")))
        passes.append(output)

    model.classifier.register_forward_hook(spoil)
    run = Run(Attack("pgd", 5.0, 0.25, 3), model, make_batch())
    assert run.skipped.tolist() == [False, True, False, False]
    for step, (before, after) in enumerate(zip(run.changes, run.changes[1:], strict=False)):
        moved = (before != after).flatten(1).any(1)
        assert moved.tolist() == [True, step != at, True, True]


# What is refused


@pytest.mark.parametrize(
    "name, value",
    [("epsilon", value) for value in (0.0, -1.0, float("inf"), float("nan"))]
    + [("alpha", value) for value in (0.0, -0.1, float("inf"), float("nan"))]
    + [("steps", 0), ("steps", -3), ("scope", "batch")],
)
def test_a_value_out_of_range_is_refused_with_the_name_of_its_flag(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"adversarial_{name} is ") as caught:
        Attack("pgd", **{name: value})
    assert "\n" not in str(caught.value)
    with refused(f"--adversarial_{name} is "):
        AdversarialTrainingArguments(str(tmp_path), adversarial="pgd", **{f"adversarial_{name}": value})


@pytest.mark.parametrize("start", [-0.1, 1.0, float("nan")])
def test_a_start_outside_of_the_training_is_refused(start, tmp_path):
    with refused("--adversarial_start is "):
        AdversarialTrainingArguments(str(tmp_path), adversarial="fgm", adversarial_start=start)


def test_a_method_that_does_not_exist_and_freelb_in_one_step_are_refused(tmp_path):
    for method, settings, words in (("smart", {}, "adversarial is 'smart'"), ("freelb", {"steps": 1}, "at least 2")):
        with pytest.raises(ValueError, match=words):
            Attack(method, **settings)
        with refused("--adversarial", words):
            arguments = {f"adversarial_{name}": value for name, value in settings.items()}
            AdversarialTrainingArguments(str(tmp_path), adversarial=method, **arguments)
