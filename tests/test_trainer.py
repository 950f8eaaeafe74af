"""The trainers against loss formulas written out here, and through all that a Trainer goes through."""

import copy
import gc

import numpy as np
import pytest
import torch
from conftest import LABEL_NAMES, refused
from datasets import Dataset
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, hyperparameter_search
from transformers.trainer_utils import BestRun, HPSearchBackend

from kd_trainer.arguments import DistillationTrainingArguments
from kd_trainer.base_trainer import ClassificationTrainer, LengthGrouped
from kd_trainer.batches import DistillationCollator, tokenize
from kd_trainer.loading import describe_labels
from kd_trainer.trainer import KD_LOSSES, DistillationTrainer

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLAIN_SGD = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def cross_entropy(logits, labels, smoothing=0.0):
    """Per row, 0 for a row without a label."""
    log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)
    one_hot = torch.eye(logits.shape[-1])[labels.clamp(min=0)]
    targets = (1 - smoothing) * one_hot + smoothing / logits.shape[-1]
    return -(targets * log_probs).sum(-1) * (labels != -100)


def distillation(logits, teacher_logits, kind, temperature):
    """Per row: T² · Σ p · log(p / q), or the mean square of the difference."""
    if kind == "mse":
        return ((logits - teacher_logits) ** 2).sum(-1) / logits.shape[-1]
    p, q = ((values / temperature).exp() for values in (teacher_logits, logits))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(-1)


def gradient(loss, model):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


class GradientRecorder(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))


class Lab:
    """Models, data sets and trainers of both kinds of student over the same texts and the same teacher."""

    def __init__(self, folder, rows, tokenizers, make_student, make_teacher):
        self.folder, self.tokenizers = folder, tokenizers
        self.texts, self.labels = rows
        self.makers = {
            "bilstm": make_student,
            "bert": lambda **config: make_teacher(**{"seed": 5, **NO_DROPOUT, **config}),
        }
        self.teacher = make_teacher(seed=1)
        with torch.no_grad():
            self.teacher_logits = self.teacher(**self.padded("bert", 96)).logits

    def student(self, kind="bilstm", **config):
        return self.makers[kind](**config)

    def padded(self, kind, size):
        return self.tokenizers[kind](self.texts[:size], padding=True, return_tensors="pt")

    def logits(self, model, size, kind="bilstm"):
        return model(**self.padded(kind, size)).logits

    def dataset(self, size=32, kind="bilstm", teacher="column", unlabelled=False, labels=None):
        columns = dict(self.tokenizers[kind](self.texts[:size]))
        columns["labels"] = self.targets(size, unlabelled).tolist() if labels is None else labels
        if teacher == "column":
            columns["teacher_logits"] = self.teacher_logits[:size].tolist()
        if teacher == "online":
            tokens = self.tokenizers["bert"](self.texts[:size])
            columns.update({f"teacher_{name}": column for name, column in tokens.items()})
        return Dataset.from_dict(columns)

    def targets(self, size, unlabelled=False):
        labels = torch.tensor(self.labels[:size])
        # Irregular: the labels repeat every three rows.
        return labels.masked_fill(torch.arange(size) * 7 % 11 % 3 == 0, -100) if unlabelled else labels

    def trainer(self, model, dataset, kind="bilstm", distil=True, args=None, **kwargs):
        settings = {**PLAIN_SGD, "output_dir": str(self.folder / "run"), **(args or {})}
        kwargs = {"train_dataset": dataset, "processing_class": self.tokenizers[kind], **kwargs}
        if isinstance(model, torch.nn.Module):
            kwargs["model"] = model
        else:
            kwargs["model_init"] = model
        kwargs.setdefault("data_collator", DistillationCollator(self.tokenizers[kind], self.tokenizers["bert"]))
        if distil:
            return DistillationTrainer(args=DistillationTrainingArguments(**settings), **kwargs)
        return ClassificationTrainer(args=TrainingArguments(**settings), **kwargs)

    def step_gradient(self, model, dataset, *args, **kwargs):
        """The gradient of the only optimizer step of an epoch; `model` itself stays as it is."""
        recorder = GradientRecorder()
        self.trainer(copy.deepcopy(model), dataset, *args, callbacks=[recorder], **kwargs).train()
        assert len(recorder.gradients) == 1
        return recorder.gradients[0]


@pytest.fixture(autouse=True, scope="module")
def hurry():
    """One thread: two would wait for each other. Frozen: every `train()` sweeps all that is imported."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def lab(tmp_path, rows, tokenizer, teacher_tokenizer, make_student, make_teacher):
    return Lab(tmp_path, rows, {"bilstm": tokenizer, "bert": teacher_tokenizer}, make_student, make_teacher)


# The gradient of a step


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kd_loss, temperature", [("kl", 1.0), ("kl", 4.0), ("mse", 4.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_of_a_step_is_that_of_the_formula(lab, alpha, temperature, kd_loss, smoothing):
    model = lab.student()
    logits = lab.logits(model, 32)
    task = cross_entropy(logits, lab.targets(32), smoothing)
    kd = distillation(logits, lab.teacher_logits[:32], kd_loss, temperature)
    expected = gradient((alpha * task + (1 - alpha) * kd).mean(), model)
    args = {"alpha": alpha, "temperature": temperature, "kd_loss": kd_loss, "label_smoothing_factor": smoothing}
    assert_same(lab.step_gradient(model, lab.dataset(), args=args), expected)


# (20, 8, 3) and (20, 3, 7) end with a smaller micro-batch; in (12, 1, 12) some have no labelled row at all.
@pytest.mark.parametrize(
    "size, batch, accumulation", [(32, 32, 1), (32, 8, 4), (20, 20, 1), (20, 8, 3), (20, 3, 7), (12, 1, 12)]
)
@pytest.mark.parametrize("unlabelled", [False, True], ids=["labelled", "third-unlabelled"])
@pytest.mark.parametrize("distil", [False, True], ids=["plain", "distil"])
@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_gradient_does_not_depend_on_the_micro_batches(lab, kind, distil, unlabelled, size, batch, accumulation):
    model, targets = lab.student(kind), lab.targets(size, unlabelled)
    logits = lab.logits(model, size, kind)
    task = cross_entropy(logits, targets)
    if distil:  # the mean of the rows, the teacher's part for all of them
        loss = (0.3 * task + 0.7 * distillation(logits, lab.teacher_logits[:size], "kl", 2.0)).mean()
    else:  # what a model of transformers means by its loss: the mean of the rows that count
        loss = task.sum() / (targets != -100).sum()
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args |= {"alpha": 0.3, "temperature": 2.0} if distil else {}
    dataset = lab.dataset(size, kind, "column" if distil else None, unlabelled)
    assert_same(lab.step_gradient(model, dataset, kind, distil, args), gradient(loss, model))


@pytest.mark.parametrize("unlabelled", [False, True], ids=["labelled", "third-unlabelled"])
@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_label_smoothing_without_a_teacher(lab, kind, unlabelled):
    model, targets = lab.student(kind), lab.targets(20, unlabelled)
    loss = cross_entropy(lab.logits(model, 20, kind), targets, 0.2).sum() / (targets != -100).sum()
    args = {"label_smoothing_factor": 0.2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    dataset = lab.dataset(20, kind, None, unlabelled)
    assert_same(lab.step_gradient(model, dataset, kind, False, args), gradient(loss, model))


@pytest.mark.parametrize("how", ["no column", "all -100", "None"])
@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_rows_without_labels_take_the_distillation_part_alone(lab, kind, how):
    model = lab.student(kind)
    kd = distillation(lab.logits(model, 20, kind), lab.teacher_logits[:20], "kl", 4.0)
    dataset = lab.dataset(20, kind, labels={"all -100": [-100] * 20, "None": [None] * 20}.get(how))
    dataset = dataset.remove_columns("labels") if how == "no column" else dataset
    args = {"alpha": 0.3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    assert_same(lab.step_gradient(model, dataset, kind, args=args), gradient(0.7 * kd.mean(), model))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_multi_label_rows_train_with_mse(lab, accumulation):
    model = lab.student(problem_type="multi_label_classification")
    labels = (torch.arange(60).reshape(20, 3) * 5 % 7 % 2).float()
    logits = lab.logits(model, 20)
    probs = logits.sigmoid()
    task = -(labels * probs.log() + (1 - labels) * (1 - probs).log()).mean(-1)
    expected = gradient((0.2 * task + 0.8 * distillation(logits, lab.teacher_logits[:20], "mse", 1.0)).mean(), model)
    args = {"kd_loss": "mse", "per_device_train_batch_size": -(-20 // accumulation)}
    dataset = lab.dataset(20, labels=labels.tolist())
    assert_same(lab.step_gradient(model, dataset, args={**args, "gradient_accumulation_steps": accumulation}), expected)


@pytest.mark.parametrize("config", [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}])
@pytest.mark.parametrize("kd_loss", KD_LOSSES)
def test_divergences_need_labels_that_exclude_each_other(lab, config, kd_loss):
    with pytest.raises(ValueError, match=config["problem_type"]):
        lab.trainer(lab.student(**config), lab.dataset(), args={"kd_loss": kd_loss})
    lab.trainer(lab.student(**config), lab.dataset(), args={"kd_loss": "mse"})


def test_two_logits_are_not_standardized(lab):
    # Always -1 and 1: no gradient.
    with refused("--standardize_logits", "2 labels"):
        lab.trainer(lab.student(num_labels=2), lab.dataset(), args={"standardize_logits": True})
    lab.trainer(lab.student(num_labels=3), lab.dataset(), args={"standardize_logits": True})


# The teacher


@pytest.mark.parametrize("kind, way", [("bilstm", "online"), ("bert", "online"), ("bert", "shared")])
def test_cached_and_online_teacher_train_alike(lab, kind, way):
    args = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 0.5}
    results = []
    for dataset, teacher in ((lab.dataset(40, kind), None), (lab.dataset(40, kind, teacher=way), lab.teacher)):
        model = lab.student(kind)
        start = weights(model)
        trainer = lab.trainer(model, dataset, kind, args=args, teacher=teacher)
        trainer.train()
        assert trainer.state.global_step == 3
        results.append(weights(model) - start)
    assert_same(*results)


def test_column_wins_over_teacher(lab, make_teacher):
    expected = lab.step_gradient(lab.student(), lab.dataset())
    other, calls = make_teacher(seed=9), []
    other.register_forward_hook(lambda *args: calls.append(args))
    assert_same(lab.step_gradient(lab.student(), lab.dataset(), teacher=other), expected)
    assert not calls


def test_teacher_order_permutes_the_teachers_labels(lab):
    expected = lab.step_gradient(lab.student(), lab.dataset())
    place = [2, 0, 1]  # the teacher's label i becomes its label place[i]
    with torch.no_grad():
        for parameter in lab.teacher.classifier.parameters():
            parameter[place] = parameter.clone()
    actual = lab.step_gradient(lab.student(), lab.dataset(teacher="online"), teacher=lab.teacher, teacher_order=place)
    assert_same(actual, expected)
    # A column is in the student's order already.
    actual = lab.step_gradient(lab.student(), lab.dataset(), teacher=lab.teacher, teacher_order=place)
    assert_same(actual, expected)


def test_teacher_is_frozen_and_no_part_of_the_student(lab, make_teacher):
    # Dropout would show in the logits, were it on.
    teacher = make_teacher(hidden_dropout_prob=0.5).train()
    before = weights(teacher)
    modes = []
    teacher.register_forward_hook(lambda module, args, output: modes.append(module.training))
    model = lab.student()
    args = {"per_device_train_batch_size": 8, "weight_decay": 0.5, "optim": "adamw_torch"}
    trainer = lab.trainer(model, lab.dataset(teacher="online"), args=args, teacher=teacher)
    trainer.train()
    assert len(modes) == 4 and not any(modes)
    torch.testing.assert_close(weights(teacher), before, rtol=0, atol=0)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters()}
    trainer.save_model(lab.folder / "saved")
    saved = load_file(lab.folder / "saved" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert not any(weight.requires_grad is False for weight in model.parameters())


@pytest.mark.parametrize("shared", [False, True])
def test_half_precision_teacher_gives_fp32_logits(lab, shared):
    teacher = lab.teacher.to(torch.bfloat16)
    trainer = lab.trainer(lab.student("bert"), lab.dataset(kind="bert", teacher="online"), "bert", teacher=teacher)
    tokens = dict(lab.padded("bert", 32))
    logits, states = trainer.run_teacher(tokens, {}) if shared else trainer.run_teacher({}, tokens)
    assert states is None
    assert logits.dtype == torch.float32 and not logits.requires_grad
    torch.testing.assert_close(logits, lab.teacher_logits[:32], rtol=0.1, atol=0.2)


def test_training_needs_a_teacher_or_its_logits(lab):
    with pytest.raises(ValueError, match="teacher"):
        lab.trainer(lab.student(), lab.dataset(teacher=None)).train()


@pytest.mark.parametrize("args", [None, TrainingArguments("unused", report_to="none", use_cpu=True)])
def test_plain_training_arguments_are_refused(lab, args):
    with pytest.raises(ValueError, match="DistillationTrainingArguments"):
        DistillationTrainer(lab.student(), args, train_dataset=lab.dataset())


# States of student and teacher


def relation_loss(states, teacher_states, mask):
    """Per row: mean over pairs of tokens of the squared difference of their cosines."""
    losses = []
    for one, other, real in zip(states, teacher_states, mask != 0, strict=True):
        cosines = [torch.nn.functional.cosine_similarity(x[None], x[:, None], dim=-1) for x in (one[real], other[real])]
        losses.append((cosines[0] - cosines[1]).square().mean())
    return torch.stack(losses)


STATES = {"hidden_loss_weight": 2.0, "embedding_loss_weight": 0.5, "alpha": 0.3, "temperature": 2.0}


def loss_with_states(lab, model, size, targets):
    """`(loss, kd, hidden, embedding)` per row, written out."""
    batch = lab.padded("bert", size)
    output = model(**batch, output_hidden_states=True)
    with torch.no_grad():
        taught = lab.teacher(**batch, output_hidden_states=True).hidden_states
    kd = distillation(output.logits, lab.teacher_logits[:size], "kl", 2.0)
    hidden, embedding = (
        relation_loss(output.hidden_states[place], taught[place], batch["attention_mask"]) for place in (-1, 0)
    )
    task = cross_entropy(output.logits, targets)
    return 0.3 * task + 0.7 * (kd + 2.0 * hidden + 0.5 * embedding), kd, hidden, embedding


def student_of(lab, kind):
    """A student of the teacher's tokens: a transformer, or a BiLSTM as large as its vocabulary."""
    return lab.student("bert") if kind == "bert" else lab.student(vocab_size=len(lab.tokenizers["bert"]))


@pytest.mark.parametrize("batch, accumulation", [(20, 1), (8, 3)])
@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_states_are_a_part_of_the_teachers_part(lab, kind, batch, accumulation):
    model, targets = student_of(lab, kind), lab.targets(20, unlabelled=True)
    loss, kd, hidden, embedding = loss_with_states(lab, model, 20, targets)
    args = {**STATES, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    dataset = lab.dataset(20, "bert", "shared", unlabelled=True)
    assert_same(lab.step_gradient(model, dataset, "bert", args=args, teacher=lab.teacher), gradient(loss.mean(), model))
    trainer = lab.trainer(model, None, "bert", args=STATES, teacher=lab.teacher, eval_dataset=dataset)
    metrics = trainer.evaluate()
    for name, values in (("loss", loss), ("kd_loss", kd), ("hidden_loss", hidden), ("embedding_loss", embedding)):
        assert metrics[f"eval_{name}"] == pytest.approx(float(values.detach().mean()), rel=1e-4)
    # The states are nobody's prediction.
    predictions = trainer.predict(dataset).predictions
    assert isinstance(predictions, np.ndarray) and predictions.shape == (20, 3)


def test_equal_models_have_equal_states(lab):
    model = copy.deepcopy(lab.teacher)
    dataset = lab.dataset(20, "bert", "shared")
    metrics = lab.trainer(model, None, "bert", args=STATES, teacher=lab.teacher, eval_dataset=dataset).evaluate()
    assert metrics["eval_hidden_loss"] < 1e-10 and metrics["eval_embedding_loss"] < 1e-10


@pytest.mark.parametrize("settings", [{"adversarial": "fgm"}, {"adversarial": "freelb"}, {"bf16": True}])
def test_states_are_learnt_under_attack_and_in_half_precision(lab, settings):
    model = student_of(lab, "bilstm")
    args = {"hidden_loss_weight": 5.0, "embedding_loss_weight": 5.0, "optim": "adamw_torch", "learning_rate": 0.02}
    args |= {"num_train_epochs": 10, "per_device_train_batch_size": 16, **settings}
    dataset = lab.dataset(48, "bert", "shared")
    trainer = lab.trainer(model, dataset, "bert", args=args, teacher=lab.teacher, eval_dataset=dataset)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_hidden_loss", "eval_embedding_loss"):
        assert after[name] < 0.7 * before[name]


def test_a_bilstm_teaches_a_bilstm_its_states_with_and_without_a_mask(lab):
    student, teacher = lab.student(), lab.student(seed=3, hidden_size=11, num_hidden_layers=2)
    args = {"hidden_loss_weight": 1.0, "alpha": 1.0, "kd_loss": "mse"}
    trainer = lab.trainer(student, None, args=args, teacher=teacher)
    batch = lab.padded("bilstm", 20)
    states = [model(**batch, output_hidden_states=True).hidden_states[-1] for model in (student, teacher)]
    expected = relation_loss(*states, batch["attention_mask"]).mean()
    for names in (["input_ids", "attention_mask"], ["input_ids"]):
        inputs = {name: batch[name] for name in names}
        trainer.compute_loss(student, {**inputs, "labels": lab.targets(20)})
        assert trainer.take_parts("train")["hidden_loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_states_of_other_tokens_are_refused(lab, tmp_path):
    args, teacher = {"hidden_loss_weight": 1.0}, lab.teacher
    with refused("hidden_loss_weight", "no teacher", "pass a teacher="):
        lab.trainer(lab.student(), lab.dataset(), args=args)
    with refused("hidden_loss_weight", "tokenizer of its own"):
        lab.trainer(
            lab.student(), lab.dataset(), args=args, teacher=teacher, teacher_processing_class=lab.tokenizers["bert"]
        )
    for way in ("column", "online"):
        with refused("hidden_loss_weight", "columns of the teacher"):
            lab.trainer(lab.student(), lab.dataset(teacher=way), args=args, teacher=teacher).train()
    tuples = student_of(lab, "bilstm")
    tuples.config.return_dict = False
    with refused("student", "no hidden_states"):
        lab.trainer(tuples, lab.dataset(20, "bert", "shared"), "bert", args=args, teacher=teacher).train()


# Logs and evaluation


@pytest.mark.parametrize("teacher", ["column", "online"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_losses_mix_to_the_loss(lab, teacher, accumulation):
    args = {"alpha": 0.3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation}
    args |= {"logging_strategy": "steps", "logging_steps": 1}
    trainer = lab.trainer(lab.student(), lab.dataset(20, teacher=teacher), args=args, teacher=lab.teacher)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == trainer.state.global_step > 1
    for entry in logs:
        assert entry["loss"] == pytest.approx(0.3 * entry["task_loss"] + 0.7 * entry["kd_loss"], rel=1e-5)
    assert len({entry["task_loss"] for entry in logs}) == len(logs)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_logged_parts_are_means_of_rows(lab, unlabelled):
    model, targets = lab.student(), lab.targets(24, unlabelled)
    logits = lab.logits(model, 24).detach()
    task = cross_entropy(logits, targets)[targets != -100].mean()
    kd = distillation(logits, lab.teacher_logits[:24], "kl", 2.0).mean()
    args = {"learning_rate": 0.0, "temperature": 2.0, "per_device_train_batch_size": 8, "num_train_epochs": 2}
    args |= {"logging_strategy": "epoch"}
    trainer = lab.trainer(model, lab.dataset(24, unlabelled=unlabelled), args=args)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert entry["task_loss"] == pytest.approx(float(task), rel=1e-5)
        assert entry["kd_loss"] == pytest.approx(float(kd), rel=1e-5)


def test_second_training_logs_nothing_of_the_first(lab):
    # Three steps, a log after two: the third step's sums are left over.
    args = {"learning_rate": 0.0, "per_device_train_batch_size": 8, "logging_strategy": "steps", "logging_steps": 2}
    model = lab.student()
    trainer = lab.trainer(model, lab.dataset(24), args=args)
    trainer.train()
    trainer.train_dataset = lab.dataset(96).select(range(80, 96))
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    logits = lab.logits(model, 96)[80:].detach()
    assert entry["task_loss"] == pytest.approx(float(cross_entropy(logits, lab.targets(96)[80:]).mean()), rel=1e-5)
    kd = distillation(logits, lab.teacher_logits[80:], "kl", 4.0).mean()
    assert entry["kd_loss"] == pytest.approx(float(kd), rel=1e-5)


@pytest.mark.parametrize("teacher", ["column", "online", "shared"])
def test_evaluation_scores_both_parts(lab, teacher):
    kind = "bert" if teacher == "shared" else "bilstm"
    model = lab.student(kind)
    with torch.no_grad():
        logits = lab.logits(model, 20, kind)
    expected = {
        "task_loss": float(cross_entropy(logits, lab.targets(20)).mean()),
        "kd_loss": float(distillation(logits, lab.teacher_logits[:20], "kl", 4.0).mean()),
    }
    expected["loss"] = 0.3 * expected["task_loss"] + 0.7 * expected["kd_loss"]
    trainer = lab.trainer(
        model,
        None,
        kind,
        args={"alpha": 0.3, "per_device_eval_batch_size": 8},
        eval_dataset=lab.dataset(20, kind, teacher),
        teacher=None if teacher == "column" else lab.teacher,
    )
    for prefix, metrics in (
        ("eval", trainer.evaluate()),
        ("test", trainer.predict(trainer.eval_dataset).metrics),
        ("eval", trainer.evaluate()),
        ("eval_other", trainer.evaluate({"other": trainer.eval_dataset})),
    ):
        for name, value in expected.items():
            assert metrics[f"{prefix}_{name}"] == pytest.approx(value, rel=1e-4)


def test_evaluation_without_a_teacher_has_the_task_loss_alone(lab):
    model = lab.student()
    trainer = lab.trainer(model, None, eval_dataset=lab.dataset(20, teacher=None))
    metrics = trainer.evaluate()
    expected = float(cross_entropy(lab.logits(model, 20).detach(), lab.targets(20)).mean())
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_task_loss"] == pytest.approx(expected, rel=1e-5)
    assert "eval_kd_loss" not in metrics


@pytest.mark.parametrize("teacher", [None, "column", "online"])
def test_prediction_needs_no_labels(lab, teacher):
    model = lab.student()
    trainer = lab.trainer(model, None, args={"per_device_eval_batch_size": 8}, teacher=lab.teacher if teacher else None)
    output = trainer.predict(lab.dataset(20, teacher=teacher).remove_columns("labels"))
    with torch.no_grad():
        np.testing.assert_allclose(output.predictions, lab.logits(model, 20).numpy(), rtol=1e-4, atol=1e-6)
    assert output.label_ids is None


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_predictions_and_metrics_see_plain_logits_in_the_order_of_the_data(lab, kind, distil):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    args = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4}
    args |= {"per_device_eval_batch_size": 8, "logging_strategy": "steps", "logging_steps": 1}
    dataset = lab.dataset(40, kind, "column" if distil else None)
    model = lab.student(kind)
    trainer = lab.trainer(model, dataset, kind, distil, args, eval_dataset=dataset, compute_metrics=compute_metrics)
    trainer.train()
    output = trainer.predict(dataset)
    assert trainer.evaluate()["eval_rows"] == 40 and output.metrics["test_rows"] == 40
    with torch.no_grad():
        expected = lab.logits(model.eval(), 40, kind).numpy()
    for predictions, labels in ((output.predictions, output.label_ids), *((p.predictions, p.label_ids) for p in seen)):
        assert isinstance(predictions, np.ndarray)
        np.testing.assert_allclose(predictions, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(labels, lab.labels[:40])


# Inside the Trainer


@pytest.mark.parametrize("teacher", ["column", "online"])
def test_collator_gets_the_columns_of_both_models_and_no_others(lab, teacher):
    seen = set()
    collator = DistillationCollator(lab.tokenizers["bilstm"], lab.tokenizers["bert"])

    def spy(rows):
        seen.update(*rows)
        return collator(rows)

    dataset = lab.dataset(teacher=teacher)
    dataset = dataset.add_column("note", ["note"] * 32).add_column("teacher_note", ["note"] * 32)
    trainer = lab.trainer(lab.student(), dataset, data_collator=spy, teacher=lab.teacher)
    assert trainer.args.remove_unused_columns
    trainer.train()
    kept = {"teacher_logits"} if teacher == "column" else {"teacher_input_ids", "teacher_attention_mask"}
    assert seen - {"teacher_token_type_ids"} == {"input_ids", "attention_mask", "labels"} | kept


def test_default_collator_pads_both_sides(lab):
    expected = lab.step_gradient(lab.student(), lab.dataset())
    args = {"data_collator": None, "teacher": lab.teacher, "teacher_processing_class": lab.tokenizers["bert"]}
    assert_same(lab.step_gradient(lab.student(), lab.dataset(teacher="online"), **args), expected)


@pytest.mark.parametrize("distil", [False, True])
def test_bf16_autocast_trains_fp32_weights_with_an_fp32_loss(lab, distil):
    model = lab.student("bert")
    before, dtypes, dtypes_of_logits = weights(model), [], []
    args = {"bf16": True, "per_device_train_batch_size": 8}
    dataset = lab.dataset(32, "bert", "online" if distil else None)
    trainer = lab.trainer(model, dataset, "bert", distil, args, **({"teacher": lab.teacher} if distil else {}))
    compute_loss = trainer.compute_loss

    def spy(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        dtypes.append(loss.dtype)
        return loss

    model.classifier.register_forward_hook(lambda module, args, output: dtypes_of_logits.append(output.dtype))
    trainer.compute_loss = spy
    trainer.train()
    assert dtypes == [torch.float32] * 4 and set(dtypes_of_logits) == {torch.bfloat16}
    assert weights(model).dtype == torch.float32 and weights(model).isfinite().all()
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("distil", [False, True])
def test_evaluation_before_and_during_training_changes_nothing(lab, distil):
    # One step an epoch without dropout: the random order, which evaluation shifts, does not count.
    results = []
    for evaluate in (False, True):
        model, dataset = lab.student(), lab.dataset(20, teacher="column" if distil else None)
        args = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "num_train_epochs": 3}
        args |= {"eval_strategy": "epoch" if evaluate else "no", "per_device_eval_batch_size": 7, "learning_rate": 1.0}
        trainer = lab.trainer(model, dataset, distil=distil, args=args, eval_dataset=dataset)
        start = weights(model)
        if evaluate:
            trainer.evaluate()
        trainer.train()
        assert trainer.state.global_step == 3
        results.append(weights(model) - start)
    assert_same(*results)


def test_early_stopping_stops_a_student_that_does_not_learn(lab):
    class Counter(TrainerCallback):
        evaluations = 0

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.evaluations += 1
            assert metrics["eval_kd_loss"] > 0

    counter = Counter()
    args = {"learning_rate": 0.0, "num_train_epochs": 9, "eval_strategy": "epoch", "save_strategy": "epoch"}
    args |= {"load_best_model_at_end": True, "metric_for_best_model": "kd_loss", "greater_is_better": False}
    callbacks = [EarlyStoppingCallback(early_stopping_patience=2), counter]
    trainer = lab.trainer(lab.student(), lab.dataset(), args=args, eval_dataset=lab.dataset(), callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == counter.evaluations == 3


def test_best_model_is_loaded_at_the_end(lab):
    scores = iter([0.1, 0.9, 0.3])
    args = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}
    args |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    model = lab.student()
    trainer = lab.trainer(
        model,
        lab.dataset(),
        args=args,
        eval_dataset=lab.dataset(),
        compute_metrics=lambda prediction: {"score": next(scores)},
    )
    trainer.train()
    saved = [load_file(lab.folder / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)]
    assert all(torch.equal(weight, saved[1][name]) for name, weight in model.state_dict().items())
    assert not torch.equal(saved[1]["classifier.weight"], saved[2]["classifier.weight"])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("way", [None, "column", "online"], ids=["plain", "column", "online"])
def test_resumed_training_ends_with_the_same_bits(lab, way, strategy):
    args = {"optim": "adamw_torch", "lr_scheduler_type": "linear", "num_train_epochs": 2, "save_strategy": "steps"}
    args |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 1}
    args |= {"train_sampling_strategy": strategy}
    kwargs = {"teacher": lab.teacher} if way == "online" else {}
    results = []
    # From the middle of an epoch, from its end, from the middle of the next.
    for step in (None, 2, 4, 6):
        model = lab.student(dropout=0.3, seed=0 if step is None else 7)
        folder = str(lab.folder / f"run-{step}")
        dataset = lab.dataset(32, teacher=way)
        trainer = lab.trainer(model, dataset, distil=way is not None, args={**args, "output_dir": folder}, **kwargs)
        checkpoint = None if step is None else str(lab.folder / "run-None" / f"checkpoint-{step}")
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 8
        results.append(weights(model))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_model_init_trains_like_the_model(lab):
    trainer = lab.trainer(lambda: lab.student(), lab.dataset(teacher="online"), teacher=lab.teacher)
    trainer.train()
    model = lab.student()
    lab.trainer(model, lab.dataset(teacher="online"), teacher=lab.teacher).train()
    assert_same(weights(trainer.model), weights(model))


def test_hyperparameter_search_tries_alphas(lab, monkeypatch):
    """Through the Trainer's own search, its backend replaced by a loop over a grid."""
    grid = [{"alpha": 0.0, "learning_rate": 0.0}, {"alpha": 0.0, "learning_rate": 1.0}, {"alpha": 1.0}]
    losses = []

    class GridBackend(hyperparameter_search.HyperParamSearchBackendBase):
        name = "wandb"

        @staticmethod
        def is_available():
            return True

        def default_hp_space(self, trial):
            return trial

        def run(self, trainer, n_trials, direction):
            for trial in grid[:n_trials]:
                trainer._hp_search_setup(trial)
                trainer.train()
                losses.append(trainer.evaluate())
            best = min(range(n_trials), key=lambda number: losses[number]["eval_kd_loss"])
            return BestRun(str(best), losses[best]["eval_kd_loss"], grid[best])

    backends = hyperparameter_search.ALL_HYPERPARAMETER_SEARCH_BACKENDS
    monkeypatch.setitem(backends, HPSearchBackend.WANDB, GridBackend)
    args = {"num_train_epochs": 4}
    trainer = lab.trainer(lambda: lab.student(), lab.dataset(), args=args, eval_dataset=lab.dataset())
    best = trainer.hyperparameter_search(backend="wandb", n_trials=3, direction="minimize")
    assert best.run_id == "1"
    assert losses[2]["eval_loss"] == pytest.approx(losses[2]["eval_task_loss"], rel=1e-5)
    # Each trial starts from the same student: the first one did not move.
    student = lab.student()
    with torch.no_grad():
        kd = distillation(lab.logits(student, 32), lab.teacher_logits[:32], "kl", 4.0).mean()
    assert losses[0]["eval_kd_loss"] == pytest.approx(float(kd), rel=1e-4)


def test_only_the_ngrams_have_a_higher_rate(lab):
    student = lab.student(ngram_buckets=64, sparse_embeddings=True)
    trainer = lab.trainer(student, lab.dataset(), args={"optim": "adamw_torch"})
    assert trainer.create_optimizer().row_rates == {student.ngrams.table.weight: 5.0}


def test_sparse_embeddings_are_trained_as_dense_ones_where_every_batch_has_the_same_tokens(lab):
    args = {"optim": "adamw_torch", "learning_rate": 0.01, "max_grad_norm": 0.1, "num_train_epochs": 4}
    args["per_device_train_batch_size"] = 32
    found = []
    for sparse in (False, True):
        student = lab.student(sparse_embeddings=sparse)
        first = weights(student)
        lab.trainer(student, lab.dataset(), args=args).train()
        found.append(weights(student))
    assert not torch.allclose(found[0], first, atol=1e-3)
    assert_same(found[1], found[0])


def test_a_sparse_gradient_is_clipped_in_every_trial_of_a_search(lab):
    # A trial has an accelerator of its own, whose clipping knows dense gradients alone.
    args = {"optim": "adamw_torch", "max_grad_norm": 0.1}
    trainer = lab.trainer(lambda: lab.student(ngram_buckets=64), lab.dataset(), args=args)
    trainer.train()
    first = weights(trainer.model)
    trainer.create_accelerator_and_postprocess()
    trainer.train()
    assert_same(weights(trainer.model), first)


def test_online_teacher_is_matched_by_label_names(make_student, make_teacher, tokenizer, rows, tmp_path):
    dataset = tokenize(Dataset.from_dict({"text": rows[0], "labels": rows[1]}), tokenizer, 16)
    args = DistillationTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")

    def losses(teacher):
        trainer = DistillationTrainer(make_student(), args, teacher=teacher, processing_class=tokenizer)
        return trainer.evaluate(dataset)["eval_kd_loss"]

    teacher, turned = make_teacher(), make_teacher()
    order = [2, 0, 1]
    turned.classifier.load_state_dict({name: value[order] for name, value in teacher.classifier.state_dict().items()})
    turned.config.update(describe_labels([LABEL_NAMES[index] for index in order]))
    assert losses(turned) == pytest.approx(losses(teacher), rel=1e-5)
    turned.config.update(describe_labels(["甲", "乙", "丙"]))
    with pytest.raises(ValueError, match="teacher has labels"):
        losses(turned)


def test_teacher_with_another_tokenizer_never_reads_the_students_ids(
    make_student, make_teacher, tokenizer, teacher_tokenizer, rows, tmp_path
):
    dataset = tokenize(Dataset.from_dict({"text": rows[0], "labels": rows[1]}), tokenizer, 16)
    args = DistillationTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = DistillationTrainer(
        make_student(), args, teacher=make_teacher(), processing_class=tokenizer,
        teacher_processing_class=teacher_tokenizer, train_dataset=dataset,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no teacher_input_ids"):
        trainer.train()


def padded_tokens(trainer, run):
    """How many padding positions the student reads while `run` goes on, and how many batches."""
    counts = []

    def count(module, args, kwargs):
        counts.append(int((kwargs["attention_mask"] == 0).sum()))

    handle = trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    run()
    handle.remove()
    return sum(counts), len(counts)


def ragged(lab, size=64):
    """A data set of rows of very different lengths."""
    lengths = np.random.default_rng(1).permutation(size) % 64
    rows = {"input_ids": [[2 + n % 5] * n for n in lengths], "attention_mask": [[1] * n for n in lengths]}
    return Dataset.from_dict({**rows, "labels": [int(n) % 3 for n in lengths]})


def test_batches_of_similar_length_hardly_pad(lab):
    dataset, padding = ragged(lab, 512), {}
    for strategy in ("random", "group_by_length"):
        args = {"train_sampling_strategy": strategy, "per_device_train_batch_size": 8}
        trainer = lab.trainer(lab.student(), dataset, "bilstm", False, args)
        padding[strategy], batches = padded_tokens(trainer, trainer.train)
        assert batches == 64
    assert padding["group_by_length"] < padding["random"] / 4


def test_the_order_of_an_epoch_is_its_own():
    number, orders = [0], []
    sampler = LengthGrouped(4, list(range(40)), 3, lambda: number[0])
    for epoch in (0, 1, 0):
        torch.rand(epoch + 1)  # the global random state does not matter
        number[0] = epoch
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == list(range(40))


@pytest.mark.parametrize("metrics", [True, False])
def test_evaluation_hardly_pads_and_answers_in_the_order_of_the_data(lab, metrics):
    dataset = ragged(lab)
    trainer = lab.trainer(lab.student(), dataset, "bilstm", False, {"per_device_eval_batch_size": 8})
    if metrics:
        trainer.compute_metrics = lambda answer: {"n": float((answer.label_ids == answer.label_ids).sum())}
    outputs = []
    padding, batches = padded_tokens(trainer, lambda: outputs.append(trainer.predict(dataset)))
    assert batches == 8 and padding <= 8 * 28
    trainer.evaluate(dataset.select(range(5)))  # another data set in between
    other = trainer.predict(dataset.select(range(40, 64)))
    assert outputs[0].label_ids.tolist() == dataset["labels"][:]
    with torch.no_grad():
        for row, logits in zip(dataset, outputs[0].predictions, strict=True):
            ids = torch.tensor([row["input_ids"]], dtype=torch.long)
            expected = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(other.predictions, outputs[0].predictions[40:], atol=1e-5)


@pytest.mark.parametrize("flags", [{"dataloader_drop_last": True}, {"eval_do_concat_batches": False}])
def test_evaluation_that_does_not_give_one_answer_a_row_keeps_the_order_of_the_data(lab, flags):
    dataset = ragged(lab, 20)
    trainer = lab.trainer(lab.student(), dataset, "bilstm", False, {"per_device_eval_batch_size": 8, **flags})
    labels = trainer.predict(dataset).label_ids
    assert (
        np.concatenate(np.atleast_2d(labels) if "dataloader_drop_last" in flags else labels).tolist()
        == (dataset["labels"][: len(np.hstack(labels))])
    )


@pytest.mark.parametrize("kd_loss", ["kl", "ce", "dkd", "mse"])
@pytest.mark.parametrize("standard", [False, True])
def test_alpha_and_temperature_go_in_a_straight_line(lab, kd_loss, standard):
    from kd_trainer import losses

    functions = {"kl": "kl_distillation_loss", "ce": "soft_cross_entropy_loss", "dkd": "decoupled_distillation_loss"}
    args = {"alpha": 0.2, "final_alpha": 0.8, "temperature": 4.0, "final_temperature": 2.0}
    args |= {"kd_loss": kd_loss, "standardize_logits": standard}
    model = lab.student()
    trainer = lab.trainer(model, lab.dataset(), args=args)
    logits, teacher_logits = lab.logits(model, 32), lab.teacher_logits[:32]
    task = torch.nn.functional.cross_entropy(logits, lab.targets(32))
    if standard:
        logits, teacher_logits = losses.standardize_logits(logits), losses.standardize_logits(teacher_logits)
    batch = {**lab.padded("bilstm", 32), "labels": lab.targets(32), "teacher_logits": lab.teacher_logits[:32]}
    trainer.state.max_steps = 10
    for step, alpha, temperature in ((0, 0.2, 4.0), (5, 0.5, 3.0), (10, 0.8, 2.0)):
        trainer.state.global_step = step
        if kd_loss == "mse":
            kd = losses.logit_mse_loss(logits, teacher_logits).mean()
        else:
            kd = getattr(losses, functions[kd_loss])(logits, teacher_logits, temperature).mean()
        torch.testing.assert_close(trainer.batch_loss(model, batch)[0], alpha * task + (1 - alpha) * kd)
