"""The object in a JSON file: one that may be missing, and one that may not."""

import json

from .errors import InputError


def read_json(path):
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_object(path, cure):
    """
    The object in a JSON file that must be there.

    Raises:
        `InputError`: With the `cure` (`str`), where there is none that can be read, and for a NaN in it.
    """

    def constant(name):
        if name == "NaN":
            raise ValueError("NaN is no number")
        return float(name)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or damaged ({' '.join(str(error).split())}): {cure}") from None
    return content
