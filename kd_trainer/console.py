"""A script at a terminal: its help at once, its exit codes, its last words."""

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import logging
import os
import shutil
import sys
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from .errors import HubError, InputError


class OneLineErrors:
    """Of an `argparse.ArgumentParser`: a mistake in the flags is an `InputError`."""

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")


class CommandParser(OneLineErrors, argparse.ArgumentParser):
    """
    The command line of `python -m kd_trainer.NAME`.

    Args:
        name (`str`): The module's.
        description (`str`): Its docstring.
    """

    def __init__(self, name, description):
        super().__init__(
            prog=f"python -m kd_trainer.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def log_to_terminal(form="%(message)s"):
    """Shows what a command of the package says, and of other packages warnings alone."""
    logging.basicConfig(format=form, level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("kd_trainer").setLevel(logging.INFO)


def stop(message, code):
    """Ends the script with one line and an exit code."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


def run_console(main, make_parser=None):
    """
    Runs a script's `main` for a person at a terminal: a mistake of theirs is one line and exit code 2, a hub that fails
    one line and exit code 3.

    The process group of a distributed run is taken down at the end: gloo's threads may otherwise abort the interpreter.

    Args:
        main (`Callable`): Takes the command line, `list[str]`.
        make_parser (`Callable`, *optional*): Gives the script's parser. Its help is then kept, see [`help_text`].
    """
    argv = sys.argv[1:]
    try:
        if make_parser is not None and not {"-h", "--help"}.isdisjoint(argv):
            sys.stdout.write(help_text(make_parser))
        else:
            main(argv)
    except InputError as error:
        stop(error, 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"{error.filename}: {error.strerror}: check the path", 2)
    except HubError as error:
        stop(error, 3)
    except KeyboardInterrupt as error:  # a training says in it where it would go on
        print(f"interrupted: {error}" if error.args else "interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.collect()
        torch = sys.modules.get("torch")  # what has not imported it has no process group
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def help_text(make_parser):
    """
    A script's help, kept in `kd_trainer/help` of `HF_HOME`: to write it, torch and `transformers` are imported, which
    takes seconds. The file's name is a hash of all that the text depends on: the source, the versions, the terminal.

    Args:
        make_parser (`Callable`): Gives the parser; called when the text is not there yet.

    Returns:
        `str`.
    """
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(make_parser.__code__.co_filename)]
    packages = ("torch", "transformers", "accelerate")
    parts = [sys.version, Path(sys.argv[0]).name, str(shutil.get_terminal_size().columns)]
    parts += [importlib.metadata.version(name) for name in packages]
    parts += [f"{name}={os.environ.get(name)}" for name in ("NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS")]
    key = hashlib.sha256(b"\0".join([*(part.encode() for part in parts), *(path.read_bytes() for path in sources)]))
    path = Path(HF_HOME) / "kd_trainer" / "help" / f"{key.hexdigest()[:32]}.txt"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    text = make_parser().format_help()
    with contextlib.suppress(OSError):  # a home that cannot be written to costs the seconds, not the help
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(text, encoding="utf-8")
        written.replace(path)
    return text
