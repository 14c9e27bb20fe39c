"""Files and hub data sets in, checked rows of words and tags out. Nothing here knows of tokens or models."""

import ast
import io
import itertools
import json
import logging
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from transformer_trial.config import DataConfig
from transformer_trial.parsing import TrialError, setting

logger = logging.getLogger(__name__)

METRIC_SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU")

CHECKED_FEATURES = datasets.Features(
    {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.Value("string"))}
)


@dataclass(frozen=True)
class NERDataConfig(DataConfig):
    """The `data` section for named-entity recognition."""

    text_column_name: str | None = setting(None)
    """Column of the words; by default `tokens`, else the first."""
    label_column_name: str | None = setting(None)
    """Column of the tags, one a word; by default `{finetuning_task}_tags`, else the second."""
    label_list: list[str] | None = setting(None)
    """All tags there can be, in their order: the names of tags that are numbers, or a check on tags that are texts."""
    label_all_tokens: bool = setting(False)
    """Train on every sub-token of a word, not on its first one only. Metrics stay word by word."""
    return_entity_level_metrics: bool = setting(False)
    """Report precision, recall, f1 and number of every entity type too."""
    metric_mode: str = setting("default", choices=("default", "strict"))
    """How seqeval finds entities: `default` as conlleval does, `strict` only where the scheme's rules are kept."""
    metric_scheme: str | None = setting(None, choices=METRIC_SCHEMES)
    """The tags' scheme under metric_mode: strict; by default the one that the data's tags look like."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.metric_scheme is not None and self.metric_mode != "strict":
            yield (
                f"data.metric_scheme: {self.metric_scheme} has an effect with metric_mode: strict only. "
                "Set that, or metric_scheme: null."
            )
        if self.label_list is not None and len(set(self.label_list)) != len(self.label_list):
            twice = sorted({name for name in self.label_list if self.label_list.count(name) > 1})
            yield f"data.label_list: {', '.join(twice)} stands there twice; accepted is a list of different tags."


@dataclass(frozen=True)
class Columns:
    """Where the rows of a data set hold their words and tags."""

    text: str
    label: str
    label_names: tuple[str, ...] | None
    """The tags that the numbers of the label column stand for, where the data set or `label_list` says."""


def find_columns(splits: datasets.DatasetDict, config: NERDataConfig, task: str) -> Columns:
    """Find the columns of words and tags by their configured, else their usual names, else their places.

    The order of these is that of Hugging Face's run_ner.py (Apache-2.0,
    https://github.com/huggingface/transformers/tree/main/examples/pytorch/token-classification).

    Args:
        splits: As they were loaded.
        config: The `data` section.
        task: `finetuning_task`, whose tags are looked for in the column `{task}_tags`.

    Raises:
        TrialError: If a split has no such column, or names its tags otherwise than another one or `label_list`.
    """
    if "train" not in splits:
        raise TrialError(f"There is no train split; found are {', '.join(splits) or 'none'}.")
    found = splits["train"].column_names
    usual = {"text_column_name": ("tokens", 0), "label_column_name": (f"{task}_tags", 1)}
    names = {}
    for key, (name, place) in usual.items():
        names[key] = getattr(config, key) or (name if name in found or len(found) <= place else found[place])
        for split, rows in splits.items():
            if names[key] not in rows.column_names:
                raise TrialError(
                    f"{source_of(split, config)}: no column {names[key]!r}; found {', '.join(rows.column_names)}. "
                    f"Set data.{key} to the column that holds the "
                    f"{'words' if place == 0 else 'tags'} of each sentence."
                )
    text, label = names["text_column_name"], names["label_column_name"]
    if text == label:
        raise TrialError(f"data.label_column_name: {label!r} is the column of the words too; name the one of the tags.")
    logger.info("Words are in the column %r, tags in %r.", text, label)
    known = {source_of(split, config): _label_names(rows.features[label]) for split, rows in splits.items()}
    known["data.label_list"] = tuple(config.label_list or ())
    known = {source: names for source, names in known.items() if names}
    if len(set(known.values())) > 1:
        different = "; ".join(f"{source} has {', '.join(names)}" for source, names in known.items())
        raise TrialError(
            f"The numbers of the column {label!r} stand for different tags: {different}. Save all splits with the same "
            "ClassLabel, and remove data.label_list."
        )
    return Columns(text, label, next(iter(known.values()), None))


def _label_names(feature: Any) -> tuple[str, ...]:
    inner = getattr(feature, "feature", None)
    return tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else ()


def source_of(split: str, config: NERDataConfig) -> str:
    """The file, or the data set's split, that a message is about."""
    file: str | None = getattr(config, f"{split}_file", None)
    return file or f"{config.dataset_name} ({split} split)"


def check_rows(splits: datasets.DatasetDict, columns: Columns, config: NERDataConfig) -> datasets.DatasetDict:
    """Read the cells of every row, and check them.

    Args:
        splits: As they were loaded, cells being lists, or lists written as Python or JSON text.
        columns: From `find_columns`.
        config: The `data` section.

    Returns:
        The same rows with two columns of texts, `tokens` and `tags`, as many tags as words in each.

    Raises:
        TrialError: At the first row that is not so; it names file and row, counted from 1 without a header.
    """

    def check(rows: dict[str, list[Any]], indices: list[int], split: str) -> dict[str, list[list[str]]]:
        checked: dict[str, list[list[str]]] = {"tokens": [], "tags": []}
        for index, text, label in zip(indices, rows[columns.text], rows[columns.label]):
            try:
                words = read_words(text)
                tags = read_tags(label, columns.label_names)
                "".join([*words, *tags]).encode()  # fails on half a surrogate pair, which no column could hold
                if len(words) != len(tags):
                    raise ValueError(
                        f"found {len(words)} words but {len(tags)} tags (words: {_start(words)}; tags: "
                        f"{_start(tags)}). Every word needs one tag."
                    )
            except ValueError as error:
                raise TrialError(
                    f"{source_of(split, config)}, row {index + 1}: {error} "
                    f"(Words are read from the column {columns.text!r}, tags from {columns.label!r}.)"
                ) from None
            checked["tokens"].append(words)
            checked["tags"].append(tags)
        return checked

    return datasets.DatasetDict(
        {
            split: rows.select_columns([columns.text, columns.label]).map(
                check,
                batched=True,
                with_indices=True,
                fn_kwargs={"split": split},
                remove_columns=[columns.text, columns.label],
                features=CHECKED_FEATURES,
                num_proc=config.preprocessing_num_workers,
                load_from_cache_file=not config.overwrite_cache,
                desc=f"Checking {split} rows",
            )
            for split, rows in splits.items()
        }
    )


def read_words(cell: Any) -> list[str]:
    """The words of a cell; ValueError if it holds something else than a list of texts."""
    words = read_list(cell, "words")
    for place, word in enumerate(words, start=1):
        if not isinstance(word, str):
            raise ValueError(f"word {place} is {word!r}; accepted are texts. Write it in quotes, or leave it out.")
    if not words:
        raise ValueError("found a sentence without words. Remove the row.")
    return words


def read_tags(cell: Any, names: Sequence[str] | None) -> list[str]:
    """The tags of a cell as texts; `names` are what numbers stand for, and what texts have to be among."""
    tags = read_list(cell, "tags")
    for place, tag in enumerate(tags, start=1):
        if isinstance(tag, bool) or not isinstance(tag, (int, str)) or tag == "":
            raise ValueError(f"tag {place} is {tag!r}; accepted are texts such as 'B-PER', or whole numbers.")
        if isinstance(tag, int) and names is None:
            raise ValueError(
                f"tag {place} is the number {tag}, and nothing says what it stands for. Name the tags in their order "
                "with data.label_list, such as [O, B-PER, I-PER]."
            )
        if isinstance(tag, int) and names is not None and not 0 <= tag < len(names):
            raise ValueError(
                f"tag {place} is the number {tag}; accepted are 0 to {len(names) - 1}: {', '.join(names)}."
            )
        if isinstance(tag, str) and names is not None and tag not in names:
            raise ValueError(
                f"tag {place} is {tag!r}; accepted are {', '.join(names)}. Correct it, or add it to data.label_list."
            )
    return [names[tag] if names is not None and isinstance(tag, int) else tag for tag in tags]


def read_list(cell: Any, what: str) -> list[Any]:
    """A list, or the list that a text writes down as JSON or Python; ValueError if it is neither.

    Example:
        >>> read_list("['EU', 'rejects']", "words")
        ['EU', 'rejects']
    """
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str):
        for read in (json.loads, _read_python):
            try:
                value = read(cell)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
                continue
            if isinstance(value, (list, tuple)):
                return list(value)
    found = repr(cell) if len(repr(cell)) <= 80 else repr(cell)[:77] + "..."
    raise ValueError(
        f"the {what} are {found}; accepted is a list, or one written as JSON (json.dumps) or Python text, such as "
        '["EU", "rejects"].'
    )


def _read_python(text: str) -> Any:
    text = text.strip()
    if re.search(r"""['"]\s+['"]""", text):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.NEWLINE)]
        # A printed NumPy array has no commas, and Python would glue its words together.
        if any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(kinds)):
            raise ValueError
    return ast.literal_eval(text)


def _start(items: Sequence[str]) -> str:
    text = " ".join(items[:6])
    return f"{text[:60]} ..." if len(items) > 6 or len(text) > 60 else text
