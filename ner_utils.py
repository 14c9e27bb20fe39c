"""From sentences to model inputs, and from the model's outputs to tags and metrics. Nothing here imports Determined.

`ner_trial.py` calls these functions in the order in which they stand here.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch.nn import functional

import ner.windows
from ner.context import DocumentContext, join_sentences, map_chunks
from ner.labels import OUTSIDE, Array, encode_tags, find_label_scheme
from ner.report import ErrorReport
from ner.windows import IGNORED_LABEL_ID, NO_POSITION, WORD_COLUMNS, cut_windows


@dataclass(frozen=True)
class DatasetMetadata:
    """What the model's head and the metrics have to know of the data."""

    label_list: list[str]  # the tags, in the order of their ids
    label_scheme: str  # the scheme by which they mark entities

    @property
    def num_labels(self) -> int:
        return len(self.label_list)


def get_dataset_metadata(
    rows: datasets.DatasetDict, label_names: Sequence[str] | None = None, label_scheme: str | None = None
) -> DatasetMetadata:
    """Learn the labels and their scheme. Raise a TrialError if the tags mix schemes.

    Args:
        rows: Checked rows, with the columns `tags`, of texts, and `place`.
        label_names: All tags in their order, where the data set or the user says. Otherwise they are the sorted tags
            of all splits together, so that a tag which only the validation split has is known too.
        label_scheme: The scheme, where the user says; otherwise what the tags look like.
    """
    tags = {split: encode_tags(data) for split, data in rows.items()}
    found = sorted({name for encoded in tags.values() for name in encoded.names})
    return DatasetMetadata(list(label_names or found), find_label_scheme(tags, label_scheme))


def continuation_ids(label_list: Sequence[str]) -> list[int]:
    """The id of the label that the further pieces of a word have: `I-X` for `B-X` where there is one, else the same.

    As in Hugging Face's run_ner.py (Apache-2.0, see `ner.columns.find_columns`).
    """
    ids = {label: i for i, label in enumerate(label_list)}
    return [ids.get(f"I-{label[2:]}", i) if label.startswith("B-") else i for i, label in enumerate(label_list)]


def tokenize_and_align_labels(
    rows: dict[str, list[Any]],
    first_word: int,
    tokenizer: Any,
    label_list: Sequence[str],
    max_seq_length: int,
    doc_stride: int,
    *,
    label_all_tokens: bool = False,
    document_context: DocumentContext = "none",
    context_tokens: int = 0,
) -> dict[str, list[Any]]:
    """Turn sentences into model inputs: one row a window, as many windows as a text needs.

    Args:
        rows: Columns `tokens` and, where the labels are known, `tags`, both of texts; with context also `document`.
        first_word: The number of their first word, in the whole split.
        tokenizer: A fast one.
        label_list: The tags in the order of their ids.
        max_seq_length: Sub-tokens of a window, special tokens included.
        doc_stride: Sub-tokens that two windows share.
        label_all_tokens: Label the further pieces of a word too.
        document_context, context_tokens: What a text is, see `ner.context.join_sentences`: a sentence, by default.

    Returns:
        Columns of the model's inputs, (window, sub-token), and of `word_ids` and `word_positions`, (window, word), the
        numbers of the words that are scored in this window, and their first sub-tokens. With tags also `labels`,
        (window, sub-token), and `word_labels`, (window, word).
    """
    label_ids = {label: i for i, label in enumerate(label_list)}
    further_ids = continuation_ids(label_list)
    gold = [label_ids[tag] for tags in rows.get("tags", []) for tag in tags]
    columns: dict[str, list[Any]] = defaultdict(list)
    context = (max_seq_length, document_context, context_tokens)
    texts = [*join_sentences(rows["tokens"], rows.get("document", []), tokenizer, *context)]
    for window in cut_windows(texts, tokenizer, max_seq_length, doc_stride):
        for name, values in window.inputs.items():
            columns[name].append(values)
        columns["word_ids"].append([first_word + word for word, _ in window.scored])
        columns["word_positions"].append([position for _, position in window.scored])
        if "tags" not in rows:
            continue
        words, labels = window.word_ids, [IGNORED_LABEL_ID] * len(window.word_ids)
        for word, position in window.scored:
            if position != NO_POSITION:
                labels[position] = gold[word]
                further = position + 1
                while label_all_tokens and further < len(words) and words[further] == words[position]:
                    labels[further] = further_ids[labels[position]]
                    further += 1
        columns["labels"].append(labels)
        columns["word_labels"].append([gold[word] for word, _ in window.scored])
    return dict(columns)


def build_tokenized_datasets(
    rows: datasets.DatasetDict,
    tokenizer: Any,
    label_list: Sequence[str],
    max_seq_length: int,
    doc_stride: int,
    *,
    num_workers: int | None = None,
    overwrite_cache: bool = False,
    **options: Any,
) -> datasets.DatasetDict:
    """Apply `tokenize_and_align_labels` to every split, or find its result in the cache of the datasets library."""
    arguments = {"tokenizer": tokenizer, "label_list": list(label_list), **options}
    arguments |= {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    # The tokenizer as text, since dill takes 0.2 s to hash its vocabulary; before its first use, which changes it.
    tokenizer_parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.model_input_names, tokenizer.truncation_side]
    # The source code, since the library would not notice another version of these functions.
    code = [Path(str(file)).read_bytes() for file in (__file__, ner.context.__file__, ner.windows.__file__)]
    fingerprint = Hasher.hash([arguments | {"tokenizer": tokenizer_parts}, code])
    tokenized = datasets.DatasetDict()
    for split, data in rows.items():
        tokenized[split] = map_chunks(
            data,
            tokenize_and_align_labels,
            arguments,
            num_proc=num_workers,
            load_from_cache_file=not overwrite_cache,
            new_fingerprint=Hasher.hash([data._fingerprint, fingerprint]),
            desc=f"Tokenizing {split}, a thousand rows a step",
        )
    return tokenized


def sum_losses(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross entropies, in fp32, where there is a label, and the number of labels, or the sum of weights.

    Args:
        logits: (row, place, label), of sub-tokens or of words.
        labels: (row, place), with IGNORED_LABEL_ID where none counts.
        weights: What each label weighs, (label,); None weighs all the same. As torch's cross entropy has it.
    """
    logits, labels = logits.float().flatten(0, 1), labels.flatten()
    losses = functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED_LABEL_ID, reduction="sum")
    is_label = labels != IGNORED_LABEL_ID
    return losses, is_label.sum() if weights is None else (weights[labels.clamp(min=0)] * is_label).sum()


class BatchOfWords(NamedTuple):
    """What a model predicts for the words of a batch."""

    batch: dict[str, torch.Tensor]  # on the model's device
    logits: torch.Tensor  # in fp32, (row, word, label); those of a word without a position mean nothing
    label_ids: torch.Tensor  # the predicted labels, (row, word); NO_POSITION for padding and words without sub-tokens

    def words(self) -> Array:
        """Number, predicted label and, if known, gold label of each word, on the host, (2 or 3, words).

        A batch waits for the device here, and only here.
        """
        gold = [self.batch["word_labels"]] if "word_labels" in self.batch else []
        table = torch.stack([self.batch["word_ids"], self.label_ids, *gold])
        on_host = table.to(torch.int32).cpu().numpy()
        return on_host[:, on_host[0] != NO_POSITION]

    def scores(self) -> Array:
        """The probability of each word's predicted label, (words,), in the order of `words`; NaN without sub-tokens."""
        scores = self.logits.softmax(-1).amax(-1).where(self.label_ids != NO_POSITION, torch.nan)
        return scores[self.batch["word_ids"] != NO_POSITION].cpu().numpy()


@torch.inference_mode()
def predict_words(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> Iterator[BatchOfWords]:
    """Predict a label for each word of each batch: the way from batches to tags of validation, test and `predict.py`.

    Args:
        model: Of transformers, for token classification, in evaluation mode.
        batches: From `WordCollator`, with the model's inputs and `word_positions`, (row, word).
    """
    for batch in batches:
        batch = {name: values.to(model.device) for name, values in batch.items()}
        logits = model(**{name: values for name, values in batch.items() if name not in WORD_COLUMNS})["logits"]
        positions = batch["word_positions"]
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        word_logits = logits[rows, positions.clamp(min=0)].float()  # (row, sub-token, label) -> (row, word, label)
        yield BatchOfWords(batch, word_logits, word_logits.argmax(-1).where(positions != NO_POSITION, NO_POSITION))


def iterate_sentences(
    words: Array, starts: Array, label_list: Sequence[str]
) -> Iterator[tuple[int, Array, list[list[str]]]]:
    """Put words of any order together to sentences, in the order of their numbers.

    Args:
        words: From `BatchOfWords.words`, (2 or 3, words).
        starts: The number of each sentence's first word, and of all words, from `ner.labels.count_words`.
        label_list: The tags in the order of their ids.

    Yields:
        The sentence's index, the columns of its words in `words`, and the predicted tags of these and, if known, the
        gold ones. A word without sub-tokens is predicted to be O.
    """
    tags = [*label_list, OUTSIDE]  # NO_POSITION, -1, finds the last one
    order = np.argsort(words[0])
    borders = np.searchsorted(words[0], starts, sorter=order)
    for index, (begin, end) in enumerate(itertools.pairwise(borders)):
        columns = order[begin:end]
        if len(columns):  # else the sentence was not evaluated
            yield index, columns, [[tags[i] for i in ids] for ids in words[1:, columns].tolist()]


def compute_metrics(
    sentences: Iterable[Sequence[Any]], report: ErrorReport | None = None, *, entity_types: Sequence[str] = ()
) -> dict[str, float]:
    """Word accuracy, and entity-level precision, recall and F1 (micro averages), of entities as seqeval finds them.

    Args:
        sentences: For each sentence the arguments of `ErrorReport.add`: the gold and the predicted tags, one a word.
        report: Counts the sentences, and says how entities are found; by default as conlleval does.
        entity_types: Report each of these too, as run_ner.py names it, `PER_f1` say; 0 where there is no such entity.

    Example:
        >>> compute_metrics([(["B-PER", "I-PER", "O"], ["B-PER", "O", "O"])])["accuracy_score"]
        0.6666666666666666
    """
    report = report or ErrorReport()
    for sentence in sentences:
        report.add(*sentence)
    return report.metrics(entity_types)
