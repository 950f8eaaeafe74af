"""How much of a classifier's accuracy survives attacks on its embeddings or errors in its texts."""

import numpy as np
import torch
import torch.nn.functional as F

from .adversarial import Attack, PerturbedEmbeddings, input_embeddings
from .batches import NO_LABEL
from .errors import InputError
from .inference import longest_first, pad_texts, predict_logits
from .pairs import tokenizer_arguments
from .text_noise import add_noise

# A perturbation's largest norm, as a share of the norm of the text's own embeddings: an absolute one would mean
# something else for every model, and larger embeddings would pass for robustness.
ATTACK_SIZE = 0.1
ATTACKS = {"fgm": Attack("fgm"), "pgd": Attack("pgd", alpha=0.4, steps=5)}
NOISE_RATES = {"noise_5": 0.05, "noise_10": 0.10}
MEASURES = ("clean", *ATTACKS, *NOISE_RATES)
MOST_ROWS = 2000


def attacked_logits(model, tokenizer, texts, labels, max_length, attack, size=ATTACK_SIZE, batch_size=64):
    """
    Logits of texts whose embeddings are perturbed to raise the cross-entropy with the true label. The attacker knows
    the model; nothing of it is changed.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): Single-label classifier, its tokenizer.
        texts (`list[str]` or pairs), labels (`list[int]`): With the true label ids.
        max_length (`int`): In tokens.
        attack ([`Attack`]): `"fgm"` or `"pgd"`; its epsilon and alpha count in units of `size`.
        size (`float`, *optional*, defaults to 0.1): Largest norm of a text's perturbation, as a share of the norm of
            its embeddings.
        batch_size (`int`, *optional*, defaults to 64): Texts per forward.

    Returns:
        `np.ndarray` of shape `(len(texts), num_labels)`, float32, in the order of `texts`.

    Raises:
        `InputError`: For a model whose input embeddings cannot be found.
    """
    logits = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    order = longest_first(texts)
    was_training = model.training
    model.eval()
    # cuDNN's LSTM takes no gradient in evaluation mode.
    try:
        with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = pad_texts(tokenizer, [texts[row] for row in rows], max_length).to(model.device)
                targets = torch.tensor([labels[row] for row in rows], device=model.device)
                with PerturbedEmbeddings(
                    input_embeddings(model),
                    batch.get("attention_mask"),
                    tokenizer.pad_token_id,
                    input_ids=batch["input_ids"],
                ) as perturbed:
                    answer = model(**batch).logits.float()
                    perturbed.check_calls(1)
                    for _ in range(attack.ascents):
                        loss = F.cross_entropy(answer, targets, reduction="sum")
                        (gradient,) = torch.autograd.grad(loss, [perturbed.delta])
                        delta, _ = attack.ascend(perturbed.delta, gradient, size * perturbed.norms())
                        perturbed.delta = delta.requires_grad_()
                        answer = model(**batch).logits.float()
                logits[rows] = answer.detach().cpu().numpy()
    finally:
        model.train(was_training)
    return logits


def check_attackable(model, tokenizer, max_length):
    """
    Raises:
        `InputError`: For a model whose embeddings cannot be perturbed; better said before it is trained.
    """
    try:
        attacked_logits(model, tokenizer, ["一二 one", "三 two three"], [0, 0], max_length, ATTACKS["fgm"])
    except (ValueError, RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"{type(model).__name__} cannot be perturbed ({' '.join(str(error).split())[:200]}): leave --adversarial "
            "and --eval_robustness out"
        ) from error


def noisy_texts(texts, rate):
    """Texts, or pairs of texts, with [`add_noise`]: errors of its own in each of a pair's texts."""
    columns = tokenizer_arguments(texts)
    noisy = add_noise(columns[0], rate)
    if len(columns) == 1:
        return noisy
    # Another seed: the errors of both texts would stand at the same places.
    return list(zip(noisy, add_noise(columns[1], rate, seed=1), strict=True))


def measure_robustness(model, tokenizer, texts, labels, max_length, batch_size=64):
    """
    Accuracy on up to 2,000 texts (a seeded sample, the same for every model): as they are, under FGM and PGD on the
    embeddings, and with errors on 5 and 10 % of the characters.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): Single-label classifier, its tokenizer.
        texts (`list[str]` or pairs), labels (`list[int]`): With the true ids; rows without one (−100) do not count.
        max_length (`int`): In tokens.
        batch_size (`int`, *optional*, defaults to 64): Texts per forward.

    Returns:
        `dict[str, float]`: Accuracies `clean`, `fgm`, `pgd`, `noise_5`, `noise_10`; `rows`, how many texts.
    """
    labelled = np.flatnonzero(np.asarray(labels) != NO_LABEL)
    sample = np.random.default_rng(0).permutation(labelled)[:MOST_ROWS]
    texts, labels = [texts[row] for row in sample], np.asarray(labels)[sample]

    def accuracy(logits):
        return float((logits.argmax(axis=-1) == labels).mean())

    def predict(texts):
        return predict_logits(model, tokenizer, texts, max_length, batch_size, "Robustness")

    results = {"rows": len(texts), "clean": accuracy(predict(texts))}
    for name, attack in ATTACKS.items():
        results[name] = accuracy(
            attacked_logits(model, tokenizer, texts, labels, max_length, attack, batch_size=batch_size)
        )
    for name, rate in NOISE_RATES.items():
        results[name] = accuracy(predict(noisy_texts(texts, rate)))
    return results
