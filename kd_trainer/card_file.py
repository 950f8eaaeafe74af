"""Words of others in a model card stay theirs: quoted as they are, and never overwritten."""

import hashlib
import re
import string
import unicodedata
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from .errors import InputError
from .whole import written_whole

CARD = "README.md"
SIGNATURE = re.compile(r"\n*<!-- kd_trainer's card, sha256 of its text: ([0-9a-f]{64}) -->\s*$")
# What is never anything but itself in Markdown.
HARMLESS = set(" ,;%?'/") | set(string.ascii_letters + string.digits)
# Metadata that follow from the run; whatever else stands there (license, language) a person has added.
OWN_METADATA = {"base_model", "datasets", "library_name", "metrics", "model-index", "pipeline_tag", "tags"}


def escape(text):
    """
    A text in one line of Markdown that is shown as it is wherever it stands, a table's cell too: no link, no HTML, no
    emphasis, no formula comes of it. Characters that control are spaces.

    Example:

    ```python
    >>> escape("a|b *c*")
    'a&#124;b &#42;c&#42;'

    ```
    """
    # Cc: line ends, NUL, escapes; the others turn the direction of what follows, or end a line for some.
    controls = {"Cc", "Zl", "Zp", "Cs"}
    shown = "".join(
        " "
        if unicodedata.category(c) in controls or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        else c
        for c in text
    )
    return "".join(c if c in HARMLESS or ord(c) > 127 else f"&#{ord(c)};" for c in " ".join(shown.split()))


def digest(text):
    """Of a card's text, whatever its line ends."""
    return hashlib.sha256("\n".join(text.split()).encode()).hexdigest()


def read_card(path):
    """
    A card's file as `huggingface_hub.ModelCard`.

    Raises:
        `ValueError`: When it is not UTF-8 or its metadata cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return (
            ModelCard(text, ignore_metadata_errors=True) if text.startswith("---") else ModelCard(f"---\n---\n{text}")
        )
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def is_unchanged(path):
    """Whether a file is a card of [`write_card_file`] whose text nobody has edited since; metadata may be added."""
    try:
        text = read_card(path).text
    except (ValueError, OSError):  # no such file, or a folder
        return False
    signature = SIGNATURE.search(text)
    return signature is not None and signature[1] == digest(text[: signature.start()])


def write_card_file(path, data, text, overwrite=False):
    """
    Writes a card, signed so that an edited one is known.

    Args:
        path (`Path`): The file. Of metadata that stand there already, those that a person has added stay, and all tags.
        data (`huggingface_hub.ModelCardData`): The metadata.
        text (`str`): Markdown.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a text that somebody has edited may go.

    Raises:
        `InputError`: When the file there is not such a card, or an edited one.
    """
    if path.exists() and not overwrite and not is_unchanged(path):
        raise InputError(f"{path} was written or edited by somebody: move it away, or replace it with --overwrite")
    card = make_card(path, data, text)
    with written_whole(path) as partial:
        card.save(partial)


def make_card(path, data, text):
    """
    The card that [`write_card_file`] writes, as `huggingface_hub.ModelCard`.

    Raises:
        `InputError`: For metadata of a person's that no card can keep.
    """
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n{text.strip()}\n")
    if path.exists():
        keep_metadata(card, path)
    card.text = f"\n{text.strip()}\n\n<!-- kd_trainer's card, sha256 of its text: {digest(text)} -->\n"
    return card


def keep_metadata(card, path):
    """Gives a new card what a person has added to the metadata of the old one at `path`."""
    try:
        data = read_card(path).data
    except ValueError:  # which the person has been told of, or has said --overwrite
        return
    hidden = next((name for name in vars(data) if callable(getattr(type(data), name, None))), None)
    if hidden is not None:  # a method of the hub's class
        raise InputError(f"{path}: its metadata name {hidden}, which no card can hold: rename or remove it")
    old = data.to_dict()
    for name, value in old.items():
        if name not in OWN_METADATA:
            card.data[name] = value
    tags = old.get("tags")
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *(tags if isinstance(tags, list) else [])]))
