"""What came out of a search: a table of its trials, and a recipe of the best, which may be no better than the first."""

import logging
import shlex
from dataclasses import fields
from importlib.metadata import version

import numpy as np
import yaml

from .arguments import TuningArguments
from .comparison import LEVEL, compare_rows, format_p
from .output_folder import BEST, SEARCH_TABLE, plain
from .report import align, versions, write_json
from .whole import written_whole

logger = logging.getLogger(__name__)


def table_of(trials):
    """
    The rows of the table, each trial against the first: the difference of their accuracies, and the p-value of
    McNemar's test, corrected for the number of comparisons ([`compare_rows`]).

    Args:
        trials (`list[optuna.trial.FrozenTrial]`): As [`TrialTrainer`] has left them.

    Returns:
        `list[dict]`.
    """
    rows = []
    for number, trial in enumerate(trials, start=1):
        known = trial.user_attrs
        row = {"trial": number, **known["values"], **known["scores"], "epoch": known["epoch"]}
        row["seconds"] = trial.duration.total_seconds()
        rows.append({**row, "correct": np.array([[answer == "1" for answer in known["correct"]]])})
    compare_rows(rows, [(row, rows[0]) for row in rows[1:]])
    for row in rows:
        del row["correct"]
    return rows


def format_trials(rows, names, metric, best):
    """A Markdown table of [`table_of`]'s rows; `*` marks the best."""
    scores = list(dict.fromkeys((metric, "accuracy")))
    cells = [["trial", *names, "epoch", *scores, "points", "p", "seconds"]]
    for row in rows:
        values = [f"{row[name]:g}" for name in names] + [f"{row['epoch']:.3g}"]
        compared = row["p"] is not None
        against = [f"{100 * row['difference']:+.2f}", format_p(row["p"])] if compared else ["–", "–"]
        number = f"{row['trial']}{' *' if row is best else ''}"
        cells.append([number, *values, *(f"{row[name]:.4f}" for name in scores), *against, f"{row['seconds']:.0f}"])
    return align(cells)


def verdict(rows, best, metric):
    """What came out, in sentences for whoever searched."""
    if best is rows[0]:
        return f"None of {len(rows)} trials has a better {metric} than the first, with the flags as given."
    gain, difference = 100 * (best[metric] - rows[0][metric]), 100 * best["difference"]
    noise = "more than noise" if best["p"] < LEVEL else "within noise, the flags as given may be as good"
    return (
        f"Trial {best['trial']} is the best: {metric} {best[metric]:.4f}, {gain:+.2f} points against the first, with "
        f"the flags as given.\nIts accuracy differs by {difference:+.2f} points: {noise}.\n"
        f"The best of {len(rows)} is flattered: it was chosen on the rows that score it, with one seed."
    )


def write_recipe(run, rows, best, names, metric, teacher):
    """
    Writes `best.yaml`: the settings of the search with the best values put in, into an output folder of its own.

    Returns:
        `str`: Its command.
    """
    path, folder = run.output_dir / BEST, run.output_dir.with_name(f"{run.output_dir.name}-best")
    not_kept = {field.name for field in fields(TuningArguments)}
    settings = {name: value for name, value in plain(run.settings).items() if name not in not_kept}
    settings |= {name: best[name] for name in names} | {"output_dir": str(folder)}
    if settings.pop("teacher_recipe", None) is not None:  # followed by now, with what the command line said of the data
        settings["teacher_name_or_path"] = [member.name for member in teacher.models]
    if settings.get("num_augmented") == 0:
        settings = {name: value for name, value in settings.items() if name not in ("augment", "num_augmented")}
    command = f"python run_distill.py {shlex.quote(str(path))}"
    lines = (
        f"# Trial {best['trial']}, the best of {len(rows)} in a search: validation {metric} {best[metric]:.4f}.\n"
        f"# {command}\n\n{yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)}"
    )
    with written_whole(path) as partial:
        partial.write_text(lines, encoding="utf-8")
    return command


def report_trials(run, trials, names, data, teacher):
    """
    Leaves `tune.json`, all trials, and `best.yaml`, a recipe, in the output folder, and says what came out.

    Args:
        run ([`Run`]): Of the search.
        trials (`list[optuna.trial.FrozenTrial]`): Those that are finished, the first with the flags as given.
        names (`list[str]`): Of the settings that were searched.
        data ([`TextData`]): That they were trained and scored on.
        teacher ([`Ensemble`]): That taught them.
    """
    metric = run.args.metric_for_best_model.removeprefix("eval_")
    rows = table_of(trials)
    best = max(rows, key=lambda row: row[metric])  # of equal ones the first
    command = write_recipe(run, rows, best, names, metric, teacher)
    result = {
        "metric": metric,
        "best": best["trial"],
        "within_noise": best["p"] is None or best["p"] >= LEVEL,
        "trials": rows,
        "split": "validation",
        "data": data.facts,
        "seed": run.args.seed,
        "settings": plain(run.settings),
        "versions": {**versions(), "optuna": version("optuna")},
    }
    write_json(run.output_dir / SEARCH_TABLE, result)
    print(
        f"\nvalidation split, {data.facts['rows']['validation']} rows\n{format_trials(rows, names, metric, best)}\n"
        "points, p: accuracy against trial 1, McNemar's test, corrected for the number of trials (Holm)\n"
        f"\n{verdict(rows, best, metric)}\nTo train it: {command}\n",
        flush=True,
    )
    logger.info(f"trials written to {run.output_dir / SEARCH_TABLE}")
