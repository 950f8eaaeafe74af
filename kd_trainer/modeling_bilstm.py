"""
A bidirectional LSTM text classifier as a `transformers` model.

This file travels with every saved student, see [`modeling_student`].
"""

import contextlib

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import initialization as init

from .modeling_student import StudentConfig, StudentPreTrainedModel, gather_rows

POOLINGS = ("max", "mean", "last", "attention")


class BiLSTMConfig(StudentConfig):
    """
    Shape of a [`BiLSTMForSequenceClassification`]. The defaults are those of the reference student (5.0M parameters).

    Args:
        hidden_size (`int`, *optional*, defaults to 384): Width of the LSTM's state **per direction**.
        num_hidden_layers (`int`, *optional*, defaults to 1): Stacked bidirectional layers.
        pooling (`str`, *optional*, defaults to `"max"`): How the states of a text become one vector: `"max"`, `"mean"`
            (both over the text's tokens), `"last"` (each direction's final state) or `"attention"` (a learned
            weighted mean).
        kwargs: As [`StudentConfig`].

    Raises:
        `ValueError`: For a pooling that does not exist or a size below one.

    Example:

    ```python
    >>> BiLSTMConfig(num_labels=10, pooling="attention").hidden_size
    384

    ```
    """

    model_type = "kd_bilstm"

    hidden_size: int = 384
    num_hidden_layers: int = 1
    pooling: str = "max"

    sizes = (*StudentConfig.sizes, "hidden_size", "num_hidden_layers")

    def __post_init__(self, **kwargs):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}: choose one of {', '.join(POOLINGS)}")
        super().__post_init__(**kwargs)


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


class BiLSTMForSequenceClassification(StudentPreTrainedModel):
    """
    Embedding, bidirectional LSTM layers, pooling over the text, linear classifier; beside them, where the configuration
    has `ngram_buckets`, a bag of n-grams whose logits are added.

    Source: the student of Tang et al. 2019, https://arxiv.org/abs/1903.12136, with max-pooling over time.

    Example:

    ```python
    >>> model = BiLSTMForSequenceClassification(BiLSTMConfig(vocab_size=20, num_labels=3, ngram_buckets=64))
    >>> model(input_ids=torch.tensor([[5, 7, 2], [9, 0, 0]])).logits.shape
    torch.Size([2, 3])

    ```
    """

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"

    def __init__(self, config):
        super().__init__(config)
        widths = [config.embedding_size] + [2 * config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(BiLSTMLayer(width, config.hidden_size) for width in widths)
        # No bias: softmax does not see it.
        self.attention = nn.Linear(2 * config.hidden_size, 1, bias=False) if config.pooling == "attention" else None
        self.classifier = nn.Linear(config.row_width(2 * config.hidden_size), config.num_labels)
        self.post_init()

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

    def encode(self, states, lengths, layers=None):
        backwards = reversal(lengths, states.shape[1])
        for layer in self.layers:
            states = layer(self.dropout(states), backwards)
            if layers is not None:
                layers.append(states)
        return self.pool(states, lengths)


# `save_pretrained` then copies this file, and what it imports, beside the weights and points `auto_map` to it ...
BiLSTMConfig.register_for_auto_class()
BiLSTMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
# ... and where the package is installed the auto classes need no remote code. exist_ok: a saved student's own copy of
# this file registers the same name again.
AutoConfig.register("kd_bilstm", BiLSTMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification, exist_ok=True)
