"""The origins of sentences: files, folders of them, rows of the datasets library, and rows that a loader yields."""

import glob
import hashlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

import ner.formats
from ner.cells import join_names
from ner.columns import Record
from ner.config import ReadOptions
from ner.formats.rows import class_names, names_of_feature
from transformer_trial.errors import TrialError, format_value, reason_of

HUB = "hf://"  # what begins the name of a data set on the Hugging Face hub
NUM_FIRST = 100  # records that tell which columns there are


@dataclass(frozen=True)
class Source:
    """The origin of a split: files, rows that the datasets library has loaded, or standard input."""

    name: str  # in messages
    options: ReadOptions  # how to read it
    records: Callable[[], Iterator[Record]]  # returns the records from the beginning
    fingerprint: Callable[[], str] = str  # returns a text that changes when the contents change, or "" if none does
    signature: Callable[[], Any] = lambda: None  # changes where `fingerprint` may have changed, and costs nothing
    label_names: Callable[[str], tuple[str, ...]] = lambda column: ()  # what a column's numbers stand for, if known

    def first_records(self) -> list[Record]:
        """Read the records that show which columns there are. Raise a TrialError if there is none."""
        first = list(itertools.islice(self.records(), NUM_FIRST))
        if not first:
            raise TrialError(f"{self.name}: has no rows. Give at least one.")
        return first


def find_files(key: str, pattern: str) -> list[Path]:
    """Find the files that a path, a folder or a glob such as data/*.conll names, in the order of their names."""
    whole = Path(os.path.expanduser(pattern))  # which leaves ~nobody as it is, where Path.expanduser raises an error
    # Not `whole.exists`: without permission it raises an error.
    paths = [whole] if os.path.exists(whole) else [Path(name) for name in sorted(glob.glob(str(whole), recursive=True))]
    if os.path.isdir(whole):
        paths = [*ner.formats.list_folder(whole, key)]
    for path in paths or [whole]:
        if not os.path.isfile(path):
            exists = "is no file" if os.path.exists(path) else "does not exist, or lies where this user may not look"
            what = "is a folder without files of a known format" if os.path.isdir(path) else exists
            looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
            advice = "Give a file, a folder, or a glob such as data/*.json"
            on_cluster = (
                "on a cluster, copy it into the folder that is uploaded, mount its disk, or take a hub data set"
            )
            raise TrialError(f"{key}: {path} {what}{looked}. {advice}; {on_cluster}.")
    return paths


def source_of_files(key: str, pattern: str, options: ReadOptions) -> Source:
    """Make a source of the files that a path or a glob names. `key` is the setting that named them."""
    paths = find_files(key, pattern)

    def records() -> Iterator[Record]:
        for path in paths:
            has_rows = False
            for record in ner.formats.read_records(path, options):
                has_rows = True
                yield record
            if not has_rows:
                raise TrialError(f"{path}: has no rows. Give a file with at least one.")

    def label_names(column: str) -> tuple[str, ...]:
        tables = [path for path in paths if (options.file_format or ner.formats.format_of(path)) == "parquet"]
        return agree({str(path): class_names(path, column) for path in tables}, options)

    def signature() -> Any:
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]

    return Source(pattern, options, records, lambda: _hash_files(key, paths, repr(options)), signature, label_names)


def _hash_files(key: str, paths: Sequence[Path], options: str) -> str:
    digest = hashlib.sha256(options.encode())
    for path in paths:
        digest.update(str(path).encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            advice = "Check its owner and permissions."
            raise TrialError(f"{key}: {path}: cannot be read: {error.strerror}. {advice}") from None
    return digest.hexdigest()


def source_of_rows(name: str, rows: Any, options: ReadOptions) -> Source:
    """Make a source of the rows of a split: of a `Dataset`, a list of dicts, a function that yields dicts, or a source.

    A dict of a list or a function may say under `place` where it is from. Rows of a `functools.partial` of a function
    and the paths of files are cached, until the function's module or a file changes.
    """
    if isinstance(rows, Source):
        return rows
    is_data_set = isinstance(rows, datasets.Dataset)

    def records() -> Iterator[Record]:
        for number, cells in enumerate(rows() if callable(rows) else rows, start=1):
            place = f"{name}, row {number}"
            if not isinstance(cells, Mapping):
                raise TrialError(f"{place}: found {format_value('', cells)}; accepted is a dict of columns.")
            cells = dict(cells)
            yield Record(place if is_data_set else str(cells.pop("place", place)), cells)

    def label_names(column: str) -> tuple[str, ...]:
        return names_of_feature(rows.features.get(column)) if is_data_set else ()

    def fingerprint() -> str:
        if is_data_set:
            return str(rows._fingerprint)
        paths = [Path(text) for text in getattr(rows, "args", ()) if isinstance(text, (str, Path))]
        if not paths or not all(map(os.path.isfile, paths)):
            return ""
        code = Path(inspect.getfile(rows.func)).read_text(encoding="utf-8")
        return _hash_files(name, paths, repr([code, rows.func.__qualname__, rows.keywords, options]))

    return Source(name, options, records, fingerprint, label_names=label_names)


def source_of_hub(key: str, address: str, options: ReadOptions) -> Source:
    """Make a source of `hf://NAME[:SPLIT]`, a split of a data set on the hub; of the only one where none is named."""
    name, _, split = address.removeprefix(HUB).partition(":")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:
        reason = reason_of(error.__cause__ or error) if name else "it names none"
        raise TrialError(f"{key}: cannot load {address}: {reason}. Accepted is {HUB}NAME[:SPLIT].") from error
    split = split or (next(iter(splits)) if len(splits) == 1 else "")
    if split not in splits:
        raise TrialError(f"{key}: {address}: found the splits {join_names(splits)}; name one: {HUB}{name}:SPLIT.")
    return source_of_rows(address, splits[split], options)


def agree(named: Mapping[str, tuple[str, ...]], options: ReadOptions) -> tuple[str, ...]:
    """Return what numbers stand for. Raise a TrialError if two sources disagree."""
    sources = {names: name for name, names in named.items() if names}
    if len(sources) > 1:
        different = "; ".join(f"{name} has {join_names(names)}" for names, name in list(sources.items())[:2])
        advice = f"Save all splits with the same ClassLabel, and remove {options.setting('label_list')}."
        raise TrialError(f"The numbers among the tags stand for different tags: {different}. {advice}")
    return next(iter(sources), ())
