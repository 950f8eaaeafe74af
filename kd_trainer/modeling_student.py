"""
What all students share as `transformers` models: token embeddings, hashed n-grams beside them, a linear classifier of
one text or of a pair of texts.

This file travels with every saved student (`auto_map` in its `config.json`), so that `trust_remote_code=True` loads it
where this package is not installed: it imports nothing but torch and transformers.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

LARGEST = 2**63 - 1  # what torch can count
LONGEST_NGRAM = 16  # in tokens: a step reads as many n-grams of each token


class StudentConfig(PreTrainedConfig):
    """
    What the configurations of all students have in common.

    Args:
        vocab_size (`int`, *optional*, defaults to 5000): Rows of the embedding table.
        embedding_size (`int`, *optional*, defaults to 300): Width of a token's embedding.
        dropout (`float`, *optional*, defaults to 0.3): Of embeddings, between layers and before the classifier.
        initializer_range (`float`, *optional*, defaults to 0.1): Standard deviation of the embeddings' and the
            classifier's initial weights.
        pad_token_id (`int`, *optional*, defaults to 0): Its embedding is zero.
        sparse_embeddings (`bool`, *optional*, defaults to `False`): Whether a training step updates the embeddings of
            its own tokens alone, which a large vocabulary makes several times cheaper.
        ngram_buckets (`int`, *optional*, defaults to 0): Rows of the table of hashed n-grams, see [`NGrams`]; 0 for a
            student without that branch.
        ngram_size (`int`, *optional*, defaults to 64): Width of an n-gram's embedding.
        ngram_order (`int`, *optional*, defaults to 3): Longest n-gram, in tokens; all shorter ones are in it too.
        ngram_dropout (`float`, *optional*, defaults to 0.3): Share of the n-grams left out in training.
        ngram_loss_weight (`float`, *optional*, defaults to 0.3): In training, weight of the same loss on the logits of
            the n-grams alone: without it the branch that learns faster leaves the other one nothing to learn.
        text_pairs (`bool`, *optional*, defaults to `False`): Whether a row is two texts, told apart by their
            `token_type_ids`, 0 and 1. Each is read by itself, with the same weights, see [`combine_pairs`].

    Raises:
        `ValueError`: For a size below one, or a number that is out of its range.
    """

    # Not an answer: evaluation and `pipeline` take the logits alone.
    keys_to_ignore_at_inference = ["ngram_logits", "hidden_states"]

    vocab_size: int = 5000
    embedding_size: int = 300
    dropout: float = 0.3
    initializer_range: float = 0.1
    pad_token_id: int | None = 0
    sparse_embeddings: bool = False
    ngram_buckets: int = 0
    ngram_size: int = 64
    ngram_order: int = 3
    ngram_dropout: float = 0.3
    ngram_loss_weight: float = 0.3
    text_pairs: bool = False

    sizes = ("vocab_size", "embedding_size", "ngram_size", "ngram_order")

    def __post_init__(self, **kwargs):
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at most {LARGEST}")
        for name in ("dropout", "ngram_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        if self.ngram_buckets != 0 and not 2 <= self.ngram_buckets <= LARGEST:
            raise ValueError(f"ngram_buckets is {self.ngram_buckets}: it must be 0, for none, or in 2..{LARGEST}")
        if self.ngram_order > LONGEST_NGRAM:
            raise ValueError(f"ngram_order is {self.ngram_order}: it must be in 1..{LONGEST_NGRAM}")
        if not 0 <= self.ngram_loss_weight < math.inf:
            raise ValueError(f"ngram_loss_weight is {self.ngram_loss_weight}: it must be a number from 0")
        super().__post_init__(**kwargs)

    def row_width(self, width):
        """Numbers that stand for a row where `width` numbers stand for a text."""
        return 4 * width if self.text_pairs else width


@dataclass
class StudentOutput(SequenceClassifierOutput):
    """
    `SequenceClassifierOutput` with what the n-grams alone say.

    Args:
        ngram_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*): In training, of a student
            that has n-grams.
    """

    ngram_logits: torch.FloatTensor | None = None


def left_aligned(mask):
    """
    Positions that move every row's real tokens to its front, in order, whatever side the padding is on.

    Args:
        mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): Non-zero for real tokens.

    Returns:
        `tuple`: `order` (`torch.LongTensor` of shape `(batch_size, sequence_length)`) to gather with, and `lengths`
        (`torch.LongTensor` of shape `(batch_size,)`), the number of real tokens.
    """
    padding = (mask == 0).to(torch.int8)
    return padding.argsort(dim=1, stable=True), (1 - padding).sum(dim=1)


def gather_rows(states, order):
    """`states[i, order[i, t]]`: `(batch, time, width)` re-ordered along time by `(batch, time)` positions."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


def combine_pairs(vectors):
    """
    What a classifier reads of two texts whose vectors are u and v: `[u, v, |u − v|, u · v]`, the product by element.

    Args:
        vectors (`torch.Tensor` of shape `(2 · batch_size, width)`): Of all first texts, then of all second ones.

    Returns:
        `torch.Tensor` of shape `(batch_size, 4 · width)`.

    Source: Mou et al. 2016, https://arxiv.org/abs/1512.08422; Conneau et al. 2017, https://arxiv.org/abs/1705.02364.
    """
    u, v = vectors.unflatten(0, (2, -1))  # not chunk: a graph that is exported for any batch cannot tell its halves
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def put_back(states, order, is_token):
    """
    What [`gather_rows`] undoes: states at the places of their tokens, zero elsewhere.

    Args:
        states (`torch.Tensor` of shape `(batch_size, longest, width)`): Left-aligned.
        order (`torch.LongTensor` of shape `(batch_size, longest)`): Where they come from.
        is_token (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): Which places have a token.

    Returns:
        `torch.Tensor` of shape `(batch_size, sequence_length, width)`.
    """
    empty = states.new_zeros(*is_token.shape, states.shape[-1])
    return empty.scatter(1, order[..., None].expand_as(states), states).masked_fill(~is_token[..., None], 0)


def hash_ngrams(input_ids, lengths, order, buckets):
    """
    The bucket of every n-gram of up to `order` tokens: a polynomial of its token ids modulo the prime 2³¹ − 1, squared
    once, without which neighbouring ids would fall into neighbouring buckets. No product leaves 63 bits.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Left-aligned.
        lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens per row.
        order (`int`): Longest n-gram.
        buckets (`int`): Bucket 0 is for what is no n-gram, those beyond a text's end.

    Returns:
        `torch.LongTensor` of shape `(batch_size, order · sequence_length)`: all unigrams, all bigrams, …
    """
    prime = 2**31 - 1
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    value = torch.zeros_like(input_ids)
    found = []
    for n in range(order):
        # The token n places on; what comes round from the row's beginning is masked below.
        token = input_ids if n == 0 else torch.cat([input_ids[:, n:], input_ids[:, :n]], dim=1)
        value = (value * 1_000_003 + token + 1) % prime
        spread = (value * 1_597_334_677 + n) % prime
        bucket = spread * spread % prime % (buckets - 1) + 1
        found.append(torch.where(positions + n < lengths[:, None], bucket, torch.zeros_like(bucket)))
    return torch.cat(found, dim=1)


class NGramTable(nn.Embedding):
    """A table that starts at zero, which `_init_weights` tells from others by its class."""


class NGrams(nn.Module):
    """
    The mean of the embeddings of a text's n-grams, which are hashed into a table: no vocabulary is kept of them, and
    those that share a row are told apart by the others of their text.

    A text touches a few rows of a large table: its gradient is sparse. The table starts at zero, so that an n-gram that
    training has not met says nothing.

    Source: Joulin et al. 2016, https://arxiv.org/abs/1607.01759; n-gram dropout as Iyyer et al. 2015,
    https://aclanthology.org/P15-1162.

    Args:
        config ([`StudentConfig`]): Its `ngram_…` fields.
    """

    def __init__(self, config):
        super().__init__()
        self.order = config.ngram_order
        self.buckets = config.ngram_buckets
        self.left_out = config.ngram_dropout
        self.text_pairs = config.text_pairs
        self.table = NGramTable(config.ngram_buckets, config.ngram_size, padding_idx=0, sparse=True)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.row_width(config.ngram_size), config.num_labels)

    def forward(self, input_ids, lengths):
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`): Left-aligned; of pairs all first
                texts, then all second ones.
            lengths (`torch.LongTensor` of shape `(num_texts,)`): Tokens per text.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`: Logits of the n-grams alone.
        """
        buckets = hash_ngrams(input_ids, lengths, self.order, self.buckets)
        if self.training and self.left_out:
            buckets = buckets.masked_fill(torch.rand(buckets.shape, device=buckets.device) < self.left_out, 0)
        count = (buckets != 0).sum(dim=1, keepdim=True).clamp(min=1)
        # Bucket 0 stays a row of zeros.
        means = self.table(buckets).sum(dim=1) / count
        return self.classifier(self.dropout(combine_pairs(means) if self.text_pairs else means))


class StudentPreTrainedModel(PreTrainedModel):
    """
    From token ids to logits. A student says in `encode` how the embeddings of a text become one vector, of `width`
    numbers.

    Takes `input_ids` with padding on either side, empty texts included, and the `problem_type`s of `transformers`
    (single-label, multi-label, regression).
    """

    config_class = StudentConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.embeddings = nn.Embedding(
            config.vocab_size,
            config.embedding_size,
            padding_idx=config.pad_token_id,
            sparse=config.sparse_embeddings,
        )
        self.ngrams = NGrams(config) if config.ngram_buckets else None
        self.dropout = nn.Dropout(config.dropout)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, NGramTable):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def encode(self, states, lengths, layers=None):
        """
        Args:
            states (`torch.Tensor` of shape `(batch_size, sequence_length, embedding_size)`): Left-aligned; zero
                behind a text's end.
            lengths (`torch.LongTensor` of shape `(batch_size,)`): At least 1; an empty text reads one zero.
            layers (`list[torch.Tensor]`, *optional*): Where each layer that has a state for every token appends its
                own, `(batch_size, sequence_length, any_width)`, left-aligned.

        Returns:
            `torch.Tensor` of shape `(batch_size, width)`.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> StudentOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids; the length may be 0.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Non-zero for real
                tokens. Without it every token but `pad_token_id` is real.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for tokens of
                the first text and 1 for those of the second, where the configuration has `text_pairs`; otherwise not
                used, a BERT's tokenizer may give them.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`, *optional*):
                Instead of `input_ids`; not for a student that has n-grams.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*): As
                `problem_type` asks.
            output_hidden_states (`bool`, *optional*): Whether to return `hidden_states`. Default: as the configuration.

        Returns:
            [`StudentOutput`]: `logits` of shape `(batch_size, num_labels)`, `loss` if labels are given, and, if asked
            for, `hidden_states`: the embeddings and then the states of every layer that has one for each token, each
            `(batch_size, sequence_length, width)` in the order of `input_ids`, zero at padding; of a pair
            each token's state in its own text.

        Raises:
            `ValueError`: Unless exactly one of `input_ids` and `inputs_embeds` is given; for pairs without
                `token_type_ids`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if input_ids is None and self.ngrams is not None:
            raise ValueError("n-grams are made of input_ids: pass those, not inputs_embeds")
        if self.config.text_pairs and token_type_ids is None:
            raise ValueError("a student of text pairs needs token_type_ids to tell the two texts apart")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        given_length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if inputs_embeds is None:
            if input_ids.shape[1] == 0:
                # A batch of nothing but empty texts: one padding token stands for each.
                input_ids = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id or 0)
                attention_mask = token_type_ids = torch.zeros_like(input_ids)
            if attention_mask is None and self.config.pad_token_id is not None:
                attention_mask = input_ids != self.config.pad_token_id
            inputs_embeds = self.embeddings(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)

        is_token = attention_mask != 0
        if self.config.text_pairs:
            # A batch of twice as many texts, in which the other text of a pair is padding.
            is_token = torch.cat([is_token & (token_type_ids == side) for side in (0, 1)])
            inputs_embeds = inputs_embeds.repeat(2, 1, 1)
            input_ids = None if input_ids is None else input_ids.repeat(2, 1)
        order, lengths = left_aligned(is_token)
        if self.config.text_pairs and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            # No longer than the longest text: twice as fast. But a graph that is kept must not hold one batch's length.
            order = order[:, : max(1, int(lengths.max()))]
        # An empty text reads one padding position: what stands there must not matter.
        states = gather_rows(inputs_embeds.masked_fill(~is_token[..., None], 0), order)
        layers = [states] if output_hidden_states else None
        vectors = self.encode(states, lengths.clamp(min=1), layers)
        logits = self.classifier(self.dropout(combine_pairs(vectors) if self.config.text_pairs else vectors))
        ngram_logits = None
        if self.ngrams is not None:
            ngram_logits = self.ngrams(input_ids.gather(1, order), lengths)
            logits = logits + ngram_logits

        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            if ngram_logits is not None and self.training:
                of_ngrams = self.loss_function(labels=labels, pooled_logits=ngram_logits, config=self.config)
                loss = loss + self.config.ngram_loss_weight * of_ngrams
        hidden_states = None
        if layers is not None:
            # A token of a pair is one in one of its two texts alone.
            shape = (2 if self.config.text_pairs else 1, *attention_mask.shape, -1)
            places = [put_back(layer, order, is_token).reshape(shape) for layer in layers]
            hidden_states = tuple(states.sum(dim=0)[:, :given_length] for states in places)
        if return_dict is False or (return_dict is None and not self.config.return_dict):
            return tuple(output for output in (loss, logits, hidden_states) if output is not None)
        return StudentOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states,
            ngram_logits=ngram_logits if self.training else None,
        )
