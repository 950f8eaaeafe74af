"""A script at a terminal: its exit codes, its last words."""

import gc
import sys
from pathlib import Path

import torch

from .errors import InputError


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
