"""What came out of a run: size and speed of a model, the table, `report.json`, files of predictions."""

import copy
import csv
import json
import os
import platform
import re
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .analysis import SUBJECTS
from .arguments import is_number
from .errors import InputError
from .inference import pad_texts
from .json_file import read_object
from .metrics import agreement, score_logits
from .output_folder import REPORT, SCORED, VALIDATION
from .pairs import sides
from .robustness import MEASURES
from .upload import is_published
from .whole import written_whole

RUN_ITSELF = "give the folder of the run itself, not a copy from the hub"
# Names that a run has for its own files, besides those that are published.
RUN_FILE = re.compile(r"(clock|tune|trainer_state|\w+_config|(all|train|eval|test)_results|.+\.index)\.json")
PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "scikit-learn")
COLUMNS = {
    "accuracy": "{:.4f}",
    "precision": "{:.4f}",
    "recall": "{:.4f}",
    "f1": "{:.4f}",
    "agreement": "{:.4f}",
    "parameters": "{:,}",
    "size_mb": "{:.2f}",
    "latency_ms": "{:.2f}",
    "texts_per_s": "{:,.0f}",
    "train_seconds": "{:.0f}",
}


def versions():
    """`dict[str, str]` of Python and the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@torch.no_grad()
def measure_speed(model, tokenizer, texts, max_length, budget=5.0):
    """
    Speed of a classifier on one CPU thread, from text to logits, tokenization included.

    Args:
        model (`PreTrainedModel`): Left where it is and as it is; a copy on the CPU is measured.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        texts (`list[str]` or `list[tuple[str, str]]`): Taken in turn, at most 256 of them.
        max_length (`int`): In tokens.
        budget (`float`, *optional*, defaults to 5.0): Seconds for each of the two numbers, at most.

    Returns:
        `dict[str, float]`: `latency_ms`, median milliseconds of one text at batch 1; `texts_per_s` at batch 32, from
        the median batch.
    """
    on_cpu = copy.deepcopy(model).to("cpu").float().eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return time_calls(lambda batch: on_cpu(**pad_texts(tokenizer, batch, max_length)), texts, budget)
    finally:
        torch.set_num_threads(threads)


def time_calls(call, texts, budget=5.0):
    """
    Speed of whatever answers lists of texts.

    Args:
        call (`Callable`): Takes a list of texts.
        texts (`list[str]` or `list[tuple[str, str]]`): Taken in turn, at most 256 of them.
        budget (`float`, *optional*, defaults to 5.0): Seconds for each of the two numbers, at most.

    Returns:
        `dict[str, float]`: `latency_ms`, median milliseconds of one text at batch 1; `texts_per_s` at batch 32, from
        the median batch.
    """
    texts = texts[:256]
    # The threads of torch and onnxruntime are not the tokenizer's: it would encode a batch on every core.
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def seconds(batch_size, repeats):
        taken = []
        deadline = time.perf_counter() + budget
        for repeat in range(repeats + 3):
            first = repeat * batch_size % max(1, len(texts) - batch_size + 1)
            start = time.perf_counter()
            call(texts[first : first + batch_size])
            taken.append(time.perf_counter() - start)
            if len(taken) > 5 and time.perf_counter() > deadline:
                break
        # The first calls warm caches up.
        return statistics.median(taken[3:])

    try:
        batch_size = min(32, len(texts))
        return {"latency_ms": 1000 * seconds(1, 200), "texts_per_s": batch_size / seconds(batch_size, 30)}
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if parallelism is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallelism


def describe_model(model):
    """`dict`: `parameters` and `size_mb`, megabytes (10⁶ bytes) of the weights as they are saved."""
    # Tied weights stand in the state dict several times and are saved once.
    tensors = {(tensor.data_ptr(), tensor.shape): tensor for tensor in model.state_dict().values()}.values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"parameters": model.num_parameters(), "size_mb": size / 1e6}


def result_row(model, tokenizer, texts, logits, labels, max_length, teacher_logits=None, train_seconds=None):
    """
    One model's row of the table.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): What is described.
        texts (`list[str]` or `list[tuple[str, str]]`): Of the split reported.
        logits (`np.ndarray` of shape `(len(texts), num_labels)`): The model's.
        labels (`np.ndarray` of shape `(len(texts),)`): Label ids.
        max_length (`int`): In the model's tokens.
        teacher_logits (`np.ndarray` of shape `(len(texts), num_labels)`, *optional*): For the agreement.
        train_seconds (`float`, *optional*): None when unknown.

    Returns:
        `dict[str, float | int | None]` with the keys of `COLUMNS`.
    """
    row = dict.fromkeys(COLUMNS)
    row.update(score_logits(logits, labels))
    row.update(describe_model(model))
    row.update(measure_speed(model, tokenizer, texts, max_length))
    row["agreement"] = None if teacher_logits is None else agreement(logits, teacher_logits)
    row["train_seconds"] = train_seconds
    return row


def format_table(rows):
    """
    A Markdown table of `dict[str, dict]` rows with the columns of `COLUMNS`; what is None is a dash.

    Example:

    ```python
    >>> print(format_table({"teacher": {"accuracy": 0.9}}).splitlines()[2][:20])
    | teacher   | 0.9000

    ```
    """
    cells = [["model", *COLUMNS]]
    for name, row in rows.items():
        values = [row.get(column) for column in COLUMNS]
        formats = COLUMNS.values()
        cells.append([name, *("–" if v is None else f.format(v) for v, f in zip(values, formats, strict=True))])
    return align(cells, len("distilled"))


def table_rows(report):
    """The rows of the table in a `report.json`, `dict[str, dict]`, whatever their names."""
    return {
        name: value
        for name, value in report.items()
        if isinstance(value, dict) and {"accuracy", "size_mb"} <= value.keys()
    }


def read_report(folder, cure):
    """
    A run's `report.json`, `dict`. The numbers of its rows are finite, or None.

    Raises:
        `InputError`: With the `cure` (`str`), when it is missing or damaged.
    """
    path = folder / REPORT
    report = read_object(path, cure)
    for name in dict.fromkeys((*SUBJECTS, *table_rows(report))):
        row = report.get(name, {})
        if not isinstance(row, dict):
            raise InputError(f"{path} is damaged (row {name} is {row!r:.40}): {cure}")
        for column in COLUMNS:
            if row.get(column) is not None and not is_number(row[column], least=0):
                raise InputError(f"{path} is damaged ({column} of row {name} is {row[column]!r:.40}): {cure}")
    return report


def with_rows(report, rows):
    """A `report.json` (`dict`) with more rows (`dict[str, dict]`) behind those of its table, before all else."""
    table = table_rows(report) | rows
    return table | {name: value for name, value in report.items() if name not in table}


def align(cells, first_width=0):
    """Lines of cells, `list[list[str]]`, the header first, as a Markdown table that is also one at a terminal."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    widths[0] = max(widths[0], first_width)
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def format_robustness(rows):
    """A Markdown table of the rows' `robustness`, accuracies on a sample of the split reported."""
    lines = [f"| model | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for model, row in rows.items():
        if "robustness" in row:
            lines.append(f"| {model} | " + " | ".join(f"{row['robustness'][name]:.4f}" for name in MEASURES) + " |")
    return "\n".join(lines)


def format_per_class(per_class):
    """scikit-learn's per-class report, a `dict`, as lines of text."""
    lines = [f"{'precision':>20}{'recall':>10}{'f1':>10}{'rows':>8}  label"]
    for name, scores in per_class.items():
        if isinstance(scores, dict):
            values = "".join(f"{scores[key]:>10.4f}" for key in ("precision", "recall", "f1-score"))
            lines.append(f"{'':>10}{values}{scores['support']:>8.0f}  {name}")
    return "\n".join(lines)


def write_json(path, content):
    """Writes a JSON file; a kill leaves none that is half written."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_scored(folder, labels, logits, is_reported=True):
    """
    Keeps what a run has answered, to compare runs text by text: labels and logits in `_scored.safetensors`, those of
    the validation split in `_validation.safetensors`.

    Args:
        folder (`Path`): The output folder.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids.
        logits (`dict[str, np.ndarray]`): By row of the table, `(num_rows, num_labels)`.
        is_reported (`bool`, *optional*, defaults to `True`): Whether this is the split that the report is about.
    """
    tensors = {f"logits.{name}": np.ascontiguousarray(array) for name, array in logits.items()}
    with written_whole(folder / (SCORED if is_reported else VALIDATION)) as partial:
        save_file({"labels": labels, **tensors}, partial)


def read_scored(folder, is_reported=True, cure=RUN_ITSELF):
    """
    What [`write_scored`] has kept: `tuple` of the labels and the logits by row.

    Raises:
        `InputError`: With the `cure` (`str`), when it is missing or damaged: arrays that are no labels and logits of
            the same rows.
    """
    path = folder / (SCORED if is_reported else VALIDATION)
    try:
        tensors = load_file(path)
        labels = tensors.pop("labels")
        logits = {name.removeprefix("logits."): array for name, array in tensors.items()}
        shapes = sorted({array.shape for array in logits.values()})
        if len(shapes) != 1 or len(shapes[0]) != 2 or labels.shape != shapes[0][:1]:
            raise ValueError(f"labels of shape {labels.shape}, logits of {shapes}")
        if not np.isin(labels, [-100, *range(shapes[0][1])]).all():
            raise ValueError(f"not all labels are ids of the {shapes[0][1]} that the logits are about")
        if not all(np.isfinite(array).all() for array in logits.values()):
            raise ValueError("logits that are not finite")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({' '.join(str(error).split())}): {cure}") from None
    return labels, logits


def softmax(logits):
    """Probabilities of `(num_rows, num_labels)` logits."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def prediction_rows(texts, logits, label_names, asked=None):
    """
    Yields `{"text", "label", "probabilities"}` of every text, with `"text_pair"` behind the text of a pair;
    probabilities by label name. With `asked` (`np.ndarray` of shape `(len(texts),)`, bool), which texts a cascade has
    left to the teacher, `"answered_by"` follows the label.
    """
    for number, (text, row) in enumerate(zip(texts, softmax(logits), strict=True)):
        probabilities = {name: round(float(value), 6) for name, value in zip(label_names, row, strict=True)}
        given = dict(zip(("text", "text_pair"), sides(text), strict=False))
        given["label"] = label_names[int(row.argmax())]
        if asked is not None:
            given["answered_by"] = "teacher" if asked[number] else "student"
        yield {**given, "probabilities": probabilities}


def check_prediction_file(path, overwrite, sources):
    """
    Refuses an output that [`write_predictions`] could not write, before any work is done.

    Args:
        path (`str` or `Path`): The output.
        overwrite (`bool`): Whether a file that is there may be replaced, unless it is one of the `sources`.
        sources (`list[str]`): Files that are read.

    Raises:
        `InputError`: For a suffix that is not known, a name that a model or a run has for its own, or a file that is
            there.
    """
    path = Path(path)
    if any(RUN_FILE.fullmatch(name) or is_published(name) for name in (path.name, path.resolve().name)):
        raise InputError(f"--predict_output {path} has the name of a file of a model or a run: give another")
    if any(Path(source).resolve() == path.resolve() for source in sources):
        raise InputError(f"{path} is read, predictions would replace it: give another --predict_output")
    if path.suffix not in (".csv", ".json", ".jsonl"):
        raise InputError(f"--predict_output {path}: unknown kind of file: give a .csv, .json or .jsonl")
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not folder.is_dir():
        raise InputError(
            f"--predict_output {path}: {'it' if path.is_dir() else folder} is not a "
            f"{'file' if path.is_dir() else 'folder'}: give another"
        )
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: give another --predict_output, or --overwrite_output_dir")


def write_predictions(path, rows, label_names, is_new=False):
    """
    Writes [`prediction_rows`] to `.csv` (a column per probability), `.jsonl` or `.json` (one list); with `is_new` over
    no file.
    """
    path = Path(path)
    with written_whole(path, is_new) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            for number, row in enumerate(rows):
                columns = [name for name in row if name != "probabilities"]
                if number == 0:
                    writer.writerow([*columns, *(f"probability_{name}" for name in label_names)])
                writer.writerow([*(row[name] for name in columns), *row["probabilities"].values()])
        else:
            start, between, end = ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n")
            file.write(start)
            for number, row in enumerate(rows):
                file.write((between if number else "") + json.dumps(row, ensure_ascii=False))
            file.write(end)
