"""Files and folders are written whole: what a failure or a kill leaves is the old one or the new one."""

import functools
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import watch

from transformer_trial import files
from transformer_trial.files import replacing, restore_old


def write(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        path.mkdir()
        path /= "deep.txt"
    path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """The texts of the files and folders in a folder, by name."""
    return {path.name: (path / "deep.txt" if path.is_dir() else path).read_text() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_new_one_takes_the_place_of_what_is_there(tmp_path: Path, kind: str) -> None:
    for text in ("first", "second", "third"):
        write(tmp_path / "it.new", kind, "half of what a killed process was writing")
        with replacing(tmp_path / "it") as new:
            assert not new.exists()
            write(new, kind, text)
        assert contents(tmp_path) == {"it": text}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_one(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it"
    write(path, kind, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as new:
        write(new, kind, "half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"it": "old"}
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # and writes nothing
    assert contents(tmp_path) == {"it": "old"}

    def fail(self: Path, target: Path) -> None:
        if self.name == "it.new":
            raise PermissionError
        os.replace(self, target)

    for method in ("rename", "replace"):
        monkeypatch.setattr(Path, method, fail)
    with pytest.raises(PermissionError), replacing(path) as new:
        write(new, kind, "new")
    assert contents(tmp_path) == {"it": "old"}


def test_only_the_name_itself_is_replaced(tmp_path: Path) -> None:
    """A file of the user's that is called old stays, and a link to a folder is not followed."""
    write(tmp_path / "it.old", "file", "precious")
    write(tmp_path / "elsewhere", "folder", "precious, too")
    (tmp_path / "it").symlink_to("elsewhere")
    with replacing(tmp_path / "it") as new:
        write(new, "folder", "new")
    restore_old(tmp_path / "it")
    assert contents(tmp_path) == {"it": "new", "it.old": "precious", "elsewhere": "precious, too"}


@pytest.mark.parametrize(
    ("killed_at", "left", "restored"),
    [
        ("write_text 1", ["it", "it.new"], "old"),
        ("_put_in_place 1", ["it", "it.new"], "old"),
        ("rename 2", ["it.new", "it.replaced"], "old"),  # between the two renames
        ("_remove 3", ["it", "it.replaced"], "new"),
    ],
)
def test_a_kill_leaves_one_of_the_two(tmp_path: Path, killed_at: str, left: list[str], restored: str) -> None:
    calls = Counter[str]()

    def count(name: str, *_: Any) -> None:
        calls[name] += 1
        if f"{name} {calls[name]}" == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    path = tmp_path / "it"
    write(path, "folder", "old")
    child = os.fork()
    if child == 0:
        for owner, name in ((files, "_put_in_place"), (files, "_remove"), (Path, "rename"), (Path, "write_text")):
            watch(owner, name, pytest.MonkeyPatch(), first=functools.partial(count, name))
        with replacing(path) as new:
            write(new, "folder", "new")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == left
    for _ in range(2):
        restore_old(path)
        assert (path / "deep.txt").read_text() == restored
    with replacing(path) as new:  # the next run, which finds what the kill left
        write(new, "folder", "next")
    assert contents(tmp_path) == {"it": "next"}
