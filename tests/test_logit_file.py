"""A file of logits that is filled in pieces is a safetensors file like any other, and says what is missing."""

import threading

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from kd_trainer.logit_file import LogitFile


def filled(path, shape, piece_rows, order=None):
    file = LogitFile(path, shape, piece_rows)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    file.create()
    for piece in order or file.missing():
        file.write(piece, values[slice(*file.rows(piece))])
    return file, values


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 3), (8, 2), (9, 10)])
@pytest.mark.parametrize("piece_rows", [1, 4, 100])
def test_the_safetensors_library_reads_what_was_written(tmp_path, shape, piece_rows):
    file, values = filled(tmp_path / "a.safetensors", shape, piece_rows)
    file.finish()
    loaded = load_file(file.path)
    np.testing.assert_array_equal(loaded["logits"], values)
    np.testing.assert_array_equal(file.read(), values)
    assert loaded["done"].tolist() == [1] * file.pieces and file.is_complete()
    with safe_open(file.path, framework="np") as opened:
        assert opened.get_slice("logits").get_shape() == list(shape)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_pieces_in_any_order_by_two_writers(tmp_path):
    one, values = filled(tmp_path / "a.safetensors", (10, 2), 3, order=[2])
    other = LogitFile(tmp_path / "a.safetensors", (10, 2), 3)
    other.create()  # takes up what is there
    assert other.missing() == one.missing() == [0, 1, 3] and not other.is_complete()
    for piece, writer in ((3, one), (0, other), (1, one)):
        writer.write(piece, values[slice(*writer.rows(piece))])
    assert other.missing() == []
    one.finish()
    np.testing.assert_array_equal(other.read(), values)


def test_a_partial_file_keeps_its_pieces_and_its_precision(tmp_path):
    file = LogitFile(tmp_path / "a.safetensors", (10, 2), 3)
    file.create("bfloat16")
    file.write(1, np.ones((3, 2)))
    later = LogitFile(tmp_path / "a.safetensors", (10, 2), 5)
    later.create("float16")
    assert later.precision == "bfloat16" and later.piece_rows == 3 and later.missing() == [0, 2, 3]


def test_a_second_run_waits_for_the_first(tmp_path):
    file, other = (LogitFile(tmp_path / "a.safetensors", (1, 1)) for _ in range(2))
    order = []

    def second():
        with other.lock():
            order.append("second")

    with file.lock():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"noise" * 20, (60_000).to_bytes(8, "little") + b"[" * 60_000])
def test_a_damaged_partial_file_is_made_anew(tmp_path, damage):
    file, _ = filled(tmp_path / "a.safetensors", (10, 2), 3, order=[0, 1])
    file.partial.write_bytes(damage)
    file.create()
    assert file.missing() == [0, 1, 2, 3]


def test_a_file_of_other_rows_is_not_complete(tmp_path):
    file, _ = filled(tmp_path / "a.safetensors", (10, 2), 3)
    file.finish()
    assert not LogitFile(file.path, (10, 3), 3).is_complete() and not LogitFile(file.path, (11, 2), 3).is_complete()


def test_a_precision_that_does_not_exist_is_damage(tmp_path):
    file = LogitFile(tmp_path / "a.safetensors", (10, 2), 3)
    file.create("bfloat16")
    file.partial.write_bytes(file.partial.read_bytes().replace(b"bfloat16", b"nonsense"))
    assert not file.is_begun()
