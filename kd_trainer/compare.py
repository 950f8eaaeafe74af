"""
Run a set of recipes over several seeds, and say which of them is better than the plain one.

    python -m kd_trainer.compare recipes/demo/student.yaml recipes/demo/distill.yaml --seeds 1 2 --output_dir outputs/ab
    python -m kd_trainer.compare recipes/demo/*.yaml --output_dir outputs/quick -- --max_train_samples 500

Each run has a folder of its own, OUTPUT_DIR/RECIPE/seed_N, and a log beside it. Those that are finished are not run
again, and one that was killed goes on, when the same command is given again. What stands after `--` goes to every run.
"""

import concurrent.futures
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .arguments import check_seeds, check_sizes
from .comparison import check_table, collect, draw, format_comparison, has_robustness, write_table
from .console import CommandParser, log_to_terminal, run_console
from .errors import InputError
from .output_folder import REPORT, check_writable, differing_settings, is_locked
from .plots import check_matplotlib
from .recipes import read_recipe

logger = logging.getLogger("kd_trainer.compare")  # its name with python -m, too

# A script's row of its report.
ROWS = {"run_teacher": "teacher", "run_student": "student", "run_distill": "distilled"}
# Settings that name who teaches.
TEACHERS = ("teacher_name_or_path", "linear_teacher", "teacher_column")
# Without CUDA there is no fp16 autocast worth the name: bf16 stands for it, and the row says so.
IN_PLACE_OF_FP16 = ("--fp16=false", "--bf16=true", "--use_cpu=true")
GOES_ON = "the same command goes on with the runs that are not finished"


@dataclass(frozen=True)
class Experiment:
    """
    A recipe as it is run.

    Args:
        recipe (`Path`): Its file name, without the ending, is the row's name.
        script (`str`): Module that runs it.
        flags (`tuple[str]`): For every run, on top of the recipe.
        wants_fp16 (`bool`): Whether recipe and flags say fp16.
        teacher (`str`, *optional*): Recipe of its teacher, which is trained when it is not there.
    """

    recipe: Path
    script: str
    flags: tuple[str, ...] = ()
    wants_fp16: bool = False
    teacher: str | None = None

    @property
    def name(self):
        return self.recipe.stem

    @property
    def row(self):
        """What the run is about, of the rows of its report."""
        return ROWS[self.script]

    def folder(self, output_dir, seed):
        return Path(output_dir) / self.name / f"seed_{seed}"

    def arguments(self, output_dir, seed):
        """The run's command line, without the interpreter and the script."""
        return [str(self.recipe), f"--seed={seed}", f"--output_dir={self.folder(output_dir, seed)}", *self.flags]


def make_parser_of(script):
    """The [`ScriptParser`] of a script, by its module's name."""
    return importlib.import_module(script).make_parser()


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


def make_experiment(recipe, flags, output_dir):
    """
    A recipe with the flags that its runs need.

    Raises:
        `InputError`: For a recipe or flag that its script refuses, or that trains or scores nothing.
    """
    script = find_script(recipe)
    parser = make_parser_of(script)
    # fp16 is refused where there is no CUDA: what it is replaced by is decided below.
    *_, settings, _ = parser.parse([str(recipe), *flags, "--use_cpu", "--fp16=false"])
    if not (settings.get("do_train") and settings.get("do_predict")):
        raise InputError(f"{recipe}: runs are compared on the test split: it must say do_train and do_predict")
    for name in ("overwrite_output_dir", "resume_from_checkpoint"):
        if settings.get(name):
            raise InputError(f"{recipe}: --{name}: a comparison goes on where it stopped: leave it out")
    if settings.get("ablation"):
        raise InputError(f"{recipe}: --ablation is many runs, not one to compare: leave it out")
    if settings.get("tune"):
        raise InputError(f"{recipe}: --tune is a search, not a run to compare: leave it out, or compare its best.yaml")
    for name in ("train_file", "validation_file", "test_file", "class_file"):
        if settings.get(name) is not None and not Path(settings[name]).exists():
            raise InputError(f"{recipe}: {name} {settings[name]}: no such file")
    teacher = settings.get("teacher_recipe")
    if teacher is not None:
        make_parser_of("run_teacher").parse([teacher, "--use_cpu", "--fp16=false"])
    elif script == "run_distill" and not any(settings.get(name) for name in TEACHERS):
        raise InputError(f"{recipe}: no teacher: give teacher_recipe, or {' or '.join(TEACHERS)}")
    own, _ = parser.read_settings([*parser.recipe_arguments(recipe), *flags])
    wants_fp16 = bool(own.get("fp16"))
    # Rows that say nothing of their precision train in fp32 on every machine: half precision is what others try out.
    more = () if own.keys() & {"fp16", "bf16"} else ("--bf16=false",)
    if flags and teacher is not None and settings.get("teacher_name_or_path") is None:
        # A teacher of its own: the flags may change what it is trained on, and others use the recipe's.
        name = Path(teacher).with_suffix("").as_posix().strip("/").replace("/", "_")
        more = (*more, f"--teacher_name_or_path={Path(output_dir) / 'teachers' / name}")
    if wants_fp16 and not torch.cuda.is_available():
        more = (*more, *IN_PLACE_OF_FP16)
    return Experiment(recipe, script, (*flags, *more), wants_fp16, teacher)


def plan(recipes, flags, seeds, output_dir):
    """
    Checks recipes and flags, and that finished runs were run with them, before the first run starts.

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
    names = [Path(recipe).stem for recipe in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two recipes are called {', '.join(twice)}: the name of a file is that of its row")
    experiments = [make_experiment(Path(recipe), flags, output_dir) for recipe in recipes]
    for experiment in experiments:
        parser = make_parser_of(experiment.script)
        # Another machine may have had the CUDA that is missing here, or the other way round.
        ignored = {"fp16", "bf16"} if experiment.wants_fp16 else set()
        for seed in seeds:
            folder = experiment.folder(output_dir, seed)
            check_writable(folder, "--output_dir")
            if folder.with_suffix(".log").is_dir():
                raise InputError(f"{folder}.log is a folder, and the run's log is to go there: remove it")
            if (folder / REPORT).exists():
                *_, settings, _ = parser.parse(experiment.arguments(output_dir, seed))
                differing = differing_settings(folder, settings, ignored)
                if settings.get("eval_robustness") and not has_robustness(folder, experiment):
                    differing = "eval_robustness False -> True"
                if differing:
                    raise InputError(
                        f"{folder} was run with other settings ({differing}): remove it, or choose another --output_dir"
                    )
    return experiments


class Runner:
    """
    Runs experiments in processes of their own, and takes those down with itself.

    Args:
        output_dir (`str`): Of all runs.
        jobs (`int`): Runs at a time.
    """

    def __init__(self, output_dir, jobs):
        self.output_dir = output_dir
        self.jobs = jobs
        self.stopped = threading.Event()
        self.processes = set()

    def run(self, experiment, seed):
        """One run; returns its exit code, 0 at once when it is finished already, None when all are being stopped."""
        folder = experiment.folder(self.output_dir, seed)
        if not (folder / REPORT).exists() and is_locked(folder):
            logger.info(f"{experiment.name}, seed {seed}: another process runs it: waiting")
            while is_locked(folder) and not self.stopped.wait(2):
                pass
        if (folder / REPORT).exists():
            return 0
        if self.stopped.is_set():
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.jobs > 1:
            # Threads that share a core wait for each other far longer than they save.
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        command = [sys.executable, "-m", experiment.script, *experiment.arguments(self.output_dir, seed)]
        start = time.perf_counter()
        with folder.with_suffix(".log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, "--disable_tqdm=true"], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            self.processes.add(process)
            if self.stopped.is_set():  # the signal came while it was being started, and has not reached it
                process.terminate()
            code = process.wait()
            self.processes.discard(process)
        if code in (130, -signal.SIGINT):  # interrupted at the terminal, as all others are
            self.stopped.set()
        what = f"failed with exit code {code}, see {folder}.log" if code else "finished"
        logger.info(f"{experiment.name}, seed {seed}: {what} after {time.perf_counter() - start:.0f} s")
        return code

    def run_all(self, experiments, seeds):
        """
        Runs what is not finished, `jobs` at a time.

        Returns:
            `list[Path]`: The folders of runs that failed.
        """
        # Two runs at once would both train a teacher that is not there: the first run with each goes ahead alone.
        first, rest, teachers = [], [], set()
        for experiment, seed in [(experiment, seed) for seed in seeds for experiment in experiments]:
            teacher = experiment.teacher if self.jobs > 1 else None
            (rest if teacher is None or teacher in teachers else first).append((experiment, seed))
            teachers.add(teacher)
        pool = concurrent.futures.ThreadPoolExecutor(self.jobs)
        # A polite kill takes the runs down, too.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            codes = [pool.submit(self.run, *run).result() for run in first]
            codes += pool.map(lambda run: self.run(*run), rest)
        except BaseException as error:
            self.stopped.set()
            for process in list(self.processes):
                process.terminate()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(GOES_ON) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGTERM, before)
        if self.stopped.is_set():
            raise KeyboardInterrupt(GOES_ON)
        return [run[0].folder(self.output_dir, run[1]) for run, code in zip(first + rest, codes, strict=True) if code]


def refuse_failed(failed):
    """Says which runs failed, by the folders that [`Runner.run_all`] returns, once the others have their table."""
    if failed:
        logs = ", ".join(f"{path}.log" for path in failed)
        raise InputError(f"{len(failed)} of the runs failed, the table is without them: see {logs}")


def make_parser():
    """The command line of this module."""
    parser = CommandParser("compare", __doc__)
    parser.add_argument("recipes", nargs="+", help="Recipes; the second line of each is its command.")
    parser.add_argument("--output_dir", required=True, help="Folder of the runs, of table.md, .json and .png.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="Each recipe is run with each (42).")
    parser.add_argument("--baseline", help="Name of the recipe that the others are compared with (the first one).")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, which share the CPU's cores (1).")
    return parser


def main(argv):
    """Runs, compares and writes the table as the command line `argv` (`list[str]`) says."""
    log_to_terminal()
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = make_parser().parse_args(own)
    check_sizes(args, "jobs")
    check_seeds("--seeds", args.seeds)
    if not args.output_dir:
        raise InputError("--output_dir is empty: name the folder for the runs and the table")
    check_matplotlib()
    folder = Path(args.output_dir)
    check_writable(folder, "--output_dir")
    check_table(folder, "a comparison")
    experiments = plan(args.recipes, flags, args.seeds, folder)
    baseline = experiments[0].name if args.baseline is None else args.baseline
    if baseline not in [experiment.name for experiment in experiments]:
        raise InputError(f"--baseline {baseline}: none of the recipes has that name: give the name of its file")
    experiments.sort(
        key=lambda experiment: experiment.name != baseline
    )  # it stands first, the others as they are given
    failed = Runner(folder, args.jobs).run_all(experiments, args.seeds)
    rows, seed_variance = collect(experiments, args.seeds, folder, baseline)
    table = format_comparison(rows, seed_variance, baseline)
    write_table(folder, table, {"baseline": baseline, "flags": flags, "rows": rows})
    draw(rows, seed_variance, baseline, folder / "table.png")
    print(table, flush=True)
    refuse_failed(failed)


def console():
    """Entry point of `kd-compare`."""
    run_console(main)


if __name__ == "__main__":
    console()
