"""A file or folder that is there whole or not at all."""

import contextlib
import secrets
import shutil
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def written_whole(path, is_new=False):
    """
    Gives a name, nobody else's, under which a file or a folder is written beside `path`. It takes the place of what is
    at `path` when the block has ended well; otherwise `path` stays as it is. A kill leaves a hidden `.NAME.….partial`.

    Args:
        path (`str` or `Path`): Its folder is made where it is missing; what a link leads to is written.
        is_new (`bool`, *optional*, defaults to `False`): Whether nothing may be at `path`, not even meanwhile.

    Yields:
        `Path`: Nothing is there yet.

    Raises:
        `InputError`: When the system does not let it be written, or something is there that may not be replaced.
    """
    path = Path(path)
    if not path.name:  # "."
        path = path.absolute()
    if path.is_symlink():
        if path.is_dir():
            raise InputError(f"{path} is a link to a folder: move it away")
        path = path.resolve()
    partial, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if is_new and path.exists():
            raise InputError(f"{path} has been written by somebody meanwhile: choose another place")
        if path.exists() and path.is_dir() != partial.is_dir():
            raise InputError(f"{path} is a {'folder' if path.is_dir() else 'file'}: move it away")
        if path.is_dir():  # no system replaces a folder with files in it
            path.rename(old)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another place") from error
    finally:
        if old.exists() and not path.exists():  # it was stopped between the two
            old.rename(path)
        for left in (partial, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # there is none
                    left.unlink()
