"""What a tagger's errors are: counts, tables, figures, html. Nothing here imports Determined, or knows of models.

Sentences come one by one; only counts and the worst ones are kept. Text of the data is shown through `printable`.
"""

import base64
import heapq
import io
import itertools
import json
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ner.labels
from ner.labels import OUTSIDE, Entity, entity_tag, find_entities
from transformer_trial.errors import printable

NUM_WORST_SENTENCES = 50
NUM_COMMONEST = 10
"""Rows of the tables of confusions and of invalid transitions."""

MAX_DRAWN_TYPES = 60
"""Figures show the most frequent types: with more, nothing could be read."""

Description = tuple[Sequence[str], str]
"""The words of a sentence, and where it is from."""

SCORES = ("precision", "recall", "f1")
COUNTS = ("support", "predicted", "correct", "boundary", "confused", "missed", "spurious")

TRANSITION_RULES: dict[str | None, tuple[str, str]] = {
    "IOB1": ("B", ""),
    "IOB2": ("I", ""),
    "IOE1": ("", "E"),
    "IOE2": ("", "I"),
    "BIOES": ("IE", "BI"),
    "BILOU": ("IE", "BI"),
}
"""By scheme, with prefixes as `entity_tag` writes them: those that must follow B or I of their type, and those that I
or E of their type must follow."""


def match_entities(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    """Match the entities of a sentence one to one, by overlap and then by type; those of one span thus always match.

    Example:
        >>> match_entities([("PER", 0, 2)], [("LOC", 1, 2), ("PER", 4, 4)])
        [(('PER', 0, 2), ('LOC', 1, 2)), (None, ('PER', 4, 4))]
    """
    if gold == predicted:
        return [*zip(gold, predicted)]
    owners = {word: entity for entity in predicted for word in range(entity[1], entity[2] + 1)}
    overlaps = Counter((g, owners[word]) for g in gold for word in range(g[1], g[2] + 1) if word in owners)
    matched: dict[Entity, Entity] = {}
    free = set(predicted)
    for *_, g, p in sorted((-words, g[0] != p[0], g[1], p[1], g, p) for (g, p), words in overlaps.items()):
        if g not in matched and p in free:
            matched[g] = p
            free.remove(p)
    return [*((g, matched.get(g)) for g in gold), *((None, p) for p in predicted if p in free)]


def is_invalid(tag: str, next_tag: str, scheme: str | None) -> bool:
    """Whether the scheme forbids that one tag follows another, both as `entity_tag` writes them.

    Example:
        >>> is_invalid("O", "I-PER", "IOB2"), is_invalid("B-PER", "I-PER", "IOB2")
        (True, False)
    """
    must_follow, must_be_followed = TRANSITION_RULES.get(scheme, ("", ""))
    same_type = tag[1:] == next_tag[1:]
    follows, is_followed = same_type and tag[0] in "BI", same_type and next_tag[0] in "IE"
    return (next_tag[0] in must_follow and not follows) or (tag[0] in must_be_followed and not is_followed)


class ErrorReport:
    """Counts entities and errors of sentences as they come; what it keeps does not grow with their number.

    It is the one counter of entities: the metrics of a validation and the report come from the same counts.

    Args:
        scheme: The scheme of the tags, as `ner.labels.find_label_scheme` names it; None where it is unknown.
        mode: "default" or "strict", how seqeval finds entities; see `ner_utils.compute_metrics`.
        strict_scheme: The class of `seqeval.scheme` that mode "strict" goes by.

    Example:
        >>> report = ErrorReport("IOB2")
        >>> report.add(["B-PER", "I-PER", "O"], ["B-PER", "O", "O"])
        >>> report.metrics()["accuracy_score"]
        0.6666666666666666
    """

    def __init__(self, scheme: str | None = None, mode: str = "default", strict_scheme: str | None = None) -> None:
        self.scheme, self.mode, self.strict_scheme = scheme, mode, strict_scheme
        self.num_sentences = self.num_words = self.num_wrong_words = 0
        self.outcomes: Counter[tuple[str | None, str | None, bool]] = Counter()  # gold type, predicted, same span
        # How often which tag followed which other; None is before the first word and behind the last one.
        self.transitions: dict[str, Counter[tuple[str | None, str | None]]] = {
            "predicted": Counter(),
            "gold": Counter(),
        }
        self.worst: list[tuple[int, int, int, dict[str, Any]]] = []  # a heap: the least bad one comes first

    def add(
        self, gold: Sequence[str], predicted: Sequence[str], describe: Callable[[], Description] = lambda: ((), "")
    ) -> None:
        """Add a sentence.

        Args:
            gold: A tag for each word.
            predicted: As many tags.
            describe: Returns the words, and where the sentence is from. It is called only if the sentence is among the
                worst ones so far, so that the rows of all others need not be read.
        """
        gold_tags = [entity_tag(tag, self.scheme) for tag in gold]
        predicted_tags = gold_tags if predicted == gold else [entity_tag(tag, self.scheme) for tag in predicted]
        gold_entities = predicted_entities = find_entities(gold_tags, self.mode, self.strict_scheme)
        num_wrong_words = 0
        if predicted_tags is not gold_tags:
            num_wrong_words = sum(g != p for g, p in zip(gold_tags, predicted_tags, strict=True))
            predicted_entities = find_entities(predicted_tags, self.mode, self.strict_scheme)
        pairs = match_entities(gold_entities, predicted_entities)
        self.outcomes.update((g and g[0], p and p[0], bool(g and p and g[1:] == p[1:])) for g, p in pairs)
        for side, tags in (("predicted", predicted), ("gold", gold)):
            if tags.count(OUTSIDE) < len(tags):
                self.transitions[side].update(itertools.pairwise([None, *tags, None]))
        badness = (sum(g != p for g, p in pairs), num_wrong_words, -self.num_sentences)
        if num_wrong_words and (len(self.worst) < NUM_WORST_SENTENCES or badness > self.worst[0][:3]):
            words, place = describe()
            sentence = {"place": place, "wrong_entities": badness[0], "wrong_words": num_wrong_words}
            sentence |= {"words": [*words], "gold": [*gold], "predicted": [*predicted]}
            heapq.heappush(self.worst, (*badness, sentence))
            if len(self.worst) > NUM_WORST_SENTENCES:
                heapq.heappop(self.worst)
        self.num_sentences += 1
        self.num_words += len(gold)
        self.num_wrong_words += num_wrong_words

    @property
    def accuracy(self) -> float:
        return (self.num_words - self.num_wrong_words) / max(self.num_words, 1)

    def count_by_type(self) -> dict[str, Counter[str]]:
        """How many entities there are of each type, by `COUNTS`; types without any are missing."""
        types: dict[str, Counter[str]] = defaultdict(Counter)
        for (gold, predicted, same_span), number in self.outcomes.items():
            if gold is not None:
                types[gold]["support"] += number
            if predicted is not None:
                types[predicted]["predicted"] += number
            if gold is None or predicted is None:
                types[gold or predicted or ""]["spurious" if gold is None else "missed"] += number
            else:
                types[gold]["confused" if gold != predicted else "correct" if same_span else "boundary"] += number
        return dict(types)

    def find_invalid_transitions(self) -> dict[str, Counter[tuple[str, str]]]:
        """How often one tag followed another against the rules of the scheme, in predicted and in gold tags."""
        invalid: dict[str, Counter[tuple[str, str]]] = {side: Counter() for side in self.transitions}
        for side, transitions in self.transitions.items():
            for (tag, next_tag), number in transitions.items():
                before, after = (OUTSIDE if t is None else entity_tag(t, self.scheme) for t in (tag, next_tag))
                if is_invalid(before, after, self.scheme):
                    names = ("(start)" if tag is None else tag, "(end)" if next_tag is None else next_tag)
                    invalid[side][names] += number
        return invalid

    def metrics(self, entity_types: Sequence[str] = ()) -> dict[str, float]:
        """The metrics of a validation by name, also those of each of these types; 0 where there is no such entity."""
        types = self.count_by_type()
        overall = score_type(sum(types.values(), Counter()))
        metrics = {"accuracy_score": self.accuracy, **{name: overall[name] for name in SCORES}}
        for entity_type in entity_types:
            scores = score_type(types.get(entity_type, Counter()))
            metrics |= {f"{entity_type}_{name}": scores[name] for name in SCORES}
            metrics[f"{entity_type}_number"] = float(scores["support"])
        return metrics

    def as_dict(self) -> dict[str, Any]:
        """The report, ready for json."""
        types, transitions = self.count_by_type(), self.find_invalid_transitions()
        confusion: Counter[tuple[str, str]] = Counter()
        for (gold, predicted, _), number in self.outcomes.items():
            if gold is not None and predicted is not None:
                confusion[gold, predicted] += number
        spans = {"same_span": True, "other_span": False}
        return {
            "sentences": self.num_sentences,
            "words": self.num_words,
            "scheme": self.scheme,
            "mode": self.mode,
            "strict_scheme": self.strict_scheme,
            "accuracy": self.accuracy,
            "overall": score_type(sum(types.values(), Counter())),
            "types": {name: score_type(types[name]) for name in sorted(types)},
            "confusion": [
                {"gold": g, "predicted": p, **{name: self.outcomes[g, p, same] for name, same in spans.items()}}
                for (g, p), _ in rank(confusion)
            ],
            "invalid_transitions": {side: counts.total() for side, counts in transitions.items()},
            "commonest_invalid_transitions": [
                {"tags": side, "tag": tag, "next_tag": next_tag, "count": number}
                for side, counts in transitions.items()
                for (tag, next_tag), number in rank(counts)[:NUM_COMMONEST]
            ],
            "worst_sentences": [sentence for *_, sentence in sorted(self.worst, reverse=True)],
        }


def rank(counts: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def score_type(counts: Mapping[str, int]) -> dict[str, float]:
    """Precision, recall and F1, 0 where seqeval divides by zero, and the counts."""
    scores = ner.labels.precision_recall_f1(counts["correct"], counts["predicted"], counts["support"])
    return {**scores, **{name: counts[name] for name in COUNTS}}


def summarize(report: Mapping[str, Any]) -> str:
    rules = f"strictly by {report['strict_scheme']}" if report["mode"] == "strict" else "in seqeval's default mode"
    scores = ", ".join(f"{name} {report['overall'][name]:.3f}" for name in SCORES)
    size = f"{report['words']:,} words in {report['sentences']:,} sentences"
    return f"{size}: accuracy {report['accuracy']:.3f}. Entities, {rules}: {scores}."


def build_tables(report: Mapping[str, Any]) -> list[tuple[str, int, list[list[str]]]]:
    """Name, number of the columns that name things, and rows of each table; the first row names the columns."""
    scores: list[list[Any]] = [["type", *SCORES, *COUNTS]]
    for name, row in [*report["types"].items(), ("all types", report["overall"])]:
        scores.append([name, *(f"{row[key]:.3f}" for key in SCORES), *(row[key] for key in COUNTS)])
    confusions: list[list[Any]] = [["gold", "predicted", "same span", "other span"]]
    confusions += [[*cell.values()] for cell in report["confusion"] if cell["gold"] != cell["predicted"]]
    transitions: list[list[Any]] = [["tags", "tag", "next tag", "count"]]
    transitions += [[*row.values()] for row in report["commonest_invalid_transitions"]]
    number = ", ".join(f"{count:,} in {side} tags" for side, count in report["invalid_transitions"].items())
    if report["scheme"] not in TRANSITION_RULES:
        number = "no rules are known for these tags"
    tables = [
        ("Entities by type", 1, scores),
        ("Confusions of types, commonest first", 2, confusions[: NUM_COMMONEST + 1]),
        (f"Invalid transitions: {number}", 3, transitions),
    ]
    return [
        (name, num_names, [[printable(f"{cell:,}" if isinstance(cell, int) else cell) for cell in row] for row in rows])
        for name, num_names, rows in tables
    ]


def count_wide(text: str) -> int:
    """Letters that take two columns of a terminal."""
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def report_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal, without its sentences."""
    lines = [summarize(report)]
    for name, num_names, rows in build_tables(report):
        lines += ["", name]
        widths = [max(len(cell) + count_wide(cell) for cell in column) for column in zip(*rows)]
        for row in rows if len(rows) > 1 else []:
            sizes = [width - count_wide(cell) for cell, width in zip(row, widths)]
            cells = [c.ljust(n) if i < num_names else c.rjust(n) for i, (c, n) in enumerate(zip(row, sizes))]
            lines.append("  ".join(cells))
    return "\n".join(lines) + "\n"


def shorten(label: str) -> str:
    """As much of a label as a figure has room for."""
    length = 12 if count_wide(label) else 24
    return label if len(label) <= length else label[: length - 1] + "…"


def draw_figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """F1 of the types, and what the types were taken for: each a data URI of SVG, what it is, and what it shows."""
    import matplotlib.style
    from matplotlib.figure import Figure

    by_support = sorted(report["types"], key=lambda name: -report["types"][name]["support"])
    rows = {name: report["types"][name] for name in sorted(by_support[:MAX_DRAWN_TYPES])}
    labels = [shorten(printable(name)) for name in rows]
    size, places = len(rows), {name: i for i, name in enumerate(rows)}
    counts = np.zeros((size + 1, size + 2), int)
    for cell in report["confusion"]:
        if cell["gold"] in rows and cell["predicted"] in rows:
            counts[places[cell["gold"]], places[cell["predicted"]]] = cell["same_span"] + cell["other_span"]
    for i, row in enumerate(rows.values()):
        counts[i, [i, size, size + 1]] = row["correct"], row["boundary"], row["missed"]
        counts[size, i] = row["spurious"]
    shades = np.sqrt(counts / counts.sum(axis=1, keepdims=True).clip(1))  # the root makes a few percent visible
    is_correct = np.eye(size + 1, size + 2, dtype=bool)

    # Text stays text: a browser has the letters that matplotlib's fonts lack. The user's own style has no say.
    style: list[Any] = ["default", {"svg.fonttype": "none", "svg.hashsalt": "ner_report"}]
    with matplotlib.style.context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about such letters
        bars = Figure(figsize=(6, 0.26 * size))
        axes = bars.add_axes((0, 0, 1, 1), xlim=(0, 1.1), ylim=(size - 0.4, -0.6), xlabel="F1")
        scores = [row["f1"] for row in rows.values()]
        axes.bar_label(axes.barh(range(size), scores, color="#4878a8"), [f"{f1:.3f}" for f1 in scores], padding=3)
        axes.set_yticks(range(size), labels, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)

        inches = min(max(0.24, 4 / (size + 2)), 0.6)  # of a cell
        heat_map = Figure(figsize=(inches * (size + 2), inches * (size + 1)))
        axes = heat_map.add_axes((0, 0, 1, 1), xlabel="predicted", ylabel="gold")
        for shown, colors in ((is_correct, "Blues"), (~is_correct, "Oranges")):
            image = np.ma.array(shades, mask=~shown | (counts == 0))
            axes.imshow(image, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for i, j in np.argwhere(counts):
            text = f"{counts[i, j]}" if counts[i, j] < 10_000 else f"{counts[i, j] / 1000:.0f}k"
            color = "white" if shades[i, j] > 0.7 else "black"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=min(10, 26 * inches))
        axes.xaxis.tick_top()
        axes.yaxis.set_label_position("right")
        axes.set_xticks(range(size + 2), [*labels, "boundary", "missed"], rotation=90, parse_math=False)
        axes.set_yticks(range(size + 1), [*labels, "spurious"], parse_math=False)
        for place in range(size + 1):
            color = "black" if place == size else "#dddddd"
            axes.axhline(place - 0.5, color=color, linewidth=0.8)
            axes.axvline(place - 0.5, color=color, linewidth=0.8)

        padding = 0.1 + 0.06 * max(map(count_wide, labels))  # inches; matplotlib may take wide letters for narrow ones
        metadata: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn = []
        for figure, texts in zip((bars, heat_map), FIGURE_CAPTIONS.items()):
            file = io.BytesIO()
            figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=padding, dpi=200, metadata=metadata)
            drawn.append(("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode(), *texts))
    return drawn


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 80rem; font: 1rem/1.4 system-ui, sans-serif; color: #1a1a1a;
       background: #fff; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
.wide { overflow-x: auto; overflow-wrap: break-word; }
table { border-collapse: collapse; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #bbb; text-align: end; font-variant-numeric: tabular-nums; }
.name { min-width: 5rem; max-width: 16rem; text-align: start; unicode-bidi: isolate; }
h3 { margin: 1.5rem 0 .3rem; padding-top: .3rem; border-top: 1px solid #bbb; font-size: 1rem; }
h2, h3 { break-after: avoid; }
ol { display: flex; flex-wrap: wrap; gap: .3rem; margin: 0; padding: 0; list-style: none; }
li { text-align: center; border: 2px solid transparent; padding: 0 .2rem; max-width: 100%; box-sizing: border-box;
     break-inside: avoid; }
li > * { display: block; unicode-bidi: isolate; min-height: 1.4em; overflow: clip; overflow-clip-margin: .2em; }
bdi { font-size: .75rem; color: #555; }
bdi.entity { font-weight: bold; color: #1a1a1a; }
.wrong { border-color: #b00020; }
.wrong bdi { font-weight: bold; color: #b00020; }
@media print { body { margin: 0; max-width: none; } .wide { overflow: visible; } img { max-width: 100%; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% for name, num_names, rows in tables %}
<h2>{{ name }}</h2>
<div class="wide" role="region" aria-label="{{ name }}" tabindex="0">
{% for image, alt, caption in figures[loop.index0:loop.index] %}
<figure><img src="{{ image }}" alt="{{ alt }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% if rows|length > 1 %}
<table>
{% for part, scope, part_rows in (("thead", "col", rows[:1]), ("tbody", "row", rows[1:])) %}
<{{ part }}>
{% for row in part_rows %}
<tr>
{% for cell in row %}
{% if loop.index <= num_names %}<th scope="{{ scope }}" class="name">{{ cell }}</th>
{% elif scope == "col" %}<th scope="col">{{ cell }}</th>
{% else %}<td>{{ cell }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</{{ part }}>
{% endfor %}
</table>
{% endif %}
</div>
{% endfor %}
<h2>Worst sentences</h2>
<p>Below each word are its gold tag and its predicted tag. A frame and ✗ mark those that differ.</p>
{% for sentence in sentences %}
<h3>{{ sentence.place }}: {{ sentence.wrong_entities }} wrong entities, {{ sentence.wrong_words }} wrong words</h3>
<ol dir="auto">
{% for word, gold, predicted in zip(sentence.words, sentence.gold, sentence.predicted) %}
<li{% if gold != predicted %} class="wrong"{% endif %}><span>{{ word }}</span>
{% for tag in (gold, predicted) %}
<bdi{% if tag != "O" %} class="entity"{% endif %}>{% if loop.last and gold != predicted %}✗ {% endif %}{{ tag }}</bdi>
{% endfor %}
</li>
{% endfor %}
</ol>
{% endfor %}
</body>
</html>
"""

FIGURE_CAPTIONS = {
    "Bar chart": "F1 of each type. In the table, correct entities have the gold span and type, boundary errors another "
    "span, confused ones another type; missed and spurious ones have no counterpart.",
    "Heat map": "Gold types in rows, predicted types in columns. Blue is right, orange is wrong; the darker, the "
    "larger a part of its row.",
}


def report_html(report: Mapping[str, Any], title: str) -> str:
    """A page that needs nothing else."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    return environment.from_string(PAGE).render(
        title=title,
        summary=summarize(report),
        tables=build_tables(report),
        figures=draw_figures(report) if report["types"] else [],
        sentences=report["worst_sentences"],
        zip=zip,
    )


def write_report(report: Mapping[str, Any], folder: Path, title: str) -> None:
    """Write `report.json` and `report.html`; a killed process leaves whole files."""
    folder.mkdir(parents=True, exist_ok=True)
    # json keeps to ASCII, so that no letter of the data acts on a terminal that shows the file
    for name, text in (("report.json", json.dumps(report, indent=1)), ("report.html", report_html(report, title))):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)


def metric_directions(entity_types: Sequence[str]) -> dict[str, bool]:
    """The metrics of a validation by name, and whether more of each is better."""
    directions = dict.fromkeys(("accuracy_score", *SCORES), True) | {"validation_loss": False}
    return directions | {f"{name}_{score}": True for name in entity_types for score in SCORES}
