"""Labels, alignment of words and sub-tokens, tokenized data sets, metrics and predictions."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import SAMPLE_DATA, Patch, read_lines
from hypothesis import example, given
from hypothesis import strategies as st
from model_kinds import KINDS, LABELS, SENTENCES, every_kind, load_tokenizer, prepared_tokenizer
from run_ner_reference import tokenize as run_ner_tokenize
from test_ner_labels import make_rows

import ner.windows
import ner_utils
from ner.context import choose_neighbours
from ner.report import metric_directions
from ner.windows import IGNORED_LABEL_ID, NO_POSITION, WORD_COLUMNS, prepare_tokenizer
from ner_utils import build_tokenized_datasets, compute_metrics, get_dataset_metadata, iterate_sentences

special_texts = sorted({token for kind in KINDS.values() for token in kind.special_tokens.values()})
odd_words = [
    *special_texts, *" \n\x00\x07\x85\ufe0f\u200b\u2028▁Ġé", "", "e\u0301", "東京",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "x" * 130, "ab" * 9, "don't", " lead", "two words",
]  # fmt: skip
known_words = sorted({word for row in SENTENCES for word in row["tokens"]})
any_word = st.sampled_from(odd_words) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tagged_word = st.tuples(any_word | st.sampled_from(known_words), st.sampled_from(LABELS))
tagged_words = st.lists(tagged_word, min_size=1, max_size=25)
tag_pairs = st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""]))
TaggedWords = list[tuple[str, str]]


def align(tokenizer: Any, sentences: Any, content: int, stride: int, names: Any = (), **options: Any) -> list[Any]:
    """The rows that `tokenize_and_align_labels` makes of sentences, for windows of `content` beside special tokens.

    The first word has the number 7, and `names` are the sentences' documents.
    """
    words, tags = ([[pair[i] for pair in sentence] for sentence in sentences] for i in range(2))
    new_text: dict[str, list[Any]] = {"tokens": words, "document": [*names]}
    length = content + tokenizer.num_special_tokens_to_add()
    columns, inputs = (
        ner_utils.tokenize_and_align_labels(rows, 7, tokenizer, LABELS, length, stride, **options)
        for rows in (new_text | {"tags": tags}, new_text)
    )
    assert inputs == {n: values for n, values in columns.items() if n not in ("labels", "word_labels")}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def cut(num_tokens: int, size: int, stride: int, truncation_side: str) -> list[tuple[int, int]]:
    """Where the windows of a text begin and end, in its order."""
    starts = range(0, max(num_tokens - stride, 1), size - stride)
    windows = [(start, min(start + size, num_tokens)) for start in starts]
    return windows if truncation_side == "right" else [(num_tokens - b, num_tokens - a) for a, b in windows[::-1]]


def rows_by_trying_all(tokenizer: Any, sentence: TaggedWords, content: int, stride: int, all_tokens: bool) -> list[Any]:
    """The rows as slices of the uncut sentence, each word in the window that has most around its first sub-token."""
    encoded = tokenizer([word for word, _ in sentence], is_split_into_words=True)
    word_ids = encoded.word_ids()
    inner = [i for i, word in enumerate(word_ids) if word is not None]
    begin, end = (inner[0], inner[-1] + 1) if inner else (0, 0)  # special tokens are around
    windows = [(begin + a, begin + b) for a, b in cut(end - begin, content, stride, tokenizer.truncation_side)]
    places = {word: word_ids.index(word) for word in range(len(sentence)) if word in word_ids}
    chosen: dict[int, int] = {}  # the window of each word
    window = 0
    for word in range(len(sentence)):
        if word in places:
            place = places[word]
            context = {w: min(place - a, b - 1 - place) for w, (a, b) in enumerate(windows) if a <= place < b}
            window = max(context, key=lambda w: (context[w], -w))
        chosen[word] = window  # without sub-token it is that of the word before
    label_ids = [LABELS.index(tag) for _, tag in sentence]
    further_ids = [LABELS.index(tag.replace("B-PER", "I-PER")) for _, tag in sentence]
    rows = []
    for window, (a, b) in enumerate(windows):
        scored = [word for word in chosen if chosen[word] == window]
        labels = [IGNORED_LABEL_ID] * len(word_ids)
        for i in range(a, b):
            word = word_ids[i]
            if word in scored and (i == places[word] or all_tokens):
                labels[i] = label_ids[word] if i == places[word] else further_ids[word]
        columns = {**encoded, "labels": labels}
        numbers = {
            "word_ids": scored,
            "word_positions": [begin + places[word] - a if word in places else NO_POSITION for word in scored],
            "word_labels": [label_ids[word] for word in scored],
        }
        if scored:
            rows.append(numbers | {n: values[:begin] + values[a:b] + values[end:] for n, values in columns.items()})
    return rows


@every_kind
@given(
    sentences=st.lists(tagged_words, min_size=1, max_size=2), content=st.integers(1, 20), stride=st.integers(0, 19),
    label_all_tokens=st.booleans(), truncation_side=st.sampled_from(["right", "left"]),
)  # fmt: skip
@example([[("\u200b", "B-PER"), ("", "O")], [("", "O"), ("Ada", "B-PER")]], 4, 1, False, "right")  # without sub-tokens
def test_windows_and_their_words_are_those_found_by_trying_all(
    kind: str, sentences: list[TaggedWords], content: int, stride: int, label_all_tokens: bool, truncation_side: str
) -> None:
    tokenizer, stride = prepared_tokenizer(kind, truncation_side), stride % content
    document = [pair for sentence in sentences for pair in sentence]
    for texts, names, mode in ((sentences, [], "none"), ([document], ["a"] * len(sentences), "merged")):
        first_words = np.cumsum([7, *map(len, texts)])
        expected = [
            row | {"word_ids": [first + word for word in row["word_ids"]]}
            for first, text in zip(first_words.tolist(), texts)
            for row in rows_by_trying_all(tokenizer, text, content, stride, label_all_tokens)
        ]
        options: dict[str, Any] = {"label_all_tokens": label_all_tokens, "document_context": mode}
        assert align(tokenizer, sentences, content, stride, names, **options) == expected
        assert [i for row in expected for i in row["word_ids"]] == list(range(7, 7 + len(document)))


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=30), borders=st.tuples(*[st.integers(0, 29)] * 2),
    context_tokens=st.integers(1, 12), room=st.integers(1, 40),
)  # fmt: skip
def test_neighbours_are_whole_words_that_fit(sizes: list[int], borders: Any, context_tokens: int, room: int) -> None:
    start, end = sorted(min(border, len(sizes) - 1) for border in borders)
    end += 1
    ends = np.append(0, np.cumsum(sizes))
    first, last = choose_neighbours(ends, start, end, context_tokens, room)
    before, own, after = sum(sizes[first:start]), sum(sizes[start:end]), sum(sizes[end:last])
    assert 0 <= first <= start < end <= last <= len(sizes)
    assert max(before, after) <= context_tokens
    assert before + own + after <= max(room, own)
    for size, further in ((before, sizes[first - 1 : first]), (after, sizes[last : last + 1])):
        for word in further:  # may stay out for one of these reasons
            is_fair_share = size + word > max(room - own, 0) // 2
            assert size + word > context_tokens or before + own + after + word > room or is_fair_share


@every_kind
@given(
    sentences=st.lists(tagged_words, min_size=1, max_size=6),
    names=st.lists(st.sampled_from(["a", "b", ""]), min_size=6, max_size=6),
    content=st.integers(5, 60), context_tokens=st.integers(1, 12),
)  # fmt: skip
def test_a_sentence_is_seen_with_its_neighbours_and_scored_alone(
    kind: str, sentences: list[TaggedWords], names: list[str], content: int, context_tokens: int
) -> None:
    tokenizer, names, stride = prepared_tokenizer(kind), names[: len(sentences)], 2
    options: dict[str, Any] = {"document_context": "neighbours", "context_tokens": context_tokens}
    expected, first_word = [], 7
    for i, sentence in enumerate(sentences):
        around = [list(group) for name, group in itertools.groupby(range(len(names)), key=lambda n: names[n] or n)]
        (members,) = [group for group in around if i in group]
        document = [pair for member in members for pair in sentences[member]]
        start = sum(len(sentences[member]) for member in members if member < i)
        word_of = tokenizer([word for word, _ in document], is_split_into_words=True).word_ids()
        ends = np.append(0, np.cumsum([word_of.count(word) for word in range(len(document))]))
        first, last = choose_neighbours(ends, start, start + len(sentence), context_tokens, content)
        own = range(start - first, start - first + len(sentence))
        for row in rows_by_trying_all(tokenizer, document[first:last], content, stride, False):
            kept = [place for place, word in enumerate(row["word_ids"]) if word in own]
            numbers = {name: [row[name][place] for place in kept] for name in WORD_COLUMNS}
            positions = [place for place in numbers["word_positions"] if place != NO_POSITION]
            labels = [label if place in positions else IGNORED_LABEL_ID for place, label in enumerate(row["labels"])]
            numbers["word_ids"] = [first_word + word - own.start for word in numbers["word_ids"]]
            expected += [row | numbers | {"labels": labels}] if kept else []
        first_word += len(sentence)
    assert align(tokenizer, sentences, content, stride, names, **options) == expected


@every_kind
@given(sentence=tagged_words)
def test_without_windows_inputs_and_labels_are_those_of_run_ner(kind: str, sentence: TaggedWords) -> None:
    (row,) = align(prepared_tokenizer(kind), [sentence], content=5000, stride=0)
    columns = {name: [list(column)] for name, column in zip(("tokens", "ner_tags"), zip(*sentence))}
    expected = run_ner_tokenize(prepared_tokenizer(kind), {label: i for i, label in enumerate(LABELS)}, columns)
    assert {name: values[0] for name, values in expected.items() if name != "length"}.items() <= row.items()


def test_further_pieces_of_a_word_continue_its_entity() -> None:
    labels = ["O", "B-X", "I-Y", "B-Y", "B-a-b", "I-a-b", "S-Y", "E-Y", "Y", "B", "B-"]
    further = {label: labels[i] for label, i in zip(labels, ner_utils.continuation_ids(labels))}
    assert further == dict(zip(labels, labels)) | {"B-Y": "I-Y", "B-a-b": "I-a-b"}


def tokenize_sample(
    kind: str = "BERT", label_list: Any = None, max_seq_length: int = 24, doc_stride: int = 8, **options: Any
) -> datasets.DatasetDict:
    """What a new process does: it reads data and tokenizer, and tokenizes."""
    files = {split: str(SAMPLE_DATA / f"{split}.json") for split in ("train", "validation", "test")}
    rows = datasets.load_dataset("json", data_files=files).rename_column("ner_tags", "tags")
    tokenizer, labels = load_tokenizer(kind), label_list or get_dataset_metadata(rows).label_list
    prepare_tokenizer(tokenizer)
    return build_tokenized_datasets(rows, tokenizer, labels, max_seq_length, doc_stride, **options)


def files_of(splits: datasets.DatasetDict) -> set[tuple[str, int]]:
    files = [Path(file["filename"]) for rows in splits.values() for file in rows.cache_files]
    return {(str(file), file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "Qwen"])
def test_a_new_process_finds_every_split_in_the_cache(kind: str) -> None:
    first = files_of(tokenize_sample(kind))
    assert len(first) == 3
    assert files_of(tokenize_sample(kind)) == first


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "BERT, cased"}, {"max_seq_length": 23}, {"doc_stride": 7}, {"label_all_tokens": True},
        {"label_list": ["O", *(f"{b}-{x}" for b in "BI" for x in ("LOC", "PER", "ORG", "MISC"))]},  # in another order
        {"overwrite_cache": True}, {"changed": ner_utils}, {"changed": ner.windows},
    ],
    ids=lambda options: str(*options),
)  # fmt: skip
def test_the_cache_is_not_taken_for_something_else(options: dict[str, Any], tmp_path: Path, monkeypatch: Patch) -> None:
    first = files_of(tokenize_sample())
    if "changed" in options:
        (tmp_path / "other.py").write_text("# another version")
        monkeypatch.setattr(options["changed"], "__file__", str(tmp_path / "other.py"))
        options = {}
    assert files_of(tokenize_sample(**options)).isdisjoint(first)


def test_several_processes_tokenize_to_the_same_rows(tmp_path: Path, monkeypatch: Patch) -> None:
    made = []
    for num_workers in (None, 2):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / str(num_workers))
        made.append(tokenize_sample(max_seq_length=20, num_workers=num_workers))
    one, two = made
    assert len(files_of(two)) == 6
    for split, rows in one.items():
        assert two[split].to_list() == rows.to_list()
        sentences = read_lines(SAMPLE_DATA / f"{split}.json")
        numbers = [number for of_window in rows["word_ids"] for number in of_window]
        assert numbers == list(range(sum(len(sentence["tokens"]) for sentence in sentences)))
        assert rows.num_rows > len(sentences)  # some have several windows


def test_the_labels_are_the_sorted_tags_of_all_splits_or_the_given_names() -> None:
    splits = {"train": [["O", "B-PER"], ["O"]], "validation": [["B-LOC", "O"]], "test": [["B-ORG", "B-PER", "B-MISC"]]}
    rows = datasets.DatasetDict({name: make_rows(tags, name) for name, tags in splits.items()})
    metadata = get_dataset_metadata(rows)
    labels = ["B-LOC", "B-MISC", "B-ORG", "B-PER", "O"]
    assert (metadata.label_list, metadata.num_labels, metadata.label_scheme) == (labels, 5, "IOB2")
    names = ["O", "I-X", *labels[3::-1]]  # in no order, and one in no row
    assert get_dataset_metadata(rows, names).label_list == names


@pytest.mark.parametrize("num_types", [4, 128])
def test_scoring_needs_little_memory_beside_the_words(num_types: int) -> None:
    random = np.random.default_rng(0)
    labels = ["O", *(f"{prefix}-{i}" for i in range(num_types) for prefix in "BI")]
    num_sentences, num_words = 2000, 18
    words = np.zeros((3, num_sentences * num_words), dtype=np.int32)
    words[0], starts = np.arange(num_sentences * num_words), np.arange(0, num_sentences * num_words + 1, num_words)
    words[1:] = random.integers(0, len(labels), words[1:].shape)
    list(iterate_sentences(words[:, :num_words], starts[:2], labels))  # what is imported is not counted
    tracemalloc.start()
    num_words_seen = sum(len(gold) for _, _, (_, gold) in iterate_sentences(words, starts, labels))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_words_seen == words.shape[1]
    assert peak < 1.5 * words.nbytes, "the tags of all sentences as lists take more than 2 times as much as the words"


@pytest.mark.parametrize("entity_types", [[], ["PER", "a-b", "LOC", "never-seen"]])
def test_every_metric_has_a_direction(entity_types: list[str]) -> None:
    labels = ["O", "B-PER", "I-PER", "B-a-b", "S-LOC"]
    directions = metric_directions(entity_types)
    reported = compute_metrics([(labels, labels)], entity_types=entity_types)
    numbers = {f"{name}_number" for name in entity_types}
    assert set(directions) == (set(reported) - numbers) | {"validation_loss"}
    assert [name for name, larger_is_better in directions.items() if not larger_is_better] == ["validation_loss"]


class EchoModel(torch.nn.Module):
    """A model of two labels that predicts the second one for odd input ids, with a logit that is their tenth."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        score = torch.where(input_ids % 2 == 1, input_ids, -input_ids) / 10
        return {"logits": torch.stack([torch.zeros_like(score), score], dim=-1).bfloat16()}


def test_each_word_is_predicted_at_its_first_subtoken() -> None:
    batch = {
        "input_ids": torch.tensor([[2, 3, 7, 0, 0], [2, 5, 8, 9, 3]]),
        "word_ids": torch.tensor([[0, 1, NO_POSITION], [3, 4, 5]]),
        "word_positions": torch.tensor([[1, 2, NO_POSITION], [1, 3, NO_POSITION]]),  # the last word has no sub-token
        "word_labels": torch.tensor([[1, 0, -100], [1, 1, 0]]),
    }
    (prediction,) = ner_utils.predict_words(EchoModel(), [batch])
    assert prediction.logits.dtype == torch.float32
    assert prediction.words().tolist() == [[0, 1, 3, 4, 5], [1, 1, 1, 1, NO_POSITION], [1, 0, 1, 1, 0]]
    logits = torch.tensor([0.3, 0.7, 0.5, 0.9]).bfloat16().float()
    assert prediction.scores()[:4] == pytest.approx(logits.sigmoid().numpy())
    assert np.isnan(prediction.scores()[4])
    del batch["word_labels"]  # of new text
    (prediction,) = ner_utils.predict_words(EchoModel(), [batch])
    assert prediction.words().shape == (2, 5)


@given(sentences=st.lists(st.lists(tag_pairs), min_size=1), data=st.data())
def test_words_in_any_order_become_their_sentences_again(sentences: list[Any], data: st.DataObject) -> None:
    starts = np.cumsum([0, *map(len, sentences)])
    evaluated = data.draw(st.sets(st.sampled_from(range(len(sentences)))))
    expected = [(index, sentences[index]) for index in sorted(evaluated) if sentences[index]]
    words = [
        (starts[index] + place, LABELS.index(predicted) if predicted else NO_POSITION, LABELS.index(gold))
        for index, sentence in expected
        for place, (gold, predicted) in enumerate(sentence)
    ]
    shuffled = np.array(data.draw(st.permutations(words)), dtype=np.int32).reshape(-1, 3).T
    found = list(iterate_sentences(shuffled, starts, LABELS))
    assert [(index, [*zip(gold, tags)]) for index, _, (tags, gold) in found] == [
        (index, [(gold, predicted or "O") for gold, predicted in sentence]) for index, sentence in expected
    ]
    for index, columns, _ in found:
        assert shuffled[0, columns].tolist() == [*range(starts[index], starts[index + 1])]
