"""Which rows each slot trains and evaluates on at each step."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
import torch.utils.data
from determined import pytorch

from transformer_trial.data import group_by_tokens

LENGTH_GROUP_BATCHES = 16
"""Global batches that are sorted by length together: 95% of the tokens of WNUT 17's batches of 8 are then real. More
would save little, and make a batch depend on its rows' lengths rather than on chance."""

MIN_LENGTH_GROUPS = 4
"""Of an epoch, so that a batch of a small data set, too, has other rows in each epoch."""


def list_lengths(rows: datasets.Dataset, column: str) -> np.ndarray[Any, Any]:
    """The length of the list in each row of a column, without reading the lists."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:][column]).to_numpy()


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
        seed: Shuffles anew every epoch.
        lengths: Sub-tokens of each row. Where given, rows of similar length share a batch.
    """

    def __init__(
        self,
        num_rows: int,
        global_batch_size: int,
        num_slots: int,
        *,
        seed: int,
        lengths: Sequence[int] | np.ndarray[Any, Any] | None = None,
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
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.num_rows)
        if self.lengths is None:
            return self._chunks(order, self.global_batch_size)
        num_batches = len(self) // self.num_slots
        batches_per_group = max(1, min(LENGTH_GROUP_BATCHES, num_batches // MIN_LENGTH_GROUPS))
        groups = self._chunks(order, batches_per_group * self.global_batch_size)
        batches = [
            batch
            for group in groups
            for batch in self._chunks(group[np.argsort(-self.lengths[group], kind="stable")], self.global_batch_size)
        ]
        return [batches[i] for i in random.permutation(len(batches))]

    @staticmethod
    def _chunks(order: np.ndarray[Any, Any], size: int) -> list[np.ndarray[Any, Any]]:
        return [order[start : start + size] for start in range(0, len(order), size)]


class TokenBatchSampler(torch.utils.data.BatchSampler):
    """Yields rows for evaluation: those of similar length together, the longest first, in batches bounded by tokens.

    Determined deals the batches out to the slots in turn; each gets as many, of which the last may be empty.

    Args:
        lengths: Sub-tokens of each row.
        max_tokens: Sub-tokens of a batch, padding included; a longer row makes a batch of its own.
        num_slots: Slots that share the batches.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray[Any, Any], max_tokens: int, num_slots: int) -> None:
        self.batches = group_by_tokens(lengths, max_tokens)
        self.batches += [[]] * (-len(self.batches) % num_slots)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def build_data_loader(
    rows: datasets.Dataset,
    sampler: torch.utils.data.BatchSampler,
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
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def _leave_signals_to_the_trainer(worker_id: int) -> None:
    """A terminal sends Ctrl-C to the workers too, which have to live until the trainer has saved its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
