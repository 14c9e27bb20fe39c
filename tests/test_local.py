"""train.py: what it makes of the command line and the yaml, and that it trains what Determined's harness trains."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import determined as det
import pytest
import torch
import transformers
import yaml
from conftest import PROJECT, read_metrics
from determined import core, pytorch
from determined.exec import harness

from ner_trial import NERTrial
from transformer_trial import command_line
from transformer_trial import local as run_module
from transformer_trial.errors import TrialError


@pytest.fixture
def config_file(config: dict[str, Any], tmp_path: Path) -> Path:
    config["data"] |= {"max_train_samples": 40, "max_eval_samples": 20}
    config["searcher"]["max_length"] = {"epochs": 2}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def train_py(*arguments: str, cwd: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROJECT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_run_leaves_model_metrics_and_checkpoints(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train_py(
        "config.yaml", "--output-dir", "run", "--config", "scheduling_unit=2",
        "--config", "min_validation_period.batches=5", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [line["batches"] for line in read_metrics(folder, "training")] == [2, 4, 5, 6, 8, 10]
    assert [line["batches"] for line in read_metrics(folder, "validation")] == [5, 10]
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder / "model")
    assert "B-PER" in model.config.label2id
    assert transformers.AutoTokenizer.from_pretrained(folder / "model").is_fast
    checkpoints = list((folder / "checkpoints" / "determined").iterdir())
    assert len(checkpoints) in (1, 2)  # the best and the newest, which may be the same
    code = {path.name for path in (checkpoints[0] / "code").iterdir()}
    assert {"ner_trial.py", "transformer_trial"} <= code
    assert not {"tests", ".venv", "outputs", ".git"} & code
    lines = [line for line in result.stderr.splitlines() if line.startswith("batch ")]
    assert lines[2].startswith("batch 5 of 10: training learning_rate ")
    assert lines[3].startswith("batch 5 of 10: validation accuracy_score ")
    assert "determined" not in result.stderr.replace(str(checkpoints[0].parents[1]), ""), "the client's chatter"


@pytest.mark.parametrize(
    ("policy", "latest", "expected"), [("best", 1, [10]), ("all", 1, [10]), ("all", 3, [6, 8, 10]), ("none", 1, [10])]
)
def test_the_checkpoints_that_remain_are_those_that_the_yaml_asks_for(
    config_file: Path, tmp_path: Path, policy: str, latest: int, expected: list[int]
) -> None:
    result = train_py(
        str(config_file), "--output-dir", str(tmp_path / "run"), "--config", "hyperparameters.learning_rate=0.003",
        "--config", f"checkpoint_policy={policy}", "--config", "min_validation_period.batches=2",
        "--config", f"checkpoint_storage.save_trial_latest={latest}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    files = (tmp_path / "run").glob("checkpoints/determined/*/metadata.json")
    kept = sorted(json.loads(file.read_text())["steps_completed"] for file in files)
    validations = read_metrics(tmp_path / "run", "validation")
    best = max(validations, key=lambda line: line["f1"])["batches"]  # the first of equals
    assert len(validations) == 5
    assert kept == sorted({*expected, *([] if policy == "none" else [best])})


def test_a_checkpoint_of_train_py_is_loaded_by_determined(config_file: Path, tmp_path: Path) -> None:
    result = train_py(str(config_file), "--test", "--output-dir", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    (checkpoint,) = (tmp_path / "run" / "checkpoints" / "determined").iterdir()
    code = (
        "import sys; from determined import pytorch; from transformer_trial import checkpoints;"
        "checkpoints.allow_determined_checkpoints();"
        "print(type(pytorch.load_trial_from_checkpoint_path(sys.argv[1])).__name__)"
    )
    loaded = subprocess.run([sys.executable, "-c", code, str(checkpoint)], cwd=PROJECT, capture_output=True, text=True)
    assert loaded.stdout.strip() == "NERTrial", loaded.stderr


def test_test_mode_trains_and_validates_one_batch(config_file: Path, tmp_path: Path) -> None:
    result = train_py(str(config_file), "--test", "--output-dir", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert [line["batches"] for line in read_metrics(tmp_path / "run", "training")] == [1]
    assert len(read_metrics(tmp_path / "run", "validation")) == 1


def test_a_terminal_shows_a_progress_bar(config_file: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "train.py", str(config_file), "--output-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(controller, 65536):
                shown += chunk
    assert process.returncode == 0, shown.decode()
    assert "/10 [" in shown.decode() and "batch/s" in shown.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["missing.yaml"], "missing.yaml: no such file", id="no-file"),
        pytest.param(["CONFIG", "--config", "hyperparameters.learning_rat=1"], "Did you mean learning_rate?", id="key"),
        pytest.param(["CONFIG", "--config", "nonsense"], "--config: .*KEY=VALUE", id="override"),
        pytest.param(["CONFIG", "--epochs", "0"], "--epochs: found 0; accepted is at least 1", id="epochs"),
        pytest.param(["CONFIG", "--config", "searcher.max_length=null"], "searcher.max_length: missing", id="length"),
        pytest.param(
            ["CONFIG", "--config", "min_validation_period=x"], "min_validation_period: found 'x'", id="period"
        ),
        pytest.param(
            ["CONFIG", "--output-dir", str(PROJECT / "results")], "outputs/ or outside", id="output-in-project"
        ),
        pytest.param(["CONFIG", "--config", "data.train_file=gone.csv"], "gone.csv does not exist", id="data"),
    ],
)
def test_a_mistake_ends_in_its_message(
    config_file: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = [str(config_file) if a == "CONFIG" else a for a in arguments]
    if "--output-dir" not in arguments:
        arguments += ["--output-dir", str(tmp_path / "run")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module, "set_up_logging", lambda on_cluster: None)  # which would take caplog's place
    with pytest.raises(SystemExit) as stopped:
        run_module.run(NERTrial, arguments)
    assert stopped.value.code == 1
    assert re.search(message, caplog.text), caplog.text
    assert not (PROJECT / "results").exists()


def test_the_results_of_another_run_are_never_overwritten(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("precious\n")
    result = train_py(str(config_file), "--output-dir", str(tmp_path / "run"))
    assert result.returncode == 1
    assert "holds the results of another run" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "precious\n"


@pytest.mark.parametrize("period", [{"batches": 5}, {"epochs": 2}, {"records": 100}, {"batches": 0}, {"epochs": 0}])
def test_periods_mean_what_they_mean_to_determined(period: dict[str, int]) -> None:
    expected = pytorch.TrainUnit._from_values(**period, global_batch_size=8)
    found = run_module.as_period("min_validation_period", period, 8)
    assert type(found) is type(expected)
    assert found.value == expected.value


class StandInTrainContext(core.DummyTrainContext):
    """Stands in for what reports to a master, which cannot be had here; knows a trial's id, as on a cluster."""

    _trial_id = 1
    _exp_id = 1


@contextlib.contextmanager
def stand_in_cluster(config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make Determined's code believe that it runs in a task of a cluster, whose master is a stand-in."""
    defaults = {
        "checkpoint_storage": {"type": "shared_fs"}, "scheduling_unit": 100, "checkpoint_policy": "best",
        "min_checkpoint_period": {"batches": 0}, "perform_initial_validation": False, "profiling": {"enabled": False},
    }  # fmt: skip
    optimizations = {"aggregation_frequency": 1, "gradient_compression": False, "average_aggregated_gradients": True}
    config = {**defaults, **config, "optimizations": {**optimizations, **config.get("optimizations", {})}}
    seed = config["reproducibility"]["experiment_seed"]
    trial = types.SimpleNamespace(
        _config=config, hparams=config["hyperparameters"], trial_seed=seed, _debug=False, _steps_completed=0, trial_id=1
    )
    info = types.SimpleNamespace(
        task_type="TRIAL", trial=trial, gpu_uuids=[], slot_ids=[0], container_addrs=["here"], latest_checkpoint=None
    )

    def stand_in_init(**arguments: Any) -> core.Context:
        context = core._dummy_init(checkpoint_storage=str(folder))
        context.train = StandInTrainContext(folder / "tensorboard")
        return context

    monkeypatch.setattr(det, "get_cluster_info", lambda: info)
    monkeypatch.setattr(core, "init", stand_in_init)
    monkeypatch.setattr("determined.constants.MANAGED_TRAINING_MODEL_COPY", str(PROJECT / "transformer_trial"))
    yield info


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="defaults"),
        pytest.param(
            {"optimizations": {"aggregation_frequency": 2, "average_aggregated_gradients": False}}, id="accumulation"
        ),
    ],
)
def test_the_same_yaml_trains_the_same_weights_in_determineds_harness_and_in_train_py(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config |= {**changes, "min_validation_period": {"batches": 4}}
    config["data"]["max_eval_samples"] = 20
    config["hyperparameters"]["learning_rate"] = 1e-3
    config["searcher"]["max_length"] = {"batches": 8}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))

    trials: list[Any] = []

    class KeptTrial(NERTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            trials.append(self)

    KeptTrial.__module__ = "ner_trial"
    with monkeypatch.context() as patch, stand_in_cluster(config, tmp_path / "cluster", patch) as info:
        harness._run_pytorch_trial(KeptTrial, info, config["entrypoint"])
        # The script as the entrypoint of an experiment, which takes the configuration from the master.
        patch.chdir(tmp_path)
        run_module.run(KeptTrial, ["absent.yaml"])  # warned of, and not read
    patched_file = types.SimpleNamespace(getfile=lambda _: str(PROJECT / "train.py"))
    monkeypatch.setattr(run_module, "inspect", patched_file)
    monkeypatch.setattr(run_module, "set_up_logging", lambda on_cluster: None)
    run_module.run(KeptTrial, [str(file), "--output-dir", str(tmp_path / "local")])

    in_harness, as_entrypoint, local = (trial.model.state_dict() for trial in trials)
    assert all(torch.equal(in_harness[name], as_entrypoint[name]) for name in in_harness)
    assert all(torch.equal(in_harness[name], local[name]) for name in in_harness)
    assert trials[2].experiment_config["searcher"]["max_length"] == {"batches": 8}


def test_the_search_yaml_trains_locally_with_a_value_of_each_range(config: dict[str, Any], tmp_path: Path) -> None:
    search = yaml.safe_load((PROJECT / "ner_search.yaml").read_text())
    search["hyperparameters"]["pretrained_model_name_or_path"] = config["hyperparameters"][
        "pretrained_model_name_or_path"
    ]
    search["data"] = {**config["data"], "max_eval_samples": 20}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search))
    result = train_py(str(file), "--test", "--output-dir", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    (line,) = read_metrics(tmp_path / "run", "training")
    assert json.dumps(line) and line["learning_rate"] == 0  # the first of 512 batches of warm-up
    assert " of 5120: " in result.stderr


def test_the_search_has_rungs_that_stop_trials_and_validates_at_each() -> None:
    search = yaml.safe_load((PROJECT / "ner_search.yaml").read_text())
    searcher = search["searcher"]
    rungs = [searcher["max_time"] // searcher["divisor"] ** i for i in range(searcher["max_rungs"])]
    assert len(rungs) > 1
    assert all(rung % search["min_validation_period"]["batches"] == 0 for rung in rungs)
    assert "train.py" in search["entrypoint"]
    with pytest.raises(TrialError):
        command_line.read_config(command_line.parse_arguments(["no.yaml"]))


def test_seed_and_length_have_defaults(fit: Callable[..., Any], config: dict[str, Any]) -> None:
    del config["reproducibility"]
    config["searcher"]["max_length"]["batches"] = 1
    assert fit(config).seed == 42
