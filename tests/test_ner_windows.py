"""Each kind of model: its tokenizer made ready for words, its windows, their batches; it trains and tags every word."""

import functools
import math
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import SAMPLE_DATA, Config, Fit, read_lines, read_metrics, write_lines
from determined import pytorch
from hypothesis import example, given
from hypothesis import strategies as st
from model_kinds import KINDS, SENTENCES, SPLIT_BEFORE, TINY, every_kind, folder_of, load_tokenizer, prepared_tokenizer
from tokenizers import models, pre_tokenizers

import ner.windows
from ner.windows import NO_POSITION, WORD_COLUMNS, WordCollator, prepare_tokenizer
from transformer_trial.builders import build_using_auto
from transformer_trial.config import ModelConfig
from transformer_trial.errors import ConfigError, TrialError

LIMITS = dict.fromkeys(("BERT", "BERT, cased", "DistilBERT", "ELECTRA", "GPT-2"), 40)
LIMITS |= {"RoBERTa": 38, "XLM-R": 38}  # two of their positions are not for sub-tokens; other kinds have no limit
LONG_WORD = "ab" * 40  # far more sub-tokens than a window has, for each kind
FAST = ("BERT", "RoBERTa", "DeBERTa-v3")
text_tokenizer = functools.cache(load_tokenizer)
plain_words = st.text(string.ascii_letters + string.digits + ".,'-&!", min_size=1, max_size=9)


def model_of(kind: str) -> Any:
    return transformers.AutoModel.from_pretrained(folder_of(kind))


def tokenizer_that_takes(model_max_length: float) -> Any:
    tokenizer = load_tokenizer("BERT")
    tokenizer.model_max_length = model_max_length
    return tokenizer


@every_kind
def test_the_length_is_as_long_as_the_model_can_take(kind: str) -> None:
    model, tokenizer, limit = model_of(kind), load_tokenizer(kind), LIMITS.get(kind)
    chosen = ner.windows.choose_max_seq_length(tokenizer, model, None)  # the tokenizer knows no limit
    assert chosen == (limit or 512)
    with torch.no_grad():
        model(input_ids=torch.full((1, chosen), 5))
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, limit + 1), 5))
            with pytest.raises(ConfigError, match=rf"max_seq_length: found {limit + 1}; accepted is at most {limit}, "):
                ner.windows.choose_max_seq_length(tokenizer, model, limit + 1)


def test_a_model_with_more_rows_than_positions_takes_as_many_as_its_config_says() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = transformers.BartConfig(vocab_size=20, max_position_embeddings=40, d_model=8, **sizes)
    assert ner.windows.choose_max_seq_length(tokenizer_that_takes(1e30), transformers.BartModel(config), None) == 40


@pytest.mark.parametrize(
    ("kind", "limit", "requested", "expected"),  # relative positions, as DeBERTa has them, have no end
    [
        ("BERT", 1e30, 40, 40), ("BERT", 16, 24, 24), ("BERT", 16, None, 16), ("BERT", 128, None, 40),
        ("DeBERTa", 1e30, 1000, 1000), ("DeBERTa", 256, None, 256),
    ],
)  # fmt: skip
def test_the_length_is_as_requested_or_the_limit(kind: str, limit: float, requested: int | None, expected: int) -> None:
    assert ner.windows.choose_max_seq_length(tokenizer_that_takes(limit), model_of(kind), requested) == expected


@pytest.mark.parametrize(
    ("length", "requested", "expected"),
    # By default 128, or half of the content; at most one sub-token less than the content.
    [(512, None, 128), (102, None, 50), (3, None, 0), (512, 0, 0), (10, 7, 7)],
)
def test_windows_share_what_is_asked_for_or_128_subtokens(length: int, requested: int | None, expected: int) -> None:
    tokenizer = prepared_tokenizer("BERT")
    assert ner.windows.choose_doc_stride(tokenizer, length, requested) == expected
    tokenizer(["a"] * 600, is_split_into_words=True, truncation=True, max_length=length, stride=expected)


def test_windows_that_share_all_are_refused() -> None:
    tokenizer = prepared_tokenizer("BERT")
    with pytest.raises(ConfigError, match=r"data\.max_seq_length: 10 leaves 8 .*doc_stride: 8 .*a doc_stride below 8"):
        ner.windows.choose_doc_stride(tokenizer, 10, 8)
    with pytest.raises(ConfigError, match=r"data\.max_seq_length: 2 leaves 0 .*Accepted is at least 3\."):
        ner.windows.choose_doc_stride(tokenizer, 2, None)


@functools.cache
def padding_tokenizer(padding_side: str) -> Any:
    """With a padding of token types as XLNet has it."""
    tokenizer = load_tokenizer("RoBERTa")
    tokenizer.padding_side, tokenizer._pad_token_type_id = padding_side, 3
    return tokenizer


NO_ROW: dict[str, Any] = {  # attends to its padding
    "input_ids": [1], "attention_mask": [1], "token_type_ids": [0], "labels": [-100],
    "word_ids": [], "word_positions": [], "word_labels": [],
}  # fmt: skip


@pytest.mark.parametrize("padding_side", ["right", "left"])
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6),
    room=st.none() | st.integers(0, 9), multiple=st.integers(1, 16),
    without=st.sets(st.sampled_from([*NO_ROW][2:])), random=st.randoms(),
)  # fmt: skip
@example(lengths=[(0, 2)], room=None, multiple=1, without=set(), random=random.Random(0))
def test_rows_are_padded_as_transformers_does(
    padding_side: str, lengths: list[tuple[int, int]], room: int | None, multiple: int, without: set[str], random: Any
) -> None:
    """The rows have so many sub-tokens and words."""
    tokenizer, options = padding_tokenizer(padding_side), {"pad_to_multiple_of": multiple}
    if room is not None:
        options["max_length"] = max([1, *(num_tokens for num_tokens, _ in lengths)]) + room
    columns = [name for name in NO_ROW if name not in without]

    def numbers_of(name: str, num_tokens: int, num_words: int) -> list[int]:
        return [random.randint(-1, 99) for _ in range(num_words if name in WORD_COLUMNS else num_tokens)]

    rows = [{name: numbers_of(name, *of_row) for name in columns} for of_row in lengths]
    batch = WordCollator(tokenizer, columns, **options)(rows)
    assert type(batch) is dict and [*batch] == columns
    assert pytorch.data_length(batch) == len(rows)
    assert all(values.dtype == torch.int64 for values in batch.values())
    inputs = [name for name in columns if name not in WORD_COLUMNS]
    filled = [{name: (row if row["input_ids"] else NO_ROW)[name] for name in inputs} for row in rows]
    padding: Any = "max_length" if "max_length" in options else True
    collate = transformers.DataCollatorForTokenClassification(tokenizer, padding=padding, **options)
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


@functools.cache
def word_tokenizers(kind: str) -> list[Any]:
    """The tokenizer as prepared, as prepared twice, and as predict.py and a user load it from an export."""
    twice = load_tokenizer(kind)
    for _ in range(2):
        prepare_tokenizer(twice)
    twice.save_pretrained(folder_of(kind) / "exported")
    tagging, exported = (transformers.AutoTokenizer.from_pretrained(folder_of(kind) / "exported") for _ in range(2))
    prepare_tokenizer(tagging)
    # transformers 5 makes Qwen's splitter anew: such an export has to be prepared.
    return [prepared_tokenizer(kind), twice, tagging, *[exported] * (KINDS[kind].splitter != SPLIT_BEFORE)]


@every_kind
@given(words=st.lists(plain_words | st.sampled_from(SENTENCES[0]["tokens"]), min_size=1, max_size=9))
def test_words_have_the_subtokens_that_they_have_in_a_text(kind: str, words: list[str]) -> None:
    text_ids = text_tokenizer(kind)(" " + " ".join(words))["input_ids"]
    for tokenizer in word_tokenizers(kind):
        encoded = tokenizer(words, is_split_into_words=True)
        assert encoded["input_ids"] == text_ids
        firsts = [encoded.tokens()[encoded.word_ids().index(word)] for word in range(len(words))]
        assert all(token.startswith(KINDS[kind].mark) for token in firsts)


def test_marked_spaces_are_put_before_words_too() -> None:
    tokenizer, words = load_tokenizer("XLM-R"), SENTENCES[0]["tokens"]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    text_ids = tokenizer(" " + " ".join(words))["input_ids"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] != text_ids
    prepare_tokenizer(tokenizer)
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == text_ids


@pytest.mark.parametrize("kind", ["BERT", "XLM-R"])
def test_other_tokenizers_are_left_as_they_are(kind: str) -> None:
    assert prepared_tokenizer(kind).backend_tokenizer.to_str() == load_tokenizer(kind).backend_tokenizer.to_str()


@pytest.mark.parametrize(("given", "expected"), [("eos unk", "eos"), ("unk", "unk"), ("", "bos"), ("eos pad", "pad")])
def test_a_tokenizer_without_padding_gets_some(given: str, expected: str) -> None:
    words = models.WordLevel({word: i for i, word in enumerate(["bos", "eos", "pad", "unk"])}, "unk")
    names = {f"{name}_token": name for name in given.split()}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), **names)
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad([{"input_ids": [5]}, {"input_ids": [5, 6]}])["input_ids"][0] == [5, tokenizer.pad_token_id]


def test_a_model_whose_tokenizer_is_slow_is_refused_by_its_name(tmp_path: Path) -> None:
    transformers.CanineModel(transformers.CanineConfig(**TINY, num_hash_buckets=16)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    model_config = ModelConfig(pretrained_model_name_or_path=str(tmp_path), model_mode="token-classification")
    with pytest.raises(TrialError, match=r"CanineTokenizer is a slow tokenizer.*use_fast: true"):
        prepare_tokenizer(build_using_auto(model_config)[1])


@pytest.mark.parametrize("kind", [*FAST, *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in FAST)])
def test_each_kind_trains_and_tags_every_word_once(kind: str, config: Config, fit: Fit, tmp_path: Path) -> None:
    odd = {"tokens": ["Ada", LONG_WORD, "\x07", "", "東京"], "ner_tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]}
    for split in ("train", "validation"):
        rows = [odd, *read_lines(SAMPLE_DATA / f"{split}.json")]
        config["data"][f"{split}_file"] = write_lines(rows, tmp_path / f"{split}.json")
    config["data"] |= {"max_train_samples": 6, "max_eval_samples": 6, "max_seq_length": 16, "doc_stride": 4}
    config["hyperparameters"] |= {"pretrained_model_name_or_path": str(folder_of(kind)), "global_batch_size": 4}
    config["searcher"]["max_length"]["batches"] = 2
    trial = fit(config)
    sentences = rows[:6]
    assert len(trial.tokenizer.tokenize(LONG_WORD)) > 32
    assert trial.tokenized_datasets["validation"].num_rows > len(sentences)
    words = np.concatenate([batch["words"] for batch in trial.evaluation.batches], axis=1)
    numbers, predicted, gold = words[:, words[0].argsort()].tolist()
    assert numbers == list(range(len(gold)))
    assert [trial.label_list[label] for label in gold] == [tag for row in sentences for tag in row["ner_tags"]]
    assert predicted[1] != NO_POSITION and predicted[3] == NO_POSITION  # LONG_WORD, and the empty one
    for group in ("training", "validation"):
        values = [value for line in read_metrics(trial.output_dir, group) for value in line.values()]
        numbers = [value for value in values if isinstance(value, float)]
        assert numbers and all(map(math.isfinite, numbers))
