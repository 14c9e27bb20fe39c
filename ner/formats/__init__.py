"""Read the files that people keep tagged words in: each record knows its file and line.

The datasets library's readers of csv and json guess types, pad short rows and know no line numbers. Its reader of CoNLL
columns, in version 5 only, pads and cuts lines silently. So none of them is used here.
"""

import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ner.columns import Record, count_column_names
from ner.config import FORMAT_NAMES, ReadOptions
from ner.formats.columns import read_columns
from ner.formats.rows import read_json, read_parquet, read_table
from ner.formats.text import PACKED, read_lines
from ner.formats.tools import BEGIN_WEBANNO, read_brat, read_spacy, read_webanno
from transformer_trial.errors import TrialError

FILE_FORMATS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".csv": "csv",
    ".tsv": "",  # a table, CoNLL columns or WebAnno's: its first line tells
    ".parquet": "parquet",
    ".conllu": "conllu",
    ".ann": "brat",
    ".spacy": "spacy",
    **dict.fromkeys((".conll", ".txt", ".bio", ".iob", ".iob2", ".bmes", ".tags"), "conll"),
    **dict.fromkeys((".train", ".dev", ".test", ".testa", ".testb"), "conll"),
}
"""The format of each ending, in upper or lower case, before that of a packed file."""


def read_records(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Read a file, plain or packed. Raise a TrialError where it is not of its format."""
    kind = options.file_format or format_of(path, options.setting("file_format"))
    lines: Iterator[str] = read_lines(path, options)  # which opens the file at the first one, where a reader wants any
    try:
        if kind in ("", "conll"):
            first = next(lines, "")
            if first.startswith(BEGIN_WEBANNO):
                kind = "webanno"
            elif not kind:
                kind = "tsv" if count_column_names(first.rstrip("\r\n").split("\t"), options) else "conll"
            lines = itertools.chain([first] if first else [], lines)
        yield from READERS[kind](path, lines, options.model_copy(update={"file_format": kind}))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None)
        advice = "Check its owner and permissions." if reason else "Is it whole? Pack it anew."
        raise TrialError(f"{path}: cannot be read: {reason or error}. {advice}") from None


def _read_text(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        yield Record(f"{path}, line {number}", {"text": line.rstrip("\r\n")})


READERS: dict[str, Callable[[Path, Iterator[str], ReadOptions], Iterator[Record]]] = {
    **dict.fromkeys(("json", "jsonl"), read_json),
    **dict.fromkeys(("csv", "tsv"), read_table),
    **dict.fromkeys(("conll", "conllu"), read_columns),
    **{"webanno": read_webanno, "text": _read_text, "parquet": read_parquet, "brat": read_brat, "spacy": read_spacy},
}


def format_of(path: Path, setting: str = "data.file_format") -> str:
    """Return the format of the file's ending, or "" where its first line decides; `setting` could say more."""
    name = PACKED.sub("", path.name.lower())
    for ending, file_format in FILE_FORMATS.items():
        if name.endswith(ending):
            return file_format
    found = f"ends in {Path(name).suffix!r}" if Path(name).suffix else "has no ending"
    raise TrialError(
        f"{path}: {found}; accepted are {', '.join(FILE_FORMATS)}, each with or without .gz, .bz2, .xz or .zst. Or say "
        f"what it is with {setting}: one of {', '.join(FORMAT_NAMES)}."
    )


def list_folder(folder: Path, setting: str) -> Sequence[Path]:
    """The files of a folder in the order of their names, all of one format: for brat those that end in .ann."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if {"state.json", "dataset_dict.json"} & {path.name for path in files}:
        advice = "Name it by data.dataset_name, with the files null."
        raise TrialError(f"{setting}: {folder} is a data set that the datasets library saved. {advice}")
    if annotations := [path for path in files if path.suffix == ".ann"]:
        return annotations
    known = [path for path in files if PACKED.sub("", path.name.lower()).endswith((*FILE_FORMATS,))]
    kinds = {format_of(path, setting): path.name for path in known}
    if len(kinds) > 1:
        examples = ", ".join(kinds.values())
        kind = f"{folder}/*{Path(next(iter(kinds.values()))).suffix}"
        raise TrialError(f"{folder}: holds files of different formats, such as {examples}. Name one kind: {kind}.")
    return known
