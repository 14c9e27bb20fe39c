"""What is wrong with a file is said in one paragraph: where, what was found, what is accepted. Nothing trains on it."""

import contextlib
import gzip
import io
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from test_ner_formats import CASES, SENTENCES, write_file
from test_predict import train_here

import ner.data
import ner_utils
from transformer_trial.config import parse_trial_config
from transformer_trial.errors import ConfigError, TrialError

HPARAMS = {"pretrained_model_name_or_path": "m", "model_mode": "token-classification", "global_batch_size": 1}


def read(train_file: Path, **options: Any) -> ner_utils.DatasetMetadata:
    """Everything that NERTrial does with files before it looks at the model."""
    data = {"train_file": str(train_file), **options}
    config = parse_trial_config(HPARAMS, data, ner.config.NERDataConfig).data
    rows, label_names = ner.data.read_splits(ner.data.load_splits(config), config, "ner")
    return ner_utils.get_dataset_metadata(rows, label_names, config.label_scheme)


@contextlib.contextmanager
def refuses(*said: str) -> Iterator[None]:
    """Expects an error of one paragraph that holds these texts."""
    with pytest.raises(TrialError) as raised:
        yield
    check_message(str(raised.value), said)
    assert type(raised.value) in (TrialError, ConfigError)
    assert raised.value.__cause__ is None


def check_message(message: str, said: tuple[str, ...]) -> None:
    assert [text for text in said if text not in message] == [], message
    assert len(message) < 700, message
    assert "Traceback" not in message
    problems = message.partition(" has a problem:\n  - ")[2] or message
    assert "\n" not in problems, message


def line(tokens: Any, tags: Any) -> str:
    return json.dumps({"tokens": tokens, "ner_tags": tags}) + "\n"


def span(*entities: Any, text: Any = "Ada Lovelace lived in London.") -> str:
    first = json.dumps({"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "PER"}]})
    return f"{first}\n{json.dumps({'text': text, 'entities': entities})}\n"


def entity(start: Any, end: Any, label: Any = "PER", **others: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, **others}


def parquet(tokens: Any, tags: Any, names: list[str] | None = None) -> bytes:
    file = io.BytesIO()
    frame = pd.DataFrame({"tokens": tokens, "ner_tags": tags})
    if names is None:
        frame.to_parquet(file)
    else:
        text, label = datasets.Value("string"), datasets.ClassLabel(names=names)
        features = datasets.Features({"tokens": datasets.List(text), "ner_tags": datasets.List(label)})
        datasets.Dataset.from_pandas(frame, features=features).to_parquet(file)
    return file.getvalue()


GOOD = line(["EU", "rejects"], ["B-ORG", "O"])
HEADER = "tokens,ner_tags\n"
ROW = "\"['EU']\",\"['O']\"\n"
LIST = "accepted is a list, one written as JSON (json.dumps) or Python text"
JSON_ADVICE = "Write each row as a JSON object (json.dumps)"
CSV_ADVICE = "csv.writer or DataFrame.to_csv"
KAGGLE = "Sentence #,Word,POS,Tag\n"
PARQUET = parquet([["EU"]] * 2000, [["O"]] * 2000)
TWICE = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.table([[["EU"]], [["O"]]], names=["tokens", "tokens"]), TWICE)
UTF8 = "accepted is text in UTF-8"
LABELS = {"label_list": ["O", "B-X"]}

# The id, the file's name, what is in it, what is said beside its path, and options if there are any.
BAD: list[tuple[Any, ...]] = [
    # ------------------------------------------------------------------------------------------- words and tags
    ("a tag is missing", "a.jsonl", GOOD + line(["EU", "a"], ["O"]),
     ["line 2: found 2 words but 1 tags (words: 'EU a'; tags: 'O')", "Every word needs one tag"]),
    ("a word is missing", "a.jsonl", GOOD * 1200 + line(["a"] * 9, ["O"] * 10),
     ["line 1201: found 9 words but 10 tags (words: 'a a a a a a a a a'; tags: 'O O O"]),
    ("an empty sentence", "a.jsonl", GOOD + line([], []), ["line 2: found a sentence without words. Remove it"]),
    ("words without tags", "a.jsonl", GOOD + line(["EU"], []), ["line 2: found 1 words but 0 tags"]),
    ("a text without tags", "a.jsonl", line("EU", "B-ORG") + line("EU a", []), ["line 2: found 2 words but 0 tags"]),
    ("null words", "a.jsonl", GOOD + line(None, ["O"]), ["line 2: the words are None", LIST]),
    ("null tags", "a.jsonl", GOOD + line(["EU"], None), ["line 2: the tags are None", LIST]),
    ("no tags at all", "a.jsonl", GOOD + '{"tokens": ["a"]}\n',
     ["line 2: no column 'ner_tags' as in the first row; found tokens"]),
    ("a null word", "a.jsonl", GOOD + line(["a", None], ["O", "O"]), ["line 2: word 2 is missing", "leave it out"]),
    ("a NaN word", "a.jsonl", GOOD + line(["a", float("nan")], ["O", "O"]), ["line 2: word 2 is nan", "texts"]),
    ("NaN for words", "a.jsonl", GOOD + line(float("nan"), ["O"]), ["line 2: the words are nan", LIST]),
    ("a number among words", "a.jsonl", GOOD + line(["a", 5], ["O", "O"]),
     ["line 2: word 2 is 5; accepted are texts. Write it in quotes"]),
    ("nested words", "a.jsonl", line([["EU"], ["a"]], ["O", "O"]), ["line 1: word 1 is ['EU']; accepted are texts"]),
    ("nested tags", "a.jsonl", line(["EU"], [["O"]]), ["line 1: tag 1 is ['O']; accepted are texts such as"]),
    ("words with offsets", "a.jsonl", line([{"text": "EU", "id": 0}], ["O"]), ["word 1 is {'text': 'EU', 'id': 0}"]),
    ("a dictionary for words", "a.jsonl", line({"0": "EU"}, ["O"]), ["the words are {'0': 'EU'}", LIST]),
    ("a very long cell", "a.jsonl", line({"a": "EU " * 999}, ["O"]), ["the words are {'a': 'EU EU", "...", LIST]),
    ("a blank text", "a.jsonl", GOOD + line(" ", "O"), ["line 2: the words are ' '", LIST]),
    ("a text of two lines", "a.jsonl", GOOD + line("EU\na", "O O"), ["line 2: the words are 'EU\\na'", "a line of"]),
    ("brackets that are no list", "a.jsonl", line("[EU, a]", "O O"), ["the words are '[EU, a]'", LIST]),
    ("half a character", "a.jsonl", line(["\ud83d"], ["O"]), [r"word 1 is '\ud83d', which holds half of a char"]),
    ("an empty tag", "a.jsonl", GOOD + line(["a"], [""]), ["line 2: tag 1 is missing", "'B-PER', or whole numbers"]),
    ("a blank tag", "a.jsonl", GOOD + line(["a"], [" "]), ["line 2: tag 1 is missing", "'B-PER'"]),
    ("a null tag", "a.jsonl", GOOD + line(["a"], [None]), ["line 2: tag 1 is missing", "'B-PER'"]),
    ("a float tag", "a.jsonl", line(["a"], [1.0]), ["line 1: tag 1 is 1.0; accepted are texts", "whole numbers"]),
    ("a NaN tag", "a.jsonl", line(["a"], [float("nan")]), ["line 1: tag 1 is nan", "whole numbers"]),
    ("a boolean tag", "a.jsonl", line(["a"], [True]), ["line 1: tag 1 is True", "'B-PER'"]),
    ("a nameless number", "a.jsonl", line(["a"], [1]),
     ["tag 1 is the number 1, and nothing says what it stands for", "as O, B-PER, I-PER, by data.label_list"]),
    ("a nameless number as text", "a.jsonl", line(["a"], ["1"]), ["tag 1 is the number 1", "data.label_list"]),
    ("a number beyond the names", "a.jsonl", line(["a", "b"], [1, 2]),
     ["tag 2 is the number 2; accepted are 0 to 1: O, B-X"], LABELS),
    ("a number below 0", "a.jsonl", line(["a"], [-100]), ["tag 1 is the number -100; accepted are 0 to 1"], LABELS),
    ("a tag that label_list lacks", "a.jsonl", GOOD + line(["a"], ["B-Y"]),
     ["line 2: tag 1 is 'B-Y'; accepted are O, B-ORG. Correct it, or add it to data.label_list"],
     {"label_list": ["O", "B-ORG"]}),
    ("B- alone", "a.jsonl", GOOD + line(["a", "b"], ["O", "B-"]), ["line 2: tag 2 is 'B-', which names no type"]),
    ("a dash for a tag", "a.jsonl", line(["a"], ["-"]), ["tag 1 is '-', which names no type; accepted are O, B-PER"]),
    ("tags with brackets", "a.conll", "EU\t(ORG*)\nis\t*\n", ["line 2: tag 2 is '*', which names no type"]),
    ("mixed schemes", "a.jsonl", GOOD + line(["a", "b"], ["B-X", "L-X"]) + line(["a"], ["E-X"]),
     ["line", "-X does not go with the others; found are B-ORG, B-X, E-X, L-X", "data.label_scheme"]),
    ("plain among prefixes", "a.jsonl", GOOD + line(["a"], ["PER"]),
     ["line 2: the tag PER does not go with the others; found are B-ORG, "]),
    ("not of the scheme", "a.jsonl", GOOD + line(["a"], ["S-ORG"]),
     ["line 2: the tag S-ORG does not go with IOB2"], {"label_scheme": "IOB2"}),
    # ----------------------------------------------------------------------------------------------------- json
    ("an empty file", "a.json", "", ["has no rows. Give a file with at least one"]),
    ("a blank file", "a.json", "\n \n", ["has no rows"]),
    ("an empty list", "a.json", "[]", ["has no rows"]),
    ("an empty object", "a.json", "[{}]", ["row 1: no column 'tokens'; found .", "data.text_column_name"]),
    ("a broken line", "a.jsonl", GOOD + "\n" + '{"tokens": ["a"], "ner_tags": ["O"\n' + GOOD,
     ["line 3: not readable as json: Expecting ',' delimiter at character", JSON_ADVICE]),
    ("JSON cut in the middle", "a.json", json.dumps([json.loads(GOOD)] * 5, indent=1)[:-50],
     ["line", "not readable as json: ", JSON_ADVICE]),
    ("lines cut in the middle", "a.jsonl", (GOOD * 3)[:-9], ["line 3: not readable as json: ", JSON_ADVICE]),
    ("a list cut after a comma", "a.json", f"[{GOOD},", ["line 2: not readable as json: Expecting value"]),
    ("a list in a line", "a.jsonl", GOOD + '["a"]\n', ["line 2: found ['a']; accepted is an object", JSON_ADVICE]),
    ("a list of lists", "a.json", '[["EU"], ["O"]]', ["row 1: found ['EU']; accepted is an object"]),
    ("a text in quotes", "a.json", '"EU rejects"', ["line 1: found 'EU rejects'; accepted is an object"]),
    ("commas after lines", "a.jsonl", GOOD.replace("\n", ",\n") * 2, ["line 1: not readable as json: Expecting"]),
    ("two objects on a line", "a.jsonl", GOOD + GOOD.strip() + GOOD, ["line 2: not readable as json: Extra data"]),
    ("Python instead of JSON", "a.jsonl", "{'tokens': ['EU'], 'ner_tags': ['O']}\n",
     ["line 1: not readable as json: Expecting property name enclosed in double quotes", JSON_ADVICE]),
    ("a name that stands twice", "a.jsonl", GOOD + '{"tokens": ["a"], "tokens": ["b"], "ner_tags": ["O"]}\n',
     ["line 2: not readable as json: 'tokens' stands twice in one object"]),
    ("columns instead of rows", "a.json", json.dumps({"tokens": {"0": ["EU"]}, "ner_tags": {"0": ["O"]}}),
     ["line 1: the words are {'0': ['EU']}", LIST]),
    ("rows within an object", "a.json", json.dumps({"data": [json.loads(GOOD)]}),
     ["line 1: no column 'ner_tags'; found data", "data.label_column_name"]),
    ("lists without end", "a.json", "[" * 100_000, ["line 1: not readable as json: lists within lists"]),
    ("a number of 5,000 digits", "a.json", f'{{"tokens": {"1" * 5000}}}', ["line 1: not readable as json: Exceeds"]),
    ("a web page", "a.json", "<!DOCTYPE html>\n<html>", ["line 1: not readable as json: Expecting value"]),
    ("Latin-1", "a.jsonl", (GOOD + '{"tokens": ["Zürich"], "ner_tags": ["O"]}').encode("latin-1"),
     ["line 2: found the byte 0xfc, which is not UTF-8", UTF8, "iconv -f latin1"]),
    ("UTF-16", "a.jsonl", GOOD.encode("utf-16"), ["line 1: found the byte 0xff", UTF8, "iconv -f utf-16 -t utf-8"]),
    ("UTF-16 without BOM", "a.jsonl", GOOD.encode("utf-16-le"), ["line 1: found a zero byte", UTF8, "-f utf-16"]),
    ("a zero byte", "a.conll", "EU\tO\na\0b\tO\n", ["line 2: found a zero byte", UTF8]),
    # ------------------------------------------------------------------------------------------------ csv and tsv
    ("an empty csv file", "a.csv", "", ["has no rows"]),
    ("a header only", "a.csv", HEADER, ["has no rows. Give a file with at least one"]),
    ("semicolons", "a.csv", "tokens;ner_tags\n['EU'];['O']\n",
     ["line 1: found one column, 'tokens;ner_tags'; accepted are cells with commas between them"]),
    ("TABs in csv", "a.csv", "tokens\tner_tags\nEU\tO\n", ["found one column", "data.file_format: tsv for TABs"]),
    ("commas in tsv", "a.tsv", HEADER + ROW, ["line 1: found one column, 'tokens,ner_tags'"]),
    ("commas in explicit tsv", "a.txt", HEADER + ROW,
     ["one column", "file_format: csv for commas"], {"file_format": "tsv"}),
    ("Excel's first line", "a.csv", "sep=;\ntokens;ner_tags\n", ["line 1: found one column, 'sep=;'"]),
    ("no header", "a.csv", "EU,B-ORG\nrejects,O\n", ["line 2: the line before holds 'EU, B-ORG'", "data"]),
    ("no header but lists", "a.csv", ROW * 2, ["line 2: the line before holds \"['EU'], ['O']\"", "looks like"]),
    ("no header but lines", "a.csv", "EU rejects,B-ORG O\n" * 2, ["line 2: the line before holds 'EU rejects, B-ORG"]),
    ("no header in explicit tsv", "a.tsv", "EU\tO\na\tO\n", ["line 2: the line before holds"], {"file_format": "tsv"}),
    ("too many cells", "a.csv", HEADER + ROW + "\"['EU']\",\"['O']\",5,6\n",
     ["line 3: found 4 cells, but the header names 2 columns: tokens, ner_tags", CSV_ADVICE]),
    ("too few cells", "a.csv", HEADER + ROW + "\"['EU']\"\n", ["line 3: found 1 cells, but the header"]),
    ("lists without quotes", "a.csv", HEADER + "['EU', 'a'],['O', 'O']\n", ["line 2: found 4 cells", CSV_ADVICE]),
    ("an open quote", "a.csv", HEADER + ROW + "\"['EU'],['O']\n" + ROW,
     ["line 3: not readable as csv: ", "in the row that begins here", CSV_ADVICE]),
    ("a quote open to the end", "a.csv", HEADER + ROW + "EU,\"['O']\n",
     ["line 3: not readable as csv: unexpected end of data in the row that begins here", CSV_ADVICE]),
    ("a quote within", "a.csv", HEADER + '"EU" rejects,O O\n', ["line 2: not readable as csv: ',' expected after"]),
    ("quotes over rows of words", "a.csv", KAGGLE + '1,EU,NNP,O\n2,",",",",O\n2,",\'\',O\n2,a,NN,O\n2,",\'\',O\n',
     ["line 4", "\\n2,a,NN,O\\n"]),
    ("quotes over lines of text", "a.csv", HEADER + 'EU a,O O\n",O\n",O\n',
     ["line 3: the words are ',O\\n'", "a line"]),
    ("a column that stands twice", "a.csv", "tokens,ner_tags,tokens\nEU,O,a\n",
     ["the column 'tokens' stands there twice; give each column a name of its own"]),
    ("a column twice in parquet", "a.parquet", TWICE.getvalue(), ["the column 'tokens' stands there twice"]),
    ("an empty cell", "a.csv", HEADER + ROW + ",\"['O']\"\n", ["line 3: the words are ''", LIST]),
    ("printed NumPy texts", "a.csv", HEADER + f"\"{np.array(['EU', 'a'])}\",\"['O', 'O']\"\n",
     ["line 2: the words are", "['EU' 'a']", LIST]),
    ("printed NumPy numbers", "a.csv", HEADER + f"\"['EU', 'a']\",{np.array([3, 0])}\n",
     ["the tags are '[3 0]'", LIST]),
    ("doubled quotes", "a.csv", HEADER + "\"['don''t']\",\"['O']\"\n", ["the words are", "['don''t']", LIST]),
    ("a dictionary in csv", "a.csv", HEADER + "\"{'EU': 'a'}\",\"['O']\"\n", ["the words are", "{'EU': 'a'}", LIST]),
    ("Latin-1 in csv", "a.csv", (KAGGLE + "1,a,O,O\n1,Zürich,O,O\n").encode("latin-1"), ["line 3: found", "0xfc"]),
    ("line ends of old Macs", "a.csv", (HEADER + ROW).replace("\n", "\r"), ["line 1: not readable as csv"]),
    ("words without ids", "a.csv", "word,tag\nEU,B-ORG\nrejects,O\n",
     ["every row is a single word", "data.sentence_column_name", "blank line between sentences"]),
    ("an id that comes back", "a.csv", KAGGLE + "1,EU,,O\n2,a,,O\n1,b,,O\n",
     ["line 4: the sentence '1' goes on here, after another one"]),
    ("no first id", "a.csv", KAGGLE + ",EU,,O\n1,a,,O\n", ["line 2: found no sentence's id", "'Sentence #'"]),
    ("a list for an id", "a.jsonl", '{"sent_id": [1], "word": "EU", "tag": "O"}\n',
     ["line 1: found [1] in the column"]),
    ("an id without word", "a.csv", KAGGLE + "1,EU,,O\n1,,,O\n", ["line 3: found '' in the column 'Word'"]),
    ("an id without tag", "a.csv", KAGGLE + "1,EU,,O\n1,a,,\n",
     ["line 3: found '' in the column 'Tag'; accepted is one"]),
    ("two tags far down", "a.csv", KAGGLE + "1,EU,,O\n" * 200 + "2,EU a,,O O\n",
     ["line 202: found 'O O' in the column"]),
    ("a bad tag of a word's row", "a.csv", KAGGLE + "1,EU,,O\n1,a,,B-\n", ["line 3: tag 2 is 'B-'"]),
    ("no such column of ids", "a.csv", KAGGLE + "1,EU,,O\n",
     ["line 2: no column 'doc'; found Sentence #, Word, POS, Tag. Set data.sentence_column_name"],
     {"sentence_column_name": "doc"}),
    ("no such column of words", "a.csv", HEADER + ROW,
     ["line 2: no column 'words'; found tokens, ner_tags. Set data.text_column_name"], {"text_column_name": "words"}),
    ("no such column of tags", "a.jsonl", GOOD,
     ["no column 'pos_tags'; found tokens"], {"label_column_name": "pos_tags"}),
    ("one column for both", "a.jsonl", '{"id": "1", "tokens": ["EU"]}\n',
     ["line 1: 'tokens' is the column of the words and of the tags; found id, tokens"]),
    ("tags only", "a.jsonl", '{"ner_tags": ["O"]}\n', ["'ner_tags' is the column of the words and of the tags"]),
    # ----------------------------------------------------------------------------------------------------- CoNLL
    ("an empty CoNLL file", "a.conll", "", ["has no rows"]),
    ("comments only", "a.conll", "# a = b\n# c\n\n", ["has no rows"]),
    ("-DOCSTART- only", "a.txt", "-DOCSTART- -X- O O\n\n", ["has no rows"]),
    ("a word without tag", "a.conll", "EU\tB-ORG\nrejects\n",
     ["line 2: found 1 columns ('rejects') where 2 are expected, separated by TABs as in the first line"]),
    ("the first word without tag", "a.txt", "EU\nrejects O\n", ["line 1: found 1 columns ('EU') where 2 are"]),
    ("a hashtag without tag", "a.conll", "EU\tO\n\n#EU\n\n", ["line 3: found 1 columns ('#EU') where 2"]),
    ("a # without tag", "a.conll", "EU\tO\n\n#\na\tO\n\n", ["line 3: found 1 columns ('#') where 2"]),
    ("a tag without word", "a.conll", "EU\tB-ORG\n\tO\n", ["line 2: word 2 is missing; accepted are texts"]),
    ("a tag after a blank word", "a.conll", "EU\tB-ORG\n \tO\n", ["line 2: word 2 is missing"]),
    ("an empty last column", "a.conll", "EU\tB-ORG\n\nrejects\tO\na\t\n", ["line 4: tag 2 is missing"]),
    ("B- alone in columns", "a.bio", "EU B-ORG\nthe O\n\nthe O\nUN B-\n", ["line 5: tag 2 is 'B-'"]),
    ("B- alone in four columns", "a.bio", "EU NNP B-NP B-ORG\na NN B-NP B-\n", ["line 2: tag 2 is 'B-'"]),
    ("ragged columns", "a.iob", "EU NNP B-ORG\nrejects O\n",
     ["line 2: found 2 columns ('rejects O') where 3 are expected, separated by spaces", "all its columns"]),
    ("a space for a TAB", "a.conll", "EU\tO\nrejects O\n", ["line 2: found 1 columns ('rejects O') where 2", "TABs"]),
    ("a TAB for a space", "a.conll", "EU O\nNew York\tO\n", ["line 2: found 2 columns ('New York\\tO')", "spaces"]),
    ("commas in columns", "a.txt", "EU,B-ORG\nrejects,O\n", ["line 1: found 1 columns ('EU,B-ORG') where 2"]),
    ("a header in columns", "a.txt", "Word Tag\nEU B-ORG\n",
     ["line 1: found the columns' names, 'Word Tag'", '"# global.columns = Word Tag"', "data.file_format: tsv"]),
    ("a header and blank lines", "a.tsv", "word\ttag\nEU\tO\n\na\tO\n", ["every row is a single word"]),
    ("carriage returns", "a.txt", "EU O\rrejects O\r\r", ["line 1: found a carriage return within the line"]),
    ("three columns of CoNLL-U", "a.conllu", "1\tEU\tO\n",
     ["line 1: found 3 columns ('1\\tEU\\tO') where 10 are expected", "# global.columns = ID FORM NER"]),
    ("CoNLL-U without tags", "a.conllu", "\t".join(["1", "EU", *"_" * 8]) + "\n",
     ["no column 'ner_tags'; found ID, FORM, LEMMA", "Set data.label_column_name"]),
    ("ranges of words", "a.conll", "1-2\tdu\t_\n1\tde\tO\n2\tle\tO\n", ["line 1: found ranges such as 1-2", "conllu"]),
    ("ids of sentences", "a.tsv", "1\tEU\tO\n1\ta\tO\n2\tb\tO\n", ["line 1: no column 'tokens'; found 0, 1, 2"]),
    ("a column named twice", "a.conll", "# global.columns = FORM NER NER\n", ["the column 'NER' stands there twice"]),
    ("a column beyond the last", "a.conll", "EU\tO\n", ["line 1: no column 2; found 0, 1"], {"label_column_name": 2}),
    ("a name where there is none", "a.conll", "EU\tO\n", ["no column 'ner'; found 0, 1"], {"label_column_name": "ner"}),
    ("lines of a table", "a.txt", '{"tokens": ["EU"]}\n' * 3, ["line 1: tag 1 is '[\"EU\"]}', which looks like"]),
    ("a zip file", "a.txt", b"PK\x03\x04\x14\x00\x06\xff", ["line 1: found the byte 0xff", "data.file_format is"]),
    ("a pointer of git lfs", "a.conll", "version https://lfs/v1\noid sha256:4d7a\nsize 12345\n",
     ["line 3: tag 3 is the"]),
    # ----------------------------------------------------------------------------------------------------- spans
    ("overlapping spans", "a.jsonl", span(entity(0, 12), entity(4, 12)),
     ["line 2: entity 2, 'Lovelace' (PER, 4 to 12), overlaps with another one", "keep one"]),
    ("the same span twice", "a.jsonl", span(entity(0, 3), entity(0, 3, "X")),
     ["entity 2, 'Ada' (X, 0 to 3), overlaps"]),
    ("a span that cuts a word", "a.jsonl", span(entity(0, 7)),
     ["line 2: entity 1, 'Ada Lov' (PER, 0 to 7), cuts the word 'Lovelace' (4 to 12)", "Words end at blanks"]),
    ("a span of one less", "a.jsonl", span(entity(4, 11)), ["'Lovelac' (PER, 4 to 11), cuts the word 'Lovelace'"]),
    ("a span beyond the text", "a.jsonl", span(entity(22, 99)),
     ["line 2: entity 1 reaches from 22 to 99; accepted are characters from 0 to 29, the end after the start"]),
    ("a span that ends first", "a.jsonl", span(entity(3, 0)), ["entity 1 reaches from 3 to 0"]),
    ("a span of nothing", "a.jsonl", span(entity(3, 3)), ["entity 1 reaches from 3 to 3"]),
    ("a span of a blank", "a.jsonl", span(entity(3, 4)), ["entity 1, ' ' (PER, 3 to 4), holds no word"]),
    ("a negative span", "a.jsonl", span(entity(-3, 3)), ["entity 1 reaches from -3 to 3"]),
    ("a span of floats", "a.jsonl", span(entity(0.0, 3.0)), ["entity 1 is {'start': 0.0", "accepted are start, end"]),
    ("a span of texts", "a.jsonl", span(entity("0", "3")), ["entity 1 is {'start': '0'", "accepted are start, end"]),
    ("a span without label", "a.jsonl", span({"start": 0, "end": 3}), ["entity 1 is {'start': 0, 'end': 3}; accepted"]),
    ("a span with null", "a.jsonl", span(entity(0, 3, None)), ["entity 1 is {'start': 0, 'end': 3, 'label': None}"]),
    ("a span with two labels", "a.jsonl", span({"start": 0, "end": 3, "labels": ["A", "B"]}), ["entity 1 is {'start'"]),
    ("a span with an empty label", "a.jsonl", span(entity(0, 3, " ")), ["entity 1 has the label '', which names no"]),
    ("a span with a piece of json", "a.jsonl", span(entity(0, 3, '"PER"')), ["entity 1 has the label '\"PER\"'"]),
    ("a list of two", "a.jsonl", span([0, 3]), ["line 2: entity 1 is [0, 3]; accepted are start, end and label"]),
    ("a span counted in bytes", "a.jsonl", span(entity(7, 8, text="a"), text="üüü a b c"),
     ["entity 1 has the text 'a', but from 7 to 8 there is ' '", "Count characters"]),
    ("tags among spans", "a.jsonl", span("O", "O"), ["line 2: entity 1 is 'O'; accepted are start, end and label"]),
    ("spans among tags", "a.jsonl", line("EU", ["O"]) + line("EU", [entity(0, 2)]), ["line 2: tag 1 is {'start': 0"]),
    ("no text beside spans", "a.jsonl", span(entity(0, 3), text=None), ["line 2: the words are None"]),
    ("an empty text beside spans", "a.jsonl", span(text=" "), ["line 2: found a text without words. Remove it"]),
    ("null instead of spans", "a.jsonl", span() + '{"text": "EU", "entities": null}', ["line 3: the tags are None"]),
    # --------------------------------------------------------------------------------------------------- parquet
    ("truncated parquet", "a.parquet", PARQUET[: len(PARQUET) // 2], ["not readable as parquet: ", "Write it anew"]),
    ("no parquet", "a.parquet", GOOD, ["not readable as parquet: ", "DataFrame.to_parquet"]),
    ("an empty parquet file", "a.parquet", "", ["not readable as parquet: ", "0 bytes"]),
    ("damaged parquet", "a.parquet", PARQUET.replace(b"EU", b"\xff\xfe"), ["not readable as parquet: "]),
    ("parquet without rows", "a.parquet", parquet([], []), ["has no rows"]),
    ("bytes", "a.parquet", parquet([[b"EU"]], [["O"]]), ["row 1: word 1 is b'EU'; accepted are texts"]),
    ("null in parquet", "a.parquet", parquet([["EU"], None], [["O"], ["O"]]), ["row 2: the words are None"]),
    ("numbers in parquet", "a.parquet", parquet([["EU"]], [[3]]), ["row 1: tag 1 is the number 3"]),
    ("ClassLabel and label_list", "a.parquet", parquet([["EU"]], [[1]], ["O", "B-Y"]),
     ["stand for different tags: ", "a.parquet has O, B-Y; data.label_list has O, B-X", "remove data.label_list"],
     LABELS),
    # ----------------------------------------------------------------------------------------------------- files
    ("truncated gzip", "a.jsonl.gz", gzip.compress((GOOD * 999).encode())[:-50],
     ["cannot be read: Compressed file ended", "Is it whole? Pack it anew"]),
    ("damaged gzip", "a.conll.gz", gzip.compress(b"EU\tO\n")[:-8] + b"12345678", ["cannot be read: CRC"]),
    ("no gzip", "a.csv.gz", HEADER + ROW, ["cannot be read: Not a gzipped file", "Pack it anew"]),
    ("gzip without its ending", "a.csv", gzip.compress(ROW.encode()), ["line 1: found the byte 0x8b", UTF8]),
    ("gzip of nothing", "a.conll.gz", gzip.compress(b""), ["has no rows"]),
    ("truncated parquet in gzip", "a.parquet.gz", gzip.compress(PARQUET)[:-99], ["Compressed file ended"]),
    ("an unknown ending", "a.xlsx", GOOD, ["ends in '.xlsx'; accepted are .json, .jsonl", "data.file_format: one of"]),
    ("no ending", "train", GOOD, ["has no ending; accepted are .json", "with or without .gz"]),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case[1:], id=case[0]) for case in BAD])
def test_a_bad_file_is_refused(case: tuple[Any, ...], tmp_path: Path) -> None:
    name, content, said, *options = case
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with refuses(str(tmp_path / name), *said):
        read(tmp_path / name, **(options[0] if options else {}))


# ----------------------------------------------------------------------------------- a format that is not the file's

UNIFORM = [(["Ada", "met", "Bob"], ["B-PER", "O", "B-PER"])] * 6  # the same number of cells whatever one splits at

FORMATS = ("json", "jsonl", "csv", "tsv", "parquet", "conll", "conllu")


@pytest.mark.parametrize("sentences", [pytest.param(SENTENCES, id="sample"), pytest.param(UNIFORM, id="uniform")])
@pytest.mark.parametrize("name", CASES)
def test_another_file_format_than_the_file_has_is_refused(name: str, sentences: Any, tmp_path: Path) -> None:
    case = CASES[name]
    content = case.write([sentence for sentence in sentences if case.holds(sentence[0])])
    write_file(tmp_path / "a", content)
    # With names for the columns, CoNLL-U and other columns are read alike.
    alike = [{"json", "jsonl"}, {"conll", "conllu"} if "global.columns" in str(content) else set()]
    right = set().union({case.file_format}, *(formats for formats in alike if case.file_format in formats))
    for file_format in set(FORMATS) - right:
        with refuses(str(tmp_path / "a")):
            read(tmp_path / "a", **{**case.options, "file_format": file_format})


# --------------------------------------------------------------------------------------------------- files and globs


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("a.json", ["a.json does not exist"], id="missing"),
        pytest.param("a\0.json", ["does not exist"], id="an impossible name"),
        pytest.param("a" * 300, ["does not exist"], id="a name too long"),
        pytest.param("*.json", ["*.json does not exist"], id="a glob that matches nothing"),
        pytest.param("a_folder", ["a_folder is a folder"], id="a folder"),
        pytest.param("*_folder", ["a_folder is a folder"], id="a glob that matches a folder"),
        pytest.param("fifo", ["fifo is no file"], id="a FIFO"),
        pytest.param("/dev/null", ["/dev/null is no file"], id="a device"),
        pytest.param("link_to_nothing", ["link_to_nothing does not exist"], id="a broken link"),
        pytest.param("link_to_itself", ["link_to_itself does not exist"], id="a link to itself"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_key(name: str, said: list[str], split: str, tmp_path: Path) -> None:
    (tmp_path / "a_folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link_to_nothing").symlink_to("nothing")
    (tmp_path / "link_to_itself").symlink_to("link_to_itself")
    (tmp_path / "good.jsonl").write_text(GOOD)
    files: Any = {"train_file": str(tmp_path / "good.jsonl"), f"{split}_file": str(tmp_path / name)}
    with refuses(f"data.{split}_file: ", *said, "Give a file, or a glob such as data/*.json"):
        ner.data.load_splits(ner.config.NERDataConfig(**files))


@pytest.mark.parametrize(
    ("ending", "contents", "said"),
    [
        pytest.param("jsonl", [GOOD, "\n"], ["1.jsonl: has no rows"], id="an empty one"),
        pytest.param("jsonl", [GOOD, line(["a"], [])], ["1.jsonl, line 1: found 1"], id="a bad row"),
        pytest.param(
            "jsonl", [GOOD, '{"words": ["a"], "tags": ["O"]}'],
            ["1.jsonl, line 1: no column 'tokens' as in the first row; found words, tags"], id="other columns",
        ),
        pytest.param(
            "conll", ["EU\tO\n", "EU\tNNP\tB-NP\tO\n"],
            ["1.conll, line 1: found 4 columns, but 2 in the first sentence"], id="more columns",
        ),
        pytest.param(
            "csv", [KAGGLE + "1,EU,,O\n", KAGGLE + ",a,,O\n"],
            ["1.csv, line 2: found no sentence's id"], id="a first id missing in the second",
        ),
        pytest.param(
            "parquet", [parquet([["EU"]], [[1]], names) for names in (["O", "B-X"], ["B-X", "O"])],
            ["0.parquet has O, B-X", "1.parquet has B-X, O", "same ClassLabel"], id="other names of numbers",
        ),
    ],
)  # fmt: skip
def test_one_of_several_files_is_named(ending: str, contents: list[Any], said: list[str], tmp_path: Path) -> None:
    for i, content in enumerate(contents):
        write_file(tmp_path / f"{i}.{ending}", content)
    with refuses(*said):
        read(tmp_path / f"*.{ending}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("\n", ["b.jsonl: has no rows"], id="no rows"),
        pytest.param(
            '{"words": ["EU"], "tags": ["O"]}\n',
            ["b.jsonl, line 1: no column 'tokens'; found words, tags. Set data.text_column_name"], id="other columns",
        ),
        pytest.param(
            line(["a", "b"], ["I-X", "I-X"]), ["schemes", "IOB1", "IOB2", "data.label_scheme"], id="another scheme"
        ),
    ],
)  # fmt: skip
def test_a_split_that_does_not_go_with_train_is_refused(content: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line(["a", "b"], ["B-X", "I-X"]))
    (tmp_path / "b.jsonl").write_text(content)
    with refuses(*said):
        read(tmp_path / "a.jsonl", validation_file=str(tmp_path / "b.jsonl"))


def read_as_another_user(files: list[Path], messages: Any) -> None:
    if os.geteuid() == 0:  # to whom everything is open
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for file in files:
        try:
            read(file)
            messages.put(f"{file} was read")
        except Exception as error:
            messages.put(f"{type(error).__name__}: {error}")


def test_a_file_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir()
        files = [folder / "a.jsonl", folder / "b.parquet", folder / "c.tsv.gz", folder / "closed" / "a.jsonl"]
        for file in files:
            file.write_text(GOOD)
            file.chmod(0)
        (folder / "closed").chmod(0)
        fork = multiprocessing.get_context("fork")
        messages: Any = fork.Queue()
        process = fork.Process(target=read_as_another_user, args=(files, messages))
        process.start()
        found = [messages.get(timeout=60) for _ in files]
        process.join()
        (folder / "closed").chmod(0o700)
    for message, file in zip(found, files):
        says = "may not look" if "closed" in str(file) else "cannot be read: Permission denied. Check its owner"
        check_message(message, ("TrialError: ", str(file), says))


# --------------------------------------------------------------------------------------- the whole trial, and train.py


@pytest.mark.parametrize("name", ["a tag is missing", "mixed schemes", "a word without tag", "truncated parquet"])
def test_nothing_trains_on_a_bad_file(
    name: str, config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path
) -> None:
    _, file, content, said, *options = next(case for case in BAD if case[0] == name)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not options
    config["data"] |= {"train_file": str(tmp_path / file), "validation_file": str(tmp_path / file)}
    with refuses(*said):
        fit(config)
    assert not list(tmp_path.glob("run*"))


def test_train_py_stops_with_the_message_alone(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD + '{"tokens": ["a"]}\n')
    config["data"]["train_file"] = str(tmp_path / "a.jsonl")
    with pytest.raises(SystemExit) as stopped:
        train_here(config, tmp_path)
    assert stopped.value.code == 1
    said = caplog.records[-1]
    assert said.exc_info is None
    check_message(said.getMessage(), (f"{tmp_path / 'a.jsonl'}, line 2: no column 'ner_tags'",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({}, ["data.train_file: missing"], id="no data"),
        pytest.param({"dataset_name": "d", "file_format": "csv"}, ["data.file_format: csv has an effect"], id="format"),
        pytest.param({"file_format": "xml"}, ["file_format: found 'xml'; accepted is one of json"], id="no format"),
        pytest.param({"metric_scheme": "IOB2"}, ["data.metric_scheme: IOB2", "metric_mode: strict"], id="scheme"),
        pytest.param({"label_list": ["O", "B-X", "O"]}, ["data.label_list: O stands there twice"], id="twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], said: list[str]) -> None:
    files = {} if "dataset_name" in options or not options else {"train_file": "a.json"}
    with refuses(*said):
        ner.data.load_splits(parse_trial_config(HPARAMS, files | options, ner.config.NERDataConfig).data)


@pytest.mark.parametrize("options", [{}, {"metric_mode": "strict", "metric_scheme": "IOB2"}, LABELS])
def test_settings_that_agree_are_accepted(options: dict[str, Any]) -> None:
    parse_trial_config(HPARAMS, {"train_file": "a.json", **options}, ner.config.NERDataConfig)
