"""The same content gives the same rows whatever the format, and what cannot be read is named by its line."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from conftest import refused

from kd_trainer.errors import InputError
from kd_trainer.files import read_rows

LABELS = ["体育", "财经", "科技"]
TEXTS = [
    "plain", "NA", "null", "None", "", "nan", "True", "1.0", '"leading quote', '"quoted"', "comma, and 'more'",
    "  white space  ", "全角　ＡＢＣ１２３，。", "emoji 😀👨‍👩‍👧", "line\u2028paragraph\u2029next\u0085",
    "vt\x0bff\x0cfs\x1c", "nul\x00byte", "\ufeffbom inside", "\\n \\t \\", "#hash", "=1+1", "é e\u0301",
    "x" * 100_000, "长" * 200_000,
]  # fmt: skip
ROWS = [(text, LABELS[row % 3]) for row, text in enumerate(TEXTS)]


def as_csv(rows):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def as_lines(rows):
    return "".join("\t".join(cells) + "\n" for cells in rows).encode()


def as_json_lines(rows, ascii_only=False):
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows]
    return ("\n".join(lines) + "\n").encode()


def as_json_list(rows, indent=2):
    return json.dumps([{"text": text, "label": label} for text, label in rows], indent=indent).encode()


def as_parquet(rows, texts=None, labels=None):
    """Bytes of a parquet file; `texts` and `labels` are pyarrow's types."""
    columns = {"text": ([text for text, _ in rows], texts), "label": ([label for _, label in rows], labels)}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.table({name: pyarrow.array(cells, kind) for name, (cells, kind) in columns.items()}), sink
    )
    return sink.getvalue().to_pybytes()


@pytest.fixture
def write(tmp_path):
    """A function that writes `str` or `bytes` into a file of the test's folder and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def read(write):
    """A function that writes a file and returns its rows as `(text, label)` pairs."""

    def read(name, content, **kwargs):
        rows = read_rows(write(name, content), **kwargs)
        assert len(rows.texts) == len(rows.labels) == len(rows.lines) > 0
        return list(zip(rows.texts, rows.labels, strict=True))

    return read


# The same content gives the same rows


@pytest.mark.parametrize(
    "name, content, first",
    [
        ("a.csv", as_csv(ROWS), 2),
        ("a.tsv", as_lines([("text", "label"), *ROWS]), 2),
        ("headerless.tsv", as_lines((label, text) for text, label in ROWS), 1),
        ("a.jsonl", as_json_lines(ROWS), 1),
        ("ascii.jsonl", as_json_lines(ROWS, ascii_only=True), 1),
        ("lines.json", as_json_lines(ROWS), 1),
        ("list.json", as_json_list(ROWS), 1),
        ("one_line.json", as_json_list(ROWS, None), 1),
        ("a.parquet", as_parquet(ROWS), 1),
        ("large.parquet", as_parquet(ROWS, pyarrow.large_string()), 1),
        ("label_first.txt", as_lines((label, text) for text, label in ROWS), 1),
        ("text_first.txt", as_lines(ROWS), 1),
    ],
)
@pytest.mark.parametrize("known", [(), LABELS], ids=["unknown labels", "known labels"])
def test_every_format_gives_the_same_rows(write, name, content, first, known):
    rows = read_rows(write(name, content), known_labels=known)
    assert list(zip(rows.texts, rows.labels, strict=True)) == ROWS
    assert rows.lines == list(range(first, first + len(ROWS))) and rows.source.endswith(name)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "label.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False], ids=["last line ends", "last line is open"])
def test_bom_line_ends_and_the_last_end_do_not_matter(read, name, end, bom, last):
    rows = [("一二", "甲"), ("三四", "乙"), ("五六", "甲")]
    plain = {
        "csv": as_csv(rows),
        "tsv": as_lines([("text", "label"), *rows]),
        "jsonl": as_json_lines(rows),
        "json": as_json_list(rows) + b"\n",
        "txt": as_lines((label, text) for text, label in rows),
    }[name.split(".")[1]].decode()
    content = bom + plain.replace("\n", end)
    assert read(name, content if last else content.removesuffix(end)) == rows


def test_csv_cells_may_span_lines_and_hold_quotes(write):
    text = 'label,text,more\n甲,"two\nlines, ""quoted""",x\n\n乙,"a\n\n\nb",y\n\n\n甲,c,z\n'
    rows = read_rows(write("a.csv", text))
    assert rows.texts == ['two\nlines, "quoted"', "a\n\n\nb", "c"]
    assert rows.labels == ["甲", "乙", "甲"] and rows.lines == [2, 5, 11]


@pytest.mark.parametrize(
    "name, content, lines",
    [
        ("a.csv", "\n\ntext,label\n\na,1\n\n\nb,2\n\n", [5, 8]),
        ("a.tsv", "\ntext\tlabel\n\na\t1\n\n\nb\t2\n\n", [4, 7]),
        ("a.txt", "\n\n1\ta\n\n2\tb\n1\tc\n\n", [3, 5, 6]),
        ("a.jsonl", '\n{"text": "a", "label": 1}\n\n  \n{"text": "b", "label": 2}\n\n', [2, 5]),
    ],
)
def test_blank_lines_are_skipped_and_counted(write, name, content, lines):
    rows = read_rows(write(name, content))
    assert rows.lines == lines and rows.texts == ["a", "b", "c"][: len(lines)]


def test_a_json_list_may_start_after_blank_lines(read):
    assert read("a.json", b"\n\n" + as_json_list(ROWS[:4])) == ROWS[:4]


def test_text_and_label_id(read):
    rows = [("天气\u3000好", "10"), ("股市", "2"), ("天晴", "10")]
    assert read("a.txt", as_lines(rows)) == rows


def test_known_labels_tell_the_label_from_the_text(read):
    # The texts repeat, the labels do not.
    content = "x\t0\nx\t1\nx\t2\n"
    assert read("a.txt", content, known_labels=["0", "1", "2"]) == [("x", "0"), ("x", "1"), ("x", "2")]
    assert read("a.txt", content) == [("0", "x"), ("1", "x"), ("2", "x")]


# Labels


@pytest.mark.parametrize(
    "kind, cells, labels",
    [
        (pyarrow.string(), [" 甲\t", "", None, "  "], ["甲", None, None, None]),
        (pyarrow.int64(), [0, -1, None, 10], ["0", "-1", None, "10"]),
        (pyarrow.int8(), [3, 2, 1, 0], ["3", "2", "1", "0"]),
        (pyarrow.float64(), [0.0, 2.0, None, -1.0], ["0", "2", None, "-1"]),
        (pyarrow.bool_(), [True, False, None, True], ["1", "0", None, "1"]),
        (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), ["甲", "乙", None, "甲"], ["甲", "乙", None, "甲"]),
    ],
    ids=str,
)
def test_parquet_labels_of_every_type(read, kind, cells, labels):
    rows = [("a", cells[0]), ("b", cells[1]), ("c", cells[2]), ("d", cells[3])]
    assert read("a.parquet", as_parquet(rows, None, kind)) == list(zip("abcd", labels, strict=True))


def test_json_labels_of_every_type(read):
    cells = ["甲", " 乙 ", 0, 1.0, -1, True, False, None, ""]
    labels = ["甲", "乙", "0", "1", "-1", "1", "0", None, None]
    assert [label for _, label in read("a.jsonl", as_json_lines([("x", cell) for cell in cells]))] == labels
    assert [label for _, label in read("a.json", as_json_list([("x", cell) for cell in cells]))] == labels


def test_json_rows_may_lack_their_label_and_hold_more(read):
    content = '{"text": "a"}\n{"id": 7, "label": "甲", "text": "b"}\n{"text": null, "label": "乙"}\n'
    assert read("a.jsonl", content) == [("a", None), ("b", "甲"), ("", "乙")]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", 'text,label\na, 甲 \nb,\nc,"　"\n'),
        ("a.tsv", "text\tlabel\na\t 甲 \nb\t\nc\t　\n"),
        ("a.txt", " 甲 \ta\n\tb\n　\tc\n"),
    ],
)
def test_white_space_around_labels_is_dropped_and_an_empty_label_is_none(read, name, content):
    assert read(name, content, known_labels=["甲", ""]) == [("a", "甲"), ("b", None), ("c", None)]


# Columns


@pytest.mark.parametrize("text", ["text", "sentence", "content", "headline", "title", "review"])
@pytest.mark.parametrize("label", ["label", "labels", "category", "class"])
def test_columns_are_found_by_their_usual_names(read, text, label):
    assert read("a.csv", f"id,{label},{text}\n7,甲,a\n") == [("a", "甲")]
    assert read("a.tsv", f"id\t{label}\t{text}\n7\t甲\ta\n") == [("a", "甲")]
    assert read("a.jsonl", json.dumps({"id": 7, label: "甲", text: "a"})) == [("a", "甲")]


def test_columns_are_found_by_the_names_given(read):
    columns = {"text_column": "c d", "label_column": "类"}
    assert read("a.csv", "text,c d,label,类\nx,a,y,甲\n", **columns) == [("a", "甲")]
    assert read("a.tsv", "c d\t类\na\t甲\n", **columns) == [("a", "甲")]
    assert read("a.jsonl", '{"text": "x", "c d": "a", "类": "甲"}', **columns) == [("a", "甲")]


@pytest.mark.parametrize("name, content", [("a.csv", "id,text\n7,a\n"), ("a.jsonl", '{"id": 7, "text": "a"}\n')])
def test_a_label_column_may_not_be_missing(read, name, content):
    with refused("no column is called label", "'id', 'text'", "--label_column"):
        read(name, content)


@pytest.mark.parametrize(
    "name, content",
    [("a.csv", "id,body\n7,a\n"), ("a.jsonl", '{"id": 7, "body": "a"}'), ("a.json", '[{"id": 7, "body": "a"}]')],
)
def test_a_missing_column_names_those_there(read, name, content):
    with refused("a.", "no column is called text", "'id', 'body'", "--text_column"):
        read(name, content)
    for missing in ({"text_column": "文"}, {"text_column": "body", "label_column": "文"}):
        with refused("no column '文'", "'id', 'body'"):
            read(name, content, **missing)


def test_a_missing_parquet_column_names_those_there(read):
    with refused("no column '文'", "'text', 'label'"):
        read("a.parquet", as_parquet(ROWS[:2]), text_column="文")


@pytest.mark.parametrize("name, between", [("a.csv", ","), ("a.tsv", "\t")])
def test_a_column_that_stands_twice_is_refused(read, name, between):
    with refused("'text' stands twice"):
        read(name, f"text{between}label{between}text\na{between}甲{between}b\n")


# Files that cannot be read

SUFFIXES = [".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_files_and_folders_are_refused(tmp_path, suffix):
    with refused("missing", "no such file"):
        read_rows(tmp_path / f"missing{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with refused(f"folder{suffix}"):
        read_rows(tmp_path / f"folder{suffix}")
    (tmp_path / "file.csv").write_text("text,label\n")
    with refused(f"inside{suffix}"):
        read_rows(tmp_path / "file.csv" / f"inside{suffix}")
    with refused(suffix):
        read_rows(tmp_path / f"{'a' * 300}{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", ["", "\n\n\r\n", "\ufeff", "\ufeff\n"], ids=ascii)
def test_empty_files_are_refused(read, suffix, content):
    with refused(f"a{suffix}"):
        read(f"a{suffix}", content)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel\n\n"),
        ("a.json", "[]"),
        ("a.parquet", as_parquet([], pyarrow.string(), pyarrow.string())),
    ],
)
def test_a_header_without_rows_is_refused(read, name, content):
    with refused(name, "no row"):
        read(name, content)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.CSV.gz", "a.pdf"])
def test_an_unknown_suffix_is_refused(read, name):
    with refused(name, "unknown kind of file", ".csv"):
        read(name, "text,label\na,甲\n")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".json"])
def test_a_line_that_is_not_utf8_is_named(write, suffix):
    lines = {
        ".csv": ["text,label", "a,甲", "b,乙", "c,甲"],
        ".tsv": ["text\tlabel", "a\t甲", "b\t乙", "c\t甲"],
        ".txt": ["甲\ta", "甲\tb", "乙\tc", "甲\td"],
        ".jsonl": [f'{{"text": "{text}", "label": "乙"}}' for text in "abcd"],
        ".json": ["[", '{"text": "a", "label": "甲"},', '{"text": "b", "label": "乙"}', "]"],
    }[suffix]
    content = b"\n".join(line.encode("gbk" if number == 3 else "utf-8") for number, line in enumerate(lines, 1))
    with refused(f"a{suffix} line 3:", "not UTF-8", "0x"):
        read_rows(write(f"a{suffix}", content))
    with refused(f"b{suffix} line 1:", "not UTF-8"):
        read_rows(write(f"b{suffix}", "\n".join(lines).encode("utf-16")))


@pytest.mark.parametrize(
    "name, header, line, bad",
    [
        ("a.csv", "text,label", "text,甲", "no label here"),
        ("a.csv", "text,label", "text,甲", "one, comma too many,甲"),
        ("a.tsv", "text\tlabel", "text\t甲", "no tab"),
        ("a.tsv", "text\tlabel", "text\t甲", "text\t甲\t"),
        ("a.tsv", "text\tlabel", "text\t甲", "   "),
        ("a.txt", "甲\tx", "甲\ttext", "no tab"),
        ("a.txt", "甲\tx", "甲\ttext", "甲\ttwo\ttabs"),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": "x", "label": 1'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"label": 1}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": "x", "label": 0.5}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": "x", "label": NaN}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": "x", "label": [0, 1]}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": "x", "label": {"a": 1}}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": ["x", "y"], "label": 1}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '{"text": {"x": 1}, "label": 1}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', r'{"text": "\ud83d", "label": 1}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', r'{"text": "x", "label": "\ud83d"}'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '["x", 1]'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', '"x"'),
        ("a.jsonl", '{"text": "x", "label": 0}', '{"text": "x", "label": 1}', "null"),
    ],
)
def test_one_bad_line_among_5000_is_named(write, name, header, line, bad):
    lines = [header, *[line] * 5000]
    lines[3210] = bad
    with refused(f"{name} line 3211:"):
        read_rows(write(name, "\n".join(lines)))


@pytest.mark.parametrize("bad", ['"open,甲', '"closed"not,甲', "carriage\rreturn,甲"])
def test_broken_csv_names_the_line_where_the_row_starts(write, bad):
    with refused("a.csv line 4:", "not valid csv"):
        read_rows(write("a.csv", f'text,label\n"two\nlines",甲\n{bad}\nb,乙\nc,甲\n'))


@pytest.mark.parametrize(
    "content, found",
    [
        ('[{"text": "a", "label": 1},\n{"text": "b" "label": 1}]', ["line 2", "not valid JSON"]),
        ('[{"text": "a", "label": 1}', ["line 1", "not valid JSON"]),
        ('{\n  "text": "a"\n}\n', ["line 1", "not valid JSON"]),
        ('{"data": [{"text": "a"}]}\n', ["no column is called text", "'data'"]),
        ("[1, 2]", ["not an object"]),
        ('["a", "b"]', ["not an object"]),
        ('[["a", 1]]', ["not an object"]),
        ("{}\n{}\n", ["no column is called text"]),
        ("text,label\na,1\n", ["line 1", "not valid JSON"]),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_broken_json_says_what_is_wrong(read, name, content, found):
    with refused(name, *found):
        read(name, content)


@pytest.mark.parametrize("kind, cell", [(pyarrow.float64(), 0.5), (pyarrow.list_(pyarrow.int64()), [1, 2])])
def test_parquet_labels_that_are_not_labels_are_refused(read, kind, cell):
    with refused("a.parquet line 2:", str(cell)):
        read("a.parquet", as_parquet([("a", None), ("b", cell)], None, kind))


def test_texts_that_are_bytes_are_refused_or_decoded(write):
    path = write("a.parquet", as_parquet([("新闻".encode(), "甲")], pyarrow.binary()))
    try:
        assert read_rows(path).texts == ["新闻"]
    except InputError as error:
        assert "a.parquet" in str(error)


PARQUET = as_parquet([(f"text {row}", "甲") for row in range(2000)])


@pytest.mark.parametrize(
    "content",
    [
        PARQUET[: len(PARQUET) // 2],
        PARQUET[:-6] + b"\xff" * 6,
        b"PAR1" + b"\x00" * 100 + b"PAR1",
        b"PAR1" + b"\xff" * (len(PARQUET) // 2) + PARQUET[4 + len(PARQUET) // 2 :],
        PARQUET[:-400] + b"\xff" * 300 + PARQUET[-100:],
        b"text,label\na,1\n",
    ],
    ids=["cut", "no end", "no content", "data", "footer", "csv"],
)
def test_a_damaged_parquet_file_is_refused(read, content):
    with refused("a.parquet"):
        read("a.parquet", content)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".parquet"])
def test_a_file_of_empty_texts_is_refused(read, suffix):
    rows = [("", "甲"), ("  ", "乙"), ("　", "甲"), ("", "乙")]
    content = {
        ".csv": as_csv(rows),
        ".tsv": as_lines([("text", "label"), *rows]),
        ".txt": as_lines(rows),
        ".jsonl": as_json_lines(rows),
        ".parquet": as_parquet(rows),
    }[suffix]
    with refused(f"a{suffix}", "all 4 texts are empty", "--text_column"):
        read(f"a{suffix}", content, known_labels=["甲", "乙"])


# Files without a header

MANY = "".join(f"{label}\t{label}的新闻{row}\n" for row in range(4) for label in LABELS)


@pytest.mark.parametrize("header", ["类别\t正文", "Label\tText", "Text\tLabel", "y\tx"])
@pytest.mark.parametrize("name", ["a.tsv", "a.txt"])
def test_a_header_that_is_not_known_is_not_taken_for_a_row(read, name, header):
    with refused(f"{name} line 1:", "header", "--text_column"):
        read(name, f"{header}\n{MANY}")


def test_a_rare_label_on_the_first_line_is_no_header_when_labels_are_known(read):
    rows = read("a.txt", f"军事\t演习\n{MANY}", known_labels=[*LABELS, "军事"])
    assert rows[0] == ("演习", "军事") and len(rows) == 13


@pytest.mark.parametrize("name", ["a.txt", "a.tsv"])
def test_lines_without_any_tab_are_refused_where_labels_are_needed(read, name):
    with refused(f"{name} line 2:", "no tab", "label<TAB>text"):
        read(name, "\n一行文字\n又一行\n")


def test_too_many_columns_without_a_header_are_refused(read):
    with refused("a.txt", "3 columns", "header"):
        read("a.txt", "甲\ta\tb\n乙\tc\td\n")


@pytest.mark.parametrize("content", ["甲\ta\n乙\tb\n", "a\t甲\n", "x\tx\ny\ty\n"])
def test_text_and_label_that_cannot_be_told_apart_are_refused(read, content):
    with refused("a.txt", "cannot tell text from label", "--class_file"):
        read("a.txt", content)
    with refused("a.txt", "cannot tell text from label"):
        read("a.txt", content, known_labels=["丙"])
