"""
Pushes a finished run to the hub: weights, tokenizer, code, card and report, in one commit.

    python -m kd_trainer.hub outputs/student --hub_model_id you/student
    python -m kd_trainer.hub outputs/student --hub_model_id you/student --hub_private_repo --hub_revision v2

The scripts' --push_to_hub does the same at the end of a run. What stood on the hub for earlier weights (their ONNX
files, their card) is taken off in the same commit; its history keeps it. Exit code 3 says that the hub failed: give the
command again.
"""

import logging
from pathlib import Path

from .console import CommandParser, log_to_terminal, run_console
from .errors import InputError
from .output_folder import RECIPE, is_locked, saved_settings
from .upload import CHECKPOINT_STRATEGIES, check_pushable, count_quoted, prepare_repo, push_folder

logger = logging.getLogger(__name__)


def make_parser():
    """The command line of this module."""
    parser = CommandParser("hub", __doc__)
    parser.add_argument("output_dir", help="Folder of a finished run, or of any saved classifier.")
    parser.add_argument("--hub_model_id", help="Repository, you/student. Default: the run's, or the folder's name.")
    parser.add_argument(
        "--hub_private_repo", action="store_true", default=None, help="Make the repository private when it is made."
    )
    parser.add_argument("--hub_revision", help="Branch, made when it is not there. Default: the run's, or main.")
    parser.add_argument("--hub_token", help="Default: HF_TOKEN, or that of 'hf auth login'.")
    return parser


def main(argv):
    """Pushes as the command line `argv` (`list[str]`) says."""
    log_to_terminal()
    args = make_parser().parse_args(argv)
    folder = Path(args.output_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give a run's --output_dir")
    check_pushable(folder)
    if is_locked(folder):
        raise InputError(f"{folder}: a run writes into it: wait for it")
    settings = {}  # of a model that no run of the scripts has made
    if (folder / RECIPE).exists():
        settings = saved_settings(folder, "remove it, or push another folder")

    def wanted(name):
        given = settings.get(name) if vars(args)[name] is None else vars(args)[name]
        return given if given is None or isinstance(given, bool) else str(given)  # YAML reads a branch 5 as a number

    private, revision = wanted("hub_private_repo"), wanted("hub_revision")
    quoted = count_quoted(folder)
    if quoted and not private:
        logger.warning(
            f"{quoted} texts of the data are quoted in {folder}, for all to read: python -m kd_trainer.card {folder} "
            "--card_examples 0 takes them out"
        )
    name = wanted("hub_model_id") or folder.absolute().name
    repo_id = prepare_repo(name, private, revision, args.hub_token)
    keeps_checkpoints = settings.get("hub_strategy") in CHECKPOINT_STRATEGIES
    print(push_folder(folder, repo_id, private, revision, keeps_checkpoints, args.hub_token), flush=True)


def console():
    """Entry point of `kd-push`."""
    run_console(main, make_parser)


if __name__ == "__main__":
    console()
