"""Load and split data sets, and choose the rows of each batch, for any task. Nothing here imports Determined."""

import functools
import glob
import inspect
import logging
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
import torch.utils.data
from datasets.fingerprint import Hasher

from transformer_trial.config import DataConfig
from transformer_trial.errors import ConfigError, TrialError, reason_of

logger = logging.getLogger(__name__)

Lengths = Sequence[int] | np.ndarray[Any, Any]

PADDING = "is_padding"  # the key of a batch that counts for nothing
NOT_IN_ROWS = {"preprocessing_num_workers", "dataloader_num_workers", "overwrite_cache", "group_by_length"}

FILE_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}

# Data sets that came with a loading script, which datasets >= 4 refuses to run, and the same data without one.
SCRIPT_FREE_NAMES = dict.fromkeys(("conll2003", "eriktks/conll2003", "tner/conll2003"), "lhoestq/conll2003")

# Global batches that are sorted by length together. 95% of the tokens in WNUT 17's batches of 8 are then real. Larger
# groups save little more, and batches would depend on lengths rather than on chance.
LENGTH_GROUP_BATCHES = 16
MIN_LENGTH_GROUPS = 4  # an epoch has at least so many, so that small data sets, too, have other batches in each epoch


def default_load_dataset(config: DataConfig) -> datasets.DatasetDict:
    """Load the data set or the files that `data` names: the splits train, validation, test, every column as it is."""
    name = config.dataset_name
    # What is downloaded is read anew where the cache is to be overwritten.
    mode = "reuse_cache_if_exists" if config.overwrite_cache else None
    options = {"cache_dir": config.cache_dir, "download_mode": mode}
    if name is None:
        files = configured_files(config).items()
        return datasets.DatasetDict({split: _load_file(f"data.{split}_file", file, options) for split, file in files})
    try:
        if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(name)
        else:
            revision = config.dataset_revision
            splits = datasets.load_dataset(name, config.dataset_config_name, revision=revision, **options)
    except Exception as error:
        raise TrialError(_why_not_loaded(name, config, error)) from error
    if isinstance(splits, datasets.Dataset):
        splits = datasets.DatasetDict({"train": splits})
    if "train" not in splits:
        raise TrialError(f"data.dataset_name: {name} has no train split; it has {', '.join(splits)}.")
    return splits


def configured_files(config: DataConfig) -> dict[str, str]:
    """Return the file or glob of each split that has one. Raise a ConfigError if train has none."""
    if config.train_file is None:
        advice = "Set dataset_name to a hub name or folder, or train_file (and validation_file) to your files."
        raise ConfigError([f"data.train_file: missing, and dataset_name is null. {advice}"])
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    return {split: file for split, file in files.items() if file is not None}


def _why_not_loaded(name: str, config: DataConfig, error: Exception) -> str:
    reason = reason_of(error)
    if name in SCRIPT_FREE_NAMES and config.dataset_revision is None:  # whatever the reason is without network
        advice = f"set dataset_name: {SCRIPT_FREE_NAMES[name]}, which holds the same data without a script"
    elif "script" in reason.lower():
        advice = "give the files' own revision (dataset_revision: refs/convert/parquet), or a data set without a script"
    else:
        accepted = "Accepted are a data set's name on the Hugging Face hub and a local folder"
        advice = "Private ones need a token in HF_TOKEN, and without network the data set has to be in the cache."
        return f"data.dataset_name: cannot load {name}: {reason}. {accepted}. {advice}"
    return f"data.dataset_name: {name} needs a loading script, which the datasets library no longer runs; {advice}."


def _load_file(key: str, file: str, options: Mapping[str, Any]) -> datasets.Dataset:
    builder = FILE_BUILDERS.get(Path(file.removesuffix(".gz")).suffix.lower())
    if builder is None:
        raise TrialError(f"{key}: {file} ends in none of {', '.join(FILE_BUILDERS)}, with or without .gz.")
    pattern = glob.escape(file) if Path(file).exists() else file
    try:
        return datasets.load_dataset(builder, data_files=pattern, split="train", **options)
    except Exception as error:
        reason = reason_of(error.__cause__ or error)
        raise TrialError(f"{key}: cannot read {file} as {builder}: {reason}.") from error


def select_splits(
    splits: datasets.DatasetDict, config: DataConfig, *, needs_validation: bool = True
) -> datasets.DatasetDict:
    """Make a validation split where there is none, and keep as many rows of each split as `config` asks for."""
    splits = datasets.DatasetDict(splits)
    if "validation" not in splits and (needs_validation or config.validation_split_percentage is not None):
        if config.validation_split_percentage is None:
            advice = "(5, say) to validate on a sample of the training split, or give a validation_file"
            found = f"There is no validation split; found are {', '.join(splits)}"
            raise TrialError(f"{found}. Set data.validation_split_percentage {advice}.")
        train, percentage = splits["train"], config.validation_split_percentage
        size = round(train.num_rows * percentage / 100)
        if not 0 < size < train.num_rows:
            leaves = f"leaves {size} to validate on and {train.num_rows - size} to train on"
            found = f"data.validation_split_percentage: {percentage:g}% of {train.num_rows} rows {leaves}"
            raise TrialError(f"{found}. Give another percentage, or a validation_file.")
        is_validation = _sample(train, size)
        splits["validation"] = train.select(np.flatnonzero(is_validation))
        splits["train"] = train.select(np.flatnonzero(~is_validation))
        logger.info("Validating on %d of the %d rows of train.", splits["validation"].num_rows, train.num_rows)
    elif config.validation_split_percentage is not None:
        logger.warning("data.validation_split_percentage has no effect: there is a validation split.")
    for split, limit in (("train", config.max_train_samples), ("validation", config.max_eval_samples)):
        if split in splits and splits[split].num_rows == 0:
            raise TrialError(f"The {split} split has no rows. Give one with at least one row.")
        if split in splits and limit is not None:
            splits[split] = splits[split].select(range(min(limit, splits[split].num_rows)))
    return splits


def _sample(rows: datasets.Dataset, size: int) -> np.ndarray[Any, Any]:
    """Choose so many rows by chance, or documents with about as many, where the column `document` names them.

    They are the same for every seed of a training, so that models can be compared. Returns a mask, (rows,).
    """
    documents = rows["document"][:] if "document" in rows.column_names else []
    units = np.arange(rows.num_rows)
    if len({*documents}) > 1 or documents[:1] == [""]:  # else all rows are one document, which has to be cut
        units = np.unique([name or f"\0{i}" for i, name in enumerate(documents)], return_inverse=True)[1]
    counts = np.bincount(units)
    chosen, room = list[int](), size
    for unit in np.random.default_rng(0).permutation(len(counts)):
        if counts[unit] <= room:
            chosen.append(unit)
            room -= counts[unit]
    return np.isin(units, chosen or [counts.argmin()])


def as_datasets(splits: Mapping[str, Any]) -> datasets.DatasetDict:
    """The splits that a trial's `load_datasets` returned, each a data set, a list of rows, or a function of them."""
    rows = {split: rows() if callable(rows) else rows for split, rows in splits.items()}
    if "train" not in rows:
        raise TrialError(f"There is no train split; found are {', '.join(rows) or 'none'}.")
    return datasets.DatasetDict(
        {split: r if isinstance(r, datasets.Dataset) else datasets.Dataset.from_list([*r]) for split, r in rows.items()}
    )


def map_rows(rows: datasets.DatasetDict, function: Callable[..., Any], tokenizer: Any, config: DataConfig) -> Any:
    """Apply a trial's `tokenize_rows` to each split, or find what it made in the cache of the datasets library."""
    code = Path(inspect.getfile(function)).read_bytes()  # the library would not notice another version of it
    parts = [function.__qualname__, code, tokenizer, config.model_dump(exclude=NOT_IN_ROWS)]
    return datasets.DatasetDict(
        {
            split: data.map(
                function,
                batched=True,
                fn_kwargs={"tokenizer": tokenizer, "data_config": config},
                remove_columns=data.column_names,
                num_proc=config.preprocessing_num_workers,
                load_from_cache_file=not config.overwrite_cache,
                new_fingerprint=Hasher.hash([data._fingerprint, *parts]),
            )
            for split, data in rows.items()
        }
    )


def check_lengths(splits: datasets.DatasetDict, limit: int | None) -> None:
    """Raise a TrialError where a row has more sub-tokens than the model has positions; torch's error would not say."""
    for split, rows in splits.items() if limit is not None else ():
        lengths = list_lengths(rows, "input_ids")
        if len(lengths) and lengths.max() > limit:
            found = f"The {split} split: row {lengths.argmax() + 1} has {lengths.max()} sub-tokens"
            advice = f"Truncate in tokenize_rows (truncation=True, max_length={limit}), or cut rows into windows."
            raise TrialError(f"{found}; accepted are at most {limit}, the model's positions. {advice}")


@dataclass
class PaddingCollator:
    """Makes batches of rows, also of none: a slot's piece of a batch may be empty, and has to be a batch nevertheless.

    It is then a batch of `stand_in`, a row, under whose key `PADDING` the trial knows that it counts for nothing.
    """

    collate: Callable[[list[Any]], Any]
    stand_in: dict[str, Any]

    def __call__(self, rows: list[Any]) -> Any:
        batch = dict(self.collate(rows or [self.stand_in]))  # Determined does not take transformers' BatchEncoding
        return batch if rows else {**batch, PADDING: torch.ones(1)}


def choose_evaluation_tokens(device: torch.device) -> int:
    """Sub-tokens of a batch without gradients. More would not fit a CPU's caches; fewer would leave a GPU idle."""
    return 16384 if device.type == "cuda" else 1024


def group_by_tokens(
    lengths: Lengths, max_tokens: int, max_rows: int | None = None, *, num_slots: int = 1
) -> list[list[int]]:
    """Group rows of similar length, the longest first, so that little is padding and memory runs out at once or never.

    A batch has at most `max_tokens` sub-tokens, padding included, where it has more than one row, and at most
    `max_rows` rows. Each of the slots gets as many batches, of which the last may be empty.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if not batches or longest * (len(batches[-1]) + 1) > max_tokens or len(batches[-1]) == max_rows:
            batches.append([])
            longest = max(int(lengths[row]), 1)
        batches[-1].append(row)
    return batches + [[]] * (-len(batches) % num_slots)


def list_lengths(rows: datasets.Dataset, column: str) -> np.ndarray[Any, Any]:
    """Return the length of the list in each row of a column, without reading the lists."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:][column]).to_numpy()


def checksum(rows: datasets.Dataset) -> int:
    """A number that tells rows of model inputs from others, and from the same in another order."""
    chunks = rows.with_format("arrow")[:]["input_ids"].chunks
    return functools.reduce(lambda crc, chunk: zlib.crc32(chunk.flatten().to_numpy(), crc), chunks, rows.num_rows)


class SlotBatchSampler(torch.utils.data.BatchSampler):
    """Yields the rows of each global batch, in as many pieces as there are slots, one piece after the other.

    Determined deals the pieces out to the slots in turn, so that step k of the training is always the k-th global batch
    of the epoch, and every row is seen once an epoch. A piece may be empty: the last batch can have fewer rows than
    there are slots. The order is a function of seed and epoch alone, so that a resumed training, which skips what it
    has seen, meets the same batches. Where `lengths` are given, rows of similar length share a batch.
    """

    def __init__(
        self, num_rows: int, global_batch_size: int, num_slots: int, *, seed: int, lengths: Lengths | None = None
    ) -> None:
        self.num_rows, self.global_batch_size, self.num_slots, self.seed = num_rows, global_batch_size, num_slots, seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def __len__(self) -> int:
        """The number of pieces in an epoch, a multiple of the number of slots."""
        return -(-self.num_rows // self.global_batch_size) * self.num_slots

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.global_batches(self.epoch)
        self.epoch += 1
        for batch in batches:
            for piece in np.array_split(batch, self.num_slots):
                yield piece.tolist()

    def global_batches(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """Return the row numbers of each global batch of an epoch."""
        random = np.random.default_rng([self.seed, epoch])
        order, size = random.permutation(self.num_rows), self.global_batch_size
        if self.lengths is not None:
            num_batches = len(self) // self.num_slots
            group_size = max(1, min(LENGTH_GROUP_BATCHES, num_batches // MIN_LENGTH_GROUPS)) * size
            for start in range(0, self.num_rows, group_size):
                group = order[start : start + group_size]
                group[:] = group[np.argsort(-self.lengths[group], kind="stable")]
        batches = np.split(order, np.arange(size, self.num_rows, size))
        return batches if self.lengths is None else [batches[i] for i in random.permutation(len(batches))]


def ignore_interrupts(worker_id: int) -> None:
    """Let a data worker ignore Ctrl-C, which terminals send to it too: it must live until the checkpoint is saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
