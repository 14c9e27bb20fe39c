"""Pure functions of named-entity recognition: labels, tokenize-and-align, metrics. Nothing here imports Determined."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import transformers
from datasets.fingerprint import Hasher
from seqeval import metrics as seqeval_metrics
from seqeval import scheme as seqeval_schemes
from tokenizers import pre_tokenizers

import ner_labels
from ner_labels import OUTSIDE, Array
from transformer_trial.parsing import ConfigError, TrialError

logger = logging.getLogger(__name__)

IGNORED_LABEL_ID = -100
"""What torch's cross entropy skips: special tokens, padding, continuation pieces."""

NO_POSITION = -1
"""Position of a word that the tokenizer gives no sub-token, and padding of the columns that count words."""

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
    tags = {split: ner_labels.read_tags(data) for split, data in rows.items()}
    found = sorted({name for of_split in tags.values() for name in of_split.names})
    return DatasetMetadata(list(label_names or found), ner_labels.find_label_scheme(tags, label_scheme))


def prepare_tokenizer(tokenizer: Any) -> None:
    """Make a tokenizer ready for words that were split before: it must be fast, see spaces and be able to pad.

    Raises:
        TrialError: If it is a slow one, which cannot tell which word a sub-token belongs to.
    """
    if not tokenizer.is_fast:
        raise TrialError(
            f"hyperparameters.tokenizer_name (or pretrained_model_name_or_path): {type(tokenizer).__name__} is a slow "
            "tokenizer, which cannot tell which word a sub-token belongs to. Accepted are fast ones (use_fast: true, "
            "and a tokenizer.json)."
        )
    if tokenizer.pad_token is None:  # any will do: what it pads is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    # Where sub-tokens hold the space before them, as Ġ or ▁, the model met most words in the form that has it.
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    parts = splitter and [splitter.pre_tokenize_str(text)[0][0] for text in ("a", " a")]
    if parts in (["a", "Ġa"], ["a", "▁a"]):
        if isinstance(splitter, pre_tokenizers.ByteLevel):
            splitter.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True  # the latter goes into exports
        else:  # Its ByteLevel would put a space before each part of a word that the others split.
            add_space = pre_tokenizers.Metaspace(" ", "always", split=False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([add_space, splitter])
            tokenizer.init_kwargs.pop("add_prefix_space", None)
        tokenizer.add_prefix_space = True  # without it, transformers 4 refuses words for some tokenizers


def choose_max_seq_length(tokenizer: Any, model: torch.nn.Module, requested: int | None) -> int:
    """Sub-tokens of a model input, special tokens included: as requested, or as many as tokenizer and model take.

    Raises:
        TrialError: If more are requested than the model has positions for.
    """
    positions = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith(("position_embeddings", "wpe", "embed_positions")) and isinstance(module, torch.nn.Embedding)
    ]
    of_config: Any = getattr(model, "config", None)
    if positions and hasattr(of_config, "max_position_embeddings"):  # BART's embed_positions has rows beside these
        positions.append(of_config.max_position_embeddings)
    limit = min(positions, default=None)
    if requested is None:
        # Tokenizers that know no limit say 1e30.
        known = [length for length in (tokenizer.model_max_length, limit) if length is not None and length < 1e9]
        return min(known, default=512)
    if limit is not None and requested > limit:
        accepted = f"at most {limit}, the model's positions"
        raise ConfigError([f"data.max_seq_length: found {requested}; accepted is {accepted}."])
    return requested


def choose_doc_stride(tokenizer: Any, max_seq_length: int, requested: int | None) -> int:
    """Sub-tokens that two windows share: as requested, or 128, or half a window's content if that is less.

    Raises:
        TrialError: If windows that share so many could not move on.
    """
    content = max_seq_length - tokenizer.num_special_tokens_to_add()
    leaves = f"data.max_seq_length: {max_seq_length} leaves {content} sub-tokens beside the special ones"
    if content < 1:
        raise ConfigError([f"{leaves}. Accepted is at least {max_seq_length + 1 - content}."])
    if requested is not None and requested >= content:
        shared = f"data.doc_stride: {requested} of them are shared by two windows"
        raise ConfigError([f"{leaves}, and {shared}. Accepted is a doc_stride below {content}."])
    return min(128, content // 2) if requested is None else requested


def assign_words(windows: Sequence[Sequence[int | None]], stride: int, num_words: int) -> list[list[tuple[int, int]]]:
    """Decide in which window, and where in it, each word of a sentence is trained on and scored.

    That is at its first sub-token, in the window that has the most sub-tokens on that one's poorer side; the earlier
    one of equals.

    Args:
        windows: For each window the word that each of its sub-tokens belongs to; None for special tokens.
        stride: Sub-tokens that two windows share.
        num_words: Words of the sentence.

    Returns:
        For each window its (word, position) pairs, by word. A word without sub-tokens has NO_POSITION, in the window
        of the word before.

    Example:
        >>> assign_words([[None, 0, 1, 1, None], [None, 1, 1, 2, None]], stride=2, num_words=4)
        [[(0, 1), (1, 2)], [(2, 3), (3, -1)]]
    """
    best: dict[int, tuple[int, int, int]] = {}  # word: context on the poorer side, window, position
    first_piece: dict[int, int] = {}  # word: place in the whole sentence
    window_start = 0
    for window, word_ids in enumerate(windows):
        content = [(position, word) for position, word in enumerate(word_ids) if word is not None]
        for place, (position, word) in enumerate(content):
            if first_piece.setdefault(word, window_start + place) == window_start + place:
                context = min(place, len(content) - 1 - place)
                if word not in best or context > best[word][0]:
                    best[word] = (context, window, position)
        window_start += len(content) - stride
    assigned: list[list[tuple[int, int]]] = [[] for _ in windows]
    window = 0
    for word in range(num_words):
        _, window, position = best.get(word, (0, window, NO_POSITION))
        assigned[window].append((word, position))
    return assigned


def continuation_ids(label_list: Sequence[str]) -> list[int]:
    """The id of the label that the further pieces of a word have: `I-X` for `B-X` where there is one, else the same.

    As in run_ner.py (Apache-2.0, see `find_columns`).
    """
    ids = {label: i for i, label in enumerate(label_list)}
    return [ids.get(f"I-{label[2:]}", i) if label.startswith("B-") else i for i, label in enumerate(label_list)]


class Window(NamedTuple):
    """A stretch of a sentence that fits into the model."""

    sentence: int
    """The place of its sentence."""
    inputs: dict[str, list[int]]
    """The model's inputs, each (sub-token,)."""
    word_ids: list[int | None]
    """The word that each sub-token belongs to, None for special ones, (sub-token,)."""
    scored: list[tuple[int, int]]
    """The words that are trained on and scored in this window, and where; see `assign_words`."""


def cut_windows(sentences: list[list[str]], tokenizer: Any, max_seq_length: int, doc_stride: int) -> Iterator[Window]:
    """The windows of sentences, those in which some word is scored, by sentence and in the order of the text.

    Args:
        sentences: The words of each.
        tokenizer: A fast one.
        max_seq_length: Sub-tokens of a window, special tokens included.
        doc_stride: Sub-tokens that two windows of a sentence share.
    """
    encoded = tokenizer(
        sentences,
        is_split_into_words=True,
        truncation=True,
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    sentence_of = encoded["overflow_to_sample_mapping"]
    for sentence, group in itertools.groupby(range(len(sentence_of)), key=sentence_of.__getitem__):
        # In the order of the text: a tokenizer that truncates on the left begins with the last window.
        windows = sorted(group, reverse=tokenizer.truncation_side == "left")
        word_ids = [encoded.word_ids(window) for window in windows]
        assigned = assign_words(word_ids, doc_stride, len(sentences[sentence]))
        for window, words, scored in zip(windows, word_ids, assigned):
            if scored:  # else all its words are scored in its neighbours
                yield Window(sentence, {name: encoded[name][window] for name in names}, words, scored)


def tokenize_and_align(
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
    """Apply `tokenize_and_align` to every split, or find its result in the cache of the datasets library."""
    code = Path(__file__).read_bytes()  # the library would not notice another one of these functions
    arguments = {
        "tokenizer": tokenizer,
        "label_list": list(label_list),
        "max_seq_length": max_seq_length,
        "doc_stride": doc_stride,
        "label_all_tokens": label_all_tokens,
    }
    return datasets.DatasetDict(
        {
            split: data.map(
                tokenize_and_align,
                batched=True,
                with_indices=True,
                fn_kwargs=arguments,
                remove_columns=data.column_names,
                num_proc=num_workers,
                load_from_cache_file=not overwrite_cache,
                new_fingerprint=Hasher.hash([data._fingerprint, arguments, code]),
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
        self.pad_inputs = transformers.DataCollatorForTokenClassification(
            tokenizer,
            padding=True if max_length is None else "max_length",
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            label_pad_token_id=IGNORED_LABEL_ID,
        )
        values: dict[str, Any] = {name: [] for name in WORD_FILLS} | {"sentence_id": NO_POSITION}
        values |= {"input_ids": [tokenizer.pad_token_id], "attention_mask": [1], "labels": [IGNORED_LABEL_ID]}
        self.no_words = {name: values.get(name, [0]) for name in column_names}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = rows or [self.no_words]
        # No model takes a row of no sub-token, which some tokenizers make of words that they have none for.
        inputs = [{name: value for name, value in row.items() if name not in WORD_COLUMNS} for row in rows]
        inputs = [row if row["input_ids"] else {name: self.no_words[name] for name in row} for row in inputs]
        # dict: Determined cannot measure a BatchEncoding.
        batch = dict(self.pad_inputs(inputs))
        for name, fill in WORD_FILLS.items():
            if name in rows[0]:
                width = max(len(row[name]) for row in rows)
                padded = [row[name] + [fill] * (width - len(row[name])) for row in rows]
                batch[name] = torch.tensor(padded, dtype=torch.long)  # also where there is no word
        if self.pad_inputs.tokenizer.padding_side == "left" and "word_positions" in batch:
            shifts = torch.tensor([batch["input_ids"].shape[1] - len(row["input_ids"]) for row in rows])[:, None]
            batch["word_positions"] += shifts * (batch["word_positions"] != NO_POSITION)
        if "sentence_id" in rows[0]:
            batch["sentence_id"] = torch.tensor([row["sentence_id"] for row in rows])
        return batch


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
    options: dict[str, Any] = {"zero_division": 0}
    if mode == "strict":
        options |= {"mode": "strict", "scheme": getattr(seqeval_schemes, scheme) if scheme else None}
    metrics = {"accuracy_score": seqeval_metrics.accuracy_score(gold, predicted)}
    scores: dict[str, dict[str, float]] = {}
    if any(tag != OUTSIDE for tags in itertools.chain(gold, predicted) for tag in tags):
        scores = seqeval_metrics.classification_report(gold, predicted, output_dict=True, **options)
    overall = scores.pop("micro avg", {})
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    metrics |= {name: overall.get(seqeval_name, 0.0) for name, seqeval_name in names.items()}
    for entity_type in entity_types:
        score = scores.get(entity_type, {})
        metrics |= {f"{entity_type}_{name}": score.get(seqeval_name, 0.0) for name, seqeval_name in names.items()}
        metrics[f"{entity_type}_number"] = score.get("support", 0)
    return {name: float(value) for name, value in metrics.items()}


def metric_directions(entity_types: Sequence[str]) -> dict[str, bool]:
    """The metrics of a validation by name, and whether more of each is better."""
    directions = dict.fromkeys(("accuracy_score", "precision", "recall", "f1"), True) | {"validation_loss": False}
    return directions | {f"{t}_{name}": True for t in entity_types for name in ("precision", "recall", "f1")}


def group_by_sentence(words: Array, label_list: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags of each sentence, in the order of the sentences' numbers, from words in any order.

    Args:
        words: Of each word its sentence, its place there, its label and its predicted label, (4, words); NO_POSITION
            as the latter stands for O.
        label_list: The tags in the order of their ids.
    """
    sentence_ids, word_ids, *label_ids = words
    order = np.lexsort((word_ids, sentence_ids))
    starts = np.flatnonzero(np.diff(sentence_ids[order])) + 1
    tags = np.array([*label_list, OUTSIDE], dtype=object)  # the last one is found by NO_POSITION, -1
    gold, predicted = (np.split(tags[ids[order]], starts) for ids in label_ids)
    return [part.tolist() for part in gold], [part.tolist() for part in predicted]
