"""Texts cut into windows of sub-tokens, each word scored in one of them; and windows padded to batches."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import pre_tokenizers

from ner.config import WindowConfig
from ner.context import Text
from transformer_trial.builders import count_positions
from transformer_trial.errors import ConfigError, TrialError

NO_POSITION = -1  # of a word that the tokenizer gives no sub-token, and padding of the columns that count words
IGNORED_LABEL_ID = -100  # what torch's cross entropy skips: special tokens, padding, continuation pieces

# The columns of tokenized rows that evaluation needs beside the model's inputs, and what they are padded with. They
# hold one number a word.
WORD_COLUMNS = {"word_ids": NO_POSITION, "word_positions": NO_POSITION, "word_labels": IGNORED_LABEL_ID}


def prepare_tokenizer(tokenizer: Any) -> None:
    """Make a tokenizer see spaces before words that were split before, and able to pad; refuse a slow one."""
    if not tokenizer.is_fast:
        found = f"{type(tokenizer).__name__} is a slow tokenizer, which cannot tell which word a sub-token belongs to"
        key = "hyperparameters.tokenizer_name (or pretrained_model_name_or_path)"
        raise TrialError(f"{key}: {found}. Accepted are fast ones (use_fast: true, and a tokenizer.json).")
    names, length = tokenizer.model_input_names, tokenizer.model_max_length
    is_right = isinstance(names, list) and "input_ids" in names and all(isinstance(name, str) for name in names)
    if not is_right or not isinstance(length, (int, float)):
        found = f"model_max_length {length!r} and model_input_names {names!r}"
        accepted = "a number, and names of which one is input_ids"
        raise TrialError(f"The tokenizer's tokenizer_config.json: found {found}; accepted are {accepted}.")
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
    """Sub-tokens of a model input, special tokens included: as requested, or as many as tokenizer and model take."""
    limit = count_positions(model)
    if requested is None:
        # Tokenizers that know no limit say 1e30.
        known = [length for length in (tokenizer.model_max_length, limit) if length is not None and length < 1e9]
        return min(known, default=512)
    if limit is not None and requested > limit:
        accepted = f"at most {limit}, the model's positions"
        raise ConfigError([f"data.max_seq_length: found {requested}; accepted is {accepted}."])
    return requested


def choose_doc_stride(tokenizer: Any, max_seq_length: int, requested: int | None) -> int:
    """Sub-tokens that two windows share: as requested, or 128, or half a window's content if that is less."""
    content = max_seq_length - tokenizer.num_special_tokens_to_add()
    leaves = f"data.max_seq_length: {max_seq_length} leaves {content} sub-tokens beside the special ones"
    if content < 1:
        raise ConfigError([f"{leaves}. Accepted is at least {max_seq_length + 1 - content}."])
    if requested is not None and requested >= content:
        shared = f"data.doc_stride: {requested} of them are shared by two windows"
        raise ConfigError([f"{leaves}, and {shared}. Accepted is a doc_stride below {content}."])
    return min(128, content // 2) if requested is None else requested


def choose_window_options(tokenizer: Any, model: torch.nn.Module, settings: WindowConfig) -> dict[str, Any]:
    """What `tokenize_and_align_labels` asks for, of the `data` section or of an exported model's settings."""
    max_seq_length = choose_max_seq_length(tokenizer, model, settings.max_seq_length)
    doc_stride = choose_doc_stride(tokenizer, max_seq_length, settings.doc_stride)
    given = {name: getattr(settings, name) for name in WindowConfig.model_fields}
    return given | {"max_seq_length": max_seq_length, "doc_stride": doc_stride}


def assign_words(windows: Sequence[Sequence[int | None]], stride: int, num_words: int) -> list[list[tuple[int, int]]]:
    """Decide in which window each of a text's words is trained on and scored: (word, position) pairs by window.

    That is at its first sub-token, in the window that has the most sub-tokens on that one's poorer side; the earlier
    one of equals. A word without sub-tokens has NO_POSITION, in the window of the word before. `windows` hold for each
    sub-token the word that it belongs to, None for special tokens; two of them share `stride` sub-tokens.

    Example:
        >>> assign_words([[None, 0, 1, 1, None], [None, 1, 1, 2, None]], stride=2, num_words=4)
        [[(0, 1), (1, 2)], [(2, 3), (3, -1)]]
    """
    best: dict[int, tuple[int, int, int]] = {}  # word: context on the poorer side, window, position
    first_piece: dict[int, int] = {}  # word: place in the whole text
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


class Window(NamedTuple):
    """A stretch of a text that fits into the model."""

    inputs: dict[str, list[int]]  # the model's inputs, each (sub-token,)
    word_ids: list[int | None]  # the word of the text that each belongs to, None for special ones, (sub-token,)
    scored: list[tuple[int, int]]  # the numbers of the words that are trained on and scored here, and their positions


def cut_windows(texts: Sequence[Text], tokenizer: Any, max_seq_length: int, doc_stride: int) -> Iterator[Window]:
    """The windows in which some word is scored, in the order of the words.

    They have at most `max_seq_length` sub-tokens, special tokens included; two of a text share `doc_stride`.
    """
    encoded = tokenizer(
        [text.words for text in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    text_of = encoded["overflow_to_sample_mapping"]
    for number, group in itertools.groupby(range(len(text_of)), key=text_of.__getitem__):
        text = texts[number]
        # In the order of the text: a tokenizer that truncates on the left begins with the last window.
        windows = sorted(group, reverse=tokenizer.truncation_side == "left")
        word_ids = [encoded.word_ids(window) for window in windows]
        assigned = assign_words(word_ids, doc_stride, len(text.words))
        for window, words, places in zip(windows, word_ids, assigned):
            scored = [(text.first + word, place) for word, place in places if text.first + word in text.own]
            if scored:  # else all its words are scored in its neighbours, or only seen
                yield Window({name: encoded[name][window] for name in names}, words, scored)


class WordCollator:
    """Pads tokenized rows to a batch of tensors: inputs and `labels` by sub-tokens, the other columns by words.

    Args:
        tokenizer: Says what the model's inputs are padded with.
        column_names: Of the rows.
        max_length: Pad to that many sub-tokens; None pads to the longest row.
        pad_to_multiple_of: Round the padded length up to a multiple of this, for the matrix units of GPUs.
    """

    def __init__(
        self, tokenizer: Any, column_names: Sequence[str], *, max_length: int | None = None, pad_to_multiple_of: int = 1
    ) -> None:
        self.max_length, self.pad_to_multiple_of = max_length, pad_to_multiple_of
        self.pads_on_left = tokenizer.padding_side == "left"
        # As tokenizer.pad does, which takes seven times as long a batch.
        self.pad_values = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "attention_mask": 0,
            "labels": IGNORED_LABEL_ID,
            **WORD_COLUMNS,
        }
        values: dict[str, Any] = {name: [] for name in WORD_COLUMNS}
        values |= {"input_ids": [tokenizer.pad_token_id], "attention_mask": [1], "labels": [IGNORED_LABEL_ID]}
        self.empty_row = {name: values.get(name, [0]) for name in column_names}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # No model takes a row without sub-tokens, which some tokenizers make of words that they have none for.
        padding = {name: value for name, value in self.empty_row.items() if name not in WORD_COLUMNS}
        rows = [row if row["input_ids"] else {name: padding.get(name, row[name]) for name in row} for row in rows]
        length = self.max_length or max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of  # rounded up
        batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name in WORD_COLUMNS:
                batch[name] = pad_rows(values, max(map(len, values)), self.pad_values[name])
            else:
                batch[name] = pad_rows(values, length, self.pad_values[name], on_left=self.pads_on_left)
        if self.pads_on_left and "word_positions" in batch:
            shifts = torch.tensor([length - len(row["input_ids"]) for row in rows])[:, None]
            batch["word_positions"] += shifts * (batch["word_positions"] != NO_POSITION)
        return batch


def pad_rows(rows: Sequence[Sequence[int]], length: int, pad_value: int, *, on_left: bool = False) -> torch.Tensor:
    """Rows of numbers as a tensor, (row, length)."""
    padded = np.full((len(rows), length), pad_value, dtype=np.int64)
    for i, row in enumerate(rows):
        start = length - len(row) if on_left else 0
        padded[i, start : start + len(row)] = row
    return torch.from_numpy(padded)
