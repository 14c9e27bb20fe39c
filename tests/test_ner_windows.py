"""Windows of sub-tokens, and batches of them, with real tokenizers of three kinds."""

import functools
import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from ner.windows import (
    IGNORED_LABEL_ID,
    NO_POSITION,
    WordCollator,
    assign_words,
    choose_doc_stride,
    choose_max_seq_length,
    prepare_tokenizer,
)
from ner_utils import continuation_ids, tokenize_and_align_labels

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
