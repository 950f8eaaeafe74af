"""What a model card says, section by section, in Markdown."""

import json

import yaml

from .analysis import subject_of
from .arguments import DataArguments
from .calibration import BINS
from .card_file import escape
from .deferral import format_cascade
from .fonts import are_ids, axis_names
from .json_file import read_json
from .output_folder import PLOTS, is_export
from .report import align, format_robustness, format_table, table_rows
from .sources import file_name, public_settings

MOST_LABELS = 30  # in a table
# What a user of an export needs, without torch and without its classify.py.
ONNX_EXAMPLE = """\
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

FOLDER = {folder}
FIELDS = {{"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}}

tokenizer = Tokenizer.from_file(f"{{FOLDER}}/tokenizer.json")  # pads, and cuts off what is too long
with open(f"{{FOLDER}}/config.json", encoding="utf-8") as file:
    labels = json.load(file)["labels"]
session = onnxruntime.InferenceSession(f"{{FOLDER}}/{file}", providers=["CPUExecutionProvider"])

rows = tokenizer.encode_batch({texts})
names = [node.name for node in session.get_inputs()]
inputs = {{name: np.array([getattr(row, FIELDS[name]) for row in rows], dtype=np.int64) for name in names}}
for logits in session.run(None, inputs)[0]:
    print(labels[logits.argmax()])
"""
ROLES = {
    "linear": "a linear model of TF-IDF n-grams, for comparison",
    "teacher": "the model that taught",
    "student": "the same student, trained on the labels alone",
    "distilled": "this model",
    "onnx": "this model in ONNX Runtime",
    "onnx-int8": "the same with weights of 8 bits",
}
PICTURES = {
    "accuracy_latency": "Accuracy against latency of every row of the table",
    "confusion": "Confusion matrices",
    "reliability": "Reliability diagram: how often the model is right against how sure it is",
    "training": "Loss and validation scores over the epochs",
    "cascade": "Accuracy against the share of the texts that the student answers",
}


def percent(share, digits=1):
    return f"{100 * share:.{digits}f} %"


def points(difference):
    return f"{100 * difference:+.1f} points"


def picture(folder, name):
    """A plot's Markdown, where it was drawn."""
    return f"![{PICTURES[name]}]({PLOTS}/{name}.png)" if (folder / PLOTS / f"{name}.png").exists() else ""


def describe(folder, report):
    """The first paragraph: what it is, of what it was made, what it is for."""
    subject, config, sources = (
        subject_of(table_rows(report)),
        read_json(folder / "config.json"),
        report.get("sources", {}),
    )
    row = report[subject]
    architecture = (config.get("architectures") or [config.get("model_type", "classifier")])[0]
    text = f"{escape(architecture)}, {row['parameters']:,} parameters, {row['size_mb']:.1f} MB. "
    if subject == "distilled":
        text += f"It was taught by {teacher_words(report)} (knowledge distillation), on {data_words(report)}. "
    else:
        text += f"It was trained on {data_words(report)}. "
    if sources.get("start"):
        text += f"Its training started from {hub_link(sources['start'])}. "
    what = "pairs of texts" if "text_pair_column" in report["settings"] else "texts"
    names = report["labels"]
    listed = ", ".join(map(escape, names[:MOST_LABELS])) + (", …" if len(names) > MOST_LABELS else "")
    return f"{text}It puts {what} into {len(names)} classes: {listed}."


def hub_link(name):
    return f"[{escape(name)}](https://huggingface.co/{name})"


def teacher_words(report):
    """Who taught, in words; the folder of a teacher means nothing elsewhere."""
    settings, found = report["settings"], []
    for teacher in report.get("sources", {}).get("teachers", []):
        words = (
            hub_link(teacher["name"]) if teacher["name"] else f"a {escape(teacher['architecture'] or 'transformer')}"
        )
        if teacher["fine_tuned_from"]:
            words += f" fine-tuned from {hub_link(teacher['fine_tuned_from'])}"
        found.append(words)
    if settings.get("linear_teacher"):
        found.append("a linear model of TF-IDF n-grams")
    if settings.get("teacher_column"):
        found.append("answers that stood in the data")
    if not found:
        return "a teacher"
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]} together"


def data_words(report):
    """Which data, and how many rows of them."""
    name, rows = report.get("sources", {}).get("dataset"), report["data"]["rows"]
    where = ""
    if name:
        where = f" of [{escape(name)}](https://huggingface.co/datasets/{name})"
    elif report["settings"].get("train_file"):
        where = f" of {escape(file_name(report['settings']['train_file']))}"
    return f"{rows['train']:,} rows{where}" if "train" in rows else f"rows{where or ' of its own'}"


def results(folder, report):
    """The table and what of it is more than noise."""
    rows, split = table_rows(report), report["split"]
    subject = subject_of(rows)
    roles = {**ROLES, subject: "this model"}
    lines = [
        f"## Results\n\nOn the {split} split, {report['data']['rows'][split]:,} texts"
        + (
            ", by which nothing was chosen:"
            if split == "test"
            else ", which also chose the epoch, so that it flatters a little:"
        ),
        format_table(rows),
        "; ".join(f"`{name}`: {roles[name]}" for name in rows if name in roles)
        + ". Precision, recall and F1 are macro averages, agreement is the share of texts that get the teacher's "
        "label; latency_ms is the median of one text, texts_per_s is at batch 32, both on one CPU thread from text to "
        "logits. The rows are timed one after the other: on a busy machine they differ by what else it did.",
    ]
    comparison = report.get("comparison", {})
    said = []
    if "kept_share" in comparison:
        kept = comparison["kept_share"]
        said.append(
            f"- It keeps **{percent(kept['share'])} of its teacher's accuracy** (95 % interval {percent(kept['low'])} "
            f"to {percent(kept['high'])}, bootstrap over the texts)."
        )
    against = comparison.get("against", {})
    for name in sorted(against, key=lambda name: (name == "linear", name != "teacher")):
        found = against[name]
        p = "p < 0.001" if found["p"] < 0.001 else f"p = {found['p']:.3f}"
        said.append(
            f"- Against `{name}`: {points(found['difference'])} of accuracy, {p} (McNemar's test on the same texts)."
        )
    if "teacher" in rows and subject == "distilled" and rows["teacher"].get("latency_ms"):
        own, its = rows[subject], rows["teacher"]
        said.append(
            f"- {its['latency_ms'] / own['latency_ms']:.1f} times the teacher's speed at one text, "
            f"{own['texts_per_s'] / its['texts_per_s']:.1f} times at batch 32, "
            f"{percent(own['size_mb'] / its['size_mb'])} of its size."
        )
    if said:
        said.append(
            "\nThese are about these trained models on other texts: another seed gives another model. The p are not "
            "adjusted for their number."
        )
    return "\n\n".join(filter(None, [*lines, "\n".join(said), picture(folder, "accuracy_latency")]))


def robustness(folder, report):
    rows = table_rows(report)
    if not any("robustness" in row for row in rows.values()):
        return ""
    return (
        "## Robustness\n\nAccuracy on a sample, as it is (clean), under a perturbation of the embeddings (fgm, pgd), "
        f"with errors on 5 and 10 % of the characters (noise).\n\n{format_robustness(rows)}"
    )


def by_label(folder, report):
    """F1 of every label beside the teacher's, the largest gap first, and the confusion matrices."""
    scores = report.get("label_f1", {})
    if not scores:
        return ""
    subject = subject_of(table_rows(report))
    models = [name for name in next(iter(scores.values())) if name != "rows"]
    has_gap = "teacher" in models and subject in models and subject != "teacher"

    def gap(score):
        return score[subject] - score["teacher"] if has_gap else score[subject]

    order = sorted(scores, key=lambda label: gap(scores[label]))[:MOST_LABELS]
    cells = [["label", "rows", *models, *(["gap to the teacher"] if has_gap else [])]]
    for label in order:
        score = scores[label]
        line = [escape(label), f"{score['rows']:,}", *(f"{score[name]:.4f}" for name in models)]
        cells.append([*line, *([f"{100 * gap(score):+.1f}"] if has_gap else [])])
    cut = f" The {MOST_LABELS} lowest of {len(scores)}." if len(scores) > MOST_LABELS else ""
    said = f"## Labels\n\nF1 of each label{', and the gap in points' if has_gap else ''}.{cut}\n\n{align(cells)}"
    matrices = picture(folder, "confusion")
    if matrices and are_ids(report["labels"], axis_names(report["labels"])[0]):
        # They were drawn on a machine without a font for the names.
        names = ", ".join(f"{index} {escape(name)}" for index, name in enumerate(report["labels"]))
        matrices += f"\nLabels of the picture: {names}."
    return f"{said}\n\n{matrices}"


def cascade(folder, report):
    """What it and its teacher are together."""
    found = report.get("cascade")
    if not found:
        return ""
    said = format_cascade(found).removeprefix("cascade: ")
    return (
        f"## With its teacher\n\n{said[0].upper()}{said[1:]}. The threshold was chosen on the validation split; "
        f"`kd_trainer.CascadeClassifier` answers so.\n\n{picture(folder, 'cascade')}"
    )


def calibration(folder, report):
    found = report.get("calibration", {})
    if not found:
        return ""
    cells = [["model", "ECE", "temperature", "ECE with it"]]
    for name, row in found.items():
        scaled = ["–", "–"]
        if row["temperature"] is not None:
            scaled = [f"{row['temperature']:.3f}", f"{row['scaled_ece']:.4f}"]
        cells.append([name, f"{row['ece']:.4f}", *scaled])
    said = (
        f"## Calibration\n\nExpected calibration error (ECE) on the {report['split']} split: the mean distance between "
        f"how sure a model is and how often it is right, over {BINS} bins of equal width ([Guo et al. "
        "2017](https://arxiv.org/abs/1706.04599))."
    )
    if any(row["temperature"] is not None for row in found.values()):
        said += (
            " The last column is the error after all logits are divided by the temperature, which was chosen on the "
            "validation split."
        )
    if report["split"] == "validation":
        said += (
            " There is no temperature: one that is chosen on the validation split cannot be judged on the same texts."
        )
    elif any(row["temperature"] is None for row in found.values()):
        said += " –: no answers to a validation split, or no temperature from 0.01 to 100 is the best one there."
    return f"{said}\n\n{align(cells)}\n\n{picture(folder, 'reliability')}"


def disagreements(folder, report):
    """The texts on which this model and its teacher are furthest apart."""
    found = report.get("disagreements")
    subject = subject_of(table_rows(report))
    if not found:
        return ""
    lines = []
    for one in found:
        text = " · ".join(escape(one[key]) for key in ("text", "text_pair") if key in one)
        answers = [(name, one[name]) for name in ("teacher", subject)]
        said = "; ".join(
            f"{name}: **{escape(answer['label'])}** {percent(answer['probability'])}" for name, answer in answers
        )
        right = "unknown" if one["label"] is None else f"**{escape(one['label'])}**"
        lines.append(f"- {text or '(an empty text)'}\n  - {said}; right: {right}")
    return (
        "## Largest disagreements\n\nThe texts on which it is furthest from its teacher, with the label that each "
        f"gives and how sure it is of it.\n\n{chr(10).join(lines)}"
    )


def usage(folder, report):
    name = repository(report) or "PATH_OR_NAME_OF_THIS_MODEL"
    remote = ", trust_remote_code=True" if "auto_map" in read_json(folder / "config.json") else ""
    call = 'classify(["…", "…"])'
    if "text_pair_column" in report["settings"]:
        call = 'classify({"text": "…", "text_pair": "…"})'
    said = (
        "## How to use it\n\n```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{name}"{remote})\n{call}\n```\n\n'
    )
    if remote:
        said += (
            "The modeling code is part of this folder; `trust_remote_code=True` allows it to run. It needs `torch` and "
            "`transformers` alone. "
        )
    length = report["settings"].get("max_seq_length", DataArguments.max_seq_length)
    said += f"It was trained on at most {length} tokens of a text."
    for export in filter(is_export, sorted({path.parent for path in folder.glob("[!.]*/*.onnx")})):
        name = escape(export.name)
        said += (
            f"\n\nIn the folder {name} it is exported to ONNX: `onnxruntime`, `tokenizers` and `numpy` run it alone."
        )
        file = "model_int8.onnx" if (export / "model_int8.onnx").exists() else "model.onnx"
        texts = '[("a text", "its pair")]' if "text_pair_column" in report["settings"] else '["a text", "another"]'
        example = ONNX_EXAMPLE.format(folder=json.dumps(export.name, ensure_ascii=False), file=file, texts=texts)
        said += f"\n\n```python\n{example}```"
        said += (
            f'\n\n```bash\npython {export.name}/classify.py "a text"\n'
            f"python {export.name}/classify.py texts.csv labels.csv\n```"
        )
    return said


def training(folder, report):
    data, settings = report["data"], public_settings(report["settings"], report.get("sources", {}))
    rows = ", ".join(f"{split} {count:,}" for split, count in data["rows"].items())
    said = f"## Training\n\nRows: {rows}."
    if data.get("unlabelled"):
        said += f" {data['unlabelled']:,} of the training rows had no label: the teacher alone taught them."
    for split, count in data.get("overlap_with_train", {}).items():
        said += f" {count:,} texts of the {split} split stand in the training split, too." if count else ""
    dumped = yaml.safe_dump(settings, allow_unicode=True, width=10**6).replace("```", "'''")
    seconds = report[subject_of(table_rows(report))].get("train_seconds")
    took = "" if seconds is None else f", {seconds:,.0f} seconds on {report['measured']['device'].partition(':')[0]}"
    return (
        f"{said} Precision {report['precision']}, seed {report['seed']}{took}. What was set; the rest is as kd_trainer "
        f"and `transformers.TrainingArguments` have it:\n\n```yaml\n{dumped}```\n\n{picture(folder, 'training')}"
    )


def made_with(folder, report):
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"## Versions\n\n{versions}. `report.json` has the numbers of this page."


SECTIONS = (results, by_label, cascade, calibration, disagreements, usage, robustness, training, made_with)


def card_text(folder, report):
    """
    The Markdown of a card, without its metadata.

    Args:
        folder (`Path`): Of the run: which plots and exports are there.
        report (`dict`): Its `report.json`.

    Returns:
        `str`.
    """
    sections = [section(folder, report) for section in SECTIONS]
    return "\n\n".join([f"# {escape(model_name(folder, report))}", describe(folder, report), *filter(None, sections)])


def model_name(folder, report):
    """Of the repository, where it is known, else of the folder."""
    return file_name(repository(report) or folder.resolve().name)


def repository(report):
    """Where the model is on the hub, `str`; None where it was not pushed."""
    return report.get("sources", {}).get("repository") or report["settings"].get("hub_model_id")
