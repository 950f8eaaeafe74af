"""
A bidirectional LSTM text classifier as a `transformers` model.

This file travels with every saved student (`auto_map` in its `config.json`), so that `trust_remote_code=True` loads it
where this package is not installed: it imports nothing but torch and transformers.
"""

import contextlib

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("max", "mean", "last", "attention")


class BiLSTMConfig(PreTrainedConfig):
    """
    Shape of a [`BiLSTMForSequenceClassification`]. The defaults are those of the reference student (5.0M parameters).

    Args:
        vocab_size (`int`, *optional*, defaults to 5000): Rows of the embedding table.
        embedding_size (`int`, *optional*, defaults to 300): Width of a token's embedding.
        hidden_size (`int`, *optional*, defaults to 384): Width of the LSTM's state **per direction**.
        num_hidden_layers (`int`, *optional*, defaults to 1): Stacked bidirectional layers.
        dropout (`float`, *optional*, defaults to 0.3): Of embeddings, between layers and before the classifier.
        pooling (`str`, *optional*, defaults to `"max"`): How the states of a text become one vector: `"max"`, `"mean"`
            (both over the text's tokens), `"last"` (each direction's final state) or `"attention"` (a learned
            weighted mean).
        initializer_range (`float`, *optional*, defaults to 0.1): Standard deviation of the embeddings' and the
            classifier's initial weights.
        pad_token_id (`int`, *optional*, defaults to 0): Its embedding is zero.

    Raises:
        `ValueError`: For a pooling that does not exist or a size below one.

    Example:

    ```python
    >>> BiLSTMConfig(num_labels=10, pooling="attention").hidden_size
    384

    ```
    """

    model_type = "kd_bilstm"

    vocab_size: int = 5000
    embedding_size: int = 300
    hidden_size: int = 384
    num_hidden_layers: int = 1
    dropout: float = 0.3
    pooling: str = "max"
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}: choose one of {', '.join(POOLINGS)}")
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be in [0, 1)")
        super().__post_init__(**kwargs)


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


def reversal(lengths, sequence_length):
    """
    Positions that reverse the first `lengths[i]` entries of row i and leave the rest; applied twice, nothing moves.

    Args:
        lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens per row.
        sequence_length (`int`): Tokens per padded row.

    Returns:
        `torch.LongTensor` of shape `(batch_size, sequence_length)`.

    Example:

    ```python
    >>> reversal(torch.tensor([3, 1]), 4).tolist()
    [[2, 1, 0, 3], [0, 1, 2, 3]]

    ```
    """
    positions = torch.arange(sequence_length, device=lengths.device).expand(len(lengths), -1)
    mirrored = lengths[:, None] - 1 - positions
    return torch.where(mirrored >= 0, mirrored, positions)


def gather_rows(states, order):
    """`states[i, order[i, t]]`: `(batch, time, width)` re-ordered along time by `(batch, time)` positions."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


class BiLSTMLayer(nn.Module):
    """
    One bidirectional layer as two one-directional LSTMs, the second over each row reversed by its own length.

    It computes what `nn.LSTM(bidirectional=True)` computes on a packed sequence; on a CPU packing is the slow path.
    """

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.forward_lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.backward_lstm = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, states, order):
        """`(batch, time, input_size)` left-aligned states and their [`reversal`] to `(batch, time, 2·hidden_size)`."""
        with self.possible_precision(states):
            forward_states, _ = self.forward_lstm(states)
            backward_states, _ = self.backward_lstm(gather_rows(states, order))
        return torch.cat([forward_states, gather_rows(backward_states, order)], dim=-1)

    def possible_precision(self, states):
        """
        A context in which the LSTM can run. oneDNN has no bf16 LSTM for a processor without AVX-512 and raises: there
        autocast leaves the layer in fp32, and one whose weights are bf16 runs on torch's own, slower, kernels.
        """
        if states.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return contextlib.nullcontext()
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return contextlib.nullcontext()
        if self.forward_lstm.weight_ih_l0.dtype == torch.float32:
            return torch.autocast("cpu", enabled=False)
        return torch.backends.mkldnn.flags(enabled=False)


class BiLSTMPreTrainedModel(PreTrainedModel):
    """Initial weights, and what `transformers` needs to load and save the model."""

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):
            for name, bias in module.named_parameters():
                # A forget gate (the second quarter) that starts open lets gradients reach early tokens
                # (Jozefowicz et al. 2015, http://proceedings.mlr.press/v37/jozefowicz15.html).
                if name.startswith("bias_ih") and not getattr(bias, "_is_hf_initialized", False):
                    forget = torch.zeros_like(bias)
                    forget[len(bias) // 4 : len(bias) // 2] = 1
                    init.copy_(bias, forget)


class BiLSTMForSequenceClassification(BiLSTMPreTrainedModel):
    """
    Embedding, bidirectional LSTM layers, pooling over the text, linear classifier.

    Takes `input_ids` with padding on either side, empty texts included, and the `problem_type`s of `transformers`
    (single-label, multi-label, regression).

    Source: the student of Tang et al. 2019, https://arxiv.org/abs/1903.12136, with max-pooling over time.

    Example:

    ```python
    >>> model = BiLSTMForSequenceClassification(BiLSTMConfig(vocab_size=20, num_labels=3))
    >>> model(input_ids=torch.tensor([[5, 7, 2], [9, 0, 0]])).logits.shape
    torch.Size([2, 3])

    ```
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        widths = [config.embedding_size] + [2 * config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(BiLSTMLayer(width, config.hidden_size) for width in widths)
        # No bias: softmax does not see it.
        self.attention = nn.Linear(2 * config.hidden_size, 1, bias=False) if config.pooling == "attention" else None
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def pool(self, states, lengths):
        """
        Args:
            states (`torch.Tensor` of shape `(batch_size, sequence_length, 2·hidden_size)`): Left-aligned.
            lengths (`torch.LongTensor` of shape `(batch_size,)`): At least 1.

        Returns:
            `torch.Tensor` of shape `(batch_size, 2·hidden_size)`.
        """
        if self.config.pooling == "last":
            rows = torch.arange(len(states), device=states.device)
            forward_states, backward_states = states.chunk(2, dim=-1)
            return torch.cat([forward_states[rows, lengths - 1], backward_states[:, 0]], dim=-1)
        is_padding = (torch.arange(states.shape[1], device=states.device) >= lengths[:, None])[..., None]
        if self.config.pooling == "max":
            return states.masked_fill(is_padding, torch.finfo(states.dtype).min).amax(dim=1)
        if self.config.pooling == "mean":
            return states.masked_fill(is_padding, 0).sum(dim=1) / lengths[:, None]
        # Not self.attention(states): a matrix-vector product rounds by the weight's place in memory, which differs in a
        # reloaded model.
        scores = (states * self.attention.weight[0]).sum(dim=-1, keepdim=True)
        scores = scores.float().masked_fill(is_padding, float("-inf"))
        return (scores.softmax(dim=1).to(states.dtype) * states).sum(dim=1)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids; the length may be 0.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Non-zero for real
                tokens. Without it every token but `pad_token_id` is real.
            token_type_ids (`torch.LongTensor`, *optional*): Not used; a BERT's tokenizer may give them.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`, *optional*):
                Instead of `input_ids`.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*): As
                `problem_type` asks.

        Returns:
            `SequenceClassifierOutput`: `logits` of shape `(batch_size, num_labels)`, and `loss` if labels are given.

        Raises:
            `ValueError`: Unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            if input_ids.shape[1] == 0:
                # A batch of nothing but empty texts: one padding token stands for each.
                input_ids = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id or 0)
                attention_mask = torch.zeros_like(input_ids)
            if attention_mask is None and self.config.pad_token_id is not None:
                attention_mask = input_ids != self.config.pad_token_id
            inputs_embeds = self.embeddings(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)

        order, lengths = left_aligned(attention_mask)
        lengths = lengths.clamp(min=1)
        # An empty text reads one padding position: what stands there must not matter.
        states = gather_rows(inputs_embeds.masked_fill((attention_mask == 0)[..., None], 0), order)
        backwards = reversal(lengths, states.shape[1])
        for layer in self.layers:
            states = layer(self.dropout(states), backwards)
        logits = self.classifier(self.dropout(self.pool(states, lengths)))

        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        if return_dict is False or (return_dict is None and not self.config.return_dict):
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


# `save_pretrained` then copies this file beside the weights and points `auto_map` to it ...
BiLSTMConfig.register_for_auto_class()
BiLSTMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
# ... and where the package is installed the auto classes need no remote code. exist_ok: a saved student's own copy of
# this file registers the same name again.
AutoConfig.register("kd_bilstm", BiLSTMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification, exist_ok=True)
