"""Files and hub data sets in, checked sentences out, for training and for prediction. Nothing here knows of models."""

import itertools
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher

import ner.cells
import ner.columns
import ner.formats
import ner.sources
from ner.cells import BLANKS, join_names, parse_cells, read_list, read_spans, read_words
from ner.columns import Columns, Record, find_columns, is_tag, is_word
from ner.config import NERDataConfig, ReadOptions
from ner.sentences import Sentence
from ner.sources import Source, agree, source_of_files, source_of_rows
from transformer_trial.data import configured_files, default_load_dataset
from transformer_trial.errors import TrialError, format_value

logger = logging.getLogger(__name__)

# A cell that writes down a list of words, as csv does; "[sic]" is text.
LIST_TEXT = re.compile(r"""[ \t\r\n]*\[\s*(['"].*)?\]\s*$""", re.DOTALL)
TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)
SENTENCE_FEATURES = datasets.Features(tokens=TEXTS, tags=TEXTS, place=TEXT, document=TEXT, notes=TEXTS)

NOT_ACCEPTED = "rows that an annotator rejected, ignored or did not reach, left out"


def read_options(config: NERDataConfig) -> ReadOptions:
    """Return what the `data` section says about files and columns."""
    return ReadOptions.model_construct(**{key: getattr(config, key) for key in ReadOptions.model_fields})


def load_splits(config: NERDataConfig) -> Mapping[str, Any]:
    """Load the splits train, validation and test that exist: each a `Source` for files, else a `Dataset`."""
    if config.dataset_name is not None:
        return default_load_dataset(config)
    files, options = configured_files(config).items(), read_options(config)
    return {split: source_of_files(f"data.{split}_file", file, options) for split, file in files}


def read_splits(
    splits: Mapping[str, Any], config: NERDataConfig, task: str
) -> tuple[datasets.DatasetDict, tuple[str, ...] | None]:
    """Read and check every sentence of every split, or find them in the cache of the datasets library.

    `splits` are those of `load_splits`, or one's own: see `source_of_rows` for what each may be. Return rows with the
    columns `tokens` and `tags`, texts, as many tags as words, `document`, `notes` and `place`, where they were found;
    and what numbers among the tags stood for, where something said so.
    """
    if "train" not in splits:
        raise TrialError(f"There is no train split; found are {', '.join(splits) or 'none'}.")
    name, options = config.dataset_name or "the data set", read_options(config)
    sources = {split: source_of_rows(f"{name} ({split} split)", rows, options) for split, rows in splits.items()}
    columns: dict[str, Columns] = {}
    for split, source in sorted(sources.items(), key=lambda item: item[0] != "train"):
        columns[split] = find_columns(source.first_records(), options, task, columns.get("train"))
    named = {source.name: source.label_names(str(columns[split].label)) for split, source in sources.items()}
    named["data.label_list"] = tuple(config.label_list or ())
    label_names = tuple(columns["train"].respell(name) for name in agree(named, options)) or None
    rows = {}
    for split, source in sources.items():
        logger.info("%s: %s", source.name, describe_columns(columns[split]))
        rows[split] = _build_rows(split, config, source, columns[split], label_names)
    return datasets.DatasetDict(rows), label_names


def _build_rows(
    split: str, config: NERDataConfig, source: Source, columns: Columns, label_names: tuple[str, ...] | None
) -> datasets.Dataset:
    """Generate the rows of a split, or find them in the cache under a hash of the source and of the code that reads it.

    They are built anew where the source changes meanwhile: the cache would hold them under what it was before. Those of
    a source without a fingerprint are read anew each time, and kept in memory.
    """
    arguments = {"source": source, "columns": columns, "label_names": label_names}
    formats = sorted(Path(ner.formats.__file__).parent.glob("*.py"))
    modules = (__file__, ner.cells.__file__, ner.columns.__file__, ner.sources.__file__, *formats)
    code = [Path(str(file)).read_bytes() for file in modules]
    options: dict[str, Any] = {"features": SENTENCE_FEATURES, "gen_kwargs": arguments}

    def build(cache_dir: str | None) -> datasets.Dataset:
        name = datasets.NamedSplit(split)
        try:
            return datasets.Dataset.from_generator(_generate_rows, split=name, cache_dir=cache_dir, **options)
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None

    for _ in range(3):
        before, fingerprint = source.signature(), source.fingerprint()
        if not fingerprint:
            return datasets.Dataset.from_list([*_generate_rows(**arguments)], features=SENTENCE_FEATURES)
        options["fingerprint"] = Hasher.hash([split, fingerprint, columns, label_names, code])
        if config.overwrite_cache:
            # The new files replace the old ones one by one: other processes tokenize in the folder that they are in.
            cache = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as own:
                new = Path(build(own).cache_files[0]["filename"]).parent
                folder = cache / new.relative_to(own)
                folder.mkdir(parents=True, exist_ok=True)
                # The last one is dataset_info.json, which says that all is there.
                for file in sorted(new.iterdir(), reverse=True):
                    file.replace(folder / file.name)
        rows = build(config.cache_dir)
        if source.signature() == before:
            return rows
        shutil.rmtree(Path(rows.cache_files[0]["filename"]).parent)
    raise TrialError(f"{source.name}: changes again and again while it is read. Read it when nobody writes to it.")


def _generate_rows(**arguments: Any) -> Iterator[dict[str, Any]]:
    for found in read_sentences(**arguments):
        texts = {"place": found.place, "document": found.document, "notes": found.notes}
        yield {"tokens": found.words, "tags": found.gold, **texts}


def read_sentences(source: Source, columns: Columns, label_names: Sequence[str] | None) -> Iterator[Sentence]:
    """Yield the sentences of a source, with gold tags where it has them. Raise a TrialError at one that is not right.

    The source's options say whether every sentence needs tags. Numbers among the tags stand for `label_names`, and
    texts have to be among these.
    """
    records, needs_tags = source.records(), source.options.needs_tags
    if columns.sentence is not None:
        records = join_words(records, columns)
    needed = [columns.text, str(columns.label)] if needs_tags and not columns.has_spans else [columns.text]
    tags_from = "" if columns.label is None else f", tags from {columns.label!r}"
    only_words, num_sentences = needs_tags or columns.label is not None, 0
    problems, notes, known = list[tuple[str, str]](), list[str](), dict[str, str]()
    waiting: Sentence | None = None  # until it is known what was left out behind it
    for record in records:
        if needs_tags and record.cells.get("answer") in ("reject", "ignore"):  # as Prodigy and others have it
            notes.append(NOT_ACCEPTED)
            continue
        num_sentences += 1
        if missing := [name for name in needed if name not in record.cells]:
            found = join_names(record.cells)
            raise TrialError(f"{record.place}: no column {missing[0]!r} as in the first row; found {found}.")
        if columns.num_unnamed not in (0, len(record.cells)):
            found = f"found {len(record.cells)} columns, but {columns.num_unnamed} in the first sentence"
            raise TrialError(f"{record.place}: {found}. Give all files of a split the same columns.")
        try:
            sentence = _parse_record(record, columns, label_names, source.options, known)
        except ValueError as error:
            problem = "found half of a character." if isinstance(error, UnicodeError) else error
            read = f"(Words are read from the column {columns.text!r}{tags_from}.)"
            counted = [(k, f"{record.place}: {text} {read}") for k, text in getattr(error, "counted", ())]
            if counted and needs_tags:
                problems += counted
                continue
            single = [("", f"{record.place_of(error)}: {problem} {read}")]
            raise TrialError(_summarize(source, counted[:1] or single)) from None
        only_words = only_words and sentence.words == [record.cells[columns.text]] and not columns.has_spans
        if waiting is not None:
            waiting.notes, notes = [*waiting.notes, *notes], []
            yield waiting
        waiting = sentence
    if problems:
        raise TrialError(_summarize(source, problems))
    if waiting is None:
        found = f"none of its {len(notes):,} rows is one that an annotator accepted"
        raise TrialError(f"{source.name}: {found}. Accept some.")
    waiting.notes = [*waiting.notes, *notes]
    yield waiting
    if only_words and num_sentences > 1:
        advice = f"name the column of the sentence's id with {source.options.setting('sentence_column_name')}"
        other = "without one, write CoNLL columns with a blank line between sentences"
        raise TrialError(f"{source.name}: every row is a single word. If rows are words, {advice}; {other}.")


def _summarize(source: Source, problems: Sequence[tuple[str, str]]) -> str:
    """Say how many problems a source has, of which kinds, and show the first ones."""
    counts = Counter(kind for kind, _ in problems)
    of_spans = any("entities" in kind for kind in counts)
    setting = source.options.setting("bad_spans")
    advice = f" Or say what becomes of such entities by {setting}: widen or drop." if of_spans else ""
    if len(problems) == 1:
        return problems[0][1] + advice
    kinds = "; ".join(f"{number:,} {kind}" for kind, number in counts.most_common())
    first = "".join(f"\n  - {text}" for _, text in problems[:5])
    return f"{source.name}: found {kinds}.{advice} The first of them:{first}"


def describe_columns(columns: Columns) -> str:
    """Say where words and tags are read from, and how tags are written."""
    tags = "no tags" if columns.label is None else f"tags in {columns.label!r}"
    nested = f" ({columns.nested!r} holds entities within these, and is not read)" if columns.nested else ""
    spelling = f"; tags are written like {columns.spelling}" if columns.spelling else ""
    return f"words are in the column {columns.text!r}, {tags}{nested}{spelling}."


def _parse_record(
    record: Record, columns: Columns, label_names: Sequence[str] | None, options: ReadOptions, known: dict[str, str]
) -> Sentence:
    text: Any = record.cells[columns.text]
    label = None if columns.label is None else record.cells.get(columns.label)
    is_running = columns.has_spans or options.file_format == "text"
    is_text = isinstance(text, str) and (is_running or not LIST_TEXT.match(text))
    # Only prediction shows the text.
    sentence = Sentence.of_text(text) if is_text and not options.needs_tags else Sentence([])
    if label is not None or options.needs_tags or columns.has_spans:
        notes = list[str]()
        if columns.has_spans and isinstance(text, str):
            spans = [] if label in (None, "") else read_list(label, "entities")
            words, gold, notes = read_spans(text, spans, options.bad_spans)
        else:
            words, gold = parse_cells(text, label, label_names, columns.respell, options.setting("label_list"), known)
        "".join(gold).encode()  # fails at half of a character
        if sentence.words != words:  # blanks separate the words of a text that has a tag for each
            sentence = Sentence(words)
        sentence.gold, sentence.notes = gold, notes
    elif not is_text and text not in ([], "[]"):
        sentence.words = read_words(text)
    document = record.cells.get(columns.document) if columns.document else record.document
    sentence.place, sentence.document = record.place, "" if _is_empty(document) else str(document)
    sentence.document.encode()  # as above
    return sentence


def join_words(records: Iterator[Record], columns: Columns) -> Iterator[Record]:
    """Join records that are words to sentences. A word without a sentence's id belongs to the sentence before it."""
    for _, of_file in itertools.groupby(records, key=lambda record: record.place.rpartition(", ")[0]):
        seen: set[Any] = set()  # another file may count anew, and so may another document
        document: Any = None
        current: Any = None
        words: list[Record] = []
        for record in of_file:
            identity, named = _check_word(record, columns), record.cells.get(str(columns.document))
            document = document if _is_empty(named) else str(named)
            if _is_empty(identity) or (document, identity) == current:
                if current is None:
                    found = f"found no sentence's id in the column {columns.sentence!r}"
                    raise TrialError(f"{record.place}: {found}; number it.")
            elif (document, identity) in seen:
                advice = "Put the words of each sentence one after the other, and give each sentence an id of its own."
                raise TrialError(f"{record.place}: the sentence {identity!r} goes on here, after another one. {advice}")
            else:
                if words:
                    yield _join(words, columns)
                current, words = (document, identity), []
                seen.add(current)
            words.append(record)
        yield _join(words, columns)


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or cell != cell  # NaN, as pandas fills up


def _join(words: list[Record], columns: Columns) -> Record:
    names = [name for name in (columns.text, columns.label) if name is not None]
    cells: dict[str, Any] = {name: [word.cells[name] for word in words] for name in names}
    if columns.document is not None:
        cells[columns.document] = words[0].cells.get(columns.document)
    return Record(words[0].place, cells, [word.place for word in words])


def _check_word(record: Record, columns: Columns) -> Any:
    """Return the id of the sentence that a word belongs to, if the record is one word with its tag and id."""
    for name, fits in ((columns.text, is_word), (columns.label, is_tag)):
        cell = None if name is None else record.cells.get(name)
        if name is not None and (not fits(cell) or not isinstance(cell, (str, int)) or not str(cell).strip(BLANKS)):
            accepted = f"one word and its tag, since the column {columns.sentence!r} says that a row is a word"
            found = f"found {format_value('', cell)} in the column {name!r}"
            raise TrialError(f"{record.place}: {found}; accepted is {accepted}.")
    identity = record.cells.get(str(columns.sentence))
    if isinstance(identity, (list, dict)):
        found = format_value("", identity)
        raise TrialError(f"{record.place}: found {found} in the column {columns.sentence!r}; number it.")
    return identity.strip() if isinstance(identity, str) else identity
