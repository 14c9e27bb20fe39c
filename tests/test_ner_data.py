"""From files and data sets to checked rows: columns, names of numbers, cache, memory, and WNUT 17 in two formats."""

import functools
import json
import os
import random
import string
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
from conftest import SAMPLE_MODEL, SHARED_DATA, Patch, needs_wnut, refuses, slow
from test_ner_formats import class_label_features
from training_process import run_python

import ner.cells
import ner.columns
import ner.data
import ner.formats
from ner.columns import Columns, Record, count_column_names, find_columns
from ner.config import InputOptions, NERDataConfig, ReadOptions
from ner.data import read_sentences

NAMES = ["O", "B-PER", "I-PER", "B-ORG"]

ROWS = [
    {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
    {"tokens": ["null", "NA", "Ada", "Lovelace"], "ner_tags": ["O", "O", "B-PER", "I-PER"]},
]

LINE = json.dumps(ROWS[0]) + "\n"
INTEGERS = [{"tokens": row["tokens"], "ner_tags": [NAMES.index(tag) for tag in row["ner_tags"]]} for row in ROWS]
WNUT = SHARED_DATA / "wnut17"


def read(config: NERDataConfig) -> datasets.DatasetDict:
    return ner.data.read_splits(ner.data.load_splits(config), config, "ner")[0]


def words_and_tags(rows: datasets.Dataset) -> list[tuple[list[str], list[str]]]:
    return [(row["tokens"], row["tags"]) for row in rows]


def table(*names: str, cell: Any = ("x",)) -> Record:
    return Record("a.json, line 1", {name: list(cell) if isinstance(cell, tuple) else cell for name in names})


def columns(*cells: str, names: str = "") -> Record:
    """The sentence that these columns make, each a text with spaces between the cells."""
    lists = [[cell or None for cell in text.split(" ")] for text in cells]
    keys = names.split() or [str(i) for i in range(len(cells))]
    return Record("a.conll, line 1", dict(zip(keys, lists)), ["a.conll, line 1"] * len(lists[0]))


COLUMNS: dict[str, Any] = {
    # As run_ner.py finds them.
    "usual names": (table("id", "ner_tags", "tokens"), ("tokens", "ner_tags")),
    "another task": (table("id", "tokens", "pos_tags", "ner_tags"), ("tokens", "pos_tags"), {"task": "pos"}),
    "first and second": (table("mots", "sorte", "id"), ("mots", "sorte")),
    "first and usual": (table("mots", "x", "ner_tags"), ("mots", "ner_tags")),
    "usual and second": (table("tokens", "sorte", "id"), ("tokens", "sorte")),
    "words": (table("tokens", "ner_tags", "w"), ("w", "ner_tags"), {"text_column_name": "w"}),
    "tags": (table("tokens", "ner_tags", "t"), ("tokens", "t"), {"label_column_name": "t"}),
    "by number": (table("a", "b", "c"), ("a", "c"), {"label_column_name": -1}),
    # What the tables of others have.
    "in capitals": (table("Tags", "Words"), ("Words", "Tags")),
    "after the index of pandas": (table("", "mots", "x"), ("mots", "x")),
    "after an index read back": (table("Unnamed: 0", "mots", "x"), ("mots", "x")),
    "after the sentence's id": (table("sent_id", "mot", "x", cell="y"), ("mot", "x", "sent_id")),
    "an id of sentences": (table("sentence_id", "tokens", "tags"), ("tokens", "tags")),
    "an id by its name": (table("d", "word", "tag", cell="y"), ("word", "tag", "d"), {"sentence_column_name": "d"}),
    "spans, tokens": (Record("", {"text": "a", "tokens": [{}], "spans": [{}]}), ("text", "spans")),
    "a blank after a name": (table("words", "tags "), ("words", "tags ")),
    "it holds tags": (Record("", {"word": "EU", "POS": "NNP", "NE": "B-ORG", "doc": "a"}), ("word", "NE")),
    "the second holds tags": (
        Record("", {"mots": "['EU', 'a']", "x": "['B-X', 'O']", "chunks": "['B-NP', 'O']"}), ("mots", "x"),
    ),
    # CoNLL columns: the last one that holds tags.
    "two columns": (columns("EU is", "B-ORG O"), ("0", "1")),
    "four columns": (columns("EU is", "NNP VB", "B-NP O", "I-ORG O"), ("0", "3")),
    "plain and no O: chunks": (columns("Ada", "NNP", "B-NP", "PER"), ("0", "2")),
    "plain beside O": (columns("a b c", "X X X", "B-NP O O", "PER O O"), ("0", "3")),
    "plain types: the last": (columns("EU is", "X Y", "PER ORG"), ("0", "2")),
    "nothing in the last": (columns("EU is", "B-ORG O", "- -"), ("0", "1")),
    "an empty last one": (columns("EU is", "B-ORG O", " "), ("0", "1")),
    "something else in the last": (columns("EU is", "B-ORG O", "d1 d1"), ("0", "1")),
    "numbers in the last": (columns("EU is", "B-NP O", "3 0"), ("0", "2")),
    "a count of words": (columns("1 2", "EU is", "B-ORG O", "- -"), ("1", "2")),
    "a count from 0": (columns("0 1", "EU is", "B-ORG O"), ("1", "2")),
    "numbers that are words": (columns("1 2", "O O"), ("0", "1")),
    "numbers": (columns("O", "B-X"), ("1", "0"), {"text_column_name": 1, "label_column_name": "0"}),
    "names of columns": (columns("a", "O", names="FORM NER"), ("FORM", "NER")),
    "CoNLL-U": (columns("1", "a", "X", "O", names="ID FORM UPOS MISC"), ("FORM", "MISC")),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_are_found(case: str) -> None:
    first, expected, *others = COLUMNS[case]
    options = dict(*others)
    task = options.pop("task", "ner")
    found = find_columns([first], ReadOptions(**options), task)
    assert (found.text, found.label, *([found.sentence] if found.sentence else [])) == expected


def test_text_to_predict_on_needs_no_column_of_tags() -> None:
    options = InputOptions()
    for first in (columns("EU is", "NNP VB"), table("text", "x"), table("text")):
        assert find_columns([first], options, "ner").label is None
    assert find_columns([columns("EU is", "B-ORG O")], options, "ner").label == "1"


def test_more_sentences_than_the_first_tell_a_count_from_words() -> None:
    single, other = columns("1", "CD", "O"), columns("EU is", "NN VB", "B-ORG O")
    assert find_columns([single, other], ReadOptions(), "ner") == Columns("0", "2", num_unnamed=3)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["word", "tag"], True), (["Token", "Gold Label"], True), (["text", "ner_tags", "x"], True),
        (["word", "O"], False), (["text", "B-label"], False), (["EU", "B-ORG"], False),
    ],
    ids=str,
)  # fmt: skip
def test_a_header_is_told_from_words(cells: list[str], expected: bool) -> None:
    assert (count_column_names(cells, ReadOptions()) >= 2) == expected


def class_labels(names: list[str] = NAMES) -> datasets.Dataset:
    return datasets.Dataset.from_list(INTEGERS, features=class_label_features(names))


@pytest.mark.parametrize("label_list", [None, NAMES], ids=["ClassLabel", "label_list too"])
def test_a_saved_data_set_keeps_its_class_labels(label_list: list[str] | None, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": class_labels(), "validation": class_labels()}).save_to_disk(tmp_path / "saved")
    config = NERDataConfig(dataset_name=str(tmp_path / "saved"), label_list=label_list)
    rows, names = ner.data.read_splits(ner.data.load_splits(config), config, "ner")
    assert words_and_tags(rows["validation"]) == [(row["tokens"], row["ner_tags"]) for row in ROWS]
    assert names == tuple(NAMES)
    with refuses("is a data set that the datasets library saved. Name it by data.dataset_name"):
        ner.data.load_splits(NERDataConfig(train_file=str(tmp_path / "saved")))


def test_numbers_of_one_split_have_the_names_of_another(tmp_path: Path) -> None:
    class_labels().to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps(INTEGERS))
    splits = read(NERDataConfig(train_file=str(tmp_path / "a.parquet"), validation_file=str(tmp_path / "b.jsonl")))
    assert words_and_tags(splits["validation"]) == words_and_tags(splits["train"])


@pytest.mark.parametrize(
    ("splits", "data", "said"),
    [
        ({"test": class_labels()}, {}, "no train split; found are test"),
        ({}, {}, "no train split; found are none"),
        ({"train": class_labels().select([])}, {}, "the data set (train split): has no rows"),
        (
            {"train": class_labels(), "validation": class_labels(NAMES[::-1])}, {},
            "(train split) has O, B-PER, I-PER, B-ORG; the data set (validation split) has B-ORG, I-PER, B-PER, O. "
            "Save all splits with the same ClassLabel",
        ),
    ],
)  # fmt: skip
def test_rows_of_ones_own_are_checked(splits: dict[str, Any], data: dict[str, Any], said: str) -> None:
    with refuses(said):
        ner.data.read_splits(splits, NERDataConfig(**data), "ner")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param({"test.jsonl": LINE}, ["has no train split", "it has test"], id="no train split"),
        pytest.param({}, ["cannot load", "a local folder"], id="empty folder"),
        pytest.param({"folder.py": "import datasets\n"}, ["loading script", "refs/convert/parquet"], id="script"),
        pytest.param({"dataset_dict.json": "{"}, ["cannot load", "a local folder"], id="broken state"),
        pytest.param({"train.jsonl": LINE + LINE.replace('"O"', '""')}, ["row 2: tag 2 is missing"], id="bad row"),
        pytest.param("/no/such/folder", ["cannot load", "a local folder"], id="no folder"),
        pytest.param("lhoestq/conll2003", ["cannot load", "HF_TOKEN", "in the cache"], id="hub"),
        *((f"{owner}conll2003", ["lhoestq/conll2003, which holds the same"]) for owner in ("", "eriktks/", "tner/")),
    ],
)  # fmt: skip
def test_a_data_set_that_does_not_load_is_named(make: Any, said: list[str], tmp_path: Path) -> None:
    name = make if isinstance(make, str) else str(tmp_path / "folder")
    if isinstance(make, dict):
        (tmp_path / "folder").mkdir()
        for file, content in make.items():
            (tmp_path / "folder" / file).write_text(content)
    with refuses(name, *said):
        read(NERDataConfig(dataset_name=name))


def test_a_revision_without_a_script_is_not_called_one() -> None:
    with refuses("cannot load eriktks/conll2003", "in the cache") as raised:
        read(NERDataConfig(dataset_name="eriktks/conll2003", dataset_revision="refs/convert/parquet"))
    assert "loading script" not in str(raised.value)


def count_reads(file: Path, **options: Any) -> tuple[int, list[Any]]:
    """How many splits were not found in the cache, and what was read."""
    with mock.patch.object(ner.data, "read_sentences", wraps=read_sentences) as counting:
        rows = read(NERDataConfig(train_file=str(file), **options))["train"]
    return counting.call_count, words_and_tags(rows)


def change_within(folder: Path, _: Any) -> None:
    path = folder / "a.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("EU", "UN"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def change_code(module: Any, folder: Path, patch: Patch) -> None:
    (folder / "changed.py").write_text(Path(module.__file__).read_text() + "# changed\n")
    patch.setattr(module, "__file__", str(folder / "changed.py"))


@pytest.mark.parametrize(
    ("change", "num_reads"),
    [
        ({}, 0), ({"preprocessing_num_workers": 2, "max_seq_length": 9}, 0), ({"overwrite_cache": True}, 1),
        ({"file_format": "json"}, 1), ({"label_column_name": "tags"}, 1), ({"text_column_name": "words"}, 1),
        ({"label_list": ["B-ORG", "O"]}, 1), (change_within, 1),
        (lambda folder, _: (folder / "b.jsonl").write_text(LINE), 1),  # another file of the glob
        (lambda folder, _: (folder / "a.jsonl").rename(folder / "c.jsonl"), 1),
        *((functools.partial(change_code, module), 1) for module in (ner.cells, ner.columns, ner.data, ner.formats)),
    ],
)  # fmt: skip
def test_the_cache_is_used_unless_something_changed(
    change: Any, num_reads: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    columns = {"tokens": ["EU"], "ner_tags": ["O"], "tags": ["B-ORG"], "words": ["the"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(columns) + "\n")
    assert [count_reads(tmp_path / "*.jsonl")[0] for _ in range(2)] == [1, 0]
    options = change if isinstance(change, dict) else {}
    if callable(change):
        change(tmp_path, monkeypatch)
    found, rows = count_reads(tmp_path / "*.jsonl", **options)
    assert found == num_reads
    assert count_reads(tmp_path / "*.jsonl", **{**options, "overwrite_cache": True}) == (1, rows)


READ_FROM_CACHE = """
import sys, ner.data
ner.data.read_sentences = None  # what is called only if nothing is in the cache
config = ner.config.NERDataConfig(train_file=sys.argv[1], cache_dir=sys.argv[2])
print(ner.data.read_splits(ner.data.load_splits(config), config, "ner")[0]["train"]["tokens"][0])
"""


def test_another_process_finds_the_cache_also_one_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    file, cache = str(tmp_path / "a.jsonl"), str(tmp_path / "cache")
    for anew in (False, True):
        read(NERDataConfig(train_file=file, cache_dir=cache, overwrite_cache=anew))
    assert run_python("-c", READ_FROM_CACHE, file, cache)[0].strip() == "['EU', 'rejects']"


CONVERT = """
import json, resource, sys
import ner.data, ner_utils, transformers
tokenizer, peaks = transformers.AutoTokenizer.from_pretrained(sys.argv[1]), []
for file in sys.argv[3:]:
    config = ner.config.NERDataConfig(train_file=file, cache_dir=sys.argv[2])
    rows, _ = ner.data.read_splits(ner.data.load_splits(config), config, "ner")
    tokenized = ner_utils.build_tokenized_datasets(rows, tokenizer, ["O", "B-PER"], 128, 64, num_workers=2)
    usage = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peaks.append({"MiB": usage, "rows": rows["train"].num_rows, "files": len(tokenized["train"].cache_files)})
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file_and_progress_is_shown(tmp_path: Path) -> None:
    draw, files = random.Random(0), [tmp_path / "small.conll", tmp_path / "large.conll"]
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 10))) for _ in range(5000)]
    for file, num_sentences in zip(files, (2_000, 12_000)):
        lines = (f"{draw.choice(words)}\t{draw.choice(['O', 'O', 'B-PER'])}\n" for _ in range(20 * num_sentences))
        file.write_text("".join(line + "\n" * (i % 20 == 19) for i, line in enumerate(lines)))
    output, shown = run_python("-c", CONVERT, SAMPLE_MODEL, tmp_path / "cache", *files)
    assert "Generating train split: 12000 examples" in shown
    assert "Tokenizing train, a thousand rows a step (num_proc=2): 100%" in shown
    small, large = json.loads(output)
    assert (small["rows"], large["rows"], large["files"]) == (2000, 12000, 2)
    # As lists, 200,000 words more are some 27 MiB more, and 7 MiB were measured.
    assert large["MiB"][0] - small["MiB"][0] < 16
    assert large["MiB"][1] - small["MiB"][1] < 32


@needs_wnut
@pytest.mark.parametrize(
    ("split", "num_sentences", "num_words"),
    [slow("train", 3394, 62730), ("validation", 1009, 15733), slow("test", 1287, 23394)],
)
def test_wnut_is_the_same_as_columns_and_as_json(split: str, num_sentences: int, num_words: int) -> None:
    files = (WNUT / "conll" / f"{split}.conll", WNUT / f"{split}.json")
    columns, rows = (words_and_tags(read(NERDataConfig(train_file=str(file)))["train"]) for file in files)
    assert columns == rows
    assert (len(rows), sum(len(words) for words, _ in rows)) == (num_sentences, num_words)
    lines = [line.split("\t") for line in files[0].read_text(encoding="utf-8").splitlines() if line.strip()]
    assert Counter(tag for _, tag in lines) == Counter(tag for _, tags in rows for tag in tags)


def test_a_file_replaced_meanwhile_poisons_no_cache(tmp_path: Path, monkeypatch: Patch) -> None:
    file, parse = tmp_path / "a.jsonl", ner.cells.parse_cells
    file.write_text('{"tokens": ["old"], "ner_tags": ["O"]}\n')
    old = file.read_text()

    def replace_once(*arguments: Any, **options: Any) -> Any:
        if file.read_text() == old:
            file.with_suffix(".new").write_text(old.replace("old", "new"))
            file.with_suffix(".new").replace(file)
            return ["changed"], ["O"]
        return parse(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ner.data, "parse_cells", replace_once)
        assert count_reads(file)[1] == [(["new"], ["O"])]
    file.write_text(old)
    assert count_reads(file)[1] == [(["old"], ["O"])]
