"""Processes: Python run to its end, and real trainings that start fast, since a fork server has the libraries."""

import functools
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import PROJECT, Config, write_config

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ner_trial", "transformer_trial.local", "torch.utils.tensorboard", "training_process"])

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

READING = {"reading": ("ner.data", "", "parse_cells"), "tokenizing": ("ner_utils", "", "tokenize_and_align_labels")}
PHASES = {
    "training": ("transformer_trial.trial", "BaseTransformerTrial", "train_batch"),
    "validation": ("ner_trial", "NERTrial", "evaluate"),
    "metrics": ("ner_trial", "NERTrial", "score"),
    "test split": ("ner_trial", "NERTrial", "evaluate_best"),
    "checkpoint": ("determined.pytorch", "_PyTorchTrialController", "_save"),
    "export": ("transformer_trial.callbacks", "BestModel", "export"),
    "exchange": ("transformer_trial.files", "", "_put_in_place"),
    "removal": ("transformer_trial.callbacks", "KeptCheckpoints", "on_checkpoint_upload_end"),
}
"""Where a training can be when it is interrupted, and the function that it is in then; the exchange is of folders.

What stands in READING comes before it.
"""

Changes = Sequence[Callable[[], object]]
"""What a process calls before it trains."""

Signals = Sequence[tuple[str, int, int]]
"""Triples of a phase, n and a signal that the process gets as it enters that phase the n-th time."""


def run_python(*arguments: object, status: int = 0, folder: Path = PROJECT, **env: str) -> tuple[str, str]:
    """Run Python in a folder until it ends with this exit status; returns its output and its errors."""
    command, env = [sys.executable, *map(str, arguments)], {**os.environ, **env}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stderr
    return result.stdout, result.stderr


def send_output_to(log: Path) -> None:
    """Let this process write its output and its errors to a file."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    how: Any = {"buffering": 1, "closefd": False, "errors": "backslashreplace"}  # as standard error has it
    sys.stdout, sys.stderr = (open(number, "w", **how) for number in (1, 2))  # noqa: SIM115


def _train(arguments: Sequence[str], log: Path, signals: Signals, phase: Any, env: Any, changes: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no fork server has made
    os.environ.update(env)
    if "HF_DATASETS_CACHE" in env:  # read when the library was imported
        datasets.config.HF_DATASETS_CACHE = Path(env["HF_DATASETS_CACHE"])
    send_output_to(log)
    for number, (name, (module, owner, function)) in enumerate({**PHASES, **READING}.items()):
        due = {count: signum for phase_name, count, signum in signals if phase_name == name}
        holder = getattr(sys.modules[module], owner) if owner else sys.modules[module]
        setattr(holder, function, _watched(getattr(holder, function), number, due, phase))
    for change in changes:
        change()
    from ner_trial import NERTrial
    from transformer_trial.local import run

    os.chdir(PROJECT)
    run(NERTrial, arguments, follows_entrypoint=True)


def _watched(function: Any, number: int, due: dict[int, int], phase: Any) -> Any:
    """The function, noting that it runs, and sending its process the signals that are due at its n-th call."""
    calls = 0

    @functools.wraps(function)
    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += not (isinstance(arguments[0], Path) and arguments[0].is_file())  # a file has no exchange of two steps
        before, phase.value = phase.value, number
        if calls in due:
            os.kill(os.getpid(), due[calls])
        try:
            return function(*arguments, **options)
        finally:
            phase.value = before

    return watched


class Training:
    """`train.py` with a command line, in a process of its own: its output goes to `log`, and `env` is added to it."""

    def __init__(
        self, arguments: Sequence[str], log: Path, signals: Signals = (), env: Mapping[str, str] = {},
        changes: Changes = (),
    ) -> None:  # fmt: skip
        self.log = log
        self.phase = CONTEXT.Value("i", -1, lock=False)
        options = (arguments, log, signals, self.phase, env, changes)
        self.process: ForkServerProcess = CONTEXT.Process(target=_train, args=options)
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, negative where a signal killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode

    def phase_name(self) -> str:
        return "start" if self.phase.value < 0 else [*PHASES, *READING][self.phase.value]


Run = Callable[..., str]
"""The fixture `run`."""


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Run:
    """Train the configuration as it is then, in the folder of a name, to an exit status; returns what it logged."""

    def run(name: str, *arguments: str, status: int | tuple[int, ...] = 0, **options: Any) -> str:
        log = tmp_path / f"{Path(name).name}.log"
        log.unlink(missing_ok=True)
        found = Training([*write_config(config, tmp_path, name), *arguments], log, **options).wait()
        assert found in (status if isinstance(status, tuple) else (status,)), log.read_text()
        return log.read_text()

    return run


def start_ranks(
    arguments: Sequence[str], log: Path, num_ranks: int, nodes: int = 1, signals: Mapping[int, Signals] = {},
    changes: Changes = (),
) -> list[Training]:  # fmt: skip
    """Start processes as torchrun does, on as many nodes, each of which has a cache of its own beside the log."""
    with socket.create_server(("", 0)) as server:
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": str(num_ranks)}
    local_size = num_ranks // nodes
    env |= {"LOCAL_WORLD_SIZE": str(local_size), "GROUP_WORLD_SIZE": str(nodes)}
    ranks = []
    for rank in range(num_ranks):
        node, local_rank = divmod(rank, local_size)
        env |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "GROUP_RANK": str(node)}
        if nodes > 1:
            env["HF_DATASETS_CACHE"] = str(log.with_name(f"cache{node}"))
        ranks.append(Training(arguments, log, signals.get(rank, ()), dict(env), changes))
    return ranks


def wait_for_all(ranks: Sequence[Training], seconds: float = 120) -> list[int]:
    """Their exit statuses; none is left behind."""
    end = time.monotonic() + seconds
    try:
        return [training.wait(max(end - time.monotonic(), 0.1)) for training in ranks]
    finally:
        for training in ranks:
            training.process.kill()
