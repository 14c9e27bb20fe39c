"""What each annotation tool writes is read as the table of docs/data.md says: a small file in its documented form."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd
import pytest
from conftest import refuses
from test_ner_formats import DOCUMENTATION, as_lines, read_files, read_whole, write_file

import ner.data

TEXT, OTHER = "Ada Lovelace lived in London.", "Nobody came."
WORDS, TAGS = "Ada Lovelace lived in London .", "B-PER I-PER O O B-LOC O"
BOTH = [(WORDS, TAGS), ("Nobody came .", "O O O")]
TRIPLES: list[Any] = [[0, 12, "PER"], [22, 28, "LOC"]]
LEFT_OUT = {ner.data.NOT_ACCEPTED: 2}


def spans(*names: str, **others: Any) -> list[dict[str, Any]]:
    return [{**dict(zip(names, triple)), **others} for triple in TRIPLES]


def lines(layout: str, start: str = "", between: str = "\n") -> str:
    """The sentences of `BOTH` as columns; `i` counts words."""
    numbered = [enumerate(zip(words.split(), tags.split()), start=1) for words, tags in BOTH]
    blocks = ["".join(layout.format(i=i, w=w, t=t) + "\n" for i, (w, t) in sentence) for sentence in numbered]
    return start + between.join(blocks)


PRODIGY = [
    {"text": TEXT, "_input_hash": 1, "_task_hash": 2, "tokens": [{"text": "Ada", "start": 0, "end": 3, "id": 0}],
     "_view_id": "ner_manual", "spans": spans("start", "end", "label", token_start=0), "answer": "accept"},
    {"text": TEXT, "_input_hash": 1, "_task_hash": 3, "spans": spans("start", "end", "label")[1:], "answer": "reject"},
    {"text": "Hm.", "_input_hash": 4, "_task_hash": 5, "tokens": [], "answer": "ignore"},
    {"text": OTHER, "_input_hash": 6, "_task_hash": 7, "tokens": [], "answer": "accept"},
]  # fmt: skip
DOCCANO = [
    [{"id": 1, "text": TEXT, "label": TRIPLES}, {"id": 2, "text": OTHER, "label": []}],
    [{"id": 1, "data": TEXT, "label": TRIPLES}, {"id": 2, "data": OTHER, "label": []}],
    [{"id": 1, "text": TEXT, "meta": {}, "annotation_approver": None, "labels": TRIPLES},
     {"id": 2, "text": OTHER, "meta": {}, "annotation_approver": None, "labels": []}],
    [{"id": 1, "text": TEXT, "relations": [], "Comments": [],
      "entities": spans("start_offset", "end_offset", "label", id=3)},
     {"id": 2, "text": OTHER, "relations": [], "Comments": [], "entities": []}],
]  # fmt: skip
REGIONS = [
    {"value": {"start": a, "end": b, "text": TEXT[a:b], "labels": [c]}, "id": c, "from_name": "label", "type": "labels"}
    for a, b, c in TRIPLES
]
RELATION = {"from_id": "PER", "to_id": "LOC", "type": "relation", "direction": "right"}
LABEL_STUDIO = [
    {"id": 1, "data": {"text": TEXT}, "drafts": [], "predictions": [], "meta": {}, "created_at": "2020-01-01",
     "annotations": [{"id": 9, "completed_by": 1, "was_cancelled": False, "result": [*REGIONS, RELATION]},
                     {"id": 8, "completed_by": 2, "was_cancelled": False, "result": []}]},
    {"id": 2, "data": {"text": "Hm."}, "annotations": [{"id": 10, "was_cancelled": True, "result": []}]},
    {"id": 3, "data": {"text": "Not yet."}, "annotations": []},
    {"id": 4, "data": {"text": OTHER}, "annotations": [{"id": 11, "was_cancelled": False, "result": []}]},
]  # fmt: skip
MINIMAL = [
    {"id": 1, "annotator": 1, "annotation_id": 9, "created_at": "2020-01-01", "lead_time": 1.5, "headline": TEXT,
     "label": [region["value"] for region in REGIONS]},
    {"id": 4, "annotator": 1, "annotation_id": 11, "created_at": "2020-01-01", "lead_time": 1.5, "headline": OTHER},
]  # fmt: skip
MINIMAL_TABLE = pd.DataFrame([{**row, "label": json.dumps(row["label"]) if "label" in row else ""} for row in MINIMAL])
SPACY = [[TEXT, {"entities": TRIPLES}], [OTHER, {"entities": []}]]
ANN = (
    "T1\tPER 0 12\tAda Lovelace\nT2\tLOC 22 28\tLondon\nR1\tLives Arg1:T1 Arg2:T2\nE1\tPER:T1\nA1\tOld T1\n"
    "*\tSame T1 T2\n#1\tAnnotatorNotes T1\tmaybe\n"
)
LATER = ANN.replace("0 12", "10 22").replace("22 28", "32 38")
TSV_ROWS = [
    "1-1\t0-3\tAda\t*[1]\tPER[1]\t_", "1-2\t4-12\tLovelace\t*[1]\tPER[1]\t_", "1-3\t13-18\tlived\t_\t_\tverb",
    "1-4\t19-21\tin\t_\t_\t_", "1-5\t22-28\tLondon\t*\tLOC|PER\t_", "1-5.1\t22-25\tLon\t*\tLOC\t_",
    "1-6\t28-29\t.\t_\t_\t_", "", f"#Text={OTHER}", "2-1\t30-36\tNobody\t_\t_\t_", "2-2\t37-41\tcame\t_\t_\t_",
    "2-3\t41-42\t.\t_\t_\t_",
]  # fmt: skip
LAYERS = "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|identifier|value\n#T_SP=webanno.Mine|kind\n"
WEBANNO = f"#FORMAT=WebAnno TSV 3.2\n{LAYERS}\n\n#Text={TEXT}\n" + "\n".join(TSV_ROWS) + "\n"
KAGGLE = "Sentence #,Word,POS,Tag\nSentence: 1,Zoë,NNP,B-per\n,slept,VBD,O\nSentence: 2,Nobody,NN,O\n"
GERMEVAL = lines("{i}\t{w}\t{t}\tO", "#\thttp://de.wikipedia.org/wiki/X\t[2009-10-17]\n", "\n#\tn-tv.de\t[2010]\n")
UNER = lines(
    "{i}\t{w}\t{t}\t-\tsomeone", f"# newdoc id = blog-1\n# sent_id = blog-1-1\n# text = {TEXT}\n",
    f"\n# newdoc id = blog-2\n# sent_id = blog-2-1\n# text = {OTHER}\n",
)  # fmt: skip
CONLLU = lines("{i}\t{w}" + "\t_" * 7 + "\tName={t}|SpaceAfter=No", "# newdoc id = a\n1-2\tx" + "\t_" * 8 + "\n")
CONLLU = CONLLU.replace("Name=O|", "")
ROWS = [{"id": str(i), "tokens": words.split(), "ner_tags": tags.split()} for i, (words, tags) in enumerate(BOTH)]
HUB = datasets.Dataset.from_list(ROWS)
BMES = "中 B-GPE\n国 E-GPE\n人 O\n\n李 S-PER\n\n"


def write_spacy(path: str) -> None:
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    doc = nlp(f"{TEXT}  {OTHER}\n")
    doc.ents = [doc.char_span(*triple) for triple in TRIPLES]
    spacy.tokens.DocBin(docs=[doc]).to_disk(path)


class Tool(NamedTuple):
    files: dict[str, Any]  # by name: what they hold, or a function that writes it
    documents: list[str] = ["", ""]  # of the sentences; a file is called by its name
    notes: dict[str, int] = {}
    read: list[tuple[str, str]] = BOTH  # words and tags
    options: dict[str, Any] = {}
    whole_folder: bool = False  # all files are one split; else each is one that reads the same


TOOLS = {
    "Prodigy": Tool({"a.jsonl": as_lines(PRODIGY), "b.jsonl": as_lines(PRODIGY[1:3] + PRODIGY[::3])}, notes=LEFT_OUT),
    "doccano": Tool({f"{i}.jsonl": as_lines(rows) for i, rows in enumerate(DOCCANO)}),
    "Label Studio, JSON": Tool({"a.json": json.dumps(LABEL_STUDIO)}, notes=LEFT_OUT),
    "Label Studio, JSON-MIN, CSV, TSV": Tool({
        "a.json": json.dumps(MINIMAL), "a.csv": MINIMAL_TABLE.to_csv(index=False),
        "a.tsv": MINIMAL_TABLE.to_csv(sep="\t", index=False),
    }),
    "Label Studio, CONLL2003": Tool(
        {"a.conll": lines("{w} -X- _ {t}", "-DOCSTART- -X- O\n")}, ["a.conll, document 1"] * 2
    ),
    "spaCy, json": Tool({
        "a.json": json.dumps(SPACY), "a.jsonl": as_lines(SPACY),
        "b.json": json.dumps({"classes": ["PER", "LOC"], "annotations": [None, *SPACY]}),
    }),
    "spaCy, .spacy": Tool({"a.spacy": write_spacy}, ["a.spacy, document 1"] * 2),
    "brat": Tool(
        {"1.txt": f"{TEXT}\n", "1.ann": ANN, "2.txt": f"\n{OTHER}", "2.ann": "", "annotation.conf": "[entities]",
         "3.txt": f"In 東京 é.\n\n{TEXT}", "3.ann": f"T3\tLOC 3 5\t東京\n{LATER}"},
        ["1", "2", "3", "3"], read=[*BOTH, ("In 東 京 é .", "O B-LOC I-LOC O O"), BOTH[0]], whole_folder=True,
    ),
    "INCEpTION, WebAnno": Tool({"a.tsv": WEBANNO, "a.txt": WEBANNO.replace("3.2", "3.3")}, ["a", "a"]),
    "Kaggle": Tool({"a.csv": KAGGLE.encode("cp1252")}, read=[("Zoë slept", "B-per O"), ("Nobody", "O")],
                   options={"encoding": "cp1252"}),
    "GermEval 2014": Tool({"a.tsv": GERMEVAL}),
    "MIT, .bio": Tool({"a.bio": lines("{t}\t{w}")}),
    "CoNLL-2003": Tool(
        {"eng.testa": lines("{w} NNP B-NP {t}", "-DOCSTART- -X- O O\n\n", "\n-DOCSTART- -X- O O\n\n")},
        ["eng.testa, document 1", "eng.testa, document 2"],
    ),
    "OntoNotes": Tool({"a.conll": lines("{w}\tNNP\t(NP*\t{t}")}),
    "WNUT 17": Tool({"a.conll": lines("{w}\t{t}", between="\t\n")}),
    "UNER": Tool({"a.iob2": UNER}, ["blog-1", "blog-2"]),
    "CoNLL-U": Tool({"a.conllu": CONLLU}, ["a", "a"]),
    "BMES": Tool({"a.char.bmes": BMES}, read=[("中 国 人", "B-GPE E-GPE O"), ("李", "S-PER")]),
    "Hugging Face pipelines": Tool({
        f"{name}.jsonl": as_lines([{"text": TEXT, "entities": spans("start", "end", name, score=0.9)}, {"text": OTHER}])
        for name in ("entity_group", "entity", "type", "label")
    }),
    "Hugging Face datasets": Tool({"a.csv": HUB.to_csv, "a.json": HUB.to_json, "a.parquet": HUB.to_parquet}),
    "Excel, .csv": Tool({"a.csv": "sep=|\n" + MINIMAL_TABLE.to_csv(index=False, sep="|")}),
    "pandas": Tool({
        "a.csv": pd.DataFrame(ROWS).to_csv(), "b.csv": HUB.to_pandas().to_csv(),
        "c.csv": pd.DataFrame([{k: tuple(r[k]) for k in ("tokens", "ner_tags")} for r in ROWS]).to_csv(index=False),
        "d.csv": pd.DataFrame(ROWS).to_csv().replace('"[', '"[list([').replace(']"', '])]"'),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_writes_is_read(name: str, tmp_path: Path) -> None:
    tool = TOOLS[name]
    for file, content in tool.files.items():
        if callable(content):
            content(str(tmp_path / file))
        else:
            write_file(tmp_path / file, content)
    paths = [tmp_path] if tool.whole_folder else [tmp_path / file for file in tool.files]
    # To be predicted on is also what no annotator accepted.
    for path, needs_tags in itertools.product(paths, (True,) if tool.notes else (True, False)):
        sentences = read_whole(path, needs_tags=needs_tags, **tool.options)
        assert [(" ".join(s.words), " ".join(s.gold or [])) for s in sentences] == tool.read, path
        documents = [s.document.removeprefix(f"{tmp_path}/") for s in sentences]
        assert [document.removesuffix(path.suffix or "none") for document in documents] == tool.documents
        assert Counter(note for s in sentences for note in s.notes) == tool.notes


def test_every_tool_stands_in_the_documentation_with_what_is_set_for_it() -> None:
    table = DOCUMENTATION.partition("| your tool |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {name.strip(): cell for name, cell, *_ in (row.strip("| ").split(" | ") for row in table)}
    assert [*rows] == [*TOOLS]
    for name, cell in rows.items():
        given = dict(re.findall(r"`(\w+): ([^`]+)`", cell))
        given.pop("train_file", None)
        assert given == TOOLS[name].options, name


BAD_SPANS = [[1, 9, "PER"], [22, 28, "LOC"], [22, 28, "X"], [4, 99, "Y"], [0, 13, " PER "]]
"""Cuts a word; is right; overlaps; is out of range; overlaps with the first, if that is widened."""


@pytest.mark.parametrize(
    ("bad_spans", "notes"),
    [
        ("widen", {"entities that cut a word, widened": 1, "entities that overlap, left out": 2}),
        ("drop", {"entities that cut a word, left out": 1, "entities that overlap, left out": 1}),
    ],
)
def test_bad_spans_are_widened_or_left_out_and_counted(bad_spans: str, notes: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(as_lines([{"text": TEXT, "entities": BAD_SPANS}]))
    (sentence,) = read_whole(tmp_path / "a.jsonl", bad_spans=bad_spans)
    assert sentence.gold == TAGS.split()
    assert Counter(sentence.notes) == {**notes, "entities that are out of range, left out": 1}


@pytest.mark.parametrize("pattern", ["", "*.conll", "**/[ab].conll"])
def test_a_folder_or_a_glob_is_read_in_the_order_of_names(pattern: str, tmp_path: Path) -> None:
    for name in ("b.conll", "a.conll", "README.md", ".hidden.conll"):
        (tmp_path / name).write_text(f"{name} O\n")
    assert [words for words, _ in read_files(tmp_path / pattern)] == [["a.conll"], ["b.conll"]]


def test_a_folder_of_several_formats_is_refused(tmp_path: Path) -> None:
    for name in ("1.txt", "a.json"):
        (tmp_path / name).touch()
    with refuses(f"{tmp_path}: holds files of different formats, such as 1.txt, a.json"):
        read_files(tmp_path)
