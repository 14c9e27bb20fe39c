"""Files of annotation tools: brat, WebAnno and INCEpTION, and spaCy where that is installed."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ner.columns import Record
from ner.config import ReadOptions
from ner.formats.text import read_lines
from transformer_trial.errors import TrialError, reason_of

BEGIN_WEBANNO = "#FORMAT=WebAnno TSV 3"


def read_webanno(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the layer of named entities, else the first layer of spans, of which the feature `value`, else the first.

    The format is WebAnno TSV 3, as INCEpTION exports it: a word on each line, a column for each feature of each layer.
    """
    features: list[tuple[str, str]] = []  # layer and name of each column's feature
    column = 0
    words: dict[str, str] = {}  # by place
    tags, before = list[str](), ("", "")  # the type of the word before, and which entity it belongs to
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        line, place = line.rstrip("\r\n"), f"{path}, line {number}"
        if line.startswith("#T_"):
            kind, _, layer = line.partition("=")
            layer, *names = layer.split("|")
            features += [(layer if kind == "#T_SP" else "", name) for name in names or [""]]
        elif not line.strip():
            if words:
                yield Record(next(iter(words)), {"tokens": [*words.values()], "tags": tags}, [*words], f"{path}")
            words, tags, before = {}, [], ("", "")
        elif not line.startswith("#"):
            cells = line.split("\t")
            if not column:
                layers = [layer for layer, _ in features if layer]
                if not layers:
                    advice = "Export one with named entities."
                    raise TrialError(f"{path}: the head names no layer of spans (#T_SP=...). {advice}")
                chosen = next((layer for layer in layers if "NamedEntity" in layer), layers[0])
                numbers = {name: i for i, (layer, name) in reversed([*enumerate(features)]) if layer == chosen}
                column = 3 + numbers.get("value", min(numbers.values()))
            if len(cells) < 3 + len(features):
                raise TrialError(f"{place}: found {len(cells)} columns, but the head names {3 + len(features)}.")
            if "." not in cells[0]:  # 1-2.1 is a part of a word
                value = re.split(r"(?<!\\)\|", cells[column])[0]  # the first of several on top of each other
                kind, identity = re.fullmatch(r"(.*?)(\[\d+\])?", value).group(1, 2)  # type: ignore[union-attr]
                kind, identity = kind.replace("\\", ""), identity or place
                prefix = "I-" if (kind, identity) == before else "B-"
                tags.append("O" if kind == "_" else prefix + kind)
                words[place], before = cells[2], (kind, identity)


def read_brat(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the entities of FILE.ann (lines such as T1, type and offsets, text), a document, and the lines of FILE.txt.

    Each of these is a sentence.
    """
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


def read_spacy(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the sentences of each document, or the whole document where it has no marks of sentences."""
    try:
        import spacy  # type: ignore[import-not-found]
        from spacy.tokens import DocBin  # type: ignore[import-not-found]
    except ImportError:
        advice = "Install it (pip install spacy), or write json rows of words and tags"
        raise TrialError(f"{path}: a .spacy file needs spaCy to be read. {advice}.") from None
    try:
        docs = [*DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab)]
    except Exception as error:  # whatever damaged bytes lead to
        reason = reason_of(error)
        raise TrialError(f"{path}: not readable as .spacy: {reason}. Write it anew by DocBin.to_disk.") from error
    for number, doc in enumerate(docs, start=1):
        for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc]:
            words = [token for token in sentence if not token.is_space]
            tags = [t.ent_iob_ if t.ent_iob_ in ("", "O") else f"{t.ent_iob_}-{t.ent_type_}" for t in words]
            cells = {"tokens": [token.text for token in words], "tags": [tag or "O" for tag in tags]}
            if words:
                yield Record(f"{path}, document {number}", cells, (), f"{path}, document {number}")
