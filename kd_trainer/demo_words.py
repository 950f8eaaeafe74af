"""All that the page of [`demo`] says, in each of its languages."""

import re

LANGUAGES = {"zh": "中文", "en": "English"}

WORDS = {
    "title": {"en": "Try the student", "zh": "试用学生模型"},
    "intro": {
        "en": "A small text classifier, **{student}**{teacher}. Labels: {labels}.",
        "zh": "小型文本分类模型 **{student}**{teacher}。类别：{labels}。",
    },
    "beside_teacher": {"en": ", beside its teacher, **{teacher}**", "zh": "，与教师模型 **{teacher}** 对照"},
    "language": {"en": "Language", "zh": "语言"},
    "one_tab": {"en": "One text", "zh": "单条文本"},
    "many_tab": {"en": "A csv file", "zh": "CSV 文件"},
    "text": {"en": "Text", "zh": "文本"},
    "first_text": {"en": "First text", "zh": "第一段文本"},
    "second_text": {"en": "Second text", "zh": "第二段文本"},
    "text_hint": {"en": "Type a text, press Enter", "zh": "输入文本，按回车键"},
    "classify": {"en": "Classify", "zh": "分类"},
    "examples": {"en": "Examples", "zh": "示例"},
    "student": {"en": "Student", "zh": "学生"},
    "teacher": {"en": "Teacher", "zh": "教师"},
    "agree": {"en": "Both models agree", "zh": "两个模型一致"},
    "differ": {"en": "The models differ", "zh": "两个模型不一致"},
    "probabilities": {"en": "Probabilities", "zh": "概率"},
    "label": {"en": "Label", "zh": "类别"},
    "more_labels": {"en": "… and {count} labels that are less likely", "zh": "……另有 {count} 个概率更低的类别"},
    "time": {"en": "{milliseconds} ms", "zh": "{milliseconds} 毫秒"},
    "time_note": {
        "en": "Time: this one text on this server, from text to probabilities.",
        "zh": "用时：本服务器处理这一条文本，从文本到概率。",
    },
    "mattered": {"en": "What mattered most: {model}, “{label}”", "zh": "影响最大的部分：{model}，“{label}”"},
    "mattered_note": {
        "en": "Gradient times input, of the logit of the label given. Underlined and in bold: the largest, numbered by "
        "size. + speaks for the label, − against it. It says what a small change there would do, not why.{ngrams}",
        "zh": "梯度乘以输入，针对所给类别的 logit。下划线加粗的是影响最大的部分，按大小编号。"
        "+ 支持该类别，− 反对该类别。"
        "它说明此处的微小变化会带来什么，而不是原因。{ngrams}",
    },
    "mattered_ngrams": {
        "en": " The student's n-grams are counted, in equal shares to their tokens.",
        "zh": "学生模型的 n-gram 也计算在内，平均分给其中的各个词元。",
    },
    "no_attribution": {
        "en": "What mattered cannot be shown for the {model}: its tokenizer or its embeddings do not allow it.",
        "zh": "无法显示{model}模型中影响最大的部分：其分词器或嵌入层不支持。",
    },
    "cut": {
        "en": "The {model} has not read all of the text: {read} of {length} characters. Its limit is {limit} tokens.",
        "zh": "{model}模型没有读完文本：只读了 {length} 个字符中的 {read} 个。它最多读 {limit} 个词元。",
    },
    "cut_pair": {
        "en": "The {model} has not read the texts to their ends. Its limit is {limit} tokens, of both together.",
        "zh": "{model}模型没有读完两段文本：它一共最多读 {limit} 个词元。",
    },
    "unread": {"en": "… not read: {count} characters", "zh": "……未读 {count} 个字符"},
    "many_intro": {
        "en": "A UTF-8 `.csv` with a header and a column {columns}. At most {megabytes} MB and {rows} rows; of each "
        "text at most the first {characters} characters and {limit} tokens are read. It comes back with the "
        "student's label and a probability for each label.",
        "zh": "UTF-8 编码、带表头的 `.csv`，含列 {columns}。最大 {megabytes} MB、{rows} 行；每条文本最多读取前 "
        "{characters} 个字符、{limit} 个词元。返回的文件带有学生模型给出的类别和各类别的概率。",
    },
    "comma": {"en": ", ", "zh": "、"},
    "or": {"en": " or ", "zh": " 或 "},
    "and": {"en": " and a column ", "zh": " 及列 "},
    "upload": {"en": "Choose a csv file", "zh": "选择 CSV 文件"},
    "download": {"en": "Download the labelled file", "zh": "下载分类结果"},
    "labelled": {
        "en": "{rows} rows of {name} labelled in {seconds} s.",
        "zh": "{name} 的 {rows} 行已分类，用时 {seconds} 秒。",
    },
    "rows": {"en": "Rows", "zh": "行数"},
    # What is refused.
    "empty": {"en": "There is no text: type one, then press Enter.", "zh": "没有文本：请输入文本，再按回车键。"},
    "empty_side": {
        "en": "This model reads two texts: type both, then press Enter.",
        "zh": "该模型读两段文本：请都输入，再按回车键。",
    },
    "too_long": {
        "en": "The text has {length} characters, the page takes {most} at most: shorten it, or put it into a csv file.",
        "zh": "文本有 {length} 个字符，本页面最多接受 {most} 个：请缩短，或放入 CSV 文件。",
    },
    "surrogate": {
        "en": "The text holds half a character (a lone surrogate) at place {place}: remove it.",
        "zh": "文本第 {place} 个位置有半个字符（孤立的代理码元）：请删除。",
    },
    "not_finite": {
        "en": "The {model} answers with something that is not a number: its training has diverged.",
        "zh": "{model}模型给出的结果不是数字：它的训练已发散。",
    },
    "no_file": {"en": "No file has arrived: choose one again.", "zh": "没有收到文件：请重新选择。"},
    "file_kind": {
        "en": "{name} is not a .csv: save the table as csv (UTF-8).",
        "zh": "{name} 不是 .csv 文件：请把表格另存为 CSV（UTF-8）。",
    },
    "file_large": {
        "en": "The file has {megabytes} MB, the page takes {most} MB at most: split it.",
        "zh": "文件有 {megabytes} MB，本页面最多接受 {most} MB：请拆分。",
    },
    "file_rows": {
        "en": "The file has more than {most} rows, which is the most: split it.",
        "zh": "文件超过 {most} 行的上限：请拆分。",
    },
    "file_empty": {
        "en": "The file is empty: it needs a header and a text on each line.",
        "zh": "文件为空：需要表头，且每行一条文本。",
    },
    "file_no_rows": {
        "en": "The file has a header and no row: add texts.",
        "zh": "文件只有表头，没有数据行：请加入文本。",
    },
    "file_no_texts": {
        "en": "All {rows} texts of the file are empty: check the column.",
        "zh": "文件的 {rows} 条文本全部为空：请检查列。",
    },
    "file_encoding": {
        "en": "Line {line} is not UTF-8: save the file in UTF-8.",
        "zh": "第 {line} 行不是 UTF-8 编码：请把文件另存为 UTF-8。",
    },
    "file_column": {
        "en": "There is no column {wanted}; the columns are {found}: rename the one with the texts.",
        "zh": "没有列 {wanted}；现有的列是 {found}：请把文本所在的列改名。",
    },
    "file_twice": {
        "en": "Column {name} stands twice in the header: rename one of them.",
        "zh": "表头中列 {name} 出现两次：请改名其中一个。",
    },
    "file_cells": {
        "en": "Line {line} has {cells} cells where the header has {columns}: mend it, texts with commas want quotes.",
        "zh": "第 {line} 行有 {cells} 个单元格，而表头有 {columns} 个：请改正，含逗号的文本需要加引号。",
    },
    "file_quotes": {
        "en": "Line {line} is not valid csv: mend its quotes.",
        "zh": "第 {line} 行不是有效的 CSV：请改正引号。",
    },
    "file_pair": {
        "en": "Line {line}: one text of the pair is empty: mend or remove the line.",
        "zh": "第 {line} 行：两段文本中有一段为空：请改正或删除该行。",
    },
    "file_other": {"en": "The file cannot be read ({reason}).", "zh": "无法读取文件（{reason}）。"},
    "failed": {
        "en": "Something is wrong with this page, its terminal says what.",
        "zh": "页面出错，详情见运行它的终端。",
    },
}

# What `files.py` says of a csv, for a person at a terminal, as what the page says.
FILE_ERRORS = (
    (re.compile(r"the file is empty"), "file_empty"),
    (re.compile(r"line (?P<line>\d+): not UTF-8"), "file_encoding"),
    (re.compile(r"no column is called (?P<wanted>.*); the columns are (?P<found>.*): pass"), "file_column"),
    (re.compile(r"no column (?P<wanted>'.*'), the columns are (?P<found>.*): pass"), "file_column"),
    (re.compile(r"column (?P<name>'.*') stands twice"), "file_twice"),
    (
        re.compile(r"line (?P<line>\d+): (?P<cells>\d+) cells where the header has (?P<columns>\d+)"),
        "file_cells",
    ),
    (re.compile(r"line (?P<line>\d+): not valid csv"), "file_quotes"),
    (re.compile(r"line (?P<line>\d+): the (first|second) text of the pair is empty"), "file_pair"),
)


class Refusal(Exception):
    """
    What the page does not do, to be said in the language of its reader.

    Args:
        key (`str`): In [`WORDS`].
        values: What stands in its braces.
    """

    def __init__(self, key, **values):
        super().__init__(say(key, "en", **values))
        self.key, self.values = key, values


def say(key, language, **values):
    """
    A sentence of the page.

    Example:

    ```python
    >>> say("time", "zh", milliseconds="1.2")
    '1.2 毫秒'

    ```
    """
    return WORDS[key][language].format(**values)


def refusal_of(error, path):
    """
    The [`Refusal`] that says what an `InputError` about a csv file says, without the place of the file on the server.

    Args:
        error ([`InputError`]): As `text_stream.iterate_texts` raises it.
        path (`Path`): Of the file.
    """
    message = str(error).removeprefix(str(path)).lstrip(": ")
    for pattern, key in FILE_ERRORS:
        found = pattern.search(message)
        if found:
            return Refusal(key, **found.groupdict())
    return Refusal("file_other", reason=message)


def preferred_language(header):
    """
    The page's language for a browser.

    Args:
        header (`str`, *optional*): Its `Accept-Language`.

    Example:

    ```python
    >>> preferred_language("fr, zh-TW;q=0.8, en;q=0.5"), preferred_language(None)
    ('zh', 'en')

    ```
    """
    best, chosen = 0.0, "en"
    for part in (header or "").split(","):
        name, _, quality = part.strip().partition(";q=")
        language = name.split("-")[0].lower()
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if language in LANGUAGES and weight > best:
            best, chosen = weight, language
    return chosen
