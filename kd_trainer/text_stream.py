"""The texts of a file one after the other, so that it may be larger than the memory."""

from collections import Counter
from pathlib import Path

import pyarrow

from .errors import InputError
from .files import (
    SUFFIXES,
    Rows,
    check_cells,
    check_has_columns,
    check_item,
    check_tabs,
    check_tabs_of_line,
    csv_records,
    decoded_lines,
    find_columns,
    has_header,
    json_records,
    likelier,
    open_parquet,
    tsv_records,
)
from .pairs import sides

PIECE_ROWS = 4096


def iterate_texts(path, text_column=None, text_pair_column=None, known_labels=None):
    """
    The texts of a file, one after the other, so that it need not fit into memory (a `.json` list must).

    Args:
        path (`str`): `.csv`, `.tsv` or `.parquet` with a header, `.jsonl`, or `.txt` with a text on each line.
        text_column (`str`, *optional*): Its name in the header; the usual names are found without.
        text_pair_column (`str`, *optional*): Column of the second text, where a row is a pair of texts; not for `.txt`.
        known_labels (collection of `str`, *optional*): Where a file without a header, `.txt` or `.tsv`, may have labels
            beside its texts: what they can be.

    Yields:
        `str`, a missing text is the empty string; or `tuple[str, str]`.

    Raises:
        `InputError`: For whatever cannot be read, with the line.
    """
    path = Path(path)
    names = (text_column, None, text_pair_column)
    if path.suffix == ".txt":
        check_has_columns(path, text_pair_column)
        records = iterate_lines(path) if known_labels is None else iterate_headerless(path, known_labels)
    elif path.suffix == ".tsv" and known_labels is not None and not has_header(first_cells(path), names):
        records = iterate_headerless(path, known_labels)
    elif path.suffix in (".csv", ".tsv"):
        records = iterate_table(path, names)
    elif path.suffix in (".json", ".jsonl"):
        records = iterate_json(path, names)
    elif path.suffix == ".parquet":
        records = iterate_parquet(path, names)
    else:
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}: give one of {', '.join(SUFFIXES)}")
    for number, cells in records:
        row = Rows(str(path))
        row.add(number, cells, None)
        yield row.texts[0]


class TextFile:
    """
    The texts of a file that are to be labelled. They are read anew by every iteration, and are never all in memory.

    Args:
        path, text_column, text_pair_column, known_labels: As [`iterate_texts`].

    Raises:
        `InputError`: For whatever cannot be read, with the line, and for a file without a text in it: it is read once,
            before anybody waits for labels.
    """

    def __init__(self, path, text_column=None, text_pair_column=None, known_labels=()):
        self.arguments = (path, text_column, text_pair_column, known_labels)
        self.size, is_empty = 0, True
        for text in self:
            self.size += 1
            is_empty = is_empty and not any(side.strip() for side in sides(text))
        if not self.size:
            raise InputError(f"{path}: no row in the file: give one with a text on each line")
        if is_empty:
            raise InputError(f"{path}: all {self.size} texts are empty: check --text_column")

    def __len__(self):
        return self.size

    def __iter__(self):
        return iterate_texts(*self.arguments)

    def pieces(self, rows=PIECE_ROWS, characters=2**24):
        """Lists of at most so many rows, which end behind the row with which they have so many characters."""
        piece, found = [], 0
        for text in self:
            piece.append(text)
            found += sum(map(len, sides(text)))
            if len(piece) == rows or found >= characters:
                yield piece
                piece, found = [], 0
        if piece:
            yield piece


def first_cells(path):
    """
    Cells of the first line of a `.tsv` that is not empty.

    Raises:
        `InputError`: Where there is none.
    """
    for _, cells in tsv_records(path):
        return cells
    raise InputError(f"{path}: no row in the file: give a header and rows")


def iterate_lines(path):
    """`(line, [text])` of a file that has a text on each line."""
    return ((number, [line]) for number, line in enumerate(decoded_lines(path), start=1))


def iterate_headerless(path, known_labels):
    """`(line, [text])` of a file as [`read_headerless`] reads, or of bare texts; the file is read twice."""
    lines_of, known, first = Counter(), [0, 0], None
    for number, line in enumerate(decoded_lines(path), start=1):
        cells = line.split("\t")
        if line:
            lines_of[len(cells)] += 1
            first = first or number
        if len(cells) == 2:
            known = [count + (cell.strip() in known_labels) for count, cell in zip(known, cells, strict=True)]
    if not set(lines_of) - {1}:
        yield from iterate_lines(path)
        return
    usual = check_tabs(lines_of, path, first)
    position = None
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line:
            continue
        cells = line.split("\t")
        check_tabs_of_line(cells, usual, path, number)
        position = likelier(known, path) if position is None else position
        yield number, [cells[1 - position]]


def iterate_table(path, names):
    """`(line, cells of the texts)` of a file with a header."""
    records = csv_records(path) if path.suffix == ".csv" else tsv_records(path)
    _, columns = next(records, (0, None))
    if columns is None:
        raise InputError(f"{path}: no row in the file: give a header and rows")
    texts, _ = find_columns(columns, *names, path, need_labels=False)
    indices = [columns.index(text) for text in texts]
    for line, cells in records:
        check_cells(cells, columns, path, line)
        yield line, [cells[index] for index in indices]


def iterate_json(path, names):
    """`(line, cells of the texts)` of JSON lines; the first one names the columns."""
    texts = None
    for number, item in json_records(path):
        if texts is None:
            texts, _ = find_columns(list(item), *names, path, need_labels=False)
        check_item(item, texts, path, number)
        yield number, [item[text] for text in texts]


def iterate_parquet(path, names):
    """`(row, cells of the texts)` of a parquet file, a piece at a time."""
    file = open_parquet(path)
    texts, _ = find_columns(file.schema_arrow.names, *names, path, need_labels=False)
    try:
        batches = file.iter_batches(PIECE_ROWS, columns=texts)
        cells = (row for batch in batches for row in zip(*(batch[text].to_pylist() for text in texts), strict=True))
        yield from enumerate(cells, start=1)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: damaged parquet file ({str(error).splitlines()[0]}): copy it again") from None
