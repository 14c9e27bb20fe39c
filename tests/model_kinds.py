"""Model families that people fine-tune, each with a tiny tokenizer and model in files like those on the hub."""

import functools
import json
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from conftest import SAMPLE_DATA, read_lines
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from ner.windows import prepare_tokenizer

LABELS = ["I-PER", "O", "B-PER", "B-ORG"]  # in no order, and B-ORG without its I-ORG
SENTENCES = read_lines(SAMPLE_DATA / "train.json")[:200]
FOLDERS = tempfile.TemporaryDirectory(prefix="kinds")  # removed when Python ends


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
LLAMA = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}  # without padding
GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
CLS_SEP = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
BYTES = processors.ByteLevel(trim_offsets=False)
BARE, MARKED = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Metaspace()
NO_SPACE = {"add_prefix_space": False}
NMT = normalizers.Precompiled(compile_charsmap({ord("\n"): b" ", ord("\t"): b" ", 7: b""}))  # a bit of sentencepiece's
SPLIT_BEFORE = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(tokenizers.Regex(r"'\w+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
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
    "GPT-2": Kind("gpt2", "GPT2Tokenizer", GPT2, "BPE", BARE, BYTES, None, "Ġ", NO_SPACE),
    "ModernBERT": Kind(
        "modernbert", "PreTrainedTokenizerFast", BERT, "BPE", BARE, CLS_SEP, normalizers.NFC(), "Ġ",
        {"model_input_names": ["input_ids", "attention_mask"]}, {"bos_token_id": 2, "eos_token_id": 3},
    ),
    "Qwen": Kind(
        "qwen2", "Qwen2Tokenizer", {"pad": "<|endoftext|>", "eos": "<|im_end|>"}, "BPE", SPLIT_BEFORE,
        BYTES, normalizers.NFC(), "Ġ", NO_SPACE, {"num_key_value_heads": 2},
    ),
    "Llama 3": Kind(
        "llama", "PreTrainedTokenizerFast", LLAMA, "BPE", SPLIT_BEFORE,
        processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]), None, "Ġ",
        {"model_input_names": ["input_ids", "attention_mask"]},
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
    unknown, names = kind.special_tokens.get("unk", ""), list(dict.fromkeys(kind.special_tokens.values()))
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
    options = {**TINY, **ids, **kind.model_config, "vocab_size": tokenizer.get_vocab_size()}
    config = transformers.AutoConfig.for_model(kind.model_type, **options)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@functools.cache
def folder_of(kind: str) -> Path:
    return save_kind(KINDS[kind], Path(tempfile.mkdtemp(dir=FOLDERS.name)))


def load_tokenizer(kind: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder_of(kind))


@functools.cache
def prepared_tokenizer(kind: str, truncation_side: str = "right") -> Any:
    tokenizer = load_tokenizer(kind)
    tokenizer.truncation_side = truncation_side
    prepare_tokenizer(tokenizer)
    return tokenizer
