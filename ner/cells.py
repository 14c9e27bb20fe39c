"""Read the cells of a record: words, tags, or a text with its entities, in the ways that people write them."""

import ast
import bisect
import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenizers import Regex, pre_tokenizers

from transformer_trial.errors import format_value

BLANKS = " \t\r\n"
CUTS = "cut a word"  # the kind of a problem with an entity that wider borders can mend
LINE_BREAK = re.compile(r"[\r\n]")
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # a surrogate, which Arrow columns cannot hold
# What no tag holds: it remains where another format is read as CoNLL columns, for example.
NO_TAG = re.compile(r"""[\[\]{}"\t\r\n]|[,;](\S|$)|^(O|[BIESLUMW]-\S+) +(O|[BIESLUMW]-\S+)( |$)""")
# A list as pandas and NumPy print it.
PRINTED_LIST = re.compile(r"^(?:\[list|(?:np\.|numpy\.)?array)\((\[.*\])(?:, dtype=\S+)?\)\]?$", re.DOTALL)
QUOTED = re.compile(r"""[a-zA-Z]*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)  # a text as Python writes it
TAGGED_LINE = re.compile(r"[ \t](O|[BIESLUMW]-\S+)$")  # the end of a line of CoNLL columns whose tags have prefixes

# At blanks and punctuation as BERT does; and each ideograph or letter is a word in scripts that part no words.
IDEOGRAPH = Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*")
SPLITTERS = [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(IDEOGRAPH, "isolated")]
WORD_SPLITTER = pre_tokenizers.Sequence(SPLITTERS)


class CellError(ValueError):
    """A problem with one word or tag, whose number counts from 1; or several, each with its kind, which are counted."""

    def __init__(self, problem: str, number: int = 1, counted: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(problem)
        self.number, self.counted = number, counted


def join_names(names: Iterable[str]) -> str:
    """List names or words for a message, on one line and not at length."""
    text = " ".join(", ".join(names).split())
    return text if len(text) <= 150 else text[:147] + "..."


def holds_spans(text: Any, label: Any) -> bool:
    """Tell whether the cells are a text and its entities, which may be written down as a text, as in csv."""
    if isinstance(label, str):
        return isinstance(text, str) and label.lstrip().startswith(("[{", "[[", "[("))
    return isinstance(text, str) and isinstance(label, list) and not (label and isinstance(label[0], (str, int)))


def parse_cells(
    text: Any,
    label: Any,
    names: Sequence[str] | None,
    respell: Callable[[str], str],
    setting: str,
    known: dict[str, str],
) -> tuple[list[str], list[str]]:
    """Return the words and tags of a sentence. Raise a ValueError if there is not one tag for each word.

    Numbers among the tags stand for `names`, which `setting` gives, and texts have to be among these. `respell` writes
    a tag as B-PER, whatever the column writes for that. `known` are texts that were read before, and as what.
    """
    words = read_words(text)
    tags: list[str] = []
    for place, written in enumerate(read_list(label, "tags"), start=1):
        if isinstance(written, str) and written in known:
            tags.append(known[written])
            continue
        tag: Any = written.strip(BLANKS) if isinstance(written, str) else written
        try:
            tag = respell(tag) if isinstance(tag, str) and tag else tag
        except ValueError as error:
            raise CellError(f"tag {place} is {error}", place) from None
        if isinstance(tag, str) and re.fullmatch(r"-?\d+", tag) and tag not in (names or ()):
            tag = int(tag)  # as csv and CoNLL columns write it
        if problem := _tag_problem(tag, names, setting):
            raise CellError(f"tag {place} is {problem}", place)
        tags.append(names[tag] if isinstance(tag, int) and names is not None else tag)
        if isinstance(written, str):
            known[written] = tags[-1]
    if len(words) != len(tags):
        found = f"words: {format_value('', ' '.join(words))}; tags: {format_value('', ' '.join(tags))}"
        problem = f"found {len(words)} words but {len(tags)} tags ({found}). Every word needs one tag."
        raise CellError(problem, 1, [("sentences with more words than tags, or fewer", problem)])
    return words, tags


def read_words(cell: Any) -> list[str]:
    """Return the words of a cell. Raise a ValueError if it is not a list of texts."""
    words = read_list(cell, "words")
    for place, word in enumerate(words, start=1):
        if not isinstance(word, str):
            found = "missing" if word is None else format_value("", word)
            problem = f"word {place} is {found}; accepted are texts. Write it in quotes, or leave it out."
            raise CellError(problem, place)
        if HALF_CHARACTER.search(word):
            raise CellError(f"word {place} is {word!r}, which holds half of a character. Write it whole.", place)
    if not words:
        raise ValueError("found a sentence without words. Remove it.")
    return words


def _tag_problem(tag: Any, names: Sequence[str] | None, label_list: str) -> str:
    """Say what is wrong with a tag; "" if nothing is."""
    if isinstance(tag, bool) or not isinstance(tag, (int, str)) or (isinstance(tag, str) and not tag.strip()):
        found = "missing" if tag in (None, "") else format_value("", tag)
        return f"{found}; accepted are texts such as 'B-PER', or whole numbers."
    if isinstance(tag, int):
        if names is None:
            advice = f"Name the tags in their order, as O, B-PER, I-PER, by {label_list}."
            return f"the number {tag}, and nothing says what it stands for. {advice}"
        is_known = 0 <= tag < len(names)
        return "" if is_known else f"the number {tag}; accepted are 0 to {len(names) - 1}: {join_names(names)}."
    if names is not None and tag not in names:
        return f"{format_value('', tag)}; accepted are {join_names(names)}. Correct it, or add it to {label_list}."
    if not re.search(r"[^\W_]", tag) or re.fullmatch(r"[BIESLUMW]-\s*", tag):
        advice = f"If it stands for O, set data.outside_label: {tag!r} in training."
        return f"{tag!r}, which names no type; accepted are O, B-PER and the like. {advice}"
    return f"{format_value('', tag)}, which looks like a piece of a list or a table." if NO_TAG.search(tag) else ""


def read_list(cell: Any, what: str) -> list[Any]:
    """Return a list: the cell itself, or what its text means as JSON, as Python, or as words with spaces between them.

    Example:
        >>> read_list("['EU', 'rejects']", "words") == read_list("EU rejects", "words")
        True
    """
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str):
        text = PRINTED_LIST.sub(r"\1", cell.strip(BLANKS))
        if text[:1] in ("[", "("):
            for read in (json.loads, _read_python):
                try:  # contextlib.suppress takes a fifth of the time of all this
                    value = read(text)
                except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                    continue
                if isinstance(value, (list, tuple)):
                    return list(value)
        is_list = text[:1] + text[-1:] in ("[]", "{}") or re.match(r"""\[\s*['"]""", text)
        if text and not is_list and not LINE_BREAK.search(cell):
            return re.split(f"[{BLANKS}]+", text)  # not at other blanks of Unicode, which a word may hold
    raise ValueError(
        f"the {what} are {format_value('', cell)}; accepted is a list, one written as JSON (json.dumps) or Python "
        'text, such as ["EU", "rejects"], or a line of text with a space between every two.'
    )


def _read_python(text: str) -> Any:
    if re.fullmatch(r"\[[-\d\s]+\]", text):  # numbers of a printed NumPy array, which has no commas
        return [int(number) for number in text[1:-1].split()]
    shape = QUOTED.sub("''", text)
    if re.fullmatch(r"\[\s*''(\s+'')*\s*\]", shape):  # texts of one
        return [ast.literal_eval(match[0]) for match in QUOTED.finditer(text)]
    if re.search(r"''\s*''", shape):  # 'don''t', whose pieces Python would glue together
        raise ValueError
    return ast.literal_eval(text)


def split_text(text: str) -> list[tuple[str, int, int]]:
    """Split a text at blanks and around punctuation and ideographs: words with their start and end in characters.

    Example:
        >>> split_text("Ada's 1st")
        [('Ada', 0, 3), ("'", 3, 4), ('s', 4, 5), ('1st', 6, 9)]
    """
    return [(word, start, end) for word, (start, end) in WORD_SPLITTER.pre_tokenize_str(text)]


def read_spans(text: str, spans: Sequence[Any], bad_spans: str) -> tuple[list[str], list[str], list[str]]:
    """Return the words of a text, their B- and I- tags from its entities, and notes of what was changed in these.

    An entity is a mapping with `start`, `end` (or `start_offset`, `end_offset`) and `label`, or a list of these three.
    Both ends count characters, the end exclusive; blanks at either end do not matter. Entities that are not one of
    whole words are an error; or "drop" leaves them out, and "widen" those only that no other border helps.
    """
    pieces = split_text(text)
    if not pieces:
        raise ValueError("found a text without words. Remove it.")
    tags = ["O"] * len(pieces)
    problems, notes = list[tuple[str, str]](), list[str]()
    for number, span in enumerate(spans, start=1):
        touched, kind, problem = _check_span(number, span, text, pieces, tags)
        if kind == CUTS and bad_spans == "widen" and all(tags[i] == "O" for i in touched):
            notes.append("entities that cut a word, widened")
        elif kind and bad_spans != "error":
            notes.append(f"entities that {kind}, left out")
            continue
        elif kind:
            problems.append((f"entities that {kind}", problem))
        for i in touched:
            tags[i] = f"{'B' if i == touched[0] else 'I'}-{_span(span)[2].strip(BLANKS)}"
    if problems:
        raise CellError(problems[0][1], 1, problems)
    return [word for word, _, _ in pieces], tags, notes


def _check_span(
    number: int, span: Any, text: str, pieces: Sequence[tuple[str, int, int]], tags: Sequence[str]
) -> tuple[range, str, str]:
    """The words that an entity touches, the kind of what is wrong with it, and a message; "" twice if nothing is."""
    start, end, label = _span(span)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (start, end)) or not isinstance(label, str):
        found = f"entity {number} is {format_value('', span)}"
        return range(0), "have no start, end and label", f"{found}; accepted are start, end and label."
    if not 0 <= start < end <= len(text):
        accepted = f"accepted are characters from 0 to {len(text)}, the end after the start"
        return range(0), "are out of range", f"entity {number} reaches from {start} to {end}; {accepted}."
    if not re.search(r"[^\W_]", label) or NO_TAG.search(label.strip(BLANKS)):
        return range(0), "name no type", f"entity {number} has the label {label.strip(BLANKS)!r}, which names no type."
    found, own_text = format_value("", text[start:end]), span.get("text") if isinstance(span, dict) else None
    if isinstance(own_text, str) and own_text.strip() != text[start:end].strip():
        problem = f"has the text {format_value('', own_text)}, but from {start} to {end} there is {found}"
        advice = "Count characters (code points), from 0, the end exclusive."
        return range(0), "have another text than their offsets", f"entity {number} {problem}. {advice}"
    first = bisect.bisect_right(pieces, start, key=operator.itemgetter(2))
    touched = range(first, bisect.bisect_left(pieces, end, key=operator.itemgetter(1)))
    this = f"entity {number}, {found} ({label}, {start} to {end}),"
    if not touched:
        return touched, "hold no word", f"{this} holds no word."
    for word, word_start, word_end in (pieces[touched[0]], pieces[touched[-1]]):
        if word_start < start or word_end > end:
            this += f" cuts the word {word!r} ({word_start} to {word_end}). Words end at blanks and punctuation;"
            return touched, CUTS, f"{this} move the entity's ends there, or write rows of words and tags."
    if any(tags[i] != "O" for i in touched):
        advice = "A word can have one tag; keep one of the entities."
        return touched, "overlap", f"{this} overlaps with another one. {advice}"
    return touched, "", ""


def _span(span: Any) -> tuple[Any, Any, Any]:
    if isinstance(span, (list, tuple)) and len(span) == 3:
        return span[0], span[1], span[2]
    if not isinstance(span, dict):
        return None, None, None
    start, end = (
        next((span[f"{k}{e}"] for e in ("", "_offset", "_char") if f"{k}{e}" in span), None) for k in ("start", "end")
    )
    labels = span.get("labels", span.get("hypertextlabels"))
    label = labels[0] if isinstance(labels, list) and len(labels) == 1 else None
    return start, end, next((span[name] for name in ("label", "entity_group", "type", "entity") if name in span), label)
