"""On a real Determined 0.38 cluster: the sample is trained, paused, killed, spread over slots and searched, and used.

`make test-cluster` runs this where DET_MASTER names a master, with DET_USER and DET_PASS or what `det user login` left.
Checkpoints have to be in reach of this machine, as for `det checkpoint download`. It takes ten minutes at most on two
idle slots, and longer where startup-hook.sh downloads packages in the first container.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from determined.common.api import bindings
from determined.experimental import client
from determined.experimental.client import Experiment
from training_process import run_python

from transformer_trial.checkpoints import allow_determined_checkpoints

if "DET_MASTER" not in os.environ:
    pytest.skip("DET_MASTER names no cluster", allow_module_level=True)

LIMIT_SECONDS = 3600
"""For each thing that is waited for: a job may have to queue for its slots, and for an image to be pulled."""

ENDED = {getattr(client.ExperimentState, name) for name in ("COMPLETED", "CANCELED", "ERROR", "DELETED")}

SAMPLE = ("sample/ner_config.yaml", "scheduling_unit=10")
"""Reports every 10 batches, and looks as often whether it is to pause."""

SEARCH = (
    "ner_search.yaml", "searcher.max_trials=4", "searcher.max_time=640", "min_validation_period.batches=40",
    "hyperparameters.pretrained_model_name_or_path=sample/model", "hyperparameters.use_pretrained_weights=false",
    "hyperparameters.learning_rate.minval=-3.5", "hyperparameters.learning_rate.maxval=-2.5", "data.dataset_name=null",
    "data.train_file=sample/data/train.json", "data.validation_file=sample/data/validation.json",
    "environment.environment_variables=[OMP_NUM_THREADS=1]",
)  # fmt: skip
"""The shipped search, with the sample's model and data: rungs at 40, 160 and 640 batches. Each trial has one thread:
two of them on one machine would fight for its cores."""

KILLED = (*SAMPLE, "entrypoint=python3 killed.py", "max_restarts=2", "min_checkpoint_period.batches=63")
"""The sample's experiment, of which `killed.py` kills the first two runs."""

TAGGED = ("--input", "sample/data/test.json", "--batch-size", "1")
"""What is tagged, in 7 chunks."""

Submit = Callable[..., Experiment]
Jobs = dict[str, Experiment]


@pytest.fixture(scope="module")
def compute_pool() -> Any:
    """The pool of slots that jobs get by default; fails where no master answers or it refuses the credentials."""
    try:
        client.login()
        pools = bindings.get_GetResourcePools(client._get_singleton_session()).resourcePools or []
        return next(pool for pool in pools if pool.defaultComputePool)
    except Exception as error:
        problem = f"no cluster at DET_MASTER={os.environ['DET_MASTER']}: {type(error).__name__}: {error}"
    pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="module")
def submit(compute_pool: Any) -> Iterator[Submit]:
    """Creates an experiment as a user does, with `det`; what has not ended when the tests have is killed."""
    submitted: list[Experiment] = []

    def submit(file: str, *overrides: str, include: str | None = None) -> Experiment:
        options = [option for override in overrides for option in ("--config", override)]
        options += [] if include is None else ["--include", include]
        command = [str(Path(sys.executable).parent / "det"), "experiment", "create", *options, file, "."]
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        created = re.search(r"^Created experiment (\d+)", result.stdout, flags=re.MULTILINE)
        assert created, result.stdout + result.stderr
        submitted.append(client.get_experiment(int(created[1])))
        return submitted[-1]

    yield submit
    for experiment in submitted:
        experiment.reload()
        if experiment.state not in ENDED:
            experiment.kill()


def wait_until(experiment: Experiment, reached: Callable[[], bool], what: str) -> None:
    """Wait for something that happens while an experiment goes on; shows its trials' last log lines if it does not."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not reached():
        experiment.reload()
        if (experiment.state in ENDED and not reached()) or time.monotonic() > deadline:
            for trial in experiment.list_trials():
                print(f"--- Trial {trial.id} is {trial.state}. Its last lines:\n{''.join(trial.iter_logs(tail=60))}")
            pytest.fail(f"experiment {experiment.id} is {experiment.state}, and should have {what}")
        time.sleep(1)


def completed(experiment: Experiment) -> Experiment:
    wait_until(experiment, lambda: experiment.state == client.ExperimentState.COMPLETED, "completed")
    return experiment


@pytest.fixture(scope="module")
def jobs(submit: Submit) -> Jobs:
    """The experiments that wait for nothing but slots, all submitted at once."""
    straight, killed = submit(*SAMPLE), submit(*KILLED, include="tests/cluster/killed.py")
    return {"straight": straight, "killed": killed, "search": submit(*SEARCH)}


@pytest.fixture(scope="module")
def straight(jobs: Jobs) -> Experiment:
    """The sample's experiment, trained without interruption."""
    return completed(jobs["straight"])


@pytest.fixture(scope="module")
def best(straight: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its best checkpoint, in a folder that bears the checkpoint's uuid."""
    (checkpoint,) = straight.list_checkpoints(max_results=1)
    return Path(checkpoint.download(str(tmp_path_factory.mktemp("best") / checkpoint.uuid)))


@pytest.fixture
def needs_two_slots(compute_pool: Any) -> None:
    num_slots = max(compute_pool.slotsAvailable, compute_pool.maxAgents * (compute_pool.slotsPerAgent or 0))
    if num_slots < 2:
        pytest.skip(f"needs two slots; the cluster's default pool has {num_slots}")


def predict(model: str, folder: Path) -> bytes:
    """Tag with predict.py on this machine; returns what it wrote."""
    run_python("predict.py", "--model", model, *TAGGED, "--output", folder / "out.jsonl")
    return (folder / "out.jsonl").read_bytes()


def reports(experiment: Experiment, group: str = "validation") -> dict[int, dict[str, Any]]:
    """What the master keeps of the only trial's metrics, by batches trained."""
    (trial,) = experiment.list_trials()
    return {report.steps_completed: report.metrics for report in trial.iter_metrics(group)}


def final(experiment: Experiment) -> dict[str, Any]:
    """Metrics of the last validation."""
    return max(reports(experiment).items())[1]


def newest_weights(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights in the last checkpoint."""
    (newest,) = experiment.list_checkpoints(client.CheckpointSortBy.BATCH_NUMBER, client.OrderBy.DESC, max_results=1)
    path = Path(newest.download(str(folder / newest.uuid)))
    allow_determined_checkpoints()
    state = torch.load(path / "state_dict.pth", map_location="cpu", weights_only=True)
    return state["models_state_dict"][0]


def test_the_sample_trains_and_the_master_has_its_metrics_scores_and_checkpoints(straight: Experiment) -> None:
    assert final(straight)["f1"] >= 0.9
    assert final(straight)["validation_loss"] < 0.5
    assert max(reports(straight)) == max(reports(straight, "training")) == 756  # 12 epochs of 1,000 sentences by 16
    checkpoints = straight.list_checkpoints()
    assert checkpoints
    assert {checkpoint.state for checkpoint in checkpoints} == {client.CheckpointState.COMPLETED}
    assert all("model/config.json" in checkpoint.resources for checkpoint in checkpoints)
    scores = reports(straight, "test")
    assert scores and scores.keys() <= reports(straight).keys()
    assert max(scores.items())[1]["f1"] >= 0.85
    (trial,) = straight.list_trials()
    log = [line for line in trial.iter_logs() if f"'f1': {max(scores.items())[1]['f1']}" in line]
    assert len(log) == 1 and "group=test" in log[0]
    assert not [line for line in trial.iter_logs() if "it/s]" in line], "progress bars"


def has_left_its_container(trial: client.Trial) -> bool:
    session = client._get_singleton_session()
    task = bindings.get_GetTask(session, taskId=bindings.get_GetTrial(session, trialId=trial.id).trial.taskId).task
    return all(allocation.endTime for allocation in task.allocations)


def assert_same_end(experiment: Experiment, straight: Experiment, compute_pool: Any, folder: Path) -> None:
    """They end with the same weights and metrics, and validated at the same batches."""
    expected, found = (newest_weights(run, folder) for run in (straight, experiment))
    assert found.keys() == expected.keys()
    vectors = [torch.cat([weights[name].double().flatten() for name in expected]) for weights in (expected, found)]
    distance = float((vectors[1] - vectors[0]).norm() / vectors[0].norm())
    # CPUs repeat a training bit for bit; GPUs add in an order of their own each time.
    on_cpu = compute_pool.slotType == bindings.devicev1Type.CPU
    assert distance == 0 if on_cpu else distance < 0.05
    assert reports(experiment).keys() == reports(straight).keys()
    for name in ("f1", "validation_loss"):
        assert final(experiment)[name] == pytest.approx(final(straight)[name], rel=1e-6 if on_cpu else 0.05)


def test_a_paused_run_ends_as_another(straight: Experiment, submit: Submit, compute_pool: Any, tmp_path: Path) -> None:
    experiment = submit(*SAMPLE)
    wait_until(experiment, lambda: bool(experiment.list_trials() and reports(experiment, "training")), "trained")
    experiment.pause()
    (trial,) = experiment.list_trials()
    # Until then the trial may still write its checkpoint; and the master might take its end for that of the training.
    wait_until(experiment, lambda: has_left_its_container(trial), "paused")
    assert 0 < max(reports(experiment, "training")) < 756, "it was over before it could be paused"
    experiment.activate()
    completed(experiment)
    assert_same_end(experiment, straight, compute_pool, tmp_path)


def test_a_killed_run_ends_as_another(straight: Experiment, jobs: Jobs, compute_pool: Any, tmp_path: Path) -> None:
    killed = completed(jobs["killed"])
    (trial,) = killed.list_trials()
    assert bindings.get_GetTrial(client._get_singleton_session(), trialId=trial.id).trial.restarts == 2
    assert_same_end(killed, straight, compute_pool, tmp_path)


@pytest.mark.usefixtures("needs_two_slots")
def test_two_slots_learn_what_one_does(straight: Experiment, submit: Submit) -> None:
    experiment = completed(submit(*SAMPLE, "resources.slots_per_trial=2"))
    assert reports(experiment).keys() == reports(straight).keys(), "another number of batches"
    # Not equal: each slot drops units of its own. Seeds differ by 0.02.
    assert final(experiment)["f1"] == pytest.approx(final(straight)["f1"], abs=0.03)


def test_the_search_tries_four_trials_and_names_the_best(jobs: Jobs) -> None:
    experiment = completed(jobs["search"])
    trials = experiment.list_trials()
    assert len({trial.hparams["learning_rate"] for trial in trials}) == 4
    highest = max(max(report.metrics["f1"] for report in trial.iter_metrics("validation")) for trial in trials)
    assert highest > 0.1, "nothing was learned"
    (best,) = experiment.list_checkpoints(max_results=1)
    assert best.training.validation_metrics["avgMetrics"]["f1"] == pytest.approx(highest)


def test_a_registered_model_is_found_by_name_and_by_uuid(
    best: Path, straight: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of this test alone: what it has is downloaded
    name, det = f"ner-test-{straight.id}-{int(time.time())}", str(Path(sys.executable).parent / "det")
    for command in (["create", name], ["register-version", name, best.name]):
        subprocess.run([det, "model", *command], check=True, capture_output=True, timeout=300)
    try:
        expected = predict(str(best / "model"), tmp_path)
        for model in (f"det://{name}", f"det://{name}:1", best.name):
            assert predict(model, tmp_path) == expected
        assert [path.name for path in (tmp_path / "cache" / "determined-ner").iterdir()] == [best.name]
    finally:
        client.get_model(name).delete()


@pytest.mark.usefixtures("needs_two_slots")
def test_batch_prediction_on_two_slots_is_that_of_predict_py(
    best: Path, straight: Experiment, submit: Submit, compute_pool: Any, tmp_path: Path
) -> None:
    arguments = f"--model {best.name} {' '.join(TAGGED)} --output out.jsonl"
    launcher = "python3 -m determined.launch.torch_distributed"
    experiment = completed(submit("det_predict.yaml", f"entrypoint={launcher} python3 batch_predict.py {arguments}"))
    (trial,) = experiment.list_trials()
    log = "".join(trial.iter_logs())
    (uuid,) = set(re.findall(r"stored with default paths are at: \S*?([0-9a-f-]{36})", log))
    # What was uploaded is no checkpoint that the master knows, but lies in the same storage as those.
    (output,) = straight.list_checkpoints(max_results=1)
    output.uuid = uuid
    folder = Path(output.download(str(tmp_path / "output")))
    assert len(list(folder.glob("rank_[01]/*.shard"))) == 7
    found, expected = (
        [json.loads(line) for line in text.splitlines()]
        for text in ((folder / "rank_0" / "out.jsonl").read_bytes(), predict(best.name, tmp_path))
    )
    if compute_pool.slotType != bindings.devicev1Type.CPU:  # another machine's sums differ in their last digits
        found, expected = ([row["tags"] for row in rows] for rows in (found, expected))
    assert found == expected
    ((steps, scores),) = reports(experiment, "test").items()
    assert steps == 7 and scores["f1"] >= 0.85
