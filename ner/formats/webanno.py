"""WebAnno TSV 3, as INCEpTION exports it: a word on each line, a column for each feature of each layer."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ner.columns import ReadOptions, Record
from transformer_trial.errors import TrialError

BEGIN = "#FORMAT=WebAnno TSV 3"


def read_webanno(path: Path, lines: Iterator[str], options: ReadOptions) -> Iterator[Record]:
    """Read the layer of named entities, else the first layer of spans, of which the feature `value`, else the first."""
    features: list[tuple[str, str]] = []  # layer and name of each column's feature
    words: dict[str, tuple[str, str, str]] = {}  # by place: the word, its tag, and which entity it belongs to
    column = 0
    for number, line in enumerate(itertools.chain(lines, [""]), start=1):
        line, place = line.rstrip("\r\n"), f"{path}, line {number}"
        if line.startswith("#T_"):
            kind, _, layer = line.partition("=")
            layer, *names = layer.split("|")
            features += [(layer if kind == "#T_SP" else "", name) for name in names or [""]]
        elif not line.strip():
            if words:
                yield _sentence(words, f"{path}")
            words = {}
        elif not line.startswith("#"):
            cells = line.split("\t")
            column = column or 3 + _choose_feature(f"{path}", features)
            if len(cells) < 3 + len(features):
                raise TrialError(f"{place}: found {len(cells)} columns, but the head names {3 + len(features)}.")
            if "." not in cells[0]:  # 1-2.1 is a part of a word
                value = re.split(r"(?<!\\)\|", cells[column])[0]  # the first of several on top of each other
                kind, identity = re.fullmatch(r"(.*?)(\[\d+\])?", value).group(1, 2)  # type: ignore[union-attr]
                words[place] = (cells[2], kind.replace("\\", ""), identity or place)


def _choose_feature(path: str, features: list[tuple[str, str]]) -> int:
    layers = [layer for layer, _ in features if layer]
    if not layers:
        raise TrialError(f"{path}: the head names no layer of spans (#T_SP=...). Export one with named entities.")
    chosen = next((layer for layer in layers if "NamedEntity" in layer), layers[0])
    names = {name: number for number, (layer, name) in reversed([*enumerate(features)]) if layer == chosen}
    return names.get("value", min(names.values()))


def _sentence(words: dict[str, tuple[str, str, str]], document: str) -> Record:
    tags, before = list[str](), ("", "")
    for _, kind, identity in words.values():
        prefix = "I-" if (kind, identity) == before else "B-"
        tags.append("O" if kind == "_" else prefix + kind)
        before = (kind, identity)
    places = list(words)
    return Record(places[0], {"tokens": [word for word, *_ in words.values()], "tags": tags}, places, document)
