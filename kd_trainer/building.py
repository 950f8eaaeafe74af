"""The model and the tokenizer that the flags ask for, loaded or built."""

import dataclasses
import itertools
import logging

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification

from .arguments import ModelArguments, StudentArguments
from .embeddings import init_embeddings
from .errors import InputError
from .loading import describe_labels, hub_arguments, load_classifier, load_or_explain, load_tokenizer
from .modeling_bag import BagForSequenceClassification
from .modeling_bilstm import BiLSTMForSequenceClassification
from .modeling_cnn import CNNForSequenceClassification
from .pairs import sides, texts_of
from .tokenization import build_tokenizer

logger = logging.getLogger(__name__)

# What --student_type names.
STUDENTS = {
    "bilstm": BiLSTMForSequenceClassification,
    "cnn": CNNForSequenceClassification,
    "bag": BagForSequenceClassification,
}
# The flags of a new student, each a field of the same name in one of their configurations.
STUDENT_FLAGS = {field.name for field in dataclasses.fields(StudentArguments)} - {
    *(field.name for field in dataclasses.fields(ModelArguments)), "student_type", "embedding_init",
}  # fmt: skip


def warn_of_idle(student_args, names, why):
    """Says which flags of a new student were given in vain."""
    usual = StudentArguments()
    idle = sorted(name for name in names if getattr(student_args, name) != getattr(usual, name))
    if idle:
        logger.warning(f"{', '.join(f'--{name}' for name in idle)}: no effect, {why}")


def build_classifier(config_name, overrides, tokenizer, label_names, args):
    """
    A classifier with random weights, said loudly: nothing pretrained is in it.

    Args:
        config_name (`str`): Model type (`"bert"`), or name or folder of a configuration.
        overrides (`str`, *optional*): `"hidden_size=256,num_hidden_layers=4"`.
        tokenizer (`PreTrainedTokenizerBase`): Its size becomes the model's vocabulary.
        label_names (`list[str]`): Name of every label id.
        args ([`ModelArguments`]): Revision, cache and remote code.

    Returns:
        `PreTrainedModel`.
    """
    if config_name in CONFIG_MAPPING:
        config = AutoConfig.for_model(config_name)
    else:
        config = load_or_explain(AutoConfig.from_pretrained, "configuration", config_name, **hub_arguments(args))
    changes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **describe_labels(label_names)}
    config.update({**changes, "problem_type": "single_label_classification"})
    decided = [item.split("=")[0].strip() for item in (overrides or "").split(",")]
    decided = [name for name in decided if name in (*changes, "num_labels", "problem_type")]
    if decided:
        raise InputError(f"--config_overrides sets {decided[0]}, which the data decides: leave it out")
    try:
        if overrides:
            config.update_from_string(overrides)
            config = type(config).from_dict(config.to_dict())  # checked as a new one is
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=args.trust_remote_code)
    except Exception as error:  # whatever sizes that do not go together make a model raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"--config_name {config_name} with --config_overrides {overrides}: {reason}") from error
    logger.warning(
        f"TRAINING FROM SCRATCH: a {config.model_type} of {model.num_parameters():,} parameters with random weights; "
        "nothing pretrained is loaded"
    )
    return model


def get_tokenizer(model_args, data, max_length, bert_style=False):
    """
    The tokenizer that `model_args` names, or one built from the training texts.

    Args:
        model_args ([`ModelArguments`]): Checkpoint, tokenizer, kind and size of a vocabulary.
        data ([`TextData`] or None): With the training split where a vocabulary is to be built.
        max_length (`int`): Longest text in tokens, kept as `model_max_length`.
        bert_style (`bool`): Whether a tokenizer that is built has `[CLS]` and `[SEP]`.

    Raises:
        `InputError`: When it cannot be loaded or has no padding token.
    """
    name = model_args.tokenizer_name or model_args.model_name_or_path
    if name is not None:
        tokenizer = load_tokenizer(name, model_args)
        if tokenizer.pad_token is None:
            raise InputError(f"tokenizer {name} has no padding token: use one that has")
        return tokenizer
    if model_args.tokenizer_type == "teacher":
        raise InputError("--tokenizer_type teacher needs run_distill.py: elsewhere give --tokenizer_name")
    texts = texts_of(data.splits["train"])[:] if data is not None and "train" in data.splits else []
    tokenizer = build_tokenizer(
        itertools.chain.from_iterable(map(sides, texts)),
        model_args.tokenizer_type,
        model_args.vocab_size,
        model_args.vocab_file,
        max_length,
        bert_style,
        text_pairs=data is not None and data.has_pairs,
    )
    logger.info(
        f"tokenizer of {len(tokenizer)} tokens built from {model_args.vocab_file or f'{len(texts)} training texts'}"
    )
    return tokenizer


def check_start(model_args, training):
    """
    Refuses flags that name no model, or two, or one without weights that is not to be trained.

    Raises:
        `InputError`
    """
    if model_args.model_name_or_path is not None and model_args.config_name is not None:
        raise InputError("--model_name_or_path and --config_name are both given: fine-tune the one or train the other")
    if model_args.model_name_or_path is None and not training:
        raise InputError("without --do_train a trained model is needed: give --model_name_or_path")
    if model_args.config_overrides is not None and model_args.config_name is None:
        raise InputError("--config_overrides changes the configuration of --config_name: give that too")


def get_transformer(model_args, data, max_length, training=True, what="model"):
    """
    A classifier of `transformers` from a checkpoint, or with random weights from a configuration.

    Args:
        model_args ([`ModelArguments`]): Which.
        data ([`TextData`] or None): Label names, and texts for a vocabulary.
        max_length (`int`): Longest text in tokens.
        training (`bool`): Whether it will be trained: a checkpoint may then lack its head.
        what (`str`): For messages.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`.

    Raises:
        `InputError`: When the flags name no model or it cannot be loaded.
    """
    check_start(model_args, training)
    if model_args.model_name_or_path is None and model_args.config_name is None:
        raise InputError("no model to start from: give --model_name_or_path, or --config_name to train from scratch")
    tokenizer = get_tokenizer(model_args, data, max_length, bert_style=True)
    if model_args.model_name_or_path is not None:
        label_names = data.label_names if training else None
        return load_classifier(model_args.model_name_or_path, model_args, label_names, what), tokenizer
    model = build_classifier(
        model_args.config_name, model_args.config_overrides, tokenizer, data.label_names, model_args
    )
    return model, tokenizer


def get_student(student_args, data, max_length, training=True, teacher=None, teacher_tokenizer=None):
    """
    A new student of `--student_type`, unless the flags name another; as [`get_transformer`].

    Args:
        teacher (`PreTrainedModel`, *optional*): Whose embeddings `--embedding_init teacher` means.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): What `--tokenizer_type teacher` means.
    """
    check_start(student_args, training)
    if student_args.model_name_or_path is not None or student_args.config_name is not None:
        warn_of_idle(student_args, {*STUDENT_FLAGS, "student_type", "embedding_init"}, "they are for a new student")
        return get_transformer(student_args, data, max_length, training, "student")
    if (
        student_args.tokenizer_type == "teacher"
        and student_args.tokenizer_name is None
        and teacher_tokenizer is not None
    ):
        tokenizer = teacher_tokenizer
        warn_of_idle(student_args, {"vocab_size", "vocab_file"}, "the teacher's tokenizer has its own vocabulary")
    else:
        tokenizer = get_tokenizer(student_args, data, max_length)
    student_class = STUDENTS[student_args.student_type]
    known = {field.name for field in dataclasses.fields(student_class.config_class)}
    warn_of_idle(student_args, STUDENT_FLAGS - known, f"a {student_args.student_type} has no such part")
    if not student_args.ngram_buckets:
        names = {name for name in STUDENT_FLAGS if name.startswith("ngram_")}
        warn_of_idle(student_args, names, "there are no n-grams without --ngram_buckets")
    try:
        config = student_class.config_class(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            problem_type="single_label_classification",
            text_pairs=data.has_pairs,
            **{name: getattr(student_args, name) for name in sorted(STUDENT_FLAGS & known)},
            **describe_labels(data.label_names),
        )
    except ValueError as error:
        raise InputError(f"--{error}") from error
    try:
        student = student_class(config)
    except RuntimeError as error:  # torch's word for a lack of memory
        reason = " ".join(str(error).split())[-120:]
        raise InputError(
            f"a student of these sizes does not fit into memory ({reason}): choose smaller ones"
        ) from error
    if student_args.embedding_init is not None:
        init_embeddings(student, tokenizer, student_args.embedding_init, teacher, teacher_tokenizer)
    return student, tokenizer
