"""How long windows are and how they overlap, and windows padded to batches."""

import functools
import random
from typing import Any

import pytest
import torch
import transformers
from determined import pytorch
from hypothesis import example, given
from hypothesis import strategies as st
from model_kinds import every_kind, folder_of, load_tokenizer, prepared_tokenizer

import ner.windows
from ner.windows import NO_POSITION, WORD_COLUMNS, choose_doc_stride, choose_max_seq_length
from transformer_trial.errors import ConfigError

LIMITS = dict.fromkeys(("BERT", "BERT, cased", "DistilBERT", "ELECTRA", "GPT-2"), 40)
LIMITS |= {"RoBERTa": 38, "XLM-R": 38}  # two of their positions are not for sub-tokens; other kinds have no limit


def model_of(kind: str) -> Any:
    return transformers.AutoModel.from_pretrained(folder_of(kind))


def tokenizer_that_takes(model_max_length: float) -> Any:
    tokenizer = load_tokenizer("BERT")
    tokenizer.model_max_length = model_max_length
    return tokenizer


@every_kind
def test_the_length_is_as_long_as_the_model_can_take(kind: str) -> None:
    model, tokenizer, limit = model_of(kind), load_tokenizer(kind), LIMITS.get(kind)
    chosen = choose_max_seq_length(tokenizer, model, None)  # the tokenizer knows no limit
    assert chosen == (limit or 512)
    with torch.no_grad():
        model(input_ids=torch.full((1, chosen), 5))
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, limit + 1), 5))
            with pytest.raises(ConfigError, match=rf"max_seq_length: found {limit + 1}; accepted is at most {limit}, "):
                choose_max_seq_length(tokenizer, model, limit + 1)


def test_a_model_with_more_rows_than_positions_takes_as_many_as_its_config_says() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = transformers.BartConfig(vocab_size=20, max_position_embeddings=40, d_model=8, **sizes)
    assert choose_max_seq_length(tokenizer_that_takes(1e30), transformers.BartModel(config), None) == 40


@pytest.mark.parametrize(
    ("kind", "limit", "requested", "expected"),
    [
        ("BERT", 1e30, 40, 40), ("BERT", 16, 24, 24), ("BERT", 16, None, 16), ("BERT", 128, None, 40),
        ("DeBERTa", 1e30, 1000, 1000), ("DeBERTa", 256, None, 256),  # relative positions have no end
    ],
)  # fmt: skip
def test_the_length_is_as_requested_or_the_limit(kind: str, limit: float, requested: int | None, expected: int) -> None:
    assert choose_max_seq_length(tokenizer_that_takes(limit), model_of(kind), requested) == expected


@pytest.mark.parametrize(
    ("length", "requested", "expected"),
    # By default 128, or half of the content; at most one sub-token less than the content.
    [(512, None, 128), (102, None, 50), (3, None, 0), (512, 0, 0), (10, 7, 7)],
)
def test_windows_share_what_is_asked_for_or_128_subtokens(length: int, requested: int | None, expected: int) -> None:
    tokenizer = prepared_tokenizer("BERT")
    assert choose_doc_stride(tokenizer, length, requested) == expected
    tokenizer(["a"] * 600, is_split_into_words=True, truncation=True, max_length=length, stride=expected)


def test_windows_that_share_all_are_refused() -> None:
    tokenizer = prepared_tokenizer("BERT")
    with pytest.raises(ConfigError, match=r"data\.max_seq_length: 10 leaves 8 .*doc_stride: 8 .*a doc_stride below 8"):
        choose_doc_stride(tokenizer, 10, 8)
    with pytest.raises(ConfigError, match=r"data\.max_seq_length: 2 leaves 0 .*Accepted is at least 3\."):
        choose_doc_stride(tokenizer, 2, None)


@functools.cache
def padding_tokenizer(padding_side: str) -> Any:
    """With a padding of token types as XLNet has it."""
    tokenizer = load_tokenizer("RoBERTa")
    tokenizer.padding_side, tokenizer._pad_token_type_id = padding_side, 3
    return tokenizer


@st.composite
def row_lengths(draw: st.DrawFn) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """Sub-tokens and words of some rows, and options of a collator that they suit."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6))
    options = draw(st.fixed_dictionaries({}, optional={"pad_to_multiple_of": st.integers(1, 16)}))
    if draw(st.booleans()):
        options["max_length"] = max([1, *(num_tokens for num_tokens, _ in lengths)]) + draw(st.integers(0, 9))
    return lengths, options


NO_ROW: dict[str, Any] = {  # attends to its padding
    "input_ids": [1], "attention_mask": [1], "token_type_ids": [0], "labels": [-100],
    "word_ids": [], "word_positions": [], "word_labels": [],
}  # fmt: skip


@pytest.mark.parametrize("padding_side", ["right", "left"])
@given(lengths_and_options=row_lengths(), without=st.sets(st.sampled_from([*NO_ROW][2:])), random=st.randoms())
@example(lengths_and_options=([(0, 2)], {}), without=set(), random=random.Random(0))
def test_rows_are_padded_as_transformers_does(
    padding_side: str, lengths_and_options: tuple[list[tuple[int, int]], dict[str, int]], without: set[str], random: Any
) -> None:
    tokenizer, (lengths, options) = padding_tokenizer(padding_side), lengths_and_options
    columns = [name for name in NO_ROW if name not in without]

    def numbers_of(name: str, num_tokens: int, num_words: int) -> list[int]:
        return [random.randint(-1, 99) for _ in range(num_words if name in WORD_COLUMNS else num_tokens)]

    rows = [{name: numbers_of(name, *of_row) for name in columns} for of_row in lengths]
    batch = ner.windows.WordCollator(tokenizer, columns, **options)(rows)
    assert type(batch) is dict and [*batch] == columns
    assert pytorch.data_length(batch) == len(rows)
    assert all(values.dtype == torch.int64 for values in batch.values())
    inputs = [name for name in columns if name not in WORD_COLUMNS]
    filled = [{name: (row if row["input_ids"] else NO_ROW)[name] for name in inputs} for row in rows]
    collate = transformers.DataCollatorForTokenClassification(
        tokenizer, padding="max_length" if "max_length" in options else True, **options
    )
    assert {name: batch[name].tolist() for name in inputs} == {n: v.tolist() for n, v in collate(filled).items()}
    for name in set(columns) - set(inputs):
        longest, width = max(len(row[name]) for row in rows), batch["input_ids"].shape[1]
        is_moved = name == "word_positions" and padding_side == "left"
        shifts = [is_moved * (width - len(row["input_ids"])) for row in filled]
        assert batch[name].tolist() == [
            [value + shift * (value != NO_POSITION) for value in row[name]]
            + [WORD_COLUMNS[name]] * (longest - len(row[name]))
            for row, shift in zip(rows, shifts)
        ]
