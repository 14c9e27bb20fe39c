"""Open files, packed or plain, as lines of text in their encoding; and what the readers of all formats share."""

import bz2
import codecs
import gzip
import io
import itertools
import logging
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import charset_normalizer
import pyarrow

from ner.cells import TAGGED_LINE
from ner.config import ReadOptions
from transformer_trial.errors import TrialError, reason_of

logger = logging.getLogger(__name__)

STANDARD_INPUT = Path("standard input")  # stands for it, in messages too

PACKED = re.compile(r"(?i)\.(gz|bz2|xz|zst)$")
OPENERS: dict[str, Any] = {
    "gz": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    "zst": lambda path: pyarrow.input_stream(str(path), compression="zstd"),
}
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

ENCODINGS = ["cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]  # that people's files are in

ADVICE = {
    "json": "Write each row as a JSON object (json.dumps) on a line of its own.",
    "csv": "Write it with csv.writer or DataFrame.to_csv, which put quotes where they are needed.",
    "parquet": "Write it anew, with DataFrame.to_parquet, say.",
}


def open_binary(path: Path) -> Any:
    if path == STANDARD_INPUT:
        return open(0, "rb", closefd=False)
    packed = PACKED.search(path.name)
    return OPENERS[packed[1].lower()](path) if packed else path.open("rb")


def read_lines(path: Path, options: ReadOptions) -> Iterator[str]:
    """Yield the lines with their ends. Only line feeds end lines: a word may hold any other separator of Unicode."""
    with open_binary(path) as opened, io.BufferedReader(opened) as file:
        start = file.peek(3)[:3]
        of_mark = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
        encoding = options.encoding if options.encoding not in (None, "auto") else of_mark
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(file, encoding, newline="\n"), start=1):
                if "\0" in line:
                    advice = f"If it is text, name its encoding by {options.setting('encoding')}: utf-16-le, say."
                    raise TrialError(f"{path}, line {number}: found a zero byte; accepted is text. {advice}")
                yield line
        except UnicodeError as error:
            raise TrialError(_explain_encoding(path, str(encoding), options, error)) from None
        except LookupError:
            accepted = "one that Python knows, such as utf-8, utf-16, cp1252 or gb18030"
            found = f"{path}: found {options.setting('encoding')}: {encoding}"
            raise TrialError(f"{found}; accepted is {accepted}.") from None


def _explain_encoding(path: Path, encoding: str, options: ReadOptions, error: UnicodeError) -> str:
    """Say where a file is not of its encoding, and which encodings would read all of that."""
    setting, bad = options.setting("encoding"), []
    if path != STANDARD_INPUT and not re.match(r"(?i)utf.?(16|32)", encoding):  # whose lines bytes do not tell
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode(encoding)
                except UnicodeDecodeError as problem:
                    bad.append((number, line, problem.start))
    if not bad:
        return f"{path}: is no text in {encoding} ({error}). Name its encoding by {setting}."
    number, line, start = bad[0]
    sample = b"".join(line for _, line, _ in bad)[: 1 << 16]
    others = charset_normalizer.from_bytes(sample, cp_isolation=ENCODINGS)
    # Of several that read the same, the most usual one.
    names = [min(m.could_be_from_charset, key=[*ENCODINGS, m.encoding].index) for m in others][:3]
    looks = [f"{name} reads {line.decode(name, 'replace').strip()[:40]!r}" for name in names]
    found = f"{path}, line {number}: found the byte 0x{line[start]:02x}, which is not {encoding}"
    advice = f"If it is no text, its ending or {options.setting('file_format')} is wrong."
    if looks:
        advice = f"Name the encoding that makes sense by {setting}: {'; '.join(looks)}."
    others_too = f" ({len(bad):,} such lines)" if len(bad) > 1 else ""
    return f"{found}{others_too}; accepted is text in UTF-8. {advice}"


def is_plain_text(path: Path, options: ReadOptions, num_lines: int) -> bool:
    """Tell whether a .txt file is text, by its first lines. CoNLL columns have a TAB in each, or tags in most."""
    if not PACKED.sub("", path.name.lower()).endswith(".txt"):
        return False
    lines = (line.rstrip() for line in read_lines(path, options))
    words = (line for line in lines if line and not line.startswith(("#", "-DOCSTART-")))
    first = list(itertools.islice(words, num_lines))
    has_tabs = bool(first) and all("\t" in line for line in first)
    is_text = not has_tabs and 2 * sum(bool(TAGGED_LINE.search(line)) for line in first) <= len(first)
    kind = "text, a sentence a line" if is_text else "CoNLL columns"
    logger.info("%s looks like %s; %s says otherwise.", path, kind, options.setting("file_format"))
    return is_text


def unreadable(place: str, kind: str, error: Any) -> TrialError:
    reason = reason_of(error)
    return TrialError(f"{place}: not readable as {kind}: {reason}. {ADVICE[kind]}")


def refuse_twice(place: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrialError(f"{place}: the column {twice[0]!r} stands there twice; give each column a name of its own.")
