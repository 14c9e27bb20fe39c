"""The error report: numbers against seqeval, matching and rules against cases made by hand, hostile text."""

import base64
import functools
import html.parser
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from conftest import PROJECT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval_metrics
from seqeval import scheme as seqeval_schemes

from ner.drawing import MAX_DRAWN_TYPES
from ner.labels import Entity, entity_tag
from ner.report import (
    COUNTS,
    NUM_WORST_SENTENCES,
    ErrorReport,
    is_invalid,
    match_entities,
    report_html,
    report_text,
    write_report,
)
from transformer_trial.errors import JOINERS, printable

FIXED = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

PREFIXES = {"IOB1": "BI", "IOB2": "BI", "IOE1": "IE", "IOE2": "IE", "BIOES": "BIES", "BILOU": "BILU", None: "BIESLU"}
STRICT_SCHEMES = {
    "IOB1": "IOB1", "IOB2": "IOB2", "IOE1": "IOE1", "IOE2": "IOE2", "BIOES": "IOBES", "BILOU": "IOBES", "plain": "IOB1",
}  # fmt: skip
SETTINGS = [
    *((scheme, "default", None) for scheme in [*PREFIXES, "plain"]),
    *((scheme, "strict", strict) for scheme, strict in STRICT_SCHEMES.items()),
]

HOSTILE = [
    *("<script>alert(1)</script>", "\"'><img src=http://x.test onerror=alert(1)>", "</style>", "&lt;", "{{ 7 * 7 }}"),
    *(
        "\u202eevil\u202c",
        "\u2066x",
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "a\nb\r\tc",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
    ),
    *("\ufffe", "\ud800", "$\\frac{1}{0}$", "$", "_x", "日本語", "שלום", "👩\u200d👩\u200d👧", "z" + "\u0301" * 20),
    *("x" * 400, "", " "),
]


def pair(words: Sequence[str], place: str) -> tuple[Sequence[str], str]:
    return words, place


def make_report(sentences: Sequence[tuple[str, str]], scheme: str | None = "IOB2", **options: Any) -> dict[str, Any]:
    """The report on sentences, each a gold and a predicted one, of tags with spaces between."""
    report = ErrorReport(scheme, **options)
    for i, (gold, predicted) in enumerate(sentences, 1):
        words = [f"word{n}" for n in range(len(gold.split()))]
        report.add(gold.split(), predicted.split(), functools.partial(pair, words, f"line {i}"))
    return report.as_dict()


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")  # seqeval's, without entities
@pytest.mark.parametrize(("scheme", "mode", "strict_scheme"), SETTINGS)
@FIXED
@given(data=st.data())
def test_scores_are_exactly_those_of_seqeval_on_all_sentences_at_once(
    data: st.DataObject, scheme: str | None, mode: str, strict_scheme: str | None
) -> None:
    types = ["PER", "LOC", "B-X", "a-b"]
    tags = st.sampled_from(
        ["O", *([f"{p}-{t}" for p in PREFIXES[scheme] for t in types] if scheme in PREFIXES else types)]
    )
    words = st.lists(st.tuples(tags, tags), min_size=1, max_size=8)
    sentences = [
        ([g for g, _ in row], [p for _, p in row]) for row in data.draw(st.lists(words, min_size=1, max_size=8))
    ]
    report = ErrorReport(scheme, mode, strict_scheme)
    for gold, predicted in sentences:
        report.add(gold, predicted)
    found = report.as_dict()

    gold_tags, predicted_tags = ([[entity_tag(tag, scheme) for tag in s[i]] for s in sentences] for i in (0, 1))
    options: dict[str, Any] = {"zero_division": 0, "output_dict": True}
    if mode == "strict":
        options |= {"mode": "strict", "scheme": getattr(seqeval_schemes, str(strict_scheme))}
    try:
        expected = seqeval_metrics.classification_report(gold_tags, predicted_tags, **options)
    except ValueError:  # how seqeval says that there is no entity
        assert not found["types"]
        assert found["overall"] == dict.fromkeys(found["overall"], 0)
        return
    overall = expected.pop("micro avg")
    for name in ("macro avg", "weighted avg"):
        del expected[name]
    assert list(found["types"]) == list(expected)
    for row, scores in [(found["overall"], overall), *((found["types"][name], expected[name]) for name in expected)]:
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == [*scores.values()]
        assert isinstance(row["support"], int)
    assert found["accuracy"] == seqeval_metrics.accuracy_score(gold_tags, predicted_tags)
    assert found["words"] == sum(len(gold) for gold, _ in sentences)
    assert found["sentences"] == len(sentences)


@FIXED
@given(st.lists(st.tuples(*[st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "B-C"])] * 2), max_size=30))
def test_each_entity_has_one_outcome(words: list[tuple[str, str]]) -> None:
    report = make_report([(" ".join(gold), " ".join(predicted)) for gold, predicted in [list(zip(*words)) or ([], [])]])
    confused = [cell for cell in report["confusion"] if cell["gold"] != cell["predicted"]]
    for name, row in report["types"].items():
        taken_for_it = sum(c["same_span"] + c["other_span"] for c in confused if c["predicted"] == name)
        assert row["support"] == row["correct"] + row["boundary"] + row["confused"] + row["missed"]
        assert row["predicted"] == row["correct"] + row["boundary"] + taken_for_it + row["spurious"]
    assert all(report["overall"][name] == sum(row[name] for row in report["types"].values()) for name in COUNTS)


def test_errors_are_told_apart() -> None:
    report = make_report(
        [
            ("B-PER I-PER O B-LOC", "B-PER I-PER O B-ORG"),  # correct; taken for ORG, same span
            ("B-PER I-PER O O", "O B-PER O B-LOC"),  # boundary error; spurious LOC
            ("B-PER I-PER O B-ORG", "B-LOC O O O"),  # taken for LOC, other span; missed ORG
        ]
    )
    counts = {name: [row[count] for count in COUNTS] for name, row in report["types"].items()}
    assert COUNTS == ("support", "predicted", "correct", "boundary", "confused", "missed", "spurious")
    assert counts == {"LOC": [1, 2, 0, 0, 1, 0, 1], "ORG": [1, 1, 0, 0, 0, 1, 0], "PER": [3, 2, 1, 1, 1, 0, 0]}
    assert report["confusion"] == [
        {"gold": "PER", "predicted": "PER", "same_span": 1, "other_span": 1},
        {"gold": "LOC", "predicted": "ORG", "same_span": 1, "other_span": 0},
        {"gold": "PER", "predicted": "LOC", "same_span": 0, "other_span": 1},
    ]
    assert report["accuracy"] == 5 / 12


A, B = "A", "B"


@pytest.mark.parametrize(
    ("gold", "predicted", "matched"),
    [
        pytest.param([(A, 0, 1)], [(B, 0, 1)], {(A, 0, 1): (B, 0, 1)}, id="same span, other type"),
        pytest.param([(A, 0, 3)], [(B, 0, 1), (A, 2, 2)], {(A, 0, 3): (B, 0, 1)}, id="larger overlap before same type"),
        pytest.param([(A, 0, 3)], [(B, 0, 1), (A, 2, 3)], {(A, 0, 3): (A, 2, 3)}, id="same type where overlaps tie"),
        pytest.param([(A, 0, 3)], [(A, 0, 1), (A, 2, 3)], {(A, 0, 3): (A, 0, 1)}, id="the first where all ties"),
        pytest.param(
            [(A, 0, 0), (A, 1, 6)], [(A, 0, 4), (B, 5, 6)], {(A, 0, 0): None, (A, 1, 6): (A, 0, 4)}, id="one to one"
        ),
        pytest.param(
            [(A, 0, 2), (A, 3, 3)], [(A, 1, 3)], {(A, 0, 2): (A, 1, 3), (A, 3, 3): None}, id="predicted one over two"
        ),
        pytest.param([(A, 0, 1)], [(A, 2, 3)], {(A, 0, 1): None}, id="neighbours do not overlap"),
    ],
)
def test_entities_match_by_span_then_overlap_then_type(
    gold: list[Entity], predicted: list[Entity], matched: dict[Entity, Entity | None]
) -> None:
    pairs = match_entities(gold, predicted)
    assert {g: p for g, p in pairs if g is not None} == matched
    assert [p for g, p in pairs if g is None] == [p for p in predicted if p not in matched.values()]


# --------------------------------------------------------------------------------------------------------- transitions


def encode(parts: Sequence[tuple[str, int]], scheme: str) -> list[str]:
    """The tags of parts of a sentence, each a type, or none, and its number of words."""
    tags: list[str] = []
    for i, (part, size) in enumerate(parts):
        before, after = parts[i - 1][0] if i else "", parts[i + 1][0] if i + 1 < len(parts) else ""
        first, inside, last, only = {
            "IOB1": "BIIB" if before == part else "IIII",
            "IOB2": "BIIB",
            "IOE1": "IIEE" if after == part else "IIII",
            "IOE2": "IIEE",
            "BIOES": "BIES",
            "BILOU": "BILU",
        }[scheme]
        prefixes = only if size == 1 else first + inside * (size - 2) + last
        tags += [f"{prefix}-{part}" if part else "O" for prefix in prefixes]
    return tags


def split(num_words: int) -> Iterator[list[tuple[str, int]]]:
    """All ways to cover words with entities of two types, and with words outside."""
    if num_words == 0:
        yield []
    for size in range(1, num_words + 1):
        for part in ("X", "Y", "")[: 3 if size == 1 else 2]:
            yield from ([(part, size), *rest] for rest in split(num_words - size))


@pytest.mark.parametrize("scheme", [scheme for scheme in PREFIXES if scheme])
def test_a_sentence_has_invalid_transitions_unless_it_encodes_entities(scheme: str) -> None:
    all_tags = ["O", *(f"{prefix}-{part}" for prefix in PREFIXES[scheme] for part in "XY")]
    num_checked = 0
    for num_words in (1, 2, 3, 4):
        valid = {tuple(encode(parts, scheme)) for parts in split(num_words)}
        for tags in itertools.product(all_tags, repeat=num_words):
            converted = ["O", *(entity_tag(tag, scheme) for tag in tags), "O"]
            broken = any(is_invalid(*step, scheme) for step in itertools.pairwise(converted))
            assert broken == (tags not in valid), tags
            num_checked += 1
    assert num_checked >= 5 + 5**2 + 5**3 + 5**4


def test_invalid_transitions_are_counted_by_side_with_the_users_tags() -> None:
    report = make_report([("U-PER O L-PER", "B-PER L-PER I-LOC"), ("O O", "O I-LOC")], "BILOU")
    assert report["invalid_transitions"] == {"predicted": 4, "gold": 1}
    rows = [(row["tags"], row["tag"], row["next_tag"], row["count"]) for row in report["commonest_invalid_transitions"]]
    assert rows == [
        ("predicted", "I-LOC", "(end)", 2),
        ("predicted", "L-PER", "I-LOC", 1),
        ("predicted", "O", "I-LOC", 1),
        ("gold", "O", "L-PER", 1),
    ]


@pytest.mark.parametrize("scheme", ["plain", None])
def test_tags_without_rules_break_none(scheme: str | None) -> None:
    report = make_report([("O I-PER B-LOC", "I-LOC O E-LOC")], scheme)
    assert report["invalid_transitions"] == {"predicted": 0, "gold": 0}
    assert "no rules are known" in report_text(report)


# ----------------------------------------------------------------------------------------------------- worst sentences


def test_the_worst_sentences_come_first() -> None:
    report = make_report(
        [
            ("O O O", "O O O"),
            ("B-PER I-PER O", "B-PER O O"),  # one entity, one word
            ("B-PER O B-LOC", "O O O"),  # two entities, two words
            ("B-PER I-PER I-PER", "O O O"),  # one entity, three words
            ("O O B-LOC", "O O O"),  # as the second one
            ("B-PER B-PER O", "O O O"),  # as the third one
            ("O I-PER O", "O B-PER O"),  # no entity, one word
        ]
    )
    found = [(s["place"], s["wrong_entities"], s["wrong_words"]) for s in report["worst_sentences"]]
    assert found == [
        ("line 3", 2, 2), ("line 6", 2, 2), ("line 4", 1, 3), ("line 2", 1, 1), ("line 5", 1, 1), ("line 7", 0, 1),
    ]  # fmt: skip
    sentence = report["worst_sentences"][3]
    assert sentence["words"] == ["word0", "word1", "word2"]
    assert (sentence["gold"], sentence["predicted"]) == (["B-PER", "I-PER", "O"], ["B-PER", "O", "O"])


def test_what_is_kept_does_not_grow_with_the_number_of_sentences() -> None:
    report, sizes = ErrorReport("IOB2"), []
    for i in range(3000):
        describe = functools.partial(pair, [f"word{i:05}"] * 6, f"line {i:05}")
        report.add(["B-PER", "I-PER", "O"] * 2, ["B-PER", "O", "I-LOC"] * 2, describe)
        if i in (999, 2999):
            sizes.append(len(pickle.dumps(vars(report))))
    assert sizes[1] < sizes[0] * 1.05
    places = [sentence["place"] for sentence in report.as_dict()["worst_sentences"]]
    assert places == [f"line {i:05}" for i in range(NUM_WORST_SENTENCES)]


# ---------------------------------------------------------------------------------------------------------------- text


def test_text_is_a_table_for_the_terminal() -> None:
    report = make_report([("B-PER I-PER O B-人名", "B-PER O O B-PER"), ("O B-PER", "I-PER B-PER")])
    assert report_text(report) == (
        "6 words in 2 sentences: accuracy 0.500. Entities, in seqeval's default mode: precision 0.250, recall 0.333, "
        "f1 0.286.\n"
        "\n"
        "Entities by type\n"
        "type       precision  recall     f1  support  predicted  correct  boundary  confused  missed  spurious\n"
        "PER            0.250   0.500  0.333        2          4        1         1         0       0         1\n"
        "人名           0.000   0.000  0.000        1          0        0         0         1       0         0\n"
        "all types      0.250   0.333  0.286        3          4        1         1         1       0         1\n"
        "\n"
        "Confusions of types, commonest first\n"
        "gold  predicted  same span  other span\n"
        "人名  PER                1           0\n"
        "\n"
        "Invalid transitions: 1 in predicted tags, 0 in gold tags\n"
        "tags       tag      next tag  count\n"
        "predicted  (start)  I-PER         1\n"
    )


def test_nothing_in_the_text_acts_on_the_terminal() -> None:
    text = report_text(make_hostile_report())
    assert is_harmless(text)
    assert "⟨U+001B⟩[31mred" in text and "⟨U+202E⟩evil⟨U+202C⟩" in text


def is_harmless(text: str) -> bool:
    """No control, bidirectional or line-breaking character but the line feeds of the text itself."""
    bidirectional = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any(
        c < " " or "\x7f" <= c <= "\x9f" or c in bidirectional or c in "\u2028\u2029" for c in text.replace("\n", "")
    )


@given(st.text(alphabet=st.characters()))
@FIXED
def test_printable_keeps_what_can_be_seen_and_shows_the_rest(text: str) -> None:
    shown = printable(text)
    assert is_harmless(shown)
    assert "\n" not in shown
    assert all(c.isprintable() or c in JOINERS for c in shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text
    shown.encode()  # lone surrogates are shown, too


def test_printable_keeps_joined_emoji() -> None:
    assert printable("👩\u200d👧 می\u200cخواهم") == "👩\u200d👧 می\u200cخواهم"


def make_hostile_report() -> dict[str, Any]:
    """Words, types and places of all hostile texts: a sentence with each as types, and with all of them as words."""
    report = ErrorReport("IOB2")
    for text, other in zip(HOSTILE, [*HOSTILE[1:], *HOSTILE]):
        rest = ["O"] * (len(HOSTILE) - 2)
        gold, predicted = [f"B-{text}!", f"I-{text}!", *rest], [f"B-{other}!", "O", f"I-{text}!", *rest[1:]]
        report.add(gold, predicted, functools.partial(pair, HOSTILE, text))
    return report.as_dict()


# ---------------------------------------------------------------------------------------------------------------- html


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []  # the element, and the text that begins in it
        self.feed(page)
        self.close()
        assert not self.open, "elements that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.texts[-1][0] == self.open[-1]:
            self.texts[-1] = (self.open[-1], self.texts[-1][1] + data)

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        found = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in found if all(attrs.get(name) == value for name, value in attributes.items())]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def figures(self) -> list[str]:
        prefix = "data:image/svg+xml;base64,"
        sources = [attrs["src"] for attrs in self.find("img")]
        assert all(source.startswith(prefix) for source in sources)
        return [base64.b64decode(source.removeprefix(prefix), validate=True).decode() for source in sources]


def make_many_types(number: int) -> dict[str, Any]:
    names = [f"type{i:03}" for i in range(number)]
    rows = [(f"B-{name} I-{name} O O", f"B-{names[i - 1]} I-{names[i - 1]} B-{name} O") for i, name in enumerate(names)]
    return make_report(rows)


def test_hostile_text_is_in_the_page_only_as_text() -> None:
    report = make_hostile_report()
    title = "<b>report</b> \x1b[1m\u202e"
    source = report_html(report, title)
    page = Page(source)
    allowed = (
        "html head meta title style body h1 h2 h3 p div figure figcaption img table thead tbody tr th td ol li span bdi"
    )
    assert {tag for tag, _ in page.elements} == set(allowed.split())
    allowed_attributes = "lang charset name content http-equiv class role aria-label tabindex src alt scope dir"
    assert {name for _, attrs in page.elements for name in attrs} == set(allowed_attributes.split())
    assert is_harmless(source)
    assert page.text_of("h1") == page.text_of("title") == ["<b>report</b> ⟨U+001B⟩[1m⟨U+202E⟩"]
    words = [word for sentence in report["worst_sentences"] for word in sentence["words"]]
    assert page.text_of("span") == [printable(word) for word in words]
    assert set(words) == set(HOSTILE)
    assert {text.rpartition(": ")[0] for text in page.text_of("h3")} == {printable(text) for text in HOSTILE}


@pytest.mark.parametrize(
    "report", [make_hostile_report(), make_many_types(4), make_many_types(40)], ids=["hostile", "4", "40"]
)
def test_page_refers_to_nothing_outside(report: dict[str, Any]) -> None:
    source = report_html(report, "Report")
    page = Page(source)
    assert not page.find("script") and not page.find("link")
    assert [
        attrs["content"] for attrs in page.find("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    ] == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in "".join(page.text_of("style")) and "@import" not in "".join(page.text_of("style"))
    assert all("href" not in attrs and attrs.get("src", "data:").startswith("data:") for _, attrs in page.elements)
    figures = page.figures()
    assert len(figures) == 2
    for figure in figures:
        for element in ElementTree.fromstring(figure).iter():
            assert element.tag.split("}")[-1] not in ("script", "foreignObject", "a")
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                if name.split("}")[-1] in ("href", "src"):
                    assert value.startswith(("data:", "#"))
                assert value.count("url(") == value.count("url(#")


def test_figures_show_the_types_as_they_are_spelled(recwarn: pytest.WarningsRecorder) -> None:
    names = ["$x^2$", "$", "\\frac", "_hidden", "<b>&\"'", "日本語", "العربية", "a\x1bb", "n" * 30, "名" * 13]
    report = make_report([(f"B-{name}", f"B-{name}") for name in names])
    before = dict(matplotlib.rcParams)
    bars, heat_map = Page(report_html(report, "Report")).figures()
    shown = {label for label in names if len(label) < 10 and label != "a\x1bb"} | {
        "a⟨U+001B⟩b",
        "n" * 23 + "…",
        "名" * 11 + "…",
    }
    for figure, times in ((bars, 1), (heat_map, 2)):
        texts = [element.text for element in ElementTree.fromstring(figure).iter() if element.tag.endswith("}text")]
        assert {label: texts.count(label) for label in shown} == dict.fromkeys(shown, times)
    assert not recwarn.list
    assert dict(matplotlib.rcParams) == before


def test_heat_map_counts_each_outcome() -> None:
    report = make_report([("B-PER I-PER O B-LOC", "B-PER O O B-PER")] * 12_345 + [("B-PER O", "B-PER B-LOC")] * 77)
    (_, heat_map) = Page(report_html(report, "Report")).figures()
    texts = [element.text for element in ElementTree.fromstring(heat_map).iter() if element.tag.endswith("}text")]
    assert sorted(text for text in texts if text and text[0].isdigit()) == ["12k", "12k", "77", "77"]


def test_figures_do_not_depend_on_the_users_style() -> None:
    report = make_many_types(4)
    expected = report_html(report, "Report")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert report_html(report, "Report") == expected


def test_figures_leave_out_the_rarest_types() -> None:
    report = make_many_types(MAX_DRAWN_TYPES + 1)
    report["types"]["type007"]["support"] = 0
    page = Page(report_html(report, "Report"))
    assert len(page.find("tr")) > MAX_DRAWN_TYPES
    for figure in page.figures():
        assert "type007" not in figure
        assert all(f"type{i:03}" in figure for i in range(MAX_DRAWN_TYPES + 1) if i != 7)


def test_page_can_be_used_without_seeing_it() -> None:
    report = make_report([("B-PER I-PER O B-LOC", "B-PER O O B-PER"), ("O", "I-PER")])
    page = Page(report_html(report, "Report"))
    assert page.find("html", lang="en")
    assert all(attrs["alt"] for attrs in page.find("img")) and len(page.find("img")) == 2
    assert {attrs["scope"] for attrs in page.find("th")} == {"col", "row"}
    num_columns, num_names = 11 + 4 + 4, 3 * 1 + 1 * 2 + 1 * 3
    assert len(page.find("th", scope="col")) == num_columns
    assert len(page.find("th", scope="row")) == num_names
    assert all(attrs["aria-label"] for attrs in page.find("div", role="region"))


def test_wrong_words_are_marked_beside_color() -> None:
    report = make_report([("B-PER I-PER O B-LOC", "B-PER O O B-PER")])
    page = Page(report_html(report, "Report"))
    assert [attrs.get("class") for attrs in page.find("li")] == [None, "wrong", None, "wrong"]
    assert page.text_of("bdi") == ["B-PER", "B-PER", "I-PER", "✗ O", "O", "O", "B-LOC", "✗ B-PER"]
    assert page.text_of("span") == ["word0", "word1", "word2", "word3"]


@pytest.mark.parametrize("sentences", [[], [("O O", "O O")], [("B-PER O", "B-PER O")], [("", "")]])
def test_a_report_of_nothing_or_no_error_is_whole(sentences: list[tuple[str, str]]) -> None:
    report = make_report(sentences)
    assert report_text(report).startswith(
        f"{sum(len(g.split()) for g, _ in sentences)} words in {len(sentences)} sentences"
    )
    assert not Page(report_html(report, "Report")).find("li")


# --------------------------------------------------------------------------------------------------------------- files


def test_files_hold_the_report(tmp_path: Path) -> None:
    report = make_hostile_report()
    write_report(report, tmp_path / "new" / "report", "Title")
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == ["report.html", "report.json"]
    text = (tmp_path / "new" / "report" / "report.json").read_text()
    assert text.isascii() and is_harmless(text)
    assert json.loads(text) == report
    page = (tmp_path / "new" / "report" / "report.html").read_text(encoding="utf-8")
    assert page == report_html(json.loads(text), "Title")  # what json keeps is all that there is


def test_a_killed_process_leaves_the_last_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(make_many_types(2), tmp_path, "First")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_report(make_many_types(3), tmp_path, "Second")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_importing_the_module_loads_no_drawing_library() -> None:
    unwanted = ("matplotlib", "jinja2", "torch", "determined")
    code = f"import sys, ner.report; print([name for name in {unwanted} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
