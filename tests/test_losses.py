"""The losses against numpy in float64, torch's own losses and closed forms of their gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kd_trainer.losses import (
    cross_entropy_loss,
    decoupled_distillation_loss,
    kl_distillation_loss,
    logit_mse_loss,
    soft_cross_entropy_loss,
    standardize_logits,
    task_loss,
    token_relation_loss,
)

TEMPERATURES = [0.5, 1.0, 2.0, 4.0, 8.0, 20.0]
ROWS, LABELS = 32, 5


def draw_logits(seed, scale=3.0, shape=(ROWS, LABELS)):
    """Random logits whose binary values are exact in float32."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def log_softmax(logits, temperature=1.0):
    """In float64, written out."""
    scaled = np.asarray(logits.detach(), dtype=np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def gradient_of(loss, student_logits, *args):
    """Gradient of the summed loss with respect to the student's logits."""
    student_logits = student_logits.clone().requires_grad_()
    return torch.autograd.grad(loss(student_logits, *args).sum(), student_logits)[0]


def random_labels(kind, seed=2):
    """Labels of `ROWS` rows, of which the third has none."""
    random = np.random.default_rng(seed)
    labels = {
        "single_label_classification": torch.from_numpy(random.integers(0, LABELS, ROWS)),
        "multi_label_classification": torch.from_numpy(random.integers(0, 2, (ROWS, LABELS)).astype(np.float32)),
        "regression": draw_logits(seed),
    }[kind]
    labels[2] = -100
    return labels


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("seed", range(3))
def test_kd_loss_equals_numpy(seed, temperature):
    student, teacher = draw_logits(seed), draw_logits(seed + 100)
    teacher_log, student_log = log_softmax(teacher, temperature), log_softmax(student, temperature)
    expected = temperature**2 * (np.exp(teacher_log) * (teacher_log - student_log)).sum(axis=1)
    losses = kl_distillation_loss(student, teacher, temperature)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6 * temperature**2)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_mean_of_kd_loss_is_torchs_batchmean_times_squared_temperature(temperature):
    student, teacher = draw_logits(0), draw_logits(1)
    reference = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(
        kl_distillation_loss(student, teacher, temperature).mean(), reference * temperature**2, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_loss_is_zero_for_equal_logits(temperature):
    logits = draw_logits(0)
    assert (kl_distillation_loss(logits, logits.clone(), temperature) == 0).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_loss_is_positive_for_different_distributions(temperature):
    assert (kl_distillation_loss(draw_logits(0), draw_logits(1), temperature) > 0).all()


def test_kd_loss_ignores_a_constant_added_to_a_row():
    logits = draw_logits(0)
    losses = kl_distillation_loss(logits + 7 * torch.arange(ROWS)[:, None], logits)
    torch.testing.assert_close(losses, torch.zeros(ROWS), atol=1e-4, rtol=0)


def test_kd_loss_is_not_symmetric():
    student, teacher = draw_logits(0), draw_logits(1)
    assert not torch.allclose(kl_distillation_loss(student, teacher), kl_distillation_loss(teacher, student))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_gradient_is_temperature_times_difference_of_probabilities(temperature):
    student, teacher = draw_logits(0), draw_logits(1)
    expected = temperature * (np.exp(log_softmax(student, temperature)) - np.exp(log_softmax(teacher, temperature)))
    gradient = gradient_of(kl_distillation_loss, student, teacher, temperature)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * max(1, temperature))


def test_kd_gradient_approaches_centred_logit_difference_at_high_temperature():
    student, teacher = draw_logits(0, scale=1), draw_logits(1, scale=1)
    difference = student - teacher
    limit = (difference - difference.mean(dim=1, keepdim=True)) / LABELS
    errors = [
        (gradient_of(kl_distillation_loss, student, teacher, temperature) - limit).abs().max().item()
        for temperature in (10.0, 100.0, 1000.0)
    ]
    # The error falls as 1 / T.
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5 and errors[2] < 2e-3


def test_squared_temperature_keeps_the_gradients_scale():
    student, teacher = draw_logits(0, scale=1), draw_logits(1, scale=1)
    norms = [gradient_of(kl_distillation_loss, student, teacher, float(t)).norm().item() for t in (10, 20, 40, 80)]
    assert max(norms) / min(norms) < 1.1


@pytest.mark.parametrize("seed", range(3))
def test_logit_mse_equals_numpy_and_is_zero_only_for_equal_logits(seed):
    student, teacher = draw_logits(seed), draw_logits(seed + 100)
    expected = ((student.double() - teacher.double()) ** 2).numpy().mean(axis=1)
    np.testing.assert_allclose(logit_mse_loss(student, teacher), expected, rtol=1e-5)
    assert (logit_mse_loss(student, teacher) > 0).all()
    assert (logit_mse_loss(student, student.clone()) == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_numpy_and_is_zero_without_a_label(label_smoothing):
    logits, labels = draw_logits(0), random_labels("single_label_classification")
    targets = np.eye(LABELS)[labels.clamp(min=0)] * (1 - label_smoothing) + label_smoothing / LABELS
    expected = np.where(labels == -100, 0, -(targets * log_softmax(logits)).sum(axis=1))
    np.testing.assert_allclose(cross_entropy_loss(logits, labels, label_smoothing), expected, rtol=1e-5, atol=1e-6)


def test_task_loss_of_single_labels_is_cross_entropy():
    logits, labels = draw_logits(0), random_labels("single_label_classification")
    losses = task_loss(logits, labels, "single_label_classification", label_smoothing=0.1)
    assert torch.equal(losses, cross_entropy_loss(logits, labels, 0.1))


@pytest.mark.parametrize("seed", range(3))
def test_task_loss_of_multi_labels_equals_numpy(seed):
    logits, labels = draw_logits(seed), random_labels("multi_label_classification", seed)
    signs, scores = 2 * labels.numpy() - 1, logits.numpy().astype(np.float64)
    expected = np.log1p(np.exp(-signs * scores)).mean(axis=1)
    expected[2] = 0
    np.testing.assert_allclose(task_loss(logits, labels, "multi_label_classification"), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, LABELS)])
def test_task_loss_of_regression_equals_numpy(shape):
    targets = draw_logits(1, shape=shape)
    targets[2] = -100
    logits = draw_logits(0, shape=(ROWS, 1) if len(shape) == 1 else shape)
    expected = ((logits.double() - targets.double().reshape(logits.shape)) ** 2).numpy().mean(axis=1)
    expected[2] = 0
    np.testing.assert_allclose(task_loss(logits, targets, "regression"), expected, rtol=1e-5)


PROBLEM_TYPES = ["single_label_classification", "multi_label_classification", "regression"]


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_row_without_a_label_has_no_gradient(problem_type):
    gradient = gradient_of(task_loss, draw_logits(0), random_labels(problem_type), problem_type)
    assert (gradient[2] == 0).all()
    assert (gradient[[0, 1, 3]].abs().sum(dim=1) > 0).all()


def every_loss(student_logits, teacher_logits):
    """Each loss of the module for one pair of logits, by name."""
    losses = {f"kl at {t}": kl_distillation_loss(student_logits, teacher_logits, t) for t in (1.0, 4.0)}
    losses["mse"] = logit_mse_loss(student_logits, teacher_logits)
    losses["smoothed"] = cross_entropy_loss(student_logits, random_labels(PROBLEM_TYPES[0]), 0.1)
    losses.update({kind: task_loss(student_logits, random_labels(kind), kind) for kind in PROBLEM_TYPES})
    return losses


def test_extreme_logits_give_finite_losses_and_gradients():
    student, teacher = (1e4 * draw_logits(seed).sign() for seed in (0, 1))
    student.requires_grad_()
    for name, losses in every_loss(student, teacher).items():
        assert losses.isfinite().all(), name
        assert torch.autograd.grad(losses.sum(), student)[0].isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(dtype):
    # 300: its squared difference is more than float16 can hold.
    student, teacher = draw_logits(0, scale=300).to(dtype), draw_logits(1, scale=300).to(dtype)
    reference = every_loss(student.float(), teacher.float())
    for name, losses in every_loss(student, teacher).items():
        assert losses.dtype == torch.float32 and torch.equal(losses, reference[name]), name


@pytest.mark.parametrize(
    "loss", [kl_distillation_loss, logit_mse_loss, soft_cross_entropy_loss, decoupled_distillation_loss]
)
@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))])
def test_logits_that_do_not_match_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="same labels"):
        loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(ValueError, match="temperature"):
        kl_distillation_loss(draw_logits(0), draw_logits(1), temperature)


@pytest.mark.parametrize("problem_type", [None, "ranking"])
@pytest.mark.parametrize("kind", ["single_label_classification", "regression"])
def test_unknown_problem_type_is_refused(kind, problem_type):
    with pytest.raises(ValueError, match="problem_type"):
        task_loss(draw_logits(0), random_labels(kind), problem_type)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("shape", [(3, 2), (6,), (2,)])
def test_labels_of_another_shape_are_refused(problem_type, shape):
    with pytest.raises(ValueError):
        task_loss(torch.zeros(2, 3), torch.zeros(shape), problem_type)


def pair(seed, rows=6, labels=5):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(rows, labels, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy(temperature):
    student, teacher = pair(0)
    student.requires_grad_()
    probs = np.exp(teacher.double().numpy() / temperature)
    probs /= probs.sum(axis=-1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(axis=-1) * temperature**2
    soft = soft_cross_entropy_loss(student, teacher, temperature)
    kl = kl_distillation_loss(student, teacher, temperature)
    np.testing.assert_allclose((soft - kl).detach().numpy(), entropy, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (soft, kl)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_decoupled_parts_make_up_the_divergence(temperature):
    student, teacher = pair(1)
    at_target = F.softmax(teacher / temperature, dim=-1).amax(dim=-1)
    target = decoupled_distillation_loss(student, teacher, temperature, 1.0, 0.0)
    others = decoupled_distillation_loss(student, teacher, temperature, 0.0, 1.0)
    expected = kl_distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(target + (1 - at_target) * others, expected, rtol=1e-3, atol=1e-3)
    weighted = decoupled_distillation_loss(student, teacher, temperature, 2.0, 0.5)
    torch.testing.assert_close(weighted, 2 * target + 0.5 * others)
    assert decoupled_distillation_loss(teacher, teacher, temperature).abs().max() < 1e-3


def test_decoupled_loss_of_two_labels_is_that_of_the_target_alone():
    student, teacher = pair(2, labels=2)
    torch.testing.assert_close(
        decoupled_distillation_loss(student, teacher, 2.0, 1.0, 8.0), kl_distillation_loss(student, teacher, 2.0)
    )


def test_standard_logits_know_neither_scale_nor_shift():
    logits, _ = pair(3)
    found = standardize_logits(logits)
    values = logits.numpy()
    expected = (values - values.mean(-1, keepdims=True)) / values.std(-1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(standardize_logits(7 * logits + 3), found, rtol=1e-4, atol=1e-4)
    assert standardize_logits(torch.ones(1, 3)).isfinite().all()


def test_new_losses_are_finite_for_extreme_logits():
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0]])
    for loss in (soft_cross_entropy_loss, decoupled_distillation_loss):
        value = loss(student, teacher, 1.0)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all() and gradient.isfinite().all()
        for temperature in (0.0, float("nan")):
            with pytest.raises(ValueError, match="temperature"):
                loss(student, teacher, temperature)


# Relations between tokens


def draw_states(seed, width, lengths=(5, 1, 0, 3), size=6):
    """Random states, and a mask in which row i has `lengths[i]` real tokens, not all at one end."""
    mask = torch.zeros(len(lengths), size, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, row % 2 : row % 2 + length] = 1
    return draw_logits(seed, shape=(len(lengths), size, width)), mask


def test_token_relation_loss_equals_a_double_loop():
    (student, mask), (teacher, _) = draw_states(0, 4), draw_states(1, 7)

    def cosine(a, b):
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        return a @ b / np.sqrt((a @ a) * (b @ b))

    expected = []
    for row in range(len(mask)):
        tokens = np.flatnonzero(mask[row])
        squares = [
            (cosine(student[row, i], student[row, j]) - cosine(teacher[row, i], teacher[row, j])) ** 2
            for i in tokens
            for j in tokens
        ]
        expected.append(np.mean(squares) if squares else 0.0)
    assert expected[0] > 0.01
    np.testing.assert_allclose(token_relation_loss(student, teacher, mask), expected, rtol=1e-4, atol=1e-7)


def test_token_relation_loss_sees_angles_alone():
    states, mask = draw_states(0, 4)
    rotation = torch.linalg.qr(draw_logits(5, shape=(4, 4)))[0]
    lengths = draw_logits(6, shape=(*mask.shape, 1)).exp()
    wider = torch.cat([lengths * states @ rotation, torch.zeros(*mask.shape, 3)], dim=-1)
    for same in (states.clone(), wider):
        assert token_relation_loss(states, same, mask).abs().max() < 1e-10
    assert token_relation_loss(states, draw_states(1, 4)[0], mask)[0] > 0.01


def test_token_relation_loss_does_not_see_padding():
    (student, mask), (teacher, _) = draw_states(0, 4), draw_states(1, 7)
    expected = token_relation_loss(student, teacher, mask)
    is_padding = (mask == 0)[..., None]
    student, teacher = (states.masked_fill(is_padding, torch.nan) for states in (student, teacher))
    torch.testing.assert_close(token_relation_loss(student, teacher, mask), expected)
    more = [F.pad(states, (0, 0, 3, 2), value=torch.inf) for states in (student, teacher)]
    torch.testing.assert_close(token_relation_loss(*more, F.pad(mask, (3, 2))), expected)


def test_gradient_of_token_relation_loss_is_finite_and_leaves_padding_alone():
    (student, mask), (teacher, _) = draw_states(0, 4), draw_states(1, 7)
    student[3, 1] = 0  # a state without a direction
    gradient = gradient_of(token_relation_loss, student, teacher, mask)
    assert gradient.isfinite().all() and gradient[0].any() and not gradient[mask == 0].any()
    assert gradient[1].abs().max() < 1e-6  # a single token is like itself to everybody
    empty = torch.zeros(2, 0, 4)
    assert torch.equal(token_relation_loss(empty, empty, torch.zeros(2, 0)), torch.zeros(2))


def test_token_relation_loss_is_not_rounded_by_autocast():
    (student, mask), (teacher, _) = draw_states(0, 4), draw_states(1, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_relation_loss(student, teacher, mask)
    assert torch.equal(loss, token_relation_loss(student, teacher, mask)) and loss.dtype == torch.float32


@pytest.mark.parametrize("shape, mask", [((2, 4, 3), (2, 5)), ((2, 5, 3), (2, 4)), ((2, 5), (2, 5))])
def test_token_relation_loss_refuses_states_of_other_tokens(shape, mask):
    with pytest.raises(ValueError, match="the same tokens"):
        token_relation_loss(torch.zeros(2, 5, 3), torch.zeros(shape), torch.ones(mask))
