"""
Draw accuracy and agreement with the teacher against the temperature, over finished distillations that differ in it.

    python run_distill.py my.yaml --temperature 1 --output_dir outputs/t1   # and 2, 4, 8, each into its folder
    python -m kd_trainer.sweep outputs/t1 outputs/t2 outputs/t4 outputs/t8 --output_dir outputs/sweep

Runs of one temperature may differ in their seed. Writes temperature.png and temperature.json, and prints the table. The
temperature that is best here was chosen on the split that is reported: report another split for the one that you take.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from .arguments import DistillationTrainingArguments, is_number
from .console import CommandParser, log_to_terminal, run_console
from .errors import InputError
from .output_folder import check_writable, differing_settings
from .plots import STYLE, check_matplotlib, new_figure, save, set_plain_ticks
from .report import align, read_report, write_json

logger = logging.getLogger("kd_trainer.sweep")  # its name with python -m, too

DEFAULTS = {field.name: field.default for field in dataclasses.fields(DistillationTrainingArguments)}
# May differ between runs that are compared.
FREE = {
    "temperature",
    "seed",
    "data_seed",
    "compare_student",
    "compare_linear",
    "overwrite_output_dir",
    "card_examples",
}
FILES = ("temperature.png", "temperature.json")


def read_run(folder):
    """
    A finished distillation: `dict` with its `folder`, `temperature`, `seed`, `accuracy`, `interval`, `agreement`,
    `teacher` and `student` (accuracies or None), `split` and `texts`, by which it is known what it was scored on.

    Raises:
        `InputError`: When the folder holds none, or one whose loss has no temperature, or not one alone.
    """
    report = read_report(folder, "no finished distillation, give the --output_dir of run_distill.py")
    try:
        row, settings = report["distilled"], report["settings"]
        run = {
            "folder": str(folder),
            "temperature": settings.get("temperature", DEFAULTS["temperature"]),
            "seed": report["seed"],
            "accuracy": row["accuracy"],
            "interval": report.get("accuracy_interval", {}).get("distilled"),
            "agreement": row["agreement"],
            "teacher": report.get("teacher", {}).get("accuracy"),
            "student": report.get("student", {}).get("accuracy"),
            "split": report["split"],
            "texts": report["texts_sha256"],
        }
        interval = [0, 1] if run["interval"] is None else run["interval"]
        sound = {
            "temperature": is_number(run["temperature"], 0) and run["temperature"] > 0,
            "seed": is_number(run["seed"]),
            "interval": isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)),
            "split": isinstance(run["split"], str),
            "texts": isinstance(run["texts"], str),
        }
        for name in sound:
            if not sound[name]:
                raise ValueError(f"{name} is {run[name]!r:.60}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: no finished distillation ({error}): give the --output_dir of run_distill.py"
        ) from None
    if settings.get("kd_loss", "kl") == "mse":
        raise InputError(f"{folder}: --kd_loss mse has no temperature: leave it out")
    if settings.get("final_temperature") is not None:
        raise InputError(f"{folder}: its temperature went to --final_temperature, it has not one alone: leave it out")
    if run["accuracy"] is None:
        raise InputError(f"{folder}: its {report['split']} split has no labels, so no accuracy: leave it out")
    return {**run, "settings": settings}


def read_runs(folders):
    """
    [`read_run`] of every folder, by temperature.

    Raises:
        `InputError`: When one is named twice, or they were scored on different texts, have one temperature only, or
            differ in more than it and the seed.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder} is named twice: give every run once")
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: (run["temperature"], run["seed"]))
    if len({(run["split"], run["texts"]) for run in runs}) > 1:
        raise InputError("the runs were scored on different texts: give all the same split and samples")
    if len({run["temperature"] for run in runs}) < 2:
        raise InputError(f"all runs have the temperature {runs[0]['temperature']:g}: give runs that differ in it")
    for run in runs[1:]:
        differing = differing_settings(Path(run["folder"]), runs[0]["settings"], FREE)
        if differing:
            raise InputError(
                f"{runs[0]['folder']} and {run['folder']} differ in more than the temperature and the seed "
                f"({differing}): compare runs that do not"
            )
    for run in runs:
        del run["settings"]
    return runs


def draw(runs):
    """The figure: a point for each run, a line through the means, the teacher and the student alone as levels."""
    figure, (row,) = new_figure((8.8, 3.6), 1, 2)
    temperatures = sorted({run["temperature"] for run in runs})
    for axes, key, label in zip(row, ("accuracy", "agreement"), ("accuracy, %", "agreement, %"), strict=True):
        drawn = [run for run in runs if run[key] is not None]
        means = {t: [run[key] for run in drawn if run["temperature"] == t] for t in temperatures}
        means = {temperature: 100 * np.mean(values) for temperature, values in means.items() if values}
        axes.plot(list(means), list(means.values()), color="C2", linewidth=1.2)
        for run in drawn:
            low, high = run["interval"] if key == "accuracy" and run["interval"] else (run[key], run[key])
            ends = np.maximum(0, [[100 * (run[key] - low)], [100 * (high - run[key])]])
            axes.errorbar(
                run["temperature"], 100 * run[key], ends, fmt="o", color="C2", alpha=0.7, capsize=3, elinewidth=1
            )
        for name, color in (("teacher", "C0"), ("student", "C1")) if key == "accuracy" else ():
            levels = [100 * run[name] for run in runs if run[name] is not None]
            if levels:
                what = "student alone" if name == "student" else name
                axes.axhline(np.mean(levels), color=color, linestyle="--", linewidth=1, label=what)
        axes.set_xscale("log")
        axes.set_xlim(temperatures[0] / 1.3, temperatures[-1] * 1.3)
        apart = min(np.diff(np.log(temperatures))) > 0.07 * np.log(temperatures[-1] / temperatures[0])
        set_plain_ticks(axes.xaxis, temperatures[0] / 1.3, temperatures[-1] * 1.3, temperatures if apart else None)
        axes.set_xlabel("temperature")
        axes.set_ylabel(f"{runs[0]['split']} {label}")
        axes.grid(alpha=0.25)
        axes.margins(y=0.1)
    row[0].set_title("Student; bars: 95 % interval over texts", loc="left", fontsize=9)
    row[1].set_title("Share of texts that get the teacher's label", loc="left", fontsize=9)
    if row[0].get_legend_handles_labels()[0]:
        row[0].legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def format_runs(runs):
    """A Markdown table of [`read_runs`]."""
    cells = [["temperature", "seed", "accuracy", "agreement", "run"]]
    for run in runs:
        agreement = "–" if run["agreement"] is None else f"{run['agreement']:.4f}"
        cells.append(
            [f"{run['temperature']:g}", str(run["seed"]), f"{run['accuracy']:.4f}", agreement, Path(run["folder"]).name]
        )
    return align(cells)


def make_parser():
    """The command line of this module."""
    parser = CommandParser("sweep", __doc__)
    parser.add_argument("runs", nargs="+", help="Output folders of finished runs of run_distill.py.")
    parser.add_argument("--output_dir", required=True, help=f"Folder of {' and '.join(FILES)}.")
    parser.add_argument("--overwrite", action="store_true", help="Replace those of another sweep there.")
    return parser


def main(argv):
    """Draws and prints as the command line `argv` (`list[str]`) says."""
    log_to_terminal()
    args = make_parser().parse_args(argv)
    check_matplotlib()
    if not args.output_dir:
        raise InputError("--output_dir is empty: name the folder for the plot")
    folder = Path(args.output_dir)
    check_writable(folder, "--output_dir")
    there = next((folder / name for name in FILES if (folder / name).exists()), None)
    if there is not None and not args.overwrite:
        raise InputError(f"{there} is there already: choose another --output_dir, or replace it with --overwrite")
    runs = read_runs([Path(name) for name in args.runs])
    import matplotlib

    with matplotlib.rc_context(STYLE):
        save(draw(runs), folder / FILES[0])
    write_json(folder / FILES[1], runs)
    print(format_runs(runs), flush=True)
    logger.info(f"plot written to {folder / FILES[0]}")


def console():
    """Entry point of `kd-sweep`."""
    run_console(main)


if __name__ == "__main__":
    console()
