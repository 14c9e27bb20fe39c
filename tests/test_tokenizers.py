"""Each kind of model: its tokenizer is made ready for words, it trains, and it tags every word once."""

import functools
import math
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from conftest import SAMPLE_DATA, Config, Fit, read_lines, read_metrics, write_lines
from hypothesis import given
from hypothesis import strategies as st
from model_kinds import KINDS, SENTENCES, SPLIT_BEFORE, TINY, every_kind, folder_of, load_tokenizer, prepared_tokenizer
from tokenizers import models, pre_tokenizers

from ner.windows import NO_POSITION, WordCollator, prepare_tokenizer
from ner_utils import tokenize_and_align_labels
from transformer_trial.builders import build_using_auto
from transformer_trial.config import ModelConfig
from transformer_trial.errors import TrialError


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


text_tokenizer = functools.cache(load_tokenizer)
plain_words = st.text(string.ascii_letters + string.digits + ".,'-&!", min_size=1, max_size=9)


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"eos_token": "</s>", "unk_token": "<unk>"}, "</s>"), ({"unk_token": "<unk>"}, "<unk>"), ({}, "<s>"),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, "<pad>"),
    ],
)  # fmt: skip
def test_a_tokenizer_without_padding_gets_some(names: dict[str, str], expected: str) -> None:
    words = models.WordLevel({word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "<unk>"])}, "<unk>")
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


LONG_WORD = "ab" * 40  # far more sub-tokens than a window has, for each kind
FAST = ("BERT", "RoBERTa", "DeBERTa-v3")


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


@every_kind
def test_a_sentence_without_a_subtoken_may_be_a_batch(kind: str) -> None:
    tokenizer = prepared_tokenizer(kind)
    columns = tokenize_and_align_labels({"tokens": [[""]], "tags": [["O"]]}, 0, tokenizer, ["O"], 16, 4)
    batch = WordCollator(tokenizer, list(columns))([{name: values[0] for name, values in columns.items()}])
    model = transformers.AutoModel.from_pretrained(folder_of(kind))
    output = model(**{name: batch[name] for name in tokenizer.model_input_names})["last_hidden_state"]
    assert output.isfinite().all()
    assert batch["word_positions"].tolist() == [[NO_POSITION]]
