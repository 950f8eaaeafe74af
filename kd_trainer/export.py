"""
Export a trained classifier, student or teacher, into a folder that runs with onnxruntime and tokenizers alone.

    python -m kd_trainer.export outputs/demo/distilled
    python -m kd_trainer.export outputs/demo/distilled --export onnx-int8 --output_dir served --test_file more.tsv

The first argument is the folder of the model. What it is exported to must answer as it does on the split that its run
has reported, or on the one that is given here: --test_file, or --validation_file.
"""

import dataclasses
import logging
from pathlib import Path

from .arguments import DataArguments, ExportArguments, ModelArguments
from .card import check_rewritable, has_own_card, read_run, rewrite
from .console import log_to_terminal, run_console
from .data import load_data
from .errors import InputError
from .loading import check_pairs, fit_length, load_classifier, load_config, load_tokenizer, named_labels
from .onnx_folder import FILES, export_model
from .onnx_graph import check_packages
from .output_folder import ONNX, RECIPE, REPORT, SCORED, check_export_folder, check_writable
from .pairs import digest_texts, texts_of
from .recipes import ScriptParser, read_recipe
from .report import RUN_ITSELF, format_table, read_report, read_scored, table_rows, with_rows, write_json

logger = logging.getLogger("kd_trainer.export")  # its name with python -m, too

# Flags that say where the rows come from: one that is given stands for all of them.
SOURCES = {"train_file", "validation_file", "test_file", "dataset_name", "dataset_config_name"}
DAMAGE_CURE = "remove it, or run it again"


class ExportParser(ScriptParser):
    """A [`ScriptParser`] whose first argument is a model and no recipe."""

    def __init__(self):
        super().__init__((ExportArguments, DataArguments), prog="python -m kd_trainer.export", description=__doc__)
        self.usage = "%(prog)s MODEL [--flag value ...]"
        action = next(action for action in self._actions if action.dest == "recipe")
        action.metavar, action.help = "MODEL", "Folder of a trained model, or its name on the hub."

    def recipe_arguments(self, path):
        return []


def make_parser():
    """The command line of this module."""
    return ExportParser()


def data_flags(folder, given):
    """
    The flags about the data that the model's own run had, as a command line, but for what is `given` here.

    Args:
        folder (`Path`): Of the model.
        given (`dict[str, Any]`): Settings of the command line.

    Returns:
        `list[str]`.
    """
    if not (folder / RECIPE).exists():
        return []
    kept = {field.name for field in dataclasses.fields(DataArguments)} - given.keys()
    if given.keys() & SOURCES:
        kept -= SOURCES
    settings = read_recipe(folder / RECIPE)
    flags = {name: value for name, value in settings.items() if name in kept and value is not None}
    odd = next((name for name, value in flags.items() if isinstance(value, list | dict)), None)
    if odd is not None:
        raise InputError(f"{folder / RECIPE} is damaged ({odd} is {flags[odd]!r:.60}): {DAMAGE_CURE}")
    return [f"--{name}={value}" for name, value in flags.items()]


def parse_flags(parser, folder, given, argv):
    """The objects of `argv` on top of the [`data_flags`] of the model's run, whose mistakes are those of its recipe."""
    parser.parse(argv)
    flags = data_flags(folder, given)
    try:
        return parser.parse([*flags, *argv])
    except InputError as error:
        raise InputError(f"{folder / RECIPE}: {error}") from None


def choose_split(report, given, data_args):
    """
    The split on which the export is checked: that of the report, or of the flags given.

    Args:
        report (`dict` or None): Of the model's run.
        given (`dict[str, Any]`), data_args ([`DataArguments`]): Of the command line alone, and with the run's.

    Returns:
        `str`.

    Raises:
        `InputError`: Where there are no data.
    """
    if report is not None and not given.keys() & SOURCES:
        if report.get("split") not in ("validation", "test"):
            raise InputError(f"{REPORT} is about the split {report.get('split')!r:.40}: give --test_file")
        return report["split"]
    if data_args.test_file is not None or data_args.dataset_name is not None:
        return "test"
    if data_args.validation_file is not None or data_args.train_file is not None:
        return "validation"
    raise InputError("no data to check the export on: give --test_file")


def main(argv):
    """Exports as the command line `argv` (`list[str]`) says, prints the table and adds its rows to the report."""
    log_to_terminal()
    parser = make_parser()
    given, name = parser.read_settings(argv)
    if not name:
        raise InputError("no model: name the folder of a trained one (--help shows how)")
    check_packages()
    source = Path(name)
    export_args, data_args, *_ = parse_flags(parser, source, given, argv)
    if export_args.output_dir is None and not source.exists():
        raise InputError(f"{name} is no folder: check the path, or for a model on the hub name an --output_dir")
    folder = source / ONNX if export_args.output_dir is None else Path(export_args.output_dir)
    if folder.exists() and not export_args.overwrite_output_dir:
        raise InputError(f"{folder} is there already: choose another --output_dir, or give --overwrite_output_dir")
    check_export_folder(folder)
    check_writable(folder.parent, "--output_dir")
    report = read_report(source, DAMAGE_CURE) if (source / REPORT).exists() else None
    split = choose_split(report, given, data_args)
    model_args = ModelArguments(model_name_or_path=name, trust_remote_code=export_args.trust_remote_code)
    labels = named_labels(load_config(name, model_args))
    data = load_data(data_args, (split,), labels)
    if split not in data.splits:
        raise InputError(f"no {split} split to check the export on: give --test_file")
    model, tokenizer = load_classifier(name, model_args), load_tokenizer(name, model_args)
    if labels is not None and labels != data.label_names or model.config.num_labels != len(data.label_names):
        raise InputError(f"{name} has labels {labels or model.config.num_labels}, data has {data.label_names}")
    if tokenizer.pad_token is None:
        raise InputError(f"{name}: its tokenizer has no padding token: is tokenizer_config.json missing?")
    check_pairs(model, tokenizer, data.has_pairs)
    max_length = fit_length(data_args.max_seq_length, tokenizer, model.config)
    rows = data.splits[split]
    is_reported = report is not None and report.get("texts_sha256") == digest_texts(rows)
    teacher_logits = None
    if is_reported:
        check_rewritable(source)
        if has_own_card(source):
            read_run(source)  # fails now, if it does
        if (source / SCORED).exists():
            teacher_logits = read_scored(source)[1].get("teacher")
        if teacher_logits is not None and teacher_logits.shape != (len(rows), model.config.num_labels):
            raise InputError(f"{source / SCORED} is of other rows or labels than the {split} split: {RUN_ITSELF}")
    columns = [data_args.text_column, *([data_args.text_pair_column] if data.has_pairs else [])]
    texts, formats = texts_of(rows)[:], export_args.export
    exported = export_model(
        folder, model, tokenizer, max_length, formats, texts, rows["labels"][:], columns, teacher_logits
    )
    shown = exported
    if is_reported:
        report = read_report(source, DAMAGE_CURE)  # as it is under the lock
        report = with_rows({key: value for key, value in report.items() if key not in FILES}, exported)
        write_json(source / REPORT, report)
        shown = table_rows(report)
        if has_own_card(source):
            rewrite(source)
    print(
        f"\n{split} split, {len(rows)} rows\n{format_table(shown)}\n",
        flush=True,
    )


def console():
    """Entry point of `kd-export`."""
    run_console(main, make_parser)


if __name__ == "__main__":
    console()
