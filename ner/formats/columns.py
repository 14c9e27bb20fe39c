"""Read the files that people keep tagged words in, line by line: each record knows its file and line.

The datasets library's readers of csv and json guess types, pad short rows and know no line numbers. Its reader of CoNLL
columns, in version 5 only, pads and cuts lines silently. So none of them is used here.
"""

import contextlib
import csv
import gzip
import itertools
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from ner.cells import TAGGED_LINE, join_names
from ner.columns import ReadOptions, Record
from ner.config import FORMAT_NAMES
from transformer_trial.errors import TrialError, format_value

FILE_FORMATS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".csv": "csv",
    ".tsv": "",  # a table or CoNLL columns: its first line tells
    ".parquet": "parquet",
    ".conllu": "conllu",
    **dict.fromkeys((".conll", ".txt", ".bio", ".iob", ".iob2"), "conll"),
}
"""The format of each ending, in upper or lower case, before .gz."""

CONLLU_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")

ADVICE = {
    "json": "Write each row as a JSON object (json.dumps) on a line of its own.",
    "csv": "Write it with csv.writer or DataFrame.to_csv, which put quotes where they are needed.",
    "parquet": "Write it anew, with DataFrame.to_parquet, say.",
}

JSON_BLANKS = re.compile(r"[ \t\r\n]*")
WORD_RANGE = re.compile(r"\d+[-.]\d+")
STANDARD_INPUT = Path("standard input")  # stands for it, in messages too

logger = logging.getLogger(__name__)

csv.field_size_limit(sys.maxsize)  # else a cell of 128 KiB is an error


def read_records(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Read a file, plain or gzipped. Raise a TrialError where it is not of its format."""
    kind = options.file_format or format_of(path, options.names.file_format)
    try:
        if kind == "parquet":
            yield from _read_parquet(path)
            return
        lines = read_lines(path, options.names.file_format)
        if not kind:
            first = next(lines, "")
            kind = "tsv" if options.count_column_names(first.rstrip("\r\n").split("\t")) else "conll"
            lines = itertools.chain([first], lines)
        if kind in ("csv", "tsv"):
            yield from _read_table(path, lines, options, "," if kind == "csv" else "\t")
        elif kind == "text":
            for number, line in enumerate(lines, start=1):
                yield Record(f"{path}, line {number}", {"text": line.rstrip("\r\n")})
        elif kind in ("conll", "conllu"):
            yield from _read_columns(path, lines, options, is_conllu=kind == "conllu")
        else:
            yield from _read_json(path, lines)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None)
        advice = "Check its owner and permissions." if reason else "Is it whole? Pack it anew."
        raise TrialError(f"{path}: cannot be read: {reason or error}. {advice}") from None


def format_of(path: Path, setting: str = "data.file_format") -> str:
    """Return the format of the file's ending, or "" where its first line decides; `setting` could say more."""
    name = path.name.lower().removesuffix(".gz")
    for ending, file_format in FILE_FORMATS.items():
        if name.endswith(ending):
            return file_format
    found = f"ends in {Path(name).suffix!r}" if Path(name).suffix else "has no ending"
    raise TrialError(
        f"{path}: {found}; accepted are {', '.join(FILE_FORMATS)}, each with or without .gz. Or say what it is with "
        f"{setting}: one of {', '.join(FORMAT_NAMES)}."
    )


def read_lines(path: Path, setting: str = "data.file_format") -> Iterator[str]:
    """Yield the lines with their ends. Only line feeds end lines: a word may hold any other separator of Unicode."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                problem = "a zero byte" if "\0" in text else ""
            except UnicodeDecodeError as error:
                text, problem = "", f"the byte 0x{line[error.start]:02x}, which is not UTF-8"
            if problem:
                encoding = "utf-16" if b"\0" in line else "latin1"
                raise TrialError(
                    f"{path}, line {number}: found {problem}; accepted is text in UTF-8. If it is text, convert it, "
                    f"from {encoding}, say: iconv -f {encoding} -t utf-8 OLD > NEW. If not, its ending or {setting} is "
                    "wrong."
                )
            yield text


def _open(path: Path) -> Any:
    if path == STANDARD_INPUT:
        return open(0, "rb", closefd=False)
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with _open(path) as file:
            table = parquet.ParquetFile(file)
            _refuse_twice(path, table.schema_arrow.names)
            for batch in table.iter_batches(1000):
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", cells)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreadable(f"{path}", "parquet", error) from None


def class_names(path: Path, column: str) -> tuple[str, ...]:
    """Return what the numbers of a parquet file's column stand for, if the datasets library wrote it there."""
    with _open(path) as file:
        schema = parquet.read_schema(file)
    try:
        features = datasets.Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    except Exception as error:  # whatever its json holds
        raise _unreadable(f"{path}", "parquet", f"what it says of its columns is damaged: {error}") from None
    return names_of_feature(features.get(column))


def names_of_feature(feature: Any) -> tuple[str, ...]:
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else ()


def _unreadable(place: str, kind: str, error: Any) -> TrialError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return TrialError(f"{place}: not readable as {kind}: {reason}. {ADVICE[kind]}")


def _refuse_twice(place: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrialError(f"{place}: the column {twice[0]!r} stands there twice; give each column a name of its own.")


def _read_table(path: Path, lines: Iterator[str], options: ReadOptions, delimiter: str) -> Iterator[Record]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}, line {rows.line_num + 1}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise _unreadable(place, "csv", f"{error} in the row that begins here") from None
        if cells is None:
            return
        if not cells:
            continue  # a blank line
        if header is None:
            header = cells
            _refuse_twice(path, header)
            if len(header) == 1 and (options.needs_tags or re.search("[,;|\t]", header[0])):
                given, other = ("commas", "tsv for TABs") if delimiter == "," else ("TABs", "csv for commas")
                found = f"found one column, {format_value('', header[0])}; accepted are cells with {given} between them"
                raise TrialError(f"{place}: {found}. Write it so, or say {options.names.file_format}: {other}.")
        elif len(cells) != len(header):
            found = f"found {len(cells)} cells, but the header names {len(header)} columns: {join_names(header)}"
            raise TrialError(f"{place}: {found}. {ADVICE['csv']}")
        else:
            yield Record(place, dict(zip(header, cells)))


def _read_json(path: Path, lines: Iterator[str]) -> Iterator[Record]:
    """Read JSON objects, one on each line; or, if the first line is none, one list or one sequence of them."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    numbered = ((number, line) for number, line in enumerate(lines, start=1))
    start, first = next(((number, line) for number, line in numbered if line.strip()), (1, ""))
    number = start
    try:
        if _is_object(first, decoder):
            for number, line in itertools.chain([(start, first)], numbered):
                if line.strip():
                    start = number
                    yield _json_record(f"{path}, line {number}", decoder.decode(line.strip()))
            return
        text = first + "".join(line for _, line in numbered)
        if text.lstrip().startswith("["):
            for row, value in enumerate(decoder.decode(text), start=1):
                yield _json_record(f"{path}, row {row}", value)
            return
        position = JSON_BLANKS.match(text).end()  # type: ignore[union-attr]
        while position < len(text):
            value, end = decoder.raw_decode(text, position)
            yield _json_record(f"{path}, line {number}", value)
            end = JSON_BLANKS.match(text, end).end()  # type: ignore[union-attr]
            number += text.count("\n", position, end)
            position = end
    except TrialError:
        raise
    except (ValueError, RecursionError) as error:
        reason: Any = "lists within lists without end" if isinstance(error, RecursionError) else error
        if isinstance(error, json.JSONDecodeError):
            reason, number = f"{error.msg} at character {error.colno}", start + error.lineno - 1
        raise _unreadable(f"{path}, line {number}", "json", reason) from None


def _is_object(line: str, decoder: json.JSONDecoder) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(decoder.decode(line.strip()), dict)
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(cells := dict(pairs)) < len(pairs):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return cells


def _json_record(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise TrialError(f"{place}: found {format_value('', value)}; accepted is an object. {ADVICE['json']}")
    return Record(place, value)


def _read_columns(path: Path, lines: Iterator[str], options: ReadOptions, *, is_conllu: bool) -> Iterator[Record]:
    """Read CoNLL columns: a word on each line, columns separated by TABs, or by spaces if the first line has no TAB.

    Sentences end at blank lines and at -DOCSTART-. Of CoNLL-U, ranges (1-2) and empty nodes (1.1) are not words. A
    comment "# global.columns = ..." can name the columns; otherwise they are called by their number from 0.
    """
    names = list(CONLLU_COLUMNS) if is_conllu else []
    words: dict[str, list[str | None]] = {}  # by place
    last_cells: set[str] = set()
    separator, doubtful = "", list[str]()
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        line, place = line.rstrip("\r\n"), f"{path}, line {number}"
        if "\r" in line:
            raise TrialError(f"{place}: found a carriage return within the line; end lines with \\n.")
        tabs = (separator or line).count("\t") > 0
        line = line if tabs and line.strip(" \t") else line.strip(" \t")
        if not line or line.startswith("-DOCSTART-"):
            if words:
                yield _sentence(words, names, options)
                words = {}
            continue
        cells = line.split("\t") if tabs else re.split(" +", line)
        if line.startswith("#") and not words and _is_comment(line, cells, names, last_cells, tabs=tabs):
            if match := re.match(r"# *global\.columns *=(.*)", line):
                names = match[1].split()
                _refuse_twice(path, names)
            elif len(cells) == len(names) and "=" not in line:
                doubtful.append(place)
            continue
        if not names and options.count_column_names(cells) > 1:
            raise TrialError(
                f"{place}: found the columns' names, {format_value('', line)}; accepted are words and tags. Write them "
                f'as a comment, "# global.columns = {" ".join(cells)[:60]}", or, if it is a table, say '
                f"{options.names.file_format}: tsv."
            )
        separator = "\t" if tabs else " "
        names = names or [str(i) for i in range(len(cells))]
        expected = max(len(names), 1 + options.needs_tags)
        if len(cells) != len(names) or len(cells) < expected or (not tabs and "\t" in line):
            others = ' Name others in a first line such as "# global.columns = ID FORM NER".' if is_conllu else ""
            raise TrialError(
                f"{place}: found {len(cells)} columns ({format_value('', line)}) where {expected} are expected, "
                f"separated by {'TABs' if tabs else 'spaces'} as in the first line.{others} Give every word all its "
                "columns, and write a blank line between sentences."
            )
        if names[0] == "ID" and WORD_RANGE.fullmatch(cells[0]):
            continue
        if not tabs:
            last_cells.add(cells[-1])
        words[place] = [cell if cell.strip(" ") else None for cell in cells]
    if doubtful:
        logger.warning("%s: taken as a comment, as are %d lines like it.", doubtful[0], len(doubtful) - 1)


def _is_comment(line: str, cells: list[str], names: list[str], last_cells: set[str], *, tabs: bool) -> bool:
    """Tell whether a line that begins with #, before a sentence, is a comment: "#" and "#tag" can be words.

    Comments hold a space. Where TABs separate columns they hold no TAB; else they do not end as lines of words do.
    """
    if names[:1] == ["ID"] or re.match(r"# \S+ = ", line):
        return True
    if line == "#":
        return not names
    if tabs:
        return " " in line and "\t" not in line
    alike = cells[-1] in last_cells or any(TAGGED_LINE.search(f" {cell}") for cell in cells)
    is_word = TAGGED_LINE.search(line) or (alike and len(cells) == len(names))
    return line[1] == " " and not is_word


def _sentence(words: dict[str, list[str | None]], names: list[str], options: ReadOptions) -> Record:
    places = list(words)
    columns = [list(cells) for cells in zip(*words.values())]
    if str(columns[0][0]).startswith("1"):
        count = [str(cell) for cell in columns[0] if not WORD_RANGE.fullmatch(str(cell))]
        if 1 < len(count) < len(places) and count == [str(i + 1) for i in range(len(count))]:
            found = "found ranges such as 1-2 in a column that counts the words, as CoNLL-U has them"
            raise TrialError(f"{places[0]}: {found}; say {options.names.file_format}: conllu.")
    return Record(places[0], dict(zip(names, columns)), places)
