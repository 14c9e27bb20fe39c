"""Tokenized data sets and their cache, labels, predictions and metrics."""

import subprocess
import sys
import tracemalloc
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import SAMPLE_DATA
from hypothesis import given
from hypothesis import strategies as st
from test_ner_windows import BUILDERS, LABELS

import ner.windows
import ner_utils
from ner.report import ErrorReport, metric_directions
from ner.windows import NO_POSITION, WORD_COLUMNS, prepare_tokenizer
from ner_utils import build_tokenized_datasets, compute_metrics, get_dataset_metadata, iterate_sentences, predict_words

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
