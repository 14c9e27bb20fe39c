"""Records, and which of their columns hold words and tags: as configured, by their usual names, or by a guess."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ner.cells import TAGGED_LINE, holds_spans, join_names
from ner.config import ReadOptions
from ner.labels import PREFIXED
from transformer_trial.errors import TrialError, format_value

# Usual names of the columns, in upper or lower case, those of annotation tools included.
TEXT_NAMES = ("tokens", "words", "token", "word", "form", "text", "sentence")
LABEL_NAMES = ("tags", "tag", "labels", "label", "ner", "entities", "spans")  # after {task}_tags
SENTENCE_NAMES = ("sentence #", "sentence_id", "sentence_idx", "sent_id", "sentence_number")
DOCUMENT_NAMES = ("document_id", "doc_id", "document")
SPAN_NAMES = ("entities", "spans")
NO_DATA = re.compile(
    r"(?i)|unnamed: .*|id|uuid|meta(data)?|lang(uage)?|source|url|answer|score|annotator|lead_time|.*_(id|hash|at|by)"
)
"""Names of columns that are never taken for words or tags because of their place."""

# Ways to write a prefix and a type that are not B-PER, by their look.
SPELLINGS = {
    "B_PER": re.compile(r"(?P<prefix>[BIESLUMW])_(?P<type>.+)"),
    "PER-B": re.compile(r"(?P<type>.+)-(?P<prefix>[BIESLUMW])"),
    "b-per": re.compile(r"(?P<prefix>[bieslumw])-(?P<type>.+)"),
}

NO_NAME = re.compile(r"(^|\s)(O|[BIESLUMW]-\S+)($|\s)|[\[{]")  # in a first line, which should name the columns


class Record(NamedTuple):
    """A row of a table, or a sentence of CoNLL columns, whose cells are lists: of each word's cell, None if empty."""

    place: str  # file and line, or row where there are no lines
    cells: dict[str, Any]  # by the name of the column
    places: Sequence[str] = ()  # the place of each word, for CoNLL columns and for rows of words that were joined
    document: str = ""  # the document that it is from, where the file marks them

    def place_of(self, error: Exception) -> str:
        """Return the place to name in a message: the word's own place if the error is about a word that has one."""
        return self.places[getattr(error, "number", 1) - 1] if self.places else self.place


def count_column_names(cells: Sequence[str], options: ReadOptions) -> int:
    """Count the cells that are given or usual names of columns; 0 if a tag is among the cells."""
    if any(TAGGED_LINE.search(f" {cell}") for cell in cells):
        return 0
    known = {*TEXT_NAMES, *LABEL_NAMES, *SENTENCE_NAMES}
    usual = sum(c.strip().lower() in known or bool(re.fullmatch(r"(?i).*[ _](tag|label)s? *", c)) for c in cells)
    given = (options.text_column_name, options.label_column_name, options.sentence_column_name)
    return usual + 2 * sum(name in cells and not str(name).isdigit() for name in given)


@dataclass(frozen=True)
class Columns:
    """The columns of the words and the tags, and how tags are written in them."""

    text: str
    label: str | None  # None where there are no tags, as in text to predict on
    sentence: str | None = None  # the column of the sentence's id, where a record is a word
    document: str | None = None
    has_spans: bool = False  # whether the label column holds the entities of a text
    outside: str | None = None  # the tag that is written for O
    spelling: str | None = None  # how prefixes are written, one of SPELLINGS; None is B-PER
    nested: str | None = None  # another column, of tags of the same types, which is not read
    num_unnamed: int = 0  # the number of columns where they have no names, else 0

    def respell(self, tag: str) -> str:
        """The tag as B-PER or O, whatever the column writes for these. A tag that is written otherwise is an error."""
        if tag in ("O", self.outside) or (self.spelling and tag == "o"):
            return "O"
        if self.spelling is None:
            return tag
        if (match := SPELLINGS[self.spelling].fullmatch(tag)) is None:
            raise ValueError(f"{tag!r}, where the first ones are written like {self.spelling}. Write all alike.")
        return f"{match['prefix'].upper()}-{match['type']}"


def find_columns(records: Sequence[Record], options: ReadOptions, task: str, like: Columns | None = None) -> Columns:
    """Find the columns of words and tags: the configured ones, else those with usual names, else by what they hold.

    The order of these is that of Hugging Face's run_ner.py (Apache-2.0,
    https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification), whose only usual names
    are tokens and {task}_tags, where `task` is `finetuning_task`. Raise a TrialError if there is no such column.

    `records` are the first ones of the source. `like` are the columns of the train split: where they have names,
    another split has to have them too.
    """
    first = records[0]
    names = list(first.cells if first.places else dict.fromkeys(name for record in records for name in record.cells))
    if any(NO_NAME.search(name) for name in names):
        found = f"the line before holds {format_value('', join_names(names))}, which looks like data"
        raise TrialError(f"{first.place}: {found}; accepted is a first line with the columns' names.")
    choose = functools.partial(_choose, names, first, options)
    usual, usual_documents = ((), ()) if first.places else (SENTENCE_NAMES, DOCUMENT_NAMES)
    sentence, document = choose("sentence_column_name", usual), choose("document_column_name", usual_documents)
    others = [name for name in names if name not in (sentence, document) and not NO_DATA.fullmatch(name)]
    text_names, label_names = list(TEXT_NAMES), [f"{task}_tags", *LABEL_NAMES]
    if like is not None and not like.text.isdigit() and not _is_numbered(first):
        text_names, label_names, others = [like.text.strip().lower()], [str(like.label).strip().lower()], []
    guess = _guess_text(records, [name for name in others if name.lower() not in label_names], options)
    text = str(choose("text_column_name", text_names, guess))
    guess, nested = _guess_label(records, others, text, needs_tags=options.needs_tags)
    label = choose("label_column_name", label_names, guess)
    if label in SPAN_NAMES and options.text_column_name is None and "text" in names:
        text = "text"  # an annotation tool's tokens hold more than the words
    if text == label:
        found = f"{label!r} is the column of the words and of the tags; found {join_names(names)}"
        both = " and ".join(map(options.setting, ("text_column_name", "label_column_name")))
        raise TrialError(f"{first.place}: {found}. Set {both} to two columns.")
    items = [] if label is None else _items(records, label)
    if options.outside_label not in (None, *items) and options.needs_tags and like is None:
        found = f"no tag {options.outside_label!r} in the column {label!r}, but {join_names(sorted({*items}))}"
        raise TrialError(f"{first.place}: {found}. Set data.outside_label to the tag that stands for O, or to null.")
    outside = options.outside_label or ("o" if "o" in items and "O" not in items else None)
    cells = [(record.cells.get(text), record.cells.get(str(label))) for record in records]
    one_word = all(is_word(word) and is_tag(word if label is None else tag) for word, tag in cells)
    if options.sentence_column_name is None and not one_word:
        sentence = None  # a row is a sentence, and this is its number
    has_spans = holds_spans(*next((pair for pair in cells if pair[1] not in (None, [], "")), cells[0]))
    return Columns(
        text, label, sentence, document, has_spans, outside, _find_spelling(items), nested if label == guess else None,
        num_unnamed=len(names) if _is_numbered(first) else 0,
    )  # fmt: skip


def _find_spelling(items: Sequence[str]) -> str | None:
    tags = {*items} - {"O", "o"}
    if not tags or len(tags) == len({*items}):
        return None
    return next((name for name, pattern in SPELLINGS.items() if all(map(pattern.fullmatch, tags))), None)


def is_word(cell: Any) -> bool:
    """Tell whether a cell can be one word. It cannot hold line breaks, which a quote that is left open brings."""
    return cell is None or (isinstance(cell, (str, int, float)) and not re.search(r"[\t\r\n]", str(cell)))


def is_tag(cell: Any) -> bool:
    return is_word(cell) and not re.search(r"^\[| ", str(cell))


def _is_numbered(record: Record) -> bool:
    return bool(record.places) and next(iter(record.cells)) == "0"


def _choose(
    names: Sequence[str], first: Record, options: ReadOptions, key: str, usual: Sequence[str], guess: str | None = None
) -> str | None:
    """Return the configured column, else one with a usual name, else the guess."""
    given = getattr(options, key)
    is_required = key == "text_column_name" or (key == "label_column_name" and options.needs_tags)
    if isinstance(given, int) or (given is not None and _is_numbered(first) and re.fullmatch(r"-?\d+", given)):
        found = names[int(given)] if -len(names) <= int(given) < len(names) else None
    elif given is not None:
        found = given if given in names else None
    else:
        by_lower = {name.strip().lower(): name for name in reversed(names)}
        found = next((by_lower[name] for name in usual if name in by_lower), guess)
    if found is None and (given is not None or is_required):
        found = f"no column {usual[0] if given is None else given!r}; found {join_names(names)}"
        raise TrialError(f"{first.place}: {found}. Set {options.setting(key)} to the right column.")
    return found


def _guess_text(records: Sequence[Record], names: Sequence[str], options: ReadOptions) -> str | None:
    """Guess the first column; the second where the first one holds tags, or, in CoNLL columns, counts the words."""
    if len(names) < 2:
        return names[0] if names else None
    first, second = (_items(records, name) for name in names[:2])
    if _are_tags(first) and not _are_tags(second):
        return names[1]
    ids = [record.cells.get(names[0], []) for record in records] if records[0].places else []
    if not ids or not all(str(cell).isdigit() for cells in ids for cell in cells):
        counts = [len({*items}) for items in (first, second)]
        may_be_turned = ids and len(names) == 2 and options.needs_tags and not _are_tags(second)
        if may_be_turned and 2 * counts[0] < counts[1]:  # without prefixes, the first ones look like tags
            readings = f"column 0 has {counts[0]} different values, column 1 has {counts[1]}, in {len(first)} words"
            text, label = map(options.setting, ("text_column_name", "label_column_name"))
            advice = f"Say which are the words: {text}: 1 and {label}: 0, or 0 and 1."
            raise TrialError(f"{records[0].place}: {readings}; tags are few. {advice}")
        return names[0]
    if len(names) == 2 and _are_tags(second):
        return names[0]  # words that happen to be numbers
    is_count = all(cells in ([str(i + start) for i in range(len(cells))] for start in (0, 1)) for cells in ids)
    return names[1] if is_count else None  # other numbers are no words


def _guess_label(
    records: Sequence[Record], names: Sequence[str], text: str, *, needs_tags: bool
) -> tuple[str | None, str | None]:
    """Guess the second column unless only others hold tags; of CoNLL columns the last with tags, or with anything.

    In a file that counts its words, an earlier column with tags of other than phrases (NP) holds the outer entities, as
    in GermEval. Returns the column, and the one of inner entities.
    """
    is_conll = bool(records[0].places)
    rest = [name for name in names if name != text]
    items = {name: _items(records, name) for name in rest}
    tagged = [name for name, found in items.items() if _are_tags(found)]
    if not is_conll:
        guess = tagged[-1] if tagged and rest[0] not in tagged else rest[0] if rest else None
        return guess if needs_tags else None, None
    if len(tagged) > 1 and all(str(cell).isdigit() for cell in items.get(names[0], ["no count"])):
        types = [{item[2:] for item in items[name] if PREFIXED.match(item)} for name in tagged]
        if outer := [n for n, found in zip(tagged[:-1], types) if n != names[0] and "NP" not in found]:
            return outer[0], tagged[-1]
    used = [name for name, found in items.items() if any(re.search(r"[^\W_]", item) for item in found)]
    used = [name for name in used if names.index(name) > names.index(text)] if text in names else used
    return tagged[-1] if tagged else used[-1] if used and needs_tags and names[0] != "ID" else None, None


def _items(records: Sequence[Record], name: str) -> list[str]:
    """Return all items in the cells of a column, in whatever way they are written."""
    cells = [record.cells.get(name) for record in records]
    lists = (cell if isinstance(cell, list) else re.findall(r"""[^\s\[\]'",]+""", str(cell)) for cell in cells)
    return [str(item) for items in lists for item in items if item is not None]


def _are_tags(items: Sequence[str]) -> bool:
    tags = sum(bool(re.match("[0Oo]$|[BIESLUMWbieslumw][-_]|.+-[BIESLUMW]$", item)) for item in items)
    return bool(items) and 2 * tags >= len(items)
