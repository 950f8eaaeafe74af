"""What a teacher says of a text: its labels in the data's order, its logits computed once and kept on disk."""

import hashlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import InputError
from .inference import predict_logits
from .metrics import is_at_chance

logger = logging.getLogger(__name__)


def parse_label_map(label_map):
    """`'neg=negative,pos=positive'` or a JSON object to `dict[str, str]`; an empty one for None."""
    if not label_map:
        return {}
    if label_map.lstrip().startswith("{"):
        try:
            return {str(old): str(new) for old, new in json.loads(label_map).items()}
        except json.JSONDecodeError as error:
            raise InputError(
                f"--label_map {label_map!r}: not valid JSON ({error.msg}): write old=new,old=new"
            ) from None
    pairs = [pair.split("=") for pair in label_map.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"--label_map {label_map!r}: every part must be old=new: write old=new,old=new")
    return {old.strip(): new.strip() for old, new in pairs}


def align_labels(teacher_names, label_names, label_map=None):
    """
    For every label of the data the teacher's index of that name: `teacher_logits[:, order]` is in the data's order.

    A teacher whose labels are but `LABEL_0`, `LABEL_1`, … matches data whose labels are the numbers 0, 1, …

    Args:
        teacher_names (`list[str]`): The teacher's labels in the order of its logits.
        label_names (`list[str]`): The data's labels in the order of their ids.
        label_map (`dict[str, str]`, *optional*): The teacher's names in the data's words.

    Returns:
        `list[int]`.

    Raises:
        `InputError`: When the names are not the same set.

    Example:

    ```python
    >>> align_labels(["neg", "pos"], ["positive", "negative"], {"neg": "negative", "pos": "positive"})
    [1, 0]

    ```
    """
    label_map = label_map or {}
    unknown = sorted(set(label_map) - set(teacher_names))
    if unknown:
        raise InputError(f"--label_map names {unknown}, which the teacher has not: its labels are {teacher_names}")
    names = [label_map.get(name, name) for name in teacher_names]
    if set(label_names) == set(map(str, range(len(label_names)))):
        names = [re.sub(r"^LABEL_(\d+)$", r"\1", name) for name in names]
    if len(set(names)) != len(names) or set(names) != set(label_names):
        raise InputError(f"teacher has labels {names}, data has {list(label_names)}: pass --label_map or rename")
    return [names.index(name) for name in label_names]


# What a fast tokenizer keeps outside tokenizer.json and yet decides a text's tokens.
TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "split_special_tokens", "model_input_names")


def tokenizer_bytes(tokenizer):
    """The tokenizer as it is saved, less the padding and truncation that a call leaves behind in a fast one."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir())
        fast = Path(folder) / "tokenizer.json"
        if not fast.exists():
            return b"".join(path.name.encode() + path.read_bytes() for path in files if path.is_file())
        saved = json.loads(fast.read_text(encoding="utf-8"))
    saved.pop("truncation", None)
    saved.pop("padding", None)
    saved["settings"] = [getattr(tokenizer, name) for name in TOKENIZER_SETTINGS]
    return json.dumps(saved, sort_keys=True).encode()


def cache_key(teacher, tokenizer, max_length, texts):
    """
    Names the logits by all that decides them: weights, configuration, tokenizer, longest text, texts in their order.

    Returns:
        `str` of 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config = teacher.config.to_dict()
    # Names, and what saving writes into the configuration; the weights' own dtype is hashed below.
    for name in ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures", "dtype", "auto_map"):
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(tokenizer_bytes(tokenizer))
    digest.update(f"{max_length} {len(texts)}".encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def default_cache_dir():
    """`kd_trainer/teacher_logits` in the cache folder of the Hugging Face libraries (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "kd_trainer" / "teacher_logits"


def cached_logits(teacher, tokenizer, texts, max_length, batch_size=64, cache_dir=None):
    """
    [`predict_logits`], read from disk when this teacher has labelled these texts before.

    Args:
        teacher, tokenizer, texts, max_length, batch_size: As [`predict_logits`].
        cache_dir (`str`, *optional*): Defaults to [`default_cache_dir`].

    Returns:
        `np.ndarray` of shape `(len(texts), num_labels)`, float32.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = folder / f"{cache_key(teacher, tokenizer, max_length, texts)}.safetensors"
    shape = (len(texts), teacher.config.num_labels)
    if path.exists():
        try:
            with safe_open(path, framework="np") as file:
                logits = file.get_tensor("logits")
            if logits.shape == shape:
                logger.info(f"teacher logits of {len(texts)} texts read from {path}")
                return logits
            logger.warning(f"{path} holds logits of shape {logits.shape}, not {shape}: computed again")
        except (SafetensorError, OSError) as error:
            logger.warning(f"{path} is damaged ({error}): computed again")
    logits = predict_logits(teacher, tokenizer, texts, max_length, batch_size, description="Teacher")
    # Under another name first: a run that is killed leaves no half file under the key.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"logits": logits}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # a full disk: the logits are there all the same
        partial.unlink(missing_ok=True)
        logger.warning(f"teacher logits cannot be kept in {folder} ({error}): the next run computes them again")
        return logits
    logger.info(f"teacher logits of {len(texts)} texts written to {path}")
    return logits


def add_logits(dataset, logits):
    """`dataset` with a column `teacher_logits` of `(len(dataset), num_labels)` float32 values."""
    values = datasets.Features({"teacher_logits": datasets.List(datasets.Value("float32"), length=logits.shape[1])})
    column = datasets.Dataset.from_dict({"teacher_logits": logits.astype(np.float32)}, features=values)
    return datasets.concatenate_datasets([dataset, column], axis=1)


def warn_at_chance(logits, labels):
    """
    Warns of a teacher that is no better than chance on these training rows.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_labels)`): In the data's label order.
        labels (`np.ndarray` of shape `(num_rows,)`): −100 rows do not count.

    Returns:
        `bool`: Whether it warned.
    """
    rows = np.flatnonzero(np.asarray(labels) != -100)
    if len(rows) == 0:
        return False
    at_chance, balanced, chance = is_at_chance(logits[rows], np.asarray(labels)[rows])
    if at_chance:
        logger.warning(
            f"THE TEACHER IS AT CHANCE LEVEL: balanced accuracy {balanced:.3f} on {len(rows)} training rows, chance is "
            f"{chance:.3f}. Its labels may stand in another order than its names say, or it has learnt another task."
        )
    return at_chance
