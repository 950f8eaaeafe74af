"""
Run a set of recipes over several seeds, and say which of them is better than the plain one.

    python -m kd_trainer.compare recipes/demo/student.yaml recipes/demo/distill.yaml --seeds 1 2 --output_dir outputs/ab
    python -m kd_trainer.compare recipes/demo/*.yaml --output_dir outputs/quick -- --max_train_samples 500

Each run has a folder of its own, OUTPUT_DIR/RECIPE/seed_N, and a log beside it. Those that are finished are not run
again, and one that was killed goes on, when the same command is given again. What stands after `--` goes to every run.
"""

import argparse
import concurrent.futures
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import InputError
from .output_folder import REPORT, check_writable, differing_settings
from .recipes import read_recipe
from .report import read_scored, write_json
from .significance import holm, paired_test, pooled_seed_variance
from .workflow import run_console

logger = logging.getLogger("kd_trainer.compare")  # its name with python -m, too

# A script's row of its report.
ROWS = {"run_teacher": "teacher", "run_student": "student", "run_distill": "distilled"}
# Without CUDA there is no fp16 autocast worth the name: bf16 stands for it, and the row says so.
IN_PLACE_OF_FP16 = ("--fp16=false", "--bf16=true", "--use_cpu=true")
ROBUSTNESS = ("fgm", "pgd", "noise_5", "noise_10")


@dataclass(frozen=True)
class Experiment:
    """
    A recipe with the seeds it is run with.

    Args:
        recipe (`Path`): Its file name, without the ending, is the row's name.
        script (`str`): Module that runs it.
        flags (`tuple[str]`): For every run, on top of the recipe.
        note (`str`): What the row's name must say besides.
        teacher (`str`, *optional*): Recipe of its teacher, which is trained when it is not there.
    """

    recipe: Path
    script: str
    flags: tuple[str, ...]
    note: str
    teacher: str | None = None

    @property
    def name(self):
        return self.recipe.stem

    def folder(self, output_dir, seed):
        return Path(output_dir) / self.name / f"seed_{seed}"

    def arguments(self, output_dir, seed):
        """The run's command line, without the interpreter and the script."""
        return [str(self.recipe), f"--seed={seed}", f"--output_dir={self.folder(output_dir, seed)}", *self.flags]


def find_script(recipe):
    """
    The script that a recipe's second line names.

    Raises:
        `InputError`: When that line is no command of one of the three scripts.
    """
    read_recipe(recipe)  # explains a file that is not there or no recipe
    lines = recipe.read_text(encoding="utf-8").splitlines()
    words = lines[1].split() if len(lines) > 1 else []
    script = words[2].removesuffix(".py") if words[:2] == ["#", "python"] and len(words) > 2 else None
    if script not in ROWS:
        raise InputError(f"{recipe}: its second line must be its command, '# python run_student.py {recipe}'")
    return script


def plan(recipes, flags, seeds, output_dir):
    """
    Checks everything before the first run starts: recipes, flags, and that finished runs were run with them.

    Args:
        recipes (`list[str]`): Files.
        flags (`list[str]`): Of every run.
        seeds (`list[int]`): To be run with.
        output_dir (`str`): Of all runs.

    Returns:
        `list[Experiment]`.

    Raises:
        `InputError`: For a recipe or flag that a script refuses, two recipes of one name, or a finished run of other
            settings.
    """
    for flag in flags:
        name = flag.split("=")[0].replace("-", "_").replace("__", "--", 1)  # the scripts take --output-dir, too
        if name in ("--seed", "--output_dir"):
            raise InputError(f"{name} is set for every run: use --seeds and --output_dir before the --")
    experiments = []
    for recipe in map(Path, recipes):
        script = find_script(recipe)
        parser = importlib.import_module(script).make_parser()
        instead = ()
        *_, settings, _ = parser.parse([str(recipe), *flags, "--use_cpu", "--fp16=false"])
        given, _ = parser.read_settings(flags)
        if given.get("fp16", read_recipe(recipe).get("fp16")) and not torch.cuda.is_available():
            instead = IN_PLACE_OF_FP16
        if not (settings.get("do_train") and settings.get("do_predict")):
            raise InputError(f"{recipe}: runs are compared on the test split: it must say do_train and do_predict")
        experiments.append(
            Experiment(
                recipe,
                script,
                (*flags, *instead),
                "in bf16, there is no CUDA here" if instead else "",
                settings.get("teacher_recipe"),
            )
        )
    names = [experiment.name for experiment in experiments]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two recipes are called {', '.join(twice)}: the name of a file is that of its row")
    for experiment in experiments:
        parser = importlib.import_module(experiment.script).make_parser()
        for seed in seeds:
            folder = experiment.folder(output_dir, seed)
            if (folder / REPORT).exists():
                *_, settings, _ = parser.parse(experiment.arguments(output_dir, seed))
                differing = differing_settings(folder, settings)
                if differing:
                    raise InputError(
                        f"{folder} was run with other settings ({differing}): remove it, or choose another --output_dir"
                    )
    return experiments


def run_one(experiment, seed, output_dir, threads):
    """One run in a process of its own; returns its exit code, 0 at once when it is finished already."""
    folder = experiment.folder(output_dir, seed)
    if (folder / REPORT).exists():
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", experiment.script, *experiment.arguments(output_dir, seed), "--disable_tqdm=true"]
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    what = f"failed with exit code {code}, see {folder}.log" if code else "finished"
    logger.info(f"{experiment.name}, seed {seed}: {what} after {time.perf_counter() - start:.0f} s")
    return code


def run_all(experiments, seeds, output_dir, jobs):
    """
    Runs what is not finished, `jobs` at a time.

    Returns:
        `list[Path]`: The folders of runs that failed.
    """
    runs = [(experiment, seed) for seed in seeds for experiment in experiments]
    # Two runs at once would both train a teacher that is not there: the first run with each goes ahead alone.
    first, rest, teachers = [], [], set()
    for experiment, seed in runs:
        teacher = experiment.teacher if jobs > 1 else None
        (rest if teacher is None or teacher in teachers else first).append((experiment, seed))
        teachers.add(teacher)
    # Threads that share a core wait for each other far longer than they save.
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    codes = [run_one(experiment, seed, output_dir, threads) for experiment, seed in first]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        codes += pool.map(lambda run: run_one(*run, output_dir, threads), rest)
    return [run[0].folder(output_dir, run[1]) for run, code in zip(first + rest, codes, strict=True) if code]


def collect(experiments, seeds, output_dir, baseline):
    """
    The table's rows: means and standard deviations over the seeds, each against the baseline.

    Args:
        experiments (`list[Experiment]`), seeds (`list[int]`), output_dir (`str`): What was run. Seeds of which there is
            no report are left out.
        baseline (`str`): Name of the plain row.

    Returns:
        `list[dict]`: `name`, `seeds`, `accuracy`, `f1`, `train_seconds` (lists over seeds), `robustness` (lists by
        attack, where it was measured), `difference` and `p`, adjusted for the number of rows (None for the baseline).

    Raises:
        `InputError`: When the runs were scored on different texts, or the baseline has no finished run.
    """
    rows, labels, digest = [], None, None
    for experiment in experiments:
        reports, correct = {}, []
        for seed in seeds:
            folder = experiment.folder(output_dir, seed)
            if not (folder / REPORT).exists():
                continue
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            reports[seed] = report[ROWS[experiment.script]]
            its_labels, logits = read_scored(folder)
            its_digest = report.get("texts_sha256")
            labels = its_labels if labels is None else labels
            digest = digest or its_digest
            if not np.array_equal(labels, its_labels) or its_digest not in (None, digest):  # None: an older report
                raise InputError(f"{folder} was scored on other texts: give all recipes the same test_file")
            correct.append(logits[ROWS[experiment.script]].argmax(axis=-1) == labels)
        if reports:
            row = {"name": experiment.name, "note": experiment.note, "seeds": list(reports), "correct": correct}
            for key in ("accuracy", "f1", "train_seconds"):
                row[key] = [report[key] for report in reports.values()]
            if all("robustness" in report for report in reports.values()):
                row["robustness"] = {
                    name: [report["robustness"][name] for report in reports.values()] for name in ROBUSTNESS
                }
            rows.append(row)
    plain = next((row for row in rows if row["name"] == baseline), None)
    if plain is None:
        raise InputError(f"the baseline {baseline} has no finished run: mend it first, its log says what is wrong")
    seed_variance = pooled_seed_variance([row["correct"] for row in rows])
    others = [row for row in rows if row is not plain]
    tests = [paired_test(np.array(row["correct"]), np.array(plain["correct"]), seed_variance) for row in others]
    plain["difference"] = plain["p"] = None
    for row, (difference, _), p in zip(others, tests, holm([p for _, p in tests]), strict=True):
        row["difference"], row["p"] = difference, p
    for row in rows:
        del row["correct"]
    return rows


def spread(values, scale=100.0, digits=2):
    """`mean ± standard deviation` of a list, the mean alone when it has one value."""
    mean = f"{scale * np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * np.std(values, ddof=1):.{digits}f}"


def format_comparison(rows, baseline):
    """The rows of [`collect`] as a Markdown table, percentages."""
    robust = all("robustness" in row for row in rows)
    heads = ["recipe", "accuracy", "macro F1", "seeds", "train s", f"against {baseline}", "p"]
    heads += [name.replace("_", " ") for name in ROBUSTNESS] if robust else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        verdict = ["–", "–"]
        if row["p"] is not None:
            star = " *" if row["p"] < 0.05 else ""
            p = "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            verdict = [f"{100 * row['difference']:+.2f}{star}", p]
        name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
        cells = [name, spread(row["accuracy"]), spread(row["f1"]), str(len(row["seeds"]))]
        cells += [spread(row["train_seconds"], 1, 0), *verdict]
        cells += [f"{100 * np.mean(row['robustness'][name]):.1f}" for name in ROBUSTNESS] if robust else []
        lines.append(f"| {' | '.join(cells)} |")
    single = any(len(row["seeds"]) == 1 for row in rows)
    lines += [
        "",
        f"Percent, mean ± standard deviation over seeds. `*`: p < 0.05. p is of a paired test against {baseline} on "
        "the texts that both have answered, with the spread over seeds added, adjusted for the number of rows (Holm).",
    ]
    if single:
        lines.append("A row of one seed says nothing about how another seed would have done.")
    if robust:
        lines.append(
            "fgm, pgd: accuracy under a perturbation of a tenth of the norm of a text's embeddings; noise: under "
            "errors on 5 and 10 % of the characters."
        )
    return "\n".join(lines)


def draw(rows, baseline, path):
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
        better = row["p"] is not None and row["p"] < 0.05
        color = "C0" if not better else ("C2" if row["difference"] > 0 else "C3")
        left.plot(100 * np.array(row["accuracy"]), [place] * len(row["accuracy"]), "o", color=color, alpha=0.4, ms=5)
        left.plot(100 * np.mean(row["accuracy"]), place, "|", color=color, ms=16, mew=2.5)
        right.barh(place, np.mean(row["train_seconds"]), color="0.7")
        right.text(np.mean(row["train_seconds"]), place, f" {np.mean(row['train_seconds']):.0f}", va="center", size=8)
    left.set_yticks(places, [row["name"] + (" (bf16)" if row["note"] else "") for row in rows])
    left.invert_yaxis()
    left.set_xlabel(f"test accuracy, % (dot: a seed, bar: mean, dashed: {baseline}; green, red: p < 0.05)")
    right.set_xlabel("training, seconds")
    right.margins(x=0.2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def make_parser():
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m kd_trainer.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", help="Recipes; the second line of each is its command.")
    parser.add_argument("--output_dir", required=True, help="Folder of the runs, of table.md, .json and .png.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="Each recipe is run with each (42).")
    parser.add_argument("--baseline", help="Name of the recipe that the others are compared with (the first one).")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, which share the CPU's cores (1).")

    def refuse(message):
        raise InputError(f"{message} (--help lists the flags)")

    parser.error = refuse
    return parser


def main(argv):
    """Runs, compares and writes the table as the command line `argv` (`list[str]`) says."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("kd_trainer").setLevel(logging.INFO)
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = make_parser().parse_args(own)
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds):
        raise InputError("--jobs must be at least 1, and no seed may stand twice in --seeds")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("the plot needs matplotlib: pip install 'kd_trainer[plot]'") from None
    check_writable(Path(args.output_dir), "--output_dir")
    experiments = plan(args.recipes, flags, args.seeds, args.output_dir)
    baseline = experiments[0].name if args.baseline is None else args.baseline
    if baseline not in [experiment.name for experiment in experiments]:
        raise InputError(f"--baseline {baseline}: none of the recipes has that name: give the name of its file")
    failed = run_all(experiments, args.seeds, args.output_dir, args.jobs)
    rows = collect(experiments, args.seeds, args.output_dir, baseline)
    table = format_comparison(rows, baseline)
    folder = Path(args.output_dir)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    write_json(folder / "table.json", {"baseline": baseline, "flags": flags, "rows": rows})
    draw(rows, baseline, folder / "table.png")
    print(table, flush=True)
    if failed:
        logs = ", ".join(f"{path}.log" for path in failed)
        raise InputError(f"{len(failed)} of the runs failed, the table is without them: see {logs}")


def console():
    """Entry point of `kd-compare`."""
    run_console(main)


if __name__ == "__main__":
    console()
