"""
A convolutional text classifier as a `transformers` model.

This file travels with every saved student, see [`modeling_student`].
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from .modeling_student import StudentConfig, StudentPreTrainedModel


class CNNConfig(StudentConfig):
    """
    Shape of a [`CNNForSequenceClassification`].

    Args:
        hidden_size (`int`, *optional*, defaults to 384): Filters of each width.
        kernel_sizes (`list[int]`, *optional*, defaults to `[2, 3, 4]`): Widths of the filters, in tokens.
        kwargs: As [`StudentConfig`].
    """

    model_type = "kd_cnn"

    hidden_size: int = 384
    kernel_sizes: list[int] | None = None

    sizes = (*StudentConfig.sizes, "hidden_size")

    def __post_init__(self, **kwargs):
        self.kernel_sizes = [2, 3, 4] if self.kernel_sizes is None else list(self.kernel_sizes)
        if not self.kernel_sizes or min(self.kernel_sizes) < 1:
            raise ValueError(f"kernel_sizes is {self.kernel_sizes}: give widths of at least 1")
        super().__post_init__(**kwargs)


class CNNForSequenceClassification(StudentPreTrainedModel):
    """
    Embedding, filters of several widths, maximum over the text, linear classifier; beside them, where the configuration
    has `ngram_buckets`, a bag of n-grams whose logits are added.

    A text is surrounded by zeros, so that one that is shorter than a filter is read too, and padding changes nothing.
    The last of its `hidden_states` is what the filters find around each token.

    Source: Kim 2014, https://arxiv.org/abs/1408.5882.
    """

    config_class = CNNConfig
    base_model_prefix = "cnn"

    def __init__(self, config):
        super().__init__(config)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.hidden_size, size, padding=size - 1) for size in config.kernel_sizes
        )
        width = config.hidden_size * len(config.kernel_sizes)
        self.classifier = nn.Linear(config.row_width(width), config.num_labels)
        self.post_init()

    def encode(self, states, lengths, layers=None):
        states = self.dropout(states).transpose(1, 2)
        pooled, around = [], []
        for size, convolution in zip(self.config.kernel_sizes, self.convolutions, strict=True):
            found = convolution(states)
            # A window begins size - 1 places before the text and ends as far behind it.
            positions = torch.arange(found.shape[2], device=found.device)
            outside = positions >= (lengths + size - 1)[:, None]
            pooled.append(found.masked_fill(outside[:, None], torch.finfo(found.dtype).min).amax(dim=2))
            if layers is not None:
                # The window around each token; one of even width has a token more before it than behind.
                start = (size - 1) // 2
                around.append(found[:, :, start : start + states.shape[2]])
        if layers is not None:
            layers.append(torch.cat(around, dim=1).relu().transpose(1, 2))
        return torch.cat(pooled, dim=1).relu()


# See modeling_bilstm.py.
CNNConfig.register_for_auto_class()
CNNForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register("kd_cnn", CNNConfig, exist_ok=True)
AutoModelForSequenceClassification.register(CNNConfig, CNNForSequenceClassification, exist_ok=True)
