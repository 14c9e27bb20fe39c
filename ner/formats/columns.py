"""CoNLL columns and CoNLL-U: a word on each line, an empty line between sentences."""

import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ner.cells import TAGGED_LINE
from ner.columns import Record, count_column_names
from ner.config import ReadOptions
from ner.formats.text import refuse_twice
from transformer_trial.errors import TrialError, format_value

CONLLU_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
WORD_RANGE = re.compile(r"\d+[-.]\d+")
TAG_IN_MISC = re.compile(r"(?:^|[|\t])(?:Name|NER|ner|NE)=([^|\s]+)")
NUM_PEEKED_LINES = 2000

logger = logging.getLogger(__name__)


def read_columns(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read CoNLL columns, separated by TABs, or by spaces if the first line has no TAB.

    Sentences end at blank lines and at -DOCSTART-, which begins a document, as "# newdoc" does. Of CoNLL-U, ranges
    (1-2) and empty nodes (1.1) are not words, and tags may stand in MISC, as Name=B-PER. A comment
    "# global.columns = ..." can name the columns; otherwise they are called by their number from 0.
    """
    names, has_misc_tags = list[str](), False
    if options.file_format == "conllu":
        names, first = list(CONLLU_COLUMNS), list(itertools.islice(lines, NUM_PEEKED_LINES))
        has_misc_tags = options.label_column_name is None and any(map(TAG_IN_MISC.search, first))
        lines = itertools.chain(first, lines)
    words: dict[str, list[str | None]] = {}  # by place
    last_cells: set[str] = set()
    separator, doubtful, document, num_documents = "", list[str](), "", 0
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        line, place = line.rstrip("\r\n"), f"{path}, line {number}"
        if "\r" in line:
            raise TrialError(f"{place}: found a carriage return within the line; end lines with \\n.")
        tabs = (separator or line).count("\t") > 0
        line = line if tabs and line.strip(" \t") else line.strip(" \t")
        begins_document = line.startswith("-DOCSTART-") or (not words and re.match(r"# *newdoc\b", line))
        if not line or begins_document:
            if words:
                yield _sentence(words, names, options, document, has_misc_tags=has_misc_tags)
                words = {}
            if begins_document:
                num_documents += 1
                document = line.partition("=")[2].strip() if line[0] == "#" else ""
                document = document or f"{path}, document {num_documents}"
            continue
        cells = line.split("\t") if tabs else re.split(" +", line)
        if line.startswith("#") and not words and _is_comment(line, cells, names, last_cells, tabs=tabs):
            if match := re.match(r"# *global\.columns *=(.*)", line):
                names = match[1].split()
                refuse_twice(path, names)
            elif len(cells) == len(names) and "=" not in line:
                doubtful.append(place)
            continue
        if not names and count_column_names(cells, options) > 1:
            raise TrialError(
                f"{place}: found the columns' names, {format_value('', line)}; accepted are words and tags. Remove the "
                f'line, or write it as a comment, "# global.columns = {" ".join(cells)[:60]}"; or, of a table with the '
                f"sentence's id in a column, say {options.setting('file_format')}: tsv."
            )
        separator = "\t" if tabs else " "
        names = names or [str(i) for i in range(len(cells))]
        if len(cells) != len(names) or len(cells) < 1 + options.needs_tags or (not tabs and "\t" in line):
            raise TrialError(f"{place}: {_explain_cells(line, cells, names, options, tabs=tabs)}")
        if names[0] == "ID" and WORD_RANGE.fullmatch(cells[0]):
            continue
        if not tabs:
            last_cells.add(cells[-1])
        words[place] = [cell if cell.strip(" ") else None for cell in cells]
    if doubtful:
        others = f", as are {len(doubtful) - 1} lines like it" if len(doubtful) > 1 else ""
        logger.warning("%s: taken as a comment%s.", doubtful[0], others)


def _is_comment(line: str, cells: list[str], names: list[str], last_cells: set[str], *, tabs: bool) -> bool:
    """Tell whether a line that begins with #, before a sentence, is a comment: "#" and "#tag" can be words.

    Comments hold a space. Where TABs separate columns they hold no TAB, or are no row of the table, as GermEval's; else
    they do not end as lines of words do.
    """
    if names[:1] == ["ID"] or re.match(r"# \S+ = ", line):
        return True
    if line == "#":
        return not names
    is_tagged = any(TAGGED_LINE.search(f" {cell}") for cell in cells)
    if tabs and "\t" in line:
        return cells[0] == "#" and not is_tagged and len(cells) != len(names) and len(cells) > 2
    if tabs:
        return " " in line
    alike = cells[-1] in last_cells or is_tagged
    is_word = TAGGED_LINE.search(line) or (alike and len(cells) == len(names))
    return line[1] == " " and not is_word


def _explain_cells(line: str, cells: list[str], names: list[str], options: ReadOptions, *, tabs: bool) -> str:
    conllu = options.file_format == "conllu"
    others = ' Name others in a first line such as "# global.columns = ID FORM NER".' if conllu else ""
    return (
        f"found {len(cells)} columns ({format_value('', line)}) where {max(len(names), 1 + options.needs_tags)} are "
        f"expected, separated by {'TABs' if tabs else 'spaces'} as in the first line.{others} Give every word all its "
        "columns, and write a blank line between sentences."
    )


def _sentence(
    words: dict[str, list[str | None]], names: list[str], options: ReadOptions, document: str, *, has_misc_tags: bool
) -> Record:
    places, columns = list(words), [list(cells) for cells in zip(*words.values())]
    if str(columns[0][0]).startswith("1"):
        count = [str(cell) for cell in columns[0] if not WORD_RANGE.fullmatch(str(cell))]
        if 1 < len(count) < len(places) and count == [str(i + 1) for i in range(len(count))]:
            found = "found ranges such as 1-2 in a column that counts the words, as CoNLL-U has them"
            raise TrialError(f"{places[0]}: {found}; say {options.setting('file_format')}: conllu.")
    cells = dict(zip(names, columns))
    if has_misc_tags:
        found_tags = (TAG_IN_MISC.search(str(cell)) for cell in cells["MISC"])
        cells["ner"] = [match[1] if match else "O" for match in found_tags]
    return Record(places[0], cells, places, document)
