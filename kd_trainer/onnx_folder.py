"""A folder that labels texts with onnxruntime and tokenizers alone, checked against the model that it was made of."""

import contextlib
import copy
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers.utils.logging import tqdm

from .arguments import EXPORT_FORMATS
from .errors import InputError
from .files import TEXT_COLUMNS
from .inference import longest_first, predict_logits
from .loading import label_list
from .metrics import agreement, score_logits
from .onnx_graph import input_names, quantize, write_graph
from .output_folder import ONNX, WRITTEN, check_export_folder
from .report import COLUMNS, time_calls
from .text_limits import longest_part
from .whole import written_whole

logger = logging.getLogger(__name__)

FILES = dict(zip(EXPORT_FORMATS, ("model.onnx", "model_int8.onnx"), strict=True))
BATCH_SIZES = (1, 7, 32)  # the last one's logits are reported
# Absolute, of a logit: what it does to a probability does not depend on how large the logits are. But fp32 has seven
# digits: of logits above 100 a millionth of the largest is let through.
TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-6
# Of the rows' number, rounded up to a whole row: of fewer than 500 rows a single one is more, and whether it is lost is
# chance. A gain is no error.
LOST_ACCURACY = 0.002


def write_folder(folder, model, tokenizer, max_length, formats, columns):
    """
    Writes the graphs and all that their users need: `tokenizer.json`, `config.json`, `classify.py`.

    Args:
        folder (`Path`): That exists and is empty.
        model (`PreTrainedModel`): On the CPU, in fp32 and evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        max_length (`int`): In tokens; the rest of a text is cut off.
        formats (`list[str]`): Of `FILES`.
        columns (`list[list[str]]`): For each of the texts of a row, names that its column may have.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.enable_padding(
        pad_id=tokenizer.pad_token_id, pad_type_id=tokenizer.pad_token_type_id, pad_token=tokenizer.pad_token
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "labels": label_list(model.config),
        "max_length": max_length,
        "part": longest_part(tokenizer, max_length),
        "split_special_tokens": tokenizer.split_special_tokens,
        "columns": columns,
        "files": [file for name, file in FILES.items() if name in formats],
    }
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("classify.py"), folder / "classify.py")
    write_graph(model, input_names(model, tokenizer), folder / FILES["onnx"])
    if "onnx-int8" in formats:
        # A scale for every column of a matrix is what transformers need; an LSTM loses a tenth of its speed to them.
        is_lstm = model.config.model_type == "kd_bilstm"
        quantize(folder / FILES["onnx"], folder / FILES["onnx-int8"], per_channel=not is_lstm)
    if "onnx" not in formats:
        (folder / FILES["onnx"]).unlink()
    if not {path.name for path in folder.iterdir()} <= {*WRITTEN[ONNX]}:
        raise InputError(f"a {type(model).__name__} of more than the 2 GB of an ONNX file: leave the export out")


def answer(classifier, texts, batch_size, description):
    """Logits of every text by a folder's own code, `np.ndarray` of shape `(len(texts), num_labels)`, float32."""
    order = longest_first(texts)
    logits = np.empty((len(texts), len(classifier.config["labels"])), dtype=np.float32)
    for start in tqdm(range(0, len(order), batch_size), desc=description, unit="batch"):
        rows = order[start : start + batch_size]
        logits[rows] = classifier.logits([texts[row] for row in rows])
    return logits


def check_parity(name, logits, torch_logits, labels, batch_size):
    """
    Refuses a graph that does not answer as the model does: in fp32 by the logits, in int8 by the accuracy.

    Args:
        name (`str`): Of `FILES`.
        logits, torch_logits (`np.ndarray` of shape `(num_rows, num_labels)`): The graph's and the model's.
        labels (`np.ndarray` of shape `(num_rows,)`): Label ids.
        batch_size (`int`): For the message.

    Raises:
        `InputError`
    """
    if name == "onnx":
        # Not above zero: a NaN is no parity.
        largest = float(np.abs(logits - torch_logits).max())
        allowed = max(TOLERANCE, RELATIVE_TOLERANCE * float(np.abs(torch_logits).max()))
        if not largest <= allowed:
            raise InputError(
                f"{name}: at batch size {batch_size} a logit differs from torch's by {largest:.1e}, more than the "
                f"{allowed:.1e} allowed: this model does not export faithfully, leave the export out"
            )
        return
    right, torch_right = (int((answers.argmax(-1) == labels).sum()) for answers in (logits, torch_logits))
    allowed = math.ceil(LOST_ACCURACY * len(labels))
    if not np.isfinite(logits).all() or torch_right - right > allowed:
        raise InputError(
            f"{name}: at batch size {batch_size} {right} of {len(labels)} rows are right, and {torch_right} in torch: "
            f"more than the {allowed} allowed are lost, --export onnx writes fp32 alone, or check it on more rows"
        )


def export_model(folder, model, tokenizer, max_length, formats, texts, labels, columns=None, teacher_logits=None):
    """
    Writes a folder of [`write_folder`] once its graphs answer as the model does on a split, at several batch sizes. One
    that is there already is replaced then, and left alone when the export fails.

    Args:
        folder (`Path`): To be written.
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): What is exported; left as they are.
        max_length (`int`): In the model's tokens.
        formats (`list[str]`): Of `FILES`.
        texts (`list[str]` or `list[tuple[str, str]]`): Of the split.
        labels (`np.ndarray` of shape `(len(texts),)`): Label ids.
        columns (`list[str | None]`, *optional*): Names of the text columns; None for the usual ones.
        teacher_logits (`np.ndarray` of shape `(len(texts), num_labels)`, *optional*): For the agreement.

    Returns:
        `dict[str, dict]`: Rows of the table, by format.

    Raises:
        `InputError`: When the model cannot be exported, or its export answers otherwise.
    """
    from .classify import Classifier  # asks for onnxruntime

    check_export_folder(folder)
    if not tokenizer.is_fast:
        raise InputError(f"a {type(tokenizer).__name__} has no tokenizer.json, which the export needs: use a fast one")
    model = copy.deepcopy(model).to("cpu").float().eval()
    labels = np.asarray(labels)
    torch_logits = predict_logits(model, tokenizer, texts, max_length, BATCH_SIZES[-1], "Predicting with torch")
    names = [list(TEXT_COLUMNS) if column is None else [column] for column in columns or [None]]
    made = [path for path in folder.parents if not path.exists()]
    rows = {}
    try:
        with written_whole(folder, is_new=not folder.exists()) as partial:
            partial.mkdir()
            write_folder(partial, model, tokenizer, max_length, formats, names)
            for name in [name for name in FILES if name in formats]:
                classifier = Classifier(partial, FILES[name])
                for batch_size in BATCH_SIZES:
                    logits = answer(classifier, texts, batch_size, f"Checking {name}, batch size {batch_size}")
                    check_parity(name, logits, torch_logits, labels, batch_size)
                rows[name] = dict.fromkeys(COLUMNS) | score_logits(logits, labels)
                rows[name]["parameters"] = model.num_parameters()
                rows[name]["size_mb"] = (partial / FILES[name]).stat().st_size / 1e6
                rows[name] |= time_calls(Classifier(partial, FILES[name], threads=1).logits, texts)
                if teacher_logits is not None:
                    rows[name]["agreement"] = agreement(logits, teacher_logits)
            check_export_folder(folder)  # what has been put there meanwhile
    except (InputError, OSError):
        raise
    except Exception as error:  # onnxruntime has exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"onnxruntime cannot run the graph of a {type(model).__name__} ({reason}): leave --export out"
        ) from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # the folder is in it
                path.rmdir()
    if "onnx-int8" in formats and len(texts) < 1 / LOST_ACCURACY:
        logger.warning(
            f"of {len(texts)} rows a single one is more than the {100 * LOST_ACCURACY} points that onnx-int8 may lose: "
            "one was let through, check it on 500 rows or more"
        )
    logger.info(f"{', '.join(formats)} written to {folder}")
    return rows
