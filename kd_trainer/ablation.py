"""
Does each part of a distillation help? `run_distill.py --ablation` adds them one after the other, over several seeds.

The stages are recipes, made from the flags of the whole, in a folder of their own; [`Runner`] runs them.
"""

import dataclasses
import json
import logging
import shlex
from pathlib import Path

import numpy as np
import yaml

from .arguments import AblationArguments, TuningArguments
from .compare import Runner, plan, refuse_failed
from .comparison import LEVEL, check_table, compare_rows, format_p, is_found, read_all, spread, write_table
from .distill import DISTILLATION_SETTINGS
from .errors import InputError
from .output_folder import REPORT, check_writable, lock, plain
from .plots import check_matplotlib
from .significance import bootstrap_interval, paired_test

logger = logging.getLogger(__name__)

# What each stage adds to the one before: first the setting that says that the part is wanted, then its others.
PARTS = {
    "embeddings": ("embedding_init",),
    "ngrams": ("ngram_buckets", "ngram_size", "ngram_order", "ngram_dropout", "ngram_loss_weight"),
    "augmentation": ("augment", "num_augmented"),
    "unlabeled": ("unlabeled_file",),
}
# Settings that a stage has of its own, or not at all.
NOT_KEPT = {
    *(field.name for field in dataclasses.fields(AblationArguments)),
    *(field.name for field in dataclasses.fields(TuningArguments)),
    "compare_student", "seed", "output_dir", "push_to_hub", "predict_file", "predict_text", "predict_text_pair",
    "predict_output", "export", "cascade_teacher", "hub_model_id", "card_examples",
}  # fmt: skip


def check_parts(settings):
    """
    Refuses what some stage would refuse after others have been trained.

    Raises:
        `InputError`
    """
    for name in ("model_name_or_path", "config_name"):
        if settings.get(name) is not None:
            raise InputError(f"--ablation builds the student up from nothing: leave out --{name}")
    if settings.get("overwrite_output_dir"):
        raise InputError("--ablation goes on where it stopped: leave out --overwrite_output_dir")
    path = settings.get("embedding_init")
    if path not in (None, "teacher") and not Path(path).exists():
        raise InputError(f"--embedding_init {path}: no such file: check the path")
    if not settings.get("teacher_name_or_path"):
        for name in ("tokenizer_type", "embedding_init"):
            if settings.get(name) == "teacher":
                raise InputError(f"--{name} teacher needs a model as teacher: give --teacher_name_or_path")
    if settings.get("teacher_column") is not None and (settings.get("augment") or settings.get("unlabeled_file")):
        raise InputError("--teacher_column has no answers for --augment and --unlabeled_file: leave them out")


def make_stages(settings):
    """
    The settings of every stage: the student alone, then with the teacher, then with one part more at a time.

    Args:
        settings (`dict[str, Any]`): Of the whole distillation, after [`check_parts`].

    Returns:
        `dict[str, tuple[str, dict[str, Any]]]`: By its name, a stage's script and settings; parts that the whole does
        not have are no stages.
    """
    settings = {name: value for name, value in plain(settings).items() if name not in NOT_KEPT}
    if not settings.keys() & {"bf16", "fp16"}:
        settings["bf16"] = False  # the same on every machine, see `make_experiment`
    held_back = {name for names in PARTS.values() for name in names}
    base = {name: value for name, value in settings.items() if name not in held_back}
    alone = {name: value for name, value in base.items() if name not in DISTILLATION_SETTINGS}
    alone["skip_unlabeled"] = True
    if alone.get("tokenizer_type") == "teacher":  # run_student.py knows the tokenizer by its name alone
        del alone["tokenizer_type"]
        alone.setdefault("tokenizer_name", settings["teacher_name_or_path"][0])
    stages = {"student": ("run_student", alone), "+teacher": ("run_distill", base)}
    for part, names in PARTS.items():
        if settings.get(names[0]):
            base = {**base, **{name: settings[name] for name in names if name in settings}}
            stages[f"+{part}"] = ("run_distill", base)
    return stages


def write_stages(stages, folder):
    """
    Writes every stage as a recipe, `FOLDER/+teacher.yaml`.

    Returns:
        `tuple[list[str], list[Path]]`: All of them; and those that were not there before.

    Raises:
        `InputError`: Where a recipe of that name says something else.
    """
    texts = {}
    for name, (script, settings) in stages.items():
        path = folder / f"{name}.yaml"
        command = f"python {script}.py {shlex.quote(str(path))}"
        text = yaml.safe_dump({**settings, "output_dir": str(folder / name / "again")}, allow_unicode=True)
        texts[path] = f"# A stage of an ablation.\n# {command}\n\n{text}"
        if path.exists() and path.read_bytes() != texts[path].encode():
            raise InputError(f"{path} says something else: remove {folder}, or choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    new = [path for path in texts if not path.exists()]
    for path in new:
        path.write_text(texts[path], encoding="utf-8")
    return list(map(str, texts)), new


def format_waterfall(rows, seed_variance, teacher, whole=None):
    """
    The stages as a Markdown table.

    Args:
        rows (`list[dict]`): Of [`compare_rows`], each with `interval`.
        seed_variance ([`SeedVariance`]): Theirs.
        teacher (`float` or None): The teacher's accuracy.
        whole (`dict`, *optional*): `difference` and `p` of the last row against the first.
    """
    heads = ["stage", "accuracy", "95 % interval", "gain", "p", "macro F1", "seeds", "train s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        gain, p = "–", "–"
        if row["p"] is not None:
            gain = f"{100 * row['difference']:+.2f}{' *' if is_found(row, seed_variance) else ''}"
            p = format_p(row["p"])
        low, high = (f"{100 * end:.2f}" for end in row["interval"])
        cells = [row["name"], spread(row["accuracy"]), f"{low} to {high}", gain, p, spread(row["f1"])]
        lines.append(f"| {' | '.join([*cells, str(len(row['seeds'])), spread(row['train_seconds'], 1, 0)])} |")
    if teacher is not None:
        lines.append(f"| teacher | {100 * teacher:.2f} |{' – |' * (len(heads) - 2)}")
    lines += [
        "",
        "Percent; mean ± standard deviation over seeds. Interval: bootstrap over texts and seeds. Gain: over the row "
        "before; p: paired test of the two on the same texts (McNemar's where both have one run), adjusted for the "
        f"number of rows (Holm){f'; `*`: p < {LEVEL}' if seed_variance.freedom else ''}. All stages train for the same "
        "epochs or steps; with epochs, more texts are more steps.",
    ]
    if whole is not None:
        said = f"{rows[-1]['name']} over {rows[0]['name']}: {100 * whole['difference']:+.2f} points"
        p = format_p(whole["p"])
        lines += ["", f"All of it, {said}, p {'' if p.startswith('<') else '= '}{p} (one test, not adjusted)."]
    return "\n".join(lines)


def draw_waterfall(rows, seed_variance, teacher, path):
    """A PNG: every stage as a step from the mean of the one before to its own, with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.6 + 1.15 * len(rows), 4), layout="constrained")
    means = [100 * np.mean(row["accuracy"]) for row in rows]
    ends = [[100 * end for end in row["interval"]] for row in rows]
    shown = [*np.ravel(ends), *([] if teacher is None else [100 * teacher])]
    floor = min(shown) - 0.15 * (max(shown) - min(shown) or 1)
    for place, (row, mean, (low, high)) in enumerate(zip(rows, means, ends, strict=True)):
        before = means[place - 1] if place else floor
        found = is_found(row, seed_variance)
        color = "0.6" if not place else "0.75" if not found else "C2" if mean > before else "C3"
        axes.bar(place, mean - before, 0.6, bottom=before, color=color)
        axes.plot([place, place], [low, high], color="0.2", linewidth=1)
        if place:
            axes.plot([place - 1.3, place + 0.3], [before, before], color="0.4", linewidth=0.8)
        gain = f"{mean:.2f}" if not place else f"{mean:.2f}\n({mean - before:+.2f})"
        top = (place, max(high, mean, before))
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the teacher's line does not cross it
        axes.annotate(gain, top, (0, 4), "data", "offset points", ha="center", size=8, bbox=paper)
    if teacher is not None:
        axes.axhline(100 * teacher, color="C0", linestyle="--", linewidth=1, zorder=0)
        axes.text(1.01, 100 * teacher, "teacher", transform=axes.get_yaxis_transform(), va="center", size=8)
    axes.set_xticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(floor, max(shown) + 0.2 * (max(shown) - min(shown) or 1))
    axes.set_ylabel("test accuracy, %")
    meaning = f"green: better, red: worse than the stage before, p < {LEVEL}; " if seed_variance.freedom else ""
    axes.set_title(f"{meaning}line: 95 % interval", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def teacher_accuracy(experiments, seeds, output_dir):
    """The teacher's accuracy on the split that is reported, from the first report that has it; else None."""
    for experiment in experiments[1:]:
        for seed in seeds:
            path = experiment.folder(output_dir, seed) / REPORT
            if path.exists():
                teacher = json.loads(path.read_text(encoding="utf-8")).get("teacher")
                return None if teacher is None else teacher["accuracy"]
    return None


def plan_stages(stages, folder, seeds):
    """
    The stages as `list[Experiment]`; of a plan that is refused no recipe is left behind.

    Raises:
        `InputError`: As [`plan`] and [`write_stages`].
    """
    check_writable(folder, "--output_dir")
    check_table(folder, "an ablation")
    paths, new = write_stages(stages, folder)
    try:
        return plan(paths, [], seeds, folder)
    except InputError:
        for path in new:
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def ablate(settings, teachers, ablation_args, output_dir):
    """
    Everything that `run_distill.py --ablation` does once the teacher is there: makes the stages, runs those that are
    not finished, writes `table.md`, `table.json`, `table.png`.

    Args:
        settings (`dict[str, Any]`): What recipe and command line set.
        teachers (`list[str]`): Folders or names of those that are models, trained by now.
        ablation_args ([`AblationArguments`]): Seeds, runs at a time.
        output_dir (`Path`): All goes into the folder of its name and `-ablation`.

    Raises:
        `InputError`: As [`check_parts`] and [`plan_stages`]; and, after the table is written, for runs that failed.
    """
    folder, seeds = output_dir.with_name(f"{output_dir.name}-ablation"), ablation_args.ablation_seeds
    settings = {name: value for name, value in settings.items() if name != "teacher_recipe"}
    stages = make_stages({**settings, "teacher_name_or_path": teachers} if teachers else settings)
    experiments = plan_stages(stages, folder, seeds)
    lock(folder)  # two at once would each start the other's runs
    logger.info(f"{len(stages)} stages, {len(seeds)} seeds, into {folder}: {', '.join(stages)}")
    failed = Runner(folder, ablation_args.ablation_jobs).run_all(experiments, seeds)
    rows = read_all(experiments, seeds, folder)
    if rows:
        seed_variance = compare_rows(rows, list(zip(rows[1:], rows, strict=False)))
        whole = None
        if len(rows) > 2:  # else it stands in the table
            difference, p = paired_test(rows[-1]["correct"], rows[0]["correct"], seed_variance)
            whole = {"difference": difference, "p": p}
        for row in rows:
            row["interval"] = bootstrap_interval(row.pop("correct"))
        teacher = teacher_accuracy(experiments, seeds, folder)
        table = format_waterfall(rows, seed_variance, teacher, whole)
        write_table(folder, table, {"teacher": teacher, "rows": rows, "whole": whole})
        draw_waterfall(rows, seed_variance, teacher, folder / "table.png")
        print(table, flush=True)
    refuse_failed(failed)


def prepare_ablation(settings, ablation_args, args):
    """
    Refuses what an ablation cannot do, before a teacher is loaded or trained; and its flags without it.

    Args:
        settings (`dict[str, Any]`): What recipe and command line set.
        ablation_args ([`AblationArguments`]): Whether there is to be one.
        args (`TrainingArguments`): Of this process.

    Raises:
        `InputError`
    """
    if not ablation_args.ablation:
        idle = sorted({"ablation_seeds", "ablation_jobs"} & settings.keys())
        if idle:
            raise InputError(f"--{idle[0]} is for an ablation: give --ablation too")
        return
    check_matplotlib("the plot of --ablation")
    if settings.get("tune"):
        raise InputError("--ablation and --tune are both given: search first, then ablate what was found")
    if args.world_size > 1:
        raise InputError("--ablation starts its own processes: launch it without torchrun")
    has_recipe = settings.get("teacher_recipe") is not None
    check_parts({**settings, "teacher_name_or_path": ["its recipe's"]} if has_recipe else settings)
