"""Rows: json and parquet, and what annotation tools export in them."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from ner.columns import ReadOptions, Record
from ner.formats.text import ADVICE, open_binary, refuse_twice, unreadable
from transformer_trial.errors import TrialError, format_value

JSON_BLANKS = re.compile(r"[ \t\r\n]*")


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
    numbered = ((number, line) for number, line in enumerate(lines, start=1))
    start, first = next(((number, line) for number, line in numbered if line.strip()), (1, ""))
    number = start
    try:
        if _is_row(first, decoder):
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
        raise unreadable(f"{path}, line {number}", "json", reason) from None


def _is_row(line: str, decoder: json.JSONDecoder) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        value = decoder.decode(line.strip())
        return isinstance(value, dict) or (isinstance(value, list) and [*map(type, value)] == [str, dict])
    return False


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
