"""A classifier's logits for any list of texts, in batches of similar length."""

import contextlib

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils.logging import tqdm  # a bar that --disable_tqdm silences with all the others

from .errors import InputError
from .pairs import sides, tokenizer_arguments
from .text_limits import check_texts, limit_text


def pad_texts(tokenizer, texts, max_length):
    """A batch of texts as a model takes it, padded to its longest; a text beyond `max_length` tokens is cut off."""
    given = [[limit_text(tokenizer, side, max_length) for side in column] for column in tokenizer_arguments(texts)]
    return tokenizer(*given, truncation=True, max_length=max_length, padding=True, return_tensors="pt")


def longest_first(texts):
    """Rows of `texts` by length, `list[int]`: little padding, and what does not fit into memory fails at once."""
    return sorted(range(len(texts)), key=lambda row: sum(map(len, sides(texts[row]))), reverse=True)


@torch.no_grad()
def predict_logits(model, tokenizer, texts, max_length, batch_size=64, description="Predicting", dtype=None):
    """
    Logits of every text, each batch padded to its own longest. Where a batch does not fit into memory, it and those
    after it are halved.

    Args:
        model (`PreTrainedModel`): On the device it is to run on; its mode is put back afterwards.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        texts (`list[str]` or `list[tuple[str, str]]`): Any number, empty ones included; tuples are pairs of texts.
        max_length (`int`): In tokens, of both texts of a pair together; the rest is cut off.
        batch_size (`int`, *optional*, defaults to 64): Texts per forward.
        description (`str`, *optional*): Of the progress bar; None for no bar.
        dtype (`torch.dtype`, *optional*): Of an autocast; without it the model runs in its own precision.

    Returns:
        `np.ndarray` of shape `(len(texts), num_labels)`, float32, in the order of `texts`.

    Raises:
        `InputError`: When the model answers with something that is not a number: its training has diverged; for what
            is not a text, see [`check_texts`].
    """
    check_texts(texts)
    order = longest_first(texts)
    logits = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    precision = contextlib.nullcontext() if dtype is None else torch.autocast(model.device.type, dtype)
    was_training = model.training
    model.eval()
    start = 0
    try:
        with precision, tqdm(total=len(order), desc=description, unit="text", disable=description is None) as bar:
            while start < len(order):
                rows = order[start : start + batch_size]
                batch = pad_texts(tokenizer, [texts[row] for row in rows], max_length)
                try:
                    logits[rows] = model(**batch.to(model.device)).logits.float().cpu().numpy()
                except RuntimeError as error:
                    if batch_size == 1 or not should_reduce_batch_size(error):
                        raise
                    batch_size //= 2
                    continue
                start += len(rows)
                bar.update(len(rows))
    finally:
        model.train(was_training)
    if not np.isfinite(logits).all():
        raise InputError(
            f"{description or 'Predicting'}: the model's logits are not finite numbers: its training diverged, lower "
            "the learning rate"
        )
    return logits
