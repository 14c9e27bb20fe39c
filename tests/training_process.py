"""Real training processes that start fast: a fork server has imported the libraries once."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from conftest import PROJECT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ner_trial", "transformer_trial.local", "torch.utils.tensorboard", "training_process"])

PHASES = {
    "training": ("transformer_trial.trial", "BaseTransformerTrial", "train_batch"),
    "validation": ("ner_trial", "WordPredictions", "update"),
    "metrics": ("ner_trial", "WordPredictions", "cross_slot_reduce"),
    "test split": ("ner_trial", "NERTrial", "evaluate_best"),
    "checkpoint": ("determined.pytorch", "_PyTorchTrialController", "_save"),
    "export": ("transformer_trial.callbacks", "BestModel", "export"),
    "exchange": ("transformer_trial.files", "_put_in_place", ""),
    "removal": ("transformer_trial.callbacks", "KeptCheckpoints", "on_checkpoint_upload_end"),
}
"""Where a training can be when it is interrupted, and the function that it is in then."""


def _train(arguments: Sequence[str], log: Path, signals: Sequence[tuple[str, int, int]], phase: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no fork server has made
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for number, (name, (module, owner, method)) in enumerate(PHASES.items()):
        due = {count: signum for phase_name, count, signum in signals if phase_name == name}
        target = sys.modules[module]
        holder, attribute = (getattr(target, owner), method) if method else (target, owner)
        setattr(holder, attribute, _watched(getattr(holder, attribute), number, due, phase))
    from ner_trial import NERTrial
    from transformer_trial.local import run

    os.chdir(PROJECT)
    run(NERTrial, arguments)


def _watched(function: Any, number: int, due: dict[int, int], phase: Any) -> Any:
    """The function, noting that it runs, and sending its process the signals that are due at its n-th call."""
    calls = 0

    @functools.wraps(function)
    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        before, phase.value = phase.value, number
        if calls in due:
            os.kill(os.getpid(), due[calls])
        try:
            return function(*arguments, **options)
        finally:
            phase.value = before

    return watched


class Training:
    """`train.py` in a process of its own.

    Args:
        arguments: Its command line.
        log: File that takes its output.
        signals: Triples of a phase, n and a signal that the process gets as it enters that phase the n-th time.
    """

    def __init__(self, arguments: Sequence[str], log: Path, signals: Sequence[tuple[str, int, int]] = ()) -> None:
        self.log = log
        self.phase = CONTEXT.Value("i", -1, lock=False)
        self.process: ForkServerProcess = CONTEXT.Process(target=_train, args=(arguments, log, signals, self.phase))
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, negative where a signal killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode

    def phase_name(self) -> str:
        return "start" if self.phase.value < 0 else list(PHASES)[self.phase.value]


def train(arguments: Sequence[str], log: Path, signals: Sequence[tuple[str, int, int]] = ()) -> int:
    return Training(arguments, log, signals).wait()
