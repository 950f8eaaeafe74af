"""A safetensors file of logits that is filled piece by piece, by one or several processes, over one or several runs."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np

LENGTH_BYTES = 8  # of the header's length, little-endian, at the start of every safetensors file


def header_of(shape, pieces):
    """The header of a safetensors file with `logits` (float32, `shape`) and `done` (one byte a piece), as `bytes`."""
    size = 4 * shape[0] * shape[1]
    tensors = {
        "logits": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
        "done": {"dtype": "U8", "shape": [pieces], "data_offsets": [size, size + pieces]},
    }
    header = json.dumps(tensors, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


class LogitFile:
    """
    Logits on disk, in pieces of `piece_rows` rows. Until all are there the file is called `path` + `.partial`; a
    process that is killed loses the piece that it was at. Reading maps the file, it is not held in memory.

    Args:
        path (`str` or `Path`): Of the complete file; its folder must exist.
        shape (`tuple[int, int]`): `(num_rows, num_labels)`.
        piece_rows (`int`, *optional*, defaults to 4096): Rows per piece.

    Source: the format is https://github.com/huggingface/safetensors#format

    Example:

    ```python
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = LogitFile(f"{folder}/logits.safetensors", (3, 2), piece_rows=2)
    ...     file.create()
    ...     for piece in file.missing():
    ...         file.write(piece, np.full((len(range(*file.rows(piece))), 2), piece, dtype=np.float32))
    ...     file.finish()
    ...     file.read().tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]

    ```
    """

    def __init__(self, path, shape, piece_rows=4096):
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.shape = tuple(shape)
        self.piece_rows = piece_rows
        self.pieces = -(-shape[0] // piece_rows)
        self.header = header_of(self.shape, self.pieces)
        self.size = len(self.header) + 4 * shape[0] * shape[1] + self.pieces

    def rows(self, piece):
        """First row of a piece and the row behind its last: `tuple[int, int]`."""
        return piece * self.piece_rows, min((piece + 1) * self.piece_rows, self.shape[0])

    def is_whole(self, path):
        """Whether the file at `path` has the header and the size of this one."""
        try:
            with path.open("rb") as file:
                return path.stat().st_size == self.size and file.read(len(self.header)) == self.header
        except OSError:
            return False

    def is_complete(self):
        """Whether all logits are there under the final name."""
        return self.is_whole(self.path) and bool(self.marks(self.path).all())

    def marks(self, path):
        """Which pieces of the file at `path` are written, `np.ndarray` of `bool`."""
        with path.open("rb") as file:
            file.seek(self.size - self.pieces)
            return np.frombuffer(file.read(self.pieces), dtype=np.uint8) == 1

    def create(self):
        """
        Takes up a partial file of these rows, or makes one of its final size, so that a full disk shows at once.

        Raises:
            `OSError`: When it cannot be written.
        """
        if self.is_whole(self.partial):
            return
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name, suffix=".new")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.header)
                left, zeros = self.size - len(self.header), bytes(1 << 20)
                while left > 0:
                    left -= file.write(zeros[:left])
            os.replace(name, self.partial)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    def missing(self):
        """Numbers of the pieces that are not written yet, `list[int]`."""
        return np.flatnonzero(~self.marks(self.partial)).tolist()

    def write(self, piece, logits):
        """Writes a piece, then its mark: a kill in between leaves it unmarked."""
        first, end = self.rows(piece)
        values = np.ascontiguousarray(logits, dtype="<f4")
        assert values.shape == (end - first, self.shape[1])
        with self.partial.open("r+b") as file:
            file.seek(len(self.header) + 4 * first * self.shape[1])
            file.write(values.tobytes())
            file.flush()
            file.seek(self.size - self.pieces + piece)
            file.write(b"\x01")

    def finish(self):
        """Gives the file its final name."""
        os.replace(self.partial, self.path)

    def read(self):
        """The logits, `np.ndarray` of `shape`, float32, mapped from the file and read-only."""
        if 0 in self.shape:
            return np.empty(self.shape, dtype=np.float32)
        return np.memmap(self.path, dtype="<f4", mode="r", offset=len(self.header), shape=self.shape)
