"""What is wrong with a file is said in one paragraph: where, what was found, what is accepted. Nothing trains on it."""

import gzip
import importlib.util
import io
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from conftest import Config, Log, check_message, refuses, train_here, write_config
from test_ner_formats import CASES, SENTENCES, as_lines, class_label_features, to_parquet, write_file

import ner.data
import ner_utils


def read(train_file: Path, **options: Any) -> ner_utils.DatasetMetadata:
    """Everything that NERTrial does with files before it looks at the model."""
    config = ner.config.NERDataConfig(train_file=str(train_file), **options)
    rows, label_names = ner.data.read_splits(ner.data.load_splits(config), config, "ner")
    return ner_utils.get_dataset_metadata(rows, label_names, config.label_scheme)


def line(tokens: Any, tags: Any, **others: Any) -> str:
    return json.dumps({"tokens": tokens, "ner_tags": tags, **others}) + "\n"


def span(*entities: Any, text: Any = "Ada Lovelace lived in London.") -> str:
    first = json.dumps({"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "PER"}]})
    return f"{first}\n{json.dumps({'text': text, 'entities': entities})}\n"


def entity(start: Any, end: Any, label: Any = "PER", **others: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, **others}


def parquet(tokens: Any, tags: Any, names: list[str] | None = None) -> bytes:
    frame = pd.DataFrame({"tokens": tokens, "ner_tags": tags})
    if names is None:
        return to_parquet(frame)
    return to_parquet(datasets.Dataset.from_pandas(frame, features=class_label_features(names)))


GOOD = line(["EU", "rejects"], ["B-ORG", "O"])
HEADER = "tokens,ner_tags\n"
ROW = "\"['EU']\",\"['O']\"\n"
LIST = "accepted is a list, one written as JSON (json.dumps) or Python text"
JSON_ADVICE = "Write each row as a JSON object (json.dumps)"
CSV_ADVICE = "csv.writer or DataFrame.to_csv"
KAGGLE = "Sentence #,Word,POS,Tag\n"
PARQUET = parquet([["E.U"]] * 2000, [["O"]] * 2000)
TWICE = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.table([[["EU"]], [["O"]]], names=["tokens", "tokens"]), TWICE)
WEBANNO = "#FORMAT=WebAnno TSV 3.2\n"
UTF8 = "accepted is text in UTF-8"
LABELS = {"label_list": ["O", "B-X"]}
OTHER, NO_TOKENS = '{"words": ["a"], "tags": ["O"]}', "no column 'tokens'"

# Each bad file's id, what is in it, what is said beside its path, and options if there are any.
WORDS: list[Any] = [
    ("a tag is missing", GOOD + line(["a", "b"], ["O"]), "line 2: found 2 words but 1 tags (words: 'a b'; tags: 'O')"),
    ("a word is missing", GOOD * 1200 + line(["a"], ["O", "O"]), "line 1201: found 1 words but 2 tags", "Every word"),
    ("an empty sentence", GOOD + line([], []), "line 2: found a sentence without words. Remove it"),
    ("a text without tags", line("EU", "B-ORG") + line("EU a", []), "line 2: found 2 words but 0 tags"),
    ("null words", GOOD + line(None, ["O"]), "line 2: the words are None", LIST),
    ("null tags", GOOD + line(["EU"], None), "line 2: the tags are None", LIST),
    ("no tags at all", GOOD + '{"tokens": ["a"]}', "line 2: no column 'ner_tags' as in the first row; found tokens"),
    ("a null word", GOOD + line(["a", None], ["O", "O"]), "line 2: word 2 is missing", "in quotes, or leave it out"),
    ("a NaN word", GOOD + line(["a", float("nan")], ["O", "O"]), "line 2: word 2 is nan", "texts"),
    ("a number among words", GOOD + line(["a", 5], ["O", "O"]), "line 2: word 2 is 5; accepted are texts"),
    ("nested words", line([["EU"], ["a"]], ["O", "O"]), "line 1: word 1 is ['EU']; accepted are texts"),
    ("nested tags", line(["EU"], [["O"]]), "line 1: tag 1 is ['O']; accepted are texts such as"),
    ("a dictionary for words", line({"0": "EU"}, ["O"]), "the words are {'0': 'EU'}", LIST),
    ("a very long cell", line({"a": "EU " * 999}, ["O"]), "the words are {'a': 'EU EU", "...", LIST),
    ("a blank text", GOOD + line(" ", "O"), "line 2: the words are ' '", LIST),
    ("a text of two lines", GOOD + line("EU\na", "O O"), "line 2: the words are 'EU\\na'", "a line of"),
    ("brackets that are no list", line("[EU, a]", "O O"), "the words are '[EU, a]'", LIST),
    ("half a character of a tag", line(["a"], ["B-\ud83d"]), "line 1: found half of a character"),
    ("half a character of a document", line(["a"], ["O"], document_id="\ud83d"), "line 1: found half of a character"),
    ("half a character", line(["\ud83d"], ["O"]), r"word 1 is '\ud83d', which holds half of a char"),
    ("a blank tag", GOOD + line(["a"], [" "]), "line 2: tag 1 is missing", "'B-PER', or whole numbers"),
    ("a null tag", GOOD + line(["a"], [None]), "line 2: tag 1 is missing", "'B-PER'"),
    ("a float tag", line(["a"], [1.0]), "line 1: tag 1 is 1.0; accepted are texts", "whole numbers"),
    ("a boolean tag", line(["a"], [True]), "line 1: tag 1 is True", "'B-PER'"),
    ("a nameless number", line(["a"], [1]), "tag 1 is the number 1, and nothing says", "as O, B-PER, I-PER, by"),
    ("a nameless number as text", line(["a"], ["1"]), "tag 1 is the number 1", "data.label_list"),
    ("a number beyond the names", line(["a"], [2]), "tag 1 is the number 2; accepted are 0 to 1: O, B-X", LABELS),
    ("a number below 0", line(["a"], [-100]), "tag 1 is the number -100; accepted are 0 to 1", LABELS),
    ("an unknown tag", line(["a"], ["B-Y"]), "'B-Y'; accepted are O, B-X", "add it to data.label_list", LABELS),
    ("B- alone", GOOD + line(["a", "b"], ["O", "B-"]), "line 2: tag 2 is 'B-', which names no type"),
    ("a dash for a tag", line(["a"], ["-"]), "tag 1 is '-', which names no type; accepted are O, B-PER"),
    ("mixed schemes", GOOD + line(["a", "b"], ["B-X", "L-X"]) + line(["a"], ["E-X"]),
     "line", "-X does not go with the others; found are B-ORG, B-X, E-X, L-X", "data.label_scheme"),
    ("several sentences", as_lines([{"tokens": ["a"], "tags": ["O"] * n} for n in (1, 2, 1, 0, 3)]),
     "found 3 sentences with more words than tags, or fewer.", "line 2: found 1 words", "line 4: ", "line 5: "),
]  # fmt: skip
JSON: list[Any] = [
    *((f"the file {x!r}", x, "has no rows. Give a file with at least one") for x in ("", "\n \n", "[]")),
    ("an empty object", "[{}]", "row 1: no column 'tokens'; found .", "data.text_column_name"),
    ("a broken line", GOOD + '\n{"tokens": ["a"\n' + GOOD, "line 3: not readable as json: Expecting ',' delim"),
    ("JSON cut in the middle", json.dumps([json.loads(GOOD)] * 5, indent=1)[:-50], "line", "not readable as json: "),
    ("a list in a line", GOOD + '["a"]\n', "line 2: found ['a']; accepted is an object", JSON_ADVICE),
    ("a list of lists", '[["EU"], ["O"]]', "row 1: found ['EU']; accepted is an object"),
    ("a text in quotes", '"EU rejects"', "line 1: found 'EU rejects'; accepted is an object"),
    ("commas after lines", GOOD.replace("\n", ",\n") * 2, "line 1: not readable as json: Expecting"),
    ("two objects on a line", GOOD + GOOD.strip() + GOOD, "line 2: not readable as json: Extra data at character"),
    ("a pointer of git-lfs", "version https://git-lfs.github.com/spec/v1\n", "character 1, where there is 'version https://git"),
    ("Python instead of JSON", "{'tokens': ['EU']}\n", "line 1: not readable as json: Expecting prop", JSON_ADVICE),
    ("a name that stands twice", GOOD + '{"a": 1, "a": 2}', "line 2: not readable as json: 'a' stands twice"),
    ("rows within an object", f'{{"data": [{GOOD}]}}', "line 1: no column 'ner_tags'; found data", "data.label_column"),
    ("lists without end", "[" * 100_000, "line 1: not readable as json: lists within lists"),
    ("a number of 5,000 digits", f'{{"tokens": {"1" * 5000}}}', "line 1: not readable as json: Exceeds"),
    ("Latin-1", (GOOD + '{"a": "ü"}').encode("latin-1"), "line 2: found the byte 0xfc", UTF8, "cp1252 reads"),
    ("half of UTF-16", GOOD.encode("utf-16")[:-1], "is no text in utf-16", "truncated data", "by data.encoding"),
    ("UTF-16 without BOM", GOOD.encode("utf-16-le"), "line 1: found a zero byte", "by data.encoding: utf-16-le"),
    ("no such encoding", GOOD, "found data.encoding: latin-15x", "such as utf-8", {"encoding": "latin-15x"}),
    ("a list for an id", '{"sent_id": [1], "word": "EU", "tag": "O"}\n', "line 1: found [1] in the column"),
    ("no such column of tags", GOOD, "no column 'pos_tags'; found tokens", {"label_column_name": "pos_tags"}),
    ("an id for tags", '{"id": "1", "tokens": []}', "line 1: no column 'ner_tags'; found id, tokens"),
    ("tags only", '{"ner_tags": ["O"]}', "no column 'tokens'; found ner_tags. Set data.text_column_name"),
    ("one column for both", GOOD, "'tokens' is the column of the words and of", {"label_column_name": "tokens"}),
    ("another tag for O", GOOD, "no tag 'X' in the column 'ner_tags', but B-ORG, O.", {"outside_label": "X"}),
]  # fmt: skip
BAD_SPANS = [[1, 9, "A"], [13, 14, "B"], [13, 14, "C"], [4, 99, "D"]]
SPANS: list[Any] = [
    ("overlapping spans", span(entity(0, 12), entity(4, 12)), "line 2: entity 2, 'Lovelace' (PER, 4 to 12), overlaps"),
    ("the same span twice", span(entity(0, 3), entity(0, 3, "X")), "entity 2, 'Ada' (X, 0 to 3), overlaps", "keep one"),
    ("a span that cuts a word", span(entity(0, 7)), "line 2: entity 1, 'Ada Lov' (PER, 0 to 7), cuts", "(4 to 12)"),
    ("a span of one less", span(entity(4, 11)), "'Lovelac' (PER, 4 to 11), cuts the word", "Words end at blanks"),
    *((f"a span from {a} to {b}", span(entity(a, b)), f"1 reaches from {a} to {b}; accepted are characters from 0 to ")
      for a, b in ((22, 99), (3, 0), (3, 3), (-3, 3))),
    ("a span of a blank", span(entity(3, 4)), "entity 1, ' ' (PER, 3 to 4), holds no word"),
    *((f"the span {x}", span(x), f"entity 1 is {x}; accepted are start, end and label") for x in (
        entity(0.0, 3.0), entity("0", "3"), {"start": 0, "end": 3}, entity(0, 3, None), [0, 3],
        {"start": 0, "end": 3, "labels": ["A", "B"]},
    )),
    ("many bad spans", as_lines([{"text": "Ada Lovelace x", "entities": BAD_SPANS}] * 3),
     "found 3 entities that cut a word; 3 entities that overlap; 3 entities that are out of range.",
     "data.bad_spans: widen or drop", "line 1: entity 1, 'da Lovel' (A, 1 to 9), cuts", "line 2: entity 3, "),
    ("a span with an empty label", span(entity(0, 3, " ")), "entity 1 has the label '', which names no"),
    ("a span with a piece of json", span(entity(0, 3, '"PER"')), "entity 1 has the label '\"PER\"'"),
    ("a span counted in bytes", span(entity(7, 8, text="a"), text="üüü a b c"),
     "entity 1 has the text 'a', but from 7 to 8 there is ' '", "Count characters"),
    ("tags among spans", span("O", "O"), "found 2 entities that have no start, end and label", "entity 1 is 'O'; acc"),
    ("spans among tags", line("EU", ["O"]) + line("EU", [entity(0, 2)]), "line 2: tag 1 is {'start': 0"),
    ("types with prefixes", span({"start": 0, "end": 3, "entity": "B-PER"}, {"start": 4, "end": 12, "entity": "I-PER"}),
     "line 2: the entity's type B-PER begins with a prefix; found are B-PER, I-PER, PER", "Write types alone"),
    ("two types with prefixes", as_lines([{"text": "EU", "spans": [[0, 2, kind]]} for kind in ("S-ORG", "B-X")]),
     "line 1: the entity's type S-ORG begins with a prefix; found are B-X, S-ORG."),
    ("nothing accepted", as_lines([{"text": "EU", "spans": [], "answer": "reject"}] * 2),
     "none of its 2 rows is one that an annotator accepted"),
    ("no text beside spans", span(entity(0, 3), text=None), "line 2: the words are None"),
    ("an empty text beside spans", span(text=" "), "line 2: found a text without words. Remove it"),
]  # fmt: skip
COLUMNS: list[Any] = [
    ("a dash for O", "EU\tORG\nis\t_\n", "line 2: tag 2 is '_'", "If it stands for O, set data.outside_label: '_'"),
    ("tags with brackets", "EU\t(ORG*)\nis\t*\n", "line 2: tag 2 is '*', which names no type"),
    *((f"the columns {x!r}", x, "has no rows") for x in ("", "# a = b\n# c\n\n", "-DOCSTART- -X- O O\n\n")),
    ("a word without tag", "EU\tO\nis\n", "line 2: found 1 columns ('is') where 2 are expected, separated by TABs"),
    ("the first word without tag", "EU\nrejects O\n", "line 1: found 1 columns ('EU') where 2 are"),
    ("a hashtag without tag", "EU\tO\n\n#EU\n\n", "line 3: found 1 columns ('#EU') where 2"),
    ("a # without tag", "EU\tO\n\n#\na\tO\n\n", "line 3: found 1 columns ('#') where 2"),
    ("a tag without word", "EU\tB-ORG\n\tO\n", "line 2: word 2 is missing; accepted are texts"),
    ("a tag after a blank word", "EU\tB-ORG\n \tO\n", "line 2: word 2 is missing"),
    ("an empty last column", "EU\tB-ORG\n\nrejects\tO\na\t\n", "line 4: tag 2 is missing"),
    ("B- alone in columns", "EU B-ORG\nthe O\n\nthe O\nUN B-\n", "line 5: tag 2 is 'B-'"),
    ("ragged columns", "a NNP B-ORG\nb O\n", "line 2: found 2 columns ('b O') where 3 are", "separated by spaces"),
    ("a space for a TAB", "EU\tO\nrejects O\n", "line 2: found 1 columns ('rejects O') where 2", "TABs"),
    ("a TAB for a space", "EU O\nNew York\tO\n", "line 2: found 2 columns ('New York\\tO')", "spaces"),
    ("a header in columns", "Word Tag\nEU O", "names, 'Word Tag'", '"# global.columns = Word Tag"', "file_format: tsv"),
    ("carriage returns", "EU O\rrejects O\r\r", "line 1: found a carriage return within the line"),
    ("ranges of words", "1-2\tdu\t_\n1\tde\tO\n2\tle\tO\n", "line 1: found ranges such as 1-2", "conllu"),
    ("a column named twice", "# global.columns = FORM NER NER\n", "the column 'NER' stands there twice"),
    ("a column beyond the last", "EU\tO\n", "line 1: no column 2; found 0, 1", {"label_column_name": 2}),
    ("a name where there is none", "EU\tO\n", "no column 'ner'; found 0, 1", {"label_column_name": "ner"}),
    ("lines of a table", '{"tokens": ["EU"]}\n' * 3, "line 1: tag 1 is '[\"EU\"]}', which looks like"),
    ("a pointer of git lfs", "version https://lfs/v1\noid sha256:4d7a\nsize 12345\n", "line 3: tag 3 is the"),
]  # fmt: skip
TABLES: list[Any] = [
    *((f"the table {x!r}", x, "has no rows. Give a file with at least one") for x in ("", HEADER)),
    ("colons", "tokens:ner_tags\n", "line 1: found one column, 'tokens:ner_tags'; accepted are cells with commas"),
    ("another delimiter", HEADER, "found one column", "semicolons", "data.delimiter", {"delimiter": ";"}),
    ("a quote that separates", HEADER, "data.delimiter", {"delimiter": '"'}),
    ("no header", "EU,B-ORG\nrejects,O\n", "line 2: the line before holds 'EU, B-ORG'", "data"),
    ("no header but lists", ROW * 2, "line 2: the line before holds \"['EU'], ['O']\"", "looks like"),
    ("no header but lines", "EU rejects,B-ORG O\n" * 2, "line 2: the line before holds 'EU rejects, B-ORG"),
    ("too many cells", HEADER + ROW + "a,O,5,6\n", "line 3: found 4 cells, but the header names 2 columns: tokens"),
    ("too few cells", HEADER + ROW + "\"['EU']\"\n", "line 3: found 1 cells, but the header"),
    ("lists without quotes", HEADER + "['EU', 'a'],['O', 'O']\n", "line 2: found 4 cells", CSV_ADVICE),
    ("an open quote", HEADER + ROW + "\"['EU'],['O']\n" + ROW, "line 3: not readable as csv", "in the row that begins"),
    ("a quote open to the end", HEADER + ROW + "EU,\"['O']\n", "line 3: not readable as csv: unexpected", CSV_ADVICE),
    ("fewer tags, behind sep=", 'sep=|\ntokens|ner_tags\nEU a|O\n', "line 3: found 2 words but 1 tags"),
    ("a quote within", HEADER + '"EU" rejects,O O\n', "line 2: not readable as csv: ',' expected after"),
    ("quotes over rows of words", KAGGLE + '1,EU,NNP,O\n2,",",",",O\n2,",\'\',O\n2,a,NN,O\n2,",\'\',O\n',
     "line 4", "\\n2,a,NN,O\\n"),
    ("quotes over lines of text", HEADER + 'EU a,O O\n",O\n",O\n', "line 3: the words are ',O\\n'", "a line"),
    ("a column that stands twice", "tokens,ner_tags,tokens\nEU,O,a\n", "the column 'tokens' stands there twice"),
    ("an empty cell", HEADER + ROW + ",\"['O']\"\n", "line 3: the words are ''", LIST),
    ("a cut NumPy list", HEADER + f"{np.array(['EU'] * 2000)},O O\n", "line 2: the words are", "['EU' 'EU'", LIST),
    ("printed NumPy numbers", HEADER + f"\"['EU', 'a']\",{np.array([3, 0])}\n", "tag 1 is the number 3", "label_list"),
    ("half a list", HEADER + "['a',O\n", "line 2: the words are \"['a'\"", LIST),
    ("doubled quotes", HEADER + "\"['don''t']\",\"['O']\"\n", "the words are", "['don''t']", LIST),
    ("a dictionary in csv", HEADER + "\"{'EU': 'a'}\",\"['O']\"\n", "the words are", "{'EU': 'a'}", LIST),
    ("Latin-1 in csv", ("word,tag,sentence_id\n" + "ë,O,1\n" * 3).encode("latin-1"), "line 2: found the byte 0xeb",
     "(3 such lines)", "data.encoding: ", "cp1252 reads 'ë,O,1'"),
    ("line ends of old Macs", (HEADER + ROW).replace("\n", "\r"), "line 1: not readable as csv"),
    ("words without ids", "word,tag\nEU,O\na,O\n", "every row is a single word", "data.sentence_column", "blank line"),
    ("an id that comes back", KAGGLE + "1,EU,,O\n2,a,,O\n1,b,,O\n", "line 4: the sentence '1' goes on here, after"),
    ("no first id", KAGGLE + ",EU,,O\n1,a,,O\n", "line 2: found no sentence's id", "'Sentence #'"),
    ("an id without word", KAGGLE + "1,EU,,O\n1,,,O\n", "line 3: found '' in the column 'Word'"),
    ("an id without tag", KAGGLE + "1,EU,,O\n1,a,,\n", "line 3: found '' in the column 'Tag'; accepted is one"),
    ("two tags far down", KAGGLE + "1,EU,,O\n" * 200 + "2,EU a,,O O\n", "line 202: found 'O O' in the column"),
    ("a bad tag of a word's row", KAGGLE + "1,EU,,O\n1,a,,B-\n", "line 3: tag 2 is 'B-'"),
    ("no such ids", KAGGLE + "1,EU,,O\n", "no column 'd'; ", "Set data.sentence_column", {"sentence_column_name": "d"}),
    ("no such words", HEADER + ROW, "no column 'w'; found tokens, ner_tags. Set data.text_", {"text_column_name": "w"}),
    ("gzip without its ending", gzip.compress(ROW.encode()), "line 1: found the byte 0x8b", UTF8),
]  # fmt: skip
PARQUETS: list[Any] = [
    ("a column twice in parquet", TWICE.getvalue(), "the column 'tokens' stands there twice"),
    ("truncated parquet", PARQUET[: len(PARQUET) // 2], "not readable as parquet: ", "Write it anew"),
    ("an empty parquet file", "", "not readable as parquet: ", "0 bytes", "DataFrame.to_parquet"),
    ("damaged parquet", PARQUET.replace(b"E.U", b"\xff.\xfe"), "not readable as parquet: ", "Invalid UTF8"),
    ("parquet without rows", parquet([], []), "has no rows"),
    ("bytes", parquet([[b"EU"]], [["O"]]), "row 1: word 1 is b'EU'; accepted are texts"),
    ("null in parquet", parquet([["EU"], None], [["O"], ["O"]]), "row 2: the words are None"),
    ("numbers in parquet", parquet([["EU"]], [[3]]), "row 1: tag 1 is the number 3"),
    ("ClassLabel and label_list", parquet([["EU"]], [[1]], ["O", "B-Y"]),
     "a.parquet has O, B-Y; data.label_list has O, B-X", "remove data.label_list", LABELS),
]  # fmt: skip
BAD = {
    "a.jsonl": WORDS + JSON + SPANS,
    "a.conll": COLUMNS,
    "a.csv": TABLES,
    "a.parquet": PARQUETS,
    "a.tsv": [
        ("no header in explicit tsv", "EU\tO\na\tO\n", "line 2: the line before holds", {"file_format": "tsv"}),
        ("a header and blank lines", "word\ttag\nEU\tO\n\na\tO\n", "every row is a single word"),
        ("ids of sentences", "1\tEU\tO\n1\ta\tO\n2\tb\tO\n", "line 1: no column 'tokens'; found 0, 1, 2"),
        ("relations alone", f"{WEBANNO}#T_RL=x|y\n\n1-1\t0-1\ta\t_\n", "names no layer of spans (#T_SP=...)"),
        ("a layer less", f"{WEBANNO}#T_SP=x|y\n\n1-1\t0-1\ta\n", "line 4: found 3 columns, but the head"),
    ],
    "a.txt": [
        ("a zip file", b"PK\x03\x04\x14\x00\x06\xff", "line 1: found the byte 0xff", "data.file_format is"),
        ("words after tags", "PER Ada\nNO met\nNO a\nNO b\nNO c\nLOC Rome\nNO f\nNO g\n",
         "text_column_name: 1 and data", "column 0 has 3 different values, column 1 has 8, in 8 words"),
    ],
    "a.conllu": [
        ("three columns of CoNLL-U", "1\tEU\tO", "found 3 columns", "where 10 are", "# global.columns = ID FORM NER"),
        ("CoNLL-U without tags", "1\tEU" + "\t_" * 8, "no column 'ner_tags'; found ID, FORM", "Set data.label_column"),
    ],
    "a.jsonl.gz": [("truncated gzip", gzip.compress((GOOD * 999).encode())[:-50], "Compressed file ended", "whole?")],
    "a.conll.gz": [("damaged gzip", gzip.compress(b"EU\tO\n")[:-8] + b"12345678", "cannot be read: CRC")],
    "a.csv.gz": [("no gzip", HEADER + ROW, "cannot be read: Not a gzipped file", "Pack it anew")],
    "a.parquet.gz": [("truncated parquet in gzip", gzip.compress(PARQUET)[:-99], "Compressed file ended")],
    "1.ann": [
        ("no place", "T1\tPER x\tAda\n", "line 1: found 'T1\\tPER x\\tAda'; accepted is T1, a TAB"),
        ("a place beyond", "T1\tPER 90 93\tAda\n", "found an entity at 90, beyond the 30 characters of 1.txt"),
    ],
    "2.ann": [("no text", "", "there is no 2.txt beside it")],
    "a.spacy": [("no spaCy", "", "needs spaCy to be read. Install it")] * (importlib.util.find_spec("spacy") is None),
    "a.xlsx": [("an unknown ending", GOOD, "ends in '.xlsx'; accepted are .json, .jsonl", "data.file_format: one of")],
    "train": [("no ending", GOOD, "has no ending; accepted are .json", "with or without .gz")],
}  # fmt: skip
UNIFORM = [(["Ada", "met", "Bob"], ["B-PER", "O", "B-PER"])] * 6  # the same number of cells whatever one splits at
FORMATS = ("json", "jsonl", "csv", "tsv", "parquet", "conll", "conllu", "webanno")
NUMBERS = [parquet([["EU"]], [[1]], names) for names in (["O", "B-X"], ["B-X", "O"])]


def write(path: Path, content: Any) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("file", "case"), [pytest.param(file, case, id=case[0]) for file, cases in BAD.items() for case in cases]
)
def test_a_bad_file_is_refused(file: str, case: tuple[Any, ...], tmp_path: Path) -> None:
    _, content, *said = case
    options = said.pop() if isinstance(said[-1], dict) else {}
    write(tmp_path / "1.txt", "Ada Lovelace lived in London.\n")
    write(tmp_path / file, content)
    with refuses(str(tmp_path / file), *said) as raised:
        read(tmp_path / file, **options)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("sentences", [pytest.param(SENTENCES, id="sample"), pytest.param(UNIFORM, id="uniform")])
@pytest.mark.parametrize("name", CASES)
def test_another_file_format_than_the_file_has_is_refused(name: str, sentences: Any, tmp_path: Path) -> None:
    case = CASES[name]
    content = case.write([sentence for sentence in sentences if case.holds(sentence[0])])
    write_file(tmp_path / "a", content)
    # With names for the columns, CoNLL-U and other columns are read alike. The first row of a table parts its cells.
    alike = [{"json", "jsonl"}, {"csv", "tsv"}, {"webanno", "conll"}]
    alike += [{"conll", "conllu"}] * ("global.columns" in str(content))
    own = case.file_format or case.ending
    for file_format in set(FORMATS).difference({own}, *(formats for formats in alike if own in formats)):
        with refuses(str(tmp_path / "a")):
            read(tmp_path / "a", **{**case.options, "file_format": file_format})


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.json", "a.json does not exist"), ("a\0.json", "does not exist"), ("a" * 300, "does not exist"),
        ("*.json", "*.json does not exist"), ("a_folder", "a_folder is a folder"), ("*_folder", "a_folder is a folder"),
        ("fifo", "fifo is no file"), ("/dev/null", "/dev/null is no file"),
        ("link_to_nothing", "link_to_nothing does not exist"), ("link_to_itself", "link_to_itself does not exist"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_there_is_named_with_its_key(name: str, said: str, split: str, tmp_path: Path) -> None:
    (tmp_path / "a_folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link_to_nothing").symlink_to("nothing")
    (tmp_path / "link_to_itself").symlink_to("link_to_itself")
    (tmp_path / "good.jsonl").write_text(GOOD)
    files: Any = {"train_file": str(tmp_path / "good.jsonl"), f"{split}_file": str(tmp_path / name)}
    with refuses(f"data.{split}_file: ", said, "Give a file, a folder, or a glob such as data/*.json"):
        ner.data.load_splits(ner.config.NERDataConfig(**files))


@pytest.mark.parametrize(
    ("ending", "train", "validation", "said"),
    [
        ("jsonl", [GOOD, "\n"], [], "train1.jsonl: has no rows"),
        ("jsonl", [GOOD, line(["a"], [])], [], "train1.jsonl, line 1: found 1 words but 0 tags"),
        ("jsonl", [GOOD, OTHER], [], f"train1.jsonl, line 1: {NO_TOKENS} as in the first row; found words, tags"),
        ("conll", ["EU\tO\n", "EU\tNNP\tO\n"], [], "train1.conll, line 1: found 3 columns, but 2 in the first"),
        ("csv", [KAGGLE + "1,EU,,O\n", KAGGLE + ",a,,O\n"], [], "train1.csv, line 2: found no sentence's id"),
        ("parquet", NUMBERS, [], "train1.parquet has B-X, O. Save all splits with the same ClassLabel"),
        ("jsonl", [GOOD], ["\n"], "validation0.jsonl: has no rows"),
        ("jsonl", [GOOD], [OTHER], f"validation0.jsonl, line 1: {NO_TOKENS}; found words, tags. Set data.text_column"),
        ("jsonl", [GOOD], [line(["a"], ["I-X"])], "train like IOB2, validation like IOB1"),
    ],
)
def test_one_of_several_files_is_named(ending: str, train: Any, validation: Any, said: str, tmp_path: Path) -> None:
    for split, contents in (("train", train), ("validation", validation)):
        for i, content in enumerate(contents):
            write(tmp_path / f"{split}{i}.{ending}", content)
    others = {"validation_file": str(tmp_path / f"validation*.{ending}")} if validation else {}
    with refuses(said):
        read(tmp_path / f"train*.{ending}", **others)


def become_another_user() -> None:
    if os.geteuid() == 0:  # to whom everything is open
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def refusal_of(file: Path) -> str:
    with refuses(str(file)) as raised:
        read(file)
    return str(raised.value)


def test_a_file_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir()
        files = [folder / file for file in ("closed/a.jsonl", "a.jsonl", "b.parquet", "c.tsv.gz")]
        for file in files:
            file.write_text(GOOD)
            file.chmod(0)
        (folder / "closed").chmod(0)
        with multiprocessing.get_context("fork").Pool(1, become_another_user) as pool:
            looked, *opened = pool.map_async(refusal_of, files).get(timeout=60)
        (folder / "closed").chmod(0o700)
    assert "may not look" in looked
    assert all("cannot be read: Permission denied. Check its owner" in message for message in opened)


@pytest.mark.parametrize("name", ["a tag is missing", "mixed schemes", "a word without tag", "truncated parquet"])
def test_train_py_says_the_message_alone(name: str, config: Config, tmp_path: Path, caplog: Log) -> None:
    file, (_, content, *said) = next((file, case) for file, cases in BAD.items() for case in cases if case[0] == name)
    write(tmp_path / file, content)
    config["data"] |= {"train_file": str(tmp_path / file), "validation_file": str(tmp_path / file)}
    with pytest.raises(SystemExit) as stopped:
        train_here(*write_config(config, tmp_path))
    assert stopped.value.code == 1
    assert caplog.records[-1].exc_info is None
    check_message(caplog.records[-1].getMessage(), str(tmp_path / file), *said)
    assert not (tmp_path / "run").exists()
