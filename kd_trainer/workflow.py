"""One launch of a script, step by step: start, read data, train, score, write down what came out."""

import json
import logging
import os
import pickle
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import TrainingArguments, get_scheduler, set_seed
from transformers.utils.logging import tqdm

from .analysis import analyse, find_disagreements
from .arguments import DataArguments, RunArguments, check_arguments
from .baseline import linear_baseline
from .batches import NO_LABEL, DistillationCollator, tokenize
from .card import rewrite, write_card
from .card_file import CARD, is_unchanged
from .cascade import CascadeClassifier, check_other
from .data import load_data, load_texts
from .deferral import format_cascade
from .errors import HubError, InputError
from .files import as_text
from .inference import predict_logits
from .json_file import read_json
from .loading import check_pairs, fit_length, label_list, load_classifier, load_config, named_labels
from .metrics import compute_metrics, per_class_report
from .onnx_folder import export_model
from .onnx_graph import check_packages
from .output_folder import (
    ONNX,
    RECIPE,
    REPORT,
    TrainingClock,
    check_data,
    check_export_folder,
    check_sources,
    check_writable,
    claim_output_dir,
    differing_settings,
    find_checkpoint,
    last_checkpoint,
    lock,
    plain,
)
from .pairs import digest_texts, texts_of
from .plots import draw_plots
from .report import (
    check_prediction_file,
    format_per_class,
    format_robustness,
    format_table,
    prediction_rows,
    read_scored,
    result_row,
    table_rows,
    versions,
    with_rows,
    write_json,
    write_predictions,
    write_scored,
)
from .robustness import check_attackable, measure_robustness
from .sources import find_sources
from .trainer import AdversarialTrainer
from .upload import CHECKPOINT_STRATEGIES, check_pushable, count_quoted, prepare_repo, push_command, push_folder

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """
    One launch of a script.

    Args:
        settings (`dict[str, Any]`): What recipe and command line set.
        args (`TrainingArguments`), data_args ([`DataArguments`]), run_args ([`RunArguments`]): All flags.
        checkpoint (`str`, *optional*): Where a killed run is taken up.
    """

    settings: dict[str, Any]
    args: TrainingArguments
    data_args: DataArguments
    run_args: RunArguments
    checkpoint: str | None = None

    @property
    def output_dir(self):
        return Path(self.args.output_dir)

    @property
    def reads_pairs(self):
        """Whether a row is a pair of texts."""
        return self.data_args.text_pair_column is not None or self.run_args.predict_text_pair is not None

    @property
    def scored_split(self):
        """The split that the report is about."""
        return "test" if self.args.do_predict else "validation"

    def answered_splits(self, data):
        """The split that is reported, and the validation split, on which what is chosen afterwards is chosen."""
        return tuple(dict.fromkeys(split for split in (self.scored_split, "validation") if split in data.splits))

    @property
    def wanted_splits(self):
        """What is to be read: `tuple` of split names."""
        training = ("train",) if self.args.do_train else ()
        validation = ("validation",) if self.args.do_train or self.args.do_eval else ()
        return (*training, *validation, *(("test",) if self.args.do_predict else ()))


def set_logging(args):
    """Says what the first process does, and of the others only what goes wrong; `--log_level` overrules it."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    usual = logging.INFO if args.process_index == 0 else logging.ERROR
    level = usual if args.log_level == "passive" else args.get_process_log_level()
    logging.getLogger("kd_trainer").setLevel(level)
    for library in (transformers, datasets):
        library.utils.logging.set_verbosity(max(level, logging.WARNING))
    if args.disable_tqdm or args.process_index != 0:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def start_run(settings, args, data_args, run_args):
    """
    Checks the flags, the output folder and whether a push can work, sets logging and seed.

    Returns:
        [`Run`] or None: None when the folder holds this very run, finished, which had only to be pushed.

    Raises:
        `InputError`: For flags that do not go together, an output folder that holds another run, or a hub that does not
            take a push.
        `HubError`: When the hub cannot be reached or fails.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and args.world_size == 1:
        raise InputError("several processes were launched and each sees only itself: without a GPU add --use_cpu")
    set_logging(args)
    check_arguments(settings, args, data_args, run_args)
    if run_args.export:
        check_packages()
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # else torch warns that there is no accelerator to pin for
    if args.hub_token is not None:
        # Where the hub's client looks; the Trainer would write it into training_args.bin.
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    run = Run(settings, args, data_args, run_args)
    # A search and an ablation push nothing themselves.
    pushes = args.push_to_hub and not (settings.get("tune") or settings.get("ablation"))
    finished = pushes and is_finished(run)
    if run_args.predict_file is not None and not finished:
        check_prediction_file(prediction_path(run), run_args.overwrite_output_dir, data_files(run))
        if args.process_index == 0:
            check_writable(prediction_path(run).parent, "the folder of --predict_output")
    # An ablation has a folder of its own.
    if run.wanted_splits and not finished and not settings.get("ablation"):
        check_data(run.output_dir, data_files(run))
        run.checkpoint = find_checkpoint(run.output_dir, settings, args, run_args.overwrite_output_dir)
        if not args.do_train and any(run.output_dir.glob("model*.safetensors")):
            raise InputError(
                f"--output_dir {run.output_dir} holds a model that is not trained here: its report would be about "
                "another, choose another --output_dir"
            )
        if run_args.export:
            check_export_folder(run.output_dir / ONNX)
    if finished:
        check_pushable(run.output_dir)
    if pushes and args.process_index == 0:
        args.hub_model_id = prepare_repo(repository(run), args.hub_private_repo, args.hub_revision)
    if finished:
        push_finished(run)
        return None
    if args.world_size > 1:
        # A launcher that starts a world of 1 by mistake would otherwise go unnoticed.
        logger.info(f"world size {args.world_size}")
    set_seed(args.seed)
    return run


def repository(run):
    """Where the run is pushed to: as in the Trainer, the output folder's name unless it is named."""
    return run.args.hub_model_id or run.output_dir.absolute().name


def is_finished(run):
    """
    Whether the output folder holds this very run, finished, and need only be pushed.

    Raises:
        `InputError`: When it holds another one, finished.
    """
    folder = run.output_dir
    if run.run_args.overwrite_output_dir or not ((folder / REPORT).exists() and (folder / RECIPE).exists()):
        return False
    differing = differing_settings(folder, run.settings)
    split = read_json(folder / REPORT).get("split")
    if split != run.scored_split:
        differing = ", ".join(filter(None, [differing, f"its report is about the {split} split"]))
    if differing:
        command = push_command(folder, repository(run), run.args.hub_private_repo, run.args.hub_revision)
        raise InputError(
            f"--output_dir {folder} holds a finished run of other settings ({differing}): choose another --output_dir, "
            f"or push what is there with: {command}"
        )
    return True


def push_finished(run):
    """Pushes a run that is finished already, quoting no more texts of the data than a push is to quote."""
    if run.args.process_index != 0:
        return
    lock(run.output_dir)
    logger.info(f"the run in {run.output_dir} is finished: it is pushed, and nothing else is done")
    if count_quoted(run.output_dir) > number_of_examples(run):
        rewrite(run.output_dir, examples=number_of_examples(run))
    push_run(run)


def push_run(run):
    """
    Pushes the finished run where `--push_to_hub` asks for it.

    Raises:
        `HubError`: When it did not work; the run is not lost.
    """
    args = run.args
    if args.push_to_hub and args.process_index == 0:
        keeps_checkpoints = run.settings.get("hub_strategy") in CHECKPOINT_STRATEGIES
        push_folder(run.output_dir, repository(run), args.hub_private_repo, args.hub_revision, keeps_checkpoints)


def get_data(run, model_args, unlabelled_allowed=False, answer_column=None):
    """
    The splits that the run needs, in the label order of the checkpoint it starts from, if that names its labels.

    Args:
        run ([`Run`]): What to do.
        model_args ([`ModelArguments`]): The checkpoint, if any.
        unlabelled_allowed (`bool`): Whether training rows may lack their label.
        answer_column (`str`, *optional*): Column of a teacher's answers.

    Returns:
        [`TextData`] or None: None when nothing but predicting is to be done.

    Raises:
        `InputError`: As [`load_data`]; for training without a split to choose the checkpoint on; and when a model that
            is not trained further has other labels than the data.
    """
    if not run.wanted_splits:
        return None
    check_sources(run.output_dir, [model_args.model_name_or_path, model_args.tokenizer_name])
    config = None
    if model_args.model_name_or_path is not None:
        config = load_config(model_args.model_name_or_path, model_args)
    names = None if config is None else named_labels(config)
    data = load_data(run.data_args, run.wanted_splits, names, unlabelled_allowed, answer_column)
    if run.args.eval_strategy != "no" and "validation" not in data.splits:
        raise InputError("no validation split: give --validation_file or a --validation_split above 0")
    if run.scored_split not in data.splits:
        raise InputError(
            f"no {run.scored_split} split to score: give --validation_file, or --test_file and --do_predict"
        )
    if not run.args.do_train and config is not None:
        if names != data.label_names if names else config.num_labels != len(data.label_names):
            raise InputError(
                f"{model_args.model_name_or_path} has labels {names or config.num_labels}, data has "
                f"{data.label_names}: score it on data with its own labels"
            )
    return data


def build_trainer(trainer_class, **kwargs):
    """`trainer_class(**kwargs)`; a flag of the Trainer that it refuses is said in one line."""
    try:
        return trainer_class(**kwargs)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error


def check_optimizer(trainer):
    """
    Refuses an optimizer or a schedule that the Trainer will not make, before the output folder is emptied.

    Args:
        trainer (`Trainer`): Not yet trained.
    """
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or args.optim.value.endswith("layerwise"):
        return  # which make their own, of parts of the model, or hang it on its weights
    try:
        trainer.create_optimizer()
        steps = 10**6
        warmup = args.get_warmup_steps(steps)
        scheduler = get_scheduler(args.lr_scheduler_type, trainer.optimizer, warmup, steps, args.lr_scheduler_kwargs)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            [scheduler.step(score) for score in (1.0, 2.0)]
        for share_of in getattr(scheduler, "lr_lambdas", ()):  # of the learning rate, at a step
            [share_of(step) for step in (0, warmup, steps // 2, steps - 1, steps)]
        trainer.optimizer = None  # the training makes it anew, with the first learning rate
    except Exception as error:  # whatever a value makes an optimizer or a schedule raise
        given = f"--optim {args.optim.value}, --lr_scheduler_type {args.lr_scheduler_type.value}"
        raise InputError(f"{given}: {' '.join(str(error).split())}") from error


def train_model(run, trainer, digest):
    """
    Trains from the run's checkpoint or from the start, saves the model with its tokenizer into the output folder.

    Args:
        run ([`Run`]): Its settings, arguments and checkpoint.
        trainer (`Trainer`): Over the run's arguments.
        digest (`str`): Of all that it trains on, see [`claim_output_dir`].

    Returns:
        `float`: Seconds of training, those before a resumed checkpoint included.
    """
    check_optimizer(trainer)
    claim_output_dir(run.settings, run.args, run.checkpoint, digest)
    if run.args.bf16 and "bf16" not in run.settings:
        logger.info("this processor has bf16: training in it (--bf16 false for fp32)")
    model = f"{type(trainer.model).__name__} of {trainer.model.num_parameters():,} parameters"
    logger.info(f"training a {model} on {len(trainer.train_dataset)} rows, into {run.output_dir}")
    # A threshold that was chosen for the weights before these.
    vars(trainer.accelerator.unwrap_model(trainer.model).config).pop("cascade", None)
    clock = TrainingClock(run.checkpoint)
    trainer.add_callback(clock)
    try:
        result = trainer.train(resume_from_checkpoint=run.checkpoint)
    except KeyboardInterrupt:
        last = last_checkpoint(run.output_dir)
        if last is None:
            raise
        # With which it would start anew, or earlier.
        flags = [name for name in ("overwrite_output_dir", "resume_from_checkpoint") if run.settings.get(name)]
        without = f", without --{' and --'.join(flags)}," if flags else ""
        raise KeyboardInterrupt(f"the same command{without} continues from {last}") from None
    except pickle.UnpicklingError as error:  # the Trainer reads numbers alone (weights_only) and refuses the rest
        raise InputError(
            f"{run.checkpoint} holds pickled objects that are not numbers, and is not read: remove it"
        ) from error
    # Internal: an ordinary call would also push, before there is a report to push.
    trainer.save_model(_internal_call=True)
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    # The first process writes: no other may read before it is done.
    trainer.accelerator.wait_for_everyone()
    return clock.seconds


def check_model(run, model, tokenizer, max_length):
    """
    Says before the training what would fail in the middle or after it.

    Raises:
        `InputError`: For `--adversarial` or `--eval_robustness` with a model whose embeddings cannot be perturbed, and
            for `--gradient_checkpointing` with one that cannot do it.
    """
    if run.args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise InputError(f"{type(model).__name__} cannot do --gradient_checkpointing: leave it out")
    idle = sorted(name for name in run.settings if name.startswith("adversarial_"))
    if run.args.adversarial == "none" and idle:
        logger.warning(f"{', '.join(f'--{name}' for name in idle)}: no effect without --adversarial")
    if run.args.adversarial != "none" or run.run_args.eval_robustness:
        check_attackable(model, tokenizer, max_length)


def fit_alone(run, model, tokenizer, data, max_length):
    """
    Trains a classifier on the labels alone.

    Args:
        run ([`Run`]): What to do.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): What is trained; saved in the output folder.
        data ([`TextData`]): Rows without a label are left out.
        max_length (`int`): In tokens.

    Returns:
        `float`: Seconds of training.
    """
    check_model(run, model, tokenizer, max_length)
    train = data.splits["train"]
    labelled = [row for row, label in enumerate(train["labels"][:]) if label != NO_LABEL]
    validation = data.splits.get("validation")
    trainer = build_trainer(
        AdversarialTrainer,
        model=model,
        args=run.args,
        train_dataset=tokenize(train.select(labelled), tokenizer, max_length),
        eval_dataset=None if validation is None else tokenize(validation, tokenizer, max_length),
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer),
        compute_metrics=compute_metrics,
    )
    return train_model(run, trainer, data.digest())


def saved_model(run, model_args):
    """The model as the run has saved it, in fp32: what is scored is what somebody who loads it will get."""
    return load_classifier(str(run.output_dir), model_args).to(run.args.device)


def run_alone(run, role, model_args, model, tokenizer, data):
    """
    Everything that `run_teacher.py` and `run_student.py` do with their model: train, score, report, push, predict.

    Args:
        run ([`Run`]): What to do.
        role (`str`): Name of its row in the table.
        model_args ([`ModelArguments`]): How models are loaded.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The model.
        data ([`TextData`] or None): None when nothing but predicting is to be done.
    """
    check_pairs(model, tokenizer, run.reads_pairs)
    max_length = fit_length(run.data_args.max_seq_length, tokenizer, model.config)
    rows, answers = linear_baseline(run, data)
    seconds = None
    if run.args.do_train:
        seconds = fit_alone(run, model, tokenizer, data, max_length)
        model = saved_model(run, model_args)
    elif data is not None:
        claim_output_dir(run.settings, run.args, None, data.digest())
    model.to(run.args.device)
    if data is not None:
        row, logits = score_model(run, model, tokenizer, data, max_length, train_seconds=seconds)
        finish_report(run, {**rows, role: row}, data, {**answers, role: logits})
    conclude(run, model, tokenizer, max_length, data)


def conclude(run, model, tokenizer, max_length, data):
    """
    What follows the report: export, card and plots, predictions, push. What fails does not keep the rest from its work.

    Args:
        run ([`Run`]): What is asked for.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`), max_length (`int`): The model of the report.
        data ([`TextData`] or None): What it was scored on; None where nothing but predicting is done.

    Raises:
        `InputError`, `HubError`: The first failure, after all that worked.
    """
    failures = []
    for step in (
        lambda: data is not None and export_scored(run, model, tokenizer, max_length, data),
        lambda: data is not None and describe_run(run),
        lambda: predict(run, model, tokenizer, max_length),
        lambda: push_run(run),
    ):
        try:
            step()
        except (InputError, HubError) as error:
            failures.append(error)
    for error in failures[1:]:
        logger.error(str(error))
    if failures:
        raise failures[0]


def score_model(run, model, tokenizer, data, max_length, teacher_logits=None, train_seconds=None):
    """
    The model's row of the table, on the split that is reported. In a distributed run only the first process scores.

    Args:
        run ([`Run`]), data ([`TextData`]): Say which split.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The model.
        max_length (`int`): In its tokens.
        teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)`, *optional*): For the agreement.
        train_seconds (`float`, *optional*): None when unknown.

    Returns:
        `tuple[dict, dict[str, np.ndarray]]`: See [`result_row`]; the logits by split, see [`Run.answered_splits`].
    """
    if run.args.process_index != 0:
        return {}, None
    batch_size = run.args.per_device_eval_batch_size
    texts = {split: texts_of(data.splits[split])[:] for split in run.answered_splits(data)}
    logits = {
        split: predict_logits(model, tokenizer, rows, max_length, batch_size, f"Predicting {split}")
        for split, rows in texts.items()
    }
    texts, labels = texts[run.scored_split], data.splits[run.scored_split]["labels"][:]
    answers = logits[run.scored_split]
    row = result_row(model, tokenizer, texts, answers, labels, max_length, teacher_logits, train_seconds)
    if run.run_args.eval_robustness:
        row["robustness"] = measure_robustness(model, tokenizer, texts, labels, max_length, batch_size)
    return row, logits


def export_scored(run, model, tokenizer, max_length, data):
    """
    `--export`: the model as ONNX in a folder of the output folder, and its rows in the report, which shows the table
    again.

    Args:
        run ([`Run`]), data ([`TextData`]): Say on which split it is checked.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The model as it was scored.
        max_length (`int`): In its tokens.
    """
    if not run.run_args.export or run.args.process_index != 0:
        return
    teacher_logits = read_scored(run.output_dir)[1].get("teacher")
    split = data.splits[run.scored_split]
    columns = [run.data_args.text_column, *([run.data_args.text_pair_column] if data.has_pairs else [])]
    texts, labels = texts_of(split)[:], split["labels"][:]
    formats, folder = run.run_args.export, run.output_dir / ONNX
    exported = export_model(folder, model, tokenizer, max_length, formats, texts, labels, columns, teacher_logits)
    report = with_rows(read_json(run.output_dir / REPORT), exported)
    write_json(run.output_dir / REPORT, report)
    print(f"\n{format_table(table_rows(report))}\n", flush=True)


def finish_report(run, rows, data, logits, cascade=None):
    """
    Writes `report.json`, whose presence means that the run is finished, shows the table.

    Args:
        run ([`Run`]): What was done.
        rows (`dict[str, dict]`): The table's rows by their names.
        data ([`TextData`]): What it was done on.
        logits (`dict[str, dict[str, np.ndarray]]`): Every row's by split, `(num_rows, num_labels)`; the per-class
            report is about the last.
        cascade (`dict`, *optional*): See [`choose_cascade`].
    """
    split = run.scored_split
    if run.args.process_index == 0:
        report = {
            **rows,
            "split": split,
            "labels": data.label_names,
            "data": data.facts,
            "texts_sha256": digest_texts(data.splits[split]),
            "seed": run.args.seed,
            "settings": plain(run.settings),
            "sources": {**find_sources(run.settings), "repository": run.args.hub_model_id},
            "precision": "bf16" if run.args.bf16 else "fp16" if run.args.fp16 else "fp32",
            "measured": {"device": str(run.args.device), "speed": "CPU, 1 thread, tokenization included"},
            "versions": versions(),
        }
        answered = {}
        for kept in run.answered_splits(data):
            answers = {name: of_row[kept] for name, of_row in logits.items() if kept in of_row}
            answered[kept] = (np.asarray(data.splits[kept]["labels"][:]), answers)
            write_scored(run.output_dir, *answered[kept], kept == split)
        report |= analyse(
            data.label_names, *answered[split], answered.get("validation") if split != "validation" else None
        )
        report["disagreements"] = find_disagreements(
            texts_of(data.splits[split]), *answered[split], data.label_names, number_of_examples(run)
        )
        shown = f"\n{split} split, {data.facts['rows'][split]} rows\n{format_table(rows)}\n"
        if run.run_args.eval_robustness:
            shown += f"\n{format_robustness(rows)}\n"
        if cascade is not None:
            report["cascade"] = cascade
            shown += f"\n{format_cascade(cascade)}\n"
        if split == "test":
            last, labels = list(logits.values())[-1][split], answered[split][0]
            report["per_class"] = per_class_report(last, labels, data.label_names)
            shown = f"{format_per_class(report['per_class'])}\n{shown}"
        write_json(run.output_dir / REPORT, report)
        print(shown, flush=True)
        logger.info(f"report written to {run.output_dir / REPORT}")
        if run.run_args.card_examples is None and run.args.push_to_hub and "distilled" in rows:
            logger.info("the model card quotes no texts, as it is pushed: --card_examples 5 quotes some")


def number_of_examples(run):
    """How many texts the report and the card quote."""
    asked = run.run_args.card_examples
    if asked is None:
        return 0 if run.args.push_to_hub else 5
    return asked


def describe_run(run):
    """The model card and the plots; a card that somebody has written there stays."""
    if not run.args.do_train or run.args.process_index != 0:
        return  # there is no model here that a card could be about
    card, answered = run.output_dir / CARD, (read_json(run.output_dir / REPORT), *read_scored(run.output_dir))
    if card.exists() and not is_unchanged(card):
        cure = f"python -m kd_trainer.card {shlex.quote(str(run.output_dir))} --overwrite"
        logger.warning(f"{card} was written or edited by somebody and stays: {cure} replaces it")
        draw_plots(run.output_dir, *answered)
    else:
        write_card(run.output_dir, *answered)


def data_files(run):
    """The files that the run's flags name: `list[str]`."""
    flags = {**run.settings, **vars(run.data_args), "predict_file": run.run_args.predict_file}
    named = [value for name, value in flags.items() if name.endswith("_file") and value is not None]
    return [path for value in named for path in (value if isinstance(value, list) else [value])]


def prediction_path(run):
    """Where `--predict_file` writes."""
    named = run.run_args.predict_output
    return run.output_dir / "predictions.csv" if named is None else Path(named)


def label_texts(pieces, model, tokenizer, max_length, batch_size, cascade=None):
    """
    Yields the [`prediction_rows`] of pieces of texts, of which one is in memory at a time.

    Args:
        pieces (iterable of `list[str]` or of `list[tuple[str, str]]`): In the order of the rows.
        model, tokenizer, max_length, batch_size: As [`predict_logits`].
        cascade ([`CascadeClassifier`], *optional*): Answers instead of the model alone.
    """
    label_names = label_list(model.config)
    for texts in pieces:
        if cascade is None:
            answers = (predict_logits(model, tokenizer, texts, max_length, batch_size, None), label_names)
        else:
            logits, asked = cascade.answer(texts)
            answers = (logits, label_names, asked)
        yield from prediction_rows(texts, *answers)


def predict(run, model, tokenizer, max_length):
    """`--predict_text` to the terminal, `--predict_file` to a file."""
    run_args, batch_size = run.run_args, run.args.per_device_eval_batch_size
    if run.args.process_index != 0 or (run_args.predict_text is None and run_args.predict_file is None):
        return
    cascade = None
    if run_args.cascade_teacher is not None:
        settings = {"max_seq_length": max_length, "batch_size": batch_size}
        settings["trust_remote_code"] = bool(run.settings.get("trust_remote_code"))
        check_other(run.output_dir if run.args.do_train else model.name_or_path, run_args.cascade_teacher)
        cascade = CascadeClassifier((model, tokenizer), run_args.cascade_teacher, **settings)
        cascade.teacher.to(run.args.device)
    label_names = label_list(model.config)
    if run_args.predict_text is not None:
        text = as_text(run_args.predict_text, "--predict_text")
        if run_args.predict_text_pair is not None:
            text = (text, as_text(run_args.predict_text_pair, "--predict_text_pair"))
        rows = label_texts([[text]], model, tokenizer, max_length, batch_size, cascade)
        print(json.dumps(next(rows), ensure_ascii=False))
        return
    texts = load_texts(run_args.predict_file, run.data_args, label_names)
    rows = label_texts(texts.pieces(), model, tokenizer, max_length, batch_size, cascade)
    rows = tqdm(rows, total=len(texts), desc="Predicting", unit="text")
    is_new = not run_args.overwrite_output_dir
    write_predictions(prediction_path(run), rows, label_names, is_new)
    logger.info(f"{len(texts)} predictions written to {prediction_path(run)}")
