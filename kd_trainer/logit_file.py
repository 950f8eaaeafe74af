"""A safetensors file of logits that is filled piece by piece, by one or several processes, over one or several runs."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows has no such locks: two runs may then label the same texts at once
    fcntl = None

LENGTH_BYTES = 8  # of the header's length, little-endian, at the start of every safetensors file
LONGEST_HEADER = 1 << 16
PRECISIONS = (None, "bfloat16", "float16")


class LogitFile:
    """
    Logits on disk, in pieces of rows. Until all are there the file is called `path` + `.partial`; a process that is
    killed loses the piece that it was at. Reading maps the file, it is not held in memory.

    Args:
        path (`str` or `Path`): Of the complete file; its folder must exist.
        shape (`tuple[int, int]`): `(num_rows, num_labels)`.
        piece_rows (`int`, *optional*, defaults to 4096): Rows per piece of a new file.

    Source: the format is https://github.com/huggingface/safetensors#format

    Example:

    ```python
    >>> import tempfile
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
        self.precision = None

    @property
    def pieces(self):
        """Number of pieces."""
        return -(-self.shape[0] // self.piece_rows)

    @property
    def values_size(self):
        """Bytes of the logits."""
        return 4 * self.shape[0] * self.shape[1]

    def rows(self, piece):
        """First row of a piece and the row behind its last: `tuple[int, int]`."""
        return piece * self.piece_rows, min((piece + 1) * self.piece_rows, self.shape[0])

    def header(self):
        """`logits` (float32) and `done` (one byte a piece), as `bytes`."""
        metadata = {"piece_rows": str(self.piece_rows), "precision": str(self.precision)}
        end = self.values_size + self.pieces
        tensors = {
            "__metadata__": metadata,
            "logits": {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, self.values_size]},
            "done": {"dtype": "U8", "shape": [self.pieces], "data_offsets": [self.values_size, end]},
        }
        header = json.dumps(tensors, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(LENGTH_BYTES, "little") + header

    def adopt(self, path):
        """Whether the file at `path` holds logits of this shape; pieces and precision are then those that it names."""
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(LENGTH_BYTES), "little")
                if not 0 < length < LONGEST_HEADER:
                    return False
                metadata = json.loads(file.read(length))["__metadata__"]
                found = LogitFile(self.path, self.shape, int(metadata["piece_rows"]))
                found.precision = None if metadata["precision"] == "None" else metadata["precision"]
                file.seek(0)
                header = found.header()
                whole = path.stat().st_size == len(header) + found.values_size + found.pieces
                if not whole or file.read(len(header)) != header:
                    return False
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError):
            return False
        if found.precision not in PRECISIONS:
            return False
        self.piece_rows, self.precision = found.piece_rows, found.precision
        return True

    def is_complete(self):
        """Whether all logits are there under the final name."""
        return self.adopt(self.path) and bool(self.marks(self.path).all())

    def is_begun(self):
        """Whether there is a partial file of these rows."""
        return self.adopt(self.partial)

    def marks(self, path):
        """Which pieces of the file at `path` are written, `np.ndarray` of `bool`."""
        with path.open("rb") as file:
            file.seek(len(self.header()) + self.values_size)
            return np.frombuffer(file.read(self.pieces), dtype=np.uint8) == 1

    @contextlib.contextmanager
    def lock(self):
        """Held by the run that fills the file; another one waits here until it is done, or dead."""
        if fcntl is None:
            yield
            return
        path = self.path.with_name(f"{self.path.name}.lock")
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # A run that waits for it finds the complete file; one that comes later makes a lock of its own.
                path.unlink(missing_ok=True)

    def create(self, precision=None):
        """
        Takes up the partial file, or makes one of its final size, so that a full disk shows at once.

        Args:
            precision (`str`, *optional*): What a new file is computed in, one of `PRECISIONS`.

        Raises:
            `OSError`: When it cannot be written.
        """
        if self.is_begun():
            with self.partial.open("r+b"):
                return
        self.precision = precision
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        header = self.header()
        try:
            with new.open("wb") as file:
                file.write(header)
                left, zeros = self.values_size + self.pieces, bytes(1 << 20)
                while left > 0:
                    left -= file.write(zeros[:left])
            new.replace(self.partial)
        finally:
            new.unlink(missing_ok=True)

    def missing(self):
        """Numbers of the pieces that are not written yet, `list[int]`."""
        return np.flatnonzero(~self.marks(self.partial)).tolist()

    def write(self, piece, logits):
        """Writes a piece, then its mark: a kill in between leaves it unmarked."""
        first, end = self.rows(piece)
        values = np.ascontiguousarray(logits, dtype="<f4")
        assert values.shape == (end - first, self.shape[1])
        start = len(self.header())
        with self.partial.open("r+b") as file:
            file.seek(start + 4 * first * self.shape[1])
            file.write(values.tobytes())
            file.flush()
            file.seek(start + self.values_size + piece)
            file.write(b"\x01")

    def finish(self):
        """Gives the file its final name."""
        self.partial.replace(self.path)

    def read(self):
        """The logits, `np.ndarray` of `shape`, float32, mapped from the file and read-only."""
        if 0 in self.shape:
            return np.empty(self.shape, dtype=np.float32)
        return np.memmap(self.path, dtype="<f4", mode="r", offset=len(self.header()), shape=self.shape)
