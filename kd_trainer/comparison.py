"""The table of a set of runs: means over seeds, each row against the plain one."""

import dataclasses
import json

import numpy as np

from .arguments import DataArguments
from .errors import InputError
from .output_folder import DIGEST, REPORT, SCORED
from .report import read_scored, write_json
from .robustness import MEASURES
from .significance import SeedVariance, holm, paired_test

LEVEL = 0.05
CURE = "remove the folder, the run is then done again"
# What a run's data follow from: runs that agree in these must have seen the same.
DATA_FLAGS = {*(field.name for field in dataclasses.fields(DataArguments)), "teacher_column"}


def has_robustness(folder, experiment):
    """Whether a finished run has measured it; a damaged report is [`read_runs`]'s to explain."""
    try:
        return "robustness" in json.loads((folder / REPORT).read_text(encoding="utf-8"))[experiment.row]
    except (OSError, ValueError, KeyError, TypeError):
        return True


def read_runs(experiment, seeds, output_dir):
    """
    An experiment's finished runs as a row, see [`collect`], with `correct` (whether a run has a text right),
    `scored_on` (what identifies the texts) and `trained_on` (by data flags, what identifies the data). None when no
    run is finished.
    """
    reports, correct, scored_on, trained_on = {}, [], set(), {}
    for seed in seeds:
        folder = experiment.folder(output_dir, seed)
        if not (folder / REPORT).exists():
            continue
        labels, logits = read_scored(folder, cure=CURE)
        try:
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            reports[seed] = {**report[experiment.row], "settings": report["settings"]}
            correct.append(logits[experiment.row].argmax(axis=-1) == labels)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder}: {REPORT} or {SCORED} is missing or damaged ({' '.join(str(error).split())}): {CURE}"
            ) from None
        scored_on.add((labels.tobytes(), report.get("texts_sha256")))
        data_flags = {name: report["settings"][name] for name in DATA_FLAGS & report["settings"].keys()}
        wanted = json.dumps(data_flags, sort_keys=True)
        digest = (folder / DIGEST).read_text() if (folder / DIGEST).exists() else ""
        digest = digest.partition(" ")[0]  # of the data: another teacher is what may be compared
        trained_on.setdefault(wanted, {})[digest] = folder
    if not reports:
        return None
    # Where the run was made decides it, not where the table is.
    half = experiment.wants_fp16 and not all(report["settings"].get("fp16") for report in reports.values())
    row = {"name": experiment.name, "note": "in bf16, without CUDA" if half else "", "seeds": list(reports)}
    for key in ("accuracy", "f1", "train_seconds"):
        row[key] = [report[key] for report in reports.values()]
    if all("robustness" in report for report in reports.values()):
        row["robustness"] = {name: [report["robustness"][name] for report in reports.values()] for name in MEASURES}
        row["robustness_rows"] = next(iter(reports.values()))["robustness"]["rows"]
    return {**row, "correct": correct, "scored_on": scored_on, "trained_on": trained_on}


def collect(experiments, seeds, output_dir, baseline):
    """
    The table's rows: values over the seeds, each row against the baseline.

    Args:
        experiments (`list[Experiment]`), seeds (`list[int]`), output_dir (`str`): What was run. Seeds of which there is
            no report are left out.
        baseline (`str`): Name of the plain row.

    Returns:
        `tuple[list[dict], SeedVariance]`: The rows of [`read_all`] with `difference` and `p`, adjusted for the number
        of rows (None for the baseline), less `correct`; and what is known of the seeds.

    Raises:
        `InputError`: As [`read_all`], or when the baseline has no finished run.
    """
    rows = read_all(experiments, seeds, output_dir)
    plain = next((row for row in rows if row["name"] == baseline), None)
    if plain is None:
        raise InputError(f"the baseline {baseline} has no finished run: mend it first, its log says what is wrong")
    others = [row for row in rows if row is not plain]
    seed_variance = compare_rows(rows, [(row, plain) for row in others])
    for row in rows:
        del row["correct"]
    return rows, seed_variance


def compare_rows(rows, pairs):
    """
    Gives rows `difference` and `p`, adjusted for the number of pairs; both are None for the others.

    Args:
        rows (`list[dict]`): Of [`read_all`].
        pairs (`list[tuple[dict, dict]]`): A row, and the one that it is compared with.

    Returns:
        [`SeedVariance`]: Pooled over all rows.
    """
    seed_variance = SeedVariance.pooled([row["correct"] for row in rows])
    tests = [paired_test(row["correct"], other["correct"], seed_variance) for row, other in pairs]
    for row in rows:
        row["difference"] = row["p"] = None
    for (row, _), (difference, _), p in zip(pairs, tests, holm([p for _, p in tests]), strict=True):
        row["difference"], row["p"] = difference, p
    return seed_variance


def read_all(experiments, seeds, output_dir):
    """
    The finished runs of all experiments; those of which none is finished are left out.

    Args:
        experiments (`list[Experiment]`), seeds (`list[int]`), output_dir (`str`): What was run.

    Returns:
        `list[dict]`: `name`, `note`, `seeds`, `accuracy`, `f1`, `train_seconds` (lists over seeds), `robustness` (lists
        by measure, where it was measured), `correct` (`(num_runs, num_texts)`, whether a run has a text right).

    Raises:
        `InputError`: When the runs were scored on different texts or trained on data that has changed, or one is
            damaged.
    """
    rows = [row for row in (read_runs(experiment, seeds, output_dir) for experiment in experiments) if row]
    if len(set().union(*(row.pop("scored_on") for row in rows))) > 1:
        raise InputError(
            f"the runs in {output_dir} were scored on different texts: give all the same test_file and samples"
        )
    trained_on = {}
    for row in rows:
        for wanted, digests in row.pop("trained_on").items():
            trained_on.setdefault(wanted, {}).update(digests)
    for digests in trained_on.values():
        if len(digests) > 1:
            raise InputError(
                f"the data has changed between the runs {' and '.join(map(str, digests.values()))}: remove one"
            )
    return rows


def is_found(row, seed_variance):
    """Whether a row's difference counts as one: p says nothing of a strategy when no row has a second seed."""
    return bool(seed_variance.freedom) and row["p"] is not None and row["p"] < LEVEL


def format_p(p):
    """Three digits of a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spread(values, scale=100.0, digits=2):
    """`mean ± standard deviation` of a list, the mean alone when it has one value."""
    mean = f"{scale * np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * np.std(values, ddof=1):.{digits}f}"


def format_comparison(rows, seed_variance, baseline):
    """The rows of [`collect`] as a Markdown table, percentages, with what the reader must know of it."""
    robust = any("robustness" in row for row in rows)
    heads = ["recipe", "accuracy", "macro F1", "seeds", "train s", f"against {baseline}", "p"]
    heads += [name.replace("_", " ") for name in MEASURES] if robust else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        verdict = ["–", "–"]
        if row["p"] is not None:
            star = " *" if is_found(row, seed_variance) else ""
            verdict = [f"{100 * row['difference']:+.2f}{star}", format_p(row["p"])]
        name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
        cells = [name, spread(row["accuracy"]), spread(row["f1"]), str(len(row["seeds"]))]
        cells += [spread(row["train_seconds"], 1, 0), *verdict]
        if robust:
            cells += [spread(row["robustness"][name], digits=1) if "robustness" in row else "–" for name in MEASURES]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Percent; mean ± standard deviation over seeds. `train s`: of this model alone, wall clock."]
    tested = f"p: paired test against {baseline} on the same texts, adjusted for the number of rows (Holm)"
    if seed_variance.freedom:
        lines.append(f"{tested}, with the variance over seeds, pooled over the rows. `*`: p < {LEVEL}.")
    else:
        lines.append(
            f"{tested}. One seed each: p is about these trained models on other texts, and says nothing of how the "
            "same strategies would do with another seed."
        )
    if robust:
        texts = next(row["robustness_rows"] for row in rows if "robustness" in row)
        lines.append(
            f"On a sample of {texts:,} texts: clean, as they are; fgm, pgd, under a perturbation of a tenth of the "
            "norm of a text's embeddings; noise, under errors on 5 and 10 % of the characters."
        )
    return "\n".join(lines)


def check_table(folder, what):
    """Refuses a folder with a table that is not of `what` (`str`): it would be overwritten."""
    there = [folder / name for name in ("table.md", "table.json", "table.png") if (folder / name).exists()]
    try:
        is_own = "rows" in json.loads((folder / "table.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        is_own = False
    if there and not is_own:
        raise InputError(f"{there[0]} is not of {what}: choose another --output_dir")


def write_table(folder, table, content):
    """Leaves `table.md` (`str`) and `table.json` (`dict`) in a folder."""
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    write_json(folder / "table.json", content)


def draw(rows, seed_variance, baseline, path):
    """A PNG: every row's accuracies, their mean, and the seconds that training took."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 1.6 + 0.34 * len(rows)), sharey=True, width_ratios=(3, 1.4), layout="constrained"
    )
    places = range(len(rows))
    plain = next(row for row in rows if row["name"] == baseline)
    left.axvline(100 * np.mean(plain["accuracy"]), color="0.6", linestyle="--", linewidth=1)
    for place, row in zip(places, rows, strict=True):
        found = is_found(row, seed_variance)
        color = "C0" if not found else ("C2" if row["difference"] > 0 else "C3")
        left.plot(100 * np.array(row["accuracy"]), [place] * len(row["accuracy"]), "o", color=color, alpha=0.4, ms=5)
        left.plot(100 * np.mean(row["accuracy"]), place, "|", color=color, ms=16, mew=2.5)
        right.barh(place, np.mean(row["train_seconds"]), color="0.7")
        right.text(np.mean(row["train_seconds"]), place, f" {np.mean(row['train_seconds']):.0f}", va="center", size=8)
    left.set_yticks(places, [row["name"] + (" (bf16)" if row["note"] else "") for row in rows])
    left.invert_yaxis()
    found = f"; green: better, red: worse, p < {LEVEL}" if seed_variance.freedom else ""
    left.set_title(f"dot: a seed; bar: mean; dashed: {baseline}{found}", loc="left", fontsize=9)
    left.set_xlabel("test accuracy, %")
    right.set_xlabel("training, seconds")
    right.margins(x=0.2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
