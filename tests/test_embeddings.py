"""First embeddings: the teacher's own rows, means of its pieces, principal components, or the numbers of a file."""

import gzip

import numpy as np
import pytest
import torch
from conftest import LABEL_NAMES, refused
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

import run_student
from kd_trainer.embeddings import fit_width, init_embeddings, read_vectors, teacher_vectors
from kd_trainer.loading import describe_labels
from kd_trainer.modeling_bilstm import BiLSTMConfig, BiLSTMForSequenceClassification
from kd_trainer.tokenization import build_tokenizer

NUMBERS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
TOKENS = ["股", "市", "涨", "good"]
LINES = [f"{token} {' '.join(map(repr, row.tolist()))}" for token, row in zip(TOKENS, NUMBERS, strict=True)]


def student_of(tokenizer, width=12, **config):
    set_seed(0)
    labels = {"problem_type": "single_label_classification", **describe_labels(LABEL_NAMES)}
    sizes = {"embedding_size": width, "hidden_size": 8, "pad_token_id": tokenizer.pad_token_id}
    return BiLSTMForSequenceClassification(BiLSTMConfig(vocab_size=len(tokenizer), **{**sizes, **labels, **config}))


def weights(model):
    return model.get_input_embeddings().weight.detach().clone()


@pytest.fixture(params=["plain", "header", "fasttext", "crlf", "gz"])
def vector_file(request, tmp_path):
    lines = list(LINES)
    if request.param in ("header", "fasttext", "gz"):
        lines.insert(0, "4 3")
    if request.param == "fasttext":
        lines = [lines[0], *(f"{line} " for line in lines[1:])]
    lines += [f"股 {' '.join(['9'] * 3)}", f"two words {' '.join(['9'] * 3)}"]
    raw = ("\r\n" if request.param == "crlf" else "\n").join(lines).encode() + b"\n\xff\xfe 1 2 3\n"
    path = tmp_path / f"vectors.{'vec.gz' if request.param == 'gz' else 'txt'}"
    path.write_bytes(gzip.compress(raw) if request.param == "gz" else raw)
    return path


def test_a_file_says_what_was_written_whatever_program_wrote_it(vector_file):
    found = read_vectors(vector_file, {*TOKENS, "two", "words", "缺"})
    assert set(found) == set(TOKENS)  # "two words" is neither of both, nobody has half a character
    for token, numbers in zip(TOKENS, NUMBERS, strict=True):
        np.testing.assert_array_equal(found[token], numbers)


def test_only_wanted_tokens_are_kept(vector_file):
    assert set(read_vectors(vector_file, {"市"})) == {"市"}


def test_white_space_can_be_a_token(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("a 1 2\n\u3000 3 4\n\u2028 5 6\n", encoding="utf-8")
    found = read_vectors(path, {"a", "\u3000", "\u2028"})
    assert {token: vector.tolist() for token, vector in found.items()} == {
        "a": [1, 2], "\u3000": [3, 4], "\u2028": [5, 6],
    }  # fmt: skip


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no vector"),
        (b"a 1 2\nb 1\n", "line 2"),
        (b"a 1 2\nb 1 nan\n", "line 2"),
        (b"a 1 2\nb 1 x\n", "line 2"),
        (b"{\"a\": 1}\n", "line 1"),
        (bytes(range(256)) * 4, "line 1"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_with_the_place(tmp_path, content, words):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with refused(path, words):
        read_vectors(path, {"a", "b"})


def test_a_file_that_was_cut_off_or_is_of_another_width_is_refused(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("\ufeff股 1 2\n市 3 4\n", encoding="utf-8")
    assert set(read_vectors(path, {"股", "市"})) == {"股", "市"}
    path.write_text("3 2\n股 1 2\n市 3 4\n", encoding="utf-8")
    with refused("v.txt has 3 lines", "promises 4"):
        read_vectors(path, {"股"})
    path.write_text("1 3\n股 1 2\n", encoding="utf-8")
    with refused("v.txt line 2", "3 numbers"):
        read_vectors(path, {"股"})
    with refused("null byte"):
        read_vectors("a\0b", {"股"})


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with refused(tmp_path / "none.vec", "No such file"):
        read_vectors(tmp_path / "none.vec", {"a"})
    path = tmp_path / "v.vec.gz"
    whole = gzip.compress("\n".join(LINES * 50).encode())
    for content in (whole[: len(whole) // 2], b"no gzip", whole[:30] + b"\x00" * 20 + whole[50:]):
        path.write_bytes(content)
        with refused(path):
            read_vectors(path, {"涨?"})


def test_with_one_tokenizer_the_rows_are_the_teachers(make_teacher, teacher_tokenizer):
    teacher = make_teacher()
    student = student_of(teacher_tokenizer, width=16)
    assert (
        init_embeddings(student, teacher_tokenizer, "teacher", teacher, teacher_tokenizer)
        == len(student.embeddings.weight) - 1
    )
    expected = weights(teacher)
    expected[teacher_tokenizer.pad_token_id] = 0
    assert torch.equal(weights(student), expected)


def test_with_another_tokenizer_a_token_is_the_mean_of_the_teachers_pieces(make_teacher, teacher_tokenizer):
    teacher, table = make_teacher(), None
    tokenizer = build_tokenizer(["股市 涨跌 zebra 股"], kind="char")
    tokenizer.add_tokens(["股市涨", "股?"])
    found = teacher_vectors(teacher, teacher_tokenizer, tokenizer)
    table, ids = weights(teacher).numpy(), teacher_tokenizer.get_vocab()
    assert "z" not in found and "股?" not in found  # a piece that the teacher does not know
    np.testing.assert_array_equal(found["股"], table[ids["股"]])
    np.testing.assert_allclose(found["股市涨"], (table[ids["股"]] + table[ids["市"]] + table[ids["涨"]]) / 3, rtol=1e-6)


def test_a_special_token_is_nothing_that_stands_in_a_text(make_teacher, teacher_tokenizer):
    tokenizer = build_tokenizer(["股"], kind="char")
    tokenizer.add_special_tokens({"cls_token": "市"})
    found = teacher_vectors(make_teacher(), teacher_tokenizer, tokenizer)
    assert "股" in found and "市" not in found


def test_a_word_is_what_the_teacher_reads_behind_a_blank(make_teacher):
    vocabulary = {token: row for row, token in enumerate(["[PAD]", "[UNK]", "f", "Ġf", "ilm", "film", "Ġfilm", "##"])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]", ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roberta = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer = build_tokenizer(["film f"], kind="word")
    tokenizer.add_tokens(["##film"])
    teacher = make_teacher()
    found, table = teacher_vectors(teacher, roberta, tokenizer), weights(teacher).numpy()
    np.testing.assert_array_equal(found["film"], table[vocabulary["Ġfilm"]])
    np.testing.assert_array_equal(found["f"], table[vocabulary["Ġf"]])
    np.testing.assert_array_equal(found["##film"], table[vocabulary["film"]])


def test_a_piece_that_goes_on_is_composed_of_its_letters(make_teacher, teacher_tokenizer):
    tokenizer = build_tokenizer(["股"], kind="char")
    tokenizer.add_tokens(["##股市", "##"])
    found = teacher_vectors(make_teacher(), teacher_tokenizer, tokenizer)
    plain = build_tokenizer(["股"], kind="char")
    plain.add_tokens(["股市"])
    expected = teacher_vectors(make_teacher(), teacher_tokenizer, plain)
    np.testing.assert_array_equal(found["##股市"], expected["股市"])
    assert "##" not in found


def test_wider_vectors_become_their_principal_components():
    wide = np.random.default_rng(1).normal(size=(60, 20)) @ np.diag(np.linspace(0.1, 3, 20)) + 5
    reduced = fit_width(wide, 6, "a file")
    centred = wide - wide.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    best = (left[:, :6] * values[:6]) @ (left[:, :6] * values[:6]).T
    np.testing.assert_allclose(reduced @ reduced.T, best, atol=1e-8)
    assert fit_width(wide, 20, "a file") is wide


def test_vectors_that_do_not_fit_are_refused():
    with refused("--embedding_size 8", "have 5 numbers"):
        fit_width(np.ones((9, 5)), 8, "a file")
    with refused("covers 3 tokens", "--embedding_size 4"):
        fit_width(np.ones((3, 5)), 4, "a file")


def test_tokens_without_a_vector_keep_theirs_at_the_size_of_the_others(tmp_path):
    tokenizer = build_tokenizer(["股市涨" + "".join(map(chr, range(0x4E00, 0x4E00 + 400)))])
    before, student = weights(student_of(tokenizer, 40)), student_of(tokenizer, 40)
    rows = 7.0 * np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    path = tmp_path / "v.txt"
    path.write_text(
        "\n".join(f"{t} {' '.join(map(repr, row.tolist()))}" for t, row in zip("股市涨", rows, strict=True))
    )
    assert init_embeddings(student, tokenizer, str(path)) == 3
    after, ids = weights(student), tokenizer.convert_tokens_to_ids(list("股市涨"))
    np.testing.assert_array_equal(after[ids], rows)
    others = [index for index in range(1, len(after)) if index not in ids]
    ratio = after[others] / before[others]
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0, 0]))
    assert after[others].std().item() == pytest.approx(rows.std(), rel=0.05)
    assert not after[tokenizer.pad_token_id].any()


@pytest.mark.parametrize("number", ["0", "1", "1e30"])
def test_vectors_that_say_nothing_are_refused(tmp_path, make_student, tokenizer, number):
    path = tmp_path / "v.txt"
    sign = ["", "-"] if number == "1e30" else ["", ""]
    lines = [f"{token} {' '.join(sign[column % 2] + number for column in range(12))}" for token in "股球"]
    path.write_text("\n".join(lines), encoding="utf-8")
    with refused("--embedding_init", path, "all alike or too large"):
        init_embeddings(make_student(), tokenizer, str(path))


def test_a_source_without_a_common_token_or_a_teacher_is_refused(tmp_path, make_student, tokenizer):
    path = tmp_path / "v.txt"
    path.write_text(f"xyz {' '.join(['1'] * 12)}\n")
    with refused("--embedding_init", path, "none of the student's"):
        init_embeddings(make_student(), tokenizer, str(path))
    with refused("--embedding_init teacher", "needs a model"):
        init_embeddings(make_student(), tokenizer, "teacher")


def test_run_student_starts_from_a_file_and_knows_no_teacher(write_tsv, rows, tmp_path, caplog):
    data = write_tsv("train.txt", *rows)
    flags = ["--do_train", "--do_eval", "--train_file", str(data), "--output_dir", str(tmp_path / "out")]
    flags += ["--embedding_size", "3", "--hidden_size", "4", "--num_train_epochs", "1", "--use_cpu"]
    path = tmp_path / "v.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    with refused("--embedding_init teacher"):
        run_student.main([*flags, "--embedding_init", "teacher"])
    run_student.main([*flags, "--embedding_init", str(path)])
    assert "3 of" in caplog.text and "tokens covered" in caplog.text
