"""The same sentences in every format and shape are the same rows; any words that a format holds survive."""

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
from conftest import PROJECT, SAMPLE_DATA, read_lines
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ner.cells
import ner.data
import ner.formats
import ner.sentences
import ner.sources
from ner.columns import find_columns
from ner.config import InputOptions
from ner.data import read_sentences

Sentence = tuple[list[str], list[str]]
"""Words and tags."""

SENTENCES: list[Sentence] = [
    (["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]),
    (["#hashtag", "by", "Ada", "Lovelace"], ["O", "O", "B-PER", "I-PER"]),
    (["#", "is", "a", "word"], ["O", "O", "O", "O"]),
    (["#", "1"], ["B-MISC", "I-MISC"]),
    (["null", "NA", "nan", "None", "True", "007", "1e5", "-"], ["O"] * 8),
    (["don't", '"', "''", "a,b", "\\n", "``", "(", "[", "]", "{", "-LRB-", "<s>"], ["O"] * 12),
    (["Zoë", "New\u00a0York", "a\u2028b", "a\u0085b", "東京", "👩‍👩‍👧", "\u200b"], ["B-PER", "B-LOC"] + ["O"] * 5),
    (["Ada"], ["B-PER"]),
    (["in", "London", ",", "Paris"], ["O", "B-LOC", "O", "B-LOC"]),
]

NAMES = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "B-MISC", "I-MISC"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}  # fmt: skip


def rows_of(sentences: list[Sentence]) -> list[dict[str, Any]]:
    return [{"tokens": words, "ner_tags": tags} for words, tags in sentences]


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_table(header: list[str], rows: list[list[Any]], **options: Any) -> str:
    file = io.StringIO()
    csv.writer(file, **{"lineterminator": "\n", **options}).writerows([header, *rows])
    return file.getvalue()


def list_table(cell: Callable[[Any], str], **options: Any) -> Callable[[list[Sentence]], str]:
    return lambda sentences: as_table(["tokens", "ner_tags"], [list(map(cell, pair)) for pair in sentences], **options)


def word_rows(sentences: list[Sentence], *, first_only: bool = False) -> list[list[Any]]:
    numbered = [(i, k, *pair) for i, sentence in enumerate(sentences, 1) for k, pair in enumerate(zip(*sentence))]
    return [["" if first_only and k else f"Sentence: {i}", word, "NNP", tag] for i, k, word, tag in numbered]


def kaggle(*, first_only: bool = False, **options: Any) -> Callable[[list[Sentence]], str]:
    return lambda s: as_table(["Sentence #", "Word", "POS", "Tag"], word_rows(s, first_only=first_only), **options)


def kaggle_frame(sentences: list[Sentence]) -> pd.DataFrame:
    return pd.DataFrame(word_rows(sentences, first_only=True), columns=["sentence_id", "word", "pos", "label"])


def spans_of(sentence: Sentence) -> tuple[str, list[list[Any]]]:
    words, tags = sentence
    text, spans = "", list[list[Any]]()
    for word, tag in zip(words, tags):
        text += " " if text else ""
        if tag[:2] == "I-":
            spans[-1][1] = len(text) + len(word)
        elif tag != "O":
            spans.append([len(text), len(text) + len(word), tag[2:]])
        text += word
    return text, spans


def webanno(sentences: list[Sentence]) -> str:
    text = "#FORMAT=WebAnno TSV 3.2\n#T_SP=mine.Other|kind\n#T_SP=a.NamedEntity|identifier|value\n\n"
    for number, (words, tags) in enumerate(sentences, start=1):
        text += f"\n#Text={' '.join(words)}\n"
        for i, (word, tag) in enumerate(zip(words, tags), start=1):
            entity = sum(other[0] == "B" for other in tags[:i])
            value = f"*[{entity}]\t{tag[2:]}[{entity}]" if tag != "O" else "_\t_"
            text += f"{number}-{i}\t{i}-{i + 1}\t{word}\t_\t{value}\t\n"
    return text


def dict_rows(text: str, spans: list[list[Any]]) -> dict[str, Any]:
    return {"id": 1, "text": text, "entities": [dict(zip(("start", "end", "label"), span)) for span in spans]}


def to_parquet(table: pd.DataFrame | datasets.Dataset) -> bytes:
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def class_label_features(names: list[str]) -> datasets.Features:
    words, tags = datasets.List(datasets.Value("string")), datasets.List(datasets.ClassLabel(names=names))
    return datasets.Features({"tokens": words, "ner_tags": tags})


def in_cells(words: list[str]) -> bool:
    """A row of a word has no line break or TAB in it, which tell of quotes left open, and is not blank."""
    return not any(char in word for word in words for char in "\t\r\n") and all(word.strip(" ") for word in words)


def in_columns(words: list[str]) -> bool:
    """A line has one line; a cell of blanks is an empty one; -DOCSTART- begins a document, and "# x = " a comment."""
    return in_cells(words) and not words[0].startswith(("-DOCSTART-", "# "))


def between_spaces(words: list[str]) -> bool:
    """Words are separated by spaces."""
    return in_columns(words) and not any(" " in word for word in words)


def in_line(words: list[str]) -> bool:
    """Words are separated by spaces, and the whole does not look like a list or a dictionary."""
    text = " ".join(words)
    return between_spaces(words) and text[0] + text[-1] not in ("[]", "{}", "()")


def in_text(words: list[str]) -> bool:
    """Of a text with entities, words end at blanks, punctuation and ideographs."""
    return [word for word, *_ in ner.cells.split_text(" ".join(words))] == words


class Case(NamedTuple):
    ending: str
    write: Callable[[list[Sentence]], Any]
    holds: Callable[[list[str]], bool] = bool  # any words
    options: dict[str, Any] = {}
    file_format: str = ""  # that of the ending


def columns(
    layout: str = "{word}\t{tag}", holds: Callable[[list[str]], bool] = in_columns, ending: str = "conll",
    options: dict[str, Any] = {}, *, start: str = "", between: str = "\n", comment: str = "",  # noqa: B006
) -> Case:  # fmt: skip
    def write(sentences: list[Sentence]) -> str:
        blocks = [
            comment.format(number=number)
            + "".join(layout.format(word=w, tag=t, i=i, j=i + 1) + "\n" for i, (w, t) in enumerate(zip(*sentence)))
            for number, sentence in enumerate(sentences)
        ]
        return start + between.join(blocks)

    return Case(ending, write, holds, options, ending if ending == "conllu" else "conll")


BLANKS = "\t_" * 8
TAB4 = "{word}\tNNP\tB-NP\t{tag}"
COMMENTS: dict[str, Any] = dict(
    start="# newdoc = 1\n-DOCSTART-\t-X-\tO\n\n# a comment\n\n",
    comment="# sent_id = {number}\n# text of three\n", between="\n-DOCSTART- -X- O\n\n",
)  # fmt: skip

CASES = {
    "json list": Case("json", lambda s: json.dumps(rows_of(s))),
    "json list over lines": Case("json", lambda s: json.dumps(rows_of(s), indent=1, ensure_ascii=False)),
    "json objects over lines": Case("json", lambda s: "\n".join(json.dumps(r, indent=1) for r in rows_of(s))),
    "json lines": Case("json", lambda s: as_lines(rows_of(s))),
    "jsonl": Case("jsonl", lambda s: "\n" + as_lines(rows_of(s)).replace("\n", "\n\n")),
    "jsonl with BOM": Case("jsonl", lambda s: ("\ufeff" + as_lines(rows_of(s)).replace("\n", "\r\n")).strip()),
    "jsonl in UTF-16": Case("jsonl", lambda s: as_lines(rows_of(s)).encode("utf-16")),
    "jsonl, gb18030": Case("jsonl", lambda s: as_lines(rows_of(s)).encode("gb18030"), options={"encoding": "gb18030"}),
    "ndjson": Case("ndjson", lambda s: as_lines(rows_of(s)), file_format="jsonl"),
    "jsonl with numbers": Case(
        "jsonl", lambda s: as_lines([{"tokens": w, "tags": list(map(NAMES.index, t))} for w, t in s]), bool,
        {"label_list": NAMES}),
    "jsonl with lines of text": Case(
        "jsonl", lambda s: as_lines([{"text": " ".join(w), "labels": " ".join(t)} for w, t in s]), in_line),
    "jsonl, a row a word": Case(
        "jsonl", lambda s: as_lines([dict(zip(("sent_id", "word", "pos", "tag"), r)) for r in word_rows(s)]), in_cells),
    "parquet": Case("parquet", lambda s: to_parquet(pd.DataFrame(rows_of(s)))),
    "parquet with ClassLabel": Case(
        "parquet", lambda s: to_parquet(datasets.Dataset.from_list(rows_of(s), features=class_label_features(NAMES)))),
    "parquet, a row a word": Case(
        "parquet", lambda s: to_parquet(kaggle_frame(s).replace({"sentence_id": {"": np.nan}})), in_cells),
    "csv, Python text": Case("csv", list_table(str)),
    "csv, JSON text": Case("csv", list_table(json.dumps, quoting=csv.QUOTE_ALL, lineterminator="\r\n")),
    "csv, JSON text over lines": Case("csv", list_table(lambda cell: json.dumps(cell, indent=1))),
    "csv, lines of text": Case("csv", list_table(" ".join), in_line),
    "csv by pandas": Case("csv", lambda s: "\ufeff" + pd.DataFrame(rows_of(s)).to_csv()),
    "csv, other names": Case(
        "csv", lambda s: as_table(["n", "mots", "x"], [[i, w, t] for i, (w, t) in enumerate(s)]), bool,
        {"text_column_name": "mots", "label_column_name": "x"}),
    "csv, a row a word": Case("csv", kaggle(), in_cells),
    "csv, an id a sentence": Case("csv", kaggle(first_only=True), in_cells),
    "csv, a row a word, by pandas": Case(
        "csv", lambda s: kaggle_frame(s).rename(columns={"word": "mot", "label": "type"}).to_csv(), in_cells,
        {"label_column_name": "type"}),
    "csv, semicolons": Case("csv", kaggle(delimiter=";"), in_cells),
    "csv, pipes": Case("csv", list_table(json.dumps, delimiter="|")),
    "csv, a delimiter by name": Case("csv", list_table(json.dumps, delimiter="~"), options={"delimiter": "~"}),
    "tsv, Python text": Case("tsv", list_table(repr, delimiter="\t")),
    "tsv, JSON text": Case("tsv", list_table(json.dumps, delimiter="\t")),
    "tsv, lines of text": Case("tsv", list_table(" ".join, delimiter="\t"), in_line),
    "tsv, a row a word": Case("tsv", kaggle(delimiter="\t"), in_cells),
    "tsv of columns": columns(ending="tsv"),
    "two columns, TAB": columns(),
    "two columns, spaces": columns("{word} {tag}", between_spaces, "txt"),
    "four columns, TAB": columns(TAB4, ending="bio", **COMMENTS),
    "four columns, spaces": columns("{word}  NNP B-NP {tag} ", between_spaces, "iob", **COMMENTS),
    "TAB at the end": columns("{word}\t{tag}\t"),
    "lone TAB between sentences": columns(between="\t\n"),
    "blank lines, none at the end": Case(
        "conll", lambda s: columns(between="\n \n\n", start="\n\n").write(s).rstrip("\n"), in_columns),
    "CRLF and BOM": Case("conll", lambda s: "\ufeff" + columns().write(s).replace("\n", "\r\n"), in_columns),
    "global.columns": columns(TAB4, start="# global.columns = A B C D\n", options={"text_column_name": "A"}),
    "columns by number": columns(
        "{tag} B-NP {word} B-VP", between_spaces, "txt", {"text_column_name": 2, "label_column_name": "0"}),
    "plain comments among spaces": columns("{word} {tag}", between_spaces, "txt", comment="# comment\n  # of three\n"),
    "column by number from the end": columns("{word} NNP {tag} B-VP", between_spaces, "txt", {"label_column_name": -2}),
    "UNER": columns("{j}\t{word}\t{tag}\t-\t-", ending="iob2", comment="# text = x\n"),
    "count from 0": columns("{i}\t{word}\t{tag}", ending="iob2"),
    "CoNLL-U": columns(
        f"{{j}}\t{{word}}\t_\tNOUN\t_\t_\t0\tdep\t_\t{{tag}}\n{{j}}.1\tempty{BLANKS}", ending="conllu",
        start="# global.columns = ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC\n",
        comment=f"# sent_id = {{number}}\n# text = with\ta TAB\n1-2\tDamit{BLANKS}\n"),
    "CoNLL-U, other columns": columns("{j}\t{word}\t{tag}", ending="conllu", start="# global.columns = ID FORM NER\n"),
    "spans": Case("jsonl", lambda s: as_lines([dict_rows(*spans_of(pair)) for pair in s]), in_text),
    "WebAnno": Case("tsv", webanno, in_cells, file_format="webanno"),
    "spans, parquet": Case("parquet", lambda s: to_parquet(pd.DataFrame(dict_rows(*spans_of(p)) for p in s)), in_text),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
DOCUMENTATION = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(json|csv|)\n(\{.*?|\w.*?|-DOCSTART.*?)```", DOCUMENTATION, re.DOTALL)
TYPES = st.sampled_from(["PER", "ORG"])
WORDS = "doc_id,sentence_id,word,tag\n"
LEFT_OUT = [{"tokens": ["a", "b"], "ner_tags": ["O", "O"], "document_id": name} for name in (math.nan, None, "", 7)]


def write_file(path: Path, content: Any) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(PACKERS.get(path.suffix, bytes)(data))


def read_whole(pattern: Path, *, needs_tags: bool = True, **options: Any) -> list[ner.sentences.Sentence]:
    """As `read_splits` and `predict.py` read files, but past the cache."""
    config = ner.config.NERDataConfig(train_file=str(pattern), **options)
    how = ner.data.read_options(config)
    how = how if needs_tags else InputOptions.model_construct(**how.model_dump())
    source = ner.sources.source_of_files("data.train_file", str(pattern), how)
    columns = find_columns(source.first_records(), source.options, "ner")
    names = source.label_names(str(columns.label)) or config.label_list
    return list(read_sentences(source, columns, names))


def read_files(pattern: Path, **options: Any) -> list[Sentence]:
    return [(sentence.words, sentence.gold or []) for sentence in read_whole(pattern, **options)]


@pytest.mark.parametrize(
    ("num_files", "packed", "by_ending", "needs_tags"),
    [(1, "", True, False), (3, ".gz", True, True), (1, ".gz", False, True), (3, "", False, True)],
)
@every_case
def test_each_shape(case: Case, num_files: int, packed: str, by_ending: bool, needs_tags: bool, tmp_path: Path) -> None:
    sentences = [sentence for sentence in SENTENCES if case.holds(sentence[0])]
    size = -(-len(sentences) // num_files)
    assert len(sentences) >= 3
    for i in range(num_files):
        file = tmp_path / f"part{i}.{case.ending if by_ending else 'data'}{packed}"
        write_file(file, case.write(sentences[i * size : (i + 1) * size]))
    options = case.options | ({} if by_ending else {"file_format": case.file_format or case.ending})
    pattern = tmp_path / "part*" if num_files > 1 else file
    assert read_files(pattern, needs_tags=needs_tags, **options) == sentences


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_sample_is_the_same_in_every_format(split: str, ending: str) -> None:
    expected = [(row["tokens"], row["ner_tags"]) for row in read_lines(SAMPLE_DATA / f"{split}.json")]
    assert read_files(SAMPLE_DATA / f"{split}.{ending}") == expected


@pytest.mark.parametrize(("kind", "content"), [e for e in EXAMPLES if e[0] or e[1].startswith("-DOCSTART")])
def test_the_examples_of_the_documentation_are_read(kind: str, content: str, tmp_path: Path) -> None:
    write_file(tmp_path / f"a.{kind or 'conll'}", content)
    words, tags = read_files(tmp_path / f"a.{kind or 'conll'}")[0]
    assert words[0] == "Ada" and tags[0] == "B-PER"


@st.composite
def arbitrary_sentences(draw: st.DrawFn, alphabet: str | None) -> list[Sentence]:
    """Entities of one or more words begin with B-, so that spans can write them down."""
    chars = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # files with either are refused
    word = st.text(chars if alphabet is None else st.sampled_from(alphabet), max_size=6)
    sentences = []
    for _ in range(draw(st.integers(1, 4))):
        words, tags = draw(st.lists(word, min_size=1, max_size=5)), list[str]()
        for _ in words:
            begins = [f"B-{draw(TYPES)}", "O"]
            tags.append(draw(st.sampled_from(begins + ([f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else []))))
        sentences.append((words, tags))
    return sentences


@every_case
@settings(suppress_health_check=list(HealthCheck))  # one folder serves all examples
@given(data=st.data())
def test_any_words_survive_every_format(case: Case, data: st.DataObject, tmp_path: Path) -> None:
    alphabet = data.draw(st.sampled_from([None, "ab#-[]{}()'\",;= \t\n\r_1.\\/\u00a0\u2028\ufeffO"]))
    sentences = [s for s in data.draw(arbitrary_sentences(alphabet)) if case.holds(s[0])]
    # A file's first characters may be a byte order mark, which is none of its words.
    sentences = [s for s in sentences if s[0][0][:1] != "\ufeff"]
    # Lines of one word each could be words of sentences, and are refused.
    if any(len(words) > 1 for words, _ in sentences):
        file = tmp_path / f"a.{case.ending}{data.draw(st.sampled_from(['', *PACKERS]))}"
        write_file(file, case.write(sentences))
        assert read_files(file, **case.options) == sentences


@given(cell=st.text() | st.text(alphabet="[]{}()'\", 1:\\\n-O"))
@example("[" * 10_000)
@example("['EU' 'rejects']")
@example("['don''t']")
@example("('EU', 'rejects')")
@example("a\nb")
def test_a_text_is_read_as_the_list_that_it_writes_down_or_at_its_spaces_or_refused(cell: str) -> None:
    try:
        found = ner.cells.read_list(cell, "words")
    except ValueError as error:
        assert str(error).startswith("the words are ")
        return
    text = cell.strip(" \t\r\n")
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        expected = None
    if not isinstance(expected, list):
        expected = [part for part in text.replace("\t", " ").split(" ") if part]
        if text[0] in "([" and found != expected and " ".join(text.split()) != str(np.array(found)):  # as NumPy prints
            expected = list(ast.literal_eval(text))
        elif text[0] == "[":
            expected = found
    assert repr(found) == repr(expected)  # by repr: NaN is not equal to itself


def test_comments_that_could_be_words_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_file(tmp_path / "a.txt", "EU O\n\n# PER\nAda O\n\n# oldtag\nAda PER\n\n# PER\n\n# x = y\nBob PER\n\n")
    expected = [(["EU"], ["O"]), (["Ada"], ["O"]), (["Ada"], ["PER"]), (["#"], ["PER"]), (["Bob"], ["PER"])]
    assert read_files(tmp_path / "a.txt") == expected
    assert f"{tmp_path / 'a.txt'}, line 3: taken as a comment, as are 1 lines like it." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", WORDS + "x,1,a,O\n,1,b,O\ny,1,c,O\ny,2,d,O\n", "x:ab y:c y:d"),  # ids anew in each
        ("a.csv", WORDS + ",1,a,O\n,1,b,O\n,2,c,O\n", ":ab :c"),
        ("a.json", as_lines(LEFT_OUT), ":ab :ab :ab 7:ab"),
    ],
)
def test_the_documents_of_sentences(name: str, content: str, expected: str, tmp_path: Path) -> None:
    write_file(tmp_path / name, content)
    assert " ".join(f"{s.document}:{''.join(s.words)}" for s in read_whole(tmp_path / name)) == expected
