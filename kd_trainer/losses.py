"""
Distillation losses as pure functions of logits or states, one value per row: the caller decides how rows are averaged.
"""

import math

import torch
import torch.nn.functional as F


def check_logits(student_logits, teacher_logits):
    """
    Refuse a pair of logits that cannot be compared label by label.

    Raises:
        `ValueError`: If the shapes differ or are not `(batch_size, num_labels)`.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} must both "
            "be (batch_size, num_labels): give both models the same labels"
        )


def check_temperature(temperature):
    """Refuses a temperature that softens nothing; raises `ValueError`."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: it must be positive and finite")


def cross_entropy_loss(student_logits, labels, label_smoothing=0.0):
    """
    Cross-entropy with the hard labels, −Σ_c q_c · log softmax(student_logits)_c, where q is the one-hot label mixed
    with `label_smoothing` of the uniform distribution.

    Args:
        student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label ids; −100 marks a row without a label.
        label_smoothing (`float`, *optional*, defaults to `0.0`): In [0, 1), unitless.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, nats, exactly 0 where the label is −100.

    Source: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567 (label smoothing)

    Example:

    ```python
    >>> import torch
    >>> cross_entropy_loss(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor([1.3863, 0.0000])

    ```
    """
    # float(): under autocast the logits may be half precision, too coarse for a log-sum-exp.
    return F.cross_entropy(
        student_logits.float(), labels, ignore_index=-100, label_smoothing=label_smoothing, reduction="none"
    )


def task_loss(student_logits, labels, problem_type, label_smoothing=0.0):
    """
    The loss against the labels that `transformers` means by `problem_type`, one value per row.

    Args:
        student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.
        labels (`torch.Tensor`): `(batch_size,)` ids for `"single_label_classification"`, `(batch_size, num_labels)` of
            0 and 1 for `"multi_label_classification"`, `(batch_size,)` or `(batch_size, num_labels)` targets for
            `"regression"`; −100 marks a row without a label.
        problem_type (`str`): As in a `transformers` configuration.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Of single labels only.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, 0 for a row without a label: cross-entropy in nats, mean binary
        cross-entropy of the labels in nats, or mean squared error.

    Raises:
        `ValueError`: For another `problem_type`, or labels of another shape.
    """
    if problem_type == "single_label_classification":
        return cross_entropy_loss(student_logits, labels, label_smoothing)
    if problem_type not in ("multi_label_classification", "regression"):
        raise ValueError(f"problem_type is {problem_type!r}: choose one that transformers knows")
    targets = labels[:, None] if labels.dim() == 1 else labels
    if targets.shape != student_logits.shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit student_logits {tuple(student_logits.shape)}: {problem_type} "
            "needs one number for every logit"
        )
    targets = targets.float()
    unlabelled = (targets == -100).any(dim=-1)
    if problem_type == "regression":
        losses = F.mse_loss(student_logits.float(), targets, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(student_logits.float(), targets, reduction="none")
    return losses.mean(dim=-1).masked_fill(unlabelled, 0.0)


def kl_distillation_loss(student_logits, teacher_logits, temperature=1.0):
    """
    T² · KL(teacher ‖ student) between softmax(logits / T); T² keeps the gradient's scale independent of T.
    Its mean over the rows is what `torch` calls `batchmean`.

    Args:
        student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.
        teacher_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled, detached.
        temperature (`float`, *optional*, defaults to `1.0`): Softening T > 0, unitless.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, nats × T².

    Raises:
        `ValueError`: If the shapes differ or `temperature` is not positive.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531

    Example:

    ```python
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kl_distillation_loss(logits, logits, temperature=4.0)
    tensor([0.])

    ```
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    # F.kl_div takes (input, target): reversed from the paper. log_target keeps a teacher's exact zeros finite.
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def logit_mse_loss(student_logits, teacher_logits):
    """
    Mean squared difference of the logits, ½-free: mean_c (student_c − teacher_c)². The limit of
    [`kl_distillation_loss`] for a high temperature and zero-mean logits, up to a constant factor.

    Args:
        student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.
        teacher_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled, detached.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, squared logits.

    Raises:
        `ValueError`: If the shapes differ.

    Source: Ba & Caruana 2014, https://arxiv.org/abs/1312.6184; Tang et al. 2019, https://arxiv.org/abs/1903.12136

    Example:

    ```python
    >>> import torch
    >>> logit_mse_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])

    ```
    """
    check_logits(student_logits, teacher_logits)
    return F.mse_loss(student_logits.float(), teacher_logits.float(), reduction="none").mean(dim=-1)


def soft_cross_entropy_loss(student_logits, teacher_logits, temperature=1.0):
    """
    T² · −Σ_c p_c · log q_c of p = softmax(teacher / T), q = softmax(student / T): [`kl_distillation_loss`] plus the
    teacher's entropy times T², so that its gradient is the same.

    Args, Returns, Raises:
        As [`kl_distillation_loss`].

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2

    Example:

    ```python
    >>> import torch
    >>> soft_cross_entropy_loss(torch.zeros(1, 4), torch.zeros(1, 4))
    tensor([1.3863])

    ```
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher_probs = F.softmax(teacher_logits.float() / temperature, dim=-1)
    return -(teacher_probs * student_log_probs).sum(dim=-1) * temperature**2


def decoupled_distillation_loss(student_logits, teacher_logits, temperature=1.0, target_weight=1.0, other_weight=8.0):
    """
    Decoupled distillation: T² · (`target_weight` · TCKD + `other_weight` · NCKD) of softmax(logits / T), where TCKD is
    the divergence of (target, all others together) and NCKD that among the others. With weights 1 and 1 − p_target it
    is [`kl_distillation_loss`], in which a sure teacher's dark knowledge hardly counts. The target is the teacher's
    most likely label, where the paper has the true one: rows without a label have one too.

    Args:
        student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.
        teacher_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled, detached.
        temperature (`float`, *optional*, defaults to `1.0`): Softening T > 0, unitless.
        target_weight (`float`, *optional*, defaults to `1.0`): The paper's α.
        other_weight (`float`, *optional*, defaults to `8.0`): The paper's β, 8 in its CIFAR-100 experiments.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, nats × T².

    Raises:
        `ValueError`: If the shapes differ or `temperature` is not positive.

    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679

    Example:

    ```python
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> decoupled_distillation_loss(logits, logits, temperature=4.0)
    tensor([0.])

    ```
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    is_target = F.one_hot(teacher_logits.argmax(dim=-1), teacher_logits.shape[-1]).bool()

    def parts(logits):
        log_probs = F.log_softmax(logits.float() / temperature, dim=-1)
        others = log_probs[~is_target].reshape(len(logits), -1)
        all_others = others.logsumexp(dim=-1)
        binary = torch.stack([log_probs[is_target], all_others], dim=-1)
        return binary, others - all_others[:, None]

    (student_binary, student_others), (teacher_binary, teacher_others) = parts(student_logits), parts(teacher_logits)
    target = F.kl_div(student_binary, teacher_binary, reduction="none", log_target=True).sum(dim=-1)
    other = F.kl_div(student_others, teacher_others, reduction="none", log_target=True).sum(dim=-1)
    return (target_weight * target + other_weight * other) * temperature**2


def token_relation_loss(student_states, teacher_states, attention_mask):
    """
    Mean squared difference of how alike a text's tokens are to both models: mean_ij (cos(s_i, s_j) − cos(t_i, t_j))²
    over all pairs of real tokens. Only the angles between the states count, so that the models' widths may differ and
    nothing is to be learnt that maps the one to the other.

    Args:
        student_states (`torch.Tensor` of shape `(batch_size, sequence_length, any_width)`): One per token.
        teacher_states (`torch.Tensor` of shape `(batch_size, sequence_length, another_width)`): Of the same tokens,
            detached.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): Non-zero for real tokens.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, in [0, 4], exactly 0 for a text without any token.

    Raises:
        `ValueError`: If the states are not of the same tokens.

    Sources: Tung & Mori 2019, https://arxiv.org/abs/1907.09682 (similarities of a batch's images, here of a text's
    tokens); Wang et al. 2020, https://arxiv.org/abs/2002.10957 (relations between tokens)

    Example:

    ```python
    >>> import torch
    >>> alike, at_right_angles = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> token_relation_loss(alike, at_right_angles, torch.ones(1, 2))
    tensor([0.5000])

    ```
    """
    shapes = [tuple(tensor.shape) for tensor in (student_states, teacher_states, attention_mask)]
    if [len(shape) for shape in shapes] != [3, 3, 2] or not shapes[0][:2] == shapes[1][:2] == shapes[2]:
        raise ValueError(
            f"student_states {shapes[0]}, teacher_states {shapes[1]} and attention_mask {shapes[2]} must be of one "
            "(batch_size, sequence_length): give both models the same tokens"
        )
    is_padding = (attention_mask == 0)[..., None]

    def relations(states):
        # A state of zeros has no direction: eps bounds its gradient.
        directions = F.normalize(states.float().masked_fill(is_padding, 0.0), dim=-1, eps=1e-6)
        return directions @ directions.transpose(1, 2)

    # Autocast would round the products to half precision.
    with torch.autocast(student_states.device.type, enabled=False):
        differences = relations(student_states) - relations(teacher_states)
        tokens = (attention_mask != 0).sum(dim=1)
        return differences.square().sum(dim=(1, 2)) / tokens.clamp(min=1) ** 2


def standardize_logits(logits):
    """
    Logits with mean 0 and standard deviation 1 in every row: what is left to learn is their ranking and proportions,
    not their scale, which a small student cannot reach.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Unscaled.

    Returns:
        `torch.Tensor` of the same shape, float32.

    Source: Sun et al. 2024, https://arxiv.org/abs/2403.01643

    Example:

    ```python
    >>> import torch
    >>> standardize_logits(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.0000,  1.0000]])

    ```
    """
    logits = logits.float()
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True, correction=0) + 1e-7)
