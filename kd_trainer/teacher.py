"""What a teacher says of a text: its labels in the data's order, its logits computed once and kept on disk."""

import contextlib
import hashlib
import itertools
import json
import logging
import re
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from huggingface_hub import constants
from transformers.utils.logging import tqdm

from .errors import InputError
from .inference import predict_logits
from .logit_file import LogitFile
from .metrics import is_at_chance
from .pairs import sides
from .precision import half_dtype

logger = logging.getLogger(__name__)

PIECE_ROWS = 4096  # labelled between two writes; sorted by length among themselves
AGREEMENT_ROWS, LEAST_AGREEMENT = 1000, 0.999


def parse_label_map(label_map):
    """`'neg=negative,pos=positive'` or a JSON object to `dict[str, str]`; an empty one for None."""
    if not label_map:
        return {}
    if not isinstance(label_map, str):
        raise InputError(f"label_map is {label_map!r:.60}: write old=new,old=new")
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


def teacher_digest(teacher, tokenizer, max_length):
    """
    Names all of a teacher that decides its logits: weights, configuration, tokenizer, longest text.

    Returns:
        `str` of 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config = teacher.config.to_dict()
    # Names, and what saving writes into the configuration; the weights' own dtype is hashed below.
    for name in ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures", "dtype", "auto_map",
                 "cascade"):  # fmt: skip
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(tokenizer_bytes(tokenizer))
    digest.update(str(max_length).encode())
    return digest.hexdigest()


def cache_key(digest, texts):
    """
    Names the logits of `texts`, in their order.

    Args:
        digest (`str`): The teacher's, see [`teacher_digest`].
        texts (sequence of `str` or of pairs): Read by slices.

    Returns:
        `str` of 64 hexadecimal digits.
    """
    # Two texts are not the pair of them.
    kind = " pairs" if len(texts) and isinstance(texts[0], tuple) else ""
    key = hashlib.sha256(f"{digest} {len(texts)}{kind}".encode())
    for start in range(0, len(texts), PIECE_ROWS):
        for text in itertools.chain.from_iterable(map(sides, texts[start : start + PIECE_ROWS])):
            encoded = text.encode("utf-8", "surrogatepass")
            key.update(len(encoded).to_bytes(8, "little"))
            key.update(encoded)
    return key.hexdigest()


def default_cache_dir():
    """`kd_trainer/teacher_logits` in the cache folder of the Hugging Face libraries (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "kd_trainer" / "teacher_logits"


def may_halve(texts):
    """Whether half precision may gain anything: a sample is labelled twice to see that, too much for few texts."""
    return len(texts) >= 10 * AGREEMENT_ROWS


def choose_dtype(teacher, tokenizer, texts, max_length, batch_size=64):
    """
    The precision to label in: the device's half precision where that is faster and gives the labels of float32, both
    measured on a sample of the texts.

    Args:
        As [`predict_logits`].

    Returns:
        `torch.dtype` or None: None for the teacher's own precision.
    """
    dtype = half_dtype(teacher.device)
    if dtype is None or not may_halve(texts):
        return None
    sample = [texts[int(row)] for row in np.linspace(0, len(texts) - 1, AGREEMENT_ROWS)]
    labels, seconds = {}, {}
    for precision in (None, dtype):
        # The first batch warms the device up.
        try:
            predict_logits(teacher, tokenizer, sample[:batch_size], max_length, batch_size, None, precision)
            start = time.perf_counter()
            logits = predict_logits(teacher, tokenizer, sample, max_length, batch_size, None, precision)
        except InputError:
            if precision is None:
                raise
            return None  # beyond the range of half precision
        labels[precision], seconds[precision] = logits.argmax(axis=-1), time.perf_counter() - start
    agree = float((labels[None] == labels[dtype]).mean())
    gain = seconds[None] / seconds[dtype]
    chosen = dtype if agree >= LEAST_AGREEMENT and gain > 1 else None
    logger.info(
        f"the teacher labels in {'its own precision' if chosen is None else chosen}: {dtype} is {gain:.1f} times as "
        f"fast and gives {100 * agree:.2f} % of the labels alike"
    )
    return chosen


def label_piece(teacher, tokenizer, texts, max_length, batch_size, dtype):
    """[`predict_logits`] without its bar; again in the teacher's own precision where a half one overflows."""
    try:
        return predict_logits(teacher, tokenizer, texts, max_length, batch_size, None, dtype)
    except InputError:
        if dtype is None:
            raise
        logger.warning(f"{len(texts)} texts are beyond the range of {dtype}: labelled in the teacher's own precision")
        return predict_logits(teacher, tokenizer, texts, max_length, batch_size, None, None)


def check_finite(logits, path):
    """`logits` as they are; refuses what no teacher has said, which a damaged disk or another program has written."""
    for start in range(0, len(logits), PIECE_ROWS):
        if not np.isfinite(logits[start : start + PIECE_ROWS]).all():
            raise InputError(f"{path} is damaged, it has logits that are not numbers: remove it")
    return logits


def begin(file, choose):
    """
    What is left to label: the partial file is there afterwards, unless it cannot be.

    Args:
        file ([`LogitFile`]): Locked by this process.
        choose (`Callable[[], torch.dtype | None]`): The precision of a new file.

    Returns:
        `list[int]` or None: Numbers of the missing pieces; none for a complete file; None when none can be written.
    """
    if file.is_complete():
        return []
    if file.path.exists():
        logger.warning(f"{file.path} is damaged: computed again")
    try:
        if file.path.is_dir():
            raise IsADirectoryError(f"{file.path} is a folder")
        dtype = None if file.is_begun() else choose()
        file.create(None if dtype is None else str(dtype).removeprefix("torch."))
        missing = file.missing()
        if not missing:  # killed before it could give the file its name
            file.finish()
    except OSError as error:  # a full disk: the logits are computed all the same
        logger.warning(
            f"teacher logits cannot be kept in {file.path.parent} ({error}): the next run computes them again"
        )
        return None
    if 0 < len(missing) < file.pieces:
        logger.info(f"{file.pieces - len(missing)} of {file.pieces} pieces were labelled before: going on")
    return missing


def cached_logits(
    teacher, tokenizer, texts, max_length, batch_size=64, cache_dir=None, half=False, state=None, digest=None
):
    """
    [`predict_logits`], read from disk when this teacher has labelled these texts before. It is written in pieces as it
    is computed: a run that was killed goes on with the piece that it was at, and a second run waits for the first.

    Args:
        teacher, tokenizer, max_length, batch_size: As [`predict_logits`].
        texts (sequence of `str` or of pairs): Read by slices, so that a memory-mapped column need not fit into memory.
        cache_dir (`str`, *optional*): Defaults to [`default_cache_dir`].
        half (`bool`, *optional*, defaults to `False`): Whether half precision may be used, see [`choose_dtype`]; what
            may be is kept apart from what may not.
        state (`accelerate.PartialState`, *optional*): Shares the work among its processes, all of which must call this
            and see the same `cache_dir`.
        digest (`str`, *optional*): [`teacher_digest`], where it is known.

    Returns:
        `np.ndarray` of shape `(len(texts), num_labels)`, float32, mapped from the file and read-only.

    Raises:
        `InputError`: As [`predict_logits`]; and for processes that do not see one `cache_dir`.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    half = half and may_halve(texts)
    key = cache_key(f"{digest or teacher_digest(teacher, tokenizer, max_length)} {half}", texts)
    file = LogitFile(folder / f"{key}.safetensors", (len(texts), teacher.config.num_labels), PIECE_ROWS)
    rank, processes = (0, 1) if state is None else (state.process_index, state.num_processes)

    def choose():
        return choose_dtype(teacher, tokenizer, texts, max_length, batch_size) if half else None

    with contextlib.ExitStack() as stack:
        missing = None
        if rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not file.is_complete():
                    stack.enter_context(file.lock())
            except OSError as error:
                logger.warning(f"no lock in {folder} ({error})")
            missing = begin(file, choose)
        if processes > 1:
            # Whatever the files say to one process, all of them go the way that the first one goes.
            (missing,) = broadcast_object_list([missing])
            there = missing is None or (file.is_begun() if missing else file.is_complete())
            if not all(gather_object([there])):
                raise InputError(f"not all processes see {folder}: give a --teacher_cache_dir that they share")
        if missing is None:
            return predict_logits(teacher, tokenizer, texts, max_length, batch_size, "Teacher")
        if not missing:
            logger.info(f"teacher logits of {len(texts)} texts read from {file.path}")
            return check_finite(file.read(), file.path)
        dtype = None if file.precision is None else getattr(torch, file.precision)
        mine = missing[rank::processes]
        try:
            with tqdm(total=sum(len(range(*file.rows(piece))) for piece in mine), desc="Teacher", unit="text") as bar:
                for piece in mine:
                    first, end = file.rows(piece)
                    file.write(piece, label_piece(teacher, tokenizer, texts[first:end], max_length, batch_size, dtype))
                    bar.update(end - first)
            if processes > 1:
                state.wait_for_everyone()
            if rank == 0:
                file.finish()
        except OSError as error:  # the disk failed, or the folder was removed
            what = f"teacher logits cannot be kept in {folder} ({error})"
            if processes > 1:
                raise InputError(f"{what}: make room, or give another --teacher_cache_dir") from error
            logger.warning(f"{what}: the next run computes them again")
            return predict_logits(teacher, tokenizer, texts, max_length, batch_size, "Teacher")
        if processes > 1:
            state.wait_for_everyone()
    logger.info(f"teacher logits of {len(texts)} texts written to {file.path}")
    return file.read()


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
