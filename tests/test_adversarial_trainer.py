"""The adversarial part of both trainers against attacks by hand, and through all that a Trainer goes through."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from test_adversarial import MISLED, assert_close, by_hand, by_writing, encoder_decoder, misled, xlnet
from test_trainer import (
    NO_DROPOUT,
    PLAIN_SGD,
    GradientRecorder,
    Lab,
    cross_entropy,
    distillation,
    gradient,
    hurry,  # noqa: F401 (a fixture that every test uses)
    weights,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import HPSearchBackend

from kd_trainer.adversarial import Attack
from kd_trainer.arguments import AdversarialTrainingArguments, DistillationTrainingArguments
from kd_trainer.batches import DistillationCollator
from kd_trainer.trainer import AdversarialTrainer, DistillationTrainer

METHODS = ("fgm", "pgd", "freelb")
SIZES = {"adversarial_epsilon": 0.4, "adversarial_alpha": 0.25, "adversarial_steps": 3}
EVERY_STEP = {"logging_strategy": "steps", "logging_steps": 1}
TESTS = Path(__file__).parent


class AdversarialLab(Lab):
    """With `distil=False` an [`AdversarialTrainer`]; `method` names the attack."""

    def trainer(self, model, dataset, kind="bilstm", distil=False, args=None, method="none", **kwargs):
        settings = {**PLAIN_SGD, "output_dir": str(self.folder / "run"), "adversarial": method, **SIZES, **(args or {})}
        if distil:
            return super().trainer(model, dataset, kind, True, settings, **kwargs)
        kwargs |= {"model": model} if isinstance(model, torch.nn.Module) else {"model_init": model}
        kwargs.setdefault("processing_class", self.tokenizers[kind])
        return AdversarialTrainer(args=AdversarialTrainingArguments(**settings), train_dataset=dataset, **kwargs)

    def loss_by_hand(self, method, model, size=32, kind="bilstm", distil=False, unlabelled=False, smoothing=0.0):
        """Clean + adversarial loss of `size` rows in one graph, by `inputs_embeds`."""
        targets = self.targets(size, unlabelled)

        def loss_of(logits):
            task = cross_entropy(logits, targets, smoothing)
            if distil:
                return (0.3 * task + 0.7 * distillation(logits, self.teacher_logits[:size], "kl", 2.0)).mean()
            return task.sum() / (targets != -100).sum()

        if method == "none":
            return loss_of(self.logits(model, size, kind))
        return sum(by_hand(Attack(method, 0.4, 0.25, 3), model, dict(self.padded(kind, size)), loss_of))


@pytest.fixture
def lab(tmp_path, rows, tokenizer, teacher_tokenizer, make_student, make_teacher):
    return AdversarialLab(tmp_path, rows, {"bilstm": tokenizer, "bert": teacher_tokenizer}, make_student, make_teacher)


def teaching(distil):
    """Column and settings of a distillation as `AdversarialLab.loss_by_hand` has it."""
    return ("column", {"alpha": 0.3, "temperature": 2.0}) if distil else (None, {})


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# The gradient of a step


# (20, 8, 3) ends with a smaller micro-batch; in (12, 1, 12) some have no labelled row at all.
@pytest.mark.parametrize(
    "size, batch, accumulation, unlabelled",
    [(32, 32, 1, False), (32, 8, 4, False), (20, 8, 3, False), (20, 8, 3, True), (12, 1, 12, True)],
)
@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", ("none", *METHODS))
def test_gradient_is_that_of_the_attack_by_hand_for_any_micro_batches(
    lab, method, distil, size, batch, accumulation, unlabelled
):
    model, (column, args) = lab.student(), teaching(distil)
    expected = gradient(lab.loss_by_hand(method, model, size, distil=distil, unlabelled=unlabelled), model)
    args |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    dataset = lab.dataset(size, teacher=column, unlabelled=unlabelled)
    assert_close(lab.step_gradient(model, dataset, distil=distil, args=args, method=method), expected, 1e-5)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_bert_does_not_depend_on_the_micro_batches(lab, method, distil):
    model, (column, args) = lab.student("bert"), teaching(distil)
    expected = gradient(lab.loss_by_hand(method, model, kind="bert", distil=distil), model)
    for batch in (32, 8):
        args |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 32 // batch}
        dataset = lab.dataset(32, "bert", column)
        assert_close(lab.step_gradient(model, dataset, "bert", distil, args, method=method), expected, 2e-5)


def test_pgd_in_one_step_of_epsilon_trains_as_fgm(lab):
    fgm, pgd = (
        lab.step_gradient(lab.student(), lab.dataset(teacher=None), args=args, method=method)
        for method, args in (("fgm", {}), ("pgd", {"adversarial_alpha": 0.4, "adversarial_steps": 1}))
    )
    assert torch.equal(fgm, pgd)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
def test_every_method_and_scope_trains_another_student(lab, distil):
    column, args = teaching(distil)
    results = []
    for method in ("none", *METHODS):
        for scope in ("example", "matrix") if method != "none" else ("example",):
            model = lab.student()
            settings = {**args, "adversarial_scope": scope}
            lab.trainer(model, lab.dataset(teacher=column), distil=distil, args=settings, method=method).train()
            results.append(weights(model))
    for number, result in enumerate(results):
        assert all((result - other).abs().max() > 1e-5 for other in results[:number])


@pytest.mark.parametrize("method", METHODS)
def test_label_smoothing_counts_in_both_passes(lab, method):
    model = lab.student()
    expected = gradient(lab.loss_by_hand(method, model, smoothing=0.2), model)
    args = {"label_smoothing_factor": 0.2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    assert_close(lab.step_gradient(model, lab.dataset(teacher=None), args=args, method=method), expected, 1e-5)


def test_a_loss_function_of_the_user_counts_in_both_passes(lab):
    model, labels = lab.student(), lab.targets(32)

    def hinge(outputs, labels, num_items_in_batch=None):
        return F.multi_margin_loss(outputs.logits, labels)

    attack = Attack("pgd", 0.4, 0.25, 3)
    loss = sum(by_hand(attack, model, dict(lab.padded("bilstm", 32)), lambda z: F.multi_margin_loss(z, labels)))
    actual = lab.step_gradient(model, lab.dataset(teacher=None), method="pgd", compute_loss_func=hinge)
    assert_close(actual, gradient(loss, model), 1e-5)


def test_clipping_sees_the_gradient_of_both_passes(lab):
    model = lab.student()
    expected, start = gradient(lab.loss_by_hand("fgm", model), model), weights(model)
    args = {"max_grad_norm": 0.01, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, **EVERY_STEP}
    trainer = lab.trainer(model, lab.dataset(teacher=None), args=args, method="fgm")
    trainer.train()
    assert logged(trainer)[0]["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    torch.testing.assert_close(start - weights(model), 0.1 * 0.01 * expected / expected.norm(), rtol=1e-3, atol=1e-7)


def test_the_attack_sets_in_at_its_share_of_the_training(lab):
    model, recorder = lab.student(), GradientRecorder()
    plain, summed = (gradient(lab.loss_by_hand(method, model), model) for method in ("none", "fgm"))
    args = {"adversarial_start": 0.5, "num_train_epochs": 4, "learning_rate": 0.0, **EVERY_STEP}
    trainer = lab.trainer(model, lab.dataset(teacher=None), args=args, method="fgm", callbacks=[recorder])
    trainer.train()
    for actual, expected in zip(recorder.gradients, [plain, plain, summed, summed], strict=True):
        assert_close(actual, expected, 1e-5)
    assert ["adversarial_loss" in entry for entry in logged(trainer)] == [False, False, True, True]


# The teacher


@pytest.mark.parametrize("kind, way", [("bilstm", "online"), ("bert", "online"), ("bert", "shared")])
@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_reads_every_batch_once_and_unperturbed(lab, method, kind, way):
    expected = lab.step_gradient(lab.student(kind), lab.dataset(kind=kind), kind, True, method=method)
    model, forwards = lab.student(kind), {"student": 0, "teacher": []}
    lab.teacher.register_forward_hook(lambda module, args, output: forwards["teacher"].append(output.logits))
    model.register_forward_hook(lambda *args: forwards.update(student=forwards["student"] + 1))
    recorder = GradientRecorder()
    trainer = lab.trainer(
        model,
        lab.dataset(kind=kind, teacher=way),
        kind,
        True,
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
        method,
        teacher=lab.teacher,
        callbacks=[recorder],
    )
    trainer.train()
    assert len(forwards["teacher"]) == 4
    assert forwards["student"] == 4 * {"fgm": 2, "pgd": 4, "freelb": 3}[method]
    # Whatever the order of the rows, these are their clean logits.
    seen = torch.cat(forwards["teacher"])
    torch.testing.assert_close(seen.sort(0)[0], lab.teacher_logits[:32].sort(0)[0], rtol=1e-4, atol=1e-5)
    assert_close(recorder.gradients[0], expected, 2e-5)


# Logs and evaluation


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", METHODS)
def test_logged_clean_and_adversarial_loss_add_up_to_the_loss(lab, method, distil, accumulation):
    column, args = teaching(distil)
    args |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation, **EVERY_STEP}
    dataset = lab.dataset(20, teacher=column, unlabelled=not distil)
    trainer = lab.trainer(lab.student(), dataset, distil=distil, args=args, method=method)
    trainer.train()
    assert len(logged(trainer)) == trainer.state.global_step > 1
    for entry in logged(trainer):
        assert entry["loss"] == pytest.approx(entry["clean_loss"] + entry["adversarial_loss"], rel=1e-5)
        assert entry["adversarial_loss"] > entry["clean_loss"] and entry["adversarial_skipped"] == 0
        if distil:
            assert entry["clean_loss"] == pytest.approx(0.3 * entry["task_loss"] + 0.7 * entry["kd_loss"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_logged_parts_of_a_distillation_are_those_of_the_clean_pass(lab, method):
    model, (_, args) = lab.student(), teaching(True)
    logits = lab.logits(model, 24).detach()
    task = cross_entropy(logits, lab.targets(24)).mean()
    kd = distillation(logits, lab.teacher_logits[:24], "kl", 2.0).mean()
    summed = lab.loss_by_hand(method, model, 24, distil=True).item()
    args |= {"learning_rate": 0.0, "per_device_train_batch_size": 8, "num_train_epochs": 2}
    trainer = lab.trainer(
        model, lab.dataset(24), distil=True, args={**args, "logging_strategy": "epoch"}, method=method
    )
    trainer.train()
    assert len(logged(trainer)) == 2
    for entry in logged(trainer):
        assert entry["task_loss"] == pytest.approx(float(task), rel=1e-5)
        assert entry["kd_loss"] == pytest.approx(float(kd), rel=1e-5)
        assert entry["clean_loss"] == pytest.approx(float(0.3 * task + 0.7 * kd), rel=1e-5)
        assert entry["loss"] == pytest.approx(summed, rel=1e-5)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
def test_evaluation_is_not_perturbed(lab, distil):
    column, args = teaching(distil)
    dataset, results = lab.dataset(teacher=column), []
    for method in ("none", "fgm"):
        model, settings = lab.student(), {**args, "eval_strategy": "epoch", "learning_rate": 0.0, **EVERY_STEP}
        trainer = lab.trainer(model, dataset, distil=distil, args=settings, method=method, eval_dataset=dataset)
        trainer.train()
        during = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
        results.append({name: value for name, value in trainer.evaluate().items() if name.endswith("loss")})
        assert during["eval_loss"] == results[-1]["eval_loss"]
        assert not any("adversarial" in name or "clean" in name for name in during)
        results[-1]["logits"] = trainer.predict(dataset).predictions.tolist()
    assert results[0] == results[1]
    loss = lab.loss_by_hand("none", lab.student(), distil=distil)
    assert results[0]["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)


# Precision


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_trains_fp32_weights(lab, method, distil):
    model, (column, args) = lab.student("bert"), teaching(distil)
    before, dtypes = weights(model), set()
    expected = gradient(lab.loss_by_hand(method, model, kind="bert", distil=distil), model)
    model.classifier.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    recorder = GradientRecorder()
    args |= {"bf16": True, **EVERY_STEP}
    dataset = lab.dataset(32, "bert", column)
    trainer = lab.trainer(model, dataset, "bert", distil, args, method, callbacks=[recorder])
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert weights(model).dtype == torch.float32 and weights(model).isfinite().all()
    assert not torch.equal(weights(model), before)
    assert 0 < logged(trainer)[0]["loss"] < float("inf")
    assert F.cosine_similarity(recorder.gradients[0], expected, dim=0) > 0.9


@pytest.mark.parametrize("scale", [3.0, 2.0**16, 2.0**40])
@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_scaler_changes_nothing(lab, method, distil, scale):
    model, (column, args) = lab.student(), teaching(distil)
    args |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    dataset = lab.dataset(teacher=column)
    expected, start = lab.step_gradient(model, dataset, distil=distil, args=args, method=method), weights(model)
    recorder = GradientRecorder()
    trainer = lab.trainer(model, dataset, distil=distil, args=args, method=method, callbacks=[recorder])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.train()
    assert_close(recorder.gradients[0] / scale, expected, 1e-5)
    torch.testing.assert_close(start - weights(model), 0.1 * expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_attack_follows_gradients_that_half_precision_would_lose_without_the_scaler(lab, scaled):
    def small(outputs, labels, num_items_in_batch=None):
        return 1e-8 * F.cross_entropy(outputs.logits, labels)

    model, args = lab.student(), {"adversarial_epsilon": 1.0, **EVERY_STEP}
    model.classifier.register_forward_hook(
        lambda module, args, output: output.register_hook(lambda grad: grad.half().float()) and None
    )
    trainer = lab.trainer(model, lab.dataset(teacher=None), args=args, method="fgm", compute_loss_func=small)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24) if scaled else None
    trainer.train()
    (entry,) = logged(trainer)
    # Without it every gradient is zero, and nothing is perturbed.
    assert (entry["adversarial_loss"] > 1.01 * entry["clean_loss"]) is scaled


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_gradient_that_is_not_finite_is_counted_and_the_scaler_skips_the_step(lab, unlabelled, scope, distil):
    model, (column, args) = lab.student(), teaching(distil)
    start, spoilt = weights(model), torch.arange(32) == 3

    def spoil(module, args, output):
        if output.requires_grad:
            output.register_hook(lambda grad: grad.masked_fill(spoilt[:, None], float("inf")))

    model.classifier.register_forward_hook(spoil)
    args |= {"adversarial_scope": scope, **EVERY_STEP}
    dataset = lab.dataset(teacher=column, unlabelled=unlabelled)
    trainer = lab.trainer(model, dataset, distil=distil, args=args, method="pgd")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train()
    assert logged(trainer)[0]["adversarial_skipped"] == (1 if scope == "example" else 32)
    assert torch.equal(weights(model), start)
    assert trainer.accelerator.scaler.get_scale() == 512.0


# Inside the Trainer


def test_model_init_trains_like_the_model(lab):
    trainer = lab.trainer(lambda: lab.student(), lab.dataset(teacher=None), method="pgd")
    trainer.train()
    model = lab.student()
    lab.trainer(model, lab.dataset(teacher=None), method="pgd").train()
    start = weights(lab.student())
    assert_close(weights(trainer.model) - start, weights(model) - start, 1e-5)


def test_a_hyperparameter_search_changes_the_attack(lab):
    expected = lab.step_gradient(
        lab.student(), lab.dataset(teacher=None), args={"adversarial_epsilon": 2.0}, method="fgm"
    )
    recorder = GradientRecorder()
    trainer = lab.trainer(lambda: lab.student(), lab.dataset(teacher=None), method="none", callbacks=[recorder])
    trainer.hp_search_backend = HPSearchBackend.WANDB
    trainer._hp_search_setup({"adversarial": "fgm", "adversarial_epsilon": 2.0})
    trainer.train()
    assert_close(recorder.gradients[0], expected, 1e-5)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_ends_with_the_same_bits(lab, method, distil):
    column, args = teaching(distil)
    args |= {"optim": "adamw_torch", "lr_scheduler_type": "linear", "num_train_epochs": 2, "save_strategy": "steps"}
    args |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 1}
    args |= {"adversarial_start": 0.25}  # step 1 of 4
    results = []
    for step in (None, 1, 3):
        model = lab.student(dropout=0.3, seed=0 if step is None else 7)
        args["output_dir"] = str(lab.folder / f"run-{step}")
        trainer = lab.trainer(model, lab.dataset(16, teacher=column), distil=distil, args=args, method=method)
        checkpoint = None if step is None else str(lab.folder / "run-None" / f"checkpoint-{step}")
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 4
        results.append(weights(model))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL |= {"max_position_embeddings": 40, "initializer_range": 0.5, **NO_DROPOUT}
MODELS = {
    "bert": (BertForSequenceClassification, BertConfig, SMALL),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**SMALL, "pad_token_id": 0}),
    "electra": (ElectraForSequenceClassification, ElectraConfig, {**SMALL, "embedding_size": 8}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
        | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    ),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config,
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "pad_token_id": 0, "initializer_range": 0.5}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
}


@pytest.mark.parametrize("scope", ["example", "matrix"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_take_a_step(lab, name, scope):
    set_seed(0)
    model_class, config_class, config = MODELS[name]
    model = model_class(config_class(vocab_size=len(lab.tokenizers["bert"]), num_labels=3, **config))
    dataset = lab.dataset(8, "bert", None).select_columns(["input_ids", "attention_mask", "labels"])
    batch = {**lab.padded("bert", 8), "labels": lab.targets(8)}
    batch.pop("token_type_ids", None)
    clean = model(**batch).loss.item()
    args = {"adversarial_epsilon": 0.02, "adversarial_scope": scope, **EVERY_STEP}
    start = weights(model)
    trainer = lab.trainer(model, dataset, "bert", args=args, method="fgm")
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["clean_loss"] == pytest.approx(clean, rel=1e-5)
    assert entry["clean_loss"] < entry["adversarial_loss"] < entry["clean_loss"] + 1
    assert weights(model).isfinite().all() and not torch.equal(weights(model), start)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoders_take_a_step(lab, name):
    tokenizer = lab.tokenizers["bert"]
    model = encoder_decoder(name, len(tokenizer), tokenizer.sep_token_id)
    dataset = lab.dataset(8, "bert", None).select_columns(["input_ids", "attention_mask", "labels"])
    start = weights(model)
    args = {"adversarial_epsilon": 0.02, **EVERY_STEP}
    trainer = lab.trainer(model, dataset, "bert", args=args, method="fgm")
    trainer.train()
    (entry,) = logged(trainer)
    assert entry["clean_loss"] < entry["adversarial_loss"] < entry["clean_loss"] + 1
    assert weights(model).isfinite().all() and not torch.equal(weights(model), start)


@pytest.mark.parametrize("how", [*MISLED, "xlnet", "xlnet, as many rows as tokens"])
def test_a_model_whose_embeddings_cannot_be_perturbed_is_refused_at_the_first_step(lab, how):
    if how in MISLED:
        model, dataset, kind, words = misled(lab.student(), how), lab.dataset(teacher=None), "bilstm", MISLED[how]
    else:
        kind, words = "bert", "embeds something else than its input_ids"
        model, dataset = xlnet(len(lab.tokenizers[kind])), lab.dataset(32, kind, None)
        dataset = dataset.select_columns(["input_ids", "attention_mask", "labels"])
    width = max(map(len, dataset["input_ids"]))
    args = {"per_device_train_batch_size": width} if "," in how else {}
    start = weights(model)
    trainer = lab.trainer(model, dataset, kind, args=args, method="fgm")
    if "," in how:
        # The longest text in the first batch: it is as long as there are rows.
        rows = sorted(range(len(dataset)), key=lambda row: -len(dataset[row]["input_ids"]))
        trainer.train_dataset = dataset.select(rows[:width])
    with refused(words):
        trainer.train()
    assert trainer.state.global_step == 0 and torch.equal(weights(model), start)


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_by_matrix_a_step_of_one_micro_batch_is_that_of_a_matrix_that_is_written_to(lab, method):
    model = lab.student()
    batch = {**lab.padded("bilstm", 32), "labels": lab.targets(32)}
    *_, expected = by_writing(Attack(method, 0.4, 0.25, 3, "matrix"), model, batch)
    args = {"adversarial_scope": "matrix", "gradient_accumulation_steps": 1}
    assert_close(lab.step_gradient(model, lab.dataset(teacher=None), args=args, method=method), expected, 1e-5)


REFUSED_MODES = {
    "matrix": ({"adversarial_scope": "matrix", "gradient_accumulation_steps": 2}, "several micro-batches"),
    "reentrant": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "reentrant --gradient_checkpointing",
    ),
}


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("mode", REFUSED_MODES)
@pytest.mark.parametrize("way", ["search", "arguments"])
def test_an_attack_that_is_turned_on_later_is_refused_at_the_first_step(lab, way, mode, distil):
    (column, args), (settings, words) = teaching(distil), REFUSED_MODES[mode]
    args |= {**settings, "per_device_train_batch_size": 8}
    dataset = lab.dataset(32, "bert", column)
    trainer = lab.trainer(lambda: lab.student("bert"), dataset, "bert", distil, args)
    if way == "search":
        trainer.hp_search_backend = HPSearchBackend.WANDB
        trainer._hp_search_setup({"adversarial": "fgm"})
    else:
        trainer.args.adversarial = "fgm"
    with refused("--adversarial fgm cannot work with", words):
        trainer.train()
    assert trainer.state.global_step == 0
    # Once refused, it is not taken the second time.
    with refused("--adversarial fgm cannot work with", words):
        trainer.train()
    trainer.args.adversarial = "none"
    trainer.train()
    assert trainer.state.global_step > 0


@pytest.mark.parametrize("way", ["search", "arguments"])
def test_a_mode_that_an_attack_cannot_work_with_is_refused_when_it_is_turned_on_later(lab, way):
    args = {"adversarial_scope": "matrix", "per_device_train_batch_size": 8}
    trainer = lab.trainer(lambda: lab.student(), lab.dataset(teacher=None), args=args, method="fgm")
    if way == "search":
        trainer.hp_search_backend = HPSearchBackend.WANDB
        trainer._hp_search_setup({"gradient_accumulation_steps": 2})
    else:
        trainer.args.gradient_accumulation_steps = 2
    with refused("--adversarial fgm cannot work with", "several micro-batches"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradient(lab, method):
    model, dataset = lab.student("bert"), lab.dataset(kind="bert", teacher=None)
    expected = lab.step_gradient(model, dataset, "bert", method=method)
    for kwargs in (None, {"use_reentrant": False}):
        args = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
        assert_close(lab.step_gradient(model, dataset, "bert", args=args, method=method), expected, 1e-5)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize(
    "words, settings",
    [
        ("DataParallel.*torchrun", {"_n_gpu": 2}),
        ("--torch_compile", {"torch_compile": True}),
        (
            "reentrant --gradient_checkpointing",
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        ),
        (
            "--adversarial_scope matrix over several micro-batches.*use example",
            {"adversarial_scope": "matrix", "gradient_accumulation_steps": 2},
        ),
    ],
)
def test_what_cannot_work_is_refused(lab, words, settings, distil):
    trainer_class = DistillationTrainer if distil else AdversarialTrainer
    arguments_class = DistillationTrainingArguments if distil else AdversarialTrainingArguments
    for method in ("fgm", "none"):
        args = arguments_class(**PLAIN_SGD, output_dir=str(lab.folder), adversarial=method)
        assert args.n_gpu <= 1
        for name, value in settings.items():
            # Not as arguments: --torch_compile would write into this process's environment.
            setattr(args, name, value)
        if method == "fgm":
            with pytest.raises(ValueError, match=f"adversarial fgm cannot work with .*{words}") as caught:
                trainer_class(lab.student("bert"), args)
            assert "\n" not in str(caught.value)
        else:
            trainer_class(lab.student("bert"), args)


@pytest.mark.parametrize("args", [None, TrainingArguments("unused", report_to="none", use_cpu=True)])
def test_plain_training_arguments_are_refused(lab, args):
    with pytest.raises(ValueError, match="AdversarialTrainingArguments"):
        AdversarialTrainer(lab.student(), args)


@pytest.mark.parametrize("arguments_class", [AdversarialTrainingArguments, DistillationTrainingArguments])
def test_the_settings_of_an_attack_survive_as_a_dictionary_and_as_json(lab, arguments_class):
    settings = {"adversarial": "freelb", **SIZES, "adversarial_start": 0.5, "adversarial_scope": "matrix"}
    args = arguments_class(str(lab.folder), use_cpu=True, report_to="none", **settings)
    for values in (args.to_dict(), json.loads(args.to_json_string()), args.to_sanitized_dict()):
        assert settings.items() <= values.items()
    assert args.attack() == Attack("freelb", 0.4, 0.25, 3, "matrix")


# Two processes


class StepRecorder(GradientRecorder):
    """Zeros where a parameter has no gradient."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in model.parameters()]
        gradients = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients]
        self.gradients.append(torch.cat([part.flatten() for part in gradients]))


def run_jobs(jobs):
    """The gradient and the logs of the only step of every job; each process of `torchrun` calls it."""
    results = {}
    for name, (trainer_class, args, kwargs) in jobs.items():
        recorder = StepRecorder()
        trainer = trainer_class(args=args(), callbacks=[recorder], **kwargs)
        trainer.train()
        (step,), (logs,) = recorder.gradients, logged(trainer)
        results[name] = step, logs, trainer.args.world_size
    return results


TWO_PROCESSES = """
import sys, torch, test_adversarial_trainer as tests
results = tests.run_jobs(torch.load(sys.argv[1], weights_only=False))
assert torch.distributed.get_backend() == "gloo"
if torch.distributed.get_rank() == 0:
    torch.save(results, sys.argv[2])
"""


def test_two_processes_give_the_gradient_of_one(lab):
    one, two = {}, {}
    for name, method, distil, kind, what in (
        ("plain", "none", False, "bilstm", {}),
        ("distil", "none", True, "bilstm", {}),
        ("fgm", "fgm", False, "bilstm", {}),
        ("pgd", "pgd", False, "bilstm", {}),
        ("freelb", "freelb", False, "bilstm", {}),
        ("distil and fgm", "fgm", True, "bilstm", {}),
        ("bert", "pgd", True, "bert", {}),
        ("plain, a parameter unused", "none", False, "bilstm", {"ddp_find_unused_parameters": True}),
        ("pgd, a parameter unused", "pgd", False, "bilstm", {"ddp_find_unused_parameters": True}),
        ("distil and freelb, a parameter unused", "freelb", True, "bilstm", {"ddp_find_unused_parameters": True}),
        ("plain, n-grams", "none", False, "bilstm", {}),
        ("distil and pgd, n-grams", "pgd", True, "bilstm", {}),
    ):
        column, args = teaching(distil)
        # Every third row is without a label, so that the processes have not equally many.
        dataset = lab.dataset(32, kind, column, unlabelled=True)
        ngrams = {"ngram_buckets": 50, "ngram_dropout": 0.0} if "n-grams" in name else {}
        model = lab.student(kind, **ngrams)
        if "unused" in name:
            model.unused = torch.nn.Parameter(torch.ones(3))
        settings = {**PLAIN_SGD, **EVERY_STEP, **SIZES, **args, "adversarial": method}
        # The jobs share a model: it must not learn.
        settings |= {"output_dir": str(lab.folder / "run"), "learning_rate": 0.0}
        settings |= {"optim": "adamw_torch"} if ngrams else {}
        collator = DistillationCollator(lab.tokenizers[kind])
        kwargs = {"model": model, "train_dataset": dataset, "data_collator": collator}
        trainer_class, arguments_class = (
            (DistillationTrainer, DistillationTrainingArguments)
            if distil
            else (AdversarialTrainer, AdversarialTrainingArguments)
        )
        one[name] = trainer_class, partial(arguments_class, **settings), kwargs
        for batch, unused in itertools.product((16, 8), [True] if what else [True, False]):
            sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch}
            args = partial(arguments_class, **{**settings, **sizes, "ddp_find_unused_parameters": unused})
            two[f"{name}/{batch}/{unused}"] = trainer_class, args, kwargs
    torch.save(two, lab.folder / "jobs.pt")
    (lab.folder / "script.py").write_text(TWO_PROCESSES, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "script.py", "jobs.pt", "results.pt"],
        cwd=lab.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = run_jobs(one)
    results = torch.load(lab.folder / "results.pt", weights_only=False)
    assert results.keys() == two.keys()
    for name, (step, logs, world_size) in results.items():
        gradient_of_one, logs_of_one, _ = expected[name.split("/")[0]]
        assert world_size == 2
        assert_close(step, gradient_of_one, 2e-5)
        names = [part for part in logs_of_one if part.endswith(("loss", "skipped"))]
        assert logs.keys() == logs_of_one.keys() and names
        assert [logs[part] for part in names] == pytest.approx([logs_of_one[part] for part in names], rel=1e-4)
