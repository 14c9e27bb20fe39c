"""Documents as context: which words a model sees together, and which of these are trained on and scored."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import datasets
import numpy as np

from ner.labels import Array, count_words
from ner.sentences import Sentence
from transformer_trial.errors import TrialError

DocumentContext = Literal["none", "neighbours", "merged"]

T = TypeVar("T")

MAX_SENTENCES = 1000  # of a document that are read together; what follows is another document, to bound the memory


class Text(NamedTuple):
    """Words that follow each other, for the tokenizer to cut into windows."""

    words: list[str]
    first: int  # the number of its first word, counted over all sentences
    own: range  # the numbers of the words that are trained on and scored in its windows; the others are only seen


def split_documents(items: Iterable[T], name_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Yield the sentences of each document, of which each has the document's name; one without a name stands alone."""
    for name, run in itertools.groupby(items, name_of):
        while document := [*itertools.islice(run, MAX_SENTENCES if name else 1)]:
            yield document


def find_documents(names: Iterable[str]) -> Array:
    """The index of each document's first sentence, of the document's name for each, and at the end their number."""
    return np.cumsum([0, *map(len, split_documents(names, str))])


def group_documents(sentences: Iterable[Sentence], size: int) -> Iterator[list[Sentence]]:
    """Group whole documents, to `size` sentences or a few more."""
    group = list[Sentence]()
    for document in split_documents(sentences, operator.attrgetter("document")):
        group += document
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def name_paragraphs(sentences: Iterable[Sentence]) -> Iterator[Sentence]:
    """Take the consecutive lines of a plain text as a document, which an empty line ends, and the end of a file."""
    number, file = 1, ""
    for sentence in sentences:
        before, file = file, sentence.place.rpartition(", ")[0]
        number += not sentence.words or file != (before or file)
        sentence.document = f"paragraph {number}" if sentence.words else ""
        yield sentence


def map_chunks(
    rows: datasets.Dataset,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    num_proc: int | None,
    **options: Any,
) -> datasets.Dataset:
    """Apply a function to a thousand sentences at once, or a few more: not to half a document, if that is a text.

    Args:
        rows: A split, with the columns `tokens` and `tags` and, for documents, `document`.
        function: Takes columns of rows, the number of their first word, and the arguments; returns columns.
        arguments: Of the function.
        num_proc: Processes that work on it; None works in this one.
        options: Of `datasets.Dataset.map`, `new_fingerprint` among them.
    """
    is_whole = arguments.get("document_context", "none") != "none"
    edges = find_documents(rows["document"]) if is_whole else np.arange(rows.num_rows + 1)
    size = min(1000, -(-rows.num_rows // (num_proc or 1)))
    edges = np.unique(edges[np.searchsorted(edges, np.append(np.arange(0, rows.num_rows, size), rows.num_rows))])
    first_words = count_words(rows)[edges[:-1]]
    chunks = datasets.Dataset.from_dict({"start": edges[:-1], "end": edges[1:], "first_word": first_words})
    # Beside the rows, as `map` itself would do it; what is made of rows in memory goes with this process.
    folders = [Path(file["filename"]).parent for file in rows.cache_files[:1]]
    return chunks.map(
        _apply_to_chunk,
        batched=True,
        batch_size=1,
        fn_kwargs={
            "rows": rows.select_columns(["tokens", "tags", *(["document"] if is_whole else [])]),
            "function": function,
            "arguments": arguments,
        },
        remove_columns=chunks.column_names,
        num_proc=num_proc and min(num_proc, chunks.num_rows),
        cache_file_name=str(folders[0] / f"cache-{options['new_fingerprint']}.arrow") if folders else None,
        **options,
    )


def _apply_to_chunk(
    chunk: dict[str, list[int]], rows: datasets.Dataset, function: Callable[..., Any], arguments: dict[str, Any]
) -> Any:
    ((start,), (end,), (first_word,)) = chunk.values()
    return function(rows[start:end], first_word, **arguments)


def check_documents(splits: Mapping[str, datasets.Dataset], mode: DocumentContext) -> None:
    """Raise a TrialError where a split marks no documents, or has the sentences of one apart, if they are needed."""
    for split, rows in splits.items() if mode != "none" else ():
        names = [*rows["document"]]
        if not any(names):
            found = f"data.document_context: {mode} needs documents, and the {split} split marks none"
            marks = "by a column document_id (data.document_column_name names another), or -DOCSTART- lines in columns"
            raise TrialError(f"{found}. Mark them {marks}, or set document_context: none.")
        seen: set[str] = set()
        for number, (before, name) in enumerate(itertools.pairwise(["", *names])):
            if name and name != before and name in seen:
                advice = "Put the sentences of each document one after the other, and name each document differently."
                found = f"the document {name!r} goes on here, after another one"
                raise TrialError(f"{rows[number]['place']}: {found}. {advice} (document_context: {mode} needs it.)")
            seen.add(name)


def join_sentences(
    sentences: Sequence[list[str]],
    documents: Sequence[str],
    tokenizer: Any,
    max_seq_length: int,
    mode: DocumentContext,
    context_tokens: int,
) -> Iterator[Text]:
    """Yield each sentence as a text (none), with the words around it (neighbours), or each document (merged).

    Args:
        sentences: The words of each, in the order of the file.
        documents: The document that each is from, where `mode` is not none; see `find_documents`.
        tokenizer: Counts the sub-tokens of words.
        max_seq_length: Sub-tokens of a window. Neighbours have what a sentence leaves of it.
        mode: As `data.document_context`.
        context_tokens: Sub-tokens of neighbours, at most, on either side.
    """
    starts = [0, *itertools.accumulate(map(len, sentences))]
    owns = [range(start, end) for start, end in itertools.pairwise(starts)]
    if mode == "none":
        yield from (Text(words, own.start, own) for words, own in zip(sentences, owns))
        return
    room = max_seq_length - tokenizer.num_special_tokens_to_add()
    for first, last in itertools.pairwise(find_documents(documents)):
        whole = range(starts[first], starts[last])
        words = [word for sentence in sentences[first:last] for word in sentence]
        if mode == "merged":
            yield Text(words, whole.start, whole)
            continue
        encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
        sizes = np.bincount([word for word in encoded.word_ids() if word is not None], minlength=len(words))
        ends = np.append(0, np.cumsum(sizes))
        for own in owns[first:last]:
            start, end = choose_neighbours(ends, own.start - whole.start, own.stop - whole.start, context_tokens, room)
            yield Text(words[start:end], whole.start + start, own)


def choose_neighbours(ends: Array, start: int, end: int, context_tokens: int, room: int) -> tuple[int, int]:
    """The words that a sentence of a document, its words from `start` to `end`, is seen with: whole ones, that fit.

    Args:
        ends: The sub-tokens before each word of the document, and at the end those of all, (words + 1,).
        context_tokens: Sub-tokens on either side, at most.
        room: Sub-tokens of sentence and neighbours, at most; a longer sentence has none.

    Example:
        >>> choose_neighbours(np.array([0, 1, 2, 5, 6, 7, 8]), 2, 3, context_tokens=2, room=6)
        (1, 5)
    """
    free = max(room - int(ends[end] - ends[start]), 0)
    before, after = min(context_tokens, int(ends[start])), min(context_tokens, int(ends[-1] - ends[end]))
    before, after = min(before, max(free - after, free // 2)), min(after, max(free - before, free // 2))
    first = np.searchsorted(ends[: start + 1], ends[start] - before)
    return int(first), end + int(np.searchsorted(ends[end:], ends[end] + after, side="right")) - 1
