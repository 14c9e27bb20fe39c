"""Model families that people fine-tune, each with a tiny tokenizer and model in files like those on the hub."""

import functools
import json
import math
import string
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import SAMPLE_DATA, read_metrics
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from ner.windows import IGNORED_LABEL_ID, NO_POSITION, WordCollator, prepare_tokenizer
from ner_utils import tokenize_and_align_labels
from transformer_trial.builders import build_using_auto
from transformer_trial.config import ModelConfig
from transformer_trial.errors import TrialError

LABELS = ["I-PER", "O", "B-PER", "B-ORG"]  # in no order, and B-ORG without its I-ORG
SENTENCES = [json.loads(line) for line in (SAMPLE_DATA / "train.json").read_text(encoding="utf-8").splitlines()[:200]]

# --------------------------------------------------------------------------------------------------------------- kinds


@dataclass(frozen=True)
class Kind:
    """What the files of a family of models say."""

    model_type: str
    tokenizer_class: str
    special_tokens: dict[str, str]
    """By role, in the order of their ids."""
    algorithm: str
    splitter: Any
    post_processor: Any
    normalizer: Any = None
    mark: str = ""
    """How a sub-token shows the space before it."""
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)


def compile_charsmap(replacements: dict[int, bytes]) -> bytes:
    """Replacements of ASCII characters in the form that sentencepiece compiles them to: a trie, then all the texts.

    The trie's units are the root, from 256 on its children, and from 512 on their leaves. Each holds the byte that it
    stands for, from bit 8 whether a leaf follows, and from bit 10 the way there; leaves hold where their text begins.
    """
    units, texts = [256 << 10] + [0] * 1023, b""
    for leaf, (byte, text) in enumerate(replacements.items(), start=512):
        units[256 + byte] = byte | 1 << 8 | (256 + byte ^ leaf) << 10
        units[leaf] = 1 << 31 | len(texts)
        texts += text + b"\0"
    return struct.pack("<1025I", 4096, *units) + texts


# transformers 5 takes less from tokenizer.json than 4 does, mostly the vocabulary: its classes make the other parts.
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
CLS_SEP = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
BARE, MARKED = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Metaspace()
NO_SPACE = {"add_prefix_space": False}
NMT = normalizers.Precompiled(compile_charsmap({ord("\n"): b" ", ord("\t"): b" ", 7: b""}))  # a bit of sentencepiece's
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}


def wordpiece(model_type: str, tokenizer_class: str, *, lower_case: bool = True, **model_config: Any) -> Kind:
    return Kind(
        model_type, tokenizer_class, BERT, "WordPiece", pre_tokenizers.BertPreTokenizer(), CLS_SEP,
        normalizers.BertNormalizer(lowercase=lower_case), "", {"do_lower_case": lower_case}, model_config,
    )  # fmt: skip


KINDS = {
    "BERT": wordpiece("bert", "BertTokenizer"),
    "BERT, cased": wordpiece("bert", "BertTokenizer", lower_case=False),
    "DistilBERT": wordpiece("distilbert", "DistilBertTokenizer", hidden_dim=16),
    "ELECTRA": wordpiece("electra", "ElectraTokenizer", embedding_size=8),
    "RoBERTa": Kind(
        "roberta", "RobertaTokenizer", ROBERTA, "BPE", BARE,
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False), None, "Ġ", NO_SPACE,
    ),
    "GPT-2": Kind(
        "gpt2", "GPT2Tokenizer", GPT2, "BPE", BARE, processors.ByteLevel(trim_offsets=False), None, "Ġ", NO_SPACE
    ),
    "ModernBERT": Kind(
        "modernbert", "PreTrainedTokenizerFast", BERT, "BPE", BARE, CLS_SEP, normalizers.NFC(), "Ġ",
        {"model_input_names": ["input_ids", "attention_mask"]}, {"bos_token_id": 2, "eos_token_id": 3},
    ),
    "DeBERTa": Kind("deberta", "DebertaTokenizer", BERT, "BPE", BARE, CLS_SEP, None, "Ġ", NO_SPACE, RELATIVE),
    "DeBERTa-v3": Kind(
        "deberta-v2", "DebertaV2Tokenizer", BERT, "Unigram", pre_tokenizers.Sequence([MARKED]), CLS_SEP,
        normalizers.Sequence([normalizers.Strip(), NMT, normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]), "▁",
        {"do_lower_case": False}, RELATIVE | {"position_buckets": 8, "share_att_key": True, "type_vocab_size": 0},
    ),
    "XLM-R": Kind(
        "xlm-roberta", "XLMRobertaTokenizer", ROBERTA, "Unigram",
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), MARKED]),
        processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]), NMT, "▁",
    ),
}  # fmt: skip
TINY = {
    "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16,
    "max_position_embeddings": 40,
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def save_kind(kind: Kind, folder: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json, config.json and weights."""
    unknown, names = kind.special_tokens["unk"], list(dict.fromkeys(kind.special_tokens.values()))
    options: dict[str, Any] = {"vocab_size": 320, "special_tokens": names, "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model, trainer = {
        "WordPiece": (models.WordPiece(unk_token=unknown), trainers.WordPieceTrainer(**options)),
        "BPE": (models.BPE(), trainers.BpeTrainer(initial_alphabet=alphabet, **options)),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer(unk_token=unknown, **options)),
    }[kind.algorithm]
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.post_processor = kind.splitter, kind.post_processor
    if kind.normalizer is not None:
        tokenizer.normalizer = kind.normalizer
    tokenizer.train_from_iterator((" ".join(row["tokens"]) for row in SENTENCES), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))

    roles = {f"{role}_token": token for role, token in kind.special_tokens.items()}
    tokenizer_config = {"tokenizer_class": kind.tokenizer_class, **roles, **kind.tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    ids = {f"{role}_id": names.index(token) for role, token in roles.items()}
    config = transformers.AutoConfig.for_model(
        kind.model_type, **TINY, **ids, **kind.model_config, vocab_size=tokenizer.get_vocab_size()
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda kind: save_kind(KINDS[kind], tmp_path_factory.mktemp("kind")))


load_tokenizer = functools.cache(transformers.AutoTokenizer.from_pretrained)


@functools.cache
def load_prepared(folder: Path) -> Any:
    """The tokenizer as NERTrial has it, and in `exported` as it saves it."""
    model_config = ModelConfig(pretrained_model_name_or_path=str(folder), model_mode="token-classification")
    _, tokenizer, _ = build_using_auto(model_config, LABELS)
    prepare_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder / "exported")
    return tokenizer


# ----------------------------------------------------------------------------------------------------------- alignment

special_texts = sorted({token for kind in KINDS.values() for token in kind.special_tokens.values()})
odd_words = [*" \n\x00\x07\x85\ufe0f\u200b▁", "", "👩‍👩‍👧", "e\u0301", "東京", "x" * 130, "two words", *special_texts]
any_word = st.sampled_from(odd_words) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@every_kind
@given(
    sentence=st.lists(st.tuples(any_word, st.sampled_from(LABELS)), min_size=1, max_size=25),
    content=st.integers(1, 20),
    stride=st.integers(0, 19),
    label_all_tokens=st.booleans(),
)
def test_gold_tags_come_back_from_windows_as_the_whole_sentence_has_them(
    kind: str, folder_of: Callable[[str], Path], sentence: list[tuple[str, str]], content: int, stride: int,
    label_all_tokens: bool,
) -> None:  # fmt: skip
    tokenizer, (words, tags), stride = load_prepared(folder_of(kind)), map(list, zip(*sentence)), stride % content
    num_special = 0 if kind == "GPT-2" else 2
    length, ends = content + num_special, num_special // 2
    batch = {"tokens": [words], "tags": [tags]}
    columns = tokenize_and_align_labels(
        batch, [3], tokenizer, LABELS, length, stride, label_all_tokens=label_all_tokens
    )
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]

    # The oracle: the sentence without windows, between its special tokens, and slices of that.
    whole = tokenizer(words, is_split_into_words=True)
    end = len(whole["input_ids"]) - ends
    ids, word_ids = whole["input_ids"][ends:end], whole.word_ids()[ends:end]
    first = {word: word_ids.index(word) for word in set(word_ids)}
    starts = range(0, max(len(ids) - stride, 1), content - stride)
    windows = [whole["input_ids"][:ends] + ids[s : s + content] + whole["input_ids"][end:] for s in starts]
    options = {"is_split_into_words": True, "truncation": True, "return_overflowing_tokens": True}
    assert tokenizer(words, max_length=length, stride=stride, **options)["input_ids"] == windows

    gold = [LABELS.index(tag) for tag in tags]
    assert [pair for row in rows for pair in zip(row["word_ids"], row["word_labels"])] == list(enumerate(gold))
    places = [(row["labels"], *place) for row in rows for place in zip(row["word_ids"], row["word_positions"])]
    found = [(word, labels[position]) for labels, word, position in places if position != NO_POSITION]
    assert found == [(word, gold[word]) for word in sorted(first)]
    further = [LABELS.index(tag.replace("B-PER", "I-PER")) if label_all_tokens else IGNORED_LABEL_ID for tag in tags]
    label_ids = [gold[word] if place == first[word] else further[word] for place, word in enumerate(word_ids)]
    for row in rows:
        scored, around = row["word_ids"], [IGNORED_LABEL_ID] * ends
        labels = [label if word in scored else IGNORED_LABEL_ID for word, label in zip(word_ids, label_ids)]
        alike = [s for s, window in zip(starts, windows) if window == row["input_ids"]]
        assert scored and any(
            row["word_positions"] == [ends + first[word] - s if word in first else NO_POSITION for word in scored]
            and row["labels"] == around + labels[s : s + content] + around
            for s in alike
        )


plain_words = st.text(string.ascii_letters + string.digits + ".,'-&!", min_size=1, max_size=9)


@every_kind
@given(words=st.lists(plain_words | st.sampled_from(SENTENCES[0]["tokens"]), min_size=1, max_size=9))
def test_words_have_the_subtokens_that_they_have_in_a_text(
    kind: str, folder_of: Callable[[str], Path], words: list[str]
) -> None:
    text_ids = load_tokenizer(folder_of(kind))(" " + " ".join(words))["input_ids"]
    for tokenizer in (load_prepared(folder_of(kind)), load_tokenizer(folder_of(kind) / "exported")):
        encoded = tokenizer(words, is_split_into_words=True)
        assert encoded["input_ids"] == text_ids
        firsts = [encoded.tokens()[encoded.word_ids().index(word)] for word in range(len(words))]
        assert all(token.startswith(KINDS[kind].mark) for token in firsts)


# ------------------------------------------------------------------------------------------------------------ training

LONG_WORD = "ab" * 40  # far more sub-tokens than a window has, for each kind


FAST_KINDS = ("BERT", "RoBERTa", "DeBERTa-v3")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FAST_KINDS else pytest.mark.slow) for kind in KINDS]
)
def test_each_kind_trains_and_tags_every_word_once(
    kind: str, folder_of: Callable[[str], Path], config: dict[str, Any], fit: Callable[..., Any], tmp_path: Path
) -> None:
    odd = {"tokens": ["Ada", LONG_WORD, "\x07", "", "東京"], "ner_tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]}
    for split in ("train", "validation"):
        lines = (SAMPLE_DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()
        (tmp_path / f"{split}.json").write_text("\n".join([json.dumps(odd), *lines]), encoding="utf-8")
        config["data"][f"{split}_file"] = str(tmp_path / f"{split}.json")
    config["data"] |= {"max_train_samples": 6, "max_eval_samples": 6, "max_seq_length": 16, "doc_stride": 4}
    config["hyperparameters"] |= {"pretrained_model_name_or_path": str(folder_of(kind)), "global_batch_size": 4}
    config["searcher"]["max_length"]["batches"] = 2
    trial = fit(config)

    sentences = [odd, *map(json.loads, lines[:5])]
    assert len(trial.tokenizer.tokenize(LONG_WORD)) > 32
    assert trial.tokenized_datasets["validation"].num_rows > len(sentences)
    found = {(i, word): ids for i, word, *ids in np.concatenate(trial.reducer.words, axis=1).T.tolist()}
    gold = {(i, word): tag for i, row in enumerate(sentences) for word, tag in enumerate(row["ner_tags"])}
    assert {place: trial.label_list[label] for place, (_, label) in found.items()} == gold
    assert sum(len(part[0]) for part in trial.reducer.words) == len(gold)
    assert NO_POSITION not in found[0, 1] and found[0, 3][0] == NO_POSITION  # LONG_WORD, and the empty one
    for group in ("training", "validation"):
        values = [value for line in read_metrics(trial.output_dir, group) for value in line.values()]
        numbers = [value for value in values if isinstance(value, float)]
        assert numbers and all(map(math.isfinite, numbers))


@every_kind
def test_a_sentence_without_a_subtoken_may_be_a_batch(kind: str, folder_of: Callable[[str], Path]) -> None:
    tokenizer = load_prepared(folder_of(kind))
    columns = tokenize_and_align_labels({"tokens": [[""]], "tags": [["O"]]}, [0], tokenizer, LABELS, 16, 4)
    batch = WordCollator(tokenizer, list(columns))([{name: values[0] for name, values in columns.items()}])
    model = transformers.AutoModel.from_pretrained(folder_of(kind))
    output = model(**{name: batch[name] for name in tokenizer.model_input_names})["last_hidden_state"]
    assert output.isfinite().all()
    assert batch["word_positions"].tolist() == [[NO_POSITION]]


# ------------------------------------------------------------------------------------------------------------- refusal


def test_a_model_whose_tokenizer_is_slow_is_refused_by_its_name(tmp_path: Path) -> None:
    config = transformers.CanineConfig(**TINY, num_hash_buckets=16)
    transformers.CanineModel(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(TrialError, match=r"CanineTokenizer is a slow tokenizer.*use_fast: true"):
        load_prepared(tmp_path)
