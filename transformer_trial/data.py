"""Data sets in, batches out, for any task: loading, splitting, and which rows each slot trains on at each step."""

import contextlib
import glob
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch.utils.data
from determined import core, pytorch

from transformer_trial.config import DataConfig
from transformer_trial.parsing import ConfigError, TrialError

logger = logging.getLogger(__name__)

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}

FILE_ADVICE = {
    "csv": "Write it as UTF-8, with csv.writer or DataFrame.to_csv, which put quotes where they are needed.",
    "json": "Write each row as a JSON object (json.dumps) on a line of its own, as UTF-8.",
    "parquet": "Write it anew, with DataFrame.to_parquet, say.",
}

SIGNS_OF_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
"""What the datasets library says of them; the latter of parquet files."""

# Data sets that came with a loading script, which datasets >= 4 refuses to run, and the same data without one.
SCRIPT_FREE_NAMES = dict.fromkeys(("conll2003", "eriktks/conll2003", "tner/conll2003"), "lhoestq/conll2003")

# Sorting so many global batches by length makes 96% to 98% of the tokens real, and leaves the order random enough.
LENGTH_GROUP_BATCHES = 50


def default_load_dataset(config: DataConfig) -> datasets.DatasetDict:
    """Load the data set or the files that `data` names, with the splits they have: train, validation, test.

    Args:
        config: The `data` section.

    Returns:
        The splits under their usual names, every column as it was found.

    Raises:
        TrialError: If something is missing or cannot be read; it names the key and the file.
    """
    if config.dataset_name is not None:
        return _load_named(config.dataset_name, config)
    if config.train_file is None:
        problem = (
            "data.train_file: missing, and dataset_name is null. Set dataset_name to a hub name or folder, "
            "or train_file (and validation_file) to your .csv, .json, .jsonl or .parquet files."
        )
        raise ConfigError([problem])
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    return datasets.DatasetDict({s: _load_file(f"data.{s}_file", f, config) for s, f in files.items() if f is not None})


def _load_named(name: str, config: DataConfig) -> datasets.DatasetDict:
    try:
        if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(name)
        else:
            splits = datasets.load_dataset(
                name, config.dataset_config_name, revision=config.dataset_revision, **_cache_options(config)
            )
    except Exception as error:
        raise TrialError(_why_not_loaded(name, config, error)) from error
    if isinstance(splits, datasets.Dataset):
        splits = datasets.DatasetDict({"train": splits})
    if "train" not in splits:
        raise TrialError(f"data.dataset_name: {name} has no train split; it has {', '.join(splits)}.")
    return splits


def _why_not_loaded(name: str, config: DataConfig, error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if name in SCRIPT_FREE_NAMES and config.dataset_revision is None:  # whatever the reason is without network
        advice = f"set dataset_name: {SCRIPT_FREE_NAMES[name]}, which holds the same data without a script"
    elif "script" in reason.lower():
        advice = "give the files' own revision (dataset_revision: refs/convert/parquet), or a data set without a script"
    else:
        return (
            f"data.dataset_name: cannot load {name}: {reason}. Accepted are a data set's name on the Hugging Face hub "
            "and a local folder. Private ones need a token in HF_TOKEN, and without network the data set has to be in "
            "the cache."
        )
    return f"data.dataset_name: {name} needs a loading script, which the datasets library no longer runs; {advice}."


def _cache_options(config: DataConfig) -> dict[str, str | None]:
    mode = "reuse_cache_if_exists" if config.overwrite_cache else None  # what is downloaded is read anew
    return {"cache_dir": config.cache_dir, "download_mode": mode}


def _load_file(key: str, file: str, config: DataConfig) -> datasets.Dataset:
    path = Path(file).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TrialError(
            f"{key}: {file} {what} (looked for {path.absolute()}). Give a file; on a cluster, a path relative to the "
            "folder that was uploaded, or one on a mounted disk."
        )
    file_format = FILE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise TrialError(f"{key}: {file} ends in {path.suffix!r}; accepted are {', '.join(FILE_FORMATS)}.")
    # pandas would read the word "null" of a csv cell as a missing value.
    arguments = {"keep_default_na": False} if file_format == "csv" else {}
    no_rows = TrialError(f"{key}: {file} has no rows. Give a file with at least one.")
    if path.stat().st_size == 0:
        raise no_rows
    try:
        rows = datasets.load_dataset(
            file_format, data_files=glob.escape(str(path)), split="train", **_cache_options(config), **arguments
        )
        rows.data.validate(full=True)  # else a text that is not UTF-8 is found out when it is read
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        if any(sign in reason for sign in SIGNS_OF_NO_ROWS):
            raise no_rows from None
        why = (_broken_line(path) if file_format == "json" else None) or reason or type(error).__name__
        raise TrialError(f"{key}: cannot read {file} as {file_format}: {why}. {FILE_ADVICE[file_format]}") from error
    return rows


def _broken_line(path: Path) -> str | None:
    """What is wrong with the first bad line of a file of JSON lines; the library counts from another line's number."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith(b"["):
                return None  # all rows in one list
            try:
                json.loads(line if line.strip() else "{}")
            except ValueError as error:
                return f"line {number}: {getattr(error, 'msg', error)}"
    return None


def select_splits(splits: datasets.DatasetDict, config: DataConfig) -> datasets.DatasetDict:
    """Make sure that there is a validation split, and keep of each split what the configuration asks for.

    Raises:
        TrialError: If there is no validation split and no `validation_split_percentage` to make one with.
    """
    splits = datasets.DatasetDict(splits)
    if "validation" not in splits:
        if config.validation_split_percentage is None:
            raise TrialError(
                f"There is no validation split; found are {', '.join(splits)}. Set data.validation_split_percentage "
                "(5, say) to validate on the first rows of the training split, or give a validation_file."
            )
        train = splits["train"]
        num_validation_rows = round(train.num_rows * config.validation_split_percentage / 100)
        if not 0 < num_validation_rows < train.num_rows:
            raise TrialError(
                f"data.validation_split_percentage: {config.validation_split_percentage:g}% of {train.num_rows} rows "
                f"leaves {num_validation_rows} to validate on and {train.num_rows - num_validation_rows} to train on. "
                "Give another percentage, or a validation_file."
            )
        splits["validation"] = train.select(range(num_validation_rows))
        splits["train"] = train.select(range(num_validation_rows, train.num_rows))
    for split in ("train", "validation"):
        if splits[split].num_rows == 0:
            raise TrialError(f"The {split} split has no rows. Give one with at least one row.")
    for split, limit in (("train", config.max_train_samples), ("validation", config.max_eval_samples)):
        if limit is not None:
            splits[split] = splits[split].select(range(min(limit, splits[split].num_rows)))
    return splits


class SlotBatchSampler(torch.utils.data.BatchSampler):
    """Yields the rows of each global batch, in as many pieces as there are slots, one piece after the other.

    Determined deals the pieces out to the slots in turn, over and over, so that step k of the training is always the
    k-th global batch of the epoch, and every row is seen once an epoch. A piece may be empty: the last batch can have
    fewer rows than there are slots. The order is a function of seed and epoch alone, so that a resumed training, which
    skips what it has seen, meets the same batches.

    Args:
        num_rows: Rows of the data set.
        global_batch_size: Rows of a batch, over all slots.
        num_slots: Pieces that a batch is split into.
        seed: Shuffles anew every epoch; None keeps the rows in their order.
        lengths: Sub-tokens of each row. Where given, rows of similar length share a batch.
    """

    def __init__(
        self,
        num_rows: int,
        global_batch_size: int,
        num_slots: int,
        *,
        seed: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.num_rows = num_rows
        self.global_batch_size = global_batch_size
        self.num_slots = num_slots
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def __len__(self) -> int:
        """Pieces an epoch: a multiple of the number of slots."""
        return -(-self.num_rows // self.global_batch_size) * self.num_slots

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.global_batches(self.epoch)
        self.epoch += 1
        for batch in batches:
            for piece in np.array_split(batch, self.num_slots):
                yield piece.tolist()

    def global_batches(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """The row numbers of each global batch of an epoch."""
        order = np.arange(self.num_rows)
        if self.seed is not None:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(order)
        if self.lengths is None:
            return self._chunks(order, self.global_batch_size)
        groups = self._chunks(order, LENGTH_GROUP_BATCHES * self.global_batch_size)
        batches = [
            batch
            for group in groups
            for batch in self._chunks(group[np.argsort(-self.lengths[group], kind="stable")], self.global_batch_size)
        ]
        if self.seed is not None:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    @staticmethod
    def _chunks(order: np.ndarray[Any, Any], size: int) -> list[np.ndarray[Any, Any]]:
        return [order[start : start + size] for start in range(0, len(order), size)]


def build_data_loader(
    rows: datasets.Dataset,
    sampler: SlotBatchSampler,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    num_workers: int = 0,
) -> pytorch.DataLoader:
    """The loader that Determined repeats, skips in and shards.

    Args:
        rows: Tokenized rows.
        sampler: Decides which rows make a batch.
        collate: Turns rows into a dict of tensors, also where there are none: a slot's piece of a batch may be empty.
        num_workers: Processes that collate.
    """
    return pytorch.DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


@contextlib.contextmanager
def local_chief_first(distributed: core.DistributedContext) -> Iterator[None]:
    """Let one process of each node do the body first, so that the others find its downloads and caches.

    Raises:
        TrialError: On the others, if the first one failed, with its error.
    """
    first = distributed.local_rank == 0
    failure = None if first else distributed.broadcast_local(None)
    if failure is not None:
        raise TrialError(f"The first process of this node failed, and this one with it: {failure}")
    try:
        yield
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        if first:
            distributed.broadcast_local(failure)
