"""What the base does with data: loading and its errors, splits, the order of batches, and who of a node goes first."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SAMPLE_DATA, SHARED_DATA, Patch, needs_wnut, read_lines, refuses, write_lines
from determined import core, pytorch
from hypothesis import given
from hypothesis import strategies as st

from transformer_trial.config import DataConfig
from transformer_trial.data import SlotBatchSampler, default_load_dataset, group_by_tokens, select_splits
from transformer_trial.processes import local_chief_first

numbers = st.integers(0, 2**32 - 1)
sizes: dict[str, Any] = {"num_rows": st.integers(1, 150), "batch_size": st.integers(1, 40), "seed": numbers}
sizes["lengths"] = st.none() | numbers


def build_sampler(num_rows: int, batch_size: int, seed: int, lengths: int | None, num_slots: int = 1) -> Any:
    """A sampler over rows whose lengths, where it groups by them, are random numbers."""
    row_lengths = None if lengths is None else np.random.default_rng(lengths).integers(1, 60, num_rows).tolist()
    return SlotBatchSampler(num_rows, batch_size, num_slots, seed=seed, lengths=row_lengths)


@given(**sizes, num_slots=st.integers(1, 9))
def test_an_epoch_has_every_row_once_in_full_batches_of_even_pieces(num_slots: int, **arguments: Any) -> None:
    sampler = build_sampler(num_slots=num_slots, **arguments)
    num_rows, global_batch_size = sampler.num_rows, sampler.global_batch_size
    for _ in range(3):
        pieces = list(sampler)
        assert sorted(row for piece in pieces for row in piece) == list(range(num_rows))
        assert len(pieces) == len(sampler)
        assert len(pieces) % num_slots == 0
        steps = [list(map(len, pieces[i : i + num_slots])) for i in range(0, len(pieces), num_slots)]
        full, rest = divmod(num_rows, global_batch_size)
        assert sorted(map(sum, steps), reverse=True) == [global_batch_size] * full + [rest] * (rest > 0)
        assert all(max(step) - min(step) <= 1 for step in steps)


@given(**sizes, epoch=st.integers(0, 50))
def test_the_order_follows_from_seed_and_epoch_alone(epoch: int, **arguments: Any) -> None:
    sampler, other = build_sampler(**arguments), build_sampler(**arguments)
    np.random.seed(epoch)
    expected = [batch.tolist() for batch in sampler.global_batches(epoch)]
    for _ in range(epoch):
        list(other)
    np.random.seed(epoch + 1)
    torch.manual_seed(epoch)
    assert list(other) == expected


def test_another_epoch_and_another_seed_have_another_order() -> None:
    samplers = [SlotBatchSampler(50, 8, 1, seed=seed) for seed in (1, 2)]
    orders = {str(np.concatenate(sampler.global_batches(epoch))) for sampler in samplers for epoch in (0, 1)}
    assert len(orders | {str(np.arange(50))}) == 5


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=150), max_tokens=st.integers(1, 200),
    num_slots=st.integers(1, 9),
)  # fmt: skip
def test_evaluation_batches_are_bounded_by_tokens(lengths: list[int], max_tokens: int, num_slots: int) -> None:
    pieces = group_by_tokens(lengths, max_tokens, num_slots=num_slots)
    batches = [piece for piece in pieces if piece]
    assert len(pieces) % num_slots == 0 and pieces[: len(batches)] == batches
    assert len(pieces) < len(batches) + num_slots
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths, reverse=True)
    for i, batch in enumerate(batches):
        assert len(batch) == 1 or lengths[batch[0]] * len(batch) <= max_tokens
        assert i == len(batches) - 1 or lengths[batch[0]] * (len(batch) + 1) > max_tokens, "it could have been larger"


@needs_wnut
def test_grouping_by_length_leaves_little_padding() -> None:
    lengths = np.array([len(row["tokens"]) for row in read_lines(SHARED_DATA / "wnut17" / "train.json")])

    def real_share(sampler: SlotBatchSampler) -> float:
        batches = sampler.global_batches(0)
        return float(lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches))

    assert real_share(SlotBatchSampler(len(lengths), 8, 1, seed=1)) < 0.7
    grouped = SlotBatchSampler(len(lengths), 8, 1, seed=1, lengths=lengths.tolist())
    assert real_share(grouped) > 0.95
    # The order is still a random one: batches do not come sorted as they are made.
    longest = [int(lengths[batch].max()) for batch in grouped.global_batches(0)[:50]]
    assert 0.3 < np.mean(np.diff(longest) < 0) < 0.7


@pytest.mark.parametrize("num_rows", [33, 100])
def test_grouped_rows_of_small_data_meet_others_in_each_epoch(num_rows: int) -> None:
    sampler = SlotBatchSampler(num_rows, 8, 1, seed=1, lengths=range(num_rows))
    first, second = ({frozenset(batch.tolist()) for batch in sampler.global_batches(epoch)} for epoch in (0, 1))
    assert len(first & second) <= 1  # sorted all together, each batch would be the same again


def collate_numbers(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor([row["number"] for row in rows], dtype=torch.long)}


@given(
    num_rows=st.integers(1, 40), batch_size=st.integers(1, 12), lengths=st.none() | st.integers(0, 9),
    num_slots=st.integers(1, 5), skip=st.integers(0, 30),
)  # fmt: skip
def test_slots_train_on_the_batch_of_each_step_also_resumed(num_slots: int, skip: int, **arguments: Any) -> None:
    reference = build_sampler(**arguments, seed=3)
    expected = [batch.tolist() for epoch in range(40) for batch in reference.global_batches(epoch)]
    rows, loaders = [{"number": number} for number in range(arguments["num_rows"])], []
    for rank in range(num_slots):
        sampler = build_sampler(**arguments, seed=3, num_slots=num_slots)
        built = pytorch.DataLoader(rows, batch_sampler=sampler, collate_fn=collate_numbers)
        loader = built.get_data_loader(repeat=True, skip=skip, num_replicas=num_slots, rank=rank)
        assert len(loader) == len(reference)  # which is what Determined takes for an epoch
        loaders.append(iter(loader))
    for step in expected[skip : skip + 3 * len(reference)]:
        assert torch.cat([next(loader)["number"] for loader in loaders]).tolist() == step


Rows = list[dict[str, Any]]
SPLITS = ("train", "validation", "test")
SAMPLE: dict[str, Rows] = {split: read_lines(SAMPLE_DATA / f"{split}.json") for split in SPLITS}


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        pytest.param(".jsonl", write_lines, id="jsonl"),
        pytest.param(".JSON", write_lines, id="json lines, ending in capitals"),
        pytest.param(".json", lambda rows, path: path.write_text(json.dumps(rows, indent=1)), id="json, one list"),
        pytest.param(".parquet", lambda rows, path: pd.DataFrame(rows).to_parquet(path), id="parquet"),
        pytest.param(" [1]*?.json", write_lines, id="a name with characters of patterns"),
    ],
)
def test_files_are_read_as_they_were_written(ending: str, write: Callable[[Rows, Path], Any], tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{split}_file": str(tmp_path / f"{split}{ending}") for split in SPLITS}
    for split, rows in SAMPLE.items():
        write(rows, Path(files[f"{split}_file"]))
    loaded = default_load_dataset(DataConfig(**files))
    assert {split: rows.to_list() for split, rows in loaded.items()} == SAMPLE


@pytest.mark.parametrize(("saved", "splits"), [("splits", SPLITS), ("a split", ["train"]), ("files", SPLITS)])
def test_a_local_folder_is_a_data_set(saved: str, splits: Sequence[str], tmp_path: Path) -> None:
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in SAMPLE.items()})
    if saved == "files":
        for split, rows in SAMPLE.items():
            write_lines(rows, tmp_path / f"{split}.jsonl")
    else:
        (data if saved == "splits" else data["train"]).save_to_disk(tmp_path)
    loaded = default_load_dataset(DataConfig(dataset_name=str(tmp_path)))
    assert {split: rows.to_list() for split, rows in loaded.items()} == {split: SAMPLE[split] for split in splits}


@pytest.mark.parametrize("overwrite_cache", [False, True])
def test_a_file_that_changed_is_read_anew(overwrite_cache: bool, tmp_path: Path) -> None:
    config = DataConfig(train_file=str(tmp_path / "train.jsonl"), overwrite_cache=overwrite_cache)
    for number in (1, 2):
        (tmp_path / "train.jsonl").write_text(json.dumps({"number": number}) + "\n" * number)
        assert default_load_dataset(config)["train"].to_list() == [{"number": number}]


def test_without_a_data_set_or_files_the_message_says_what_to_set() -> None:
    with refuses("data.train_file: missing, and dataset_name is null. Set dataset_name"):
        default_load_dataset(DataConfig())


def make_splits(**sizes: int) -> datasets.DatasetDict:
    columns = {split: {"number": [f"{split}{i}" for i in range(size)]} for split, size in sizes.items()}
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(column) for split, column in columns.items()})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"train": 9, "validation": 4, "test": 2}),
        ({"max_train_samples": 3}, {"train": 3, "validation": 4, "test": 2}),
        ({"max_train_samples": 99}, {"train": 9, "validation": 4, "test": 2}),
        ({"max_eval_samples": 3}, {"train": 9, "validation": 3, "test": 2}),
        ({"validation_split_percentage": 50}, {"train": 9, "validation": 4, "test": 2}),
    ],
    ids=str,
)
def test_splits_keep_their_first_rows(options: dict[str, Any], expected: dict[str, int]) -> None:
    selected = select_splits(make_splits(train=9, validation=4, test=2), DataConfig(dataset_name="d", **options))
    assert {split: rows["number"][:] for split, rows in selected.items()} == {
        split: [f"{split}{i}" for i in range(n)] for split, n in expected.items()
    }


@given(
    documents=st.none() | st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=3, max_size=40),
    percentage=st.integers(20, 80),
)
def test_a_sample_of_train_becomes_the_validation_split(documents: list[str] | None, percentage: int) -> None:
    config = DataConfig(dataset_name="d", validation_split_percentage=percentage)
    found = make_splits(train=len(documents or [0] * 40))
    if documents is not None:
        found["train"] = found["train"].add_column("document", documents)
    selected = [select_splits(found, config) for _ in range(2)]
    assert list(found) == ["train"]  # what was handed over is left as it was
    train, validation = ([*split["number"]] for split in (selected[0]["train"], selected[0]["validation"]))
    assert [*selected[1]["validation"]["number"]] == validation  # the same whenever it is taken
    assert sorted(train + validation) == sorted(found["train"]["number"])
    if documents is None:
        assert len(validation) == round(len(train + validation) * percentage / 100)
        assert validation != found["train"]["number"][: len(validation)]
    else:  # rows of a document stay together, unless there is but one
        parts = [{documents[int(name[5:])] for name in names} - {""} for names in (train, validation)]
        assert train and validation and (not parts[0] & parts[1] or len({*documents}) == 1)


@pytest.mark.parametrize(
    ("found", "percentage", "said"),
    [
        ({"train": 10, "test": 3}, None, ["no validation split", "train, test", "data.validation_split_percentage"]),
        ({"train": 10}, 4, ["4% of 10 rows", "leaves 0 to validate", "validation_file"]),
        ({"train": 10}, 96, ["96% of 10 rows", "0 to train on", "validation_file"]),
        ({"train": 0, "validation": 1}, None, ["The train split has no rows"]),
        ({"train": 1, "validation": 0}, None, ["The validation split has no rows"]),
    ],
)
def test_splits_that_leave_nothing_are_refused(found: Any, percentage: float | None, said: list[str]) -> None:
    with refuses(*said):
        select_splits(make_splits(**found), DataConfig(dataset_name="d", validation_split_percentage=percentage))


def test_a_single_process_just_goes_and_keeps_its_error() -> None:
    with local_chief_first(core.DummyDistributedContext()):
        pass
    with pytest.raises(OSError, match="the disk is full"), local_chief_first(core.DummyDistributedContext()):
        raise OSError("the disk is full")


def test_who_is_interrupted_waits_for_nobody(monkeypatch: Patch) -> None:
    distributed = core.DummyDistributedContext()
    monkeypatch.setattr(distributed, "allgather", lambda _: pytest.fail("the others may have ended"))
    with pytest.raises(KeyboardInterrupt), local_chief_first(distributed):
        raise KeyboardInterrupt
