"""Files and hub data sets in, checked rows of words and tags out. Nothing here knows of tokens or models."""

import glob
import hashlib
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.generator.generator import Generator

import ner.cells
import ner.formats
from ner.cells import BLANKS, TAGGED_LINE, holds_spans, parse_cells
from ner.config import NERDataConfig
from ner.formats import Record, join_names
from transformer_trial.data import configured_files, default_load_dataset
from transformer_trial.errors import TrialError, format_value

logger = logging.getLogger(__name__)

TEXT_NAMES = ("tokens", "words", "token", "word", "form", "text", "sentence")
LABEL_NAMES = ("tags", "tag", "labels", "label", "ner", "entities", "spans")  # after {task}_tags
SENTENCE_NAMES = ("sentence #", "sentence_id", "sentence_idx", "sent_id", "sentence_number")
SPAN_NAMES = ("entities", "spans")
"""What the columns are usually called, in upper or lower case, those of annotation tools included."""

NUM_FIRST = 100
"""Records that tell which columns there are."""

SENTENCE_FEATURES = datasets.Features(
    {
        "tokens": datasets.List(datasets.Value("string")),
        "tags": datasets.List(datasets.Value("string")),
        "place": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Source:
    """Where a split comes from: files, or rows that the datasets library has loaded."""

    name: str
    """What a message calls it."""
    records: Callable[[], Iterator[Record]]
    """Read it, from the beginning."""
    fingerprint: Callable[[], str]
    """Another one whenever the contents are others."""
    label_names: Callable[[str], tuple[str, ...]]
    """What the numbers of a column stand for, where the source says."""


def load_splits(config: NERDataConfig) -> Mapping[str, Any]:
    """The splits train, validation and test, as far as there are any: a `Source` for files, else a `Dataset`.

    Raises:
        TrialError: If there is no train split, or a file is not there.
    """
    if config.dataset_name is not None:
        return default_load_dataset(config)
    files = configured_files(config).items()
    return {split: source_of_files(f"data.{split}_file", file, config) for split, file in files}


def names_columns(cells: Sequence[str], given: Sequence[Any] = ()) -> int:
    """How many of these cells are names that columns are given or usually have; none if there is a tag among them."""
    if any(TAGGED_LINE.search(f" {cell}") for cell in cells):
        return 0
    known = {*TEXT_NAMES, *LABEL_NAMES, *SENTENCE_NAMES}
    usual = sum(c.strip().lower() in known or bool(re.fullmatch(r"(?i).*[ _](tag|label)s? *", c)) for c in cells)
    return usual + 2 * sum(name in cells and not str(name).isdigit() for name in given)


def source_of_files(key: str, pattern: str, config: NERDataConfig, *, min_columns: int = 2) -> Source:
    """The files that a path or a glob such as data/*.conll names, in the order of their names."""
    whole = Path(pattern).expanduser()
    # Not `whole.exists`: without permission it raises an error.
    paths = [whole] if os.path.exists(whole) else [Path(name) for name in sorted(glob.glob(str(whole), recursive=True))]
    for path in paths or [whole]:
        if not os.path.isfile(path):
            exists = "is no file" if os.path.exists(path) else "does not exist, or lies where this user may not look"
            what = "is a folder" if os.path.isdir(path) else exists
            looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
            raise TrialError(
                f"{key}: {path} {what}{looked}. Give a file, or a glob such as data/*.json; on a cluster, a path "
                "relative to the folder that was uploaded, or one on a mounted disk."
            )

    given = (config.text_column_name, config.label_column_name, config.sentence_column_name)
    count_names = partial(names_columns, given=given)

    def records() -> Iterator[Record]:
        for path in paths:
            has_rows = False
            for record in ner.formats.read_records(path, config.file_format, count_names, min_columns=min_columns):
                has_rows = True
                yield record
            if not has_rows:
                raise TrialError(f"{path}: has no rows. Give a file with at least one.")

    def label_names(column: str) -> tuple[str, ...]:
        found = {
            path: ner.formats.class_names(path, column)
            for path in paths
            if (config.file_format or ner.formats.format_of(path)) == "parquet"
        }
        return _only_names({str(path): names for path, names in found.items() if names})

    def fingerprint() -> str:
        digest = hashlib.sha256(f"{config.file_format} {given}".encode())
        for path in paths:
            digest.update(str(path).encode())
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise TrialError(
                    f"{key}: {path}: cannot be read: {error.strerror}. Check its owner and permissions."
                ) from None
        return digest.hexdigest()

    return Source(pattern, records, fingerprint, label_names)


def source_of_rows(name: str, rows: datasets.Dataset) -> Source:
    """The rows of a split that the datasets library has loaded."""

    def records() -> Iterator[Record]:
        for number, cells in enumerate(rows, start=1):
            yield Record(f"{name}, row {number}", cells)

    def label_names(column: str) -> tuple[str, ...]:
        return ner.formats.names_of_feature(rows.features.get(column))

    return Source(name, records, lambda: rows._fingerprint, label_names)


@dataclass(frozen=True)
class Columns:
    """Where the records hold their words and tags."""

    text: str
    label: str | None
    """None where there are no tags, in text to predict on."""
    sentence: str | None = None
    """The sentence's id, where a record is a word."""
    has_spans: bool = False
    """Whether the label column holds the entities of a text."""
    num_unnamed: int = 0
    """How many columns there are, where they have no names."""


def find_columns(
    first: Record,
    config: NERDataConfig,
    task: str,
    like: Columns | None = None,
    *,
    needs_tags: bool = True,
    following: Sequence[Record] = (),
) -> Columns:
    """Find the columns of words and tags by their configured, else their usual names, else their places.

    The order of these is that of Hugging Face's run_ner.py (Apache-2.0,
    https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification), whose only usual names
    are tokens and {task}_tags.

    Args:
        first: The first record of the source.
        config: The `data` section.
        task: `finetuning_task`, whose tags are looked for in the column `{task}_tags`.
        like: The columns of the train split. Where they have names, another split has to have them too.
        needs_tags: Whether there has to be a column of tags; if not, only one with a usual or configured name is.
        following: The next records, as far as they are at hand.

    Raises:
        TrialError: If there is no such column.
    """
    names, records = list(first.cells), [first, *following]
    if any(re.search(r"(^|\s)(O|[BIESLUMW]-\S+)($|\s)|[\[{]", name) for name in names):
        raise TrialError(
            f"{first.place}: the line before holds {join_names(names)[:60]!r}, which looks like data; accepted is a "
            "first line with the columns' names."
        )
    numbered = bool(first.places) and names[0] == "0"
    by_lower = {name.strip().lower(): name for name in reversed(names)}

    def find(key: str, usual: Sequence[str], place: str | None, holds: str) -> Any:
        given: Any = getattr(config, key)
        if isinstance(given, int) or (given is not None and numbered and re.fullmatch(r"-?\d+", given)):
            found = names[int(given)] if -len(names) <= int(given) < len(names) else None
        elif given is not None:
            found = given if given in names else None
        else:
            found = next((by_lower[name] for name in usual if name in by_lower), place)
        if found is None and (needs_tags or given is not None or key != "label_column_name"):
            missing = repr(usual[0] if given is None else given)
            raise TrialError(
                f"{first.place}: no column {missing}; found {join_names(names)}. Set data.{key} to the column that "
                f"holds the {holds}."
            )
        return found

    sentence = None
    if config.sentence_column_name is not None:
        sentence = find("sentence_column_name", SENTENCE_NAMES, None, "sentence's id")
    elif not first.places:
        sentence = next((by_lower[name] for name in SENTENCE_NAMES if name in by_lower), None)
    text_names: Sequence[str] = TEXT_NAMES
    label_names: Sequence[str] = (f"{task}_tags", *LABEL_NAMES)
    others = [name for name in names if name != sentence and not re.match("$|Unnamed: ", name)]
    if not numbered and like is not None and not like.text.isdigit():
        text_names, label_names, others = (like.text.lower(),), (str(like.label).lower(),), []
    text = find("text_column_name", text_names, _place_of_words(records, others), "words of each sentence")
    place = _place_of_tags(records, others, text, needs_tags=needs_tags)
    label = find("label_column_name", label_names, place, "tags of each sentence")
    if label in SPAN_NAMES and config.text_column_name is None and "text" in names:
        text = "text"  # an annotation tool's tokens hold more than the words
    if text == label:
        raise TrialError(
            f"{first.place}: {label!r} is the column of the words and of the tags; found {join_names(names)}. Set "
            "data.text_column_name and data.label_column_name to two columns."
        )
    cells = [(record.cells.get(text), record.cells.get(str(label))) for record in records]
    one_word = all(_is_word(word) and _is_tag(word if label is None else tag) for word, tag in cells)
    if config.sentence_column_name is None and not one_word:
        sentence = None  # a row is a sentence, and this is its number
    has_spans = holds_spans(*next((pair for pair in cells if pair[1] != []), cells[0]))
    return Columns(text, label, sentence, has_spans, len(names) if numbered else 0)


def _is_word(cell: Any) -> bool:
    """Whether a cell can be one word; a quote that is left open makes several lines of it."""
    return cell is None or (isinstance(cell, (str, int, float)) and not re.search(r"[\t\r\n]", str(cell)))


def _is_tag(cell: Any) -> bool:
    return _is_word(cell) and not re.search(r"^\[| ", str(cell))


def _place_of_words(records: Sequence[Record], names: Sequence[str]) -> str | None:
    """The first column; of CoNLL columns the one after a count of the words. Other numbers are neither, nor words."""
    ids = [record.cells.get(names[0], []) for record in records] if records[0].places and len(names) > 2 else []
    if not ids or not all(str(cell).isdigit() for cells in ids for cell in cells):
        return names[0] if names else None
    is_count = all(cells in ([str(i + start) for i in range(len(cells))] for start in (0, 1)) for cells in ids)
    return names[1] if is_count else None


def _place_of_tags(records: Sequence[Record], names: Sequence[str], text: str, *, needs_tags: bool) -> str | None:
    """The second column, unless only others hold tags; of CoNLL columns the last one that does, or the last one."""
    rest = list(names[names.index(text) + 1 :]) if records[0].places and text in names else list(names[1:])
    tagged = [name for name in rest if name != text and _holds_tags(records, name)]
    if not records[0].places:
        return (tagged[-1] if tagged and rest[0] not in tagged else rest[0]) if rest and needs_tags else None
    used = [name for name in rest if any(re.search(r"[^\W_]", cell) for cell in _items(records, name))]
    return tagged[-1] if tagged else used[-1] if used and needs_tags and names[0] != "ID" else None


def _holds_tags(records: Sequence[Record], name: str) -> bool:
    items = _items(records, name)
    return bool(items) and 2 * sum(bool(re.match("[0O]$|[BIESLUMW]-", item)) for item in items) >= len(items)


def _items(records: Sequence[Record], name: str) -> list[str]:
    """What the cells of a column hold, whatever way they are written."""
    cells = [record.cells.get(name) for record in records]
    lists = (cell if isinstance(cell, list) else re.findall(r"""[^\s\[\]'",]+""", str(cell)) for cell in cells)
    return [str(item) for items in lists for item in items if item is not None]


def read_splits(
    splits: Mapping[str, Any], config: NERDataConfig, task: str
) -> tuple[datasets.DatasetDict, tuple[str, ...] | None]:
    """Read and check every sentence of every split, or find them in the cache of the datasets library.

    Args:
        splits: From `load_splits`, or a `DatasetDict` of one's own.
        config: The `data` section.
        task: As for `find_columns`.

    Returns:
        Rows with the columns `tokens` and `tags`, texts, as many tags as words, and `place`, where they were found;
        and what numbers among the tags stood for, where something said so.

    Raises:
        TrialError: At the first sentence that is not right.
    """
    if "train" not in splits:
        raise TrialError(f"There is no train split; found are {', '.join(splits) or 'none'}.")
    name = config.dataset_name or "the data set"
    sources = {
        split: rows if isinstance(rows, Source) else source_of_rows(f"{name} ({split} split)", rows)
        for split, rows in splits.items()
    }
    columns: dict[str, Columns] = {}
    for split, source in sorted(sources.items(), key=lambda item: item[0] != "train"):
        first = list(itertools.islice(source.records(), NUM_FIRST))
        if not first:
            raise TrialError(f"{source.name}: has no rows. Give a file with at least one.")
        columns[split] = find_columns(first[0], config, task, columns.get("train"), following=first[1:])
    named = {source.name: source.label_names(str(columns[split].label)) for split, source in sources.items()}
    named["data.label_list"] = tuple(config.label_list or ())
    label_names = _only_names(named) or None
    rows = {}
    for split, source in sources.items():
        where = columns[split]
        logger.info("%s: words are in the column %r, tags in %r.", source.name, where.text, where.label)
        arguments = {"source": source, "columns": where, "label_names": label_names}
        rows[split] = _cached(split, config, [source.fingerprint(), where, label_names], arguments)
    return datasets.DatasetDict(rows), label_names


def _only_names(named: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What numbers stand for; TrialError if not all that say so say the same."""
    sources = {names: name for name, names in named.items() if names}
    if len(sources) > 1:
        different = "; ".join(f"{name} has {', '.join(names)[:150]}" for names, name in list(sources.items())[:2])
        raise TrialError(
            f"The numbers among the tags stand for different tags: {different}. Save all splits with the same "
            "ClassLabel, and remove data.label_list."
        )
    return next(iter(sources), ())


def _cached(split: str, config: NERDataConfig, key: list[Any], arguments: dict[str, Any]) -> datasets.Dataset:
    code = [Path(str(file)).read_bytes() for file in (__file__, ner.cells.__file__, ner.formats.__file__)]

    def build(cache_dir: str | None) -> Generator:
        builder = Generator(
            generator=read_sentences,
            gen_kwargs=arguments,
            features=SENTENCE_FEATURES,
            split=datasets.NamedSplit(split),
            config_id=datasets.fingerprint.Hasher.hash([split, key, code]),
            cache_dir=cache_dir,
        )
        try:
            builder.download_and_prepare()
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None
        return builder

    if config.overwrite_cache:
        _replace_cached(Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE), build)
    return build(config.cache_dir).as_dataset(split)


def _replace_cached(cache: Path, build: Callable[[str], Generator]) -> None:
    """Read anew, and replace the old files one by one: other processes tokenize in the folder that they are in."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as own:
        new = Path(build(own).cache_dir)
        folder = cache / new.relative_to(own)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.rename(folder)
        except OSError:  # it is there
            for file in new.iterdir():
                file.replace(folder / file.name)


def read_sentences(source: Source, columns: Columns, label_names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The checked sentences of a source, one after the other."""
    records, names = source.records(), (columns.text, str(columns.label))
    if columns.sentence is not None:
        records = join_words(records, columns)
    only_words, num_sentences = True, 0
    for record in records:
        num_sentences += 1
        missing = [name for name in names if name not in record.cells]
        if missing:
            found = join_names(record.cells)
            raise TrialError(f"{record.place}: no column {missing[0]!r} as in the first row; found {found}.")
        if columns.num_unnamed not in (0, len(record.cells)):
            raise TrialError(
                f"{record.place}: found {len(record.cells)} columns, but {columns.num_unnamed} in the first sentence. "
                "Give all files of a split the same columns."
            )
        text, label = (record.cells[name] for name in names)
        try:
            words, tags = parse_cells(text, label, label_names, has_spans=columns.has_spans)
        except ValueError as error:
            raise TrialError(
                f"{record.place_of(error)}: {error} (Words are read from the column {names[0]!r}, tags from "
                f"{names[1]!r}.)"
            ) from None
        only_words = only_words and words == [text] and not columns.has_spans
        yield {"tokens": words, "tags": tags, "place": record.place}
    if only_words and num_sentences > 1:
        raise TrialError(
            f"{source.name}: every row is a single word. If rows are words, name the column of the sentence's id with "
            "data.sentence_column_name; without one, write CoNLL columns with a blank line between sentences."
        )


def join_words(records: Iterator[Record], columns: Columns) -> Iterator[Record]:
    """Sentences from records that are words; where the id is missing, the word goes with the one before."""
    sentence = str(columns.sentence)
    names = [name for name in (columns.text, columns.label) if name is not None]
    seen: set[Any] = set()
    current: Any = None
    places, cells = list[str](), dict[str, list[Any]]()
    for record in records:
        if places and places[0].rpartition(", ")[0] != record.place.rpartition(", ")[0]:
            current, seen = None, set()  # another file, which may count anew
        for name in names:
            cell = record.cells.get(name)
            is_one = _is_tag(cell) if name == columns.label else _is_word(cell)
            if not is_one or not isinstance(cell, (str, int)) or str(cell).strip(BLANKS) == "":
                raise TrialError(
                    f"{record.place}: found {format_value('', cell)} in the column {name!r}; accepted is one word and "
                    f"its tag, since the column {sentence!r} says that a row is a word."
                )
        identity = record.cells.get(sentence)
        identity = identity.strip() if isinstance(identity, str) else identity
        if isinstance(identity, (list, dict)):
            raise TrialError(
                f"{record.place}: found {format_value('', identity)} in the column {sentence!r}; number it."
            )
        if identity is None or identity in ("", current) or identity != identity:  # NaN, as pandas fills up
            if current is None:
                raise TrialError(f"{record.place}: found no sentence's id in the column {sentence!r}; number it.")
        else:
            if identity in seen:
                raise TrialError(
                    f"{record.place}: the sentence {identity!r} goes on here, after another one. Put the words of each "
                    "sentence one after the other, and give each sentence an id of its own."
                )
            if cells:
                yield Record(places[0], cells, places)
            seen.add(identity)
            current, places, cells = identity, [], {name: [] for name in names}
        places.append(record.place)
        for name in names:
            cells[name].append(record.cells[name])
    yield Record(places[0], cells, places)
