"""
Write the model card of a finished run, README.md of its folder, and its plots.

    python -m kd_trainer.card outputs/demo/distilled

What it says is taken from what the run has left there. A card that somebody has edited is not overwritten; metadata
that somebody has added (license, language) are kept.
"""

import contextlib
import logging
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from .analysis import analyse, subject_of
from .arguments import check_sizes
from .card_file import CARD, is_unchanged, make_card, write_card_file
from .card_sections import card_text, model_name
from .console import CommandParser, log_to_terminal, run_console
from .errors import InputError
from .json_file import read_object
from .loading import label_list
from .output_folder import PLOTS, REPORT, SCORED, VALIDATION, check_places, check_writable, lock
from .plots import draw_plots, read_history
from .report import RUN_ITSELF, read_report, read_scored, table_rows, write_json
from .sources import file_name

logger = logging.getLogger("kd_trainer.card")  # its name with python -m, too

METRICS = {"accuracy": "Accuracy", "f1": "Macro F1", "precision": "Macro precision", "recall": "Macro recall"}


def card_data(folder, report):
    """The metadata of a card, `huggingface_hub.ModelCardData`: names of models and data are those on the hub alone."""
    settings, sources = report["settings"], report.get("sources", {})
    subject = subject_of(table_rows(report))
    row = report[subject]
    start, dataset = sources.get("start"), sources.get("dataset")
    bases = [teacher["name"] for teacher in sources.get("teachers", []) if teacher["name"]] or (
        [start] if start else []
    )
    tags = ["text-classification", "kd_trainer"] + (["knowledge-distillation"] if subject == "distilled" else [])
    file = settings.get(f"{report['split']}_file") or settings.get("train_file") or "unknown"
    return ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        metrics=list(METRICS),
        tags=tags,
        model_name=model_name(folder, report),
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Text classification",
                dataset_type=dataset or "unknown",
                dataset_name=dataset or file_name(file),
                dataset_config=settings.get("dataset_config_name") if dataset else None,
                dataset_split=report["split"],
                metric_type=metric,
                metric_name=title,
                metric_value=row[metric],
            )
            for metric, title in METRICS.items()
            if row.get(metric) is not None
        ]
        or None,
    )


def write_card(folder, report, labels, logits, overwrite=False):
    """
    Draws the plots of a run and writes its card.

    Args:
        folder (`Path`): The output folder.
        report (`dict`): What stands, or is to stand, in its `report.json`.
        labels (`np.ndarray` of shape `(num_rows,)`), logits (`dict[str, np.ndarray]`): See [`write_scored`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether a card that somebody has edited may go.

    Raises:
        `InputError`: For a card that somebody has written or edited; the plots are drawn all the same.
    """
    draw_plots(folder, report, labels, logits)
    write_card_file(folder / CARD, card_data(folder, report), card_text(folder, report), overwrite)
    logger.info(f"model card written to {folder / CARD}")


@contextlib.contextmanager
def explain(folder):
    """What the files of the run in `folder` make the block raise, said in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever comes of values of other types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"{folder}: {REPORT} or another file of the run is damaged ({reason}): {RUN_ITSELF}"
        ) from error


def read_run(folder, examples=None):
    """
    What a finished run has left for its card, checked so far that the card can be written; from now on no other process
    writes into the folder.

    Args:
        folder (`Path`): The output folder.
        examples (`int`, *optional*): How many of the quoted texts stay; all of them without it.

    Returns:
        `tuple`: The report (`dict`) with what this version knows to say of it; labels and logits, see [`write_scored`].

    Raises:
        `InputError`: For a folder without a finished run, or that cannot be written, and files that are damaged or do
            not belong together.
    """
    if not (folder / REPORT).is_file() or not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no finished run with a model ({REPORT}, config.json): give the --output_dir of one"
        )
    check_rewritable(folder)
    report, config = read_report(folder, RUN_ITSELF), read_object(folder / "config.json", RUN_ITSELF)
    read_history(folder)  # fails now, if it does
    with explain(folder):
        names, rows = report["labels"], report["data"]["rows"][report["split"]]
        labels, logits = read_scored(folder)
        has_validation = report["split"] != "validation" and (folder / VALIDATION).exists()
        validation = read_scored(folder, is_reported=False) if has_validation else None
        if label_list(PreTrainedConfig.from_dict(config)) != names:
            raise ValueError(f"config.json has other labels than {REPORT}: {names!r:.60}")
        shapes = {array.shape for one in (logits, validation[1] if validation else {}) for array in one.values()}
        if len(labels) != rows or any(shape[1] != len(names) for shape in shapes):
            raise ValueError(f"{rows} rows and {len(names)} labels in {REPORT}, answers of shapes {sorted(shapes)}")
        logits = {name: logits[name] for name in table_rows(report) if name in logits}  # in the order of the table
        report.update(analyse(names, labels, logits, validation))
        report["disagreements"] = report.get("disagreements", [])[:examples]
        if subject_of(table_rows(report)) is None:
            raise KeyError("teacher, student or distilled")
        make_card(folder / CARD, card_data(folder, report), card_text(folder, report))  # fails now, if it does
    return report, labels, logits


def check_rewritable(folder, what="folder"):
    """
    Refuses a run's folder, `what` (`str`) for the message, whose report, card and plots cannot be written anew, or are
    being written; from now on no other process writes into it.
    """
    check_writable(folder, what, "give it write permission")
    check_places(folder)
    check_writable(folder / PLOTS, "plots", "give it write permission")
    lock(folder)


def rewrite(folder, overwrite=False, examples=None):
    """
    The card and the plots of a finished run, once more; its report gets what this version knows to say of it.

    Args:
        folder (`Path`): The output folder.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a card that somebody has edited may go.
        examples (`int`, *optional*): How many of the quoted texts stay; all of them without it.

    Raises:
        `InputError`: As [`read_run`], and for a card that somebody has written or edited. Nothing is then changed.
    """
    if (folder / CARD).exists() and not overwrite and not is_unchanged(folder / CARD):
        raise InputError(
            f"{folder / CARD} was written or edited by somebody: move it away, or replace it with --overwrite"
        )
    report, labels, logits = read_run(folder, examples)
    with explain(folder):
        write_card(folder, report, labels, logits, overwrite)
        write_json(folder / REPORT, report)


def has_own_card(folder):
    """Whether the run in `folder` (`Path`) has a card that nobody has edited, and what [`rewrite`] needs."""
    return is_unchanged(folder / CARD) and (folder / SCORED).exists()


def make_parser():
    """The command line of this module."""
    parser = CommandParser("card", __doc__)
    parser.add_argument("folder", help="Output folder of a finished run.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a card that somebody has written or edited.")
    parser.add_argument(
        "--card_examples",
        type=int,
        help="Texts that it still quotes, of those that the run has put into report.json (all of them).",
    )
    return parser


def main(argv):
    """Writes the card as the command line `argv` (`list[str]`) says."""
    log_to_terminal()
    args = make_parser().parse_args(argv)
    check_sizes(args, "card_examples", least=0)
    rewrite(Path(args.folder), args.overwrite, args.card_examples)


def console():
    """Entry point of `kd-card`."""
    run_console(main)


if __name__ == "__main__":
    console()
