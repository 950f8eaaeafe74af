"""The flags of the three scripts, as dataclasses."""

import math
import numbers
import sys
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from .adversarial import Attack
from .errors import InputError


def is_number(value, least=-sys.float_info.max, most=sys.float_info.max):
    """Whether a value, numpy's too, is a number from `least` to `most`; a bool and NaN are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(least <= value <= most)


def check_size(what, value, least=1, most=2**31 - 1):
    """Refuses what is not a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{what} is {value!r:.60}: it must be a whole number")
    if not least <= value <= most:
        raise InputError(
            f"{what} is {value}: it must be {'at least' if value < least else 'at most'} "
            f"{least if value < least else most}"
        )


def check_sizes(arguments, *names, least=1, most=2**31 - 1):
    """[`check_size`] of what is not None."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None:
            check_size(f"--{name}", value, least, most)


def check_seeds(flag, seeds):
    """Refuses seeds that numpy does not take, or the same one twice."""
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise InputError(f"{flag} {seeds}: give numbers from 0 to 2^32 - 1, each once")


EXPORT_FORMATS = ("onnx", "onnx-int8")


def split_formats(values):
    """
    The formats of `--export onnx onnx-int8`, which may be written `onnx,onnx-int8`, too.

    Args:
        values (`list[str]` or None): As given.

    Returns:
        `list[str]` or None: Each once.

    Raises:
        `InputError`: For another format.
    """
    if values is None:
        return None
    formats = [word for value in values for word in value.split(",")]
    for word in formats:
        if word not in EXPORT_FORMATS:
            raise InputError(f"--export {word!r}: choose {' or '.join(EXPORT_FORMATS)}, or both")
    return list(dict.fromkeys(formats))


@dataclass
class ModelArguments:
    """Which model to start from: a checkpoint, or a configuration to train from scratch."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a folder or a model on the hub."}
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch: a model type such as 'bert', or the name or folder of a configuration. "
            "No pretrained weights are loaded then."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the configuration of --config_name, 'hidden_size=256,num_hidden_layers=4'."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer to load, if it is not the one beside the checkpoint."}
    )
    tokenizer_type: Literal["char", "word", "teacher"] = field(
        default="char",
        metadata={
            "help": "Tokenizer built from the training texts when none is loaded: characters, words (lower case, at "
            "white space and punctuation), or, in run_distill.py, the teacher's own."
        },
    )
    vocab_size: int = field(
        default=5000, metadata={"help": "Most tokens of a vocabulary built from the training texts."}
    )
    vocab_file: str | None = field(
        default=None, metadata={"help": "Vocabulary to use instead: one token a line, UTF-8, as in cnews.vocab.txt."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where models from the hub are stored."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the modeling code that comes with a checkpoint."}
    )

    def __post_init__(self):
        check_sizes(self, "vocab_size")


@dataclass
class StudentArguments(ModelArguments):
    """A new student of --student_type unless --model_name_or_path or --config_name names another."""

    _argument_group_name = "student"

    student_type: Literal["bilstm", "cnn", "bag"] = field(
        default="bilstm",
        metadata={
            "help": "Network of a new student: bidirectional LSTM, convolutions, or a bag of embeddings, as fastText."
        },
    )
    embedding_size: int = field(default=300, metadata={"help": "Width of a token's embedding."})
    embedding_init: str | None = field(
        default=None,
        metadata={
            "help": "First token embeddings: 'teacher', those of the teacher, or a text file of word2vec, GloVe or "
            "fastText, plain or .gz. Wider ones are reduced by PCA. Default: random."
        },
    )
    sparse_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Update the embeddings of a step's own tokens alone: several times faster where the vocabulary is "
            "large, such as a teacher's. They are not decayed."
        },
    )
    hidden_size: int = field(
        default=384, metadata={"help": "Width of the LSTM's state per direction, filters per width, a bag's layers."}
    )
    num_hidden_layers: int = field(
        default=1, metadata={"help": "BiLSTM: stacked bidirectional layers; bag: hidden layers, 0 for none."}
    )
    dropout: float = field(
        default=0.3, metadata={"help": "Dropout of embeddings, between layers, before the classifier."}
    )
    pooling: Literal["max", "mean", "last", "attention"] = field(
        default="max", metadata={"help": "BiLSTM: how a text's states become one vector."}
    )
    ngram_buckets: int = field(
        default=0,
        metadata={
            "help": "Rows of a table of hashed n-grams, a second branch beside the network; 0 for none. They learn at "
            "five times the learning rate."
        },
    )
    ngram_size: int = field(default=64, metadata={"help": "Width of an n-gram's embedding."})
    ngram_order: int = field(default=3, metadata={"help": "Longest n-gram, in tokens of the student."})
    ngram_dropout: float = field(default=0.3, metadata={"help": "Share of the n-grams left out in training."})
    ngram_loss_weight: float = field(
        default=0.3, metadata={"help": "Weight of the same loss on what the n-grams say alone, in training."}
    )


@dataclass
class TeacherArguments:
    """Where the teacher comes from and when it runs."""

    _argument_group_name = "teacher"

    teacher_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fine-tuned teacher: a folder, or a model on the hub. Default: output_dir of its recipe. Several "
            "teach together, by the mean of their log-probabilities."
        },
    )
    teacher_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weight of each teacher in that mean, those of --linear_teacher and --teacher_column last. "
            "Default: equal."
        },
    )
    teacher_recipe: str | None = field(
        default=None,
        metadata={"help": "Recipe of run_teacher.py; followed first when no trained teacher is there."},
    )
    linear_teacher: bool = field(
        default=False,
        metadata={
            "help": "Fit a linear model of the training split's n-grams in seconds, which teaches too, or alone where "
            "no other teacher is named."
        },
    )
    teacher_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the data with a teacher's logits or probabilities, whoever gave them: a list in the "
            "order of the labels or an object by their names; in .csv and .tsv as JSON."
        },
    )
    teacher_mode: Literal["cached", "online"] = field(
        default="cached",
        metadata={"help": "'cached': label every text once and keep the logits on disk; 'online': at every step."},
    )
    teacher_max_seq_length: int | None = field(
        default=None, metadata={"help": "Longest text for the teacher, in its tokens. Default: --max_seq_length."}
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Texts per batch when the teacher labels; halved where memory does not suffice. Default: 64 on a "
            "CPU, 1024 on a GPU."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None, metadata={"help": "Where the teacher's logits are kept. Default: kd_trainer in HF_HOME."}
    )
    label_map: str | None = field(
        default=None,
        metadata={"help": "The teacher's label names in the data's words, 'neg=negative,pos=positive' or JSON."},
    )
    unlabeled_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "More texts to learn from the teacher, without labels: .txt with a text on each line, .csv, .tsv, "
            ".jsonl or .parquet; larger than the memory if need be."
        },
    )
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "Variants of the training texts for the teacher to label, made in these ways: mask, drop, replace "
            "(a tenth of the words or Chinese characters each), ngram, splice (a quarter of the texts each)."
        },
    )
    num_augmented: int = field(default=1, metadata={"help": "--augment: variants of each training text."})
    compare_student: bool = field(
        default=False,
        metadata={"help": "Also train the same student without the teacher, into OUTPUT_DIR-alone, for the table."},
    )

    def __post_init__(self):
        check_sizes(self, "teacher_max_seq_length", "teacher_batch_size", "num_augmented")


@dataclass
class AblationArguments:
    """Whether to ask what each part of the distillation is good for, instead of distilling once."""

    _argument_group_name = "ablation"

    ablation: bool = field(
        default=False,
        metadata={
            "help": "Train the student alone, then with the teacher, then with what is given of --embedding_init, "
            "--ngram_buckets, --augment and --unlabeled_file, one after the other, over several seeds; compare each "
            "with the one before, in OUTPUT_DIR-ablation. The same command goes on where it was stopped."
        },
    )
    ablation_seeds: list[int] = field(
        default_factory=lambda: [42, 43, 44], metadata={"help": "--ablation: every stage is run with each."}
    )
    ablation_jobs: int = field(default=1, metadata={"help": "--ablation: runs at a time, which share the CPU's cores."})

    def __post_init__(self):
        check_sizes(self, "ablation_jobs")
        check_seeds("--ablation_seeds", self.ablation_seeds)


@dataclass
class TuningArguments:
    """Whether to search for settings of the distillation instead of following those given."""

    _argument_group_name = "search"

    tune: bool = field(
        default=False,
        metadata={
            "help": "Search instead of distilling once: students that differ in --learning_rate and --temperature (a "
            "quarter to four times what is given; no temperature for 'mse'), --alpha (0 to 1) and, with --augment, "
            "--num_augmented (0 to what is given) are compared on the validation split; the test split is not read. "
            "Writes the trials, OUTPUT_DIR/tune.json, and the best as a recipe, OUTPUT_DIR/best.yaml. The same command "
            "goes on where it was stopped. Needs optuna."
        },
    )
    tune_trials: int = field(
        default=20, metadata={"help": "--tune: trials, the first with the flags as given. More can be asked for later."}
    )

    def __post_init__(self):
        check_sizes(self, "tune_trials")


@dataclass
class DataArguments:
    """Which texts, where their labels stand, how much of them to use."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the hub, or a folder that `datasets.load_dataset` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training split: .csv, .tsv, .jsonl, .json, .parquet, or .txt without a header, "
            "label<TAB>text or text<TAB>label id."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation split. Default: --validation_split of the training split."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Test split, read by --do_predict alone."})
    class_file: str | None = field(
        default=None, metadata={"help": "Label names, one a line; a label in the data may then be its line, from 0."}
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": "Column of the text. Default: text, sentence, content, headline, title or review."},
    )
    text_pair_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of a second text: a row is then a pair of texts, as for paraphrases or inference. "
            "--max_seq_length counts both. Not for .txt."
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the label. Default: label, labels, category or class."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longest text, in tokens; the rest is cut off."})
    skip_unlabeled: bool = field(
        default=False,
        metadata={"help": "Train on the labelled rows alone where no teacher labels the others, instead of refusing."},
    )
    validation_split: float = field(
        default=0.1, metadata={"help": "Share of the training split kept for validation when none is given."}
    )
    split_seed: int = field(
        default=42,
        metadata={"help": "Seed of that split and of --max_*_samples. Another --seed leaves the rows as they are."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a sample of this many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on a sample of this many rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Test on a sample of this many rows."})

    def __post_init__(self):
        check_sizes(self, "max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples")
        check_sizes(self, "split_seed", least=0)
        if not 0 <= self.validation_split < 1:
            raise InputError(f"--validation_split is {self.validation_split}: it must be in [0, 1)")


@dataclass
class RunArguments:
    """What the scripts do besides training."""

    _argument_group_name = "predicting, output"

    predict_file: str | None = field(
        default=None, metadata={"help": "Label the texts of this file; formats as --train_file, labels not needed."}
    )
    predict_text: str | None = field(default=None, metadata={"help": "Label this text, the result is printed."})
    predict_text_pair: str | None = field(
        default=None, metadata={"help": "Second text of --predict_text, for a model of pairs of texts."}
    )
    predict_output: str | None = field(
        default=None,
        metadata={"help": "Where --predict_file writes: .csv, .json or .jsonl. Default: OUTPUT_DIR/predictions.csv."},
    )
    cascade_teacher: str | None = field(
        default=None,
        metadata={
            "help": "--predict_file, --predict_text: folder or hub name of the teacher that answers where the student "
            "is not as sure as its config.json asks for; see python -m kd_trainer.cascade --help."
        },
    )
    eval_robustness: bool = field(
        default=False,
        metadata={
            "help": "Also report the accuracy under FGM and PGD on the embeddings and under typing errors in the text."
        },
    )
    compare_linear: bool = field(
        default=False,
        metadata={
            "help": "Also fit a linear model of TF-IDF n-grams to the training split, in seconds, for the table."
        },
    )
    card_examples: int | None = field(
        default=None,
        metadata={
            "help": "Texts of the split that is reported, those on which student and teacher differ most, that the "
            "model card and report.json quote. Default: 5; with --push_to_hub 0, as others may read what is pushed."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace another run in --output_dir instead of refusing it."}
    )
    export: list[str] | None = field(
        default=None,
        metadata={
            "help": "onnx, onnx-int8 or both: also write the model into OUTPUT_DIR/onnx, which needs onnxruntime and "
            "tokenizers alone; checked against the model on the split that is reported."
        },
    )

    def __post_init__(self):
        self.export = split_formats(self.export)
        check_sizes(self, "card_examples", least=0, most=100)


@dataclass
class ExportArguments:
    """What to write of a trained model, and where."""

    _argument_group_name = "export"

    export: list[str] = field(
        default_factory=lambda: list(EXPORT_FORMATS), metadata={"help": "onnx, onnx-int8 or both."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write. Default: MODEL/onnx."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an export that is there."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the modeling code that comes with a checkpoint."}
    )

    def __post_init__(self):
        self.export = split_formats(self.export)


@dataclass
class AdversarialTrainingArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` for [`AdversarialTrainer`], which adds to a batch's loss the same loss on perturbed
    embeddings (see [`kd_trainer.adversarial.Attack`]).

    Args:
        adversarial (`str`, *optional*, defaults to `"none"`): `"fgm"`, `"pgd"` or `"freelb"` perturb.
        adversarial_epsilon (`float`, *optional*, defaults to 1.0): Largest L2 norm of a perturbation.
        adversarial_alpha (`float`, *optional*, defaults to 0.3): Size of a step of PGD and FreeLB.
        adversarial_steps (`int`, *optional*, defaults to 3): Steps of PGD and FreeLB.
        adversarial_start (`float`, *optional*, defaults to 0.0): Share of the training before it sets in, in [0, 1).
        adversarial_scope (`str`, *optional*, defaults to `"example"`): What has that norm, `"example"` or `"matrix"`.

    Raises:
        `InputError` (a `ValueError`): For a value that does not exist or is out of range.
    """

    _argument_group_name = "training, as transformers.TrainingArguments, and adversarial training"

    adversarial: Literal["none", "fgm", "pgd", "freelb"] = field(
        default="none",
        metadata={"help": "Train on perturbed embeddings too: 'fgm' in one step, 'pgd' and 'freelb' in several."},
    )
    adversarial_epsilon: float = field(
        default=1.0, metadata={"help": "Largest L2 norm of a perturbation, in units of the embeddings."}
    )
    adversarial_alpha: float = field(default=0.3, metadata={"help": "'pgd', 'freelb': size of a step."})
    adversarial_steps: int = field(
        default=3, metadata={"help": "'pgd', 'freelb': steps; the first one of 'freelb' is over clean embeddings."}
    )
    adversarial_start: float = field(
        default=0.0, metadata={"help": "Share of the training before the perturbation sets in, 0 to below 1."}
    )
    adversarial_scope: Literal["example", "matrix"] = field(
        default="example",
        metadata={"help": "What the norm is of: one 'example', or the batch's change of the embedding 'matrix'."},
    )

    def attack(self):
        """What `adversarial` names, an [`Attack`] or None."""
        return None if self.adversarial == "none" else self.make_attack(self.adversarial)

    def make_attack(self, method):
        """[`Attack`] of the flags; raises `ValueError` for one out of range."""
        numbers = (self.adversarial_epsilon, self.adversarial_alpha, self.adversarial_steps)
        return Attack(method, *numbers, self.adversarial_scope)

    def __post_init__(self):
        try:
            # Numbers are checked even where nothing is perturbed.
            self.make_attack("fgm" if self.adversarial == "none" else self.adversarial)
        except ValueError as error:
            raise InputError(f"--{error}") from None
        if not 0 <= self.adversarial_start < 1:
            raise InputError(f"--adversarial_start is {self.adversarial_start}: it must be in [0, 1)")
        super().__post_init__()


@dataclass
class DistillationTrainingArguments(AdversarialTrainingArguments):
    """
    [`AdversarialTrainingArguments`] for [`DistillationTrainer`], whose loss of a row is
    `alpha · CE + (1 − alpha) · KD`; a row without a label has the second part alone. To KD are added, with the weights
    below, [`token_relation_loss`] of the last states and of the embeddings.

    Args:
        alpha (`float`, *optional*, defaults to 0.2): Weight of the hard labels, in [0, 1].
        temperature (`float`, *optional*, defaults to 4.0): Softening of both models' logits in the KL loss, above 0.
        kd_loss (`str`, *optional*, defaults to `"kl"`): `"kl"`, [`kl_distillation_loss`]; `"mse"`, [`logit_mse_loss`];
            `"ce"`, [`soft_cross_entropy_loss`]; `"dkd"`, [`decoupled_distillation_loss`].
        standardize_logits (`bool`, *optional*, defaults to `False`): See [`standardize_logits`]; before any of them.
        final_alpha, final_temperature (`float`, *optional*): Where alpha and temperature go in a straight line from
            the first step to the last; they stay without.
        hidden_loss_weight, embedding_loss_weight (`float`, *optional*, defaults to 0.0): Weights of the distance
            between both models' `hidden_states[-1]` and `hidden_states[0]`; the teacher must read the student's ids.

    Raises:
        `InputError` (a `ValueError`): For an `alpha`, `temperature` or weight out of range.
    """

    _argument_group_name = "training, as transformers.TrainingArguments, adversarial training and distillation"

    alpha: float = field(
        default=0.2, metadata={"help": "Weight of the hard labels' cross-entropy, 0 to 1; the teacher has the rest."}
    )
    temperature: float = field(
        default=4.0, metadata={"help": "Softening T > 0 of both models' logits in the KL loss, which is scaled by T²."}
    )
    kd_loss: Literal["kl", "mse", "ce", "dkd"] = field(
        default="kl",
        metadata={
            "help": "Loss against the teacher: 'kl' divergence, 'mse' of the logits, soft cross-entropy 'ce', 'dkd' "
            "decoupled."
        },
    )
    standardize_logits: bool = field(
        default=False,
        metadata={
            "help": "Compare both models' logits with mean 0 and deviation 1 in every row; for three labels and more."
        },
    )
    final_alpha: float | None = field(
        default=None, metadata={"help": "--alpha goes to this in a straight line over the training."}
    )
    final_temperature: float | None = field(
        default=None, metadata={"help": "--temperature goes to this in a straight line over the training."}
    )
    hidden_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight, beside --kd_loss, of how differently both models' last states say which tokens of a text "
            "are alike. Needs --teacher_mode online --tokenizer_type teacher."
        },
    )
    embedding_loss_weight: float = field(
        default=0.0, metadata={"help": "The same of both models' embeddings, before the first layer."}
    )

    @property
    def state_weights(self):
        """Weight of every part of the loss that compares states, without those of weight 0: `dict[str, float]`."""
        weights = {"hidden_loss": self.hidden_loss_weight, "embedding_loss": self.embedding_loss_weight}
        return {name: weight for name, weight in weights.items() if weight}

    def __post_init__(self):
        for name in ("alpha", "final_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"--{name} is {value}: it must be in 0..1")
        for name in ("temperature", "final_temperature"):
            value = getattr(self, name)
            if value is not None and not 1e-3 <= value <= 1e3:
                raise InputError(f"--{name} is {value}: it must be in 0.001..1000")
        for name in ("hidden_loss_weight", "embedding_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{name} is {getattr(self, name)}: it must be a number from 0")
        if self.kd_loss not in ("kl", "mse", "ce", "dkd"):
            raise InputError(f"--kd_loss is {self.kd_loss!r}: choose 'kl', 'mse', 'ce' or 'dkd'")
        super().__post_init__()


BEST_METRICS = ("f1", "accuracy", "precision", "recall", "loss")


def check_arguments(settings, args, data_args, run_args):
    """
    What only the whole of the flags shows to be wrong; `settings` are those that were made.

    Raises:
        `InputError`: Without an output folder or anything to do, for numbers out of range, and for fp16 where it would
            silently be ignored.
    """
    check_sizes(args, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_sizes(args, "seed", "data_seed", least=0, most=2**32 - 1)
    check_sizes(args, "dataloader_num_workers", least=0)
    if args.do_train and args.max_steps <= 0 and not 0 < args.num_train_epochs < math.inf:
        raise InputError(f"--num_train_epochs is {args.num_train_epochs}: it must be positive, or give --max_steps")
    if not 0 <= args.learning_rate < math.inf:
        raise InputError(f"--learning_rate is {args.learning_rate}: it must be a number from 0")
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in BEST_METRICS:
        raise InputError(f"--metric_for_best_model {metric}: choose one of {', '.join(BEST_METRICS)}")
    scored = args.do_train or args.do_eval or args.do_predict
    to_write = scored or (run_args.predict_file is not None and run_args.predict_output is None)
    if run_args.predict_output == "":
        raise InputError("--predict_output is empty: name a .csv, .json or .jsonl file")
    if to_write and not settings.get("output_dir"):
        what = "name the folder for the model and its report" if scored else "name it, or a --predict_output"
        raise InputError(f"no --output_dir: {what}")
    if not (scored or run_args.predict_file is not None or run_args.predict_text is not None):
        raise InputError("nothing to do: give --do_train, --do_eval, --do_predict, --predict_file or --predict_text")
    if run_args.export and not scored:
        raise InputError("--export checks the model on a split: give --do_predict or --do_eval, or use kd-export")
    if args.fp16 and args.device.type == "cpu":
        raise InputError("--fp16 needs a GPU and none is used here: leave it out, or use --bf16")
    if args.push_to_hub and not args.do_train:
        raise InputError(
            "--push_to_hub pushes what this run trains: give --do_train, or push a finished folder with python -m "
            "kd_trainer.hub"
        )
    if args.do_predict and not (data_args.test_file or data_args.dataset_name):
        raise InputError("--do_predict reads the test split and none is named: give --test_file")
    if run_args.predict_text is not None and run_args.predict_file is not None:
        raise InputError("--predict_text and --predict_file are both given: give one of them")
    if run_args.cascade_teacher is not None and run_args.predict_text is None and run_args.predict_file is None:
        raise InputError("--cascade_teacher answers texts and none are given: give --predict_file or --predict_text")
    if run_args.predict_text_pair is not None and not run_args.predict_text_pair.strip():
        raise InputError("--predict_text_pair is empty: give the second text of the pair")
    if run_args.predict_text_pair is not None and run_args.predict_text is None:
        raise InputError("--predict_text_pair is the second text of --predict_text: give that too")
    if run_args.compare_linear and not args.do_train:
        raise InputError("--compare_linear is fitted on the training split: give --do_train, or leave it out")
    pairs = data_args.text_pair_column is not None
    if run_args.predict_text is not None and (scored or pairs) and pairs == (run_args.predict_text_pair is None):
        raise InputError("--text_pair_column and --predict_text_pair go together: give both or neither")
