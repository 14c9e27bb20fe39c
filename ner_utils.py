"""Pure functions of named-entity recognition: labels, tokenize-and-align, metrics. Nothing here imports Determined."""

import copy
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from seqeval import scheme as seqeval_schemes
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

import ner.labels
import ner.windows
from ner.labels import OUTSIDE, Array
from ner.windows import NO_POSITION, cut_windows

logger = logging.getLogger(__name__)

IGNORED_LABEL_ID = -100
"""What torch's cross entropy skips: special tokens, padding, continuation pieces."""

WORD_FILLS = {"word_ids": NO_POSITION, "word_positions": NO_POSITION, "word_labels": IGNORED_LABEL_ID}
"""The columns of tokenized rows that hold one number a word, and what they are padded with."""

WORD_COLUMNS = (*WORD_FILLS, "sentence_id")
"""Columns of tokenized rows that evaluation needs beside the model's inputs."""


@dataclass(frozen=True)
class DatasetMetadata:
    """What the model's head and the metrics have to know of the data."""

    label_list: list[str]
    """The tags, in the order of their ids."""
    label_scheme: str
    """The scheme by which they mark entities."""

    @property
    def num_labels(self) -> int:
        return len(self.label_list)


def get_dataset_metadata(
    rows: datasets.DatasetDict, label_names: Sequence[str] | None = None, label_scheme: str | None = None
) -> DatasetMetadata:
    """Learn the labels and their scheme.

    Args:
        rows: Checked rows, with the columns `tags`, of texts, and `place`.
        label_names: All tags in their order, where the data set or the user says; otherwise they are the sorted tags
            of all splits together, so that one which only the validation split has is known too.
        label_scheme: The scheme, where the user says; otherwise what the tags look like.

    Raises:
        TrialError: If the tags mix schemes.
    """
    tags = {split: ner.labels.encode_tags(data) for split, data in rows.items()}
    found = sorted({name for of_split in tags.values() for name in of_split.names})
    return DatasetMetadata(list(label_names or found), ner.labels.find_label_scheme(tags, label_scheme))


def continuation_ids(label_list: Sequence[str]) -> list[int]:
    """The id of the label that the further pieces of a word have: `I-X` for `B-X` where there is one, else the same.

    As in run_ner.py (Apache-2.0, see `find_columns`).
    """
    ids = {label: i for i, label in enumerate(label_list)}
    return [ids.get(f"I-{label[2:]}", i) if label.startswith("B-") else i for i, label in enumerate(label_list)]


def tokenize_and_align_labels(
    rows: dict[str, list[Any]],
    indices: list[int],
    tokenizer: Any,
    label_list: Sequence[str],
    max_seq_length: int,
    doc_stride: int,
    *,
    label_all_tokens: bool = False,
) -> dict[str, list[Any]]:
    """Turn sentences into model inputs: one row a window, as many windows as a sentence needs.

    Args:
        rows: Columns `tokens` and `tags`, of texts.
        indices: The sentences' numbers.
        tokenizer: A fast one.
        label_list: The tags in the order of their ids.
        max_seq_length: Sub-tokens of a window, special tokens included.
        doc_stride: Sub-tokens that two windows share.
        label_all_tokens: Label the further pieces of a word too.

    Returns:
        Columns of the model's inputs and `labels`, (window, sub-token); of `word_ids`, `word_positions` and
        `word_labels`, (window, word), the words that are scored in this window, where, and their labels' ids; and of
        `sentence_id`.
    """
    label_ids = {label: i for i, label in enumerate(label_list)}
    further_ids = continuation_ids(label_list)
    columns: dict[str, list[Any]] = defaultdict(list)
    for window in cut_windows(rows["tokens"], tokenizer, max_seq_length, doc_stride):
        tags, words = rows["tags"][window.sentence], window.word_ids
        labels = [IGNORED_LABEL_ID] * len(words)
        for word, position in window.scored:
            if position != NO_POSITION:
                labels[position] = label_ids[tags[word]]
                further = position + 1
                while label_all_tokens and further < len(words) and words[further] == word:
                    labels[further] = further_ids[labels[position]]
                    further += 1
        for name, values in window.inputs.items():
            columns[name].append(values)
        columns["labels"].append(labels)
        columns["word_ids"].append([word for word, _ in window.scored])
        columns["word_positions"].append([position for _, position in window.scored])
        columns["word_labels"].append([label_ids[tags[word]] for word, _ in window.scored])
        columns["sentence_id"].append(indices[window.sentence])
    return dict(columns)


def with_tables_as_text(tokenizer: Any) -> Any:
    """A copy of a tokenizer to hash: of a vocabulary, dill would hash entry by entry, which takes 0.2 seconds."""
    copied = copy.copy(tokenizer)
    tables = {name: repr(table) for name, table in vars(copied).items() if name in ("_vocab", "_merges")}
    vars(copied).update(tables)
    return copied


def build_tokenized_datasets(
    rows: datasets.DatasetDict,
    tokenizer: Any,
    label_list: Sequence[str],
    max_seq_length: int,
    doc_stride: int,
    *,
    label_all_tokens: bool = False,
    num_workers: int | None = None,
    overwrite_cache: bool = False,
) -> datasets.DatasetDict:
    """Apply `tokenize_and_align_labels` to every split, or find its result in the cache of the datasets library."""
    # The library would not notice another version of these functions.
    code = [Path(str(file)).read_bytes() for file in (__file__, ner.windows.__file__)]
    arguments = {
        "tokenizer": tokenizer,
        "label_list": list(label_list),
        "max_seq_length": max_seq_length,
        "doc_stride": doc_stride,
        "label_all_tokens": label_all_tokens,
    }
    # Once: what a tokenizer holds changes when it cuts its first sentence.
    fingerprint = Hasher.hash([arguments | {"tokenizer": with_tables_as_text(tokenizer)}, code])
    return datasets.DatasetDict(
        {
            split: data.map(
                tokenize_and_align_labels,
                batched=True,
                with_indices=True,
                fn_kwargs=arguments,
                remove_columns=data.column_names,
                num_proc=num_workers,
                load_from_cache_file=not overwrite_cache,
                new_fingerprint=Hasher.hash([data._fingerprint, fingerprint]),
                desc=f"Tokenizing {split} rows",
            )
            for split, data in rows.items()
        }
    )


class WordCollator:
    """Pads tokenized rows to a batch of tensors: inputs and `labels` by sub-tokens, the other columns by words.

    Args:
        tokenizer: Pads the model's inputs.
        column_names: The columns of the rows, known also where there are no rows: a slot's piece of a batch may be
            empty, and becomes one row without a word.
        max_length: Pad to that many sub-tokens; None pads to the longest row.
        pad_to_multiple_of: Round the padded length up, for the matrix units of GPUs.
    """

    def __init__(
        self,
        tokenizer: Any,
        column_names: Sequence[str],
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.tokenizer, self.max_length, self.multiple = tokenizer, max_length, pad_to_multiple_of or 1
        values: dict[str, Any] = {name: [] for name in WORD_FILLS} | {"sentence_id": NO_POSITION}
        values |= {"input_ids": [tokenizer.pad_token_id], "attention_mask": [1], "labels": [IGNORED_LABEL_ID]}
        self.no_words = {name: values.get(name, [0]) for name in column_names}
        # What the tokenizer pads its columns with, asked once: to let it pad each batch takes seven times as long.
        inputs = [name for name in column_names if name not in ("labels", *WORD_COLUMNS)]
        padded = pad_without_fast_tokenizer_warning(tokenizer, [{name: [0] * n for name in inputs} for n in (1, 2)])
        place = 0 if tokenizer.padding_side == "left" else 1
        self.fills = {name: rows[0][place] for name, rows in padded.items() if len(rows[0]) == 2}
        self.fills |= {"labels": IGNORED_LABEL_ID, **WORD_FILLS}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = rows or [self.no_words]
        # No model takes a row of no sub-token, which some tokenizers make of words that they have none for.
        padding = {name: value for name, value in self.no_words.items() if name not in WORD_COLUMNS}
        rows = [row if row["input_ids"] else {name: padding.get(name, row[name]) for name in row} for row in rows]
        length = self.max_length or max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.multiple) * self.multiple  # rounded up
        on_left = self.tokenizer.padding_side == "left"
        batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name == "sentence_id":
                batch[name] = torch.tensor(values)
            elif name in WORD_FILLS:
                batch[name] = pad_rows(values, max(map(len, values)), self.fills[name])
            else:
                batch[name] = pad_rows(values, length, self.fills[name], on_left=on_left)
        if on_left and "word_positions" in batch:
            shifts = torch.tensor([length - len(row["input_ids"]) for row in rows])[:, None]
            batch["word_positions"] += shifts * (batch["word_positions"] != NO_POSITION)
        return batch


def pad_rows(rows: Sequence[Sequence[int]], length: int, fill: int, *, on_left: bool = False) -> torch.Tensor:
    """Rows of numbers as a tensor, (row, length)."""
    padded = np.full((len(rows), length), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        start = length - len(row) if on_left else 0
        padded[i, start : start + len(row)] = row
    return torch.from_numpy(padded)


def select_words(logits: torch.Tensor, word_positions: torch.Tensor) -> torch.Tensor:
    """The logits of each word, in fp32; of a word without position they mean nothing.

    Args:
        logits: (row, sub-token, label).
        word_positions: (row, word), with NO_POSITION for padding and words without sub-tokens.

    Returns:
        (row, word, label).
    """
    rows = torch.arange(len(word_positions), device=word_positions.device)[:, None]
    return logits[rows, word_positions.clamp(min=0)].float()


def compute_metrics(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    mode: str = "default",
    scheme: str | None = None,
    entity_types: Sequence[str] = (),
) -> dict[str, float]:
    """Word accuracy, and entity-level precision, recall and F1 (micro averages) by seqeval.

    Args:
        gold: Tags of each sentence, one a word.
        predicted: As many predicted tags.
        mode: "default" finds entities as conlleval does: an I-X after O begins one. "strict" finds only those that
            keep the rules of the scheme.
        scheme: IOB1, IOB2, IOE1, IOE2, IOBES or BILOU, for mode "strict"; None guesses from the gold tags.
        entity_types: Report each of these too, named as in run_ner.py: `PER_precision`, `PER_recall`, `PER_f1` and
            `PER_number`; all 0 where there is no such entity.

    Example:
        >>> compute_metrics([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]])["accuracy_score"]
        0.6666666666666666
    """
    if mode == "strict" and scheme is None and {*itertools.chain(*gold, *predicted)} - {OUTSIDE}:
        scheme = seqeval_schemes.auto_detect(gold).__name__
    sentences = zip(gold, predicted, strict=True)
    return score_sentences(sentences, mode=mode, scheme=scheme, entity_types=entity_types)


def score_sentences(
    sentences: Iterable[tuple[Sequence[str], Sequence[str]]],
    *,
    mode: str = "default",
    scheme: str | None = None,
    entity_types: Sequence[str] = (),
) -> dict[str, float]:
    """As `compute_metrics`, of the gold and predicted tags of sentences that come one by one; only counts are kept.

    seqeval finds the entities. Its own report needs all sentences at once, and looks for their entities ten times.
    """
    num_words = num_right_words = 0
    correct, claimed, real = Counter[str](), Counter[str](), Counter[str]()  # entities by type
    for gold, predicted in sentences:
        num_words += len(gold)
        num_right_words += sum(g == p for g, p in zip(gold, predicted, strict=True))
        of_gold = ner.labels.find_entities([*gold], mode, scheme)
        of_predicted = of_gold if predicted == gold else ner.labels.find_entities([*predicted], mode, scheme)
        for counts, entities in ((real, of_gold), (claimed, of_predicted), (correct, {*of_gold} & {*of_predicted})):
            for entity_type, *_ in entities:
                counts[entity_type] += 1
    metrics = {"accuracy_score": num_right_words / max(num_words, 1)}
    metrics |= ner.labels.precision_recall_f1(correct.total(), claimed.total(), real.total())
    for name in entity_types:
        scores = ner.labels.precision_recall_f1(correct[name], claimed[name], real[name])
        metrics |= {f"{name}_{score}": value for score, value in scores.items()}
        metrics[f"{name}_number"] = float(real[name])
    return metrics


def metric_directions(entity_types: Sequence[str]) -> dict[str, bool]:
    """The metrics of a validation by name, and whether more of each is better."""
    directions = dict.fromkeys(("accuracy_score", "precision", "recall", "f1"), True) | {"validation_loss": False}
    return directions | {f"{t}_{name}": True for t in entity_types for name in ("precision", "recall", "f1")}


def iterate_sentences(words: Array, label_list: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Gold and predicted tags of each sentence, in the order of the sentences' numbers, from words in any order.

    Args:
        words: Of each word its sentence, its place there, its label and its predicted label, (4, words); NO_POSITION
            as the latter stands for O.
        label_list: The tags in the order of their ids.
    """
    tags = [*label_list, OUTSIDE]  # the last one is found by NO_POSITION, -1
    order = np.lexsort((words[1], words[0]))
    ends = np.flatnonzero(np.diff(words[0][order])) + 1
    for start, end in itertools.pairwise([0, *ends.tolist(), len(order)]):
        gold, predicted = words[2:, order[start:end]].tolist()
        yield [tags[i] for i in gold], [tags[i] for i in predicted]
