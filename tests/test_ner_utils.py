"""Labels, alignment of words and sub-tokens, collation and metrics, with real tokenizers of three kinds."""

import functools
import itertools
import json
import subprocess
import sys
import tracemalloc
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import SAMPLE_DATA, SAMPLE_MODEL
from determined import pytorch
from hypothesis import given
from hypothesis import strategies as st
from run_ner_reference import tokenize as run_ner_tokenize
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import ner.windows
import ner_utils
from ner.report import ErrorReport, metric_directions
from ner.windows import (
    IGNORED_LABEL_ID,
    NO_POSITION,
    WORD_COLUMNS,
    WordCollator,
    assign_words,
    choose_doc_stride,
    choose_max_seq_length,
    prepare_tokenizer,
)
from ner_utils import (
    build_tokenized_datasets,
    compute_metrics,
    continuation_ids,
    get_dataset_metadata,
    iterate_sentences,
    predict_words,
    tokenize_and_align_labels,
)

LABELS = ["I-PER", "O", "B-PER", "B-ORG"]  # in no order, and B-ORG without its I-ORG
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<unk>"]


# ---------------------------------------------------------------------------------------------------------- tokenizers


@functools.cache
def sample_sentences() -> list[list[str]]:
    lines = (SAMPLE_DATA / "train.json").read_text(encoding="utf-8").splitlines()[:200]
    return [json.loads(line)["tokens"] for line in lines]


SPLITTERS = {
    "bare": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "in a sequence": pre_tokenizers.Sequence(  # as in Llama 3 and Qwen
        [
            pre_tokenizers.Split(tokenizers.Regex(r"'\w+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def train_byte_level(splitter: str) -> tokenizers.Tokenizer:
    """BPE over bytes, as of GPT-2, RoBERTa and most later models: a word after a space has other sub-tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITTERS[splitter]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((" ".join(words) for words in sample_sentences()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def train_unigram() -> tokenizers.Tokenizer:
    """Unigram with marked spaces, as of T5 and XLM-R: an empty word has no sub-token, some have only an unknown one."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL_TOKENS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator((" ".join(words) for words in sample_sentences()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def wrap(tokenizer: tokenizers.Tokenizer) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "WordPiece": lambda: transformers.AutoTokenizer.from_pretrained(SAMPLE_MODEL),
    "byte-level BPE": lambda: wrap(train_byte_level("bare")),
    "byte-level BPE in a sequence": lambda: wrap(train_byte_level("in a sequence")),
    "Unigram": lambda: wrap(train_unigram()),
}

every_tokenizer = pytest.mark.parametrize("kind", list(BUILDERS))


@functools.cache
def tokenizer_of(kind: str, truncation_side: str = "right") -> Any:
    tokenizer = BUILDERS[kind]()
    tokenizer.truncation_side = truncation_side
    prepare_tokenizer(tokenizer)
    return tokenizer


# --------------------------------------------------------------------------------------------------- alignment of words

odd_words = st.sampled_from(
    ["", " ", "\n", "\x00", "\x07", "\x85", "\ufe0f", "\u200b", "\u2028", "👩‍👩‍👧", "é", "e\u0301", "東京",
     "x" * 130, "ab" * 9, "[SEP]", "[CLS]", "[UNK]", "</s>", "<pad>", "don't", "▁", "Ġ", " lead", "two words"]
)  # fmt: skip
any_word = odd_words | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@functools.cache
def known_words() -> list[str]:
    return sorted({word for words in sample_sentences() for word in words})


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    words = draw(st.lists(any_word | st.sampled_from(known_words()), min_size=1, max_size=25))
    tags = draw(st.lists(st.sampled_from(LABELS), min_size=len(words), max_size=len(words)))
    return words, tags


window_sizes = {
    "sentence": sentences(),
    "content": st.integers(1, 20),  # sub-tokens of a window beside the special ones
    "stride": st.integers(0, 19),
    "label_all_tokens": st.booleans(),
    "truncation_side": st.sampled_from(["right", "left"]),
}


def align(tokenizer: Any, words: list[str], tags: list[str], content: int, stride: int, **options: Any) -> list[Any]:
    """The rows that `tokenize_and_align_labels` makes of one sentence."""
    max_seq_length = content + tokenizer.num_special_tokens_to_add()
    rows = {"tokens": [words], "tags": [tags]}
    columns = tokenize_and_align_labels(rows, [7], tokenizer, LABELS, max_seq_length, stride, **options)
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def whole(tokenizer: Any, words: list[str]) -> tuple[list[int], list[int | None]]:
    """All sub-tokens of a sentence and their words, cut nowhere."""
    encoded = tokenizer(words, is_split_into_words=True, truncation=False)
    return encoded["input_ids"], encoded.word_ids()


@every_tokenizer
@given(**window_sizes)
def test_every_word_is_scored_once_at_its_first_subtoken(
    kind: str, sentence: tuple[list[str], list[str]], content: int, stride: int, truncation_side: str, **options: bool
) -> None:
    tokenizer, (words, tags) = tokenizer_of(kind, truncation_side), sentence
    rows = align(tokenizer, words, tags, content, stride % content, **options)

    assert all(len(row["word_ids"]) == len(row["word_positions"]) == len(row["word_labels"]) for row in rows)
    assert [word for row in rows for word in row["word_ids"]] == list(range(len(words)))
    assert [LABELS[label] for row in rows for label in row["word_labels"]] == tags
    ids, word_ids = whole(tokenizer, words)
    first_pieces = {word: ids[word_ids.index(word)] for word in set(word_ids) if word is not None}
    for row in rows:
        assert row["sentence_id"] == 7
        assert len(row["input_ids"]) == len(row["labels"]) <= content + tokenizer.num_special_tokens_to_add()
        for word, position, label in zip(row["word_ids"], row["word_positions"], row["word_labels"]):
            assert (position == NO_POSITION) == (word not in first_pieces)
            if position != NO_POSITION:
                assert row["input_ids"][position] == first_pieces[word]
                assert row["labels"][position] == label
        labelled = {p for p, label in enumerate(row["labels"]) if label != IGNORED_LABEL_ID}
        assert set(row["word_positions"]) - {NO_POSITION} <= labelled
        if not options["label_all_tokens"]:
            assert set(row["word_positions"]) - {NO_POSITION} == labelled


def cut(ids: list[int], size: int, stride: int, truncation_side: str) -> list[tuple[int, int]]:
    """Where the windows of a text begin and end, in its order."""
    step, total = size - stride, len(ids)
    starts = [i * step for i in range(total) if i == 0 or (i - 1) * step + size < total] or [0]
    windows = [(start, min(start + size, total)) for start in starts]
    return windows if truncation_side == "right" else [(total - end, total - start) for start, end in windows[::-1]]


@every_tokenizer
@given(**window_sizes)
def test_windows_and_their_words_are_those_found_by_trying_all(
    kind: str, sentence: tuple[list[str], list[str]], content: int, stride: int, truncation_side: str, **options: bool
) -> None:
    tokenizer, (words, tags) = tokenizer_of(kind, truncation_side), sentence
    stride %= content
    ids, word_ids = whole(tokenizer, words)
    inner = [i for i, word in enumerate(word_ids) if word is not None]
    begin, end = (inner[0], inner[-1] + 1) if inner else (len(ids) - 1, len(ids) - 1)
    windows = cut(ids[begin:end], content, stride, truncation_side)
    places = {word: word_ids.index(word) - begin for word in range(len(words)) if word in word_ids}

    chosen: dict[int, int] = {}
    window = 0
    for word in range(len(words)):
        if word in places:
            place = places[word]
            context = {w: min(place - a, b - 1 - place) for w, (a, b) in enumerate(windows) if a <= place < b}
            window = max(context, key=lambda w: (context[w], -w))
        chosen[word] = window
    label_ids = [LABELS.index(tag) for tag in tags]
    further_ids = [{"B-PER": LABELS.index("I-PER")}.get(tag, LABELS.index(tag)) for tag in tags]
    expected = []
    for window, (a, b) in enumerate(windows):
        scored = [word for word in chosen if chosen[word] == window]
        labels = [IGNORED_LABEL_ID] * len(ids)
        for i in range(begin + a, begin + b):
            of_word = word_ids[i]
            if of_word is not None and of_word in scored:
                if i == begin + places[of_word]:
                    labels[i] = label_ids[of_word]
                elif options["label_all_tokens"]:
                    labels[i] = further_ids[of_word]
        if scored:
            expected.append(
                {
                    "input_ids": ids[:begin] + ids[begin + a : begin + b] + ids[end:],
                    "labels": labels[:begin] + labels[begin + a : begin + b] + labels[end:],
                    "word_ids": scored,
                    "word_positions": [begin + places[w] - a if w in places else NO_POSITION for w in scored],
                    "word_labels": [label_ids[w] for w in scored],
                }
            )
    rows = align(tokenizer, words, tags, content, stride, **options)
    assert [{name: row[name] for name in row if name in expected[0]} for row in rows] == expected


@every_tokenizer
@pytest.mark.parametrize("truncation_side", ["right", "left"])
def test_windows_cover_all_subtokens_and_share_as_many_as_the_stride(kind: str, truncation_side: str) -> None:
    tokenizer = tokenizer_of(kind, truncation_side)
    words = ["\u200b", "x" * 50, *itertools.chain(*sample_sentences()[:6])]
    ids, word_ids = whole(tokenizer, words)
    content_ids = [i for i, word in zip(ids, word_ids) if word is not None]
    for size, stride in itertools.product((7, 16), (0, 1, 6)):
        encoded = tokenizer(
            words, is_split_into_words=True, truncation=True, stride=stride, return_overflowing_tokens=True,
            max_length=size + tokenizer.num_special_tokens_to_add(),
        )  # fmt: skip
        windows = [
            [i for i, word in zip(ids, encoded.word_ids(w)) if word is not None]
            for w, ids in enumerate(encoded["input_ids"])
        ]
        if truncation_side == "left":
            windows.reverse()
        assert len(windows) > 3
        assert windows[0] + [i for window in windows[1:] for i in window[stride:]] == content_ids or (
            truncation_side == "left"
            and [i for window in windows[:-1] for i in window[: len(window) - stride]] + windows[-1] == content_ids
        )


@pytest.mark.parametrize("truncation_side", ["right", "left"])
def test_words_keep_their_labels_in_windows_cut_from_either_side(truncation_side: str) -> None:
    tokenizer = tokenizer_of("WordPiece", truncation_side)
    words = ["a", "b", "c", "d", "e", "f", "g"]
    tags = ["O", "B-PER", "I-PER", "O", "B-ORG", "O", "O"]
    rows = align(tokenizer, words, tags, content=4, stride=2)
    found = [(tokenizer.decode(row["input_ids"], skip_special_tokens=True), row["word_ids"]) for row in rows]
    assert (
        found
        == {
            "right": [("a b c d", [0, 1, 2]), ("c d e f", [3, 4]), ("e f g", [5, 6])],
            "left": [("a b c", [0, 1]), ("b c d e", [2, 3]), ("d e f g", [4, 5, 6])],
        }[truncation_side]
    )


@every_tokenizer
@given(sentence=sentences())
def test_without_windows_inputs_and_labels_are_those_of_run_ner(
    kind: str, sentence: tuple[list[str], list[str]]
) -> None:
    tokenizer, (words, tags) = tokenizer_of(kind), sentence
    (row,) = align(tokenizer, words, tags, content=5000, stride=0)
    label_ids = {label: i for i, label in enumerate(LABELS)}
    expected = run_ner_tokenize(tokenizer, label_ids, {"tokens": [words], "ner_tags": [tags]})
    for name in ("input_ids", "attention_mask", "labels"):
        assert row[name] == expected[name][0]


def test_words_without_windows_around_them_go_with_the_word_before() -> None:
    windows = [[None, 1, 1, None], [None, 2, 4, None]]
    assert assign_words(windows, 0, 6) == [[(0, -1), (1, 1)], [(2, 1), (3, -1), (4, 2), (5, -1)]]


def test_a_sentence_of_no_subtoken_is_one_row() -> None:
    (row,) = align(tokenizer_of("WordPiece"), ["\u200b", "\x07"], ["B-PER", "O"], content=4, stride=1)
    assert row["word_positions"] == [NO_POSITION, NO_POSITION]
    assert set(row["labels"]) == {IGNORED_LABEL_ID}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(["O", "B-X", "I-X"], ["O", "I-X", "I-X"], id="I exists"),
        pytest.param(["O", "B-X", "I-Y", "B-Y"], ["O", "B-X", "I-Y", "I-Y"], id="I of another type"),
        pytest.param(["O", "S-X", "E-X", "X", "B", "B-"], ["O", "S-X", "E-X", "X", "B", "B-"], id="no B"),
        pytest.param(["S-X", "I-X", "B-X", "E-X"], ["S-X", "I-X", "I-X", "E-X"], id="other prefixes"),
        pytest.param(["B-a-b", "I-a-b"], ["I-a-b", "I-a-b"], id="a type with a hyphen"),
    ],
)
def test_further_pieces_of_a_word_continue_its_entity(labels: list[str], expected: list[str]) -> None:
    assert [labels[i] for i in continuation_ids(labels)] == expected


# ------------------------------------------------------------------------------------------- preparation of tokenizers


def save_byte_level(folder: Path, tokenizer_class: str, splitter: str) -> Path:
    """A folder as hubs have them."""
    folder.mkdir(exist_ok=True)
    train_byte_level(splitter).save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config: dict[str, Any] = {"tokenizer_class": tokenizer_class, **names}
    if tokenizer_class != "PreTrainedTokenizerFast":  # of these, not all say
        config["add_prefix_space"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("tokenizer_class", "splitter"),
    [
        pytest.param("PreTrainedTokenizerFast", "bare", id="like ModernBERT"),
        pytest.param("PreTrainedTokenizerFast", "in a sequence", id="like Llama 3"),
        pytest.param("RobertaTokenizerFast", "bare", id="RoBERTa"),
        pytest.param("GPT2TokenizerFast", "bare", id="GPT-2"),
        pytest.param("Qwen2TokenizerFast", "in a sequence", id="Qwen"),
    ],
)
def test_byte_level_words_have_the_subtokens_that_they_have_in_a_text(
    tokenizer_class: str, splitter: str, tmp_path: Path
) -> None:
    words = ["Judge", "Victoria", "teaches", "at", "Carorard", "don't", "x1y22", "."]
    folder = save_byte_level(tmp_path / "model", tokenizer_class, splitter)
    text_ids = transformers.AutoTokenizer.from_pretrained(folder)(" " + " ".join(words))["input_ids"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    unprepared = [tokenizer.tokenize(word) for word in words]
    for _ in range(2):  # once more on what was saved
        for _ in range(2):  # and twice is as good as once
            prepare_tokenizer(tokenizer)
            assert tokenizer(words, is_split_into_words=True)["input_ids"] == text_ids
        tokenizer.save_pretrained(tmp_path / "exported")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    if splitter == "bare":  # whoever loads such an export need not know of it
        assert tokenizer(words, is_split_into_words=True)["input_ids"] == text_ids
    assert unprepared != [tokenizer.tokenize(f" {word}") for word in words]


def test_marked_spaces_are_put_before_words_too() -> None:
    backend = train_unigram()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer, words = wrap(backend), sample_sentences()[0]
    text_ids = tokenizer(" " + " ".join(words))["input_ids"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] != text_ids
    prepare_tokenizer(tokenizer)
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == text_ids


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_other_tokenizers_are_left_as_they_are(kind: str) -> None:
    tokenizer = BUILDERS[kind]()
    before = tokenizer.backend_tokenizer.to_str()
    prepare_tokenizer(tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param({"eos_token": "</s>", "unk_token": "<unk>"}, "</s>", id="the end"),
        pytest.param({"unk_token": "<unk>"}, "<unk>", id="the unknown"),
        pytest.param({}, "<s>", id="whatever comes first"),
        pytest.param({"eos_token": "</s>", "pad_token": "<pad>"}, "<pad>", id="its own"),
    ],
)
def test_a_tokenizer_without_padding_gets_some(names: dict[str, str], expected: str) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=train_byte_level("bare"), **names)
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad([{"input_ids": [5]}, {"input_ids": [5, 6]}])["input_ids"][0] == [5, tokenizer.pad_token_id]


def test_a_slow_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"ByT5Tokenizer is a slow tokenizer.*use_fast: true"):
        prepare_tokenizer(transformers.ByT5Tokenizer())


# ------------------------------------------------------------------------------------------------------------- lengths

TINY = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
}  # fmt: skip

MODELS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig(**TINY, max_position_embeddings=64)), 64),
    "RoBERTa": (
        lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**TINY, max_position_embeddings=66, pad_token_id=1)
        ),
        64,
    ),
    "DistilBERT": (
        lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=20, dim=8, n_layers=1, n_heads=1, hidden_dim=8, max_position_embeddings=64
            )
        ),
        64,
    ),
    "GPT-2": (
        lambda: transformers.GPT2Model(
            transformers.GPT2Config(vocab_size=20, n_positions=64, n_embd=8, n_layer=1, n_head=1)
        ),
        64,
    ),
    "DeBERTa, relative": (
        lambda: transformers.DebertaV2Model(
            transformers.DebertaV2Config(
                **TINY, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
                max_position_embeddings=64,
            )
        ),
        None,
    ),
}  # fmt: skip


def tokenizer_that_takes(model_max_length: float) -> Any:
    return types.SimpleNamespace(model_max_length=model_max_length)


@pytest.mark.parametrize("name", MODELS)
def test_the_length_is_as_long_as_the_model_can_take(name: str) -> None:
    build, positions = MODELS[name]
    model = build().eval()
    chosen = choose_max_seq_length(tokenizer_that_takes(1e30), model, None)
    assert chosen == (positions or 512)
    with torch.no_grad():
        model(input_ids=torch.full((1, chosen), 5))
        if positions is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, chosen + 1), 5))


@pytest.mark.parametrize(
    ("name", "model_max_length", "requested", "expected"),
    [
        pytest.param("BERT", 1e30, 64, 64, id="all that there are"),
        pytest.param("BERT", 32, 48, 48, id="more than the tokenizer says"),
        pytest.param("BERT", 32, None, 32, id="what the tokenizer says"),
        pytest.param("BERT", 128, None, 64, id="what the model has"),
        pytest.param("DeBERTa, relative", 1e30, 1000, 1000, id="relative positions have no end"),
        pytest.param("DeBERTa, relative", 256, None, 256, id="relative positions, and a tokenizer's limit"),
    ],
)
def test_the_length_is_as_requested_or_the_smaller_limit(
    name: str, model_max_length: float, requested: int | None, expected: int
) -> None:
    assert choose_max_seq_length(tokenizer_that_takes(model_max_length), MODELS[name][0](), requested) == expected


@pytest.mark.parametrize("name", [name for name, (_, positions) in MODELS.items() if positions is not None])
def test_a_length_above_the_models_positions_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"data.max_seq_length: found 65; accepted is at most 64"):
        choose_max_seq_length(tokenizer_that_takes(1e30), MODELS[name][0](), 65)


@pytest.mark.parametrize(
    ("max_seq_length", "requested", "expected"),
    [
        pytest.param(512, None, 128, id="128"),
        pytest.param(102, None, 50, id="half of the content"),
        pytest.param(3, None, 0, id="a single sub-token"),
        pytest.param(512, 0, 0, id="none"),
        pytest.param(10, 7, 7, id="as many as can be"),
    ],
)
def test_windows_share_what_is_asked_for_or_128_subtokens(
    max_seq_length: int, requested: int | None, expected: int
) -> None:
    tokenizer = tokenizer_of("WordPiece")
    assert choose_doc_stride(tokenizer, max_seq_length, requested) == expected
    tokenizer(["a"] * 600, is_split_into_words=True, truncation=True, max_length=max_seq_length, stride=expected)


@pytest.mark.parametrize(
    ("max_seq_length", "requested", "message"),
    [
        pytest.param(10, 8, r"leaves 8 .*doc_stride: 8 .*Accepted is a doc_stride below 8", id="all of the content"),
        pytest.param(2, None, r"leaves 0 .*Accepted is at least 3\.", id="no content"),
    ],
)
def test_windows_that_could_not_move_on_are_refused(max_seq_length: int, requested: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.max_seq_length: {max_seq_length} {message}"):
        choose_doc_stride(tokenizer_of("WordPiece"), max_seq_length, requested)


# ------------------------------------------------------------------------------------------------- tokenized data sets


def tokenize_sample(kind: str, label_list: Sequence[str] | None = None, **options: Any) -> datasets.DatasetDict:
    """What a new process does: it reads data and tokenizer, and tokenizes."""
    files = {split: str(SAMPLE_DATA / f"{split}.json") for split in ("train", "validation", "test")}
    rows = datasets.load_dataset("json", data_files=files).rename_column("ner_tags", "tags")
    tokenizer = BUILDERS[kind]()
    prepare_tokenizer(tokenizer)
    labels = label_list or sorted({tag for tags in rows["train"]["tags"] for tag in tags})
    arguments: dict[str, Any] = {"max_seq_length": 24, "doc_stride": 8, **options}
    return build_tokenized_datasets(rows, tokenizer, labels, **arguments)


def files_of(splits: datasets.DatasetDict) -> dict[str, list[tuple[str, int]]]:
    return {
        split: [(file["filename"], Path(file["filename"]).stat().st_mtime_ns) for file in rows.cache_files]
        for split, rows in splits.items()
    }


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "byte-level BPE in a sequence"])
def test_a_new_process_finds_every_split_in_the_cache(kind: str) -> None:
    first = files_of(tokenize_sample(kind))
    assert [len(files) for files in first.values()] == [1, 1, 1]
    assert files_of(tokenize_sample(kind)) == first


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_seq_length": 23}, id="length"),
        pytest.param({"doc_stride": 7}, id="stride"),
        pytest.param({"label_all_tokens": True}, id="label_all_tokens"),
        pytest.param({"label_list": ["B-LOC", "O", "I-LOC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-MISC", "I-MISC"]},
                     id="order of labels"),
        pytest.param({"overwrite_cache": True}, id="overwrite_cache"),
    ],
)  # fmt: skip
def test_the_cache_is_not_taken_for_something_else(options: dict[str, Any]) -> None:
    first = files_of(tokenize_sample("WordPiece"))
    other = files_of(tokenize_sample("WordPiece", **options))
    assert all(set(other[split]).isdisjoint(first[split]) for split in first)


@pytest.mark.parametrize("module", [ner_utils, ner.windows])
def test_the_cache_is_not_taken_for_what_other_code_would_do(
    module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of(tokenize_sample("WordPiece"))
    (tmp_path / "other.py").write_text("# another version")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "other.py"))
    other = files_of(tokenize_sample("WordPiece"))
    assert all(set(other[split]).isdisjoint(first[split]) for split in first)


def test_several_processes_tokenize_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for num_workers in (None, 2):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / str(num_workers))
        made.append(tokenize_sample("WordPiece", max_seq_length=20, num_workers=num_workers))
    one, two = made
    assert [len(rows.cache_files) for rows in two.values()] == [2, 2, 2]
    for split, rows in one.items():
        assert two[split].to_list() == rows.to_list()
        assert max(rows["sentence_id"]) == sum(1 for _ in (SAMPLE_DATA / f"{split}.json").open(encoding="utf-8")) - 1
        assert {"labels", *WORD_COLUMNS} < set(rows.column_names)
    assert one["train"].num_rows > 1 + max(one["train"]["sentence_id"])  # some sentences have several windows


# ------------------------------------------------------------------------------------------------------------ collation

COLLATED = {
    "short": {"input_ids": [2, 9, 3], "token_type_ids": [0, 0, 0], "attention_mask": [1, 1, 1],
              "labels": [-100, 1, -100], "word_ids": [4, 5], "word_positions": [1, NO_POSITION],
              "word_labels": [1, 0], "sentence_id": 6},
    "long": {"input_ids": [2, 9, 8, 7, 3], "token_type_ids": [0, 0, 0, 0, 0], "attention_mask": [1, 1, 1, 1, 1],
             "labels": [-100, 1, 2, 0, -100], "word_ids": [0, 1, 2], "word_positions": [1, 2, 3],
             "word_labels": [1, 2, 0], "sentence_id": 8},
}  # fmt: skip


def collator(
    padding_side: str = "right", column_names: Sequence[str] = tuple(COLLATED["short"]), **options: Any
) -> Any:
    tokenizer = BUILDERS["WordPiece"]()
    tokenizer.padding_side = padding_side
    return WordCollator(tokenizer, column_names, **options)


def test_rows_are_padded_on_the_right() -> None:
    batch = collator()([COLLATED["short"], COLLATED["long"]])
    pad = BUILDERS["WordPiece"]().pad_token_id
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[2, 9, 3, pad, pad], [2, 9, 8, 7, 3]],
        "token_type_ids": [[0] * 5, [0] * 5],
        "attention_mask": [[1, 1, 1, 0, 0], [1] * 5],
        "labels": [[-100, 1, -100, -100, -100], [-100, 1, 2, 0, -100]],
        "word_ids": [[4, 5, NO_POSITION], [0, 1, 2]],
        "word_positions": [[1, NO_POSITION, NO_POSITION], [1, 2, 3]],
        "word_labels": [[1, 0, IGNORED_LABEL_ID], [1, 2, 0]],
        "sentence_id": [6, 8],
    }


def test_padding_on_the_left_moves_positions_with_their_subtokens() -> None:
    batch = collator("left")([COLLATED["short"], COLLATED["long"]])
    pad = BUILDERS["WordPiece"]().pad_token_id
    assert batch["input_ids"].tolist() == [[pad, pad, 2, 9, 3], [2, 9, 8, 7, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 1, -100], [-100, 1, 2, 0, -100]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert batch["word_positions"].tolist() == [[3, NO_POSITION, NO_POSITION], [1, 2, 3]]


@every_tokenizer
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_positions_in_a_batch_hold_the_words_first_subtokens(kind: str, padding_side: str) -> None:
    tokenizer = BUILDERS[kind]()
    prepare_tokenizer(tokenizer)
    tokenizer.padding_side = padding_side
    words = [["\u200b", *sentence] for sentence in sample_sentences()[:20]]
    rows = {"tokens": words, "tags": [["O"] * len(sentence) for sentence in words]}
    columns = tokenize_and_align_labels(rows, list(range(20)), tokenizer, LABELS, 16, 4)
    batch = WordCollator(tokenizer, list(columns))([dict(zip(columns, row)) for row in zip(*columns.values())])
    for sentence_id, ids, word_ids, positions in zip(
        *(batch[name].tolist() for name in ("sentence_id", "input_ids", "word_ids", "word_positions"))
    ):
        for word_id, position in zip(word_ids, positions):
            if position != NO_POSITION:
                alone = tokenizer([words[sentence_id][word_id]], is_split_into_words=True)
                assert ids[position] == alone["input_ids"][alone.word_ids().index(0)]


@pytest.mark.parametrize(
    ("options", "width"),
    [
        pytest.param({}, 5, id="longest"),
        pytest.param({"pad_to_multiple_of": 8}, 8, id="multiple"),
        pytest.param({"max_length": 13}, 13, id="max_length"),
        pytest.param({"max_length": 13, "pad_to_multiple_of": 8}, 16, id="both"),
    ],
)
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("rows", [pytest.param(["short", "long"], id="rows"), pytest.param([], id="no rows")])
def test_a_batch_is_a_dict_of_tensors_that_determined_can_measure(
    rows: list[str], padding_side: str, options: dict[str, Any], width: int
) -> None:
    batch = collator(padding_side, **options)([COLLATED[name] for name in rows])
    num_rows = len(rows) or 1
    if not rows:
        width = {5: 1, 8: 8, 13: 13, 16: 16}[width]
    assert type(batch) is dict
    assert pytorch.data_length(batch) == num_rows
    assert {name: values.dtype for name, values in batch.items()} == dict.fromkeys(COLLATED["short"], torch.int64)
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        **dict.fromkeys(("input_ids", "token_type_ids", "attention_mask", "labels"), (num_rows, width)),
        **dict.fromkeys(("word_ids", "word_positions", "word_labels"), (num_rows, 3 if rows else 0)),
        "sentence_id": (num_rows,),
    }
    if not rows:
        assert int((batch["labels"] != IGNORED_LABEL_ID).sum()) == 0
        assert int(batch["attention_mask"].sum()) == 1  # attention to nothing would be NaN


@st.composite
def row_lengths(draw: st.DrawFn) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """Sub-tokens and words of some rows, and options of a collator that they suit."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6))
    options = draw(st.fixed_dictionaries({}, optional={"pad_to_multiple_of": st.integers(1, 16)}))
    if draw(st.booleans()):
        options["max_length"] = max(1, *(n for n, _ in lengths)) + draw(st.integers(0, 9))
    return lengths, options


@functools.cache
def padding_tokenizer(kind: str, padding_side: str) -> Any:
    """With a padding of token types as XLNet has it."""
    tokenizer = BUILDERS[kind]()
    prepare_tokenizer(tokenizer)
    tokenizer.padding_side, tokenizer._pad_token_type_id = padding_side, 3
    return tokenizer


@every_tokenizer
@pytest.mark.parametrize("padding_side", ["right", "left"])
@given(rows=row_lengths(), has_labels=st.booleans(), has_types=st.booleans(), numbers=st.randoms(use_true_random=False))
def test_inputs_and_labels_are_padded_as_transformers_does(
    kind: str, padding_side: str, rows: Any, has_labels: bool, has_types: bool, numbers: Any
) -> None:  # fmt: skip
    tokenizer, (lengths, options) = padding_tokenizer(kind, padding_side), rows
    names = ["input_ids", *["token_type_ids"] * has_types, "attention_mask", *["labels"] * has_labels]
    inputs = [{name: [numbers.randint(0, 99) for _ in range(n)] for name in names} for n, _ in lengths]
    words = [
        {name: [numbers.randint(0, 99) for _ in range(n)] for name in ner.windows.WORD_PAD_VALUES} for _, n in lengths
    ]
    batch = WordCollator(tokenizer, [*names, *ner.windows.WORD_PAD_VALUES], **options)(
        [row | of_row for row, of_row in zip(inputs, words)]
    )
    no_token = {"input_ids": [tokenizer.pad_token_id], "token_type_ids": [0], "attention_mask": [1], "labels": [-100]}
    expected = transformers.DataCollatorForTokenClassification(
        tokenizer, padding="max_length" if "max_length" in options else True, **options
    )([row if row["input_ids"] else {name: no_token[name] for name in names} for row in inputs])
    assert [*batch] == [*names, *ner.windows.WORD_PAD_VALUES]
    for name in names:
        assert batch[name].dtype == expected[name].dtype
        assert torch.equal(batch[name], expected[name])
    for name, fill in ner.windows.WORD_PAD_VALUES.items():
        assert (batch[name].shape[1]) == max(n for _, n in lengths)
        for values, row, ids in zip(batch[name].tolist(), words, inputs):
            assert values[len(row[name]) :] == [fill] * (len(values) - len(row[name]))
            is_moved = name == "word_positions" and padding_side == "left"
            shift = batch["input_ids"].shape[1] - max(len(ids["input_ids"]), 1) if is_moved else 0
            assert values[: len(row[name])] == [value + shift for value in row[name]]


def test_columns_that_are_not_asked_for_are_not_collated() -> None:
    names = ["input_ids", "attention_mask", "labels"]
    collate = collator(column_names=names)
    assert list(collate([{name: COLLATED["short"][name] for name in names}])) == names
    assert list(collate([])) == names


# -------------------------------------------------------------------------------------------------------------- labels


def make_rows(**tags: list[list[str]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"tags": of_split, "place": [f"{split}, row 1"] * len(of_split)})
            for split, of_split in tags.items()
        }
    )


def test_the_labels_are_the_sorted_tags_of_all_splits() -> None:
    rows = make_rows(train=[["O", "B-PER"], ["O"]], validation=[["B-LOC", "O"]], test=[["B-ORG", "B-PER", "B-MISC"]])
    metadata = get_dataset_metadata(rows)
    assert metadata.label_list == ["B-LOC", "B-MISC", "B-ORG", "B-PER", "O"]
    assert metadata.num_labels == 5
    assert metadata.label_scheme == "IOB2"


def test_given_names_keep_their_order_also_where_no_row_has_them() -> None:
    names = ("O", "I-X", "B-X", "B-A")
    assert get_dataset_metadata(make_rows(train=[["O", "B-X"]]), names).label_list == list(names)


# ------------------------------------------------------------------------------------------------------------- metrics
# That entities are counted as seqeval counts them is proven in test_ner_report.py.


def test_metrics_equal_a_count_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "O"], ["B-ORG", "I-ORG", "O"]]
    # Words: 3 of 7. Entities: PER is right, LOC is missed, ORG is elsewhere: 1 of 2 claimed, 1 of 3 real.
    assert compute_metrics(zip(gold, predicted), entity_types=["PER", "LOC", "ORG"]) == pytest.approx(
        {
            "accuracy_score": 3 / 7, "precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5,
            "PER_precision": 1, "PER_recall": 1, "PER_f1": 1, "PER_number": 1,
            "LOC_precision": 0, "LOC_recall": 0, "LOC_f1": 0, "LOC_number": 1,
            "ORG_precision": 0, "ORG_recall": 0, "ORG_f1": 0, "ORG_number": 1,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("mode", "f1"), [("default", 1.0), ("strict", 0.0)])
def test_an_entity_that_begins_with_inside_counts_in_default_mode_only(mode: str, f1: float) -> None:
    report = ErrorReport("IOB2", mode, "IOB2")
    assert compute_metrics([(["O", "B-PER"], ["O", "I-PER"])], report)["f1"] == f1


@pytest.mark.parametrize("num_types", [4, 128])
def test_scoring_needs_little_memory_beside_the_words(num_types: int) -> None:
    random = np.random.default_rng(0)
    labels = ["O", *(f"{prefix}-{i}" for i in range(num_types) for prefix in "BI")]
    num_sentences, num_words = 2000, 18
    words = np.zeros((4, num_sentences * num_words), dtype=np.int32)
    words[0], words[1] = np.divmod(np.arange(num_sentences * num_words), num_words)
    words[2:] = random.integers(0, len(labels), words[2:].shape)
    list(iterate_sentences(words[:, :num_words], labels))  # what is imported is not counted
    tracemalloc.start()
    num_words_seen = sum(len(gold) for _, gold, _, _ in iterate_sentences(words, labels))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_words_seen == words.shape[1]
    assert peak < 1.5 * words.nbytes, "the tags of all sentences as lists take more than 2 times as much as the words"


def test_importing_the_modules_does_not_import_what_only_scores_need() -> None:
    code = "import sys, predict, ner.report, ner_utils; sys.exit('seqeval.metrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ner_utils.__file__).parent)


@pytest.mark.parametrize("entity_types", [[], ["PER", "a-b", "LOC", "never-seen"]])
def test_every_metric_has_a_direction(entity_types: list[str]) -> None:
    labels = ["O", "B-PER", "I-PER", "B-a-b", "S-LOC"]
    directions = metric_directions(entity_types)
    reported = compute_metrics([(labels, labels)], entity_types=entity_types)
    numbers = {f"{name}_number" for name in entity_types}
    assert set(directions) == (set(reported) - numbers) | {"validation_loss"}
    assert [name for name, larger_is_better in directions.items() if not larger_is_better] == ["validation_loss"]


# --------------------------------------------------------------------------------------------------------- predictions


class EchoModel(torch.nn.Module):
    """A model of two labels that predicts the second one for odd input ids, with a logit that is their tenth."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        score = torch.where(input_ids % 2 == 1, input_ids, -input_ids) / 10
        return {"logits": torch.stack([torch.zeros_like(score), score], dim=-1).bfloat16()}


def test_each_word_is_predicted_at_its_first_subtoken() -> None:
    word_ids = torch.tensor([[0, 1, NO_POSITION], [3, 4, 5]])
    batch = {
        "input_ids": torch.tensor([[2, 3, 7, 0, 0], [2, 5, 8, 9, 3]]),
        "word_ids": word_ids,
        "word_positions": torch.tensor([[1, 2, NO_POSITION], [1, 3, NO_POSITION]]),  # the last word has no sub-token
        "word_labels": torch.tensor([[1, 0, -100], [1, 1, 0]]),
        "sentence_id": torch.tensor([7, 4]),
    }
    (prediction,) = predict_words(EchoModel(), [batch])
    assert prediction.logits.dtype == torch.float32
    assert prediction.words().tolist() == [
        [7, 7, 4, 4, 4], [0, 1, 3, 4, 5], [1, 1, 1, 1, NO_POSITION], [1, 0, 1, 1, 0],
    ]  # fmt: skip
    logits = torch.tensor([0.3, 0.7, 0.5, 0.9]).bfloat16().float()
    assert prediction.scores()[:4] == pytest.approx(logits.sigmoid().numpy())
    assert np.isnan(prediction.scores()[4])
    del batch["word_labels"]  # of new text
    (prediction,) = predict_words(EchoModel(), [batch])
    assert prediction.words().shape == (3, 5)


@given(
    sentences=st.lists(
        st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""])), min_size=1), min_size=1
    ),
    numbers=st.data(),
)
def test_words_in_any_order_become_their_sentences_again(
    sentences: list[list[tuple[str, str]]], numbers: st.DataObject
) -> None:
    ids = numbers.draw(st.lists(st.integers(0, 999), unique=True, min_size=len(sentences), max_size=len(sentences)))
    ids.sort()
    words = [
        (sentence_id, place, LABELS.index(predicted) if predicted else NO_POSITION, LABELS.index(gold))
        for sentence_id, sentence in zip(ids, sentences)
        for place, (gold, predicted) in enumerate(sentence)
    ]
    shuffled = np.array(numbers.draw(st.permutations(words)), dtype=np.int32).reshape(-1, 4).T
    found = list(iterate_sentences(shuffled, LABELS))
    assert [number for number, *_ in found] == ids
    assert [gold for _, gold, _, _ in found] == [[gold for gold, _ in sentence] for sentence in sentences]
    assert [tags for _, _, tags, _ in found] == [[tag or "O" for _, tag in sentence] for sentence in sentences]
    assert all(shuffled[1, columns].tolist() == list(range(len(gold))) for _, gold, _, columns in found)
