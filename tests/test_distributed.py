"""Several processes under torchrun: together they do what one does, go on like one, and none of them is left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from conftest import PROJECT, read_metrics

NOTING_TRAIN_PY = """
import datetime, json, os, sys, time
import torch, transformers
from ner_trial import NERTrial
from transformer_trial import resume, run

folder, rank, local_rank = os.getcwd(), int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))

def note(name, value):
    with open(f"{folder}/{name}{rank}", "a") as file:
        file.write(json.dumps(value) + "\\n")

def train_batch(self, batch, epoch_idx, batch_idx, original=NERTrial.train_batch):
    result = original(self, batch, epoch_idx, batch_idx)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    note("seen", [batch_idx, rows])
    if os.environ.get("PAUSE") == f"{rank}:{batch_idx + 1}":  # until it is ended
        note("paused", batch_idx + 1)
        end = time.monotonic() + 60
        while self.stop_signal is None and time.monotonic() < end:
            time.sleep(0.01)
    return result

def clip_grad_norm_(*arguments, original=torch.nn.utils.clip_grad_norm_):
    norm = original(*arguments)
    note("norms", float(norm))
    return norm

def tokenize(self, texts, *arguments, original=transformers.PreTrainedTokenizerBase.__call__, **options):
    note("tokenized", len(texts))
    return original(self, texts, *arguments, **options)

NERTrial.train_batch, torch.nn.utils.clip_grad_norm_ = train_batch, clip_grad_norm_
transformers.PreTrainedTokenizerBase.__call__ = tokenize
note("pid", os.getpid())
"""
"""The script of these tests: train.py, each of whose processes notes what it does; what a test adds follows."""


class Training:
    """The noting script, in one process or under torchrun.

    Args:
        config: What it trains.
        folder: Its working directory, which takes its output and, in `run`, its results.
        num_processes: Of each node.
        arguments: More of its command line.
        nodes: As many torchruns stand for nodes, each with caches of its own.
        more: Code before the training starts.
        pause: Rank and number of batches after which that process waits for its end.
    """

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        num_processes: int,
        *arguments: str,
        nodes: int = 1,
        more: str = "",
        pause: tuple[int, int] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "noting_train.py").write_text(f"{NOTING_TRAIN_PY}\n{more}\nrun.run(NERTrial)\n")
        for file in [*folder.glob("pid*"), *folder.glob("paused*"), *folder.glob("log")]:  # of the part before
            file.unlink()
        self.folder, self.num_processes, self.launchers = folder, num_processes * nodes, []
        command = ["noting_train.py", "config.yaml", "--output-dir", str(folder / "run"), *arguments]
        with contextlib.ExitStack() as stack:  # ports that are free: others on this machine may train, too
            sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(3)]
            master, *comm = [str(server.getsockname()[1]) for server in sockets]
        self.log = folder / "log"
        for node in range(nodes):
            launcher = [sys.executable]
            if self.num_processes > 1:
                launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
                launcher += ["--nnodes", str(nodes), "--node-rank", str(node)]
                launcher += ["--master-addr", "127.0.0.1", "--master-port", master]
            env = {"PYTHONPATH": str(PROJECT), "PAUSE": "{}:{}".format(*pause) if pause else ""}
            env |= {f"INTER_TRAIN_PROCESS_COMM_PORT_{number}": port for number, port in enumerate(comm, 1)}
            if nodes > 1:
                env["HF_DATASETS_CACHE"] = str(folder / f"cache{node}")
            with self.log.open("ab") as log:
                self.launchers.append(
                    # In a session of its own, as a terminal's job is in a group of its own.
                    subprocess.Popen(
                        [*launcher, *command], cwd=folder, env=os.environ | env, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing running, whatever failed."""
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()
        for pid in filter(self.is_running, self.pids()):
            os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Of the processes that train, as far as they have come."""
        return [int(file.read_text()) for file in sorted(self.folder.glob("pid*")) if file.read_text()]

    @staticmethod
    def is_running(pid: int) -> bool:
        """Whether this is a process of ours: that number may have become another's."""
        try:
            return b"noting_train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            return False

    def wait_for_pause(self) -> None:
        end = time.monotonic() + 120
        while not list(self.folder.glob("paused*")):
            assert self.launchers[0].poll() is None and time.monotonic() < end, self.output()
            time.sleep(0.02)

    def wait(self, seconds: float = 120) -> int:
        """The first exit status other than 0, if there is any."""
        end = time.monotonic() + seconds
        try:
            codes = [launcher.wait(max(end - time.monotonic(), 0.1)) for launcher in self.launchers]
        except subprocess.TimeoutExpired:
            pytest.fail(f"It has not ended in {seconds} s.\n{self.output()}")
        assert not any(map(self.is_running, self.pids())), f"One is still there.\n{self.output()}"
        return next((code for code in codes if code), 0)

    def output(self) -> str:
        return self.log.read_text()


def train(config: dict[str, Any], folder: Path, num_processes: int, *arguments: str, **options: Any) -> Path:
    """Train to the end; returns the folder."""
    with Training(config, folder, num_processes, *arguments, **options) as training:
        assert training.wait() == 0, training.output()
    return folder


def read_notes(folder: Path, name: str) -> dict[int, list[Any]]:
    """Of each process that has noted such a thing, what it has noted."""
    files = sorted(folder.glob(f"{name}[0-9]"))
    return {int(file.name[-1]): [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def rows_of_steps(folder: Path) -> dict[int, list[list[int]]]:
    """The rows (sub-tokens) that each step was trained on, by whatever process."""
    steps: dict[int, list[list[int]]] = {}
    for lines in read_notes(folder, "seen").values():
        for step, rows in lines:  # a piece of a batch that has no rows is a row of one sub-token, padding
            steps.setdefault(step, []).extend(row for row in rows if len(row) > 1)
    return {step: sorted(rows) for step, rows in sorted(steps.items())}


def assert_trained_alike(folder: Path, alone: Path) -> None:
    """Losses, gradients, metrics and weights are those of one process, but for the order of sums."""
    for group in ("training", "validation"):
        lines, expected = read_metrics(folder / "run", group), read_metrics(alone / "run", group)
        assert len(lines) == len(expected) > 0
        for line, expected_line in zip(lines, expected):
            assert line.pop("group") == expected_line.pop("group") == group
            assert line == pytest.approx(expected_line, rel=2e-4)
    assert rows_of_steps(folder) == rows_of_steps(alone)
    norms, expected_norms = (read_notes(path, "norms")[0] for path in (folder, alone))
    assert norms == pytest.approx(expected_norms, rel=2e-4)
    weights, expected_weights = (
        safetensors.torch.load_file(path / "run" / "model" / "model.safetensors") for path in (folder, alone)
    )
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-4)


def checkpoint_steps(folder: Path) -> list[int]:
    """After how many batches the checkpoints that remain were saved."""
    files = (folder / "run").glob("checkpoints/determined/*/metadata.json")
    return sorted(json.loads(file.read_text())["steps_completed"] for file in files)


def newest_checkpoint(folder: Path) -> Path:
    files = (folder / "run").glob("checkpoints/determined/*/metadata.json")
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    """24 batches, in 4 epochs whose last batch has one row; periods end amid an accumulation."""
    # Without that epsilon Adam makes whole steps of gradients that are nothing but rounding.
    config["hyperparameters"] |= {"learning_rate": 3e-2, "adam_epsilon": 1e-4}
    config["data"] |= {"max_train_samples": 41, "max_eval_samples": 33, "group_by_length": True}
    config["searcher"]["max_length"] = {"epochs": 4}
    config |= {"scheduling_unit": 1, "min_validation_period": {"batches": 7}}
    return config | {"optimizations": {"aggregation_frequency": 3}}


def test_processes_of_several_nodes_do_what_one_does(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"] |= {"max_eval_samples": 3, "overwrite_cache": True}  # the fourth process has nothing to validate
    config["searcher"]["max_length"] = {"batches": 13}
    slow = """
def init_process_group(*arguments, original=torch.distributed.init_process_group, **options):
    original(*arguments, **options)
    torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=5))

def load_datasets(self, original=NERTrial.load_datasets):
    time.sleep(7 if rank == 2 else 0)  # it downloads: the others wait for longer than torch would
    return original(self)

torch.distributed.init_process_group, NERTrial.load_datasets = init_process_group, load_datasets
"""

    alone = train(config, tmp_path / "alone", 1)
    together = train(config, tmp_path / "together", 2, nodes=2, more=slow)

    assert_trained_alike(together, alone)
    assert len({len(lines) for lines in read_notes(together, "seen").values()}) == 1  # none has a step less
    # The first process of each node makes the caches, and only that.
    assert read_notes(together, "tokenized") == {0: [41, 3], 2: [41, 3]}
    for folder in (together, alone):  # no trace of data-parallel training, which Determined's loader would stumble on
        for file in (folder / "run").glob("checkpoints/determined/*/state_dict.pth"):
            (saved,) = torch.load(file, weights_only=False)["models_state_dict"]
            assert "classifier.weight" in saved


def test_after_ctrl_c_a_run_goes_on_with_fewer_or_more_processes(config: dict[str, Any], tmp_path: Path) -> None:
    alone = train(config, tmp_path / "alone", 1)
    epochs = [list(rows_of_steps(alone).values())[start : start + 6] for start in range(0, 24, 6)]
    assert all(len({tuple(row) for rows in epoch for row in rows}) == 41 for epoch in epochs)
    scores = [line["accuracy_score"] for line in read_metrics(alone / "run", "validation")]
    assert len(set(scores)) > 2, "it has to learn something that a difference would change"

    with Training(config, tmp_path / "one", 2, pause=(0, 8)) as training:
        training.wait_for_pause()
        os.killpg(training.launchers[0].pid, signal.SIGINT)
        assert training.wait() != 0
    assert "SIGINT: saving a checkpoint" in training.output()
    assert checkpoint_steps(tmp_path / "one")[-1] == 10  # amid an accumulation, and an epoch
    shutil.copytree(tmp_path / "one", tmp_path / "three")

    for name, num_processes in (("one", 1), ("three", 3)):
        train(config, tmp_path / name, num_processes, "--resume", "auto")
        assert len(read_notes(tmp_path / name, "seen")) == max(num_processes, 2)
        assert_trained_alike(tmp_path / name, alone)


def test_whatever_ends_several_processes_they_go_on_exactly(
    config: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "dropout_model")
    model_config = json.loads((model / "config.json").read_text())
    model_config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (model / "config.json").write_text(json.dumps(model_config))
    config["hyperparameters"]["pretrained_model_name_or_path"] = str(model)
    config["scheduling_unit"] = 6
    whole, cut = train(config, tmp_path / "whole", 2), tmp_path / "cut"

    with Training(config, cut, 2, pause=(0, 12)) as training:
        training.wait_for_pause()
        training.launchers[0].send_signal(signal.SIGTERM)  # torchrun passes it on
        assert training.wait() != 0
    assert checkpoint_steps(cut)[-1] == 14  # in a validation, amid an accumulation and between two reports

    with Training(config, cut, 2, "--resume", "auto", pause=(1, 22)) as training:
        training.wait_for_pause()
        os.kill(training.pids()[1], signal.SIGKILL)  # the first one waits for its gradients
        assert training.wait(60) != 0
    assert "Another process of this training has ended: see its error." in training.output()
    assert checkpoint_steps(cut)[-1] == 21

    with Training(config, cut, 2, "--resume", "auto", pause=(0, 24), more="resume.PATIENCE = 3") as training:
        training.wait_for_pause()
        os.kill(training.pids()[0], signal.SIGKILL)  # the second one waits for what it has to report
        assert training.wait(60) != 0
    assert "Another process of this training does not answer" in training.output()

    train(config, cut, 2, "--resume", "auto")
    assert (cut / "run" / "metrics.jsonl").read_text() == (whole / "run" / "metrics.jsonl").read_text()
    for folder in (cut, whole):
        assert checkpoint_steps(folder)[-1] == 24
    states = [torch.load(newest_checkpoint(folder) / "state_dict.pth", weights_only=False) for folder in (cut, whole)]
    for key in ("models_state_dict", "optimizers_state_dict", "lr_schedulers_state_dict"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


FAILING = """
def load_datasets(self, original=NERTrial.load_datasets):
    if rank == {rank}:
        raise ValueError("no such thing")
    return original(self)

NERTrial.load_datasets = load_datasets
"""
NOT_SHARED = "run.find_checkpoint = lambda *_: None if rank else folder"


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        pytest.param("", ["--config", "data.train_file=gone.csv"], "gone.csv does not exist", id="a mistake"),
        pytest.param(FAILING.format(rank=0), [], "ValueError: no such thing", id="the first"),
        pytest.param(
            FAILING.format(rank=1), [], "Process 1 failed, and this one with it: ValueError: no such", id="another"
        ),
        pytest.param(NOT_SHARED, ["--resume", "auto"], "a folder that all nodes share", id="not the same checkpoint"),
    ],
)
def test_one_that_fails_ends_all(
    config: dict[str, Any], tmp_path: Path, more: str, arguments: list[str], message: str
) -> None:
    with Training(config, tmp_path / "failing", 2, *arguments, more=more) as training:
        assert training.wait(60) != 0
    assert message in training.output()
    assert not (tmp_path / "failing" / "run").exists()
