"""A sentence on its way through a tagger: its words, its tags, its entities, and how it is written down."""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ner.cells import split_text
from ner.labels import OUTSIDE, entity_tag, find_entities
from ner.report import ErrorReport, span_score
from transformer_trial.errors import TrialError

# What a word of CoNLL columns does not hold or begin with: readers would take it for something else.
NO_CELL = re.compile(r"[\t\r\n\0]|^(\ufeff|-DOCSTART-|# \S+ = | *$)")


@dataclass
class Sentence:
    """A sentence, and what is known and predicted of it."""

    words: list[str]
    text: str | None = None  # that the words were split from, if they were
    offsets: list[tuple[int, int]] | None = None  # start and end of each word in the text, in characters
    gold: list[str] | None = None
    place: str = ""  # file and line, or row
    document: str = ""  # that it is from, where the file marks them
    notes: Sequence[str] = ()  # what was changed or left out in reading it, and rows left out before it
    tags: list[str] | None = None  # the predicted ones
    scores: list[float | None] | None = None  # probabilities of `tags`; None for a word without sub-tokens, tagged O

    @classmethod
    def of_text(cls, text: str, place: str = "") -> "Sentence":
        pieces = split_text(text)
        return cls([word for word, *_ in pieces], text, [(start, end) for _, start, end in pieces], place=place)

    def describe(self) -> tuple[list[str], str]:
        """The words and their place, as `ErrorReport.add` asks for them."""
        return self.words, self.place

    def spans(self, label_scheme: str | None) -> list[dict[str, Any]]:
        """The entities that the predicted tags mark, as seqeval's default mode reads them."""
        spans = []
        for entity_type, first, last in find_entities([entity_tag(tag, label_scheme) for tag in self.tags or []]):
            span: dict[str, Any] = {"type": entity_type, "first_word": first, "last_word": last}
            if self.text is None or self.offsets is None:
                span["text"] = " ".join(self.words[first : last + 1])
            else:
                span["start"], span["end"] = self.offsets[first][0], self.offsets[last][1]
                span["text"] = self.text[span["start"] : span["end"]]
            spans.append({**span, "score": span_score(self.scores or [], first, last)})
        return spans

    def leave_out(self, label_scheme: str | None, min_score: float) -> None:
        """Tag the words of spans whose score is lower as O; the scores stay."""
        tags = self.tags or []
        for span in self.spans(label_scheme) if min_score else []:
            if span["score"] is not None and span["score"] < min_score:
                first, last = span["first_word"], span["last_word"]
                tags[first : last + 1] = [OUTSIDE] * (last + 1 - first)
                # IOB1 writes B-, and IOE1 E-, only beside another entity of the type.
                for near in {"IOB1": [last + 1], "IOE1": [first - 1]}.get(str(label_scheme), []):
                    if 0 <= near < len(tags) and tags[near] != OUTSIDE:
                        tags[near] = f"I{tags[near][1:]}"

    def as_json(self, label_scheme: str | None) -> dict[str, Any]:
        """What a line of json holds of a tagged sentence."""
        scores = [None if score is None else round(score, 6) for score in self.scores or []]
        row: dict[str, Any] = {"document": self.document or None, "text": self.text, "tokens": self.words}
        row |= {"tags": self.tags, "scores": scores, "spans": self.spans(label_scheme), "gold": self.gold}
        return {name: value for name, value in row.items() if value is not None}

    def as_columns(self) -> str:
        """The sentence as CoNLL columns, TAB between them: word, gold tag if there is one, predicted tag."""
        columns = [self.words, *([self.gold] if self.gold is not None else []), self.tags or []]
        for word in self.words:
            if NO_CELL.search(word) and self.words != ["-DOCSTART-"]:
                advice = "Write json lines: --output FILE.jsonl"
                raise TrialError(f"{self.place}: the word {word!r} cannot stand in a column. {advice}")
        return "".join("\t".join(cells) + "\n" for cells in zip(*columns))


def write_predictions(
    tagged: Iterable[Sentence], output: Any, report: ErrorReport, *, as_columns: bool = False, min_score: float = 0.0
) -> None:
    """Write tagged sentences, without spans below `min_score`, and count in the report those that have gold tags.

    The output is an unbuffered binary file. It gets each sentence in a call of its own, so that an interruption leaves
    whole lines. (Linux itself may cut one, at the end of a page, if SIGKILL comes while it copies the line.)
    """
    for sentence in tagged:
        sentence.leave_out(report.scheme, min_score)
        if sentence.gold is not None:
            report.add(sentence.gold, sentence.tags or [], sentence.describe, sentence.scores)
        # A terminal would act on what some words hold.
        row = sentence.as_columns() if as_columns else sentence.as_json(report.scheme)
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=output.isatty())
        line, written = f"{text}\n".encode(), 0
        try:
            while written < len(line):
                written += output.write(line[written:])
        except OSError:  # the disk is full, say
            with contextlib.suppress(OSError):  # of what is no file, such as a pipe
                output.truncate(output.tell() - written)
            raise
