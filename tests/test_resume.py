"""A run that was ended anywhere and goes on ends like one that never was: with the same weights and metrics."""

import collections
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROJECT, Capture, Config, save_tiny_model, slow, watch, write_config
from test_security import RunsACommand
from training_process import PHASES, Run, Training
from training_process import run as run  # a fixture
from transformers import SchedulerType

from ner_trial import NERTrial
from transformer_trial.builders import build_default_lr_scheduler
from transformer_trial.checkpoints import allow_determined_checkpoints, find_checkpoint, find_damage
from transformer_trial.config import SchedulerConfig
from transformer_trial.errors import TrialError

Pair = tuple[Path, Path]
"""An older checkpoint, and the newest."""
TERM, INT, KILL = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGKILL)


@pytest.fixture(scope="session")
def dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with dropout."""
    return save_tiny_model(tmp_path_factory.mktemp("dropout_model"), num_hidden_layers=1)


@pytest.fixture
def config(config: Config, dropout_model: Path) -> dict[str, Any]:
    """20 batches, over two epochs; reports, validations and checkpoints coincide at some, and at others do not."""
    config["hyperparameters"] |= {"pretrained_model_name_or_path": str(dropout_model), "learning_rate": 3e-3}
    config["data"] |= {"max_train_samples": 78, "max_eval_samples": 120, "test_file": config["data"]["validation_file"]}
    config["searcher"] |= {"max_length": {"epochs": 2}, "metric": "validation_loss", "smaller_is_better": True}
    return config | {"scheduling_unit": 3, "min_validation_period": {"batches": 7}}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a configuration for several tests; returns the folder of the run of that name."""
    folders: dict[str, Path] = {}

    def made_once(name: str, config: Config, signals: Any = ()) -> Path:
        if name not in folders:
            folder = folders[name] = tmp_path_factory.mktemp(name)
            Training(write_config(config, folder), folder / "log", signals).wait()
        return folders[name] / "run"

    return made_once


@pytest.fixture
def whole_run(config: Config, made_once: Callable[..., Path]) -> Path:
    """The folder of an uninterrupted run of the configuration."""
    return made_once("whole", config)


@pytest.fixture
def checkpoints(config: Config, made_once: Callable[..., Path], tmp_path: Path) -> Pair:
    """A run in the folder `cut` that a signal ended and that left two checkpoints."""
    config["checkpoint_storage"] = {"save_trial_latest": 2}
    subprocess.run(["cp", "-a", made_once("cut", config, [("training", 18, TERM)]), tmp_path / "cut"], check=True)
    older, newest = checkpoints_of(tmp_path / "cut")
    return older, newest


def checkpoints_of(folder: Path) -> list[Path]:
    """The whole checkpoints, the oldest first."""
    files = folder.glob("checkpoints/determined/*/metadata.json")
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def steps_of(folder: Path) -> list[int]:
    """After how many batches the whole checkpoints were saved, the oldest first."""
    return [json.loads((path / "metadata.json").read_text())["steps_completed"] for path in checkpoints_of(folder)]


def load_state(checkpoint: Path) -> Any:
    allow_determined_checkpoints()
    return torch.load(checkpoint / "state_dict.pth", map_location="cpu")


def assert_same_state(checkpoint: Path, expected: Path) -> None:
    """Weights, optimizer, schedule and scaler are the same, bit for bit."""
    states = [load_state(path) for path in (checkpoint, expected)]
    for key in ("models_state_dict", "optimizers_state_dict", "lr_schedulers_state_dict", "scaler_state_dict"):
        found, wanted = (state.get(key) for state in states)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def assert_same_run(folder: Path, expected: Path) -> None:
    """All that remains of two runs is the same: the newest checkpoint, metrics, best model, scores."""
    assert (folder / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    assert_same_state(checkpoints_of(folder)[-1], checkpoints_of(expected)[-1])
    for name in ("model/model.safetensors", "test/predictions.jsonl", "report/data.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert set(steps_of(folder)) >= set(steps_of(expected)), "a checkpoint that a signal left may be the best"
    assert not list(folder.glob("model.*"))


@pytest.mark.parametrize(
    "changes",
    [
        slow({}),
        {"hyperparameters": {"mixed_precision": "fp16"}, "optimizations": {"aggregation_frequency": 3}},
        {"optimizations": {"aggregation_frequency": 4}, "data": {"dataloader_num_workers": 1}},
        slow({"hyperparameters": {"lr_scheduler_type": "cosine_with_restarts"}}),
        slow({"hyperparameters": {"adafactor": True, "relative_step": True, "scale_parameter": True}}),
        slow({"hyperparameters": {"mixed_precision": "bf16"}, "data": {"group_by_length": True}}),
        slow({"min_checkpoint_period": {"batches": 2}, "optimizations": {"aggregation_frequency": 3}}),
        slow({"checkpoint_policy": "none", "perform_initial_validation": True}),
        slow({"checkpoint_policy": "all", "checkpoint_storage": {"save_trial_best": 2, "save_trial_latest": 3}}),
    ],
    ids=str,
)
def test_a_run_that_goes_on_ends_like_a_whole_one(config: Config, run: Run, tmp_path: Path, changes: Config) -> None:
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    run("whole")
    # In the middle of a report and of an accumulation, then in a validation, then in the second epoch, at once.
    run("cut", status=128 + TERM, signals=[("training", 5, TERM)])
    run("cut", "--resume", "auto", status=128 + INT, signals=[("validation", 2, INT)])
    run("cut", "--resume", "auto", status=-KILL, signals=[("training", 6, KILL)])
    run("cut", "--resume", "auto")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


SCHEDULE_ARGUMENTS: dict[str, Any] = {
    "cosine_with_restarts": {"num_cycles": 2}, "warmup_stable_decay": {"num_decay_steps": 8},
    "cosine_with_min_lr": {"min_lr": 1e-6}, "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({k.value for k in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}))
def test_a_schedule_goes_on_from_its_state(name: Any) -> None:
    arguments = SCHEDULE_ARGUMENTS.get(name)
    config = SchedulerConfig(lr_scheduler_type=name, warmup_ratio=0.2, lr_scheduler_kwargs=arguments)

    def train(num_steps: int, *states: Any) -> tuple[list[float], Any, Any]:
        rates: list[float] = []
        optimizer: Any = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
        schedule = build_default_lr_scheduler(optimizer, config, 20)
        for part, state in zip((optimizer, schedule), states):
            part.load_state_dict(state)
        for _ in range(num_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates, optimizer.state_dict(), schedule.state_dict()

    before, *states = train(7)
    whole = train(20)[0]
    assert before + train(13, *states)[0] == whole and np.isfinite(whole).all()


@pytest.mark.parametrize(
    ("signum", "moment"),
    [
        (TERM, ("training", 20)), (KILL, ("checkpoint", 1)), (KILL, ("exchange", 2)), slow(KILL, ("removal", 2)),
        *(slow(TERM, (phase, 2)) for phase in PHASES if phase != "training"),
        *(slow(KILL, moment) for moment in (("training", 20), ("validation", 1), ("test split", 2), ("export", 2))),
    ],
    ids=str,
)  # fmt: skip
def test_signals_lose_nothing(run: Run, tmp_path: Path, moment: tuple[str, int], signum: int, whole_run: Path) -> None:
    run("cut", signals=[(*moment, signum)], status=(0, 128 + TERM) if signum == TERM else -KILL)
    run("cut", "--resume", "auto")  # which leaves a run that has ended as it is
    assert_same_run(tmp_path / "cut", whole_run)


def test_a_second_signal_exits_at_once_and_a_checkpoint_counts(run: Run, tmp_path: Path, whole_run: Path) -> None:
    said = run("cut", signals=[("training", 12, TERM), ("checkpoint", 2, INT)], status=128 + INT)
    assert "SIGINT again: exiting at once." in said and steps_of(tmp_path / "cut") == [7]
    run("cut", "--resume", "auto")
    assert_same_run(tmp_path / "cut", whole_run)


def interrupt_before_training() -> None:
    watch(NERTrial, "tokenize", pytest.MonkeyPatch(), first=lambda _: os.kill(os.getpid(), INT))


def test_a_signal_before_the_training_ends_in_a_message(run: Run) -> None:
    output = run("cut", changes=[interrupt_before_training], status=128 + INT)
    assert output.splitlines()[-1].startswith("Stopped before the training began") and "Traceback" not in output


def flip_a_byte(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "state_dict.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "state_dict.pth").write_bytes(data)


def plant_code(checkpoint: Path) -> None:
    (checkpoint / "trial_state.pkl").write_bytes(pickle.dumps({"batches_trained": 17, "trial_id": RunsACommand()}))


def cut_short(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: os.truncate(checkpoint / name, (checkpoint / name).stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(flip_a_byte, "state_dict.pth is damaged", id="a-flipped-bit"),
        pytest.param(cut_short("state_dict.pth"), "not a zip file", id="weights-cut-short"),
        pytest.param(cut_short("trial_state.pkl"), "truncated", id="state-cut-short"),
        pytest.param(cut_short("metadata.json"), "char", id="metadata-cut-short"),
        pytest.param(lambda c: (c / "state_dict.pth").unlink(), "No such file", id="no-weights"),
        pytest.param(plant_code, "it names posix.system", id="code-in-the-state"),
    ],
)
def test_damage_of_every_kind_is_found(damage: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    fixture, checkpoint = PROJECT / "tests/fixtures/checkpoints/current", tmp_path / "checkpoints/determined/one"
    shutil.copytree(fixture, checkpoint)
    assert find_damage(checkpoint) is None
    assert find_checkpoint("auto", tmp_path) == find_checkpoint(str(checkpoint), tmp_path) == checkpoint
    damage(checkpoint)
    assert told in (find_damage(checkpoint) or "")
    for requested, refusal in (
        ("auto", f"no checkpoint in {tmp_path} is whole"),
        (str(checkpoint), "cannot be resumed"),
    ):
        with pytest.raises(TrialError, match=f"^--resume: .*{refusal}"):
            find_checkpoint(requested, tmp_path)
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("is_named", [False, True])
def test_a_damaged_checkpoint_or_one_not_named_is_passed_over(
    run: Run, tmp_path: Path, checkpoints: Pair, whole_run: Path, is_named: bool
) -> None:
    older, newest = checkpoints
    if not is_named:
        flip_a_byte(newest)
    log = run("cut", "--resume", str(older) if is_named else "auto")
    assert (f"{newest} cannot be resumed: state_dict.pth is damaged" in log) == (not is_named)
    assert f"Going on from {older}." in log and not newest.exists()
    assert_same_run(tmp_path / "cut", whole_run)


def test_an_interrupted_run_is_kept_and_a_finished_one_unchanged(run: Run, tmp_path: Path, checkpoints: Pair) -> None:
    assert "--resume auto" in run("cut", status=1).splitlines()[-1]
    run("cut", "--resume", "auto")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("model/*")}
    metrics = (tmp_path / "cut" / "metrics.jsonl").read_text()
    (tmp_path / "cut" / "model").rename(tmp_path / "cut" / "model.replaced")  # where a kill came between two renames
    run("cut", "--resume", "auto")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("model/*")}
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == metrics


@pytest.mark.usefixtures("checkpoints")
def test_changed_settings_are_told_without_secrets(config: Config, run: Run) -> None:
    config["hyperparameters"]["learning_rate"] = 1e-4
    config["data"]["max_train_samples"] = 70
    config["environment"] = {"environment_variables": ["HF_TOKEN=hf_planted"]}
    log = run("cut", "--resume", "auto")
    assert "hyperparameters.learning_rate has changed: 0.003 in the checkpoint, 0.0001 now" in log
    assert "data.max_train_samples has changed: 78 in the checkpoint, 70 now" in log
    assert "environment.environment_variables has changed" in log and "hf_planted" not in log


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A function that mounts a disk of so many bytes, and returns where; it may be mounted again as read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int, *options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting takes root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_full_disk_spares_earlier_checkpoints(run: Run, tmp_path: Path, small_disk: Any, whole_run: Path) -> None:
    checkpoints = whole_run / "checkpoints"  # one or two, as the newest is the best one or not: that differs by machine
    everything, kept, checkpoint = (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (whole_run, checkpoints, checkpoints_of(whole_run)[-1])
    )
    folder = small_disk(everything - kept + 4 * checkpoint)
    (folder / "ballast").write_bytes(bytes(int(2.5 * checkpoint)))  # the second checkpoint does not fit
    log = run("disk/run", status=1)
    assert (
        "Traceback" not in log and "Cannot write: " in log.splitlines()[-1] and "--resume auto" in log.splitlines()[-1]
    )
    assert steps_of(folder / "run") == [7]
    (folder / "ballast").unlink()
    run("disk/run", "--resume", "auto")
    assert_same_run(folder / "run", whole_run)


@pytest.mark.parametrize("name", ["disk/run", "disk"])
def test_a_folder_on_a_read_only_disk_is_told(run: Run, small_disk: Any, name: str) -> None:
    small_disk(1 << 20, "ro")
    log = run(name, status=1)
    assert (
        "Traceback" not in log
        and log.splitlines()[-1].startswith("Cannot write: ")
        and "Read-only file system" in log.splitlines()[-1]
    )


NUM_KILLS = int(os.environ.get("KILLS", "20"))


@pytest.mark.slow
def test_every_kill_is_survived(config: Config, run: Run, tmp_path: Path, capsys: Capture) -> None:
    """At random moments: as many times as KILLS says."""
    config["min_checkpoint_period"] = {"batches": 2}
    seed, folder, num_runs, killed_in = random.randrange(2**32), tmp_path / "run", 0, collections.Counter[str]()
    print(f"seed {seed}")
    rng, begun = random.Random(seed), time.monotonic()
    run("run", "--resume", "auto")
    seconds = time.monotonic() - begun
    whole_run = folder.rename(tmp_path / "whole")
    command = [*write_config(config, tmp_path), "--resume", "auto"]
    while sum(killed_in.values()) < NUM_KILLS:
        # At a moment at random, or as a phase begins: the short ones would seldom be hit.
        phase, call = rng.choice(tuple(PHASES)), rng.choice((1, 1, 2, 3))
        process = Training(command, tmp_path / "log", [(phase, call, KILL)] if rng.random() < 0.5 else ())
        process.process.join(rng.uniform(0.1, 0.9) * seconds)
        phase = process.phase_name()
        process.process.kill()
        status = process.wait()
        assert status in (0, -KILL), (tmp_path / "log").read_text()
        if status == 0:
            assert_same_run(folder, whole_run)
            shutil.rmtree(folder)
            num_runs += 1
        else:
            killed_in[phase] += 1
    run("run", "--resume", "auto")
    assert_same_run(folder, whole_run)
    counts = ", ".join(f"{count} in {phase}" for phase, count in killed_in.most_common())
    with capsys.disabled():
        print(f"\n{NUM_KILLS} kills ({counts}): {num_runs + 1} runs, each equal to one that was left alone")
