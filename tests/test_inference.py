"""Predicted logits in the order of the texts, whatever the batches were."""

import numpy as np
import pytest
import torch

from kd_trainer.inference import predict_logits
from kd_trainer.modeling_bilstm import BiLSTMConfig, BiLSTMForSequenceClassification

TEXTS = [
    "球队",
    "",
    "股市涨跌银行今日新闻股市涨跌",
    "芯",
    "手机网络芯片",
    "",
    "未见字符",
    "球队",
    "股 市\n涨",
    "胜" * 40,
]


@pytest.fixture(params=["student", "teacher"])
def classifier(request, tokenizer, teacher_tokenizer, make_teacher):
    """A model with its tokenizer: a BiLSTM whose empty texts have no token, a BERT."""
    if request.param == "teacher":
        return make_teacher(), teacher_tokenizer
    torch.manual_seed(0)
    model = BiLSTMForSequenceClassification(
        BiLSTMConfig(vocab_size=len(tokenizer), embedding_size=6, hidden_size=5, num_labels=3, initializer_range=1.0)
    )
    return model.eval(), tokenizer


def one_by_one(model, tokenizer, texts, max_length=16):
    with torch.no_grad():
        encodings = [tokenizer([t], truncation=True, max_length=max_length, return_tensors="pt") for t in texts]
        return np.concatenate([model(**encoding).logits.numpy() for encoding in encodings])


@pytest.mark.parametrize("batch_size", [1, 2, 3, len(TEXTS), 64])
def test_logits_equal_one_by_one_forwards_in_the_order_given(classifier, batch_size):
    logits = predict_logits(*classifier, TEXTS, max_length=16, batch_size=batch_size)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, one_by_one(*classifier, TEXTS), atol=1e-5, rtol=0)
    # The texts differ enough for a wrong order to show.
    assert len(np.unique(logits.round(4), axis=0)) == len(set(TEXTS))


def test_texts_are_cut_at_max_length(classifier):
    model, tokenizer = classifier
    # 4 tokens, the specials of the tokenizer among them.
    kept = 4 - tokenizer.num_special_tokens_to_add()
    long, short = (
        predict_logits(model, tokenizer, [text], max_length=4) for text in ("股市涨跌银行", "股市涨跌"[:kept])
    )
    np.testing.assert_array_equal(long, short)


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""]])
def test_empty_lists_and_empty_texts(classifier, texts):
    logits = predict_logits(*classifier, texts, max_length=16, batch_size=2)
    assert logits.shape == (len(texts), 3)
    np.testing.assert_allclose(logits, one_by_one(*classifier, [""]).repeat(len(texts), axis=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_dropout_is_off(classifier, training):
    model, tokenizer = classifier
    expected = one_by_one(model, tokenizer, TEXTS)
    model.train(training)
    logits = predict_logits(model, tokenizer, TEXTS, max_length=16)
    assert {module.training for module in model.modules()} == {training}
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_mode_is_restored_when_a_batch_fails(classifier):
    model, _ = classifier
    model.train()

    def broken(*args, **kwargs):
        assert not model.training
        raise KeyError("no batch")

    broken.truncation_side = "right"
    with pytest.raises(KeyError, match="no batch"):
        predict_logits(model, broken, ["球队", "胜"], max_length=16)
    assert model.training


def test_no_graph_is_kept(classifier):
    model, tokenizer = classifier
    predict_logits(model, tokenizer, TEXTS, max_length=16)
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_model_gives_float32_logits(classifier):
    model, tokenizer = classifier
    reference = predict_logits(model, tokenizer, TEXTS, max_length=16)
    logits = predict_logits(model.to(torch.bfloat16), tokenizer, TEXTS, max_length=16)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference, atol=0.15 * np.abs(reference).max(), rtol=0)
