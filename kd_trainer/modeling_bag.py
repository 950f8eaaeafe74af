"""
A bag of embeddings as a `transformers` model: the smallest and fastest student.

This file travels with every saved student, see [`modeling_student`].
"""

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from .modeling_student import StudentConfig, StudentPreTrainedModel


class BagConfig(StudentConfig):
    """
    Shape of a [`BagForSequenceClassification`].

    Args:
        hidden_size (`int`, *optional*, defaults to 384): Width of the hidden layers.
        num_hidden_layers (`int`, *optional*, defaults to 1): Hidden layers over the mean; 0 for none, as fastText.
        kwargs: As [`StudentConfig`].
    """

    model_type = "kd_bag"

    hidden_size: int = 384
    num_hidden_layers: int = 1

    sizes = (*StudentConfig.sizes, "hidden_size")

    def __post_init__(self, **kwargs):
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}: it must not be negative")
        super().__post_init__(**kwargs)


class BagForSequenceClassification(StudentPreTrainedModel):
    """
    The mean of the tokens' embeddings, hidden layers, linear classifier; beside them, where the configuration has
    `ngram_buckets`, a bag of n-grams whose logits are added. It does not see the order of the tokens except in these.
    Its `hidden_states` are the embeddings alone: nothing behind them is about one token.

    Source: the deep averaging network of Iyyer et al. 2015, https://aclanthology.org/P15-1162; without hidden layers
    and with n-grams, fastText, Joulin et al. 2016, https://arxiv.org/abs/1607.01759.
    """

    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config):
        super().__init__(config)
        widths = [config.embedding_size] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList(
            nn.Linear(width, following) for width, following in zip(widths, widths[1:], strict=False)
        )
        self.classifier = nn.Linear(config.row_width(widths[-1]), config.num_labels)
        self.post_init()

    def encode(self, states, lengths, layers=None):
        # Behind a text's end the states are zero.
        state = states.sum(dim=1) / lengths[:, None]
        for layer in self.layers:
            state = layer(self.dropout(state)).relu()
        return state


# See modeling_bilstm.py.
BagConfig.register_for_auto_class()
BagForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register("kd_bag", BagConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BagConfig, BagForSequenceClassification, exist_ok=True)
