"""Read labelled texts from a file, each row with the line it stands on, so that a mistake can be named by its line."""

import csv
import itertools
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet

from .errors import InputError
from .pairs import sides

TEXT_COLUMNS = ("text", "sentence", "content", "headline", "title", "review")
LABEL_COLUMNS = ("label", "labels", "category", "class")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


@dataclass
class Rows:
    """
    The rows of one split as they stand in their file.

    Args:
        source (`str`): File or data set, for messages.
        texts (`list[str]` or `list[tuple[str, str]]`): A missing text is the empty string; tuples are pairs of texts.
        labels (`list[str | None]`): As written; None where there is none.
        lines (`list[int]`): Line of each row in its file, or its number in a file without lines, from 1.
        answers (`list`, *optional*): A teacher's, one cell a row as it is written; None where no column was asked for
            or the file lacks it.
    """

    source: str
    texts: list[str | tuple[str, str]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    answers: list | None = None

    def add(self, line, cells, label):
        """
        One row; `cells` are that of its text or those of its two texts, of any type as `label` is, None or empty when
        missing. Neither text of a pair may be.
        """
        place = f"{self.source} line {line}"
        label = None if label is None else as_label(label, place)
        texts = tuple("" if cell is None else as_text(cell, place) for cell in cells)
        try:
            "".join((*texts, label or "")).encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: half a surrogate pair (\\ud800..\\udfff): mend or remove the line") from None
        if len(texts) > 1 and not all(text.strip() for text in texts):
            which = "second" if texts[0].strip() else "first"
            raise InputError(f"{place}: the {which} text of the pair is empty: mend or remove the line")
        self.texts.append(texts if len(texts) > 1 else texts[0])
        self.labels.append(label or None)
        self.lines.append(line)


def as_text(cell, place):
    """A text cell as text; numbers are written out."""
    if isinstance(cell, (list, dict, bytes)):
        raise InputError(f"{place}: {str(cell)[:40]!r} is not a text: give strings")
    return str(cell)


def as_label(cell, place):
    """A label cell as text: whole numbers without a fraction, strings without white space around them."""
    if isinstance(cell, float) and not cell.is_integer():
        raise InputError(f"{place}: label {cell} is a fraction: give label names or whole-number ids")
    if isinstance(cell, (list, dict)):
        raise InputError(f"{place}: label {cell} is not one label: the scripts train single-label classifiers")
    return str(int(cell)) if isinstance(cell, (bool, float)) else str(cell).strip()


def decoded_lines(path):
    """
    Lines of a UTF-8 file without their ends. Only `\\n` (or `\\r\\n`) ends a line: NUL, U+2028 and their like are data.

    Raises:
        `InputError`: For a file that is missing or empty, or a line that is not UTF-8, which is named.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty: give one with a text on each line")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    found = f"byte 0x{line[error.start]:02x}"
                    raise InputError(f"{path} line {number}: not UTF-8 ({found}): convert the file to UTF-8") from None
                yield text.rstrip("\n").removesuffix("\r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: not a readable file ({error}): check the path") from None


def find_column(columns, flag, name, usual, source, required):
    """
    The column that is called `name`, which `flag` gives, or one of the `usual` names when `name` is None.

    Raises:
        `InputError`: When a required or named column is missing.
    """
    if name is not None:
        if name not in columns:
            raise InputError(
                f"{source}: no column {name!r}, the columns are {', '.join(map(repr, columns))}: give another {flag}"
            )
        return name
    found = next((column for column in usual if column in columns), None)
    if found is None and required:
        raise InputError(
            f"{source}: no column is called {', '.join(usual)}; the columns are {', '.join(map(repr, columns))}: "
            f"pass {flag}"
        )
    return found


def check_header(columns, source):
    """Refuses a header that names a column twice."""
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"{source}: column {twice[0]!r} stands twice in the header: rename one of them")


def find_columns(columns, text_column, label_column, text_pair_column, source, need_labels):
    """
    Names of the text columns, two where `text_pair_column` names the second (`list[str]`), and of the label column; the
    latter is None when there is none and none is needed.
    """
    check_header(columns, source)
    texts = [find_column(columns, "--text_column", text_column, TEXT_COLUMNS, source, required=True)]
    if text_pair_column is not None:
        texts.append(find_column(columns, "--text_pair_column", text_pair_column, (), source, required=True))
        if texts[0] == texts[1]:
            raise InputError(f"{source}: column {texts[0]!r} is both texts of the pair: pass another --text_column")
    label = find_column(columns, "--label_column", label_column, LABEL_COLUMNS, source, required=need_labels)
    if label in texts:
        raise InputError(f"{source}: column {label!r} is a text and the label: pass another --text_column")
    return texts, label


def check_cells(cells, columns, path, line):
    """Refuses a line of more or fewer cells than the header."""
    if len(cells) != len(columns):
        raise InputError(
            f"{path} line {line}: {len(cells)} cells where the header has {len(columns)}: mend or remove the line"
        )


def check_item(item, texts, path, number):
    """Refuses an object without its texts."""
    for text in texts:
        if text not in item:
            raise InputError(
                f"{path} line {number}: no {text!r}, only {', '.join(map(repr, item))}: mend or remove the line"
            )


def check_has_columns(path, text_pair_column):
    """Refuses a `.txt` for pairs."""
    if text_pair_column is not None:
        raise InputError(
            f"{path}: a .txt has no columns, so none for --text_pair_column: give .csv, .tsv, .jsonl, .json or .parquet"
        )


def open_parquet(path):
    """A `pyarrow.parquet.ParquetFile`, its failure said in one line."""
    try:
        return pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]}): check the file"
        ) from None


def read_table(path, records, columns, chosen, answer_column):
    """Rows of a file with a header: `records` yields `(line, cells)`."""
    text_columns, label_column = chosen
    text_indices = [columns.index(text_column) for text_column in text_columns]
    label_index = columns.index(label_column)
    answer_index = columns.index(answer_column) if answer_column in columns else None
    rows = Rows(str(path), answers=None if answer_index is None else [])
    for line, cells in records:
        check_cells(cells, columns, path, line)
        rows.add(line, [cells[index] for index in text_indices], cells[label_index])
        if answer_index is not None:
            rows.answers.append(cells[answer_index])
    return rows


def csv_records(path):
    """`(line, cells)` of a comma-separated file; a quoted cell may span lines, the first of them is named."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((f"{line}\n" for line in decoded_lines(path)), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path} line {start}: not valid csv ({error}): mend its quotes") from None


def tsv_records(path):
    """`(line, cells)` of a tab-separated file; quotes are text."""
    for number, line in enumerate(decoded_lines(path), start=1):
        if line:
            yield number, line.split("\t")


def json_records(path):
    """`(line, object)` of a file of JSON lines, or of one JSON list."""
    lines = decoded_lines(path)
    blank = []  # kept: they count
    for line in lines:
        blank.append(line)
        if line.strip():
            break
    lines = itertools.chain(blank, lines)
    is_list = bool(blank) and blank[-1].lstrip().startswith("[")
    if is_list:
        try:
            objects = enumerate(json.loads("\n".join(lines)), start=1)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {error.lineno}: not valid JSON ({error.msg}): mend the line") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand deep
            raise InputError(f"{path}: not readable JSON ({error}): mend the file") from None
    else:
        objects = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for number, item in objects:
        if not is_list:
            try:
                item = json.loads(item)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number}: not valid JSON ({error}): mend or remove the line") from None
        if not isinstance(item, dict):
            raise InputError(f'{path} line {number}: {str(item)[:40]!r} is not an object: write {{"text": …}}')
        yield number, item


def read_json(path, names, answer_column):
    """Rows of JSON lines; the first object names the columns, a later one may leave out its label but not its text."""
    records = list(json_records(path))
    if not records:
        raise InputError(f"{path}: no row in the file: give one object on each line")
    columns = list(dict.fromkeys(key for _, item in records for key in item))
    texts, label = find_columns(columns, *names, path, need_labels=True)
    rows = Rows(str(path), answers=[] if answer_column in columns else None)
    for number, item in records:
        check_item(item, texts, path, number)
        rows.add(number, [item[text] for text in texts], item.get(label))
        if rows.answers is not None:
            rows.answers.append(item.get(answer_column))
    return rows


def read_parquet(path, names, answer_column):
    """Rows of a parquet file; what stands in for a line is the row's number."""
    file = open_parquet(path)
    texts, label = find_columns(file.schema_arrow.names, *names, path, need_labels=True)
    rows = Rows(str(path))
    try:
        given = answer_column if answer_column in file.schema_arrow.names else None
        table = file.read(columns=[*texts, label, *([] if given is None else [given])])
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: damaged parquet file ({str(error).splitlines()[0]}): copy it again") from None
    columns = [table[name].to_pylist() for name in (*texts, label)]
    for number, (*cells, label_cell) in enumerate(zip(*columns, strict=True), start=1):
        rows.add(number, cells, label_cell)
    rows.answers = None if given is None else table[given].to_pylist()
    return rows


def label_position(records, known_labels, path):
    """
    Which of two columns without a header is the label: the one that holds known labels, or else fewer different values.

    Raises:
        `InputError`: When neither tells.
    """
    columns = list(zip(*(cells for _, cells in records), strict=True))
    if known_labels:
        known = [sum(cell.strip() in known_labels for cell in column) for column in columns]
    else:
        known = [-len(set(column)) for column in columns]
    return likelier(known, path)


def likelier(scores, path):
    """Which of two columns is the label, by a score (`int`) for each; neither where they are equal."""
    if scores[0] == scores[1]:
        raise InputError(f"{path}: cannot tell text from label: give a .tsv with a header, or --class_file")
    return int(scores[1] > scores[0])


def check_tabs(lines_of, path, first):
    """
    How many cells a line without a header has, from how many lines have so many (`Counter`); `first` is the number of
    the first line that is not empty.

    Raises:
        `InputError`: Unless it is two.
    """
    if not lines_of:
        raise InputError(f"{path}: no row in the file: give one with a text on each line")
    usual = lines_of.most_common(1)[0][0]
    if usual == 1:
        raise InputError(f"{path} line {first}: no tab: expected label<TAB>text or text<TAB>label on every line")
    if usual > 2:
        raise InputError(f"{path}: {usual} columns and no header that is known: add a header or pass --text_column")
    return usual


def check_tabs_of_line(cells, usual, path, line):
    """Refuses a line of another number of cells (`list[str]`) than the `usual` one."""
    if len(cells) != usual:
        raise InputError(
            f"{path} line {line}: {len(cells) - 1} tabs where most lines have {usual - 1}: mend or remove the line"
        )


def read_headerless(path, known_labels):
    """
    Rows of a file of `label<TAB>text` or `text<TAB>label` lines.

    Raises:
        `InputError`: For a line with another number of tabs than the rest, and for what looks like a header.
    """
    records = [(number, line.split("\t")) for number, line in enumerate(decoded_lines(path), start=1) if line]
    usual = check_tabs(Counter(len(cells) for _, cells in records), path, records[0][0] if records else None)
    for line, cells in records:
        check_tabs_of_line(cells, usual, path, line)
    rows = Rows(str(path))
    position = label_position(records, known_labels, path)
    labels = [cells[position].strip() for _, cells in records]
    if not known_labels and len(records) > 2 and labels.count(labels[0]) == 1 and len(set(labels)) < len(labels) / 2:
        raise InputError(
            f"{path} line 1: looks like a header, its label {labels[0]!r} occurs nowhere else: "
            "pass --text_column and --label_column, or remove the line"
        )
    for line, cells in records:
        rows.add(line, [cells[1 - position]], cells[position])
    return rows


def read_rows(
    path,
    text_column=None,
    label_column=None,
    known_labels=(),
    answer_column=None,
    text_pair_column=None,
):
    """
    The rows of one file.

    Args:
        path (`str`): `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, or `.txt` (no header).
        text_column, label_column (`str`, *optional*): Names in the header; the usual names are found without.
        known_labels (collection of `str`, *optional*): What a label can be, to tell it from the text without a header.
        answer_column (`str`, *optional*): Column of a teacher's answers, which a file may lack.
        text_pair_column (`str`, *optional*): Column of the second text, where a row is a pair of texts.

    Returns:
        [`Rows`], at least one. A row without a label is no error here, a file without the column is.

    Raises:
        `InputError`: For whatever cannot be read, with the line.
    """
    path = Path(path)
    names = (text_column, label_column, text_pair_column)
    if path.suffix in (".json", ".jsonl"):
        rows = read_json(path, names, answer_column)
    elif path.suffix == ".parquet":
        rows = read_parquet(path, names, answer_column)
    elif path.suffix == ".txt":
        check_has_columns(path, text_pair_column)
        rows = read_headerless(path, known_labels)
    elif path.suffix in (".csv", ".tsv"):
        records = csv_records(path) if path.suffix == ".csv" else tsv_records(path)
        _, columns = next(records, (0, None))
        if columns is None:
            raise InputError(f"{path}: no row in the file: give a header and rows")
        if path.suffix == ".tsv" and not has_header(columns, names):
            rows = read_headerless(path, known_labels)
        else:
            chosen = find_columns(columns, *names, path, need_labels=True)
            rows = read_table(path, records, columns, chosen, answer_column)
    else:
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}: give one of {', '.join(SUFFIXES)}")
    if not rows.texts:
        raise InputError(f"{path}: no row in the file: give one with a text on each line")
    if not any(side.strip() for text in rows.texts for side in sides(text)):
        raise InputError(f"{path}: all {len(rows.texts)} texts are empty: check --text_column")
    return rows


def has_header(columns, names):
    """Whether a `.tsv` whose first line has the cells `columns` has a header: `names` are asked for, or usual there."""
    return any(name is not None for name in names) or not {*TEXT_COLUMNS, *LABEL_COLUMNS}.isdisjoint(columns)
