"""What a tagger's errors are: entities counted, and reported as tables and html. Nothing here imports Determined.

Sentences come one by one; only counts and the worst ones are kept. Text of the data is shown through `printable`.
"""

import base64
import hashlib
import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import tabulate

from ner.labels import OUTSIDE, TRANSITION_RULES, Entity, entity_key, entity_tag, find_entities, is_invalid
from transformer_trial.errors import printable
from transformer_trial.files import replacing

NUM_WORST_SENTENCES, NUM_WORST_CHARACTERS = 2000, 1_000_000  # of words and tags, that a report keeps at most
PAGE_SENTENCES = 50
NUM_COMMONEST = 10  # rows of the tables of confusions and of invalid transitions
MAX_DRAWN_TYPES = 60  # of the heat map, the most frequent ones: with more, nothing could be found
START, END = "(start)", "(end)"  # what stands before the first tag of a sentence and after its last one
SCORES = ("precision", "recall", "f1")
COUNTS = ("support", "predicted", "correct", "boundary", "confused", "missed", "spurious")
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Tags = Sequence[str]
Scores = Sequence[float | None]
Description = Callable[[], tuple[Sequence[str], str]]


def match_entities(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    """Match the entities of a sentence one to one, by overlap and then by type. Two with the same span always match.

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


def span_score(scores: Scores, first: int, last: int) -> float | None:
    """The mean score of the words of an entity, as far as they have one."""
    known = [score for score in scores[first : last + 1] if score is not None]
    return round(sum(known) / len(known), 6) if known else None


class ErrorReport:
    """The one counter of entities and errors; what it keeps does not grow with the number of sentences.

    `scheme` is that of the tags, as `ner.labels.find_label_scheme` names it, None where it is unknown; `mode` and
    `strict_scheme` say how seqeval finds entities, see `ner.labels.find_entities`; `training_entities` may be
    set to what `EncodedTags.entity_keys` returns of the training split, to tell seen entities from new ones.
    """

    def __init__(self, scheme: str | None = None, mode: str = "default", strict_scheme: str | None = None) -> None:
        self.scheme, self.mode, self.strict_scheme = scheme, mode, strict_scheme
        self.training_entities: Set[int] | None = None
        self.num_sentences = self.num_words = self.num_wrong_words = self.num_wrong_sentences = self.worst_size = 0
        self.outcomes: Counter[tuple[str | None, str | None, bool]] = Counter()  # gold type, predicted, same span
        self.transitions: dict[str, Counter[tuple[str, str]]] = {"predicted": Counter(), "gold": Counter()}
        self.seen: dict[str, Counter[bool]] = {"seen": Counter(), "unseen": Counter()}  # how many are correct
        self.kept: dict[float, Counter[str]] = defaultdict(Counter)  # at each threshold, by "predicted" and "correct"
        self.worst: list[tuple[int, int, int, int, dict[str, Any]]] = []  # a heap: the least bad one comes first

    def add(
        self, gold: Tags, predicted: Tags, describe: Description = lambda: ((), ""), scores: Scores | None = None
    ) -> None:
        """Add a sentence by the gold and the predicted tag of each word, and the score of each, for all or none.

        `describe` returns the words and where they are from. It is called only where there is an error, or a gold
        entity to be looked up in the training split, so that the rows of all others need not be read.
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
                self.transitions[side].update(itertools.pairwise([START, *tags, END]))
        known = self.training_entities
        words, place = describe() if num_wrong_words or (gold_entities and known is not None) else ((), "")
        if known is not None:
            for g, p in pairs[: len(gold_entities)]:
                self.seen["seen" if g and entity_key(words, g) in known else "unseen"][g == p] += 1
        for g, p in pairs if scores else ():
            score = span_score(scores or (), p[1], p[2]) if p else 0
            for threshold in THRESHOLDS if p else ():
                if score is None or score >= threshold:
                    self.kept[threshold].update(("predicted", "correct") if g == p else ("predicted",))
        badness = (sum(g != p for g, p in pairs), num_wrong_words, -self.num_sentences)
        if num_wrong_words and (len(self.worst) < NUM_WORST_SENTENCES or badness > self.worst[0][:3]):
            sentence = {"place": place, "wrong_entities": badness[0], "wrong_words": num_wrong_words}
            sentence |= {"words": [*words], "gold": [*gold], "predicted": [*predicted]}
            sentence["scores"] = scores and [None if score is None else round(score, 3) for score in scores]
            size = sum(map(len, [*words, *gold, *predicted]))
            heapq.heappush(self.worst, (*badness, size, sentence))
            self.worst_size += size
            while len(self.worst) > (1 if self.worst_size > NUM_WORST_CHARACTERS else NUM_WORST_SENTENCES):
                self.worst_size -= heapq.heappop(self.worst)[3]
        self.num_wrong_sentences += num_wrong_words > 0
        self.num_sentences += 1
        self.num_words += len(gold)
        self.num_wrong_words += num_wrong_words

    @property
    def accuracy(self) -> float:
        """The part of words whose tags are right; 0 without words."""
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
        own_tags = {tag for counts in self.transitions.values() for step in counts for tag in step}
        tags = {tag: entity_tag(tag, self.scheme) for tag in own_tags} | {START: OUTSIDE, END: OUTSIDE}
        invalid: dict[str, Counter[tuple[str, str]]] = {side: Counter() for side in self.transitions}
        for side, counts in self.transitions.items():
            for a, b in sorted(counts):
                if is_invalid(tags[a], tags[b], self.scheme):
                    invalid[side][a, b] = counts[a, b]
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
        overall, outcomes = sum(types.values(), Counter[str]()), self.outcomes
        pairs = sorted({(g, p) for g, p, _ in outcomes if g is not None and p is not None})
        confusions = Counter({(g, p): outcomes[g, p, True] + outcomes[g, p, False] for g, p in pairs})
        steps = [(side, *step) for side, counts in transitions.items() for step in counts.most_common(NUM_COMMONEST)]
        seen = self.seen.items() if self.training_entities is not None else ()
        kept = {t: Counter(support=overall["support"], **self.kept[t]) for t in THRESHOLDS if self.kept}
        return {
            "sentences": self.num_sentences,
            "words": self.num_words,
            **{name: getattr(self, name) for name in ("scheme", "mode", "strict_scheme")},
            "accuracy": self.accuracy,
            "overall": score_type(overall),
            "types": {name: score_type(types[name]) for name in sorted(types)},
            "confusion": [
                {"gold": g, "predicted": p, "same_span": outcomes[g, p, True], "other_span": outcomes[g, p, False]}
                for (g, p), _ in confusions.most_common()
            ],
            "invalid_transitions": {side: counts.total() for side, counts in transitions.items()},
            "commonest_invalid_transitions": [
                {"tags": side, "tag": tag, "next_tag": next_tag, "count": n} for side, (tag, next_tag), n in steps
            ],
            "seen": {name: {"recall": n[True] / max(n.total(), 1), "support": n.total()} for name, n in seen},
            "thresholds": {str(t): dict([*score_type(counts).items()][:6]) for t, counts in kept.items()},
            "sentences_with_errors": self.num_wrong_sentences,
            "worst_sentences": [sentence for *_, sentence in sorted(self.worst, reverse=True)],
        }


def score_type(counts: Mapping[str, int]) -> dict[str, float]:
    """Precision, recall and F1, 0 where seqeval divides by zero, and the counts."""
    correct = counts["correct"]
    precision, recall = correct / max(counts["predicted"], 1), correct / max(counts["support"], 1)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return dict(zip(SCORES, (precision, recall, f1))) | {name: counts[name] for name in COUNTS}


def metric_directions(entity_types: Sequence[str]) -> dict[str, bool]:
    """The metrics of a validation by name, and whether more of each is better."""
    directions = dict.fromkeys(("accuracy_score", *SCORES), True) | {"validation_loss": False}
    return directions | {f"{name}_{score}": True for name in entity_types for score in SCORES}


def summarize(report: Mapping[str, Any]) -> str:
    rules = f"strictly by {report['strict_scheme']}" if report["mode"] == "strict" else "in seqeval's default mode"
    scores = ", ".join(f"{name} {report['overall'][name]:.3f}" for name in SCORES)
    size = f"{report['words']:,} words in {report['sentences']:,} sentences"
    return f"{size}: accuracy {report['accuracy']:.3f}. Entities, {rules}: {scores}."


def build_tables(report: Mapping[str, Any]) -> list[tuple[str, int, list[list[str]], str]]:
    """Of each table name, number of columns that name things, rows with a head, and what to say without other rows."""

    def score_row(name: str, row: Mapping[str, Any]) -> list[Any]:
        return [name, *(f"{row[key]:.3f}" for key in SCORES), *(row[key] for key in COUNTS if key in row)]

    scores = [*itertools.starmap(score_row, report["types"].items()), score_row("all types", report["overall"])]
    thresholds = [*itertools.starmap(score_row, report["thresholds"].items())]
    confusions = [[*cell.values()] for cell in report["confusion"] if cell["gold"] != cell["predicted"]][:NUM_COMMONEST]
    transitions = [[*row.values()] for row in report["commonest_invalid_transitions"]]
    number = ", ".join(f"{count:,} in {side} tags" for side, count in report["invalid_transitions"].items())
    if report["scheme"] not in TRANSITION_RULES:
        number = "no rules are known for these tags"
    seen = [[f"{name} in training", f"{row['recall']:.3f}", row["support"]] for name, row in report["seen"].items()]
    without = "Without the entities below a score, as predict.py --min-score leaves them out"
    confused, broken = "No entity was taken for one of another type.", "There is none to show."
    pair, step = ["gold", "predicted", "same span", "other span"], ["tags", "tag", "next tag", "count"]
    tables: list[tuple[str, int, list[str], list[list[Any]], str]] = [
        ("Entities by type", 1, ["type", *SCORES, *COUNTS], scores, ""),
        ("Confusions of types, commonest first", 2, pair, confusions, confused),
        (f"Invalid transitions: {number}", 3, step, transitions, broken),
        ("Gold entities, by whether training has them", 1, ["type and words", "recall", "support"], seen, ""),
        (without, 1, ["score", *SCORES, *COUNTS[:3]], thresholds, ""),
    ]
    return [
        (name, names, [[printable(f"{x:,}" if isinstance(x, int) else x) for x in row] for row in [head, *rows]], empty)
        for name, names, head, rows, empty in tables
        if rows or empty  # what is unknown has no table
    ]


def report_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal, without its sentences."""
    lines = [summarize(report)]
    for name, num_names, rows, empty in build_tables(report):
        lines += ["", name, format_table(rows, num_names) if len(rows) > 1 else empty]
    return "\n".join(lines) + "\n"


def format_table(rows: Sequence[Sequence[str]], num_names: int = 1) -> str:
    """A table for a terminal; the first columns are names, the others are numbers."""
    alignment = ["left"] * num_names + ["right"] * (len(rows[0]) - num_names)
    # The head is a row like the others: as `headers` it would widen the columns.
    return tabulate.tabulate(rows, tablefmt="plain", colalign=alignment, disable_numparse=True)


def build_heat_map(report: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """A row for each gold type: its name, and how many of its entities were taken for each type, by name.

    Two more numbers of each row count its boundary errors and missed entities; a last row counts spurious entities.
    """
    types = report["types"]
    names = sorted(sorted(types, key=lambda name: -types[name]["support"])[:MAX_DRAWN_TYPES])
    numbers = {(row["gold"], row["predicted"]): row["same_span"] + row["other_span"] for row in report["confusion"]}
    numbers |= {(name, name): types[name]["correct"] for name in names}
    rows = [(gold, [numbers.get((gold, name), 0) for name in names]) for gold in names]
    for gold, row in rows:
        row += [types[gold]["boundary"], types[gold]["missed"]]
    return [*rows, ("spurious", [*(types[name]["spurious"] for name in names), 0, 0])] if names else []


def report_html(report: Mapping[str, Any], title: str) -> str:
    """The report as a page that refers to no other file."""
    sentences, tags = [], set[str]()
    for sentence in report["worst_sentences"]:
        tags.update(sentence["gold"], sentence["predicted"])
        shown = {key: [*map(printable, sentence[key])] for key in ("words", "gold", "predicted")}
        sentences.append({**sentence, **shown, "place": printable(sentence["place"])})
    types = {printable(tag): printable(entity_tag(tag, report["scheme"])[2:]) for tag in tags - {OUTSIDE}}
    data = {"page": PAGE_SENTENCES, "errors": report["sentences_with_errors"], "types": types, "sentences": sentences}
    tables, heat_map = build_tables(report), build_heat_map(report)
    texts = {"title": title, "summary": summarize(report), "tables": tables, "heat_map": heat_map, "data": data}
    functions = {"zip": zip, "sha256": hashlib.sha256, "base64": base64.b64encode}
    return render_template("report.html.j2", printable, **texts, **functions)


def render_template(name: str, escape: Callable[[str], str], **values: Any) -> str:
    """Fill in a template of this folder; `escape` changes every text but those that the template marks as `safe`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: escape(value) if type(value) is str else value,
    )
    return environment.get_template(name).render(values)


def write_report(report: Mapping[str, Any], folder: Path, title: str) -> None:
    """Write `report.json` and `report.html`; a killed process leaves whole files."""
    folder.mkdir(parents=True, exist_ok=True)
    # json keeps to ASCII, so that no letter of the data acts on a terminal that shows the file
    texts = {"report.json": json.dumps(report, indent=1) + "\n", "report.html": report_html(report, title)}
    for name, text in texts.items():
        with replacing(folder / name) as new:
            new.write_text(text, encoding="utf-8")
