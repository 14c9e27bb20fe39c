"""The sample's training for a cluster, of which the first two runs are killed: at batch 300, and at batch 600."""

import os
import signal
from typing import Any

from ner_trial import NERTrial
from transformer_trial.local import run

first: list[int] = []  # the batch that this run began with


def train_batch(self: Any, batch: Any, epoch_idx: int, batch_idx: int, original: Any = NERTrial.train_batch) -> Any:
    first.append(batch_idx)
    if batch_idx == (300 if first[0] == 0 else 600 if first[0] < 500 else None):
        os.kill(os.getpid(), signal.SIGKILL)  # of which the container dies
    return original(self, batch, epoch_idx, batch_idx)


NERTrial.train_batch = train_batch  # type: ignore[method-assign]
run(NERTrial)
