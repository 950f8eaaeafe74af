"""
A search: students that differ in a few settings of the distillation, trained on the same logits of the teacher and
compared on the validation split.

Optuna proposes the trials, `Trainer.hyperparameter_search` runs them. They are kept in a database in the output folder
as they finish, so that a search that was stopped goes on. A trial saves no model: a search ends with a recipe.
"""

import copy
import functools
import logging
import math

import numpy as np
from transformers.trainer_utils import SaveStrategy

from .batches import DistillationCollator
from .distill import build_transfer_set, new_student, sources_digest, teacher_columns
from .errors import InputError
from .loading import fit_length
from .metrics import compute_metrics, first_output
from .output_folder import BEST, SEARCH, claim_output_dir
from .trainer import KD_LOSSES, DistillationTrainer
from .transfer import EmptyTransferSet
from .trials import report_trials
from .workflow import build_trainer, check_model

logger = logging.getLogger(__name__)

STUDY = "tune"
FACTOR = 4.0  # learning rate and temperature are searched from a FACTOR-th of what is given to FACTOR times that
SCORES = ("accuracy", "precision", "recall", "f1")
# What only a run of the recipe that a search ends with does.
PUT_OFF = ("do_predict", "compare_student", "eval_robustness", "predict_file", "predict_text", "push_to_hub", "export",
           "cascade_teacher")  # fmt: skip


def prepare_search(run, tuning_args, teacher_args):
    """
    Checks the flags of a search, and switches off in `run` and `teacher_args` what it does not do: above all it does
    not read the test split.

    Args:
        run ([`Run`]): Its settings stay, for the recipe.
        tuning_args ([`TuningArguments`]), teacher_args ([`TeacherArguments`]): The other flags.

    Raises:
        `InputError`: For flags that a search cannot follow, and without Optuna.
    """
    if not tuning_args.tune:
        if "tune_trials" in run.settings:
            raise InputError("--tune_trials is for a search: give --tune too")
        return
    args = run.args
    best_kept, by_steps = args.load_best_model_at_end, args.save_strategy == SaveStrategy.STEPS
    refused = {
        "trains students: give --do_train": not args.do_train,
        "reads cached logits, not states: leave out --hidden_loss_weight, --embedding_loss_weight": bool(
            args.state_weights
        ),
        "reads cached logits: leave out --teacher_mode online": teacher_args.teacher_mode == "online",
        "runs in one process: launch it without torchrun": args.world_size > 1,
        "multiplies the learning rate: give a --learning_rate above 0": args.learning_rate == 0,
        f"multiplies --learning_rate and --temperature by {FACTOR:g}: give smaller ones": not math.isfinite(
            FACTOR * max(args.learning_rate, args.temperature)
        ),
        "keeps a trial's best evaluation: leave out --eval_strategy, --save_strategy, --load_best_model_at_end": (
            not best_kept
        ),
        "counts every evaluation: give --eval_steps and --save_steps the same": (
            best_kept and by_steps and args.save_steps != args.eval_steps
        ),
        "cannot compare losses of different kinds: give --metric_for_best_model accuracy, f1, precision or recall": (
            best_kept and not args.greater_is_better
        ),
    }
    for why, is_so in refused.items():
        if is_so:
            raise InputError(f"--tune {why}")
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("--tune needs Optuna: pip install 'kd_trainer[tune]', or pip install optuna") from None
    put_off = [name for name in PUT_OFF if run.settings.get(name)]
    if put_off:
        logger.info(f"{', '.join(f'--{name}' for name in put_off)}: not in a search, but kept in {BEST}")
    args.do_predict = args.push_to_hub = teacher_args.compare_student = False


def searched(args, teacher_args):
    """
    The settings that a search varies, with their values as given: `dict[str, float | int]`.

    Args:
        args ([`DistillationTrainingArguments`]), teacher_args ([`TeacherArguments`]): The flags.
    """
    given = {"learning_rate": args.learning_rate, "alpha": args.alpha}
    if args.kd_loss in KD_LOSSES:
        given["temperature"] = args.temperature
    if teacher_args.augment:
        given["num_augmented"] = teacher_args.num_augmented
    return given


def suggest(trial, given):
    """
    A trial's values: `given` lies within the bounds of all of them.

    Args:
        trial (`optuna.trial.BaseTrial`): Proposes them.
        given (`dict[str, float | int]`): See [`searched`].

    Returns:
        `dict[str, float | int]`: Three significant digits, but for what is as given.
    """
    values = {}
    for name, value in given.items():
        if name == "num_augmented":
            values[name] = trial.suggest_int(name, 0, value)
            continue
        if name == "alpha":
            drawn = trial.suggest_float(name, 0.0, 1.0)
        else:
            drawn = trial.suggest_float(name, value / FACTOR, value * FACTOR, log=True)
        values[name] = value if drawn == value else float(f"{drawn:.3g}")
    return values


class TrialTrainer(DistillationTrainer):
    """
    A [`DistillationTrainer`] whose trainings are trials of a search. What is to be known of a trial is kept with it:
    its values, and of its best evaluation the scores, the epoch and which rows were right.

    Args:
        given (`dict[str, float | int]`): See [`searched`].
        count_rows_with (`Callable[[int], int]`): How many of the training rows there are with a number of variants.
        kwargs: As [`DistillationTrainer`]; the training rows are those of the largest number of variants.
    """

    def __init__(self, given, count_rows_with, **kwargs):
        super().__init__(**kwargs)
        self.given = given
        self.count_rows_with = count_rows_with
        self.all_rows = self.train_dataset
        self.trial = None
        self.correct = None

    def begin(self, trial):
        """`hp_space`: a trial's training arguments. The Trainer asks for them before it takes the training rows."""
        self.trial = trial
        values = suggest(trial, self.given)
        trial.set_user_attr("values", values)
        variants = values.pop("num_augmented", None)
        if variants is not None:
            self.train_dataset = self.all_rows.select(range(self.count_rows_with(variants)))
        return values

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        logits = first_output(output.predictions)
        self.correct = logits.argmax(axis=-1) == output.label_ids
        if not np.isfinite(logits).all():
            # The most likely of no numbers is the first label: a training that diverged must not be best by luck.
            self.correct[:] = False
            output.metrics.update({f"eval_{name}": 0.0 for name in SCORES})
        return output

    def best_score(self, metrics):
        """`compute_objective`: the score of the trial's best evaluation so far, the one a run keeps the weights of."""
        score = metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"]
        best = self.state.best_metric
        if best is not None and score <= best:
            return best
        self.trial.set_user_attr("scores", {name: metrics[f"eval_{name}"] for name in SCORES})
        self.trial.set_user_attr("epoch", self.state.epoch)
        self.trial.set_user_attr("correct", "".join("01"[int(right)] for right in self.correct))
        return score


def open_study(folder, given):
    """
    The search in `folder`, begun where there is none: what a kill has left half-done is put aside, and the values as
    given are the first to be tried.

    Returns:
        `tuple[optuna.Study, optuna.storages.RDBStorage]`.

    Raises:
        `InputError`: For a database that cannot be read.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    states = optuna.trial.TrialState
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / SEARCH}")
        study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)
        for trial in study.get_trials(deepcopy=False, states=[states.RUNNING]):
            study.tell(trial.number, state=states.FAIL)
        if not study.get_trials(deepcopy=False, states=[states.COMPLETE, states.WAITING]):
            study.enqueue_trial(given)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder / SEARCH} cannot be read ({reason}): remove it to search anew, or choose another --output_dir"
        ) from None
    return study, storage


def finished_trials(study):
    """`list[optuna.trial.FrozenTrial]`, in their order."""
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def run_trials(run, study, storage, trials, trainer):
    """Trains until `trials` (`int`) of the study are finished."""
    import optuna

    while (number := len(finished_trials(study))) < trials:
        # Anew for every trial, from a seed of its own: a search that was stopped goes on to the same proposals.
        seed = int(np.random.SeedSequence([run.args.seed, number]).generate_state(1)[0])
        try:
            trainer.hyperparameter_search(
                hp_space=trainer.begin,
                compute_objective=trainer.best_score,
                n_trials=1,
                direction="maximize",
                backend="optuna",
                storage=storage,
                study_name=STUDY,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed),
                pruner=optuna.pruners.NopPruner(),  # every trial is to have a score
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"finished trials that {SEARCH} keeps: {number}") from None
        trial = finished_trials(study)[-1]
        values = ", ".join(f"{name} {value:g}" for name, value in trial.user_attrs["values"].items())
        metric = trainer.args.metric_for_best_model.removeprefix("eval_")
        logger.info(f"trial {number + 1} of {trials}: {metric} {trial.value:.4f}, {values}")


def make_trainer(run, given, student, tokenizer, max_length, teacher, data):
    """The [`TrialTrainer`] of a search; the teacher labels what it has not labelled before."""
    splits = teacher_columns(run, teacher, tokenizer, data, max_length)
    teacher.to("cpu")  # its work is done: the students have the device to themselves
    most = teacher.args.num_augmented

    @functools.cache
    def count_variants(number):
        if number == 0:
            return 0
        # The files without labels, which may be large, are not read again.
        try:
            parts = build_transfer_set(run, teacher, tokenizer, data, num_augmented=number, unlabeled_file=None)
        except EmptyTransferSet:
            return 0
        return sum(map(len, parts))

    def count_rows_with(number):
        # Fewer variants are the first of more, see `augment`.
        rows = len(splits["train"])
        return rows if number == most else rows - count_variants(most) + count_variants(number)

    args = copy.deepcopy(run.args)
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    return build_trainer(
        TrialTrainer,
        given=given,
        count_rows_with=count_rows_with,
        # A copy draws no random number: a trial trains as a run of its settings does.
        model_init=lambda: copy.deepcopy(student),
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer),
        compute_metrics=compute_metrics,
    )


def tune(run, tuning_args, teacher, student_args, data):
    """
    Searches, and leaves `tune.json`, all trials, and `best.yaml`, a recipe, in the output folder.

    Args:
        run ([`Run`]): After [`prepare_search`].
        tuning_args ([`TuningArguments`]): Number of trials; of a search that is continued, those before included.
        teacher ([`Ensemble`]): Loaded.
        student_args ([`StudentArguments`]): The student that every trial starts from.
        data ([`TextData`]): Training and validation split.

    Raises:
        `InputError`: When the folder holds a search on other data, or one that cannot be read.
    """
    given = searched(run.args, teacher.args)
    student, tokenizer = new_student(run, student_args, data, teacher, taught=True)
    max_length = fit_length(run.data_args.max_seq_length, tokenizer, student.config)
    check_model(run, student, tokenizer, max_length)
    database = run.output_dir / SEARCH
    begun = database.exists() and not run.run_args.overwrite_output_dir
    claim_output_dir(
        run.settings, run.args, str(database) if begun else None, sources_digest(teacher, student_args, data)
    )
    study, storage = open_study(run.output_dir, given)
    if len(finished_trials(study)) < tuning_args.tune_trials:
        teacher.to(run.args.device)
        trainer = make_trainer(run, given, student, tokenizer, max_length, teacher, data)
        run_trials(run, study, storage, tuning_args.tune_trials, trainer)
    report_trials(run, finished_trials(study), list(given), data, teacher)
