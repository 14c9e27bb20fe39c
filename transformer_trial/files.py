"""Write a file or folder whole, so that a killed process leaves the old one or the new one. No Determined here."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let the body write a new file or folder, which then takes the place of `path`.

    A file is replaced in one step. A folder takes two renames: a kill between them leaves `{path}.old` and no `path`,
    which `restore_old` mends. If the body fails, `path` stays as it was.

    Args:
        path: File or folder, which need not exist.

    Yields:
        The path to write to, `{path}.new`. Nothing is there yet.

    Example:
        with replacing(Path("metrics.json")) as new:
            new.write_text("{}")
    """
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    _remove(new)
    try:
        yield new
        if path.is_dir():  # no rename replaces a folder that holds something
            _remove(old)
            path.rename(old)
        new.replace(path)
        _remove(old)
    finally:
        _remove(new)


def restore_old(path: Path) -> None:
    """Put the old folder back where a kill came between the two renames of `replacing`."""
    old = path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
