"""The look at the data before training: its numbers against plain loops, its table, and `train.py --inspect`."""

import functools
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from conftest import PROJECT, SAMPLE_MODEL, Config, Log, read_metrics, train_here, write_config, write_lines
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from test_ner_labels import make_rows

from ner.inspect import describe_data, format_data
from ner_utils import build_tokenized_datasets, get_dataset_metadata

Split = list[tuple[list[str], list[str]]]
"""Words and tags of sentences."""


@functools.cache
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SAMPLE_MODEL)


def describe(
    splits: Mapping[str, Split], scheme: str | None = None, label_names: Sequence[str] | None = None, *,
    max_seq_length: int = 6, change: Callable[[Any], Any] = lambda rows: rows,
) -> dict[str, Any]:  # fmt: skip
    """The description of these splits, by the way that NERTrial takes."""
    rows = datasets.DatasetDict()
    for name, split in splits.items():
        words, tags = ([pair[i] for pair in split] for i in range(2))
        rows[name] = change(make_rows(tags, name, tokens=words))
    metadata = get_dataset_metadata(rows, label_names, scheme)
    tokenized = build_tokenized_datasets(rows, tokenizer(), metadata.label_list, max_seq_length, 1)
    return describe_data(rows, tokenized, tokenizer(), metadata.label_list, metadata.label_scheme)


# Of one sub-token but the zero-width space, of none, and the long ones, which are unknown as wholes.
WORDS = ["a", "b", "c", "东", "\u200b", "Ж" * 100, "y" * 101]
SUBTOKENS = dict.fromkeys(WORDS, 1) | {"\u200b": 0}
UNKNOWN = [word for word in WORDS if tokenizer().unk_token_id in tokenizer()(word)["input_ids"]]
PREFIXES = {"IOB2": "BI", "IOE2": "IE", "BIOES": "BIES", "BILOU": "BILU"}


def split_of(scheme: str) -> st.SearchStrategy[Split]:
    tags = st.sampled_from(["O", *(f"{prefix}-{name}" for prefix in PREFIXES[scheme] for name in ("PER", "a-b"))])
    sentence = st.lists(st.tuples(st.sampled_from(WORDS), tags), min_size=1, max_size=7)
    return st.lists(sentence.map(lambda pairs: ([w for w, _ in pairs], [t for _, t in pairs])), min_size=1, max_size=9)


def count(split: Split, train: Split | None = None) -> dict[str, Any]:
    """What the description should say of a split, with windows of four sub-tokens."""
    words = [word for sentence, _ in split for word in sentence]
    in_bioes = [[tag[0].translate(str.maketrans("LU", "ES")) + tag[1:] for tag in tags] for _, tags in split]
    different = {tuple(sentence) for sentence, _ in split}
    counts = {
        "sentences": len(split),
        "words": len(words),
        "longest sentence (words)": max(len(sentence) for sentence, _ in split),
        "longest word (characters)": max(map(len, words)),
        "long words": sum(len(word) > 100 for word in words),
        "sentences in several windows": sum(sum(SUBTOKENS[w] for w in sentence) > 4 for sentence, _ in split),
        "words without sub-tokens": words.count("\u200b"),
        "entities": dict(Counter(name for tags in in_bioes for name, _, _ in get_entities(tags))),
        "duplicate sentences": len(split) - len(different),
    }
    if train is not None:
        known = [sentence for sentence, _ in train]
        counts["sentences that train has too"] = sum(sentence in known for sentence, _ in split)
    return counts


def share_of_unknown(split: Split) -> float:
    """Of the sub-tokens of whole sentences in windows of four that share one, none of which is special."""
    words = [[word for word in sentence if word != "\u200b"] for sentence, _ in split]
    windows = [sentence[start : start + 4] for sentence in words for start in range(0, max(len(sentence) - 1, 1), 3)]
    known = [word in UNKNOWN for window in windows for word in window]
    return sum(known) / max(len(known), 1)


def forbidden_steps(split: Split, scheme: str) -> list[tuple[int, str, str]]:
    """The steps from a tag to the next that are against the rules of the scheme, with the sentence's number."""
    follows = {"IOB1": "B", "IOB2": "I", "BIOES": "IE", "BILOU": "IL"}.get(scheme, "")
    is_followed = {"IOE1": "E", "IOE2": "I", "BIOES": "BI", "BILOU": "BI"}.get(scheme, "")
    found = []
    for number, (_, tags) in enumerate(split, start=1):
        for tag, next_tag in itertools.pairwise(["O", *tags, "O"]):
            alike = tag[1:] == next_tag[1:]
            not_begun = next_tag[0] in follows and not (alike and tag[0] in "BI")
            not_ended = tag[0] in is_followed and not (alike and next_tag[0] in "IEL")
            found += [(number, tag, next_tag)] * (not_begun or not_ended)
    return found


@pytest.mark.parametrize("scheme", list(PREFIXES))
@given(data=st.data())
def test_numbers_and_warnings_are_those_of_plain_loops(scheme: str, data: st.DataObject) -> None:
    train, validation = data.draw(split_of(scheme)), data.draw(split_of(scheme))
    validation += data.draw(st.lists(st.sampled_from(train), max_size=2))
    found = describe(dict(train=train, validation=validation), scheme)
    assert json.loads(json.dumps(found)) == found and format_data(found)
    expected = {"train": count(train), "validation": count(validation, train)}
    assert (found["splits"], found["label_scheme"]) == (expected, scheme)
    tags = {name: {tag for _, tags in split for tag in tags} for name, split in (("t", train), ("v", validation))}
    assert found["labels"] == sorted(tags["t"] | tags["v"])
    beginnings = []
    for name, split in (("train", train), ("validation", validation)):
        if name == "validation" and (unlearned := sorted(tags["v"] - tags["t"])):
            what = "has tags that train has none of, which cannot be learned"
            beginnings.append(f"{name} {what}: {', '.join(unlearned)}.")
        if both := expected[name].get("sentences that train has too"):
            beginnings.append(f"{both} of {len(split)} sentences of {name} are in train too: ")
        if number := expected[name]["long words"]:
            beginnings.append(f"{name} has {number} words of more than 100 characters.")
        if steps := forbidden_steps(split, scheme):
            line, tag, next_tag = steps[0]
            what = f"{name} has {len(steps)} tags that {scheme} forbids there, first {next_tag} after {tag}"
            beginnings.append(f"{what} in {name}.json, line {line}; ")
        if (unknown := share_of_unknown(split)) > 0.2:
            beginnings.append(f"{unknown:.0%} of the sub-tokens of {name} are unknown to the tokenizer, as in: ")
    if duplicates := expected["train"]["duplicate sentences"]:
        beginnings.append(f"{duplicates} sentences of train are there more than once.")
    types = sorted({tag[2:] for tag in found["labels"] if tag != "O"})
    if rare := [name for name in types if expected["train"]["entities"].get(name, 0) < 10]:
        beginnings.append(f"train has fewer than 10 entities of these types: {', '.join(rare)}.")
    beginnings += ["There is no entity in any split."] * (not types)
    assert [text[: len(start)] for text, start in zip(found["warnings"], beginnings)] == beginnings
    assert len(found["warnings"]) == len(beginnings)


def test_rows_are_described_in_whatever_way_the_library_keeps_them() -> None:
    train: Split = [(["a"] * n, ["B-X"] + ["O"] * (n - 1)) for n in (3, 9, 1, 3, 5)] + [(["b"], ["I-X"])]

    def keep_by_indices(rows: datasets.Dataset) -> datasets.Dataset:
        twice = datasets.concatenate_datasets([rows, rows])  # in chunks
        return twice.select(range(rows.num_rows, 2 * rows.num_rows)).select(range(rows.num_rows)[::-1])

    splits = {"train": train, "validation": train[:2]}
    expected, found = describe(splits), describe(splits, change=keep_by_indices)
    assert found == expected
    assert "first I-X after O in train.json, line 6;" in found["warnings"][0]


@pytest.mark.parametrize(
    ("label_scheme", "tags"),
    [
        ("IOB1", "I-X B-X O I-X"), ("IOE1", "E-X I-X O I-X"), ("plain", "X B-X O I-X"),
        (None, "S-X B-X M-X E-X"),  # BMES; the other schemes are in the test above
    ],
)  # fmt: skip
def test_tags_by_the_rules_are_not_warned_of(label_scheme: str | None, tags: str) -> None:
    split: Split = [([f"a{i}", "b", "c", "d"], tags.split()) for i in range(10)]
    assert describe(dict(train=split, validation=[(["q"] * 4, tags.split())]), label_scheme)["warnings"] == []


def test_types_that_differ_only_in_case_are_warned_of() -> None:
    train: Split = [([f"a{i}", "b", "c"], ["B-Per", "B-PER", "B-LOC"]) for i in range(10)]
    found = describe(dict(train=train, validation=[(["d"], ["B-LOC"])]))["warnings"]
    assert found == ["These types differ only in the case of letters: PER, Per."]


@pytest.mark.parametrize(("tags", "share"), [("OTHER OTHER PER", "67%"), ("OTHER PER LOC", ""), ("O O PER", "")])
def test_plain_tags_that_most_words_have_are_warned_of(tags: str, share: str) -> None:
    warnings = describe(dict(train=[(["a", "b", "c"], tags.split())], validation=[(["d"], ["PER"])]))["warnings"]
    found = [text for text in warnings if "data.outside_label: OTHER" in text]
    assert [text.split()[0] for text in found] == [share] * bool(share)


def test_documents_and_notes_are_counted_and_long_lists_are_cut() -> None:
    def change(rows: datasets.Dataset) -> datasets.Dataset:
        documents = ["", "a", *(f"{rows.num_rows}" for _ in range(rows.num_rows))]
        notes = [["widened"] * rows.num_rows, [], *([] for _ in documents)]
        return rows.add_column("document", documents[:-2]).add_column("notes", notes[: rows.num_rows])

    train: Split = [([f"a{i}", "b"], [f"B-T{i % 60}", "O"]) for i in range(110)]
    found = describe({"test": train[:2], "train": train, "validation": train[:3]}, change=change)
    assert [*found["splits"]] == ["train", "validation", "test"]
    lines = [line.split("  ") for line in format_data(found).splitlines()]
    table = {line[0]: "".join(line[1:]).split() for line in lines}
    expected = {"documents": "2 2 1", "widened": "110 3 2", "- T49": "2 0 0", "- and 10 more": "10 0 0"}
    assert {name: " ".join(table[name]) for name in expected} == expected
    assert "- T50" not in table and lines[-1][0] != ""
    labels = next(line[0] for line in lines if line[0].startswith("The labels' scheme"))
    assert labels.endswith(", B-T26 and 41 more")
    assert "1 of 2 documents of validation are in train too, by their names: a." in found["warnings"]


def test_words_that_only_look_alike_when_joined_are_no_duplicates() -> None:
    train: Split = [(["a\tb"], ["O"]), (["a", "b"], ["O", "O"])]
    found = describe(dict(train=train, validation=[(["a", "b\t"], ["O", "O"])]))
    assert found["splits"]["train"]["duplicate sentences"] == 0
    assert found["splits"]["validation"]["sentences that train has too"] == 0


def test_the_table_and_the_warnings_say_what_was_counted_by_hand() -> None:
    splits: dict[str, Split] = {
        "train": [(["Ada", "slept"], ["B-PER", "O"])] * 9
        + [(["\u200b", "Ada"], ["O", "I-PER"]), (["a"] * 1500, ["O"] * 1500)],
        "test": [(["in", "Rome", "\u200b"], ["O", "B-L\x1b[1m", "B-人名"])],
        "dev": [(["z" * 101], ["O"]), (["Ada", "slept"], ["B-PER", "O"])],
    }
    names = ["O", "B-PER", "I-PER", "B-人名", "B-L\x1b[1m", "B-Y"]  # no split has a Y
    assert (
        format_data(describe(splits, label_names=names, max_seq_length=512))
        == """
                              train  test  dev
sentences                        11     1    2
words                         1,520     3    3
longest sentence (words)      1,500     3    2
longest word (characters)         5     4  101
long words                        0     0    1
sentences in several windows      1     0    0
words without sub-tokens          1     1    0
duplicate sentences               8     0    0
sentences that train has too      -     0    1
entities                         10     2    1
- L⟨U+001B⟩[1m                    0     1    0
- PER                            10     0    1
- 人名                            0     1    0
The labels' scheme is IOB2: O, B-PER, I-PER, B-人名, B-L⟨U+001B⟩[1m, B-Y
Warning: train has 1 tags that IOB2 forbids there, first I-PER after O in train.json, line 10; an entity is taken to \
begin or end there, but under metric_mode: strict it does not count.
Warning: test has tags that train has none of, which cannot be learned: B-L⟨U+001B⟩[1m, B-人名.
Warning: 1 of 2 sentences of dev are in train too: scores on them say little about new text.
Warning: dev has 1 words of more than 100 characters.
Warning: 8 sentences of train are there more than once.
Warning: train has a sentence of 1,500 words. Are the empty lines between sentences missing?
Warning: train has fewer than 10 entities of these types: L⟨U+001B⟩[1m, Y, 人名.""".lstrip("\n")
    )


def test_inspect_shows_data_and_trains_nothing(config: Config, tmp_path: Path, caplog: Log) -> None:
    rows = [("Ada Lovelace slept", "B-PER I-PER O"), ("in London", "O I-LOC"), ("z" * 150, "O")]
    for name, split in {"train": rows * 9, "validation": [*rows[:1], ("at Acme", "O B-ORG")]}.items():
        lines = [{"tokens": words.split(), "ner_tags": tags.split()} for words, tags in split]
        config["data"][f"{name}_file"] = write_lines(lines, tmp_path / f"{name}.json")
    config["name"] = f"inspect-{tmp_path.parent.name}-{tmp_path.name}"
    config["searcher"]["max_length"] = {"batches": 1}
    file, *to_folder = write_config(config, tmp_path)
    folder = tmp_path / "run"
    caplog.set_level(logging.INFO)
    train_here(file, "--inspect")  # without a folder, nothing is written
    assert list((PROJECT / "outputs").glob(f"{config['name']}*")) == []
    train_here(file, "--inspect", *to_folder)
    assert "batch " not in caplog.text
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(files) == [".training", "report/data.json"]
    report = json.loads((folder / "report" / "data.json").read_text())
    assert report["splits"]["train"]["entities"] == {"LOC": 9, "PER": 9}
    assert len(report["warnings"]) == 6
    assert f"first I-LOC after O in {tmp_path}/train.json, line 2;" in report["warnings"][1]
    train_here(file, *to_folder)  # into the folder of the inspection
    assert caplog.text.count(f"{format_data(report)}\n") == 3
    assert json.loads((folder / "report" / "data.json").read_text()) == report
    assert len(read_metrics(folder, "validation")) == 1


def test_words_are_shown_if_more_than_a_fifth_is_unknown_to_the_tokenizer() -> None:
    train: Split = [(["a", "东", "a", "a", "a"], ["O"] * 5)]
    validation: Split = [(["a", "人", "人", "Ж", "京", "东"], ["O"] * 6)]
    found = describe(dict(train=train, validation=validation), max_seq_length=9)
    (told,) = [text for text in found["warnings"] if "unknown" in text]
    assert told.startswith("83% of the sub-tokens of validation are unknown to the tokenizer, as in: 人, Ж, 京. ")
