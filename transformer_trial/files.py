"""Write a file or folder whole: a killed process leaves the old one or the new one. No Determined here."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformer_trial.errors import TrialError


def resolve(key: str, path: str | Path) -> Path:
    """The absolute path, without links and ~; `key` is what gave it."""
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a user who is not there, a zero byte
        raise TrialError(f"{key}: {str(path)!r} leads nowhere: {str(error).rstrip('.')}. Give another path.") from None


@contextlib.contextmanager
def refuse_unwritable(key: str, path: Path) -> Iterator[None]:
    """Raise a TrialError where an output, or what is beside it, cannot be written; `key` is what gave its path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        advice = "Name a file in a folder that exists, is yours to write in and has room."
        what = f"{key}: cannot write {error.filename or path}: {error.strerror or error}"
        raise TrialError(f"{what}. {advice}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new path for the body to write a file or folder to, which then takes the place of `path`.

    A file is replaced in one step. A folder takes two renames: a kill between them leaves `{path}.replaced` and no
    `path`, which `restore_old` mends. If the body fails, `path` stays as it was.
    """
    new = path.with_name(f"{path.name}.new")
    _remove(new)  # a killed process may have left it
    try:
        yield new
        _put_in_place(new, path)
    finally:
        _remove(new)


def restore_old(path: Path) -> None:
    """Put the old folder back where a kill came between the two renames of `replacing`."""
    old = _old(path)
    if old.is_dir() and not path.exists():
        old.rename(path)


def _put_in_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a folder, which no rename replaces, is moved aside first."""
    if not new.is_dir():
        new.replace(path)
        return
    if path.exists():
        _remove(_old(path))
        path.rename(_old(path))
    try:
        new.rename(path)
    except OSError:
        restore_old(path)
        raise
    _remove(_old(path))


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced")  # not .old, as users name copies of their own


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
