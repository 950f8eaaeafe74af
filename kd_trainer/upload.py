"""What of a folder goes to the hub: one commit of its files, which takes away what stood for earlier weights."""

import ast
import contextlib
import json
import logging
import re
import shlex
from pathlib import PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_imports
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from .card_file import CARD
from .errors import HubError, InputError
from .json_file import read_json, read_object
from .network import why_unreachable
from .output_folder import (
    ONNX,
    PLOTS,
    RECIPE,
    REPORT,
    TOKENIZER_FILES,
    WRITTEN,
    has_report,
    has_run,
    is_export,
    matches,
)

logger = logging.getLogger(__name__)

# Named one by one: what else lies in the folder (predictions, logs, pickles) may be nobody's business.
MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "modeling_*.py", "configuration_*.py", "tokenization_*.py",
)  # fmt: skip
# Those files that say something about any tokenizer, whatever it keeps its vocabulary in.
ABOUT_TOKENIZER = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
PUBLISHED = (*MODEL_FILES, *TOKENIZER_FILES, CARD, REPORT, RECIPE)
LEFT_OUT = ("_*", ".*", "*.partial", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.joblib", "*.log")
# What other versions and the Trainer itself have pushed beside earlier weights.
OUTDATED = (
    "pytorch_model*.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "training_args.bin",
    "all_results.json", "train_results.json", "trainer_state.json",
)  # fmt: skip
CHECKPOINTS = re.compile(r"(last-checkpoint|checkpoint-\d+)/")
CHECKPOINT_STRATEGIES = ("checkpoint", "all_checkpoints")  # of --hub_strategy
PASSING = {408, 429}  # of the answers that say that the request is wrong, those that pass with time


def is_published(path):
    """
    Whether a file `path` of an output folder (`str`, relative, with slashes) may go to the hub, by its name alone. See
    [`published_files`].
    """
    parts = PurePosixPath(path).parts
    if any(matches(part, LEFT_OUT) for part in parts):
        return False
    return matches(path, PUBLISHED) if len(parts) == 1 else parts[1:] in [(name,) for name in WRITTEN.get(parts[0], ())]


def published_files(folder):
    """
    What of `folder` goes to the hub: `dict[str, Path]`, by the path it has there. A file of a published name that may
    be anybody's stays: code, weights and vocabularies that the model does not read, plots that the card does not show,
    a recipe of no run, an `onnx/` of no export, and whatever is a link.
    """
    folders = [folder, *(folder / name for name in WRITTEN if not (folder / name).is_symlink())]
    found = sorted(file for path in folders for file in path.glob("*") if file.is_file() and not file.is_symlink())
    files = {file.relative_to(folder).as_posix(): file for file in found}
    code = code_of(folder)
    others = {name for name in files if name.endswith(".py") and "/" not in name} - code
    others |= {name for name in files if matches(name, TOKENIZER_FILES)} - vocabularies_of(folder, files)
    others |= set() if has_run(folder) or has_report(folder) else {RECIPE}
    others |= set() if is_export(folder / ONNX) else {name for name in files if name.startswith(f"{ONNX}/")}
    shards = set() if "model.safetensors" in files else {*shards_of(folder), "model.safetensors.index.json"}
    others |= {name for name in files if matches(name, ("model*.safetensors*",))} - {"model.safetensors", *shards}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        card = (folder / CARD).read_text(encoding="utf-8") if CARD in files else ""
        others |= {name for name in files if name.startswith(f"{PLOTS}/") and name not in card}
    return {name: file for name, file in files.items() if name in code or is_published(name) and name not in others}


def vocabularies_of(folder, files):
    """
    Names of the tokenizer's files (`set[str]`) among `files` (`Iterable[str]`) of a folder: what its class reads, which
    `tokenizer_config.json` names; all of them where that is unknown.
    """
    named = {name for name in files if matches(name, TOKENIZER_FILES)}
    settings = read_json(folder / "tokenizer_config.json")
    name = settings.get("tokenizer_class")
    reader = tokenizer_class_from_name(name) if isinstance(name, str) and "auto_map" not in settings else None
    if reader is None:
        return named
    is_fast = issubclass(reader, PreTrainedTokenizerFast) and "tokenizer.json" in named
    return named & {*ABOUT_TOKENIZER, *(("tokenizer.json",) if is_fast else reader.vocab_files_names.values())}


def shards_of(folder):
    """Names of the files (`set[str]`) that weights in several files are in, as their index says."""
    shards = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    if not isinstance(shards, dict):
        raise InputError(f"{folder}: model.safetensors.index.json is damaged: save the model again")
    return set(map(str, shards.values()))


def code_of(folder):
    """
    Names of the modules that a model's folder needs to load: those that `auto_map` names, and what they import of the
    folder.
    """
    maps = [read_json(folder / name).get("auto_map") for name in ("config.json", "tokenizer_config.json")]
    found = [value for one in maps if isinstance(one, dict) for value in one.values()]
    classes = [name for value in found for name in (value if isinstance(value, list) else [value])]
    # "repository--module.Class" stands in another repository.
    wanted = [f"{name.rpartition('.')[0]}.py" for name in classes if isinstance(name, str) and "--" not in name]
    files = set()
    while wanted:
        name = wanted.pop()
        if name not in files and (folder / name).is_file():
            with contextlib.suppress(UnicodeDecodeError):
                wanted += [f"{module}.py" for module in get_relative_imports(folder / name)]
        files.add(name)
    return files


def count_quoted(folder):
    """How many texts of the data the report in `folder`, and so its card, quotes; 0 where there is no report."""
    quoted = read_json(folder / REPORT).get("disagreements") or []
    if not isinstance(quoted, list):
        raise InputError(f"{folder / REPORT} is damaged (disagreements: {str(quoted)[:40]}): run it again")
    return len(quoted)


def check_whole(name, path):
    """
    Refuses a file that is cut off: of `.safetensors` the header says how long it must be, a `.json` must be JSON.

    Args:
        name (`str`), path (`Path`): As of [`published_files`].
    """
    try:
        if name.endswith(".safetensors"):
            with safe_open(path, "np"):
                pass
        elif name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
            if name in ("config.json", "tokenizer.json", "tokenizer_config.json", REPORT):
                read_object(path, "run it again")
        elif name.endswith(".py"):
            ast.parse(path.read_bytes())
        elif name == CARD:
            path.read_text(encoding="utf-8")
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} is damaged ({reason}) and is not pushed: save the model again") from None


def missing_code(folder, files):
    """The first module of [`code_of`] that is not among the `files` that are pushed: `str` or None."""
    named = read_json(folder / "config.json").get("auto_map", {})
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{folder / 'config.json'} is damaged (auto_map: {str(named)[:60]}): save the model again")
    return next(iter(sorted(code_of(folder) - files.keys())), None)


def stale_files(there, files, keeps_checkpoints):
    """
    Files on the hub that a push of `files` outdates.

    Args:
        there (`Iterable[str]`): All that are on the hub. What no run has put there stays.
        files (`Iterable[str]`): Those that are pushed.
        keeps_checkpoints (`bool`): Whether the checkpoints on the hub are of this run.

    Returns:
        `list[str]`.
    """

    def is_outdated(path):
        if CHECKPOINTS.match(path):
            return not keeps_checkpoints
        # A card may be a person's own.
        return path != CARD and (is_published(path) or matches(path, OUTDATED))

    return [path for path in there if path not in files and is_outdated(path)]


def push_files(files, repo_id, message, revision=None, keeps_checkpoints=False, token=None):
    """
    One commit: all of it is on the hub or none of it.

    Args:
        files (`dict[str, Path]`): By the path that each has on the hub.
        repo_id (`str`): See [`prepare_repo`].
        message (`str`): Of the commit.
        revision (`str`, *optional*): Branch; the main one without it.
        keeps_checkpoints (`bool`): See [`stale_files`].
        token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` without it.

    Returns:
        `str`: The commit's address.
    """
    api = HfApi(token=token)
    there = api.list_repo_files(repo_id, revision=revision)
    stale = stale_files(there, files, keeps_checkpoints)
    if CARD in there and CARD not in files:
        logger.warning(f"{repo_id} keeps its model card, which may be about earlier weights: no {CARD} is pushed")
    if stale:
        logger.info(f"taken off {repo_id}, as it stood for earlier weights: {', '.join(stale)}")
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file)) for path, file in files.items()]
    operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale]
    # Not upload_folder: it may cut the files into several commits, the weights in one and their code in the next.
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


def explain(error):
    """What went wrong at the hub, in a few words: `str`."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return "no token: log in with 'hf auth login', or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = error.server_message or error.response.reason_phrase
        cure = {401: ": log in with 'hf auth login', or give another token", 403: ": has the token the right to write?"}
        return " ".join(f"{status}, {said}".split())[:300] + cure.get(status, "")
    reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return " ".join(str(reason).split())[:300] or type(reason).__name__


def is_mistake(error):
    """Whether it is the user who can mend what the hub has refused, rather than time."""
    if isinstance(error, HfHubHTTPError):
        return 400 <= error.response.status_code < 500 and error.response.status_code not in PASSING
    return isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError))


def prepare_repo(name, private=None, revision=None, token=None):
    """
    Makes sure, before anything is trained, that a push can work: the repository is there, is as private as is wanted,
    and the token may write to it.

    Args:
        name (`str`): `you/student`, or `student` alone.
        private (`bool`, *optional*): Of a repository that is made; the account's usual without it.
        revision (`str`, *optional*): Branch that is made too.
        token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` without it.

    Returns:
        `str`: `you/student`.

    Raises:
        `InputError`: For a name, a token or a branch that the hub does not take.
        `HubError`: When it cannot be asked.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--hub_model_id {name}: {explain(error)}") from None
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError(f"--hub_revision {revision} is a commit, which nothing can be added to: name a branch")
    if constants.is_offline_mode():
        raise InputError("--push_to_hub, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set: unset it, or push later")
    if token is None and get_token() is None:
        raise InputError("--push_to_hub needs a token: log in with 'hf auth login', set HF_TOKEN, or give --hub_token")
    if not re.fullmatch(r"[!-~]+", get_token() if token is None else token):  # the hub's client would print it
        raise InputError("the hub's token has a blank, a line end or a letter that no token has: copy it again")
    unreachable = why_unreachable()
    if unreachable is not None:
        raise HubError(f"the hub, {constants.ENDPOINT}, cannot be reached ({unreachable}): try again, or push later")
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        is_private = api.model_info(repo_id).private
    except Exception as error:  # whatever the network raises
        what = f"{name} cannot be pushed to ({explain(error)})"
        raise (InputError if is_mistake(error) else HubError)(what) from error
    if private and not is_private:
        raise InputError(
            f"--hub_private_repo, and {repo_id} is there and public: make it private in its settings on the hub, or "
            "choose another --hub_model_id"
        )
    return repo_id


def push_command(folder, repo_id, private=None, revision=None):
    """The command that pushes a finished folder: `str`."""
    words = ["python", "-m", "kd_trainer.hub", str(folder), "--hub_model_id", repo_id]
    words += ["--hub_private_repo"] * bool(private)
    words += ["--hub_revision", revision] if revision is not None else []
    return shlex.join(words)


def push_folder(folder, repo_id, private=None, revision=None, keeps_checkpoints=False, token=None):
    """
    Pushes a finished folder.

    Args:
        folder (`Path`): With `config.json`, weights and code.
        repo_id, private, revision, token: As of [`prepare_repo`], whose answer `repo_id` is.
        keeps_checkpoints (`bool`): See [`stale_files`].

    Returns:
        `str`: The commit's address.

    Raises:
        `HubError`: When it did not work, with the command that tries again.
    """
    files = published_files(folder)
    megabytes = sum(file.stat().st_size for file in files.values()) / 1e6
    logger.info(f"pushing {len(files)} files, {megabytes:.1f} MB, to {repo_id}")
    try:
        url = push_files(files, repo_id, "End of training", revision, keeps_checkpoints, token)
    except Exception as error:  # whatever the network or the hub's client raises
        again = push_command(folder, repo_id, private, revision)
        raise HubError(
            f"{folder} is finished, but was not pushed to {repo_id} ({explain(error)}): push it with: {again}"
        ) from error
    logger.info(f"pushed: {url}")
    return url


def check_pushable(folder):
    """
    Refuses a folder that does not hold a whole model, or files that are damaged.

    Raises:
        `InputError`
    """
    files = published_files(folder)
    for name, file in files.items():
        check_whole(name, file)
    if "config.json" not in files or not any(matches(name, ("model*.safetensors",)) for name in files):
        raise InputError(
            f"{folder}: no model (config.json, model.safetensors; no links to them) in it: give a run's --output_dir"
        )
    lacking = [] if "model.safetensors" in files else sorted(shards_of(folder) - files.keys())
    if lacking:
        raise InputError(f"{folder}: model.safetensors.index.json names {lacking[0]}, which is not there")
    if not any(matches(name, TOKENIZER_FILES) and name not in ABOUT_TOKENIZER for name in files):
        raise InputError(f"{folder}: no tokenizer in it: save it beside the model")
    if has_run(folder) and REPORT not in files:
        raise InputError(f"{folder} holds an unfinished run: give its command again first")
    missing = missing_code(folder, files)
    if missing is not None:
        raise InputError(f"{folder}: its code needs {missing}, which is not there: it would not load")
