"""The tokenizer against `list(text)` and counts made by hand, on text that nobody foresaw."""

import random
import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from kd_trainer.errors import InputError
from kd_trainer.tokenization import build_tokenizer, count_tokens, read_vocabulary

ODD_CHARACTERS = {
    "NUL": "\x00",
    "emoji": "😀",
    "emoji joined": "👩\u200d💻",
    "flag": "🇨🇳",
    "full-width": "Ａ１，\u3000",
    "combining": "e\u0301",
    "precomposed": "\u00e9",
    "line separators": "\u2028\u2029\x85",
    "newlines": "a\r\n\n\tb",
    "spaces": "  a \u00a0 ",
    "byte order mark": "\ufeffa",
    "private use": "\ue000\U0010fffd",
    "right to left": "שלום\u202e",
}


def draw_text(generator, size):
    """Any code points but surrogates, which UTF-8 cannot hold, most of them from the first plane."""
    points = (generator.choice([generator.randrange(0x300), generator.randrange(0x110000)]) for _ in range(size))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def tokens_of(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def write_vocabulary(tmp_path, content):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_ids_follow_frequency_then_character():
    tokenizer = build_tokenizer(["大股市", "大市涨", "大"])
    assert "".join(sorted("股涨")) == "涨股"
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("[PAD]", "[UNK]", *"大市涨股")] == list(range(6))
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)
    assert tokenizer("股新大")["input_ids"] == [5, 1, 2]


@pytest.mark.parametrize("kind", ["char", "word"])
def test_ids_are_the_same_for_any_order_of_texts(rows, kind):
    texts = [*rows[0], "Same same but different", "b a"]
    reference = build_tokenizer(texts, kind).get_vocab()
    for seed in range(5):
        assert build_tokenizer(random.Random(seed).sample(texts, len(texts)), kind).get_vocab() == reference


@pytest.mark.parametrize("bert_style", [False, True])
@pytest.mark.parametrize("vocab_size", [6, 10, 1000])
def test_vocab_size_bounds_all_tokens_and_keeps_the_most_frequent(rows, vocab_size, bert_style):
    tokenizer = build_tokenizer(rows[0], vocab_size=vocab_size, bert_style=bert_style)
    specials = 5 if bert_style else 2
    counts = Counter("".join(rows[0]))
    assert len(tokenizer) == min(vocab_size, specials + len(counts))
    kept, dropped = (
        [count for token, count in counts.items() if (token in tokenizer.get_vocab()) == inside]
        for inside in (True, False)
    )
    assert min(kept) >= max(dropped, default=0)


@pytest.mark.parametrize("text", ODD_CHARACTERS.values(), ids=ODD_CHARACTERS)
def test_every_character_is_one_token(text):
    assert tokens_of(build_tokenizer([text]), text) == list(text)


def test_characters_equal_python_for_random_unicode():
    generator = random.Random(0)
    texts = [draw_text(generator, generator.randrange(1, 60)) for _ in range(200)]
    tokenizer = build_tokenizer(texts, vocab_size=100_000)
    assert count_tokens(texts, "char") == Counter("".join(texts))
    encodings = tokenizer(texts)
    for text, ids, mask in zip(texts, encodings["input_ids"], encodings["attention_mask"], strict=True):
        assert tokenizer.convert_ids_to_tokens(ids) == list(text)
        assert mask == [1] * len(text)


@pytest.mark.parametrize("bert_style", [False, True])
@pytest.mark.parametrize("text", ["[PAD]", "a[CLS]b", "[UNK][SEP][MASK]", "<PAD>"])
def test_names_of_special_tokens_in_a_text_stay_text(tmp_path, text, bert_style):
    tokenizer = build_tokenizer([text], bert_style=bert_style)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokens_of(loaded, text) == (["[CLS]", *text, "[SEP]"] if bert_style else list(text))


@pytest.mark.parametrize("bert_style", [False, True])
def test_long_text_is_cut_at_max_length(bert_style):
    tokenizer = build_tokenizer(["大"], max_length=16, bert_style=bert_style)
    text = "大" * 100_000
    assert len(tokenizer(text, truncation=True)["input_ids"]) == 16
    assert len(tokenizer(text, truncation=True, max_length=7)["input_ids"]) == 7
    assert len(tokenizer(text)["input_ids"]) == 100_000 + 2 * bert_style


def test_words_are_lower_case_and_split_at_spaces_punctuation_and_chinese_characters():
    text = "Hello, WORLD!  don't 股市\t大涨5G。"
    expected = ["hello", ",", "world", "!", "don", "'", "t", "股", "市", "大", "涨", "5g", "。"]
    assert tokens_of(build_tokenizer([text], "word"), text) == expected
    assert count_tokens([text], "word") == Counter(expected)


def test_counted_words_are_the_tokens_of_a_text():
    generator = random.Random(1)
    texts = ["A [PAD] b", *(draw_text(generator, 30) for _ in range(50))]
    tokenizer = build_tokenizer(texts, "word", vocab_size=100_000)
    assert count_tokens(texts, "word") == Counter(token for text in texts for token in tokens_of(tokenizer, text))


@pytest.mark.parametrize("kind", ["char", "word"])
def test_bert_style_wraps_texts_and_pairs(kind):
    tokenizer = build_tokenizer(["a b"], kind, bert_style=True)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [*range(5)]
    single, pair = tokenizer("a"), tokenizer("a", "b")
    assert tokenizer.convert_ids_to_tokens(single["input_ids"]) == ["[CLS]", "a", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    assert single["token_type_ids"] == [0, 0, 0] and pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert tokenizer("")["input_ids"] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert "token_type_ids" not in build_tokenizer(["a"], kind)("a")


@pytest.mark.parametrize(
    ("content", "tokens", "pad", "unk"),
    [
        ("<PAD>\n<UNK>\n的\n", ["<PAD>", "<UNK>", "的"], "<PAD>", "<UNK>"),
        ("的\n[UNK]\n一\n[PAD]", ["的", "[UNK]", "一", "[PAD]"], "[PAD]", "[UNK]"),
        ("的\n<PAD>\n一", ["的", "<PAD>", "一", "[UNK]"], "<PAD>", "[UNK]"),
        ("的\n<UNK>\n一", ["[PAD]", "的", "<UNK>", "一"], "[PAD]", "<UNK>"),
        ("的\n一", ["[PAD]", "的", "一", "[UNK]"], "[PAD]", "[UNK]"),
        ("<PAD>\r\n<UNK>\r\n的\r\n", ["<PAD>", "<UNK>", "的"], "<PAD>", "<UNK>"),
        ("\ufeff<PAD>\n<UNK>\n的", ["<PAD>", "<UNK>", "的"], "<PAD>", "<UNK>"),
        (
            "<PAD>\n \n\u3000\n\u2028\n\x00\n<UNK>",
            ["<PAD>", " ", "\u3000", "\u2028", "\x00", "<UNK>"],
            "<PAD>",
            "<UNK>",
        ),
        ("<PAD>\n<UNK>\n的\n\n\n", ["<PAD>", "<UNK>", "的"], "<PAD>", "<UNK>"),
    ],
    ids=["usual", "anywhere", "no unk", "no pad", "neither", "crlf", "bom", "white space", "trailing lines"],
)
def test_vocabulary_file_gives_tokens_their_line_as_id(tmp_path, content, tokens, pad, unk):
    path = write_vocabulary(tmp_path, content)
    assert read_vocabulary(path) == (tokens, pad, unk)
    tokenizer = build_tokenizer(vocab_file=path)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == tokens
    assert (tokenizer.pad_token, tokenizer.unk_token) == (pad, unk)
    tokenizer.save_pretrained(tmp_path / "saved")
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        characters = [token for token in tokens if len(token) == 1]
        assert loaded("".join(characters))["input_ids"] == [tokens.index(token) for token in characters]
        assert loaded("新")["input_ids"] == [tokens.index(unk)]
        padded = loaded(["的的", "的"], padding=True)
        assert padded["input_ids"][1][1] == tokens.index(pad) and padded["attention_mask"][1] == [1, 0]


def test_bert_style_adds_only_the_special_tokens_that_a_vocabulary_file_lacks(tmp_path):
    path = write_vocabulary(tmp_path, "[PAD]\n[CLS]\n的\n[UNK]\n")
    tokenizer = build_tokenizer(vocab_file=path, bert_style=True)
    expected = ["[PAD]", "[CLS]", "的", "[UNK]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == expected
    assert tokenizer("的")["input_ids"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<PAD>\n的\n一\n的\n", "line 4: token '的' stands on line 2"),
        ("<PAD>\n的\n\n一\n", "line 3: empty token"),
        ("", "empty vocabulary file"),
        ("\n\r\n", "empty vocabulary file"),
        ("的\n".encode("gbk"), "not UTF-8 at byte 0"),
        ("的\n".encode("utf-16"), "not UTF-8 at byte 0"),
    ],
    ids=["twice", "empty line", "empty", "only line ends", "gbk", "utf-16"],
)
def test_bad_vocabulary_file_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_vocabulary(write_vocabulary(tmp_path, content))
    assert "vocab.txt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "."], ids=["missing", "a folder"])
def test_vocabulary_file_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="vocabulary"):
        read_vocabulary(tmp_path / name)


@pytest.mark.parametrize(("texts", "kind"), [([], "char"), ([""], "char"), ([" \n"], "word")])
def test_texts_without_a_token_are_refused(texts, kind):
    with pytest.raises(InputError, match="no token"):
        build_tokenizer(texts, kind)


@pytest.mark.parametrize("kind", ["char", "word"])
@pytest.mark.parametrize("bert_style", [False, True])
def test_reloaded_tokenizer_gives_equal_encodings(tmp_path, rows, kind, bert_style):
    odd = list(ODD_CHARACTERS.values())
    tokenizer = build_tokenizer(rows[0] + odd, kind, max_length=16, bert_style=bert_style)
    tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*rows[0], *odd, "", " ", "[PAD]", "Unseen 未见", "长" * 100]
    settings = {"truncation": True, "padding": True}
    assert loaded(texts, **settings).data == tokenizer(texts, **settings).data
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_max_length == 16
