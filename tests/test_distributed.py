"""Several processes: together they do what one does, go on like one, and none of them is left behind."""

import datetime
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
import yaml
from conftest import PROJECT, Config, read_lines, read_metrics, save_tiny_model, slow, watch, write_config
from test_resume import KILL, TERM, assert_same_state, checkpoints_of, steps_of
from training_process import TORCHRUN, run_python, start_ranks, wait_for_all

from ner_trial import NERTrial
from transformer_trial import checkpoints, local
from transformer_trial.data import PADDING


def note_steps(folder: Path) -> None:
    """Let this process note the rows and the gradient norm of each step, and what it tokenizes."""

    def note(name: str, value: Any) -> None:
        with (folder / f"{name}{os.environ.get('RANK', '0')}").open("a") as file:
            file.write(json.dumps(value) + "\n")

    def note_rows(trial: Any, batch: Any, epoch_idx: int, batch_idx: int) -> None:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        note("seen", [batch_idx, [] if PADDING in batch else rows])

    def note_texts(tokenizer: Any, texts: Any, *_: Any, **__: Any) -> None:
        if isinstance(texts, list):  # and not the word that a model is tried with
            note("tokenized", len(texts))

    patch = pytest.MonkeyPatch()
    watch(NERTrial, "train_batch", patch, first=note_rows)
    watch(torch.nn.utils, "clip_grad_norm_", patch, then=lambda norm, *_: note("norms", float(norm)))
    watch(transformers.PreTrainedTokenizerBase, "__call__", patch, first=note_texts)


def read_notes(folder: Path, name: str) -> dict[int, list[Any]]:
    """What each process has noted under this name, by its rank."""
    return {int(file.name[-1]): read_lines(file) for file in sorted(folder.glob(f"{name}[0-9]"))}


def train(config: Config, folder: Path, num_ranks: int, *arguments: str, **options: Any) -> list[int]:
    """Train in so many processes; returns their exit statuses. See `start_ranks` for the options."""
    folder.mkdir(exist_ok=True)
    command = [*write_config(config, folder), *arguments]
    changes = [functools.partial(note_steps, folder), *options.pop("changes", ())]
    return wait_for_all(start_ranks(command, folder / "log", num_ranks, changes=changes, **options))


def train_to_end(config: Config, folder: Path, num_ranks: int, *arguments: str, **options: Any) -> Path:
    """Train in so many processes; returns the folder, which holds their notes and, in `run`, the run."""
    assert train(config, folder, num_ranks, *arguments, **options) == [0] * num_ranks, (folder / "log").read_text()
    return folder


def rows_of_steps(folder: Path) -> dict[int, list[list[int]]]:
    """The rows (sub-tokens) that each step was trained on, by whatever process."""
    steps: dict[int, list[list[int]]] = {}
    for lines in read_notes(folder, "seen").values():
        for step, rows in lines:
            steps.setdefault(step, []).extend(rows)
    return {step: sorted(rows) for step, rows in sorted(steps.items())}


def assert_same_metrics_and_weights(folder: Path, alone: Path) -> None:
    """They are those of one process, but for the order of sums."""
    for group in ("training", "validation"):
        lines, expected = read_metrics(folder / "run", group), read_metrics(alone / "run", group)
        assert len(lines) == len(expected) > 0
        for line, expected_line in zip(lines, expected):
            assert line.pop("group") == expected_line.pop("group") == group
            assert line == pytest.approx(expected_line, rel=2e-4)
    weights = [safetensors.torch.load_file(path / "run" / "model" / "model.safetensors") for path in (folder, alone)]
    torch.testing.assert_close(*weights, rtol=0, atol=2e-4)


@pytest.fixture
def config(config: Config) -> Config:
    """24 batches, in 4 epochs whose last batch has one row; periods end amid an accumulation."""
    # Without that epsilon Adam makes whole steps of gradients that are nothing but rounding.
    config["hyperparameters"] |= {"learning_rate": 3e-2, "adam_epsilon": 1e-4}
    config["data"] |= {"max_train_samples": 41, "max_eval_samples": 33, "group_by_length": True}
    config["searcher"]["max_length"] = {"epochs": 4}
    config |= {"scheduling_unit": 1, "min_validation_period": {"batches": 7}}
    return config | {"optimizations": {"aggregation_frequency": 3}}


def download_slowly() -> None:
    """Let rank 2 take longer to load its data than torch lets the others wait."""
    patch, seconds = pytest.MonkeyPatch(), 3 if os.environ["RANK"] == "2" else 0
    set_timeout, timeout = torch.distributed.distributed_c10d._set_pg_timeout, datetime.timedelta(seconds=2)
    watch(torch.distributed, "init_process_group", patch, then=lambda *_: set_timeout(timeout))
    watch(NERTrial, "load_datasets", patch, first=lambda _: time.sleep(seconds))


@pytest.mark.slow
def test_processes_of_several_nodes_do_what_one_does(config: Config, tmp_path: Path) -> None:
    config["data"] |= {"max_eval_samples": 3, "overwrite_cache": True}  # the fourth process has nothing to validate
    config["searcher"]["max_length"] = {"batches": 13}
    alone = train_to_end(config, tmp_path / "alone", 1)
    together = train_to_end(config, tmp_path / "together", 4, nodes=2, changes=[download_slowly])
    assert rows_of_steps(together) == rows_of_steps(alone)
    norms, expected_norms = (read_notes(folder, "norms")[0] for folder in (together, alone))
    assert norms == pytest.approx(expected_norms, rel=2e-4)
    assert_same_metrics_and_weights(together, alone)
    assert len({len(lines) for lines in read_notes(together, "seen").values()}) == 1  # none has a step less
    # The first process of each node makes the caches, and only that.
    assert read_notes(together, "tokenized") == {0: [41, 3], 2: [41, 3]}
    for folder in (together, alone):  # no trace of data-parallel training, which Determined's loader would stumble on
        for file in (folder / "run").glob("checkpoints/determined/*/state_dict.pth"):
            (saved,) = torch.load(file, weights_only=False)["models_state_dict"]
            assert "classifier.weight" in saved


def test_distributed_yaml_deals_its_batches_out(config: Config, tmp_path: Path) -> None:
    shipped = yaml.safe_load((PROJECT / "distributed.yaml").read_text())
    assert shipped["resources"]["slots_per_trial"] == 8 and "torch_distributed" in shipped["entrypoint"]
    model = config["hyperparameters"]["pretrained_model_name_or_path"]
    shipped["hyperparameters"]["pretrained_model_name_or_path"] = model
    shipped["data"] |= config["data"] | {"max_train_samples": 192, "max_eval_samples": 8}
    folder = train_to_end(shipped, tmp_path / "two", 2, "--test")
    assert [[len(rows) for _, rows in lines] for lines in read_notes(folder, "seen").values()] == [[32], [32]]
    assert "batch 1 of 9: training" in (folder / "log").read_text()


STOPPED_BY_TORCHRUN = """
import os, signal, time
from ner_trial import NERTrial
from transformer_trial.local import run

def train_batch(self, batch, epoch_idx, batch_idx, original=NERTrial.train_batch):
    if batch_idx == 8:
        if os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which passes it on
        while signal.getsignal(signal.SIGTERM).__self__.received is None:
            time.sleep(0.01)
    return original(self, batch, epoch_idx, batch_idx)

NERTrial.train_batch = train_batch
run(NERTrial)
"""


@pytest.mark.parametrize("num_ranks", [1, slow(3)])
def test_torchrun_passes_a_signal_on_and_other_numbers_go_on(config: Config, tmp_path: Path, num_ranks: int) -> None:
    alone, folder = train_to_end(config, tmp_path / "alone", 1), tmp_path / "cut"
    epochs = [list(rows_of_steps(alone).values())[start : start + 6] for start in range(0, 24, 6)]
    assert all(len({tuple(row) for rows in epoch for row in rows}) == 41 for epoch in epochs)
    scores = [line["accuracy_score"] for line in read_metrics(alone / "run", "validation")]
    assert len(set(scores)) > 2, "it has to learn something that a difference would change"
    folder.mkdir()
    (folder / "stopped.py").write_text(STOPPED_BY_TORCHRUN)
    command = [*TORCHRUN, folder / "stopped.py", alone / "config.yaml", "--output-dir", folder / "run"]
    _, errors = run_python(*command, status=1, PYTHONPATH=str(PROJECT))
    assert "SIGTERM: saving a checkpoint" in errors and "Stopped after batch 10 of 24." in errors
    assert steps_of(folder / "run")[-1] == 10  # amid an accumulation, and an epoch
    train_to_end(config, folder, num_ranks, "--resume", "auto")
    assert_same_metrics_and_weights(folder, alone)
    steps = rows_of_steps(folder)
    assert steps == {step: rows for step, rows in rows_of_steps(alone).items() if step >= 10}


def hurry() -> None:
    local.PATIENCE = 3


@pytest.mark.slow
def test_whatever_ends_several_processes_they_go_on_exactly(config: Config, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", num_hidden_layers=2)  # with dropout
    config["hyperparameters"]["pretrained_model_name_or_path"] = str(model)
    config["scheduling_unit"] = 6
    whole, cut, log = train_to_end(config, tmp_path / "whole", 2), tmp_path / "cut", tmp_path / "cut" / "log"
    assert train(config, cut, 2, signals={rank: [("training", 13, TERM)] for rank in range(2)}) == [128 + TERM] * 2
    assert steps_of(cut / "run")[-1] == 14  # in a validation, amid an accumulation and between two reports
    killed = {1: [("training", 9, KILL)]}  # at batch 22; the first one waits for its gradients
    assert train(config, cut, 2, "--resume", "auto", signals=killed) == [1, -KILL]
    assert "Another process of this training has ended: see its error." in log.read_text()
    assert steps_of(cut / "run")[-1] == 21
    # At the last batch, whose loss the second one waits for to report it. torchrun would send it a SIGTERM.
    ended = {0: [("training", 3, KILL)], 1: [("training", 3, TERM)]}
    statuses = train(config, cut, 2, "--resume", "auto", signals=ended, changes=[hurry])
    assert statuses[0] == -KILL and statuses[1] in (1, 128 + TERM)
    assert "Another process of this training" in log.read_text().splitlines()[-1]
    train_to_end(config, cut, 2, "--resume", "auto")
    assert (cut / "run" / "metrics.jsonl").read_text() == (whole / "run" / "metrics.jsonl").read_text()
    assert steps_of(cut / "run")[-1] == steps_of(whole / "run")[-1] == 24
    assert_same_state(checkpoints_of(cut / "run")[-1], checkpoints_of(whole / "run")[-1])


def fail(rank: int) -> None:
    def load_datasets(_: Any) -> None:
        if os.environ["RANK"] == str(rank):
            raise ValueError("no such thing")

    watch(NERTrial, "load_datasets", pytest.MonkeyPatch(), first=load_datasets)


def find_a_checkpoint_on_the_first_node_only() -> None:
    found = None if os.environ["RANK"] == "1" else Path("found")
    pytest.MonkeyPatch().setattr(checkpoints, "find_checkpoint", lambda *_: found)


@pytest.mark.parametrize(
    ("change", "nodes", "arguments", "message"),
    [
        slow(None, 1, ["--config", "data.train_file=gone.csv"], "gone.csv is there", id="a mistake"),
        pytest.param(
            functools.partial(fail, 0), 1, [], "first process of this node failed, and this one with it: V", id="first"
        ),
        pytest.param(functools.partial(fail, 1), 1, [], "Process 1 failed, and this one with it: Val", id="another"),
        slow(functools.partial(fail, 2), 2, [], "Process 2 failed, and this one with it: Val", id="of another node"),
        slow(find_a_checkpoint_on_the_first_node_only, 1, ["--resume", "auto"], "that all nodes share", id="lost"),
    ],
)
def test_one_that_fails_ends_all(
    config: Config, tmp_path: Path, change: Any, nodes: int, arguments: list[str], message: str
) -> None:
    changes = [change] if change else []
    assert 0 not in train(config, tmp_path / "failing", 2 * nodes, *arguments, nodes=nodes, changes=changes)
    log = (tmp_path / "failing" / "log").read_text()
    assert message in log and not (tmp_path / "failing" / "run").exists()
