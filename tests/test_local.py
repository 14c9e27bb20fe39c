"""train.py: what it makes of the command line and the yaml, and that it trains what Determined's harness trains."""

import contextlib
import logging
import os
import pty
import re
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PROJECT, Config, Fit, Log, Patch, read_lines, read_metrics, refuses, watch, write_config
from determined import pytorch
from stand_in import run_on_stand_in
from test_resume import steps_of
from training_process import run_python

from ner_trial import NERTrial
from transformer_trial import local

Run = Callable[..., Path]
"""The fixture `run`."""


@pytest.fixture
def config(config: Config) -> Config:
    config["data"] |= {"max_train_samples": 40, "max_eval_samples": 20}
    config["searcher"]["max_length"] = {"epochs": 2}
    return config


@pytest.fixture
def run(config: Config, tmp_path: Path, monkeypatch: Patch, caplog: Log) -> Run:
    """Train the configuration in this process as `train.py` does, in the folder that is returned."""
    monkeypatch.setenv("XDG_DATA_HOME", "what a run sets is undone")
    monkeypatch.setattr(local, "set_up_logging", lambda on_cluster: caplog.set_level(logging.INFO))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Path:
        local.run(NERTrial, [*write_config(config, tmp_path), *arguments])
        return tmp_path / "run"

    return run


def test_a_run_leaves_model_metrics_and_checkpoints(config: Config, tmp_path: Path) -> None:
    write_config(config, tmp_path)
    options = ("--config", "scheduling_unit=2", "--config", "min_validation_period.batches=5")
    command = (PROJECT / "train.py", "config.yaml", "--output-dir", "run", *options)
    folder, (_, said) = tmp_path / "run", run_python(*command, folder=tmp_path)
    assert [line["batches"] for line in read_metrics(folder, "training")] == [2, 4, 5, 6, 8, 10]
    assert [line["batches"] for line in read_metrics(folder, "validation")] == [5, 10]
    checkpoints = list((folder / "checkpoints" / "determined").iterdir())
    assert len(checkpoints) in (1, 2)  # the best and the newest, which may be the same
    code = {path.name for path in (checkpoints[0] / "code").iterdir()}
    assert {"ner_trial.py", "transformer_trial"} <= code
    assert not {"tests", ".venv", "outputs", ".git"} & code
    lines = [line for line in said.splitlines() if line.startswith("batch ")]
    assert lines[2].startswith("batch 5 of 10: training learning_rate ")
    assert lines[3].startswith("batch 5 of 10: validation accuracy_score ")
    modes = {path.stat().st_mode & 0o777 for path in (folder / "model").iterdir()}
    assert modes == {(tmp_path / "config.yaml").stat().st_mode & 0o777}, "that the umask says"
    assert "determined" not in said.replace(str(checkpoints[0].parents[1]), ""), "the client's chatter"


@pytest.mark.parametrize(
    ("policy", "latest", "kept"), [("best", 1, [10]), ("all", 1, [10]), ("all", 3, [6, 8, 10]), ("none", 1, [10])]
)
def test_the_yaml_says_which_checkpoints_remain(run: Run, config: Config, policy: str, latest: int, kept: Any) -> None:
    config["hyperparameters"]["learning_rate"] = 0.003
    config["checkpoint_storage"] = {"save_trial_latest": latest}
    folder = run("--config", f"checkpoint_policy={policy}", "--config", "min_validation_period.batches=2")
    validations = read_metrics(folder, "validation")
    best = max(validations, key=lambda line: line["f1"])["batches"]  # the first of equals
    assert len(validations) == 5
    assert sorted(steps_of(folder)) == sorted({*kept, *([] if policy == "none" else [best])})


def test_test_mode_trains_and_validates_one_batch_whose_checkpoint_determined_loads(run: Run) -> None:
    folder = run("--test")
    assert [line["batches"] for line in read_metrics(folder, "training")] == [1]
    assert len(read_metrics(folder, "validation")) == 1
    (checkpoint,) = (folder / "checkpoints" / "determined").iterdir()
    code = (
        "import sys; from determined import pytorch; from transformer_trial import checkpoints;"
        "checkpoints.allow_determined_checkpoints();"
        "print(type(pytorch.load_trial_from_checkpoint_path(sys.argv[1])).__name__)"
    )
    assert run_python("-c", code, checkpoint)[0].strip() == "NERTrial"


def test_a_terminal_shows_a_progress_bar(run: Run, monkeypatch: Patch) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        run()
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(controller, 65536):
            shown += chunk
    assert "/10 [" in shown.decode() and "batch/s" in shown.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["missing.yaml"], "missing.yaml: no such file", id="no-file"),
        pytest.param(["--config", "nonsense"], "--config: .*KEY=VALUE", id="override"),
        pytest.param(["--epochs", "0"], "--epochs: found 0; accepted is at least 1", id="epochs"),
        pytest.param(["--config", "min_validation_period=x"], "min_validation_period: found 'x'", id="period"),
        pytest.param(["--config", "min_validation_period={batches: , epochs: }"], r"N of at least 0\.\n", id="no-unit"),
        pytest.param(["--output-dir", str(PROJECT / "results")], "outputs/ or outside", id="output-in-project"),
        pytest.param(["--config", "data.train_file=gone.csv"], "gone.csv is there", id="data"),
        pytest.param(["--resume", "auto", "--test"], "goes with neither --test nor --inspect", id="resume-and-test"),
        pytest.param(["--resume", "gone"], "gone cannot be resumed: .*No such file", id="resume-from-nothing"),
        pytest.param(["--output-dir", "OTHER"], "holds the results of another run", id="another-run"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, run: Run, arguments: list[str], message: str, caplog: Log) -> None:
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(SystemExit) as stopped:
        if arguments == ["missing.yaml"]:
            local.run(NERTrial, arguments)
        run(*arguments)
    assert stopped.value.code == 1
    assert re.search(message, caplog.text), caplog.text
    assert "Traceback" not in caplog.text and not (PROJECT / "results").exists() and not (tmp_path / "run").exists()
    assert (tmp_path / "OTHER" / "metrics.jsonl").read_text() == "precious\n"


def test_two_runs_do_not_share_a_folder(run: Run, tmp_path: Path, monkeypatch: Patch) -> None:
    tried: list[Any] = []

    def try_to_share(*_: Any, **__: Any) -> None:
        with refuses("another run is writing to") as refusal:
            local.lock_folder(tmp_path / "run")
        tried.append(refusal)

    monkeypatch.setattr(local, "LOCK_PATIENCE", 0)
    watch(NERTrial, "train_batch", monkeypatch, first=try_to_share)
    watch(NERTrial, "evaluate_best", monkeypatch, first=try_to_share)
    run("--test")
    assert len(tried) == 2


@pytest.mark.parametrize("period", [{"batches": 5}, {"epochs": 2}, {"records": 100}, {"batches": 0}, {"epochs": 0}])
def test_periods_mean_what_they_mean_to_determined(period: dict[str, int]) -> None:
    expected = pytorch.TrainUnit._from_values(**period, global_batch_size=8)
    found = local.as_period("min_validation_period", period, 8)
    assert type(found) is type(expected)
    assert found.value == expected.value


@pytest.mark.parametrize("optimizations", [{}, {"aggregation_frequency": 2, "average_aggregated_gradients": False}])
def test_determineds_harness_and_train_py_train_the_same_weights(
    config: Config, tmp_path: Path, run: Run, optimizations: dict[str, Any], monkeypatch: Patch
) -> None:
    config |= {"optimizations": optimizations, "min_validation_period": {"batches": 4}}
    config["hyperparameters"]["learning_rate"] = 1e-3
    config["searcher"]["max_length"] = {"batches": 8}
    ended = [run_on_stand_in(config, tmp_path / "cluster", as_script=as_script) for as_script in (False, True)]
    trials = [trial for trial, _ in ended]
    watch(local, "fit", monkeypatch, first=lambda trial, *_, **__: trials.append(trial))
    lines = [(line.pop("group"), line.pop("batches"), line) for line in read_lines(run() / "metrics.jsonl")]
    for _, reports in ended:
        numbers = [{name: metrics[name] for name in metrics.keys() - {"batches", "epochs"}} for *_, metrics in reports]
        assert [(group, n, found) for (group, n, _), found in zip(reports, numbers)] == lines
    in_harness, *others = (trial.model.state_dict() for trial in trials)
    for weights in others:
        torch.testing.assert_close(weights, in_harness, rtol=0, atol=0)
    assert trials[2].experiment_config["searcher"]["max_length"] == {"batches": 8}


def test_the_search_trains_with_middle_values_and_validates_at_each_rung(config: Config, run: Run, caplog: Log) -> None:
    search = yaml.safe_load((PROJECT / "ner_search.yaml").read_text())
    searcher, period = search["searcher"], search["min_validation_period"]["batches"]
    rungs = [searcher["max_time"] // searcher["divisor"] ** i for i in range(searcher["max_rungs"])]
    assert len(rungs) > 1 and {rung % period for rung in rungs} == {0} and "train.py" in search["entrypoint"]
    model = config["hyperparameters"]["pretrained_model_name_or_path"]
    search["hyperparameters"]["pretrained_model_name_or_path"] = model
    search["data"] = config["data"] | {"max_train_samples": None}
    config.clear()
    config |= search
    (line,) = read_metrics(run("--test"), "training")
    assert line["learning_rate"] == 0  # the first of 512 batches of warm-up
    assert "batch 1 of 5120: " in caplog.text


def test_seed_and_length_have_defaults(fit: Fit, config: Config) -> None:
    del config["reproducibility"]
    config["searcher"]["max_length"] = {"batches": 1}
    assert fit(config).seed == 42
