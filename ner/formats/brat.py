"""brat: a text, FILE.txt, beside its annotations, FILE.ann. A file is a document, and each of its lines a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ner.columns import ReadOptions, Record
from ner.formats.text import read_lines
from transformer_trial.errors import TrialError


def read_brat(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the entities of FILE.ann (lines such as T1, type and offsets, text) and the lines of FILE.txt."""
    text_file = path.with_suffix(".txt")
    if not text_file.is_file():
        raise TrialError(f"{path}: there is no {text_file.name} beside it. Give both files of each document.")
    entities: list[list[Any]] = []  # start, end, type and place
    for number, line in enumerate(lines, start=1):
        if line.startswith("T"):
            _, _, rest = line.partition("\t")
            kind, _, offsets = rest.partition("\t")[0].partition(" ")
            numbers = offsets.replace(";", " ").split()  # one of several pieces is taken from its begin to its end
            if len(numbers) < 2 or not all(map(str.isdigit, numbers)):
                accepted = "accepted is T1, a TAB, type, start and end, a TAB, text"
                raise TrialError(f"{path}, line {number}: found {line.strip()[:60]!r}; {accepted}.")
            entities.append([int(numbers[0]), int(numbers[-1]), kind])
    start = 0
    for number, line in enumerate(read_lines(text_file, options), start=1):
        end, text = start + len(line), line.rstrip("\r\n")
        of_line = [[first - start, last - start, kind] for first, last, kind in entities if start <= first < end]
        if text.strip() or of_line:
            place = f"{text_file}, line {number}"
            yield Record(place, {"text": text, "entities": of_line}, (), str(path.with_suffix("")))
        start = end
    if odd := [entity for entity in entities if entity[0] >= start]:
        raise TrialError(f"{path}: found an entity at {odd[0][0]}, beyond the {start} characters of {text_file.name}.")
