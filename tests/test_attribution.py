"""What tokens add to a logit: compared with finite differences, with a linear model's own sum, and with loops."""

import numpy as np
import pytest
import torch
from conftest import refused
from test_modeling_pairs import make as make_pair_student
from test_modeling_pairs import pad as pad_pairs
from test_modeling_students import TEXTS, WAYS, make, pad
from transformers import BertConfig, BertForSequenceClassification

from kd_trainer.attribution import attribute, token_contributions
from kd_trainer.modeling_student import hash_ngrams
from kd_trainer.tokenization import build_tokenizer


def tables(model):
    ngrams = [] if model.ngrams is None else [model.ngrams.table.weight]
    return [model.get_input_embeddings().weight, *ngrams]


def slope(model, batch, rows, labels, size=1e-5):
    """Central difference of the labels' logits as the given rows of the tables grow by a share of themselves."""
    answers = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, chosen in rows:
                weight[chosen] *= 1 + sign * size
            answers.append(model(**batch).logits.gather(1, labels[:, None])[:, 0])
            for weight, chosen in rows:
                weight[chosen] /= 1 + sign * size
    return (answers[0] - answers[1]) / (2 * size)


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_contributions_sum_up_to_the_slope_along_all_that_is_looked_up(kind, buckets):
    model, batch = make(kind, ngram_buckets=buckets).double(), pad(TEXTS)
    logits, contributions = token_contributions(model, batch)
    torch.testing.assert_close(logits, model(**batch).logits)
    expected = slope(model, batch, [(weight, slice(None)) for weight in tables(model)], logits.argmax(dim=1))
    torch.testing.assert_close(contributions.sum(dim=1), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_contributions_of_a_pair_sum_up_too(kind, buckets):
    model = make_pair_student(kind, ngram_buckets=buckets).double()
    batch = pad_pairs([([5, 7, 2], [9]), ([4], [5, 5, 3, 8])])
    logits, contributions = token_contributions(model, batch)
    expected = slope(model, batch, [(weight, slice(None)) for weight in tables(model)], logits.argmax(dim=1))
    torch.testing.assert_close(contributions.sum(dim=1), expected, rtol=1e-6, atol=1e-8)
    assert (contributions[batch["attention_mask"] == 0] == 0).all()


@pytest.mark.parametrize("kind", ["bilstm", "cnn", "bag"])
def test_each_contribution_is_the_slope_along_its_own_embedding(kind):
    model, ids = make(kind).double(), [5, 7, 2, 9]
    batch = pad([ids])
    logits, contributions = token_contributions(model, batch)
    for place, token in enumerate(ids):
        expected = slope(model, batch, [(tables(model)[0], token)], logits.argmax(dim=1))
        torch.testing.assert_close(contributions[:, place], expected, rtol=1e-6, atol=1e-8)


def test_contributions_of_a_linear_bag_are_its_logit_without_the_bias():
    model, batch = make("bag", num_hidden_layers=0, ngram_buckets=64), pad(TEXTS)
    logits, contributions = token_contributions(model, batch)
    bias = (model.classifier.bias + model.ngrams.classifier.bias)[logits.argmax(dim=1)]
    torch.testing.assert_close(contributions.sum(dim=1), logits.amax(dim=1) - bias)


def test_an_ngram_is_shared_equally_by_its_tokens():
    model, ids = make("bag", num_hidden_layers=0, ngram_buckets=64), [5, 7, 2, 9, 9]
    with torch.no_grad():
        model.embeddings.weight.zero_()
    logits, contributions = token_contributions(model, pad([ids]))
    weight = model.ngrams.classifier.weight[logits.argmax()].detach().double().numpy()
    table = model.ngrams.table.weight.detach().double().numpy()
    count = 5 + 4 + 3
    expected = np.zeros(5)
    for size in (1, 2, 3):
        for start in range(5 - size + 1):
            ngram = torch.tensor([ids[start : start + size]])
            bucket = int(hash_ngrams(ngram, torch.tensor([size]), size, 64)[0, (size - 1) * size])
            expected[start : start + size] += table[bucket] @ weight / count / size
    np.testing.assert_allclose(contributions[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_padding_gets_nothing_and_changes_nothing(kind, buckets):
    model = make(kind, ngram_buckets=buckets)
    for batch in (pad(TEXTS), pad(TEXTS, "left"), pad(TEXTS, "left", 11)):
        _, contributions = token_contributions(model, batch)
        assert (contributions[batch["attention_mask"] == 0] == 0).all()
        for text, found, mask in zip(TEXTS, contributions, batch["attention_mask"], strict=True):
            alone = token_contributions(model, pad([text]))[1][0]
            torch.testing.assert_close(found[mask != 0], alone)


def test_the_model_is_left_as_it_was(make_student):
    model = make_student(ngram_buckets=64).train()
    token_contributions(model, pad(TEXTS))
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert not model.embeddings._forward_hooks and not model.ngrams.table._forward_hooks


def test_a_frozen_model_is_explained_as_well(make_student):
    model = make_student()
    expected = token_contributions(model, pad(TEXTS))[1]
    torch.testing.assert_close(token_contributions(model.requires_grad_(False), pad(TEXTS))[1], expected)


def test_spans_are_the_characters_of_the_text(make_student, tokenizer):
    text = "股市[PAD]\x00大涨\n🀄"
    found = attribute(make_student(), tokenizer, text, 16)
    assert [text[span.start : span.end] for span in found.spans[0]] == list(text) and not found.cut
    expected = token_contributions(make_student(), tokenizer([text], return_tensors="pt"))[1][0]
    np.testing.assert_allclose([span.contribution for span in found.spans[0]], expected, rtol=1e-6)


def test_special_tokens_have_no_span_and_a_text_is_cut_at_the_limit(make_teacher, teacher_tokenizer):
    found = attribute(make_teacher(), teacher_tokenizer, "股市大涨银行", 5)
    assert [(span.start, span.end) for span in found.spans[0]] == [(0, 1), (1, 2), (2, 3)] and found.cut
    whole = attribute(make_teacher(), teacher_tokenizer, "股市大", 5)
    assert whole.spans == found.spans and not whole.cut


def test_spans_of_a_pair_belong_to_their_texts(make_teacher, teacher_tokenizer):
    batch = teacher_tokenizer(["股市"], ["大涨银"], return_tensors="pt")
    expected = token_contributions(make_teacher(), batch)[1][0].tolist()
    found = attribute(make_teacher(), teacher_tokenizer, ("股市", "大涨银"), 16)
    got = [[span.contribution for span in spans] for spans in found.spans]
    np.testing.assert_allclose(got[0], expected[1:3], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[4:7], rtol=1e-6)


def test_words_stand_where_they_are_written():
    tokenizer = build_tokenizer(["good film, bad film"], "word")
    text = "  Good,  ÉTRANGE film "
    found = attribute(make("bilstm"), tokenizer, text, 16)
    assert [text[span.start : span.end] for span in found.spans[0]] == ["Good", ",", "ÉTRANGE", "film"]


@pytest.mark.parametrize("kind, buckets", WAYS)
def test_an_empty_text_has_logits_and_no_span(kind, buckets, tokenizer):
    model = make(kind, ngram_buckets=buckets, vocab_size=len(tokenizer))
    found = attribute(model, tokenizer, "", 16)
    assert found.spans == [[]] and not found.cut
    torch.testing.assert_close(found.logits, model(**pad([[]])).logits[0].detach())


def test_a_model_that_embeds_twice_is_refused(teacher_tokenizer):
    class Twice(BertForSequenceClassification):
        def forward(self, *args, **kwargs):
            super().forward(*args, **kwargs)
            return super().forward(*args, **kwargs)

    model = Twice(BertConfig(vocab_size=len(teacher_tokenizer), hidden_size=16, num_hidden_layers=1,
                             num_attention_heads=2, intermediate_size=16))  # fmt: skip
    with refused("embed its input_ids once"):
        attribute(model, teacher_tokenizer, "股市", 16)
    assert not model.get_input_embeddings()._forward_hooks
