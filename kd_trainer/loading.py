"""Load a classifier from a checkpoint whose weights are all there."""

import functools
import logging
import os
import re
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from .arguments import check_size
from .errors import InputError
from .modeling_bag import BagConfig  # these three register themselves with the auto classes
from .modeling_bilstm import BiLSTMConfig
from .modeling_cnn import CNNConfig
from .network import why_unreachable

logger = logging.getLogger(__name__)

# Of a repository with pickled weights alone, transformers asks a Space to convert them; it is refused here.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")

# What a checkpoint may lack when it is fine-tuned: the head, and the pooler that masked-language models leave out.
POOLER = re.compile(r"(^|\.)pooler\.")

STUDENT_HEADS = ("classifier.", "ngrams.classifier.")
STUDENT_TYPES = {config.model_type for config in (BagConfig, BiLSTMConfig, CNNConfig)}

# Models whose positions start behind the padding token's id.
SHIFTED_POSITIONS = ("camembert", "data2vec-text", "longformer", "roberta", "roberta-prelayernorm", "xlm-roberta",
                     "xlm-roberta-xl", "xmod")  # fmt: skip


def check_exists(name, what):
    """Refuses a path that does not exist, before `transformers` takes it for a name on the hub."""
    looks_local = Path(name).is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1
    if looks_local and not os.path.exists(name):  # which takes any text, where Path.exists may raise
        raise InputError(f"{what} {name}: no such folder: check the path")


def check_folder(name, what):
    """
    Refuses a local folder that is not a checkpoint, before `transformers` takes its name for one on the hub.

    Raises:
        `InputError`: For a path that does not exist, holds no `config.json` or no safetensors weights.
    """
    check_exists(name, what)
    if not os.path.exists(name):
        return
    path = Path(name)
    if not (path / "config.json").is_file():
        raise InputError(f"{what} {name}: no config.json in it: give the folder of a saved model")
    if not any(path.glob("model*.safetensors")):
        if pickled := sorted(path.glob("pytorch_model*.bin")):
            raise InputError(
                f"{what} {name}: its weights are pickled ({pickled[0].name}), which may run code and are never read: "
                "save it as safetensors"
            )
        raise InputError(
            f"{what} {name}: no weights (model*.safetensors) in it: give a folder that a finished run has saved"
        )


def describe_labels(label_names):
    """`id2label` and `label2id` of a model's configuration, as keyword arguments."""
    return {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}


def hub_arguments(args):
    """Keyword arguments of every `from_pretrained`."""
    return {"cache_dir": args.cache_dir, "revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


@functools.cache
def hub_is_missed():
    """Why the hub cannot be reached, which is said once; None where it can, or is not to be asked."""
    reason = None if constants.is_offline_mode() else why_unreachable()
    if reason is not None:
        logger.warning(f"the hub, {constants.ENDPOINT}, cannot be reached ({reason}): only what was downloaded before")
    return reason


def load_or_explain(load, what, name, **kwargs):
    """`load(name, **kwargs)`, its failure said in one line."""
    missed = None if os.path.exists(name) else hub_is_missed()
    if missed is not None:
        kwargs["local_files_only"] = True  # else the hub's client tries for half a minute, at every file
    try:
        return load(name, **kwargs)
    except Exception as error:  # whatever a damaged file or a configuration of wrong values makes them raise
        if missed is not None and isinstance(error, OSError):
            raise InputError(
                f"{what} {name}: no such folder, not downloaded before, and the hub, {constants.ENDPOINT}, cannot be "
                f"reached ({missed}): check the name, the network"
            ) from error
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise InputError(
                f"{what} {name} brings code of its own, which is not run: read it, then give --trust_remote_code"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what} {name} cannot be loaded ({reason}): check the name, the folder, the network"
        ) from error


def load_config(name, args, what="model"):
    """The `PreTrainedConfig` of a checkpoint."""
    check_folder(name, what)
    return load_or_explain(AutoConfig.from_pretrained, what, name, **hub_arguments(args))


def load_tokenizer(name, args, what="tokenizer"):
    """The tokenizer in a folder or on the hub."""
    check_exists(name, what)
    return load_or_explain(AutoTokenizer.from_pretrained, what, name, **hub_arguments(args))


def label_list(config):
    """Label names of a configuration in the order of their ids, `list[str]`."""
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise InputError(
            f"the model's id2label has ids {sorted(config.id2label)}: they must be 0, 1, …: mend its config.json"
        )
    return [config.id2label[index] for index in range(config.num_labels)]


def named_labels(config):
    """Label names of a configuration in the order of their ids, or None when they are but `LABEL_0`, `LABEL_1`, …"""
    names = label_list(config)
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def load_classifier(name, args, label_names=None, what="model"):
    """
    A classifier with pretrained weights in fp32.

    Args:
        name (`str`): Folder or name on the hub; safetensors weights only.
        args ([`ModelArguments`]): Revision, cache and remote code.
        label_names (`list[str]`, *optional*): Give it to fine-tune: a missing head is then a new one. Without it the
            head must be among the weights.
        what (`str`): For messages.

    Returns:
        `PreTrainedModel`.

    Raises:
        `InputError`: When it cannot be loaded, or its encoder's weights are not in the checkpoint.
    """
    config = load_config(name, args, what)
    if label_names is not None:
        config.update(describe_labels(label_names))
        config.problem_type = "single_label_classification"
    model, info = load_or_explain(
        AutoModelForSequenceClassification.from_pretrained,
        what,
        name,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        # A head of another size is refused below, or replaced; the encoder's shapes are checked there too.
        ignore_mismatched_sizes=True,
        **hub_arguments(args),
    )
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    # A model without a base model inside, as our students, is all encoder but for its heads.
    is_flat, prefix = model.base_model is model, f"{model.base_model_prefix}."
    encoder = sorted(
        key
        for key in absent
        if (not key.startswith(STUDENT_HEADS) if is_flat else key.startswith(prefix)) and not POOLER.search(key)
    )
    if encoder:
        raise InputError(
            f"{what} {name}: {len(encoder)} encoder weights are not in the checkpoint, {encoder[0]} among them: give a "
            f"checkpoint of a {config.model_type} model, or train from scratch with --config_name"
        )
    if absent and label_names is None:
        raise InputError(
            f"{what} {name}: its classification head is not in the checkpoint ({', '.join(sorted(absent)[:3])}): "
            "fine-tune it first with run_teacher.py"
        )
    if absent:
        logger.info(f"{what} {name}: new weights for {', '.join(sorted(absent))}")
    return model


def check_pairs(model, tokenizer, pairs):
    """
    Refuses texts for which a student is not made. A transformer reads a pair as its tokenizer writes it.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): The classifier.
        pairs (`bool`): Whether it is given pairs of texts.

    Raises:
        `InputError`: For a student of single texts that is given pairs, or the other way round; for pairs and a
            tokenizer by which a student cannot tell the two texts apart.
    """
    if model.config.model_type not in STUDENT_TYPES:
        return
    # One that was saved with its own code before there were pairs has no such field.
    reads_pairs = model.config.to_dict().get("text_pairs", False)
    if pairs and not reads_pairs:
        raise InputError(
            f"this {model.config.model_type} reads single texts and is given pairs: leave --text_pair_column and "
            "--predict_text_pair out"
        )
    if reads_pairs and not pairs:
        raise InputError(
            f"this {model.config.model_type} reads pairs of texts: give --text_pair_column, or --predict_text_pair "
            "beside --predict_text"
        )
    if pairs and 1 not in tokenizer("一", "二").get("token_type_ids", ()):
        raise InputError(
            f"the tokenizer, a {type(tokenizer).__name__}, gives no token_type_ids, by which a student tells the texts "
            "of a pair apart: use --tokenizer_type char or word"
        )


def first_given(*values):
    """The first of `values` that is not None."""
    return next(value for value in values if value is not None)


def fit_length(max_length, tokenizer, config, flag="--max_seq_length"):
    """
    `max_length`, or what tokenizer and model can take where that is less, which is logged.

    Args:
        max_length (`int`): Wanted, in tokens.
        tokenizer (`PreTrainedTokenizerBase`): With its `model_max_length`.
        config (`PreTrainedConfig`): Its `max_position_embeddings`, where the model has positions.
        flag (`str`): For the message.

    Returns:
        `int`.

    Raises:
        `InputError`: For a length that is not a whole number of at least 1.
    """
    check_size(flag, max_length)
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    positions = config.to_dict().get(name) or max_length
    if config.model_type in SHIFTED_POSITIONS:
        positions -= config.pad_token_id + 1
    limits = [tokenizer.model_max_length, positions]
    longest = min(max_length, *limits)
    if longest < max_length:
        logger.warning(f"{flag} {max_length} is more than the model takes: using {longest}")
    return longest
