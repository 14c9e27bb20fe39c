"""Rows: csv, json and parquet, and what annotation tools export in them."""

import contextlib
import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from ner.cells import join_names
from ner.columns import Record, count_column_names
from ner.config import ReadOptions
from ner.formats.text import ADVICE, open_binary, refuse_twice, unreadable
from transformer_trial.errors import TrialError, format_value

csv.field_size_limit(sys.maxsize)  # else a cell of 128 KiB is an error

DELIMITERS = {",": "commas", "\t": "TABs", ";": "semicolons", "|": "pipes"}
JSON_BLANKS = re.compile(r"[ \t\r\n]*")


def read_table(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the rows of a table. Its first row tells what separates the cells, where no setting does."""
    first, num_skipped = next(lines, ""), 0
    if named := re.fullmatch(r'"?sep=(.)"?\s*', first):  # what Excel reads, and some write for it
        first, num_skipped, options = next(lines, ""), 1, options.model_copy(update={"delimiter": named[1]})
    usual = "\t" if options.file_format == "tsv" else ","

    def rate(delimiter: str) -> tuple[int, bool, int]:
        """How many of the cells are usual names, whether it is the usual delimiter, and how many cells there are."""
        cells = next(csv.reader([first.replace("\r", " ")], delimiter=delimiter), [])
        return count_column_names(cells, options), delimiter == usual and len(cells) > 1, len(cells)

    delimiter = options.delimiter or max([usual, *DELIMITERS], key=rate)
    try:
        rows = csv.reader(itertools.chain([first] if first else [], lines), delimiter=delimiter, strict=True)
    except (TypeError, ValueError):
        found = f"{path}: found {options.setting('delimiter')}: {delimiter!r}"
        raise TrialError(f"{found}; accepted is one character that separates cells, such as ';'.") from None
    header: list[str] | None = None
    while True:
        place = f"{path}, line {rows.line_num + 1 + num_skipped}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise unreadable(place, "csv", f"{error} in the row that begins here") from None
        if cells is None:
            return
        if not cells:
            continue  # a blank line
        if header is None:
            header = cells
            refuse_twice(path, header)
            if len(header) == 1 and (options.needs_tags or re.search("[,;|\t]", header[0])):
                given = DELIMITERS.get(delimiter, repr(delimiter))
                found = f"found one column, {format_value('', header[0])}; accepted are cells with {given} between them"
                advice = f"Write it so, or name another character by {options.setting('delimiter')}."
                raise TrialError(f"{place}: {found}. {advice}")
            if not options.needs_tags and options.text_column_name is None and not count_column_names(header, options):
                found = f"found {join_names(header)}, none of them a usual name of a column"
                setting = options.setting("text_column_name")
                advice = f"Name the column of the words by {setting}, or write a first row of names."
                raise TrialError(f"{place}: {found}. {advice}")
        elif len(cells) != len(header):
            found = f"found {len(cells)} cells, but the header names {len(header)} columns: {join_names(header)}"
            raise TrialError(f"{place}: {found}. {ADVICE['csv']}")
        else:
            yield Record(place, dict(zip(header, cells)))


def read_parquet(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    number = 0
    try:
        with open_binary(path) as file:
            table = parquet.ParquetFile(_seekable(file))
            refuse_twice(path, table.schema_arrow.names)
            for batch in table.iter_batches(1000):
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", unify(cells))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise unreadable(f"{path}", "parquet", error) from None


def _seekable(file: Any) -> Any:
    """The file, or, of one that is packed as zst, what it holds."""
    return file if file.seekable() else io.BytesIO(file.read())


def class_names(path: Path, column: str) -> tuple[str, ...]:
    """Return what the numbers of a parquet file's column stand for, if the datasets library wrote it there."""
    with open_binary(path) as file:
        schema = parquet.read_schema(_seekable(file))
    try:
        features = datasets.Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    except Exception as error:  # whatever its json holds
        raise unreadable(f"{path}", "parquet", f"what it says of its columns is damaged: {error}") from None
    return names_of_feature(features.get(column))


def names_of_feature(feature: Any) -> tuple[str, ...]:
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else ()


def read_json(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read JSON objects, one on each line; or, if the first line is none, one list or one sequence of them."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    numbered = enumerate(lines, start=1)
    start, first = number, _ = next((item for item in numbered if item[1].strip()), (1, ""))
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = decoder.decode(first.strip())
    is_row = isinstance(value, dict) or (isinstance(value, list) and [*map(type, value)] == [str, dict])
    try:
        if is_row:
            for number, line in itertools.chain([(start, first)], numbered):
                if line.strip():
                    start = number
                    yield from _records(f"{path}, line {number}", decoder.decode(line.strip()))
            return
        text = first + "".join(line for _, line in numbered)
        if text.lstrip().startswith("["):
            for row, value in enumerate(decoder.decode(text), start=1):
                yield from _records(f"{path}, row {row}", value)
            return
        position = JSON_BLANKS.match(text).end()  # type: ignore[union-attr]
        while position < len(text):
            value, end = decoder.raw_decode(text, position)
            yield from _records(f"{path}, line {number}", value)
            end = JSON_BLANKS.match(text, end).end()  # type: ignore[union-attr]
            number += text.count("\n", position, end)
            position = end
    except TrialError:
        raise
    except (ValueError, RecursionError) as error:
        reason: Any = "lists within lists without end" if isinstance(error, RecursionError) else error
        if isinstance(error, json.JSONDecodeError):
            reason, number = f"{error.msg} at character {error.colno}", start + error.lineno - 1
            rest = error.doc[error.pos :][:30]
            reason += f", where there is {format_value('', rest)}" if rest.strip() else ""
        raise unreadable(f"{path}, line {number}", "json", reason) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(cells := dict(pairs)) < len(pairs):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return cells


def _records(place: str, value: Any) -> Iterator[Record]:
    if isinstance(value, dict) and "classes" in value and isinstance(value.get("annotations"), list):
        for number, row in enumerate(value["annotations"], start=1):  # of an annotator for spaCy
            if row is not None:  # a text that was passed over
                yield from _records(f"{place}, annotation {number}", row)
        return
    match value:
        case [str(text), {"entities": list(entities)}]:  # spaCy's training data
            value = {"text": text, "entities": entities}
    if not isinstance(value, dict):
        raise TrialError(f"{place}: found {format_value('', value)}; accepted is an object. {ADVICE['json']}")
    yield Record(place, unify(value))


def unify(cells: dict[str, Any]) -> dict[str, Any]:
    """The row of an annotation tool's export as columns, its entities among them; any other row as it is."""
    data, annotations = cells.get("data"), cells.get("annotations")
    if isinstance(data, dict) and isinstance(annotations, list):  # Label Studio, with the work of each annotator
        done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        results = [result for annotation in done[:1] for result in annotation.get("result", [])]
        spans = [result["value"] for result in results if result.get("type") in ("labels", "hypertextlabels")]
        return {**data, "entities": spans, "answer": "accept" if done else "ignore"}
    if isinstance(data, str) and "text" not in cells:  # doccano 1.0
        cells = {"text": data, **{name: cell for name, cell in cells.items() if name != "data"}}
    if isinstance(annotations, list) and "entities" not in cells:  # doccano 0
        cells = {**cells, "entities": annotations}
    return cells
