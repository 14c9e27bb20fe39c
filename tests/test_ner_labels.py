"""Labels: schemes recognised, entities counted as seqeval does, and what becomes of them in a model."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from conftest import Config, Fit, read_metrics, write_lines
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

import ner.labels
from ner.labels import PREFIXES, choose_metric_scheme, encode_tags, entity_tag, find_entity_types
from transformer_trial.errors import TrialError

Span = tuple[int, int, str]
"""First and last word of an entity, and its type."""
Sentence = tuple[int, list[Span]]
"""Number of words, and the entities among them."""

# The prefixes of an entity's only word, and of the first, inner and last one of several.
WRITTEN = {"IOB2": "BBII", "IOE2": "EIIE", "BIOES": "SBIE", "BMES": "SBME", "BMEWO": "WBME", "BILOU": "UBIL"}
SCHEMES = ["IOB1", "IOE1", "plain", *WRITTEN]
NAMES = dict(zip(SCHEMES, SCHEMES)) | {"BMES": "BIOES", "BMEWO": "BIOES"}
LETTERS = str.maketrans("MWLU", "ISES")
TYPES = ["PER", "LOC", "a-b", "work of art", "Größe", "東京", "x_1"]
LOOK_ALIKES = ["B-cell", "I-95", "E-mail", "S-Bahn", "L-DOPA", "U-Boot", "M-PESA", "W-2", "B"]
"""Types that begin as tags of some scheme do."""


def write_tags(sentence: Sentence, scheme: str) -> list[str]:
    """The tags of a sentence, each scheme by its definition."""
    length, spans = sentence
    tags = ["O"] * length
    firsts, lasts = {(first, name) for first, _, name in spans}, {(last, name) for _, last, name in spans}
    for first, last, name in spans:
        for word in range(first, last + 1):
            if scheme == "plain":
                prefix = ""
            elif scheme == "IOB1":  # B where an entity of that type ends right before
                prefix = "B-" if word == first and (first - 1, name) in lasts else "I-"
            elif scheme == "IOE1":  # E where an entity of that type begins right after
                prefix = "E-" if word == last and (last + 1, name) in firsts else "I-"
            else:
                only, begin, inner, end = tuple(WRITTEN[scheme])
                prefix = (only if first == last else begin if word == first else end if word == last else inner) + "-"
            tags[word] = prefix + name
    return tags


Segments = list[tuple[int, str | None]]
"""Lengths of what a sentence is made of, one after the other: entities, by type, and other words."""


def place_spans(segments: Segments) -> Sentence:
    ends = list(itertools.accumulate(length for length, _ in segments))
    spans = [(end - length, end - 1, name) for end, (length, name) in zip(ends, segments) if name is not None]
    return ends[-1], spans


def sentences_of(types: Sequence[str]) -> st.SearchStrategy[list[Sentence]]:
    segments = st.tuples(st.integers(1, 3), st.none() | st.sampled_from(types))
    return st.lists(st.lists(segments, min_size=1, max_size=6).map(place_spans), min_size=1, max_size=5)


annotated = st.sampled_from([TYPES, TYPES[:1]]).flatmap(sentences_of)  # of few types, many are side by side


def make_rows(sentences: Sequence[Sequence[str]], name: str = "train", **columns: Any) -> datasets.Dataset:
    places = [f"{name}.json, line {number}" for number in range(1, len(sentences) + 1)]
    return datasets.Dataset.from_dict({"tags": list(map(list, sentences)), "place": places, **columns})


def scheme_of(splits: Mapping[str, Sequence[Sequence[str]]], requested: str | None = None) -> str:
    tags = {name: encode_tags(make_rows(sentences, name)) for name, sentences in splits.items()}
    return ner.labels.find_label_scheme(tags, requested)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(splits=st.dictionaries(st.sampled_from(["train", "validation", "test"]), annotated, min_size=1))
def test_the_scheme_is_recognised_wherever_it_shows(scheme: str, splits: dict[str, list[Sentence]]) -> None:
    written = {name: [write_tags(sentence, scheme) for sentence in split] for name, split in splits.items()}
    words = [tag for split in written.values() for tags in split for tag in tags]
    expected = NAMES[scheme]
    if set(words) == {"O"}:
        expected = "IOB2"  # or any other
    elif scheme == "IOE1" and not any(tag.startswith("E-") for tag in words):
        expected = "IOB1"  # nothing but I-, as IOB1 has it
    found = scheme_of(written)
    assert found == expected
    for name, split in splits.items():  # where another one is named, it reads the same
        counts = Counter(entity for _, entities in split for _, _, entity in entities)
        if scheme == "plain":  # which cannot say that entities of one type side by side are several
            counts = Counter(tag for tags in written[name] for tag, _ in itertools.groupby(tags) if tag != "O")
        assert encode_tags(make_rows(written[name])).count_entities(found) == counts


@pytest.mark.parametrize("requested", list(PREFIXES))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_requested_scheme_overrides_unless_tags_cannot_be_of_it(scheme: str, requested: str) -> None:
    tags = write_tags((7, [(0, 0, "PER"), (1, 3, "PER"), (5, 5, "LOC")]), scheme)
    splits = dict(train=[tags], validation=[["O"]])
    prefixes = {tag[0] for tag in tags if tag != "O"} if scheme != "plain" else {"?"}
    if requested == "plain" or prefixes <= set(PREFIXES[requested]):
        assert scheme_of(splits, requested) == requested
    else:
        with pytest.raises(TrialError, match=rf"^train.json, line 1: the tag \S+ does not go with {requested}; "):
            scheme_of(splits, requested)


MIXED: list[tuple[list[list[str]], int, str]] = [
    ([["O"], ["B-PER", "PER"], ["PER"]], 2, "PER does"),
    ([["B-X"], ["E-X"], ["B-X", "L-X"]], 2, "E-X does"),  # of BIOES and BILOU
    ([["U-X", "O"], ["I-X"], ["S-X"]], 1, "U-X does"),  # of neither
    ([["Z-X"], ["B-X"], ["A-X"]], 1, "Z-X does"),  # the first, not by name
    ([["B-X"], ["b-X"]], 2, "b-X does"),
    ([["B-X"], ["O", "X-B"]], 2, "X-B does"),
    ([["B-X"], ["B-X", "o"]], 2, "o does"),
    ([["E-mail", "O"], ["PER"]], 2, "PER does"),  # a type like a prefix
    ([["O", "B-X"], ["B", "I"]], 2, "B names no type"),
    *(([["O"], [*tags, "B"]], 2, "B names no type") for tags in ("BIO", "BOI", "BIES", "BILOU")),
]


@pytest.mark.parametrize(("sentences", "line", "said"), MIXED, ids=str)
def test_mixed_tags_are_refused_with_the_place_of_the_first(sentences: list[list[str]], line: int, said: str) -> None:
    for later_splits in ({}, {"validation": sentences[::-1]}):  # a later split is not the first place
        with pytest.raises(TrialError, match=rf"^train.json, line {line}: the tag {said}.*data\.label_scheme.* plain "):
            scheme_of(dict(train=sentences, **later_splits))
    assert scheme_of(dict(train=sentences), "plain") == "plain"


@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for a, b in itertools.permutations(SCHEMES, 2) if NAMES[a] != NAMES[b]]
)
def test_splits_in_different_schemes_are_refused(one: str, other: str) -> None:
    every_prefix = (9, [(0, 2, "PER"), (3, 3, "PER"), (4, 4, "PER"), (6, 8, "LOC")])
    train, validation = ([write_tags(every_prefix, scheme)] for scheme in (one, other))
    with pytest.raises(TrialError, match=r"^The splits mark|does not go with"):
        scheme_of(dict(train=train, validation=validation))
    assert scheme_of(dict(train=train, validation=[["O", "O"]])) == NAMES[one]
    assert scheme_of(dict(train=[["O"]], validation=train, test=train)) == NAMES[one]


def test_the_schemes_of_splits_are_named() -> None:
    splits = dict(train=[["B-X", "I-X"]], validation=[["B-X", "E-X", "S-X"]], test=[["O"]])
    with pytest.raises(TrialError, match=r"train like IOB, validation like BIOES\. .*data\.label_scheme"):
        scheme_of(splits)
    assert scheme_of(splits, "BIOES") == "BIOES"


def test_single_tags_against_the_rules_change_no_scheme() -> None:
    assert scheme_of(dict(train=[["B-X", "I-X"], ["O", "I-X"]])) == "IOB2"
    assert scheme_of(dict(train=[["I-X", "E-X"], ["I-X", "O"]])) == "IOE2"
    assert scheme_of(dict(train=[["B-X", "E-X"], ["B-X"], ["I-X"], ["O", "E-X"]])) == "BIOES"
    assert scheme_of(dict(train=[["I-X", "L-X"]], validation=[["O"]])) == "BILOU"  # though none begins
    assert scheme_of(dict(train=[["M-X", "M-X"]])) == "BIOES"


def converted(tags: Sequence[str], scheme: str | None = None) -> list[str]:
    """With the prefixes of BIOES, which are all that seqeval's default mode knows."""
    if scheme == "plain":
        return [tag if tag == "O" else f"I-{tag}" for tag in tags]
    return [tag[0].translate(LETTERS) + tag[1:] for tag in tags]


def labels_of(*sentences: list[list[str]]) -> list[str]:
    return sorted({tag for part in sentences for tags in part for tag in tags} | {"O"}, reverse=True)


@pytest.mark.parametrize(
    ("labels", "label_scheme", "requested", "expected"),
    [
        ("I-X O B-X", "IOB2", None, "IOB2"), ("I-X O B-X", "IOB1", None, "IOB1"), ("I-X O B-X", "IOB2", "IOB1", "IOB1"),
        ("I-X O E-X", "IOE2", None, "IOE2"), ("I-X O E-X", "IOE1", None, "IOE1"), ("O", "IOB2", None, "IOB2"),
        ("B-X I-X O E-X S-X", "BIOES", None, "IOBES"), ("B-X M-X O E-X W-X", "BIOES", None, "IOBES"),
        ("B-X I-X O L-X U-X", "BILOU", None, "IOBES"), ("B-X I-X O L-X U-X", "BILOU", "BILOU", "IOBES"),
        ("X O B-cell", "plain", None, "IOB1"), ("X O B-cell", "plain", "IOB1", "IOB1"),  # what it is converted to
        ("I-X O", "IOB1", "IOB2", "IOB2"),  # where IOB2 has gone without B
        # With these no entity at all would count, in silence.
        ("PER O", "plain", "IOB2", ""), ("I-X O B-X", "IOB2", "IOE2", ""), ("I-X O B-X", "IOB2", "IOBES", ""),
        ("I-X O B-X", "IOB2", "BILOU", ""), ("B-X I-X O L-X U-X", "BILOU", "IOB2", ""),
        ("B-X I-X O L-X", "IOB2", None, ""),  # a label beside the data's
    ],
)  # fmt: skip
def test_a_strict_scheme_suits_the_tags(labels: str, label_scheme: str, requested: str | None, expected: str) -> None:
    if expected == "":
        with pytest.raises(
            ValueError, match=rf"data.metric_scheme: {requested or 'null'} does not suit the tags .*\bO\b"
        ):
            choose_metric_scheme(labels.split(), label_scheme, requested)
        return
    assert choose_metric_scheme(labels.split(), label_scheme, requested) == expected
    for tags in itertools.product(labels.split(), repeat=3):  # then seqeval refuses no tags, whatever turns up
        ner.labels.find_entities([entity_tag(tag, label_scheme) for tag in tags], "strict", expected)


def test_tags_are_converted_to_what_both_modes_of_seqeval_read() -> None:
    assert [entity_tag(label) for label in ("B-ORG", "I-a-b", "S-X", "O", "B", "PER", "U-X", "L-X", "M-X", "W-X")] == [
        "B-ORG", "I-a-b", "S-X", "O", "I-B", "I-PER", "S-X", "E-X", "I-X", "S-X",
    ]  # fmt: skip
    assert entity_tag("B-cell", "plain") == "I-B-cell"
    assert find_entity_types(["O", "ORG", "PER"]) == ["ORG", "PER"]
    assert find_entity_types(["B-cell", "O"], "plain") == ["B-cell"]
    assert find_entity_types(["B-cell", "O"], "IOB2") == ["cell"]


def test_the_models_labels_are_those_asked_for_and_of_all_splits(config: Config, fit: Fit, tmp_path: Path) -> None:
    train = [("Ada Lovelace slept", "B-PER L-PER O"), ("London", "U-LOC"), ("nobody came", "O O")] * 8
    validation = [("Acme Corp hired Ada", "B-ORG L-ORG O U-PER"), ("in London", "O U-LOC")]
    for split, sentences in (("train", train), ("validation", validation)):
        rows = [{"tokens": words.split(), "ner_tags": tags.split()} for words, tags in sentences]
        config["data"][f"{split}_file"] = write_lines(rows, tmp_path / f"{split}.json")
    names = ["U-PER", "O", "B-LOC", "L-LOC", "U-LOC", "B-ORG", "L-ORG", "B-PER", "L-PER"]
    config["data"] |= {"label_scheme": "plain", "return_entity_level_metrics": True, "label_list": names}
    config["searcher"]["max_length"]["batches"] = 1
    trial = fit(config)
    exported = transformers.AutoConfig.from_pretrained(trial.output_dir / "model")
    assert trial.label_list == names
    assert exported.id2label == dict(enumerate(names))
    assert exported.ner["label_scheme"] == "plain"
    (metrics,) = read_metrics(trial.output_dir, "validation")
    assert metrics["B-ORG_number"] == metrics["L-ORG_number"] == metrics["U-PER_number"] == 1


def test_entities_are_those_that_seqeval_finds() -> None:
    tags = ["O", "B-c-d", *(f"{mark}-{entity_type}" for mark in "BIES" for entity_type in "ab")]
    sentences = [[*sentence] for size in range(5) for sentence in itertools.product(tags, repeat=size)]
    assert len(sentences) == 11111
    assert [sentence for sentence in sentences if ner.labels.find_entities(sentence) != get_entities(sentence)] == []
