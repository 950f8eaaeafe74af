"""The steps that the three scripts share: start a run, get a model, train it, score it, write down what came out."""

import gc
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .arguments import DataArguments, RunArguments, TrainingArguments, check_arguments
from .data import NO_LABEL, DistillationCollator, load_data, load_texts, tokenize
from .errors import InputError
from .inference import predict_logits
from .loading import build_classifier, fit_length, load_classifier, load_config, load_tokenizer, named_labels
from .metrics import compute_metrics, per_class_report
from .modeling_bilstm import BiLSTMConfig, BiLSTMForSequenceClassification
from .report import (
    check_prediction_file,
    format_table,
    prediction_rows,
    result_row,
    versions,
    write_json,
    write_predictions,
)
from .tokenization import build_tokenizer
from .trainer import ClassificationTrainer

logger = logging.getLogger(__name__)

REPORT, RECIPE, CLOCK = "report.json", "recipe.yaml", "clock.json"
# Settings that may change when a killed run is taken up again: they do not change what it computes.
FREE_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "disable_tqdm", "log_level", "logging_steps",
    "report_to", "predict_file", "predict_text", "predict_output", "do_eval", "do_predict", "teacher_cache_dir",
    "teacher_batch_size", "compare_student", "push_to_hub", "hub_model_id", "hub_token",
}  # fmt: skip


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
    def scored_split(self):
        """The split that the report is about."""
        return "test" if self.args.do_predict else "validation"

    @property
    def wanted_splits(self):
        """What is to be read: `tuple` of split names."""
        training = ("train",) if self.args.do_train else ()
        validation = ("validation",) if self.args.do_train or self.args.do_eval else ()
        return (*training, *validation, *(("test",) if self.args.do_predict else ()))


def run_console(main):
    """
    Runs a script's `main` for a person at a terminal: a mistake of theirs is one line and exit code 2.

    The process group of a distributed run is taken down at the end: gloo's threads may otherwise abort the interpreter.
    """
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.collect()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def set_logging(args):
    """Says what the first process does, and of the others only what goes wrong; `--log_level` overrules it."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    usual = logging.INFO if args.process_index == 0 else logging.ERROR
    level = usual if args.log_level == "passive" else args.get_process_log_level()
    logging.getLogger("kd_trainer").setLevel(level)
    for library in (transformers, datasets):
        library.utils.logging.set_verbosity(max(level, logging.WARNING))


def start_run(settings, args, data_args, run_args):
    """
    Checks the flags and the output folder, sets logging and seed.

    Returns:
        [`Run`].

    Raises:
        `InputError`: For flags that do not go together, or an output folder that holds another run.
    """
    set_logging(args)
    check_arguments(settings, args, data_args, run_args)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # else torch warns that there is no accelerator to pin for
    run = Run(settings, args, data_args, run_args)
    if run_args.predict_file is not None:
        check_prediction_file(prediction_path(run), run_args.overwrite_output_dir)
    if run.wanted_splits:
        run.checkpoint = find_checkpoint(run.output_dir, settings, args, run_args.overwrite_output_dir)
    if args.world_size > 1:
        # A launcher that starts a world of 1 by mistake would otherwise go unnoticed.
        logger.info(f"world size {args.world_size}")
    set_seed(args.seed)
    return run


def plain(settings):
    """Settings as YAML and JSON can hold them."""
    return json.loads(json.dumps(settings, default=str))


def differing_settings(folder, settings):
    """In which settings the run in `folder` differs from `settings`, in one line; empty when in none that matters."""
    saved, settings = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")), plain(settings)
    names = sorted((saved.keys() | settings.keys()) - FREE_SETTINGS)
    changes = [(name, saved.get(name), settings.get(name)) for name in names]
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, old, new in changes if old != new)


def find_checkpoint(folder, settings, args, overwrite):
    """
    Looks into an output folder, without touching it: may this run use it, and did a killed run of the same settings
    leave a checkpoint there?

    Args:
        folder (`Path`): The output folder.
        settings (`dict[str, Any]`): Compared with those in its `recipe.yaml`.
        args (`TrainingArguments`): Its `resume_from_checkpoint` wins over the last checkpoint.
        overwrite (`bool`): Whether another run in the folder may be replaced.

    Returns:
        `str` or None: The checkpoint to continue from.

    Raises:
        `InputError`: When the folder holds a finished run, another unfinished one, or a model of unknown origin.
    """
    cure = "choose another --output_dir, or replace it with --overwrite_output_dir"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file: choose a folder")
    if args.resume_from_checkpoint is not None and not Path(args.resume_from_checkpoint).is_dir():
        raise InputError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: no such folder: give a checkpoint's")
    if overwrite or not folder.exists():
        return args.resume_from_checkpoint
    if (folder / REPORT).exists():
        raise InputError(f"--output_dir {folder} holds a finished run ({REPORT}): {cure}")
    last = get_last_checkpoint(folder)
    if not (folder / RECIPE).exists():
        if last is not None or (folder / "config.json").exists():
            raise InputError(f"--output_dir {folder} holds a model that this run did not make: {cure}")
        return args.resume_from_checkpoint
    differing = differing_settings(folder, settings)
    if last is not None and differing:
        raise InputError(f"--output_dir {folder} holds an unfinished run of other settings ({differing}): {cure}")
    return args.resume_from_checkpoint or last


def claim_output_dir(settings, args, checkpoint):
    """
    Makes the output folder this run's own: its settings go into `recipe.yaml`, and unless it continues from a
    `checkpoint`, what another run left there goes.
    """
    if args.process_index == 0:
        folder = Path(args.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if checkpoint is None:
                for old in folder.glob("checkpoint-*"):
                    shutil.rmtree(old)
                (folder / REPORT).unlink(missing_ok=True)
            (folder / RECIPE).write_text(yaml.safe_dump(plain(settings), allow_unicode=True), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another") from None
    args.distributed_state.wait_for_everyone()
    if checkpoint is not None:
        logger.warning(f"continuing the run in {args.output_dir} from {checkpoint}")


def get_data(run, model_args, unlabelled_allowed=False):
    """
    The splits that the run needs, in the label order of the checkpoint it starts from, if that names its labels.

    Returns:
        [`TextData`] or None: None when nothing but predicting is to be done.

    Raises:
        `InputError`: As [`load_data`], and when a model that is not trained further has other labels than the data.
    """
    if not run.wanted_splits:
        return None
    config = None
    if model_args.model_name_or_path is not None:
        config = load_config(model_args.model_name_or_path, model_args)
    names = None if config is None else named_labels(config)
    data = load_data(run.data_args, run.wanted_splits, names, unlabelled_allowed)
    if not run.args.do_train and config is not None:
        if names != data.label_names if names else config.num_labels != len(data.label_names):
            raise InputError(
                f"{model_args.model_name_or_path} has labels {names or config.num_labels}, data has "
                f"{data.label_names}: score it on data with its own labels"
            )
    return data


def training_texts(data):
    """The texts that a vocabulary may be built from: the training split's, `list[str]`."""
    return data.splits["train"]["text"][:] if data is not None and "train" in data.splits else []


def get_tokenizer(model_args, texts, max_length, bert_style=False):
    """
    The tokenizer that `model_args` names, or one built from `texts`, the training split's.

    Raises:
        `InputError`: When there is neither a tokenizer to load nor texts to build one from.
    """
    name = model_args.tokenizer_name or model_args.model_name_or_path
    if name is not None:
        tokenizer = load_tokenizer(name, model_args)
        if tokenizer.pad_token is None:
            raise InputError(f"tokenizer {name} has no padding token: use one that has")
        return tokenizer
    if model_args.tokenizer_type == "teacher":
        raise InputError("--tokenizer_type teacher needs run_distill.py: elsewhere give --tokenizer_name")
    tokenizer = build_tokenizer(
        texts, model_args.tokenizer_type, model_args.vocab_size, model_args.vocab_file, max_length, bert_style
    )
    logger.info(f"tokenizer of {len(tokenizer)} tokens built from {len(texts)} training texts")
    return tokenizer


def get_transformer(model_args, tokenizer, label_names, what="model", training=True):
    """A classifier from a checkpoint or, when told so, from a configuration alone."""
    if model_args.model_name_or_path is not None:
        if model_args.config_name is not None:
            raise InputError(
                "--model_name_or_path and --config_name are both given: fine-tune the one or train the other"
            )
        return load_classifier(model_args.model_name_or_path, model_args, label_names if training else None, what)
    if model_args.config_name is None:
        raise InputError("no model to start from: give --model_name_or_path, or --config_name to train from scratch")
    if not training:
        raise InputError("without --do_train a trained model is needed: give --model_name_or_path")
    return build_classifier(model_args.config_name, model_args.config_overrides, tokenizer, label_names, model_args)


def get_student(student_args, tokenizer, label_names, training=True):
    """The student: a checkpoint, a configuration of `transformers`, or a new BiLSTM."""
    if student_args.model_name_or_path is not None or student_args.config_name is not None:
        return get_transformer(student_args, tokenizer, label_names, "student", training)
    if not training:
        raise InputError("without --do_train a trained student is needed: give --model_name_or_path")
    try:
        config = BiLSTMConfig(
            vocab_size=len(tokenizer),
            embedding_size=student_args.embedding_size,
            hidden_size=student_args.hidden_size,
            num_hidden_layers=student_args.num_hidden_layers,
            dropout=student_args.dropout,
            pooling=student_args.pooling,
            pad_token_id=tokenizer.pad_token_id,
            problem_type="single_label_classification",
            id2label=dict(enumerate(label_names)),
            label2id={name: index for index, name in enumerate(label_names)},
        )
    except ValueError as error:
        raise InputError(f"--{error}") from error
    return BiLSTMForSequenceClassification(config)


class TrainingClock(TrainerCallback):
    """Seconds of training, those before a resumed checkpoint included."""

    def __init__(self, checkpoint=None):
        self.before = 0.0
        if checkpoint is not None and (Path(checkpoint) / CLOCK).exists():
            self.before = json.loads((Path(checkpoint) / CLOCK).read_text())["seconds"]
        self.start = None
        self.seconds = self.before

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            seconds = self.before + time.perf_counter() - self.start
            (folder / CLOCK).write_text(json.dumps({"seconds": seconds}))

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = self.before + time.perf_counter() - self.start


def train_model(run, trainer):
    """
    Trains from the run's checkpoint or from the start, saves the model with its tokenizer into the output folder.

    Returns:
        `float`: Seconds of training, those before a resumed checkpoint included.
    """
    claim_output_dir(run.settings, run.args, run.checkpoint)
    clock = TrainingClock(run.checkpoint)
    trainer.add_callback(clock)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return clock.seconds


def tokenized(data, split, tokenizer, max_length, *teacher):
    """A tokenized split, or None when it is not there; see [`tokenize`]."""
    return tokenize(data.splits[split], tokenizer, max_length, *teacher) if split in data.splits else None


def check_validation(run, data):
    """Refuses to choose a checkpoint without a split to choose it on."""
    if run.args.eval_strategy != "no" and "validation" not in data.splits:
        raise InputError("no validation split: give --validation_file or a --validation_split above 0")


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
    check_validation(run, data)
    train = data.splits["train"]
    labelled = [row for row, label in enumerate(train["labels"]) if label != NO_LABEL]
    trainer = ClassificationTrainer(
        model=model,
        args=run.args,
        train_dataset=tokenize(train.select(labelled), tokenizer, max_length),
        eval_dataset=tokenized(data, "validation", tokenizer, max_length),
        processing_class=tokenizer,
        data_collator=DistillationCollator(tokenizer),
        compute_metrics=compute_metrics,
    )
    return train_model(run, trainer)


def saved_model(folder, model_args):
    """The model as a run has saved it: what is scored is what somebody who loads it will get, in fp32."""
    return load_classifier(str(folder), model_args)


def run_alone(run, role, model_args, model, tokenizer, data):
    """
    Everything that `run_teacher.py` and `run_student.py` do with their model: train, push, score, report, predict.

    Args:
        run ([`Run`]): What to do.
        role (`str`): Name of its row in the table.
        model_args ([`ModelArguments`]): How models are loaded.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The model.
        data ([`TextData`] or None): None when nothing but predicting is to be done.
    """
    max_length = sequence_length(run, tokenizer, model)
    seconds = None
    if run.args.do_train:
        seconds = fit_alone(run, model, tokenizer, data, max_length)
        model = saved_model(run.output_dir, model_args)
    model.to(run.args.device)
    if data is not None:
        row, logits = score_model(run, model, tokenizer, data, max_length, train_seconds=seconds)
        finish_report(run, {role: row}, data, logits)
    predict(run, model, tokenizer, max_length)


def score_model(run, model, tokenizer, data, max_length, logits=None, teacher_logits=None, train_seconds=None):
    """
    The model's row of the table, on the split that is reported. In a distributed run only the first process scores.

    Args:
        run ([`Run`]), data ([`TextData`]): Say which split.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The model.
        max_length (`int`): In its tokens.
        logits (`np.ndarray` of shape `(num_rows, num_labels)`, *optional*): Where they are known.
        teacher_logits (`np.ndarray` of shape `(num_rows, num_labels)`, *optional*): For the agreement.
        train_seconds (`float`, *optional*): None when unknown.

    Returns:
        `tuple[dict, np.ndarray]`: See [`result_row`]; the logits.
    """
    if run.args.process_index != 0:
        return {}, None
    texts, labels = data.splits[run.scored_split]["text"][:], data.splits[run.scored_split]["labels"][:]
    if logits is None:
        logits = predict_logits(model, tokenizer, texts, max_length, run.args.per_device_eval_batch_size)
    return result_row(model, tokenizer, texts, logits, labels, max_length, teacher_logits, train_seconds), logits


def finish_report(run, rows, data, logits, **facts):
    """
    Prints the table, and for the test split the per-class report, and writes `report.json`, last of all: its presence
    means that the run is finished.

    Args:
        run ([`Run`]): What was done.
        rows (`dict[str, dict]`): The table's rows by their names.
        data ([`TextData`]): What it was done on.
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): Of the model that the per-class report is about.
        facts: More keys of the report.
    """
    if run.args.process_index != 0:
        return
    split = run.scored_split
    report = {
        **rows,
        "split": split,
        "labels": data.label_names,
        "data": data.facts,
        "seed": run.args.seed,
        "settings": plain(run.settings),
        "measured": {"device": str(run.args.device), "speed": "CPU, 1 thread, tokenization included"},
        "versions": versions(),
        **facts,
    }
    if split == "test":
        report["per_class"] = per_class_report(logits, data.splits["test"]["labels"][:], data.label_names)
        print(format_per_class(report["per_class"]))
    print(f"\n{split} split, {data.facts['rows'][split]} rows\n{format_table(rows)}\n", flush=True)
    write_json(run.output_dir / REPORT, report)
    logger.info(f"report written to {run.output_dir / REPORT}")


def format_per_class(per_class):
    """scikit-learn's per-class report, a `dict`, as lines of text."""
    lines = [f"{'precision':>20}{'recall':>10}{'f1':>10}{'rows':>8}  label"]
    for name, scores in per_class.items():
        if isinstance(scores, dict):
            values = "".join(f"{scores[key]:>10.4f}" for key in ("precision", "recall", "f1-score"))
            lines.append(f"{'':>10}{values}{scores['support']:>8.0f}  {name}")
    return "\n".join(lines)


def prediction_path(run):
    """Where `--predict_file` writes."""
    return Path(run.run_args.predict_output or run.output_dir / "predictions.csv")


def predict(run, model, tokenizer, max_length):
    """`--predict_text` to the terminal, `--predict_file` to a file."""
    label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    texts = None
    if run.run_args.predict_text is not None:
        texts = [run.run_args.predict_text]
    elif run.run_args.predict_file is not None:
        texts = load_texts(run.run_args.predict_file, run.data_args, label_names)
    if texts is None or run.args.process_index != 0:
        return
    logits = predict_logits(model, tokenizer, texts, max_length, run.args.per_device_eval_batch_size)
    rows = prediction_rows(texts, logits, label_names)
    if run.run_args.predict_text is not None:
        print(json.dumps(next(rows), ensure_ascii=False))
        return
    write_predictions(prediction_path(run), rows, label_names)
    logger.warning(f"{len(texts)} predictions written to {prediction_path(run)}")


def sequence_length(run, tokenizer, model):
    """`--max_seq_length`, or what the model can take."""
    return fit_length(run.data_args.max_seq_length, tokenizer, model.config)
