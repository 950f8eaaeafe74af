"""Which tokens of a text a classifier's answer rests on, by gradient times input."""

import contextlib
from dataclasses import dataclass

import torch

from .adversarial import input_embeddings
from .errors import InputError
from .loading import STUDENT_TYPES
from .modeling_student import left_aligned
from .pairs import sides


@dataclass
class Span:
    """
    A stretch of a text and what it adds to the logit of the label that is predicted.

    Args:
        start, end (`int`): Characters `text[start:end]`.
        contribution (`float`): In units of a logit; negative where it speaks against the label.
    """

    start: int
    end: int
    contribution: float


@dataclass
class Attribution:
    """
    Of one text, or of one pair of texts.

    Args:
        logits (`torch.Tensor` of shape `(num_labels,)`): The model's answer.
        spans (`list[list[Span]]`): Of each of its texts, in order, without overlap; tokens that share a character are
            one span.
        cut (`bool`): Whether the model has not read all of it.
    """

    logits: torch.Tensor
    spans: list[list[Span]]
    cut: bool


class LookedUp:
    """
    While it is open, keeps what a table of embeddings returns as a leaf, `states`, that a gradient can be taken for.

    Args:
        table (`torch.nn.Module`): Called once per forward.
    """

    def __init__(self, table):
        self.table, self.states, self.calls = table, None, 0

    def __enter__(self):
        self.handle = self.table.register_forward_hook(self.keep)
        return self

    def __exit__(self, *exception):
        self.handle.remove()

    def keep(self, module, args, output):
        self.calls += 1
        self.states = output.detach().requires_grad_()
        return self.states


def ngram_shares(products, is_token, order, pairs):
    """
    Every n-gram's contribution in equal shares to its tokens.

    Args:
        products (`torch.Tensor` of shape `(num_texts, order · longest)`): As `hash_ngrams` lays them out: all
            unigrams, all bigrams, …; of pairs all first texts, then all second ones.
        is_token (`torch.BoolTensor` of shape `(num_texts, sequence_length)`): Which places of a text have a token.
        order (`int`): Longest n-gram.
        pairs (`bool`): Whether two rows of `products` are one row of the result.

    Returns:
        `torch.Tensor` of shape `(batch_size, sequence_length)`.
    """
    products = products.unflatten(1, (order, -1))
    longest = products.shape[2]
    shares = torch.zeros_like(products[:, 0])
    for n in range(order):
        for place in range(min(n + 1, longest)):
            shares[:, place:] += products[:, n, : longest - place] / (n + 1)
    places = left_aligned(is_token)[0][:, :longest]
    found = shares.new_zeros(is_token.shape).scatter(1, places, shares)
    return found.unflatten(0, (2, -1)).sum(dim=0) if pairs else found


def has_ngrams(model):
    """Whether a model is a student with a branch of n-grams."""
    return model.config.model_type in STUDENT_TYPES and model.config.ngram_buckets > 0


def token_contributions(model, batch):
    """
    What every token adds to the logit z of the label that the model predicts: e · ∂z/∂e of its embedding e and, of a
    student with n-grams, its share of g · ∂z/∂g of the embeddings g of the n-grams that it stands in.

    Where z is linear in the embeddings (a bag without hidden layers) they sum up to z less its bias. The gradient of a
    deep model is that at the text itself, which says what a small change would do, not what the token's absence would.

    Args:
        model (`PreTrainedModel`): Its mode is put back afterwards; no gradient of its parameters is touched.
        batch (`dict[str, torch.Tensor]`): What the model takes, with `input_ids`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Logits, `(batch_size, num_labels)`, and contributions,
        `(batch_size, sequence_length)`, zero at padding.

    Raises:
        `InputError`: For a model that does not embed its `input_ids` once.

    Source: Denil et al. 2014, https://arxiv.org/abs/1412.6815; Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713
    """
    input_ids = batch["input_ids"]
    config = model.config
    counts_ngrams = has_ngrams(model)
    tables = [input_embeddings(model), *([model.ngrams.table] if counts_ngrams else [])]
    looked_up = [LookedUp(table) for table in tables]
    was_training = model.training
    model.eval()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            # cuDNN's LSTM takes no gradient in evaluation mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            for table in looked_up:
                stack.enter_context(table)
            logits = model(**batch).logits
            if any(table.calls != 1 for table in looked_up):
                raise InputError("the model does not embed its input_ids once: its answer cannot be laid on its tokens")
            states = [table.states for table in looked_up]
            gradients = torch.autograd.grad(logits.amax(dim=1).sum(), states, allow_unused=True)
    finally:
        model.train(was_training)
    products = [
        torch.zeros_like(state[..., 0]) if gradient is None else (state * gradient).sum(dim=-1).detach()
        for state, gradient in zip(states, gradients, strict=True)
    ]
    logits, (batch_size, length) = logits.detach(), input_ids.shape
    if length == 0:  # empty texts, for each of which the model reads one padding token
        return logits, products[0].new_zeros(batch_size, 0)
    is_token = batch.get("attention_mask", torch.ones_like(input_ids)) != 0
    # Some models pad further by themselves.
    found = products[0][:, :length]
    if found.shape != is_token.shape:
        raise InputError("the model embeds something else than its input_ids: its answer cannot be laid on its tokens")
    if counts_ngrams:
        pairs = config.text_pairs
        texts = torch.cat([is_token & (batch["token_type_ids"] == side) for side in (0, 1)]) if pairs else is_token
        found = found + ngram_shares(products[1], texts, config.ngram_order, pairs)
    return logits, found.masked_fill(~is_token, 0)


def merge_spans(tokens):
    """
    Spans in the order of the text from tokens that may share characters, as those of a byte-level tokenizer do.

    Args:
        tokens (`list[tuple[int, int, float]]`): Start, end and contribution.

    Returns:
        `list[Span]`.

    Example:

    ```python
    >>> merge_spans([(0, 1, 0.5), (0, 1, 0.25), (1, 3, -1.0)])
    [Span(start=0, end=1, contribution=0.75), Span(start=1, end=3, contribution=-1.0)]

    ```
    """
    spans = []
    for start, end, contribution in sorted(tokens):
        # A token of no character, a mark of the tokenizer's, belongs to what stands before it.
        if spans and (start < spans[-1].end or start == end):
            spans[-1].end = max(spans[-1].end, end)
            spans[-1].contribution += contribution
        elif start < end:
            spans.append(Span(start, end, contribution))
    return spans


def attribute(model, tokenizer, text, max_length):
    """
    The model's answer to one text, laid on the characters of that text.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The classifier; its tokenizer is a fast one.
        text (`str` or `tuple[str, str]`): It may be empty.
        max_length (`int`): In tokens; the rest is not read.

    Returns:
        [`Attribution`]. Special tokens and padding have no span.

    Raises:
        `InputError`: For a tokenizer that does not know where its tokens stand, and as [`token_contributions`].
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} does not say where in a text its tokens stand: use a fast one")
    encoding = tokenizer(
        *([side] for side in sides(text)),
        truncation=True,
        max_length=max_length,
        padding=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    offsets, special = encoding.pop("offset_mapping"), encoding.pop("special_tokens_mask")
    logits, contributions = token_contributions(model, encoding.to(model.device))
    tokens = [[] for _ in sides(text)]
    places = zip(encoding.sequence_ids(0), offsets[0].tolist(), special[0].tolist(), contributions[0].tolist(),
                 strict=True)  # fmt: skip
    for side, (start, end), is_special, contribution in places:
        if side is not None and not is_special:
            tokens[side].append((start, end, contribution))
    cut = bool(encoding.encodings[0].overflowing)
    return Attribution(logits[0].float().cpu(), [merge_spans(found) for found in tokens], cut)
