"""Tables: csv and tsv, with a first row that names the columns."""

import csv
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ner.cells import join_names
from ner.columns import ReadOptions, Record
from ner.formats.text import ADVICE, refuse_twice, unreadable
from transformer_trial.errors import TrialError, format_value

csv.field_size_limit(sys.maxsize)  # else a cell of 128 KiB is an error

DELIMITERS = {",": "commas", "\t": "TABs", ";": "semicolons", "|": "pipes"}


def read_table(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the rows of a table. Its first row tells what separates the cells, where no setting does."""
    first = next(lines, "")
    delimiter = options.delimiter or _find_delimiter(first, options)
    try:
        rows = csv.reader(itertools.chain([first] if first else [], lines), delimiter=delimiter, strict=True)
    except (TypeError, ValueError):
        found = f"{path}: found {options.names.delimiter}: {delimiter!r}"
        raise TrialError(f"{found}; accepted is one character that separates cells, such as ';'.") from None
    header: list[str] | None = None
    while True:
        place = f"{path}, line {rows.line_num + 1}"
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
                raise TrialError(
                    f"{place}: {found}. Write it so, or name another character by {options.names.delimiter}."
                )
            if not options.needs_tags and options.text_column is None and not options.count_column_names(header):
                advice = f"Name the column of the words by {options.names.text_column}, or write a first row of names."
                raise TrialError(
                    f"{place}: found {join_names(header)}, none of them a usual name of a column. {advice}"
                )
        elif len(cells) != len(header):
            found = f"found {len(cells)} cells, but the header names {len(header)} columns: {join_names(header)}"
            raise TrialError(f"{place}: {found}. {ADVICE['csv']}")
        else:
            yield Record(place, dict(zip(header, cells)))


def _find_delimiter(first: str, options: ReadOptions) -> str:
    """The character that parts the first row into most of the names that columns usually have, or into most cells."""
    usual = "\t" if options.file_format == "tsv" else ","

    def rate(delimiter: str) -> tuple[int, bool, int]:
        cells = next(csv.reader([first.replace("\r", " ")], delimiter=delimiter), [])
        return options.count_column_names(cells), delimiter == usual and len(cells) > 1, len(cells)

    return max([usual, *DELIMITERS], key=rate)
