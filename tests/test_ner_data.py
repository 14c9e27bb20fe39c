"""From files and data sets to checked rows of words and tags, and what is said of those that are not right."""

import ast
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import SAMPLE_DATA
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ner_data import Columns, NERDataConfig, check_rows, find_columns, read_list
from transformer_trial.data import default_load_dataset, select_splits
from transformer_trial.parsing import TrialError

FIXED = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

NAMES = ["O", "B-PER", "I-PER", "B-ORG"]

ROWS = [
    {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
    {"tokens": ["null", "NA", "nan", "None"], "ner_tags": ["O", "O", "O", "O"]},
    {"tokens": ["don't", '"', "a,b", "two\nlines", "tab\t", "'", "\\n", ""], "ner_tags": ["O"] * 8},
    {"tokens": ["Zoë", "Müller", "東京", "👩‍👩‍👧", "\u200b", "1"], "ner_tags": ["B-PER", "I-PER", "O", "O", "O", "O"]},
]


def read(config: NERDataConfig, task: str = "ner") -> datasets.DatasetDict:
    """Checked rows, by the way that NERTrial takes."""
    splits = default_load_dataset(config)
    return select_splits(check_rows(splits, find_columns(splits, config, task), config), config)


def read_rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The checked rows of one file, which serves as both splits."""
    config = NERDataConfig(train_file=str(path), validation_file=str(path), **options)
    splits = read(config)
    rows: list[dict[str, Any]] = splits["train"].to_list()
    assert splits["validation"].to_list() == rows
    return rows


def checked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"tokens": row["tokens"], "tags": row["ner_tags"]} for row in rows]


def write_csv(rows: list[dict[str, Any]], path: Path, *, cell: Callable[[Any], str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["tokens", "ner_tags"])
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param("a.jsonl", write_jsonl, id="jsonl"),
        pytest.param("a.json", lambda rows, path: path.write_text(json.dumps(rows)), id="json"),
        pytest.param(
            "a.json", lambda rows, path: path.write_text("\n".join(json.dumps(row, indent=1) for row in rows)),
            id="json over several lines",
        ),
        pytest.param("a.parquet", lambda rows, path: pd.DataFrame(rows).to_parquet(path), id="parquet"),
        pytest.param("a.csv", lambda rows, path: write_csv(rows, path, cell=json.dumps), id="csv with JSON"),
        pytest.param("a.csv", lambda rows, path: write_csv(rows, path, cell=repr), id="csv with Python text"),
        pytest.param("a.csv", lambda rows, path: pd.DataFrame(rows).to_csv(path, index=False), id="csv by pandas"),
        pytest.param(
            "a.csv", lambda rows, path: write_csv(rows, path, cell=lambda c: json.dumps(c, indent=1)),
            id="csv with lines in cells",
        ),
    ],
)  # fmt: skip
def test_all_file_formats_give_the_same_rows(
    name: str, write: Callable[[list[dict[str, Any]], Path], None], tmp_path: Path
) -> None:
    write(ROWS, tmp_path / name)
    assert read_rows(tmp_path / name) == checked(ROWS)


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_the_sample_is_the_same_in_every_format(ending: str) -> None:
    names = ("train", "validation", "test")
    files: dict[str, Any] = {f"{split}_file": str(SAMPLE_DATA / f"{split}.{ending}") for split in names}
    splits = read(NERDataConfig(**files))
    for split in names:
        lines = (SAMPLE_DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()
        assert splits[split].to_list() == checked([json.loads(line) for line in lines])


@settings(FIXED, max_examples=25)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    cell=st.sampled_from((json.dumps, repr)),
)
def test_any_words_survive_a_csv_file(
    words: list[str], cell: Callable[[Any], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [{"tokens": words, "ner_tags": ["O"] * len(words)}]
    write_csv(rows, path, cell=cell)
    assert read_rows(path) == checked(rows)


@FIXED
@given(cell=st.text() | st.text(alphabet="[]{}()'\", 1:\\\n-O"))
@example("{[]: 1}")
@example("[" * 10_000)
@example("['EU' 'rejects']")
@example("('EU', 'rejects')")
def test_a_text_is_read_as_the_list_that_it_writes_down_or_refused(cell: str) -> None:
    try:
        found = read_list(cell, "words")
    except ValueError as error:
        assert str(error).startswith("the words are ")
        return
    try:
        expected = json.loads(cell)
    except ValueError:
        expected = list(ast.literal_eval(cell.strip()))
    assert repr(found) == repr(expected)  # by repr: NaN is not equal to itself


INTEGERS = [{"tokens": row["tokens"], "ner_tags": [NAMES.index(tag) for tag in row["ner_tags"]]} for row in ROWS]

CLASS_LABELS = datasets.Dataset.from_list(
    INTEGERS,
    features=datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=NAMES))}
    ),
)


@pytest.mark.parametrize(
    ("name", "write", "options"),
    [
        pytest.param("a.parquet", lambda path: CLASS_LABELS.to_parquet(path), {}, id="ClassLabel"),
        pytest.param("a.parquet", lambda p: CLASS_LABELS.to_parquet(p), {"label_list": NAMES}, id="ClassLabel twice"),
        pytest.param("a.jsonl", lambda path: write_jsonl(INTEGERS, path), {"label_list": NAMES}, id="numbers in json"),
        pytest.param(
            "a.csv", lambda path: write_csv(INTEGERS, path, cell=str), {"label_list": NAMES}, id="numbers in csv"
        ),
        pytest.param("a.jsonl", lambda path: write_jsonl(ROWS, path), {"label_list": NAMES}, id="texts"),
        pytest.param("a.jsonl", lambda path: write_jsonl(ROWS, path), {"preprocessing_num_workers": 2}, id="processes"),
    ],
)
def test_tags_are_read_as_texts(
    name: str, write: Callable[[Path], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert read_rows(tmp_path / name, **options) == checked(ROWS)


def test_a_saved_data_set_keeps_its_class_labels(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": CLASS_LABELS, "validation": CLASS_LABELS}).save_to_disk(tmp_path / "saved")
    splits = read(NERDataConfig(dataset_name=str(tmp_path / "saved")))
    assert splits["validation"].to_list() == checked(ROWS)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_checked_rows_are_found_in_the_cache(num_workers: int, tmp_path: Path) -> None:
    write_jsonl(ROWS, tmp_path / "a.jsonl")
    options: dict[str, Any] = {f"{split}_file": str(tmp_path / "a.jsonl") for split in ("train", "validation")}
    config = NERDataConfig(**options, preprocessing_num_workers=num_workers)

    def files() -> list[tuple[str, int]]:
        found = [file["filename"] for rows in read(config).values() for file in rows.cache_files]
        return [(name, Path(name).stat().st_mtime_ns) for name in found]

    first = files()
    assert len(set(first)) == 2 * num_workers
    assert files() == first


# ----------------------------------------------------------------------------------------------------------- columns


def make_splits(*names: str, **others: list[str]) -> datasets.DatasetDict:
    """Splits with such columns of texts."""
    columns = {"train": list(names), **others}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({n: [["x"]] for n in found}) for split, found in columns.items()}
    )


@pytest.mark.parametrize(
    ("found", "options", "task", "expected"),
    [
        pytest.param(["id", "ner_tags", "tokens"], {}, "ner", ("tokens", "ner_tags"), id="usual names"),
        pytest.param(["id", "tokens", "pos_tags", "ner_tags"], {}, "pos", ("tokens", "pos_tags"), id="another task"),
        pytest.param(["words", "labels", "id"], {}, "ner", ("words", "labels"), id="first and second"),
        pytest.param(["words", "labels", "ner_tags"], {}, "ner", ("words", "ner_tags"), id="first and usual"),
        pytest.param(["tokens", "labels", "id"], {}, "ner", ("tokens", "labels"), id="usual and second"),
        pytest.param(
            ["tokens", "ner_tags", "w"], {"text_column_name": "w"}, "ner", ("w", "ner_tags"), id="given words"
        ),
        pytest.param(
            ["tokens", "ner_tags", "t"], {"label_column_name": "t"}, "ner", ("tokens", "t"), id="given tags"
        ),
    ],
)  # fmt: skip
def test_columns_are_found_as_run_ner_finds_them(
    found: list[str], options: dict[str, Any], task: str, expected: tuple[str, str]
) -> None:
    config = NERDataConfig(dataset_name="d", **options)
    assert find_columns(make_splits(*found), config, task) == Columns(*expected, label_names=None)


@pytest.mark.parametrize(
    ("splits", "options", "said"),
    [
        pytest.param(
            make_splits("tokens", "tags"), {"text_column_name": "words"},
            ["train.json", "no column 'words'", "tokens, tags", "Set data.text_column_name", "the words"], id="words",
        ),
        pytest.param(
            make_splits("tokens"), {},
            ["train.json", "no column 'ner_tags'", "found tokens", "Set data.label_column_name", "the tags"], id="tags",
        ),
        pytest.param(
            make_splits("tokens", "ner_tags", validation=["tokens", "tags"]), {},
            ["validation.json", "no column 'ner_tags'", "tokens, tags", "data.label_column_name"], id="in one split",
        ),
        pytest.param(make_splits("id", "tokens"), {}, ["data.label_column_name", "'tokens'", "the words too"],
                     id="one"),
    ],
)  # fmt: skip
def test_a_missing_column_is_named(splits: datasets.DatasetDict, options: dict[str, Any], said: list[str]) -> None:
    config = NERDataConfig(train_file="train.json", validation_file="validation.json", **options)
    with pytest.raises(TrialError) as raised:
        find_columns(splits, config, "ner")
    assert_says(raised.value, said)


@pytest.mark.parametrize(
    ("names", "label_list", "said"),
    [
        pytest.param([["O", "B-X"], ["B-X", "O"]], None, ["validation.json has B-X, O"], id="between splits"),
        pytest.param([["O", "B-X"], ["O", "B-X"]], ["O", "B-Y"], ["data.label_list has O, B-Y"], id="in label_list"),
    ],
)
def test_numbers_that_stand_for_different_tags_are_refused(
    names: list[list[str]], label_list: list[str] | None, said: list[str]
) -> None:
    splits = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"tokens": [["x"]], "ner_tags": [[0]]},
                features=datasets.Features(
                    {
                        "tokens": datasets.List(datasets.Value("string")),
                        "ner_tags": datasets.List(datasets.ClassLabel(names=of_split)),
                    }
                ),
            )
            for split, of_split in zip(("train", "validation"), names)
        }
    )
    config = NERDataConfig(train_file="train.json", validation_file="validation.json", label_list=label_list)
    with pytest.raises(TrialError) as raised:
        find_columns(splits, config, "ner")
    assert_says(
        raised.value, ["'ner_tags'", "train.json has O, B-X", *said, "Save all splits with the same ClassLabel"]
    )


# ------------------------------------------------------------------------------------------------------------ errors


def assert_says(error: Exception, said: list[str]) -> None:
    message = str(error)
    assert type(error) is TrialError
    assert [text for text in said if text not in message] == [], message
    assert "\n" not in message
    assert len(message) < 700, message


def line(tokens: Any, tags: Any) -> str:
    return json.dumps({"tokens": tokens, "ner_tags": tags}) + "\n"


GOOD = line(["EU", "rejects"], ["B-ORG", "O"])
HEADER = "tokens,ner_tags\n"
GOOD_CSV = "\"['EU']\",\"['O']\"\n"
LIST_ADVICE = ["accepted is a list", 'JSON (json.dumps) or Python text, such as ["EU", "rejects"]']


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        # The cells of a row, with its number.
        pytest.param("a.jsonl", GOOD + line(["EU", "a"], ["O"]), {},
                     ["row 2: found 2 words but 1 tags (words: EU a; tags: O)", "Every word needs one tag"],
                     id="length"),
        pytest.param("a.jsonl", GOOD * 1200 + line(["a"] * 99, ["O"] * 98), {},
                     ["row 1201: found 99 words but 98 tags", "a a a a a a ..."], id="length in a long row, far down"),
        pytest.param("a.jsonl", GOOD + line(None, ["O"]), {}, ["row 2: the words are None", *LIST_ADVICE],
                     id="null cell"),
        pytest.param("a.jsonl", GOOD + '{"tokens": ["a"]}\n', {}, ["row 2: the tags are None", *LIST_ADVICE],
                     id="no cell"),
        pytest.param("a.jsonl", GOOD + line(["a", None], ["O", "O"]), {},
                     ["row 2: word 2 is None", "accepted are texts", "leave it out"], id="null word"),
        pytest.param("a.jsonl", GOOD + line(["a", 5], ["O", "O"]), {},
                     ["row 2: word 2 is 5", "accepted are texts", "in quotes"], id="a number among words"),
        pytest.param("a.jsonl", line([3, 5], ["O", "O"]), {}, ["row 1: word 1 is 3", "in quotes"],
                     id="numbers as words"),
        pytest.param("a.jsonl", line([["EU"], ["a"]], ["O", "O"]), {},
                     ["row 1: word 1 is ['EU']", "accepted are texts"], id="nested list"),
        pytest.param("a.jsonl", GOOD + line([], []), {}, ["row 2: found a sentence without words", "Remove the row"],
                     id="no words"),
        pytest.param("a.jsonl", GOOD + line("EU rejects", ["O"]), {},
                     ["row 2: the words are 'EU rejects'", *LIST_ADVICE], id="text instead of list"),
        pytest.param("a.jsonl", line("EU rejects " * 50, ["O"]), {}, ["row 1: the words are 'EU", "...", *LIST_ADVICE],
                     id="long text instead of list"),
        pytest.param("a.jsonl", GOOD + line(["a"], [""]), {}, ["row 2: tag 1 is ''", "'B-PER', or whole numbers"],
                     id="empty tag"),
        pytest.param("a.jsonl", GOOD + line(["a"], [None]), {}, ["row 2: tag 1 is None", "'B-PER'"], id="null tag"),
        pytest.param("a.jsonl", line(["a"], [1.0]), {}, ["row 1: tag 1 is 1.0", "whole numbers"], id="float tag"),
        pytest.param("a.jsonl", line(["a"], [True]), {}, ["row 1: tag 1 is True", "'B-PER'"], id="boolean tag"),
        pytest.param("a.jsonl", line(["a"], [1]), {},
                     ["row 1: tag 1 is the number 1", "data.label_list, such as [O, B-PER, I-PER]"],
                     id="nameless number"),
        pytest.param("a.jsonl", line(["a", "b"], [1, 2]), {"label_list": ["O", "B-X"]},
                     ["row 1: tag 2 is the number 2", "accepted are 0 to 1: O, B-X"], id="number too high"),
        pytest.param("a.jsonl", line(["a"], [-1]), {"label_list": ["O", "B-X"]},
                     ["row 1: tag 1 is the number -1", "accepted are 0 to 1"], id="number below 0"),
        pytest.param("a.jsonl", GOOD + line(["a"], ["B-ORGG"]), {"label_list": ["O", "B-ORG"]},
                     ["row 2: tag 1 is 'B-ORGG'", "accepted are O, B-ORG", "data.label_list"],
                     id="tag not in label_list"),
        pytest.param("a.jsonl", GOOD + line(["a"], ["O", "O"]), {"preprocessing_num_workers": 2},
                     ["row 2: found 1 words but 2 tags"], id="length, found by another process"),
        pytest.param("a.csv", HEADER + GOOD_CSV + ",\"['O']\"\n", {}, ["row 2: the words are ''", *LIST_ADVICE],
                     id="empty csv cell"),
        pytest.param("a.csv", HEADER + GOOD_CSV + "\"['EU']\"\n", {}, ["row 2: the tags are ''", *LIST_ADVICE],
                     id="short csv row"),
        pytest.param("a.csv", HEADER + "null,\"['O']\"\n", {}, ["row 1: the words are 'null'", *LIST_ADVICE],
                     id="null csv cell"),
        pytest.param("a.csv", HEADER + "5,\"['O']\"\n", {}, ["row 1: the words are 5", *LIST_ADVICE], id="csv number"),
        pytest.param("a.csv", HEADER + f"\"{np.array(['EU', 'rejects'])}\",\"['O', 'O']\"\n", {},
                     ["row 1: the words are", "['EU' 'rejects']", *LIST_ADVICE], id="printed NumPy texts"),
        pytest.param("a.csv", HEADER + f"\"['EU', 'rejects']\",{np.array([3, 0])}\n", {},
                     ["row 1: the tags are '[3 0]'", *LIST_ADVICE], id="printed NumPy numbers"),
        pytest.param("a.csv", HEADER + "\"{'EU': 'rejects'}\",\"['O']\"\n", {},
                     ["row 1: the words are", "{'EU': 'rejects'}", *LIST_ADVICE], id="a dictionary in a csv cell"),
        pytest.param("a.csv", HEADER + '"[""\\ud83d""]","[""O""]"\n', {}, ["row 1", "surrogates not allowed"],
                     id="half a surrogate pair"),
        # The file as a whole.
        pytest.param("a.json", "", {}, ["data.train_file", "has no rows", "at least one"], id="empty file"),
        pytest.param("a.json", "\n", {}, ["data.train_file", "has no rows", "at least one"], id="blank file"),
        pytest.param("a.json", "[]", {}, ["data.train_file", "has no rows", "at least one"], id="empty list"),
        pytest.param("a.csv", HEADER, {}, ["data.train_file", "has no rows", "at least one"], id="header only"),
        pytest.param("a.parquet", pd.DataFrame({"tokens": [], "ner_tags": []}), {},
                     ["data.train_file", "has no rows", "at least one"], id="parquet without rows"),
        pytest.param("a.conll", "EU B-ORG\n", {}, ["data.train_file", "'.conll'", ".csv, .json, .jsonl, .parquet"],
                     id="unknown ending"),
        pytest.param("train", "EU B-ORG\n", {}, ["data.train_file", "ends in ''", ".csv"], id="no ending"),
        pytest.param("a.jsonl", GOOD + "\n" + '{"tokens": ["a"], "ner_tags": ["O"\n' + GOOD, {},
                     ["data.train_file", "as json: line 3: Expecting", "json.dumps"], id="broken json line"),
        pytest.param("a.json", '[{"tokens": ["a"], "ner_tags": ["O"]},', {},
                     ["data.train_file", "cannot read", "json.dumps"], id="broken json list"),
        pytest.param("a.json", f"[\n{GOOD},\n{{\n]", {}, ["as json: Expected object or value", "json.dumps"],
                     id="broken json list over several lines"),
        pytest.param("a.jsonl", GOOD + '["a"]\n', {}, ["data.train_file", "cannot read", "json.dumps"],
                     id="json lists"),
        pytest.param("a.jsonl", (GOOD + GOOD.replace("EU", "Zürich")).encode("latin-1"), {},
                     ["data.train_file", "line 2: 'utf-8' codec", "UTF-8"], id="latin-1 json"),
        pytest.param("a.csv", (HEADER + GOOD_CSV.replace("EU", "Zürich")).encode("latin-1"), {},
                     ["data.train_file", "'utf-8' codec", "UTF-8"], id="latin-1 csv"),
        pytest.param("a.csv", HEADER + GOOD_CSV + "\"['EU']\",\"['O']\",5,6\n", {},
                     ["data.train_file", "line 3", "quotes where they are needed"], id="too many csv cells"),
        pytest.param("a.csv", HEADER + "\"['EU'],['O']\n", {},
                     ["data.train_file", "quotes where they are needed"], id="open quote in csv"),
        pytest.param("a.csv", "tokens;ner_tags\n['EU'];['O']\n", {}, ["no column 'ner_tags'", "tokens;ner_tags"],
                     id="csv with semicolons"),
        pytest.param("a.parquet", (SAMPLE_DATA / "train.parquet").read_bytes()[:5000], {},
                     ["data.train_file", "cannot read", "as parquet", "DataFrame.to_parquet"], id="truncated parquet"),
        pytest.param("a.parquet", GOOD, {}, ["data.train_file", "as parquet", "DataFrame.to_parquet"],
                     id="not parquet"),
        # The splits.
        pytest.param("a.jsonl", GOOD, {"validation_file": None}, ["no validation split", "validation_split_percentage"],
                     id="no validation split"),
        pytest.param("a.jsonl", GOOD * 3, {"validation_file": None, "validation_split_percentage": 5},
                     ["data.validation_split_percentage: 5% of 3 rows leaves 0", "validation_file"],
                     id="nothing to validate on"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(
    name: str, content: Any, options: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrialError) as raised:
        read(NERDataConfig(**{"train_file": str(path), "validation_file": str(path), **options}))
    about_splits = "validation_file" in options
    assert_says(raised.value, said if about_splits else [str(path), *said])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "does not exist", id="missing"),
        pytest.param(lambda path: path.mkdir(), "is a folder", id="folder"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_key(
    make: Callable[[Path], None], said: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(ROWS, tmp_path / "good.jsonl")
    make(tmp_path / "a.json")
    files: dict[str, Any] = {f"{s}_file": "good.jsonl" for s in ("train", "validation", "test")}
    files[f"{split}_file"] = "a.json"
    with pytest.raises(TrialError) as raised:
        read(NERDataConfig(**files))
    assert_says(raised.value, [f"data.{split}_file: a.json {said}", str(tmp_path / "a.json"), "Give a file"])


def test_the_file_of_the_split_is_named(tmp_path: Path) -> None:
    write_jsonl(ROWS, tmp_path / "good.jsonl")
    (tmp_path / "bad.jsonl").write_text(GOOD + line(["a"], []))
    with pytest.raises(TrialError) as raised:
        read(NERDataConfig(train_file=str(tmp_path / "good.jsonl"), validation_file=str(tmp_path / "bad.jsonl")))
    assert_says(raised.value, ["bad.jsonl, row 2"])


def folder_without_train(folder: Path) -> str:
    folder.mkdir()
    (folder / "test.jsonl").write_text(GOOD)
    return str(folder)


def folder_of_nothing(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def folder_with_a_script(folder: Path) -> str:
    folder.mkdir()
    (folder / f"{folder.name}.py").write_text("import datasets\n")
    return str(folder)


def folder_with_broken_state(folder: Path) -> str:
    datasets.DatasetDict({"train": CLASS_LABELS}).save_to_disk(folder)
    (folder / "train" / "state.json").write_text("{")
    return str(folder)


def folder_with_a_bad_row(folder: Path) -> str:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"tokens": ["a"], "ner_tags": [""]}])}).save_to_disk(
        folder
    )
    return str(folder)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(folder_without_train, ["has no train split", "it has test"], id="no train split"),
        pytest.param(folder_of_nothing, ["cannot load", "a local folder"], id="empty folder"),
        pytest.param(folder_with_a_script, ["needs a loading script", "refs/convert/parquet"], id="script"),
        pytest.param(folder_with_broken_state, ["cannot load", "a local folder"], id="broken state"),
        pytest.param(folder_with_a_bad_row, ["(train split), row 1: tag 1 is ''"], id="bad row"),
        pytest.param(str, ["cannot load", "a local folder"], id="no folder"),
        pytest.param(lambda _: "lhoestq/conll2003", ["cannot load", "HF_TOKEN", "in the cache"], id="hub"),
    ],
)
def test_a_data_set_that_does_not_load_is_named(make: Callable[[Path], str], said: list[str], tmp_path: Path) -> None:
    name = make(tmp_path / "folder")
    with pytest.raises(TrialError) as raised:
        read(NERDataConfig(dataset_name=name))
    assert_says(raised.value, [name, *said])


@pytest.mark.parametrize("name", ["conll2003", "eriktks/conll2003", "tner/conll2003"])
def test_names_that_need_a_script_are_told_their_replacement_also_offline(name: str) -> None:
    with pytest.raises(TrialError) as raised:
        read(NERDataConfig(dataset_name=name))
    assert_says(raised.value, [f"data.dataset_name: {name} needs a loading script", "dataset_name: lhoestq/conll2003"])


def test_a_revision_without_a_script_is_not_called_one() -> None:
    config = NERDataConfig(dataset_name="eriktks/conll2003", dataset_revision="refs/convert/parquet")
    with pytest.raises(TrialError) as raised:
        read(config)
    assert_says(raised.value, ["cannot load eriktks/conll2003", "in the cache"])
    assert "loading script" not in str(raised.value)


def conflicts(**options: Any) -> Iterator[str]:
    return NERDataConfig(train_file="a.json", validation_file="b.json", **options).conflicts()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"metric_scheme": "IOB2"}, ["data.metric_scheme: IOB2", "metric_mode: strict"], id="scheme"),
        pytest.param({"label_list": ["O", "B-X", "O"]}, ["data.label_list: O stands there twice"], id="twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], said: list[str]) -> None:
    (problem,) = conflicts(**options)
    assert [text for text in said if text not in problem] == []


@pytest.mark.parametrize("options", [{}, {"metric_mode": "strict", "metric_scheme": "IOB2"}, {"label_list": NAMES}])
def test_settings_that_agree_are_accepted(options: dict[str, Any]) -> None:
    assert list(conflicts(**options)) == []
