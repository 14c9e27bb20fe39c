"""The error report: numbers against seqeval, matching and rules against cases made by hand, hostile text."""

import base64
import functools
import hashlib
import html.parser
import io
import itertools
import json
import pickle
import re
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import datasets
import pytest
from conftest import Patch
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval_metrics
from seqeval import scheme as seqeval_schemes
from test_ner_labels import LOOK_ALIKES, NAMES, SCHEMES, TYPES, Segments, converted, labels_of, place_spans, write_tags
from training_process import run_python

import ner.report
import ner.sentences
from ner.labels import PREFIXES, Entity, choose_metric_scheme, encode_tags, entity_tag, is_invalid
from ner.report import COUNTS, SCORES, ErrorReport, match_entities, report_html, report_text, write_report
from transformer_trial.errors import JOINERS, printable

HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=http://x.test onerror=alert(1)>", "</style>", "&lt;", "{{ 7 * 7 }}",
    "\u202eevil\u202c", "\u2066x", "\x1b[31mred", "\x1b]0;title\x07", "a\nb\r\tc", "\x00", "\x85", "\u2028", "\ufeff",
    "\ufffe", "\ud800", "$\\frac{1}{0}$", "$", "_x", "日本語", "שלום", "👩\u200d👩\u200d👧", "z" + "\u0301" * 20,
    "x" * 400, "", " ",
]  # fmt: skip


def describing(words: Sequence[str], place: str) -> Callable[[], tuple[Sequence[str], str]]:
    return lambda: (words, place)


def make_report(sentences: Sequence[tuple[str, str]], scheme: str | None = "IOB2", **options: Any) -> dict[str, Any]:
    """The report on sentences, each a gold and a predicted one, of tags with spaces between."""
    report = ErrorReport(scheme, **options)
    for i, (gold, predicted) in enumerate(sentences, 1):
        words = [f"word{n}" for n in range(len(gold.split()))]
        report.add(gold.split(), predicted.split(), describing(words, f"line {i}"))
    return report.as_dict()


Tagged = list[list[str]]
RAW_CLASSES = {name: getattr(seqeval_schemes, name.replace("BIOES", "IOBES")) for name in PREFIXES if name != "plain"}
"""The classes by which seqeval reads tags strictly as they are."""

LETTERS_USED = PREFIXES | {"BIOES": "BIES", "BMES": "BMES", "BMEWO": "BMEW"}
type_or_none = st.none() | st.sampled_from(TYPES[:2]) | st.sampled_from([*TYPES, *LOOK_ALIKES])


def assert_seqeval_agrees(report: ErrorReport, gold: Tagged, predicted: Tagged, **options: Any) -> None:
    """Metrics and report say what seqeval finds in these tags, which it can read, to the last bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where there is no entity
        accuracy = seqeval_metrics.accuracy_score(gold, predicted)
        try:
            found = seqeval_metrics.classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
        except ValueError:  # how seqeval says that there is no entity
            found = {}
    types = {name: row for name, row in found.items() if not name.endswith(" avg")}
    nothing = dict.fromkeys((*SCORES, "number"), 0.0)
    overall = [accuracy, *found.get("micro avg", nothing).values()][:4]
    expected = dict(zip(("accuracy_score", *SCORES), overall))
    for name, row in (types | {"no such type": nothing}).items():
        expected |= {f"{name}_{key}": value for key, value in zip(nothing, row.values())}
    metrics = report.metrics([*types, "no such type"])
    assert metrics == expected and {type(value) for value in metrics.values()} == {float}
    as_dict = report.as_dict()
    assert [as_dict["accuracy"], *(as_dict["overall"][name] for name in SCORES)] == overall
    assert [*as_dict["types"]] == [*types]
    for name, row in types.items():
        assert [as_dict["types"][name][key] for key in (*SCORES, "support")] == [*row.values()]
    assert as_dict["sentences"] == len(gold) and as_dict["words"] == sum(map(len, gold))
    assert all(isinstance(as_dict["overall"][name], int) for name in COUNTS)


def count(scheme: str | None, gold: Tagged, predicted: Tagged, strict_scheme: str | None = None) -> ErrorReport:
    report = ErrorReport(scheme, "strict" if strict_scheme else "default", strict_scheme)
    for sentence in zip(gold, predicted, strict=True):
        report.add(*sentence)
    return report


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_any_tags_score_exactly_as_seqeval_scores_them_in_both_modes(scheme: str, data: st.DataObject) -> None:
    types, name = [*TYPES[:3], "B-X"], NAMES[scheme]
    prefixed = [f"{prefix}-{kind}" for prefix in LETTERS_USED[scheme] for kind in types]
    tag = st.sampled_from(["O", *(prefixed or types)])
    gold = data.draw(st.lists(st.lists(tag, min_size=1, max_size=8), min_size=1, max_size=8))
    predicted = [[data.draw(st.just(real) | tag) for real in sentence] for sentence in gold]
    as_read = [[converted(tags, scheme) for tags in part] for part in (gold, predicted)]
    strict_scheme = choose_metric_scheme(labels_of(gold, predicted), name, None)
    strict = count(name, gold, predicted, strict_scheme)
    if scheme in RAW_CLASSES:
        assert_seqeval_agrees(strict, gold, predicted, mode="strict", scheme=RAW_CLASSES[scheme])
    else:
        assert_seqeval_agrees(strict, *as_read, mode="strict", scheme=getattr(seqeval_schemes, strict_scheme))
    assert_seqeval_agrees(count(name, gold, predicted), *as_read)
    if scheme != "plain":  # also where the scheme is not known
        assert_seqeval_agrees(count(None, gold, predicted), *as_read)


@pytest.mark.parametrize(("gold", "predicted"), [(["O", "B-X"], ["O"]), (["O"], ["O", "B-X"])])
def test_tags_that_do_not_go_together_are_not_scored(gold: list[str], predicted: list[str]) -> None:
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is (shorter|longer)"):
        ErrorReport("IOB2").add(gold, predicted)


def test_a_sentence_is_described_only_for_its_errors_and_for_gold_entities_to_look_up() -> None:
    for known, expected in ((None, [0, 1, 0, 1]), (set[int](), [0, 1, 1, 1])):
        report, num_calls = ErrorReport("IOB2"), []
        report.training_entities = known
        for gold, predicted in [("O", "O"), ("O", "B-A"), ("B-A", "B-A"), ("B-A", "O")]:
            describe = mock.Mock(return_value=(["word"], "line 1"))
            report.add([gold], [predicted], describe)
            num_calls.append(describe.call_count)
        assert num_calls == expected


@given(st.lists(st.tuples(*[st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "B-C"])] * 2), max_size=30))
def test_each_entity_has_one_outcome(words: list[tuple[str, str]]) -> None:
    report = make_report([(" ".join(gold), " ".join(predicted)) for gold, predicted in [list(zip(*words)) or ([], [])]])
    confused = [cell for cell in report["confusion"] if cell["gold"] != cell["predicted"]]
    for name, row in report["types"].items():
        taken_for_it = sum(c["same_span"] + c["other_span"] for c in confused if c["predicted"] == name)
        assert row["support"] == row["correct"] + row["boundary"] + row["confused"] + row["missed"]
        assert row["predicted"] == row["correct"] + row["boundary"] + taken_for_it + row["spurious"]
    assert all(report["overall"][name] == sum(row[name] for row in report["types"].values()) for name in COUNTS)


@pytest.mark.parametrize("mode", ["default", "strict"])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "IOE1"])  # seqeval misses some, strictly
@given(st.lists(st.tuples(st.integers(1, 2), type_or_none, type_or_none, st.sampled_from([0, 0.3, 0.9])), min_size=1))
def test_thresholds_count_the_tags_that_are_left(scheme: str, mode: str, rows: list[tuple[int, Any, Any, Any]]) -> None:
    gold, tags = (write_tags(place_spans([(n, names[i]) for n, *names, _ in rows]), scheme) for i in (0, 1))
    scores: list[float | None] = [score for length, *_, score in rows for _ in range(length)]
    words, name = [f"w{i % 3}" for i in range(len(gold))], NAMES[scheme]
    keys = encode_tags(datasets.Dataset.from_dict({"tokens": [words], "tags": [gold]})).entity_keys(name)

    def count_without(min_score: float) -> dict[str, Any]:
        report = ErrorReport(name, mode, choose_metric_scheme(labels_of([gold], [tags]), name, None))
        report.training_entities = keys
        sentence = ner.sentences.Sentence(words, gold=gold, tags=[*tags], scores=[*scores])
        ner.sentences.write_predictions([sentence], io.BytesIO(), report, min_score=min_score)
        return report.as_dict()

    whole = count_without(0)
    for threshold, found in whole["thresholds"].items():
        assert found.items() <= count_without(float(threshold))["overall"].items()
    assert whole["seen"]["seen"].items() <= whole["overall"].items() and whole["seen"]["unseen"]["support"] == 0


def test_entities_are_seen_where_training_has_their_type_and_words() -> None:
    rows = {"tokens": [["Ada", "B", "x"], ["Rome"]], "tags": [["B-PER", "I-PER", "O"], ["B-LOC"]]}
    report = ErrorReport("IOB2")
    report.training_entities = encode_tags(datasets.Dataset.from_dict(rows)).entity_keys("IOB2")
    for words, gold, predicted in [
        ("Ada B", "B-PER I-PER", "B-PER I-PER"), ("Ada B", "B-PER B-PER", "B-PER B-PER"), ("Rome", "B-LOC", "O"),
        ("Rome", "B-ORG", "O"), ("rome", "B-LOC", "O"), ("x", "O", "B-LOC"),
    ]:  # fmt: skip
        report.add(gold.split(), predicted.split(), describing(words.split(), ""))
    text = report_text(report.as_dict())
    assert "\nseen in training     0.500        2\nunseen in training   0.500        4\n" in text


A, B = "A", "B"


@pytest.mark.parametrize(
    ("predicted", "matched"),
    [
        pytest.param([(B, 0, 1)], {(A, 0, 1): (B, 0, 1)}, id="same span, other type"),
        pytest.param([(B, 0, 1), (A, 2, 2)], {(A, 0, 3): (B, 0, 1)}, id="larger overlap before same type"),
        pytest.param([(B, 0, 1), (A, 2, 3)], {(A, 0, 3): (A, 2, 3)}, id="same type where overlaps tie"),
        pytest.param([(A, 0, 1), (A, 2, 3)], {(A, 0, 3): (A, 0, 1)}, id="the first where all ties"),
        pytest.param([(A, 0, 4), (B, 5, 6)], {(A, 0, 0): None, (A, 1, 6): (A, 0, 4)}, id="one to one"),
        pytest.param([(A, 1, 3)], {(A, 0, 2): (A, 1, 3), (A, 3, 3): None}, id="predicted one over two"),
        pytest.param([(A, 2, 3)], {(A, 0, 1): None}, id="neighbours do not overlap"),
    ],
)
def test_entities_match_by_span_then_overlap_then_type(predicted: list[Entity], matched: dict[Entity, Any]) -> None:
    pairs = match_entities([*matched], predicted)
    assert {g: p for g, p in pairs if g is not None} == matched
    assert [p for g, p in pairs if g is None] == [p for p in predicted if p not in matched.values()]


def split(num_words: int) -> Iterator[Segments]:
    """All ways to cover words with entities of two types, and with words outside."""
    if num_words == 0:
        yield []
    for size in range(1, num_words + 1):
        for part in ("X", "Y", None)[: 3 if size == 1 else 2]:
            yield from ([(size, part), *rest] for rest in split(num_words - size))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "plain"])
def test_a_sentence_has_invalid_transitions_unless_it_encodes_entities(scheme: str) -> None:
    all_tags = ["O", *(f"{prefix}-{part}" for prefix in LETTERS_USED[scheme] for part in "XY")]
    for num_words in (1, 2, 3, 4):
        valid = {tuple(write_tags(place_spans(parts), scheme)) for parts in split(num_words)}
        assert len(valid) > 2**num_words
        for tags in itertools.product(all_tags, repeat=num_words):
            converted = ["O", *(entity_tag(tag, NAMES[scheme]) for tag in tags), "O"]
            broken = any(is_invalid(*step, NAMES[scheme]) for step in itertools.pairwise(converted))
            assert broken == (tags not in valid), tags


def test_the_worst_sentences_come_first() -> None:
    sentences = [
        ("O O O", "O O O"), ("B-PER I-PER O", "B-PER O O"), ("B-PER O B-LOC", "O O O"), ("B-PER I-PER I-PER", "O O O"),
        ("O O B-LOC", "O O O"), ("B-PER B-PER O", "O O O"), ("O I-PER O", "O B-PER O"),
    ]  # fmt: skip
    report = make_report(sentences)
    found = [(s["place"], s["wrong_entities"], s["wrong_words"]) for s in report["worst_sentences"]]
    assert found == [
        ("line 3", 2, 2), ("line 6", 2, 2), ("line 4", 1, 3), ("line 2", 1, 1), ("line 5", 1, 1), ("line 7", 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "value"), [("NUM_WORST_SENTENCES", 50), ("NUM_WORST_CHARACTERS", 50 * 98)])
def test_what_is_kept_does_not_grow(limit: str, value: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ner.report, limit, value)
    report, sizes = ErrorReport("IOB2"), []
    for i in range(3000):
        describe = describing([f"word{i:05}"] * 6, f"line {i:05}")
        report.add(["B-PER", "I-PER", "O"] * 2, ["B-PER", "O", "I-LOC"] * 2, describe)
        if i in (999, 2999):
            sizes.append(len(pickle.dumps(vars(report))))
    assert sizes[1] < sizes[0] * 1.05
    as_dict = report.as_dict()
    assert [sentence["place"] for sentence in as_dict["worst_sentences"]] == [f"line {i:05}" for i in range(50)]
    text = Page(report_html(as_dict, "Report")).text_of("p")
    assert any(line.startswith("3,000 sentences have errors; this page holds the worst 50 of them") for line in text)


def test_errors_are_told_apart_in_a_table_for_the_terminal() -> None:
    sentences = [
        ("B-PER L-PER O U-LOC", "B-PER L-PER O U-人名"),  # correct; taken for 人名, same span
        ("B-PER L-PER O O", "O U-PER O U-LOC"),  # boundary error; spurious LOC
        ("B-PER L-PER O U-人名 O", "B-LOC O O O I-LOC"),  # taken for LOC, other span; missed 人名; spurious LOC
        ("O L-PER", "O U-LOC"),  # taken for LOC, same span
        ("O I-LOC", "O I-LOC"),  # correct, but against the rules
    ]
    assert (
        report_text(make_report(sentences, "BILOU"))
        == """
17 words in 5 sentences: accuracy 0.471. Entities, in seqeval's default mode: precision 0.250, recall 0.286, f1 0.267.

Entities by type
type       precision  recall     f1  support  predicted  correct  boundary  confused  missed  spurious
LOC            0.200   0.500  0.286        2          5        1         0         1       0         2
PER            0.500   0.250  0.333        4          2        1         1         2       0         0
人名           0.000   0.000  0.000        1          1        0         0         0       1         0
all types      0.250   0.286  0.267        7          8        2         1         3       1         2

Confusions of types, commonest first
gold  predicted  same span  other span
PER   LOC                1           1
LOC   人名               1           0

Invalid transitions: 5 in predicted tags, 3 in gold tags
tags       tag    next tag  count
predicted  I-LOC  (end)         2
predicted  O      I-LOC         2
predicted  B-LOC  O             1
gold       I-LOC  (end)         1
gold       O      I-LOC         1
gold       O      L-PER         1
""".lstrip("\n")
    )


@pytest.mark.parametrize("sentences", [[], [("O O", "O O")], [("B-PER O", "B-PER O")], [("", "")]])
@pytest.mark.parametrize("scheme", ["IOB2", "plain", None])
def test_a_report_of_nothing_or_no_error_is_whole(sentences: list[tuple[str, str]], scheme: str | None) -> None:
    report, num_words = make_report(sentences, scheme), sum(len(gold.split()) for gold, _ in sentences)
    assert report_text(report).startswith(f"{num_words} words in {len(sentences)} sentences")
    assert ("no rules are known" in report_text(report)) == (scheme != "IOB2")
    page = Page(report_html(report, "Report"))
    assert not page.find("li") and bool(page.find("figure")) == bool(report["types"])
    empty = {"No sentence has an error.", "No entity was taken for one of another type.", "There is none to show."}
    assert empty <= {*page.text_of("p")}
    assert ("There is no entity, neither a gold nor a predicted one." in page.text_of("p")) != bool(report["types"])
    assert "another type.\n\nInvalid" in report_text(report)
    if scheme != "IOB2":  # without rules none is broken
        report = make_report([("O I-PER B-LOC", "I-LOC O E-LOC")], scheme)
        assert report["invalid_transitions"] == {"predicted": 0, "gold": 0}


def is_harmless(text: str) -> bool:
    """No control, bidirectional or line-breaking character but the line feeds of the text itself."""
    return not re.search("[\0-\t\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)


@given(st.text(alphabet=st.characters()))
def test_printable_keeps_what_can_be_seen_and_shows_the_rest(text: str) -> None:
    shown = printable(text)
    assert is_harmless(shown)
    assert all(c.isprintable() or c in JOINERS for c in shown)
    assert printable(shown) == shown
    assert shown == text or not text.isprintable()
    shown.encode()  # lone surrogates are shown, too
    assert printable("👩\u200d👧 می\u200cخواهم") == "👩\u200d👧 می\u200cخواهم"


@functools.cache
def make_hostile_report() -> dict[str, Any]:
    """Words, types and places of all hostile texts: a sentence with each as types, and with all of them as words."""
    report = ErrorReport("IOB2")
    for text, other in zip(HOSTILE, [*HOSTILE[1:], *HOSTILE]):
        rest = ["O"] * (len(HOSTILE) - 2)
        gold, predicted = [f"B-{text}!", f"I-{text}!", *rest], [f"B-{other}!", "O", f"I-{text}!", *rest[1:]]
        report.add(gold, predicted, describing(HOSTILE, text), [0.25, None] + [0.5] * (len(gold) - 2))
    return report.as_dict()


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its elements, and the texts of the cells of its tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tree = ElementTree.TreeBuilder()
        self.tree.start("page", {})
        self.feed(page)
        self.close()
        self.handle_endtag("page")  # where an element was never closed, it is none
        self.root = self.tree.close()
        self.elements = [(element.tag, element.attrib) for element in [*self.root.iter()][1:]]
        self.tables = [
            [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
            for table in self.root.iter("table")
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tree.start(tag, {name: value or "" for name, value in attrs})
        if tag in ("meta", "input"):
            self.tree.end(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tree.end(tag).tag == tag

    def handle_data(self, data: str) -> None:
        self.tree.data(data)

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag and attributes.items() <= attrs.items()]

    def text_of(self, tag: str) -> list[str]:
        return [element.text or "" for element in self.root.iter(tag)]


def test_hostile_text_is_in_the_page_only_as_text() -> None:
    report = make_hostile_report()
    source = report_html(report, "<b>report</b> \x1b[1m\u202e")
    page = Page(source)
    allowed = "html head meta title style body h1 h2 h3 p div figure figcaption table thead tbody tr th td ol li"
    allowed += " span bdi small fieldset legend label input button script"
    assert {tag for tag, _ in page.elements} == {*allowed.split()}
    allowed_attributes = "lang charset name content http-equiv class style role aria-label tabindex scope dir"
    allowed_attributes += " id hidden type"
    assert {name for _, attrs in page.elements for name in attrs} == set(allowed_attributes.split())
    assert all(re.fullmatch("--[a-z]+: [0-9.]+", attrs.get("style", "--none: 0")) for _, attrs in page.elements)
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    data, script = page.text_of("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy["content"] == f"default-src 'none'; {rules}"
    assert source.count("<script") == 2 and not any(text in data for text in "<>&'") and "innerHTML" not in script
    assert [s["words"] for s in json.loads(data)["sentences"]] == [[*map(printable, HOSTILE)]] * len(HOSTILE)
    assert "url(" not in "".join(page.text_of("style")) and "@import" not in "".join(page.text_of("style"))
    assert is_harmless(source)
    assert page.text_of("h1") == page.text_of("title") == ["<b>report</b> ⟨U+001B⟩[1m⟨U+202E⟩"]
    words = [word for sentence in report["worst_sentences"] for word in sentence["words"]]
    types = [printable(name) for name in report["types"]]
    assert page.text_of("span") == [*types, "boundary", "missed", *map(printable, words)]
    assert set(words) == set(HOSTILE)
    assert {text.rpartition(": ")[0] for text in page.text_of("h3")} == {printable(text) for text in HOSTILE}
    for table, first, last in zip(page.tables[:2], ("type", ""), ("all types", "spurious")):
        assert [row[0] for row in table] == [first, *types, last]
    text = report_text(report)  # nor does anything in it act on a terminal
    assert is_harmless(text) and "⟨U+001B⟩[31mred" in text and "⟨U+202E⟩evil⟨U+202C⟩" in text


def test_bars_show_f1_and_the_heat_map_shades_each_count_by_its_part_of_the_row() -> None:
    times = {
        ("B-LOC I-LOC", "B-PER I-PER"): 2, ("B-LOC I-LOC", "B-PER O"): 1, ("B-LOC", "O"): 1, ("O", "B-LOC"): 9,
        ("O", "B-PER"): 16, ("B-PER", "B-PER"): 900, ("B-PER I-PER", "B-PER O"): 1600,
    }  # fmt: skip
    page = Page(report_html(make_report([*Counter(times).elements()]), "Report"))
    assert page.tables[1] == [
        ["", "LOC", "PER", "boundary", "missed"], ["LOC", "", "3", "", "1"], ["PER", "", "900", "1,600", ""],
        ["spurious", "9", "16", "", ""],
    ]  # fmt: skip
    assert [row[3] for row in page.tables[0]] == ["f1", "0.000", "0.359", "0.358"]
    cells = [(attrs["class"], attrs["style"]) for attrs in page.find("td") if "style" in attrs]
    assert cells == [
        ("bar", "--part: 0.000"), ("bar", "--part: 0.359"), ("bar", "--part: 0.358"),
        ("other dark", "--shade: 0.87"), ("other", "--shade: 0.5"), ("right", "--shade: 0.6"),
        ("other dark", "--shade: 0.8"), ("other", "--shade: 0.6"), ("other dark", "--shade: 0.8"),
    ]  # fmt: skip


def test_heat_map_leaves_out_the_rarest_types(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ner.report, "MAX_DRAWN_TYPES", 3)
    report = make_report([(f"B-{name}", f"B-{name}") for name in "ABCD" + "ACD"])
    scores, heat_map = Page(report_html(report, "Report")).tables[:2]
    assert [row[0] for row in scores] == ["type", *"ABCD", "all types"]
    assert [row[0] for row in heat_map] == ["", *"ACD", "spurious"]
    assert heat_map[0] == ["", *"ACD", "boundary", "missed"]


def test_page_can_be_used_without_seeing_it_or_its_colors() -> None:
    report = make_report([("B-PER I-PER O B-LOC", "B-PER O O B-PER"), ("O", "I-PER")])
    page = Page(report_html(report, "Report"))
    assert page.find("html") == [{"lang": "en"}]
    assert all(attrs["aria-label"] for attrs in page.find("div"))
    num_columns, num_names = 11 + 4 + 4 + 4, 3 * 1 + 3 * 1 + 1 * 2 + 1 * 3  # the heat map has 4 and 3 of them
    assert Counter(attrs["scope"] for attrs in page.find("th")) == {"col": num_columns, "row": num_names}
    assert [attrs.get("class") for attrs in page.find("li")] == [None, "wrong", None, "wrong", "wrong"]
    assert page.text_of("bdi")[:8] == ["B-PER", "B-PER", "I-PER", "✗ O", "O", "O", "B-LOC", "✗ B-PER"]
    assert page.text_of("span")[4:] == ["word0", "word1", "word2", "word3", "word0"]


def run_in_browser(source: str, code: str, folder: Path) -> tuple[Page, Any]:
    """What Chromium makes of a page, and what `code` finds in it; `ran` lists the alerts."""
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium")
    run = f"onload = () => {{ {code}; document.title = JSON.stringify(found); }}"
    script = f"const found = [], ran = []; alert = (x) => ran.push(x); {run}"
    source = source.replace("script-src", "script-src 'nonce-test'", 1)
    source = source.replace("<style>", f"<script nonce=test>{script}</script><style>", 1)
    (folder / "page.html").write_text(source, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = ["chromium", *options, (folder / "page.html").as_uri()]
    page = Page(subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=100).stdout)
    return page, json.loads(page.text_of("title")[0])


def test_a_browser_pages_through_hostile_text_and_runs_none(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ner.report, "PAGE_SENTENCES", 13)
    report = make_hostile_report()
    source = report_html(report, HOSTILE[0])
    code = """for (const button of [after, before]) {
            found.push(shown.textContent, before.disabled, after.disabled, document.images.length);
            found.push(Array.from(document.querySelectorAll("#sentences span"), (element) => element.textContent));
            button.click();
        }
        document.body.append(Object.assign(document.createElement("script"), {textContent: "alert(1)"}));
        found.push(ran)"""
    page, found = run_in_browser(source, code, tmp_path)
    words = [printable(word) for sentence in report["worst_sentences"] for word in sentence["words"]]
    half, number = len(words) // 2, len(HOSTILE)
    assert found[:5] == [f"Sentences 1 to 13 of {number}.", True, False, 0, words[:half]]
    assert found[5:] == [f"Sentences 14 to {number} of {number}.", False, True, 0, words[half:], []]
    plain = Page(source)
    for tag in ("h3", "li", "span", "bdi", "small"):
        first = plain.text_of(tag)
        assert page.text_of(tag)[-len(first) :] == first and page.find(tag)[-len(first) :] == plain.find(tag)
    assert plain.text_of("small")[0] == "0.250" and page.find("ol") == plain.find("ol")


def test_a_browser_filters_sentences_by_text_and_type(tmp_path: Path) -> None:
    report = ErrorReport("plain")
    for i, (gold, predicted) in enumerate([("A O O", "O O O"), ("O O A", "O O B-A"), ("A B-A C", "A B-A O")]):
        report.add(gold.split(), predicted.split(), describing(["Ada", f"Word{i}", "<b>"], f"line {i}"))
    rows = [
        ("", "", "012"), ("WORD1", "", "1"), ("ada word", "", "012"), ("<b", "", "012"), ("line 2", "", "2"),
        ("", "A", "01"), ("", "B-A", "1"), ("", "C", "2"), ("", "A C", "012"), ("word0", "C", ""),
    ]  # fmt: skip
    code = f"""for (const [text, chosen] of {json.dumps(rows)}) {{
        words.value = text;
        types.querySelectorAll("input").forEach((box) => {{ box.checked = chosen.split(" ").includes(box.value); }});
        words.dispatchEvent(new Event("input"));
        found.push(Array.from(document.querySelectorAll("h3"), (element) => element.textContent[5]).sort().join(""));
    }}"""
    page, found = run_in_browser(report_html(report.as_dict(), "Title"), code, tmp_path)
    assert found == [lines for *_, lines in rows] and "No sentence here has such an error." in page.text_of("p")
    assert [box["value"] for box in page.find("input", type="checkbox")] == ["A", "B-A", "C"]


def test_files_hold_the_report_and_a_killed_process_leaves_whole_ones(tmp_path: Path, monkeypatch: Patch) -> None:
    report, folder = make_hostile_report(), tmp_path / "new" / "report"
    write_report(report, folder, "Title")
    text = (folder / "report.json").read_text()
    assert text.isascii() and is_harmless(text) and json.loads(text) == report
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page == report_html(json.loads(text), "Title")  # what json keeps is all that there is
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"report.html", "report.json"}
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(make_report([]), folder, "Second")
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_importing_the_report_loads_no_library_for_later() -> None:
    code = "import sys, ner.report, ner.card; assert {'jinja2', 'torch', 'determined'}.isdisjoint(sys.modules)"
    run_python("-c", code)
